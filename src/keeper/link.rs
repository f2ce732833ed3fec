//! The link between the keeper and a monitor: one `SOCK_SEQPACKET` pair, one
//! message a packet, at most one descriptor a message (`SCM_RIGHTS`).
//!
//! ```text
//!   keeper ── Hello, Kept*, Exited*, HelloDone ──▶ monitor       once, at the monitor's start
//!   keeper ◀─────────── Ready | Failed(sentence) ── monitor      once
//!   keeper ◀──────────── Keep, Forget, Seen ─────── monitor      any time
//!   keeper ── Exited, Refused, Terminate ─────────▶ monitor      any time after HelloDone
//!   keeper ◀─────────────────────────── Goodbye ─── monitor      last
//! ```
//!
//! A message is a byte that tells its kind, then its fields, little-endian. The
//! two ends are always of one binary, so there is no version: but each decoder
//! takes only what its own direction sends, to the last byte, and whatever else
//! arrives is [`Malformed`].
//!
//! [`ToMonitorFrame`] and [`ToKeeperFrame`] are the messages without their
//! descriptors, borrowed from the packet: pure, and made without allocating,
//! since the keeper must not. [`Link`] is the monitor's end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::limits::KEPT_NAME_BYTES_MAX;
pub use crate::sys::process::{ChildExit, Ended};

/// Longest sentence of [`ToKeeper::Failed`], in bytes; a longer one is cut. It
/// may quote an OCI runtime's error and the path that it complains about.
pub const SENTENCE_BYTES_MAX: usize = 4096;

/// Longest message, in bytes: the kind and a sentence.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 + SENTENCE_BYTES_MAX;

/// How long [`Link::send`] waits for the keeper, which does nothing but answer
/// at once: beyond this it is stopped or broken.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// What the keeper tells a monitor.
#[derive(Debug)]
pub enum ToMonitor {
    /// The first message.
    Hello {
        /// How many monitors this keeper has started before this one.
        restarts: u32,
        /// The pid of the pod's server: in the pidfile, in `version`.
        keeper_pid: u32,
    },
    /// A descriptor that an earlier monitor had kept; the keeper still holds it too.
    Kept {
        /// What the earlier monitor called it.
        name: String,
        /// Its own copy.
        fd: OwnedFd,
    },
    /// The keeper could not keep what [`ToKeeper::Keep`] sent under this name:
    /// it holds as much as it can. The monitor's next crash will lose it.
    Refused {
        /// The name that was sent with it.
        name: String,
    },
    /// A child of the keeper has ended. Told to every new monitor again until
    /// it is [`ToKeeper::Seen`].
    Exited(ChildExit),
    /// All that was kept has been told.
    HelloDone,
    /// End in order: end the pod's processes, then say [`ToKeeper::Goodbye`].
    Terminate,
}

/// What a monitor tells the keeper.
#[derive(Debug, Clone, Copy)]
pub enum ToKeeper<'a> {
    /// It serves. The first time, this lets `podinit serve` exit.
    Ready,
    /// It cannot start, and why; it ends after this.
    Failed(&'a str),
    /// Hold this for the monitors after me. The same name again replaces it.
    Keep {
        /// 1 to [`KEPT_NAME_BYTES_MAX`] bytes.
        name: &'a str,
        /// The keeper gets its own copy.
        fd: BorrowedFd<'a>,
    },
    /// Close what was kept under this name, if anything was.
    Forget {
        /// The name given to [`ToKeeper::Keep`].
        name: &'a str,
    },
    /// The status of this child is recorded; the keeper may forget it.
    Seen {
        /// As in [`ChildExit::pid`].
        pid: u32,
    },
    /// The pod has ended in order: do not start another monitor.
    Goodbye,
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The other end is gone.
    #[error("the link to the keeper is closed: the keeper has ended; end this monitor too")]
    Closed,
    /// The packet is not a message of this direction.
    #[error("the link carried a malformed message ({0}); both ends must be the same podinit binary")]
    Malformed(#[from] Malformed),
    /// A name that does not fit.
    #[error("cannot name a kept descriptor with {0} bytes; 1 to {KEPT_NAME_BYTES_MAX} are allowed")]
    NameLength(usize),
    /// A message came without the descriptor that belongs to it.
    #[error("the descriptor {0:?} that the keeper sent was lost; raise RLIMIT_NOFILE of this process")]
    DescriptorLost(String),
    /// The keeper does not read.
    #[error("the keeper did not take a message within {} s; is it stopped?", SEND_TIMEOUT.as_secs())]
    Stalled,
    /// The system call failed.
    #[error("cannot {doing} on the link to the keeper: {source}")]
    Socket {
        /// "send" or "receive".
        doing: &'static str,
        /// What sendmsg(2) or recvmsg(2) said.
        source: io::Error,
    },
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// No known kind, or one of the other direction.
    #[error("unknown kind")]
    Kind,
    /// Shorter or longer than its kind's fields.
    #[error("wrong length")]
    Length,
    /// Not UTF-8 where text belongs.
    #[error("text that is not UTF-8")]
    Text,
    /// A field with a value that does not exist.
    #[error("unknown value")]
    Value,
}

/// [`ToMonitor`] without its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToMonitorFrame<'a> {
    Hello { restarts: u32, keeper_pid: u32 },
    Kept { name: &'a str },
    Refused { name: &'a str },
    Exited(ChildExit),
    HelloDone,
    Terminate,
}

/// [`ToKeeper`] without its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToKeeperFrame<'a> {
    Ready,
    Failed(&'a str),
    Keep { name: &'a str },
    Forget { name: &'a str },
    Seen { pid: u32 },
    Goodbye,
}

/// Kinds: the high half-byte is the direction.
mod kind {
    pub(super) const HELLO: u8 = 0x10;
    pub(super) const KEPT: u8 = 0x11;
    pub(super) const REFUSED: u8 = 0x12;
    pub(super) const EXITED: u8 = 0x13;
    pub(super) const HELLO_DONE: u8 = 0x14;
    pub(super) const TERMINATE: u8 = 0x15;

    pub(super) const READY: u8 = 0x20;
    pub(super) const FAILED: u8 = 0x21;
    pub(super) const KEEP: u8 = 0x22;
    pub(super) const FORGET: u8 = 0x23;
    pub(super) const SEEN: u8 = 0x24;
    pub(super) const GOODBYE: u8 = 0x25;
}

/// How a process ended, on the wire.
mod how {
    pub(super) const CODE: u8 = 0;
    pub(super) const SIGNAL: u8 = 1;
}

/// An encoded message, on the stack.
pub(crate) struct Packet {
    bytes: [u8; MESSAGE_BYTES_MAX],
    length: usize,
}

impl Packet {
    fn new(kind: u8) -> Self {
        let mut packet = Self { bytes: [0; MESSAGE_BYTES_MAX], length: 0 };
        packet.push(&[kind]);
        packet
    }

    /// Appends; what does not fit is cut. Only a sentence can be that long, see [`cut`].
    fn push(&mut self, field: &[u8]) {
        for (slot, byte) in self.bytes[self.length..].iter_mut().zip(field) {
            *slot = *byte;
            self.length += 1;
        }
    }

    /// The message.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl ToMonitorFrame<'_> {
    /// The packet of this message. Names are within [`KEPT_NAME_BYTES_MAX`]: they came in a packet.
    pub(crate) fn encode(&self) -> Packet {
        match *self {
            Self::Hello { restarts, keeper_pid } => {
                let mut packet = Packet::new(kind::HELLO);
                packet.push(&restarts.to_le_bytes());
                packet.push(&keeper_pid.to_le_bytes());
                packet
            }
            Self::Kept { name } => named(kind::KEPT, name),
            Self::Refused { name } => named(kind::REFUSED, name),
            Self::Exited(ChildExit { pid, how, at_ns }) => {
                let mut packet = Packet::new(kind::EXITED);
                packet.push(&pid.to_le_bytes());
                packet.push(&match how {
                    Ended::Code(code) => [how::CODE, code],
                    Ended::Signal(signal) => [how::SIGNAL, signal],
                });
                packet.push(&at_ns.to_le_bytes());
                packet
            }
            Self::HelloDone => Packet::new(kind::HELLO_DONE),
            Self::Terminate => Packet::new(kind::TERMINATE),
        }
    }
}

impl<'a> ToMonitorFrame<'a> {
    /// The message in a packet that the keeper sent.
    pub(crate) fn decode(packet: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, mut fields) = Fields::open(packet)?;
        let frame = match kind {
            kind::HELLO => Self::Hello { restarts: fields.u32()?, keeper_pid: fields.u32()? },
            kind::KEPT => Self::Kept { name: fields.name()? },
            kind::REFUSED => Self::Refused { name: fields.name()? },
            kind::EXITED => Self::Exited(ChildExit {
                pid: fields.u32()?,
                how: match fields.take()? {
                    [how::CODE, code] => Ended::Code(code),
                    [how::SIGNAL, signal] => Ended::Signal(signal),
                    _ => return Err(Malformed::Value),
                },
                at_ns: u64::from_le_bytes(fields.take()?),
            }),
            kind::HELLO_DONE => Self::HelloDone,
            kind::TERMINATE => Self::Terminate,
            _ => return Err(Malformed::Kind),
        };
        fields.end(frame)
    }
}

impl ToKeeperFrame<'_> {
    /// The packet of this message; a sentence beyond [`SENTENCE_BYTES_MAX`] is cut.
    pub(crate) fn encode(&self) -> Packet {
        match *self {
            Self::Ready => Packet::new(kind::READY),
            Self::Failed(sentence) => named(kind::FAILED, cut(sentence)),
            Self::Keep { name } => named(kind::KEEP, name),
            Self::Forget { name } => named(kind::FORGET, name),
            Self::Seen { pid } => {
                let mut packet = Packet::new(kind::SEEN);
                packet.push(&pid.to_le_bytes());
                packet
            }
            Self::Goodbye => Packet::new(kind::GOODBYE),
        }
    }
}

impl<'a> ToKeeperFrame<'a> {
    /// The message in a packet that a monitor sent.
    pub(crate) fn decode(packet: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, mut fields) = Fields::open(packet)?;
        let frame = match kind {
            kind::READY => Self::Ready,
            kind::FAILED => Self::Failed(fields.text()?),
            kind::KEEP => Self::Keep { name: fields.name()? },
            kind::FORGET => Self::Forget { name: fields.name()? },
            kind::SEEN => Self::Seen { pid: fields.u32()? },
            kind::GOODBYE => Self::Goodbye,
            _ => return Err(Malformed::Kind),
        };
        fields.end(frame)
    }
}

fn named(kind: u8, text: &str) -> Packet {
    let mut packet = Packet::new(kind);
    packet.push(text.as_bytes());
    packet
}

/// The longest beginning of `sentence` that fits and ends between two characters.
fn cut(sentence: &str) -> &str {
    &sentence[..sentence.floor_char_boundary(SENTENCE_BYTES_MAX)]
}

/// What of a packet is still to be decoded.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn open(packet: &'a [u8]) -> Result<(u8, Self), Malformed> {
        let (kind, rest) = packet.split_first().ok_or(Malformed::Length)?;
        Ok((*kind, Self(rest)))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        str::from_utf8(std::mem::take(&mut self.0)).map_err(|_| Malformed::Text)
    }

    fn name(&mut self) -> Result<&'a str, Malformed> {
        let name = self.text()?;
        if name.is_empty() || name.len() > KEPT_NAME_BYTES_MAX { Err(Malformed::Length) } else { Ok(name) }
    }

    fn end<T>(self, frame: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(frame) } else { Err(Malformed::Length) }
    }
}

/// Sends one packet, with `fd` if there is one, and does not wait.
///
/// # Errors
/// `EAGAIN` if the other end must read first, `EPIPE` or `ECONNRESET` if it is gone.
pub(crate) fn send_packet(
    link: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| sendmsg(link, &[IoSlice::new(bytes)], &mut control, flags)).map(|_| ())
}

/// Receives one packet into `buffer`, and does not wait: its length and the
/// descriptor that came with it. Length 0 is the end of the link: no message is empty.
///
/// # Errors
/// `EAGAIN` if there is none, `EMSGSIZE` if it does not fit, else what recvmsg(2) says.
pub(crate) fn receive_packet(
    link: BorrowedFd<'_>,
    buffer: &mut [u8; MESSAGE_BYTES_MAX],
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match recvmsg(link, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            // Told once if the other end left messages unread; what it had sent comes after it.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => break result?,
        }
    };
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((received.bytes, fd))
}

/// The monitor's end of the link. Non-blocking: poll it for reading.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Link {
    /// The link over `fd`, which is [`crate::keeper::LINK_FD`] at a monitor's start.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Sends `message`. The keeper takes messages at once, so this hardly ever waits.
    ///
    /// # Errors
    /// [`LinkError::Closed`] if the keeper is gone, [`LinkError::Stalled`] if it
    /// does not read, [`LinkError::NameLength`], else what the socket says.
    pub fn send(&self, message: &ToKeeper<'_>) -> Result<(), LinkError> {
        let (frame, fd) = match *message {
            ToKeeper::Ready => (ToKeeperFrame::Ready, None),
            ToKeeper::Failed(sentence) => (ToKeeperFrame::Failed(sentence), None),
            ToKeeper::Keep { name, fd } => (ToKeeperFrame::Keep { name: checked(name)? }, Some(fd)),
            ToKeeper::Forget { name } => (ToKeeperFrame::Forget { name: checked(name)? }, None),
            ToKeeper::Seen { pid } => (ToKeeperFrame::Seen { pid }, None),
            ToKeeper::Goodbye => (ToKeeperFrame::Goodbye, None),
        };
        let packet = frame.encode();
        loop {
            match send_packet(self.as_fd(), packet.bytes(), fd) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN) => self.wait_for_room()?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(LinkError::Socket { doing: "send", source: errno.into() }),
            }
        }
    }

    /// The next message; `None` if there is none at the moment.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when the keeper is gone and everything it had sent
    /// was received; [`LinkError::DescriptorLost`] if this process cannot open
    /// more, where the next call may succeed; else what the socket says.
    pub fn receive(&self) -> Result<Option<ToMonitor>, LinkError> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let (length, fd) = match receive_packet(self.as_fd(), &mut buffer) {
            Ok((0, _)) => return Err(LinkError::Closed),
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::MSGSIZE) => return Err(Malformed::Length.into()),
            Err(errno) => return Err(LinkError::Socket { doing: "receive", source: errno.into() }),
        };
        Ok(Some(match ToMonitorFrame::decode(&buffer[..length])? {
            ToMonitorFrame::Hello { restarts, keeper_pid } => ToMonitor::Hello { restarts, keeper_pid },
            ToMonitorFrame::Kept { name } => {
                let name = name.to_owned();
                let Some(fd) = fd else { return Err(LinkError::DescriptorLost(name)) };
                ToMonitor::Kept { name, fd }
            }
            ToMonitorFrame::Refused { name } => ToMonitor::Refused { name: name.to_owned() },
            ToMonitorFrame::Exited(exit) => ToMonitor::Exited(exit),
            ToMonitorFrame::HelloDone => ToMonitor::HelloDone,
            ToMonitorFrame::Terminate => ToMonitor::Terminate,
        }))
    }

    fn wait_for_room(&self) -> Result<(), LinkError> {
        let timeout = Timespec::try_from(SEND_TIMEOUT).unwrap_or_default();
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout))) {
            Ok(0) => Err(LinkError::Stalled),
            Ok(_) => Ok(()),
            Err(errno) => Err(LinkError::Socket { doing: "send", source: errno.into() }),
        }
    }
}

fn checked(name: &str) -> Result<&str, LinkError> {
    if (1..=KEPT_NAME_BYTES_MAX).contains(&name.len()) {
        Ok(name)
    } else {
        Err(LinkError::NameLength(name.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn name() -> impl Strategy<Value = String> {
        "[a-z0-9/._-]{1,64}"
    }

    fn exit() -> impl Strategy<Value = ChildExit> {
        let how = prop_oneof![any::<u8>().prop_map(Ended::Code), any::<u8>().prop_map(Ended::Signal)];
        (any::<u32>(), how, any::<u64>()).prop_map(|(pid, how, at_ns)| ChildExit { pid, how, at_ns })
    }

    /// Packets of both directions, whole.
    fn packet() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            (any::<u32>(), any::<u32>()).prop_map(|(restarts, keeper_pid)| {
                ToMonitorFrame::Hello { restarts, keeper_pid }.encode().bytes().to_vec()
            }),
            name().prop_map(|name| ToMonitorFrame::Kept { name: &name }.encode().bytes().to_vec()),
            exit().prop_map(|exit| ToMonitorFrame::Exited(exit).encode().bytes().to_vec()),
            name().prop_map(|name| ToKeeperFrame::Keep { name: &name }.encode().bytes().to_vec()),
            any::<u32>().prop_map(|pid| ToKeeperFrame::Seen { pid }.encode().bytes().to_vec()),
            Just(ToKeeperFrame::Goodbye.encode().bytes().to_vec()),
            Just(ToMonitorFrame::Terminate.encode().bytes().to_vec()),
        ]
    }

    /// Whether the packet decodes in neither or one direction, never both.
    fn decodes(packet: &[u8]) -> usize {
        let down = ToMonitorFrame::decode(packet).is_ok();
        let up = ToKeeperFrame::decode(packet).is_ok();
        usize::from(down) + usize::from(up)
    }

    proptest! {
        #[test]
        fn messages_to_the_monitor_come_back_as_they_were(
            numbers in (any::<u32>(), any::<u32>()), name in name(), exit in exit()
        ) {
            let (restarts, keeper_pid) = numbers;
            for frame in [
                ToMonitorFrame::Hello { restarts, keeper_pid },
                ToMonitorFrame::Kept { name: &name },
                ToMonitorFrame::Refused { name: &name },
                ToMonitorFrame::Exited(exit),
                ToMonitorFrame::HelloDone,
                ToMonitorFrame::Terminate,
            ] {
                let packet = frame.encode();
                prop_assert_eq!(ToMonitorFrame::decode(packet.bytes()), Ok(frame));
            }
        }

        #[test]
        fn messages_to_the_keeper_come_back_as_they_were(
            pid in any::<u32>(), name in name(), sentence in ".{0,300}"
        ) {
            for frame in [
                ToKeeperFrame::Ready,
                ToKeeperFrame::Failed(&sentence),
                ToKeeperFrame::Keep { name: &name },
                ToKeeperFrame::Forget { name: &name },
                ToKeeperFrame::Seen { pid },
                ToKeeperFrame::Goodbye,
            ] {
                let packet = frame.encode();
                prop_assert_eq!(ToKeeperFrame::decode(packet.bytes()), Ok(frame));
            }
        }

        #[test]
        fn truncated_fixed_messages_are_errors(packet in packet(), keep in 0usize..64) {
            let cut = &packet[..keep.min(packet.len() - 1)];
            // A shorter name is a name; every other message has one length.
            let is_name = matches!(packet[0], kind::KEPT | kind::KEEP);
            prop_assert_eq!(decodes(cut), usize::from(is_name && cut.len() > 1));
        }

        #[test]
        fn longer_fixed_messages_are_errors(packet in packet(), tail in prop::collection::vec(any::<u8>(), 1..9)) {
            let is_name = matches!(packet[0], kind::KEPT | kind::KEEP);
            let longer = [packet, tail].concat();
            prop_assert!(is_name || decodes(&longer) == 0);
        }

        #[test]
        fn garbage_never_panics_and_has_one_direction(
            garbage in prop::collection::vec(any::<u8>(), 0..MESSAGE_BYTES_MAX)
        ) {
            prop_assert!(decodes(&garbage) <= 1);
        }

        #[test]
        fn a_long_sentence_is_cut_between_characters(sentence in "[aäΩ🦀]{1000,2000}") {
            let packet = ToKeeperFrame::Failed(&sentence).encode();
            let Ok(ToKeeperFrame::Failed(told)) = ToKeeperFrame::decode(packet.bytes()) else {
                panic!("not a Failed");
            };
            prop_assert!(sentence.starts_with(told));
            prop_assert!(told.len() == sentence.len() || told.len() > SENTENCE_BYTES_MAX - 4);
        }
    }

    fn pair() -> (OwnedFd, Link) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (keeper, monitor) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (keeper, Link::new(monitor))
    }

    #[test]
    fn a_descriptor_travels_both_ways() {
        let (keeper, link) = pair();
        let (read, write) = rustix::pipe::pipe().unwrap();
        link.send(&ToKeeper::Keep { name: "c1/stdout", fd: read.as_fd() }).unwrap();
        drop(read);

        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let (length, kept) = receive_packet(keeper.as_fd(), &mut buffer).unwrap();
        assert_eq!(ToKeeperFrame::decode(&buffer[..length]), Ok(ToKeeperFrame::Keep { name: "c1/stdout" }));
        let kept = kept.unwrap();

        let packet = ToMonitorFrame::Kept { name: "c1/stdout" }.encode();
        send_packet(keeper.as_fd(), packet.bytes(), Some(kept.as_fd())).unwrap();
        drop(kept);
        let Some(ToMonitor::Kept { name, fd }) = link.receive().unwrap() else { panic!("not a Kept") };
        assert_eq!(name, "c1/stdout");
        rustix::io::write(&write, b"x").unwrap();
        assert_eq!(rustix::io::read(&fd, &mut [0; 8]), Ok(1));
    }

    #[test]
    fn an_empty_link_would_block_and_a_closed_one_says_so() {
        let (keeper, link) = pair();
        assert!(link.receive().unwrap().is_none());
        send_packet(keeper.as_fd(), ToMonitorFrame::HelloDone.encode().bytes(), None).unwrap();
        drop(keeper);
        assert!(matches!(link.receive(), Ok(Some(ToMonitor::HelloDone))), "what was sent is not lost");
        assert!(matches!(link.receive(), Err(LinkError::Closed)));
        assert!(matches!(link.send(&ToKeeper::Ready), Err(LinkError::Closed)));
    }

    #[test]
    fn what_was_sent_by_an_end_that_did_not_read_is_not_lost() {
        let (keeper, link) = pair();
        send_packet(keeper.as_fd(), ToMonitorFrame::HelloDone.encode().bytes(), None).unwrap();
        link.send(&ToKeeper::Seen { pid: 7 }).unwrap();
        drop(link);
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let (length, _) = receive_packet(keeper.as_fd(), &mut buffer).unwrap();
        assert_eq!(ToKeeperFrame::decode(&buffer[..length]), Ok(ToKeeperFrame::Seen { pid: 7 }));
        assert_eq!(receive_packet(keeper.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn a_kept_message_without_its_descriptor_is_an_error() {
        let (keeper, link) = pair();
        send_packet(keeper.as_fd(), ToMonitorFrame::Kept { name: "x" }.encode().bytes(), None).unwrap();
        assert!(matches!(link.receive(), Err(LinkError::DescriptorLost(name)) if name == "x"));
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused_before_it_is_sent() {
        let (keeper, link) = pair();
        for name in [String::new(), "n".repeat(KEPT_NAME_BYTES_MAX + 1)] {
            assert!(matches!(link.send(&ToKeeper::Forget { name: &name }), Err(LinkError::NameLength(_))));
        }
        assert_eq!(receive_packet(keeper.as_fd(), &mut [0; MESSAGE_BYTES_MAX]).unwrap_err(), Errno::AGAIN);
    }
}
