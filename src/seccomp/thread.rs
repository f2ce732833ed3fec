//! The thread that all of a pod's seccomp lives on, and how others speak to it.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

use super::arrival::Door;
use super::broker::Broker;
use super::{linger, reload, rules};

type Job = Box<dyn FnOnce(&Rc<Broker>) + Send>;

/// What is plugged into a broker at its start, on its thread: plugins of other
/// processes are, by whoever knows their language.
pub type Extension = Box<dyn FnOnce(Rc<Broker>) + Send>;

/// What a broker is told at its start.
#[derive(Debug)]
pub struct Options {
    /// What the pod is called where no engine says: the run directory's name.
    pub pod: String,
    /// Where runtimes connect.
    pub doors: Vec<Door>,
    /// Rules: a file, or a directory of `*.json`.
    pub rules: Option<PathBuf>,
    /// Where containers are ended.
    pub stops: mpsc::UnboundedSender<StopRequest>,
}

/// A container is to be ended, because a rule says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRequest {
    /// Its id.
    pub container: String,
    /// What it did.
    pub reason: String,
}

/// A way to the broker from other threads. The broker ends when it is dropped.
#[derive(Debug, Clone)]
pub struct Handle {
    jobs: mpsc::UnboundedSender<Job>,
}

/// Starts the thread.
///
/// # Errors
/// If there can be no other thread, or no event loop.
pub fn start(options: Options, extension: Extension) -> io::Result<Handle> {
    let (jobs, mut inbox) = mpsc::unbounded_channel::<Job>();
    std::thread::Builder::new().name("seccomp".into()).spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().on_thread_park(linger::before_park);
        let runtime = match runtime.build_local(tokio::runtime::LocalOptions::default()) {
            Ok(runtime) => runtime,
            Err(error) => {
                ::log::error!("cannot start the event loop of seccomp's broker: {error}");
                return;
            }
        };
        runtime.block_on(async move {
            let broker = Broker::new(&options.pod, options.stops);
            if let Err(error) = linger::begin(&broker) {
                ::log::warn!("seccomp notifications will take longer: {error}");
            }
            let rules = options.rules.unwrap_or_else(|| rules::DIRECTORY.into());
            let watch = reload::Watch::begin(Rc::clone(&broker), rules);
            tokio::task::spawn_local(watch.go_on());
            extension(Rc::clone(&broker));
            for door in options.doors {
                broker.open(door);
            }
            while let Some(job) = inbox.recv().await {
                job(&broker);
            }
        });
    })?;
    Ok(Handle { jobs })
}

impl Handle {
    /// Asks the broker something. `None` if its thread has ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Rc<Broker>) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |broker| {
            if sender.send(question(broker)).is_err() {
                ::log::debug!("nobody waited for an answer of seccomp's broker");
            }
        });
        self.jobs.send(job).ok()?;
        receiver.await.ok()
    }

    /// Has the broker do something, sooner or later.
    pub fn tell(&self, what: impl FnOnce(&Rc<Broker>) + Send + 'static) {
        if self.jobs.send(Box::new(what)).is_err() {
            ::log::error!("the thread of seccomp's broker has ended");
        }
    }
}
