//! How fast a stream's output may come: pauses it, or drops what is too much.
//! Pure: the time comes from outside.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::limits::RELAY_READ_BYTES;
use crate::monitor::log::Amount;
use crate::monitor::log::batch::Channel;
use crate::monitor::log::gap::Gap;
use crate::monitor::log::limit::{Limiter, LogLimits, Rate, WhenFast};
use crate::monitor::log::ring::Skip;
use crate::monitor::log::stamp::Stamp;

/// Why output is missing.
const TOO_FAST: &str = "it came faster than the rate limit of the log allows";

/// A line is taken to have so many bytes before it has been read. Shorter ones
/// put the limit for lines into debt, which is paid by a longer pause.
const LINE_BYTES: u64 = 64;

/// The least that is read at a time where lines are limited.
const READ_BYTES_MIN: u64 = 1 << 10;

/// What was read from a channel at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) channel: Channel,
    pub(super) bytes: &'a [u8],
    /// When, for the log.
    pub(super) stamp: &'a Stamp,
    /// When, for the limits.
    pub(super) at: Instant,
}

/// The limit of all containers of the pod together.
#[derive(Debug, Default)]
pub(super) struct PodPace {
    limiter: Option<Limiter>,
    /// Containers that share it.
    pub(super) sharers: u64,
}

impl PodPace {
    pub(super) fn set(&mut self, rate: &Rate, now: Instant) {
        self.limiter = Limiter::new(rate, now);
    }
}

/// Output that is being dropped.
#[derive(Debug, Clone, Copy)]
struct Dropping {
    amount: Amount,
    /// When it began.
    stamp: Stamp,
    /// It goes on until then, so that there is one gap record for each burst and
    /// not one for each line.
    until: Instant,
}

#[derive(Debug, Default)]
struct ChannelPace {
    limiter: Option<Limiter>,
    paused: Option<Pause>,
    paused_for: Duration,
    dropping: Option<Dropping>,
    skip: Skip,
    dropped: Amount,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    since: Instant,
    until: Instant,
}

/// See the module's text. There is none for a stream without limits.
#[derive(Debug, Default)]
pub(super) struct Pace {
    channels: [ChannelPace; 2],
}

impl Pace {
    /// The pace under new limits; what was counted goes on.
    pub(super) fn renew(old: Option<Box<Self>>, limits: &LogLimits, now: Instant) -> Option<Box<Self>> {
        let unlimited = limits.rates.iter().all(Rate::is_none);
        if unlimited && old.is_none() {
            return None;
        }
        let mut pace = old.unwrap_or_default();
        for (channel, rate) in pace.channels.iter_mut().zip(&limits.rates) {
            channel.limiter = Limiter::new(rate, now);
            channel.end_pause(now);
            if let Some(dropping) = &mut channel.dropping {
                dropping.until = now;
            }
        }
        Some(pace)
    }

    /// The pace of a stream, made if the pod has a limit.
    pub(super) fn for_pod<'a>(pace: &'a mut Option<Box<Self>>, pod: &PodPace) -> Option<&'a mut Self> {
        if pod.limiter.is_some() {
            pace.get_or_insert_default();
        }
        pace.as_deref_mut()
    }

    pub(super) fn paused_until(&self, channel: Channel) -> Option<Instant> {
        self.channels[channel.index()].paused.map(|pause| pause.until)
    }

    pub(super) fn end_pauses(&mut self, over_at: Option<Instant>) {
        let over = |pause: Pause| over_at.is_none_or(|at| pause.until <= at);
        let now = over_at.unwrap_or_else(Instant::now);
        let channels = self.channels.iter_mut();
        channels
            .filter(|channel| channel.paused.is_some_and(over))
            .for_each(|channel| channel.end_pause(now));
    }

    /// How long `channel` was not read.
    pub(super) fn paused_for(&self, channel: Channel, now: Instant) -> Duration {
        let channel = &self.channels[channel.index()];
        let paused = channel.paused.map(|pause| now.min(pause.until).saturating_duration_since(pause.since));
        channel.paused_for + paused.unwrap_or_default()
    }

    /// What of `channel` was dropped.
    pub(super) fn dropped(&self, channel: Channel) -> Amount {
        self.channels[channel.index()].dropped
    }

    /// How much of `channel` may be read; 0: nothing before [`Self::paused_until`].
    pub(super) fn allowance(
        &mut self,
        channel: Channel,
        now: Instant,
        limits: &LogLimits,
        pod: &mut PodPace,
    ) -> usize {
        let channel = &mut self.channels[channel.index()];
        if channel.paused.is_some_and(|pause| pause.until > now) {
            return 0;
        }
        channel.end_pause(now);
        if limits.when_fast == WhenFast::Drop {
            return RELAY_READ_BYTES;
        }
        let mut most = RELAY_READ_BYTES as u64;
        let mut ready_at = now;
        let own = channel.limiter.as_mut().map(|limiter| (limiter, 1));
        let shared = pod.limiter.as_mut().map(|limiter| (limiter, pod.sharers.max(1)));
        for (limiter, sharers) in own.into_iter().chain(shared) {
            limiter.refill(now);
            let (bytes, lines) = limiter.available();
            if bytes == 0 || lines == 0 {
                ready_at = ready_at.max(limiter.ready_at());
                most = 0;
            }
            let by_lines = lines.saturating_mul(LINE_BYTES).max(READ_BYTES_MIN);
            most = most.min((bytes / sharers).max(1)).min((by_lines / sharers).max(1));
        }
        if most == 0 {
            channel.paused = Some(Pause { since: now, until: ready_at });
        }
        usize::try_from(most).unwrap_or(RELAY_READ_BYTES)
    }

    /// Which part of what was read from `channel` is to be logged, and what is
    /// missing before it.
    pub(super) fn admit(
        &mut self,
        output: &Output<'_>,
        limits: &LogLimits,
        pod: &mut PodPace,
    ) -> (Range<usize>, Option<Gap>) {
        let Output { channel, bytes, at: now, .. } = *output;
        let state = &mut self.channels[channel.index()];
        state.limiter.iter_mut().chain(&mut pod.limiter).for_each(|limiter| limiter.refill(now));
        let limiters: Vec<Limiter> = state.limiter.into_iter().chain(pod.limiter).collect();
        let (range, gap) = match limits.when_fast {
            WhenFast::Drop if !limiters.is_empty() => state.sift(output, &limiters),
            _ => (0..bytes.len(), None),
        };
        let kept = bytes.get(range.clone()).unwrap_or_default();
        let lines = memchr::memchr_iter(b'\n', kept).count() as u64;
        let limiters = state.limiter.iter_mut().chain(&mut pod.limiter);
        limiters.for_each(|limiter| limiter.spend(kept.len() as u64, lines));
        (range, gap)
    }

    /// A gap that can be told because nothing is dropped any more.
    pub(super) fn gap_due(&mut self, now: Instant) -> Option<(Gap, Stamp)> {
        let due = |channel: &Channel| self.channels[channel.index()].gap_due_at().is_some_and(|at| at <= now);
        let channel = Channel::ALL.into_iter().find(due)?;
        self.gap(channel)
    }

    /// When there is one.
    pub(super) fn gap_due_at(&self) -> Option<Instant> {
        self.channels.iter().filter_map(ChannelPace::gap_due_at).min()
    }

    /// What of `channel` is missing by now.
    pub(super) fn gap(&mut self, channel: Channel) -> Option<(Gap, Stamp)> {
        self.channels[channel.index()].take_gap(channel)
    }
}

impl ChannelPace {
    /// What of `bytes` is kept, and what was dropped before it; the rest is dropped.
    fn sift(&mut self, output: &Output<'_>, limiters: &[Limiter]) -> (Range<usize>, Option<Gap>) {
        let Output { channel, bytes, stamp, at: now } = *output;
        if self.dropping.is_some_and(|dropping| now < dropping.until) {
            self.skip.after(bytes);
            self.drop(bytes, stamp, now);
            return (0..0, None);
        }
        let head = self.skip.head(bytes);
        let (rest_of_line, rest) = bytes.split_at(head);
        let mut fits = limiters.iter().map(|limiter| limiter.fits(rest)).min().unwrap_or(rest.len());
        if fits == 0 && self.dropping.is_some() {
            // As much may come as ever can at once: a line that is longer still comes, on credit.
            fits = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        }
        self.drop(rest_of_line, stamp, now);
        let gap = if fits > 0 { self.take_gap(channel).map(|(gap, _)| gap) } else { None };
        let lost = rest.get(fits..).unwrap_or_default();
        if !lost.is_empty() {
            let until = limiters.iter().map(Limiter::full_at).max().unwrap_or(now);
            self.skip.after(lost);
            self.drop(lost, stamp, until);
        }
        (head..head + fits, gap)
    }

    fn end_pause(&mut self, now: Instant) {
        if let Some(pause) = self.paused.take() {
            self.paused_for += now.saturating_duration_since(pause.since);
        }
    }

    /// Drops `bytes`, and what comes until `until` if nothing is being dropped yet.
    fn drop(&mut self, bytes: &[u8], stamp: &Stamp, until: Instant) {
        if bytes.is_empty() {
            return;
        }
        let amount = Amount::of_output(bytes);
        self.dropped.add(amount);
        let fresh = Dropping { amount: Amount::default(), stamp: *stamp, until };
        self.dropping.get_or_insert(fresh).amount.add(amount);
    }

    fn gap_due_at(&self) -> Option<Instant> {
        self.dropping.map(|dropping| dropping.until)
    }

    fn take_gap(&mut self, channel: Channel) -> Option<(Gap, Stamp)> {
        let Dropping { amount, stamp, .. } = self.dropping.take()?;
        Some((Gap::new(channel, amount.bytes, amount.lines, TOO_FAST), stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn output(bytes: &[u8], at: Instant) -> Output<'_> {
        Output { channel: Channel::Stdout, bytes, stamp: b"2026-11-23T01:02:03.123456789Z", at }
    }

    fn limits(rate: Rate, when_fast: WhenFast) -> LogLimits {
        LogLimits { rates: [rate; 2], when_fast, ..LogLimits::default() }
    }

    fn bytes(per_second: u64) -> Rate {
        Rate { bytes_per_second: per_second, ..Rate::default() }
    }

    #[test]
    fn stream_that_comes_too_fast_is_paused_until_a_step_is_there() {
        let now = Instant::now();
        let limits = limits(bytes(1000), WhenFast::Block);
        let mut pod = PodPace::default();
        let mut pace = Pace::renew(None, &limits, now).unwrap();
        assert_eq!(pace.allowance(Channel::Stdout, now, &limits, &mut pod), 1000);
        let (range, gap) = pace.admit(&output(&[b'x'; 1000], now), &limits, &mut pod);
        assert_eq!((range, gap), (0..1000, None));
        assert_eq!(pace.allowance(Channel::Stdout, now, &limits, &mut pod), 0);
        let until = pace.paused_until(Channel::Stdout).unwrap();
        assert_eq!(pace.allowance(Channel::Stdout, until, &limits, &mut pod), 50);
        assert_eq!(pace.paused_for(Channel::Stdout, until), until - now);
        assert_eq!(pace.allowance(Channel::Stderr, now, &limits, &mut pod), 1000, "the other one is free");
    }

    #[test]
    fn pods_limit_is_shared() {
        let now = Instant::now();
        let unlimited = LogLimits::default();
        let mut pod = PodPace { sharers: 4, ..PodPace::default() };
        pod.set(&bytes(1000), now);
        let mut pace = None;
        let pace = Pace::for_pod(&mut pace, &pod).unwrap();
        assert_eq!(pace.allowance(Channel::Stdout, now, &unlimited, &mut pod), 250);
    }

    #[test]
    fn line_longer_than_a_burst_still_comes() {
        let start = Instant::now();
        let limits = limits(bytes(10), WhenFast::Drop);
        let (mut pace, mut pod) = (Pace::renew(None, &limits, start).unwrap(), PodPace::default());
        let mut kept = 0;
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            let line = [&[b'x'; 30][..], b"\n"].concat();
            kept += pace.admit(&output(&line, now), &limits, &mut pod).0.len();
        }
        assert!(kept >= 31, "{kept}");
    }

    proptest! {
        #[test]
        fn what_is_dropped_is_told_and_lines_stay_whole(
            lines in prop::collection::vec("[a-z]{0,40}", 1..80), cut in 1..200_usize,
            step_ms in 0..400_u64, rate in 1..500_u64,
        ) {
            let start = Instant::now();
            let limits = limits(bytes(rate), WhenFast::Drop);
            let (mut pace, mut pod) = (Pace::renew(None, &limits, start).unwrap(), PodPace::default());
            let text: String = lines.iter().map(|line| format!("<{line}\n")).collect();
            let (mut kept, mut told) = (Amount::default(), Amount::default());
            let mut at_start_of_line = true;
            for (turn, part) in (0_u32..).zip(text.as_bytes().chunks(cut)) {
                let now = start + Duration::from_millis(step_ms) * turn;
                let (range, gap) = pace.admit(&output(part, now), &limits, &mut pod);
                let part = &part[range];
                if let Some(gap) = gap {
                    told.add(Amount { bytes: gap.bytes, lines: gap.lines });
                    at_start_of_line = true;
                }
                prop_assert!(part.is_empty() || !at_start_of_line || part[0] == b'<');
                at_start_of_line = part.is_empty() && at_start_of_line || part.ends_with(b"\n");
                kept.add(Amount::of_output(part));
            }
            if let Some((gap, _)) = pace.gap(Channel::Stdout) {
                told.add(Amount { bytes: gap.bytes, lines: gap.lines });
            }
            prop_assert_eq!(told, pace.dropped(Channel::Stdout));
            kept.add(told);
            prop_assert_eq!(kept, Amount::of_output(text.as_bytes()));
        }
    }
}
