//! The memory cgroup of a container and what it counts, on cgroup v1 and v2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::monitor::error::Error;

/// Where cgroup v2 counts them.
const EVENTS: &str = "memory.events";

/// Where a process' OOM kills are counted.
///
/// The kernel counts a kill in the cgroup of the victim (v1:
/// `memory.oom_control`, v2: `memory.events`, field `oom_kill`), whichever limit
/// was hit, so the container's own file tells it from its neighbours' kills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomCounter {
    file: PathBuf,
    baseline: u64,
}

impl OomCounter {
    /// The counter of the cgroup in which a process is, with its value as baseline.
    /// `None` if the machine has no memory controller, or the process is in a
    /// root cgroup, which counts nothing.
    pub(super) fn of(membership: &Membership, mounts: &Mounts) -> Option<Self> {
        let file = locate(&membership.theirs, &mounts.0)?;
        let baseline = read_oom_kills(&file).unwrap_or(0);
        file.exists().then_some(Self { file, baseline })
    }

    /// The counter in `file`, with a baseline that was read earlier.
    #[must_use]
    pub fn resume(file: PathBuf, baseline: u64) -> Self {
        Self { file, baseline }
    }

    /// The file and the baseline, for [`OomCounter::resume`].
    #[must_use]
    pub fn parts(self) -> (PathBuf, u64) {
        (self.file, self.baseline)
    }

    /// OOM kills since the baseline; `None` if the cgroup is gone.
    #[must_use]
    pub fn kills(&self) -> Option<u64> {
        read_oom_kills(&self.file).map(|kills| kills.saturating_sub(self.baseline))
    }

    /// Where v2 counts the kills of this cgroup and of those beside it, if systemd
    /// has made it: in its slice. The cgroup of a process may be one below its scope.
    #[must_use]
    pub(super) fn above(&self) -> Option<PathBuf> {
        if self.file.file_name()? != EVENTS {
            return None;
        }
        let is_slice = |directory: &&Path| directory.extension().is_some_and(|kind| kind == "slice");
        Some(self.file.ancestors().skip(1).find(is_slice)?.join(EVENTS))
    }
}

/// Where cgroups are mounted. Read once: a node's list of mounts has thousands of
/// lines, and those of the cgroups do not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts(String);

impl Mounts {
    /// As this process sees them; none if /proc is not there.
    #[must_use]
    pub fn read() -> Self {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
        Self(text.lines().filter(is_cgroup).fold(String::new(), |all, line| all + line + "\n"))
    }

    /// Where the cgroup `path` of the hierarchy with `controllers` (as in
    /// /proc/PID/cgroup; none is version 2) is visible.
    #[must_use]
    pub fn find(&self, controllers: &str, path: &str) -> Option<PathBuf> {
        if controllers.is_empty() {
            mounted(&self.0, path, "cgroup2", None)
        } else {
            mounted(&self.0, path, "cgroup", controllers.split(',').next())
        }
    }
}

/// In which cgroups a process is, and this one. The kernel takes its time to tell, so
/// it is asked once.
#[derive(Debug)]
pub(super) struct Membership {
    theirs: String,
    ours: String,
}

impl Membership {
    /// Of process `pid`.
    ///
    /// # Errors
    /// What reading /proc says.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(Self { theirs, ours: fs::read_to_string("/proc/self/cgroup")? })
    }

    /// The directory of the cgroup in which it is and this process is not: in v1's
    /// hierarchy of `controller`, or without one in v2's tree, if that is all there is.
    pub(super) fn own_directory(&self, mounts: &Mounts, controller: Option<&str>) -> Option<PathBuf> {
        directory_apart(&self.theirs, &self.ours, mounts, controller)
    }
}

/// Moves this process into the cgroups of process `leader`, where they differ:
/// engines move the pid that they know, the keeper's, and mean all of the monitor.
///
/// # Errors
/// What could not be read or written, with the file.
pub fn follow(leader: u32, mounts: &Mounts) -> Result<(), Error> {
    let read =
        |path: &str| fs::read_to_string(path).map_err(|error| Error::io(format!("read {path}"), error));
    let theirs = read(&format!("/proc/{leader}/cgroup"))?;
    let ours = read("/proc/self/cgroup")?;
    if theirs == ours {
        return Ok(());
    }
    for line in theirs.lines().filter(|line| !ours.lines().any(|own| own == *line)) {
        let Some(file) = membership_file(line, mounts) else { continue };
        // "0" is the writer itself (cgroups(7)).
        fs::write(&file, "0").map_err(|error| Error::io(format!("move to {}", file.display()), error))?;
    }
    Ok(())
}

/// Where to write to enter the cgroup of a line of /proc/PID/cgroup.
fn membership_file(line: &str, mounts: &Mounts) -> Option<PathBuf> {
    Some(directory_of_line(line, mounts)?.join("cgroup.procs"))
}

fn directory_of_line(line: &str, mounts: &Mounts) -> Option<PathBuf> {
    let (controllers, path) = fields(line)?;
    mounts.find(controllers, path)
}

/// The controllers (none is version 2) and the path of a line of /proc/PID/cgroup (cgroups(7)).
pub(super) fn fields(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.splitn(3, ':').skip(1);
    Some((fields.next()?, fields.next()?))
}

fn directory_apart(theirs: &str, ours: &str, mounts: &Mounts, controller: Option<&str>) -> Option<PathBuf> {
    let is_wanted = |line: &&str| match (controller, line.split(':').nth(1)) {
        (None, Some("")) => theirs.lines().count() == 1,
        (Some(wanted), Some(controllers)) => controllers.split(',').any(|one| one == wanted),
        _ => false,
    };
    let line = theirs.lines().find(is_wanted)?;
    let is_shared = line.ends_with(":/") || ours.lines().any(|own| own == line);
    if is_shared { None } else { directory_of_line(line, mounts) }
}

pub(super) fn read_oom_kills(file: &Path) -> Option<u64> {
    oom_kill_field(&fs::read_to_string(file).ok()?)
}

/// The value of the line `oom_kill N`.
pub(super) fn oom_kill_field(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok())
}

/// The counter's file, from /proc/PID/cgroup and /proc/self/mountinfo (proc(5)).
fn locate(membership: &str, mounts: &str) -> Option<PathBuf> {
    let path_of = |wanted: &dyn Fn(&str, &str) -> bool| {
        membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            wanted(hierarchy, controllers).then(|| path.to_owned())
        })
    };
    let v1 = path_of(&|_, controllers| controllers.split(',').any(|c| c == "memory"));
    if let Some(path) = v1
        && let Some(directory) = mounted(mounts, &path, "cgroup", Some("memory"))
    {
        return Some(directory.join("memory.oom_control"));
    }
    let path = path_of(&|hierarchy, controllers| hierarchy == "0" && controllers.is_empty())?;
    Some(mounted(mounts, &path, "cgroup2", None)?.join(EVENTS))
}

/// Where the cgroup `path` is visible, on a mount of type `kind` that has the
/// super option `option`.
fn mounted(mounts: &str, path: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let (found, options) = (filesystem.next()?, filesystem.nth(1)?);
        if found != kind || option.is_some_and(|wanted| options.split(',').all(|o| o != wanted)) {
            return None;
        }
        let mut mount = mount.split(' ');
        let (root, point) = (mount.nth(3)?, mount.next()?);
        let below = if root == "/" { path } else { path.strip_prefix(root)? };
        Some(Path::new(point).join(below.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "24 1 0:20 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                      25 1 0:21 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const V2: &str = "25 1 0:21 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn lines_of_both_versions() {
        assert_eq!(fields("0::/a:b"), Some(("", "/a:b")));
        assert_eq!(fields("5:cpu,cpuacct:/x"), Some(("cpu,cpuacct", "/x")));
        assert_eq!(fields("5"), None);
    }

    #[test]
    fn hybrid_counts_where_the_memory_controller_is() {
        let file = locate("5:memory:/pod/c1\n0::/other\n", V1).unwrap();
        assert_eq!(file, Path::new("/sys/fs/cgroup/memory/pod/c1/memory.oom_control"));
    }

    #[test]
    fn unified_counts_in_memory_events() {
        let file = locate("0::/pod.slice/c1.scope\n", V2).unwrap();
        assert_eq!(file, Path::new("/sys/fs/cgroup/pod.slice/c1.scope/memory.events"));
    }

    #[test]
    fn what_systemd_has_made_is_counted_in_its_slice_too() {
        let above = |file: &str| OomCounter::resume(file.into(), 0).above();
        for below in ["c.scope", "c.scope/container"] {
            let file = format!("/sys/fs/cgroup/pod.slice/{below}/memory.events");
            assert_eq!(above(&file).unwrap(), Path::new("/sys/fs/cgroup/pod.slice/memory.events"));
        }
        assert_eq!(above("/sys/fs/cgroup/pod/c/memory.events"), None);
        assert_eq!(above("/sys/fs/cgroup/memory/pod.slice/c.scope/memory.oom_control"), None);
    }

    #[test]
    fn a_bind_mounted_subtree_is_found_below_its_root() {
        let mounts = "24 1 0:20 /outer /cg rw - cgroup cgroup rw,memory\n";
        assert_eq!(locate("5:memory:/outer/c1\n", mounts).unwrap(), Path::new("/cg/c1/memory.oom_control"));
        assert_eq!(locate("5:memory:/elsewhere/c1\n", mounts), None);
    }

    #[test]
    fn each_hierarchy_is_entered_where_it_is_mounted() {
        let mounts = Mounts(V1.to_owned());
        let at = |line| membership_file(line, &mounts);
        assert_eq!(at("5:memory:/mon").unwrap(), Path::new("/sys/fs/cgroup/memory/mon/cgroup.procs"));
        assert_eq!(at("0::/mon").unwrap(), Path::new("/sys/fs/cgroup/unified/mon/cgroup.procs"));
        assert_eq!(at("3:cpuset:/mon"), None);
    }

    #[test]
    fn an_own_cgroup_is_one_that_is_not_shared_with_us() {
        let hybrid = "6:freezer:/c1\n5:memory:/pod/c1\n0::/c1\n";
        let freezer = "24 1 0:20 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n";
        let mounts = Mounts(format!("{V1}{freezer}"));
        let at = |theirs, ours, controller| directory_apart(theirs, ours, &mounts, controller);
        assert_eq!(
            at(hybrid, "6:freezer:/\n", Some("freezer")).unwrap(),
            Path::new("/sys/fs/cgroup/freezer/c1")
        );
        assert_eq!(at(hybrid, "6:freezer:/c1\n", Some("freezer")), None);
        assert_eq!(at("6:freezer:/\n", "6:freezer:/c1\n", Some("freezer")), None);
        // A hybrid's v2 tree has no controllers, and runtimes treat it in ways of their own.
        assert_eq!(at(hybrid, "0::/\n", None), None);
        let mounts = Mounts(V2.to_owned());
        let unified = |ours| directory_apart("0::/pod/c1\n", ours, &mounts, None);
        assert_eq!(unified("0::/pod\n").unwrap(), Path::new("/sys/fs/cgroup/pod/c1"));
        assert_eq!(unified("0::/pod/c1\n"), None);
    }

    #[test]
    fn the_field_is_not_mistaken_for_its_neighbours() {
        assert_eq!(oom_kill_field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(oom_kill_field("low 0\noom 2\noom_kill 1\noom_group_kill 5\n"), Some(1));
        assert_eq!(oom_kill_field("oom 2\n"), None);
    }
}
