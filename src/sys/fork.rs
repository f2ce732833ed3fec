//! Starting a program from a process that must not allocate.
//!
//! `std::process::Command` copies the environment and the arguments on every
//! start. A [`Program`] is prepared once; [`Program::start`] then makes system
//! calls only, so it works in a process whose memory may not grow.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::process::{Pid, PidfdFlags, Rlimit};

/// The number of descriptors that a [`Program`] is handed.
const PASSED_FDS: libc::c_uint = 3;

/// The first of the numbers under which the program finds them.
pub const FIRST_PASSED_FD: RawFd = 3;

/// Exit status of a child that could not become the program, as in a shell.
pub const EXIT_NOT_EXECUTED: u8 = 127;

/// A program and its arguments, ready to be started any number of times.
pub struct Program {
    path: CString,
    /// What the pointers point into; never changed.
    _argv: Vec<CString>,
    /// `_argv`, and the null that execv(2) wants at the end.
    pointers: Vec<*const libc::c_char>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Program {
    /// Prepares `path` with `argv`, whose first element is the program's name.
    ///
    /// # Errors
    /// `InvalidInput` if a string has a NUL byte, which no argument of this process can have.
    pub fn new<S: AsRef<OsStr>>(path: &OsStr, argv: &[S]) -> io::Result<Self> {
        let path = CString::new(path.as_bytes())?;
        let argv = argv
            .iter()
            .map(|argument| CString::new(argument.as_ref().as_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers = argv.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { path, _argv: argv, pointers })
    }

    /// Starts the program in its own session with this process's environment
    /// and standard streams, no signal blocked, the descriptors in `passed` as
    /// 3, 4 and 5 and no other above 2, and `open_files` as its limit.
    ///
    /// Call it from a process with one thread only: between fork and exec the
    /// child has but the thread that called.
    ///
    /// # Errors
    /// What fork(2) or `pidfd_open(2)` say. That the program cannot be
    /// executed shows as [`EXIT_NOT_EXECUTED`].
    pub fn start(
        &self,
        passed: [BorrowedFd<'_>; PASSED_FDS as usize],
        open_files: &Rlimit,
    ) -> io::Result<(u32, OwnedFd)> {
        // SAFETY: fork takes no argument. The child below makes system calls on memory that exists
        // already, then execs or exits: it takes no lock and does not allocate.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            self.become_program(passed, open_files);
        }
        let number = u32::try_from(pid).unwrap_or_default();
        // Only we can reap it, so the pid is still its own.
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok((number, pidfd)),
            Err(errno) => {
                abandon(pid);
                Err(errno.into())
            }
        }
    }

    /// The child's side; never returns.
    fn become_program(&self, passed: [BorrowedFd<'_>; PASSED_FDS as usize], open_files: &Rlimit) -> ! {
        if prepare(passed, open_files).is_ok() {
            // SAFETY: `path` and every pointer but the last, null one are NUL-terminated strings that
            // `self` owns.
            unsafe { libc::execv(self.path.as_ptr(), self.pointers.as_ptr()) };
        }
        // SAFETY: _exit takes an int; in a forked child the parent's exit handlers must not run.
        unsafe { libc::_exit(EXIT_NOT_EXECUTED.into()) }
    }
}

/// A child without a pidfd cannot be watched: end it, and take its status.
fn abandon(pid: Pid) {
    if rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok() {
        let options = rustix::process::WaitOptions::empty();
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), options)).ok();
    }
}

fn prepare(passed: [BorrowedFd<'_>; PASSED_FDS as usize], open_files: &Rlimit) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, *open_files)?;
    super::spawn::default_signals()?;
    // Two rounds, so that no target number overwrites a source that is still to be moved.
    let mut sources = [0 as RawFd; PASSED_FDS as usize];
    let above = FIRST_PASSED_FD + 16;
    for (source, fd) in sources.iter_mut().zip(passed) {
        // SAFETY: F_DUPFD_CLOEXEC takes an int and touches no memory.
        *source = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
        if *source < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (source, target) in sources.iter().zip(FIRST_PASSED_FD..) {
        // SAFETY: dup2 takes two ints and touches no memory. What it closes belongs to this child's
        // copy of the table, where no destructor will run.
        if unsafe { libc::dup2(*source, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    const REST: libc::c_uint = FIRST_PASSED_FD.cast_unsigned() + PASSED_FDS;
    // SAFETY: close_range takes three ints and touches no memory. As above, no destructor will run.
    if unsafe { libc::close_range(REST, libc::c_uint::MAX, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{ChildExit, Ended, reap_pidfd};
    use rustix::event::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;

    /// Runs `sh -c script` with both ends of a pipe and /dev/null as 3, 4, 5; what it wrote to 4, and its end.
    fn run(script: &str) -> (String, Ended) {
        let program = Program::new(OsStr::new("/bin/sh"), &["sh", "-c", script]).unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let (_, pidfd) = program.start([null.as_fd(), write.as_fd(), null.as_fd()], &limit).unwrap();
        drop(write);
        let mut told = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut told).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        let ChildExit { how, .. } = reap_pidfd(pidfd.as_fd()).unwrap().unwrap();
        (told, how)
    }

    #[test]
    fn program_finds_its_descriptors_and_nothing_else() {
        let (told, how) = run("exec 1>&4; ls -1 /proc/$$/fd; exit 5");
        assert_eq!(how, Ended::Code(5));
        assert_eq!(told, "0\n1\n2\n3\n4\n5\n");
    }

    #[test]
    fn program_leads_its_own_session_with_no_signal_blocked() {
        // Builtins only: a shell blocks signals while it starts another program.
        let script = "exec 1>&4; while read line; do echo \"$line\"; done </proc/$$/status; \
                      read stat </proc/$$/stat; set -- $stat; [ $6 = $$ ]";
        let (told, how) = run(script);
        assert_eq!(how, Ended::Code(0), "the sixth field of stat is the session");
        assert!(told.contains("SigBlk:\t0000000000000000"), "{told}");
        let ignored = told.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        assert_eq!(ignored & 1 << (libc::SIGPIPE - 1), 0, "which this process ignores");
    }

    #[test]
    fn missing_program_shows_as_127() {
        let program = Program::new(OsStr::new("/nonexistent"), &["x"]).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let (_, pidfd) = program.start([null.as_fd(); 3], &limit).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert_eq!(reap_pidfd(pidfd.as_fd()).unwrap().unwrap().how, Ended::Code(EXIT_NOT_EXECUTED));
    }
}
