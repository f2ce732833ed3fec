//! Threads for what a target can make slow.
//!
//! Reading a target's memory can take for ever: a page of it may belong to a file
//! system that does not answer. The broker's thread must never wait for that, so
//! it is done here, and whoever asked gives up at the deadline. A thread that is
//! stuck counts: for its container, of whose jobs [`SECCOMP_CONTAINER_WORKERS_MAX`]
//! are begun at a time, and for all, of which there are [`SECCOMP_WORKERS_MAX`].

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Semaphore, oneshot};

use crate::limits::{
    SECCOMP_CONTAINER_WORKERS_MAX, SECCOMP_WORKER_REST, SECCOMP_WORKER_STACK_BYTES, SECCOMP_WORKERS_MAX,
};

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one broker. There are none while there is nothing to do.
#[derive(Clone, Default)]
pub struct Workers {
    shared: Arc<Shared>,
    /// What each container may begin, of those that have begun something.
    shares: Rc<RefCell<HashMap<Rc<str>, Weak<Semaphore>>>>,
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
    /// Runs `job` for `container` on a thread of its own kind, as soon as it is the
    /// container's turn. Dropped before it has begun, it is not run.
    ///
    /// # Errors
    /// If no thread can be had, or the job panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        container: &Rc<str>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.share(container).acquire_owned().await.map_err(io::Error::other)?;
        let (sender, receiver) = oneshot::channel();
        let job = move || {
            if !sender.is_closed() && sender.send(job()).is_err() {
                ::log::debug!("nobody waited for a worker");
            }
            drop(turn);
        };
        self.start(Box::new(job))?;
        receiver.await.map_err(|_| io::Error::other("the worker's thread ended without an answer"))
    }

    fn share(&self, container: &Rc<str>) -> Arc<Semaphore> {
        let mut shares = self.shares.borrow_mut();
        if let Some(share) = shares.get(container).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SECCOMP_CONTAINER_WORKERS_MAX));
        shares.insert(Rc::clone(container), Arc::downgrade(&share));
        share
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
    use std::sync::Barrier;

    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::LocalRuntime::new().unwrap().block_on(work)
    }

    #[test]
    fn a_container_whose_jobs_are_stuck_holds_up_itself_only() {
        let workers = Workers::default();
        let (bad, good): (Rc<str>, Rc<str>) = ("bad".into(), "good".into());
        let stuck = Arc::new(Barrier::new(SECCOMP_CONTAINER_WORKERS_MAX + 1));
        block_on(async {
            let jobs: Vec<_> = (0..=SECCOMP_CONTAINER_WORKERS_MAX)
                .map(|_| {
                    let (workers, bad, stuck) = (workers.clone(), Rc::clone(&bad), Arc::clone(&stuck));
                    tokio::task::spawn_local(async move {
                        workers.run(&bad, move || _ = stuck.wait()).await.unwrap();
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            assert_eq!(workers.shared.lock().threads, SECCOMP_CONTAINER_WORKERS_MAX);
            for number in 0..200 {
                assert_eq!(workers.run(&good, move || number).await.unwrap(), number);
            }
            // What nobody waits for any more has no turn.
            jobs[SECCOMP_CONTAINER_WORKERS_MAX].abort();
            stuck.wait();
            for job in jobs.into_iter().take(SECCOMP_CONTAINER_WORKERS_MAX) {
                job.await.unwrap();
            }
            workers.run(&bad, || ()).await.unwrap();
        });
    }

    #[test]
    fn a_job_that_panics_is_an_error_and_no_more() {
        let workers = Workers::default();
        block_on(async {
            let container = "c".into();
            let error = workers.run(&container, || std::panic::resume_unwind(Box::new("on purpose"))).await;
            let error: io::Error = error.unwrap_err();
            assert!(error.to_string().contains("without an answer"));
            assert_eq!(workers.run(&container, || 7).await.unwrap(), 7);
        });
    }
}
