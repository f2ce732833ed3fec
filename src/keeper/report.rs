//! What the keeper tells who started it, once: that the pod is served, or why
//! it is not.
//!
//! Through a pipe to the launcher, [`READY`] or [`FAILED`] and a sentence; in
//! the foreground, only the sentence, on standard error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// First byte of a report: the pod is served.
pub const READY: u8 = b'R';

/// First byte of a report: it is not, and the rest says why.
pub const FAILED: u8 = b'F';

/// Whom to tell.
#[derive(Debug)]
pub(super) enum Report {
    /// The launcher, which waits at the other end.
    Pipe(OwnedFd),
    /// Whoever reads standard error.
    Foreground,
    /// Nobody: it was told, or is gone.
    Done,
}

impl Report {
    /// The pipe that a launcher may be waiting at.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Pipe(pipe) => Some(pipe.as_fd()),
            Self::Foreground | Self::Done => None,
        }
    }

    /// The pod is served.
    pub(super) fn ready(&mut self) {
        if let Self::Pipe(pipe) = std::mem::replace(self, Self::Done) {
            write(pipe.as_fd(), &[READY]);
        }
    }

    /// It is not. Told once, and never after [`Report::ready`].
    pub(super) fn failed(&mut self, sentence: &str) {
        match std::mem::replace(self, Self::Done) {
            Self::Pipe(pipe) => {
                write(pipe.as_fd(), &[FAILED]);
                write(pipe.as_fd(), sentence.as_bytes());
            }
            Self::Foreground => {
                let stderr = rustix::stdio::stderr();
                write(stderr, b"podinit: ");
                write(stderr, sentence.as_bytes());
                write(stderr, b"\n");
            }
            Self::Done => {}
        }
    }
}

/// A reader that is gone does not need to know: an error here is nobody's.
fn write(to: BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(to, bytes)) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(_) => return,
        }
    }
}
