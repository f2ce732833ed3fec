//! Pod and container state, OCI runtime calls, exec, exit, OOM.
//!
//! One thread owns all of it: a [`Monitor`] behind an `Rc`, with plain cells.
//! Whatever takes time is a task on that thread; a borrow of a cell never lives
//! across an await. The bytes of containers are not seen here: they flow in
//! [`relay`], on its own thread.
//!
//! An exit: [`reaper`] collects the status, [`container`] has the relay read the
//! streams to their end and [`oom`] give the OOM verdict, [`exit`] writes the
//! files, [`event`] tells it. What may follow what is in [`life`].
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::sync::{Notify, watch};

mod bundle;
pub mod cgroup;
pub mod config;
pub mod console;
pub mod container;
pub mod create;
pub mod error;
pub mod event;
pub mod exec;
mod exec_leaf;
pub mod exit;
pub mod fdsocket;
pub mod hooks;
pub mod id;
mod leaf;
pub mod life;
pub mod log;
mod logging;
mod oom;
mod program;
pub mod reaper;
pub mod relay;
pub mod report;
mod running;
pub mod runtime;
pub mod sandbox;
pub mod saved;
pub mod seccomp;
pub mod session;
mod starter;
pub mod stop;
mod tree;
mod vanish;

use crate::init::survey::Process;
use crate::keeper::Link;
use crate::limits::EXITED_KEPT_MAX;
use crate::ns::sandbox::{DIRECTORY as NAMESPACES_DIRECTORY, Sandboxes};
use config::Config;
use container::Container;
use error::Error;
use event::EventLog;
use fdsocket::FdSlots;
use hooks::Hooks;
use id::{ContainerId, PodId};
use life::Phase;
use log::limit::Rate;
use reaper::{Child, Reaper};
use relay::{Attach, Relay, StreamStats};
use running::Family;
use runtime::Runtime;
use seccomp::Seccomp;

/// The monitor of one pod.
#[derive(Debug)]
pub struct Monitor {
    /// What it was told at its start.
    pub config: Config,
    /// What happened.
    pub events: EventLog,
    /// The children of this process.
    pub reaper: Rc<Reaper>,
    /// Seccomp notifications of the containers.
    pub seccomp: Rc<Seccomp>,
    relay: Relay,
    /// What the relay tells, until somebody listens.
    notices: RefCell<Option<logging::Notices>>,
    log_total: Cell<Rate>,
    runtime: Runtime,
    containers: RefCell<BTreeMap<ContainerId, Slot>>,
    created_or_not: Notify,
    namespaces: Sandboxes,
    inits: RefCell<HashMap<PodId, Child>>,
    /// What a pod's init could not end in time.
    killed: RefCell<HashMap<PodId, Vec<Process>>>,
    unpinned: RefCell<HashMap<String, OwnedFd>>,
    execs: RefCell<HashMap<u32, Rc<Family>>>,
    /// Cleanup commands that may still run.
    cleanups: RefCell<Vec<Child>>,
    oom_ledger: oom::Ledger,
    fd_slots: Rc<FdSlots>,
    cgroup_mounts: cgroup::Mounts,
    hooks: Hooks,
    closing: Cell<bool>,
    terminating: Cell<bool>,
    restarts: Cell<u32>,
    counter: Cell<u64>,
    keeper: Rc<Link>,
    keeper_pid: Cell<u32>,
    over: watch::Sender<bool>,
}

/// An id that is taken.
#[derive(Debug)]
enum Slot {
    Creating,
    Here(Rc<Container>),
}

impl Monitor {
    /// A monitor without containers. Starts the relay's thread.
    ///
    /// # Errors
    /// If the thread or the directories below the run directory cannot be made.
    pub fn new(config: Config, keeper: Rc<Link>, keeper_pid: u32) -> Result<Rc<Self>, Error> {
        let reaper = Rc::new(Reaper::default());
        let runtime = Runtime::new(&config, Rc::clone(&reaper));
        let (relay, notices) = logging::relay()?;
        let monitor = Self {
            events: EventLog::default(),
            relay,
            notices: RefCell::new(Some(notices)),
            log_total: Cell::default(),
            runtime,
            reaper,
            seccomp: Seccomp::new(&config),
            containers: RefCell::default(),
            created_or_not: Notify::new(),
            namespaces: Sandboxes::new(&config.run_dir),
            inits: RefCell::default(),
            killed: RefCell::default(),
            unpinned: RefCell::default(),
            execs: RefCell::default(),
            cleanups: RefCell::default(),
            oom_ledger: oom::Ledger::default(),
            fd_slots: Rc::default(),
            cgroup_mounts: cgroup::Mounts::read(),
            hooks: Hooks::default(),
            closing: Cell::new(false),
            terminating: Cell::new(false),
            restarts: Cell::new(0),
            counter: Cell::new(0),
            keeper,
            keeper_pid: Cell::new(keeper_pid),
            over: watch::channel(false).0,
            config,
        };
        for directory in monitor.own_dirs() {
            make_private_dir(&directory)?;
        }
        Ok(Rc::new(monitor))
    }

    /// The pid that engines know: the keeper's, while it lives; else our own.
    #[must_use]
    pub fn stable_pid(&self) -> u32 {
        match self.keeper_pid.get() {
            0 => std::process::id(),
            pid => pid,
        }
    }

    /// Takes note that the keeper is gone.
    pub fn keeper_is_gone(&self) {
        self.keeper_pid.set(0);
    }

    /// A container that is known, in whatever phase but `Creating`.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`], or [`Error::WrongState`] while it is created.
    pub fn find(&self, id: &ContainerId) -> Result<Rc<Container>, Error> {
        match self.containers.borrow().get(id) {
            Some(Slot::Here(container)) => Ok(Rc::clone(container)),
            Some(Slot::Creating) => Err(Error::WrongState {
                id: id.to_string(),
                phase: Phase::Creating,
                reason: "wait until its create has been answered",
            }),
            None => Err(Error::UnknownContainer(id.to_string())),
        }
    }

    /// As [`Monitor::find`], but waits for a create that is under way.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`], also if the create fails.
    pub async fn settled(&self, id: &ContainerId) -> Result<Rc<Container>, Error> {
        loop {
            let settled = self.created_or_not.notified();
            match self.state(id)? {
                Some(container) => return Ok(container),
                None => settled.await,
            }
        }
    }

    /// A container whose process is there.
    ///
    /// # Errors
    /// As [`Monitor::find`], and [`Error::HasExited`].
    pub fn living(&self, id: &ContainerId) -> Result<Rc<Container>, Error> {
        let container = self.find(id)?;
        match container.phase() {
            Phase::Draining | Phase::Exited | Phase::Gone => Err(Error::HasExited(id.to_string())),
            _ => Ok(container),
        }
    }

    /// A container, or `None` while it is being created.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`].
    pub fn state(&self, id: &ContainerId) -> Result<Option<Rc<Container>>, Error> {
        match self.containers.borrow().get(id) {
            Some(Slot::Creating) => Ok(None),
            Some(Slot::Here(container)) => {
                self.notice_foreign_start(container);
                Ok(Some(Rc::clone(container)))
            }
            None => Err(Error::UnknownContainer(id.to_string())),
        }
    }

    /// All containers and those on their way, by id.
    #[must_use]
    pub fn list(&self) -> Vec<(ContainerId, Option<Rc<Container>>)> {
        let containers = self.containers.borrow();
        let entries = containers.iter().map(|(id, slot)| match slot {
            Slot::Creating => (id.clone(), None),
            Slot::Here(container) => {
                self.notice_foreign_start(container);
                (id.clone(), Some(Rc::clone(container)))
            }
        });
        entries.collect()
    }

    /// Makes the attach socket of a container, if it is not there.
    ///
    /// # Errors
    /// If the container is gone or the socket cannot be made.
    pub async fn attach(&self, id: &ContainerId, attach: Attach) -> Result<(), Error> {
        let stream = self.living(id)?.stream()?;
        let answer = ask(|reply| self.relay.attach(stream, attach, reply)).await?;
        Ok(answer?)
    }

    /// The counters of a container's streams, and whether they are the last ones.
    ///
    /// # Errors
    /// If there is no such container, or its counters were lost.
    pub async fn stream_stats(&self, id: &ContainerId) -> Result<(StreamStats, bool), Error> {
        let container = self.find(id)?;
        if let (Some(streams), None) = (&container.streams, container.exit()) {
            let answer = ask(|reply| self.relay.stats(streams.relay, reply)).await?;
            if let Some(stats) = answer {
                return Ok((stats, false));
            }
            // They have just ended.
            container.recorded().await;
        }
        let last = container.final_stats.borrow().clone();
        last.map(|stats| (*stats, true)).ok_or_else(|| Error::HasExited(id.to_string()))
    }

    /// How many execs are running.
    #[must_use]
    pub fn execs(&self) -> usize {
        self.execs.borrow().len()
    }

    /// How many monitors this pod had before this one.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts.get()
    }

    /// Closes a container's log files and opens their paths again.
    ///
    /// # Errors
    /// If the container is gone or a file cannot be opened.
    pub async fn reopen_logs(&self, id: &ContainerId) -> Result<(), Error> {
        let stream = self.living(id)?.stream()?;
        let answer = ask(|reply| self.relay.reopen_logs(stream, reply)).await?;
        Ok(answer?)
    }

    /// Sets the size of a container's terminal, in characters.
    ///
    /// # Errors
    /// [`Error::NoTerminal`] if it has none.
    pub fn set_window_size(&self, id: &ContainerId, width: u16, height: u16) -> Result<(), Error> {
        let container = self.living(id)?;
        let terminal = container.streams.as_ref().and_then(|s| s.terminal.as_ref());
        let terminal = terminal.ok_or_else(|| Error::NoTerminal(id.to_string()))?;
        let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|error| Error::io(format!("resize the terminal of {id}"), error))
    }

    /// Makes the socket for descriptors, if it is not there; its path.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn start_fd_socket(&self) -> Result<PathBuf, Error> {
        self.refuse_if_closing()?;
        self.fd_slots.start(&self.config.run_dir)
    }

    /// Takes descriptors that came over that socket.
    ///
    /// # Errors
    /// As [`FdSlots::take`].
    pub fn take_fds(&self, slots: &[u64]) -> Result<Vec<OwnedFd>, Error> {
        self.fd_slots.take(slots)
    }

    /// Waits until the pod is over.
    pub async fn ended(&self) {
        // An error would mean that the sender, a field of `self`, is gone.
        if self.over.subscribe().wait_for(|over| *over).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn refuse_if_closing(&self) -> Result<(), Error> {
        if self.closing.get() { Err(Error::ShuttingDown) } else { Ok(()) }
    }

    /// Waits until no create is under way.
    async fn creates_done(&self) {
        loop {
            let done = self.created_or_not.notified();
            if !self.containers.borrow().values().any(|slot| matches!(slot, Slot::Creating)) {
                return;
            }
            done.await;
        }
    }

    /// Bounds the memory of exits that nobody deletes here.
    fn forget_old_exits(&self) {
        let mut containers = self.containers.borrow_mut();
        let mut exited = containers
            .iter()
            .filter_map(|(id, slot)| match slot {
                Slot::Here(container) => container.exit().map(|exit| (exit.at_ns, id.clone())),
                Slot::Creating => None,
            })
            .collect::<Vec<_>>();
        if exited.len() > EXITED_KEPT_MAX {
            exited.sort();
            for (_, id) in exited.drain(..exited.len() - EXITED_KEPT_MAX) {
                containers.remove(&id);
                self.unsave(&id);
            }
        }
    }

    fn sockets_dir(&self) -> PathBuf {
        self.config.run_dir.join("sockets")
    }

    /// Where streaming clients reach a container's attach socket: one for all of
    /// them, beside the one that the engine names.
    #[must_use]
    pub fn streaming_socket(&self, id: &ContainerId) -> PathBuf {
        self.sockets_dir().join(format!("{id}.stream"))
    }

    fn execs_dir(&self) -> PathBuf {
        self.config.run_dir.join("execs")
    }

    fn containers_dir(&self) -> PathBuf {
        self.config.run_dir.join("containers")
    }

    /// The directories below the run directory that are ours alone.
    fn own_dirs(&self) -> [PathBuf; 5] {
        let in_run_dir = |name| self.config.run_dir.join(name);
        let namespaces = in_run_dir(NAMESPACES_DIRECTORY);
        [self.sockets_dir(), self.execs_dir(), self.containers_dir(), namespaces, in_run_dir("bundles")]
    }

    /// A file name that this monitor uses once.
    fn unique(&self, what: &str) -> String {
        self.counter.set(self.counter.get() + 1);
        format!("{what}-{}-{}", std::process::id(), self.counter.get())
    }
}

/// Asks the relay and waits for its answer.
async fn ask<T: Send + 'static>(question: impl FnOnce(relay::Reply<T>)) -> Result<T, Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    question(Box::new(move |answer| {
        if sender.send(answer).is_err() {
            ::log::debug!("nobody waited for an answer of the relay");
        }
    }));
    receiver.await.map_err(|_| Error::Internal("the relay did not answer"))
}

fn make_private_dir(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::io(format!("make the directory {}", path.display()), error))
}
