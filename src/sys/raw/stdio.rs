//! Descriptors and what is written to them.

use super::{Result, arch::call, check, numbers as nr};

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
