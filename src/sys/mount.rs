//! Mounts made through descriptors, so that no path is walked twice: the new
//! mount API (Linux 5.2), or mount(2) where a kernel or a filter lacks it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

/// How a bind mount was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// open_tree(2) and move_mount(2).
    New,
    /// mount(2), because the kernel (or a seccomp filter) does not know the new calls.
    Old,
}

/// Which API to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The new one, then the old one.
    Best,
    /// mount(2) only; for tests and comparisons.
    OldOnly,
}

/// Bind-mounts what `source` refers to on what `target` refers to.
///
/// # Errors
/// What open_tree(2), move_mount(2) or mount(2) say.
pub fn bind(source: impl AsFd, target: impl AsFd, which: Use) -> io::Result<Api> {
    if which == Use::Best {
        match bind_new(source.as_fd(), target.as_fd()) {
            Err(Errno::NOSYS | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
            Ok(()) => return Ok(Api::New),
        }
    }
    rustix::mount::mount_bind(path_of(&source)?, path_of(&target)?)?;
    Ok(Api::Old)
}

fn bind_new(source: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, c"", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags)
}

/// Copies the mount of `directory` and makes the copy read-only. It is in no mount
/// namespace and goes with the descriptor, which is for `/proc/self/fd/N/NAME`.
///
/// # Errors
/// What open_tree(2) or mount_setattr(2) say: `ENOSYS` before Linux 5.12, `EPERM`
/// without CAP_SYS_ADMIN.
pub fn read_only_copy(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, directory, flags)?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (fd, size) = (tree.as_raw_fd(), size_of_val(&attributes));
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is a string with an end, and the attributes are a whole structure of the size that is
    // told; the kernel only reads both.
    let set = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, path, flags, &raw const attributes, size) };
    if set == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

/// Forbids bind mounts of the mount whose root `mount` refers to, and its
/// propagation. Only below such a mount may a mount namespace be pinned: a copy of
/// the pin in another mount namespace could hold itself alive (mount_namespaces(7)).
///
/// # Errors
/// What mount(2) says.
pub fn make_unbindable(mount: impl AsFd) -> io::Result<()> {
    Ok(rustix::mount::mount_change(path_of(&mount)?, MountPropagationFlags::UNBINDABLE)?)
}

/// Unmounts the topmost mount on `name` in `directory`, also while it is in use.
///
/// # Errors
/// `EINVAL` if nothing is mounted there, `ENOENT` if nothing is there.
pub fn detach(directory: impl AsFd, name: &str) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd());
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// A path to what a descriptor refers to.
fn path_of(fd: &impl AsFd) -> io::Result<CString> {
    Ok(CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?)
}
