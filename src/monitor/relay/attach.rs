//! Attached clients: a `SOCK_SEQPACKET` socket per container, any number of
//! clients up to a limit, each of which gets everything from when it came.
//!
//! # Packets
//!
//! | direction | packet |
//! | --- | --- |
//! | to the client | kind byte (2 stdout or terminal, 3 stderr), then 1 to 8191 bytes |
//! | to the client | the single byte 0: both channels have ended and were sent; the socket is closed next |
//! | from the client | bytes for stdin, without framing, at most [`INPUT_PACKET_MAX`] in a packet |
//!
//! # A client that lags
//!
//! First the kernel's socket buffer absorbs (about 200 KiB), then a queue of its
//! own, made only then. When the queue holds [`ATTACH_QUEUE_BYTES_MAX`], the
//! container's output is not read for a while, as a terminal would do it, so that
//! a slow reader gets all of a burst. That wait is bounded: a client that takes no
//! packet for [`ATTACH_STALL_MAX`], or that has not caught up after
//! [`ATTACH_LAG_MAX`], is *cut off*: its queue is dropped, it gets one packet on
//! its stderr that says so, and the socket is closed. So a client that does not
//! read costs the container one pause of `ATTACH_STALL_MAX`, once, and the relay a
//! bounded queue until then; one that trickles costs `ATTACH_LAG_MAX` at most.
//!
//! The log is always written first, and once the process has exited nobody waits
//! for a client any more: what the pipes still hold goes into the queue (which may
//! grow by that much), and the exit is reported while the clients catch up.
//!
//! # The end of a client's input
//!
//! Either the client shuts down its sending side and stays (*half-close*), or it
//! goes (*disconnect*).
//!
//! * A half-close reaches the container: its stdin pipe is closed, once everything
//!   sent before is written.
//! * A disconnect closes stdin only if the attach said `stop_after_stdin_eof` (the
//!   CRI's `stdinOnce`), and only if that client sent anything or was the last
//!   one: somebody who merely watched may leave. Without `stop_after_stdin_eof`
//!   stdin stays open for the next client.
//! * While another client that has sent input can still send, stdin stays open
//!   until that one is done too.
//! * A terminal has no end of input that would not also hang up its output; the
//!   client sends the terminal's own end-of-file character.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType};

use super::poll::{Poll, Token, Watched};
use super::queue::Queue;
use super::stdin::Stdin;
use super::{Attach, RelayError, StreamId};
use crate::limits::{
    ATTACH_CLIENTS_MAX, ATTACH_LAG_MAX, ATTACH_PARTING_MAX, ATTACH_QUEUE_BYTES_MAX, ATTACH_SOCKETS_MAX,
    ATTACH_STALL_MAX, RELAY_PIPE_BYTES, RELAY_READ_BYTES,
};
use crate::monitor::log::batch::Channel;

/// Payload of a packet to a client. Deployed clients read into 8193 bytes.
pub const PACKET_PAYLOAD_MAX: usize = 8191;

/// The greatest packet from a client; more than the kernel's default send buffer
/// lets a client send.
pub const INPUT_PACKET_MAX: usize = RELAY_READ_BYTES;

const KIND_DONE: u8 = 0;
const KIND_STDOUT: u8 = 2;
const KIND_STDERR: u8 = 3;

/// Nothing is queued for a client beyond this: what is read when its queue is
/// almost full, and what the pipes hold when the process exits.
const QUEUE_BYTES_MAX: usize = ATTACH_QUEUE_BYTES_MAX + 2 * (RELAY_READ_BYTES + RELAY_PIPE_BYTES);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Connections accepted, or packets sent from a queue, in one turn.
const TURN_MAX: usize = 32;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a client that lags is cut off.
const TOO_SLOW: &str = "this client did not read its output in time";

fn kind(channel: Channel) -> u8 {
    match channel {
        Channel::Stdout => KIND_STDOUT,
        Channel::Stderr => KIND_STDERR,
    }
}

/// A socket on which clients arrive.
#[derive(Debug)]
struct Point {
    listener: Watched,
    path: PathBuf,
    identity: Option<(u64, u64)>,
    stop_after_stdin_eof: bool,
    /// No accept before this.
    paused_until: Option<Instant>,
}

impl Drop for Point {
    fn drop(&mut self) {
        // Somebody may have put another file there.
        if self.identity.is_some() && identity_at(&self.path) == self.identity {
            let _gone = rustix::fs::unlink(&self.path);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Gets output.
    Live,
    /// Gets what is queued, and then is closed; not later than this.
    Parting { until: Instant },
    /// To be removed.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
}

#[derive(Debug)]
struct Client {
    socket: Watched,
    queue: Queue,
    state: State,
    input: Input,
    has_sent: bool,
    stop_after_stdin_eof: bool,
    /// When it last took a packet, or began to lag.
    progress_at: Instant,
    /// Since when the container waits for it.
    lags_since: Option<Instant>,
    was_cut_off: bool,
}

/// How a client's input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    HalfClose,
    Disconnect,
}

/// The attach sockets and clients of one container.
#[derive(Debug)]
pub(super) struct Door {
    id: StreamId,
    points: Vec<Point>,
    clients: Vec<Client>,
    slot_first: u32,
    slot_next: u32,
    /// Output has ended; whoever comes is told so.
    done: bool,
    /// A client has ended the input, but another one was still sending.
    eof_wanted: bool,
    /// Clients that were cut off and are gone.
    cut_off: u64,
}

impl Door {
    /// The slots from `first_slot` on are the door's.
    pub(super) fn new(id: StreamId, first_slot: u32) -> Self {
        Self {
            id,
            points: Vec::new(),
            clients: Vec::new(),
            slot_first: first_slot,
            slot_next: first_slot,
            done: false,
            eof_wanted: false,
            cut_off: 0,
        }
    }

    /// Makes the socket, unless it is there.
    pub(super) fn listen(&mut self, attach: Attach, poll: &Poll) -> Result<(), RelayError> {
        let Attach { path, stop_after_stdin_eof } = attach;
        // Clients remove the file when they leave; such a point is of no use any more.
        self.points.retain(|point| identity_at(&point.path) == point.identity);
        if let Some(point) = self.points.iter_mut().find(|point| point.path == path) {
            point.stop_after_stdin_eof = stop_after_stdin_eof;
            return Ok(());
        }
        if self.points.len() >= ATTACH_SOCKETS_MAX {
            return Err(RelayError::TooManySockets { path, count: self.points.len() });
        }
        match rustix::fs::lstat(&path) {
            // Left by a monitor that died: there is one monitor per run directory.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
                let _gone = rustix::fs::unlink(&path);
            }
            Ok(_) => return Err(RelayError::SocketTaken { path }),
            Err(_) => {}
        }
        let failed = |source: io::Error| RelayError::Socket { path: path.clone(), source };
        let socket = crate::sys::socket::listen(&path, SocketType::SEQPACKET, BACKLOG).map_err(failed)?;
        let listener = Watched::new(poll, socket, self.next_token()).map_err(failed)?;
        let identity = identity_at(&path);
        let paused_until = None;
        let mut point = Point { listener, path, identity, stop_after_stdin_eof, paused_until };
        let watched = point.listener.set(EventFlags::IN);
        watched.map_err(|errno| RelayError::Socket { path: point.path.clone(), source: errno.into() })?;
        self.points.push(point);
        Ok(())
    }

    fn next_token(&mut self) -> Token {
        // A slot number comes round after 16 million clients, when its first owner is long gone.
        self.slot_next = if self.slot_next >= Token::SLOT_MAX { self.slot_first } else { self.slot_next + 1 };
        Token::new(self.id, self.slot_next)
    }

    /// Handles `flags` of the descriptor `token`, if it is the door's. `buffer` is
    /// scratch space.
    pub(super) fn on_event(&mut self, token: Token, flags: EventFlags, stdin: &mut Stdin, buffer: &mut [u8]) {
        if let Some(point) = self.points.iter_mut().position(|point| point.listener.token() == token) {
            return self.accept(point);
        }
        let Some(at) = self.clients.iter().position(|client| client.socket.token() == token) else { return };
        let Some(client) = self.clients.get_mut(at) else { return };
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            client.flush();
        }
        if client.input == Input::Ended || client.state != State::Live {
            if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                client.state = State::Gone;
            }
        } else if !stdin.is_full()
            && let Some(end) = client.receive(flags, stdin, buffer)
        {
            self.input_ended(at, end, stdin);
        }
        self.sweep(stdin);
    }

    fn accept(&mut self, at: usize) {
        for _ in 0..TURN_MAX {
            let Some(point) = self.points.get_mut(at) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&point.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => {
                    // No descriptor or no memory: level-triggered, it would be reported at once again.
                    point.paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            };
            let stop_after_stdin_eof = point.stop_after_stdin_eof;
            let token = self.next_token();
            let Some(point) = self.points.get(at) else { return };
            let Ok(socket) = point.listener.sibling(socket, token) else { continue };
            let mut client = Client::new(socket, stop_after_stdin_eof);
            if self.done {
                client.part_with(KIND_DONE, &[]);
            } else if self.clients.len() >= ATTACH_CLIENTS_MAX {
                client.part_with(KIND_STDERR, b"podinit: attach refused: too many clients are attached\n");
            }
            if client.state != State::Gone {
                self.clients.push(client);
            }
        }
    }

    /// Gives output to every client.
    pub(super) fn broadcast(&mut self, channel: Channel, bytes: &[u8]) {
        for client in self.clients.iter_mut().filter(|client| client.state == State::Live) {
            client.deliver(kind(channel), bytes);
        }
    }

    /// Output must wait for a client.
    pub(super) fn holds_back(&self) -> bool {
        self.clients.iter().any(Client::holds_back)
    }

    /// Both channels have ended: everybody is told, after what is queued. Nobody
    /// holds the container back any more.
    pub(super) fn finish_output(&mut self) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        for client in self.clients.iter_mut().filter(|client| client.state == State::Live) {
            client.part_with(KIND_DONE, &[]);
        }
    }

    /// Removes the sockets; clients that are still to get something stay.
    pub(super) fn close(&mut self) {
        self.finish_output();
        self.points.clear();
        self.clients.retain(|client| client.state != State::Gone);
    }

    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn cut_off(&self) -> u64 {
        self.cut_off + self.clients.iter().filter(|client| client.was_cut_off).count() as u64
    }

    /// When [`Self::on_time`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let clients = self.clients.iter().filter_map(Client::deadline);
        clients.chain(self.points.iter().filter_map(|point| point.paused_until)).min()
    }

    /// Cuts off whoever lags for too long.
    pub(super) fn on_time(&mut self, now: Instant, stdin: &mut Stdin) {
        for point in self.points.iter_mut().filter(|point| point.paused_until.is_some_and(|at| at <= now)) {
            point.paused_until = None;
        }
        for client in self.clients.iter_mut().filter(|client| client.deadline().is_some_and(|at| at <= now)) {
            match client.state {
                State::Live => client.cut_off(TOO_SLOW),
                State::Parting { .. } | State::Gone => client.state = State::Gone,
            }
        }
        self.sweep(stdin);
    }

    /// Removes those who are gone.
    fn sweep(&mut self, stdin: &mut Stdin) {
        while let Some(at) = self.clients.iter().position(|client| client.state == State::Gone) {
            if self.clients.get(at).is_some_and(|client| client.input == Input::Open) {
                self.input_ended(at, End::Disconnect, stdin);
            }
            let client = self.clients.swap_remove(at);
            self.cut_off += u64::from(client.was_cut_off);
        }
        if self.eof_wanted && !self.clients.iter().any(Client::may_send_more) {
            stdin.close();
        }
    }

    /// See the module's text.
    fn input_ended(&mut self, at: usize, end: End, stdin: &mut Stdin) {
        let count = self.clients.len();
        let Some(client) = self.clients.get_mut(at) else { return };
        client.input = Input::Ended;
        self.eof_wanted |= match end {
            End::HalfClose => true,
            End::Disconnect => client.stop_after_stdin_eof && (client.has_sent || count == 1),
        };
        if end == End::Disconnect {
            client.state = State::Gone;
        }
        if self.eof_wanted && !self.clients.iter().any(Client::may_send_more) {
            stdin.close();
        }
    }

    /// Tells epoll what is to be waited for now.
    pub(super) fn watch(&mut self, stdin: &Stdin) {
        for point in &mut self.points {
            let paused = point.paused_until.is_some();
            // If epoll has no memory, the next event of the stream tries again.
            let _later = point.listener.set(if paused { EventFlags::empty() } else { EventFlags::IN });
        }
        for client in &mut self.clients {
            let interest = client.interest(stdin.is_full());
            if client.socket.set(interest).is_err() {
                client.state = State::Gone;
            }
        }
    }
}

impl Client {
    fn new(socket: Watched, stop_after_stdin_eof: bool) -> Self {
        Self {
            socket,
            queue: Queue::default(),
            state: State::Live,
            input: Input::Open,
            has_sent: false,
            stop_after_stdin_eof,
            progress_at: Instant::now(),
            lags_since: None,
            was_cut_off: false,
        }
    }

    fn interest(&self, stdin_is_full: bool) -> EventFlags {
        let input = match (self.state, self.input) {
            // A hang-up is reported whatever is asked for; asking for just that keeps the rest quiet.
            (State::Parting { .. } | State::Gone, _) | (_, Input::Ended) => EventFlags::HUP,
            // Its last packets may be unread when it hangs up, so nothing is to be heard of it now.
            (State::Live, Input::Open) if stdin_is_full => EventFlags::empty(),
            (State::Live, Input::Open) => EventFlags::IN | EventFlags::RDHUP,
        };
        if self.queue.is_empty() { input } else { input | EventFlags::OUT }
    }

    fn may_send_more(&self) -> bool {
        self.has_sent && self.input == Input::Open
    }

    fn holds_back(&self) -> bool {
        self.state == State::Live && self.queue.bytes() >= ATTACH_QUEUE_BYTES_MAX
    }

    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Parting { until } => Some(until),
            State::Gone => None,
            State::Live if self.holds_back() => {
                let stalled = self.progress_at + ATTACH_STALL_MAX;
                Some(self.lags_since.map_or(stalled, |since| stalled.min(since + ATTACH_LAG_MAX)))
            }
            State::Live => None,
        }
    }

    /// Sends, or queues, output.
    fn deliver(&mut self, kind: u8, bytes: &[u8]) {
        let mut rest = bytes;
        while self.queue.is_empty() && !rest.is_empty() {
            let (packet, tail) = rest.split_at(rest.len().min(PACKET_PAYLOAD_MAX));
            match self.send(&[io::IoSlice::new(&[kind]), io::IoSlice::new(packet)]) {
                Ok(()) => rest = tail,
                Err(Errno::AGAIN) => {
                    self.progress_at = Instant::now();
                    break;
                }
                Err(_) => return self.output_is_dead(),
            }
        }
        if self.queue.bytes() + rest.len() > QUEUE_BYTES_MAX {
            return self.cut_off(TOO_SLOW);
        }
        self.queue.push(kind, rest);
        if self.holds_back() && self.lags_since.is_none() {
            self.lags_since = Some(Instant::now());
        }
    }

    /// Sends what is queued, as far as the client takes it.
    fn flush(&mut self) {
        for _ in 0..TURN_MAX {
            let Some(packet) = self.queue.front() else { break };
            match self.send(&[io::IoSlice::new(packet)]) {
                Ok(()) => {
                    self.queue.pop();
                    self.progress_at = Instant::now();
                }
                Err(Errno::AGAIN) => return,
                Err(_) => return self.output_is_dead(),
            }
        }
        if self.queue.is_empty() {
            self.lags_since = None;
            self.close_if_parting();
        } else if let State::Parting { until } = &mut self.state {
            *until = self.progress_at + ATTACH_PARTING_MAX;
        }
    }

    fn send(&self, parts: &[io::IoSlice<'_>]) -> Result<(), Errno> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match rustix::net::sendmsg(&self.socket, parts, &mut SendAncillaryBuffer::default(), flags) {
                // Packets go as a whole or not at all.
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The client does not receive any more. It may still have sent something.
    fn output_is_dead(&mut self) {
        self.queue.clear();
        self.lags_since = None;
        if self.input == Input::Ended || self.state != State::Live {
            self.state = State::Gone;
        }
    }

    /// Takes one packet.
    fn receive(&mut self, flags: EventFlags, stdin: &mut Stdin, buffer: &mut [u8]) -> Option<End> {
        let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let received = rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC);
        match received {
            Ok((0, _)) if hung_up => Some(End::Disconnect),
            Ok((0, _)) if flags.contains(EventFlags::RDHUP) => Some(End::HalfClose),
            // An empty packet.
            Ok((0, _)) | Err(Errno::AGAIN | Errno::INTR) => None,
            // It went without having read all of its output. That is said once, before what it has sent.
            Err(Errno::CONNRESET) => None,
            Ok((_, sent)) if sent > buffer.len() => {
                self.cut_off("this client sent a packet that is too long");
                None
            }
            Ok((kept, _)) => {
                self.has_sent = true;
                stdin.push(buffer.get(..kept).unwrap_or_default());
                None
            }
            Err(_) => Some(End::Disconnect),
        }
    }

    /// Drops what is queued and says why.
    fn cut_off(&mut self, why: &str) {
        self.was_cut_off = true;
        self.queue.clear();
        self.part_with(KIND_STDERR, format!("\r\npodinit: attach ended: {why}\r\n").as_bytes());
    }

    /// Queues a last packet; the client is closed when it has taken it.
    fn part_with(&mut self, kind: u8, payload: &[u8]) {
        self.queue.push_packet(kind, payload);
        self.state = State::Parting { until: Instant::now() + ATTACH_PARTING_MAX };
        self.flush();
    }

    fn close_if_parting(&mut self) {
        if !matches!(self.state, State::Parting { .. }) {
            return;
        }
        self.state = State::Gone;
        // Closing a socket with unread input would reset the connection, and the client might miss
        // the end of its output.
        let mut scratch = [0; 64];
        for _ in 0..TURN_MAX {
            match rustix::net::recv(&self.socket, &mut scratch, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}

/// Which file is at `path`; a socket's own inode is another one.
fn identity_at(path: &Path) -> Option<(u64, u64)> {
    rustix::fs::lstat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}
