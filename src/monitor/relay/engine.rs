//! The relay's state: waits, and lets streams act. What it can be told is
//! [`Command`]; nothing else enters it. It touches no log itself: that is a
//! [`Job`] for the thread that leads it ([`lead`](super::lead)).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::job::{Done, Job, Shared};
use super::lead::Seat;
use super::pace::PodPace;
use super::poll::{self, Poll, Token};
use super::stream::Stream;
use super::{Attach, Drained, RelayError, Reply, StreamId, StreamStats, Tell};
use crate::limits::RELAY_REST;
use crate::monitor::log::LogError;
use crate::monitor::log::limit::{LogLimits, Rate};
use crate::sys::heap;

/// What the control side asks for; see [`Relay`](super::Relay).
pub(super) enum Command {
    Open(Box<Stream>),
    Finish(StreamId, Duration, Reply<Drained>),
    Abandon(StreamId),
    Attach(StreamId, Attach, Reply<Result<(), RelayError>>),
    ReopenLogs(StreamId, Reply<Result<(), LogError>>),
    Stats(StreamId, Reply<Option<StreamStats>>),
    SetLimits(StreamId, LogLimits, Reply<Result<(), RelayError>>),
    SetPodRate(Rate),
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
            Self::SetLimits(..) => "SetLimits",
            Self::SetPodRate(_) => "SetPodRate",
            Self::AddLines(..) => "AddLines",
            Self::Stop(_) => "Stop",
        };
        f.write_str(name)
    }
}

/// What the leader is to do next.
pub(super) enum Turn {
    /// This, and then give it back.
    Job(Job),
    /// Nothing more; tell who asked for the end.
    Over(Option<Reply<()>>),
}

/// A stream and when it wants to be settled.
struct Entry {
    /// By itself: the table is larger than what is in it.
    stream: Box<Stream>,
    due: Option<Instant>,
}

/// What the leader has to attend to.
enum Next {
    Returned(Done),
    Ready(Token, EventFlags),
    Command(Command),
    Due(StreamId),
    Nothing,
}

/// The relay's state, whoever leads it.
pub(super) struct Engine {
    poll: Poll,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    has_commands: bool,
    streams: HashMap<StreamId, Entry>,
    due: BTreeSet<(Instant, StreamId)>,
    /// What epoll told and nobody has looked at.
    ready: VecDeque<(Token, EventFlags)>,
    returned: VecDeque<Done>,
    /// `None` while a job has them, and after a rest.
    shared: Option<Box<Shared>>,
    /// When the shared buffers are given back, unless something happens before.
    rest_at: Option<Instant>,
    ending: Option<Option<Reply<()>>>,
    pod: PodPace,
    tell: Tell,
}

impl Engine {
    pub(super) fn new(
        poll: Poll,
        wake: Arc<OwnedFd>,
        commands: Receiver<Command>,
        tell: Tell,
    ) -> Result<Self, Errno> {
        poll.add(&*wake, Token::WAKE)?;
        Ok(Self {
            poll,
            wake,
            commands,
            has_commands: false,
            streams: HashMap::new(),
            due: BTreeSet::new(),
            ready: VecDeque::new(),
            returned: VecDeque::new(),
            shared: None,
            rest_at: None,
            ending: None,
            pod: PodPace::default(),
            tell,
        })
    }

    /// Goes on until there is a job, which may take long, or nothing more to do.
    pub(super) fn turn(&mut self, seat: &Seat) -> Turn {
        loop {
            let job = match self.next() {
                Next::Returned(done) => self.take_back(done),
                Next::Ready(token, flags) => {
                    self.act(token.stream(), |stream, shared, pod| stream.on_event(token, flags, shared, pod))
                        .1
                }
                Next::Command(command) => self.execute(command),
                Next::Due(id) => self.act(id, |_, _, _| ()).1,
                Next::Nothing => {
                    if let Some(reply) = self.ending.take_if(|_| self.streams.values().all(is_closing)) {
                        return Turn::Over(reply);
                    }
                    self.wait(seat);
                    None
                }
            };
            if let Some(job) = job {
                return Turn::Job(job);
            }
        }
    }

    fn next(&mut self) -> Next {
        if let Some(done) = self.returned.pop_front() {
            return Next::Returned(done);
        }
        if let Some((token, flags)) = self.ready.pop_front() {
            return Next::Ready(token, flags);
        }
        if self.has_commands {
            match self.commands.try_recv() {
                Ok(command) => return Next::Command(command),
                Err(TryRecvError::Empty) => self.has_commands = false,
                Err(TryRecvError::Disconnected) => {
                    self.has_commands = false;
                    self.end_all(None);
                }
            }
        }
        match self.due.first() {
            Some(&(at, id)) if at <= Instant::now() => Next::Due(id),
            _ => Next::Nothing,
        }
    }

    fn wait(&mut self, seat: &Seat) {
        let timeout = self.timeout();
        // An error is a signal at most; every descriptor that counts is still watched.
        let _woken = self.poll.wait(&mut self.ready, timeout);
        self.rest_if_quiet();
        let before = self.ready.len();
        self.ready.retain(|(token, _)| *token != Token::WAKE);
        if self.ready.len() < before {
            poll::quiet(&self.wake);
            self.has_commands = true;
            self.returned.extend(seat.handed_in());
        }
    }

    /// Until what is due next.
    fn timeout(&self) -> Option<Duration> {
        let next = self.due.first().map(|(at, _)| *at);
        let next = next.into_iter().chain(self.rest_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// The buffers have touched pages for as much as was read at once. After a
    /// pause they are given back, and with them what the allocator has kept of the
    /// create, the exec or the burst that has ended.
    fn rest_if_quiet(&mut self) {
        let now = Instant::now();
        if !self.ready.is_empty() {
            self.rest_at = Some(now + RELAY_REST);
        } else if self.rest_at.is_some_and(|at| at <= now) {
            self.rest_at = None;
            self.shared = None;
            heap::trim();
        }
    }

    /// What a leader has done itself.
    pub(super) fn give_back(&mut self, done: Done) {
        self.returned.push_back(done);
    }

    fn take_back(&mut self, done: Done) -> Option<Job> {
        let Done { id, logs, shared } = done;
        if self.shared.is_none() {
            self.shared = shared;
        }
        match logs {
            Some(logs) => self.act(id, |stream, _, _| stream.put_back(logs)).1,
            None => {
                self.forget(id);
                None
            }
        }
    }

    /// Lets a stream do something, and then what follows from it.
    fn act<T>(
        &mut self,
        id: StreamId,
        what: impl FnOnce(&mut Stream, &mut Shared, &mut PodPace) -> T,
    ) -> (Option<T>, Option<Job>) {
        let Some(entry) = self.streams.get_mut(&id) else { return (None, None) };
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, id));
        }
        let (shared, pod) = (self.shared.get_or_insert_default(), &mut self.pod);
        // A bug that one container's bytes can trigger must not end the others' relay.
        let done = catch_unwind(AssertUnwindSafe(|| {
            let result = what(&mut entry.stream, shared, pod);
            let now = Instant::now();
            entry.stream.settle(now);
            (result, entry.stream.next_work(now))
        }));
        let Ok((result, work)) = done else {
            self.forget(id);
            return (None, None);
        };
        for notice in entry.stream.take_notices() {
            (self.tell)(id, notice);
        }
        if entry.stream.is_over() {
            self.forget(id);
            return (Some(result), None);
        }
        entry.due = entry.stream.deadline();
        self.due.extend(entry.due.map(|due| (due, id)));
        let job = work.and_then(|(logs, work)| {
            let shared = self.shared.take()?;
            Some(Job { id, logs, shared, work })
        });
        (Some(result), job)
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(entry) = self.streams.remove(&id) {
            self.pod.sharers -= u64::from(entry.stream.has_log());
        }
    }

    /// Like [`Self::act`] for a stream that has not been finished yet.
    fn command<T>(&mut self, id: StreamId, what: impl FnOnce(&mut Stream) -> T) -> (Option<T>, Option<Job>) {
        match self.streams.get(&id) {
            Some(entry) if !entry.stream.is_closing() => self.act(id, |stream, _, _| what(stream)),
            _ => (None, None),
        }
    }

    fn execute(&mut self, command: Command) -> Option<Job> {
        match command {
            Command::Open(stream) => {
                let id = stream.id();
                self.pod.sharers += u64::from(stream.has_log());
                self.streams.insert(id, Entry { stream, due: None });
                None
            }
            Command::Finish(id, grace, reply) => {
                self.command(id, |stream| stream.begin_finish(grace, reply)).1
            }
            Command::Abandon(id) => self.command(id, |stream| stream.abandon()).1,
            Command::Attach(id, attach, reply) => {
                let poll = self.poll.clone();
                let (made, job) = self.command(id, |stream| stream.attach(attach, &poll));
                reply(made.unwrap_or(Err(RelayError::Unknown)));
                job
            }
            Command::ReopenLogs(id, reply) => {
                let mut reply = Some(reply);
                let (_, job) = self.command(id, |stream| {
                    reply.take().into_iter().for_each(|reply| stream.reopen_logs(reply));
                });
                reply.into_iter().for_each(|reply| reply(Err(LogError::Ended)));
                job
            }
            Command::Stats(id, reply) => {
                let (stats, job) = self.command(id, |stream| stream.stats());
                reply(stats);
                job
            }
            Command::SetLimits(id, limits, reply) => {
                let (set, job) = self.command(id, |stream| stream.set_limits(limits));
                reply(set.ok_or(RelayError::Unknown));
                job
            }
            Command::SetPodRate(rate) => {
                let now = Instant::now();
                self.pod.set(&rate, now);
                self.streams.values_mut().for_each(|entry| entry.stream.end_pauses());
                self.all_are_due(now);
                None
            }
            Command::Stop(reply) => {
                self.end_all(Some(reply));
                None
            }
            Command::AddLines(id, lines, reply) => {
                let mut reply = Some(reply);
                let (_, job) = self.command(id, |stream| {
                    if let Some(reply) = reply.take() {
                        stream.add_lines(lines, reply);
                    }
                });
                reply.into_iter().for_each(|reply| reply(false));
                job
            }
        }
    }

    /// Every stream as if its process had exited and nobody had to be waited for.
    fn end_all(&mut self, reply: Option<Reply<()>>) {
        self.ending = Some(reply);
        for entry in self.streams.values_mut().filter(|entry| !entry.stream.is_closing()) {
            entry.stream.begin_finish(Duration::ZERO, Box::new(drop));
        }
        self.all_are_due(Instant::now());
    }

    fn all_are_due(&mut self, now: Instant) {
        for (id, entry) in &mut self.streams {
            if let Some(due) = entry.due.replace(now) {
                self.due.remove(&(due, *id));
            }
            self.due.insert((now, *id));
        }
    }
}

fn is_closing(entry: &Entry) -> bool {
    entry.stream.is_closing()
}
