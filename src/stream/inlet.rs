//! Input on its way to a process or a server: a bounded queue, so that the client
//! is still listened to while what it has sent cannot be taken.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::limits::STREAM_INPUT_BYTES_MAX;

/// A descriptor that is waited for without blocking: a pipe, a terminal's master,
/// a socket.
#[derive(Debug)]
pub struct Plug(AsyncFd<OwnedFd>);

impl Plug {
    /// Makes `fd` non-blocking.
    ///
    /// # Errors
    /// If it cannot be made so or be waited for.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(AsyncFd::with_interest(fd, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// The write end of a pipe.
    ///
    /// # Errors
    /// As [`Plug::new`].
    pub fn writer(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(AsyncFd::with_interest(fd, Interest::WRITABLE)?))
    }

    /// The read end of a pipe.
    ///
    /// # Errors
    /// As [`Plug::new`].
    pub fn reader(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(AsyncFd::with_interest(fd, Interest::READABLE)?))
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Reads what is there, waiting for some; 0 at the end.
    ///
    /// # Errors
    /// What read(2) says. A terminal whose last process has closed it has ended.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?)) {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

/// What one write may take at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portion {
    /// Anything: a stream.
    Any,
    /// A packet of at most so many bytes.
    Packet(usize),
}

/// The queue.
#[derive(Debug, Default)]
pub struct Inlet {
    queue: RefCell<VecDeque<u8>>,
    has_ended: Cell<bool>,
    is_discarding: Cell<bool>,
    /// For the one who takes.
    changed: Notify,
    /// For the one who pushes.
    taken: Notify,
}

impl Inlet {
    /// Whether more can be pushed without growing beyond the bound.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.is_discarding.get() || self.queue.borrow().len() < STREAM_INPUT_BYTES_MAX
    }

    /// Waits until there is room.
    pub async fn room(&self) {
        while !self.has_room() {
            self.taken.notified().await;
        }
    }

    /// Adds input. Ask for room before.
    pub fn push(&self, bytes: &[u8]) {
        if !self.has_ended.get() && !self.is_discarding.get() {
            self.queue.borrow_mut().extend(bytes);
            self.changed.notify_one();
        }
    }

    /// There will be no more.
    pub fn end(&self) {
        self.has_ended.set(true);
        self.changed.notify_one();
    }

    /// Nobody takes any more: all is thrown away from now on.
    pub fn discard(&self) {
        self.is_discarding.set(true);
        self.queue.take();
        self.taken.notify_one();
    }

    /// Gives everything to `plug`, until the end of input, or until nobody is
    /// there to take it.
    pub async fn feed(&self, plug: &Plug, portion: Portion) {
        loop {
            while self.queue.borrow().is_empty() {
                if self.has_ended.get() {
                    return;
                }
                self.changed.notified().await;
            }
            let Ok(mut ready) = plug.0.writable().await else { return self.discard() };
            match ready.try_io(|fd| self.write_some(fd.get_ref(), portion)) {
                Ok(Ok(())) => self.taken.notify_one(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => {
                    log::debug!("nobody takes a client's input any more: {error}");
                    return self.discard();
                }
                Err(_would_block) => {}
            }
        }
    }

    fn write_some(&self, fd: &OwnedFd, portion: Portion) -> io::Result<()> {
        let mut queue = self.queue.borrow_mut();
        let mut bytes = queue.as_slices().0;
        if let Portion::Packet(longest) = portion {
            bytes = bytes.get(..longest).unwrap_or(bytes);
        }
        let count = match rustix::io::write(fd, bytes) {
            Ok(count) => count,
            Err(Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => return Err(error.into()),
        };
        queue.drain(..count);
        if queue.is_empty() {
            // A session may be quiet for hours after a paste.
            *queue = VecDeque::new();
        }
        Ok(())
    }
}
