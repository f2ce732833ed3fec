//! Port-forward: a client's connections, carried over one to the pod's servers.
//!
//! For each forwarded connection the client opens two streams with the same
//! request id: one for the data, and one on which it hears why it did not work. The
//! streams are SPDY's, on the connection itself or in the messages of a WebSocket.
//!
//! Each direction ends on its own: the end of a client's input is the end of the
//! server's, and the other way round; a forward is over when both are, or when the
//! client resets it. SPDY without windows has one flow for all streams: a server
//! that does not read stops its client's other forwards, too, once
//! [`STREAM_INPUT_BYTES_MAX`](crate::limits::STREAM_INPUT_BYTES_MAX) wait for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::dial::dial;
use super::error::StreamError;
use super::inlet::{Inlet, Plug, Portion};
use super::spdy::{self, Event, Headers, Last, ResetReason};
use super::websocket::{self, Opcode, Step, put_close};
use super::wire::{Inbox, Wire};
use crate::limits::{FORWARDS_MAX, STREAM_CHUNK_BYTES, STREAM_HEARTBEAT};

/// How SPDY frames are packed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Not at all.
    Plain,
    /// In binary messages of a WebSocket, cut anywhere.
    Tunnelled,
}

/// One forwarded connection.
#[derive(Debug)]
struct Forward {
    port: u16,
    data: u32,
    input: Inlet,
    was_reset: watch::Sender<bool>,
}

impl Forward {
    async fn reset(&self) {
        // An error would mean that the sender, a field of `self`, is gone.
        if self.was_reset.subscribe().wait_for(|reset| *reset).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Two streams that belong together, as they come.
#[derive(Debug, Default)]
struct Pair {
    error: Option<u32>,
    forward: Option<Rc<Forward>>,
}

/// A client of port-forward.
#[derive(Debug)]
pub(super) struct Forwarder {
    wire: Wire,
    packing: Packing,
    namespace: OwnedFd,
    encoder: RefCell<spdy::Encoder>,
    pairs: RefCell<HashMap<String, Pair>>,
    forwards: RefCell<HashMap<u32, Rc<Forward>>>,
}

/// Bytes on their way from the wire to SPDY.
#[derive(Debug)]
struct Unpacker {
    tunnel: Option<websocket::Decoder>,
    spdy: spdy::Decoder,
    /// What SPDY has not used up: less than a control frame, and what was read last.
    bytes: Vec<u8>,
}

/// Runs the session to its end.
pub(super) async fn run(wire: Wire, packing: Packing, namespace: OwnedFd, inbox: Inbox) {
    let forwarder = Rc::new(Forwarder {
        wire,
        packing,
        namespace,
        encoder: RefCell::default(),
        pairs: RefCell::default(),
        forwards: RefCell::default(),
    });
    // What is under way ends with the session: the set aborts its tasks.
    let mut tasks = JoinSet::new();
    let error = tokio::select! {
        error = forwarder.hear(inbox, &mut tasks) => error,
        error = forwarder.wire.send_replies() => error,
        error = forwarder.wire.idle() => error,
    };
    tasks.shutdown().await;
    log::debug!("a port-forward was ended: {error}");
    if forwarder.packing == Packing::Tunnelled && !matches!(error, StreamError::Connection(_)) {
        let mut words = Vec::new();
        match error {
            StreamError::Violation(violation) => put_close(&mut words, 1002, violation.0),
            _ => put_close(&mut words, 1000, ""),
        }
        forwarder.wire.part(&words).await;
    }
}

impl Forwarder {
    async fn hear(self: &Rc<Self>, mut inbox: Inbox, tasks: &mut JoinSet<()>) -> StreamError {
        let mut unpacker = Unpacker {
            tunnel: (self.packing == Packing::Tunnelled).then(websocket::Decoder::default),
            spdy: spdy::Decoder::default(),
            bytes: Vec::new(),
        };
        loop {
            if let Err(error) = self.unpack(&mut unpacker, &mut inbox, tasks).await {
                return error;
            }
            if let Err(error) = self.wire.read(&mut inbox).await {
                return error;
            }
        }
    }

    /// Takes the packing off what was read, and does what it asks for.
    async fn unpack(
        self: &Rc<Self>,
        unpacker: &mut Unpacker,
        inbox: &mut Inbox,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), StreamError> {
        loop {
            let input = inbox.unused();
            let consumed = match &mut unpacker.tunnel {
                None => {
                    unpacker.bytes.extend_from_slice(input);
                    input.len()
                }
                Some(tunnel) => {
                    let Step { consumed, event } = tunnel.next(input)?;
                    match event {
                        Some(websocket::Event::Data { bytes, .. }) => unpacker.bytes.extend_from_slice(bytes),
                        Some(websocket::Event::Close) => return Err(StreamError::Gone),
                        Some(websocket::Event::Ping(bytes)) => {
                            let mut pong = Vec::new();
                            websocket::put_head(&mut pong, Opcode::Pong, bytes.len());
                            pong.extend_from_slice(bytes);
                            self.wire.reply(&pong)?;
                        }
                        Some(websocket::Event::Pong) | None => {}
                    }
                    consumed
                }
            };
            if consumed == 0 {
                return Ok(());
            }
            inbox.consume(consumed);
            self.digest(unpacker, tasks).await?;
        }
    }

    async fn digest(
        self: &Rc<Self>,
        unpacker: &mut Unpacker,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), StreamError> {
        let mut start = 0;
        loop {
            let Step { consumed, event } =
                unpacker.spdy.next(unpacker.bytes.get(start..).unwrap_or_default())?;
            match event {
                None if consumed == 0 => break,
                None => {}
                Some(Event::Open { stream, headers, last }) => self.open(stream, &headers, last, tasks)?,
                Some(Event::Data { stream, bytes, last }) => self.input(stream, bytes, last).await?,
                Some(Event::Reset(stream)) => {
                    // It stays in the books until its task has ended, so that their number is bounded.
                    if let Some(forward) = self.forwards.borrow().get(&stream) {
                        forward.input.discard();
                        forward.was_reset.send_replace(true);
                    }
                }
                Some(Event::Ping(id)) => {
                    let mut answer = Vec::new();
                    spdy::put_ping(&mut answer, id);
                    self.reply(&answer)?;
                }
                Some(Event::GoAway) => return Err(StreamError::Gone),
            }
            start += consumed;
        }
        unpacker.bytes.drain(..start);
        Ok(())
    }

    /// Takes note of a stream; begins when its partner is there.
    fn open(
        self: &Rc<Self>,
        stream: u32,
        headers: &Headers,
        last: Last,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), StreamError> {
        let mut answer = Vec::new();
        let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
        let kind = headers.get("streamtype");
        // Clients from before request ids opened the error stream first, and the other one right after.
        let first = if kind == Some("error") { stream } else { stream.wrapping_sub(2) };
        let request = headers.get("requestid").map_or_else(|| first.to_string(), ToOwned::to_owned);
        let mut pairs = self.pairs.borrow_mut();
        let is_refused = match (pairs.get(&request), kind) {
            // In the place of another one it would not be counted, and that one never be forgotten.
            (Some(pair), Some("error")) => pair.error.is_some(),
            (Some(pair), _) => pair.forward.is_some(),
            (None, _) => pairs.len() + self.forwards.borrow().len() >= FORWARDS_MAX,
        };
        let pair = match (kind, port) {
            (Some("error" | "data"), Some(_)) if !is_refused => pairs.entry(request.clone()).or_default(),
            (Some("error" | "data"), Some(_)) => {
                spdy::put_reset(&mut answer, stream, ResetReason::RefusedStream);
                return self.reply(&answer);
            }
            _ => {
                spdy::put_reset(&mut answer, stream, ResetReason::ProtocolError);
                return self.reply(&answer);
            }
        };
        self.encoder.borrow_mut().reply(&mut answer, stream);
        match (kind, port) {
            (Some("data"), Some(port)) => {
                let (input, was_reset) = (Inlet::default(), watch::channel(false).0);
                let forward = Rc::new(Forward { port, data: stream, input, was_reset });
                if last == Last::Yes {
                    forward.input.end();
                }
                self.forwards.borrow_mut().insert(stream, Rc::clone(&forward));
                pair.forward = Some(forward);
            }
            _ => pair.error = Some(stream),
        }
        if let Pair { error: Some(error), forward: Some(forward) } = pair {
            let (error, forward) = (*error, Rc::clone(forward));
            pairs.remove(&request);
            // Tasks that have ended are forgotten here, so their number stays bounded.
            while tasks.try_join_next().is_some() {}
            tasks.spawn_local(Rc::clone(self).forward(error, forward));
        }
        self.reply(&answer)
    }

    /// Queues data for a server.
    async fn input(&self, stream: u32, bytes: &[u8], last: Last) -> Result<(), StreamError> {
        let Some(forward) = self.forwards.borrow().get(&stream).cloned() else { return Ok(()) };
        while !forward.input.has_room() {
            tokio::select! {
                () = forward.input.room() => {}
                error = self.wire.gone() => return Err(error),
                () = tokio::time::sleep(STREAM_HEARTBEAT) => {
                    let mut sign = Vec::new();
                    spdy::put_data_head(&mut sign, stream, Last::No, 0);
                    self.wire.live(&self.packed(&sign));
                }
            }
        }
        forward.input.push(bytes);
        if last == Last::Yes {
            forward.input.end();
        }
        Ok(())
    }

    /// Carries one connection to its end.
    async fn forward(self: Rc<Self>, error: u32, forward: Rc<Forward>) {
        let dialled = tokio::select! {
            dialled = dial(&self.namespace, forward.port) => dialled,
            () = forward.reset() => Err(String::new()),
        };
        let plug = dialled.and_then(|stream| {
            let plug = stream.into_std().and_then(|stream| Plug::new(stream.into()));
            plug.map_err(|error| format!("cannot use the connection to the pod: {error}"))
        });
        let carried = match plug {
            Ok(plug) => self.carry(&forward, &plug).await,
            Err(reason) => self.refuse(error, &forward, &reason).await,
        };
        let ended = if carried.is_ok() { self.say(error, Last::Yes, &[]).await } else { carried };
        if let Err(error) = ended {
            log::debug!("a forwarded connection was cut off: {error}");
        }
        self.forwards.borrow_mut().remove(&forward.data);
    }

    /// Tells the client why there is no connection. The reason goes first: clients
    /// look for one when the data has ended.
    async fn refuse(&self, error: u32, forward: &Forward, reason: &str) -> Result<(), StreamError> {
        forward.input.discard();
        if !reason.is_empty() {
            self.say(error, Last::No, reason.as_bytes()).await?;
        }
        self.say(forward.data, Last::Yes, &[]).await
    }

    /// Both directions, each to its own end.
    async fn carry(&self, forward: &Forward, plug: &Plug) -> Result<(), StreamError> {
        let up = async {
            tokio::select! {
                () = forward.input.feed(plug, Portion::Any) => {}
                () = forward.reset() => {}
            }
            // A server that is gone needs no end.
            let _ended = rustix::net::shutdown(plug.fd(), rustix::net::Shutdown::Write);
            Ok(())
        };
        let down = async {
            let mut buffer = vec![0; STREAM_CHUNK_BYTES];
            loop {
                // Only the wait is given up, never a frame.
                let read = tokio::select! {
                    read = plug.read(&mut buffer) => read,
                    () = forward.reset() => return Ok(()),
                };
                match read {
                    Ok(0) => return self.say(forward.data, Last::Yes, &[]).await,
                    Ok(count) => {
                        let bytes = buffer.get(..count).unwrap_or_default();
                        self.say(forward.data, Last::No, bytes).await?;
                    }
                    Err(error) => {
                        log::debug!("the server of a forwarded connection: {error}");
                        forward.input.discard();
                        forward.was_reset.send_replace(true);
                        let mut reset = Vec::new();
                        spdy::put_reset(&mut reset, forward.data, ResetReason::RefusedStream);
                        return self.reply(&reset);
                    }
                }
            }
        };
        tokio::try_join!(up, down).map(|((), ())| ())
    }

    /// Sends a data frame.
    async fn say(&self, stream: u32, last: Last, bytes: &[u8]) -> Result<(), StreamError> {
        let mut head = Vec::with_capacity(websocket::HEAD_BYTES_MAX + spdy::HEAD_BYTES);
        if self.packing == Packing::Tunnelled {
            websocket::put_head(&mut head, Opcode::Binary, spdy::HEAD_BYTES + bytes.len());
        }
        spdy::put_data_head(&mut head, stream, last, bytes.len());
        self.wire.send(&head, bytes).await
    }

    /// Sends control frames, soon.
    fn reply(&self, frames: &[u8]) -> Result<(), StreamError> {
        self.wire.reply(&self.packed(frames))
    }

    fn packed(&self, frames: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        if self.packing == Packing::Tunnelled {
            websocket::put_head(&mut packed, Opcode::Binary, frames.len());
        }
        packed.extend_from_slice(frames);
        packed
    }
}
