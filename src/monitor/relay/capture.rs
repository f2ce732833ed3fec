//! The output of an exec, kept for its answer: the first bytes of each channel up
//! to a cap, and a count of the others. Pure.

use crate::monitor::log::batch::Channel;

/// What was captured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The first bytes of standard output, or of the terminal.
    pub stdout: Vec<u8>,
    /// The first bytes of standard error.
    pub stderr: Vec<u8>,
    /// Bytes of standard output beyond the cap.
    pub stdout_dropped: u64,
    /// Bytes of standard error beyond the cap.
    pub stderr_dropped: u64,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Capture {
    bytes_max: usize,
    captured: Captured,
}

impl Capture {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, captured: Captured::default() }
    }

    pub(super) fn push(&mut self, channel: Channel, bytes: &[u8]) {
        let Captured { stdout, stderr, stdout_dropped, stderr_dropped } = &mut self.captured;
        let (kept, dropped) = match channel {
            Channel::Stdout => (stdout, stdout_dropped),
            Channel::Stderr => (stderr, stderr_dropped),
        };
        let (keep, drop) = bytes.split_at(bytes.len().min(self.bytes_max - kept.len()));
        if kept.capacity() - kept.len() < keep.len() {
            // Doubles, as a Vec would, but never beyond the cap.
            let wanted = (kept.capacity() * 2).clamp(kept.len() + keep.len(), self.bytes_max);
            kept.reserve_exact(wanted - kept.len());
        }
        kept.extend_from_slice(keep);
        *dropped += drop.len() as u64;
    }

    pub(super) fn take(self) -> Captured {
        self.captured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_first_bytes_and_counts_the_rest() {
        let mut capture = Capture::new(10);
        for _ in 0..3 {
            capture.push(Channel::Stdout, b"abcd");
        }
        capture.push(Channel::Stderr, b"x");
        assert!(capture.captured.stdout.capacity() <= 10);
        let captured = capture.take();
        assert_eq!(captured.stdout, b"abcdabcdab");
        assert_eq!((captured.stdout_dropped, captured.stderr_dropped), (2, 0));
        assert_eq!(captured.stderr, b"x");
    }

    #[test]
    fn never_holds_more_memory_than_the_cap() {
        let mut capture = Capture::new(100_000);
        for _ in 0..1000 {
            capture.push(Channel::Stdout, &[0; 999]);
            assert!(capture.captured.stdout.capacity() <= 100_000);
        }
        assert_eq!(capture.take().stdout_dropped, 999_000 - 100_000);
    }
}
