//! Packets of the descriptor socket, on which descriptors change hands between a
//! plugin and the monitor. Cap'n Proto carries none in most languages.
//!
//! `plugins-fd.sock` in the run directory, SEQPACKET. A ticket is 16 bytes.
//!
//! ```text
//!  request  'p'           and one descriptor (SCM_RIGHTS): keep it for me
//!           't' ticket                                     give me that one
//!  answer   't' ticket                                     to a 'p'
//!           'p'           and one descriptor               to a 't'
//!           'e' text                                       it went wrong
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::unix::AsyncFd;

/// Bytes of a ticket: too many to guess.
pub(super) const TICKET_BYTES: usize = 16;

/// Bytes of the longest packet: an error's text.
const PACKET_BYTES_MAX: usize = 256;

/// What a packet says. The monitor's descriptors are a `ForeignFd`.
#[derive(Debug)]
pub(super) enum Packet<Fd = OwnedFd> {
    /// A descriptor.
    Put(Fd),
    /// A ticket.
    Ticket([u8; TICKET_BYTES]),
    /// It went wrong.
    Error(String),
}

impl<Fd: AsFd> Packet<Fd> {
    /// A packet's meaning.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(bytes: &[u8], mut descriptors: Vec<Fd>) -> Result<Self, &'static str> {
        match (bytes.split_first(), descriptors.pop()) {
            (Some((b'p', [])), Some(descriptor)) if descriptors.is_empty() => Ok(Self::Put(descriptor)),
            (Some((b't', ticket)), None) => match ticket.try_into() {
                Ok(ticket) => Ok(Self::Ticket(ticket)),
                Err(_) => Err("a ticket has 16 bytes"),
            },
            (Some((b'e', text)), None) => Ok(Self::Error(String::from_utf8_lossy(text).into_owned())),
            _ => Err("a packet is a 'p' with one descriptor, or a 't' with a ticket"),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = match self {
            Self::Put(_) => b"p".to_vec(),
            Self::Ticket(ticket) => [b"t", &ticket[..]].concat(),
            Self::Error(text) => [b"e", text.as_bytes()].concat(),
        };
        bytes.truncate(PACKET_BYTES_MAX);
        bytes
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Put(descriptor) => Some(descriptor.as_fd()),
            _ => None,
        }
    }
}

/// Sends one packet.
pub(super) async fn send(socket: &AsyncFd<OwnedFd>, packet: &Packet<impl AsFd>) -> io::Result<()> {
    let bytes = packet.bytes();
    loop {
        let mut ready = socket.writable().await?;
        if let Ok(sent) = ready.try_io(|socket| send_now(socket.get_ref(), &bytes, packet.descriptor())) {
            return sent;
        }
    }
}

fn send_now(socket: &OwnedFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors
        && !control.push(SendAncillaryMessage::ScmRights(descriptors))
    {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(socket, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next packet's bytes and descriptors; `None` at the end.
pub(super) async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    loop {
        let mut ready = socket.readable().await?;
        if let Ok(received) = ready.try_io(|socket| receive_now(socket.get_ref())) {
            return received;
        }
    }
}

fn receive_now(socket: &OwnedFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    // Room for one more than is allowed, so that two are noticed; what does not fit the kernel closes.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; PACKET_BYTES_MAX];
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let message = recvmsg(socket.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            descriptors.extend(some);
        }
    }
    if message.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    Ok(Some((bytes.get(..message.bytes).unwrap_or_default().to_vec(), descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn packets_are_what_they_say() {
        type Packet = super::Packet<OwnedFd>;
        assert!(matches!(Packet::read(b"p", descriptors(1)), Ok(Packet::Put(_))));
        assert!(
            matches!(Packet::read(b"t0123456789abcdef", vec![]), Ok(Packet::Ticket(t)) if &t == b"0123456789abcdef")
        );
        assert!(matches!(Packet::read(b"eno", vec![]), Ok(Packet::Error(text)) if text == "no"));
        for (bytes, count) in
            [(&b"p"[..], 0), (b"p", 2), (b"px", 1), (b"t", 0), (b"t0123456789abcdef", 1), (b"", 1), (b"x", 0)]
        {
            assert!(Packet::read(bytes, descriptors(count)).is_err(), "{bytes:?} with {count}");
        }
    }
}
