//! Time.

use super::{arch::call, numbers as nr};

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// `struct timespec` of the 64-bit architectures.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

impl Timespec {
    /// A duration.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self { seconds: (ns / SECOND_NS) as i64, nanoseconds: (ns % SECOND_NS) as i64 }
    }
}

/// Nanoseconds since the machine started, not counting suspension.
#[must_use]
pub fn now_ns() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut now = Timespec::from_ns(0);
    // SAFETY: `now` lives on this stack frame and has the kernel's layout. The clock always exists.
    let _ = unsafe { call(nr::CLOCK_GETTIME, [CLOCK_MONOTONIC, &raw mut now as usize, 0, 0, 0]) };
    now.seconds as u64 * SECOND_NS + now.nanoseconds as u64
}
