//! The client's side of an attach socket, and of the terminal that people sit at.
//!
//! The socket keeps packets apart (SOCK_SEQPACKET). From the server: one byte
//! that names the stream, then its bytes; a single 0 byte says that nothing more
//! will come. To the server: bytes for standard input as they are.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::net::{RecvFlags, SendFlags, SocketType};
use rustix::termios::{OptionalActions, Termios};

use super::detach::Detector;
use super::exit::Failure;
use super::output::failed;
use crate::sys;

/// Largest packet of the server: the stream's name and 8191 bytes.
const PACKET_BYTES_MAX: usize = 8192;
/// Bytes of standard input in one packet.
const INPUT_BYTES_MAX: usize = 8191;

const DONE: u8 = 0;
const STDOUT: u8 = 2;
const STDERR: u8 = 3;

/// Where a container's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// To our own standard output and error.
    Print,
    /// Nowhere: somebody else prints it.
    Discard,
}

/// How the output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The server said so: nothing is missing.
    Done,
    /// The connection was lost.
    Lost,
}

/// How our input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputEnd {
    /// There is no more, or nobody takes any.
    Ended,
    /// The keys that end an attach were typed.
    Detached,
}

/// A connection to a container's attach socket. Clones share it.
#[derive(Debug, Clone)]
pub struct Attached(Arc<OwnedFd>);

impl Attached {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// What connect(2) says.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(sys::socket::connect(path, SocketType::SEQPACKET)?)))
    }

    /// Takes the container's output until its end.
    ///
    /// # Errors
    /// If our own output cannot be written.
    pub fn copy_output(&self, sink: Sink) -> Result<End, Failure> {
        let mut buffer = [0; PACKET_BYTES_MAX];
        loop {
            let length = match rustix::net::recv(&*self.0, &mut buffer, RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Ok(End::Lost),
            };
            match (buffer.get(..length).unwrap_or_default(), sink) {
                ([], _) => return Ok(End::Lost),
                ([DONE], _) => return Ok(End::Done),
                ([STDOUT, bytes @ ..], Sink::Print) => {
                    let mut stdout = io::stdout().lock();
                    stdout
                        .write_all(bytes)
                        .and_then(|()| stdout.flush())
                        .map_err(|error| failed("output", &error))?;
                }
                ([STDERR, bytes @ ..], Sink::Print) => {
                    io::stderr().lock().write_all(bytes).map_err(|error| failed("error", &error))?;
                }
                // Nothing else is said today; a newer server may.
                _ => {}
            }
        }
    }

    /// Gives our standard input to the container until either ends, or until the
    /// keys that `detector` looks for were typed.
    pub fn copy_input(&self, mut detector: Option<Detector>) -> InputEnd {
        let mut buffer = [0; INPUT_BYTES_MAX];
        let mut passed = Vec::new();
        let mut stdin = io::stdin().lock();
        loop {
            let length = match stdin.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A terminal that has gone away can say no more: an end like any other.
                Err(_) => 0,
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write).ok();
                return InputEnd::Ended;
            }
            passed.clear();
            let is_over = match &mut detector {
                Some(detector) => detector.push(bytes, &mut passed),
                None => {
                    passed.extend_from_slice(bytes);
                    false
                }
            };
            // A packet goes as a whole or not at all; not at all means that nobody takes it any more.
            let sends = passed.chunks(INPUT_BYTES_MAX);
            let mut sends = sends.map(|packet| rustix::net::send(&*self.0, packet, SendFlags::NOSIGNAL));
            if sends.any(|sent| sent.is_err()) {
                return InputEnd::Ended;
            }
            if is_over {
                return InputEnd::Detached;
            }
        }
    }

    /// Ends both directions, so that [`Attached::copy_output`] returns.
    pub fn close(&self) {
        rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Both).ok();
    }
}

/// Our terminal in raw mode: keys go to the container as they are typed. The
/// mode it had is restored when this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts standard input into raw mode, if it is a terminal.
    ///
    /// # Errors
    /// What tcsetattr(3) says.
    pub fn enter() -> Result<Option<Self>, Failure> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |error: rustix::io::Errno| Failure::io("preparing the terminal", &error.into());
        let before = rustix::termios::tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Keys that nobody has read were for the container, not for the shell that comes next.
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.before).ok();
    }
}

/// Columns and rows of our terminal, if we have one.
#[must_use]
pub fn window_size() -> Option<(u16, u16)> {
    fn of(fd: impl AsFd) -> Option<(u16, u16)> {
        let size = rustix::termios::tcgetwinsize(fd).ok()?;
        Some((size.ws_col, size.ws_row)).filter(|(columns, rows)| *columns > 0 && *rows > 0)
    }
    of(io::stdin()).or_else(|| of(io::stdout()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Attached, OwnedFd) {
        let (near, far) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Attached(Arc::new(near)), far)
    }

    #[test]
    fn output_ends_by_word_or_by_loss() {
        let (attached, server) = pair();
        for packet in [b"\x02hello".as_slice(), b"\x03error", b"\x09unknown", b"\x00"] {
            rustix::net::send(&server, packet, SendFlags::empty()).unwrap();
        }
        assert_eq!(attached.copy_output(Sink::Discard).unwrap(), End::Done);
        drop(server);
        assert_eq!(attached.copy_output(Sink::Discard).unwrap(), End::Lost);

        let (attached, _server) = pair();
        attached.close();
        assert_eq!(attached.copy_output(Sink::Discard).unwrap(), End::Lost);
    }
}
