//! Kubelet streaming: exec, attach and port-forward for clients of Kubernetes, over
//! WebSocket and over SPDY/3.1, on one port of the loopback interface, or on one
//! Unix socket.
//!
//! ```text
//!   engine ── RPC: serveExec… ──► Streaming ── token, URL ──► engine ──► client
//!
//!   client ── [`door`] ─► stranger ─► request ── token ─► session
//!                                (HTTP head)            ├ exec     pipes of a command
//!                                                       ├ attach   socket of the relay
//!                                                       └ forward  sockets in the pod's network
//! ```
//!
//! [`request`], [`websocket`], [`spdy`], [`remote`], [`status`] and [`token`] are
//! pure: bytes in, events out. [`wire`] and [`inlet`] move bytes. A session is one
//! task: it hears its client out and carries output at the same time, and ends with
//! whichever ends first.
//!
//! Who may connect: the port listens on 127.0.0.1 only, from the first request on
//! that needs it; the Unix socket takes root and the user of the pod. Any process of the node can connect, so what gives the right to a
//! session is the token in its URL: 128 random bits, good for one session, for
//! [`STREAM_TOKEN_TIMEOUT`](crate::limits::STREAM_TOKEN_TIMEOUT), which is used up
//! when both sides have agreed on a protocol (a client that tries another one after
//! a refusal may). The connection is encrypted if there is a certificate for it.
//!
//! Who waits for whom:
//!
//! | lagging | what happens |
//! | --- | --- |
//! | the client, of an exec | the command's output is not read; its pipe fills; it blocks. Nobody else |
//! | the client, of an attach | the relay's rules for attached clients |
//! | the command, or a server in the pod | 64 KiB of input wait; then the client is not read |
//!
//! docs/streaming.md is the page for people.
#![forbid(unsafe_code)]

mod attach;
mod command;
mod dial;
pub mod door;
pub mod error;
mod exec;
mod forward;
pub mod inlet;
pub mod remote;
pub mod request;
pub mod spdy;
pub mod status;
mod tls;
pub mod token;
pub mod websocket;
pub mod wire;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::limits::{STREAM_HEAD_BYTES_MAX, STREAM_HEAD_TIMEOUT, STREAM_SESSIONS_MAX, STREAM_STRANGERS_MAX};
use crate::monitor::Monitor;
use crate::monitor::error::Error;
use crate::monitor::exec::ExecRequest;
use crate::monitor::id::ContainerId;
use crate::monitor::relay::StdinEnd;
use crate::monitor::session::ExecStdin;
use crate::sys;
use command::Client;
use door::{Door, Stream};
use forward::Packing;
use remote::{Channel, Channels, Remote};
use request::{Protocol, Purpose, Refusal, Request};
use token::{Token, Tokens};
use wire::{Inbox, Wire};

/// What a token gives the right to.
#[derive(Debug)]
enum Ticket {
    Exec(ExecRequest, Channels),
    Attach(attach::Target, Channels),
    PortForward(PathBuf),
}

impl Ticket {
    fn purpose(&self) -> Purpose {
        match self {
            Self::Exec(..) => Purpose::Exec,
            Self::Attach(..) => Purpose::Attach,
            Self::PortForward(_) => Purpose::PortForward,
        }
    }
}

/// The streaming server of one pod.
#[derive(Debug)]
pub struct Streaming {
    monitor: Rc<Monitor>,
    /// With what URLs begin; empty until somebody needs one.
    base: RefCell<String>,
    tokens: RefCell<Tokens<Ticket>>,
    strangers: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
    sessions: Cell<usize>,
}

/// A client that has shown a token, and what was agreed on.
struct Greeted {
    wire: Wire,
    inbox: Inbox,
    protocol: Protocol,
    ticket: Ticket,
}

/// One of [`STREAM_SESSIONS_MAX`].
struct Seat(Rc<Streaming>);

impl Drop for Seat {
    fn drop(&mut self) {
        let left = self.0.sessions.get() - 1;
        self.0.sessions.set(left);
        if left == 0 {
            // A burst of sessions leaves free lists behind that glibc would keep.
            sys::heap::trim();
        }
    }
}

impl Streaming {
    /// A server that does not listen yet.
    #[must_use]
    pub fn new(monitor: Rc<Monitor>) -> Rc<Self> {
        Rc::new(Self {
            monitor,
            base: RefCell::default(),
            tokens: RefCell::default(),
            strangers: RefCell::default(),
            sessions: Cell::new(0),
        })
    }

    /// A URL under which `request` can be executed once, with these of its streams.
    ///
    /// # Errors
    /// If the container is not there, or the server cannot listen.
    pub fn serve_exec(self: &Rc<Self>, request: ExecRequest, streams: Channels) -> Result<String, Error> {
        self.monitor.living(&request.id)?;
        if request.command.is_empty() {
            return Err(Error::Invalid("the command is empty; name a program to execute".into()));
        }
        let streams = with_terminal(streams, request.terminal);
        self.url(Ticket::Exec(request, streams))
    }

    /// A URL under which somebody can attach once to these streams of a container.
    ///
    /// # Errors
    /// As [`Streaming::serve_exec`].
    pub fn serve_attach(self: &Rc<Self>, id: &ContainerId, streams: Channels) -> Result<String, Error> {
        let container = self.monitor.living(id)?;
        let terminal = container.saved.terminal;
        let socket = self.monitor.streaming_socket(id);
        // The request does not say it.
        let keeps_stdin = container.saved.stdin_once == Some(false);
        let stdin_end = if keeps_stdin { StdinEnd::Keep } else { StdinEnd::HalfClose };
        let target = attach::Target { id: id.clone(), socket, terminal, stdin_end };
        self.url(Ticket::Attach(target, with_terminal(streams, terminal)))
    }

    /// A URL under which one client can forward ports to the network namespace at `path`.
    ///
    /// # Errors
    /// If there is no network namespace, or the server cannot listen.
    pub fn serve_port_forward(self: &Rc<Self>, path: PathBuf) -> Result<String, Error> {
        drop(dial::open_namespace(&path)?);
        self.url(Ticket::PortForward(path))
    }

    fn url(self: &Rc<Self>, ticket: Ticket) -> Result<String, Error> {
        let base = self.listen().map_err(|error| Error::io("listen for streaming clients", error))?;
        let token = Token::new().map_err(|error| Error::io("make a token", error))?;
        let url = format!("{base}/{}/{}", ticket.purpose().name(), token.as_str());
        self.tokens.borrow_mut().insert(token, ticket, Instant::now());
        Ok(url)
    }

    /// With what URLs begin; listens from the first call on.
    fn listen(self: &Rc<Self>) -> io::Result<String> {
        if self.base.borrow().is_empty() {
            let config = &self.monitor.config;
            let (door, base) = Door::open(&config.streaming, &config.run_dir)?;
            log::info!("streaming clients are served at {base}");
            self.base.replace(base);
            tokio::task::spawn_local(Rc::clone(self).accept(door));
        }
        Ok(self.base.borrow().clone())
    }

    async fn accept(self: Rc<Self>, door: Door) {
        let door = Rc::new(door);
        let mut number = 0;
        loop {
            match door.accept().await {
                Ok(stream) => {
                    number += 1;
                    let came = Rc::clone(&self).connection(Rc::clone(&door), stream, number);
                    tokio::task::spawn_local(came);
                }
                Err(error) => {
                    // Descriptors may have run out; whoever has not shown a token shall not keep one.
                    let made_room = self.close_oldest_stranger();
                    log::warn!("cannot accept a streaming client: {error}; closed another: {made_room}");
                    let pause = if made_room { Duration::ZERO } else { Duration::from_millis(50) };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn close_oldest_stranger(&self) -> bool {
        // The receiver may be gone because its client has just been greeted.
        self.strangers.borrow_mut().pop_front().is_some_and(|(_, close)| close.send(()).is_ok())
    }

    async fn connection(self: Rc<Self>, door: Rc<Door>, stream: Stream, number: u64) {
        let (close, closed) = oneshot::channel();
        self.strangers.borrow_mut().push_back((number, close));
        if self.strangers.borrow().len() > STREAM_STRANGERS_MAX {
            self.close_oldest_stranger();
        }
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(STREAM_HEAD_TIMEOUT, self.welcome(&door, stream)) => greeted.ok(),
            _ = closed => None,
        };
        self.strangers.borrow_mut().retain(|(other, _)| *other != number);
        if let Some(Some(greeted)) = greeted {
            self.sessions.set(self.sessions.get() + 1);
            let seat = Seat(Rc::clone(&self));
            self.session(greeted).await;
            drop(seat);
        }
    }

    async fn welcome(&self, door: &Door, stream: Stream) -> Option<Greeted> {
        match door.welcome(stream).await {
            Ok((stream, relay)) => self.greet(Wire::new(stream, relay)).await,
            Err(error) => {
                log::debug!("a streaming client does not come in: {error}");
                None
            }
        }
    }

    /// Reads the request and answers it. `None` if there will be no session.
    async fn greet(&self, wire: Wire) -> Option<Greeted> {
        let mut inbox = Inbox::default();
        let request = loop {
            if let Err(error) = wire.read(&mut inbox).await {
                log::debug!("a stranger at the streaming port: {error}");
                return None;
            }
            let head = inbox.unused();
            match Request::parse(head) {
                Ok(Some((length, request))) => {
                    inbox.consume(length);
                    break request;
                }
                Ok(None) if head.len() < STREAM_HEAD_BYTES_MAX => {}
                Ok(None) => {
                    let refusal =
                        Refusal::new("431 Request Header Fields Too Large", "the request is too long");
                    wire.part(refusal.answer().as_bytes()).await;
                    return None;
                }
                Err(refusal) => {
                    wire.part(refusal.answer().as_bytes()).await;
                    return None;
                }
            }
        };
        match self.admit(&request) {
            Ok(ticket) => {
                let sent = wire.send(request.switch().as_bytes(), &[]).await;
                sent.ok().map(|()| Greeted { wire, inbox, protocol: request.protocol, ticket })
            }
            Err(refusal) => {
                wire.part(refusal.answer().as_bytes()).await;
                None
            }
        }
    }

    /// Takes the token of a request.
    fn admit(&self, request: &Request) -> Result<Ticket, Refusal> {
        let (mut tokens, now) = (self.tokens.borrow_mut(), Instant::now());
        let is_right =
            tokens.get(&request.token, now).is_some_and(|ticket| ticket.purpose() == request.purpose);
        if is_right && self.sessions.get() >= STREAM_SESSIONS_MAX {
            return Err(Refusal::new("503 Service Unavailable", "there are too many streaming sessions"));
        }
        let ticket = if is_right { tokens.take(&request.token, now) } else { None };
        ticket.ok_or_else(|| {
            Refusal::new("404 Not Found", "the URL is not known; it is good once, and not for long")
        })
    }

    async fn session(&self, greeted: Greeted) {
        let Greeted { wire, inbox, protocol, ticket } = greeted;
        let monitor = Rc::clone(&self.monitor);
        let remote = |wire, streams| Remote::new(protocol).map(|remote| Client::new(wire, remote, streams));
        match ticket {
            Ticket::Exec(request, streams) => {
                let stdin = if streams.has(Channel::Stdin) { ExecStdin::Pipe } else { ExecStdin::Null };
                if let Some(client) = remote(wire, streams) {
                    exec::run(monitor, client, inbox, (request, stdin)).await;
                }
            }
            Ticket::Attach(target, streams) => {
                if let Some(client) = remote(wire, streams) {
                    attach::run(monitor, client, inbox, target).await;
                }
            }
            Ticket::PortForward(path) => match dial::open_namespace(&path) {
                Ok(namespace) => {
                    let is_plain = protocol == Protocol::Forward;
                    let packing = if is_plain { Packing::Plain } else { Packing::Tunnelled };
                    forward::run(wire, packing, namespace, inbox).await;
                }
                // Closing is all that the protocol has for this.
                Err(error) => log::warn!("a port-forward has no network any more: {error}"),
            },
        }
    }
}

/// A terminal has sizes and no stderr.
fn with_terminal(streams: Channels, terminal: bool) -> Channels {
    if terminal { streams.and(Channel::Resize).without(Channel::Stderr) } else { streams }
}
