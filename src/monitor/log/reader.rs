//! Reading CRI logs, also those of other monitors, also while they grow and are
//! rotated.
//!
//! A log consists of records ([`cri`](super::cri)). What is given to the caller
//! are [`Piece`]s: the payload of a record, and whether it begins and ends a line.
//! Pieces are not joined into lines, because a line has no greatest length; who
//! prints `payload`, and a newline where `ends_line` says so, prints exactly the
//! bytes that the container wrote.
//!
//! What is not a record (half of one that a crash left, or anything at all: the
//! file is not trusted) is skipped and counted.
//!
//! # Example
//!
//! ```no_run
//! use std::io::Write;
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use podinit::monitor::log::reader::{Selection, follow};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let exited = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
//! let mut out = std::io::stdout().lock();
//! let selection = Selection { tail: Some(10), ..Selection::default() };
//! // `exited` becomes readable when the container has exited and its log is complete.
//! follow(Path::new("/var/log/pods/c1.log"), &selection, &exited, &mut |piece| {
//!     let line_end: &[u8] = if piece.ends_line { b"\n" } else { b"" };
//!     match out.write_all(piece.payload).and_then(|()| out.write_all(line_end)) {
//!         Ok(()) => ControlFlow::Continue(()),
//!         Err(_) => ControlFlow::Break(()),
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::Errno;

use super::batch::Channel;
use super::split::Tag;
use super::stamp::{self, Timestamp};
use crate::limits::{LOG_READ_FILES_MAX, LOG_READ_RECORD_BYTES_MAX};

/// Bytes read from a file at a time.
const READ_BYTES: usize = 64 << 10;

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened.
    #[error("open container log {path:?}: {source}")]
    Open {
        /// The log's path.
        path: PathBuf,
        /// What open(2) said.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("read container log {path:?}: {source}")]
    Read {
        /// The log's path.
        path: PathBuf,
        /// What read(2) said.
        source: io::Error,
    },
    /// Changes of the file cannot be watched.
    #[error(
        "watch container log {path:?} for changes: {source}; raise fs.inotify.max_user_instances if that is exhausted"
    )]
    Watch {
        /// The log's path.
        path: PathBuf,
        /// What inotify(7) said.
        source: io::Error,
    },
}

/// Which part of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    /// Nothing older than this.
    pub since: Option<Timestamp>,
    /// Of what is there, only the last so many lines (of `channel`).
    pub tail: Option<usize>,
    /// Only this channel.
    pub channel: Option<Channel>,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was read from the container.
    pub time: Timestamp,
    /// Where it came from.
    pub channel: Channel,
    /// Whether it ends its line.
    pub tag: Tag,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// A piece of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// When it was read from the container.
    pub time: Timestamp,
    /// Where it came from.
    pub channel: Channel,
    /// Its bytes, without the newline.
    pub payload: &'a [u8],
    /// It is the first of its line.
    pub starts_line: bool,
    /// A newline follows it.
    pub ends_line: bool,
}

/// What takes the pieces. `Break` ends the reading.
pub type Each<'a> = dyn FnMut(Piece<'_>) -> ControlFlow<()> + 'a;

/// How a reading ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines of the file that were not records, and were skipped.
    pub malformed: u64,
}

/// Parses one record, given without its newline. Other monitors' stamps (with an
/// offset, with fewer digits) and further tags after `P` or `F` are understood.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let (time, rest) = word(line)?;
    let (channel, rest) = word(rest)?;
    let (tags, payload) = word(rest)?;
    let channel = Channel::ALL.into_iter().find(|known| known.name().as_bytes() == channel)?;
    let tag = match tags {
        [b'F'] | [b'F', b':', ..] => Tag::Full,
        [b'P'] | [b'P', b':', ..] => Tag::Partial,
        _ => return None,
    };
    Some(Record { time: stamp::parse(time)?, channel, tag, payload })
}

fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b' ', text)?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

/// Cuts a log's bytes, read in any portions, into lines. A line that is longer
/// than any record may be is given as `None`.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// Calls `each` for every line that ends in `bytes`, until it breaks.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        each: &mut dyn FnMut(Option<&[u8]>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.held.is_empty() && !self.too_long && line.len() <= LOG_READ_RECORD_BYTES_MAX {
                each(Some(line))?;
                continue;
            }
            self.hold(line);
            let held = std::mem::take(&mut self.held);
            let whole = !std::mem::take(&mut self.too_long);
            each(whole.then_some(held.as_slice()))?;
        }
        self.hold(bytes);
        ControlFlow::Continue(())
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.too_long |= self.held.len() + bytes.len() > LOG_READ_RECORD_BYTES_MAX;
        if self.too_long {
            self.held = Vec::new();
        } else {
            self.held.extend_from_slice(bytes);
        }
    }
}

/// Turns the records of a log into the pieces that were asked for.
#[derive(Debug)]
pub struct Parser {
    selection: Selection,
    lines: Lines,
    within_line: [bool; 2],
    newest: Option<Timestamp>,
    summary: Summary,
}

impl Parser {
    /// A parser at the start of a log. `selection.tail` is the caller's affair.
    #[must_use]
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            lines: Lines::default(),
            within_line: [false; 2],
            newest: None,
            summary: Summary::default(),
        }
    }

    /// Takes the next bytes of the log.
    pub fn push(&mut self, bytes: &[u8], each: &mut Each<'_>) -> ControlFlow<()> {
        let Self { selection, lines, within_line, newest, summary } = self;
        lines.push(bytes, &mut |line| {
            let Some(record) = line.and_then(parse) else {
                summary.malformed += 1;
                return ControlFlow::Continue(());
            };
            let within_line = &mut within_line[record.channel.index()];
            let starts_line = !std::mem::replace(within_line, record.tag == Tag::Partial);
            *newest = Some(newest.map_or(record.time, |newest| newest.max(record.time)));
            let Record { time, channel, tag, payload } = record;
            let too_old = selection.since.is_some_and(|since| time < since);
            if too_old || selection.channel.is_some_and(|wanted| wanted != channel) {
                return ControlFlow::Continue(());
            }
            each(Piece { time, channel, payload, starts_line, ends_line: tag == Tag::Full })
        })
    }

    /// What was found so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// The next bytes are another file's.
    fn next_file(&mut self) {
        let torn = std::mem::take(&mut self.lines);
        self.summary.malformed += u64::from(torn.too_long || !torn.held.is_empty());
    }
}

/// An open file of the log.
#[derive(Debug)]
struct Part {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
    at: u64,
}

impl Part {
    fn open(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Open { path: path.to_owned(), source };
        // Opening something else than a file (a FIFO, say) must not wait.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let file = File::from(opened.map_err(|errno| failed(errno.into()))?);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        Ok(Self { file, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()), at: 0 })
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize, ReadError> {
        loop {
            match self.file.read_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Read { path: self.path.clone(), source }),
                Ok(count) => return Ok(count),
            }
        }
    }

    /// Parses up to the present end.
    fn read_on(&mut self, parser: &mut Parser, each: &mut Each<'_>) -> Result<ControlFlow<()>, ReadError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = self.read_at(&mut buffer, self.at)?;
            self.at += count as u64;
            let flow = parser.push(buffer.get(..count).unwrap_or_default(), each);
            if flow.is_break() || count == 0 {
                return Ok(flow);
            }
        }
    }

    /// Moves to where the last `lines` lines of `channel` begin, reading backwards.
    /// Gives the number of lines that are missing because the file has fewer.
    fn seek_tail(&mut self, lines: usize, channel: Option<Channel>) -> Result<usize, ReadError> {
        let failed = |source| ReadError::Read { path: self.path.clone(), source };
        let mut missing = lines;
        let mut buffer = vec![0; READ_BYTES];
        // Going back: what lies at and after `from` was looked at, but for the record (or the rest of
        // one) that begins before it, which ends before `end`. Without an end it is half a record.
        let mut from = self.file.metadata().map_err(failed)?.len();
        let mut end: Option<u64> = None;
        let mut rest: Vec<u8> = Vec::new();
        while from > 0 {
            let count = usize::try_from(from).unwrap_or(usize::MAX).min(READ_BYTES);
            let block = buffer.get_mut(..count).unwrap_or_default();
            from -= count as u64;
            if self.read_at(block, from)? < count {
                // Somebody has truncated the file meanwhile.
                (end, rest) = (None, Vec::new());
                continue;
            }
            let mut to = count;
            for newline in memchr::memrchr_iter(b'\n', block) {
                let start = from + newline as u64 + 1;
                prepend(block.get(newline + 1..to).unwrap_or_default(), &mut rest);
                if let Some(end) = end.filter(|end| is_last_of_line(&rest, end - start, channel)) {
                    if missing == 0 {
                        self.at = end;
                        return Ok(0);
                    }
                    missing -= 1;
                }
                rest.clear();
                (end, to) = (Some(start), newline);
            }
            prepend(block.get(..to).unwrap_or_default(), &mut rest);
        }
        if let Some(end) = end.filter(|end| is_last_of_line(&rest, *end, channel)) {
            if missing == 0 {
                self.at = end;
                return Ok(0);
            }
            missing -= 1;
        }
        self.at = 0;
        Ok(missing)
    }
}

/// Puts `head` before `rest`; of what no record can be so long, the end is dropped.
fn prepend(head: &[u8], rest: &mut Vec<u8>) {
    rest.splice(..0, head.iter().copied());
    rest.truncate(LOG_READ_RECORD_BYTES_MAX);
}

/// Whether `record`, which takes `length` bytes with its newline, ends a line of
/// `channel`.
fn is_last_of_line(record: &[u8], length: u64, channel: Option<Channel>) -> bool {
    length <= LOG_READ_RECORD_BYTES_MAX as u64 + 1 && ends_line_of(record, channel)
}

fn ends_line_of(record: &[u8], channel: Option<Channel>) -> bool {
    parse(record).is_some_and(|record| {
        record.tag == Tag::Full && channel.is_none_or(|channel| channel == record.channel)
    })
}

/// The files of a log, oldest first, each at the place from which it is to be read.
fn parts(path: &Path, selection: &Selection) -> Result<Vec<Part>, ReadError> {
    let current = Part::open(path)?;
    let newest = current.first_time();
    let mut parts = rotated_parts(path);
    parts.retain(|(time, part)| {
        // It is the same file when a rotation has happened just now.
        part.identity != current.identity && newest.is_none_or(|newest| *time <= newest)
    });
    let mut parts: Vec<Part> = parts.into_iter().map(|(_, part)| part).chain([current]).collect();
    if let Some(mut missing) = selection.tail {
        for part in parts.iter_mut().rev() {
            missing = part.seek_tail(missing, selection.channel)?;
        }
    }
    Ok(parts)
}

/// The files next to `path` that were the log before, whoever renamed them, by
/// the time of their first records: ours is `<path>.1`, kubelet's
/// `<path>.<date>`. Compressed ones are not read.
fn rotated_parts(path: &Path) -> Vec<(Timestamp, Part)> {
    let Some(name) = path.file_name() else { return Vec::new() };
    let prefix = [name.as_bytes(), b"."].concat();
    let entries = std::fs::read_dir(directory(path)).into_iter().flatten().flatten();
    let mut parts: Vec<(Timestamp, Part)> = entries
        .filter(|entry| entry.file_name().as_bytes().starts_with(&prefix))
        .take(LOG_READ_FILES_MAX)
        .filter_map(|entry| Part::open(&entry.path()).ok())
        .filter_map(|part| Some((part.first_time()?, part)))
        .collect();
    parts.sort_by_key(|(time, _)| *time);
    parts
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Reads what is in the log at `path`, and before it what was there before
/// rotations, as far as those files are still next to it.
///
/// # Errors
/// If the file cannot be read.
pub fn read(path: &Path, selection: &Selection, each: &mut Each<'_>) -> Result<Summary, ReadError> {
    let mut parser = Parser::new(*selection);
    for mut part in parts(path, selection)? {
        if part.read_on(&mut parser, each)?.is_break() {
            return Ok(parser.summary);
        }
        parser.next_file();
    }
    Ok(parser.summary)
}

/// Like [`read`], and then goes on with what is written until `stop` becomes
/// readable (a pidfd or an eventfd, say): then what is there by that time is read,
/// and that is all. Follows renamed and rotated files. Waits without polling.
///
/// # Errors
/// If the file cannot be read or watched.
pub fn follow(
    path: &Path,
    selection: &Selection,
    stop: impl AsFd,
    each: &mut Each<'_>,
) -> Result<Summary, ReadError> {
    // Before the first look at the file: no change can be missed.
    let watch = Watch::new(path)?;
    let mut parser = Parser::new(*selection);
    let mut parts = parts(path, selection)?;
    let Some(mut current) = parts.pop() else { return Ok(parser.summary) };
    for mut older in parts {
        if older.read_on(&mut parser, each)?.is_break() {
            return Ok(parser.summary);
        }
        parser.next_file();
    }
    watch.file(&current)?;
    loop {
        // In this order: what was written before the stop is read after it is seen.
        let stopped = is_readable(&stop);
        if follow_once(path, &mut current, &watch, &mut parser, each)?.is_break() || stopped {
            return Ok(parser.summary);
        }
        watch.wait(&stop)?;
    }
}

/// Reads to the end of the newest file.
fn follow_once(
    path: &Path,
    current: &mut Part,
    watch: &Watch,
    parser: &mut Parser,
    each: &mut Each<'_>,
) -> Result<ControlFlow<()>, ReadError> {
    loop {
        // A new file at the path: nothing more is written to the old one, so what is read after this
        // look is all of it.
        let next = next_part(path, current, parser);
        if current.read_on(parser, each)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let Some(next) = next else { return Ok(ControlFlow::Continue(())) };
        parser.next_file();
        *current = next;
        watch.file(current)?;
    }
}

/// The file after `current`, if there is one.
fn next_part(path: &Path, current: &Part, parser: &Parser) -> Option<Part> {
    let newest = Part::open(path).ok().filter(|part| part.identity != current.identity)?;
    // Several rotations since the last look: what lies between begins after what we have seen.
    let first = current.first_time();
    let between = rotated_parts(path).into_iter().find(|(time, part)| {
        let known = part.identity == current.identity || part.identity == newest.identity;
        let later = parser.newest.is_none_or(|newest| *time >= newest);
        !known && later && first.is_none_or(|first| *time > first)
    });
    Some(between.map_or(newest, |(_, part)| part))
}

impl Part {
    fn first_time(&self) -> Option<Timestamp> {
        let mut head = [0; 64];
        let count = self.read_at(&mut head, 0).ok()?;
        stamp::parse(word(head.get(..count)?)?.0)
    }
}

/// Notices when the log changes.
#[derive(Debug)]
struct Watch {
    inotify: OwnedFd,
    path: PathBuf,
}

impl Watch {
    fn new(path: &Path) -> Result<Self, ReadError> {
        let failed = |errno: Errno| ReadError::Watch { path: path.to_owned(), source: errno.into() };
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(failed)?;
        let names = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&inotify, directory(path), names).map_err(failed)?;
        Ok(Self { inotify, path: path.to_owned() })
    }

    /// Watches a file too, under whatever name it has by now. (The files that were
    /// followed before stay watched: nothing is written to them.)
    fn file(&self, part: &Part) -> Result<(), ReadError> {
        let name = format!("/proc/self/fd/{}", part.file.as_raw_fd());
        inotify::add_watch(&self.inotify, name, inotify::WatchFlags::MODIFY)
            .map(|_| ())
            .map_err(|errno| ReadError::Watch { path: self.path.clone(), source: errno.into() })
    }

    /// Waits for a change, or until `stop` is readable.
    fn wait(&self, stop: &impl AsFd) -> Result<(), ReadError> {
        let failed = |errno: Errno| ReadError::Watch { path: self.path.clone(), source: errno.into() };
        loop {
            let mut fds = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let [_, stop] = fds;
            if self.take_changes() || !stop.revents().is_empty() {
                return Ok(());
            }
        }
    }

    /// Whether one of the changes so far concerns the log.
    fn take_changes(&self) -> bool {
        let name = self.path.file_name();
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut space);
        let mut concerns = false;
        while let Ok(event) = events.next() {
            // Events of the file itself come without a name; events may also have been lost.
            let named = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            concerns |= named.is_none() || named == name;
        }
        concerns
    }
}

fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let polled = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()));
    let [fd] = fds;
    polled.is_ok() && !fd.revents().is_empty()
}

#[cfg(test)]
mod tests {
    use super::super::file::rotated;
    use super::*;
    use proptest::prelude::*;

    fn collect(path: &Path, selection: &Selection) -> Vec<u8> {
        let mut bytes = Vec::new();
        let summary = read(path, selection, &mut |piece| {
            bytes.extend_from_slice(piece.payload);
            bytes.extend_from_slice(if piece.ends_line { b"\n" } else { b"" });
            ControlFlow::Continue(())
        });
        assert_eq!(summary.unwrap(), Summary::default());
        bytes
    }

    fn record(second: u64, channel: &str, tag: char, payload: &str) -> String {
        format!("1970-01-01T00:00:{second:02}.000000000Z {channel} {tag} {payload}\n")
    }

    #[test]
    fn records_of_other_monitors_parse_and_nonsense_does_not() {
        let conmon = parse(b"2026-11-23T02:02:03.123456789+01:00 stderr F a b ").unwrap();
        assert_eq!((conmon.channel, conmon.tag, conmon.payload), (Channel::Stderr, Tag::Full, &b"a b "[..]));
        let tags = parse(b"2026-11-23T02:02:03Z stdout P:x ").unwrap();
        assert_eq!((tags.tag, tags.payload), (Tag::Partial, &b""[..]));
        for bad in [&b""[..], b"x", b"2026-11-23T02:02:03Z stdin F x", b"2026-11-23T02:02:03Z stdout X x"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn rotated_part_comes_first_and_tail_since_and_channel_select() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let old = record(1, "stdout", 'F', "one") + &record(2, "stderr", 'F', "two");
        let new = record(3, "stdout", 'P', "th")
            + &record(4, "stderr", 'F', "four")
            + &record(5, "stdout", 'F', "ree");
        std::fs::write(rotated(&path), old).unwrap();
        std::fs::write(&path, new).unwrap();

        let all = Selection::default();
        assert_eq!(collect(&path, &all), b"one\ntwo\nthfour\nree\n");
        let stdout = Selection { channel: Some(Channel::Stdout), ..all };
        assert_eq!(collect(&path, &stdout), b"one\nthree\n");
        assert_eq!(collect(&path, &Selection { tail: Some(1), ..stdout }), b"three\n");
        assert_eq!(collect(&path, &Selection { tail: Some(2), ..stdout }), b"one\nthree\n");
        assert_eq!(collect(&path, &Selection { tail: Some(3), ..all }), b"two\nthfour\nree\n");
        assert_eq!(collect(&path, &Selection { tail: Some(0), ..all }), b"");
        let since = Some(Timestamp::new(4, 0));
        assert_eq!(collect(&path, &Selection { since, ..all }), b"four\nree\n");
    }

    #[test]
    fn line_that_is_too_long_is_skipped_and_takes_no_memory() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        let mut each = |line: Option<&[u8]>| {
            seen.push(line.map(<[u8]>::to_vec));
            ControlFlow::Continue(())
        };
        for _ in 0..100 {
            assert!(lines.push(&[b'x'; READ_BYTES], &mut each).is_continue());
            assert!(lines.held.capacity() <= 2 * LOG_READ_RECORD_BYTES_MAX);
        }
        assert!(lines.push(b"x\nshort\n", &mut each).is_continue());
        assert_eq!(seen, [None, Some(b"short".to_vec())]);
    }

    fn log() -> impl Strategy<Value = (String, usize)> {
        let one = ("[a-z ]{0,60}", any::<bool>(), any::<bool>()).prop_map(|(text, stdout, full)| {
            let channel = if stdout { "stdout" } else { "stderr" };
            record(0, channel, if full { 'F' } else { 'P' }, &text)
        });
        (prop::collection::vec(one, 0..3000).prop_map(|records| records.concat()), 0..3000_usize)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn tail_gives_the_last_lines_and_nothing_else((log, tail) in log()) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            std::fs::write(&path, &log).unwrap();
            let got = collect(&path, &Selection { tail: Some(tail), ..Selection::default() });
            let all = collect(&path, &Selection::default());
            let lines = log.lines().filter(|line| ends_line_of(line.as_bytes(), None)).count();
            prop_assert_eq!(memchr::memchr_iter(b'\n', &got).count(), tail.min(lines));
            prop_assert!(all.ends_with(&got));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_portions_are_read_alike(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b' ')], 0..400),
            portion in 1..50_usize,
        ) {
            let run = |portion: usize| {
                let mut parser = Parser::new(Selection::default());
                let mut pieces = Vec::new();
                for part in bytes.chunks(portion) {
                    let _flow = parser.push(part, &mut |piece| {
                        pieces.push((piece.time, piece.payload.to_vec()));
                        ControlFlow::Continue(())
                    });
                }
                (pieces, parser.summary)
            };
            prop_assert_eq!(run(portion), run(400));
        }
    }
}
