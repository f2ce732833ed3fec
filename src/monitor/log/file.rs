//! The sink that is a file: it appends whole records, and never loses what it
//! once accepted.
//!
//! * The file is opened with mode 0600 and `O_APPEND` and is never truncated, not
//!   by opening, not by reopening, not by the size limit.
//! * A write that fails, wholly or in part, keeps the records that were not
//!   written ([`Backlog`]) and says [`Progress::Blocked`]; the caller then reads
//!   nothing more of that container until [`FileSink::retry`] has written them.
//!   The pipe fills, and the container waits: nothing is lost.
//! * Rotation happens between two records, when the next one would make the file
//!   larger than its limit: the file is renamed to `<path>.1` (see
//!   [`rotate`](super::rotate)) and a new one is made. A record is never split
//!   across the two.
//! * Reopening (after somebody else renamed the file) does nothing if `<path>` is
//!   still the file that is open, so it can be repeated. A record that was written
//!   in part into the old file is written wholly into the new one.
//! * What is in which file is counted, and each file carries its part of the
//!   account ([`account`](super::account)).
//! * Nothing here waits but for the file system, so that it can be called from any
//!   thread that may wait for that.
//! * A FIFO can be a log too. It is opened without waiting; while nobody reads it,
//!   that is a failed write like any other.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::account::Both;
use super::batch::{Batch, Channel, Gather, Written};
use super::compress::Compressor;
use super::gap::Gap;
use super::options::{FileOptions, SyncPolicy};
use super::reader::LogEnd;
use super::split::{Record, Tag};
use super::stamp::{Stamp, Stamper, Timestamp};
use super::{Amount, LogError, Progress, cri, json};
use crate::limits::{LOG_RETRY_MAX, LOG_RETRY_MIN};
use crate::sys::process::now_ns;

mod finish;

/// How records look in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// See [`cri`].
    Cri,
    /// See [`json`].
    Json,
}

impl Format {
    fn encode(self, batch: &Batch<'_>, record: &Record, gather: &mut Gather) {
        match self {
            Self::Cri => cri::Encoder::new(batch).encode(record, gather),
            Self::Json => json::encode(batch, record, gather),
        }
    }

    /// Exact bytes in the log.
    fn bytes(self, batch: &Batch<'_>, record: &Record) -> u64 {
        let bytes = match self {
            Self::Cri => cri::encoded_bytes(record),
            Self::Json => json::encoded_bytes(batch, record),
        };
        bytes as u64
    }

    /// Most bytes that the record can take in a gather's scratch space.
    fn scratch_bytes_max(self, record: &Record) -> usize {
        match self {
            Self::Cri => cri::encoded_bytes(record),
            Self::Json => json::encoded_bytes_max(record),
        }
    }

    fn gap(self, gap: &Gap, stamp: &Stamp) -> Vec<u8> {
        match self {
            Self::Cri => gap.to_cri(stamp),
            Self::Json => gap.to_json(stamp),
        }
    }
}

/// Which file it is, whatever its name.
type Identity = (u64, u64);

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    identity: Identity,
    kind: FileType,
    /// Bytes in the file.
    size: u64,
    /// What was in it when it was opened.
    from: u64,
    /// What the files before it hold.
    before: Both,
}

/// One accepted record that is not in the file yet.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    channel: Channel,
    bytes: usize,
    payload: usize,
    tag: Tag,
}

/// Encoded records that could not be written; those of one batch at most, and
/// empty (no heap) while all is well.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    records: VecDeque<Waiting>,
    /// Bytes of the first record that are in the file already.
    skip: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    format: Format,
    size_max: u64,
    options: FileOptions,
    open: Option<Open>,
    created: bool,
    /// Which sequence of files this is: see [`FileAccount::log`].
    log: u64,
    /// What is in the files, since this sink was opened.
    written: Both,
    compressor: Option<Compressor>,
    backlog: Backlog,
    retry_at: Option<Instant>,
    retry_after: Duration,
    rotate_again_at: Option<Instant>,
    /// Writes that failed, by the channel of their records.
    write_errors: [u64; 2],
    /// What failed that is not a write of records.
    other_errors: u64,
    last_error: Option<String>,
    /// What was lost since the sink was given up.
    lost: Option<[Amount; 2]>,
    /// The file ends within a record.
    torn: bool,
}

impl FileSink {
    /// Opens, or makes, the log at `path`, whose directory must exist. `size_max`
    /// is in bytes, 0 for no limit; `options` say what becomes of old files.
    ///
    /// # Errors
    /// If the file cannot be opened or is something that a log cannot be.
    pub fn open(path: &Path, format: Format, size_max: u64, options: FileOptions) -> Result<Self, LogError> {
        let failed = |errno: Errno| LogError::Open { path: path.to_owned(), source: errno.into() };
        let mut sink = Self {
            path: path.to_owned(),
            format,
            size_max,
            options,
            open: None,
            created: false,
            log: now_ns(),
            written: Both::default(),
            compressor: None,
            backlog: Backlog::default(),
            retry_at: None,
            retry_after: LOG_RETRY_MIN,
            rotate_again_at: None,
            write_errors: [0; 2],
            other_errors: 0,
            last_error: None,
            lost: None,
            torn: false,
        };
        match open_append(path, OFlags::CREATE | OFlags::EXCL) {
            Ok(open) => {
                sink.created = true;
                sink.open = Some(open);
            }
            Err(Errno::EXIST) => match open_append(path, OFlags::CREATE) {
                Ok(open) => sink.open = Some(open),
                // A FIFO that nobody reads yet; `retry` opens it.
                Err(Errno::NXIO) => {}
                Err(errno) => return Err(failed(errno)),
            },
            Err(errno) => return Err(failed(errno)),
        }
        match sink.open.as_ref().map(|open| open.kind) {
            None | Some(FileType::RegularFile | FileType::Fifo | FileType::CharacterDevice) => {}
            Some(_) => return Err(LogError::NotAFile { path: path.to_owned() }),
        }
        sink.end_torn_line();
        sink.begin_account();
        Ok(sink)
    }

    /// Removes the file if [`Self::open`] made it.
    pub fn undo(self) {
        let same = self.open.as_ref().is_some_and(|open| identity_at(&self.path) == Some(open.identity));
        if self.created && same {
            // Gone already is as good.
            let _gone = rustix::fs::unlink(&self.path);
        }
    }

    /// Writes the records of `batch`, or keeps what cannot be written now. Not to
    /// be called while blocked.
    pub fn write(&mut self, batch: &Batch<'_>, gather: &mut Gather) -> Progress {
        if let Some(lost) = &mut self.lost {
            for record in batch.records {
                lost[batch.channel.index()].add(Amount::of_record(record.payload_bytes(), record.tag));
            }
            return Progress::Kept;
        }
        match self.format {
            Format::Cri => {
                let encoder = cri::Encoder::new(batch);
                self.write_with(batch, gather, |record, gather| encoder.encode(record, gather))
            }
            Format::Json => {
                self.write_with(batch, gather, |record, gather| json::encode(batch, record, gather))
            }
        }
    }

    /// Writes the records of `batch` as `encode` gathers them.
    fn write_with(
        &mut self,
        batch: &Batch<'_>,
        gather: &mut Gather,
        encode: impl Fn(&Record, &mut Gather),
    ) -> Progress {
        let is_limited = self.size_max > 0;
        gather.clear();
        let mut first = 0;
        for (at, record) in batch.records.iter().enumerate() {
            let rotate = is_limited && self.passes_limit(gather.bytes(), || self.format.bytes(batch, record));
            if rotate || !gather.has_room(self.format.scratch_bytes_max(record)) {
                if let Err(written) = self.write_gathered(batch, gather) {
                    return self.keep(batch, first, written, gather);
                }
                self.count(batch, first, at);
                if rotate {
                    self.rotate();
                }
                gather.clear();
                first = at;
            }
            encode(record, gather);
        }
        match self.write_gathered(batch, gather) {
            Ok(()) => {
                self.count(batch, first, batch.records.len());
                Progress::Kept
            }
            Err(written) => self.keep(batch, first, written, gather),
        }
    }

    /// What is in the files of the log since this sink was opened, by channel. Gap
    /// records are not counted.
    #[must_use]
    pub fn written(&self) -> Both {
        self.written
    }

    /// Where the log ends now, if it is a regular file that is being written.
    #[must_use]
    pub fn end(&self) -> Option<(PathBuf, LogEnd)> {
        let open =
            self.open.as_ref().filter(|open| open.kind == FileType::RegularFile && self.lost.is_none())?;
        Some((self.path.clone(), LogEnd { file: open.identity, size: open.size }))
    }

    /// The records of `batch` from `first` up to `end` are in the file.
    fn count(&mut self, batch: &Batch<'_>, first: usize, end: usize) {
        let sums = &mut self.written[batch.channel.index()];
        for record in batch.records.get(first..end).unwrap_or_default() {
            sums.add_record(record.payload_bytes(), record.tag);
        }
    }

    /// Writes a gap record, or keeps it if it cannot be written now.
    pub fn note(&mut self, gap: &Gap, stamp: &Stamp) -> Progress {
        if self.lost.is_some() {
            return Progress::Kept;
        }
        let record = self.format.gap(gap, stamp);
        let waiting = Waiting { channel: gap.channel, bytes: record.len(), payload: 0, tag: Tag::Partial };
        self.backlog.bytes.extend_from_slice(&record);
        self.backlog.records.push_back(waiting);
        self.retry()
    }

    /// Tries again to write what could not be written.
    pub fn retry(&mut self) -> Progress {
        while !self.backlog.records.is_empty() {
            if self.open.is_none() {
                match open_append(&self.path, OFlags::CREATE) {
                    Ok(open) => self.replace(open),
                    Err(errno) => return self.failed(errno),
                }
            }
            let bytes = self.backlog_that_fits();
            if bytes == 0 {
                self.rotate();
                continue;
            }
            if let Err(errno) = self.write_backlog(bytes) {
                return self.failed(errno);
            }
        }
        self.backlog = Backlog::default();
        self.retry_at = None;
        self.retry_after = LOG_RETRY_MIN;
        Progress::Kept
    }

    /// When [`Self::retry`] is due, if anything waits.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Failed writes so far, by the channel of their records.
    #[must_use]
    pub fn write_errors(&self) -> [u64; 2] {
        self.write_errors
    }

    /// What failed besides, so far: rotations, compressing and synchronising files.
    #[must_use]
    pub fn other_errors(&self) -> u64 {
        self.other_errors
    }

    /// The last of them, for a person.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Opens `<path>` anew, unless that is the file that is open.
    ///
    /// # Errors
    /// If it cannot be opened; the old file then stays in use.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        // What was accepted before belongs into the old file, if that takes it.
        let _progress = self.retry();
        let current = self.open.as_ref().map(|open| open.identity);
        if current.is_some() && identity_at(&self.path) == current {
            return Ok(());
        }
        let open = open_append(&self.path, OFlags::CREATE)
            .map_err(|errno| LogError::Reopen { path: self.path.clone(), source: errno.into() })?;
        self.replace(open);
        let _progress = self.retry();
        Ok(())
    }

    /// Stops writing: what could not be written, and all that comes from now on, is
    /// lost and counted. [`Self::close`] tells it in the log.
    pub fn give_up(&mut self) {
        let backlog = std::mem::take(&mut self.backlog);
        self.retry_at = None;
        self.torn = backlog.skip > 0;
        self.lost = Some(Channel::ALL.map(|channel| backlog.amount(channel)));
    }

    /// Payload bytes of each channel that were lost.
    #[must_use]
    pub fn dropped(&self) -> [u64; 2] {
        self.lost.map_or([0; 2], |lost| lost.map(|amount| amount.bytes))
    }

    /// The log ends here: with gap records for what was lost, if the file takes that
    /// much, and its account.
    pub fn close(mut self) {
        if let Some(lost) = self.lost {
            self.write_gaps(lost);
        }
        if let Some(open) = self.open.take() {
            self.seal(&open, true);
            if self.options.sync == SyncPolicy::Exit {
                self.sync(&open);
            }
        }
    }

    fn write_gaps(&self, lost: [Amount; 2]) {
        let Some(open) = &self.open else { return };
        let stamp = Stamper::default().render(Timestamp::now());
        let mut gaps = if self.torn { vec![b'\n'] } else { Vec::new() };
        for (channel, Amount { bytes, lines }) in Channel::ALL.into_iter().zip(lost) {
            if bytes > 0 || lines > 0 {
                let reason = self.last_error.as_deref().unwrap_or_default();
                gaps.extend_from_slice(&self.format.gap(&Gap::new(channel, bytes, lines, reason), &stamp));
            }
        }
        // The log that has failed may fail again; the counters tell the loss in any case.
        let _written = rustix::io::write(&open.fd, &gaps);
    }

    fn passes_limit(&self, gathered: usize, record_bytes: impl FnOnce() -> u64) -> bool {
        let Some(open) = self.open.as_ref().filter(|_| self.size_max > 0) else { return false };
        let size = open.size + gathered as u64;
        size > 0
            && open.kind == FileType::RegularFile
            && size + record_bytes() > self.size_max
            && self.may_rotate()
    }

    /// A rotation that failed is not tried again for every record.
    fn may_rotate(&self) -> bool {
        self.rotate_again_at.is_none_or(|at| Instant::now() >= at)
    }

    fn write_gathered(&mut self, batch: &Batch<'_>, gather: &Gather) -> Result<(), Written> {
        let Some(open) = &mut self.open else {
            return Err(Written { bytes: 0, error: Some(Errno::NXIO) });
        };
        let written = gather.write_to(open.fd.as_fd(), batch);
        open.size += written.bytes as u64;
        if written.error.is_none() { Ok(()) } else { Err(written) }
    }

    /// Keeps the records from `first` on, of which `written` says how much is in
    /// the file.
    fn keep(&mut self, batch: &Batch<'_>, first: usize, written: Written, gather: &mut Gather) -> Progress {
        let mut in_file = written.bytes;
        for record in batch.records.get(first..).unwrap_or_default() {
            gather.clear();
            self.format.encode(batch, record, gather);
            let bytes = gather.bytes();
            if let Some(rest) = in_file.checked_sub(bytes) {
                in_file = rest;
                self.written[batch.channel.index()].add_record(record.payload_bytes(), record.tag);
                continue;
            }
            if self.backlog.records.is_empty() {
                self.backlog.skip = std::mem::take(&mut in_file);
            }
            gather.append_to(&mut self.backlog.bytes, batch);
            let (channel, payload, tag) = (batch.channel, record.payload_bytes(), record.tag);
            self.backlog.records.push_back(Waiting { channel, bytes, payload, tag });
        }
        self.failed(written.error.unwrap_or(Errno::IO))
    }

    fn failed(&mut self, errno: Errno) -> Progress {
        if errno == Errno::PIPE {
            // The FIFO's reader went. The next one shall not begin within a record.
            self.open = None;
            self.backlog.skip = 0;
        }
        // What failed is what waits, and that is of one channel.
        if let Some(first) = self.backlog.records.front() {
            self.write_errors[first.channel.index()] += 1;
        }
        self.last_error = Some(std::io::Error::from(errno).to_string());
        self.retry_at = Some(Instant::now() + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(LOG_RETRY_MAX);
        Progress::Blocked
    }

    /// Bytes of the backlog's first records that the file takes within its limit; 0
    /// if it is to be rotated first.
    fn backlog_that_fits(&self) -> usize {
        let mut bytes = 0;
        for (at, record) in self.backlog.records.iter().enumerate() {
            let begun = at == 0 && self.backlog.skip > 0;
            if !begun && self.passes_limit(bytes, || record.bytes as u64) {
                break;
            }
            bytes += record.bytes;
        }
        bytes
    }

    /// Writes the first `bytes` of the backlog, which end with a record.
    fn write_backlog(&mut self, bytes: usize) -> Result<(), Errno> {
        let Some(open) = &mut self.open else { return Err(Errno::NXIO) };
        while self.backlog.skip < bytes {
            let rest = self.backlog.bytes.get(self.backlog.skip..bytes).unwrap_or_default();
            let written = match rustix::io::write(&open.fd, rest) {
                Ok(0) => Err(Errno::IO),
                other => other,
            };
            match written {
                Ok(written) => {
                    open.size += written as u64;
                    self.backlog.skip += written;
                }
                Err(errno) => {
                    self.backlog.forget_written(&mut self.written);
                    return Err(errno);
                }
            }
        }
        self.backlog.forget_written(&mut self.written);
        Ok(())
    }

    /// A monitor that died may have left half a record at the end of the file. It
    /// gets a newline, so that it cannot swallow our first record.
    fn end_torn_line(&mut self) {
        let Some(open) = self.open.as_mut().filter(|open| open.size > 0) else { return };
        let mut last = [0];
        let whole = rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|fd| rustix::io::pread(&fd, &mut last, open.size - 1))
            .is_ok_and(|read| read == 0 || last == *b"\n");
        if open.kind == FileType::RegularFile
            && !whole
            && let Ok(written) = rustix::io::write(&open.fd, b"\n")
        {
            open.size += written as u64;
        }
    }
}

impl Backlog {
    /// Removes the records that `skip` covers; they are `written`.
    fn forget_written(&mut self, written: &mut Both) {
        let mut bytes = 0;
        while let Some(first) = self.records.front() {
            if self.skip - bytes < first.bytes {
                break;
            }
            bytes += first.bytes;
            // A gap record is no output.
            if first.payload > 0 || first.tag == Tag::Full {
                written[first.channel.index()].add_record(first.payload, first.tag);
            }
            self.records.pop_front();
        }
        self.bytes.drain(..bytes);
        self.skip -= bytes;
    }

    fn amount(&self, channel: Channel) -> Amount {
        let mut amount = Amount::default();
        for record in self.records.iter().filter(|record| record.channel == channel) {
            amount.add(Amount::of_record(record.payload, record.tag));
        }
        amount
    }
}

fn open_append(path: &Path, how: OFlags) -> Result<Open, Errno> {
    // Non-blocking for FIFOs only; a regular file does not know it.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags | how, Mode::RUSR | Mode::WUSR)?;
    let stat = rustix::fs::fstat(&fd)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let kind = FileType::from_raw_mode(stat.st_mode);
    let identity = (stat.st_dev, stat.st_ino);
    Ok(Open { fd, identity, kind, size, from: size, before: Both::default() })
}

fn identity_at(path: &Path) -> Option<Identity> {
    rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests;
