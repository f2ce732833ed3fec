//! Descriptors of files that a target or a plugin has chosen.
//!
//! close(2) asks the file system (`flush` of its `file_operations`), which answers
//! when it likes: FUSE waits for its server, which can be the target itself. So the
//! broker's thread never closes such a descriptor: its [`Closer`] does, which is one
//! container's or one plugin's, and is stuck for nobody else.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::limits::{
    SECCOMP_CLOSES_MAX, SECCOMP_CLOSES_PATIENCE, SECCOMP_WORKER_REST, SECCOMP_WORKER_STACK_BYTES,
};

/// A descriptor that is closed by a thread that may wait for that.
#[derive(Debug)]
pub struct ForeignFd {
    /// There until it is dropped.
    fd: Option<OwnedFd>,
    closer: Closer,
}

impl From<OwnedFd> for ForeignFd {
    /// With a closer of its own.
    fn from(fd: OwnedFd) -> Self {
        Closer::default().keep(fd)
    }
}

impl ForeignFd {
    /// The same, closed by `closer` instead.
    #[must_use]
    pub(super) fn closed_by(mut self, closer: &Closer) -> Self {
        Self { fd: self.fd.take(), closer: closer.clone() }
    }
}

impl AsFd for ForeignFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // There is one until the drop, after which nobody asks.
        self.fd.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd)
    }
}

impl Drop for ForeignFd {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.closer.close(fd);
        }
    }
}

/// Closes descriptors, one after the other, on a thread that is there while there
/// are any.
#[derive(Debug, Clone, Default)]
pub struct Closer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    less: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    fds: VecDeque<OwnedFd>,
    has_thread: bool,
}

impl Queue {
    fn has_room(&self) -> bool {
        self.fds.len() < SECCOMP_CLOSES_MAX
    }
}

impl Drop for Queue {
    /// What no thread could be had for stays open: closed here, it could hang the broker.
    fn drop(&mut self) {
        self.fds.drain(..).for_each(std::mem::forget);
    }
}

impl Closer {
    /// `fd`, which is closed here in the end.
    #[must_use]
    pub fn keep(&self, fd: OwnedFd) -> ForeignFd {
        ForeignFd { fd: Some(fd), closer: self.clone() }
    }

    /// Whether fewer than [`SECCOMP_CLOSES_MAX`] wait to be closed. Whoever has as
    /// many is to get no more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shared.lock().has_room()
    }

    /// The same, once it is so, or after [`SECCOMP_CLOSES_PATIENCE`]: on a busy machine
    /// nothing needs to be stuck for as many to wait.
    pub(super) fn wait_for_room(&self) -> bool {
        let is_full = |queue: &mut Queue| !queue.has_room();
        let waited =
            self.shared.less.wait_timeout_while(self.shared.lock(), SECCOMP_CLOSES_PATIENCE, is_full);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_room()
    }

    fn close(&self, fd: OwnedFd) {
        let mut queue = self.shared.lock();
        queue.fds.push_back(fd);
        if queue.has_thread {
            self.shared.more.notify_one();
            return;
        }
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name("seccomp-closer".into());
        match builder.stack_size(SECCOMP_WORKER_STACK_BYTES).spawn(move || shared.work()) {
            Ok(_detached) => queue.has_thread = true,
            // The next one to be closed tries again.
            Err(error) => ::log::warn!("no thread to close a descriptor: {error}"),
        }
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
            if let Some(fd) = queue.fds.pop_front() {
                drop(queue);
                self.less.notify_all();
                drop(fd);
                queue = self.lock();
                continue;
            }
            let waited = self.more.wait_timeout(queue, SECCOMP_WORKER_REST);
            let (back, time_out) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = back;
            if time_out.timed_out() && queue.fds.is_empty() {
                queue.has_thread = false;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_closed_elsewhere() {
        let closer = Closer::default();
        let (mut reader, writer) = std::io::pipe().unwrap();
        for _ in 0..3 {
            drop(closer.keep(writer.try_clone().unwrap().into()));
        }
        drop(closer.keep(writer.into()));
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "all of them are closed");
        assert!(closer.has_room());
    }
}
