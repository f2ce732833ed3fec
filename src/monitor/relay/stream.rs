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
//!     └── grace has passed: take what is there, ───► Closing ── clients have all ──► Over
//!         give up logs that cannot be written        (replied)
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::attach::Door;
use super::capture::{Capture, Captured};
use super::poll::{Poll, Token, Watched};
use super::stdin::{Kind, Stdin};
use super::{Attach, ChannelStats, Drained, Open, Output, RelayError, Reply, StreamId, StreamStats};
use crate::limits::{RELAY_PIPE_BYTES, RELAY_READ_BYTES};
use crate::monitor::log::batch::Channel;
use crate::monitor::log::stamp::{Stamper, Timestamp};
use crate::monitor::log::{Buffers, LogError, LogSet};

/// Slots of a stream's descriptors; its channels have 0 and 1.
const SLOT_STDIN: u32 = 2;

/// The attach sockets' and clients' slots begin here.
const SLOT_DOOR: u32 = 3;

/// What all streams of the thread share.
#[derive(Debug)]
pub(super) struct Shared {
    read: Vec<u8>,
    logs: Buffers,
    stamper: Stamper,
}

impl Default for Shared {
    fn default() -> Self {
        Self { read: vec![0; RELAY_READ_BYTES], logs: Buffers::default(), stamper: Stamper::default() }
    }
}

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
    reply: Reply<Drained>,
    grace_has_passed: bool,
}

impl std::fmt::Debug for Finish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finish").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Stream {
    id: StreamId,
    medium: Medium,
    sources: [Option<Source>; 2],
    bytes: [u64; 2],
    stdin: Stdin,
    logs: LogSet,
    capture: Option<Capture>,
    door: Door,
    blocked_since: Option<Instant>,
    stall_longest: Duration,
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
            stdin: Stdin::new(open.stdin, open.stdin_guard, kind, poll, Token::new(id, SLOT_STDIN))?,
            logs: open.logs,
            capture: open.capture_max.map(Capture::new),
            door: Door::new(id, SLOT_DOOR),
            blocked_since: None,
            stall_longest: Duration::ZERO,
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
            Ok(0) => self.end(channel, shared),
            Ok(count) => {
                source.hung_up = false;
                source.allowance = source.allowance.map(|left| left - count);
                let used_up = source.allowance == Some(0);
                self.take(channel, count, shared);
                self.give_up_if_late(shared);
                if used_up {
                    self.cut(channel, shared);
                }
            }
            Err(Errno::AGAIN) if source.allowance.is_some() => self.cut(channel, shared),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // No process has the terminal open; while the container lives, one may open it again.
            Err(Errno::IO) if self.medium == Medium::Terminal && self.finish.is_none() => {
                source.hung_up = true;
            }
            Err(_) => self.end(channel, shared),
        }
    }

    /// Reads each channel once.
    pub(super) fn read_all(&mut self, shared: &mut Shared) {
        Channel::ALL.into_iter().for_each(|channel| self.read(channel, shared));
    }

    /// `count` bytes of `channel` are in the read buffer.
    fn take(&mut self, channel: Channel, count: usize, shared: &mut Shared) {
        let Shared { read, logs, stamper } = shared;
        let chunk = read.get(..count).unwrap_or_default();
        self.bytes[channel.index()] += count as u64;
        let stamp = stamper.render(Timestamp::now());
        // The log first: a client may see only what is, or is about to be, kept.
        let _progress = self.logs.write(channel, chunk, &stamp, logs);
        if let Some(capture) = &mut self.capture {
            capture.push(channel, chunk);
        }
        self.door.broadcast(channel, chunk);
    }

    /// Nothing more is read from `channel`.
    fn end(&mut self, channel: Channel, shared: &mut Shared) {
        self.sources[channel.index()] = None;
        let stamp = shared.stamper.render(Timestamp::now());
        let _progress = self.logs.finish(channel, &stamp, &mut shared.logs);
        self.give_up_if_late(shared);
    }

    /// Whether output is to be read now.
    fn may_read(&self) -> bool {
        !self.logs.is_blocked() && (self.finish.is_some() || !self.door.holds_back())
    }

    fn give_up_if_late(&mut self, shared: &mut Shared) {
        if self.logs.is_blocked() && self.finish.as_ref().is_some_and(|finish| finish.grace_has_passed) {
            self.logs.give_up(&mut shared.logs);
        }
    }

    pub(super) fn begin_finish(&mut self, grace: Duration, reply: Reply<Drained>) {
        let deadline = Instant::now() + grace;
        self.finish = Some(Finish { deadline, reply, grace_has_passed: false });
        // Who has hung up a terminal will not come back; its end is to be read now.
        for source in self.sources.iter_mut().flatten() {
            source.hung_up = false;
        }
    }

    /// What is due at `now`. To be called after everything else that happened.
    pub(super) fn settle(&mut self, now: Instant, shared: &mut Shared) {
        if self.logs.retry_at().is_some_and(|at| at <= now) {
            let _progress = self.logs.retry(&mut shared.logs);
        }
        self.note_stall(now);
        if self.door.wants_replay()
            && let Some(end) = self.logs.tail()
        {
            self.door.begin_replay(end);
        }
        self.door.on_time(now, &mut self.stdin);
        if self.finish.as_ref().is_some_and(|finish| finish.deadline <= now && !finish.grace_has_passed) {
            self.grace_has_passed(shared);
        }
        if self.sources.iter().all(Option::is_none) {
            self.door.finish_output();
            if !self.logs.is_blocked() {
                self.complete();
            }
        }
        self.watch();
    }

    fn note_stall(&mut self, now: Instant) {
        if self.logs.is_blocked() {
            self.blocked_since.get_or_insert(now);
        } else if let Some(since) = self.blocked_since.take() {
            self.stall_longest = self.stall_longest.max(now.saturating_duration_since(since));
        }
    }

    /// Somebody else still holds the output, or a log is stuck: takes what is there
    /// now, and no more.
    fn grace_has_passed(&mut self, shared: &mut Shared) {
        if let Some(finish) = &mut self.finish {
            finish.grace_has_passed = true;
        }
        self.give_up_if_late(shared);
        for channel in Channel::ALL {
            let Some(source) = &mut self.sources[channel.index()] else { continue };
            let there = rustix::io::ioctl_fionread(&source.fd).unwrap_or(0);
            source.allowance = Some(usize::try_from(there).unwrap_or(usize::MAX));
            if there == 0 {
                self.cut(channel, shared);
            }
        }
    }

    /// Ends a channel whose allowance is used up.
    fn cut(&mut self, channel: Channel, shared: &mut Shared) {
        let source = &self.sources[channel.index()];
        self.was_cut |= source.as_ref().is_some_and(|source| !is_at_end(&source.fd));
        self.end(channel, shared);
    }

    fn complete(&mut self) {
        let Some(finish) = self.finish.take() else { return };
        self.stdin.drop_all();
        self.logs.close();
        self.door.close();
        self.closing = true;
        let stats = self.stats();
        let complete = !self.was_cut && stats.stdout.dropped == 0 && stats.stderr.dropped == 0;
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
        let finish = self.finish.as_ref().filter(|finish| !finish.grace_has_passed);
        let finish = finish.map(|finish| finish.deadline);
        [self.logs.retry_at(), self.door.deadline(), finish].into_iter().flatten().min()
    }

    /// The streams have ended, as far as anybody outside can tell.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.closing && self.door.clients() == 0
    }

    pub(super) fn abandon(self) {
        self.logs.undo();
    }

    pub(super) fn attach(&mut self, attach: Attach, poll: &Poll) -> Result<(), RelayError> {
        if attach.replay > 0 && !self.logs.has_file() {
            return Err(RelayError::NothingToReplay);
        }
        self.door.listen(attach, poll)
    }

    pub(super) fn reopen_logs(&mut self, shared: &mut Shared) -> Result<(), LogError> {
        self.logs.reopen(&mut shared.logs)
    }

    /// Lines of somebody else, to the logs only.
    pub(super) fn add_lines(&mut self, lines: &[u8], shared: &mut Shared) -> bool {
        let stamp = shared.stamper.render(Timestamp::now());
        self.logs.add_lines(lines, &stamp, &mut shared.logs)
    }

    pub(super) fn take_captured(&mut self) -> Option<Captured> {
        self.capture.take().map(Capture::take)
    }

    pub(super) fn stats(&self) -> StreamStats {
        let channel = |channel: Channel| {
            let counters = self.logs.counters(channel);
            ChannelStats {
                bytes: self.bytes[channel.index()],
                lines: counters.lines,
                partials: counters.partials,
                dropped: self.logs.dropped(channel),
            }
        };
        let stalls_for = self.blocked_since.map(|since| since.elapsed()).unwrap_or_default();
        let stall_longest = self.stall_longest.max(stalls_for);
        StreamStats {
            stdout: channel(Channel::Stdout),
            stderr: channel(Channel::Stderr),
            write_errors: self.logs.write_errors(),
            last_write_error: self.logs.last_error().map(str::to_owned),
            stall_longest_ns: u64::try_from(stall_longest.as_nanos()).unwrap_or(u64::MAX),
            clients_cut_off: self.door.cut_off(),
            clients: self.door.clients(),
            written: self.logs.written().unwrap_or_default(),
            added: self.logs.added(),
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
