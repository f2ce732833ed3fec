//! Starting a program with chosen descriptors at chosen numbers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::sys::oom;

/// A descriptor and the number under which the program shall find it.
#[derive(Debug)]
pub struct PassedFd {
    /// What to pass; stays open here until the [`Command`] is dropped.
    pub fd: OwnedFd,
    /// 3 or above: 0 to 2 are `Command::stdin` and its kin.
    pub number: RawFd,
}

/// Makes `command` hand over `passed`, clear every signal mask and disposition
/// that this process changed, and close every other descriptor above 2.
///
/// # Errors
/// `EMFILE` if descriptors run out.
pub fn prepare(command: &mut Command, passed: Vec<PassedFd>) -> io::Result<()> {
    let top = passed.iter().map(|p| p.number + 1).max().unwrap_or(3);
    let occupied = occupy_below(top)?;
    let closure = move || {
        let _kept_until_the_program_runs = &occupied;
        // Two rounds, so that no target number overwrites a source that is still to be moved.
        let mut sources = [0 as RawFd; 256];
        let sources = sources.get_mut(..passed.len()).ok_or(io::ErrorKind::InvalidInput)?;
        for (source, pass) in sources.iter_mut().zip(&passed) {
            // SAFETY: F_DUPFD takes ints and touches no memory.
            *source = check(unsafe { libc::fcntl(pass.fd.as_raw_fd(), libc::F_DUPFD, top) })?;
        }
        for (source, pass) in sources.iter().zip(&passed) {
            // SAFETY: dup2 takes two ints and touches no memory.
            check(unsafe { libc::dup2(*source, pass.number) })?;
        }
        close_from(passed.iter().map(|p| p.number))?;
        default_signals()
    };
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls on
    // memory that exists already: no allocation, no lock.
    unsafe { command.pre_exec(closure) };
    Ok(())
}

/// Takes every free descriptor number below `top`, so that the pipe on which the
/// child of `Command` tells that it could not become the program is above: a
/// passed descriptor would take its place, and the failure be written into that.
fn occupy_below(top: RawFd) -> io::Result<Vec<OwnedFd>> {
    let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
    let mut occupied = vec![null];
    while let Some(last) = occupied.last()
        && last.as_raw_fd() < top
    {
        occupied.push(last.try_clone()?);
    }
    Ok(occupied)
}

/// Makes the program that `command` starts as likely a victim of the kernel's
/// out-of-memory killer as any, if this process is protected from it: a
/// container must not inherit that.
pub fn unprotect(command: &mut Command) {
    if oom::is_protected() {
        // SAFETY: the closure runs between fork and exec and makes system calls only.
        unsafe { command.pre_exec(oom::unprotect) };
    }
}

/// Gives the program that `command` starts this soft limit of open files, and leaves the
/// hard one as it is.
pub fn limit_open_files(command: &mut Command, soft: u64) {
    let limit = move || {
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current = Some(soft);
        Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?)
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(limit) };
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Marks every descriptor above 2 close-on-exec, but for those in `keep`. Not a
/// plain close: std's own pipe to the parent must live until the exec.
fn close_from(keep: impl Iterator<Item = RawFd>) -> io::Result<()> {
    // SAFETY: close_range takes three ints and touches no memory.
    check(unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) })?;
    for number in keep {
        // SAFETY: F_SETFD takes an int and touches no memory.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

/// An ignored or blocked signal is inherited over exec; programs expect neither.
pub(super) fn default_signals() -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is a valid argument for sigemptyset to fill.
    let mut empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `empty` lives on this stack frame.
    check(unsafe { libc::sigemptyset(&raw mut empty) })?;
    // SAFETY: `empty` is initialised; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) })?;
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: SIG_DFL is a valid disposition for both; no handler code is installed.
        let old = unsafe { libc::signal(signal, libc::SIG_DFL) };
        if old == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
