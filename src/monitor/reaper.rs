//! The one place where children are waited for.
//!
//! The monitor is a child subreaper (`PR_SET_CHILD_SUBREAPER`, prctl(2)), so its
//! children are OCI runtimes that it started, containers and execs that those
//! left behind, and orphans that nobody asked for. On SIGCHLD every ended child
//! is looked at (`WNOWAIT`); one that is tracked is collected by its pidfd and
//! its status delivered, any other is collected by pid.
//!
//! A container may end between its runtime's exit and the moment at which its
//! pid is read from the pid file. So while a create or exec is under way
//! ([`Reaper::expect`]), the statuses of unknown children are remembered and
//! [`Reaper::adopt`] finds them. No status is ever given to the wrong process: a
//! pid is not used again before we have collected it, and it is known by then.
//!
//! Children of an earlier monitor belong to the keeper; it reports how they
//! ended ([`Reaper::deliver`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::SetOnce;

use crate::limits::KEEPER_WORD_TIMEOUT;
use crate::monitor::tree;
use crate::sys::process::{self, ChildExit};

/// The children of this process.
#[derive(Debug, Default)]
pub struct Reaper {
    tracked: RefCell<HashMap<u32, Tracked>>,
    unknown: RefCell<HashMap<u32, ChildExit>>,
    /// Processes that were gone when they were looked for; the keeper's word of how
    /// they ended may be on its way.
    awaited: RefCell<HashMap<u32, Promise>>,
    expecting: Cell<usize>,
    orphans: Cell<u64>,
}

#[derive(Debug)]
struct Tracked {
    pidfd: Rc<OwnedFd>,
    exit: Promise,
}

/// How a process has ended; `None` if nobody will ever know.
type Exit = Rc<SetOnce<Option<ChildExit>>>;

/// To tell it. Dropped without that, nobody will.
#[derive(Debug)]
struct Promise(Exit);

impl Promise {
    fn new() -> (Self, Exit) {
        let exit = Exit::default();
        (Self(Rc::clone(&exit)), exit)
    }

    fn keep(&self, exit: Option<ChildExit>) {
        // It is kept already when it is dropped after that.
        self.0.set(exit).ok();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.keep(None);
    }
}

/// A tracked process. Dropping it does not stop the tracking.
#[derive(Debug, Clone)]
pub struct Child {
    pid: u32,
    /// Closed when it has been collected: the record of an exit costs no descriptor.
    pidfd: Weak<OwnedFd>,
    exit: Exit,
}

/// While one of these lives, statuses of unknown children are remembered.
#[derive(Debug)]
pub struct Expecting(Rc<Reaper>);

impl Drop for Expecting {
    fn drop(&mut self) {
        let left = self.0.expecting.get() - 1;
        self.0.expecting.set(left);
        if left == 0 {
            self.0.unknown.take();
        }
    }
}

impl Child {
    /// A process that is known to have ended, with a status that is known elsewhere.
    #[must_use]
    pub fn gone(pid: u32) -> Self {
        Self::told(pid, None)
    }

    fn told(pid: u32, exit: Option<ChildExit>) -> Self {
        Self { pid, pidfd: Weak::new(), exit: Rc::new(SetOnce::new_with(Some(exit))) }
    }

    /// Its process id in our pid namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended and been collected.
    pub async fn exited(&self) -> Option<ChildExit> {
        *self.exit.wait().await
    }

    /// Whether it has been collected.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.exit.get().is_some_and(Option::is_some)
    }

    /// Whether it has ended, collected or not.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let Some(pidfd) = self.pidfd.upgrade() else { return true };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // pidfd_open(2): readable when the process has ended.
        poll(&mut [PollFd::new(&*pidfd, PollFlags::IN)], Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Sends signal number `signal` to this process and no other, whatever became
    /// of its pid.
    ///
    /// # Errors
    /// What pidfd_send_signal(2) says; a process that has ended is none.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let Some(pidfd) = self.pidfd.upgrade() else { return Ok(()) };
        match process::send_signal(pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }
}

impl Reaper {
    /// Announces that a process may appear whose pid is not known yet.
    #[must_use]
    pub fn expect(self: &Rc<Self>) -> Expecting {
        self.expecting.set(self.expecting.get() + 1);
        Expecting(Rc::clone(self))
    }

    /// Tracks `pid`: a child of ours, of a runtime that has exited, or of the
    /// keeper. Hold an [`Expecting`] from before the process could exist, if it is
    /// not our own fresh child.
    ///
    /// # Errors
    /// What pidfd_open(2) says: `ESRCH` if there is no such process.
    pub fn adopt(&self, pid: u32) -> io::Result<Child> {
        if let Some(exit) = self.unknown.borrow_mut().remove(&pid) {
            return Ok(Child::told(pid, Some(exit)));
        }
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = Rc::new(rustix::process::pidfd_open(raw, PidfdFlags::empty())?);
        let (promise, exit) = Promise::new();
        let child = Child { pid, pidfd: Rc::downgrade(&pidfd), exit };
        self.tracked.borrow_mut().insert(pid, Tracked { pidfd, exit: promise });
        Ok(child)
    }

    /// Tracks a process that an earlier monitor had tracked: a child of the keeper
    /// now, which has `told` how it ended, or will.
    pub fn resume(self: &Rc<Self>, pid: u32, start_ticks: u64, told: Option<ChildExit>) -> Child {
        if let Some(exit) = told {
            return Child::told(pid, Some(exit));
        }
        let Ok(child) = self.adopt(pid) else { return self.await_word(pid) };
        // Looked at after the pidfd was opened: from then on the pid cannot change hands unseen.
        if tree::start_ticks(pid) != Some(start_ticks) {
            self.tracked.borrow_mut().remove(&pid);
            return self.await_word(pid);
        }
        if let Some(pidfd) = child.pidfd.upgrade() {
            tokio::task::spawn_local(Rc::clone(self).expect_word(pid, pidfd));
        }
        child
    }

    /// The keeper has collected it between its greeting and our look.
    fn await_word(self: &Rc<Self>, pid: u32) -> Child {
        let (promise, exit) = Promise::new();
        self.awaited.borrow_mut().insert(pid, promise);
        let reaper = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(KEEPER_WORD_TIMEOUT).await;
            reaper.awaited.borrow_mut().remove(&pid);
        });
        Child { pid, pidfd: Weak::new(), exit }
    }

    /// A child of the keeper has ended: if the keeper cannot tell how, nobody can.
    async fn expect_word(self: Rc<Self>, pid: u32, pidfd: Rc<OwnedFd>) {
        let Ok(pidfd) = AsyncFd::with_interest(pidfd, Interest::READABLE) else { return };
        if pidfd.readable().await.is_ok() {
            tokio::time::sleep(KEEPER_WORD_TIMEOUT).await;
            self.tracked.borrow_mut().remove(&pid);
        }
    }

    /// Takes in a status that the keeper has collected. False if nobody asked.
    pub fn deliver(&self, exit: ChildExit) -> bool {
        if let Some(awaited) = self.awaited.borrow_mut().remove(&exit.pid) {
            awaited.keep(Some(exit));
            return true;
        }
        let Some(tracked) = self.tracked.borrow_mut().remove(&exit.pid) else { return false };
        tracked.exit.keep(Some(exit));
        true
    }

    /// Collects every child that has ended. To be called after SIGCHLD, and once
    /// at the start.
    ///
    /// # Errors
    /// What waitid(2) says.
    pub fn collect(&self) -> io::Result<()> {
        while let Some(peeked) = process::peek_ended()? {
            let pidfd = self.tracked.borrow().get(&peeked.pid).map(|tracked| Rc::clone(&tracked.pidfd));
            let collected = match &pidfd {
                Some(pidfd) => process::reap_pidfd(pidfd.as_fd())?,
                None => process::reap(peeked.pid)?,
            };
            // Between the look and the collecting nobody else can have taken it.
            let Some(exit) = collected else { continue };
            if pidfd.is_some() {
                self.deliver(exit);
            } else {
                self.orphans.set(self.orphans.get() + 1);
                if self.expecting.get() > 0 {
                    self.unknown.borrow_mut().insert(exit.pid, exit);
                }
            }
        }
        Ok(())
    }

    /// How many children that nobody tracked have been collected so far.
    #[must_use]
    pub fn orphans(&self) -> u64 {
        self.orphans.get()
    }
}
