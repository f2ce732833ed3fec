//! Descriptors that wait to be fetched by a plugin, or to be used by its verdict.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::net::{SocketFlags, SocketType, acceptfrom_with, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::packet::{Packet, TICKET_BYTES, receive, send};
use super::remote::CallKey;
use crate::limits::{ACCEPT_PAUSE, PLUGIN_CONNECTIONS_MAX, PLUGIN_DESCRIPTORS_MAX};
use crate::monitor::seccomp::DESCRIPTORS_NAME as NAME;
use crate::seccomp::foreign::{Closer, ForeignFd};
use crate::sys::socket;

/// Whose a descriptor is: it is closed when its owner ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A connection to the descriptor socket.
    Connection(u64),
    /// A plugin's registration.
    Registration(u64),
}

#[derive(Debug)]
struct Slot {
    ticket: [u8; TICKET_BYTES],
    owner: Owner,
    /// The call whose end is its end.
    call: Option<CallKey>,
    fd: ForeignFd,
}

/// All that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    slots: RefCell<VecDeque<Slot>>,
    connections: Cell<u64>,
    connected: Cell<usize>,
}

impl Tickets {
    /// Keeps `fd` until it is taken, or its owner or `call` ends. Of an owner who
    /// lets too many wait, the oldest is closed.
    pub(super) fn keep(
        &self,
        owner: Owner,
        call: Option<CallKey>,
        fd: ForeignFd,
    ) -> io::Result<[u8; TICKET_BYTES]> {
        let mut ticket = [0; TICKET_BYTES];
        let mut filled = 0;
        while let Some(rest) = ticket.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        let mut slots = self.slots.borrow_mut();
        if slots.iter().filter(|slot| slot.owner == owner).count() >= PLUGIN_DESCRIPTORS_MAX
            && let Some(oldest) = slots.iter().position(|slot| slot.owner == owner)
        {
            slots.remove(oldest);
        }
        slots.push_back(Slot { ticket, owner, call, fd });
        Ok(ticket)
    }

    /// Takes out what `ticket` stands for.
    pub(super) fn take(&self, ticket: &[u8]) -> Option<ForeignFd> {
        let mut slots = self.slots.borrow_mut();
        let at = slots.iter().position(|slot| slot.ticket == ticket)?;
        slots.remove(at).map(|slot| slot.fd)
    }

    /// Closes all that is left of `owner`.
    pub(super) fn close(&self, owner: Owner) {
        self.slots.borrow_mut().retain(|slot| slot.owner != owner);
    }

    /// Closes what `owner` has left of a call that is over.
    pub(super) fn close_call(&self, owner: Owner, call: CallKey) {
        self.slots.borrow_mut().retain(|slot| slot.owner != owner || slot.call != Some(call));
    }

    /// Makes the socket in `run_dir` and serves it; its path.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn serve(self: &Rc<Self>, run_dir: &Path) -> io::Result<PathBuf> {
        let path = run_dir.join(NAME);
        match std::fs::remove_file(&path) {
            // An earlier monitor's: the run directory is locked by us.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let backlog = i32::try_from(PLUGIN_CONNECTIONS_MAX).unwrap_or(i32::MAX);
        let listener = socket::listen(&path, SocketType::SEQPACKET, backlog)?;
        let listener = AsyncFd::with_interest(listener, Interest::READABLE)?;
        tokio::task::spawn_local(Rc::clone(self).accept(listener));
        Ok(path)
    }

    async fn accept(self: Rc<Self>, listener: AsyncFd<OwnedFd>) {
        loop {
            let Ok(mut ready) = listener.readable().await else { return };
            let accepted = ready.try_io(|listener| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                Ok(acceptfrom_with(listener.get_ref(), flags)?.0)
            });
            match accepted {
                Ok(Ok(_)) if self.connected.get() >= PLUGIN_CONNECTIONS_MAX => {
                    ::log::warn!("{NAME} has {PLUGIN_CONNECTIONS_MAX} connections already; refused one more");
                }
                Ok(Ok(connection)) => {
                    self.connected.set(self.connected.get() + 1);
                    tokio::task::spawn_local(Rc::clone(&self).connection(connection));
                }
                Ok(Err(error)) => {
                    ::log::warn!("cannot accept a connection to {NAME}: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(_would_block) => {}
            }
        }
    }

    async fn connection(self: Rc<Self>, socket: OwnedFd) {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        let owner = Owner::Connection(number);
        let served = async {
            let peer = sockopt::socket_peercred(&socket)?.uid;
            if !peer.is_root() && peer != rustix::process::geteuid() {
                return Err(io::Error::other(format!("its peer is user {}", peer.as_raw())));
            }
            let socket = AsyncFd::new(socket)?;
            let closer = Closer::default();
            while let Some((bytes, descriptors)) = receive(&socket).await? {
                let descriptors = descriptors.into_iter().map(|fd| closer.keep(fd)).collect();
                if !closer.has_room() {
                    let error = "descriptors that it handed over cannot be closed";
                    return Err(io::Error::other(error));
                }
                send(&socket, &self.answer(owner, &bytes, descriptors)).await?;
            }
            Ok(())
        };
        if let Err(error) = served.await {
            ::log::debug!("a connection to {NAME} ended: {error}");
        }
        self.close(owner);
        self.connected.set(self.connected.get().saturating_sub(1));
    }

    fn answer(&self, owner: Owner, bytes: &[u8], descriptors: Vec<ForeignFd>) -> Packet<ForeignFd> {
        match Packet::read(bytes, descriptors) {
            Ok(Packet::Put(fd)) => match self.keep(owner, None, fd) {
                Ok(ticket) => Packet::Ticket(ticket),
                Err(error) => Packet::Error(format!("the descriptor cannot be kept: {error}")),
            },
            Ok(Packet::Ticket(ticket)) => match self.take(&ticket) {
                Some(fd) => Packet::Put(fd),
                None => Packet::Error("this ticket was used already, or its call is over".into()),
            },
            Ok(Packet::Error(_)) => Packet::Error("nobody asked".into()),
            Err(wrong) => Packet::Error(wrong.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> ForeignFd {
        OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).into()
    }

    #[test]
    fn a_ticket_is_good_once_and_while_its_owner_lives() {
        let tickets = Tickets::default();
        let (a, b) = (Owner::Connection(1), Owner::Registration(1));
        let keep = |owner| tickets.keep(owner, None, null()).unwrap();
        let (first, second) = (keep(a), keep(b));
        assert_ne!(first, second);
        assert!(tickets.take(&first).is_some());
        assert!(tickets.take(&first).is_none());
        tickets.close(a);
        assert!(tickets.take(b"").is_none());
        tickets.close(b);
        assert!(tickets.take(&second).is_none());
    }

    #[test]
    fn who_hoards_loses_the_oldest_of_his_own() {
        let tickets = Tickets::default();
        let other = tickets.keep(Owner::Connection(2), None, null()).unwrap();
        let first = tickets.keep(Owner::Connection(1), None, null()).unwrap();
        for _ in 0..PLUGIN_DESCRIPTORS_MAX {
            tickets.keep(Owner::Connection(1), None, null()).unwrap();
        }
        assert!(tickets.take(&first).is_none());
        assert!(tickets.take(&other).is_some());
        assert_eq!(tickets.slots.borrow().len(), PLUGIN_DESCRIPTORS_MAX);
    }
}
