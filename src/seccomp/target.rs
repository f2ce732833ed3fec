//! The process that made a call, as far as it may be touched on the call's behalf.
//!
//! A process id is only a number: by the time that something of the process has
//! been opened, the process may have ended, and the number may be another's. So a
//! thing is opened first, and then the kernel is asked whether the call still
//! waits: if it does, what was opened is the target's, since its thread cannot
//! have gone anywhere. What is read is given away only after that question, and
//! nothing is changed before it.
//!
//! A target is of use until its call is answered; then everything is refused.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use tokio::sync::Notify;

use super::foreign::{Closer, ForeignFd};
use super::worker::Workers;
use crate::limits::{SECCOMP_MEMORY_BYTES_MAX, SECCOMP_STATUS_BYTES_MAX, SECCOMP_STRING_BYTES_MAX};
use crate::sys::seccomp as kernel;

/// `PIDFD_THREAD` (linux/pidfd.h, since Linux 6.9): the thread itself, which need
/// not be the first of its process, and may have descriptors of its own.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(rustix::fs::OFlags::EXCL.bits());

/// Memory is read for a text in steps that end where a page does: the next page
/// may not be there.
const PAGE: u64 = 4096;

/// A call that has not been answered, while it is held: by the broker alone.
#[derive(Debug)]
pub(super) struct HeldCall {
    call: OpenCall,
    /// Tells whoever waits for the target that this has gone.
    gone: OnceCell<Rc<Notify>>,
}

impl From<OpenCall> for HeldCall {
    fn from(call: OpenCall) -> Self {
        Self { call, gone: OnceCell::new() }
    }
}

impl Drop for HeldCall {
    fn drop(&mut self) {
        if let Some(gone) = self.gone.get() {
            gone.notify_waiters();
        }
    }
}

/// What a thread needs that waits for the target. It asks the kernel whether the call
/// still waits. It does not keep the listener open: where nobody reads it any more, it
/// has to be closed, so that no call of it hangs.
#[derive(Debug, Clone)]
pub(super) struct OpenCall {
    pub(super) listener: std::sync::Weak<OwnedFd>,
    pub(super) id: u64,
    pub(super) tid: u32,
    pub(super) closer: Closer,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Target {
    call: Weak<HeldCall>,
    container: Rc<str>,
    workers: Workers,
}

/// Why a target could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Its call was answered or interrupted, or its thread has ended.
    #[error("the call does not wait any more: it was answered or interrupted, or its thread has ended")]
    Gone,
    /// It is in a pid namespace that cannot be seen from here.
    #[error("the target's process cannot be seen from podinit's pid namespace")]
    Invisible,
    /// More than is allowed at once.
    #[error("{asked} bytes of the target's memory were asked for; at most {max} are given at once")]
    TooMuch {
        /// How much.
        asked: usize,
        /// How much is allowed.
        max: usize,
    },
    /// A text without an end.
    #[error("the text at {address:#x} has no zero within {max} bytes")]
    Unterminated {
        /// Where it begins.
        address: u64,
        /// How far it was read.
        max: usize,
    },
    /// What the kernel wrote about it was not understood.
    #[error("cannot understand {0} of the target")]
    Malformed(&'static str),
    /// The system call failed.
    #[error("cannot {doing} of the target: {source}")]
    Io {
        /// As in "read the memory".
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Who a target is (proc(5), `/proc/<pid>/status`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its process: the thread group.
    pub pid: u32,
    /// Real, effective, saved and file system user.
    pub users: [u32; 4],
    /// Real, effective, saved and file system group.
    pub groups: [u32; 4],
    /// Supplementary groups.
    pub more_groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities, a bit each.
    pub capabilities: [u64; 5],
    /// Whether `no_new_privs` is set.
    pub no_new_privileges: bool,
}

/// One of a target's namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// As in `/proc/<pid>/ns`: `net`, `mnt`, ...
    pub kind: &'static str,
    /// What tells it from others of its kind.
    pub inode: u64,
}

/// The namespaces that a process has of its own (namespaces(7)).
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

fn fail(doing: &'static str) -> impl Fn(io::Error) -> TargetError {
    move |source| TargetError::Io { doing, source }
}

impl OpenCall {
    /// # Errors
    /// [`TargetError::Gone`] if the call does not wait any more.
    pub(super) fn check(&self) -> Result<(), TargetError> {
        match kernel::is_waiting(self.listener()?.as_fd(), self.id) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TargetError::Gone),
            Err(error) => Err(fail("ask for the call")(error)),
        }
    }

    fn listener(&self) -> Result<Arc<OwnedFd>, TargetError> {
        self.listener.upgrade().ok_or(TargetError::Gone)
    }

    /// Nothing is copied for a container whose descriptors cannot be closed.
    fn check_closer(&self, doing: &'static str) -> Result<(), TargetError> {
        if self.closer.wait_for_room() { Ok(()) } else { Err(fail(doing)(rustix::io::Errno::MFILE.into())) }
    }

    fn path(&self, file: &str) -> Result<String, TargetError> {
        if self.tid == 0 { Err(TargetError::Invisible) } else { Ok(format!("/proc/{}/{file}", self.tid)) }
    }

    /// A thing of `/proc/<tid>`, opened and then found to be the target's.
    fn open(&self, file: &str, write: bool, doing: &'static str) -> Result<File, TargetError> {
        let path = self.path(file)?;
        let opened = File::options().read(true).write(write).open(path);
        self.check()?;
        opened.map_err(fail(doing))
    }

    fn directory(&self, link: &str, doing: &'static str) -> Result<ForeignFd, TargetError> {
        use rustix::fs::{Mode, OFlags};
        self.check_closer(doing)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.path(link)?, flags, Mode::empty());
        let opened = opened.map(|opened| self.closer.keep(opened));
        self.check()?;
        opened.map_err(|errno| fail(doing)(errno.into()))
    }

    fn text(&self, file: &str, doing: &'static str) -> Result<String, TargetError> {
        let mut text = String::new();
        let file = self.open(file, false, doing)?;
        let read = file.take(SECCOMP_STATUS_BYTES_MAX).read_to_string(&mut text);
        self.check()?;
        read.map_err(fail(doing))?;
        Ok(text)
    }

    /// The target's thread, or its process where the kernel cannot name threads.
    pub(super) fn pidfd(&self) -> Result<OwnedFd, TargetError> {
        let doing = "open the process";
        let open = |id: u32, flags| {
            let id = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(TargetError::Invisible)?;
            rustix::process::pidfd_open(id, flags).map_err(|errno| fail(doing)(errno.into()))
        };
        let opened = match open(self.tid, PIDFD_THREAD) {
            Err(TargetError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                open(Credentials::parse(&self.text("status", doing)?)?.pid, PidfdFlags::empty())
            }
            opened => opened,
        };
        self.check()?;
        opened
    }

    fn duplicate(&self, number: i32, doing: &'static str) -> Result<ForeignFd, TargetError> {
        self.check_closer(doing)?;
        let pidfd = self.pidfd()?;
        let copy = rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty());
        let copy = copy.map(|copy| self.closer.keep(copy));
        self.check()?;
        copy.map_err(|errno| fail(doing)(errno.into()))
    }
}

impl Target {
    pub(super) fn new(call: &Rc<HeldCall>, container: &Rc<str>, workers: Workers) -> Self {
        Self { call: Rc::downgrade(call), container: Rc::clone(container), workers }
    }

    fn call(&self) -> Result<Rc<HeldCall>, TargetError> {
        self.call.upgrade().ok_or(TargetError::Gone)
    }

    /// The container that it is of.
    pub(crate) fn container(&self) -> &Rc<str> {
        &self.container
    }

    /// Whether its call still waits for an answer.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.call().and_then(|held| held.call.check()).is_ok()
    }

    /// Reads `length` bytes at `address`, or as many as are there before a page
    /// that is not.
    ///
    /// # Errors
    /// [`TargetError::TooMuch`] beyond [`SECCOMP_MEMORY_BYTES_MAX`]; `EIO` if there
    /// is nothing at `address`.
    pub async fn read_memory(&self, address: u64, length: usize) -> Result<Vec<u8>, TargetError> {
        if length > SECCOMP_MEMORY_BYTES_MAX {
            return Err(TargetError::TooMuch { asked: length, max: SECCOMP_MEMORY_BYTES_MAX });
        }
        self.memory(move |memory| read_at(memory, address, length)).await
    }

    /// Reads the text at `address` up to its zero, which is not given, and of which
    /// there is one within `max` bytes.
    ///
    /// # Errors
    /// [`TargetError::Unterminated`]; [`TargetError::TooMuch`] beyond
    /// [`SECCOMP_STRING_BYTES_MAX`]; `EIO` if there is nothing at `address`.
    pub async fn read_string(&self, address: u64, max: usize) -> Result<Vec<u8>, TargetError> {
        if max > SECCOMP_STRING_BYTES_MAX {
            return Err(TargetError::TooMuch { asked: max, max: SECCOMP_STRING_BYTES_MAX });
        }
        let text = self.memory(move |memory| read_text(memory, address, max)).await?;
        text.ok_or(TargetError::Unterminated { address, max })
    }

    async fn memory<T: Send + 'static>(
        &self,
        read: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TargetError> {
        let doing = "read the memory";
        self.at_work(doing, move |call| {
            let memory = call.open("mem", false, doing)?;
            let read = read(&memory);
            call.check()?;
            read.map_err(fail(doing))
        })
        .await
    }

    /// Does what a target can make slow. To open its memory, or to copy its
    /// descriptor, is to wait for an execve(2) of a process that has its number by
    /// now, which waits for the file systems whose descriptors it closes. Its
    /// credentials are as long as its groups are many.
    async fn at_work<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&OpenCall) -> Result<T, TargetError> + Send + 'static,
    ) -> Result<T, TargetError> {
        self.work_of(&self.workers, doing, work).await
    }

    /// Does `work`, which a target can make slow, on one of `workers`, if its call still
    /// waits when its container's turn has come.
    ///
    /// # Errors
    /// [`TargetError::Gone`] as soon as the call is over; if no thread can be had; else
    /// what `work` says.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        workers: &Workers,
        doing: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TargetError> {
        let checked = move |call: &OpenCall| call.check().map(|()| work());
        self.work_of(workers, doing, checked).await
    }

    async fn work_of<T: Send + 'static>(
        &self,
        workers: &Workers,
        doing: &'static str,
        work: impl FnOnce(&OpenCall) -> Result<T, TargetError> + Send + 'static,
    ) -> Result<T, TargetError> {
        let held = self.call()?;
        let (call, told) = (held.call.clone(), Rc::clone(held.gone.get_or_init(Rc::default)));
        // Before it is let go of, so that its end is not missed.
        let gone = told.notified();
        drop(held);
        let done = tokio::select! {
            biased;
            done = workers.run(&self.container, move || work(&call)) => done.map_err(fail(doing)),
            () = gone => Err(TargetError::Gone),
        };
        self.call()?;
        done?
    }

    /// Writes `bytes` at `address`: all of them, unless there is an error.
    ///
    /// # Errors
    /// [`TargetError::TooMuch`] beyond [`SECCOMP_MEMORY_BYTES_MAX`]; `EIO` if a page
    /// is not there or cannot be written; the pages before it have been then.
    pub async fn write_memory(&self, address: u64, bytes: Vec<u8>) -> Result<(), TargetError> {
        if bytes.len() > SECCOMP_MEMORY_BYTES_MAX {
            return Err(TargetError::TooMuch { asked: bytes.len(), max: SECCOMP_MEMORY_BYTES_MAX });
        }
        let doing = "write the memory";
        self.at_work(doing, move |call| {
            // It asks whether the call still waits when it has opened: just before the write.
            let memory = call.open("mem", true, doing)?;
            memory.write_all_at(&bytes, address).map_err(fail(doing))
        })
        .await
    }

    /// A copy of the target's descriptor `number`.
    ///
    /// # Errors
    /// `EBADF` if it is not open there, `EMFILE` if too many of its container wait to
    /// be closed.
    pub async fn duplicate_fd(&self, number: u32) -> Result<ForeignFd, TargetError> {
        let doing = "duplicate a descriptor";
        let number = i32::try_from(number).map_err(|_| fail(doing)(rustix::io::Errno::BADF.into()))?;
        self.at_work(doing, move |call| call.duplicate(number, doing)).await
    }

    /// Gives the target a copy of `fd` without answering its call; its number
    /// there. A call that is interrupted and made again may leave one each time:
    /// where the call is to return the number, use `Verdict::AddFd`.
    ///
    /// # Errors
    /// `EMFILE` if the target has no number left, `EBADF` if it may not have `at`.
    pub async fn install_fd(
        &self,
        fd: ForeignFd,
        at: Option<u32>,
        close_on_exec: bool,
    ) -> Result<u32, TargetError> {
        let doing = "install a descriptor";
        let how = kernel::AddFd { at, close_on_exec, is_answer: false };
        self.at_work(doing, move |call| {
            let fd = fd.closed_by(&call.closer);
            let added = kernel::add_fd(call.listener()?.as_fd(), call.id, fd.as_fd(), how);
            added.map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT) => TargetError::Gone,
                _ => fail(doing)(error),
            })
        })
        .await
    }

    /// The target's thread as a pidfd; before Linux 6.9 its process.
    ///
    /// # Errors
    /// [`TargetError::Invisible`] if it cannot be seen from here; `EMFILE` as for
    /// [`Target::duplicate_fd`].
    pub async fn pidfd(&self) -> Result<ForeignFd, TargetError> {
        let doing = "open the process";
        self.at_work(doing, move |call| {
            call.check_closer(doing)?;
            Ok(call.closer.keep(call.pidfd()?))
        })
        .await
    }

    /// The target's root directory (`O_PATH`).
    ///
    /// # Errors
    /// If it cannot be opened; `EMFILE` as for [`Target::duplicate_fd`].
    pub async fn root(&self) -> Result<ForeignFd, TargetError> {
        let doing = "open the root directory";
        self.at_work(doing, move |call| call.directory("root", doing)).await
    }

    /// The target's working directory (`O_PATH`).
    ///
    /// # Errors
    /// If it cannot be opened; `EMFILE` as for [`Target::duplicate_fd`].
    pub async fn working_directory(&self) -> Result<ForeignFd, TargetError> {
        let doing = "open the working directory";
        self.at_work(doing, move |call| call.directory("cwd", doing)).await
    }

    /// Who the target is.
    ///
    /// # Errors
    /// If `/proc/<tid>/status` cannot be read.
    pub async fn credentials(&self) -> Result<Credentials, TargetError> {
        let doing = "read the credentials";
        self.at_work(doing, move |call| Credentials::parse(&call.text("status", doing)?)).await
    }

    /// The namespaces of the target.
    ///
    /// # Errors
    /// If `/proc/<tid>/ns` cannot be read.
    pub async fn namespaces(&self) -> Result<Vec<Namespace>, TargetError> {
        let doing = "read the namespaces";
        self.at_work(doing, move |call| {
            let mut namespaces = Vec::with_capacity(NAMESPACES.len());
            for kind in NAMESPACES {
                match std::fs::metadata(call.path(&format!("ns/{kind}"))?) {
                    Ok(found) => namespaces.push(Namespace { kind, inode: found.ino() }),
                    // A kernel that was built without this kind.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(fail(doing)(error)),
                }
            }
            call.check()?;
            Ok(namespaces)
        })
        .await
    }

    /// One namespace of the target, opened: for setns(2).
    ///
    /// # Errors
    /// If there is none of that kind.
    pub async fn namespace(&self, kind: &str) -> Result<OwnedFd, TargetError> {
        let known = NAMESPACES.into_iter().find(|known| *known == kind);
        let kind = known.ok_or(TargetError::Malformed("a namespace that does not exist"))?;
        let doing = "open a namespace";
        self.at_work(doing, move |call| Ok(call.open(&format!("ns/{kind}"), false, doing)?.into())).await
    }

    /// The target's cgroups, as `/proc/<pid>/cgroup` lists them (cgroups(7)).
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn cgroup(&self) -> Result<String, TargetError> {
        let doing = "read the cgroup";
        self.at_work(doing, move |call| call.text("cgroup", doing)).await
    }
}

fn read_at(memory: &File, address: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = address.checked_add(done as u64).ok_or(io::ErrorKind::InvalidInput)?;
        match memory.read_at(rest, at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// `None` if there is no zero.
fn read_text(memory: &File, address: u64, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    while text.len() < max {
        let at = address.checked_add(text.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let to_page_end = usize::try_from(PAGE - at % PAGE).unwrap_or(usize::MAX);
        let chunk = read_at(memory, at, to_page_end.min(max - text.len()))?;
        if let Some(end) = memchr::memchr(0, &chunk) {
            text.extend(chunk.into_iter().take(end));
            return Ok(Some(text));
        }
        if chunk.is_empty() {
            return Ok(None);
        }
        text.extend_from_slice(&chunk);
    }
    Ok(None)
}

impl Credentials {
    /// Reads `/proc/<pid>/status`.
    fn parse(status: &str) -> Result<Self, TargetError> {
        let wrong = || TargetError::Malformed("/proc/<tid>/status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).ok_or_else(wrong)
        };
        let numbers = |name: &str| -> Result<Vec<u32>, TargetError> {
            field(name)?.split_whitespace().map(|word| word.parse().map_err(|_| wrong())).collect()
        };
        let four = |name: &str| <[u32; 4]>::try_from(numbers(name)?).map_err(|_| wrong());
        let bits = |name: &str| u64::from_str_radix(field(name)?, 16).map_err(|_| wrong());
        Ok(Self {
            pid: field("Tgid")?.parse().map_err(|_| wrong())?,
            users: four("Uid")?,
            groups: four("Gid")?,
            more_groups: numbers("Groups")?,
            capabilities: [
                bits("CapInh")?,
                bits("CapPrm")?,
                bits("CapEff")?,
                bits("CapBnd")?,
                bits("CapAmb")?,
            ],
            no_new_privileges: field("NoNewPrivs")? == "1",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SECCOMP_CONTAINER_WORKERS_MAX;

    #[test]
    fn credentials_of_this_process() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let credentials = Credentials::parse(&status).unwrap();
        assert_eq!(credentials.pid, std::process::id());
        assert_eq!(credentials.users[1], rustix::process::geteuid().as_raw());
        assert_eq!(credentials.groups[1], rustix::process::getegid().as_raw());
        assert!(Credentials::parse(&status.replace("CapEff", "CapOff")).is_err());
        assert!(Credentials::parse("Tgid:\tx").is_err());
    }

    fn open_call(listener: &Arc<OwnedFd>) -> OpenCall {
        OpenCall { listener: Arc::downgrade(listener), id: 1, tid: 1, closer: Closer::default() }
    }

    /// Not a listener: it can say of no call that it waits.
    fn null() -> Arc<OwnedFd> {
        Arc::new(File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn a_thread_that_is_stuck_keeps_no_listener_open() {
        let listener = null();
        let call = open_call(&listener);
        assert!(matches!(call.check(), Err(TargetError::Io { .. })));
        drop(listener);
        assert!(matches!(call.check(), Err(TargetError::Gone)));
    }

    /// Whatever is looked at has its turn, and no time of the broker's thread: a process can
    /// have 65,536 groups.
    #[test]
    fn what_waits_for_its_turn_is_let_go_when_the_call_ends() {
        async fn is_gone<T>(look: impl AsyncFnOnce(Target) -> Result<T, TargetError>, target: Target) {
            assert!(matches!(look(target).await, Err(TargetError::Gone)));
        }
        tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
            let (workers, container, listener) = (Workers::default(), Rc::<str>::from("c"), null());
            let stuck = Arc::new(std::sync::Barrier::new(SECCOMP_CONTAINER_WORKERS_MAX + 1));
            let share = || {
                let (workers, container, stuck) =
                    (workers.clone(), Rc::clone(&container), Arc::clone(&stuck));
                tokio::task::spawn_local(async move {
                    workers.run(&container, move || _ = stuck.wait()).await.unwrap();
                })
            };
            let share: Vec<_> = (0..SECCOMP_CONTAINER_WORKERS_MAX).map(|_| share()).collect();
            tokio::task::yield_now().await;
            let held = Rc::new(HeldCall::from(open_call(&listener)));
            let target = || Target::new(&held, &container, workers.clone());
            let looks = [
                tokio::task::spawn_local(is_gone(async |one| one.read_memory(1, 1).await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.write_memory(1, vec![0]).await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.duplicate_fd(0).await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.credentials().await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.cgroup().await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.namespaces().await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.namespace("net").await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.root().await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.working_directory().await, target())),
                tokio::task::spawn_local(is_gone(async |one| one.pidfd().await, target())),
            ];
            tokio::task::yield_now().await;
            assert!(looks.iter().all(|look| !look.is_finished()));
            drop(held);
            for look in looks {
                look.await.unwrap();
            }
            stuck.wait();
            for one in share {
                one.await.unwrap();
            }
        });
    }

    /// Two pages, of which the second is not there: `/proc/self/mem` says so.
    #[test]
    fn memory_is_read_up_to_where_it_ends() {
        let memory = File::open("/proc/self/mem").unwrap();
        let text = *b"some text\0and more";
        let address = text.as_ptr() as u64;
        assert_eq!(read_at(&memory, address, text.len()).unwrap(), text);
        assert_eq!(read_text(&memory, address, 100).unwrap().unwrap(), b"some text");
        assert_eq!(read_text(&memory, address, 9).unwrap(), None);
        assert_eq!(read_text(&memory, address, 10).unwrap().unwrap(), b"some text");
        read_at(&memory, 1, 8).unwrap_err();
        read_text(&memory, u64::MAX, 8).unwrap_err();
    }
}
