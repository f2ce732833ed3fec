//! Starting, stopping and deleting containers, and ending the pod.

use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::init;
use crate::limits::{CREATE_PARTING_MAX, KILL_TIMEOUT, RUNTIME_CALL_TIMEOUT};
use crate::monitor::container::Container;
use crate::monitor::error::Error;
use crate::monitor::event::Happening;
use crate::monitor::exit::ExitRecord;
use crate::monitor::fdsocket;
use crate::monitor::hooks;
use crate::monitor::id::ContainerId;
use crate::monitor::life::{Effect, Input, Phase};
use crate::monitor::logging;
use crate::monitor::runtime::{DELETE, Purpose};
use crate::monitor::seccomp;
use crate::monitor::{Monitor, Slot};

/// Longer than any pod is stopped for.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// How a stop ended.
#[derive(Debug)]
pub struct Stopped {
    /// The container's exit.
    pub exit: Rc<ExitRecord>,
    /// Whether SIGKILL was needed.
    pub killed: bool,
}

impl Monitor {
    /// Starts the user's program.
    ///
    /// # Errors
    /// If the life cycle or the OCI runtime refuses.
    pub async fn start(self: &Rc<Self>, id: &ContainerId) -> Result<(), Error> {
        self.refuse_if_closing()?;
        let container = self.find(id)?;
        let _turn = container.start_turn.lock().await;
        if container.step(Input::Start)? != Effect::RunStart {
            return Ok(());
        }
        let started = match self.hooks_before_start(&container).await {
            Ok(()) => {
                self.run_start(&container).await?;
                self.hooks_after_start(&container).await
            }
            refused => refused,
        };
        if started.is_err() {
            // The OCI runtime specification has a container end whose hook failed here.
            self.stop_container(&container, Input::Force, libc::SIGKILL, Duration::ZERO).await?;
        }
        started
    }

    async fn run_start(&self, container: &Container) -> Result<(), Error> {
        // Hooks have had their time: it may have been stopped meanwhile.
        if container.step(Input::Start)? == Effect::RunStart {
            let _under_way = container.starting.lock().await;
            let purpose = Purpose { action: "start", id: &container.id };
            let options = &container.saved.options;
            let run = self.runtime.run(purpose, options, &["start"], RUNTIME_CALL_TIMEOUT).await;
            run.and_then(|()| self.note_start(container))?;
        }
        Ok(())
    }

    fn note_start(&self, container: &Container) -> Result<(), Error> {
        // A stop may have come meanwhile; then that is its phase and stays so.
        if container.step(Input::Started)? == Effect::Tell {
            ::log::info!("container {} started", container.id);
        }
        container.set_started();
        self.save(container);
        self.events.add(Some(&container.id), Happening::Started);
        Ok(())
    }

    /// Sends `signal`, waits at most `grace` for the exit, then sends SIGKILL.
    ///
    /// # Errors
    /// If there is no such container, no such signal, or it survives SIGKILL.
    pub async fn stop(
        self: &Rc<Self>,
        id: &ContainerId,
        signal: u8,
        grace: Duration,
    ) -> Result<Stopped, Error> {
        let signal = signal_of(signal)?;
        let container = self.settled(id).await?;
        self.stop_container(&container, Input::Stop, signal, grace).await
    }

    async fn stop_container(
        self: &Rc<Self>,
        container: &Rc<Container>,
        input: Input,
        signal: i32,
        grace: Duration,
    ) -> Result<Stopped, Error> {
        let mut killed = false;
        match container.step(input)? {
            Effect::Signal => {
                self.events.add(Some(&container.id), Happening::Stopping);
                // A grace time that no clock can add is as long as it takes.
                let deadline = Instant::now().checked_add(grace).unwrap_or_else(|| Instant::now() + YEAR);
                self.hooks_before_stop(container, deadline).await;
                self.send(container, signal)?;
                if tokio::time::timeout_at(deadline, container.child.exited()).await.is_err()
                    && container.step(Input::GraceOver)? == Effect::Kill
                {
                    killed = true;
                    self.send(container, libc::SIGKILL)?;
                }
            }
            Effect::Kill => {
                self.events.add(Some(&container.id), Happening::Stopping);
                killed = true;
                self.send(container, libc::SIGKILL)?;
            }
            _ => {}
        }
        if tokio::time::timeout(KILL_TIMEOUT, container.child.exited()).await.is_err() {
            return Err(Error::Unkillable(container.id.to_string()));
        }
        Ok(Stopped { exit: container.recorded().await, killed })
    }

    fn send(&self, container: &Container, signal: i32) -> Result<(), Error> {
        container.child.signal(signal).map_err(|error| {
            Error::io(
                format!("send a signal to process {} of {}", container.child.pid(), container.id),
                error,
            )
        })
    }

    /// Deletes a container that has exited; with `force` any container.
    ///
    /// # Errors
    /// If it runs and `force` is not given, or the OCI runtime refuses.
    pub async fn delete(self: &Rc<Self>, id: &ContainerId, force: bool) -> Result<(), Error> {
        let container = self.settled(id).await?;
        if force {
            self.stop_container(&container, Input::Force, libc::SIGKILL, Duration::ZERO).await?;
        }
        if container.phase() != Phase::Exited {
            // Refuses with the reason.
            container.step(Input::Delete)?;
        }
        // An engine may have deleted it through the runtime; then there is nothing more to do there.
        if self.runtime.state_dir(id).is_none_or(|directory| directory.exists()) {
            let arguments = [DELETE, "--force"];
            self.runtime
                .run(
                    Purpose { action: DELETE, id },
                    &container.saved.options,
                    &arguments,
                    RUNTIME_CALL_TIMEOUT,
                )
                .await?;
        }
        if container.step(Input::Delete)? == Effect::RunDelete {
            self.containers.borrow_mut().remove(id);
            self.unsave(id);
            self.events.add(Some(id), Happening::Deleted);
            ::log::info!("container {id} deleted");
            self.hooks_after_delete(&container).await;
        }
        Ok(())
    }

    /// Ends every container: a signal, at most `grace`, SIGKILL; all at once. New
    /// containers are refused from now on, and those that are being made are not made.
    /// Returns what could not be ended.
    pub async fn stop_all(self: &Rc<Self>, grace: Duration) -> Vec<Error> {
        self.closing.set(true);
        self.events.add(None, Happening::PodStopping);
        let mut stopping = JoinSet::new();
        let mut stop = |container: Rc<Container>| {
            let monitor = Rc::clone(self);
            stopping.spawn_local(async move {
                let input = if grace.is_zero() { Input::Force } else { Input::Stop };
                monitor.notice_foreign_start(&container);
                monitor.stop_container(&container, input, libc::SIGTERM, grace).await
            });
        };
        let here = self.all();
        here.iter().cloned().for_each(&mut stop);
        // Not waited for: a runtime may take longer than the pod has.
        self.runtime.interrupt();
        self.creates_undone().await;
        let is_new = |container: &Rc<Container>| !here.iter().any(|known| Rc::ptr_eq(known, container));
        self.all().into_iter().filter(is_new).for_each(&mut stop);
        let mut failed = Vec::new();
        while let Some(result) = stopping.join_next().await {
            match result {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => failed.push(error),
                Err(_) => failed.push(Error::Internal("a stop ended in a panic")),
            }
        }
        for exec in self.execs.take().into_values() {
            exec.kill().await;
        }
        failed
    }

    /// Waits until the creates that were interrupted have been undone; of a pod that ends by
    /// a signal not for long.
    async fn creates_undone(&self) {
        let done = self.creates_done();
        if !self.terminating.get() {
            done.await;
        } else if tokio::time::timeout(CREATE_PARTING_MAX, done).await.is_err() {
            ::log::error!("the pod ends before a create that was interrupted has been undone");
        }
    }

    /// Deletes every container from the OCI runtime's books.
    pub async fn delete_all(self: &Rc<Self>) -> Vec<Error> {
        let mut failed = Vec::new();
        for container in self.all() {
            if let Err(error) = self.delete(&container.id, true).await {
                failed.push(error);
            }
        }
        failed
    }

    /// Stops and deletes every container. What is left is [`Monitor::finish`], when
    /// whoever asked has been answered. Can be repeated after a failure.
    ///
    /// # Errors
    /// If something cannot be ended or removed; then the pod goes on, but takes no
    /// new containers.
    pub async fn shutdown(self: &Rc<Self>, grace: Duration) -> Result<(), Error> {
        if let Some(error) = self.stop_all(grace).await.into_iter().next() {
            return Err(error);
        }
        let mut failed = self.delete_all().await;
        self.hooks_before_pod_end().await;
        failed.extend(self.remove_sandboxes().await);
        self.end_hooks_leftovers().await;
        self.cleanups_done().await;
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    /// Ends the pod at once, as engines ask by SIGTERM or SIGINT: SIGKILL for every
    /// container, exits recorded; the OCI runtime's books are the engine's to clean.
    pub fn terminate(self: &Rc<Self>) {
        if self.terminating.replace(true) {
            return;
        }
        ::log::info!("the pod was asked to end");
        let monitor = Rc::clone(self);
        tokio::task::spawn_local(async move {
            monitor.hooks.part();
            let mut failed = monitor.stop_all(Duration::ZERO).await;
            let namespaces = async {
                for container in monitor.all() {
                    monitor.hooks_after_delete(&container).await;
                }
                monitor.hooks_before_pod_end().await;
                let left = monitor.remove_sandboxes().await;
                monitor.end_hooks_leftovers().await;
                left
            };
            // At the same time, since all of it must fit into what the keeper waits.
            let (left, ()) = tokio::join!(namespaces, monitor.cleanups_done());
            failed.extend(left);
            for error in failed {
                ::log::error!("the pod ends all the same: {error}");
            }
            monitor.finish();
        });
    }

    /// Removes the files of the run directory that are ours, and ends the monitor.
    pub fn finish(&self) {
        let run_dir = &self.config.run_dir;
        for directory in self.own_dirs().into_iter().chain([run_dir.join(seccomp::DIRECTORY)]) {
            if let Err(error) = std::fs::remove_dir_all(&directory)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                ::log::warn!("cannot remove {}: {error}", directory.display());
            }
        }
        let sockets = ["conmon.sock", "streaming.sock", fdsocket::NAME, hooks::SOCKET_NAME];
        let of_seccomp = [seccomp::NAME, seccomp::PLUGINS_NAME, seccomp::DESCRIPTORS_NAME];
        let files = ["pidfile", init::FILE_NAME, logging::TOTAL_FILE];
        for file in sockets.into_iter().chain(of_seccomp).chain(files) {
            if let Err(error) = crate::monitor::create::remove_stale(&run_dir.join(file)) {
                ::log::warn!("{error}");
            }
        }
        self.over.send_replace(true);
    }

    /// Engines start containers through the OCI runtime themselves. The runtime
    /// removes its `exec.fifo` then (crun and runc alike), which tells.
    pub(super) fn notice_foreign_start(&self, container: &Container) {
        let started = || {
            let directory = self.runtime.state_dir(&container.id)?;
            Some(directory.exists() && !directory.join("exec.fifo").exists())
        };
        if container.phase() == Phase::Created && started() == Some(true) {
            container.resume_as(Phase::Running);
        }
    }

    fn all(&self) -> Vec<Rc<Container>> {
        let containers = self.containers.borrow();
        let here = containers.values().filter_map(|slot| match slot {
            Slot::Here(container) => Some(Rc::clone(container)),
            Slot::Creating => None,
        });
        here.collect()
    }
}

/// A signal's number, checked; 0 stands for SIGTERM.
fn signal_of(number: u8) -> Result<i32, Error> {
    match i32::from(number) {
        0 => Ok(libc::SIGTERM),
        signal if (1..=31).contains(&signal) => Ok(signal),
        signal if (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal) => Ok(signal),
        _ => Err(Error::Invalid(format!("there is no signal {number}; use 1 to 31 or 34 to 64"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_number() {
        assert_eq!(signal_of(0).unwrap(), libc::SIGTERM);
        assert_eq!(signal_of(9).unwrap(), libc::SIGKILL);
        assert_eq!(signal_of(40).unwrap(), 40);
        for none in [32, 33, 65, 255] {
            assert!(signal_of(none).is_err());
        }
    }
}
