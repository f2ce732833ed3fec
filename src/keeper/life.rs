//! What the keeper decides: pure, no system call, no clock of its own.
//!
//! ```text
//!            StartMonitor            Ready
//!   Pausing ──────────────▶ Starting ─────▶ Serving
//!      ▲                       │               │
//!      └── MonitorGone ────────┴───────────────┤  a crash: start the next one
//!                                              │
//!   MonitorGone after Goodbye, a second time   │
//!   during a stop, or before the first Ready   ▼
//!                                           Ending ── NoChildLeft ──▶ Ended
//! ```
//!
//! Times are nanoseconds of a clock that only goes forward.

use std::time::Duration;

use crate::limits::{KILL_AGAIN, RESTART_CALM, RESTART_PAUSE_FIRST, RESTARTS_IN_A_ROW_MAX, START_TIMEOUT};

/// What of the keeper's timing can be configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Between a request to stop and the kill.
    pub(crate) stop_timeout: Duration,
    /// Longest pause between two restarts.
    pub(crate) restart_pause_max: Duration,
}

/// Where the monitor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A monitor runs since then and does not serve yet.
    Starting { since: u64 },
    /// A monitor serves since then.
    Serving { since: u64 },
    /// None runs; the next one is due then.
    Pausing { until: u64 },
    /// None runs and none will; what is left below is killed, again at that time.
    Ending { again: u64 },
    /// Nothing is left.
    Ended,
}

/// How it all ended: the keeper's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The monitor served, and said goodbye.
    Orderly,
    /// It did not.
    Forced,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The monitor says that it serves.
    Ready,
    /// The monitor says that the pod has ended.
    Goodbye,
    /// The monitor has ended, or could not be started.
    MonitorGone(Held),
    /// The monitor sent what no monitor sends.
    MonitorBroken,
    /// SIGTERM or SIGINT.
    StopAsked,
    /// Who started the keeper does not wait for it any more.
    LauncherGone,
    /// Time has passed.
    Tick,
    /// The keeper has no child, not even one that has ended.
    NoChildLeft,
}

/// Whether the keeper holds what would be lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// Descriptors, statuses or children.
    Something,
    /// Nothing.
    Nothing,
}

/// What the keeper shall do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    None,
    /// Start a monitor.
    StartMonitor,
    /// Tell the launcher that the pod is served.
    ReportReady,
    /// Tell the launcher why there is no pod, and kill what is left.
    ReportFailure,
    /// Send the monitor a Terminate.
    AskToEnd,
    /// SIGKILL the monitor.
    KillMonitor,
    /// SIGKILL every child.
    KillChildren,
}

/// The monitor that is started only to end the pod: there is one at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Successor {
    Allowed,
    Started,
}

/// The keeper's state, but for what it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    timing: Timing,
    phase: Phase,
    /// When the monitor is killed, once it was asked to end or said goodbye.
    deadline: Option<u64>,
    goodbye: bool,
    served: bool,
    killed: bool,
    successor: Successor,
    /// Monitors that died in a row.
    deaths: u32,
    restarts: u32,
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Life {
    /// Before the first monitor: [`Event::Tick`] starts it.
    pub(crate) fn new(timing: Timing, now: u64) -> Self {
        Self {
            timing,
            phase: Phase::Pausing { until: now },
            deadline: None,
            goodbye: false,
            served: false,
            killed: false,
            successor: Successor::Allowed,
            deaths: 0,
            restarts: 0,
        }
    }

    /// Where the monitor is.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Monitors started before the present one.
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// How it ended, for the exit status.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.goodbye && self.served { Verdict::Orderly } else { Verdict::Forced }
    }

    /// Whether a monitor has ever served: only until then does a launcher wait.
    pub(crate) fn has_served(&self) -> bool {
        self.served
    }

    /// Whether the pod is to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.deadline.is_some()
    }

    /// When the next [`Event::Tick`] is due, if ever.
    pub(crate) fn wake(&self) -> Option<u64> {
        match self.phase {
            Phase::Pausing { until } => Some(until),
            Phase::Ending { again } => Some(again),
            Phase::Ended => None,
            Phase::Starting { .. } | Phase::Serving { .. } if self.killed => None,
            Phase::Starting { since } => {
                let start = since.saturating_add(ns(START_TIMEOUT));
                Some(self.deadline.map_or(start, |deadline| deadline.min(start)))
            }
            Phase::Serving { .. } => self.deadline,
        }
    }

    /// Takes `event` in at time `now` and says what to do.
    pub(crate) fn step(&mut self, event: Event, now: u64) -> Action {
        match (event, self.phase) {
            (Event::Ready, Phase::Starting { .. }) => self.ready(now),
            (Event::Goodbye, Phase::Starting { .. } | Phase::Serving { .. }) => {
                self.goodbye = true;
                self.set_deadline(now);
                Action::None
            }
            (Event::MonitorGone(held), Phase::Starting { .. } | Phase::Serving { .. }) => {
                self.gone(held, now)
            }
            (Event::MonitorBroken, Phase::Starting { .. } | Phase::Serving { .. }) => self.kill(),
            (Event::StopAsked, _) => self.stop(now),
            (Event::LauncherGone, _) if !self.served => self.stop(now),
            (Event::NoChildLeft, Phase::Ending { .. }) => {
                self.phase = Phase::Ended;
                Action::None
            }
            (Event::Tick, _) => self.tick(now),
            // A second Ready, or news of a monitor that is gone already.
            _ => Action::None,
        }
    }

    fn ready(&mut self, now: u64) -> Action {
        self.phase = Phase::Serving { since: now };
        if std::mem::replace(&mut self.served, true) { Action::None } else { Action::ReportReady }
    }

    fn gone(&mut self, held: Held, now: u64) -> Action {
        let calm = match self.phase {
            Phase::Serving { since } => now.saturating_sub(since) >= ns(RESTART_CALM),
            _ => false,
        };
        self.deaths = if calm { 1 } else { self.deaths.saturating_add(1) };
        let unheard = self.is_stopping() && self.served && !self.goodbye && !self.killed;
        if unheard && self.successor == Successor::Allowed {
            self.successor = Successor::Started;
            // It died of something else, perhaps without having heard of the stop. Someone must still write
            // down how the containers end; the deadline stands.
            return self.start(now);
        }
        let give_up = held == Held::Nothing && self.deaths > RESTARTS_IN_A_ROW_MAX;
        if self.goodbye || self.is_stopping() || !self.served || give_up {
            self.phase = Phase::Ending { again: now.saturating_add(ns(KILL_AGAIN)) };
            return if self.served { Action::KillChildren } else { Action::ReportFailure };
        }
        self.phase = Phase::Pausing { until: now.saturating_add(ns(self.pause())) };
        Action::None
    }

    /// None before the first restart in a row, then doubled up to the longest.
    fn pause(&self) -> Duration {
        let Some(doublings) = self.deaths.checked_sub(2) else { return Duration::ZERO };
        let factor = 2u32.saturating_pow(doublings);
        RESTART_PAUSE_FIRST.saturating_mul(factor).min(self.timing.restart_pause_max)
    }

    fn set_deadline(&mut self, now: u64) {
        let deadline = now.saturating_add(ns(self.timing.stop_timeout));
        self.deadline.get_or_insert(deadline);
    }

    fn stop(&mut self, now: u64) -> Action {
        if self.is_stopping() {
            return Action::None;
        }
        self.set_deadline(now);
        match self.phase {
            Phase::Starting { .. } | Phase::Serving { .. } => Action::AskToEnd,
            Phase::Pausing { .. } => {
                self.successor = Successor::Started;
                self.start(now)
            }
            Phase::Ending { .. } | Phase::Ended => Action::None,
        }
    }

    fn start(&mut self, now: u64) -> Action {
        self.restarts = if self.deaths == 0 { 0 } else { self.restarts.saturating_add(1) };
        self.phase = Phase::Starting { since: now };
        self.killed = false;
        Action::StartMonitor
    }

    fn kill(&mut self) -> Action {
        if std::mem::replace(&mut self.killed, true) { Action::None } else { Action::KillMonitor }
    }

    fn tick(&mut self, now: u64) -> Action {
        if self.wake().is_none_or(|wake| now < wake) {
            return Action::None;
        }
        match self.phase {
            Phase::Pausing { .. } => self.start(now),
            Phase::Starting { .. } | Phase::Serving { .. } => self.kill(),
            Phase::Ending { .. } => {
                self.phase = Phase::Ending { again: now.saturating_add(ns(KILL_AGAIN)) };
                Action::KillChildren
            }
            Phase::Ended => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const TIMING: Timing =
        Timing { stop_timeout: Duration::from_secs(8), restart_pause_max: Duration::from_secs(5) };

    fn starting() -> Life {
        let mut life = Life::new(TIMING, 0);
        assert_eq!(life.step(Event::Tick, 0), Action::StartMonitor);
        life
    }

    fn serving() -> Life {
        let mut life = starting();
        assert_eq!(life.step(Event::Ready, 0), Action::ReportReady);
        life
    }

    fn pausing() -> Life {
        let mut life = serving();
        for _ in 0..3 {
            crash(&mut life, 0);
        }
        life.step(Event::MonitorGone(Held::Something), 0);
        assert!(matches!(life.phase(), Phase::Pausing { .. }));
        life
    }

    fn ending() -> Life {
        let mut life = serving();
        life.step(Event::Goodbye, 0);
        assert_eq!(life.step(Event::MonitorGone(Held::Nothing), 0), Action::KillChildren);
        life
    }

    /// The monitor dies and the next one serves; how long the pause was.
    fn crash(life: &mut Life, now: u64) -> u64 {
        assert_eq!(life.step(Event::MonitorGone(Held::Something), now), Action::None);
        let due = life.wake().unwrap();
        assert!(due == now || life.step(Event::Tick, due - 1) == Action::None, "not before its time");
        assert_eq!(life.step(Event::Tick, due), Action::StartMonitor);
        assert_eq!(life.step(Event::Ready, due), Action::None, "the launcher is told once");
        due - now
    }

    /// One row of the table: each event, what is to be done, and the phase after it.
    type Row = [(Event, Action, &'static str); 8];

    /// Every event, at a time when everything that has a time is due.
    fn check(life: Life, row: Row) {
        for (event, action, phase) in row {
            let mut life = life;
            let before = life.phase();
            assert_eq!(life.step(event, 100 * SECOND), action, "{event:?} while {before:?}");
            let after = format!("{:?}", life.phase());
            assert!(after.starts_with(phase), "{event:?} while {before:?}: {after}");
        }
    }

    #[test]
    fn every_event_while_starting() {
        let row = [
            (Event::Ready, Action::ReportReady, "Serving"),
            (Event::Goodbye, Action::None, "Starting"),
            (Event::MonitorGone(Held::Something), Action::ReportFailure, "Ending"),
            (Event::MonitorBroken, Action::KillMonitor, "Starting"),
            (Event::StopAsked, Action::AskToEnd, "Starting"),
            (Event::LauncherGone, Action::AskToEnd, "Starting"),
            (Event::Tick, Action::KillMonitor, "Starting"),
            (Event::NoChildLeft, Action::None, "Starting"),
        ];
        check(starting(), row);
    }

    #[test]
    fn every_event_while_serving() {
        let row = [
            (Event::Ready, Action::None, "Serving"),
            (Event::Goodbye, Action::None, "Serving"),
            (Event::MonitorGone(Held::Something), Action::None, "Pausing"),
            (Event::MonitorBroken, Action::KillMonitor, "Serving"),
            (Event::StopAsked, Action::AskToEnd, "Serving"),
            (Event::LauncherGone, Action::None, "Serving"),
            (Event::Tick, Action::None, "Serving"),
            (Event::NoChildLeft, Action::None, "Serving"),
        ];
        check(serving(), row);
    }

    #[test]
    fn every_event_while_pausing() {
        let row = [
            (Event::Ready, Action::None, "Pausing"),
            (Event::Goodbye, Action::None, "Pausing"),
            (Event::MonitorGone(Held::Something), Action::None, "Pausing"),
            (Event::MonitorBroken, Action::None, "Pausing"),
            (Event::StopAsked, Action::StartMonitor, "Starting"),
            (Event::LauncherGone, Action::None, "Pausing"),
            (Event::Tick, Action::StartMonitor, "Starting"),
            (Event::NoChildLeft, Action::None, "Pausing"),
        ];
        check(pausing(), row);
    }

    #[test]
    fn every_event_while_ending() {
        let row = [
            (Event::Ready, Action::None, "Ending"),
            (Event::Goodbye, Action::None, "Ending"),
            (Event::MonitorGone(Held::Something), Action::None, "Ending"),
            (Event::MonitorBroken, Action::None, "Ending"),
            (Event::StopAsked, Action::None, "Ending"),
            (Event::LauncherGone, Action::None, "Ending"),
            (Event::Tick, Action::KillChildren, "Ending"),
            (Event::NoChildLeft, Action::None, "Ended"),
        ];
        check(ending(), row);
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_pauses_grow_to_the_longest() {
        let mut life = serving();
        let pauses: Vec<u64> = (0..9).map(|_| crash(&mut life, 0) / 1_000_000).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(life.restarts(), 9);
    }

    #[test]
    fn a_calm_time_makes_the_next_restart_immediate_again() {
        let mut life = serving();
        crash(&mut life, 0);
        crash(&mut life, 0);
        assert_eq!(crash(&mut life, 60 * SECOND), 0);
    }

    #[test]
    fn it_gives_up_only_when_it_holds_nothing() {
        let mut life = serving();
        for _ in 0..100 {
            crash(&mut life, 0);
        }
        assert_eq!(life.step(Event::MonitorGone(Held::Nothing), 0), Action::KillChildren);
        assert_eq!(life.verdict(), Verdict::Forced);
    }

    #[test]
    fn a_monitor_that_never_serves_is_killed_and_replaced() {
        let mut life = serving();
        life.step(Event::MonitorGone(Held::Something), 0);
        assert_eq!(life.step(Event::Tick, 0), Action::StartMonitor);
        assert_eq!(life.step(Event::Tick, 30 * SECOND), Action::KillMonitor);
        assert_eq!(life.step(Event::Tick, 31 * SECOND), Action::None, "once is enough");
        assert_eq!(life.wake(), None);
        life.step(Event::MonitorGone(Held::Something), 31 * SECOND);
        assert!(matches!(life.phase(), Phase::Pausing { .. }));
    }

    #[test]
    fn a_stop_that_is_not_heeded_ends_in_a_kill() {
        let mut life = serving();
        assert_eq!(life.step(Event::StopAsked, SECOND), Action::AskToEnd);
        assert_eq!(life.step(Event::StopAsked, 2 * SECOND), Action::None, "the first deadline stands");
        assert_eq!(life.wake(), Some(9 * SECOND));
        assert_eq!(life.step(Event::Tick, 9 * SECOND), Action::KillMonitor);
        assert_eq!(life.step(Event::MonitorGone(Held::Something), 9 * SECOND), Action::KillChildren);
        assert_eq!(life.step(Event::NoChildLeft, 9 * SECOND), Action::None);
        assert_eq!((life.phase(), life.verdict()), (Phase::Ended, Verdict::Forced));
    }

    #[test]
    fn a_monitor_that_dies_during_a_stop_has_one_successor() {
        let mut life = serving();
        assert_eq!(life.step(Event::StopAsked, 0), Action::AskToEnd);
        assert_eq!(life.step(Event::MonitorGone(Held::Something), 0), Action::StartMonitor);
        assert_eq!(life.wake(), Some(8 * SECOND), "within the same deadline");
        assert_eq!(life.step(Event::MonitorGone(Held::Something), 0), Action::KillChildren);
    }

    #[test]
    fn a_goodbye_without_an_end_ends_in_a_kill() {
        let mut life = serving();
        life.step(Event::Goodbye, 0);
        assert_eq!(life.step(Event::Tick, 8 * SECOND), Action::KillMonitor);
        assert_eq!(life.step(Event::MonitorGone(Held::Nothing), 8 * SECOND), Action::KillChildren);
        assert_eq!(life.verdict(), Verdict::Orderly);
    }

    #[test]
    fn a_stop_between_two_monitors_starts_one_to_write_down_the_end() {
        let mut life = pausing();
        assert_eq!(life.step(Event::StopAsked, 0), Action::StartMonitor);
        assert!(life.is_stopping());
        assert_eq!(life.step(Event::MonitorGone(Held::Something), 0), Action::KillChildren);
    }
}
