//! The files of a log: the one at its path, and those before it that lie beside
//! it, plain or compressed, whoever renamed them.
//!
//! Ours are `<path>.1`, `<path>.2` and so on, the greatest number the oldest;
//! kubelet's are `<path>.<date>-<time>`. Each kind is in order by its names; where
//! both are there, the times of their first records say how they belong together.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{Mode, OFlags};

use super::account::{Both, FileAccount};
use super::batch::Channel;
use super::decode::{Record, decode, leading_time};
use super::reader::{Lines, ReadError};
use super::rotate::directory;
use super::split::Tag;
use super::stamp::Timestamp;
use crate::limits::{LOG_LISTING_ATTEMPTS_MAX, LOG_READ_FILES_MAX, LOG_READ_RECORD_BYTES_MAX};

/// Bytes read from a file at a time.
pub(super) const READ_BYTES: usize = 64 << 10;

/// Which file it is, whatever its name.
pub(super) type Identity = (u64, u64);

/// What a rotated file is called, after the log's name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Suffix {
    /// Ours: so many rotations ago.
    Number(u64),
    /// kubelet's.
    Date(String),
}

impl Suffix {
    /// Of a file name that is `log` and something more.
    fn of(name: &[u8], log: &[u8]) -> Option<(Self, bool)> {
        let suffix = std::str::from_utf8(name.strip_prefix(log)?.strip_prefix(b".")?).ok()?;
        let (suffix, is_compressed) = match suffix.strip_suffix(".gz") {
            Some(plain) => (plain, true),
            None => (suffix, false),
        };
        let is_date = |date: &str, time: &str| {
            (date.len(), time.len()) == (8, 6)
                && date.bytes().chain(time.bytes()).all(|digit| digit.is_ascii_digit())
        };
        let suffix = match suffix.split_once('-') {
            Some((date, time)) if is_date(date, time) => Self::Date(suffix.to_owned()),
            None if suffix.bytes().all(|digit| digit.is_ascii_digit()) => Self::Number(suffix.parse().ok()?),
            _ => return None,
        };
        Some((suffix, is_compressed))
    }

    /// Among those of the same kind, the older one first.
    fn by_age(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(one), Self::Number(two)) => two.cmp(one),
            (Self::Date(one), Self::Date(two)) => one.cmp(two),
            (Self::Number(_), Self::Date(_)) => Ordering::Less,
            (Self::Date(_), Self::Number(_)) => Ordering::Greater,
        }
    }
}

/// How the bytes are in the file.
#[derive(Debug)]
enum Source {
    Plain,
    /// And where in the decompressed bytes the decoder is.
    Gzip(Box<MultiGzDecoder<File>>, u64),
}

/// An open file of a log.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    source: Source,
    /// From where on it is to be read, in uncompressed bytes.
    pub(super) at: u64,
}

/// What is looked for backwards from the end of a log: where its last lines begin.
#[derive(Debug)]
pub(super) struct Tail {
    /// Lines that are still to be found.
    pub(super) missing: usize,
    channel: Option<Channel>,
    /// Channels of which a record was seen: the last record of one ends its last
    /// line even if that has no newline.
    seen: [bool; 2],
}

impl Tail {
    pub(super) fn new(lines: usize, channel: Option<Channel>) -> Self {
        Self { missing: lines, channel, seen: [false; 2] }
    }

    /// Whether `record`, the last before those that it was told of, ends a line.
    fn ends_line(&mut self, record: &Record<'_>) -> bool {
        let at = record.channel.index();
        let is_last = !std::mem::replace(&mut self.seen[at], true);
        self.wants(record) && (record.tag == Tag::Full || is_last)
    }

    fn wants(&self, record: &Record<'_>) -> bool {
        self.channel.is_none_or(|channel| channel == record.channel)
    }

    /// As [`Self::ends_line`], for the caller of [`Part::scan_back`]: breaks when
    /// everything after this record is what is wanted.
    fn take(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        if !self.ends_line(record) {
            return ControlFlow::Continue(());
        }
        match self.missing.checked_sub(1) {
            None => ControlFlow::Break(()),
            Some(missing) => {
                self.missing = missing;
                ControlFlow::Continue(())
            }
        }
    }
}

impl Part {
    pub(super) fn open(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Open { path: path.to_owned(), source };
        // Opening something else than a file (a FIFO, say) must not wait.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let file = File::from(opened.map_err(|errno| failed(errno.into()))?);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        let source = if path.extension().is_some_and(|extension| extension == "gz") {
            Source::Gzip(Box::new(MultiGzDecoder::new(file.try_clone().map_err(failed)?)), 0)
        } else {
            Source::Plain
        };
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { file, path: path.to_owned(), identity, source, at: 0 })
    }

    /// For inotify, and for the account.
    pub(super) fn file(&self) -> impl AsFd {
        &self.file
    }

    pub(super) fn account(&self) -> Option<FileAccount> {
        FileAccount::load(&self.file)
    }

    pub(super) fn is_compressed(&self) -> bool {
        matches!(self.source, Source::Gzip(..))
    }

    /// Bytes of the file as it is now.
    pub(super) fn size(&self) -> Result<u64, ReadError> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|error| self.failed(error))
    }

    /// Whether it was written before `other`: their accounts say it for certain. The
    /// times of the first records may be the same, when both were written of what was
    /// read at once.
    pub(super) fn is_before(&mut self, other: &mut Self) -> bool {
        let place = |part: &Self| {
            let account = part.account()?;
            let records = |[stdout, stderr]: Both| stdout.plus(stderr).records;
            // Of two that begin at the same record the first is empty: it was renamed before
            // anything came. The one that is being written is the last.
            Some((account.log, records(account.before), account.here.map_or(u64::MAX, records)))
        };
        match (place(self), place(other)) {
            (Some(one), Some(two)) => one < two,
            _ => self.first_time() < other.first_time(),
        }
    }

    fn failed(&self, source: io::Error) -> ReadError {
        ReadError::Read { path: self.path.clone(), source }
    }

    /// Gives the bytes from `at` up to the present end, or up to `end`, to `each`.
    pub(super) fn read_to(
        &mut self,
        end: Option<u64>,
        each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let left = end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            let count = self.read(buffer.get_mut(..wanted).unwrap_or_default())?;
            self.at += count as u64;
            let flow = each(buffer.get(..count).unwrap_or_default());
            if flow.is_break() || count == 0 {
                return Ok(flow);
            }
        }
    }

    /// Reads some bytes at `at`.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        loop {
            let read = match &mut self.source {
                Source::Plain => self.file.read_at(buffer, self.at),
                Source::Gzip(decoder, place) => read_gzip(decoder, place, self.at, &self.file, buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| self.failed(error)),
            }
        }
    }

    /// The time of the first record.
    pub(super) fn first_time(&mut self) -> Option<Timestamp> {
        let at = std::mem::take(&mut self.at);
        let mut head = vec![0; READ_BYTES];
        let count = self.read(&mut head);
        self.at = at;
        head.truncate(count.ok()?);
        // A record before it may be torn, or somebody else's.
        let mut lines = head.split(|byte| *byte == b'\n');
        lines.find_map(|line| leading_time(line).or_else(|| decode(line).map(|record| record.time)))
    }

    /// Moves to where the lines begin that `tail` looks for; to the beginning if it
    /// looks for more.
    pub(super) fn seek_tail(&mut self, tail: &mut Tail) -> Result<(), ReadError> {
        self.at = match self.source {
            Source::Plain => {
                let size = self.size()?;
                self.scan_back(size, &mut |record| tail.take(record))?.unwrap_or(0)
            }
            Source::Gzip(..) => self.find_tail(tail)?,
        };
        Ok(())
    }

    /// Gives the records that end before `from` to `each`, the last one first, until
    /// it breaks; answers where that record ends. Not for compressed files.
    pub(super) fn scan_back(
        &self,
        mut from: u64,
        each: &mut dyn FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<Option<u64>, ReadError> {
        let mut buffer = vec![0; READ_BYTES];
        // What lies at and after `from` was looked at, but for the record (or the rest of one) that
        // begins before it, which ends before `end`. Without an end it is half a record.
        let mut end: Option<u64> = None;
        let mut rest: Vec<u8> = Vec::new();
        while from > 0 {
            let count = usize::try_from(from).unwrap_or(usize::MAX).min(READ_BYTES);
            let block = buffer.get_mut(..count).unwrap_or_default();
            from -= count as u64;
            if self.read_plain(block, from)? < count {
                // Somebody has truncated the file meanwhile.
                (end, rest) = (None, Vec::new());
                continue;
            }
            let mut to = count;
            for newline in memchr::memrchr_iter(b'\n', block) {
                let start = from + newline as u64 + 1;
                prepend(block.get(newline + 1..to).unwrap_or_default(), &mut rest);
                if let Some(end) = end.filter(|end| gives_record(&rest, end - start, each).is_break()) {
                    return Ok(Some(end));
                }
                rest.clear();
                (end, to) = (Some(start), newline);
            }
            prepend(block.get(..to).unwrap_or_default(), &mut rest);
        }
        Ok(end.filter(|end| gives_record(&rest, *end, each).is_break()))
    }

    fn read_plain(&self, buffer: &mut [u8], at: u64) -> Result<usize, ReadError> {
        loop {
            match self.file.read_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| self.failed(error)),
            }
        }
    }

    /// As [`Self::seek_tail`] for a file that can only be read forwards: one pass to
    /// count the lines, another to find the place.
    fn find_tail(&mut self, tail: &mut Tail) -> Result<u64, ReadError> {
        let mut full = 0_usize;
        let mut last = [None; 2];
        self.each_record(&mut |index, _, record| {
            full += usize::from(tail.wants(record) && record.tag == Tag::Full);
            last[record.channel.index()] = Some((index, record.tag));
            ControlFlow::Continue(())
        })?;
        // A line without a newline at the very end of a channel.
        let mut open_ends = Vec::new();
        for channel in Channel::ALL {
            let Some((index, tag)) = last[channel.index()] else { continue };
            let is_last = !std::mem::replace(&mut tail.seen[channel.index()], true);
            if is_last && tag == Tag::Partial && tail.channel.is_none_or(|wanted| wanted == channel) {
                open_ends.push(index);
            }
        }
        let lines = full + open_ends.len();
        let Some(mut skip) = lines.checked_sub(tail.missing).filter(|skip| *skip > 0) else {
            tail.missing -= lines;
            return Ok(0);
        };
        tail.missing = 0;
        let mut place = 0;
        self.each_record(&mut |index, end, record| {
            if tail.wants(record) && (record.tag == Tag::Full || open_ends.contains(&index)) {
                skip -= 1;
            }
            place = end;
            if skip == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(place)
    }

    /// Gives every record, with its number and where it ends, to `each`.
    fn each_record(
        &mut self,
        each: &mut dyn FnMut(usize, u64, &Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        self.at = 0;
        let (mut lines, mut end, mut index) = (Lines::default(), 0, 0);
        let mut take = |line: Option<&[u8]>, length: u64| {
            end += length;
            let Some(record) = line.and_then(decode) else { return ControlFlow::Continue(()) };
            index += 1;
            each(index, end, &record)
        };
        let flow = self.read_to(None, &mut |bytes| lines.push(bytes, &mut take))?;
        self.at = 0;
        // Whether all were wanted or not makes no difference here.
        let _either = flow;
        Ok(())
    }
}

fn read_gzip(
    decoder: &mut Box<MultiGzDecoder<File>>,
    place: &mut u64,
    at: u64,
    file: &File,
    buffer: &mut [u8],
) -> io::Result<usize> {
    if at < *place {
        let mut again = file.try_clone()?;
        again.seek(SeekFrom::Start(0))?;
        (**decoder, *place) = (MultiGzDecoder::new(again), 0);
    }
    while *place < at {
        let skip = usize::try_from(at - *place).unwrap_or(usize::MAX).min(buffer.len());
        let count = decoder.read(buffer.get_mut(..skip).unwrap_or_default())?;
        if count == 0 {
            return Ok(0);
        }
        *place += count as u64;
    }
    let count = decoder.read(buffer)?;
    *place += count as u64;
    Ok(count)
}

/// Puts `head` before `rest`; of what no record can be so long, the end is dropped.
fn prepend(head: &[u8], rest: &mut Vec<u8>) {
    rest.splice(..0, head.iter().copied());
    rest.truncate(LOG_READ_RECORD_BYTES_MAX);
}

/// Gives `line`, which takes `length` bytes with its newline, if it is a record.
fn gives_record(
    line: &[u8],
    length: u64,
    each: &mut dyn FnMut(&Record<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if length > LOG_READ_RECORD_BYTES_MAX as u64 + 1 {
        return ControlFlow::Continue(());
    }
    decode(line).map_or(ControlFlow::Continue(()), |record| each(&record))
}

/// The files of the log at `path`, oldest first, at least one; the last one is the
/// log itself, unless somebody has renamed it and no new one was made.
///
/// Files may be renamed, removed and compressed while we look: what is given was
/// there, under these names, at one moment.
pub(super) fn list(path: &Path) -> Result<Vec<Part>, ReadError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let names = rotated_names(path);
        let current = match Part::open(path) {
            Err(ReadError::Open { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !names.is_empty() =>
            {
                None
            }
            opened => Some(opened?),
        };
        let rotated: Vec<_> = names
            .iter()
            .filter_map(|(suffix, name)| Some((suffix.clone(), Part::open(&path.with_file_name(name)).ok()?)))
            .collect();
        let is_still = |part: &Part| identity_at(&part.path) == Some(part.identity);
        let is_stable = rotated.len() == names.len()
            && identity_at(path) == current.as_ref().map(|current| current.identity)
            && rotated.iter().all(|(_, part)| is_still(part))
            && rotated_names(path) == names;
        if is_stable || attempts >= LOG_LISTING_ATTEMPTS_MAX {
            let mut parts = in_order(rotated);
            parts.retain(|part| current.as_ref().is_none_or(|current| part.identity != current.identity));
            parts.extend(current);
            return Ok(parts);
        }
    }
}

/// Names of the rotated files beside `path`. Of one that is there in both forms
/// only the plain one: its compressed one is not complete, or it is about to go.
fn rotated_names(path: &Path) -> Vec<(Suffix, OsString)> {
    let Some(log) = path.file_name() else { return Vec::new() };
    let entries = std::fs::read_dir(directory(path)).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let (suffix, is_compressed) = Suffix::of(name.as_bytes(), log.as_bytes())?;
            Some((suffix, is_compressed, name))
        })
        .take(LOG_READ_FILES_MAX)
        .collect();
    names.sort_by(|one, two| one.0.by_age(&two.0).then(one.1.cmp(&two.1)));
    names.dedup_by(|later, earlier| later.0 == earlier.0);
    names.into_iter().map(|(suffix, _, name)| (suffix, name)).collect()
}

/// Merges our files with kubelet's; each kind is in order already.
fn in_order(parts: Vec<(Suffix, Part)>) -> Vec<Part> {
    let (ours, theirs): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|(suffix, _)| matches!(suffix, Suffix::Number(_)));
    let parts_of = |list: Vec<(Suffix, Part)>| list.into_iter().map(|(_, part)| part).rev().collect();
    // From the oldest on, which is the last.
    let (mut ours, mut theirs): (Vec<Part>, Vec<Part>) = (parts_of(ours), parts_of(theirs));
    let mut merged = Vec::new();
    loop {
        let ours_first = match (ours.last_mut(), theirs.last_mut()) {
            (Some(one), Some(two)) => !two.is_before(one),
            (one, _) => one.is_some(),
        };
        match if ours_first { ours.pop() } else { theirs.pop() } {
            Some(part) => merged.push(part),
            None => return merged,
        }
    }
}

pub(super) fn identity_at(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::log::{Buffers, LogConfig, LogKind, LogSet, Progress};

    #[test]
    fn an_empty_file_is_before_what_was_written_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let renamed = |suffix: &str| path.with_extension(suffix);
        let config = LogConfig { size_max: 60, ..LogConfig::new(LogKind::Cri, path.clone()) };
        let (mut logs, mut buffers) = (LogSet::open(&[config]).unwrap(), Buffers::default());
        let stamp = b"2026-11-23T01:02:03.123456789Z";
        let mut write = |logs: &mut LogSet, line: &[u8]| {
            assert_eq!(logs.write(Channel::Stdout, line, stamp, &mut buffers), Progress::Kept);
        };
        write(&mut logs, b"first\n");
        // As kubelet does it, the second time before anything came.
        for date in ["20261123-000000", "20261123-000001"] {
            std::fs::rename(&path, renamed(date)).unwrap();
            logs.reopen(&mut Buffers::default()).unwrap();
        }
        write(&mut logs, b"second\n");
        write(&mut logs, b"third\n");
        let found = list(&path).unwrap().into_iter().map(|part| part.path).collect::<Vec<_>>();
        let expected = ["20261123-000000", "20261123-000001", "1"].map(renamed);
        assert_eq!(found, [&expected[..], std::slice::from_ref(&path)].concat());
    }
}
