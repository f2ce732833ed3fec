//! Descriptors and what is written to them.

use super::{Errno, Result, arch::call, check, numbers as nr};

/// Standard input.
pub const STDIN: i32 = 0;
/// Standard output.
pub const STDOUT: i32 = 1;
/// Standard error.
pub const STDERR: i32 = 2;

/// Writes as much of `bytes` as goes at once.
///
/// # Errors
/// What write(2) says.
pub fn write(descriptor: i32, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the slice lives across the call and has the length given.
    check(unsafe { call(nr::WRITE, [descriptor as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0]) })
}

/// Closes every descriptor from `first` on.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn close_from(first: i32) -> Result<()> {
    // SAFETY: close_range(2) takes numbers only; this program keeps no other record of its descriptors.
    check(unsafe { call(nr::CLOSE_RANGE, [first as usize, u32::MAX as usize, 0, 0, 0]) })?;
    Ok(())
}

/// Closes `descriptor`. There is nothing to do about an error.
pub fn close(descriptor: i32) {
    // SAFETY: close(2) takes a number only.
    let _ = unsafe { call(nr::CLOSE, [descriptor as usize, 0, 0, 0, 0]) };
}

/// Makes `/` the working directory.
///
/// # Errors
/// What chdir(2) says.
pub fn leave_directory() -> Result<()> {
    // SAFETY: the path is static and ends with a NUL.
    check(unsafe { call(nr::CHDIR, [c"/".as_ptr() as usize, 0, 0, 0, 0]) })?;
    Ok(())
}

/// Makes `group` the foreground process group of the terminal `descriptor`.
///
/// # Errors
/// `ENOTTY`: it is not our controlling terminal. `EPERM`: no group of our session.
pub fn set_foreground(descriptor: i32, group: i32) -> Result<()> {
    const TIOCSPGRP: usize = 0x5410;
    // SAFETY: the argument is a pointer to a pid_t that lives across the call.
    check(unsafe { call(nr::IOCTL, [descriptor as usize, TIOCSPGRP, &raw const group as usize, 0, 0]) })?;
    Ok(())
}

/// The foreground process group of the terminal `descriptor`.
///
/// # Errors
/// `ENOTTY`: it is not our controlling terminal.
pub fn foreground(descriptor: i32) -> Result<i32> {
    const TIOCGPGRP: usize = 0x540f;
    let mut group = 0i32;
    // SAFETY: the argument is a pointer to a pid_t that lives across the call.
    check(unsafe { call(nr::IOCTL, [descriptor as usize, TIOCGPGRP, &raw mut group as usize, 0, 0]) })?;
    Ok(group)
}

/// Reads the file at `path`, which must end with a NUL, as far as `buffer` holds
/// it; returns the part that was filled.
///
/// # Errors
/// What open(2) and read(2) say.
pub fn read_file<'b>(path: &[u8], buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    const HERE: usize = -100isize as usize;
    const RDONLY_CLOEXEC: usize = 0o2_000_000;
    if path.last() != Some(&0) {
        return Err(Errno::NOENT);
    }
    // SAFETY: the path ends with a NUL and lives across the call.
    let file = check(unsafe { call(nr::OPENAT, [HERE, path.as_ptr() as usize, RDONLY_CLOEXEC, 0, 0]) })?;
    // SAFETY: the buffer lives across the call and has the length given.
    let read = check(unsafe { call(nr::READ, [file, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0]) });
    close(file as i32);
    Ok(buffer.get(..read?).unwrap_or_default())
}
