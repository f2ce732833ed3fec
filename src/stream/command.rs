//! What exec and attach have in common: a client of the remote command protocol,
//! heard out while its session runs.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;

use tokio::sync::Notify;

use super::error::StreamError;
use super::inlet::Inlet;
use super::remote::{Channel, Channels, Event, Remote, Size};
use super::spdy::Last;
use super::status::Outcome;
use super::websocket::Step;
use super::wire::{Inbox, Wire};
use crate::limits::{STREAM_HEARTBEAT, STREAM_OPEN_TIMEOUT};

/// A client of a remote command.
#[derive(Debug)]
pub(super) struct Client {
    wire: Wire,
    remote: RefCell<Remote>,
    /// Which channels the engine has asked for.
    wanted: Channels,
    /// What the client has typed.
    pub(super) stdin: Inlet,
    size: Cell<Option<Size>>,
    changed: Notify,
    opened: Notify,
}

impl Client {
    pub(super) fn new(wire: Wire, remote: Remote, wanted: Channels) -> Self {
        let client = Self {
            wire,
            remote: RefCell::new(remote),
            wanted,
            stdin: Inlet::default(),
            size: Cell::new(None),
            changed: Notify::new(),
            opened: Notify::new(),
        };
        if !wanted.has(Channel::Stdin) {
            client.stdin.discard();
        }
        client
    }

    /// Hears the client out until it is gone; that is the only way in which this ends.
    pub(super) async fn listen(&self, inbox: Inbox) -> StreamError {
        tokio::select! {
            error = self.hear(inbox) => error,
            error = self.wire.send_replies() => error,
            error = self.wire.idle() => error,
        }
    }

    async fn hear(&self, mut inbox: Inbox) -> StreamError {
        loop {
            if let Err(error) = self.digest(&mut inbox).await {
                return error;
            }
            if let Err(error) = self.wire.read(&mut inbox).await {
                return error;
            }
        }
    }

    /// Does what was read asks for.
    async fn digest(&self, inbox: &mut Inbox) -> Result<(), StreamError> {
        loop {
            let mut replies = Vec::new();
            let step = self.remote.borrow_mut().receive(inbox.unused(), &mut replies);
            self.wire.reply(&replies)?;
            let Step { consumed, event } = step?;
            match event {
                None if consumed == 0 => return Ok(()),
                None => self.opened.notify_one(),
                Some(Event::Resize(size)) => {
                    self.size.set(Some(size));
                    self.changed.notify_one();
                }
                Some(Event::Input { bytes, last }) => {
                    self.room().await?;
                    self.stdin.push(bytes);
                    if last == Last::Yes {
                        self.stdin.end();
                    }
                    self.opened.notify_one();
                }
            }
            inbox.consume(consumed);
        }
    }

    /// Waits until there is room for input; meanwhile the client may go, and must
    /// be told that we are here.
    async fn room(&self) -> Result<(), StreamError> {
        while !self.stdin.has_room() {
            tokio::select! {
                () = self.stdin.room() => {}
                error = self.wire.gone() => return Err(error),
                () = tokio::time::sleep(STREAM_HEARTBEAT) => {
                    let mut sign = Vec::new();
                    self.remote.borrow().put_heartbeat(&mut sign);
                    self.wire.live(&sign);
                }
            }
        }
        Ok(())
    }

    /// Whether the engine has asked for input.
    pub(super) fn has_input(&self) -> bool {
        self.wanted.has(Channel::Stdin)
    }

    /// Waits until all channels are there that the engine has asked for.
    pub(super) async fn ready(&self) -> Result<(), StreamError> {
        let opened = async {
            while !self.remote.borrow().has_opened(self.wanted) {
                self.opened.notified().await;
            }
        };
        tokio::time::timeout(STREAM_OPEN_TIMEOUT, opened).await.map_err(|_| StreamError::StreamsMissing)
    }

    /// Applies every size of the client's terminal, for ever.
    pub(super) async fn resizes(&self, apply: impl Fn(Size) -> io::Result<()>) -> Infallible {
        loop {
            if let Some(size) = self.size.take()
                && let Err(error) = apply(size)
            {
                log::debug!("a terminal was not resized to {size:?}: {error}");
            }
            self.changed.notified().await;
        }
    }

    /// Sends output, if it is wanted.
    pub(super) async fn say(&self, channel: Channel, bytes: &[u8]) -> Result<(), StreamError> {
        let mut head = Vec::with_capacity(16);
        if !self.wanted.has(channel) || !self.remote.borrow().put_head(&mut head, channel, bytes.len()) {
            return Ok(());
        }
        self.wire.send(&head, bytes).await
    }

    /// Ends a channel.
    pub(super) async fn end(&self, channel: Channel) -> Result<(), StreamError> {
        let mut end = Vec::new();
        self.remote.borrow_mut().put_end(&mut end, channel);
        self.wire.send(&end, &[]).await
    }

    /// Says how the session has ended, to whoever is still there.
    pub(super) async fn dismiss(&self, ended: Result<Outcome, StreamError>) {
        let mut words = Vec::new();
        match ended {
            Ok(outcome) => self.remote.borrow_mut().put_last_words(&mut words, &outcome),
            Err(StreamError::Violation(violation)) => {
                self.remote.borrow().put_complaint(&mut words, violation);
            }
            Err(StreamError::Gone | StreamError::Connection(_)) => return,
            Err(error) => {
                let outcome = Outcome::Failed(error.to_string());
                self.remote.borrow_mut().put_last_words(&mut words, &outcome);
            }
        }
        self.wire.part(&words).await;
    }
}
