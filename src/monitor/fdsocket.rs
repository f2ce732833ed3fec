//! The socket over which engines hand in descriptors for a later create.
//!
//! `startFdSocket` makes it: `conmon-fd.sock` in the run directory, SEQPACKET.
//! Every packet begins with a number of eight bytes, little-endian:
//!
//! ```text
//!  request   id << 32 | count            and `count` descriptors (SCM_RIGHTS)
//!            0                           close what was not used; no answer
//!  answer    id << 32 | count            then a slot number of eight bytes each
//!            id << 32 | 0xffffffff       then a text: what went wrong
//! ```
//!
//! A slot holds one descriptor until a create request names it, which takes it,
//! or its connection ends, which closes it. Numbers are not used again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags, SocketType,
    acceptfrom_with, recvmsg, send, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::limits::{FD_CONNECTIONS_MAX, FD_SLOTS_MAX, FDS_PER_MESSAGE_MAX};
use crate::monitor::create::remove_stale;
use crate::monitor::error::Error;
use crate::sys::socket;

/// The socket's name in the run directory.
pub const NAME: &str = "conmon-fd.sock";

/// The half of an answer's header that says that a text follows.
const FAILED: u64 = 0xffff_ffff;

/// Descriptors that wait for the create requests that will name them.
#[derive(Debug)]
pub struct FdSlots {
    slots: RefCell<BTreeMap<u64, Slot>>,
    last: Cell<u64>,
    connections: Cell<u64>,
    permits: Semaphore,
    listening: RefCell<Option<AbortHandle>>,
}

#[derive(Debug)]
struct Slot {
    connection: u64,
    fd: OwnedFd,
}

impl Default for FdSlots {
    fn default() -> Self {
        Self {
            slots: RefCell::default(),
            last: Cell::new(0),
            connections: Cell::new(0),
            permits: Semaphore::new(FD_CONNECTIONS_MAX),
            listening: RefCell::default(),
        }
    }
}

impl FdSlots {
    /// Makes the socket in `run_dir`, unless it is there, and serves it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn start(self: &Rc<Self>, run_dir: &Path) -> Result<PathBuf, Error> {
        let path = run_dir.join(NAME);
        let mut listening = self.listening.borrow_mut();
        if listening.is_some() && path.exists() {
            return Ok(path);
        }
        // An earlier monitor's, which nobody serves any more: the directory is locked by us.
        remove_stale(&path)?;
        let fail = |source| Error::io(format!("make the socket {}", path.display()), source);
        let backlog = i32::try_from(FD_CONNECTIONS_MAX).unwrap_or(i32::MAX);
        let listener = socket::listen(&path, SocketType::SEQPACKET, backlog).map_err(fail)?;
        let listener = AsyncFd::with_interest(listener, Interest::READABLE).map_err(fail)?;
        let task = tokio::task::spawn_local(Rc::clone(self).serve(listener));
        if let Some(before) = listening.replace(task.abort_handle()) {
            before.abort();
        }
        Ok(path)
    }

    /// Takes the descriptors out of `slots`: all of them or none.
    ///
    /// # Errors
    /// [`Error::EmptySlot`] for the first that holds none, or is named twice.
    pub fn take(&self, slots: &[u64]) -> Result<Vec<OwnedFd>, Error> {
        let mut held = self.slots.borrow_mut();
        for (position, slot) in slots.iter().enumerate() {
            let named_before = slots.iter().take(position).any(|other| other == slot);
            if named_before || !held.contains_key(slot) {
                return Err(Error::EmptySlot(*slot));
            }
        }
        Ok(slots.iter().filter_map(|slot| held.remove(slot)).map(|slot| slot.fd).collect())
    }

    async fn serve(self: Rc<Self>, listener: AsyncFd<OwnedFd>) {
        loop {
            // More connections wait in the socket's backlog. The semaphore is never closed.
            let Ok(permit) = self.permits.acquire().await else { return };
            permit.forget();
            let connection = loop {
                let Ok(mut ready) = listener.readable().await else { return };
                let accepted = ready.try_io(|fd| {
                    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                    Ok(acceptfrom_with(fd.get_ref(), flags)?.0)
                });
                match accepted {
                    Ok(Ok(connection)) => break connection,
                    Ok(Err(error)) => {
                        ::log::warn!("cannot accept a connection to {NAME}: {error}");
                        tokio::time::sleep(crate::limits::ACCEPT_PAUSE).await;
                    }
                    Err(_would_block) => {}
                }
            };
            tokio::task::spawn_local(Rc::clone(&self).connection(connection));
        }
    }

    /// Serves one connection to its end, and closes what was not used of it.
    async fn connection(self: Rc<Self>, socket: OwnedFd) {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        let served = async {
            check_peer(&socket)?;
            let socket = AsyncFd::new(socket)?;
            while let Some(packet) = receive(&socket).await? {
                if let Some(answer) = self.answer(number, packet) {
                    reply(&socket, &answer).await?;
                }
            }
            Ok::<_, io::Error>(())
        };
        if let Err(error) = served.await {
            ::log::debug!("a connection to {NAME} ended: {error}");
        }
        self.close(number);
        self.permits.add_permits(1);
    }

    fn close(&self, connection: u64) {
        self.slots.borrow_mut().retain(|_, slot| slot.connection != connection);
    }

    /// Puts a packet's descriptors into slots; what to say about it.
    fn answer(&self, connection: u64, packet: Packet) -> Option<Vec<u8>> {
        let Some(header) = packet.header else {
            return Some(failure(0, "a request is a number of eight bytes"));
        };
        if header == 0 && packet.fds.is_empty() {
            self.close(connection);
            return None;
        }
        let (id, count) = (header >> 32, header & FAILED);
        let brought = packet.fds.len();
        if packet.cut {
            let text = format!(
                "{brought} of {count} descriptors arrived; at most {FDS_PER_MESSAGE_MAX} fit, and this process must be able to open them"
            );
            return Some(failure(id, &text));
        }
        if usize::try_from(count).ok() != Some(brought) {
            let text = format!("the request announces {count} descriptors and brings {brought}");
            return Some(failure(id, &text));
        }
        let mut slots = self.slots.borrow_mut();
        if slots.len() + brought > FD_SLOTS_MAX {
            let text = format!(
                "{} descriptors wait for a container already; at most {FD_SLOTS_MAX} can",
                slots.len()
            );
            return Some(failure(id, &text));
        }
        let mut answer = header.to_le_bytes().to_vec();
        for fd in packet.fds {
            let number = self.last.get() + 1;
            self.last.set(number);
            slots.insert(number, Slot { connection, fd });
            answer.extend_from_slice(&number.to_le_bytes());
        }
        Some(answer)
    }
}

fn failure(id: u64, text: &str) -> Vec<u8> {
    let mut answer = (id << 32 | FAILED).to_le_bytes().to_vec();
    answer.extend_from_slice(text.as_bytes());
    answer
}

/// What arrived at once.
#[derive(Debug)]
struct Packet {
    /// `None` if it was not eight bytes.
    header: Option<u64>,
    fds: Vec<OwnedFd>,
    /// Not all descriptors could be received.
    cut: bool,
}

/// The next packet; `None` at the end.
async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Packet>> {
    loop {
        let mut ready = socket.readable().await?;
        if let Ok(received) = ready.try_io(|socket| receive_now(socket.get_ref())) {
            return received;
        }
    }
}

fn receive_now(socket: &OwnedFd) -> io::Result<Option<Packet>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 9];
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let message = recvmsg(socket.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            fds.extend(some);
        }
    }
    if message.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    let header = bytes.get(..message.bytes).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    let cut = message.flags.contains(ReturnFlags::CTRUNC);
    Ok(Some(Packet { header: header.map(u64::from_le_bytes), fds, cut }))
}

async fn reply(socket: &AsyncFd<OwnedFd>, answer: &[u8]) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        let sent = ready.try_io(|socket| Ok(send(socket.get_ref(), answer, SendFlags::NOSIGNAL)?));
        if let Ok(sent) = sent {
            return sent.map(drop);
        }
    }
}

/// Only the user that runs the pod, and root: as at the RPC socket.
fn check_peer(socket: &OwnedFd) -> io::Result<()> {
    let peer = sockopt::socket_peercred(socket)?.uid;
    if peer.is_root() || peer == rustix::process::geteuid() {
        return Ok(());
    }
    Err(io::Error::other(format!("its peer is user {}", peer.as_raw())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(header: u64, count: usize) -> Packet {
        let fds = (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        Packet { header: Some(header), fds, cut: false }
    }

    fn words(answer: &[u8]) -> Vec<u64> {
        answer.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn slots_count_up_and_are_used_once() {
        let slots = FdSlots::default();
        assert_eq!(words(&slots.answer(1, packet(7 << 32 | 2, 2)).unwrap()), [7 << 32 | 2, 1, 2]);
        assert_eq!(words(&slots.answer(2, packet(1 << 32 | 1, 1)).unwrap()), [1 << 32 | 1, 3]);
        assert_eq!(slots.take(&[3, 1]).unwrap().len(), 2);
        assert_eq!(slots.take(&[1]).unwrap_err().to_string(), "no file descriptor in slot 1");
        // None of them is taken when one is not there, or named twice.
        slots.take(&[2, 9]).unwrap_err();
        slots.take(&[2, 2]).unwrap_err();
        slots.take(&[2]).unwrap();
    }

    #[test]
    fn a_connection_takes_its_unused_descriptors_along() {
        let slots = FdSlots::default();
        slots.answer(1, packet(1 << 32 | 1, 1)).unwrap();
        slots.answer(2, packet(1 << 32 | 1, 1)).unwrap();
        assert_eq!(slots.answer(1, packet(0, 0)), None);
        slots.take(&[1]).unwrap_err();
        slots.close(2);
        slots.take(&[2]).unwrap_err();
    }

    #[test]
    fn errors_carry_the_request_and_a_text() {
        let slots = FdSlots::default();
        for (wrong, text) in [
            (packet(5 << 32 | 3, 1), "announces 3 descriptors and brings 1"),
            (Packet { cut: true, ..packet(5 << 32 | 1, 1) }, "1 of 1 descriptors arrived"),
            (packet(5 << 32 | 2000, FD_SLOTS_MAX + 1), "announces 2000"),
            (packet(5 << 32 | (FD_SLOTS_MAX as u64 + 1), FD_SLOTS_MAX + 1), "wait for a container already"),
        ] {
            let answer = slots.answer(1, wrong).unwrap();
            assert_eq!(words(&answer[..8]), [5 << 32 | 0xffff_ffff]);
            assert!(
                String::from_utf8_lossy(&answer[8..]).contains(text),
                "{:?}",
                String::from_utf8_lossy(&answer[8..])
            );
        }
        assert!(slots.slots.borrow().is_empty());
    }
}
