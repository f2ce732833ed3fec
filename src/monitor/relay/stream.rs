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
use super::capture::Capture;
use super::job::{Shared, Work};
use super::logs::Logs;
use super::pace::{Output, PodPace};
use super::poll::{Poll, Token, Watched};
use super::stdin::{Kind, Stdin};
use super::{Attach, ChannelStats, Drained, Notice, Open, RelayError, Reply, StreamId, StreamStats};
use crate::limits::{LOG_END_MAX, RELAY_PIPE_BYTES, RELAY_READ_BYTES};
use crate::monitor::log::batch::Channel;
use crate::monitor::log::limit::LogLimits;
use crate::monitor::log::stamp::Timestamp;
use crate::monitor::log::{LogError, LogSet};

/// Slots of a stream's descriptors; its channels have 0 and 1.
const SLOT_STDIN: u32 = 2;

/// The attach sockets' and clients' slots begin here.
const SLOT_DOOR: u32 = 3;

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
            super::Output::Pipes { stdout, stderr } => {
                for pipe in [&stdout, &stderr] {
                    // Allowed to fail: the user's share of pipe memory may be used up.
                    let _size = rustix::pipe::fcntl_setpipe_size(pipe, RELAY_PIPE_BYTES);
                }
                (Medium::Pipes, [source(stdout, Channel::Stdout)?, source(stderr, Channel::Stderr)?])
            }
            super::Output::Terminal(master) => (Medium::Terminal, [source(master, Channel::Stdout)?, None]),
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
    pub(super) fn on_event(
        &mut self,
        token: Token,
        flags: EventFlags,
        shared: &mut Shared,
        pod: &mut PodPace,
    ) {
        match token.slot() {
            0 => self.read(Channel::Stdout, shared, pod),
            1 => self.read(Channel::Stderr, shared, pod),
            SLOT_STDIN => self.stdin.flush(),
            _ => self.door.on_event(token, flags, &mut self.stdin, &mut shared.read),
        }
    }

    /// Reads a channel once.
    fn read(&mut self, channel: Channel, shared: &mut Shared, pod: &mut PodPace) {
        let now = Instant::now();
        // An event from before something began to block.
        if !self.may_read(channel, now) {
            return;
        }
        // What is left when the process has exited is not much, and its end is waited for.
        let in_time =
            if self.finish.is_none() { self.logs.allowance(channel, now, pod) } else { RELAY_READ_BYTES };
        let Some(source) = self.sources[channel.index()].as_mut().filter(|_| in_time > 0) else { return };
        let limit = source.allowance.unwrap_or(RELAY_READ_BYTES).min(in_time);
        let buffer = shared.read.get_mut(..limit).unwrap_or_default();
        match rustix::io::read(&source.fd, buffer) {
            Ok(0) => self.end(channel),
            Ok(count) => {
                source.hung_up = false;
                source.allowance = source.allowance.map(|left| left - count);
                let used_up = source.allowance == Some(0);
                self.take(channel, count, shared, pod);
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
    fn take(&mut self, channel: Channel, count: usize, shared: &mut Shared, pod: &mut PodPace) {
        let chunk = shared.read.get(..count).unwrap_or_default();
        self.bytes[channel.index()] += count as u64;
        if let Some(capture) = &mut self.capture {
            capture.push(channel, chunk);
        }
        if self.logs.is_none() {
            self.lines[channel.index()] += memchr::memchr_iter(b'\n', chunk).count() as u64;
        } else {
            let stamp = shared.stamper.render(Timestamp::now());
            let pod = self.finish.is_none().then_some(pod);
            self.logs.take(&Output { channel, bytes: chunk, stamp: &stamp, at: Instant::now() }, pod);
        }
        // What a client sees is kept, or about to be.
        self.door.broadcast(channel, chunk);
    }

    /// Nothing more is read from `channel`.
    fn end(&mut self, channel: Channel) {
        self.sources[channel.index()] = None;
        self.logs.channel_ended(channel);
    }

    /// Whether `channel` is to be read now.
    fn may_read(&self, channel: Channel, now: Instant) -> bool {
        if !self.logs.may_take() {
            return false;
        }
        let paused = self.logs.paused_until(channel).is_some_and(|until| until > now);
        self.finish.is_some() || !(paused || self.door.holds_back())
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
        if self.door.wants_replay()
            && let Some(end) = self.logs.tail()
        {
            self.door.begin_replay(end);
        }
        self.door.on_time(now, &mut self.stdin);
        self.logs.end_pauses(Some(now));
        if self.finish.as_ref().is_some_and(|finish| finish.deadline <= now && !finish.grace_has_passed) {
            self.grace_has_passed();
        }
        if self.finish.as_ref().is_some_and(|finish| finish.log_deadline <= now) {
            self.logs.give_up_if_away();
        }
        if self.logs.is_none() {
            self.logs.do_nothing(self.is_at_end());
        }
        if self.sources.iter().all(Option::is_none) {
            // Who can still give the process input is not parted with: only its exit is the end of that.
            if self.finish.is_some() || !self.stdin.is_open() {
                self.door.finish_output();
            }
            if self.logs.are_given_up() || self.logs.are_done() {
                self.complete();
            }
        }
        self.watch(now);
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
    fn watch(&mut self, now: Instant) {
        for channel in Channel::ALL {
            let may_read = self.may_read(channel, now);
            let Some(source) = &mut self.sources[channel.index()] else { continue };
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
            false => self.logs.deadline(),
            true => finish.filter(|_| !self.logs.are_given_up()).map(|finish| finish.log_deadline),
        };
        let paused = Channel::ALL.into_iter().filter(|channel| self.sources[channel.index()].is_some());
        let paused = paused.filter_map(|channel| self.logs.paused_until(channel)).min();
        let paused = paused.filter(|_| finish.is_none());
        [logs, self.door.deadline(), grace, paused].into_iter().flatten().min()
    }

    /// The streams have ended, as far as anybody outside can tell.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.closing && self.door.clients() == 0 && self.logs.are_done()
    }

    /// Ends it at once, and removes the logs that were made for it.
    pub(super) fn abandon(&mut self) {
        self.sources = [None, None];
        self.stdin.drop_all();
        self.door.close();
        self.logs.undo();
        self.closing = true;
    }

    pub(super) fn attach(&mut self, attach: Attach, poll: &Poll) -> Result<(), RelayError> {
        if attach.replay > 0 && !self.logs.has_file() {
            return Err(RelayError::NothingToReplay);
        }
        self.door.listen(attach, poll)
    }

    pub(super) fn reopen_logs(&mut self, reply: Reply<Result<(), LogError>>) {
        self.logs.reopen(reply);
    }

    pub(super) fn set_limits(&mut self, limits: LogLimits) {
        self.logs.set_limits(limits, Instant::now());
    }

    /// There is a new limit: whoever waits for the old one looks again.
    pub(super) fn end_pauses(&mut self) {
        self.logs.end_pauses(None);
    }

    /// Whether it shares the pod's limit.
    pub(super) fn has_log(&self) -> bool {
        !self.logs.is_none()
    }

    /// What the control side is to be told.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        self.logs.take_notices()
    }

    /// Lines of somebody else, to the logs only.
    pub(super) fn add_lines(&mut self, lines: Vec<u8>, reply: Reply<bool>) {
        self.logs.add_lines(lines, reply);
    }

    pub(super) fn stats(&self) -> StreamStats {
        let now = Instant::now();
        let report = self.logs.report();
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let channel = |channel: Channel| {
            let counters = report.counters[channel.index()];
            let pace = self.logs.pace();
            ChannelStats {
                bytes: self.bytes[channel.index()],
                lines: counters.lines + self.lines[channel.index()] + self.logs.lines_dropped(channel),
                partials: counters.partials,
                dropped: self.logs.dropped(channel),
                rate_limited: pace.map_or(0, |pace| pace.dropped(channel).bytes),
                throttled_ns: pace.map_or(0, |pace| nanos(pace.paused_for(channel, now))),
                write_errors: report.write_errors[channel.index()],
                stall_longest_ns: nanos(self.logs.stall_longest_of(channel, now)),
            }
        };
        StreamStats {
            stdout: channel(Channel::Stdout),
            stderr: channel(Channel::Stderr),
            write_errors: report.write_errors.iter().sum::<u64>() + report.other_errors,
            last_write_error: report.last_error.clone(),
            stall_longest_ns: nanos(self.logs.stall_longest(now)),
            clients_cut_off: self.door.cut_off(),
            clients: self.door.clients(),
            written: report.written.unwrap_or_default(),
            added: report.added,
            limits: *self.logs.limits(),
            buffered: self.logs.buffered(),
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
