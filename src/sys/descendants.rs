//! This process's children, found and ended without allocating.

use std::ffi::CStr;
use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

/// Sends SIGKILL to every child of this process; how many there were. What a
/// child leaves behind becomes our child in its place if this process is a
/// subreaper: call again until [`has_child`] says no.
///
/// # Errors
/// What reading the kernel's list of children says: without procfs, or in a
/// kernel without `CONFIG_PROC_CHILDREN`, children cannot be found.
pub fn kill_children() -> io::Result<usize> {
    // thread-self: a process that is to call this has one thread, so its children are all there.
    const CHILDREN: &CStr = c"/proc/thread-self/children";
    let list = rustix::fs::open(CHILDREN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0u8; 4096];
    let mut count = 0;
    // The list: decimal pids, each with a blank after it. A pid may be cut by the buffer's end.
    let mut pid = 0i32;
    loop {
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&list, &mut buffer))?;
        if length == 0 {
            return Ok(count);
        }
        for byte in buffer.iter().take(length) {
            if byte.is_ascii_digit() {
                pid = pid.saturating_mul(10).saturating_add(i32::from(byte - b'0'));
            } else {
                count += usize::from(kill(pid));
                pid = 0;
            }
        }
    }
}

/// A child's pid is its own until we have collected its status, so this cannot hit another process.
fn kill(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| rustix::process::kill_process(pid, Signal::KILL).is_ok())
}

/// Whether this process has a child, running or ended.
#[must_use]
pub fn has_child() -> bool {
    // SAFETY: waitid(2) allows a null siginfo_t on Linux; with WNOWAIT it changes nothing.
    let result = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            std::ptr::null_mut(),
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL,
        )
    };
    result == 0
}
