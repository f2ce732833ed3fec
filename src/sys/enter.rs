//! Starting a program inside namespaces and cgroups that exist already, with a
//! stated environment, user and set of capabilities: what a hook is.
//!
//! ```text
//!  caller ── clone3 ─▶ child: cgroups, setns ──────────────────▶ user, capabilities ─▶ exec
//!                         └─ a pid namespace is joined ─ clone ─▶ (the same; child of the caller)
//! ```
//!
//! Who joins a pid namespace stays outside of it; only its children are inside
//! (setns(2)). So there is a second process then, made with `CLONE_PARENT`: it is
//! the caller's child, and the first one is gone when its pid has been reported.
//!
//! # Safety
//! As in [`super::namespace`]: the child is a copy of one thread of a process that
//! may have others, or shares its memory ([`birth`]). Its whole way to the exec is
//! in this file, works on memory that was filled before, and makes bare system
//! calls only.

mod birth;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::namespace::Flags;

/// The soft limit of open files that the program gets: what programs expect that
/// close every descriptor there could be, or use select(2).
const OPEN_FILES: u64 = 1024;

/// Exit status of a child that could not become the program, as in a shell.
const EXIT_NOT_EXECUTED: libc::c_int = 127;

/// Bytes of one report: pid u32, step u16 and which u16, errno i32.
const REPORT_BYTES: usize = 12;

/// Which file the program is.
#[derive(Debug)]
pub enum Image {
    /// Looked up by its path, as the program is started.
    Path(CString),
    /// Opened before another mount namespace is joined, so that nobody in there
    /// can put another in its place.
    Opened(OwnedFd),
}

/// Ids, as the program's user namespace counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// A program and everything that shall be so when it begins.
#[derive(Debug)]
pub struct Entry {
    /// The program.
    pub image: Image,
    /// Its arguments, `argv[0]` too.
    pub arguments: Vec<CString>,
    /// Its whole environment, `NAME=value`.
    pub environment: Vec<CString>,
    /// Standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Directory of a version 2 cgroup to be born in.
    pub cgroup: Option<OwnedFd>,
    /// `tasks` files of version 1 cgroups, open for writing. (Not `cgroup.procs`:
    /// writing there waits for every processor of the machine.)
    pub tasks: Vec<OwnedFd>,
    /// Namespaces to join, each with its flag, in this order. A user namespace
    /// comes last: the right to join the others is that of the caller's.
    pub join: Vec<(Flags, OwnedFd)>,
    /// The working directory, tried in this order; the last is to exist.
    pub directories: Vec<CString>,
    /// Who it runs as; absent = root of its user namespace.
    pub ids: Option<Ids>,
    /// All of its capabilities, as a mask of `1 << CAP_…`; absent = what is left
    /// after the change of user.
    pub capabilities: Option<u64>,
}

/// What was being done when something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Entering the n-th of [`Entry::tasks`].
    Cgroup(usize),
    /// Joining the n-th of [`Entry::join`].
    Join(usize),
    /// Making the process in the pid namespace.
    Clone,
    /// Arranging descriptors, session, signals and limits.
    Prepare,
    /// Changing to the working directory.
    Directory,
    /// Becoming [`Entry::ids`].
    Ids,
    /// Setting [`Entry::capabilities`].
    Capabilities,
    /// Executing the program.
    Execute,
}

impl Step {
    fn encode(self) -> (u16, u16) {
        let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        match self {
            Self::Cgroup(n) => (0, short(n)),
            Self::Join(n) => (1, short(n)),
            Self::Clone => (2, 0),
            Self::Prepare => (3, 0),
            Self::Directory => (4, 0),
            Self::Ids => (5, 0),
            Self::Capabilities => (6, 0),
            Self::Execute => (7, 0),
        }
    }

    fn decode(code: u16, n: u16) -> Self {
        match code {
            0 => Self::Cgroup(n.into()),
            1 => Self::Join(n.into()),
            2 => Self::Clone,
            4 => Self::Directory,
            5 => Self::Ids,
            6 => Self::Capabilities,
            7 => Self::Execute,
            _ => Self::Prepare,
        }
    }
}

/// What the child says on its way to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The process in the joined pid namespace has this pid here.
    Became(u32),
    /// A step failed; the process exits with 127.
    Failed(Step, Errno),
    /// The program runs, or the process has ended.
    End,
}

/// A child on its way to the program.
#[derive(Debug)]
pub struct Started {
    /// Its pid. With [`Entry::joins_pid`] that of the program is reported.
    pub pid: u32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Where it reports. Non-blocking; see [`read_report`].
    pub report: OwnedFd,
}

/// Strings as execve(2) wants them: pointers, and a null at the end.
struct Pointers(Vec<*const libc::c_char>);

impl Pointers {
    fn to(strings: &[CString]) -> Self {
        Self(strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect())
    }
}

impl Entry {
    /// Whether the program is another process than the one that [`start`] made.
    #[must_use]
    pub fn joins_pid(&self) -> bool {
        self.join.iter().any(|(flag, _)| *flag == libc::CLONE_NEWPID)
    }

    /// Whether the child becomes somebody else before it executes the program. The
    /// kernel marks the memory of who does that, which shall not be the caller's.
    fn changes_credentials(&self) -> bool {
        let joins_user = self.join.iter().any(|(flag, _)| *flag == libc::CLONE_NEWUSER);
        joins_user || self.ids.is_some() || self.capabilities.is_some()
    }
}

/// Starts `entry`.
///
/// # Errors
/// What pipe2(2) and clone3(2) say. Everything later is reported by the child.
pub fn start(entry: &Entry) -> io::Result<Started> {
    let (report, told) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&report, true)?;
    let (argv, envp) = (Pointers::to(&entry.arguments), Pointers::to(&entry.environment));
    let protected = super::oom::is_protected();
    let way = Way { entry, argv: &argv, envp: &envp, told: told.as_fd(), protected };
    let cgroup = entry.cgroup.as_ref().map(AsFd::as_fd);
    let (pid, pidfd) = if entry.changes_credentials() {
        let Some(child) = birth::copy(cgroup)? else { way.go() };
        child
    } else {
        birth::share(cgroup, || way.go())?
    };
    Ok(Started { pid, pidfd, report })
}

/// The next report; `None` if there is none yet.
///
/// # Errors
/// What read(2) says.
pub fn read_report(report: impl AsFd) -> io::Result<Option<Report>> {
    let mut bytes = [0; REPORT_BYTES];
    let got = match rustix::io::retry_on_intr(|| rustix::io::read(&report, &mut bytes)) {
        Ok(got) => got,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if got != bytes.len() {
        // Writes of this size to a pipe are not divided (pipe(7)).
        return Ok(Some(Report::End));
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    Ok(Some(match u32::from_ne_bytes([a, b, c, d]) {
        0 => {
            let step = Step::decode(u16::from_ne_bytes([e, f]), u16::from_ne_bytes([g, h]));
            Report::Failed(step, Errno::from_raw_os_error(i32::from_ne_bytes([i, j, k, l])))
        }
        pid => Report::Became(pid),
    }))
}

/// All that the child needs.
struct Way<'a> {
    entry: &'a Entry,
    argv: &'a Pointers,
    envp: &'a Pointers,
    told: BorrowedFd<'a>,
    protected: bool,
}

impl Way<'_> {
    /// The child's life; see this module's safety rule.
    fn go(&self) -> ! {
        let status = match steps(self) {
            Ok(()) => 0,
            Err((step, errno)) => {
                let (code, n) = step.encode();
                tell(self.told, 0, (code, n), errno.raw_os_error());
                EXIT_NOT_EXECUTED
            }
        };
        // SAFETY: _exit ends this process at once and runs no handler of the program it was copied from.
        unsafe { libc::_exit(status) }
    }
}

fn tell(told: BorrowedFd<'_>, pid: u32, (code, n): (u16, u16), errno: i32) {
    let mut report = [0; REPORT_BYTES];
    let step = code.to_ne_bytes().into_iter().chain(n.to_ne_bytes());
    let bytes = pid.to_ne_bytes().into_iter().chain(step).chain(errno.to_ne_bytes());
    for (to, from) in report.iter_mut().zip(bytes) {
        *to = from;
    }
    // If the caller is gone, nobody is left to be told.
    rustix::io::write(told, &report).ok();
}

type StepResult<T> = Result<T, (Step, Errno)>;

/// Returns on an error, and in the process that only made the one in the pid namespace.
fn steps(way: &Way<'_>) -> StepResult<()> {
    let Way { entry, argv, envp, told, protected } = *way;
    for (n, tasks) in entry.tasks.iter().enumerate() {
        // "0" is the writer itself (cgroups(7)).
        rustix::io::write(tasks, b"0").map_err(|errno| (Step::Cgroup(n), errno))?;
    }
    if protected {
        super::oom::unprotect().map_err(|error| (Step::Prepare, errno_of(&error)))?;
    }
    for (n, (flag, namespace)) in entry.join.iter().enumerate() {
        // SAFETY: setns takes two ints and touches no memory of ours.
        let joined = unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), *flag) };
        check(joined).map_err(|errno| (Step::Join(n), errno))?;
    }
    if entry.joins_pid() {
        // SAFETY: without CLONE_VM the copy has its own memory and goes on on a copy of this stack, under
        // the same safety rule as this process.
        let pid =
            unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(libc::CLONE_PARENT), 0, 0, 0, 0) };
        let pid = check(pid).map_err(|errno| (Step::Clone, errno))?;
        if pid != 0 {
            tell(told, u32::try_from(pid).unwrap_or(0), (0, 0), 0);
            return Ok(());
        }
    }
    prepare(entry).map_err(|errno| (Step::Prepare, errno))?;
    change_directory(entry).map_err(|errno| (Step::Directory, errno))?;
    become_user(entry)?;
    let errno = execute(entry, argv, envp);
    Err((Step::Execute, errno))
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 { Ok(result) } else { Err(errno_of(&io::Error::last_os_error())) }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

fn prepare(entry: &Entry) -> Result<(), Errno> {
    rustix::process::setsid()?;
    super::spawn::default_signals().map_err(|error| errno_of(&error))?;
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    let open_files = rustix::process::getrlimit(Resource::Nofile);
    if open_files.current.is_none_or(|limit| limit > OPEN_FILES) {
        let limit = Rlimit { current: Some(OPEN_FILES), maximum: open_files.maximum };
        rustix::process::setrlimit(Resource::Nofile, limit)?;
    }
    for (stream, number) in entry.stdio.iter().zip(0..) {
        // SAFETY: dup2 takes two ints; whatever had this number is not used by this copy.
        check(unsafe { libc::dup2(stream.as_raw_fd(), number) }.into())?;
    }
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range takes three ints and touches no memory.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) })?;
    if let Image::Opened(image) = &entry.image {
        // A script's interpreter opens it again, as /dev/fd/N (execveat(2)).
        rustix::io::fcntl_setfd(image, rustix::io::FdFlags::empty())?;
    }
    Ok(())
}

fn change_directory(entry: &Entry) -> Result<(), Errno> {
    let mut result = Ok(());
    for directory in &entry.directories {
        result = rustix::process::chdir(directory.as_c_str());
        if result.is_ok() {
            break;
        }
    }
    result
}

/// These change the calling thread only: there is no other in this process.
fn become_user(entry: &Entry) -> StepResult<()> {
    let ids = |errno| (Step::Ids, errno);
    let capabilities = |errno| (Step::Capabilities, errno);
    if let Some(mask) = entry.capabilities {
        bound(mask).map_err(capabilities)?;
        rustix::thread::set_keep_capabilities(true).map_err(capabilities)?;
    }
    let joins_user = entry.join.iter().any(|(flag, _)| *flag == libc::CLONE_NEWUSER);
    match &entry.ids {
        Some(own) => set_ids(own).map_err(ids)?,
        None if joins_user => {
            rustix::thread::set_thread_groups(&[]).map_err(ids)?;
            rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(ids)?;
            rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(ids)?;
        }
        None => {}
    }
    if let Some(mask) = entry.capabilities {
        let set = CapabilitySet::from_bits_retain(mask);
        let sets = CapabilitySets { effective: set, permitted: set, inheritable: set };
        rustix::thread::set_capabilities(None, sets).map_err(capabilities)?;
        // Without these a program that is not root's would have none after the exec.
        for one in each(mask) {
            rustix::thread::configure_capability_in_ambient_set(one, true).map_err(capabilities)?;
        }
    }
    rustix::thread::set_no_new_privs(true).map_err(|errno| (Step::Prepare, errno))
}

fn set_ids(ids: &Ids) -> Result<(), Errno> {
    // The kernel's ids are 32 bits wide; both libraries' types are that.
    let groups = ids.groups.as_ptr();
    // SAFETY: setgroups reads that many 32-bit ids, which the list has.
    check(unsafe { libc::syscall(libc::SYS_setgroups, ids.groups.len(), groups) })?;
    let group = Gid::from_raw(ids.group);
    rustix::thread::set_thread_res_gid(group, group, group)?;
    let user = Uid::from_raw(ids.user);
    rustix::thread::set_thread_res_uid(user, user, user)
}

/// The single capabilities of a mask.
fn each(mask: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|n| 1 << n).filter(move |one| mask & one != 0).map(CapabilitySet::from_bits_retain)
}

/// Takes what is not in `mask` out of the bounding set.
fn bound(mask: u64) -> Result<(), Errno> {
    for one in each(!mask) {
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Beyond the last one that this kernel has.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Becomes the program; returns only what prevented that.
fn execute(entry: &Entry, argv: &Pointers, envp: &Pointers) -> Errno {
    match &entry.image {
        // SAFETY: the path is a C string, and both arrays end with a null and point at C strings; all of
        // them live in `entry`.
        Image::Path(path) => unsafe { libc::execve(path.as_ptr(), argv.0.as_ptr(), envp.0.as_ptr()) },
        // SAFETY: as above, for the arrays.
        Image::Opened(fd) => unsafe { libc::fexecve(fd.as_raw_fd(), argv.0.as_ptr(), envp.0.as_ptr()) },
    };
    errno_of(&io::Error::last_os_error())
}

#[cfg(test)]
mod tests;
