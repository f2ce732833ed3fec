//! `podinit init`: runs a command as tini and catatonit do; and the name `pause`.
//!
//! The work is done by the small program of `crate::init`, which reads the same
//! arguments itself: here it is only started in our place.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use crate::init;

/// Exit code when the program cannot be started: what shells use for a command
/// that was found and cannot be executed.
const CANNOT_EXECUTE: u8 = 126;

/// `podinit init ARGUMENTS`.
#[must_use]
pub fn init(arguments: &[OsString]) -> ExitCode {
    become_program(OsStr::new("podinit-init"), arguments)
}

/// This binary, called by the name `pause`.
#[must_use]
pub fn pause(arguments: &[OsString]) -> ExitCode {
    become_program(OsStr::new("pause"), arguments)
}

fn become_program(name: &OsStr, arguments: &[OsString]) -> ExitCode {
    let error = init::become_command(name, arguments);
    // Standard error is all there is left to tell it to.
    eprintln!("podinit: cannot start the init program: {error}");
    ExitCode::from(CANNOT_EXECUTE)
}
