//! Descriptors that a process was started with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of descriptor `number`, which the parent process left open
/// for us, and marks it close-on-exec. Each number can be taken once only: call
/// it before anything else opens descriptors.
///
/// # Errors
/// `EBADF` if no such descriptor is open.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an int and touches no memory; a closed number gives EBADF.
    let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl has just shown that `number` is open. By the contract of the command lines that
    // name inherited descriptors, nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
