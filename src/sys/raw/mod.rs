//! System calls without a C library, for the program that is PID 1 of a pod
//! (`src/init/program`). That program is compiled on its own, with `core` only,
//! so that a pod's init costs a few pages; this module is its whole access to
//! the kernel, and all of its `unsafe`.
//!
//! Nothing here allocates, and nothing here can panic: the build proves the
//! latter (see `entry`).
//!
//! # Safety
//! Each block makes one system call whose pointers come from references that
//! live across the call, with the sizes that the kernel's ABI gives the
//! structures of the same names (man pages: section 2).

mod arch;
pub mod process;
pub mod security;
pub mod signal;
pub mod stdio;
pub mod time;

pub use arch::numbers;

/// What the kernel said instead of doing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// No such file or directory.
    pub const NOENT: Self = Self(2);
    /// No such process.
    pub const SRCH: Self = Self(3);
    /// Interrupted by a stop signal or a tracer.
    pub const INTR: Self = Self(4);
    /// The file is no program that the kernel knows.
    pub const NOEXEC: Self = Self(8);
    /// No child to wait for.
    pub const CHILD: Self = Self(10);
    /// Timed out.
    pub const AGAIN: Self = Self(11);
    /// Permission denied.
    pub const ACCES: Self = Self(13);
    /// Part of a path is not a directory.
    pub const NOTDIR: Self = Self(20);
}

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Tells results from errors: the kernel returns -4095..=-1 for the latter.
fn check(returned: isize) -> Result<usize> {
    if (-4095..0).contains(&returned) {
        return Err(Errno(returned.unsigned_abs() as i32));
    }
    Ok(returned.unsigned_abs())
}
