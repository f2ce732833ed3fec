//! Where a hook's own cgroup is made, and how the hook enters it.
//!
//! On version 2 it is born in it (`CLONE_INTO_CGROUP`); on version 1 it writes itself
//! to it before it is the hook's program. Where there can be none, a hook is followed
//! through its descendants and its session instead.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::monitor::cgroup::{Mounts, fields};
use crate::monitor::leaf::{Leaf, Version};

/// What every such cgroup's name begins with.
const PREFIX: &str = "podinit-hook-";

/// Controllers of version 1 whose limits a hook of the pod shall feel. The
/// hierarchy of a leaf is not among them.
const LIMITING: [&str; 3] = ["memory", "pids", "cpu"];

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

    /// Makes a hook's own cgroup, for the pod whose stable pid is `owner`; `number`
    /// is used once.
    pub(super) fn leaf(&self, owner: u32, number: u64) -> io::Result<(Leaf, Door)> {
        let directory = self.directory.join(format!("{PREFIX}{owner}-{}-{number}", std::process::id()));
        let leaf = Leaf::make(self.version, directory)?;
        match self.door(&leaf) {
            Ok(door) => Ok((leaf, door)),
            Err(error) => {
                leaf.remove().ok();
                Err(error)
            }
        }
    }

    fn door(&self, leaf: &Leaf) -> io::Result<Door> {
        let write = |path: &Path| OpenOptions::new().write(true).open(path).map(OwnedFd::from);
        let mut tasks = self.tasks.iter().map(|path| write(path)).collect::<io::Result<Vec<_>>>()?;
        let mut cgroup = None;
        match self.version {
            Version::One => tasks.push(write(&leaf.directory().join("tasks"))?),
            Version::Two => cgroup = Some(File::open(leaf.directory())?.into()),
        }
        Ok(Door { cgroup, tasks })
    }

    /// The leaves of the pod whose stable pid is `owner` that an earlier monitor has left.
    pub(super) fn leaves_of(&self, owner: u32) -> Vec<Leaf> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let prefix = format!("{PREFIX}{owner}-");
        let ours = entries
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)));
        ours.map(|entry| Leaf::existing(self.version, entry.path())).collect()
    }
}

/// How a process enters a leaf.
#[derive(Debug)]
pub(super) struct Door {
    /// The directory, if it can be born there.
    pub(super) cgroup: Option<OwnedFd>,
    /// `tasks` files to write to.
    pub(super) tasks: Vec<OwnedFd>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::Signal;

    #[test]
    fn a_leaf_holds_its_process_and_kills_it() {
        let mounts = Mounts::read();
        let Some(below) = Below::own(&mounts) else { return };
        let (leaf, door) = below.leaf(u32::MAX, 1).unwrap();
        assert_eq!(below.leaves_of(u32::MAX).len(), 1);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(leaf.directory().join("cgroup.procs"), child.id().to_string()).unwrap();
        drop(door);
        assert_eq!(leaf.processes(), [child.id()]);
        assert_eq!(leaf.signal(Signal::CONT), 1);
        leaf.kill();
        child.wait().unwrap();
        assert!(leaf.processes().is_empty());
        leaf.remove().unwrap();
        leaf.remove().unwrap();
        assert!(below.leaves_of(u32::MAX).is_empty());
    }
}
