//! Processes: own and children.

use super::{Errno, Result, arch::call, check, numbers as nr, time::Timespec};

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

/// What has become of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has ended and was collected.
    Ended(Ended),
    /// It was stopped by this signal and still is there.
    Stopped(i32),
}

impl Ended {
    /// What a shell makes of it: the code, or 128 and the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.wrapping_add(128),
        }
    }

    fn from_status(status: i32) -> Self {
        let signal = (status & 0x7f) as u8;
        if signal == 0 { Self::Code((status >> 8) as u8) } else { Self::Signal(signal) }
    }
}

/// A child that something has become of.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    /// Its pid.
    pub pid: i32,
    /// What it is.
    pub change: Change,
}

/// Takes one child that has ended or stopped, if there is one.
///
/// # Errors
/// `ECHILD`: there are no children at all.
pub fn reap() -> Result<Option<Changed>> {
    const WNOHANG_WUNTRACED: usize = 1 | 2;
    const ANY: usize = usize::MAX;
    let mut status = 0i32;
    let arguments = [ANY, &raw mut status as usize, WNOHANG_WUNTRACED, 0, 0];
    // SAFETY: `status` lives on this stack frame; no rusage is asked for.
    let pid = check(unsafe { call(nr::WAIT4, arguments) })?;
    if pid == 0 {
        return Ok(None);
    }
    let stopped = status & 0xff == 0x7f;
    let change =
        if stopped { Change::Stopped(status >> 8 & 0xff) } else { Change::Ended(Ended::from_status(status)) };
    Ok(Some(Changed { pid: pid as i32, change }))
}

/// A child of `fork`, seen from its parent.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    /// Its pid.
    pub pid: i32,
    /// A descriptor of it (pidfd_open(2)), close-on-exec.
    pub descriptor: i32,
}

/// Makes a copy of this process, in which the result is none.
///
/// # Errors
/// What fork(2) says.
pub fn fork() -> Result<Option<Child>> {
    const CLONE_PIDFD: usize = 0x1000;
    let mut descriptor = -1i32;
    let arguments = [CLONE_PIDFD | super::signal::CHLD as usize, 0, &raw mut descriptor as usize, 0, 0];
    // SAFETY: without CLONE_VM the child has memory of its own, so it goes on with a copy of this very stack;
    // `descriptor` lives across the call.
    let pid = check(unsafe { call(nr::CLONE, arguments) })?;
    Ok((pid != 0).then_some(Child { pid: pid as i32, descriptor }))
}

/// How the process behind `descriptor` has ended, if it was reaped already, by
/// whomever; Linux 6.15 and later.
#[must_use]
pub fn ended(descriptor: i32) -> Option<Ended> {
    /// `PIDFD_GET_INFO`: _IOWR(0xff, 11, 64 bytes).
    const GET_INFO: usize = 0xc040_ff0b;
    const INFO_EXIT: u32 = 1 << 3;
    // struct pidfd_info: mask (8 bytes), cgroup (8), eleven ids (44), exit code (4).
    let mut info = [0u32; 16];
    info[0] = INFO_EXIT;
    let arguments = [descriptor as usize, GET_INFO, info.as_mut_ptr() as usize, 0, 0];
    // SAFETY: `info` lives on this stack frame and has the 64 bytes that the number says.
    check(unsafe { call(nr::IOCTL, arguments) }).ok()?;
    let [mask, .., status] = info;
    (mask & INFO_EXIT != 0).then(|| Ended::from_status(status as i32))
}

/// Whether the process behind `descriptor` has ended, reaped or not.
#[must_use]
pub fn over(descriptor: i32) -> bool {
    const POLLIN: u16 = 1;
    #[repr(C)]
    struct Poll {
        descriptor: i32,
        wanted: u16,
        found: u16,
    }
    let mut poll = Poll { descriptor, wanted: POLLIN, found: 0 };
    let now = Timespec::from_ns(0);
    // SAFETY: one of the kernel's structures and the timeout, which live across the call.
    let found = unsafe { call(nr::PPOLL, [&raw mut poll as usize, 1, &raw const now as usize, 0, 0]) };
    found == 1 && poll.found != 0
}

/// Puts `pid` (0: this process) into a process group of its own.
///
/// # Errors
/// `EACCES` if it has executed a program since; `ESRCH` if it is gone.
pub fn lead_group(pid: i32) -> Result<()> {
    // SAFETY: setpgid(2) takes numbers only.
    check(unsafe { call(nr::SETPGID, [pid as usize, pid as usize, 0, 0, 0]) })?;
    Ok(())
}

/// The parent of this process; 0 if it is outside of the pid namespace.
#[must_use]
pub fn parent() -> i32 {
    // SAFETY: getppid(2) has no argument.
    (unsafe { call(nr::GETPPID, [0; 5]) }) as i32
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
    pub fn execute(&self, path: &[u8]) -> Errno {
        if path.last() != Some(&0) {
            return Errno::NOENT;
        }
        let arguments = [path.as_ptr() as usize, self.arguments as usize, self.environment as usize, 0, 0];
        // SAFETY: the path ends with a NUL; `new` was promised the rest.
        failed(unsafe { call(nr::EXECVE, arguments) })
    }

    /// Becomes a shell that reads `path`, which must end with a NUL: what
    /// execvp(3) does with a file that has no `#!` line.
    pub fn execute_by_shell(&self, path: &[u8]) -> Errno {
        if path.last() != Some(&0) {
            return Errno::NOENT;
        }
        let shell = c"/bin/sh".as_ptr() as usize;
        // SAFETY: `new` was promised one more pointer before the first, which may be overwritten.
        let arguments = unsafe { self.arguments.sub(1) };
        // SAFETY: as above.
        unsafe { *arguments = shell };
        // SAFETY: the first argument may be replaced: nothing else reads it between here and the exec.
        unsafe { *self.arguments = path.as_ptr() as usize };
        // SAFETY: both strings end with a NUL; `new` was promised the rest.
        failed(unsafe { call(nr::EXECVE, [shell, arguments as usize, self.environment as usize, 0, 0]) })
    }
}

/// The error of a call that only returns with one.
fn failed(returned: isize) -> Errno {
    check(returned).err().unwrap_or(Errno(0))
}
