//! What may wait for a disk: everything that touches a log. A stream gives its
//! logs away for one [`Job`] and gets them back with [`Done`]; until then nothing
//! of the job belongs to the engine, so that another thread can go on with it.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Reply, StreamId};
use crate::limits::RELAY_READ_BYTES;
use crate::monitor::log::batch::Channel;
use crate::monitor::log::gap::Gap;
use crate::monitor::log::stamp::{Stamp, Stamper, Timestamp};
use crate::monitor::log::{Buffers, Item, LogError, LogSet};

/// What all streams share, and a job takes along.
#[derive(Debug)]
pub(super) struct Shared {
    /// What is read goes here.
    pub(super) read: Vec<u8>,
    pub(super) stamper: Stamper,
    logs: Buffers,
}

impl Default for Shared {
    fn default() -> Self {
        Self { read: vec![0; RELAY_READ_BYTES], logs: Buffers::default(), stamper: Stamper::default() }
    }
}

/// A part of the read buffer that is to be logged.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) channel: Channel,
    pub(super) range: Range<usize>,
    pub(super) stamp: Stamp,
    /// What is missing before it.
    pub(super) gap: Option<Gap>,
}

/// What is to be done with a stream's logs.
pub(super) enum Work {
    Chunk(Chunk),
    /// What had to wait for an earlier job.
    Items(VecDeque<Item>),
    /// Try again what could not be written.
    Retry,
    /// Do not try any more.
    GiveUp,
    /// The channel has ended.
    End(Channel, Option<Gap>),
    Reopen(Vec<Reply<Result<(), LogError>>>),
    /// Lines that are not the container's.
    AddLines(Vec<(Vec<u8>, Reply<bool>)>),
    /// Nothing more comes; what is missing at the end.
    Close(Vec<Gap>),
    /// The container did not come to be.
    Undo,
}

impl Work {
    /// It writes output of `channel` that was not brought to the logs before.
    pub(super) fn brings(&self, channel: Channel) -> bool {
        match self {
            Self::Chunk(chunk) => chunk.channel == channel,
            Self::Items(items) => items.iter().any(|item| item.channel() == channel),
            Self::End(ended, _) => *ended == channel,
            Self::Close(gaps) => gaps.iter().any(|gap| gap.channel == channel),
            Self::Retry | Self::GiveUp | Self::Reopen(_) | Self::AddLines(_) | Self::Undo => false,
        }
    }
}

/// Work, and all that it needs.
pub(super) struct Job {
    pub(super) id: StreamId,
    pub(super) logs: Box<LogSet>,
    pub(super) shared: Box<Shared>,
    pub(super) work: Work,
}

/// A job that has been done.
pub(super) struct Done {
    pub(super) id: StreamId,
    /// `None` if there are no logs any more.
    pub(super) logs: Option<Box<LogSet>>,
    pub(super) shared: Option<Box<Shared>>,
}

impl Job {
    /// Does it, however long it takes.
    pub(super) fn run(self) -> Done {
        let id = self.id;
        // A bug that one container's bytes can trigger must not end the others' relay.
        let done = catch_unwind(AssertUnwindSafe(|| self.perform()));
        done.unwrap_or(Done { id, logs: None, shared: None })
    }

    fn perform(self) -> Done {
        let Self { id, mut logs, mut shared, work } = self;
        let Shared { read, logs: buffers, stamper } = &mut *shared;
        let mut now = || stamper.render(Timestamp::now());
        // Whatever cannot be written now stays in the logs, and they say so when they are back.
        match work {
            Work::Chunk(Chunk { channel, range, stamp, gap }) => {
                if let Some(gap) = gap {
                    let _progress = logs.note(gap, &stamp, buffers);
                }
                let bytes = read.get(range).unwrap_or_default();
                let _progress = logs.write(channel, bytes, &stamp, buffers);
            }
            Work::Items(items) => {
                for item in items {
                    let _progress = logs.take(item, buffers);
                }
            }
            Work::Retry => {
                let _progress = logs.retry(buffers);
            }
            Work::GiveUp => logs.give_up(buffers),
            Work::End(channel, gap) => {
                let stamp = now();
                if let Some(gap) = gap {
                    let _progress = logs.note(gap, &stamp, buffers);
                }
                let _progress = logs.finish(channel, &stamp, buffers);
            }
            Work::Reopen(replies) => {
                for reply in replies {
                    reply(logs.reopen(buffers));
                }
            }
            Work::AddLines(others) => {
                for (lines, reply) in others {
                    reply(logs.add_lines(&lines, &now(), buffers));
                }
            }
            Work::Close(gaps) => {
                for gap in gaps {
                    let _progress = logs.note(gap, &now(), buffers);
                }
                logs.close();
            }
            Work::Undo => {
                logs.undo();
                return Done { id, logs: None, shared: Some(shared) };
            }
        }
        Done { id, logs: Some(logs), shared: Some(shared) }
    }
}
