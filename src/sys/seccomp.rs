//! Seccomp listeners (seccomp_unotify(2)): receiving what is notified, and
//! answering it.
//!
//! A listener cannot be made non-blocking: `O_NONBLOCK` is taken and ignored
//! (seen on 6.18). Poll it first. With one reader, what poll(2) says is readable
//! does not block: it is received, or was interrupted meanwhile ([`Received::Gone`]).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (linux/seccomp.h, since Linux 6.6).
const SYNC_WAKE_UP: u64 = 1;

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE` (linux/seccomp.h).
const CONTINUE: u32 = 1;
/// `SECCOMP_ADDFD_FLAG_SETFD` and `_SEND` (linux/seccomp.h).
const SET_FD: u32 = 1;
const SEND: u32 = 2;

/// A call that waits for an answer, as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Unique for its listener.
    pub id: u64,
    /// The thread, in the reader's pid namespace; 0 if not visible there.
    pub tid: u32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// The call's number.
    pub syscall: i32,
    /// Where it was made.
    pub instruction_pointer: u64,
    /// Its registers.
    pub args: [u64; 6],
}

/// What came of receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A call.
    Call(Call),
    /// Its thread was interrupted or ended before it was received. Normal.
    Gone,
}

/// An answer without a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call returns this.
    Return(i64),
    /// It fails with this errno, greater than 0.
    Errno(i32),
    /// The kernel makes it.
    Continue,
}

/// How a descriptor is given to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddFd {
    /// Its number there; else the lowest that is free.
    pub at: Option<u32>,
    /// Whether execve(2) closes it there.
    pub close_on_exec: bool,
    /// Whether this is the answer, too: the call returns the number.
    pub is_answer: bool,
}

/// Room for one notification, as large as the kernel's own idea of it.
#[derive(Debug)]
pub struct Buffer {
    /// In words, for their alignment.
    words: Vec<u64>,
}

impl Buffer {
    /// Room for what this kernel writes.
    ///
    /// # Errors
    /// `ENOSYS` or `EINVAL` from a kernel without notifications (before 5.0).
    pub fn new() -> io::Result<Self> {
        let mut sizes =
            libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
        // SAFETY: SECCOMP_GET_NOTIF_SIZES writes one `seccomp_notif_sizes`, which `sizes` is.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = usize::from(sizes.seccomp_notif).max(size_of::<libc::seccomp_notif>());
        Ok(Self { words: vec![0; bytes.div_ceil(size_of::<u64>())] })
    }

    fn call(&self) -> Call {
        let start = self.words.as_ptr().cast::<libc::seccomp_notif>();
        // SAFETY: `new` made room for at least one `seccomp_notif`, aligned as u64 is, which is its
        // alignment; all its fields are integers, so any bytes are a value.
        let notification = unsafe { start.read() };
        Call {
            id: notification.id,
            tid: notification.pid,
            arch: notification.data.arch,
            syscall: notification.data.nr,
            instruction_pointer: notification.data.instruction_pointer,
            args: notification.data.args,
        }
    }
}

/// Receives one notification from `listener`. Blocks unless poll(2) has said that
/// there is one.
///
/// # Errors
/// What ioctl(2) says, but for `ENOENT`, which is [`Received::Gone`].
pub fn receive(listener: BorrowedFd<'_>, buffer: &mut Buffer) -> io::Result<Received> {
    // The kernel refuses room that is not zeroed.
    buffer.words.fill(0);
    let room = buffer.words.as_mut_ptr();
    // SAFETY: the kernel writes one of its own `seccomp_notif` into `buffer`, which is as large as it said.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, room) };
    match check(result) {
        Ok(_) => Ok(Received::Call(buffer.call())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Received::Gone),
        Err(error) => Err(error),
    }
}

/// Answers call `id`.
///
/// # Errors
/// `ENOENT` if it was interrupted or its thread has ended; else what ioctl(2) says.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (val, error, flags) = match answer {
        Answer::Return(value) => (value, 0, 0),
        Answer::Errno(errno) => (0, errno.saturating_neg(), 0),
        Answer::Continue => (0, 0, CONTINUE),
    };
    let mut response = libc::seccomp_notif_resp { id, val, error, flags };
    let response = &raw mut response;
    // SAFETY: the kernel reads one `seccomp_notif_resp`, which `response` points to each time.
    let send = || unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, response) };
    check_uninterrupted(send).map(drop)
}

/// Whether call `id` still waits.
///
/// # Errors
/// What ioctl(2) says, but for `ENOENT`, which is false.
pub fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    let id = &raw const id;
    // SAFETY: the kernel reads one u64, which `id` points to each time.
    let ask = || unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, id) };
    match check_uninterrupted(ask) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the target of call `id` a copy of `fd`; its number there.
///
/// # Errors
/// `ENOENT` if the call does not wait any more, `EMFILE` if the target has no
/// number left, `EBADF` if it may not have the one asked for; else what ioctl(2) says.
pub fn add_fd(listener: BorrowedFd<'_>, id: u64, fd: BorrowedFd<'_>, how: AddFd) -> io::Result<u32> {
    let number = |fd: i32| u32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let flags = if how.at.is_some() { SET_FD } else { 0 } | if how.is_answer { SEND } else { 0 };
    let request = libc::seccomp_notif_addfd {
        id,
        flags,
        srcfd: number(fd.as_raw_fd())?,
        newfd: how.at.unwrap_or(0),
        newfd_flags: if how.close_on_exec { number(libc::O_CLOEXEC)? } else { 0 },
    };
    let request = &raw const request;
    // SAFETY: the kernel reads one `seccomp_notif_addfd`, which `request` points to; `fd` is open.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, request) };
    number(check(result)?)
}

/// Has the kernel wake target and reader on the same processor: each waits for
/// the other anyway.
///
/// # Errors
/// `EINVAL` from kernels before 6.6.
pub fn wake_in_step(listener: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the flags are passed by value.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
    check(result).map(drop)
}

/// Whether `fd` is a seccomp listener, by the name that the kernel gives it (proc(5), `/proc/<pid>/fd`).
#[must_use]
pub fn is_listener(fd: BorrowedFd<'_>) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    name.is_ok_and(|name| name.as_os_str() == "anon_inode:seccomp notify")
}

/// The result of `call`, which a signal does not end: while another thread calls or is
/// answered at the same listener, the kernel waits for it, and gives up for a signal.
fn check_uninterrupted(call: impl Fn() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_signal_ends_neither_an_answer_nor_a_question() {
        let signals = Cell::new(3);
        let result = check_uninterrupted(|| {
            if signals.get() == 0 {
                return 5;
            }
            signals.set(signals.get() - 1);
            nix::errno::Errno::EINTR.set();
            -1
        });
        assert_eq!((result.unwrap(), signals.get()), (5, 0));
    }
}
