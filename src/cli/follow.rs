//! Printing a container's CRI log: its streams as they were written, each to our
//! own, across rotations, as it stands or for as long as it grows.
//!
//! A piece that ends its line is followed by a newline, another is not. So what
//! comes out is, byte for byte, what the container wrote.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::exit::Failure;
use super::output::failed;
use crate::limits;
use crate::monitor::log::batch::Channel;
use crate::monitor::log::reader::{self, Next, Piece, Selection};
use crate::monitor::log::stamp::Stamper;

/// Whether each line begins with the time at which it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// It does.
    Show,
    /// It does not.
    Hide,
}

/// What is printed of a log.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The log.
    pub path: PathBuf,
    /// Which part of it.
    pub selection: Selection,
    /// Whether with times.
    pub times: Times,
}

impl Follow {
    /// All of the log at `path`, as it was written.
    #[must_use]
    pub fn everything(path: PathBuf) -> Self {
        Self { path, selection: Selection::default(), times: Times::Hide }
    }

    /// Prints what is in the log now.
    ///
    /// # Errors
    /// If the log cannot be read or our output cannot be written.
    pub fn print(self) -> Result<(), Failure> {
        let mut printer = LinePrinter::new(self.times);
        let read = reader::read(&self.path, &self.selection, &mut |piece| printer.take(&piece));
        printer.end(read.map(drop))
    }

    fn follow(self, finish: &OwnedFd) -> Result<(), Failure> {
        let mut printer = LinePrinter::new(self.times);
        let read = reader::follow(&self.path, &self.selection, finish, &mut |next| match next {
            Next::Piece(piece) => printer.take(&piece),
            // Somebody watches.
            Next::CaughtUp => printer.flush(),
        });
        printer.end(read.map(drop))
    }
}

/// A thread that prints a log as it grows.
#[derive(Debug)]
pub struct Printer {
    finish: Arc<OwnedFd>,
}

impl Printer {
    /// Starts it; it ends, and calls `done`, when [`Printer::finish`] has been
    /// called and all is printed, or when it cannot go on.
    ///
    /// # Errors
    /// If there can be no more threads or descriptors.
    pub fn start(
        follow: Follow,
        done: impl FnOnce(Result<(), Failure>) + Send + 'static,
    ) -> Result<Self, Failure> {
        let cannot = |error: io::Error| Failure::io("following a log", &error);
        let finish = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let finish = Arc::new(finish.map_err(|error| cannot(error.into()))?);
        let finished = finish.clone();
        let body = move || done(follow.follow(&finished));
        std::thread::Builder::new().name("printer".into()).spawn(body).map_err(cannot)?;
        Ok(Self { finish })
    }

    /// Nothing more will be written to the log: print what is there and end.
    pub fn finish(&self) {
        // An eventfd that cannot be written is at its maximum: it has been told.
        rustix::io::write(&*self.finish, &1u64.to_ne_bytes()).ok();
    }
}

/// Our two streams. What is written to one is there before what was read later
/// is written to the other.
struct LinePrinter {
    stdout: BufWriter<io::Stdout>,
    stderr: BufWriter<io::Stderr>,
    times: Times,
    stamper: Stamper,
    failure: Option<Failure>,
}

impl LinePrinter {
    fn new(times: Times) -> Self {
        Self {
            stdout: BufWriter::with_capacity(limits::PRINT_BUFFER_BYTES, io::stdout()),
            stderr: BufWriter::with_capacity(limits::PRINT_BUFFER_BYTES, io::stderr()),
            times,
            stamper: Stamper::default(),
            failure: None,
        }
    }

    fn take(&mut self, piece: &Piece<'_>) -> ControlFlow<()> {
        let printed = self.print(piece);
        self.note(printed)
    }

    fn flush(&mut self) -> ControlFlow<()> {
        let stdout = self.stdout.flush().map_err(|error| failed("output", &error));
        let flushed = stdout.and_then(|()| self.stderr.flush().map_err(|error| failed("error", &error)));
        self.note(flushed)
    }

    fn note(&mut self, done: Result<(), Failure>) -> ControlFlow<()> {
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                self.failure = Some(failure);
                ControlFlow::Break(())
            }
        }
    }

    fn print(&mut self, piece: &Piece<'_>) -> Result<(), Failure> {
        let (writer, other, name): (&mut dyn Write, &mut dyn Write, _) = match piece.channel {
            Channel::Stdout => (&mut self.stdout, &mut self.stderr, "output"),
            Channel::Stderr => (&mut self.stderr, &mut self.stdout, "error"),
        };
        let stamp = match self.times {
            Times::Show if piece.starts_line => Some(self.stamper.render(piece.time)),
            _ => None,
        };
        let mut write = || -> io::Result<()> {
            other.flush()?;
            if let Some(stamp) = &stamp {
                writer.write_all(stamp)?;
                writer.write_all(b" ")?;
            }
            writer.write_all(piece.payload)?;
            if piece.ends_line {
                writer.write_all(b"\n")?;
            }
            Ok(())
        };
        write().map_err(|error| failed(name, &error))
    }

    /// What became of it all: a failure of ours, of the log, or of the last bytes.
    fn end(mut self, read: Result<(), reader::ReadError>) -> Result<(), Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.stdout.flush().map_err(|error| failed("output", &error))?;
        self.stderr.flush().map_err(|error| failed("error", &error))?;
        read.map_err(|error| Failure::new(error.to_string()))
    }
}
