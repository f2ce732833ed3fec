//! How a command for people ends: its exit code and, if it failed, one sentence
//! and what to do about it.

use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::rpc::client::{self, Code};

/// The command did not do what it was asked to.
pub const FAILURE: u8 = 1;
/// The command line was wrong (also clap's own code).
pub const USAGE: u8 = 2;
/// `exec`: the time-out passed and the command was killed. timeout(1)'s number.
pub const TIMED_OUT: u8 = 124;
/// `run` and `exec`: podinit, not the command, failed. Docker's and Podman's number.
pub const PODINIT_FAILED: u8 = 125;
/// `run` and `exec`: the command was found but could not be executed. The shells' number.
pub const NOT_EXECUTABLE: u8 = 126;
/// `run` and `exec`: the command was not found. The shells' number.
pub const NOT_FOUND: u8 = 127;

/// Why a command ends early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// With this exit code, and this text on standard error.
    Said {
        /// Exit code.
        code: u8,
        /// What happened, on what, and what to do.
        message: String,
    },
    /// Whoever read our standard output has gone: nothing left to do or say.
    OutputClosed,
}

impl Failure {
    /// The ordinary failure.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Said { code: FAILURE, message: message.into() }
    }

    /// The command line cannot be meant as it is.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Said { code: USAGE, message: message.into() }
    }

    /// A failed system or library call: what was being done, on what, and the cause.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(format!("{doing}: {error}"))
    }

    /// The same failure with the exit code that `run` and `exec` promise.
    #[must_use]
    pub fn in_run(self) -> Self {
        match self {
            Self::Said { code: FAILURE, message } => Self::Said { code: PODINIT_FAILED, message },
            other => other,
        }
    }

    /// The same failure, told as part of a larger undertaking.
    #[must_use]
    pub fn while_doing(self, doing: impl fmt::Display) -> Self {
        match self {
            Self::Said { code, message } => Self::Said { code, message: format!("{doing}: {message}") },
            Self::OutputClosed => self,
        }
    }

    /// Tells it on standard error and turns it into what `main` returns.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Said { code, message } => {
                complain(message);
                ExitCode::from(*code)
            }
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

/// One line on standard error. If that is closed there is nobody to tell.
pub fn complain(message: &str) {
    use std::io::Write;
    let mut stderr = io::stderr().lock();
    drop(writeln!(stderr, "podinit: {message}"));
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let advice = match error.code {
            Code::ResourceExhausted => "; try again when less is going on",
            Code::NotSupported => "; the pod was started by an older podinit: stop and create it again",
            Code::ShuttingDown => "; wait until the pod is gone",
            Code::Internal => "; this is a defect of podinit: please report it",
            Code::Disconnected => "; see `podinit pod ls`",
            _ => "",
        };
        Self::new(format!("{}{advice}", error.message))
    }
}

/// What the text of a failed start of a command says about the command itself.
///
/// The OCI runtimes have no code for it, only words: those of crun, runc and youki.
#[must_use]
pub fn code_of_failed_start(text: &str) -> u8 {
    let text = text.to_lowercase();
    let about_command = ["executable file", "open executable", "exec:", "exec `", "in $path"];
    if !about_command.iter().any(|words| text.contains(words)) {
        PODINIT_FAILED
    } else if text.contains("not found") || text.contains("no such file") {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_start_is_told_as_shells_tell_it() {
        for (text, code) in [
            ("executable file `nope` not found in $PATH: No such file or directory", NOT_FOUND),
            ("executable file `/nope` not found: No such file or directory", NOT_FOUND),
            (
                r#"unable to start container process: exec: "nope": executable file not found in $PATH"#,
                NOT_FOUND,
            ),
            (r#"unable to start container process: exec: "/nope": stat /nope: no such file"#, NOT_FOUND),
            (r#"exec: "/etc/passwd": permission denied"#, NOT_EXECUTABLE),
            ("open executable: Operation not permitted", NOT_EXECUTABLE),
            ("mount `/no` to `/no`: No such file or directory", PODINIT_FAILED),
        ] {
            assert_eq!(code_of_failed_start(text), code, "{text}");
        }
    }

    #[test]
    fn run_fails_with_its_own_code_but_usage_stays_usage() {
        assert_eq!(Failure::new("x").in_run(), Failure::Said { code: 125, message: "x".into() });
        assert_eq!(Failure::usage("x").in_run(), Failure::Said { code: 2, message: "x".into() });
    }
}
