//! Descriptors between this plugin and the monitor.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::net::SocketType;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use super::types::Ticket;
use crate::rpc::client::{Code, Error};
use crate::rpc::plugin::packet::{Packet, receive, send};
use crate::sys::socket;

/// The descriptor socket, connected when it is first needed. Answers come in the
/// order of the requests, so there is one request at a time.
#[derive(Debug)]
pub(super) struct Exchange {
    path: PathBuf,
    connection: Mutex<Option<AsyncFd<OwnedFd>>>,
}

impl Exchange {
    pub(super) fn new(path: &Path) -> Rc<Self> {
        Rc::new(Self { path: path.to_owned(), connection: Mutex::default() })
    }

    /// Hands a descriptor in.
    pub(super) async fn put(&self, descriptor: BorrowedFd<'_>) -> Result<Ticket, Error> {
        let copy = descriptor.try_clone_to_owned().map_err(|error| self.failed(&error.to_string()))?;
        match self.ask(&Packet::Put(copy)).await? {
            Packet::Ticket(ticket) => Ok(Ticket(ticket.to_vec())),
            other => Err(self.unexpected(other)),
        }
    }

    /// Takes one out.
    pub(super) async fn take(&self, ticket: &Ticket) -> Result<OwnedFd, Error> {
        let Ok(bytes) = ticket.0.as_slice().try_into() else {
            return Err(self.failed("the monitor's ticket is not of 16 bytes"));
        };
        match self.ask(&Packet::Ticket(bytes)).await? {
            Packet::Put(descriptor) => Ok(descriptor),
            other => Err(self.unexpected(other)),
        }
    }

    async fn ask(&self, packet: &Packet) -> Result<Packet, Error> {
        let mut connection = self.connection.lock().await;
        let answer = async {
            let socket = match connection.take() {
                Some(socket) => socket,
                None => self.connect()?,
            };
            send(&socket, packet).await?;
            let answer = receive(&socket).await?.ok_or_else(|| io::Error::other("it was closed"))?;
            *connection = Some(socket);
            Ok::<_, io::Error>(answer)
        };
        let (bytes, descriptors) = answer.await.map_err(|error| self.failed(&error.to_string()))?;
        Packet::read(&bytes, descriptors).map_err(|error| self.failed(error))
    }

    fn connect(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let socket = socket::connect(&self.path, SocketType::SEQPACKET)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        AsyncFd::new(socket)
    }

    fn unexpected(&self, packet: Packet) -> Error {
        match packet {
            Packet::Error(text) => Error { code: Code::NotFound, message: text },
            other => self.failed(&format!("it answered {other:?}")),
        }
    }

    fn failed(&self, why: &str) -> Error {
        Error {
            code: Code::Disconnected,
            message: format!("the descriptor socket {}: {why}", self.path.display()),
        }
    }
}
