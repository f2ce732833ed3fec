//! Earlier output for a client that has just come: read from the log by a thread
//! of its own, which the relay does not wait for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};

use super::poll::{self, Token, Watched};
use crate::limits::ATTACH_REPLAY_TIMEOUT;
use crate::monitor::log::batch::Channel;
use crate::monitor::log::{Tail, reader};

/// Output in the order in which it was logged, or why it cannot be had.
type Output = Result<Vec<(Channel, Vec<u8>)>, String>;

/// What a client is still to be given of the past.
#[derive(Debug)]
pub(super) enum Replay {
    /// Nothing (any more).
    None,
    /// So many bytes, once the log has all that was read. What is read before that
    /// is not for the client now: it will be in the log.
    Wanted { bytes: usize, until: Instant },
    /// It is being read; what comes is queued.
    Reading(Reading),
}

impl Replay {
    pub(super) fn wanted(bytes: usize) -> Self {
        match bytes {
            0 => Self::None,
            bytes => Self::Wanted { bytes, until: Instant::now() + ATTACH_REPLAY_TIMEOUT },
        }
    }

    pub(super) fn is_due(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Wanted { until, .. } | Self::Reading(Reading { until, .. }) => Some(*until),
        }
    }

    /// Whether an event of `token` says that it has been read.
    pub(super) fn is_told_by(&self, token: Token) -> bool {
        matches!(self, Self::Reading(reading) if reading.told.token() == token)
    }
}

/// A thread that reads.
#[derive(Debug)]
pub(super) struct Reading {
    told: Watched,
    output: Receiver<Output>,
    until: Instant,
}

impl Reading {
    /// Starts it, for the end of the log as it is now. `token` is free; `neighbour`
    /// is watched by the same epoll.
    pub(super) fn start(wanted: &Replay, end: Tail, neighbour: &Watched, token: Token) -> io::Result<Self> {
        let (Replay::Wanted { bytes, .. }, Some(until)) = (wanted, wanted.until()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let ours = eventfd(0, flags)?;
        let theirs: OwnedFd = ours.try_clone()?;
        let mut told = neighbour.sibling(ours, token)?;
        told.set(EventFlags::IN)?;
        let (sender, output) = sync_channel(1);
        let bytes = *bytes;
        std::thread::Builder::new().name("replay".to_owned()).spawn(move || {
            // A client that has gone meanwhile does not listen any more.
            sender.send(read(&end, bytes)).ok();
            poll::wake(&theirs);
        })?;
        Ok(Self { told, output, until })
    }

    /// What was read, once it was.
    pub(super) fn take(&mut self) -> Option<Output> {
        self.output.try_recv().ok()
    }
}

fn read(end: &Tail, bytes: usize) -> Output {
    let held = end.held.iter().map(Vec::len).sum();
    let logged = reader::last_output(&end.path, end.end, bytes.saturating_sub(held));
    let mut output = logged.map_err(|error| error.to_string())?;
    // The beginning of a line that has no end yet is in no record.
    output.extend(Channel::ALL.into_iter().zip(end.held.iter().cloned()));
    Ok(output)
}
