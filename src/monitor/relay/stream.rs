//! The streams of one container: what arrives, whom it goes to, and how it ends.
//!
//! ```text
//!             read              blocked log, lagging client
//!   Open ─────────────┐          ┌──────────────┐
//!     │  ▲            ▼          ▼              │
//!     │  └──────── taken ──► not watched ── retry, caught up
//!     │ finish(grace)
//!     ▼
//!   Finishing ── every channel at its end, logs written ─┐
//!     │                                                  ▼
//!     └── grace has passed: take what is there, ───► Closing ── clients have all, ──► Over
//!         give up logs that cannot be written        (replied)  logs are back
//! ```
//!
//! The logs are either here or away with a [job](super::job). While they are away,
//! or blocked, output is not read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::attach::Door;
use super::capture::{Capture, Captured};
use super::job::{Chunk, Shared, Work};
use super::poll::{Poll, Token, Watched};
use super::stdin::{Kind, Stdin};
use super::{Attach, ChannelStats, Drained, Open, Output, RelayError, Reply, StreamId, StreamStats};
use crate::limits::{LOG_END_MAX, RELAY_PIPE_BYTES, RELAY_READ_BYTES};
use crate::monitor::log::batch::Channel;
use crate::monitor::log::gap::Gap;
use crate::monitor::log::stamp::Timestamp;
use crate::monitor::log::{Amount, LogError, LogReport, LogSet};

/// Slots of a stream's descriptors; its channels have 0 and 1.
const SLOT_STDIN: u32 = 2;

/// The attach sockets' and clients' slots begin here.
const SLOT_DOOR: u32 = 3;

/// Why output that came when a log was stuck at the end is missing.
const STUCK: &str = "the log took too long to write when the container ended";

/// One channel's descriptor.
#[derive(Debug)]
struct Source {
    fd: Watched,
    /// Bytes that are still to be read, once the grace has passed.
    allowance: Option<usize>,
    /// A terminal that no process has open at the moment.
    hung_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Medium {
    Pipes,
    Terminal,
}

struct Finish {
    deadline: Instant,
    /// Logs that are away then are not waited for.
    log_deadline: Instant,
    reply: Reply<Drained>,
    grace_has_passed: bool,
}

impl std::fmt::Debug for Finish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finish").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// The logs of a stream, and what they are to do.
struct Logs {
    /// `None` while they are away with a job.
    here: Option<Box<LogSet>>,
    /// There is no log.
    none: bool,
    /// What they said when they were last here.
    report: LogReport,
    /// Since when they have taken nothing.
    busy_since: Option<Instant>,
    stall_longest: Duration,
    /// Was read and is still in the read buffer.
    chunk: Option<Chunk>,
    /// The channel has ended, and the logs have not been told.
    ended: [bool; 2],
    reopens: Vec<Reply<Result<(), LogError>>>,
    /// Lines that are not the container's.
    others: Vec<(Vec<u8>, Reply<bool>)>,
    /// Nobody waits for them any more.
    given_up: bool,
    undo: bool,
    closed: bool,
    /// What was never given to them.
    lost: [Amount; 2],
}

impl Logs {
    fn new(logs: LogSet) -> Self {
        Self {
            none: logs.is_none(),
            report: LogReport::default(),
            here: Some(Box::new(logs)),
            busy_since: None,
            stall_longest: Duration::ZERO,
            chunk: None,
            ended: [false; 2],
            reopens: Vec::new(),
            others: Vec::new(),
            given_up: false,
            undo: false,
            closed: false,
            lost: [Amount::default(); 2],
        }
    }

    /// Whoever has lines for logs that take nothing now is told so, and does not wait.
    fn add_lines(&mut self, lines: Vec<u8>, reply: Reply<bool>) {
        if self.none || !self.are_ready() {
            return reply(false);
        }
        self.others.push((lines, reply));
    }

    fn is_away(&self) -> bool {
        self.here.is_none()
    }

    fn is_blocked(&self) -> bool {
        self.report.blocked
    }

    /// They can be given output now.
    fn are_ready(&self) -> bool {
        self.here.is_some() && !self.report.blocked
    }

    fn put_back(&mut self, logs: Box<LogSet>, now: Instant) {
        self.report.update(&logs);
        self.here = Some(logs);
        if !self.report.blocked {
            self.stall_longest = self.stall_longest.max(self.stalls_for(now));
            self.busy_since = None;
        }
    }

    fn stalls_for(&self, now: Instant) -> Duration {
        self.busy_since.map(|since| now.saturating_duration_since(since)).unwrap_or_default()
    }

    /// What is next for them, if they are here. `at_end`: no more output comes;
    /// `late`: nobody waits for a log that cannot be written.
    fn next_work(&mut self, now: Instant, at_end: bool, late: bool) -> Option<(Box<LogSet>, Work)> {
        let work = self.choose(now, at_end, late)?;
        self.busy_since.get_or_insert(now);
        Some((self.here.take()?, work))
    }

    fn choose(&mut self, now: Instant, at_end: bool, late: bool) -> Option<Work> {
        if self.is_away() || self.closed {
            return None;
        }
        if let Some(chunk) = self.chunk.take() {
            return Some(Work::Chunk(chunk));
        }
        if self.undo {
            self.closed = true;
            return Some(Work::Undo);
        }
        if !self.reopens.is_empty() {
            return Some(Work::Reopen(std::mem::take(&mut self.reopens)));
        }
        if self.is_blocked() {
            let due = self.report.retry_at.is_none_or(|at| at <= now);
            return if late || self.given_up {
                Some(Work::GiveUp)
            } else if due {
                Some(Work::Retry)
            } else {
                None
            };
        }
        if !self.others.is_empty() {
            return Some(Work::AddLines(std::mem::take(&mut self.others)));
        }
        if let Some(channel) = Channel::ALL.into_iter().find(|channel| self.ended[channel.index()]) {
            self.ended[channel.index()] = false;
            return Some(Work::End(channel, None));
        }
        if !at_end {
            return None;
        }
        self.closed = true;
        Some(Work::Close(self.gaps()))
    }

    /// In place of [`Self::next_work`] if there is no log.
    fn do_nothing(&mut self, at_end: bool) {
        self.closed |= at_end;
        self.reopens.drain(..).for_each(|reply| reply(Ok(())));
    }

    fn gaps(&self) -> Vec<Gap> {
        let gaps = Channel::ALL.into_iter().zip(self.lost);
        let gaps = gaps.filter(|(_, lost)| *lost != Amount::default());
        gaps.map(|(channel, lost)| Gap::new(channel, lost.bytes, lost.lines, STUCK)).collect()
    }

    fn dropped(&self, channel: Channel) -> u64 {
        self.report.dropped[channel.index()] + self.lost[channel.index()].bytes
    }
}

/// See the module's text.
pub(super) struct Stream {
    id: StreamId,
    medium: Medium,
    sources: [Option<Source>; 2],
    bytes: [u64; 2],
    /// Lines of a stream without a log.
    lines: [u64; 2],
    stdin: Stdin,
    logs: Logs,
    capture: Option<Capture>,
    door: Door,
    finish: Option<Finish>,
    /// Somebody still held a channel when it was ended.
    was_cut: bool,
    closing: bool,
}

impl Stream {
    pub(super) fn new(id: StreamId, open: Open, poll: &Poll) -> io::Result<Self> {
        let source = |fd: OwnedFd, channel: Channel| -> io::Result<Option<Source>> {
            let slot = if channel == Channel::Stdout { 0 } else { 1 };
            let mut fd = Watched::new(poll, fd, Token::new(id, slot))?;
            fd.set(EventFlags::IN)?;
            Ok(Some(Source { fd, allowance: None, hung_up: false }))
        };
        let (medium, sources) = match open.output {
            Output::Pipes { stdout, stderr } => {
                for pipe in [&stdout, &stderr] {
                    // Allowed to fail: the user's share of pipe memory may be used up.
                    let _size = rustix::pipe::fcntl_setpipe_size(pipe, RELAY_PIPE_BYTES);
                }
                (Medium::Pipes, [source(stdout, Channel::Stdout)?, source(stderr, Channel::Stderr)?])
            }
            Output::Terminal(master) => (Medium::Terminal, [source(master, Channel::Stdout)?, None]),
        };
        let kind = if medium == Medium::Terminal { Kind::Terminal } else { Kind::Pipe };
        Ok(Self {
            id,
            medium,
            sources,
            bytes: [0; 2],
            lines: [0; 2],
            stdin: Stdin::new(open.stdin, open.stdin_guard, kind, poll, Token::new(id, SLOT_STDIN))?,
            logs: Logs::new(open.logs),
            capture: open.capture_max.map(Capture::new),
            door: Door::new(id, SLOT_DOOR),
            finish: None,
            was_cut: false,
            closing: false,
        })
    }

    pub(super) fn id(&self) -> StreamId {
        self.id
    }

    /// Handles `flags` of the descriptor `token`.
    pub(super) fn on_event(&mut self, token: Token, flags: EventFlags, shared: &mut Shared) {
        match token.slot() {
            0 => self.read(Channel::Stdout, shared),
            1 => self.read(Channel::Stderr, shared),
            SLOT_STDIN => self.stdin.flush(),
            _ => self.door.on_event(token, flags, &mut self.stdin, &mut shared.read),
        }
    }

    /// Reads a channel once.
    fn read(&mut self, channel: Channel, shared: &mut Shared) {
        // An event from before something began to block.
        if !self.may_read() {
            return;
        }
        let Some(source) = &mut self.sources[channel.index()] else { return };
        let limit = source.allowance.unwrap_or(RELAY_READ_BYTES).min(RELAY_READ_BYTES);
        let buffer = shared.read.get_mut(..limit).unwrap_or_default();
        match rustix::io::read(&source.fd, buffer) {
            Ok(0) => self.end(channel),
            Ok(count) => {
                source.hung_up = false;
                source.allowance = source.allowance.map(|left| left - count);
                let used_up = source.allowance == Some(0);
                self.take(channel, count, shared);
                if used_up {
                    self.cut(channel);
                }
            }
            Err(Errno::AGAIN) if source.allowance.is_some() => self.cut(channel),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // No process has the terminal open; while the container lives, one may open it again.
            Err(Errno::IO) if self.medium == Medium::Terminal && self.finish.is_none() => {
                source.hung_up = true;
            }
            Err(_) => self.end(channel),
        }
    }

    /// `count` bytes of `channel` are in the read buffer.
    fn take(&mut self, channel: Channel, count: usize, shared: &mut Shared) {
        let chunk = shared.read.get(..count).unwrap_or_default();
        self.bytes[channel.index()] += count as u64;
        if let Some(capture) = &mut self.capture {
            capture.push(channel, chunk);
        }
        if self.logs.none {
            self.lines[channel.index()] += memchr::memchr_iter(b'\n', chunk).count() as u64;
        } else if self.logs.are_ready() {
            let stamp = shared.stamper.render(Timestamp::now());
            self.logs.chunk = Some(Chunk { channel, range: 0..count, stamp, gap: None });
        } else {
            self.logs.lost[channel.index()].add(Amount::of_output(chunk));
        }
        // What a client sees is kept, or about to be.
        self.door.broadcast(channel, chunk);
    }

    /// Nothing more is read from `channel`.
    fn end(&mut self, channel: Channel) {
        self.sources[channel.index()] = None;
        self.logs.ended[channel.index()] = true;
    }

    /// Whether output is to be read now.
    fn may_read(&self) -> bool {
        let clients_keep_up = self.finish.is_some() || !self.door.holds_back();
        clients_keep_up && (self.logs.are_ready() || self.logs.given_up)
    }

    pub(super) fn begin_finish(&mut self, grace: Duration, reply: Reply<Drained>) {
        let now = Instant::now();
        let (deadline, log_deadline) = (now + grace, now + grace.max(LOG_END_MAX));
        self.finish = Some(Finish { deadline, log_deadline, reply, grace_has_passed: false });
        // Who has hung up a terminal will not come back; its end is to be read now.
        for source in self.sources.iter_mut().flatten() {
            source.hung_up = false;
        }
    }

    /// The logs are back from a job.
    pub(super) fn put_back(&mut self, logs: Box<LogSet>) {
        self.logs.put_back(logs, Instant::now());
    }

    /// What is due at `now`. To be called after everything else that happened.
    pub(super) fn settle(&mut self, now: Instant) {
        self.door.on_time(now, &mut self.stdin);
        if self.finish.as_ref().is_some_and(|finish| finish.deadline <= now && !finish.grace_has_passed) {
            self.grace_has_passed();
        }
        if self.finish.as_ref().is_some_and(|finish| finish.log_deadline <= now) {
            self.logs.given_up |= self.logs.is_away();
        }
        if self.logs.none {
            self.logs.do_nothing(self.is_at_end());
        }
        if self.sources.iter().all(Option::is_none) {
            self.door.finish_output();
            if self.logs.given_up || (self.logs.closed && !self.logs.is_away()) {
                self.complete();
            }
        }
        self.watch();
    }

    /// What the logs are to do next, and the logs. To be called after [`Self::settle`].
    pub(super) fn next_work(&mut self, now: Instant) -> Option<(Box<LogSet>, Work)> {
        let at_end = self.is_at_end();
        let late = self.finish.as_ref().is_some_and(|finish| finish.grace_has_passed);
        self.logs.next_work(now, at_end, late)
    }

    /// No more output comes, and nobody waits for any.
    fn is_at_end(&self) -> bool {
        (self.finish.is_some() || self.closing) && self.sources.iter().all(Option::is_none)
    }

    /// Somebody else still holds the output, or a log is stuck: takes what is there
    /// now, and no more.
    fn grace_has_passed(&mut self) {
        if let Some(finish) = &mut self.finish {
            finish.grace_has_passed = true;
        }
        for channel in Channel::ALL {
            let Some(source) = &mut self.sources[channel.index()] else { continue };
            let there = rustix::io::ioctl_fionread(&source.fd).unwrap_or(0);
            source.allowance = Some(usize::try_from(there).unwrap_or(usize::MAX));
            if there == 0 {
                self.cut(channel);
            }
        }
    }

    /// Ends a channel whose allowance is used up.
    fn cut(&mut self, channel: Channel) {
        let source = &self.sources[channel.index()];
        self.was_cut |= source.as_ref().is_some_and(|source| !is_at_end(&source.fd));
        self.end(channel);
    }

    fn complete(&mut self) {
        let Some(finish) = self.finish.take() else { return };
        self.stdin.drop_all();
        self.door.close();
        self.closing = true;
        let stats = self.stats();
        let nothing_dropped = stats.stdout.dropped == 0 && stats.stderr.dropped == 0;
        let complete = !self.was_cut && nothing_dropped && !self.logs.is_away();
        let captured = self.capture.take().map(Capture::take);
        (finish.reply)(Drained { complete, captured, stats });
    }

    /// Tells epoll what is to be waited for now.
    fn watch(&mut self) {
        let may_read = self.may_read();
        for source in self.sources.iter_mut().flatten() {
            let interest = match (may_read, source.hung_up) {
                (false, _) => EventFlags::empty(),
                // Only a change is news: level-triggered, the hang-up would be reported for ever.
                (true, true) => EventFlags::IN | EventFlags::ET,
                (true, false) => EventFlags::IN,
            };
            // If epoll has no memory now, the next event or command of the stream tries again.
            let _later = source.fd.set(interest);
        }
        self.door.watch(&self.stdin);
    }

    /// When [`Self::settle`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let finish = self.finish.as_ref();
        let grace = finish.filter(|finish| !finish.grace_has_passed).map(|finish| finish.deadline);
        let logs = match self.logs.is_away() {
            false => self.logs.report.retry_at,
            true => finish.filter(|_| !self.logs.given_up).map(|finish| finish.log_deadline),
        };
        [logs, self.door.deadline(), grace].into_iter().flatten().min()
    }

    /// The streams have ended, as far as anybody outside can tell.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.closing && self.door.clients() == 0 && self.logs.closed && !self.logs.is_away()
    }

    /// Ends it at once, and removes the logs that were made for it.
    pub(super) fn abandon(&mut self) {
        self.sources = [None, None];
        self.stdin.drop_all();
        self.door.close();
        self.logs.undo = true;
        self.closing = true;
    }

    pub(super) fn attach(&mut self, attach: Attach, poll: &Poll) -> Result<(), RelayError> {
        self.door.listen(attach, poll)
    }

    pub(super) fn reopen_logs(&mut self, reply: Reply<Result<(), LogError>>) {
        self.logs.reopens.push(reply);
    }

    /// Lines of somebody else, to the logs only.
    pub(super) fn add_lines(&mut self, lines: Vec<u8>, reply: Reply<bool>) {
        self.logs.add_lines(lines, reply);
    }

    pub(super) fn take_captured(&mut self) -> Option<Captured> {
        self.capture.take().map(Capture::take)
    }

    pub(super) fn stats(&self) -> StreamStats {
        let report = &self.logs.report;
        let channel = |channel: Channel| {
            let counters = report.counters[channel.index()];
            ChannelStats {
                bytes: self.bytes[channel.index()],
                lines: counters.lines + self.lines[channel.index()],
                partials: counters.partials,
                dropped: self.logs.dropped(channel),
            }
        };
        let stall_longest = self.logs.stall_longest.max(self.logs.stalls_for(Instant::now()));
        StreamStats {
            stdout: channel(Channel::Stdout),
            stderr: channel(Channel::Stderr),
            write_errors: report.write_errors,
            last_write_error: report.last_error.clone(),
            stall_longest_ns: u64::try_from(stall_longest.as_nanos()).unwrap_or(u64::MAX),
            clients_cut_off: self.door.cut_off(),
            clients: self.door.clients(),
        }
    }
}

/// Everything was read and no writer is left.
fn is_at_end(fd: impl AsFd) -> bool {
    let mut poll = [PollFd::new(&fd, PollFlags::IN)];
    let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
    let [poll] = poll;
    polled.is_ok() && poll.revents().contains(PollFlags::HUP) && !poll.revents().contains(PollFlags::IN)
}
