//! Command lines: they parse, call one function, and turn its error into an exit code.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the role that `argv` names.
#[must_use]
pub fn main(argv: Vec<OsString>) -> ExitCode {
    drop(argv);
    ExitCode::SUCCESS
}
