//! Epoll with descriptors that know what epoll was told about them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::Timespec;

use super::StreamId;

/// Events taken at a time.
const EVENTS_MAX: usize = 64;

/// Which descriptor of which stream; 40 bits of stream id, 24 of slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
    /// The eventfd that says that there are commands. No stream has the id 0.
    pub(super) const WAKE: Self = Self(0);

    /// The greatest slot.
    pub(super) const SLOT_MAX: u32 = 0xff_ffff;

    pub(super) fn new(id: StreamId, slot: u32) -> Self {
        Self(id.0 << 24 | u64::from(slot.min(Self::SLOT_MAX)))
    }

    pub(super) fn stream(self) -> StreamId {
        StreamId(self.0 >> 24)
    }

    pub(super) fn slot(self) -> u32 {
        u32::try_from(self.0 & u64::from(Self::SLOT_MAX)).unwrap_or(0)
    }
}

/// An epoll instance.
#[derive(Debug, Clone)]
pub(super) struct Poll {
    epoll: Arc<OwnedFd>,
}

impl Poll {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?) })
    }

    pub(super) fn add(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        epoll::add(&*self.epoll, fd, EventData::new_u64(token.0), EventFlags::IN)
    }

    /// Waits, at most until `timeout` has passed, and replaces `ready`.
    pub(super) fn wait(
        &self,
        ready: &mut VecDeque<(Token, EventFlags)>,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        ready.clear();
        let count = epoll::wait(&*self.epoll, &mut events, timeout.as_ref())?;
        ready.extend(events.iter().take(count).map(|event| (Token(event.data.u64()), event.flags)));
        Ok(())
    }
}

/// A non-blocking descriptor that may be in the epoll set.
#[derive(Debug)]
pub(super) struct Watched {
    fd: OwnedFd,
    poll: Poll,
    token: Token,
    /// Empty: not in the set. (A descriptor in the set reports its hang-up whatever
    /// was asked for, so one that nobody wants to hear from must leave it.)
    interest: EventFlags,
}

impl Watched {
    /// Makes `fd` non-blocking; it is not watched yet.
    pub(super) fn new(poll: &Poll, fd: OwnedFd, token: Token) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        if !flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(Self { fd, poll: poll.clone(), token, interest: EventFlags::empty() })
    }

    /// Asks for `interest` from now on.
    pub(super) fn set(&mut self, interest: EventFlags) -> Result<(), Errno> {
        if interest == self.interest {
            return Ok(());
        }
        let data = EventData::new_u64(self.token.0);
        if interest.is_empty() {
            epoll::delete(&*self.poll.epoll, &self.fd)?;
        } else if self.interest.is_empty() {
            epoll::add(&*self.poll.epoll, &self.fd, data, interest)?;
        } else {
            epoll::modify(&*self.poll.epoll, &self.fd, data, interest)?;
        }
        self.interest = interest;
        Ok(())
    }

    /// Another descriptor for the same epoll instance.
    pub(super) fn sibling(&self, fd: OwnedFd, token: Token) -> io::Result<Self> {
        Self::new(&self.poll, fd, token)
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Closing is not enough: the keeper has a duplicate, with which the entry would stay.
        let _left = self.set(EventFlags::empty());
    }
}

/// Makes the eventfd readable.
pub(super) fn wake(eventfd: &OwnedFd) {
    // It fails only when the counter is full, and then the eventfd is readable already.
    let _written = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// Makes the eventfd quiet again.
pub(super) fn quiet(eventfd: &OwnedFd) {
    let mut count = [0; 8];
    let _read = rustix::io::read(eventfd, &mut count);
}
