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
//! [`Reaper::adopt`] finds them. From then on its pid is free for others, so a status
//! is forgotten as soon as nobody can be waiting for it any more, and
//! [`Reaper::adopt_own`] never looks for one: a child that we have just started is
//! not collected yet, so whatever is remembered of its pid is an earlier process's.
//!
//! Children of an earlier monitor belong to the keeper; it reports how they
//! ended ([`Reaper::deliver`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::SetOnce;

use crate::limits::{KEEPER_WORD_TIMEOUT, UNKNOWN_EXITS_MAX};
use crate::monitor::tree;
use crate::sys::process::{self, ChildExit};

/// The children of this process.
#[derive(Debug, Default)]
pub struct Reaper {
    tracked: RefCell<HashMap<u32, Tracked>>,
    unknown: RefCell<Unknown>,
    /// Processes that were gone when they were looked for; the keeper's word of how
    /// they ended may be on its way.
    awaited: RefCell<HashMap<u32, Promise>>,
    orphans: Cell<u64>,
}

/// Statuses that were collected before anybody asked for them.
#[derive(Debug, Default)]
struct Unknown {
    /// Counts what begins and what ends, so that the one can be told to be before the other.
    clock: u64,
    /// When each [`Expecting`] began that lives.
    expecting: BTreeSet<u64>,
    /// The last ones to have ended, and when: none before the oldest of `expecting`.
    exits: VecDeque<(u64, ChildExit)>,
}

impl Unknown {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn remember(&mut self, exit: ChildExit) {
        if self.expecting.is_empty() {
            return;
        }
        if self.exits.len() >= UNKNOWN_EXITS_MAX {
            self.exits.pop_front();
        }
        let now = self.tick();
        self.exits.push_back((now, exit));
    }

    /// The last one of that pid; those before it are of other processes.
    fn take(&mut self, pid: u32) -> Option<ChildExit> {
        let exit = self.exits.iter().rev().find(|(_, exit)| exit.pid == pid).map(|(_, exit)| *exit);
        self.forget(pid);
        exit
    }

    fn forget(&mut self, pid: u32) {
        self.exits.retain(|(_, exit)| exit.pid != pid);
    }

    fn expected(&mut self, since: u64) {
        self.expecting.remove(&since);
        let Some(oldest) = self.expecting.first() else {
            self.exits = VecDeque::new();
            return;
        };
        while self.exits.pop_front_if(|(at, _)| &*at < oldest).is_some() {}
    }
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
pub struct Expecting {
    reaper: Rc<Reaper>,
    since: u64,
}

impl Drop for Expecting {
    fn drop(&mut self) {
        self.reaper.unknown.borrow_mut().expected(self.since);
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
        let mut unknown = self.unknown.borrow_mut();
        let since = unknown.tick();
        unknown.expecting.insert(since);
        Expecting { reaper: Rc::clone(self), since }
    }

    /// Tracks `pid`, which a runtime that has exited has left to us. Hold an
    /// [`Expecting`] from before the process could exist.
    ///
    /// # Errors
    /// What pidfd_open(2) says: `ESRCH` if there is no such process.
    pub fn adopt(&self, pid: u32) -> io::Result<Child> {
        match self.unknown.borrow_mut().take(pid) {
            Some(exit) => Ok(Child::told(pid, Some(exit))),
            None => self.track(pid),
        }
    }

    /// Tracks a child that we have started and not collected yet.
    ///
    /// # Errors
    /// What pidfd_open(2) says.
    pub fn adopt_own(&self, pid: u32) -> io::Result<Child> {
        self.unknown.borrow_mut().forget(pid);
        self.track(pid)
    }

    fn track(&self, pid: u32) -> io::Result<Child> {
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
        let Ok(child) = self.track(pid) else { return self.await_word(pid) };
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
                self.unknown.borrow_mut().remember(exit);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::Ended;

    fn exit(pid: u32, code: u8) -> ChildExit {
        ChildExit { pid, how: Ended::Code(code), at_ns: 0 }
    }

    fn remember(reaper: &Reaper, pid: u32, code: u8) {
        reaper.unknown.borrow_mut().remember(exit(pid, code));
    }

    fn known(reaper: &Reaper) -> usize {
        reaper.unknown.borrow().exits.len()
    }

    #[test]
    fn status_is_remembered_while_somebody_may_ask_for_it() {
        let reaper = Rc::new(Reaper::default());
        remember(&reaper, 1, 1);
        assert_eq!(known(&reaper), 0, "nobody expects it");

        let first = reaper.expect();
        remember(&reaper, 2, 2);
        let second = reaper.expect();
        remember(&reaper, 3, 3);
        drop(first);
        assert_eq!(known(&reaper), 1, "what ended before the second began is not the second's");
        assert!(reaper.adopt(3).unwrap().has_exited());
        remember(&reaper, 4, 4);
        let third = reaper.expect();
        drop(third);
        assert_eq!(known(&reaper), 1);
        drop(second);
        assert_eq!(known(&reaper), 0);
    }

    #[test]
    fn calls_that_overlap_for_ever_do_not_fill_the_memory() {
        let reaper = Rc::new(Reaper::default());
        let _long = reaper.expect();
        for _ in 0..2 * UNKNOWN_EXITS_MAX {
            remember(&reaper, 7, 7);
        }
        assert_eq!(known(&reaper), UNKNOWN_EXITS_MAX);

        let reaper = Rc::new(Reaper::default());
        let mut running = reaper.expect();
        for pid in 0..1000 {
            remember(&reaper, pid, 0);
            let next = reaper.expect();
            drop(std::mem::replace(&mut running, next));
            assert!(known(&reaper) <= 2);
        }
    }

    #[test]
    fn our_own_child_never_gets_the_status_of_an_earlier_process() {
        let reaper = Rc::new(Reaper::default());
        let _expecting = reaper.expect();
        let pid = std::process::id();
        remember(&reaper, pid, 9);
        remember(&reaper, pid, 8);
        assert!(!reaper.adopt_own(pid).unwrap().has_exited());
        assert_eq!(known(&reaper), 0, "nor does anybody else");
    }

    #[test]
    fn of_two_processes_with_one_pid_the_later_is_meant() {
        let reaper = Rc::new(Reaper::default());
        let _expecting = reaper.expect();
        remember(&reaper, 7, 1);
        remember(&reaper, 7, 2);
        let child = reaper.adopt(7).unwrap();
        assert_eq!(child.exit.get(), Some(&Some(exit(7, 2))));
    }
}
