//! One attempt of a hook that is a program: started, read, bounded in time, and
//! collected.
//!
//! What counts is the end of the hook's own process. What it left behind may hold
//! its output open for ever; what is in the pipes by then is taken, and no more.
//! Only when its time is over is everything killed that it has started.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::below::{Below, Door};
use crate::hook::result::{Outcome, Tail};
use crate::hook::{Hook, run};
use crate::limits::{HOOK_TERM_GRACE, KILL_TIMEOUT};
use crate::monitor::Monitor;
use crate::monitor::leaf::Leaf;
use crate::monitor::reaper::Child;
use crate::monitor::runtime::pipe;
use crate::monitor::tree::kill_descendants;
use crate::ns::Kind;
use crate::sys::enter::{self, Entry, Ids, Image, Report, Step};
use crate::sys::process::{ChildExit, Ended};

/// Pause between two looks at a cgroup whose processes have been killed.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the surroundings of a hook contribute.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// Namespaces to join; a user namespace last.
    pub(super) join: Vec<(Kind, OwnedFd)>,
    /// Where its cgroup is made.
    pub(super) below: Option<Below>,
    /// Its working directory, unless it has another view of the file system.
    pub(super) directory: PathBuf,
    /// Its whole environment.
    pub(super) environment: Vec<CString>,
    /// What it reads.
    pub(super) state: Vec<u8>,
}

/// How an attempt went.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) outcome: Outcome,
    pub(super) stdout: Tail,
    pub(super) stderr: Tail,
    pub(super) left_running: usize,
    pub(super) killed: usize,
}

impl Attempt {
    pub(super) fn not_started(reason: String) -> Self {
        Self::without_output(Outcome::NotStarted(reason))
    }

    pub(super) fn without_output(outcome: Outcome) -> Self {
        let (stdout, stderr) = (Tail::default(), Tail::default());
        Self { outcome, stdout, stderr, left_running: 0, killed: 0 }
    }
}

/// A hook that has been started.
struct Running {
    child: Child,
    /// Where it may still report why it is not the hook's program.
    report: OwnedFd,
    leaf: Option<Leaf>,
    output: [Reader; 2],
}

impl Monitor {
    /// Runs `hook` once and waits for its end, at most `limit`.
    pub(super) async fn attempt(&self, hook: &Hook, around: Surroundings, limit: Duration) -> Attempt {
        let deadline = Instant::now() + limit;
        let joined = around.join.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
        let mut running = match self.start_hook(hook, around, deadline).await {
            Ok(running) => running,
            Err(NotStarted::Failed(step, error)) => {
                return Attempt::not_started(words(hook, &joined, step, &error));
            }
            Err(NotStarted::Io(doing, error)) => {
                return Attempt::not_started(format!("cannot {doing}: {error}"));
            }
            Err(NotStarted::TimedOut) => return Attempt::without_output(Outcome::TimedOut(limit)),
        };
        let [stdout, stderr] = &mut running.output;
        let exit = tokio::select! {
            exit = running.child.exited() => Some(exit),
            () = read_both(stdout, stderr) => None,
            () = self.hooks.out_of_time(deadline) => None,
        };
        let mut killed = 0;
        let mut outcome = Outcome::TimedOut(limit);
        match exit {
            Some(exit) => outcome = outcome_of(exit),
            None => {
                let [stdout, stderr] = &mut running.output;
                let ending = end_all(&running.child, running.leaf.as_ref());
                // It is read on meanwhile: its last words may be many.
                killed = tokio::select! {
                    killed = ending => killed,
                    () = read_both(stdout, stderr) => 0,
                };
            }
        }
        if let Ok(Some(Report::Failed(step, error))) = enter::read_report(&running.report) {
            outcome = Outcome::NotStarted(words(hook, &joined, step, &error.into()));
        }
        let left_running = self.let_go(running.leaf);
        let [stdout, stderr] = running.output.map(Reader::finish);
        Attempt { outcome, stdout, stderr, left_running, killed }
    }

    /// Starts it; returns when its process is known.
    async fn start_hook(
        &self,
        hook: &Hook,
        around: Surroundings,
        deadline: Instant,
    ) -> Result<Running, NotStarted> {
        let (stdout, stdout_write) = hook_pipe()?;
        let (stderr, stderr_write) = hook_pipe()?;
        let stdin = input(&around.state).map_err(|error| NotStarted::Io("make its standard input", error))?;
        let (leaf, door) = self.leaf(around.below.as_ref());
        let entry = entry(hook, around, [stdin, stdout_write, stderr_write], door)?;
        let started = enter::start(&entry);
        let started = started.map_err(|error| {
            leaf.as_ref().map(Leaf::remove);
            NotStarted::Io("make a process", error)
        })?;
        // Ours, and not collected: no task has run since.
        let adopted = self.reaper.adopt_own(started.pid);
        let mut child = adopted.map_err(|error| NotStarted::Io("follow its process", error))?;
        if entry.joins_pid() {
            drop(entry);
            child = self.second(child, &started.report, leaf.as_ref(), deadline).await?;
        }
        Ok(Running { child, report: started.report, leaf, output: [stdout, stderr] })
    }

    /// Waits until the process in a pid namespace is known.
    async fn second(
        &self,
        first: Child,
        report: &OwnedFd,
        leaf: Option<&Leaf>,
        deadline: Instant,
    ) -> Result<Child, NotStarted> {
        // It may end before its pid has been read.
        let _expecting = self.reaper.expect();
        let follow = |error| NotStarted::Io("follow its process", error);
        let readable = AsyncFd::with_interest(report.as_fd(), Interest::READABLE).map_err(follow)?;
        let next = async {
            loop {
                let mut ready = readable.readable().await?;
                match enter::read_report(report)? {
                    Some(report) => return Ok::<_, io::Error>(report),
                    None => ready.clear_ready(),
                }
            }
        };
        let heard = tokio::time::timeout_at(deadline, next).await;
        let result = match heard {
            Ok(Ok(Report::Became(pid))) => return self.reaper.adopt(pid).map_err(follow),
            Ok(Ok(Report::Failed(step, errno))) => Err(NotStarted::Failed(step, errno.into())),
            Ok(Ok(Report::End)) => {
                Err(NotStarted::Io("start it", io::Error::other("its process was killed on its way")))
            }
            Ok(Err(error)) => Err(follow(error)),
            Err(_) => Err(NotStarted::TimedOut),
        };
        end_all(&first, leaf).await;
        leaf.map(Leaf::remove);
        result
    }

    /// A cgroup for one hook, where there can be one.
    fn leaf(&self, below: Option<&Below>) -> (Option<Leaf>, Option<Door>) {
        let Some(below) = below else { return (None, None) };
        let number = self.hooks.next_leaf();
        match below.leaf(self.stable_pid(), number) {
            Ok((leaf, door)) => (Some(leaf), Some(door)),
            Err(error) => {
                ::log::debug!("a hook gets no cgroup of its own: {error}");
                (None, None)
            }
        }
    }

    /// Removes the cgroup of a hook that has ended. What it left behind may go on
    /// until the pod ends; how many processes that is.
    fn let_go(&self, leaf: Option<Leaf>) -> usize {
        let Some(leaf) = leaf else { return 0 };
        let Err(error) = leaf.remove() else { return 0 };
        ::log::debug!("{} is not removed yet: {error}", leaf.directory().display());
        let left = leaf.processes().len();
        self.hooks.keep_leaf(leaf);
        left
    }
}

/// Why there is no process of a hook.
enum NotStarted {
    Failed(Step, io::Error),
    Io(&'static str, io::Error),
    TimedOut,
}

/// A sentence of it.
fn words(hook: &Hook, joined: &[Kind], step: Step, error: &io::Error) -> String {
    match step {
        Step::Cgroup(_) => format!("cannot enter its cgroup: {error}"),
        Step::Join(n) => {
            let kind = joined.get(n).map_or("a", |kind| kind.name());
            format!("cannot join the {kind} namespace: {error}")
        }
        Step::Clone => format!("cannot make a process in the pid namespace: {error}; has its PID 1 ended?"),
        Step::Prepare => format!("cannot prepare its process: {error}"),
        Step::Directory => format!("cannot change to its working directory: {error}"),
        Step::Ids => format!("cannot become its user and groups: {error}; has the user namespace these ids?"),
        Step::Capabilities => format!("cannot set its capabilities: {error}; podinit may lack one of them"),
        Step::Execute => format!("cannot execute {}: {error}", hook.path.display()),
    }
}

fn entry(
    hook: &Hook,
    around: Surroundings,
    stdio: [OwnedFd; 3],
    door: Option<Door>,
) -> Result<Entry, NotStarted> {
    let nul = |_| NotStarted::Io("start it", io::Error::other("there is a NUL byte in its definition"));
    let joins_mnt = around.join.iter().any(|(kind, _)| *kind == Kind::Mnt);
    let image = if joins_mnt {
        let opened = File::open(&hook.path);
        Image::Opened(opened.map_err(|error| NotStarted::Failed(Step::Execute, error))?.into())
    } else {
        Image::Path(run::path_of(hook).map_err(nul)?)
    };
    let directory = CString::new(around.directory.as_os_str().as_bytes()).map_err(nul)?;
    let directories = if joins_mnt { vec![c"/".into()] } else { vec![directory, c"/".into()] };
    let door = door.unwrap_or(Door { cgroup: None, tasks: Vec::new() });
    let ids = hook.options.user.as_ref().map(|user| Ids {
        user: user.uid,
        group: user.gid,
        groups: user.additional_gids.clone(),
    });
    Ok(Entry {
        image,
        arguments: run::arguments_of(hook).map_err(nul)?,
        environment: around.environment,
        stdio,
        cgroup: door.cgroup,
        tasks: door.tasks,
        join: around.join.into_iter().map(|(kind, fd)| (kind.flag(), fd)).collect(),
        directories,
        ids,
        capabilities: hook.options.capabilities.as_deref().map(run::mask_of),
    })
}

/// A file with the state in it, at its beginning: reading it never blocks, and
/// nobody waits for who does not read it.
fn input(state: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("podinit-hook-state", flags)?);
    file.write_all(state)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn hook_pipe() -> Result<(Reader, OwnedFd), NotStarted> {
    let fail = |error| NotStarted::Io("make its output", error);
    let (read, write) = pipe().map_err(|error| fail(io::Error::other(error)))?;
    Ok((Reader::new(read).map_err(fail)?, write))
}

fn outcome_of(exit: Option<ChildExit>) -> Outcome {
    match exit.map(|exit| exit.how) {
        Some(Ended::Code(code)) => Outcome::Code(code),
        Some(Ended::Signal(signal)) => Outcome::Signal(signal),
        None => Outcome::Lost("its status was collected by another process".to_owned()),
    }
}

/// Ends a hook and all that it has started: SIGTERM, a grace time, SIGKILL. How
/// many processes there were.
async fn end_all(child: &Child, leaf: Option<&Leaf>) -> usize {
    let Some(leaf) = leaf else {
        signal_group(child);
        if tokio::time::timeout(HOOK_TERM_GRACE, child.exited()).await.is_err() {
            kill_descendants(child.pid());
            kill(child).await;
        }
        return 1;
    };
    let grace = Instant::now() + HOOK_TERM_GRACE;
    let there = leaf.signal(Signal::TERM);
    if tokio::time::timeout_at(grace, child.exited()).await.is_ok() && leaf.processes().is_empty() {
        return there;
    }
    tokio::time::sleep_until(grace).await;
    kill_all(leaf).await;
    kill(child).await;
    there
}

/// Kills a hook's own process, and waits until it has been collected.
async fn kill(child: &Child) {
    if let Err(error) = child.signal(libc::SIGKILL) {
        ::log::error!("cannot kill process {} of a hook: {error}", child.pid());
    }
    if tokio::time::timeout(KILL_TIMEOUT, child.exited()).await.is_err() {
        ::log::error!("process {} of a hook is still there after SIGKILL", child.pid());
    }
}

/// Kills all that is in `leaf`, and waits until it has gone.
pub(super) async fn kill_all(leaf: &Leaf) {
    let deadline = Instant::now() + KILL_TIMEOUT;
    while !leaf.processes().is_empty() {
        if Instant::now() > deadline {
            ::log::error!("processes of a hook are still there after SIGKILL: {:?}", leaf.processes());
            return;
        }
        leaf.kill();
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn signal_group(child: &Child) {
    if child.has_exited() {
        return;
    }
    if let Some(group) = i32::try_from(child.pid()).ok().and_then(rustix::process::Pid::from_raw) {
        // It leads its session and is not collected, so the number is still its own.
        if rustix::process::kill_process_group(group, Signal::TERM).is_err() {
            ::log::debug!("the process group of a hook is gone");
        }
    }
}

/// Reads both streams for as long as it is polled.
async fn read_both(stdout: &mut Reader, stderr: &mut Reader) {
    tokio::join!(stdout.until_end(), stderr.until_end());
    std::future::pending().await
}

/// Reads one stream, and keeps its end.
struct Reader {
    fd: AsyncFd<OwnedFd>,
    tail: Tail,
    ended: bool,
}

impl Reader {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self { fd, tail: Tail::default(), ended: false })
    }

    async fn until_end(&mut self) {
        let mut chunk = [0; 8192];
        while !self.ended {
            let Ok(mut ready) = self.fd.readable().await else { return };
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref().as_fd(), &mut chunk)?)) {
                Ok(Ok(0) | Err(_)) => self.ended = true,
                Ok(Ok(count)) => self.tail.push(chunk.get(..count).unwrap_or_default()),
                Err(_would_block) => {}
            }
        }
    }

    /// Takes what is there now: somebody else may be writing on.
    fn finish(mut self) -> Tail {
        let there = rustix::io::ioctl_fionread(self.fd.get_ref()).unwrap_or(0);
        let mut left = usize::try_from(there).unwrap_or(usize::MAX);
        let mut chunk = [0; 8192];
        while left > 0 {
            let size = left.min(chunk.len());
            let Some(part) = chunk.get_mut(..size) else { break };
            match rustix::io::read(self.fd.get_ref().as_fd(), &mut *part) {
                Ok(count @ 1..) => {
                    self.tail.push(part.get(..count).unwrap_or_default());
                    left -= count;
                }
                _ => break,
            }
        }
        self.tail.finish()
    }
}
