//! What survives a monitor: a file per container in the run directory, and the
//! container's streams in the keeper.
//!
//! The next monitor reads the files, takes the streams back, and follows every
//! container as if nothing had happened. How a container ended meanwhile it
//! hears from the keeper, whose child the container became.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::keeper::{ChildExit, ToKeeper};
use crate::monitor::container::{Container, Streams};
use crate::monitor::create::{Ends, open_logs, remove_stale};
use crate::monitor::error::Error;
use crate::monitor::event::Happening;
use crate::monitor::exec_leaf::Home;
use crate::monitor::exit::{ExitCause, ExitFiles, ExitRecord, publish};
use crate::monitor::id::ContainerId;
use crate::monitor::life::Phase;
use crate::monitor::log::limit::LogLimits;
use crate::monitor::log::{LogConfig, LogSet};
use crate::monitor::reaper::Child;
use crate::monitor::relay::{Open, Output, StdinGuard, StreamStats};
use crate::monitor::runtime::{CallOptions, pipe};
use crate::monitor::{Monitor, Slot};

/// Names under which the keeper holds a container's streams: `<id>/<name>`.
pub(super) const STDIN: &str = "stdin";
pub(super) const STDOUT: &str = "stdout";
pub(super) const STDERR: &str = "stderr";
pub(super) const TERMINAL: &str = "terminal";
/// And descriptors that shall stay open until its exit: this and a number.
const HELD: &str = "held-";

/// What is known of a container, in a form that outlives this process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// Its id.
    pub id: String,
    /// Its first process.
    pub pid: u32,
    /// When that process was started, in clock ticks since boot (proc(5), field
    /// 22 of `stat`): a pid alone may have been given to another process since.
    pub start_ticks: u64,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether clients can write to its standard input.
    pub stdin: bool,
    /// Whether that is over with the first of them (CRI: `stdinOnce`); `None` if the
    /// engine has not said.
    #[serde(default)]
    pub stdin_once: Option<bool>,
    /// When its create was answered: Unix time in nanoseconds.
    pub created_at_ns: u64,
    /// When our `start` was answered; 0 if it was not us.
    pub started_at_ns: u64,
    /// Files that tell of its exit.
    pub files: ExitFiles,
    /// Where its output goes.
    pub logs: Vec<LogConfig>,
    /// How its log is limited.
    #[serde(default)]
    pub limits: LogLimits,
    /// Run after its exit.
    pub cleanup: Vec<String>,
    /// How the OCI runtime is called for it.
    pub options: CallOptions,
    /// Where its execs get cgroups of their own, if they can.
    #[serde(default)]
    pub execs_home: Option<Home>,
    /// The OOM counter's file and its baseline.
    pub oom: Option<(PathBuf, u64)>,
    /// How its process ended, from the moment that this is known.
    pub ended: Option<(ExitCause, u64)>,
    /// Its exit, once recorded.
    pub exit: Option<ExitRecord>,
    /// Files of its exit that could not be written yet.
    #[serde(default)]
    pub unwritten: Option<Box<ExitFiles>>,
    /// The counters of its streams at their end.
    #[serde(default)]
    pub streams: Option<Box<StreamStats>>,
}

/// What the keeper held for us.
#[derive(Debug, Default)]
pub struct Kept {
    /// How many monitors there were before.
    pub restarts: u32,
    /// Streams, by the name that [`Monitor::keep`] gave them.
    pub fds: HashMap<String, OwnedFd>,
    /// How children ended whose status no monitor has recorded.
    pub exits: Vec<ChildExit>,
}

impl Monitor {
    /// For the relay: when it has closed a container's standard input, the keeper
    /// has to, too, or the container would never see the end of it.
    pub(super) fn stdin_guard(&self, id: &ContainerId, ends: &Ends) -> Option<StdinGuard> {
        if ends.stdin.is_none() || ends.terminal.is_some() {
            return None;
        }
        let (guard, closed) = oneshot::channel::<Infallible>();
        let (keeper, name) = (Rc::clone(&self.keeper), format!("{id}/{STDIN}"));
        tokio::task::spawn_local(async move {
            // Nothing is ever sent: the guard is dropped.
            let Err(_) = closed.await;
            if let Err(error) = keeper.send(&ToKeeper::Forget { name: &name }) {
                ::log::debug!("the keeper goes on holding {name}: {error}");
            }
        });
        Some(Box::new(guard))
    }

    /// Hands a copy of a container's `stream` to the keeper.
    pub(super) fn keep(&self, id: &ContainerId, stream: &str, fd: &OwnedFd) {
        let name = format!("{id}/{stream}");
        if let Err(error) = self.keeper.send(&ToKeeper::Keep { name: &name, fd: fd.as_fd() }) {
            ::log::warn!("{name} would not survive a crash of this monitor: {error}");
        }
    }

    /// Keeps `fds` open until `container` has exited, whatever becomes of this process.
    pub(super) fn hold_open(&self, container: &Container, fds: Vec<OwnedFd>) {
        for (number, fd) in fds.iter().enumerate() {
            self.keep(&container.id, &format!("{HELD}{number}"), fd);
        }
        container.held.replace(fds);
    }

    /// Lets go of a container's streams, which were read to their end, and of what
    /// was held open for it.
    pub(super) fn release(&self, container: &Container) {
        self.seccomp.close(&container.id);
        let held = (0..container.held.take().len()).map(|number| format!("{HELD}{number}"));
        held.for_each(|name| self.forget(&container.id, &name));
        self.forget_streams(&container.id);
        let pid = container.child.pid();
        if let Err(error) = self.keeper.send(&ToKeeper::Seen { pid }) {
            ::log::debug!("the keeper goes on remembering how {pid} ended: {error}");
        }
    }

    /// Has the keeper let go of a container's streams.
    pub(super) fn forget_streams(&self, id: &ContainerId) {
        [STDIN, STDOUT, STDERR, TERMINAL].iter().for_each(|stream| self.forget(id, stream));
    }

    fn forget(&self, id: &ContainerId, stream: &str) {
        let name = format!("{id}/{stream}");
        if let Err(error) = self.keeper.send(&ToKeeper::Forget { name: &name }) {
            ::log::debug!("the keeper goes on holding {name}: {error}");
        }
    }

    /// Writes what is known of `container` to its file.
    pub(super) fn save(&self, container: &Container) {
        let path = self.saved_path(&container.id);
        let saved = Saved {
            started_at_ns: container.started_at_ns(),
            limits: container.log_limits(),
            ended: container.ended.borrow().clone(),
            exit: container.exit().map(|exit| (*exit).clone()),
            unwritten: container.unwritten.borrow().clone(),
            streams: container.final_stats.borrow().clone(),
            ..container.saved.clone()
        };
        let written =
            serde_json::to_vec(&saved).map_err(io::Error::other).and_then(|text| publish(&path, &text));
        if let Err(error) = written {
            let path = path.display();
            ::log::error!("{path}: {error}; after a crash of this monitor the container would not be known");
        }
    }

    /// Removes the file of a container that is forgotten.
    pub(super) fn unsave(&self, id: &ContainerId) {
        if let Err(error) = remove_stale(&self.saved_path(id)) {
            ::log::warn!("{error}");
        }
    }

    fn saved_path(&self, id: &ContainerId) -> PathBuf {
        self.containers_dir().join(format!("{id}.json"))
    }

    /// Takes over from an earlier monitor: its containers, their streams, their
    /// exits.
    pub fn take_over(self: &Rc<Self>, mut kept: Kept) {
        self.restarts.set(kept.restarts);
        self.hear_relay();
        self.resume_log_total();
        if kept.restarts > 0 {
            self.events.add(None, Happening::MonitorRestarted(kept.restarts));
        }
        for saved in self.read_saved() {
            let id = saved.id.clone();
            match self.resume(saved, &mut kept) {
                Ok(()) => ::log::info!("container {id} is followed again"),
                Err(error) => ::log::error!("container {id} cannot be followed again: {error}"),
            }
        }
        // After the containers: what is found there matters for them.
        self.resume_sandboxes(&mut kept);
        // Streams and statuses of execs and of containers that were being created: nobody asks any more.
        for name in kept.fds.keys() {
            if let Err(error) = self.keeper.send(&ToKeeper::Forget { name }) {
                ::log::debug!("the keeper goes on holding {name}: {error}");
            }
        }
        for exit in kept.exits {
            if let Err(error) = self.keeper.send(&ToKeeper::Seen { pid: exit.pid }) {
                ::log::debug!("the keeper goes on remembering how {} ended: {error}", exit.pid);
            }
        }
    }

    fn read_saved(&self) -> Vec<Saved> {
        let Ok(entries) = std::fs::read_dir(self.containers_dir()) else { return Vec::new() };
        let read = |path: PathBuf| {
            let parsed = std::fs::read(&path)
                .and_then(|text| serde_json::from_slice::<Saved>(&text).map_err(io::Error::other));
            parsed.map_err(|error| ::log::error!("cannot read {}: {error}", path.display())).ok()
        };
        let mut saved = entries.flatten().filter_map(|entry| read(entry.path())).collect::<Vec<_>>();
        saved.sort_by_key(|saved| saved.created_at_ns);
        saved
    }

    fn resume(self: &Rc<Self>, saved: Saved, kept: &mut Kept) -> Result<(), Error> {
        let id = ContainerId::new(&saved.id)?;
        let position = kept.exits.iter().position(|exit| exit.pid == saved.pid);
        let told = position.map(|position| kept.exits.swap_remove(position));
        if let Some(record) = saved.exit.clone() {
            let child = Child::gone(saved.pid);
            let container = Rc::new(Container::new(id.clone(), saved, child, None));
            container.resume_as(Phase::Exited);
            container.tell_exit(record);
            self.containers.borrow_mut().insert(id, Slot::Here(Rc::clone(&container)));
            if container.unwritten.borrow().is_some() {
                tokio::task::spawn_local(Rc::clone(self).write_missing_files(container));
            }
            return Ok(());
        }
        if let Err(error) = self.seccomp.open_for(&id, &saved.bundle) {
            ::log::error!("{error}; no exec in container {id} will start");
        }
        // Whatever becomes of its streams, its exit has to be told.
        let streams = self.resume_streams(&id, &saved, kept).inspect_err(|error| {
            ::log::error!("container {id}: its streams cannot be read any more: {error}");
            self.events.add(Some(&id), Happening::LogFailed(error.to_string()));
        });
        let held = (0..).map_while(|number| kept.fds.remove(&format!("{id}/{HELD}{number}"))).collect();
        let child = match &saved.ended {
            Some(_) => Child::gone(saved.pid),
            None => self.reaper.resume(saved.pid, saved.start_ticks, told),
        };
        let phase = if saved.started_at_ns == 0 { Phase::Created } else { Phase::Running };
        let container = Rc::new(Container::new(id.clone(), saved, child, streams.ok()));
        container.resume_as(phase);
        container.held.replace(held);
        self.containers.borrow_mut().insert(id, Slot::Here(Rc::clone(&container)));
        tokio::task::spawn_local(Rc::clone(self).follow(container));
        Ok(())
    }

    /// A container's streams, as they were. A log that cannot be opened holds up neither
    /// them nor the container.
    fn resume_streams(&self, id: &ContainerId, saved: &Saved, kept: &mut Kept) -> Result<Streams, Error> {
        let ends = take_ends(id, saved.stdin, kept)?;
        let logs = open_logs(&saved.logs, id).inspect_err(|error| {
            ::log::error!("container {id}: what it prints is not logged any more: {error}");
            self.events.add(Some(id), Happening::LogFailed(error.to_string()));
        });
        let logged = logs.is_ok();
        let logs = logs.unwrap_or_else(|_| LogSet::none());
        let stdin_guard = self.stdin_guard(id, &ends);
        let open = Open { output: ends.output, stdin: ends.stdin, stdin_guard, logs, capture_max: None };
        let streams = Streams { relay: self.relay.open(open)?, terminal: ends.terminal, logged };
        self.begin_log_limits(streams.relay, saved.limits);
        Ok(streams)
    }
}

/// A container's streams out of what the keeper held. One that was never kept is
/// replaced by an end of file.
fn take_ends(id: &ContainerId, stdin: bool, kept: &mut Kept) -> Result<Ends, Error> {
    let mut take = |name: &str| kept.fds.remove(&format!("{id}/{name}"));
    if let Some(master) = take(TERMINAL) {
        return Ends::of_terminal(master, stdin);
    }
    let mut output = |name: &str| take(name).map_or_else(|| pipe().map(|(read, _)| read), Ok);
    let output = Output::Pipes { stdout: output(STDOUT)?, stderr: output(STDERR)? };
    Ok(Ends { output, stdin: take(STDIN), terminal: None })
}
