//! Reading a listener: poll first, receive what there is, stop when nobody is
//! left who could call.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::broker::Broker;
use super::live::Live;
use super::stats::count;
use crate::limits::SECCOMP_SWEEP_PERIOD;
use crate::sys::seccomp as kernel;

/// Notifications taken in a row before other listeners have their turn.
const IN_A_ROW: usize = 32;

/// What can be done with a listener now.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Readable,
    Idle,
    HungUp,
}

fn state(listener: &OwnedFd) -> std::io::Result<State> {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&at_once)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(State::Idle),
        Ok(_) => {}
        Err(errno) => return Err(errno.into()),
    }
    let [fd] = fds;
    Ok(if fd.revents().contains(PollFlags::IN) { State::Readable } else { State::HungUp })
}

/// Ends a session, even if a decision about one of its calls panics: a listener
/// that is open and that nobody reads would be calls that hang.
struct Ending {
    broker: Rc<Broker>,
    live: Rc<Live>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.broker.end(&self.live);
        let session = &self.live.session;
        ::log::debug!("seccomp session {} of {} ended", session.id.0, session.container);
    }
}

impl Broker {
    /// Follows `live` to its end.
    pub(super) async fn follow(self: Rc<Self>, live: Rc<Live>) {
        let ending = Ending { broker: self, live };
        let Ending { broker, live } = &ending;
        if let Err(error) = kernel::wake_in_step(live.listener.as_fd()) {
            ::log::debug!("no synchronous wake-up of seccomp targets: {error}");
        }
        if let Err(error) = broker.read(live).await {
            // It is closed; the kernel then fails every call with ENOSYS by itself.
            ::log::error!("cannot read the seccomp listener of {}: {error}", live.session.container);
        }
    }

    async fn read(self: &Rc<Self>, live: &Rc<Live>) -> std::io::Result<()> {
        let mut buffer = kernel::Buffer::new()?;
        let fd = AsyncFd::with_interest(Arc::clone(&live.listener), Interest::READABLE)?;
        loop {
            let mut ready = fd.readable().await?;
            let mut taken = 0;
            loop {
                let open = self.open.get();
                match state(&live.listener)? {
                    State::Readable if !self.has_room(live) => {
                        self.room(live).await;
                        continue;
                    }
                    State::Readable => self.take(live, &mut buffer)?,
                    State::Idle => break,
                    State::HungUp => return Ok(()),
                }
                taken += 1;
                // A plugin's question is sent before we look for more.
                let is_asked = self.open.get() > open;
                if is_asked || taken % IN_A_ROW == 0 {
                    tokio::task::yield_now().await;
                }
            }
            ready.clear_ready();
        }
    }

    /// Takes a call of `live`, which is readable.
    pub(super) fn take(self: &Rc<Self>, live: &Rc<Live>, buffer: &mut kernel::Buffer) -> std::io::Result<()> {
        match kernel::receive(live.listener.as_fd(), buffer) {
            Ok(kernel::Received::Call(call)) => self.notified(live, call),
            Ok(kernel::Received::Gone) => count(&self.gone),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Waits until another call can be taken.
    async fn room(&self, live: &Rc<Live>) {
        let room = async {
            loop {
                let moved = self.moved.notified();
                if self.has_room(live) {
                    return;
                }
                moved.await;
            }
        };
        let sweeps = async {
            loop {
                sleep(SECCOMP_SWEEP_PERIOD).await;
                ::log::debug!("{} waits for room for its calls", live.session.container);
                self.sweep(vec![Rc::downgrade(live)]).await;
            }
        };
        tokio::select! {
            biased;
            () = room => {}
            () = sweeps => {}
        }
    }
}
