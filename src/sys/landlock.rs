//! Landlock: what even root with every capability may not do to processes
//! outside of its domain (landlock(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `struct landlock_ruleset_attr` since version 6.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

/// `LANDLOCK_SCOPE_SIGNAL`: no signals to processes outside. It is also the one
/// rule that leaves everything else alone: mounts, files, network.
const SCOPE_SIGNAL: u64 = 1 << 1;

/// Puts this thread, and whatever it starts from now on, into a new Landlock
/// domain: none of them can trace or signal a process outside of the domain,
/// whatever their capabilities. Other threads are not affected.
///
/// # Errors
/// `ENOSYS`, `EOPNOTSUPP` if the kernel has no Landlock or has it switched off;
/// `EINVAL` before Linux 6.12; `EPERM` without `CAP_SYS_ADMIN` and `no_new_privs`.
pub fn confine_thread() -> io::Result<()> {
    let attributes = Ruleset { files: 0, network: 0, scopes: SCOPE_SIGNAL };
    let size = size_of::<Ruleset>();
    // SAFETY: the structure lives across the call and has the size given.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0) };
    let number = RawFd::try_from(made).map_err(|_| io::ErrorKind::InvalidData)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has just made this descriptor, close-on-exec, and nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: landlock_restrict_self takes numbers only.
    let entered = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if entered < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
