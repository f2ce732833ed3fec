//! Staying with the listeners between two calls.
//!
//! A target that calls again and again is best answered by a thread that waits
//! in poll(2): the kernel then wakes it on the target's processor, which is about
//! to be free. Where it waits in epoll_wait(2), as tokio does, that hint is lost,
//! and it is woken on another one: that makes a call twice as dear.
//!
//! So before the event loop would wait, and while calls follow one another
//! closely, the broker's thread waits here: in poll(2), for the listeners that
//! called last, and at most for [`SECCOMP_LINGER`], after which everything else of
//! the event loop has its turn. It does so only while no call waits for a plugin,
//! whose verdict is the event loop's to hear of.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::time::Instant;

use super::awake;
use super::broker::Broker;
use super::live::Live;
use crate::limits::{SECCOMP_LINGER, SECCOMP_LINGER_LISTENERS_MAX};
use crate::sys::seccomp as kernel;

thread_local! {
    /// Whose event loop this thread runs.
    static HERE: RefCell<Option<Linger>> = const { RefCell::new(None) };
}

/// How close the calls are, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Those that called last, the last one first.
    recent: RefCell<Vec<Rc<Live>>>,
    last: Cell<Option<Instant>>,
    is_close: Cell<bool>,
}

impl Pace {
    /// A call of `live` was received at `now`.
    pub(super) fn called(&self, live: &Rc<Live>, now: Instant) {
        let last = self.last.replace(Some(now));
        self.is_close.set(last.is_some_and(|last| now.saturating_duration_since(last) < SECCOMP_LINGER));
        let mut recent = self.recent.borrow_mut();
        match recent.iter().position(|one| Rc::ptr_eq(one, live)) {
            Some(0) => {}
            Some(position) => recent[..=position].rotate_right(1),
            None => {
                recent.truncate(SECCOMP_LINGER_LISTENERS_MAX - 1);
                recent.insert(0, Rc::clone(live));
            }
        }
    }

    /// `live` has ended.
    pub(super) fn forget(&self, live: &Live) {
        self.recent.borrow_mut().retain(|one| !std::ptr::eq(&raw const **one, live));
    }
}

/// Stays with the listeners of `broker` from now on whenever this thread's event
/// loop, which has [`before_park`] as its hook, would wait.
///
/// # Errors
/// If there can be no timer, or no notifications.
pub(super) fn begin(broker: &Rc<Broker>) -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let linger = Linger {
        broker: Rc::downgrade(broker),
        buffer: RefCell::new(kernel::Buffer::new()?),
        timer,
        until: Cell::new(None),
    };
    HERE.replace(Some(linger));
    Ok(())
}

/// The event loop is about to wait.
pub(super) fn before_park() {
    awake::before_park();
    // A panic must not go through the event loop. The call that it was about has been answered.
    let stayed = catch_unwind(AssertUnwindSafe(|| {
        HERE.with_borrow(|linger| linger.as_ref().map_or(Ok(()), Linger::stay))
    }));
    match stayed {
        Ok(Ok(())) => {}
        // Whoever reads the listeners otherwise will meet it, too.
        Ok(Err(error)) => ::log::debug!("cannot stay with the seccomp listeners: {error}"),
        Err(_) => ::log::error!("a decision about a seccomp notification panicked"),
    }
}

#[derive(Debug)]
struct Linger {
    broker: Weak<Broker>,
    buffer: RefCell<kernel::Buffer>,
    /// Ends a stay. It is set once for many calls, because that is a system call itself.
    timer: OwnedFd,
    /// When it does.
    until: Cell<Option<Instant>>,
}

impl Linger {
    fn stay(&self) -> io::Result<()> {
        let Some(broker) = self.broker.upgrade() else { return Ok(()) };
        let pace = &broker.pace;
        if !pace.is_close.replace(false) || broker.open.get() > 0 {
            return Ok(());
        }
        let lives = pace.recent.borrow().clone();
        if lives.is_empty() {
            return Ok(());
        }
        let mut fds: Vec<_> = lives.iter().map(|live| PollFd::new(&live.listener, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.timer, PollFlags::IN));
        self.set_timer()?;
        while self.serve(&broker, &lives, &mut fds)? {}
        if pace.is_close.get() {
            // With something to do the event loop looks for what else there is, and does not wait.
            tokio::task::spawn_local(async {});
        }
        Ok(())
    }

    /// Waits once and takes what has come. False if it is the event loop's turn.
    fn serve(&self, broker: &Rc<Broker>, lives: &[Rc<Live>], fds: &mut [PollFd<'_>]) -> io::Result<bool> {
        match poll(fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        for (live, fd) in lives.iter().zip(&*fds) {
            if fd.revents().is_empty() {
                continue;
            }
            if !fd.revents().contains(PollFlags::IN) || !broker.has_room(live) {
                return Ok(false);
            }
            broker.take(live, &mut self.buffer.borrow_mut())?;
        }
        let is_over = fds.last().is_none_or(|timer| !timer.revents().is_empty());
        if is_over {
            self.until.set(None);
        }
        Ok(!is_over && broker.open.get() == 0)
    }

    /// Has the timer end this stay, unless it will soon enough anyway.
    fn set_timer(&self) -> io::Result<()> {
        let now = Instant::now();
        if self.until.get().is_some_and(|until| now < until) {
            return Ok(());
        }
        self.until.set(Some(now + SECCOMP_LINGER));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: SECCOMP_LINGER.subsec_nanos().into() },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}
