//! Processes: own and children.

use super::{Errno, Result, arch::call, check, numbers as nr};

/// This process, as its pid namespace sees it.
#[must_use]
pub fn id() -> i32 {
    // SAFETY: getpid(2) has no argument.
    (unsafe { call(nr::GETPID, [0; 5]) }) as i32
}

/// Ends this process.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: exit_group(2) takes a number only and does not come back.
        unsafe { call(nr::EXIT_GROUP, [code as usize, 0, 0, 0, 0]) };
    }
}

/// How a child has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By exit(2), with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// A child whose status was collected.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    /// Its pid.
    pub pid: i32,
    /// How it ended.
    pub ended: Ended,
}

/// Takes one child that has ended, if there is one.
///
/// # Errors
/// `ECHILD`: there are no children at all.
pub fn reap() -> Result<Option<Reaped>> {
    const WNOHANG: usize = 1;
    const ANY: usize = usize::MAX;
    let mut status = 0i32;
    // SAFETY: `status` lives on this stack frame; no rusage is asked for.
    let pid = check(unsafe { call(nr::WAIT4, [ANY, &raw mut status as usize, WNOHANG, 0, 0]) })?;
    if pid == 0 {
        return Ok(None);
    }
    let signal = (status & 0x7f) as u8;
    let ended = if signal == 0 { Ended::Code((status >> 8) as u8) } else { Ended::Signal(signal) };
    Ok(Some(Reaped { pid: pid as i32, ended }))
}

/// Begins a session of its own, so that no terminal is the controlling one.
///
/// # Errors
/// `EPERM` if it leads a process group already.
pub fn new_session() -> Result<()> {
    // SAFETY: setsid(2) has no argument.
    check(unsafe { call(nr::SETSID, [0; 5]) })?;
    Ok(())
}

/// Whether the error of a call says that there are no children.
#[must_use]
pub fn childless(error: Errno) -> bool {
    error == Errno::CHILD
}

/// A program's arguments and environment, as execve(2) takes them.
#[derive(Debug)]
pub struct Command {
    arguments: *mut usize,
    environment: *const usize,
}

impl Command {
    /// # Safety
    /// Both must point at arrays of pointers to C strings that end with a null
    /// and stay unchanged for the life of the process. Before the first argument
    /// there must be one more pointer, which may be overwritten.
    #[must_use]
    pub unsafe fn new(arguments: *mut usize, environment: *const usize) -> Self {
        Self { arguments, environment }
    }

    /// Becomes the program at `path`, which must end with a NUL.
    pub fn execute(&self, path: &core::ffi::CStr) -> Errno {
        let arguments = [path.as_ptr() as usize, self.arguments as usize, self.environment as usize, 0, 0];
        // SAFETY: the path is a C string; `new` was promised the rest.
        match check(unsafe { call(nr::EXECVE, arguments) }) {
            Ok(_) => Errno(0),
            Err(error) => error,
        }
    }
}
