//! The record of an exit, and the files that tell engines about it.
//!
//! CRI-O watches the first of the files that it names, then reads the other and looks
//! for the OOM file. So the OOM files come first, then the exit files from the last to
//! the first, and every file appears under its name with its whole content.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::sys::process::{ChildExit, Ended};

/// How a container ended, or why that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// It called exit(2) with this status.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
    /// Nobody could collect the status, for this reason.
    Unknown(String),
}

/// The record of a container's exit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// How it ended.
    pub cause: ExitCause,
    /// Its own cgroup counted an OOM kill.
    pub oom_killed: bool,
    /// When its status was collected: Unix time in nanoseconds.
    pub at_ns: u64,
    /// Both streams were read to their end and written.
    pub log_complete: bool,
}

/// Whom of a container the kernel has killed for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomVictim {
    /// No process.
    Nobody,
    /// The first process, and perhaps others with it (`memory.oom.group`).
    FirstProcess,
    /// Only what the first process had started.
    Others,
}

impl ExitRecord {
    /// Who it was. The kernel kills with SIGKILL, and counts by cgroup, not by process.
    #[must_use]
    pub fn oom_victim(&self) -> OomVictim {
        match (self.oom_killed, &self.cause) {
            (false, _) => OomVictim::Nobody,
            (true, ExitCause::Signal(9)) => OomVictim::FirstProcess,
            (true, _) => OomVictim::Others,
        }
    }
}

impl From<Option<ChildExit>> for ExitCause {
    fn from(exit: Option<ChildExit>) -> Self {
        match exit.map(|exit| exit.how) {
            Some(Ended::Code(code)) => Self::Code(code),
            Some(Ended::Signal(signal)) => Self::Signal(signal),
            None => Self::Unknown("its status was collected by another process".into()),
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Signal(signal) => write!(f, "{} (signal {signal})", self.shell_code()),
            Self::Unknown(reason) => write!(f, "{} ({reason})", self.shell_code()),
        }
    }
}

impl ExitCause {
    /// The one number that engines and shells know: the code, or 128 + signal.
    /// Of an unknown cause it is 255, which CRI-O uses for the same case.
    #[must_use]
    pub fn shell_code(&self) -> i32 {
        match self {
            Self::Code(code) => i32::from(*code),
            Self::Signal(signal) => 128 + i32::from(*signal),
            Self::Unknown(_) => 255,
        }
    }
}

/// Which files tell of an exit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExitFiles {
    /// Receive the decimal exit code, the first of them last: it is the one that an
    /// engine watches.
    pub exit: Vec<PathBuf>,
    /// Created empty if the container was OOM-killed, before the others.
    pub oom: Vec<PathBuf>,
}

impl ExitFiles {
    /// Writes what `record` says, as much of it as can be; returns what could not.
    pub fn write(&self, record: &ExitRecord) -> Vec<(PathBuf, io::Error)> {
        let code = record.cause.shell_code().to_string();
        let oom = self.oom.iter().filter(|_| record.oom_killed).map(|path| (path, ""));
        let exit = self.exit.iter().rev().map(|path| (path, code.as_str()));
        oom.chain(exit)
            .filter_map(|(path, content)| {
                publish(path, content.as_bytes()).err().map(|error| (path.clone(), error))
            })
            .collect()
    }
}

/// Makes `path` hold `content`, all at once: nobody sees it half written.
///
/// # Errors
/// What the system calls say; nothing is left behind then.
pub fn publish(path: &Path, content: &[u8]) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // A nameless file that is then linked: a watcher of the directory sees one creation, no
    // temporary name (open(2), O_TMPFILE).
    let mode = Mode::from_raw_mode(0o644);
    match rustix::fs::open(directory, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
        Ok(nameless) => {
            let mut file = File::from(nameless);
            file.write_all(content)?;
            let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            match rustix::fs::linkat(CWD, source, CWD, path, AtFlags::SYMLINK_FOLLOW) {
                Err(rustix::io::Errno::EXIST) => {}
                result => return Ok(result?),
            }
        }
        // Not every file system has nameless files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = directory.join(temporary);
    let renamed = write_new(&temporary, content).and_then(|()| std::fs::rename(&temporary, path));
    if renamed.is_err() {
        std::fs::remove_file(&temporary).or_else(ignore_missing)?;
    }
    renamed
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?).write_all(content)
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cause: ExitCause, oom_killed: bool) -> ExitRecord {
        ExitRecord { cause, oom_killed, at_ns: 1, log_complete: true }
    }

    #[test]
    fn files_hold_the_code_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let files = ExitFiles { exit: vec![at("watched"), at("exit")], oom: vec![at("oom")] };

        assert!(files.write(&record(ExitCause::Signal(9), true)).is_empty());
        assert_eq!(std::fs::read_to_string(at("exit")).unwrap(), "137");
        assert_eq!(std::fs::read_to_string(at("watched")).unwrap(), "137");
        assert_eq!(std::fs::read_to_string(at("oom")).unwrap(), "");

        // A file of an earlier container of that name is replaced.
        assert!(files.write(&record(ExitCause::Code(0), false)).is_empty());
        assert_eq!(std::fs::read_to_string(at("exit")).unwrap(), "0");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn first_process_is_the_victim_only_if_it_was_killed() {
        let victim = |cause, oom_killed| record(cause, oom_killed).oom_victim();
        assert_eq!(victim(ExitCause::Signal(9), true), OomVictim::FirstProcess);
        assert_eq!(victim(ExitCause::Signal(9), false), OomVictim::Nobody);
        for cause in [ExitCause::Code(0), ExitCause::Code(137), ExitCause::Signal(15)] {
            assert_eq!(victim(cause, true), OomVictim::Others);
        }
    }

    #[test]
    fn one_bad_path_does_not_cost_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let good = directory.path().join("exit");
        let bad = directory.path().join("missing/exit");
        let files = ExitFiles { exit: vec![good.clone(), bad.clone()], oom: Vec::new() };

        let failed = files.write(&record(ExitCause::Code(7), false));
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, bad);
        assert_eq!(std::fs::read_to_string(good).unwrap(), "7");
    }
}
