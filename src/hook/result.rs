//! How hooks ended, and the last ones of that.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::Stage;
use crate::limits::{HOOK_OUTPUT_BYTES_MAX, HOOK_RESULTS_BYTES_MAX, HOOK_RESULTS_KEPT_MAX};

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit status.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Its time was over; this was what it had.
    TimedOut(Duration),
    /// It could not be started, for this reason.
    NotStarted(String),
    /// A resident hook succeeded.
    Answered,
    /// A resident hook failed, for this reason.
    Refused(String),
    /// It ended, and why its status is not known.
    Lost(String),
}

impl Outcome {
    /// Whether the hook did what it was to do.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Code(0) | Self::Answered)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "it exited with {code}"),
            Self::Signal(signal) => write!(f, "signal {signal} ended it"),
            Self::TimedOut(limit) => {
                write!(f, "it had not ended after {} s and was killed", limit.as_secs_f32())
            }
            Self::NotStarted(reason) | Self::Refused(reason) | Self::Lost(reason) => f.write_str(reason),
            Self::Answered => f.write_str("it succeeded"),
        }
    }
}

/// The end of a stream of bytes, and how much came before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Tail {
    /// Adds what has been read. Keeps twice the limit at most, so that a flood is
    /// moved rarely.
    pub fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        if self.bytes.len() > 2 * HOOK_OUTPUT_BYTES_MAX {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let surplus = self.bytes.len().saturating_sub(HOOK_OUTPUT_BYTES_MAX);
        self.bytes.drain(..surplus);
        self.dropped += surplus as u64;
    }

    /// Nothing more comes: the last [`HOOK_OUTPUT_BYTES_MAX`] bytes stay.
    #[must_use]
    pub fn finish(mut self) -> Self {
        self.cut();
        self.bytes.shrink_to_fit();
        self
    }

    /// What is kept.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes before that.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The lines of it, each with the name of `hook` before it and a newline after
    /// it, as they go to a log.
    pub fn tagged(&self, hook: &str, lines: &mut Vec<u8>) {
        let tag = format!("[hook {hook}] ");
        if self.dropped > 0 {
            lines.extend_from_slice(format!("{tag}({} bytes before this)\n", self.dropped).as_bytes());
        }
        for line in self.bytes.split_inclusive(|byte| *byte == b'\n') {
            lines.extend_from_slice(tag.as_bytes());
            lines.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
            lines.push(b'\n');
        }
    }
}

/// One run of a hook, all attempts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookResult {
    /// Counts from 1, without a gap.
    pub sequence: u64,
    /// The hook's name.
    pub hook: String,
    /// When it ran.
    pub stage: Stage,
    /// For which pod.
    pub pod: String,
    /// For which container; `None` for a hook of the pod.
    pub container: Option<String>,
    /// When it was started first: Unix time in nanoseconds.
    pub started_at_ns: u64,
    /// All attempts and the pauses between them.
    pub elapsed: Duration,
    /// How often it was tried.
    pub attempts: u32,
    /// How the last attempt ended.
    pub outcome: Outcome,
    /// Its standard output's end.
    pub stdout: Tail,
    /// Its standard error's end.
    pub stderr: Tail,
    /// Processes that it left behind when it ended in time.
    pub left_running: usize,
    /// Processes that were killed because its time was over.
    pub killed: usize,
}

impl HookResult {
    fn output_bytes(&self) -> usize {
        self.stdout.bytes.len() + self.stderr.bytes.len()
    }
}

/// The last results: so many of them, and so many bytes of output in them.
#[derive(Debug, Default)]
pub struct Results {
    kept: VecDeque<Rc<HookResult>>,
    bytes: usize,
    last: u64,
}

impl Results {
    /// Numbers a result and keeps it.
    pub fn add(&mut self, mut result: HookResult) -> Rc<HookResult> {
        self.last += 1;
        result.sequence = self.last;
        let result = Rc::new(result);
        self.bytes += result.output_bytes();
        self.kept.push_back(Rc::clone(&result));
        while self.kept.len() > HOOK_RESULTS_KEPT_MAX || self.bytes > HOOK_RESULTS_BYTES_MAX {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.output_bytes();
        }
        result
    }

    /// Those from number `since` on that are still kept.
    #[must_use]
    pub fn since(&self, since: u64) -> Vec<Rc<HookResult>> {
        self.kept.iter().filter(|result| result.sequence >= since).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(stdout: Tail) -> HookResult {
        HookResult {
            sequence: 0,
            hook: "h".to_owned(),
            stage: Stage::PodReady,
            pod: "p".to_owned(),
            container: None,
            started_at_ns: 0,
            elapsed: Duration::ZERO,
            attempts: 1,
            outcome: Outcome::Code(0),
            stdout,
            stderr: Tail::default(),
            left_running: 0,
            killed: 0,
        }
    }

    #[test]
    fn a_flood_keeps_its_end_and_counts_the_rest() {
        let mut tail = Tail::default();
        for _ in 0..1000 {
            tail.push(&[b'x'; 1001]);
            assert!(tail.bytes.len() <= 2 * HOOK_OUTPUT_BYTES_MAX);
        }
        tail.push(b"the end");
        let tail = tail.finish();
        assert_eq!(tail.bytes().len(), HOOK_OUTPUT_BYTES_MAX);
        assert!(tail.bytes().ends_with(b"the end"));
        assert_eq!(tail.dropped() + HOOK_OUTPUT_BYTES_MAX as u64, 1000 * 1001 + 7);
    }

    #[test]
    fn every_line_is_tagged_also_one_without_an_end() {
        let mut lines = Vec::new();
        Tail { bytes: b"one\n\nthree".to_vec(), dropped: 9 }.tagged("h", &mut lines);
        let expected = "[hook h] (9 bytes before this)\n[hook h] one\n[hook h] \n[hook h] three\n";
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }

    #[test]
    fn results_are_bounded_by_number_and_by_bytes() {
        let mut results = Results::default();
        for _ in 0..HOOK_RESULTS_KEPT_MAX + 5 {
            results.add(result(Tail::default()));
        }
        let kept = results.since(0);
        assert_eq!((kept.len(), kept[0].sequence), (HOOK_RESULTS_KEPT_MAX, 6));
        let large = Tail { bytes: vec![0; HOOK_OUTPUT_BYTES_MAX], dropped: 0 };
        for _ in 0..HOOK_RESULTS_KEPT_MAX {
            results.add(result(large.clone()));
        }
        assert_eq!(results.since(0).len(), HOOK_RESULTS_BYTES_MAX / HOOK_OUTPUT_BYTES_MAX);
        assert_eq!(results.since(results.last).len(), 1);
    }
}
