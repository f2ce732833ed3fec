//! How long verdicts took, by whom, of which call.
//!
//! Everybody who was asked has a row of their own, also who passed on: from when it was
//! asked until its verdict was there. How long calls took as a whole is counted apart
//! ([`Stats::calls`]), because the one who decides need not be the one who was slow.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::syscall::name_or_number;
use super::verdict::VerdictKind;
use crate::limits::{SECCOMP_COUNTED_CALLS_MAX, SECCOMP_FAILURE_LOG_PERIOD};

/// Classes of a [`Histogram`]: the last one is everything from 2^22 µs (4 s) on.
pub const CLASSES: usize = 24;

/// Counts of durations: class `n` is those below 2^n µs that no class before it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// The counts.
    pub counts: [u64; CLASSES],
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = usize::try_from(u64::BITS - micros.leading_zeros()).unwrap_or(CLASSES);
        if let Some(count) = self.counts.get_mut(class.min(CLASSES - 1)) {
            *count += 1;
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// A duration in µs that `percent` of those counted are below: exact to a
    /// factor of two. 0 if none were counted.
    #[must_use]
    pub fn below(&self, percent: u64) -> u64 {
        let wanted = (self.total() * percent).div_ceil(100);
        let mut seen = 0;
        for (class, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return 1 << class;
            }
        }
        0
    }
}

/// What is counted of one that decides, by name: it outlives a registration.
#[derive(Debug, Default)]
pub struct Counters {
    calls: RefCell<HashMap<(u32, i32, VerdictKind), Histogram>>,
    /// Deadlines missed.
    pub time_outs: Cell<u64>,
    /// Failures of every other kind.
    pub failures: Cell<u64>,
    /// Calls that were not brought before it because it had failed too often.
    pub suspended: Cell<u64>,
    /// Calls whose target was interrupted or ended before its verdict was carried out.
    pub interrupted: Cell<u64>,
    /// When the log was last told of a failure, by container.
    told: RefCell<HashMap<Rc<str>, Instant>>,
}

impl Counters {
    /// Whether the log shall have a line about a failure at a call of `container`: one
    /// for each call would push out what it says of everybody else.
    pub(super) fn is_to_be_told(&self, container: &Rc<str>, now: Instant) -> bool {
        let is_recent = |then: &Instant| now.duration_since(*then) < SECCOMP_FAILURE_LOG_PERIOD;
        let mut told = self.told.borrow_mut();
        if told.get(container).is_some_and(is_recent) {
            return false;
        }
        told.retain(|_, then| is_recent(then));
        told.insert(Rc::clone(container), now);
        true
    }

    /// Counts a verdict on call `syscall` of `arch`.
    pub(super) fn said(&self, arch: u32, syscall: i32, verdict: VerdictKind, took: Duration) {
        let mut calls = self.calls.borrow_mut();
        let key = (arch, syscall, verdict);
        if let Some(known) = calls.get_mut(&key) {
            return known.add(took);
        }
        // Numbers can be made up by a program; those beyond the limit are counted as one.
        let is_full = calls.len() >= SECCOMP_COUNTED_CALLS_MAX;
        calls.entry(if is_full { (0, -1, verdict) } else { key }).or_default().add(took);
    }

    /// The counts, by call and verdict.
    pub(super) fn entries(&self, plugin: &str) -> Vec<Entry> {
        let calls = self.calls.borrow();
        let entries = calls.iter().map(|((arch, syscall, verdict), histogram)| Entry {
            plugin: plugin.to_owned(),
            syscall: match syscall {
                -1 => "others".to_owned(),
                syscall => name_or_number(*arch, *syscall),
            },
            arch: *arch,
            verdict: *verdict,
            histogram: *histogram,
        });
        let mut entries = entries.collect::<Vec<_>>();
        entries.sort_by(|one, other| (&one.syscall, one.verdict).cmp(&(&other.syscall, other.verdict)));
        entries
    }
}

/// Adds one.
pub(super) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// The verdicts of one kind, on one call, by one that decides, or by whomever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name it registered with; `default` where nobody decided; empty in [`Stats::calls`].
    pub plugin: String,
    /// The call's name, or its number; `others` for those beyond the limit.
    pub syscall: String,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// What was decided, whether or not it could be carried out. Of a failure it is what
    /// the failure led to.
    pub verdict: VerdictKind,
    /// How long it took: in [`Stats::entries`] from when it was asked, in [`Stats::calls`]
    /// from when the call was received, until it was answered.
    pub histogram: Histogram,
}

/// One that decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginStats {
    /// Its name.
    pub name: String,
    /// How many times it is registered now.
    pub registrations: usize,
    /// As in [`Counters`].
    pub time_outs: u64,
    /// As there.
    pub failures: u64,
    /// As there.
    pub suspended: u64,
    /// As there.
    pub interrupted: u64,
}

/// Everything that is counted, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls received.
    pub received: u64,
    /// Calls answered; the rest is open, or was interrupted.
    pub answered: u64,
    /// Calls whose target was interrupted or ended before the answer.
    pub interrupted: u64,
    /// Notifications that were gone before they were received.
    pub gone: u64,
    /// Calls that wait now.
    pub open: usize,
    /// Listeners now.
    pub sessions: usize,
    /// Those that decide, by name.
    pub plugins: Vec<PluginStats>,
    /// Their verdicts, those that passed on among them.
    pub entries: Vec<Entry>,
    /// The calls that were answered, whoever decided: as many as [`Self::answered`].
    pub calls: Vec<Entry>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two() {
        let mut histogram = Histogram::default();
        for (micros, class) in
            [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1023, 10), (1024, 11), (u64::MAX, 23)]
        {
            let before = histogram.counts[class];
            histogram.add(Duration::from_micros(micros));
            assert_eq!(histogram.counts[class], before + 1, "{micros}");
        }
        assert_eq!(histogram.total(), 8);
        assert_eq!(histogram.below(50), 4);
        assert_eq!(Histogram::default().below(99), 0);
    }

    #[test]
    fn the_log_is_told_of_failures_at_times_for_each_container() {
        let (counters, began) = (Counters::default(), Instant::now());
        let (one, another) = (Rc::from("one"), Rc::from("another"));
        let told = |container, after| counters.is_to_be_told(container, began + after);
        assert!(told(&one, Duration::ZERO));
        assert!(!told(&one, SECCOMP_FAILURE_LOG_PERIOD / 2));
        assert!(told(&another, SECCOMP_FAILURE_LOG_PERIOD / 2));
        assert!(told(&one, SECCOMP_FAILURE_LOG_PERIOD));
        // What is long ago takes no memory.
        assert!(told(&one, 3 * SECCOMP_FAILURE_LOG_PERIOD));
        assert_eq!(counters.told.borrow().len(), 1);
    }

    #[test]
    fn made_up_numbers_cost_a_bounded_memory() {
        let counters = Counters::default();
        for syscall in 0..10_000 {
            counters.said(1, syscall, VerdictKind::Errno, Duration::ZERO);
        }
        let entries = counters.entries("p");
        assert_eq!(entries.len(), SECCOMP_COUNTED_CALLS_MAX + 1);
        assert_eq!(entries.iter().map(|entry| entry.histogram.total()).sum::<u64>(), 10_000);
    }
}
