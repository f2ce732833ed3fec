//! Which thread runs the relay: one at a time, the *leader*. A write to a log may
//! take for ever (a dead file system), and then the others must not wait.
//!
//! ```text
//!  leader:  engine.turn() ─► a job ─► park the engine ─► write ─► take it back ─► …
//!                                          │                        │ it is gone:
//!  deputy:  sleeps ◄── 10 ms ──► parked for too long?               ▼ hand in what was
//!                                 └─ yes: take it, be the leader    done, be the deputy
//! ```
//!
//! So the bytes of a log that works are read and written by one thread without a
//! copy or a wake-up in between, and one that is stuck costs the others
//! [`RELAY_TAKEOVER`] to twice that, once. The deputy is started with the first
//! job of a burst, and ends when there was none for [`RELAY_REST`]: a quiet pod
//! has one thread.
//!
//! There can be as many threads as logs that are stuck, and two more;
//! [`RELAY_THREADS_MAX`] bounds them. Beyond it, the next stuck log holds up all.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::engine::{Engine, Turn};
use super::job::Done;
use super::poll;
use crate::limits::{RELAY_REST, RELAY_TAKEOVER, RELAY_THREADS_MAX};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deputy {
    None,
    /// Looks again by itself.
    Watching,
    /// Is to be woken when there is a job.
    Dozing,
}

/// The engine, while its leader does a job.
struct Parked {
    engine: Box<Engine>,
    since: Instant,
    /// The number of the job.
    ticket: u64,
}

struct State {
    parked: Option<Parked>,
    /// Jobs so far: a deputy sees whether there are still any.
    jobs: u64,
    deputy: Deputy,
    threads: usize,
    /// Done by threads that had lost the engine meanwhile.
    handed_in: Vec<Done>,
    /// The relay has ended.
    over: bool,
}

/// What the relay's threads share.
pub(super) struct Seat {
    state: Mutex<State>,
    woken: Condvar,
    wake: Arc<OwnedFd>,
}

impl Seat {
    /// `wake` tells the leader that something was handed in.
    pub(super) fn new(wake: Arc<OwnedFd>) -> Arc<Self> {
        let state = State {
            parked: None,
            jobs: 0,
            deputy: Deputy::None,
            threads: 1,
            handed_in: Vec::new(),
            over: false,
        };
        Arc::new(Self { state: Mutex::new(state), woken: Condvar::new(), wake })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done with the lock held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was handed in since the last call.
    pub(super) fn handed_in(&self) -> Vec<Done> {
        std::mem::take(&mut self.state().handed_in)
    }

    /// Leaves the engine to whoever finds it here for too long. Gives the ticket to
    /// take it back with.
    fn park(self: &Arc<Self>, engine: Box<Engine>) -> u64 {
        let mut state = self.state();
        state.jobs += 1;
        let ticket = state.jobs;
        state.parked = Some(Parked { engine, since: Instant::now(), ticket });
        match state.deputy {
            Deputy::Watching => {}
            Deputy::Dozing => {
                state.deputy = Deputy::Watching;
                self.woken.notify_one();
            }
            Deputy::None if state.threads < RELAY_THREADS_MAX => {
                let seat = Arc::clone(self);
                let thread = std::thread::Builder::new().name("relay".to_owned());
                // Without memory for a thread, the next job tries again.
                if thread.spawn(move || seat.follow()).is_ok() {
                    state.deputy = Deputy::Watching;
                    state.threads += 1;
                }
            }
            Deputy::None => {}
        }
        ticket
    }

    /// The engine that was left with `ticket`, unless somebody has taken it; then
    /// `done` goes to whoever has.
    fn unpark(&self, ticket: u64, done: Done) -> Option<(Box<Engine>, Done)> {
        let mut state = self.state();
        if let Some(parked) = state.parked.take_if(|parked| parked.ticket == ticket) {
            return Some((parked.engine, done));
        }
        state.handed_in.push(done);
        drop(state);
        poll::wake(&self.wake);
        None
    }

    /// A deputy's life, and what may follow.
    fn follow(self: Arc<Self>) {
        if let Some(engine) = self.watch() {
            self.lead(engine);
        }
    }

    /// Waits for an engine that nobody attends to.
    fn watch(&self) -> Option<Box<Engine>> {
        let mut state = self.state();
        let mut jobs_seen = state.jobs;
        while !state.over {
            let parked_for = state.parked.as_ref().map(|parked| parked.since.elapsed());
            if parked_for.is_some_and(|time| time >= RELAY_TAKEOVER) {
                state.deputy = Deputy::None;
                return state.parked.take().map(|parked| parked.engine);
            }
            let is_quiet = parked_for.is_none() && state.jobs == jobs_seen;
            jobs_seen = state.jobs;
            let (patience, deputy) =
                if is_quiet { (RELAY_REST, Deputy::Dozing) } else { (RELAY_TAKEOVER, Deputy::Watching) };
            state.deputy = deputy;
            let waited = self.woken.wait_timeout(state, patience);
            let result;
            (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
            if is_quiet && result.timed_out() && state.jobs == jobs_seen {
                break;
            }
        }
        state.deputy = Deputy::None;
        state.threads -= 1;
        None
    }

    /// Runs the relay with `engine`, until the relay ends or this thread is not
    /// needed any more.
    pub(super) fn lead(self: Arc<Self>, mut engine: Box<Engine>) {
        loop {
            let job = match engine.turn(&self) {
                Turn::Job(job) => job,
                Turn::Over(reply) => {
                    self.state().over = true;
                    self.woken.notify_all();
                    drop(engine);
                    return reply.into_iter().for_each(|reply| reply(()));
                }
            };
            let ticket = self.park(engine);
            engine = match self.unpark(ticket, job.run()) {
                Some((mut mine, done)) => {
                    mine.give_back(done);
                    mine
                }
                None => match self.rejoin() {
                    Some(next) => next,
                    None => return,
                },
            };
        }
    }

    /// Goes on as the deputy, if there is none, until there is an engine to lead.
    fn rejoin(&self) -> Option<Box<Engine>> {
        let mut state = self.state();
        if state.over || state.deputy != Deputy::None {
            state.threads -= 1;
            return None;
        }
        state.deputy = Deputy::Watching;
        drop(state);
        self.watch()
    }
}
