//! The sink that is the journal: one datagram per record in journald's native
//! protocol, over a socket of our own (no library, no thread).
//!
//! The fields are conmon's: `MESSAGE` (with its newline), `PRIORITY` (6 for
//! stdout, 3 for stderr; a line that begins with `<0>` to `<7>` sets its own and
//! loses these three bytes), `SYSLOG_IDENTIFIER`, `CONTAINER_ID_FULL`,
//! `CONTAINER_ID` (12 characters), `CONTAINER_NAME`, `CONTAINER_TAG`, the labels,
//! and `CONTAINER_PARTIAL_MESSAGE=true` on a record that does not end its line.
//! Values are sent with their length in front, so any byte is kept.
//!
//! journald may be absent, slow or restarting, and that must never hurt the
//! container: see [`JournaldSink::write`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use super::batch::{Batch, Channel};
use super::loss::Loss;
use super::split::{Place, Record, Tag};
use super::{LogError, Progress};
use crate::limits::{JOURNAL_STALL_MAX, LOG_RETRY_MIN};

/// Where journald listens (systemd-journald.service(8)).
const SOCKET: &str = "/run/systemd/journal/socket";

/// How the container is called in the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The container id; empty leaves its fields out.
    pub id: String,
    /// The container's name.
    pub name: Option<String>,
    /// A tag for the entries; becomes their identifier.
    pub tag: Option<String>,
    /// More fields, name and value. journald drops those whose name is not made of
    /// `A`-`Z`, `0`-`9` and `_`, or begins with `_`.
    pub labels: Vec<(String, String)>,
}

impl Identity {
    /// The fields that every entry has.
    fn render(&self) -> Vec<u8> {
        let short: String = self.id.chars().take(12).collect();
        let identifier = self.tag.as_ref().or(self.name.as_ref()).unwrap_or(&short);
        let mut fields = Vec::new();
        let mut put = |name: &str, value: &str| {
            if !value.is_empty() {
                field(&mut fields, name, &[value.as_bytes()]);
            }
        };
        put("CONTAINER_ID_FULL", &self.id);
        put("CONTAINER_ID", &short);
        put("CONTAINER_NAME", self.name.as_deref().unwrap_or_default());
        put("CONTAINER_TAG", self.tag.as_deref().unwrap_or_default());
        put("SYSLOG_IDENTIFIER", identifier);
        // A `=` or newline in a name would end it early and forge another field.
        let labels = self.labels.iter().filter(|(name, _)| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        });
        labels.for_each(|(name, value)| put(name, value));
        fields
    }
}

/// Appends a field in the protocol's binary form: name, newline, length in 64
/// bits little-endian, value, newline.
fn field(out: &mut Vec<u8>, name: &str, value: &[&[u8]]) {
    let length = value.iter().map(|part| part.len() as u64).sum::<u64>();
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(&length.to_le_bytes());
    value.iter().for_each(|part| out.extend_from_slice(part));
    out.push(b'\n');
}

/// One record as a datagram.
fn encode(identity: &[u8], batch: &Batch<'_>, record: &Record) -> Vec<u8> {
    let (held, chunk) = batch.payload(record);
    let joined = [held, chunk].concat();
    let mut message = joined.as_slice();
    let mut priority = if batch.channel == Channel::Stdout { b'6' } else { b'3' };
    if let (Place::First, &[b'<', level @ b'0'..=b'7', b'>', ref rest @ ..]) = (record.place, message) {
        priority = level;
        message = rest;
    }
    let mut datagram = Vec::with_capacity(message.len() + identity.len() + 128);
    let newline: &[u8] = if record.tag == Tag::Full { b"\n" } else { b"" };
    field(&mut datagram, "MESSAGE", &[message, newline]);
    field(&mut datagram, "PRIORITY", &[&[priority]]);
    if record.tag == Tag::Partial {
        field(&mut datagram, "CONTAINER_PARTIAL_MESSAGE", &[b"true"]);
    }
    datagram.extend_from_slice(identity);
    datagram
}

/// A record that journald was too busy to take.
#[derive(Debug)]
struct Waiting {
    datagram: Vec<u8>,
    channel: Channel,
    payload: usize,
    tag: Tag,
}

/// See the module's text.
#[derive(Debug)]
pub struct JournaldSink {
    socket: OwnedFd,
    path: PathBuf,
    identity: Vec<u8>,
    waiting: VecDeque<Waiting>,
    /// Since when the oldest of `waiting` waits.
    waiting_since: Option<Instant>,
    retry_at: Option<Instant>,
    /// What was dropped since the journal last took something.
    losses: [Option<Loss>; 2],
    /// Payload bytes dropped in all.
    dropped: [u64; 2],
    write_errors: u64,
    last_error: Option<String>,
}

impl JournaldSink {
    /// Makes a socket. Whether journald is there does not matter.
    ///
    /// # Errors
    /// If there can be no socket.
    pub fn open(identity: &Identity) -> Result<Self, LogError> {
        Self::open_at(Path::new(SOCKET), identity)
    }

    fn open_at(path: &Path, identity: &Identity) -> Result<Self, LogError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
            .map_err(|errno| LogError::Journal { source: errno.into() })?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            identity: identity.render(),
            waiting: VecDeque::new(),
            waiting_since: None,
            retry_at: None,
            losses: [None, None],
            dropped: [0; 2],
            write_errors: 0,
            last_error: None,
        })
    }

    /// Sends the records of `batch`. While journald is too busy, they wait and this
    /// is `Blocked`, for [`JOURNAL_STALL_MAX`] at most; then, or if there is no
    /// journald, they are dropped and counted, and the next entry that journald
    /// takes is preceded by one that tells the count.
    pub fn write(&mut self, batch: &Batch<'_>) -> Progress {
        for record in batch.records {
            let waiting = Waiting {
                datagram: encode(&self.identity, batch, record),
                channel: batch.channel,
                payload: record.payload_bytes(),
                tag: record.tag,
            };
            self.waiting.push_back(waiting);
        }
        self.retry()
    }

    /// Tries again to send what waits.
    pub fn retry(&mut self) -> Progress {
        while let Some(first) = self.waiting.pop_front() {
            match self.tell_losses().and_then(|()| self.send(&first.datagram)) {
                Ok(()) => self.waiting_since = None,
                Err(Errno::AGAIN) if !self.stalled_too_long() => {
                    self.waiting.push_front(first);
                    self.retry_at = Some(Instant::now() + LOG_RETRY_MIN);
                    return Progress::Blocked;
                }
                Err(errno) => self.drop_record(&first, errno),
            }
        }
        self.waiting = VecDeque::new();
        self.retry_at = None;
        Progress::Kept
    }

    /// When [`Self::retry`] is due, if anything waits.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Failed sends so far.
    #[must_use]
    pub fn write_errors(&self) -> u64 {
        self.write_errors
    }

    /// The last of them, for a person.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Payload bytes of each channel that were dropped.
    #[must_use]
    pub fn dropped(&self) -> [u64; 2] {
        self.dropped
    }

    /// Drops what waits.
    pub fn give_up(&mut self) {
        self.retry_at = None;
        for record in std::mem::take(&mut self.waiting) {
            self.drop_record(&record, Errno::AGAIN);
        }
    }

    /// A journald that took nothing for so long gets no more patience until it
    /// takes something.
    fn stalled_too_long(&mut self) -> bool {
        self.waiting_since.get_or_insert_with(Instant::now).elapsed() >= JOURNAL_STALL_MAX
    }

    fn drop_record(&mut self, record: &Waiting, errno: Errno) {
        let reason = std::io::Error::from(errno).to_string();
        self.write_errors += 1;
        self.dropped[record.channel.index()] += record.payload as u64;
        let loss = self.losses[record.channel.index()].get_or_insert_with(|| Loss {
            channel: record.channel,
            bytes: 0,
            lines: 0,
            reason: reason.clone(),
        });
        loss.bytes += record.payload as u64;
        loss.lines += u64::from(record.tag == Tag::Full);
        self.last_error = Some(reason);
    }

    fn tell_losses(&mut self) -> Result<(), Errno> {
        for channel in Channel::ALL {
            let Some(loss) = &self.losses[channel.index()] else { continue };
            let mut datagram = Vec::new();
            field(&mut datagram, "MESSAGE", &[loss.sentence().as_bytes(), b"\n"]);
            field(&mut datagram, "PRIORITY", &[b"4"]);
            datagram.extend_from_slice(&self.identity);
            self.send(&datagram)?;
            self.losses[channel.index()] = None;
        }
        Ok(())
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Errno> {
        let address = SocketAddrUnix::new(&self.path)?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendto(&self.socket, datagram, flags, &address) {
            Ok(_) => Ok(()),
            Err(Errno::MSGSIZE | Errno::NOBUFS) => self.send_memfd(datagram, &address),
            Err(errno) => Err(errno),
        }
    }

    /// What is too long for a datagram goes into a sealed file, whose descriptor is
    /// sent instead.
    fn send_memfd(&self, datagram: &[u8], address: &SocketAddrUnix) -> Result<(), Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("podinit-journal", flags)?;
        let mut rest = datagram;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let fds: [BorrowedFd<'_>; 1] = [file.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::MSGSIZE);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg_addr(&self.socket, address, &[], &mut control, flags).map(|_| ())
    }
}
