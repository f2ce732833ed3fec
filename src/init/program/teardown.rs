//! The orderly end of a pid namespace, by its PID 1.
//!
//! ```text
//! TERM, CONT to all ──> wait ──nobody left──────────────> done
//!                        │  grace over, or hurried           ^
//!                        └──────> KILL to all ──> wait ──────┘  (then the kernel kills what is left)
//! ```
//!
//! TERM goes first, so that a stopped process finds it when CONT wakes it up.
//! Processes whose parent is outside of the namespace (a container's first
//! process, an exec) die without a signal to us, so the wait also looks every
//! few milliseconds. After KILL the end of PID 1 itself is what makes the
//! namespace empty for sure: the kernel then forbids new processes in it.

use crate::sys::raw::Errno;
use crate::sys::raw::process::{self, Change, Ended};
use crate::sys::raw::signal::{self, Disposition, Received, Set};
use crate::sys::raw::time::{Timespec, now_ns};

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;
/// Longest sleep between two looks: what the end of a pod may be late by.
const LOOK_EVERY_MAX_NS: u64 = 16 * MS;
/// How long the killed may take to vanish before the rest is left to the kernel.
const KILLED_WAIT_NS: u64 = 1000 * MS;

/// What the end looked like.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Processes that ended as asked, of those that fell to PID 1.
    pub(crate) ended: u64,
    /// Processes that had to be killed, of those that fell to PID 1.
    pub(crate) killed: u64,
    /// Whether anything was still alive when the grace time was over.
    pub(crate) forced: bool,
}

/// Ends every process of the namespace. `hurry` says of a signal whether it
/// ends the grace time.
pub(crate) fn run(grace_ns: u64, hurry: fn(&Received) -> bool, outcome: &mut Outcome) {
    // From here on the end of each child is news, and its status is wanted.
    let _ = signal::set_disposition(signal::CHLD, Disposition::Default);
    if grace_ns > 0 {
        let _ = signal::send(-1, signal::TERM);
        let _ = signal::send(-1, signal::CONT);
        wait(now_ns().saturating_add(grace_ns), outcome, hurry);
    }
    if !empty() {
        outcome.forced = true;
        let _ = signal::send(-1, signal::KILL);
        wait(now_ns() + KILLED_WAIT_NS, outcome, |_| false);
    }
}

/// Whether PID 1 is alone. A zombie whose parent has not collected it counts as company.
fn empty() -> bool {
    signal::send(-1, 0) == Err(Errno::SRCH)
}

/// Waits until PID 1 is alone, `deadline` has passed or somebody is in a hurry.
fn wait(deadline: u64, outcome: &mut Outcome, hurry: fn(&Received) -> bool) {
    let mut look_every = MS / 4;
    loop {
        collect(outcome);
        if empty() {
            return;
        }
        let now = now_ns();
        if now >= deadline {
            return;
        }
        if outcome.forced {
            // Again: whoever was being forked when the first one went out.
            let _ = signal::send(-1, signal::KILL);
        }
        let sleep = look_every.min(deadline - now);
        match signal::wait(Set::ALL, Some(Timespec::from_ns(sleep))) {
            Ok(received) if received.signal == signal::CHLD => {}
            Ok(received) if hurry(&received) => return,
            _ => look_every = (look_every * 2).min(LOOK_EVERY_MAX_NS),
        }
    }
}

/// Collects every child that has ended.
fn collect(outcome: &mut Outcome) {
    while let Ok(Some(changed)) = process::reap() {
        match changed.change {
            Change::Ended(Ended::Signal(9)) if outcome.forced => outcome.killed += 1,
            Change::Ended(_) => outcome.ended += 1,
            Change::Stopped(_) => {}
        }
    }
}
