//! What can be asked of a namespace's descriptor (ioctl_nsfs(2)) and of a
//! process's pidfd about its namespaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::namespace::Flags;

/// An ioctl that takes no argument and returns a new descriptor or a number.
fn ask(fd: impl AsFd, request: libc::Ioctl) -> io::Result<libc::c_int> {
    // SAFETY: every request that this module passes takes no argument, so the kernel reads and writes
    // none of our memory.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for the caller of `ask`; nobody
    // else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// The user namespace that owns the namespace `fd`; of a user namespace, its parent.
///
/// # Errors
/// `EPERM` if that is outside of the caller's user namespace; `ENOTTY` if `fd` is no namespace.
pub fn owner(fd: impl AsFd) -> io::Result<OwnedFd> {
    ask(fd, libc::NS_GET_USERNS).map(own)
}

/// The pid or user namespace that the namespace `fd` is nested in.
///
/// # Errors
/// `EPERM` if that is outside of the caller's; `EINVAL` if the kind has no nesting.
pub fn parent(fd: impl AsFd) -> io::Result<OwnedFd> {
    ask(fd, libc::NS_GET_PARENT).map(own)
}

/// The `CLONE_NEW...` flag of the namespace `fd`.
///
/// # Errors
/// `ENOTTY` if `fd` is no namespace.
pub fn kind(fd: impl AsFd) -> io::Result<Flags> {
    ask(fd, libc::NS_GET_NSTYPE)
}

/// A namespace of the process of `pidfd`, by its `CLONE_NEW...` flag; for pid
/// and time the one that its children are born in. One system call and no path
/// look-up.
///
/// # Errors
/// `ENOTTY` or `EINVAL` before Linux 6.11, which the caller answers by opening
/// `/proc/<pid>/ns/...`; `ESRCH` if the process has ended.
pub fn of_process(pidfd: impl AsFd, flag: Flags) -> io::Result<OwnedFd> {
    // PIDFD_GET_<KIND>_NAMESPACE = _IO(0xff, n); libc does not have them.
    let n = match flag {
        libc::CLONE_NEWCGROUP => 1,
        libc::CLONE_NEWIPC => 2,
        libc::CLONE_NEWNS => 3,
        libc::CLONE_NEWNET => 4,
        libc::CLONE_NEWPID => 6,
        libc::CLONE_NEWTIME => 8,
        libc::CLONE_NEWUSER => 9,
        libc::CLONE_NEWUTS => 10,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    ask(pidfd, libc::_IO(0xff, n)).map(own)
}

/// The number by which the kernel orders mount namespaces: one can be pinned only
/// in one with a smaller number.
///
/// # Errors
/// `ENOTTY` before Linux 6.11; `EINVAL` if `fd` is no mount namespace.
pub fn mount_namespace_id(fd: impl AsFd) -> io::Result<u64> {
    let mut id: u64 = 0;
    // SAFETY: NS_GET_MNTNS_ID writes one u64 at its argument, which is on this stack frame.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::NS_GET_MNTNS_ID, &raw mut id) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(id) }
}
