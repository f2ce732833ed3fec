//! Attached clients: a `SOCK_SEQPACKET` socket per container, any number of
//! clients up to a limit, each of which gets everything from when it came.
//!
//! # Packets
//!
//! | direction | packet |
//! | --- | --- |
//! | to the client | kind byte (2 stdout or terminal, 3 stderr), then 1 to 8191 bytes |
//! | to the client | the single byte 0: both channels have ended and were sent, and the container takes no input any more (it has exited, or its stdin was closed); the socket is closed next |
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
//! # Earlier output
//!
//! A client that asks for it first gets the end of what was logged before it came,
//! then what comes, and between the two nothing is missing and nothing is said
//! twice. It is read from the log, by a thread that lives for that: a ring in
//! memory would cost every container that nobody attaches to. The relay only notes
//! where the log ends at that moment, at a time at which all that was read is in
//! it, and queues what comes after; it waits for nothing. If the log cannot be
//! written or read in time, or the container writes faster, the client is told on
//! its stderr and gets the rest. One client of a container is served at a time.
//!
//! # The end of a client's input
//!
//! Either the client shuts down its sending side and stays (*half-close*), or it
//! goes (*disconnect*). What that means is said by who makes the socket
//! ([`StdinEnd`]); where several ask for the same path, the last one before the
//! client connects:
//!
//! * Without `stopAfterStdinEof` it means nothing: stdin stays open for the next
//!   client. CRI-O asks for that unless a container has `stdinOnce`, and the CRI
//!   promises such a container that it never sees an end of its input.
//! * With it a half-close reaches the container: its stdin pipe is closed, once
//!   everything sent before is written. So does a disconnect, but only of a client
//!   that sent anything or was the last one: somebody who merely watched may leave.
//! * While another client that has sent input can still send, stdin stays open
//!   until that one is done too.
//! * A terminal has no end of input that would not also hang up its output; the
//!   client sends the terminal's own end-of-file character.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType};

use super::client::{Client, End, Input, KIND_DONE, KIND_STDERR, State, TOO_SLOW, kind};
use super::poll::{Poll, Token, Watched};
use super::replay::{Reading, Replay};
use super::stdin::Stdin;
use super::{Attach, RelayError, StdinEnd, StreamId};
use crate::limits::{ATTACH_CLIENTS_MAX, ATTACH_SOCKETS_MAX, RELAY_READ_BYTES};
use crate::monitor::log::Tail;
use crate::monitor::log::batch::Channel;

/// Payload of a packet to a client. Deployed clients read into 8193 bytes.
pub const PACKET_PAYLOAD_MAX: usize = 8191;

/// The greatest packet from a client; more than the kernel's default send buffer
/// lets a client send.
pub const INPUT_PACKET_MAX: usize = RELAY_READ_BYTES;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Connections accepted in one turn.
const TURN_MAX: usize = 32;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket on which clients arrive.
#[derive(Debug)]
struct Point {
    listener: Watched,
    path: PathBuf,
    identity: Option<(u64, u64)>,
    /// Its directory was made for it.
    owns_directory: bool,
    stdin_end: StdinEnd,
    replay: usize,
    /// No accept before this.
    paused_until: Option<Instant>,
}

impl Drop for Point {
    fn drop(&mut self) {
        // Somebody may have put another file there.
        if self.identity.is_some() && identity_at(&self.path) == self.identity {
            let _gone = rustix::fs::unlink(&self.path);
        }
        if let (true, Some(directory)) = (self.owns_directory, self.path.parent()) {
            // Not if it has come to hold anything else.
            let _gone = rustix::fs::rmdir(directory);
        }
    }
}

/// The attach sockets and clients of one container.
#[derive(Debug)]
pub(super) struct Door {
    id: StreamId,
    points: Vec<Point>,
    clients: Vec<Client>,
    slot_first: u32,
    slot_next: u32,
    /// Output and input have ended; whoever comes is told so.
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
        let Attach { path, stdin_end, replay } = attach;
        // Clients remove the file when they leave; such a point is of no use any more.
        self.points.retain(|point| identity_at(&point.path) == point.identity);
        if let Some(point) = self.points.iter_mut().find(|point| point.path == path) {
            (point.stdin_end, point.replay) = (stdin_end, replay);
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
        let owns_directory = make_directory_of(&path).map_err(failed)?;
        let socket = crate::sys::socket::listen(&path, SocketType::SEQPACKET, BACKLOG).map_err(failed)?;
        let listener = Watched::new(poll, socket, self.next_token()).map_err(failed)?;
        let identity = identity_at(&path);
        let paused_until = None;
        let mut point = Point { listener, path, identity, owns_directory, stdin_end, replay, paused_until };
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
        if let Some(client) = self.clients.iter_mut().find(|client| client.replay.is_told_by(token)) {
            return take_replay(client);
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
            let (stdin_end, replay) = (point.stdin_end, point.replay);
            let token = self.next_token();
            let Some(point) = self.points.get(at) else { return };
            let Ok(socket) = point.listener.sibling(socket, token) else { continue };
            let mut client = Client::new(socket, stdin_end, Replay::wanted(replay));
            if self.done {
                client.replay = Replay::None;
                client.part_with(KIND_DONE, &[]);
            } else if self.clients.len() >= ATTACH_CLIENTS_MAX {
                client.replay = Replay::None;
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

    /// Somebody waits for earlier output, and nobody is being given any.
    pub(super) fn wants_replay(&self) -> bool {
        let due = |client: &&Client| client.state == State::Live && client.replay.is_due();
        self.clients.iter().any(|client| due(&client))
            && !self.clients.iter().any(|client| matches!(client.replay, Replay::Reading(_)))
    }

    /// Has earlier output read for the next one who waits for it. Everything that was
    /// broadcast so far is before `end`, or in its `held`.
    pub(super) fn begin_replay(&mut self, end: Tail) {
        let token = self.next_token();
        let wants = |client: &&mut Client| client.state == State::Live && client.replay.is_due();
        let Some(client) = self.clients.iter_mut().find(wants) else { return };
        match Reading::start(&client.replay, end, &client.socket, token) {
            Ok(reading) => client.replay = Replay::Reading(reading),
            Err(error) => client.give_up_replay(&error.to_string()),
        }
    }

    /// Output must wait for a client.
    pub(super) fn holds_back(&self) -> bool {
        self.clients.iter().any(Client::holds_back)
    }

    /// Both channels have ended, and nobody can give input any more: everybody is
    /// told, after what is queued. Nobody holds the container back any more.
    pub(super) fn finish_output(&mut self) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        for client in self.clients.iter_mut().filter(|client| client.state == State::Live) {
            client.finish_output();
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
                State::Live if client.replay.is_due() => {
                    client.give_up_replay("its log could not be read in time")
                }
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
            End::HalfClose => client.stdin_end != StdinEnd::Keep,
            End::Disconnect => client.stdin_end == StdinEnd::Once && (client.has_sent || count == 1),
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

fn take_replay(client: &mut Client) {
    let Replay::Reading(reading) = &mut client.replay else { return };
    match reading.take() {
        Some(Ok(output)) => client.replayed(&output),
        Some(Err(why)) => client.give_up_replay(&why),
        None => {}
    }
}

/// Makes the directory that the socket shall be in, unless it is there; says whether it did.
/// CRI-O names one of the container's own below the run directory, and leaves it to the monitor.
fn make_directory_of(path: &Path) -> io::Result<bool> {
    let Some(directory) = path.parent() else { return Ok(false) };
    match rustix::fs::mkdir(directory, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // A relative path in the working directory has an empty parent, which is there.
        Err(_) if directory.as_os_str().is_empty() => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Which file is at `path`; a socket's own inode is another one.
fn identity_at(path: &Path) -> Option<(u64, u64)> {
    rustix::fs::lstat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}
