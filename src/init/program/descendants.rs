//! The end of what a subreaper has adopted.
//!
//! Not being PID 1, it cannot address "all of them": it asks `/proc` for its
//! children, and ends those; what they leave behind becomes its child, and is
//! next. Each is told once. Without `/proc` it only waits.

use crate::sys::raw::process::{self, Change};
use crate::sys::raw::signal::{self, Received, Set};
use crate::sys::raw::time::{Timespec, now_ns};
use crate::sys::raw::{Errno, stdio};

use super::teardown::Outcome;

/// How long the killed may take to vanish.
const KILLED_WAIT_NS: u64 = 1_000_000_000;
/// How many children are remembered as told; more are told again.
const TOLD_MAX: usize = 256;

/// Children that were told to end.
struct Told {
    pids: [i32; TOLD_MAX],
    next: usize,
}

/// Ends all descendants; `hurry` says of a signal whether it ends the grace time.
pub(crate) fn end(grace_ns: u64, hurry: fn(&Received) -> bool, outcome: &mut Outcome) {
    let deadline = now_ns().saturating_add(grace_ns);
    let mut told = Told { pids: [0; TOLD_MAX], next: 0 };
    while grace_ns > 0 && collect(outcome) {
        tell(|pid| {
            if told.add(pid) {
                let _ = signal::send(pid, signal::TERM);
                let _ = signal::send(pid, signal::CONT);
            }
        });
        let now = now_ns();
        if now >= deadline {
            break;
        }
        if let Ok(received) = signal::wait(Set::ALL, Some(Timespec::from_ns(deadline - now)))
            && hurry(&received)
        {
            break;
        }
    }
    let deadline = now_ns() + KILLED_WAIT_NS;
    while collect(outcome) && now_ns() < deadline {
        outcome.forced = true;
        tell(|pid| {
            let _ = signal::send(pid, signal::KILL);
        });
        let _ = signal::wait(Set::EMPTY.with(signal::CHLD), Some(Timespec::from_ns(KILLED_WAIT_NS / 100)));
    }
}

impl Told {
    /// Remembers `pid`; says whether it is new.
    fn add(&mut self, pid: i32) -> bool {
        if self.pids.contains(&pid) {
            return false;
        }
        if let Some(place) = self.pids.get_mut(self.next) {
            *place = pid;
        }
        self.next = (self.next + 1) & (TOLD_MAX - 1);
        true
    }
}

/// Collects children that have ended; says whether there are others.
fn collect(outcome: &mut Outcome) -> bool {
    loop {
        match process::reap() {
            Ok(Some(changed)) => match changed.change {
                Change::Ended(process::Ended::Signal(9)) if outcome.forced => outcome.killed += 1,
                Change::Ended(_) => outcome.ended += 1,
                Change::Stopped(_) => {}
            },
            Ok(None) => return true,
            Err(error) => return error != Errno::CHILD,
        }
    }
}

/// Calls `act` with the pid of every child, as far as the list is read at once.
fn tell(mut act: impl FnMut(i32)) {
    let mut buffer = [0u8; 4096];
    // All of a single-threaded process' children are its one thread's.
    let Ok(list) = stdio::read_file(b"/proc/thread-self/children\0", &mut buffer) else { return };
    for pid in list.split(|byte| *byte == b' ') {
        let digits = pid.iter().filter(|byte| byte.is_ascii_digit());
        let pid = digits.fold(0i32, |sum, digit| sum.wrapping_mul(10).wrapping_add(i32::from(*digit - b'0')));
        if pid > 1 {
            act(pid);
        }
    }
}
