//! `podinit compress-log`: the process that compresses old files of a log. The
//! monitor starts it; it is not for people.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::limits::LOG_BACKUPS_MAX;
use crate::monitor::log::compress;
use crate::sys::{oom, process};

/// Runs the role with its arguments: how many backups there may be, and the log.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let [backups, path] = arguments else { return ExitCode::from(2) };
    let backups = backups.to_str().and_then(|text| text.parse().ok());
    let Some(backups) = backups.filter(|backups| (1..=LOG_BACKUPS_MAX).contains(backups)) else {
        return ExitCode::from(2);
    };
    // What is done for want of anything better to do shall be the first to go when memory is short, and
    // the last to be served. If that cannot be had, the work is still worth doing.
    let _ordinary = oom::unprotect();
    let _polite = process::be_idle();
    // Nobody reads what it could say: a file that cannot be compressed stays as it is.
    compress::run(Path::new(path), backups).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
