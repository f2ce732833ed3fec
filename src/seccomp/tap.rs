//! Looking on: copies of what was notified and answered. Who looks on cannot
//! hold anything up: what it does not take in time is lost to it, and counted.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::notification::{Notification, Session};
use super::select::{Call, Matcher};
use super::verdict::Verdict;
use crate::limits::SECCOMP_TAP_QUEUE_MAX;

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It returned this without being made.
    Returned(i64),
    /// It failed with this errno.
    Failed(i32),
    /// The kernel made it.
    Continued,
    /// It returned a descriptor of this number, which it was given.
    GaveFd(u32),
    /// Its process was killed.
    Killed,
    /// It was interrupted, or its thread ended, before the answer.
    Interrupted,
}

/// A call, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The call.
    pub notification: Rc<Notification>,
    /// Where it came from.
    pub session: Rc<Session>,
    /// Who decided: a registration's name, or `default`.
    pub by: Rc<str>,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it waited.
    pub took: Duration,
}

impl Outcome {
    /// What `verdict` leads to if nothing comes in between.
    pub(super) fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Return(value) => Self::Returned(*value),
            Verdict::Errno(errno) => Self::Failed(*errno),
            Verdict::Continue => Self::Continued,
            Verdict::AddFd { .. } => Self::GaveFd(0),
            Verdict::Kill => Self::Killed,
            Verdict::Pass => Self::Interrupted,
        }
    }
}

/// The broker's end.
#[derive(Debug)]
pub(super) struct Tap {
    matcher: Matcher,
    sender: Sender<Rc<Observation>>,
    lost: Rc<Cell<u64>>,
}

/// The observer's end. When it is dropped, nothing is copied any more.
#[derive(Debug)]
pub struct Observer {
    receiver: Receiver<Rc<Observation>>,
    lost: Rc<Cell<u64>>,
}

pub(super) fn pair(matcher: Matcher) -> (Tap, Observer) {
    let (sender, receiver) = channel(SECCOMP_TAP_QUEUE_MAX);
    let lost = Rc::new(Cell::new(0));
    (Tap { matcher, sender, lost: Rc::clone(&lost) }, Observer { receiver, lost })
}

impl Tap {
    pub(super) fn wants(&self, session: &Session, call: &Call) -> bool {
        self.matcher.session(session) && self.matcher.call(call)
    }

    /// False when nobody looks on any more.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    pub(super) fn show(&self, observation: &Rc<Observation>) {
        if self.sender.try_send(Rc::clone(observation)).is_err() {
            self.lost.set(self.lost.get() + 1);
        }
    }
}

impl Observer {
    /// The next observation; `None` when the broker is gone.
    pub async fn next(&mut self) -> Option<Rc<Observation>> {
        self.receiver.recv().await
    }

    /// The next one if it is there already.
    pub fn next_now(&mut self) -> Option<Rc<Observation>> {
        self.receiver.try_recv().ok()
    }

    /// How many were lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }
}
