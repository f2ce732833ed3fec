//! One container: what is known of it, and its way from created to exited.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, SetOnce, oneshot};

use crate::limits::{CLEANUP_PARTING_MAX, DRAIN_GRACE, DRAIN_MAX, EXIT_FILE_RETRY_MAX, EXIT_FILE_RETRY_MIN};
use crate::monitor::cgroup::OomCounter;
use crate::monitor::error::Error;
use crate::monitor::event::Happening;
use crate::monitor::exit::{ExitCause, ExitFiles, ExitRecord};
use crate::monitor::hooks::OfContainer;
use crate::monitor::id::ContainerId;
use crate::monitor::life::{self, Effect, Input, Phase};
use crate::monitor::log::limit::LogLimits;
use crate::monitor::oom::OomTrack;
use crate::monitor::reaper::Child;
use crate::monitor::relay::{Drained, Relay, StreamId, StreamStats};
use crate::monitor::saved::Saved;
use crate::monitor::{Monitor, Slot};
use crate::sys::process::now_ns;

/// A container that the OCI runtime has created.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// What was known of it at its creation.
    pub saved: Saved,
    /// Its first process.
    pub child: Child,
    pub(super) streams: Option<Streams>,
    pub(super) held: RefCell<Vec<OwnedFd>>,
    pub(super) ended: RefCell<Option<(ExitCause, u64)>>,
    pub(super) oom: Option<OomTrack>,
    exit: SetOnce<Rc<ExitRecord>>,
    /// The counters of its streams, once these have ended.
    pub(super) final_stats: RefCell<Option<Box<StreamStats>>>,
    /// Files of its exit that could not be written yet.
    pub(super) unwritten: RefCell<Option<Box<ExitFiles>>>,
    /// Whose `start` has its turn: another one at the same time would run the hooks again.
    pub(super) start_turn: Mutex<()>,
    /// Held while the OCI runtime's `start` is under way, whose end is told before the exit.
    pub(super) starting: Mutex<()>,
    /// What hooks need to know of it.
    pub(super) hooks: OfContainer,
    phase: Cell<Phase>,
    started_at_ns: Cell<u64>,
    log_limits: Cell<LogLimits>,
}

/// A container's streams.
#[derive(Debug)]
pub(super) struct Streams {
    /// In the relay.
    pub(super) relay: StreamId,
    /// The master of its terminal, for resizes.
    pub(super) terminal: Option<OwnedFd>,
    /// Whether its logs are open. If not, they miss what is read.
    pub(super) logged: bool,
}

impl Container {
    pub(super) fn new(id: ContainerId, saved: Saved, child: Child, streams: Option<Streams>) -> Self {
        Self {
            id,
            child,
            streams,
            held: RefCell::default(),
            ended: RefCell::new(saved.ended.clone()),
            oom: saved.oom.clone().map(|(file, base)| OomTrack::new(OomCounter::resume(file, base))),
            exit: SetOnce::new(),
            final_stats: RefCell::new(saved.streams.clone()),
            unwritten: RefCell::new(saved.unwritten.clone()),
            start_turn: Mutex::default(),
            starting: Mutex::default(),
            hooks: OfContainer::default(),
            phase: Cell::new(Phase::Created),
            started_at_ns: Cell::new(saved.started_at_ns),
            log_limits: Cell::new(saved.limits),
            saved,
        }
    }

    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// When our `start` was answered, Unix time in nanoseconds; 0 if it was not us.
    #[must_use]
    pub fn started_at_ns(&self) -> u64 {
        self.started_at_ns.get()
    }

    /// Its exit, once recorded.
    #[must_use]
    pub fn exit(&self) -> Option<Rc<ExitRecord>> {
        self.exit.get().cloned()
    }

    /// Waits until its exit has been recorded.
    pub async fn recorded(&self) -> Rc<ExitRecord> {
        Rc::clone(self.exit.wait().await)
    }

    /// Tells it to whoever waits.
    pub(super) fn tell_exit(&self, record: ExitRecord) {
        if self.exit.set(Rc::new(record)).is_err() {
            ::log::error!("container {}: it has exited twice", self.id);
        }
    }

    /// Path of its first log file, if it has one.
    #[must_use]
    pub fn log_path(&self) -> Option<&Path> {
        self.saved.logs.iter().map(|log| log.path.as_path()).find(|path| !path.as_os_str().is_empty())
    }

    /// Its streams in the relay.
    ///
    /// # Errors
    /// [`Error::HasExited`] if they are closed.
    pub(super) fn stream(&self) -> Result<StreamId, Error> {
        let streams = self.streams.as_ref().ok_or_else(|| Error::HasExited(self.id.to_string()))?;
        Ok(streams.relay)
    }

    /// Puts it where an earlier monitor, or the OCI runtime, has brought it.
    pub(super) fn resume_as(&self, phase: Phase) {
        self.phase.set(phase);
    }

    pub(super) fn set_started(&self) {
        self.started_at_ns.set(now_ns());
    }

    /// How its log is limited now.
    pub(super) fn log_limits(&self) -> LogLimits {
        self.log_limits.get()
    }

    pub(super) fn set_log_limits(&self, limits: LogLimits) {
        self.log_limits.set(limits);
    }

    /// Takes one step of its life.
    ///
    /// # Errors
    /// [`Error::WrongState`] if the life cycle refuses it.
    pub fn step(&self, input: Input) -> Result<Effect, Error> {
        let (next, effect) = life::step(self.phase.get(), input).map_err(|reason| Error::WrongState {
            id: self.id.to_string(),
            phase: self.phase.get(),
            reason,
        })?;
        self.phase.set(next);
        Ok(effect)
    }

    /// As [`Container::step`], for what the monitor itself saw and nobody can refuse.
    fn note(&self, input: Input) {
        if let Err(error) = self.step(input) {
            ::log::error!("{error}");
        }
    }
}

/// Waits until the streams have been read to their end, at most [`DRAIN_MAX`].
/// `None` if the relay did not answer by then.
pub(super) async fn drain(relay: &Relay, stream: StreamId, grace: Duration) -> Option<Drained> {
    let (sender, receiver) = oneshot::channel();
    let reply = move |drained| {
        if sender.send(drained).is_err() {
            ::log::warn!("a stream was drained after its time-out");
        }
    };
    relay.finish(stream, grace, Box::new(reply));
    tokio::time::timeout(DRAIN_MAX, receiver).await.ok()?.ok()
}

/// What is left of `files` to write, if some have failed.
fn left_of(files: &ExitFiles, failed: &[(PathBuf, io::Error)]) -> Option<Box<ExitFiles>> {
    let left_of = |paths: &[PathBuf]| {
        let has_failed = |path: &&PathBuf| failed.iter().any(|(failed, _)| failed == *path);
        paths.iter().filter(has_failed).cloned().collect()
    };
    let left = ExitFiles { exit: left_of(&files.exit), oom: left_of(&files.oom) };
    (!failed.is_empty()).then(|| Box::new(left))
}

impl Monitor {
    /// Follows `container` to its exit and records it: streams to their end, OOM
    /// verdict, files, event, whoever waits. In this order.
    pub(super) async fn follow(self: Rc<Self>, container: Rc<Container>) {
        self.watch_oom(&container);
        let (cause, at_ns) = self.end_of(&container).await;
        container.note(Input::Ended);
        let kills = self.oom_kills(&container);
        // From here on this process is the only one who knows: write it down before the streams are
        // drained, which may take a while.
        container.ended.replace(Some((cause.clone(), at_ns)));
        self.save(&container);
        let drained = match &container.streams {
            Some(streams) => drain(&self.relay, streams.relay, DRAIN_GRACE).await,
            None => None,
        };
        let logged = container.streams.as_ref().is_some_and(|streams| streams.logged);
        let log_complete = logged && drained.as_ref().is_some_and(|drained| drained.complete);
        container.final_stats.replace(drained.map(|drained| Box::new(drained.stats)));
        let record = ExitRecord { cause, oom_killed: kills > 0, at_ns, log_complete };
        let failed = container.saved.files.write(&record);
        for (path, error) in &failed {
            ::log::error!("container {}: cannot write exit file {}: {error}", container.id, path.display());
        }
        container.unwritten.replace(left_of(&container.saved.files, &failed));
        container.note(Input::Recorded);
        ::log::info!("container {} exited: {record:?}", container.id);
        if record.oom_killed {
            self.events.add(Some(&container.id), Happening::OomKilled);
        }
        self.events.add(Some(&container.id), Happening::Exited(record.clone()));
        // Before anyone is told, so that it is their first turn; it runs after all of this.
        self.hooks_on_exit(&container);
        container.tell_exit(record);
        self.save(&container);
        self.release(&container);
        self.run_cleanup(&container);
        if container.unwritten.borrow().is_some() {
            tokio::task::spawn_local(Rc::clone(&self).write_missing_files(container));
        }
        self.forget_old_exits();
        self.end_if_forgotten();
    }

    async fn end_of(&self, container: &Container) -> (ExitCause, u64) {
        if let Some(ended) = container.ended.borrow().clone() {
            return ended;
        }
        let exit = container.child.exited().await;
        // A short command ends before the runtime that started it has returned.
        drop(container.starting.lock().await);
        (exit.into(), exit.map_or_else(now_ns, |exit| exit.at_ns))
    }

    /// Starts the cleanup command that came with the create request.
    fn run_cleanup(&self, container: &Container) {
        let Some((program, arguments)) = container.saved.cleanup.split_first() else { return };
        let mut command = std::process::Command::new(program);
        command.args(arguments).stdin(std::process::Stdio::null());
        self.runtime.set_apart(&mut command);
        match command.spawn().and_then(|child| self.reaper.adopt_own(child.id())) {
            Ok(child) => {
                ::log::debug!("container {}: cleanup command is pid {}", container.id, child.pid());
                let mut cleanups = self.cleanups.borrow_mut();
                cleanups.retain(|cleanup| !cleanup.has_exited());
                cleanups.push(child);
            }
            Err(error) => ::log::error!("container {}: cannot run {program:?}: {error}", container.id),
        }
    }

    /// Waits for the cleanup commands, as long as the end of a pod may.
    pub(super) async fn cleanups_done(&self) {
        let cleanups = self.cleanups.take();
        let ended = async {
            for cleanup in &cleanups {
                cleanup.exited().await;
            }
        };
        if tokio::time::timeout(CLEANUP_PARTING_MAX, ended).await.is_err() {
            ::log::warn!("the pod ends before a cleanup command has");
        }
    }

    /// Writes the files of an exit that could not be written when it was recorded, unless
    /// the container is forgotten before they can be.
    pub(super) async fn write_missing_files(self: Rc<Self>, container: Rc<Container>) {
        let mut pause = EXIT_FILE_RETRY_MIN;
        while container.unwritten.borrow().is_some() {
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(EXIT_FILE_RETRY_MAX);
            let is_known = matches!(
                self.containers.borrow().get(&container.id),
                Some(Slot::Here(known)) if Rc::ptr_eq(known, &container)
            );
            let (Some(record), true) = (container.exit(), is_known) else { return };
            let Some(missing) = container.unwritten.take() else { return };
            let failed = missing.write(&record);
            container.unwritten.replace(left_of(&missing, &failed));
            if failed.len() < missing.exit.len() + missing.oom.len() {
                self.save(&container);
            }
        }
        ::log::info!("container {}: its exit files are written at last", container.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each container of a pod costs this for as long as its record is kept.
    #[test]
    fn what_is_known_of_a_container_fits_in_a_kibibyte() {
        assert!(size_of::<Container>() <= 1024, "{} bytes", size_of::<Container>());
    }
}
