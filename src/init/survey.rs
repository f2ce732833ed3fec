//! Who lives in a pod's pid namespace, seen from outside.
//!
//! PID 1 of a pod does not count: the kernel reaps for it, and it is not even
//! woken. So whoever wants to know asks the kernel, when he wants to know: before
//! the end of a pod, to be able to name those who had to be killed; for the
//! statistics of a pod, to show processes and zombies.
//!
//! Since Linux 6.18 a proc file system of the namespace can be made for the
//! purpose, and shows its processes only. Before, all processes of the machine
//! are looked at, and those of the namespace taken.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// One process of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid, as the pod sees it.
    pub pid: u32,
    /// Its name (`comm`): at most 15 bytes, chosen by the process itself.
    pub name: String,
    /// Whether it has ended and its parent has not collected it.
    pub zombie: bool,
}

/// The processes of the pid namespace whose PID 1 is `init`, PID 1 excepted, in
/// the order of their pids. `init` is a pid as this process sees it.
///
/// # Errors
/// `ENOENT` if there is no such process; what open(2) and read(2) of `/proc` say.
pub fn processes(init: u32) -> io::Result<Vec<Process>> {
    let namespace =
        rustix::fs::open(format!("/proc/{init}/ns/pid"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut found = match proc_of(namespace.as_fd()) {
        Ok(proc) => inside(proc.as_fd())?,
        // An older kernel, or one that does not let us mount.
        Err(_) => outside(namespace.as_fd())?,
    };
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

/// A proc file system of the namespace, mounted nowhere.
fn proc_of(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let system = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_fd(system.as_fd(), "pidns", namespace)?;
    rustix::mount::fsconfig_create(system.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(system.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // What fsmount gives is a path only, and cannot be listed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&mount, ".", flags, Mode::empty())?)
}

/// The processes that a proc file system of the namespace shows.
fn inside(proc: BorrowedFd<'_>) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for pid in pids(proc)? {
        if pid != 1
            && let Some((name, zombie)) = stat(proc, pid)
        {
            found.push(Process { pid, name, zombie });
        }
    }
    Ok(found)
}

/// Of all processes that we see, those of the namespace.
fn outside(namespace: BorrowedFd<'_>) -> io::Result<Vec<Process>> {
    let wanted = rustix::fs::fstat(namespace)?.st_ino;
    let proc =
        rustix::fs::open("/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut found = Vec::new();
    for pid in pids(proc.as_fd())? {
        // A process that goes while we look is not an error: it is not there any more.
        let Ok(its) = rustix::fs::statat(&proc, format!("{pid}/ns/pid"), AtFlags::empty()) else { continue };
        if its.st_ino != wanted {
            continue;
        }
        let inner = read(proc.as_fd(), &format!("{pid}/status")).and_then(|status| innermost_pid(&status));
        if let (Some(inner), Some((name, zombie))) = (inner, stat(proc.as_fd(), pid))
            && inner != 1
        {
            found.push(Process { pid: inner, name, zombie });
        }
    }
    Ok(found)
}

/// The numbers among the names of a directory.
fn pids(proc: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in Dir::read_from(proc)? {
        if let Some(pid) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Name of a process, and whether it is a zombie.
fn stat(proc: BorrowedFd<'_>, pid: u32) -> Option<(String, bool)> {
    // proc_pid_stat(5): `pid (name) state ...`; the name may contain anything, even `) R`.
    let stat = read(proc, &format!("{pid}/stat"))?;
    let (head, rest) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    Some((name.to_owned(), matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X'))))
}

/// The last number of the line `NSpid:` of a process' status.
fn innermost_pid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

/// A small file of a proc file system. None: the process is gone.
fn read(proc: BorrowedFd<'_>, path: &str) -> Option<String> {
    let file = rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
