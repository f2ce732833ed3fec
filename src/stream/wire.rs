//! The connection to a client: one reader, several writers that take turns, and
//! answers that never make the reader wait.
//!
//! A writer holds its turn for a whole frame, so frames never mix, and a client
//! that does not read stops its own writers and nobody else. Answers to pings and
//! the like do not take turns: they wait, up to a bound, and go before the next
//! frame. So whoever does not read output can still send input; Ctrl-C, for one.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;

use tokio::io::Interest;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::door::Stream;
use super::error::StreamError;
use super::tls;
use crate::limits::{STREAM_CHUNK_BYTES, STREAM_CONTROL_BYTES_MAX, STREAM_IDLE_MAX, STREAM_LINGER_MAX};

/// Bytes that were read and not used up.
#[derive(Debug)]
pub struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    /// Room for [`STREAM_CHUNK_BYTES`].
    fn default() -> Self {
        Self { bytes: vec![0; STREAM_CHUNK_BYTES], start: 0, end: 0 }
    }
}

impl Inbox {
    /// What was read and not used up.
    pub fn unused(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// The first `count` bytes are used up.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Where to read to; not empty unless a whole buffer is unused.
    fn space(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    /// What carries the bytes of an encrypted connection.
    _relay: Option<tls::Relay>,
    turn: Mutex<()>,
    replies: RefCell<Vec<u8>>,
    replied: Notify,
    spoke_at: Cell<Instant>,
}

impl Wire {
    /// Takes a connection.
    #[must_use]
    pub fn new(stream: Stream, relay: Option<tls::Relay>) -> Self {
        Self {
            stream,
            _relay: relay,
            turn: Mutex::new(()),
            replies: RefCell::default(),
            replied: Notify::new(),
            spoke_at: Cell::new(Instant::now()),
        }
    }

    /// Reads what is there into `inbox`, waiting for some.
    ///
    /// # Errors
    /// [`StreamError::Gone`] at the end; [`StreamError::Connection`].
    pub async fn read(&self, inbox: &mut Inbox) -> Result<(), StreamError> {
        loop {
            let space = inbox.space();
            if space.is_empty() {
                return Err(super::error::Violation("a frame is too long").into());
            }
            // Not `try_read`: whoever watched for the end of the connection has taken the readiness.
            match rustix::io::read(self.stream.as_fd(), space) {
                Ok(0) => return Err(StreamError::Gone),
                Ok(count) => {
                    inbox.end += count;
                    self.spoke_at.set(Instant::now());
                    return Ok(());
                }
                Err(rustix::io::Errno::AGAIN) => {
                    self.news().await?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(StreamError::Connection(error.into())),
            }
        }
    }

    /// Waits until something new has happened to the receiving side. True if its end is near.
    async fn news(&self) -> Result<bool, StreamError> {
        let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        // Forgets what is known, so that only what comes from now on ends the wait. What came before has
        // been read, or is of no interest.
        let _forgotten = self.stream.try_io(Interest::READABLE, forget);
        let ready = self.stream.ready(Interest::READABLE).await.map_err(StreamError::Connection)?;
        Ok(ready.is_read_closed() || ready.is_error())
    }

    /// Waits until the client has closed the connection, though there may be input
    /// that nobody can take now.
    pub async fn gone(&self) -> StreamError {
        loop {
            match self.news().await {
                Ok(false) => {}
                Ok(true) => return StreamError::Gone,
                Err(error) => return error,
            }
        }
    }

    /// Sends a frame, when it is its turn.
    ///
    /// # Errors
    /// [`StreamError::Connection`].
    pub async fn send(&self, head: &[u8], body: &[u8]) -> Result<(), StreamError> {
        let _turn = self.turn.lock().await;
        let replies = self.replies.take();
        self.send_parts([&replies, head, body]).await
    }

    async fn send_parts(&self, mut parts: [&[u8]; 3]) -> Result<(), StreamError> {
        while parts.iter().any(|part| !part.is_empty()) {
            let slices = parts.map(io::IoSlice::new);
            match self.stream.try_write_vectored(&slices) {
                Ok(mut count) => {
                    self.spoke_at.set(Instant::now());
                    for part in &mut parts {
                        let taken = count.min(part.len());
                        *part = part.get(taken..).unwrap_or_default();
                        count -= taken;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.ready(Interest::WRITABLE).await.map_err(StreamError::Connection)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StreamError::Connection(error)),
            }
        }
        Ok(())
    }

    /// Answers something, soon. Never waits.
    ///
    /// # Errors
    /// [`StreamError::DoesNotRead`] if too much waits already.
    pub fn reply(&self, bytes: &[u8]) -> Result<(), StreamError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut replies = self.replies.borrow_mut();
        if replies.len() + bytes.len() > STREAM_CONTROL_BYTES_MAX {
            return Err(StreamError::DoesNotRead);
        }
        replies.extend_from_slice(bytes);
        self.replied.notify_one();
        Ok(())
    }

    /// Gives a sign of life, unless something waits to be sent anyway.
    ///
    /// It is also how a client's death is noticed while its input cannot be taken:
    /// the end of a connection comes after all that was sent before, which waits for
    /// us; but a dead client's kernel resets the connection when something arrives.
    pub fn live(&self, sign: &[u8]) {
        let mut replies = self.replies.borrow_mut();
        if replies.is_empty() {
            replies.extend_from_slice(sign);
            self.replied.notify_one();
        }
    }

    /// Sends answers, for ever.
    pub async fn send_replies(&self) -> StreamError {
        loop {
            self.replied.notified().await;
            if let Err(error) = self.send(&[], &[]).await {
                return error;
            }
        }
    }

    /// Waits until neither side has said anything for [`STREAM_IDLE_MAX`].
    pub async fn idle(&self) -> StreamError {
        loop {
            let until = self.spoke_at.get() + STREAM_IDLE_MAX;
            if until <= Instant::now() {
                return StreamError::Idle;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Says the last words and closes the connection when the client has taken them:
    /// closing while input is unread would reset it, and output be lost.
    pub async fn part(&self, last_words: &[u8]) {
        let farewell = async {
            self.send(last_words, &[]).await?;
            rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write)
                .map_err(|error| StreamError::Connection(error.into()))?;
            let mut inbox = Inbox::default();
            loop {
                self.read(&mut inbox).await?;
                inbox.consume(usize::MAX / 2);
            }
        };
        let outcome: Result<Result<(), StreamError>, _> =
            tokio::time::timeout(STREAM_LINGER_MAX, farewell).await;
        match outcome {
            Ok(Ok(()) | Err(StreamError::Gone)) => {}
            Ok(Err(error)) => log::debug!("a streaming client did not take its last words: {error}"),
            Err(_) => log::debug!("a streaming client did not close its connection"),
        }
    }
}
