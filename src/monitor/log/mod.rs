//! Container logs: from bytes to records in a file or the journal.
//!
//! ```text
//!  chunk ──► split (pure) ──► records ──► cri | json (pure) ──► file
//!                                  └────► journald (pure part) ──► datagram
//! ```
//!
//! A [`LogSet`] is all the logs of one container. Its owner, the relay, gives it
//! what it reads, and asks nothing but whether it may read on ([`Progress`]).
//! Nothing here waits, and no error ends anything: a sink that fails is
//! [`Progress::Blocked`] until it works again.
//!
//! A write may block in the kernel; the relay has it done where that delays nobody
//! else. What each sink does when it cannot write:
//!
//! | sink | policy |
//! | --- | --- |
//! | file (CRI, JSON) | blocked, and retried on a timer; whether the container waits meanwhile is [`limit::WhenStuck`] |
//! | journald, slow | *block*, at most [`JOURNAL_STALL_MAX`](crate::limits::JOURNAL_STALL_MAX), then as if it were absent |
//! | journald, absent | dropped and counted, and said in the journal when it is back |
//!
//! The journal may lose records because a machine without journald must still run
//! containers; whoever needs every byte adds a file.
#![forbid(unsafe_code)]

pub mod account;
pub mod audit;
pub mod batch;
pub mod compress;
pub mod cri;
pub mod decode;
pub mod file;
pub mod gap;
pub mod journald;
pub mod json;
pub mod limit;
pub mod options;
mod parts;
pub mod reader;
pub mod ring;
pub mod rotate;
pub mod split;
pub mod stamp;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use account::Both;
use batch::{Batch, Channel, Gather};
use file::{FileSink, Format};
use gap::Gap;
use options::FileOptions;
use serde::{Deserialize, Serialize};

use journald::{Identity, JournaldSink};
use reader::LogEnd;
use split::{Record, Splitter, Tag};
use stamp::Stamp;

use crate::limits::LOG_BATCH_RECORDS_MAX;

/// Why a log could not be opened. Errors of writing never reach a caller: they
/// are retried and counted.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file could not be opened or made.
    #[error("open container log {path:?}: {source}; its directory must exist and be writable")]
    Open {
        /// The log's path.
        path: PathBuf,
        /// What open(2) said.
        source: io::Error,
    },
    /// There is something that is not a file.
    #[error("open container log {path:?}: it is neither a regular file nor a FIFO; choose another path")]
    NotAFile {
        /// The log's path.
        path: PathBuf,
    },
    /// The file could not be opened anew; the old one stays in use.
    #[error("reopen container log {path:?}: {source}; the log goes on in the file that was open before")]
    Reopen {
        /// The log's path.
        path: PathBuf,
        /// What open(2) said.
        source: io::Error,
    },
    /// No socket could be made for the journal.
    #[error("make a socket for the journal: {source}")]
    Journal {
        /// What socket(2) said.
        source: io::Error,
    },
    /// The relay does not know this stream (any more).
    #[error("reopen container logs: the container's streams have ended")]
    Ended,
}

/// Which log driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogKind {
    /// A file as kubelet reads it ([`cri`]).
    Cri,
    /// A file as docker's json-file driver writes it ([`json`]).
    Json,
    /// The journal ([`journald`]).
    Journald,
}

/// One log of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The driver.
    pub kind: LogKind,
    /// The file; not used for the journal.
    pub path: PathBuf,
    /// The greatest size of the file in bytes, 0 for none. The next record would
    /// pass it: the file is renamed to `<path>.1` and a new one is made.
    pub size_max: u64,
    /// How the file and its backups are kept; not used for the journal.
    #[serde(default)]
    pub file: FileOptions,
}

impl LogConfig {
    /// A log without a greatest size, kept as nobody has asked otherwise.
    #[must_use]
    pub fn new(kind: LogKind, path: impl Into<PathBuf>) -> Self {
        Self { kind, path: path.into(), size_max: 0, file: FileOptions::default() }
    }
}

/// Whether the caller may bring more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Everything is written (or held as the start of a line).
    Kept,
    /// Something could not be written. Bring nothing more until
    /// [`LogSet::retry`] says `Kept`.
    Blocked,
}

/// Buffers that all logs of a thread share: a quiet container costs none.
#[derive(Debug)]
pub struct Buffers {
    records: Vec<Record>,
    gather: Gather,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { records: Vec::with_capacity(LOG_BATCH_RECORDS_MAX), gather: Gather::default() }
    }
}

/// What happened on one channel so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records that ended a line.
    pub lines: u64,
    /// Records that did not.
    pub partials: u64,
}

#[derive(Debug)]
enum Driver {
    File(Box<FileSink>),
    Journald(Box<JournaldSink>),
}

/// All logs of one container. Without a log it only counts.
#[derive(Debug, Default)]
pub struct LogSet {
    drivers: Vec<Driver>,
    splitters: [Splitter; 2],
    counters: [Counters; 2],
    /// What came after the batch that a sink failed on.
    rest: VecDeque<Item>,
    blocked: bool,
    /// Of sinks that are closed.
    write_errors: [u64; 2],
    other_errors: u64,
    last_error: Option<String>,
    dropped: [u64; 2],
    written: Option<Both>,
    /// Bytes of lines that are not of the container.
    added: [u64; 2],
}

/// The end of a log, as of some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The log's path.
    pub path: PathBuf,
    /// The end of what was written.
    pub end: LogEnd,
    /// What follows it, by [`Channel::index`].
    pub held: [Vec<u8>; 2],
}

/// Something that has to wait until it can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Output.
    Bytes {
        /// Of which stream.
        channel: Channel,
        /// When it was read.
        stamp: Stamp,
        /// As it was read.
        bytes: Vec<u8>,
    },
    /// Output that is missing here.
    Gap {
        /// How much.
        gap: Gap,
        /// When it began to be missing.
        stamp: Stamp,
    },
}

impl Item {
    /// The stream it is of.
    #[must_use]
    pub fn channel(&self) -> Channel {
        match self {
            Self::Bytes { channel, .. } => *channel,
            Self::Gap { gap, .. } => gap.channel,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Bytes { bytes, .. } => bytes.len(),
            Self::Gap { .. } => 0,
        }
    }
}

impl LogSet {
    /// No log.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens all of `configs`, or none: what was made for the others is removed
    /// when one fails. Journal entries carry no container id; see
    /// [`Self::open_as`].
    ///
    /// # Errors
    /// The first log that cannot be opened.
    pub fn open(configs: &[LogConfig]) -> Result<Self, LogError> {
        Self::open_as(configs, &Identity::default())
    }

    /// Like [`Self::open`], for the container that `identity` describes in the
    /// journal.
    ///
    /// # Errors
    /// The first log that cannot be opened.
    pub fn open_as(configs: &[LogConfig], identity: &Identity) -> Result<Self, LogError> {
        let mut set = Self::none();
        for config in configs {
            let file = |format| FileSink::open(&config.path, format, config.size_max, config.file);
            let driver = match config.kind {
                LogKind::Cri => file(Format::Cri).map(|sink| Driver::File(Box::new(sink))),
                LogKind::Json => file(Format::Json).map(|sink| Driver::File(Box::new(sink))),
                LogKind::Journald => {
                    JournaldSink::open(identity).map(|sink| Driver::Journald(Box::new(sink)))
                }
            };
            match driver {
                Ok(driver) => set.drivers.push(driver),
                Err(error) => {
                    set.undo();
                    return Err(error);
                }
            }
        }
        Ok(set)
    }

    /// Removes the files that [`Self::open`] made: for a container that did not
    /// come to be.
    pub fn undo(self) {
        for driver in self.drivers {
            if let Driver::File(sink) = driver {
                sink.undo();
            }
        }
    }

    /// Writes what was read from `channel` at `stamp`. While blocked, it is kept
    /// and written by [`Self::retry`].
    pub fn write(
        &mut self,
        channel: Channel,
        chunk: &[u8],
        stamp: &Stamp,
        buffers: &mut Buffers,
    ) -> Progress {
        if self.drivers.is_empty() {
            self.counters[channel.index()].lines += memchr::memchr_iter(b'\n', chunk).count() as u64;
            return Progress::Kept;
        }
        let mut rest = chunk;
        if self.blocked {
            self.keep_rest(channel, stamp, rest);
            return Progress::Blocked;
        }
        loop {
            let cut = self.splitters[channel.index()].split(rest, &mut buffers.records);
            let progress = self.write_records(channel, rest, stamp, buffers);
            self.splitters[channel.index()].commit(rest, cut);
            rest = rest.get(cut.consumed..).unwrap_or_default();
            if cut.exhausted {
                return progress;
            }
            if progress == Progress::Blocked {
                self.keep_rest(channel, stamp, rest);
                return progress;
            }
        }
    }

    fn keep_rest(&mut self, channel: Channel, stamp: &Stamp, rest: &[u8]) {
        self.rest.push_back(Item::Bytes { channel, stamp: *stamp, bytes: rest.to_vec() });
    }

    /// Leaves a gap record in every log. A line that was begun before it is cut
    /// there: what follows the gap is not its end.
    pub fn note(&mut self, gap: Gap, stamp: &Stamp, buffers: &mut Buffers) -> Progress {
        if self.blocked {
            self.rest.push_back(Item::Gap { gap, stamp: *stamp });
            return Progress::Blocked;
        }
        if self.finish(gap.channel, stamp, buffers) == Progress::Blocked {
            self.rest.push_front(Item::Gap { gap, stamp: *stamp });
            return Progress::Blocked;
        }
        for driver in &mut self.drivers {
            self.blocked |= driver.note(&gap, stamp) == Progress::Blocked;
        }
        self.progress()
    }

    /// Writes what had to wait.
    pub fn take(&mut self, item: Item, buffers: &mut Buffers) -> Progress {
        match item {
            Item::Bytes { channel, stamp, bytes } => self.write(channel, &bytes, &stamp, buffers),
            Item::Gap { gap, stamp } => self.note(gap, &stamp, buffers),
        }
    }

    fn progress(&self) -> Progress {
        if self.blocked { Progress::Blocked } else { Progress::Kept }
    }

    /// Gives the records in `buffers` to every driver.
    fn write_records(
        &mut self,
        channel: Channel,
        chunk: &[u8],
        stamp: &Stamp,
        buffers: &mut Buffers,
    ) -> Progress {
        let Buffers { records, gather } = buffers;
        if records.is_empty() {
            return Progress::Kept;
        }
        let counters = &mut self.counters[channel.index()];
        let full = records.iter().filter(|record| record.tag == Tag::Full).count();
        counters.lines += full as u64;
        counters.partials += (records.len() - full) as u64;
        let held = self.splitters[channel.index()].held();
        let batch = Batch { channel, stamp, held, chunk, records };
        for driver in &mut self.drivers {
            self.blocked |= driver.write(&batch, gather) == Progress::Blocked;
        }
        self.progress()
    }

    /// Writes whole lines that are not of the container, as records of stderr (of
    /// stdout while a line of stderr is only partly written). False if nothing was
    /// written: there is no log, or none can be written now.
    pub fn add_lines(&mut self, lines: &[u8], stamp: &Stamp, buffers: &mut Buffers) -> bool {
        let apart = |channel: &Channel| !self.splitters[channel.index()].is_within_line();
        let channel = [Channel::Stderr, Channel::Stdout].into_iter().find(apart);
        let Some(channel) = channel.filter(|_| !self.drivers.is_empty() && !self.blocked) else {
            return false;
        };
        // The container's own: its lines are what they count, and what they hold is not touched.
        let counters = self.counters;
        let own = std::mem::take(&mut self.splitters[channel.index()]);
        let progress = self.write(channel, lines, stamp, buffers);
        let unseen = self.rest.iter().map(Item::bytes).sum::<usize>();
        self.added[channel.index()] += lines.len().saturating_sub(unseen) as u64;
        self.splitters[channel.index()] = own;
        self.counters = counters;
        if progress == Progress::Blocked {
            // What they have seen is kept by them; the rest would be taken for the container's.
            self.rest.clear();
        }
        true
    }

    /// The end of `channel`: writes the line that has no end, if there is one. Not
    /// to be called while blocked.
    pub fn finish(&mut self, channel: Channel, stamp: &Stamp, buffers: &mut Buffers) -> Progress {
        buffers.records.clear();
        buffers.records.extend(self.splitters[channel.index()].last());
        let progress = self.write_records(channel, &[], stamp, buffers);
        self.splitters[channel.index()].clear();
        progress
    }

    /// There is no log: everything is only counted.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.drivers.is_empty()
    }

    /// A write is outstanding.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// When [`Self::retry`] is due.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.drivers.iter().filter_map(Driver::retry_at).min()
    }

    /// Tries again to write what could not be written.
    pub fn retry(&mut self, buffers: &mut Buffers) -> Progress {
        let mut blocked = false;
        for driver in &mut self.drivers {
            blocked |= driver.retry() == Progress::Blocked;
        }
        self.blocked = blocked;
        if blocked {
            return Progress::Blocked;
        }
        // What cannot be written even now comes to the front again, in its order.
        let mut rest = std::mem::take(&mut self.rest);
        while let Some(item) = rest.pop_front() {
            if self.take(item, buffers) == Progress::Blocked {
                break;
            }
        }
        self.rest.append(&mut rest);
        self.progress()
    }

    /// Opens every file anew that is no longer the one at its path.
    ///
    /// # Errors
    /// The first that cannot be opened; the others are opened nevertheless.
    pub fn reopen(&mut self, buffers: &mut Buffers) -> Result<(), LogError> {
        let mut result = Ok(());
        for driver in &mut self.drivers {
            if let Driver::File(sink) = driver {
                let reopened = sink.reopen();
                result = result.and(reopened);
            }
        }
        if self.blocked {
            // It may be the new file that ends the trouble.
            let _progress = self.retry(buffers);
        }
        result
    }

    /// Gives up the blocked sinks: what they have not taken, and all that comes, is
    /// lost to them and counted. The others get what they have not seen, and go on.
    pub fn give_up(&mut self, buffers: &mut Buffers) {
        // Handing the rest to the others may block one of those.
        while self.blocked {
            for driver in self.drivers.iter_mut().filter(|driver| driver.retry_at().is_some()) {
                driver.give_up();
            }
            let _progress = self.retry(buffers);
        }
    }

    /// The end of the logs: where something was lost, the log says so if it can.
    pub fn close(&mut self) {
        (self.write_errors, self.other_errors) = (self.write_errors(), self.other_errors());
        self.last_error = self.last_error().map(str::to_owned);
        self.dropped = Channel::ALL.map(|channel| self.dropped(channel));
        self.written = self.written();
        for driver in std::mem::take(&mut self.drivers) {
            if let Driver::File(sink) = driver {
                sink.close();
            }
        }
    }

    /// Payload bytes of `channel` that a log could not keep, summed over the logs.
    #[must_use]
    pub fn dropped(&self, channel: Channel) -> u64 {
        let now: u64 = self.drivers.iter().map(|driver| driver.dropped()[channel.index()]).sum();
        self.dropped[channel.index()] + now
    }

    /// What is in the first log that is a file, since it was opened; `None` if no
    /// log is.
    #[must_use]
    pub fn written(&self) -> Option<Both> {
        let now = self.drivers.iter().find_map(|driver| match driver {
            Driver::File(sink) => Some(sink.written()),
            Driver::Journald(_) => None,
        });
        now.or(self.written)
    }

    /// Bytes that [`Self::add_lines`] brought into the logs, by [`Channel::index`].
    #[must_use]
    pub fn added(&self) -> [u64; 2] {
        self.added
    }

    /// A log is a regular file.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.drivers.iter().any(|driver| matches!(driver, Driver::File(sink) if sink.end().is_some()))
    }

    /// Where the first log that is a file ends, at a moment at which everything that
    /// was brought here is in it or held as the start of a line; `None` at others.
    #[must_use]
    pub fn tail(&self) -> Option<Tail> {
        if self.blocked || !self.rest.is_empty() {
            return None;
        }
        let (path, end) = self.drivers.iter().find_map(|driver| match driver {
            Driver::File(sink) => sink.end(),
            Driver::Journald(_) => None,
        })?;
        let held = Channel::ALL.map(|channel| self.splitters[channel.index()].held().to_vec());
        Some(Tail { path, end, held })
    }

    /// What happened on `channel` so far.
    #[must_use]
    pub fn counters(&self, channel: Channel) -> Counters {
        self.counters[channel.index()]
    }

    /// Failed writes so far, by the [`Channel::index`] of what was to be written.
    #[must_use]
    pub fn write_errors(&self) -> [u64; 2] {
        let now = self.drivers.iter().map(Driver::write_errors);
        now.fold(self.write_errors, |[out, err], [out_more, err_more]| [out + out_more, err + err_more])
    }

    /// What failed besides, so far: rotations, compressing and synchronising files.
    #[must_use]
    pub fn other_errors(&self) -> u64 {
        self.other_errors + self.drivers.iter().map(Driver::other_errors).sum::<u64>()
    }

    /// The last failed write, for a person.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.drivers.iter().find_map(Driver::last_error).or(self.last_error.as_deref())
    }
}

impl Driver {
    fn write(&mut self, batch: &Batch<'_>, gather: &mut Gather) -> Progress {
        match self {
            Self::File(sink) => sink.write(batch, gather),
            Self::Journald(sink) => sink.write(batch),
        }
    }

    fn note(&mut self, gap: &Gap, stamp: &Stamp) -> Progress {
        match self {
            Self::File(sink) => sink.note(gap, stamp),
            Self::Journald(sink) => sink.note(gap),
        }
    }

    fn retry(&mut self) -> Progress {
        match self {
            Self::File(sink) => sink.retry(),
            Self::Journald(sink) => sink.retry(),
        }
    }

    fn retry_at(&self) -> Option<Instant> {
        match self {
            Self::File(sink) => sink.retry_at(),
            Self::Journald(sink) => sink.retry_at(),
        }
    }

    fn write_errors(&self) -> [u64; 2] {
        match self {
            Self::File(sink) => sink.write_errors(),
            Self::Journald(sink) => sink.write_errors(),
        }
    }

    fn other_errors(&self) -> u64 {
        match self {
            Self::File(sink) => sink.other_errors(),
            Self::Journald(_) => 0,
        }
    }

    fn last_error(&self) -> Option<&str> {
        match self {
            Self::File(sink) => sink.last_error(),
            Self::Journald(sink) => sink.last_error(),
        }
    }

    fn dropped(&self) -> [u64; 2] {
        match self {
            Self::File(sink) => sink.dropped(),
            Self::Journald(sink) => sink.dropped(),
        }
    }

    fn give_up(&mut self) {
        match self {
            Self::File(sink) => sink.give_up(),
            Self::Journald(sink) => sink.give_up(),
        }
    }
}

/// What a [`LogSet`] tells of itself, for when it is away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogReport {
    /// What happened on each channel so far.
    pub counters: [Counters; 2],
    /// Payload bytes of each channel that a log could not keep.
    pub dropped: [u64; 2],
    /// [`LogSet::write_errors`].
    pub write_errors: [u64; 2],
    /// [`LogSet::other_errors`].
    pub other_errors: u64,
    /// The last of all errors, for a person.
    pub last_error: Option<String>,
    /// A write is outstanding.
    pub blocked: bool,
    /// When to try again.
    pub retry_at: Option<Instant>,
    /// [`LogSet::written`].
    pub written: Option<Both>,
    /// [`LogSet::added`].
    pub added: [u64; 2],
}

impl LogReport {
    /// Brings the report up to date.
    pub fn update(&mut self, logs: &LogSet) {
        self.counters = logs.counters;
        self.dropped = Channel::ALL.map(|channel| logs.dropped(channel));
        let errors = (logs.write_errors(), logs.other_errors());
        if (self.write_errors, self.other_errors) != errors {
            self.last_error = logs.last_error().map(str::to_owned);
        }
        (self.write_errors, self.other_errors) = errors;
        self.blocked = logs.is_blocked();
        self.retry_at = logs.retry_at();
        self.written = logs.written();
        self.added = logs.added();
    }
}

/// An amount of output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Payload bytes, newlines not counted.
    pub bytes: u64,
    /// Newlines.
    pub lines: u64,
}

impl Amount {
    fn of_record(payload: usize, tag: Tag) -> Self {
        Self { bytes: payload as u64, lines: u64::from(tag == Tag::Full) }
    }

    /// Of bytes as they were read.
    pub(super) fn of_output(bytes: &[u8]) -> Self {
        let lines = memchr::memchr_iter(b'\n', bytes).count();
        Self { bytes: (bytes.len() - lines) as u64, lines: lines as u64 }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.lines += other.lines;
    }
}
