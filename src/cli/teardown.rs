//! Removing what is left of a pod: after an orderly stop only its directory,
//! after a crash also processes, containers and mounts. Every step can be
//! repeated, and one that fails does not keep the others from being done.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::exit::Failure;
use super::launch::{Note, wait_for_exit};
use super::paths::PodDir;
use crate::limits;

/// A process held by descriptor: it cannot be mistaken for a later one of the
/// same number.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
}

impl Process {
    /// The process `pid`, if it lives.
    #[must_use]
    pub fn of_pid(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        Some(Self { pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()? })
    }

    /// The keeper of `pod`, which its pidfile names.
    #[must_use]
    pub fn of_pidfile(pod: &PodDir) -> Option<Self> {
        let pid: u32 = fs::read_to_string(pod.pidfile()).ok()?.trim().parse().ok()?;
        let process = Self::of_pid(pid)?;
        // The number may be another's by now; the command line names the pod's directory.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = command.split(|byte| *byte == 0).any(|arg| arg == pod.path.as_os_str().as_bytes());
        ours.then_some(process)
    }

    /// Waits for its end, `timeout` at most; says whether it has ended.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        wait_for_exit(&self.pidfd, timeout)
    }

    /// Sends it a signal; one that has ended needs none.
    ///
    /// # Errors
    /// `EINVAL` if there is no such signal; what pidfd_send_signal(2) says.
    pub fn signal(&self, signal: u8) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal.into()).ok_or(io::ErrorKind::InvalidInput)?;
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it: asks, and when that has not helped for `grace`, does not ask.
    ///
    /// # Errors
    /// If it cannot be signalled or does not end even so.
    pub fn end(&self, grace: Duration) -> io::Result<()> {
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, limits::KILL_TIMEOUT)] {
            match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if self.wait(patience)? {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end even after SIGKILL"))
    }
}

/// Removes whatever is left of a pod whose server has ended.
///
/// # Errors
/// Everything that could not be removed, in one sentence.
pub fn remove_leftovers(pod: &PodDir) -> Result<(), Failure> {
    let mut problems = Vec::new();
    if let Some(note) = Note::read(pod) {
        delete_containers(pod, &note, &mut problems);
    }
    kill_pod_processes(pod, &mut problems);
    remove_files(pod, &mut problems);
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "removing what is left of pod {}: {}; put that right and do `podinit pod rm -f {}` again",
        pod.id,
        problems.join("; "),
        pod.id
    )))
}

/// Removes the pod's own directory and cgroups, after an orderly end.
///
/// # Errors
/// Everything that could not be removed, in one sentence.
pub fn remove_directory(pod: &PodDir) -> Result<(), Failure> {
    let mut problems = Vec::new();
    remove_files(pod, &mut problems);
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "removing the files of pod {}: {}; do `podinit pod rm -f {}`",
        pod.id,
        problems.join("; "),
        pod.id
    )))
}

fn remove_files(pod: &PodDir, problems: &mut Vec<String>) {
    unpin(pod, problems);
    // Over a mount that is left, removing would reach into somebody else's files.
    if problems.is_empty()
        && let Err(error) = fs::remove_dir_all(&pod.path)
        && error.kind() != io::ErrorKind::NotFound
    {
        problems.push(format!("{}: {error}", pod.path.display()));
    }
    remove_cgroups(&pod.id);
}

/// The OCI runtime knows its containers by the directories below its root.
fn delete_containers(pod: &PodDir, note: &Note, problems: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(pod.runtime_root()) else { return };
    for id in entries.filter_map(Result::ok).map(|entry| entry.file_name()) {
        let deleted = Command::new(&note.runtime)
            .arg("--root")
            .arg(pod.runtime_root())
            .args(["delete", "--force"])
            .arg(&id)
            .stdin(Stdio::null())
            .output();
        match deleted {
            Ok(output) if output.status.success() => {}
            // What is no container, or is gone by now, needs no removing.
            Ok(_) if !pod.runtime_root().join(&id).exists() => {}
            Ok(output) => problems.push(format!(
                "container {}: {}",
                id.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Err(error) => problems.push(format!("{}: {error}", note.runtime.display())),
        }
    }
}

/// A pid namespace ends with its PID 1; whoever is in a pinned one is the pod's.
fn kill_pod_processes(pod: &PodDir, problems: &mut Vec<String>) {
    let Ok(mounts) = fs::read("/proc/self/mountinfo") else { return };
    let pins = mounts.split(|byte| *byte == b'\n').filter_map(Mount::of_line);
    let pin = pins.filter(|mount| mount.path.starts_with(&pod.path)).find(Mount::is_pid_namespace);
    let Some(Ok(inode)) = pin.map(|mount| namespace_inode(&mount.path)) else { return };
    // A pod that shares the host's pid namespace has no processes of its own there. A pin of it must
    // never be taken for the pod's: everything on the machine would be killed.
    let shared = ["/proc/self/ns/pid", "/proc/1/ns/pid"];
    if shared.iter().any(|path| namespace_inode(Path::new(path)).is_ok_and(|host| host == inode)) {
        return;
    }
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for entry in processes.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Held before it is looked at, so that what is killed is what was looked at.
        let Some(process) = Process::of_pid(pid) else { continue };
        if namespace_inode(&entry.path().join("ns/pid")).is_ok_and(|found| found == inode)
            && let Err(error) = process.end(Duration::ZERO)
        {
            problems.push(format!("process {pid}: {error}"));
        }
    }
}

fn namespace_inode(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Unmounts the pinned namespaces below the pod's directory and refuses all other mounts.
fn unpin(pod: &PodDir, problems: &mut Vec<String>) {
    let mounts = match fs::read("/proc/self/mountinfo") {
        Ok(mounts) => mounts,
        Err(error) => return problems.push(format!("/proc/self/mountinfo: {error}")),
    };
    for mount in mounts.split(|byte| *byte == b'\n').filter_map(Mount::of_line) {
        let Mount { path, kind, .. } = mount;
        if !path.starts_with(&pod.path) {
            continue;
        }
        if kind != "nsfs" {
            problems.push(format!("{} is still mounted ({})", path.display(), kind.display()));
        } else if let Err(error) = umount2(&path, MntFlags::MNT_DETACH) {
            problems.push(format!("unmounting {}: {error}", path.display()));
        }
    }
}

/// A line of mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    /// What of the file system is mounted.
    root: &'a [u8],
    path: PathBuf,
    /// File system type.
    kind: &'a OsStr,
}

impl<'a> Mount<'a> {
    fn of_line(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let root = fields.nth(3)?;
        let path = unescape(fields.next()?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Self { root, path, kind: OsStr::from_bytes(kind) })
    }

    fn is_pid_namespace(&self) -> bool {
        self.kind == "nsfs" && self.root.starts_with(b"pid:[")
    }
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The pod's cgroups, in every hierarchy; then podinit's, if no other pod has one.
fn remove_cgroups(id: &str) {
    let top = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(top).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    for hierarchy in below.chain([top.to_owned()]) {
        // rmdir(2) of a cgroup refuses one that is in use, which is what is wanted.
        drop(fs::remove_dir(hierarchy.join("podinit").join(id)));
        drop(fs::remove_dir(hierarchy.join("podinit")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::paths::Root;

    #[test]
    fn mountinfo_is_read_as_the_kernel_writes_it() {
        let line = br"36 35 0:4 pid:[42] /run/a\040b\134c/pidns/x rw,noatime master:1 - nsfs nsfs rw";
        let mount = Mount::of_line(line).unwrap();
        assert_eq!(mount.path, Path::new(r"/run/a b\c/pidns/x"));
        assert!(mount.is_pid_namespace());
        for bad in [b"".as_slice(), b"1 2 3", b"1 2 3 4 /path rw"] {
            assert_eq!(Mount::of_line(bad), None);
        }
        assert_eq!(unescape(br"a\0"), Path::new(r"a\0"));
    }

    #[test]
    fn pidfile_of_another_process_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let pod = Root::new(root.path()).unwrap().pod("a").unwrap();
        pod.make().unwrap();
        assert!(Process::of_pidfile(&pod).is_none());
        fs::write(pod.pidfile(), std::process::id().to_string()).unwrap();
        assert!(Process::of_pidfile(&pod).is_none(), "that is this test, not a keeper");
    }

    #[test]
    fn leftovers_are_removed_and_removing_nothing_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let pod = Root::new(root.path()).unwrap().pod("a").unwrap();
        pod.make().unwrap();
        fs::write(pod.note(), "not JSON").unwrap();
        fs::create_dir(pod.runtime_root()).unwrap();
        remove_leftovers(&pod).unwrap();
        assert!(!pod.path.exists());
        remove_leftovers(&pod).unwrap();
    }

    #[test]
    fn process_that_ignores_a_polite_signal_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Process::of_pid(child.id()).unwrap().end(Duration::from_millis(50)).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }
}
