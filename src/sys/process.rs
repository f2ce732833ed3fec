//! Children: how they ended, and asking for it without taking a status that
//! belongs to somebody else.
//!
//! rustix' `waitid` does not tell the pid, and nix' one fails on real-time
//! signals; both matter to a reaper.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It called exit(2) with this status.
    Code(u8),
    /// This signal ended it, with or without a core dump.
    Signal(u8),
}

/// A child that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildExit {
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub how: Ended,
    /// When its status was collected: Unix time in nanoseconds.
    pub at_ns: u64,
}

/// Unix time in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Gives this process the lowest priority: for the processor the greatest nice
/// value, for the disk the idle class (ioprio_set(2)).
///
/// # Errors
/// What the kernel says; the first that fails, after both were tried.
pub fn be_idle() -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    let nice = rustix::process::setpriority_process(None, 19).map_err(io::Error::from);
    // SAFETY: ioprio_set takes three ints and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    let io = if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    nice.and(io)
}

/// Looks for any child that has ended, and leaves it a zombie. `None` if there
/// is none, or no child at all.
///
/// # Errors
/// What waitid(2) says, but for `ECHILD`.
pub fn peek_ended() -> io::Result<Option<ChildExit>> {
    wait(libc::P_ALL, 0, libc::WNOWAIT)
}

/// Collects the status of child `pid` if it has ended. A pid names the same
/// process until its parent, which is us, has collected it.
///
/// # Errors
/// `ECHILD` counts as "has not ended": ask only for children. Else what waitid(2) says.
pub fn reap(pid: u32) -> io::Result<Option<ChildExit>> {
    wait(libc::P_PID, pid, 0)
}

/// As [`reap`], by pidfd.
///
/// # Errors
/// As [`reap`].
pub fn reap_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<Option<ChildExit>> {
    let number = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    wait(libc::P_PIDFD, number, 0)
}

/// Whether `pid` is a child of this process, ended or not.
#[must_use]
pub fn is_child(pid: u32) -> bool {
    // SAFETY: an all-zero siginfo_t is a valid value for the kernel to overwrite.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` lives on this stack frame and has the type that waitid(2) fills.
    unsafe { libc::waitid(libc::P_PID, pid, &raw mut info, options) == 0 }
}

fn wait(kind: libc::idtype_t, id: libc::id_t, extra: libc::c_int) -> io::Result<Option<ChildExit>> {
    // SAFETY: an all-zero siginfo_t is a valid value for the kernel to overwrite.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | extra;
    // SAFETY: `info` lives on this stack frame and has the type that waitid(2) fills.
    while unsafe { libc::waitid(kind, id, &raw mut info, options) } < 0 {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(None),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
    // SAFETY: after a successful waitid(2) the SIGCHLD fields are valid; with nothing found the kernel
    // leaves si_pid 0.
    let pid = unsafe { info.si_pid() };
    let Some(pid) = u32::try_from(pid).ok().filter(|pid| *pid != 0) else { return Ok(None) };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    let status = u8::try_from(status & 0xff).unwrap_or(u8::MAX);
    let how = if info.si_code == libc::CLD_EXITED { Ended::Code(status) } else { Ended::Signal(status) };
    Ok(Some(ChildExit { pid, how, at_ns: now_ns() }))
}

/// Sends any signal, real-time ones too, to the process behind `pidfd`.
///
/// # Errors
/// What pidfd_send_signal(2) says: `ESRCH` if it has been collected.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks for that of kill(2); the other arguments are integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Its own process: the others' children are not in sight of `peek_ended`.
    #[test]
    #[allow(clippy::zombie_processes, reason = "collecting them is what is tested")]
    fn statuses_are_told_exactly_real_time_signals_too() {
        for (script, expected) in [
            ("exit 0", Ended::Code(0)),
            ("exit 255", Ended::Code(255)),
            ("kill -KILL $$", Ended::Signal(9)),
            ("kill -40 $$", Ended::Signal(40)),
        ] {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pidfd = rustix::process::pidfd_open(
                rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
                rustix::process::PidfdFlags::empty(),
            )
            .unwrap();
            assert!(is_child(child.id()));
            let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            let exit = reap_pidfd(std::os::fd::AsFd::as_fd(&pidfd)).unwrap().unwrap();
            assert_eq!((exit.pid, exit.how), (child.id(), expected), "{script}");
            assert!(!is_child(child.id()));
            assert_eq!(reap(child.id()).unwrap(), None);
        }
    }
}
