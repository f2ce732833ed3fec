//! What happened in the pod, numbered, and kept for a while.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::watch;

use crate::hook::Stage;
use crate::init::survey::Process;
use crate::limits::EVENTS_KEPT_MAX;
use crate::monitor::exit::{ExitCause, ExitRecord};
use crate::monitor::id::{ContainerId, PodId};
use crate::monitor::log::gap::Gap;
use crate::sys::process::now_ns;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A container was created, with this pid.
    Created(u32),
    /// Its program was started.
    Started,
    /// It was asked to stop.
    Stopping,
    /// Its cgroup counted an OOM kill.
    OomKilled,
    /// Its exit has been recorded.
    Exited(ExitRecord),
    /// It was forgotten.
    Deleted,
    /// An exec could not be started.
    ExecFailed(String),
    /// The monitor was started anew, so many times so far.
    MonitorRestarted(u32),
    /// The pod is being stopped.
    PodStopping,
    /// So many events before this one are no longer kept.
    Lost(u64),
    /// PID 1 of a pod has ended.
    InitEnded(InitEnd),
    /// A hook failed whose policy is to tell that.
    HookFailed(HookFailure),
    /// A log cannot be written, and why.
    LogFailed(String),
    /// Output is missing in a log.
    LogGap(Gap),
}

/// The failure of a hook, as far as whoever follows the events is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookFailure {
    /// Number of the hook's result.
    pub sequence: u64,
    /// The hook's name.
    pub hook: String,
    /// When it ran.
    pub stage: Stage,
    /// For which pod.
    pub pod: String,
    /// Whether what it belonged to was refused or undone because of it.
    pub fatal: bool,
    /// What became of it.
    pub reason: String,
}

/// The end of a pod's init, and of its pid namespace with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitEnd {
    /// Which pod's.
    pub pod: PodId,
    /// How it ended.
    pub cause: ExitCause,
    /// When: Unix time in nanoseconds.
    pub at_ns: u64,
    /// What was still there when the grace time of a stop had passed.
    pub killed: Vec<Process>,
}

/// A numbered event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts from 1, without a gap.
    pub sequence: u64,
    /// Unix time in nanoseconds.
    pub time_ns: u64,
    /// `None` for the pod itself.
    pub container: Option<ContainerId>,
    /// What.
    pub what: Happening,
}

/// The events of this pod: the last [`EVENTS_KEPT_MAX`] of them.
#[derive(Debug)]
pub struct EventLog {
    kept: RefCell<VecDeque<Rc<Event>>>,
    newest: watch::Sender<u64>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { kept: RefCell::default(), newest: watch::channel(0).0 }
    }
}

impl EventLog {
    /// Numbers and keeps an event, and wakes who waits for one.
    pub fn add(&self, container: Option<&ContainerId>, what: Happening) {
        let sequence = *self.newest.borrow() + 1;
        let event = Event { sequence, time_ns: now_ns(), container: container.cloned(), what };
        let mut kept = self.kept.borrow_mut();
        if kept.len() == EVENTS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Rc::new(event));
        drop(kept);
        self.newest.send_replace(sequence);
    }

    /// The first event above `since`; waits until there is one. If that one is no
    /// longer kept, a [`Happening::Lost`] stands for all that are missing.
    pub async fn after(&self, since: u64) -> Rc<Event> {
        let mut newest = self.newest.subscribe();
        loop {
            if let Some(event) = self.find(since) {
                return event;
            }
            if newest.changed().await.is_err() {
                // The sender is a field of `self`: it outlives this call.
                std::future::pending::<()>().await;
            }
        }
    }

    fn find(&self, since: u64) -> Option<Rc<Event>> {
        let kept = self.kept.borrow();
        let first = kept.front()?.sequence;
        let wanted = since.saturating_add(1);
        if wanted < first {
            let lost = first - wanted;
            return Some(Rc::new(Event {
                sequence: first - 1,
                time_ns: kept.front()?.time_ns,
                container: None,
                what: Happening::Lost(lost),
            }));
        }
        kept.get(usize::try_from(wanted - first).ok()?).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(log: &EventLog, since: u64) -> Rc<Event> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(log.after(since))
    }

    #[test]
    fn a_reader_sees_every_number_or_is_told_what_it_missed() {
        let log = EventLog::default();
        for _ in 0..EVENTS_KEPT_MAX + 10 {
            log.add(None, Happening::Started);
        }
        let gap = next(&log, 3);
        assert_eq!((gap.sequence, &gap.what), (10, &Happening::Lost(7)));
        let mut since = gap.sequence;
        while since < (EVENTS_KEPT_MAX + 10) as u64 {
            let event = next(&log, since);
            assert_eq!(event.sequence, since + 1);
            since = event.sequence;
        }
    }

    #[test]
    fn a_reader_waits_for_what_has_not_happened() {
        let log = Rc::new(EventLog::default());
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        let waiting = runtime.spawn_local({
            let log = Rc::clone(&log);
            async move { log.after(0).await.sequence }
        });
        log.add(None, Happening::PodStopping);
        assert_eq!(runtime.block_on(waiting).unwrap(), 1);
    }
}
