//! The data plane: container bytes to logs, capture and attached clients.
//!
//! ```text
//!   RPC, life cycle                │           relay thread
//!                                  │
//!   Relay::open ─────────┐         │  epoll ─► read ─► capture (exec)
//!   Relay::finish ───────┤ channel │                ├► attach clients
//!   Relay::attach ───────┼─────────┼─► commands     └► job: LogSet ─► file, journal
//!   Relay::stats … ──────┘ eventfd │  clients ─► stdin of the container
//! ```
//!
//! One thread leads at a time, no async runtime, and nothing shared with the
//! control side but a command channel: a slow RPC client never delays a byte. A
//! write that takes long keeps its thread, and another one leads (`lead`): a slow
//! disk never delays another container. Every descriptor is
//! non-blocking on our end and watched level-triggered, and a turn reads at most
//! one buffer, so the streams take turns as epoll names them. The read buffer and
//! what the logs gather are shared by all streams; a stream owns heap only while
//! it holds the start of a line, or while something lags.
//!
//! Who waits for whom:
//!
//! | lagging | what happens |
//! | --- | --- |
//! | a log that cannot be written, or is slow | the container's output is not read until it can ([`log`](super::log)) |
//! | an attached client | see [`attach`]: a bounded queue, a short bounded wait, then it is cut off |
//! | the container's stdin | attached clients are not read until it takes what they sent |
//! | a captured exec | nobody: what is beyond the cap is dropped and counted |
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//! use podinit::monitor::log::LogSet;
//! use podinit::monitor::relay::{Open, Output, Relay};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let relay = Relay::start()?;
//! let (stdout, _of_the_process) = rustix::pipe::pipe()?;
//! let (stderr, _of_the_process) = rustix::pipe::pipe()?;
//! let output = Output::Pipes { stdout, stderr };
//! let id = relay.open(Open { output, stdin: None, stdin_guard: None, logs: LogSet::none(), capture_max: Some(1 << 20) })?;
//! // … the process exits …
//! let (reply, drained) = std::sync::mpsc::channel();
//! relay.finish(id, Duration::from_millis(500), Box::new(move |end| drop(reply.send(end))));
//! let captured = drained.recv()?.captured;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod attach;
mod capture;
mod client;
mod engine;
mod job;
mod lead;
mod logs;
mod pace;
mod poll;
mod queue;
mod replay;
mod stdin;
mod stream;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::event::EventfdFlags;
use serde::{Deserialize, Serialize};

pub use capture::Captured;

use crate::monitor::log::account::Both;
use crate::monitor::log::gap::Gap;
use crate::monitor::log::limit::{LogLimits, Rate};
use crate::monitor::log::{LogError, LogSet};
use engine::{Command, Engine};
use lead::Seat;
use poll::Poll;
use stream::Stream;

/// Gets an answer, on the relay's thread: it must not block or panic.
pub type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// What the relay tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A log cannot be written, and why. Told once until it can be again.
    LogFailed(String),
    /// Output is missing in a log.
    Gap(Gap),
}

/// Gets notices, on the relay's thread: it must not block or panic.
pub type Tell = Box<dyn Fn(StreamId, Notice) + Send>;

/// Why the relay could not do something.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The thread, or what it waits with, could not be made.
    #[error("start the relay: {0}")]
    Start(#[source] io::Error),
    /// A container's stream cannot be read without blocking.
    #[error("relay a container's stream: {0}; streams must be pipes, sockets or terminals")]
    Stream(#[source] io::Error),
    /// The thread has ended.
    #[error("the relay has ended; the monitor is stopping")]
    Ended,
    /// No stream has this id (any more).
    #[error("the container's streams have ended")]
    Unknown,
    /// The attach socket could not be made.
    #[error("make attach socket {path:?}: {source}")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What was said.
        source: io::Error,
    },
    /// There is something at the path that is not ours.
    #[error("make attach socket {path:?}: the path is taken by something else; remove it or choose another")]
    SocketTaken {
        /// The socket's path.
        path: PathBuf,
    },
    /// Earlier output was asked for, and is nowhere.
    #[error("attach with a replay: the container has no log that is a file; attach without one")]
    NothingToReplay,
    /// The container has as many attach sockets as it may have.
    #[error("make attach socket {path:?}: the container has {count} already; remove one")]
    TooManySockets {
        /// The socket's path.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
}

/// The streams of one container or exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

/// Where a container's output comes from. The descriptors become non-blocking:
/// nobody else may read them.
#[derive(Debug)]
pub enum Output {
    /// The read ends of two pipes.
    Pipes {
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// The master of a pseudo-terminal; everything counts as stdout.
    Terminal(OwnedFd),
}

/// Something that is dropped, on the relay's thread, when stdin has been closed.
pub type StdinGuard = Box<dyn std::any::Any + Send>;

/// What to relay.
#[derive(Debug)]
pub struct Open {
    /// Where output comes from.
    pub output: Output,
    /// Where clients' input goes: the write end of a pipe, or the terminal's
    /// master (a duplicate of it).
    pub stdin: Option<OwnedFd>,
    /// For whoever holds another copy of `stdin`, and has to close it for the
    /// container to see the end.
    pub stdin_guard: Option<StdinGuard>,
    /// Where output goes.
    pub logs: LogSet,
    /// Keep the first so many bytes of each channel for [`Drained::captured`].
    pub capture_max: Option<usize>,
}

/// When a client's input closes the container's stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdinEnd {
    /// Never: it stays open for the next client (CRI: `stdin` without `stdinOnce`,
    /// whose containers "never receive an EOF").
    Keep,
    /// When the client says that this was all, and stays.
    HalfClose,
    /// Also when it goes (CRI: `stdinOnce`).
    Once,
}

impl StdinEnd {
    /// What a request's `stopAfterStdinEof` means.
    #[must_use]
    pub fn of_request(stop_after_stdin_eof: bool) -> Self {
        if stop_after_stdin_eof { Self::Once } else { Self::Keep }
    }
}

/// An attach socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// Its path, of any length; the directory exists.
    pub path: PathBuf,
    /// What the end of a client's input does.
    pub stdin_end: StdinEnd,
    /// Of what was logged before a client came, the last so many bytes at most; see
    /// [`attach`].
    pub replay: usize,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// The end of every channel was reached, and every byte reached every log.
    pub complete: bool,
    /// What was captured, if that was asked for.
    pub captured: Option<Captured>,
    /// The counters' last state.
    pub stats: StreamStats,
}

/// Counters of one container's streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamStats {
    /// Standard output, or the terminal.
    pub stdout: ChannelStats,
    /// Standard error.
    pub stderr: ChannelStats,
    /// Failed log writes; each was tried again. Those of each channel, and rotations,
    /// compressing and synchronising that failed.
    pub write_errors: u64,
    /// The last of them, for a person.
    pub last_write_error: Option<String>,
    /// The longest time for which output was not read because a log could not be
    /// written, in nanoseconds.
    pub stall_longest_ns: u64,
    /// Attached clients that were cut off because they did not read.
    pub clients_cut_off: u64,
    /// Attached clients now.
    pub clients: usize,
    /// What is in the first log that is a file, by channel.
    pub written: Both,
    /// Bytes of lines in the logs that are not of the container, by channel.
    pub added: [u64; 2],
    /// The limits of the log.
    pub limits: LogLimits,
    /// Bytes that wait because a log cannot be written.
    pub buffered: usize,
}

/// Counters of one channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelStats {
    /// Bytes read from the container.
    pub bytes: u64,
    /// Lines that ended.
    pub lines: u64,
    /// Log records that did not end a line.
    pub partials: u64,
    /// Payload bytes that a log could not keep, summed over the logs, and those that
    /// came too fast.
    pub dropped: u64,
    /// Of `dropped`: bytes that came too fast.
    pub rate_limited: u64,
    /// How long output was not read because it came too fast, in nanoseconds.
    pub throttled_ns: u64,
    /// Failed log writes that had records of this channel; each was tried again.
    pub write_errors: u64,
    /// The longest time for which a log had output of this channel to write and could
    /// not, in nanoseconds.
    pub stall_longest_ns: u64,
}

/// A handle of the relay. Its thread ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Relay {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None` only while it is dropped.
    commands: Option<Sender<Command>>,
    poll: Poll,
    wake: Arc<OwnedFd>,
    ids: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread looks at the channel when it is woken, so the channel must be closed by then.
        self.commands = None;
        poll::wake(&self.wake);
    }
}

impl Relay {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread, its epoll instance or its eventfd cannot be made.
    pub fn start() -> Result<Self, RelayError> {
        Self::start_telling(Box::new(|_, _| ()))
    }

    /// Starts the thread; `tell` gets what happens to logs.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_telling(tell: Tell) -> Result<Self, RelayError> {
        let failed = |errno: rustix::io::Errno| RelayError::Start(errno.into());
        let poll = Poll::new().map_err(failed)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(rustix::event::eventfd(0, flags).map_err(failed)?);
        let (sender, receiver) = channel();
        let engine = Engine::new(poll.clone(), Arc::clone(&wake), receiver, tell).map_err(failed)?;
        let (engine, seat) = (Box::new(engine), Seat::new(Arc::clone(&wake)));
        std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || seat.lead(engine))
            .map_err(RelayError::Start)?;
        let inner = Inner { commands: Some(sender), poll, wake, ids: AtomicU64::new(1) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Relays a container's streams from now on.
    ///
    /// # Errors
    /// If a descriptor cannot be watched, or the relay has ended.
    pub fn open(&self, open: Open) -> Result<StreamId, RelayError> {
        let id = StreamId(self.inner.ids.fetch_add(1, Ordering::Relaxed));
        let stream = Stream::new(id, open, &self.inner.poll).map_err(RelayError::Stream)?;
        if self.send(Command::Open(Box::new(stream))) { Ok(id) } else { Err(RelayError::Ended) }
    }

    /// The process has exited: reads its streams to their end. If some other
    /// process still holds them: until they are empty and `grace` has passed; if a
    /// log cannot be written: until `grace` has passed. Then writes lines without
    /// an end, closes the logs, tells attached clients, removes attach sockets, and
    /// forgets the stream. `reply` is called once all bytes are where they belong.
    /// For an unknown id, or once the relay has ended, it is dropped.
    pub fn finish(&self, id: StreamId, grace: Duration, reply: Reply<Drained>) {
        self.send(Command::Finish(id, grace, reply));
    }

    /// Drops a stream at once, and removes logs that were made for it: for a create
    /// that failed.
    pub fn abandon(&self, id: StreamId) {
        self.send(Command::Abandon(id));
    }

    /// Makes the attach socket unless it is there.
    pub fn attach(&self, id: StreamId, attach: Attach, reply: Reply<Result<(), RelayError>>) {
        if let Err(Command::Attach(_, _, reply)) = self.try_send(Command::Attach(id, attach, reply)) {
            reply(Err(RelayError::Ended));
        }
    }

    /// Opens the logs anew, after somebody renamed them.
    pub fn reopen_logs(&self, id: StreamId, reply: Reply<Result<(), LogError>>) {
        if let Err(Command::ReopenLogs(_, reply)) = self.try_send(Command::ReopenLogs(id, reply)) {
            reply(Err(LogError::Ended));
        }
    }

    /// Asks for the counters; `None` for an unknown id.
    pub fn stats(&self, id: StreamId, reply: Reply<Option<StreamStats>>) {
        if let Err(Command::Stats(_, reply)) = self.try_send(Command::Stats(id, reply)) {
            reply(None);
        }
    }

    /// Sets the limits of a stream's log, from now on.
    pub fn set_limits(&self, id: StreamId, limits: LogLimits, reply: Reply<Result<(), RelayError>>) {
        if let Err(Command::SetLimits(_, _, reply)) = self.try_send(Command::SetLimits(id, limits, reply)) {
            reply(Err(RelayError::Ended));
        }
    }

    /// Sets the limit of all logs together.
    pub fn set_pod_rate(&self, rate: Rate) {
        self.send(Command::SetPodRate(rate));
    }

    /// Writes lines to a stream's logs that are not of its container, as records of
    /// stderr. False if they were not taken: the stream has ended, has no log, or
    /// its log cannot be written now.
    pub fn add_lines(&self, id: StreamId, lines: Vec<u8>, reply: Reply<bool>) {
        if let Err(Command::AddLines(_, _, reply)) = self.try_send(Command::AddLines(id, lines, reply)) {
            reply(false);
        }
    }

    /// Ends the thread: every stream is dropped as if its grace had passed.
    /// `reply` is called when all is written and closed.
    pub fn stop(&self, reply: Reply<()>) {
        if let Err(Command::Stop(reply)) = self.try_send(Command::Stop(reply)) {
            reply(());
        }
    }

    fn send(&self, command: Command) -> bool {
        self.try_send(command).is_ok()
    }

    fn try_send(&self, command: Command) -> Result<(), Command> {
        let Some(commands) = &self.inner.commands else { return Err(command) };
        commands.send(command).map_err(|error| error.0)?;
        poll::wake(&self.inner.wake);
        Ok(())
    }
}
