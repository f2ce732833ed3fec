//! A cgroup of a hook's own: whatever the hook starts can be found, and ended.
//!
//! On version 2 the hook is born in it (`CLONE_INTO_CGROUP`) and all of it is
//! killed with one write. On version 1 it is a freezer: frozen, its processes can
//! be killed one by one and none of them can fork away. Where neither can be
//! made, a hook is followed through its descendants and its session instead.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::monitor::cgroup::Mounts;

/// What every such cgroup's name begins with.
const PREFIX: &str = "podinit-hook-";

/// Controllers of version 1 whose limits a hook of the pod shall feel. The
/// hierarchy of a leaf is not among them.
const LIMITING: [&str; 3] = ["memory", "pids", "cpu"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where leaves are made: below the cgroups of some process.
#[derive(Debug)]
pub(super) struct Below {
    version: Version,
    directory: PathBuf,
    /// `tasks` files of the limiting controllers, where they are not this process's already.
    tasks: Vec<PathBuf>,
}

impl Below {
    /// The cgroups of this process.
    pub(super) fn own(mounts: &Mounts) -> Option<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::find(&membership, mounts, |path| Some(path.to_owned()))
    }

    /// The cgroups that contain those of process `pid`: of a container, the pod's.
    /// `None` if that is the root, so that the pod has none of its own.
    pub(super) fn around(pid: u32, mounts: &Mounts) -> Option<Self> {
        let parent = |path: &str| {
            let (parent, _) = path.rsplit_once('/')?;
            (!parent.is_empty()).then(|| parent.to_owned())
        };
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mut found = Self::find(&membership, mounts, parent)?;
        if found.version == Version::One {
            let own = fs::read_to_string("/proc/self/cgroup").ok()?;
            for line in membership.lines().filter(|line| !own.lines().any(|same| same == *line)) {
                let Some((controllers, path)) = fields(line) else { continue };
                let limiting = controllers.split(',').any(|controller| LIMITING.contains(&controller));
                if let Some(path) = parent(path).filter(|_| limiting)
                    && let Some(directory) = mounts.find(controllers, &path)
                {
                    found.tasks.push(directory.join("tasks"));
                }
            }
        }
        Some(found)
    }

    fn find(membership: &str, mounts: &Mounts, choose: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let in_hierarchy = |wanted: &str| {
            let (controllers, path) = membership
                .lines()
                .filter_map(fields)
                .find(|(controllers, _)| controllers.split(',').any(|controller| controller == wanted))?;
            mounts.find(controllers, &choose(path)?).filter(|directory| directory.is_dir())
        };
        let below = |version, directory| Self { version, directory, tasks: Vec::new() };
        let two = in_hierarchy("").map(|directory| below(Version::Two, directory));
        two.or_else(|| in_hierarchy("freezer").map(|directory| below(Version::One, directory)))
    }

    /// Removes the leaves of the pod whose stable pid is `owner`, with all that is
    /// in them: what an earlier monitor has left.
    pub(super) fn leaves_of(&self, owner: u32) -> Vec<Leaf> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let prefix = format!("{PREFIX}{owner}-");
        let ours = entries
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)));
        ours.map(|entry| Leaf { version: self.version, directory: entry.path() }).collect()
    }
}

/// The controllers and the path of a line of /proc/PID/cgroup (cgroups(7)).
fn fields(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.splitn(3, ':').skip(1);
    Some((fields.next()?, fields.next()?))
}

/// How a process enters a leaf.
#[derive(Debug)]
pub(super) struct Door {
    /// The directory, if it can be born there.
    pub(super) cgroup: Option<OwnedFd>,
    /// `tasks` files to write to.
    pub(super) tasks: Vec<OwnedFd>,
}

/// A hook's own cgroup.
#[derive(Debug)]
pub(super) struct Leaf {
    version: Version,
    directory: PathBuf,
}

impl Leaf {
    /// Makes one below `below`, for the pod whose stable pid is `owner`; `number`
    /// is used once.
    pub(super) fn make(below: &Below, owner: u32, number: u64) -> io::Result<(Self, Door)> {
        let directory = below.directory.join(format!("{PREFIX}{owner}-{}-{number}", std::process::id()));
        fs::create_dir(&directory)?;
        let leaf = Self { version: below.version, directory };
        match leaf.door(&below.tasks) {
            Ok(door) => Ok((leaf, door)),
            Err(error) => {
                leaf.remove();
                Err(error)
            }
        }
    }

    fn door(&self, tasks: &[PathBuf]) -> io::Result<Door> {
        let write = |path: &Path| OpenOptions::new().write(true).open(path).map(OwnedFd::from);
        let mut open = tasks.iter().map(|path| write(path)).collect::<io::Result<Vec<_>>>()?;
        let cgroup = match self.version {
            Version::Two => {
                let kind = fs::read_to_string(self.directory.join("cgroup.type"))?;
                if kind.trim() != "domain" {
                    return Err(io::Error::other(format!("its cgroup would be {}", kind.trim())));
                }
                Some(File::open(&self.directory)?.into())
            }
            Version::One => {
                open.push(write(&self.directory.join("tasks"))?);
                None
            }
        };
        Ok(Door { cgroup, tasks: open })
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
            let Some(pidfd) = raw.and_then(|raw| rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok())
            else {
                continue;
            };
            // Looked at after the pidfd was opened: from then on the number cannot change hands unseen.
            if self.holds(*pid)
                && let Err(error) = rustix::process::pidfd_send_signal(&pidfd, signal)
            {
                ::log::debug!("process {pid} of a hook was gone already: {error}");
            }
        }
        processes.len()
    }

    fn holds(&self, pid: u32) -> bool {
        let name = self.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        membership.lines().filter_map(fields).any(|(_, path)| path.split('/').any(|part| part == name))
    }

    /// Kills every process in it. To be repeated until there is none.
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

    /// Removes it. Its last process must have ended, collected or not.
    pub(super) fn remove(&self) -> bool {
        match fs::remove_dir(&self.directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                ::log::debug!("{} is not removed yet: {error}", self.directory.display());
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_versions() {
        assert_eq!(fields("0::/a:b"), Some(("", "/a:b")));
        assert_eq!(fields("5:cpu,cpuacct:/x"), Some(("cpu,cpuacct", "/x")));
        assert_eq!(fields("5"), None);
    }

    #[test]
    fn a_leaf_holds_its_process_and_kills_it() {
        let mounts = Mounts::read();
        let Some(below) = Below::own(&mounts) else { return };
        let (leaf, door) = Leaf::make(&below, u32::MAX, 1).unwrap();
        assert_eq!(below.leaves_of(u32::MAX).len(), 1);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(leaf.directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        drop(door);
        assert_eq!(leaf.processes(), [child.id()]);
        assert_eq!(leaf.signal(Signal::CONT), 1);
        leaf.kill();
        child.wait().unwrap();
        assert!(leaf.processes().is_empty());
        assert!(leaf.remove());
        assert!(below.leaves_of(u32::MAX).is_empty());
    }
}
