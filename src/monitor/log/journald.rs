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
use super::gap::Gap;
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
    losses: [Option<Gap>; 2],
    /// Payload bytes dropped in all.
    dropped: [u64; 2],
    write_errors: [u64; 2],
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
            write_errors: [0; 2],
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

    /// Sends an entry that tells of a gap.
    pub fn note(&mut self, gap: &Gap) -> Progress {
        let datagram = self.gap_entry(gap);
        self.waiting.push_back(Waiting { datagram, channel: gap.channel, payload: 0, tag: Tag::Partial });
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

    /// Failed sends so far, by the channel of the record.
    #[must_use]
    pub fn write_errors(&self) -> [u64; 2] {
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
        self.write_errors[record.channel.index()] += 1;
        self.dropped[record.channel.index()] += record.payload as u64;
        let loss = self.losses[record.channel.index()]
            .get_or_insert_with(|| Gap::new(record.channel, 0, 0, &reason));
        loss.bytes += record.payload as u64;
        loss.lines += u64::from(record.tag == Tag::Full);
        self.last_error = Some(reason);
    }

    fn tell_losses(&mut self) -> Result<(), Errno> {
        for channel in Channel::ALL {
            let Some(gap) = &self.losses[channel.index()] else { continue };
            self.send(&self.gap_entry(gap))?;
            self.losses[channel.index()] = None;
        }
        Ok(())
    }

    fn gap_entry(&self, gap: &Gap) -> Vec<u8> {
        let mut datagram = Vec::new();
        field(&mut datagram, "MESSAGE", &[gap.sentence().as_bytes(), b"\n"]);
        // Of a warning.
        field(&mut datagram, "PRIORITY", &[b"4"]);
        for (name, value) in gap.journal_fields() {
            field(&mut datagram, name, &[value.as_bytes()]);
        }
        datagram.extend_from_slice(&self.identity);
        datagram
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    const STAMP: &super::super::stamp::Stamp = b"2026-11-23T01:02:03.123456789Z";

    /// Gives `lines` to the sink as full lines that begin in this batch.
    fn write(sink: &mut JournaldSink, lines: &[&[u8]]) -> Progress {
        let chunk = lines.concat();
        let mut start = 0;
        let records: Vec<Record> = lines
            .iter()
            .map(|line| {
                let record =
                    Record { held: 0, start, end: start + line.len(), tag: Tag::Full, place: Place::First };
                start += line.len();
                record
            })
            .collect();
        let batch =
            Batch { channel: Channel::Stdout, stamp: STAMP, held: &[], chunk: &chunk, records: &records };
        sink.write(&batch)
    }

    /// Decodes an entry as journald does; the reference for the encoder.
    fn decode(mut datagram: &[u8]) -> HashMap<String, Vec<u8>> {
        let mut fields = HashMap::new();
        while let Some(end) = datagram.iter().position(|byte| *byte == b'\n') {
            let name = String::from_utf8(datagram[..end].to_vec()).unwrap();
            let (length, rest) = datagram[end + 1..].split_first_chunk::<8>().unwrap();
            let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
            fields.insert(name, value.to_vec());
            datagram = rest.strip_prefix(b"\n").unwrap();
        }
        assert!(datagram.is_empty());
        fields
    }

    struct Journal {
        directory: tempfile::TempDir,
        socket: UnixDatagram,
    }

    impl Journal {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(directory.path().join("socket")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { directory, socket }
        }

        fn sink(&self) -> JournaldSink {
            let identity = Identity {
                id: "0123456789abcdef".to_owned(),
                name: Some("web".to_owned()),
                tag: None,
                labels: vec![("APP".to_owned(), "shop".to_owned()), ("BAD\nNAME".to_owned(), "x".to_owned())],
            };
            JournaldSink::open_at(&self.directory.path().join("socket"), &identity).unwrap()
        }

        /// The next entry, from the datagram or from the file that came with it.
        fn receive(&self) -> Option<HashMap<String, Vec<u8>>> {
            let mut bytes = vec![0; 1 << 20];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::DONTWAIT;
            let count = rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags).ok()?.bytes;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                    let mut file = std::fs::File::from(fds.next().unwrap());
                    assert!(rustix::fs::fcntl_get_seals(&file).unwrap().contains(SealFlags::WRITE));
                    file.seek(SeekFrom::Start(0)).unwrap();
                    let mut bytes = Vec::new();
                    file.read_to_end(&mut bytes).unwrap();
                    return Some(decode(&bytes));
                }
            }
            bytes.truncate(count);
            Some(decode(&bytes))
        }
    }

    #[test]
    fn entry_has_conmons_fields_and_any_bytes() {
        let journal = Journal::new();
        let mut sink = journal.sink();
        assert_eq!(write(&mut sink, &[b"a\0b\nc\xff", b"<3>urgent", b"<9>not a level"]), Progress::Kept);
        let first = journal.receive().unwrap();
        assert_eq!(first["MESSAGE"], b"a\0b\nc\xff\n");
        assert_eq!(first["PRIORITY"], b"6");
        assert_eq!(first["CONTAINER_ID_FULL"], b"0123456789abcdef");
        assert_eq!(first["CONTAINER_ID"], b"0123456789ab");
        assert_eq!(first["SYSLOG_IDENTIFIER"], b"web");
        assert_eq!(first["APP"], b"shop");
        assert_eq!(first.len(), 7, "{first:?}");
        let second = journal.receive().unwrap();
        assert_eq!((&second["MESSAGE"][..], &second["PRIORITY"][..]), (&b"urgent\n"[..], &b"3"[..]));
        assert_eq!(journal.receive().unwrap()["MESSAGE"], b"<9>not a level\n");
    }

    #[test]
    fn entry_that_is_too_long_for_a_datagram_comes_as_a_sealed_file() {
        let journal = Journal::new();
        let mut sink = journal.sink();
        let long = vec![b'x'; 1 << 20];
        assert_eq!(write(&mut sink, &[&long]), Progress::Kept);
        assert_eq!(journal.receive().unwrap()["MESSAGE"].len(), long.len() + 1);
    }

    #[test]
    fn absent_journal_costs_a_count_that_is_told_when_it_is_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut sink = JournaldSink::open_at(&path, &Identity::default()).unwrap();
        assert_eq!(write(&mut sink, &[b"lost", b"too"]), Progress::Kept);
        assert_eq!((sink.dropped(), sink.write_errors()), ([7, 0], [2, 0]));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let journal = Journal { directory, socket };
        assert_eq!(write(&mut sink, &[b"back"]), Progress::Kept);
        let mut told = journal.receive().unwrap();
        assert_eq!((&told["PODINIT_GAP_BYTES"][..], &told["PODINIT_GAP_LINES"][..]), (&b"7"[..], &b"2"[..]));
        let told = String::from_utf8(told.remove("MESSAGE").unwrap()).unwrap();
        assert!(told.starts_with("podinit: 7 bytes in 2 lines of stdout are missing: "), "{told}");
        assert_eq!(journal.receive().unwrap()["MESSAGE"], b"back\n");
    }

    #[test]
    fn busy_journal_holds_back_and_gets_everything_in_order() {
        let journal = Journal::new();
        let mut sink = journal.sink();
        let lines: Vec<String> = (0..2000).map(|number| format!("line {number}")).collect();
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        assert_eq!(write(&mut sink, &lines), Progress::Blocked);
        assert!(sink.retry_at().is_some());
        let mut got = Vec::new();
        while got.len() < lines.len() {
            while let Some(mut entry) = journal.receive() {
                got.push(entry.remove("MESSAGE").unwrap());
            }
            let _progress = sink.retry();
        }
        assert!(got.iter().zip(&lines).all(|(got, line)| got.strip_suffix(b"\n") == Some(line)));
        assert_eq!((sink.dropped(), sink.retry_at()), ([0, 0], None));
    }
}
