//! The monitor's own log: one line per change of state, to standard output or
//! the journal.
//!
//! Whoever logs does not wait: the pod's control thread is among them, and a reader
//! that stops must not stop the pod. A line for which there is no room is lost, and
//! how many were is said before the next one that is not.

use std::fmt::{Arguments, Write as _};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::pipe::PIPE_BUF;

use crate::monitor::config::{LogLevel, LogSink};

/// journald's native socket (systemd.journal-fields(7) and its protocol page).
const JOURNAL: &str = "/run/systemd/journal/socket";

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// Begins to log at `level` to `sink`. A journal that is not there is no error:
/// then nothing is logged, as with [`LogSink::None`].
pub fn start(level: LogLevel, sink: LogSink) {
    let to = match sink {
        LogSink::None => None,
        LogSink::Stdout => Stream::of(io::stdout()).ok().map(To::Stream),
        LogSink::Systemd => Journal::at(Path::new(JOURNAL)).ok().map(To::Journal),
    };
    if let Some(to) = to
        && log::set_boxed_logger(Box::new(Sink(Mutex::new(Lines { to, lost: 0 })))).is_ok()
    {
        log::set_max_level(level.into());
    }
}

/// Nobody who holds the lock waits for anything.
struct Sink(Mutex<Lines>);

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("podinit")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.add(record.level(), *record.args());
        }
    }

    fn flush(&self) {}
}

struct Lines {
    to: To,
    /// Lines that could not be written since the last one that could.
    lost: u64,
}

enum To {
    Stream(Stream),
    Journal(Journal),
}

impl Lines {
    fn add(&mut self, level: Level, message: Arguments<'_>) {
        if self.lost > 0 {
            let lost = self.lost;
            let notice = format_args!("lost {lost} lines of this log: nobody took them");
            if self.to.put(Level::Warn, notice).is_ok() {
                self.lost = 0;
            }
        }
        // After a gap that could not be told of, a line would hide it.
        if self.lost > 0 || self.to.put(level, message).is_err() {
            self.lost += 1;
        }
    }
}

impl To {
    fn put(&mut self, level: Level, message: Arguments<'_>) -> io::Result<()> {
        match self {
            Self::Stream(stream) => Ok(stream.put(format!("{level} {message}\n").as_bytes())?),
            Self::Journal(journal) => {
                journal.socket.send_to(&journal_entry(level, message), journal.path).map(drop)
            }
        }
    }
}

struct Journal {
    /// Not connected: journald may be replaced.
    socket: UnixDatagram,
    path: &'static Path,
}

impl Journal {
    fn at(path: &'static Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path })
    }
}

/// Standard output, which others share.
struct Stream {
    way: Way,
    /// The rest of a line of which a part was taken.
    begun: Vec<u8>,
}

/// How something is written without waiting, by what standard output is.
enum Way {
    /// A pipe or a terminal, opened anew: O_NONBLOCK belongs to the open file
    /// description (open(2)), and on the inherited one it would be everybody's.
    Own(OwnedFd),
    Socket(OwnedFd),
    /// What is left: a file, which always has room, and what cannot be opened anew.
    Shared(OwnedFd),
}

impl Stream {
    fn of(stdout: impl AsFd) -> io::Result<Self> {
        Ok(Self { way: Way::of(stdout.as_fd().try_clone_to_owned()?), begun: Vec::new() })
    }

    /// Writes a line, or keeps what is left of one that was begun.
    fn put(&mut self, line: &[u8]) -> Result<(), Errno> {
        self.go_on()?;
        let count = self.way.write(line)?;
        self.begun.extend_from_slice(line.get(count..).unwrap_or_default());
        // What cannot be written now stays for the next time.
        self.go_on().or(Ok(()))
    }

    fn go_on(&mut self) -> Result<(), Errno> {
        while !self.begun.is_empty() {
            let count = self.way.write(&self.begun)?;
            self.begun.drain(..count);
        }
        Ok(())
    }
}

impl Way {
    fn of(fd: OwnedFd) -> Self {
        let kind = rustix::fs::fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Ok(FileType::Socket) => Self::Socket(fd),
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                // It may be somebody else's, who lets us write and not open it.
                rustix::fs::open(path, flags, Mode::empty()).map_or(Self::Shared(fd), Self::Own)
            }
            _ => Self::Shared(fd),
        }
    }

    /// Writes as much of `bytes` as there is room for: one byte or more, or an error.
    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let count = match self {
            Self::Own(fd) => rustix::io::write(fd, bytes)?,
            Self::Socket(fd) => rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?,
            Self::Shared(fd) => {
                poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&Timespec::default()))
                    .and_then(|ready| if ready > 0 { Ok(()) } else { Err(Errno::AGAIN) })?;
                // A pipe that is writable takes this much at once (pipe(7)).
                rustix::io::write(fd, bytes.get(..PIPE_BUF).unwrap_or(bytes))?
            }
        };
        if count > 0 { Ok(count) } else { Err(Errno::AGAIN) }
    }
}

/// The native protocol: `KEY=value` lines; a value with a newline in it would
/// need the binary form, so newlines become spaces.
fn journal_entry(level: Level, message: Arguments<'_>) -> Vec<u8> {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut text = String::new();
    // Writing to a string does not fail.
    write!(text, "{message}").unwrap_or_default();
    let text = text.replace('\n', " ");
    format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=podinit\nMESSAGE={text}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_entry_cannot_be_forged_by_a_message() {
        let entry = journal_entry(Level::Warn, format_args!("a\nPRIORITY=0"));
        assert_eq!(entry, b"PRIORITY=4\nSYSLOG_IDENTIFIER=podinit\nMESSAGE=a PRIORITY=0\n");
    }

    /// Adds lines until some are lost, and says how many were written.
    fn fill(lines: &mut Lines) -> usize {
        let mut written = 0;
        while lines.lost < 3 {
            lines.add(Level::Info, format_args!("line {written} {:080}", 0));
            written += usize::from(lines.lost == 0);
        }
        written
    }

    /// Fills a stream whose reader has stopped, reads all of it, and expects to be told of the gap.
    fn assert_gap_is_told(way: Way, mut reader: impl Read + AsFd) {
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut read = || {
            let mut text = Vec::new();
            // It ends with there being nothing more for now.
            reader.read_to_end(&mut text).unwrap_err();
            String::from_utf8(text).unwrap()
        };
        let mut lines = Lines { to: To::Stream(Stream { way, begun: Vec::new() }), lost: 0 };
        let written = fill(&mut lines);
        let mut text = read();
        lines.add(Level::Info, format_args!("after"));
        text.push_str(&read());

        let mut told = text.lines();
        for number in 0..written {
            let line = told.next().unwrap();
            assert!(line.starts_with(&format!("INFO line {number} 0000")), "{line}");
            assert_eq!(line.len(), format!("INFO line {number} ").len() + 80, "{line}");
        }
        assert_eq!(told.next(), Some("WARN lost 3 lines of this log: nobody took them"));
        assert_eq!((told.next(), told.next()), (Some("INFO after"), None));
    }

    #[test]
    fn pipe_that_nobody_reads_is_not_waited_for() {
        let (reader, writer) = io::pipe().unwrap();
        assert_gap_is_told(Way::Shared(writer.into()), reader);
        let (reader, writer) = io::pipe().unwrap();
        let way = Way::of(writer.try_clone().unwrap().into());
        assert!(matches!(way, Way::Own(_)));
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "others have this description, too");
        drop(writer);
        assert_gap_is_told(way, reader);
    }

    #[test]
    fn socket_that_nobody_reads_is_not_waited_for() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let way = Way::of(writer.into());
        assert!(matches!(way, Way::Socket(_)));
        assert_gap_is_told(way, reader);
    }

    #[test]
    fn file_gets_every_line_after_what_is_there() {
        let mut file = tempfile::tempfile().unwrap();
        rustix::io::write(&file, b"before\n").unwrap();
        let mut lines = Lines { to: To::Stream(Stream::of(&file).unwrap()), lost: 0 };
        lines.add(Level::Info, format_args!("{:05000}", 0));
        lines.add(Level::Warn, format_args!("last"));
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("before\nINFO {:05000}\nWARN last\n", 0));
    }

    #[test]
    fn journal_that_is_stuck_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path: &'static Path = Box::leak(directory.path().join("journal").into_boxed_path());
        let journald = UnixDatagram::bind(path).unwrap();
        journald.set_nonblocking(true).unwrap();
        let mut lines = Lines { to: To::Journal(Journal::at(path).unwrap()), lost: 0 };
        let written = fill(&mut lines);

        let mut buffer = [0; 4096];
        let mut next = || {
            let count = journald.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..count].to_vec()).unwrap())
        };
        for number in 0..written {
            assert!(next().unwrap().contains(&format!("MESSAGE=line {number} ")));
        }
        lines.add(Level::Info, format_args!("after"));
        assert!(next().unwrap().contains("PRIORITY=4\nSYSLOG_IDENTIFIER=podinit\nMESSAGE=lost 3 lines"));
        assert!(next().unwrap().contains("MESSAGE=after\n"));
        assert_eq!(next(), None);
    }
}
