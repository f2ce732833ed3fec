//! Threads for what a target can make slow.
//!
//! Reading a target's memory can take for ever: a page of it may belong to a file
//! system that does not answer. The broker's thread must never wait for that, so
//! it is done here, and whoever asked gives up at the deadline. A thread that is
//! stuck counts, and [`SECCOMP_WORKERS_MAX`] bounds them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::limits::{SECCOMP_WORKER_REST, SECCOMP_WORKER_STACK_BYTES, SECCOMP_WORKERS_MAX};

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one broker. There are none while there is nothing to do.
#[derive(Clone, Default)]
pub struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    resting: usize,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = self.shared.lock();
        f.debug_struct("Workers").field("threads", &queue.threads).field("jobs", &queue.jobs.len()).finish()
    }
}

impl Workers {
    /// Runs `job` on a thread of its own kind. Dropped before it has begun, it is
    /// not run.
    ///
    /// # Errors
    /// If no thread can be had, or the job panicked.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        let job = move || {
            if !sender.is_closed() && sender.send(job()).is_err() {
                ::log::debug!("nobody waited for a worker");
            }
        };
        self.start(Box::new(job))?;
        receiver.await.map_err(|_| io::Error::other("the worker's thread ended without an answer"))
    }

    fn start(&self, job: Job) -> io::Result<()> {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        if queue.resting >= queue.jobs.len() {
            self.shared.more.notify_one();
            return Ok(());
        }
        if queue.threads >= SECCOMP_WORKERS_MAX {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name("seccomp-worker".into());
        let thread = builder.stack_size(SECCOMP_WORKER_STACK_BYTES).spawn(move || shared.work());
        match thread {
            Ok(_detached) => queue.threads += 1,
            // Another will come to it.
            Err(_) if queue.threads > 0 => {}
            Err(error) => {
                queue.jobs.pop_back();
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that panics runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                // A job that panics has dropped its answer, which tells whoever waits.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    ::log::error!("a seccomp worker's job panicked");
                }
                queue = self.lock();
                continue;
            }
            queue.resting += 1;
            let waited = self.more.wait_timeout(queue, SECCOMP_WORKER_REST);
            let (back, time_out) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = back;
            queue.resting -= 1;
            if time_out.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::LocalRuntime::new().unwrap().block_on(work)
    }

    #[test]
    fn a_stuck_job_holds_up_nobody_else() {
        let workers = Workers::default();
        let (unstick, stuck) = std::sync::mpsc::channel::<()>();
        block_on(async {
            let job = workers.clone();
            let first = tokio::task::spawn_local(async move { job.run(move || stuck.recv().is_err()).await });
            tokio::task::yield_now().await;
            for number in 0..200 {
                assert_eq!(workers.run(move || number).await.unwrap(), number);
            }
            drop(unstick);
            assert!(first.await.unwrap().unwrap());
        });
    }

    #[test]
    fn a_job_that_panics_is_an_error_and_no_more() {
        let workers = Workers::default();
        block_on(async {
            let error = workers.run(|| std::panic::resume_unwind(Box::new("on purpose"))).await;
            let error: io::Error = error.unwrap_err();
            assert!(error.to_string().contains("without an answer"));
            assert_eq!(workers.run(|| 7).await.unwrap(), 7);
        });
    }
}
