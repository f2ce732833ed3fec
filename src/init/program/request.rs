//! What the arguments can ask for, in both programs.

/// How to pause.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    /// Which argument is the pod's id; 0, the program's own name, if none is.
    pub(crate) name: usize,
    /// How long processes may take to end after TERM, in milliseconds.
    pub(crate) grace_ms: u64,
    /// Whether to leave standard error open, for the last message.
    pub(crate) keep_stderr: bool,
}

/// How long processes may take to end after TERM, unless told otherwise.
pub(crate) const GRACE_MS: u64 = 10_000;
