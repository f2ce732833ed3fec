//! Namespaces: what is done inside a new set of them, and the process or thread
//! that does it. See namespaces(7), user_namespaces(7), pid_namespaces(7).
//!
//! [`Inside`] is built before anything is made and says everything that has to
//! happen inside. [`Inside::carry_out`] does it in the calling thread;
//! [`start_maker`] does it in a new process, which is what user and pid
//! namespaces need.
//!
//! # Safety
//! The process of [`start_maker`] is a copy of one thread of a process that may
//! have others, so it must make only async-signal-safe calls (signal-safety(7)):
//! no allocation, no lock, nothing of glibc that keeps state. That is why its
//! whole body is in this file, works on memory that was filled before, and uses
//! rustix, whose calls here are bare system calls. (glibc's `setresuid` would
//! wait for threads that the copy does not have.)

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Gid, Uid};

/// A set of kinds of namespaces, as clone(2) and setns(2) name them.
pub type Flags = libc::c_int;

/// Everything that is done inside new namespaces, in the order of the fields.
#[derive(Debug, Default)]
pub struct Inside {
    /// Namespaces to join first, each with its flag; a user namespace comes first.
    pub join: Vec<(Flags, OwnedFd)>,
    /// Become user and group 0 of the user namespace: whoever makes a namespace
    /// is the owner of the files in it, so this comes before the rest is made.
    pub become_root: bool,
    /// Namespaces to make, one after the other, so that an error names one.
    pub unshare: Vec<Flags>,
    /// Let mounts made in the new mount namespace stay in it. (Those of the host
    /// still arrive, and its unmounts too, so no host file system is kept busy.)
    pub mounts_stay: bool,
    /// `/proc/sys`, opened; needed for `sysctls`.
    pub proc_sys: Option<OwnedFd>,
    /// Paths below `/proc/sys`, and what to write there.
    pub sysctls: Vec<(CString, Vec<u8>)>,
    /// sethostname(2).
    pub hostname: Option<Vec<u8>>,
    /// setdomainname(2).
    pub domainname: Option<Vec<u8>>,
    /// Set the loopback interface up; the kernel then adds 127.0.0.1 and ::1.
    pub loopback: bool,
}

/// A step of [`Inside`] or of the maker around it, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `Inside::join`, the n-th.
    Join(usize),
    /// `Inside::become_root`.
    BecomeRoot,
    /// `Inside::unshare`, the n-th.
    Unshare(usize),
    /// `Inside::mounts_stay`.
    MountsStay,
    /// Opening the n-th of `Inside::sysctls`.
    OpenSysctl(usize),
    /// Writing the n-th of `Inside::sysctls`.
    WriteSysctl(usize),
    /// `Inside::hostname`.
    Hostname,
    /// `Inside::domainname`.
    Domainname,
    /// `Inside::loopback`.
    Loopback,
    /// Making the maker itself.
    Clone,
    /// Closing and arranging the maker's descriptors.
    Descriptors,
    /// The conversation between the maker and who started it.
    Talk,
    /// Executing the pod's init.
    Exec,
}

impl Step {
    /// The step as two numbers, for the way between two processes.
    fn encode(self) -> (u16, u16) {
        // No list here is longer than limits.rs allows, far below 65536.
        let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        match self {
            Self::Join(n) => (0, short(n)),
            Self::BecomeRoot => (1, 0),
            Self::Unshare(n) => (2, short(n)),
            Self::MountsStay => (3, 0),
            Self::OpenSysctl(n) => (4, short(n)),
            Self::WriteSysctl(n) => (5, short(n)),
            Self::Hostname => (6, 0),
            Self::Domainname => (7, 0),
            Self::Loopback => (8, 0),
            Self::Clone => (9, 0),
            Self::Descriptors => (10, 0),
            Self::Talk => (11, 0),
            Self::Exec => (12, 0),
        }
    }

    fn decode(code: u16, n: u16) -> Self {
        let n = usize::from(n);
        match code {
            0 => Self::Join(n),
            1 => Self::BecomeRoot,
            2 => Self::Unshare(n),
            3 => Self::MountsStay,
            4 => Self::OpenSysctl(n),
            5 => Self::WriteSysctl(n),
            6 => Self::Hostname,
            7 => Self::Domainname,
            8 => Self::Loopback,
            9 => Self::Clone,
            10 => Self::Descriptors,
            12 => Self::Exec,
            _ => Self::Talk,
        }
    }
}

/// A step that failed, and why.
#[derive(Debug, Clone, Copy)]
pub struct StepError {
    /// What was being done.
    pub step: Step,
    /// What the kernel said.
    pub errno: Errno,
}

impl Step {
    fn because(self, errno: Errno) -> StepError {
        StepError { step: self, errno }
    }
}

impl Inside {
    /// Does everything, in the calling thread, which is in the new namespaces
    /// afterwards and for ever. Safe to call between fork and exec.
    ///
    /// # Errors
    /// The first step that failed; those before it have been done.
    pub fn carry_out(&self) -> Result<(), StepError> {
        self.join()?;
        self.rest()
    }

    /// All but joining.
    fn rest(&self) -> Result<(), StepError> {
        if self.become_root {
            become_root().map_err(|e| Step::BecomeRoot.because(e))?;
        }
        self.make()?;
        self.set_up()
    }

    fn join(&self) -> Result<(), StepError> {
        for (n, (flag, fd)) in self.join.iter().enumerate() {
            // SAFETY: setns takes two ints and touches no memory of ours.
            let result = unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), *flag) };
            check(result).map_err(|e| Step::Join(n).because(e))?;
        }
        Ok(())
    }

    fn make(&self) -> Result<(), StepError> {
        for (n, flag) in self.unshare.iter().enumerate() {
            // SAFETY: unshare takes an int. None of the flags is CLONE_FILES or CLONE_VM, so every
            // descriptor and address stays valid.
            let result = unsafe { libc::syscall(libc::SYS_unshare, *flag) };
            check(result).map_err(|e| Step::Unshare(n).because(e))?;
        }
        if self.mounts_stay {
            use rustix::mount::MountPropagationFlags;
            let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            rustix::mount::mount_change(c"/", flags).map_err(|e| Step::MountsStay.because(e))?;
        }
        Ok(())
    }

    fn set_up(&self) -> Result<(), StepError> {
        if let Some(proc_sys) = &self.proc_sys {
            for (n, (path, value)) in self.sysctls.iter().enumerate() {
                write_sysctl(proc_sys.as_fd(), (n, path, value))?;
            }
        }
        if let Some(name) = &self.hostname {
            rustix::system::sethostname(name).map_err(|e| Step::Hostname.because(e))?;
        }
        if let Some(name) = &self.domainname {
            rustix::system::setdomainname(name).map_err(|e| Step::Domainname.because(e))?;
        }
        if self.loopback {
            loopback_up().map_err(|e| Step::Loopback.because(e))?;
        }
        Ok(())
    }
}

/// The result of a raw system call.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    // libc::syscall leaves the reason in errno, which is per thread, and in a forked child a copy.
    Err(io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

/// These change the calling thread only: there must be no other in the process.
fn become_root() -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

fn write_sysctl(proc_sys: BorrowedFd<'_>, (n, path, value): (usize, &CStr, &[u8])) -> Result<(), StepError> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(proc_sys, path, flags, Mode::empty(), resolve)
        .map_err(|e| Step::OpenSysctl(n).because(e))?;
    match rustix::io::write(&file, value) {
        Ok(written) if written == value.len() => Ok(()),
        // A sysctl takes one write; a second would be a second value.
        Ok(_) => Err(Step::WriteSysctl(n).because(Errno::MSGSIZE)),
        Err(e) => Err(Step::WriteSysctl(n).because(e)),
    }
}

/// netdevice(7): get the flags, set IFF_UP.
fn loopback_up() -> Result<(), Errno> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: SIOCGIFFLAGS reads and writes one ifreq, which `request` is.
    let got = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    check(got.into())?;
    // SAFETY: the kernel has just filled this field of the union, and any value of it is a valid c_short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // IFF_UP is 1.
    request.ifr_ifru.ifru_flags = flags | 1;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(set.into()).map(drop)
}

/// A program for PID 1 of the new pid namespace.
#[derive(Debug)]
pub struct Program {
    /// The program's file, opened; best a sealed memfd.
    pub image: OwnedFd,
    /// Its arguments, `argv[0]` too. The environment is empty.
    pub arguments: Vec<CString>,
    /// Becomes its standard input, output and error; `/dev/null`, say.
    pub stdio: OwnedFd,
}

/// What [`start_maker`] is to do.
#[derive(Debug)]
pub struct Maker {
    /// Make a user namespace; it owns the namespaces that are made after it.
    pub user: bool,
    /// What to do inside.
    pub inside: Inside,
    /// Make a pid namespace. This becomes its PID 1.
    pub init: Option<Program>,
}

/// A process that holds new namespaces, until it is told what to become or this
/// value is dropped, which kills and reaps it.
#[derive(Debug)]
pub struct Made {
    /// Closed first: the process ends at its end of file even if it could not be killed.
    socket: OwnedFd,
    child: Child,
}

/// A child process that is killed and reaped when dropped. It is invisible to
/// `waitpid(-1)` (clone(2), exit signal 0) as long as it has not executed a program.
#[derive(Debug)]
struct Child {
    pid: u32,
    pidfd: Option<OwnedFd>,
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            // ESRCH: it has ended by itself. Nothing else can happen with a child of ours.
            rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).ok();
            reap(pidfd);
        }
    }
}

/// Waits for the end of a child with exit signal 0, for which rustix's waitid has no flag.
fn reap(pidfd: &OwnedFd) {
    loop {
        // SAFETY: an all-zero siginfo_t is valid memory for the kernel to fill.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = pidfd.as_raw_fd().cast_unsigned();
        // SAFETY: `info` lives on this stack frame; the other arguments are ints.
        let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::__WALL) };
        // ECHILD: someone who waits for every child (a subreaper) was faster. Reaped all the same.
        if check(result.into()) != Err(Errno::INTR) {
            return;
        }
    }
}

/// What the maker and its starter say to one another, one datagram each.
mod word {
    /// To the maker: the id mappings are written. Also: become the program.
    pub(super) const GO: [u8; 1] = [1];
    /// From the maker: pid u32, error step u16, u16, errno i32; all 0 = a step is done.
    pub(super) const REPORT_BYTES: usize = 12;
}

/// Starts a process that makes namespaces, and waits until it has. `written` is
/// called with the pid when the user namespace exists and its id mappings are to
/// be written, from outside.
///
/// # Errors
/// The step that failed; or what `written` returned. No process is left.
pub fn start_maker<E: From<StepError>>(
    maker: &Maker,
    written: impl FnOnce(u32) -> Result<(), E>,
) -> Result<Made, E> {
    let talk = |e| Step::Talk.because(e);
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(talk)?;
    let mut flags = 0;
    if maker.user {
        flags |= libc::CLONE_NEWUSER;
    }
    // In a user namespace that is joined, the pid namespace is made after joining, by a second clone.
    let joins_user = maker.inside.join.iter().any(|(flag, _)| *flag == libc::CLONE_NEWUSER);
    let second_clone = maker.init.is_some() && joins_user;
    if maker.init.is_some() && !second_clone {
        flags |= libc::CLONE_NEWPID;
    }
    let Some(child) = clone(flags).map_err(|e| Step::Clone.because(e))? else {
        maker_main(maker, theirs.as_fd(), second_clone);
    };
    drop(theirs);
    let mut made = Made { child, socket: ours };
    if maker.user {
        written(made.child.pid)?;
        rustix::net::send(&made.socket, &word::GO, SendFlags::NOSIGNAL).map_err(talk)?;
    }
    if second_clone {
        made.wait_for_word().map_err(talk)?;
        let successor = made.report()?;
        made.change_child(successor).map_err(talk)?;
        rustix::net::send(&made.socket, &word::GO, SendFlags::NOSIGNAL).map_err(talk)?;
    }
    made.report()?;
    Ok(made)
}

impl Made {
    /// The process's pid, and its pidfd. Its namespaces are those to pin.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// The maker's pidfd.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Waits for a report or for the maker's end. Its end alone does not end the conversation when a
    /// copy of it holds the socket, too.
    fn wait_for_word(&self) -> Result<(), Errno> {
        use rustix::event::{PollFd, PollFlags, poll};
        let Some(pidfd) = &self.child.pidfd else { return Err(Errno::BADF) };
        loop {
            let socket = PollFd::new(&self.socket, PollFlags::IN);
            let mut either = [socket, PollFd::new(pidfd, PollFlags::IN)];
            match poll(&mut either, None) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
                Ok(_) if either.first().is_some_and(|s| !s.revents().is_empty()) => return Ok(()),
                Ok(_) => return Err(Errno::PIPE),
            }
        }
    }

    /// The next report: 0, or the pid of the process that goes on in the maker's place.
    fn report(&self) -> Result<u32, StepError> {
        let mut report = [0; word::REPORT_BYTES];
        let got = loop {
            match rustix::net::recv(&self.socket, &mut report, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other.map_err(|e| Step::Talk.because(e))?.0,
            }
        };
        if got != report.len() {
            // End of file: it was killed.
            return Err(Step::Talk.because(Errno::PIPE));
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l] = report;
        match i32::from_ne_bytes([i, j, k, l]) {
            0 => Ok(u32::from_ne_bytes([a, b, c, d])),
            errno => {
                let step = Step::decode(u16::from_ne_bytes([e, f]), u16::from_ne_bytes([g, h]));
                Err(step.because(Errno::from_raw_os_error(errno)))
            }
        }
    }

    /// The process that goes on is also our child (CLONE_PARENT), so its pid cannot be another's.
    fn change_child(&mut self, pid: u32) -> Result<(), Errno> {
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(Errno::SRCH)?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
        self.child = Child { pid, pidfd: Some(pidfd) };
        Ok(())
    }

    /// Lets the process become its program, and waits until it has.
    ///
    /// # Errors
    /// The step that failed; the process is gone then.
    pub fn become_program(mut self) -> Result<(u32, OwnedFd), StepError> {
        let talk = |e| Step::Talk.because(e);
        rustix::net::send(&self.socket, &word::GO, SendFlags::NOSIGNAL).map_err(talk)?;
        match self.report() {
            // The program is executed: its end of the socket, close-on-exec, is closed.
            Err(StepError { step: Step::Talk, errno: Errno::PIPE }) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(talk(Errno::PROTO)),
        }
        let pidfd = self.child.pidfd.take().ok_or_else(|| talk(Errno::BADF))?;
        Ok((self.child.pid, pidfd))
    }
}

/// A new process that is a copy of the calling thread; `None` in the copy.
fn clone(flags: Flags) -> Result<Option<Child>, Errno> {
    let mut pidfd: RawFd = -1;
    let flags = libc::c_long::from(flags | libc::CLONE_PIDFD);
    // SAFETY: without CLONE_VM the copy has its own memory, and no stack is given, so it goes on on a
    // copy of this one. CLONE_PIDFD stores the descriptor at the third argument, on this stack frame.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    let pid = check(pid)?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Child { pid: u32::try_from(pid).map_err(|_| Errno::RANGE)?, pidfd: Some(pidfd) }))
}

/// The maker's life; see this module's safety rule.
fn maker_main(maker: &Maker, socket: BorrowedFd<'_>, second_clone: bool) -> ! {
    if let Err(StepError { step, errno }) = maker_steps(maker, socket, second_clone) {
        let (code, n) = step.encode();
        let mut report = [0; word::REPORT_BYTES];
        let number = errno.raw_os_error().to_ne_bytes();
        let bytes = code.to_ne_bytes().into_iter().chain(n.to_ne_bytes()).chain(number);
        for (to, from) in report.iter_mut().skip(4).zip(bytes) {
            *to = from;
        }
        // If the starter is gone, nobody is left to be told.
        rustix::net::send(socket, &report, SendFlags::NOSIGNAL).ok();
    }
    // SAFETY: _exit ends this process at once and runs no handler of the program it was copied from.
    unsafe { libc::_exit(1) }
}

/// Returns on an error, or when the starter does not want more of it.
fn maker_steps(maker: &Maker, socket: BorrowedFd<'_>, second_clone: bool) -> Result<(), StepError> {
    close_others(maker, socket).map_err(|e| Step::Descriptors.because(e))?;
    if maker.user && !wait_for_go(socket)? {
        return Ok(());
    }
    maker.inside.join()?;
    if second_clone {
        // Only now is a pid namespace owned by the user namespace. The copy is a child of who started
        // us (CLONE_PARENT), waits until it is known there, and does the rest.
        let flags = libc::c_long::from(libc::CLONE_NEWPID | libc::CLONE_PARENT);
        // SAFETY: without CLONE_VM the copy has its own memory and goes on on a copy of this stack,
        // under the same safety rule as this process.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        let pid = check(pid).map_err(|e| Step::Clone.because(e))?;
        if pid != 0 {
            return say_done(socket, u32::try_from(pid).unwrap_or(0));
        }
        if !wait_for_go(socket)? {
            return Ok(());
        }
    }
    maker.inside.rest()?;
    say_done(socket, 0)?;
    match &maker.init {
        Some(program) if wait_for_go(socket)? => execute(program).map_err(|e| Step::Exec.because(e)),
        Some(_) => Ok(()),
        // Its namespaces are being taken; it is killed when they are, or sees the starter's end.
        None => wait_for_go(socket).map(drop),
    }
}

fn say_done(socket: BorrowedFd<'_>, pid: u32) -> Result<(), StepError> {
    let mut report = [0; word::REPORT_BYTES];
    for (to, from) in report.iter_mut().zip(pid.to_ne_bytes()) {
        *to = from;
    }
    match rustix::net::send(socket, &report, SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(e) => Err(Step::Talk.because(e)),
    }
}

/// False if the starter is gone, or has given up.
fn wait_for_go(socket: BorrowedFd<'_>) -> Result<bool, StepError> {
    let mut go = [0; 1];
    loop {
        match rustix::net::recv(socket, &mut go, RecvFlags::empty()) {
            Ok((length, _)) => return Ok(length == 1 && go == word::GO),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Step::Talk.because(e)),
        }
    }
}

/// Closes what the maker does not need: a copy of the socket of another maker
/// would keep that one from seeing its starter's end, and an init must hold nothing.
fn close_others(maker: &Maker, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut kept = [0 as RawFd; 16];
    let program = maker.init.iter().flat_map(|p| [p.image.as_raw_fd(), p.stdio.as_raw_fd()]);
    let joined = maker.inside.join.iter().map(|(_, fd)| fd.as_raw_fd());
    let sysctl = maker.inside.proc_sys.iter().map(AsRawFd::as_raw_fd);
    let all = program.chain(joined).chain(sysctl).chain([socket.as_raw_fd()]);
    for (n, fd) in all.enumerate() {
        *kept.get_mut(n).ok_or(Errno::MFILE)? = fd;
    }
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().filter(|fd| *fd > 2) {
        if fd > first {
            close_range(first.cast_unsigned(), (fd - 1).cast_unsigned())?;
        }
        first = fd + 1;
    }
    close_range(first.cast_unsigned(), u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the descriptors belong to this copy of the process, which uses none of those closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Replaces this process by `program`; returns only on failure.
fn execute(program: &Program) -> Result<(), Errno> {
    for number in 0..3 {
        // SAFETY: dup2 takes two ints; whatever had this number is not used by this copy.
        check(unsafe { libc::dup2(program.stdio.as_raw_fd(), number) }.into())?;
    }
    // Its own session, so that no key pressed in the terminal of who started us reaches it.
    rustix::process::setsid()?;
    rustix::process::chdir(c"/")?;
    super::spawn::default_signals().map_err(|_| Errno::INVAL)?;
    let mut argv = [std::ptr::null(); 8];
    // The last one stays null: it ends the list.
    for (to, from) in argv.iter_mut().take(7).zip(&program.arguments) {
        *to = from.as_ptr();
    }
    let environment = [std::ptr::null::<libc::c_char>()];
    let image = program.image.as_raw_fd();
    // SAFETY: `argv` and `environment` are null-terminated arrays of pointers to C strings that live as
    // long as `program`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            image,
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).map(drop)
}
