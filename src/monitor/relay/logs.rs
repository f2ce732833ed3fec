//! A stream's logs as the relay sees them: here, or away with a [job](super::job);
//! what is to be done with them next; and what becomes of output that they cannot
//! take now, or that comes too fast.

use std::time::{Duration, Instant};

use super::job::{Chunk, Work};
use super::pace::{Output, Pace, PodPace};
use super::{Notice, Reply};
use crate::limits::{LOG_NOTICE_PAUSE, RELAY_READ_BYTES};
use crate::monitor::log::batch::Channel;
use crate::monitor::log::gap::Gap;
use crate::monitor::log::limit::{LogLimits, WhenStuck};
use crate::monitor::log::ring::{End, Ring};
use crate::monitor::log::{Amount, Item, LogError, LogReport, LogSet, Tail};

/// Why output is missing that came while the log took no bytes.
const STUCK: &str = "the log could not be written in time";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// To be removed: the container did not come to be.
    Unwanted,
    /// The last work was given.
    Closed,
}

/// See the module's text.
pub(super) struct Logs {
    /// `None` while they are away with a job.
    here: Option<Box<LogSet>>,
    /// There is no log.
    none: bool,
    /// One of them is a regular file.
    has_file: bool,
    /// What they said when they were last here.
    report: LogReport,
    /// How long they took nothing.
    stall: Stall,
    /// How long they had output of each channel and did not take it.
    stalls: [Stall; 2],
    /// Was read and is still in the read buffer.
    chunk: Option<Chunk>,
    /// The channel has ended, and the logs have not been told.
    ended: [bool; 2],
    reopens: Vec<Reply<Result<(), LogError>>>,
    /// Lines that are not the container's.
    others: Vec<(Vec<u8>, Reply<bool>)>,
    /// Nobody waits for them any more.
    given_up: bool,
    life: Life,
    limits: LogLimits,
    pace: Option<Box<Pace>>,
    /// What waits for them; there is none while all is well.
    ring: Option<Box<Ring>>,
    /// What was never given to them, and is not in a gap record yet.
    lost: [Amount; 2],
    /// What was dropped here, by earlier rings and when they were given up.
    dropped: [Amount; 2],
    told: Told,
}

/// A time that is too long when it is long.
#[derive(Debug, Clone, Copy, Default)]
struct Stall {
    since: Option<Instant>,
    longest: Duration,
}

impl Stall {
    /// Unless it has begun already.
    fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    fn end(&mut self, now: Instant) {
        self.longest = self.longest(now);
        self.since = None;
    }

    fn longest(&self, now: Instant) -> Duration {
        let so_far = self.since.map(|since| now.saturating_duration_since(since));
        self.longest.max(so_far.unwrap_or_default())
    }
}

/// What the control side has been told.
#[derive(Default)]
struct Told {
    failed: bool,
    /// Missing output that it has not been told of.
    gaps: [Option<Gap>; 2],
    gap_at: Option<Instant>,
    notices: Vec<Notice>,
}

impl Logs {
    pub(super) fn new(logs: LogSet) -> Self {
        Self {
            none: logs.is_none(),
            has_file: logs.has_file(),
            report: LogReport::default(),
            here: Some(Box::new(logs)),
            stall: Stall::default(),
            stalls: [Stall::default(); 2],
            chunk: None,
            ended: [false; 2],
            reopens: Vec::new(),
            others: Vec::new(),
            given_up: false,
            life: Life::Open,
            limits: LogLimits::default(),
            pace: None,
            ring: None,
            lost: [Amount::default(); 2],
            dropped: [Amount::default(); 2],
            told: Told::default(),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        self.none
    }

    pub(super) fn has_file(&self) -> bool {
        self.has_file
    }

    /// Where the log ends, at a moment at which all that was read is in it, or held as
    /// the start of a line.
    pub(super) fn tail(&self) -> Option<Tail> {
        if self.chunk.is_some() || self.ring.is_some() {
            return None;
        }
        self.here.as_ref()?.tail()
    }

    pub(super) fn is_away(&self) -> bool {
        self.here.is_none()
    }

    /// Nothing more will be written.
    pub(super) fn are_done(&self) -> bool {
        self.life == Life::Closed && self.here.is_some()
    }

    pub(super) fn report(&self) -> &LogReport {
        &self.report
    }

    pub(super) fn limits(&self) -> &LogLimits {
        &self.limits
    }

    pub(super) fn set_limits(&mut self, limits: LogLimits, now: Instant) {
        self.pace = Pace::renew(self.pace.take(), &limits, now);
        self.limits = limits;
    }

    pub(super) fn pace(&self) -> Option<&Pace> {
        self.pace.as_deref()
    }

    /// Bytes that wait here.
    pub(super) fn buffered(&self) -> usize {
        self.ring.as_ref().map_or(0, |ring| ring.used())
    }

    fn are_ready(&self) -> bool {
        self.here.is_some() && !self.report.blocked
    }

    /// Output can be taken now, or dropped.
    pub(super) fn may_take(&self) -> bool {
        let waits = self.limits.when_stuck == WhenStuck::Block && !self.given_up;
        !waits || (self.are_ready() && self.ring.as_ref().is_none_or(|ring| ring.is_empty()))
    }

    /// How much of `channel` may be read at `now`; 0: nothing, for a while.
    pub(super) fn allowance(&mut self, channel: Channel, now: Instant, pod: &mut PodPace) -> usize {
        match Pace::for_pod(&mut self.pace, pod) {
            Some(pace) => pace.allowance(channel, now, &self.limits, pod),
            None => RELAY_READ_BYTES,
        }
    }

    /// Until when `channel` is not read because it came too fast.
    pub(super) fn paused_until(&self, channel: Channel) -> Option<Instant> {
        self.pace.as_ref().and_then(|pace| pace.paused_until(channel))
    }

    /// Ends the pauses that are over at `over_at`; without it, all.
    pub(super) fn end_pauses(&mut self, over_at: Option<Instant>) {
        if let Some(pace) = &mut self.pace {
            pace.end_pauses(over_at);
        }
    }

    /// Takes output that was read and is at the start of the read buffer. `None` for
    /// `pod`: nobody minds how fast it comes.
    pub(super) fn take(&mut self, output: &Output<'_>, pod: Option<&mut PodPace>) {
        let Output { channel, bytes, stamp, at: now } = *output;
        let (mut range, mut gap) = (0..bytes.len(), None);
        if let (Some(pod), Some(pace)) = (pod, self.pace.as_mut()) {
            (range, gap) = pace.admit(output, &self.limits, pod);
        }
        if range.is_empty() {
            return;
        }
        if let Some(gap) = &gap {
            self.told.gap(gap, now);
        }
        if self.are_ready() && self.ring.is_none() {
            self.chunk = Some(Chunk { channel, range, stamp: *stamp, gap });
            return;
        }
        let bytes = bytes.get(range).unwrap_or_default();
        let Some(end) = self.end() else {
            self.lost[channel.index()].add(Amount::of_output(bytes));
            return;
        };
        let reason = self.report.last_error.as_deref().filter(|_| self.report.blocked).unwrap_or(STUCK);
        let buffer_bytes = self.limits.buffer_bytes();
        let ring = self.ring.get_or_insert_with(|| Box::new(Ring::new(end, buffer_bytes, reason)));
        ring.set_reason(reason);
        if let Some(gap) = gap {
            ring.push_gap(gap, stamp);
        }
        ring.push(channel, stamp, bytes);
        self.stalls[channel.index()].begin(now);
    }

    /// Which end of what waits is dropped; `None` if nothing may wait.
    fn end(&self) -> Option<End> {
        match self.limits.when_stuck {
            // It was another policy when the ring was made.
            WhenStuck::Block => self.ring.as_ref().map(|_| End::Newest),
            WhenStuck::DropOldest => Some(End::Oldest),
            WhenStuck::DropNewest => Some(End::Newest),
        }
    }

    pub(super) fn channel_ended(&mut self, channel: Channel) {
        self.ended[channel.index()] = true;
    }

    pub(super) fn reopen(&mut self, reply: Reply<Result<(), LogError>>) {
        self.reopens.push(reply);
    }

    /// Whoever has lines for logs that take nothing now is told so, and does not wait.
    pub(super) fn add_lines(&mut self, lines: Vec<u8>, reply: Reply<bool>) {
        if self.none || !self.are_ready() {
            return reply(false);
        }
        self.others.push((lines, reply));
    }

    /// Nobody waits for logs that are away.
    pub(super) fn give_up_if_away(&mut self) {
        self.given_up |= self.is_away();
    }

    pub(super) fn are_given_up(&self) -> bool {
        self.given_up
    }

    /// Removes what was made for it, as soon as it is here.
    pub(super) fn undo(&mut self) {
        self.life = Life::Unwanted;
    }

    /// They are back from a job.
    pub(super) fn put_back(&mut self, logs: Box<LogSet>, now: Instant) {
        self.report.update(&logs);
        self.here = Some(logs);
        if self.report.blocked {
            let reason = self.report.last_error.as_deref().unwrap_or(STUCK);
            self.told.failed(reason);
            return;
        }
        self.told.failed = false;
        self.stall.end(now);
        self.stalls.iter_mut().for_each(|stall| stall.end(now));
        if let Some(ring) = &mut self.ring {
            ring.taken_is_written();
        }
        if let Some(ring) = self.ring.take_if(|ring| ring.is_idle()) {
            for channel in Channel::ALL {
                self.dropped[channel.index()].add(ring.dropped(channel));
            }
        }
    }

    /// The longest time for which they took nothing, as of `now`.
    pub(super) fn stall_longest(&self, now: Instant) -> Duration {
        self.stall.longest(now)
    }

    /// The longest time for which they had output of `channel` and did not take it, as
    /// of `now`.
    pub(super) fn stall_longest_of(&self, channel: Channel, now: Instant) -> Duration {
        self.stalls[channel.index()].longest(now)
    }

    /// What is next for them, if they are here. `at_end`: no more output comes;
    /// `late`: nobody waits for a log that cannot be written.
    pub(super) fn next_work(
        &mut self,
        now: Instant,
        at_end: bool,
        late: bool,
    ) -> Option<(Box<LogSet>, Work)> {
        let work = self.choose(now, at_end, late)?;
        self.stall.begin(now);
        for channel in Channel::ALL.into_iter().filter(|channel| work.brings(*channel)) {
            self.stalls[channel.index()].begin(now);
        }
        Some((self.here.take()?, work))
    }

    fn choose(&mut self, now: Instant, at_end: bool, late: bool) -> Option<Work> {
        if self.is_away() || self.life == Life::Closed {
            return None;
        }
        // It is in the buffer that the next job takes along.
        if let Some(chunk) = self.chunk.take() {
            return Some(Work::Chunk(chunk));
        }
        if self.life == Life::Unwanted {
            self.life = Life::Closed;
            return Some(Work::Undo);
        }
        if !self.reopens.is_empty() {
            return Some(Work::Reopen(std::mem::take(&mut self.reopens)));
        }
        if self.report.blocked {
            let due = self.report.retry_at.is_none_or(|at| at <= now);
            return if late || self.given_up {
                Some(Work::GiveUp)
            } else if due {
                Some(Work::Retry)
            } else {
                None
            };
        }
        if let Some(ring) = self.ring.as_mut().filter(|ring| !ring.is_empty()) {
            let items = ring.take();
            self.told.gaps_in(&items, now);
            return Some(Work::Items(items));
        }
        if let Some((gap, stamp)) = self.pace.as_mut().and_then(|pace| pace.gap_due(now)) {
            self.told.gap(&gap, now);
            return Some(Work::Items([Item::Gap { gap, stamp }].into()));
        }
        if !self.others.is_empty() {
            return Some(Work::AddLines(std::mem::take(&mut self.others)));
        }
        if let Some(channel) = Channel::ALL.into_iter().find(|channel| self.ended[channel.index()]) {
            self.ended[channel.index()] = false;
            let gap = self.pace.as_mut().and_then(|pace| pace.gap(channel));
            return Some(Work::End(channel, gap.map(|(gap, _)| gap)));
        }
        if !at_end {
            return None;
        }
        self.life = Life::Closed;
        Some(Work::Close(self.close_gaps()))
    }

    /// In place of [`Self::next_work`] if there is no log.
    pub(super) fn do_nothing(&mut self, at_end: bool) {
        if at_end {
            self.life = Life::Closed;
        }
        self.reopens.drain(..).for_each(|reply| reply(Ok(())));
    }

    fn close_gaps(&mut self) -> Vec<Gap> {
        self.told.tell_gaps();
        let lost = std::mem::take(&mut self.lost);
        let mut gaps = Vec::new();
        for (channel, lost) in Channel::ALL.into_iter().zip(lost) {
            self.dropped[channel.index()].add(lost);
            if lost != Amount::default() {
                gaps.push(Gap::new(channel, lost.bytes, lost.lines, STUCK));
            }
        }
        gaps
    }

    /// Payload bytes of `channel` that a log does not have, whyever.
    pub(super) fn dropped(&self, channel: Channel) -> u64 {
        let at = channel.index();
        let ring = self.ring.as_ref().map_or(0, |ring| ring.dropped(channel).bytes);
        let too_fast = self.pace.as_ref().map_or(0, |pace| pace.dropped(channel).bytes);
        self.report.dropped[at] + self.lost[at].bytes + self.dropped[at].bytes + ring + too_fast
    }

    /// Lines that were dropped before the logs could count them.
    pub(super) fn lines_dropped(&self, channel: Channel) -> u64 {
        let at = channel.index();
        let ring = self.ring.as_ref().map_or(0, |ring| ring.dropped(channel).lines);
        let too_fast = self.pace.as_ref().map_or(0, |pace| pace.dropped(channel).lines);
        self.lost[at].lines + self.dropped[at].lines + ring + too_fast
    }

    /// When [`Self::next_work`] may have something that is a matter of time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.is_away() || self.life == Life::Closed {
            return None;
        }
        let gap = self.pace.as_ref().and_then(|pace| pace.gap_due_at());
        if self.report.blocked { self.report.retry_at } else { gap }
    }

    /// What the control side is to be told.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.told.notices)
    }
}

impl Told {
    fn failed(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.failed, true) {
            self.notices.push(Notice::LogFailed(reason.to_owned()));
        }
    }

    fn gaps_in<'a>(&mut self, items: impl IntoIterator<Item = &'a Item>, now: Instant) {
        for item in items {
            if let Item::Gap { gap, .. } = item {
                self.gap(gap, now);
            }
        }
    }

    /// A container that loses output all the time shall not push every other event
    /// out of the pod's memory.
    fn gap(&mut self, gap: &Gap, now: Instant) {
        match &mut self.gaps[gap.channel.index()] {
            Some(sum) => {
                sum.bytes = sum.bytes.saturating_add(gap.bytes);
                sum.lines = sum.lines.saturating_add(gap.lines);
            }
            none => *none = Some(gap.clone()),
        }
        if self.gap_at.is_none_or(|at| now.saturating_duration_since(at) >= LOG_NOTICE_PAUSE) {
            self.gap_at = Some(now);
            self.tell_gaps();
        }
    }

    fn tell_gaps(&mut self) {
        self.notices.extend(self.gaps.iter_mut().filter_map(Option::take).map(Notice::Gap));
    }
}
