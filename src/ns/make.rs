//! Making namespaces: in a thread, in a process, or right here.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::request::map_file;
use super::sysctl::Sysctl;
use super::{Error, Kind, Made, PodInit, Request, Source, order};
use crate::sys::namespace::{self, Inside, Maker, Program, Step, StepError};
use crate::sys::nsfs;

/// Whether namespaces of the host are pinned, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// As callers of createNamespaces and pinns expect.
    Pinned,
    /// No.
    Unpinned,
}

/// What new namespaces are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetUp {
    /// Ready for a pod: loopback up, mounts made in it stay in it.
    Pod,
    /// As the kernel makes them.
    Bare,
}

/// Where namespaces are made that need no process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a thread of their own, so that the caller stays where it is.
    Thread,
    /// In the calling thread, which stays in them: for a program that does nothing else.
    Here,
}

/// How the caller of [`make`] differs from others.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) hosts: Hosts,
    pub(crate) set_up: SetUp,
    pub(crate) place: Place,
    /// How much of the base directory may be made.
    pub(crate) base: super::pin::Parents,
    pub(crate) init: InitImage,
}

/// Opens the program that becomes PID 1.
#[derive(Clone, Copy)]
pub(crate) struct InitImage(pub(crate) fn() -> io::Result<OwnedFd>);

impl fmt::Debug for InitImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InitImage")
    }
}

/// Namespaces that exist, not pinned yet.
#[derive(Debug)]
pub(crate) struct Making {
    /// In the order of the request.
    pub(crate) found: Vec<Made>,
    /// The process that is to become the pod's init.
    pub(crate) process: Option<namespace::Made>,
}

/// Makes and takes what `request` names.
pub(crate) fn make(
    request: &Request,
    sysctls: Vec<Sysctl>,
    environment: &Environment,
) -> Result<Making, Error> {
    // The caller's own come first: afterwards, in `Place::Here`, they are the new ones.
    let mut own = Vec::with_capacity(request.namespaces.len());
    for (kind, source) in &request.namespaces {
        own.push((*kind, source, open_source(*kind, source)?));
    }
    let plan = Plan { request, sysctls };
    let own_mnt = own.iter().find(|(kind, _, _)| *kind == Kind::Mnt).map(|(_, _, fd)| fd);
    let (process, mut created) = match own_mnt.filter(|_| request.creates(Kind::Mnt)) {
        Some(own_mnt) => order::make_younger(own_mnt, || plan.make_all(&own, environment))?,
        None => plan.make_all(&own, environment)?,
    };
    let mut found = Vec::with_capacity(own.len());
    for (kind, source, own) in own {
        found.push(match source {
            Source::Create => {
                let position = created.iter().position(|(made, _)| *made == kind);
                let (_, fd) = position.map(|n| created.swap_remove(n)).ok_or_else(|| missing(kind))?;
                let made = describe(kind, fd, source)?;
                if made.inode == inode(&own)? {
                    return Err(missing(kind));
                }
                made
            }
            _ => describe(kind, own, source)?,
        });
    }
    Ok(Making { found, process })
}

/// The process becomes the pod's init.
pub(crate) fn start_init(process: namespace::Made) -> Result<PodInit, Error> {
    let (pid, pidfd) = process
        .become_program()
        .map_err(|e| Error::step("execute", "the pod's init in its pid namespace", e.errno))?;
    Ok(PodInit { pid, pidfd })
}

fn is_path(source: &Source) -> bool {
    matches!(source, Source::Path(_))
}

fn missing(kind: Kind) -> Error {
    Error::step("make", format!("a {kind} namespace"), io::Error::other("the kernel left it as it was"))
}

/// The caller's own namespace, or the one pinned at a path.
fn open_source(kind: Kind, source: &Source) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Source::Path(path) = source else {
        return rustix::fs::openat(CWD, kind.own_path(), flags, Mode::empty()).map_err(|e| {
            let error = Error::step("open", format!("{:?}", kind.own_path()), e);
            if e == Errno::NOENT {
                error.advise(format!("this kernel has no {kind} namespaces, or /proc is not mounted"))
            } else {
                error
            }
        });
    };
    open_pinned(kind, path)
}

/// Opens the namespace pinned at `path` and checks that it is one of this kind.
pub(crate) fn open_pinned(kind: Kind, path: &Path) -> Result<OwnedFd, Error> {
    let step = "open the namespace";
    // Not followed into a device or a FIFO: what is opened for reading is checked first.
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::on(step, path, e))?;
    let magic = rustix::fs::fstatfs(&place).map_err(|e| Error::on(step, path, e))?.f_type;
    let found = || Error::Invalid(format!("{} is not a pinned {kind} namespace", path.display()));
    if magic != super::pin::NSFS_MAGIC {
        return Err(found());
    }
    let reopened = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
    let fd = rustix::fs::open(reopened, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::on(step, path, e))?;
    let flag = nsfs::kind(&fd).map_err(|e| Error::on(step, path, e))?;
    if Kind::from_flag(flag) == Some(kind) { Ok(fd) } else { Err(found()) }
}

pub(crate) fn inode(fd: impl AsFd) -> Result<u64, Error> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Error::step("look at", "a namespace", e))?;
    Ok(stat.st_ino)
}

/// What there is to say about a namespace.
pub(crate) fn describe(kind: Kind, fd: OwnedFd, source: &Source) -> Result<Made, Error> {
    let owner_inode = match nsfs::owner(&fd) {
        Ok(owner) => inode(&owner)?,
        // Beyond the caller's own user namespace.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => 0,
        Err(e) => return Err(Error::step("find the owner of", format!("the {kind} namespace"), e)),
    };
    let path = match source {
        Source::Path(path) => Some(path.clone()),
        Source::Create | Source::Host => None,
    };
    Ok(Made { kind, path, inode: inode(&fd)?, owner_inode, created: *source == Source::Create, fd })
}

/// A request on its way to [`Inside`].
struct Plan<'a> {
    request: &'a Request,
    sysctls: Vec<Sysctl>,
}

type Fds = Vec<(Kind, OwnedFd)>;

/// The process that is in the new namespaces, if there is one, and they.
pub(super) type Makings = (Option<namespace::Made>, Fds);

impl Plan<'_> {
    fn created(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| self.request.creates(*kind))
    }

    /// The kinds that are made by unshare(2), in that order. Those that a clone(2)
    /// makes are not among them.
    fn unshared(&self) -> impl Iterator<Item = Kind> {
        self.created().filter(|kind| !matches!(kind, Kind::User | Kind::Pid))
    }

    fn inside(&self, environment: &Environment) -> Result<Inside, Error> {
        let pod = environment.set_up == SetUp::Pod;
        let bytes = |name: &Option<String>| name.as_ref().map(|n| n.clone().into_bytes());
        let mut inside = Inside {
            unshare: self.unshared().map(Kind::flag).collect(),
            mounts_stay: pod && self.request.creates(Kind::Mnt),
            hostname: bytes(&self.request.hostname),
            domainname: bytes(&self.request.domainname),
            loopback: pod && self.request.creates(Kind::Net),
            ..Inside::default()
        };
        if !self.sysctls.is_empty() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let proc_sys = rustix::fs::openat(CWD, c"/proc/sys", flags, Mode::empty());
            inside.proc_sys = Some(proc_sys.map_err(|e| Error::step("open", "/proc/sys", e))?);
            inside.sysctls = self.sysctls.iter().map(|s| (s.path.clone(), s.value.clone())).collect();
        }
        Ok(inside)
    }

    /// Everything that is to be created: in a process if it must be, which is returned, too.
    fn make_all(
        &self,
        own: &[(Kind, &Source, OwnedFd)],
        environment: &Environment,
    ) -> Result<Makings, Error> {
        let joins_user = own.iter().any(|(kind, source, _)| *kind == Kind::User && is_path(source));
        let process = self.request.creates(Kind::User)
            || self.request.creates(Kind::Pid)
            || (joins_user && self.created().next().is_some());
        if !process {
            return Ok((None, self.make_in_thread(environment)?));
        }
        let mut join = Vec::new();
        for (kind, _, fd) in own.iter().filter(|(_, source, _)| is_path(source)) {
            let copy = fd.try_clone().map_err(|e| Error::step("copy a descriptor of", kind.name(), e))?;
            join.push((*kind, copy));
        }
        // A user namespace gives the rights to join the others.
        join.sort_by_key(|(kind, _)| *kind != Kind::User);
        let (process, created) = self.make_in_process(join, environment)?;
        Ok((Some(process), created))
    }

    fn make_in_thread(&self, environment: &Environment) -> Result<Fds, Error> {
        let kinds: Vec<Kind> = self.created().collect();
        if kinds.is_empty() {
            return Ok(Vec::new());
        }
        let inside = self.inside(environment)?;
        // Room is made here: a thread that allocates gets a heap of its own, which stays.
        let mut made = Ok(Vec::with_capacity(kinds.len()));
        match environment.place {
            Place::Here => work(&inside, &kinds, &mut made),
            Place::Thread => std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().stack_size(64 << 10);
                let thread = thread
                    .spawn_scoped(scope, || work(&inside, &kinds, &mut made))
                    .map_err(|e| Error::step("start", "a thread to make namespaces in", e))?;
                let panicked = |_| Error::step("make", "namespaces", io::Error::other("the thread panicked"));
                thread.join().map_err(panicked)
            })?,
        }
        made.map_err(|e| match e {
            Failed::Step(e) => self.explain(e, &[]),
            Failed::Open(kind, errno) => Error::step("open", format!("the new {kind} namespace"), errno),
        })
    }

    fn make_in_process(&self, join: Fds, environment: &Environment) -> Result<(namespace::Made, Fds), Error> {
        let mut inside = self.inside(environment)?;
        let joined: Vec<Kind> = join.iter().map(|(kind, _)| *kind).collect();
        inside.become_root = self.request.creates(Kind::User) || joined.contains(&Kind::User);
        inside.join = join.into_iter().map(|(kind, fd)| (kind.flag(), fd)).collect();
        let init = if self.request.creates(Kind::Pid) { Some(self.program(environment)?) } else { None };
        let maker = Maker { user: self.request.creates(Kind::User), inside, init };
        let made = namespace::start_maker(&maker, |pid| self.write_mappings(pid)).map_err(|e| match e {
            MakerError::Step(e) => self.explain(e, &joined),
            MakerError::Other(e) => e,
        })?;
        let mut fds = Vec::with_capacity(8);
        for kind in self.created() {
            let fd = open_of(&made, kind)
                .map_err(|e| Error::step("open", format!("the new {kind} namespace"), e))?;
            fds.push((kind, fd));
        }
        Ok((made, fds))
    }

    fn program(&self, environment: &Environment) -> Result<Program, Error> {
        let image = (environment.init.0)().map_err(|e| Error::step("open", "the pod's init program", e))?;
        let stdio = rustix::fs::openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::step("open", "/dev/null", e))?;
        // A name that holds NUL was refused before.
        let name = CString::new(self.request.name.as_str()).unwrap_or_default();
        Ok(Program { image, arguments: vec![c"podinit-init".to_owned(), name], stdio })
    }

    /// From outside, because only there may ids be mapped that are not the caller's.
    /// Groups come first: it is what the kernel's documentation shows, and either order works.
    fn write_mappings(&self, pid: u32) -> Result<(), MakerError> {
        for (file, mappings) in
            [("gid_map", &self.request.gid_mappings), ("uid_map", &self.request.uid_mappings)]
        {
            let path = format!("/proc/{pid}/{file}");
            let text = map_file(mappings);
            let done = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|fd| rustix::io::write(fd, text.as_bytes()))
                .and_then(|n| if n == text.len() { Ok(()) } else { Err(Errno::MSGSIZE) });
            if let Err(e) = done {
                let error = Error::step("write", format!("{} to {path}", text.trim_end().escape_debug()), e);
                return Err(MakerError::Other(match e {
                    Errno::PERM => error.advise(
                        "the caller may map only ids that it has itself, or needs CAP_SETUID and CAP_SETGID",
                    ),
                    Errno::INVAL => error.advise("the kernel takes no ranges that overlap"),
                    _ => error,
                }));
            }
        }
        Ok(())
    }

    /// A step that failed inside, in words.
    fn explain(&self, StepError { step, errno }: StepError, joined: &[Kind]) -> Error {
        let sysctl =
            |n: usize| self.sysctls.get(n).map(|s| s.path.to_string_lossy().into_owned()).unwrap_or_default();
        match step {
            Step::Join(n) => {
                let kind = joined.get(n).map_or("", |k| k.name());
                Error::step("join", format!("the given {kind} namespace"), errno)
            }
            Step::BecomeRoot => Error::step("become", "user and group 0 of the user namespace", errno),
            Step::Unshare(n) => match self.unshared().nth(n) {
                Some(kind) => cannot_make(kind, errno),
                None => Error::step("make", "a namespace", errno),
            },
            Step::Clone if self.request.creates(Kind::User) => cannot_make(Kind::User, errno),
            Step::Clone => cannot_make(Kind::Pid, errno),
            Step::MountsStay => Error::step("change the propagation of", "/ in the new mnt namespace", errno),
            Step::OpenSysctl(n) => {
                let error = Error::step("open", format!("/proc/sys/{}", sysctl(n)), errno);
                if errno == Errno::NOENT {
                    error.advise("no new namespace has this sysctl; is a module missing?")
                } else {
                    error
                }
            }
            Step::WriteSysctl(n) => {
                let value = self.sysctls.get(n).map(|s| String::from_utf8_lossy(&s.value).into_owned());
                let object = format!("{:?} to /proc/sys/{}", value.unwrap_or_default(), sysctl(n));
                let error = Error::step("write", object, errno);
                if matches!(errno, Errno::INVAL | Errno::MSGSIZE) {
                    error.advise("the kernel does not take this value")
                } else {
                    error
                }
            }
            Step::Hostname => Error::step("set", "the host name", errno),
            Step::Domainname => Error::step("set", "the domain name", errno),
            Step::Loopback => Error::step("bring up", "the loopback interface", errno),
            Step::Descriptors => {
                Error::step("arrange", "the descriptors of the process that makes namespaces", errno)
            }
            Step::Talk => Error::step("talk to", "the process that makes namespaces", errno)
                .advise("it was killed, perhaps for lack of memory"),
            Step::Exec => Error::step("execute", "the pod's init in its pid namespace", errno),
        }
    }
}

fn cannot_make(kind: Kind, errno: Errno) -> Error {
    let error = Error::step("make", format!("a {kind} namespace"), errno);
    match errno {
        Errno::NOSPC => error.advise(format!(
            "the limit in {} is reached, or user namespaces are nested too deep",
            kind.limit()
        )),
        Errno::INVAL => error.advise("this kernel may lack that kind of namespace"),
        Errno::USERS => error.advise("user namespaces are nested too deep"),
        _ => error,
    }
}

/// From [`namespace::start_maker`].
enum MakerError {
    Step(StepError),
    Other(Error),
}

impl From<StepError> for MakerError {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

/// From [`work`].
enum Failed {
    Step(StepError),
    Open(Kind, Errno),
}

/// In the thread that moves into the new namespaces. `made` has room for all.
fn work(inside: &Inside, kinds: &[Kind], made: &mut Result<Fds, Failed>) {
    if let Err(e) = inside.carry_out() {
        *made = Err(Failed::Step(e));
        return;
    }
    for kind in kinds {
        let fd = rustix::fs::openat(CWD, kind.own_path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        match (fd, &mut *made) {
            (Ok(fd), Ok(list)) => list.push((*kind, fd)),
            (Err(e), _) => {
                *made = Err(Failed::Open(*kind, e));
                return;
            }
            (_, Err(_)) => return,
        }
    }
}

/// Opens a namespace of the process: through its pidfd (Linux 6.11), or `/proc`.
fn open_of(made: &namespace::Made, kind: Kind) -> io::Result<OwnedFd> {
    if let Some(Ok(fd)) = made.pidfd().map(|pidfd| nsfs::of_process(pidfd, kind.flag())) {
        return Ok(fd);
    }
    // The process itself is PID 1 of the new pid namespace. Its children's time namespace is the new one.
    let name = if kind == Kind::Time { "time_for_children" } else { kind.name() };
    let path = format!("/proc/{}/ns/{name}", made.pid());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether what is open at `fd` is a regular file of length 0.
pub(crate) fn is_empty_file(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0
}
