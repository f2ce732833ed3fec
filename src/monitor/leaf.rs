//! A cgroup for what one command starts: whatever is born in it is found, and ended.
//!
//! Version 2 kills all of it with one write. Version 1's is a freezer: frozen, its
//! processes can be killed one by one and none of them can fork away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::monitor::cgroup::fields;

/// Of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// The freezer's hierarchy.
    One,
    /// The one tree.
    Two,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Leaf {
    version: Version,
    directory: PathBuf,
}

impl Leaf {
    /// Makes it.
    ///
    /// # Errors
    /// If it cannot be had: the cgroup above may be threaded, not be ours to write to,
    /// or have as many below it as it may.
    pub(super) fn make(version: Version, directory: PathBuf) -> io::Result<Self> {
        fs::create_dir(&directory)?;
        let leaf = Self { version, directory };
        let usable = leaf.refuse_threaded();
        if usable.is_err() {
            leaf.remove().ok();
        }
        usable.map(|()| leaf)
    }

    /// One that is there.
    pub(super) fn existing(version: Version, directory: PathBuf) -> Self {
        Self { version, directory }
    }

    fn refuse_threaded(&self) -> io::Result<()> {
        if self.version == Version::One {
            return Ok(());
        }
        match fs::read_to_string(self.directory.join("cgroup.type"))?.trim() {
            "domain" => Ok(()),
            other => Err(io::Error::other(format!("it would be {other}"))),
        }
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The processes in it.
    pub(super) fn processes(&self) -> Vec<u32> {
        let listed = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        listed.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Sends a signal to every process in it; how many there were.
    pub(super) fn signal(&self, signal: Signal) -> usize {
        let processes = self.processes();
        for pid in &processes {
            let raw = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            let Some(pidfd) = raw.and_then(|raw| pidfd_open(raw, PidfdFlags::empty()).ok()) else { continue };
            // Looked at after the pidfd was opened: from then on the number cannot change hands unseen.
            if self.holds(*pid)
                && let Err(error) = pidfd_send_signal(&pidfd, signal)
            {
                ::log::debug!("process {pid} of {} was gone already: {error}", self.directory.display());
            }
        }
        processes.len()
    }

    fn holds(&self, pid: u32) -> bool {
        let name = self.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        membership.lines().filter_map(fields).any(|(_, path)| path.split('/').any(|part| part == name))
    }

    /// Kills every process in it, without waiting. To be repeated until there is none.
    pub(super) fn kill(&self) {
        if self.version == Version::Two && fs::write(self.directory.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        let state = self.directory.join("freezer.state");
        let frozen = self.version == Version::One && fs::write(&state, "FROZEN").is_ok();
        self.signal(Signal::KILL);
        if frozen && let Err(error) = fs::write(&state, "THAWED") {
            ::log::error!("cannot thaw {}: {error}", state.display());
        }
    }

    /// Removes it, if it is still there.
    ///
    /// # Errors
    /// If something is in it: a process that has ended, collected or not, is not.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
