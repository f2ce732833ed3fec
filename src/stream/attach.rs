//! A streaming attach: one more client of the container's attach socket, which
//! the relay serves ([`relay::attach`](crate::monitor::relay::attach) says what it
//! promises: everything from now on for everyone, and what happens to who lags).
//!
//! The end of the client's input closes the container's stdin, unless the engine has
//! said that it has no `stdinOnce`; that the client goes does not.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;

use rustix::net::SocketType;

use super::command::Client;
use super::error::StreamError;
use super::inlet::{Plug, Portion};
use super::remote::Channel;
use super::status::Outcome;
use super::wire::Inbox;
use crate::limits::ACCEPT_PAUSE;
use crate::monitor::Monitor;
use crate::monitor::error::Error;
use crate::monitor::id::ContainerId;
use crate::monitor::relay::attach::PACKET_PAYLOAD_MAX;
use crate::monitor::relay::{Attach, StdinEnd};
use crate::sys;

/// What to attach to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) id: ContainerId,
    /// Of the socket through which streaming clients come.
    pub(super) socket: PathBuf,
    /// It has a terminal, whose input has no end.
    pub(super) terminal: bool,
    /// What the end of the client's input does.
    pub(super) stdin_end: StdinEnd,
}

/// Runs the session to its end.
pub(super) async fn run(monitor: Rc<Monitor>, client: Client, inbox: Inbox, target: Target) {
    let ended = {
        let mut listening = pin!(client.listen(inbox));
        let conversation = async {
            client.ready().await?;
            match connect(&monitor, &target).await {
                Ok(socket) => converse(&monitor, &client, &target, &socket).await,
                Err(error) => Ok(Outcome::Failed(error.to_string())),
            }
        };
        tokio::select! {
            ended = conversation => ended,
            error = &mut listening => Err(error),
        }
    };
    if let Err(error) = &ended {
        log::debug!("container {}: a streaming attach was ended: {error}", target.id);
    }
    client.dismiss(ended).await;
}

async fn connect(monitor: &Rc<Monitor>, target: &Target) -> Result<Plug, Error> {
    let attach = Attach { path: target.socket.clone(), stdin_end: target.stdin_end, replay: 0 };
    monitor.attach(&target.id, attach).await?;
    let connected = loop {
        match sys::socket::connect_now(&target.socket, SocketType::SEQPACKET) {
            // The relay is short of descriptors. No event tells of room in its backlog.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            connected => break connected,
        }
    };
    let fail = |error| Error::io(format!("attach to container {}", target.id), error);
    Plug::new(connected.map_err(fail)?).map_err(fail)
}

async fn converse(
    monitor: &Rc<Monitor>,
    client: &Client,
    target: &Target,
    socket: &Plug,
) -> Result<Outcome, StreamError> {
    let input = async {
        client.stdin.feed(socket, Portion::Packet(PACKET_PAYLOAD_MAX)).await;
        client.stdin.discard();
        if client.has_input() && !target.terminal {
            // If the container has ended meanwhile, there is no stdin left to close.
            let _closed = rustix::net::shutdown(socket.fd(), rustix::net::Shutdown::Write);
        }
        std::future::pending().await
    };
    let resize = |size: super::remote::Size| {
        monitor.set_window_size(&target.id, size.width, size.height).map_err(io::Error::other)
    };
    tokio::select! {
        ended = output(client, socket) => ended,
        never = client.resizes(resize) => match never {},
        () = input => std::future::pending().await,
    }
}

/// Sends what the relay sends, until it says that this was all.
async fn output(client: &Client, socket: &Plug) -> Result<Outcome, StreamError> {
    let mut packet = vec![0; PACKET_PAYLOAD_MAX + 1];
    loop {
        let doing = "read the output of the container";
        let count =
            socket.read(&mut packet).await.map_err(|source| StreamError::Process { doing, source })?;
        let channel = match packet.get(..count).unwrap_or_default() {
            // The relay has said why on stderr.
            [] => return Ok(Outcome::Failed("the session was ended before the container's output".into())),
            [0] => return Ok(Outcome::Exited(0)),
            [3, ..] => Channel::Stderr,
            _ => Channel::Stdout,
        };
        client.say(channel, packet.get(1..count).unwrap_or_default()).await?;
    }
}
