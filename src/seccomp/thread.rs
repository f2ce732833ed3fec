//! The thread that all of a pod's seccomp lives on, and how others speak to it.

use std::io;
use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

use super::arrival::Door;
use super::broker::Broker;

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
        let runtime = match tokio::runtime::LocalRuntime::new() {
            Ok(runtime) => runtime,
            Err(error) => {
                ::log::error!("cannot start the event loop of seccomp's broker: {error}");
                return;
            }
        };
        runtime.block_on(async move {
            let broker = Rc::new(Broker::default());
            let pod: Rc<str> = options.pod.into();
            extension(Rc::clone(&broker));
            for door in options.doors {
                tokio::task::spawn_local(Rc::clone(&broker).receive(door, Rc::clone(&pod)));
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

    /// As [`Handle::ask`], for callers without an event loop.
    pub fn ask_blocking<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Rc<Broker>) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let job: Job = Box::new(move |broker| drop(sender.send(question(broker))));
        self.jobs.send(job).ok()?;
        receiver.recv().ok()
    }
}
