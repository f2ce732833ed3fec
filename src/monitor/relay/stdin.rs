//! The container's standard input: what attached clients send, in the order in
//! which it came, without any framing and so safe for any byte.
//!
//! What the container does not take at once is kept, and until that is gone no
//! client of the container is read: its own socket holds it back. So at most one
//! packet of each client that was about to be read is kept here.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::StdinGuard;
use super::poll::{Poll, Token, Watched};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Stdin {
    open: Option<Opened>,
    kind: Kind,
    waiting: Vec<u8>,
    /// Close it when nothing waits any more.
    closing: bool,
}

#[derive(Debug)]
struct Opened {
    fd: Watched,
    /// Goes with the descriptor.
    _guard: Option<StdinGuard>,
}

/// What stdin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A pipe of its own, whose end the container can see.
    Pipe,
    /// The terminal's master, which is the output too and stays open.
    Terminal,
}

impl Stdin {
    pub(super) fn new(
        stdin: Option<OwnedFd>,
        guard: Option<StdinGuard>,
        kind: Kind,
        poll: &Poll,
        token: Token,
    ) -> std::io::Result<Self> {
        let fd = stdin.map(|fd| Watched::new(poll, fd, token)).transpose()?;
        let open = fd.map(|fd| Opened { fd, _guard: guard });
        Ok(Self { open, kind, waiting: Vec::new(), closing: false })
    }

    /// Takes `bytes`, or drops them if there is no stdin (any more).
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.open.is_none() || self.closing {
            return;
        }
        if self.waiting.is_empty() {
            let written = self.write(bytes);
            self.waiting.extend_from_slice(bytes.get(written..).unwrap_or_default());
        } else {
            self.waiting.extend_from_slice(bytes);
        }
        self.settle();
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let written = self.write(&waiting);
        self.waiting = waiting.get(written..).unwrap_or_default().to_vec();
        self.settle();
    }

    /// The container can still be given input.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The container has not taken all; bring no more.
    pub(super) fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The end of the input, after what waits. A terminal has none: its end would
    /// hang up the container's output too.
    pub(super) fn close(&mut self) {
        if self.kind == Kind::Pipe {
            self.closing = true;
            self.settle();
        }
    }

    /// Closes it now.
    pub(super) fn drop_all(&mut self) {
        self.open = None;
        self.waiting = Vec::new();
    }

    /// Bytes written; all of them if nobody will ever read them.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            let Some(open) = &self.open else { return bytes.len() };
            match rustix::io::write(&open.fd, bytes.get(written..).unwrap_or_default()) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(_) => {
                    // A terminal may get a new reader; a pipe never does.
                    if self.kind == Kind::Pipe {
                        self.open = None;
                    }
                    return bytes.len();
                }
            }
        }
        written
    }

    fn settle(&mut self) {
        if self.closing && self.waiting.is_empty() {
            self.open = None;
        }
        let interest = if self.waiting.is_empty() { EventFlags::empty() } else { EventFlags::OUT };
        // Without a wake-up, what waits would wait for ever and hold its senders.
        if self.open.as_mut().is_some_and(|open| open.fd.set(interest).is_err()) {
            self.drop_all();
        }
    }
}
