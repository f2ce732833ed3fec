//! What decides without a plugin: the actions of rules.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::broker::Broker;
use super::notification::{Notification, Session};
use super::plugin::{Decision, Plugin, PluginFailure};
use super::recording::Recordings;
use super::rules::{Action, Errno};
use super::select::Call;
use super::syscall;
use super::target::Target;
use super::verdict::{OnFailure, Verdict};

pub mod connect;
pub mod stop;

/// What carries `action` out.
pub(super) fn of(action: &Action, broker: &Broker) -> Rc<dyn Plugin> {
    match action {
        Action::Errno(Errno(errno)) => Rc::new(Constant::Answer(OnFailure::Errno(*errno))),
        Action::Continue => Rc::new(Constant::Answer(OnFailure::Continue)),
        Action::Kill => Rc::new(Constant::Answer(OnFailure::Kill)),
        Action::Return(value) => Rc::new(Constant::Return(*value)),
        Action::Deny => Rc::new(Deny::default()),
        Action::Record(record) => {
            Rc::new(Recorder { recordings: Rc::clone(&broker.recordings), then: record.then })
        }
        Action::StopContainer(stop) => Rc::new(stop::Stopper::new(stop, broker.stops.clone())),
        Action::NotifierAction => Rc::new(stop::Notifier::new(broker.stops.clone())),
        Action::Connect(connect) => Rc::new(connect::Connector::new(connect)),
    }
}

/// What [`Plugin::decide`] is of a plugin that decides at once: never asked.
pub(super) fn never_asked() -> Decision {
    Box::pin(std::future::ready(Err(PluginFailure::Failed("it decides at once".into()))))
}

/// The same for every call.
enum Constant {
    Answer(OnFailure),
    Return(i64),
}

impl Plugin for Constant {
    fn decide(&self, _notification: Rc<Notification>, _target: Target) -> Decision {
        never_asked()
    }

    fn at_once(&self, _session: &Session, _call: &Call) -> Option<Verdict> {
        Some(match self {
            Self::Answer(answer) => answer.verdict(),
            Self::Return(value) => Verdict::Return(*value),
        })
    }
}

/// `EPERM`, and a line in the log for the first of its kind.
#[derive(Default)]
struct Deny {
    seen: Recordings,
}

impl Plugin for Deny {
    fn decide(&self, _notification: Rc<Notification>, _target: Target) -> Decision {
        never_asked()
    }

    fn at_once(&self, session: &Session, call: &Call) -> Option<Verdict> {
        if self.seen.add(&session.container, call) {
            let name = syscall::name_or_number(call.arch, call.syscall);
            ::log::warn!("seccomp denies {name} to container {}", session.container);
        }
        Some(Verdict::Errno(libc::EPERM))
    }
}

/// Counts.
struct Recorder {
    recordings: Rc<Recordings>,
    then: OnFailure,
}

impl Plugin for Recorder {
    fn decide(&self, _notification: Rc<Notification>, _target: Target) -> Decision {
        never_asked()
    }

    fn at_once(&self, session: &Session, call: &Call) -> Option<Verdict> {
        self.recordings.add(&session.container, call);
        Some(self.then.verdict())
    }
}
