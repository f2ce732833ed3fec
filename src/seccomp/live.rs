//! A listener that lives, and its calls that wait.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::AbortHandle;

use super::foreign::Closer;
use super::notification::Session;
use super::route::Route;

/// The open calls of a listener: the task of each, by the call's id, and the last
/// one of each thread.
#[derive(Debug, Default)]
pub(super) struct OpenCalls {
    tasks: BTreeMap<u64, AbortHandle>,
    threads: HashMap<u32, u64>,
}

impl OpenCalls {
    /// Adds a call. A thread makes one at a time: an earlier one of the same thread
    /// was interrupted, and nobody needs its verdict any more.
    pub(super) fn add(&mut self, id: u64, tid: u32, task: AbortHandle) {
        self.tasks.insert(id, task);
        if tid != 0
            && let Some(interrupted) = self.threads.insert(tid, id).and_then(|id| self.tasks.get(&id))
        {
            interrupted.abort();
        }
    }

    pub(super) fn remove(&mut self, id: u64, tid: u32) {
        self.tasks.remove(&id);
        if self.threads.get(&tid) == Some(&id) {
            self.threads.remove(&tid);
        }
    }

    /// Those there are, the oldest first.
    pub(super) fn ids(&self) -> Vec<u64> {
        self.tasks.keys().copied().collect()
    }

    /// Gives up one.
    pub(super) fn give_up(&self, id: u64) {
        if let Some(task) = self.tasks.get(&id) {
            task.abort();
        }
    }

    /// Gives up all.
    pub(super) fn give_up_all(&self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

/// What a container has, over all its listeners, of what the containers of a pod share.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Listeners.
    pub(super) sessions: Cell<usize>,
    /// What their descriptions take.
    pub(super) bytes: Cell<usize>,
    /// Calls that wait for a verdict of a task.
    pub(super) calls: Cell<usize>,
    /// Of what its targets' descriptors are copied to.
    pub(super) closer: Closer,
}

/// A listener and what is open of it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) session: Rc<Session>,
    pub(super) listener: Arc<OwnedFd>,
    /// Its container's.
    pub(super) held: Rc<Held>,
    /// Calls that wait for a verdict of a task.
    pub(super) open: RefCell<OpenCalls>,
    /// Who can want its calls, and of which the version of the broker's list that is.
    pub(super) routes: RefCell<(u64, Rc<[Rc<Route>]>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_one_open_call() {
        tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
            let task = || tokio::task::spawn_local(std::future::pending::<()>());
            let mut open = OpenCalls::default();
            let tasks = [task(), task(), task(), task()];
            for (task, (id, tid)) in tasks.iter().zip([(1, 7), (2, 8), (3, 7), (4, 0)]) {
                open.add(id, tid, task.abort_handle());
            }
            open.add(5, 0, task().abort_handle());
            let [first, second, third, fourth] = tasks;
            assert!(first.await.unwrap_err().is_cancelled(), "its thread has made another call");
            assert!(!second.is_finished() && !third.is_finished() && !fourth.is_finished());
            // What is over late does not forget what came after it.
            open.remove(1, 7);
            assert_eq!(open.threads.get(&7), Some(&3));
            assert_eq!(open.ids(), [2, 3, 4, 5]);
            open.give_up(2);
            assert!(second.await.unwrap_err().is_cancelled());
            open.remove(3, 7);
            assert_eq!(open.threads.get(&7), None);
        });
    }
}
