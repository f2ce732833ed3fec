//! How much of a container's output is logged, and what happens to the rest:
//! token buckets for bytes and lines. Pure: the time comes from outside.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits::{LOG_BUFFER_BYTES, LOG_BUFFER_BYTES_MAX, LOG_RATE_STEP};

/// How much may come. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes in a second.
    pub bytes_per_second: u64,
    /// Bytes at once after a pause; 0: those of a second.
    pub bytes_burst: u64,
    /// Lines in a second.
    pub lines_per_second: u64,
    /// Lines at once after a pause; 0: those of a second.
    pub lines_burst: u64,
}

impl Rate {
    /// There is no limit.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.bytes_per_second == 0 && self.lines_per_second == 0
    }
}

/// What happens when output comes faster than it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenFast {
    /// It is read as fast as it may come; the container waits.
    #[default]
    Block,
    /// What is too much is dropped, with a gap record.
    Drop,
}

/// What happens when a log cannot be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenStuck {
    /// Output is not read; the container waits.
    #[default]
    Block,
    /// Output is kept in memory, the newest of it.
    DropOldest,
    /// Output is kept in memory, the oldest of it.
    DropNewest,
}

/// All limits of one container's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Of each stream, by [`Channel::index`](super::batch::Channel::index).
    pub rates: [Rate; 2],
    /// Faster than that.
    pub when_fast: WhenFast,
    /// The log cannot be written.
    pub when_stuck: WhenStuck,
    /// Bytes kept meanwhile; 0: [`LOG_BUFFER_BYTES`].
    pub buffer_bytes: u64,
}

impl LogLimits {
    /// Bytes that are kept for a log that cannot be written.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        match usize::try_from(self.buffer_bytes) {
            Ok(0) => LOG_BUFFER_BYTES,
            Ok(bytes) => bytes.min(LOG_BUFFER_BYTES_MAX),
            Err(_) => LOG_BUFFER_BYTES_MAX,
        }
    }
}

/// A token bucket. It may go into debt, which is paid before anything else may
/// come.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    per_second: u64,
    burst: i64,
    level: i64,
    /// The time up to which tokens have been counted.
    counted: Instant,
}

const NANOS: u128 = 1_000_000_000;

impl Bucket {
    fn new(per_second: u64, burst: u64, now: Instant) -> Option<Self> {
        let burst = if burst == 0 { per_second } else { burst };
        // A second of the greatest rate there can be, and no overflow.
        let burst = i64::try_from(burst.min(1 << 60)).unwrap_or(i64::MAX);
        let per_second = per_second.min(1 << 60);
        (per_second > 0).then_some(Self { per_second, burst, level: burst, counted: now })
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).as_nanos();
        let tokens = passed.saturating_mul(u128::from(self.per_second)) / NANOS;
        // Only the time of whole tokens is used up.
        let used = tokens * NANOS / u128::from(self.per_second);
        let used = u64::try_from(used).unwrap_or(u64::MAX);
        self.counted = self.counted.checked_add(Duration::from_nanos(used)).unwrap_or(now);
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(tokens).min(self.burst);
    }

    fn available(&self) -> u64 {
        u64::try_from(self.level).unwrap_or(0)
    }

    fn spend(&mut self, count: u64) {
        self.level = self.level.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// When there will be `wanted` tokens, or a full bucket.
    fn when(&self, wanted: u64) -> Instant {
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX).min(self.burst);
        let missing = u128::try_from(wanted.saturating_sub(self.level)).unwrap_or(0);
        let nanos = (missing * NANOS).div_ceil(u128::from(self.per_second));
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Who waits for longer than that asks again.
        let wait = wait.min(Duration::from_secs(3600));
        self.counted.checked_add(wait).unwrap_or(self.counted)
    }

    /// What comes in [`LOG_RATE_STEP`]: who waits, waits for that much.
    fn step(&self) -> u64 {
        let step = u128::from(self.per_second) * LOG_RATE_STEP.as_nanos() / NANOS;
        u64::try_from(step).unwrap_or(u64::MAX).max(1)
    }
}

/// The state of one [`Rate`].
#[derive(Debug, Clone, Copy)]
pub struct Limiter {
    bytes: Option<Bucket>,
    lines: Option<Bucket>,
}

impl Limiter {
    /// `None` if there is no limit. A whole burst may come at once.
    #[must_use]
    pub fn new(rate: &Rate, now: Instant) -> Option<Self> {
        let bytes = Bucket::new(rate.bytes_per_second, rate.bytes_burst, now);
        let lines = Bucket::new(rate.lines_per_second, rate.lines_burst, now);
        (!rate.is_none()).then_some(Self { bytes, lines })
    }

    /// Counts the time up to `now`.
    pub fn refill(&mut self, now: Instant) {
        self.buckets().for_each(|bucket| bucket.refill(now));
    }

    fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.bytes.iter_mut().chain(self.lines.iter_mut())
    }

    /// How many bytes and lines may come now.
    #[must_use]
    pub fn available(&self) -> (u64, u64) {
        let of = |bucket: Option<Bucket>| bucket.map_or(u64::MAX, |bucket| bucket.available());
        (of(self.bytes), of(self.lines))
    }

    /// So much has come.
    pub fn spend(&mut self, bytes: u64, lines: u64) {
        self.bytes.iter_mut().for_each(|bucket| bucket.spend(bytes));
        self.lines.iter_mut().for_each(|bucket| bucket.spend(lines));
    }

    /// When a step's worth may come, so that who waits is not woken for each byte.
    #[must_use]
    pub fn ready_at(&self) -> Instant {
        self.when(Bucket::step)
    }

    /// When everything may come again that may come at once.
    #[must_use]
    pub fn full_at(&self) -> Instant {
        self.when(|bucket| u64::try_from(bucket.burst).unwrap_or(0))
    }

    fn when(&self, wanted: impl Fn(&Bucket) -> u64) -> Instant {
        let buckets = self.bytes.iter().chain(self.lines.iter());
        let times = buckets.map(|bucket| bucket.when(wanted(bucket)));
        // At least one of them is there, or there would be no limiter.
        times.max().unwrap_or_else(Instant::now)
    }

    /// The longest head of `bytes`, in whole lines, that may come now. All of a line
    /// that is longer than what may ever come at once has to go.
    #[must_use]
    pub fn fits(&self, bytes: &[u8]) -> usize {
        let (bytes_left, lines_left) = self.available();
        let most = usize::try_from(bytes_left).unwrap_or(usize::MAX).min(bytes.len());
        let head = bytes.get(..most).unwrap_or_default();
        if self.lines.is_some() {
            let count = usize::try_from(lines_left).unwrap_or(usize::MAX);
            let mut ends = memchr::memchr_iter(b'\n', head);
            if count == 0 {
                return 0;
            }
            if let Some(at) = ends.nth(count - 1) {
                return at + 1;
            }
        }
        if most == bytes.len() { most } else { memchr::memrchr(b'\n', head).map_or(0, |at| at + 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limiter(bytes: u64, lines: u64, now: Instant) -> Limiter {
        let rate = Rate { bytes_per_second: bytes, lines_per_second: lines, ..Rate::default() };
        Limiter::new(&rate, now).unwrap()
    }

    #[test]
    fn burst_comes_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut limiter = limiter(1000, 0, start);
        assert_eq!(limiter.available(), (1000, u64::MAX));
        limiter.spend(1500, 9);
        assert_eq!(limiter.available().0, 0);
        assert_eq!(limiter.full_at(), start + Duration::from_millis(1500));
        let ready = limiter.ready_at();
        assert_eq!(ready, start + Duration::from_millis(500) + LOG_RATE_STEP);
        limiter.refill(ready);
        assert_eq!(u128::from(limiter.available().0), LOG_RATE_STEP.as_millis());
        limiter.refill(start + Duration::from_secs(100));
        assert_eq!(limiter.available().0, 1000, "never more than a burst");
    }

    #[test]
    fn whole_lines_fit() {
        let limiter = limiter(10, 2, Instant::now());
        assert_eq!(limiter.fits(b"a\nb\nc\n"), 4, "two lines");
        assert_eq!(limiter.fits(b"abcdef\nghijkl\n"), 7, "ten bytes");
        assert_eq!(limiter.fits(b"abc"), 3);
        assert_eq!(limiter.fits(b"0123456789abc"), 0);
    }

    #[test]
    fn no_rate_is_no_limiter() {
        assert!(Limiter::new(&Rate::default(), Instant::now()).is_none());
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_comes_than_burst_and_rate_allow(
            rate in 1..1_000_000_u64, burst in 1..1_000_000_u64,
            steps in prop::collection::vec((0..3_000_000_000_u64, 0..2_000_000_u64), 1..50),
        ) {
            let start = Instant::now();
            let rate = Rate { bytes_per_second: rate, bytes_burst: burst, ..Rate::default() };
            let mut limiter = Limiter::new(&rate, start).unwrap();
            let (mut passed, mut sum) = (0_u64, 0_u64);
            for (nanos, wanted) in steps {
                passed += nanos;
                limiter.refill(start + Duration::from_nanos(passed));
                let got = wanted.min(limiter.available().0);
                limiter.spend(got, 0);
                sum += got;
                let may = u128::from(burst) + u128::from(passed) * u128::from(rate.bytes_per_second) / NANOS;
                prop_assert!(u128::from(sum) <= may);
                let mut later = limiter;
                later.refill(limiter.ready_at());
                prop_assert!(later.available().0 > 0, "whoever waits until then gets something");
            }
        }
    }
}
