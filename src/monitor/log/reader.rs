//! Reading logs in the CRI or JSON format, also those of other monitors, also while
//! they grow and are rotated, also files that are compressed.
//!
//! A log consists of records ([`decode`](super::decode)). What is given to the caller
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
//! use podinit::monitor::log::reader::{Next, Selection, follow};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let exited = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
//! let mut out = std::io::BufWriter::new(std::io::stdout());
//! let selection = Selection { tail: Some(10), ..Selection::default() };
//! // `exited` becomes readable when the container has exited and its log is complete.
//! follow(Path::new("/var/log/pods/c1.log"), &selection, &exited, &mut |next| {
//!     let written = match next {
//!         Next::Piece(piece) => {
//!             let line_end: &[u8] = if piece.ends_line { b"\n" } else { b"" };
//!             out.write_all(piece.payload).and_then(|()| out.write_all(line_end))
//!         }
//!         Next::CaughtUp => out.flush(),
//!     };
//!     match written {
//!         Ok(()) => ControlFlow::Continue(()),
//!         Err(_) => ControlFlow::Break(()),
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::batch::Channel;
use super::decode::{Record, decode};
use super::parts::{Part, Tail, identity_at, list};
use super::split::Tag;
use super::stamp::Timestamp;
use super::watch::{Watch, is_readable};
use crate::limits::LOG_READ_RECORD_BYTES_MAX;

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
    /// The file that was wanted was removed, or compressed, before it could be read.
    #[error("read container log {path:?}: the file that was the log a moment ago is gone")]
    Gone {
        /// The log's path.
        path: PathBuf,
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

/// What a follower is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// A piece.
    Piece(Piece<'a>),
    /// This is all that there is now: whoever gathers output lets it go.
    CaughtUp,
}

/// What takes what a follower is given. `Break` ends the reading.
pub type EachNext<'a> = dyn FnMut(Next<'_>) -> ControlFlow<()> + 'a;

/// How a reading ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines of the file that were not records, and were skipped.
    pub malformed: u64,
}

/// What takes the lines of a file: a line without its newline, or `None` for one
/// that is longer than any record may be; and the bytes that it takes in the file,
/// newline included.
pub type EachLine<'a> = dyn FnMut(Option<&[u8]>, u64) -> ControlFlow<()> + 'a;

/// Cuts a log's bytes, read in any portions, into lines.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    /// Bytes of the line so far, also of one that is too long to be held.
    length: u64,
}

impl Lines {
    /// Calls `each` for every line that ends in `bytes`, until it breaks.
    pub fn push(&mut self, mut bytes: &[u8], each: &mut EachLine<'_>) -> ControlFlow<()> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.length == 0 && line.len() <= LOG_READ_RECORD_BYTES_MAX {
                each(Some(line), line.len() as u64 + 1)?;
                continue;
            }
            self.hold(line);
            let held = std::mem::take(&mut self.held);
            let length = std::mem::take(&mut self.length);
            let is_whole = length <= LOG_READ_RECORD_BYTES_MAX as u64;
            each(is_whole.then_some(held.as_slice()), length + 1)?;
        }
        self.hold(bytes);
        ControlFlow::Continue(())
    }

    /// Bytes of a line whose end has not come.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.length
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.length > LOG_READ_RECORD_BYTES_MAX as u64 {
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
    summary: Summary,
}

impl Parser {
    /// A parser at the start of a log. `selection.tail` is the caller's affair.
    #[must_use]
    pub fn new(selection: Selection) -> Self {
        Self { selection, lines: Lines::default(), within_line: [false; 2], summary: Summary::default() }
    }

    /// Takes the next bytes of the log.
    pub fn push(&mut self, bytes: &[u8], each: &mut Each<'_>) -> ControlFlow<()> {
        let Self { selection, lines, within_line, summary } = self;
        lines.push(bytes, &mut |line, _| {
            let Some(record) = line.and_then(decode) else {
                summary.malformed += 1;
                return ControlFlow::Continue(());
            };
            let within_line = &mut within_line[record.channel.index()];
            let starts_line = !std::mem::replace(within_line, record.tag == Tag::Partial);
            let Record { time, channel, tag, payload, .. } = record;
            let too_old = selection.since.is_some_and(|since| time < since);
            if too_old || selection.channel.is_some_and(|wanted| wanted != channel) {
                return ControlFlow::Continue(());
            }
            each(Piece { time, channel, payload: &payload, starts_line, ends_line: tag == Tag::Full })
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
        self.summary.malformed += u64::from(torn.held_bytes() > 0);
    }
}

/// The files of a log, oldest first, each at the place from which it is to be read.
fn parts(path: &Path, selection: &Selection) -> Result<Vec<Part>, ReadError> {
    let mut parts = list(path)?;
    if let Some(lines) = selection.tail {
        let mut tail = Tail::new(lines, selection.channel);
        let mut wanted = Vec::new();
        // Older files are not looked at once all lines are found; but the last line may begin in one.
        while let Some(mut part) = parts.pop() {
            part.seek_tail(&mut tail)?;
            let found = part.at > 0;
            wanted.push(part);
            if found {
                break;
            }
        }
        wanted.reverse();
        parts = wanted;
    }
    Ok(parts)
}

fn read_on(part: &mut Part, parser: &mut Parser, each: &mut Each<'_>) -> Result<ControlFlow<()>, ReadError> {
    part.read_to(None, &mut |bytes| parser.push(bytes, each))
}

/// Reads what is in the log at `path`, and before it what was there before
/// rotations, as far as those files are still next to it.
///
/// # Errors
/// If the file cannot be read.
pub fn read(path: &Path, selection: &Selection, each: &mut Each<'_>) -> Result<Summary, ReadError> {
    let mut parser = Parser::new(*selection);
    for mut part in parts(path, selection)? {
        if read_on(&mut part, &mut parser, each)?.is_break() {
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
    each: &mut EachNext<'_>,
) -> Result<Summary, ReadError> {
    // Before the first look at the file: no change can be missed.
    let watch = Watch::new(path)?;
    let mut parser = Parser::new(*selection);
    let mut parts = parts(path, selection)?;
    let Some(mut current) = parts.pop() else { return Ok(parser.summary) };
    for mut older in parts {
        if read_on(&mut older, &mut parser, &mut |piece| each(Next::Piece(piece)))?.is_break() {
            return Ok(parser.summary);
        }
        parser.next_file();
    }
    watch.file(current.file())?;
    loop {
        // In this order: what was written before the stop is read after it is seen.
        let stopped = is_readable(&stop);
        let flow = follow_once(path, &mut current, &watch, &mut parser, each)?;
        if flow.is_break() || each(Next::CaughtUp).is_break() || stopped {
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
    each: &mut EachNext<'_>,
) -> Result<ControlFlow<()>, ReadError> {
    loop {
        // A new file at the path: nothing more is written to the old one, so what is read after this
        // look is all of it.
        let next = next_part(path, current);
        if read_on(current, parser, &mut |piece| each(Next::Piece(piece)))?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let Some(next) = next else { return Ok(ControlFlow::Continue(())) };
        parser.next_file();
        *current = next;
        watch.file(current.file())?;
    }
}

/// The file after `current`, if there is one.
fn next_part(path: &Path, current: &mut Part) -> Option<Part> {
    // While a rotation is under way there is no file; the next one will be noticed.
    identity_at(path).filter(|identity| *identity != current.identity)?;
    let mut parts = list(path).ok()?;
    if let Some(at) = parts.iter().position(|part| part.identity == current.identity) {
        return parts.into_iter().nth(at + 1);
    }
    // Several rotations since the last look: ours was removed, or compressed, which keeps its account and
    // its first record. The next one is the oldest that is newer.
    match parts.iter_mut().position(|part| current.is_before(part)) {
        Some(at) => Some(parts.swap_remove(at)),
        // Nobody can tell: at least the newest is not what we have read.
        None => parts.pop(),
    }
}

/// The end of a log as of some moment: the file that was written then, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// The file's device and inode: it may be renamed meanwhile.
    pub file: (u64, u64),
    /// In bytes.
    pub size: u64,
}

/// The last output that is in the log at `path` before `end`: at most `bytes` with
/// newlines, whole records, and from the beginning of a line on if there is one.
/// Does not look into compressed files.
///
/// # Errors
/// If a file cannot be read.
pub fn last_output(path: &Path, end: LogEnd, bytes: usize) -> Result<Vec<(Channel, Vec<u8>)>, ReadError> {
    let mut found: Vec<(Channel, Tag, Vec<u8>)> = Vec::new();
    let (mut left, mut cut) = (bytes, None);
    let mut parts = list(path)?;
    let at = parts.iter().position(|part| part.identity == end.file);
    let at = at.ok_or_else(|| ReadError::Gone { path: path.to_owned() })?;
    parts.truncate(at + 1);
    let mut from = Some(end.size);
    while let Some(part) = parts.pop().filter(|part| !part.is_compressed()) {
        let size = match from.take() {
            Some(size) => size,
            None => part.size()?,
        };
        part.scan_back(size, &mut |record| {
            let is_full = record.tag == Tag::Full;
            let Some(rest) = left.checked_sub(record.payload.len() + usize::from(is_full)) else {
                cut = Some((record.channel, record.tag));
                return ControlFlow::Break(());
            };
            left = rest;
            let newline: &[u8] = if is_full { b"\n" } else { b"" };
            found.push((record.channel, record.tag, [&record.payload, newline].concat()));
            ControlFlow::Continue(())
        })?;
        if cut.is_some() {
            break;
        }
    }
    found.reverse();
    // What continues a line that begins before is left out, unless nothing else would be left.
    if let Some((channel, Tag::Partial)) = cut
        && let Some(end) = found.iter().position(|(of, tag, _)| *of == channel && *tag == Tag::Full)
        && end + 1 < found.len()
    {
        let mut index = 0;
        found.retain(|(of, ..)| {
            index += 1;
            index > end + 1 || *of != channel
        });
    }
    Ok(found.into_iter().map(|(channel, _, output)| (channel, output)).collect())
}

#[cfg(test)]
mod tests;
