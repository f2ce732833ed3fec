//! The relay's thread: waits, and lets streams act. What it can be told is
//! [`Command`]; nothing else enters it.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::poll::{self, Poll, Token};
use super::stream::{Shared, Stream};
use super::{Attach, Captured, Drained, RelayError, Reply, StreamId, StreamStats};
use crate::limits::RELAY_REST;
use crate::monitor::log::LogError;

/// What the control side asks for; see [`Relay`](super::Relay).
pub(super) enum Command {
    Open(Box<Stream>),
    Finish(StreamId, Duration, Reply<Drained>),
    Abandon(StreamId),
    Attach(StreamId, Attach, Reply<Result<(), RelayError>>),
    ReopenLogs(StreamId, Reply<Result<(), LogError>>),
    Stats(StreamId, Reply<Option<StreamStats>>),
    CaptureSoFar(StreamId, Reply<Option<Captured>>),
    AddLines(StreamId, Vec<u8>, Reply<bool>),
    Stop(Reply<()>),
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Open(_) => "Open",
            Self::Finish(..) => "Finish",
            Self::Abandon(_) => "Abandon",
            Self::Attach(..) => "Attach",
            Self::ReopenLogs(..) => "ReopenLogs",
            Self::Stats(..) => "Stats",
            Self::CaptureSoFar(..) => "CaptureSoFar",
            Self::AddLines(..) => "AddLines",
            Self::Stop(_) => "Stop",
        };
        f.write_str(name)
    }
}

/// Why the thread ends.
enum Ending {
    Asked(Reply<()>),
    NobodyIsLeft,
}

/// A stream and when it wants to be settled.
struct Entry {
    stream: Stream,
    due: Option<Instant>,
}

/// The thread's state.
pub(super) struct Engine {
    poll: Poll,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    streams: HashMap<StreamId, Entry>,
    due: BTreeSet<(Instant, StreamId)>,
    shared: Shared,
    /// When the shared buffers are given back, unless something happens before.
    rest_at: Option<Instant>,
}

impl Engine {
    pub(super) fn new(poll: Poll, wake: Arc<OwnedFd>, commands: Receiver<Command>) -> Result<Self, Errno> {
        poll.add(&*wake, Token::WAKE)?;
        let (streams, due, shared) = (HashMap::new(), BTreeSet::new(), Shared::default());
        Ok(Self { poll, wake, commands, streams, due, shared, rest_at: None })
    }

    /// The thread's life.
    pub(super) fn run(mut self) {
        let mut ready = Vec::new();
        let ending = loop {
            if self.poll.wait(&mut ready, self.timeout()).is_err() {
                // A signal at most; every descriptor that counts is still watched.
                ready.clear();
            }
            for &(token, flags) in &ready {
                if token != Token::WAKE {
                    self.act(token.stream(), |stream, shared| stream.on_event(token, flags, shared));
                }
            }
            if ready.iter().any(|(token, _)| *token == Token::WAKE) {
                poll::quiet(&self.wake);
                if let Some(ending) = self.obey() {
                    break ending;
                }
            }
            self.settle_due();
            self.rest_if_quiet(ready.is_empty());
        };
        self.end_all();
        if let Ending::Asked(reply) = ending {
            reply(());
        }
    }

    /// Until what is due next.
    fn timeout(&self) -> Option<Duration> {
        let next = self.due.first().map(|(at, _)| *at);
        let next = next.into_iter().chain(self.rest_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// The buffers have touched pages for as much as was read at once. After a
    /// pause they are exchanged for new ones, which have touched none yet.
    fn rest_if_quiet(&mut self, quiet: bool) {
        let now = Instant::now();
        if !quiet {
            self.rest_at = Some(now + RELAY_REST);
        } else if self.rest_at.is_some_and(|at| at <= now) {
            self.rest_at = None;
            self.shared = Shared::default();
        }
    }

    fn settle_due(&mut self) {
        let now = Instant::now();
        while let Some(&(at, id)) = self.due.first() {
            if at > now {
                break;
            }
            self.act(id, |_, _| ());
        }
    }

    /// Lets a stream do something, and then what follows from it.
    fn act<T>(&mut self, id: StreamId, what: impl FnOnce(&mut Stream, &mut Shared) -> T) -> Option<T> {
        let entry = self.streams.get_mut(&id)?;
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, id));
        }
        let shared = &mut self.shared;
        // A bug that one container's bytes can trigger must not end the others' relay.
        let done = catch_unwind(AssertUnwindSafe(|| {
            let result = what(&mut entry.stream, shared);
            entry.stream.settle(Instant::now(), shared);
            result
        }));
        if done.is_err() || entry.stream.is_over() {
            self.streams.remove(&id);
            return done.ok();
        }
        entry.due = entry.stream.deadline();
        self.due.extend(entry.due.map(|due| (due, id)));
        done.ok()
    }

    /// Like [`Self::act`] for a stream that has not been finished yet.
    fn command<T>(&mut self, id: StreamId, what: impl FnOnce(&mut Stream, &mut Shared) -> T) -> Option<T> {
        if self.streams.get(&id)?.stream.is_closing() {
            return None;
        }
        self.act(id, what)
    }

    fn obey(&mut self) -> Option<Ending> {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop(reply)) => return Some(Ending::Asked(reply)),
                Ok(command) => self.execute(command),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(Ending::NobodyIsLeft),
            }
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Open(stream) => {
                let id = stream.id();
                self.streams.insert(id, Entry { stream: *stream, due: None });
            }
            Command::Finish(id, grace, reply) => {
                self.command(id, |stream, _| stream.begin_finish(grace, reply));
            }
            Command::Abandon(id) => {
                if let Some(entry) = self.streams.remove(&id) {
                    if let Some(due) = entry.due {
                        self.due.remove(&(due, id));
                    }
                    entry.stream.abandon();
                }
            }
            Command::Attach(id, attach, reply) => {
                let poll = self.poll.clone();
                let made = self.command(id, |stream, _| stream.attach(attach, &poll));
                reply(made.unwrap_or(Err(RelayError::Unknown)));
            }
            Command::ReopenLogs(id, reply) => {
                let reopened = self.command(id, Stream::reopen_logs);
                reply(reopened.unwrap_or(Err(LogError::Ended)));
            }
            Command::Stats(id, reply) => reply(self.command(id, |stream, _| stream.stats())),
            Command::CaptureSoFar(id, reply) => {
                reply(self.command(id, |stream, _| stream.take_captured()).flatten());
            }
            Command::AddLines(id, lines, reply) => {
                let taken = self.command(id, |stream, shared| stream.add_lines(&lines, shared));
                reply(taken.unwrap_or(false));
            }
            Command::Stop(reply) => reply(()),
        }
    }

    /// Every stream as if its grace had passed.
    fn end_all(&mut self) {
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            self.command(id, |stream, _| stream.begin_finish(Duration::ZERO, Box::new(drop)));
            // What is in the pipes takes as many turns as it takes buffers.
            while self.streams.get(&id).is_some_and(|entry| !entry.stream.is_closing()) {
                self.act(id, Stream::read_all);
            }
        }
    }
}
