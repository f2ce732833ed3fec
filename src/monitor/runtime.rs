//! Calls of the OCI runtime: one process each, bounded in time, and what it said
//! kept for the error text.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::limits::{RUNTIME_CALL_TIMEOUT, RUNTIME_STDERR_BYTES_MAX};
use crate::monitor::config::Config;
use crate::monitor::error::Error;
use crate::monitor::exit::ExitCause;
use crate::monitor::id::ContainerId;
use crate::monitor::program::Program;
use crate::monitor::reaper::{Child, Reaper};
use crate::monitor::starter::Starter;
use crate::sys::process::ChildExit;
use crate::sys::spawn::{self, PassedFd};

/// Who makes a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupManager {
    /// systemd, over D-Bus: `--systemd-cgroup`.
    Systemd,
    /// The runtime itself.
    Cgroupfs,
}

/// What every call for one container has in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallOptions {
    /// Who makes the cgroup.
    pub cgroup_manager: CgroupManager,
    /// Arguments before the runtime's sub-command.
    pub global_args: Vec<String>,
    /// Added to the runtime's environment.
    pub env: Vec<(String, String)>,
}

/// The action of a call that takes a container out of the runtime's books.
pub(super) const DELETE: &str = "delete";

/// What a call is for, as its errors tell it.
#[derive(Debug, Clone, Copy)]
pub struct Purpose<'a> {
    /// `create`, `start`, ...
    pub action: &'static str,
    /// Which container.
    pub id: &'a ContainerId,
}

/// The OCI runtime of this pod.
#[derive(Debug)]
pub struct Runtime {
    program: Program,
    root: Option<PathBuf>,
    /// What a container may open that has no limit of its own, if we may open more.
    open_files: Option<u64>,
    reaper: Rc<Reaper>,
    starter: RefCell<Option<Starter>>,
    /// Whether its `exec` has `--cgroup`, once asked.
    exec_has_cgroup: Cell<Option<bool>>,
    /// Tells calls that are under way to end.
    interruption: Rc<Notify>,
}

/// A call of the runtime that is under way.
#[derive(Debug)]
pub struct Call {
    action: &'static str,
    id: ContainerId,
    child: Child,
    heard: Vec<Listener>,
    /// `None` for a call that is always waited for.
    interruption: Option<Rc<Notify>>,
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
    /// The runtime exited with 0.
    Success,
    /// It exited otherwise, and what it said is in the error; or it was killed because the
    /// pod ends.
    Failed(Error),
    /// It was killed at the deadline; what it said is in the error.
    TimedOut(Error),
}

impl Outcome {
    /// Success, or the error.
    ///
    /// # Errors
    /// Every outcome but success.
    pub fn into_result(self) -> Result<(), Error> {
        match self {
            Self::Success => Ok(()),
            Self::Failed(error) | Self::TimedOut(error) => Err(error),
        }
    }
}

impl Runtime {
    /// The runtime that `config` names.
    #[must_use]
    pub fn new(config: &Config, reaper: Rc<Reaper>) -> Self {
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self {
            program: Program::new(config.runtime.clone()),
            root: config.runtime_root.clone(),
            open_files: config.open_files.filter(|soft| own != Some(*soft)),
            reaper,
            starter: RefCell::default(),
            exec_has_cgroup: Cell::default(),
            interruption: Rc::default(),
        }
    }

    /// A command line up to the sub-command.
    #[must_use]
    pub fn command(&self, options: &CallOptions) -> Command {
        let mut command = self.program.command();
        if let Some(root) = &self.root {
            let mut argument = OsString::from("--root=");
            argument.push(root);
            command.arg(argument);
        }
        if options.cgroup_manager == CgroupManager::Systemd {
            command.arg("--systemd-cgroup");
        }
        command.args(&options.global_args);
        command.envs(options.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A process group of its own, so that a runtime that hangs is killed with its helpers.
        command.process_group(0);
        command
    }

    /// Starts a call and listens to `heard`, the read ends of pipes that the
    /// caller has put at the runtime's stdout or stderr.
    ///
    /// # Errors
    /// [`Error::RuntimeSpawn`] if it cannot be executed.
    pub fn start(
        &self,
        purpose: Purpose<'_>,
        mut command: Command,
        passed: Vec<PassedFd>,
        heard: Vec<OwnedFd>,
    ) -> Result<Call, Error> {
        let fail = |source| Error::RuntimeSpawn {
            runtime: self.program.path().to_owned(),
            action: purpose.action,
            id: purpose.id.to_string(),
            source,
        };
        if !passed.is_empty() {
            spawn::prepare(&mut command, passed).map_err(fail)?;
        }
        self.set_apart(&mut command);
        let heard = heard.into_iter().map(Listener::new).collect::<io::Result<Vec<_>>>().map_err(fail)?;
        let started = match &*self.starter.borrow() {
            Some(starter) => starter.spawn(command),
            None => command.spawn(),
        };
        let child = started.map_err(fail)?;
        // Our own child, not collected yet, so the pid is its. The reaper has it from here on.
        let child = self.reaper.adopt_own(child.id()).map_err(fail)?;
        let interruption = (purpose.action != DELETE).then(|| Rc::clone(&self.interruption));
        Ok(Call { action: purpose.action, id: purpose.id.clone(), child, heard, interruption })
    }

    /// Gives what `command` starts neither this process's protection from the
    /// out-of-memory killer nor its limit of open files.
    pub(super) fn set_apart(&self, command: &mut Command) {
        spawn::unprotect(command);
        if let Some(soft) = self.open_files {
            spawn::limit_open_files(command, soft);
        }
    }

    /// Ends every call that is under way and makes or starts something, as if it had failed.
    pub(super) fn interrupt(&self) {
        self.interruption.notify_waiters();
    }

    /// Has every runtime started from behind a wall from now on, see [`Starter`]. A
    /// kernel without one is no error: then nothing changes.
    pub(super) fn wall_off(&self) {
        if self.starter.borrow().is_some() {
            return;
        }
        match Starter::new() {
            Ok(starter) => drop(self.starter.replace(Some(starter))),
            Err(error) => {
                ::log::warn!("a container with CAP_SYS_PTRACE could trace the pod's PID 1: {error}");
            }
        }
    }

    /// A whole call of a sub-command that is only waited for.
    ///
    /// # Errors
    /// Every outcome but success.
    pub async fn run(
        &self,
        purpose: Purpose<'_>,
        options: &CallOptions,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<(), Error> {
        let (read, write) = pipe()?;
        let mut command = self.command(options);
        command.args(arguments).arg(purpose.id.as_str()).stderr(write);
        let mut call = self.start(purpose, command, Vec::new(), vec![read])?;
        call.outcome(Some(limit)).await.into_result()
    }

    /// Whether this runtime can start an exec in a sub-cgroup of its container. It is
    /// asked until it has answered; crun and runc can, since 2021.
    pub(super) async fn has_exec_cgroup(&self, id: &ContainerId) -> bool {
        if let Some(known) = self.exec_has_cgroup.get() {
            return known;
        }
        match self.help_of_exec(id).await {
            Ok(help) => {
                let has = help.contains("--cgroup");
                self.exec_has_cgroup.set(Some(has));
                has
            }
            Err(error) => {
                ::log::debug!("the OCI runtime does not say what its exec can: {error}");
                false
            }
        }
    }

    async fn help_of_exec(&self, id: &ContainerId) -> Result<String, Error> {
        let (read, write) = pipe()?;
        let mut command = self.program.command();
        command.args(["exec", "--help"]).stdin(Stdio::null()).stdout(write).stderr(Stdio::null());
        command.process_group(0);
        let mut call =
            self.start(Purpose { action: "exec --help for", id }, command, Vec::new(), vec![read])?;
        call.outcome(Some(RUNTIME_CALL_TIMEOUT)).await.into_result().map(|()| call.said())
    }

    /// Where this runtime keeps its state of container `id`, if that is known.
    #[must_use]
    pub fn state_dir(&self, id: &ContainerId) -> Option<PathBuf> {
        let default = || {
            let name = self.program.path().file_name()?.to_str()?;
            matches!(name, "crun" | "runc" | "youki").then(|| Path::new("/run").join(name))
        };
        self.root.clone().or_else(default).map(|root| root.join(id.as_str()))
    }
}

impl Call {
    /// The runtime's process.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Waits until the runtime has exited, at most `limit` and until
    /// [`Runtime::interrupt`]; then it is killed with its process group.
    pub async fn outcome(&mut self, limit: Option<Duration>) -> Outcome {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let child = self.child.clone();
        let interruption = self.interruption.clone();
        let exited = async {
            tokio::select! {
                exit = child.exited() => exit,
                () = listen(&mut self.heard) => child.exited().await,
            }
        };
        let end = tokio::select! {
            exit = exited => End::Exited(exit),
            () = at(deadline) => End::TimedOut,
            () = interrupted(interruption) => End::Interrupted,
        };
        for listener in &mut self.heard {
            listener.take_rest();
        }
        if let End::Exited(exit) = end {
            return self.judge(exit.into());
        }
        self.kill();
        child.exited().await;
        if let End::Interrupted = end {
            return Outcome::Failed(Error::ShuttingDown);
        }
        Outcome::TimedOut(Error::RuntimeTimeout {
            action: self.action,
            id: self.id.to_string(),
            limit: limit.unwrap_or_default(),
            stderr: self.said(),
        })
    }

    fn judge(&self, cause: ExitCause) -> Outcome {
        match cause {
            ExitCause::Code(0) => Outcome::Success,
            cause => Outcome::Failed(Error::Runtime {
                action: self.action,
                id: self.id.to_string(),
                status: cause,
                stderr: self.said(),
            }),
        }
    }

    /// Kills the runtime and its process group.
    pub fn kill(&self) {
        if self.child.has_exited() {
            return;
        }
        if let Some(group) = i32::try_from(self.child.pid()).ok().and_then(Pid::from_raw) {
            // It is our child and not collected, so its number is still its own; a group that is
            // gone already needs no killing.
            if rustix::process::kill_process_group(group, rustix::process::Signal::KILL).is_err() {
                ::log::debug!("process group {} of the OCI runtime is gone", self.child.pid());
            }
        }
    }

    /// The pipes' read ends, in the order in which they were given.
    pub(super) fn heard(&self) -> impl Iterator<Item = &OwnedFd> {
        self.heard.iter().map(|listener| listener.fd.get_ref())
    }

    /// The pipes' read ends, for whoever listens from now on.
    #[must_use]
    pub fn into_heard(self) -> Vec<OwnedFd> {
        self.heard.into_iter().map(|listener| listener.fd.into_inner()).collect()
    }

    /// What the runtime said, as text for an error.
    #[must_use]
    pub fn said(&self) -> String {
        let texts = self.heard.iter().map(|l| String::from_utf8_lossy(&l.tail).trim().to_owned());
        let said = texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
        if said.is_empty() { "it said nothing".into() } else { said }
    }
}

/// A close-on-exec pipe: read end, write end.
///
/// # Errors
/// What pipe2(2) says: `EMFILE` and `ENFILE` when descriptors run out.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| Error::io("make a pipe", error))
}

/// Why a call is not waited for any more.
enum End {
    Exited(Option<ChildExit>),
    TimedOut,
    Interrupted,
}

async fn interrupted(interruption: Option<Rc<Notify>>) {
    match interruption {
        Some(interruption) => interruption.notified().await,
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Reads all until each has ended.
async fn listen(heard: &mut [Listener]) {
    match heard {
        [] => std::future::pending().await,
        [one] => one.until_end().await,
        [one, two, ..] => {
            tokio::join!(one.until_end(), two.until_end());
        }
    }
}

/// Keeps the last bytes of a pipe, and reads on whatever their number.
#[derive(Debug)]
struct Listener {
    fd: AsyncFd<OwnedFd>,
    tail: Vec<u8>,
}

impl Listener {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: AsyncFd::with_interest(fd, Interest::READABLE)?, tail: Vec::new() })
    }

    async fn until_end(&mut self) {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return };
            let mut chunk = [0; 4096];
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref().as_fd(), &mut chunk)?)) {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(count)) => keep_tail(&mut self.tail, chunk.get(..count).unwrap_or_default()),
                Err(_would_block) => {}
            }
        }
    }

    /// Reads what is there now.
    fn take_rest(&mut self) {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = rustix::io::read(self.fd.get_ref().as_fd(), &mut chunk) {
            keep_tail(&mut self.tail, chunk.get(..count).unwrap_or_default());
        }
    }
}

fn keep_tail(tail: &mut Vec<u8>, more: &[u8]) {
    tail.extend_from_slice(more);
    if tail.len() > 2 * RUNTIME_STDERR_BYTES_MAX {
        tail.drain(..tail.len() - RUNTIME_STDERR_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_its_end_and_stays_small() {
        let mut tail = Vec::new();
        for _ in 0..1000 {
            keep_tail(&mut tail, &[b'x'; 1000]);
        }
        keep_tail(&mut tail, b"the reason");
        assert!(tail.ends_with(b"the reason"));
        assert!(tail.len() <= 2 * RUNTIME_STDERR_BYTES_MAX);
    }
}
