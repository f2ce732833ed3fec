//! One attached client: what waits for it, how its input ends, and how it is parted
//! with. [`attach`](super::attach) says what it is promised.

use std::io;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::StdinEnd;
use super::attach::PACKET_PAYLOAD_MAX;
use super::poll::Watched;
use super::queue::Queue;
use super::replay::Replay;
use super::stdin::Stdin;
use crate::limits::{
    ATTACH_LAG_MAX, ATTACH_PARTING_MAX, ATTACH_QUEUE_BYTES_MAX, ATTACH_STALL_MAX, RELAY_PIPE_BYTES,
    RELAY_READ_BYTES,
};
use crate::monitor::log::batch::Channel;

pub(super) const KIND_DONE: u8 = 0;
pub(super) const KIND_STDOUT: u8 = 2;
pub(super) const KIND_STDERR: u8 = 3;

/// Nothing is queued for a client beyond this: what is read when its queue is
/// almost full, and what the pipes hold when the process exits.
const QUEUE_BYTES_MAX: usize = ATTACH_QUEUE_BYTES_MAX + 2 * (RELAY_READ_BYTES + RELAY_PIPE_BYTES);

/// Packets sent from a queue in one turn.
const TURN_MAX: usize = 32;

/// Why a client that lags is cut off.
pub(super) const TOO_SLOW: &str = "this client did not read its output in time";

pub(super) fn kind(channel: Channel) -> u8 {
    match channel {
        Channel::Stdout => KIND_STDOUT,
        Channel::Stderr => KIND_STDERR,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Gets output.
    Live,
    /// Gets what is queued, and then is closed; not later than this.
    Parting { until: Instant },
    /// To be removed.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Open,
    Ended,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: Watched,
    queue: Queue,
    pub(super) state: State,
    pub(super) input: Input,
    pub(super) has_sent: bool,
    pub(super) stdin_end: StdinEnd,
    pub(super) replay: Replay,
    /// The output has ended; it is told once it has what came before.
    is_done: bool,
    /// When it last took a packet, or began to lag.
    progress_at: Instant,
    /// Since when the container waits for it.
    lags_since: Option<Instant>,
    pub(super) was_cut_off: bool,
}

/// How a client's input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    HalfClose,
    Disconnect,
}

impl Client {
    pub(super) fn new(socket: Watched, stdin_end: StdinEnd, replay: Replay) -> Self {
        Self {
            socket,
            queue: Queue::default(),
            state: State::Live,
            input: Input::Open,
            has_sent: false,
            stdin_end,
            replay,
            is_done: false,
            progress_at: Instant::now(),
            lags_since: None,
            was_cut_off: false,
        }
    }

    pub(super) fn interest(&self, stdin_is_full: bool) -> EventFlags {
        let input = match (self.state, self.input) {
            // A hang-up is reported whatever is asked for; asking for just that keeps the rest quiet.
            (State::Parting { .. } | State::Gone, _) | (_, Input::Ended) => EventFlags::HUP,
            // Its last packets may be unread when it hangs up, so nothing is to be heard of it now.
            (State::Live, Input::Open) if stdin_is_full => EventFlags::empty(),
            (State::Live, Input::Open) => EventFlags::IN | EventFlags::RDHUP,
        };
        if self.queue.is_empty() || self.replay.is_due() { input } else { input | EventFlags::OUT }
    }

    pub(super) fn may_send_more(&self) -> bool {
        self.has_sent && self.input == Input::Open
    }

    pub(super) fn holds_back(&self) -> bool {
        // Earlier output does not count: it waits for the client, and nobody for it.
        self.state == State::Live
            && !self.replay.is_due()
            && self.queue.live_bytes() >= ATTACH_QUEUE_BYTES_MAX
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.state == State::Live
            && let Some(until) = self.replay.until()
        {
            return Some(until);
        }
        match self.state {
            State::Parting { until } => Some(until),
            State::Gone => None,
            State::Live if self.holds_back() => {
                let stalled = self.progress_at + ATTACH_STALL_MAX;
                Some(self.lags_since.map_or(stalled, |since| stalled.min(since + ATTACH_LAG_MAX)))
            }
            State::Live => None,
        }
    }

    /// Sends, or queues, output.
    pub(super) fn deliver(&mut self, kind: u8, bytes: &[u8]) {
        match self.replay {
            Replay::None => {}
            // It will be in the log by then.
            Replay::Wanted { .. } => return,
            Replay::Reading(_) if self.queue.bytes() + bytes.len() <= ATTACH_QUEUE_BYTES_MAX => {
                return self.queue.push(kind, bytes);
            }
            Replay::Reading(_) => self.give_up_replay("the container writes faster than its log is read"),
        }
        let mut rest = bytes;
        while self.queue.is_empty() && !rest.is_empty() {
            let (packet, tail) = rest.split_at(rest.len().min(PACKET_PAYLOAD_MAX));
            match self.send(&[io::IoSlice::new(&[kind]), io::IoSlice::new(packet)]) {
                Ok(()) => rest = tail,
                Err(Errno::AGAIN) => {
                    self.progress_at = Instant::now();
                    break;
                }
                Err(_) => return self.output_is_dead(),
            }
        }
        if self.queue.live_bytes() + rest.len() > QUEUE_BYTES_MAX {
            return self.cut_off(TOO_SLOW);
        }
        self.queue.push(kind, rest);
        if self.holds_back() && self.lags_since.is_none() {
            self.lags_since = Some(Instant::now());
        }
    }

    /// Sends what is queued, as far as the client takes it.
    pub(super) fn flush(&mut self) {
        if self.replay.is_due() {
            return;
        }
        for _ in 0..TURN_MAX {
            let Some(packet) = self.queue.front() else { break };
            match self.send(&[io::IoSlice::new(packet)]) {
                Ok(()) => {
                    self.queue.pop();
                    self.progress_at = Instant::now();
                }
                Err(Errno::AGAIN) => return,
                Err(_) => return self.output_is_dead(),
            }
        }
        if self.queue.is_empty() {
            self.lags_since = None;
            self.close_if_parting();
        } else if let State::Parting { until } = &mut self.state {
            *until = self.progress_at + ATTACH_PARTING_MAX;
        }
    }

    fn send(&self, parts: &[io::IoSlice<'_>]) -> Result<(), Errno> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match rustix::net::sendmsg(&self.socket, parts, &mut SendAncillaryBuffer::default(), flags) {
                // Packets go as a whole or not at all.
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The client does not receive any more. It may still have sent something.
    fn output_is_dead(&mut self) {
        self.queue.clear();
        self.lags_since = None;
        if self.input == Input::Ended || self.state != State::Live {
            self.state = State::Gone;
        }
    }

    /// Takes one packet.
    pub(super) fn receive(&mut self, flags: EventFlags, stdin: &mut Stdin, buffer: &mut [u8]) -> Option<End> {
        let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let received = rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC);
        match received {
            // An empty packet is no end: something follows.
            Ok((0, _)) if rustix::io::ioctl_fionread(&self.socket).is_ok_and(|left| left > 0) => None,
            Ok((0, _)) if hung_up => Some(End::Disconnect),
            Ok((0, _)) if flags.contains(EventFlags::RDHUP) => Some(End::HalfClose),
            Ok((0, _)) | Err(Errno::AGAIN | Errno::INTR) => None,
            // It went without having read all of its output. That is said once, before what it has sent.
            Err(Errno::CONNRESET) => None,
            Ok((_, sent)) if sent > buffer.len() => {
                self.cut_off("this client sent a packet that is too long");
                None
            }
            Ok((kept, _)) => {
                self.has_sent = true;
                stdin.push(buffer.get(..kept).unwrap_or_default());
                None
            }
            Err(_) => Some(End::Disconnect),
        }
    }

    /// Puts earlier output before what is queued.
    pub(super) fn replayed(&mut self, output: &[(Channel, Vec<u8>)]) {
        self.replay = Replay::None;
        let mut queue = Queue::default();
        output.iter().for_each(|(channel, bytes)| queue.push(kind(*channel), bytes));
        queue.append_live(std::mem::take(&mut self.queue));
        self.queue = queue;
        self.go_on();
    }

    /// The client gets what is queued, and is told that this is not all.
    pub(super) fn give_up_replay(&mut self, why: &str) {
        self.replay = Replay::None;
        let mut queue = Queue::default();
        let note = format!("\r\npodinit: earlier output is not replayed: {why}\r\n");
        queue.push(KIND_STDERR, note.as_bytes());
        queue.append_live(std::mem::take(&mut self.queue));
        self.queue = queue;
        self.go_on();
    }

    fn go_on(&mut self) {
        self.progress_at = Instant::now();
        if self.is_done { self.part_with(KIND_DONE, &[]) } else { self.flush() }
    }

    /// The output has ended: the client is told, after what is queued.
    pub(super) fn finish_output(&mut self) {
        self.is_done = true;
        if !self.replay.is_due() {
            self.part_with(KIND_DONE, &[]);
        }
    }

    /// Drops what is queued and says why.
    pub(super) fn cut_off(&mut self, why: &str) {
        self.was_cut_off = true;
        self.queue.clear();
        self.part_with(KIND_STDERR, format!("\r\npodinit: attach ended: {why}\r\n").as_bytes());
    }

    /// Queues a last packet; the client is closed when it has taken it.
    pub(super) fn part_with(&mut self, kind: u8, payload: &[u8]) {
        self.queue.push_packet(kind, payload);
        self.state = State::Parting { until: Instant::now() + ATTACH_PARTING_MAX };
        self.flush();
    }

    fn close_if_parting(&mut self) {
        if !matches!(self.state, State::Parting { .. }) {
            return;
        }
        self.state = State::Gone;
        // Closing a socket with unread input would reset the connection, and the client might miss
        // the end of its output.
        let mut scratch = [0; 64];
        for _ in 0..TURN_MAX {
            match rustix::net::recv(&self.socket, &mut scratch, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}
