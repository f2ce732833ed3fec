//! What can be answered, and what is answered when nobody does.

use serde::Deserialize;

use super::foreign::ForeignFd;
use super::syscall::errno_number;

/// The greatest errno that the kernel takes for one (`MAX_ERRNO`, linux/err.h).
pub const ERRNO_MAX: i32 = 4095;

/// An answer to a notification.
#[derive(Debug)]
pub enum Verdict {
    /// The call is not made and returns this.
    Return(i64),
    /// The call is not made and fails with this errno, 1 to [`ERRNO_MAX`].
    Errno(i32),
    /// The kernel makes the call, with what is in registers **and memory** by
    /// then: another thread of the target can have changed what a pointer points
    /// to after it was looked at. Use it where only registers were judged, or
    /// where the kernel's own checks refuse the bad case.
    Continue,
    /// The target gets a copy of this descriptor, and the call returns its
    /// number, in one step that cannot be interrupted half-way.
    AddFd {
        /// Which.
        fd: ForeignFd,
        /// The number in the target, replacing what is there; else the lowest that is free.
        at: Option<u32>,
        /// Whether it is closed at execve(2).
        close_on_exec: bool,
    },
    /// The target's whole process is ended with SIGKILL.
    Kill,
    /// No opinion: the next in order decides.
    Pass,
}

/// A verdict's kind, for counting and showing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VerdictKind {
    /// [`Verdict::Return`].
    Return,
    /// [`Verdict::Errno`].
    Errno,
    /// [`Verdict::Continue`].
    Continue,
    /// [`Verdict::AddFd`].
    AddFd,
    /// [`Verdict::Kill`].
    Kill,
    /// [`Verdict::Pass`].
    Pass,
}

impl VerdictKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Return, Self::Errno, Self::Continue, Self::AddFd, Self::Kill, Self::Pass];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Return => "return",
            Self::Errno => "errno",
            Self::Continue => "continue",
            Self::AddFd => "addfd",
            Self::Kill => "kill",
            Self::Pass => "pass",
        }
    }
}

impl Verdict {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> VerdictKind {
        match self {
            Self::Return(_) => VerdictKind::Return,
            Self::Errno(_) => VerdictKind::Errno,
            Self::Continue => VerdictKind::Continue,
            Self::AddFd { .. } => VerdictKind::AddFd,
            Self::Kill => VerdictKind::Kill,
            Self::Pass => VerdictKind::Pass,
        }
    }
}

/// What a call gets whose plugin failed: it missed its deadline, is gone, or
/// answered nonsense.
///
/// In text: `errno:EPERM` (or a number), `continue`, `kill`, `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum OnFailure {
    /// It fails with this errno.
    Errno(i32),
    /// The kernel makes it.
    Continue,
    /// Its process is ended.
    Kill,
    /// The next plugin in order is asked.
    Next,
}

/// A text that names no [`OnFailure`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no answer for a call; use errno:EPERM (any errno), continue, kill or next")]
pub struct NotAnAnswer(String);

impl TryFrom<String> for OnFailure {
    type Error = NotAnAnswer;

    fn try_from(text: String) -> Result<Self, NotAnAnswer> {
        match text.as_str() {
            "continue" => return Ok(Self::Continue),
            "kill" => return Ok(Self::Kill),
            "next" => return Ok(Self::Next),
            _ => {}
        }
        let errno = text.strip_prefix("errno:").and_then(errno_number);
        errno.map(Self::Errno).ok_or(NotAnAnswer(text))
    }
}

impl OnFailure {
    /// The verdict that it stands for.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Errno(errno) => Verdict::Errno(errno),
            Self::Continue => Verdict::Continue,
            Self::Kill => Verdict::Kill,
            Self::Next => Verdict::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        for (text, expected) in [
            ("errno:EPERM", OnFailure::Errno(1)),
            ("errno:38", OnFailure::Errno(38)),
            ("continue", OnFailure::Continue),
            ("kill", OnFailure::Kill),
            ("next", OnFailure::Next),
        ] {
            assert_eq!(OnFailure::try_from(text.to_owned()).unwrap(), expected);
        }
        for text in ["", "errno", "errno:", "errno:0", "errno:4096", "errno:-1", "errno:EWRONG", "Next"] {
            let error = OnFailure::try_from(text.to_owned()).unwrap_err();
            assert!(error.to_string().contains("use errno:EPERM"), "{text}");
        }
    }

    #[test]
    fn every_answer_has_its_verdict() {
        for (answer, kind) in [
            (OnFailure::Errno(5), VerdictKind::Errno),
            (OnFailure::Continue, VerdictKind::Continue),
            (OnFailure::Kill, VerdictKind::Kill),
            (OnFailure::Next, VerdictKind::Pass),
        ] {
            assert_eq!(answer.verdict().kind(), kind);
        }
        let words: std::collections::BTreeSet<_> =
            VerdictKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(words.len(), VerdictKind::ALL.len());
    }
}
