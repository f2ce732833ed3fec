//! The socket that OCI runtimes send listeners to: one connection for each, with
//! descriptors in its first message and a JSON text, whose sender may stay. There is no
//! answer: who sends goes on when it has sent.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags, acceptfrom_with, recvmsg,
    sockopt,
};
use serde::de::IgnoredAny;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::broker::Broker;
use super::state::{ProcessState, StateError};
use crate::limits::{
    ACCEPT_PAUSE, FDS_PER_MESSAGE_MAX, SECCOMP_ARRIVALS_MAX, SECCOMP_SESSIONS_BYTES_MAX,
    SECCOMP_SESSIONS_MAX, SECCOMP_STATE_BYTES_MAX, SECCOMP_STATE_TIMEOUT,
};
use crate::sys::process::now_ns;
use crate::sys::seccomp::is_listener;

/// Why a listener was not taken. Its container's calls fail with `ENOSYS` then:
/// the kernel does that when a listener is closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArrivalError {
    /// Neither root nor the user that runs the pod.
    #[error("a seccomp listener was sent by user {0}, who has no business here")]
    Peer(u32),
    /// The connection broke.
    #[error("cannot receive a seccomp listener: {0}")]
    Io(#[from] io::Error),
    /// Too long.
    #[error("a runtime's state is longer than {SECCOMP_STATE_BYTES_MAX} bytes")]
    TooLong,
    /// Too slow.
    #[error("a runtime did not send its state within {} s", SECCOMP_STATE_TIMEOUT.as_secs())]
    TooSlow,
    /// Not what the specification says.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state names a descriptor that did not come.
    #[error("the runtime's state names descriptor {position} as the listener, and {brought} came")]
    Missing {
        /// Its place.
        position: usize,
        /// How many came.
        brought: usize,
    },
    /// Some other descriptor.
    #[error("what the runtime sent as a seccomp listener is none")]
    NotAListener,
    /// The socket is one container's.
    #[error("container {sent} sent its seccomp listener to the socket of {expected}")]
    WrongContainer {
        /// Who sent.
        sent: String,
        /// Whose socket it is.
        expected: String,
    },
    /// Too many listeners.
    #[error(
        "too many seccomp listeners: a pod has {SECCOMP_SESSIONS_MAX}, whose descriptions take \
         {SECCOMP_SESSIONS_BYTES_MAX} bytes, and one container no more of them than it leaves"
    )]
    TooMany,
}

/// A socket where runtimes connect.
#[derive(Debug)]
pub struct Door {
    /// Listening, non-blocking.
    pub listener: OwnedFd,
    /// The only container whose listeners are taken, if it is for one.
    pub container: Option<String>,
}

impl Broker {
    /// Takes listeners at `door` from now on. One for the same container before is
    /// closed.
    pub fn open(self: &Rc<Self>, door: Door) {
        let container = door.container.clone();
        let task = tokio::task::spawn_local(Rc::clone(self).receive(door));
        if let Some(container) = container
            && let Some(before) = self.doors.borrow_mut().insert(container, task.abort_handle())
        {
            before.abort();
        }
    }

    /// Takes no more listeners at the door of one container.
    pub fn close(&self, container: &str) {
        if let Some(door) = self.doors.borrow_mut().remove(container) {
            door.abort();
        }
    }

    async fn receive(self: Rc<Self>, door: Door) {
        let Ok(listener) = AsyncFd::with_interest(door.listener, Interest::READABLE) else { return };
        let permits = Arc::new(Semaphore::new(SECCOMP_ARRIVALS_MAX));
        let container: Option<Rc<str>> = door.container.map(Rc::from);
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let Ok(mut ready) = listener.readable().await else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted = ready.try_io(|fd| Ok(acceptfrom_with(fd.get_ref(), flags)?.0));
            match accepted {
                Ok(Ok(connection)) => {
                    let (broker, container) = (Rc::clone(&self), container.clone());
                    tokio::task::spawn_local(async move {
                        if let Err(error) = broker.arrive(connection, container.as_deref()).await {
                            ::log::warn!("{error}");
                        }
                        drop(permit);
                    });
                }
                Ok(Err(error)) => {
                    ::log::warn!("cannot accept a connection for seccomp: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(_would_block) => {}
            }
        }
    }

    async fn arrive(
        self: Rc<Self>,
        connection: OwnedFd,
        container: Option<&str>,
    ) -> Result<(), ArrivalError> {
        check_peer(&connection)?;
        let connection = AsyncFd::with_interest(connection, Interest::READABLE)?;
        let received = timeout(SECCOMP_STATE_TIMEOUT, read_all(&connection)).await;
        let (json, mut fds) = received.map_err(|_| ArrivalError::TooSlow)??;
        let state = ProcessState::parse(&json)?;
        if let Some(expected) = container.filter(|expected| *expected != state.state.id) {
            let expected = expected.to_owned();
            return Err(ArrivalError::WrongContainer { sent: state.state.id, expected });
        }
        let position = state.listener()?;
        let brought = fds.len();
        if position >= brought {
            return Err(ArrivalError::Missing { position, brought });
        }
        let listener = fds.swap_remove(position);
        // Whatever else came is of no use here.
        drop(fds);
        if !is_listener(listener.as_fd()) {
            return Err(ArrivalError::NotAListener);
        }
        let pod = Rc::clone(&self.pod);
        self.adopt(listener, |id| state.session(id, &pod, now_ns())).map_err(|_closed| ArrivalError::TooMany)
    }

    /// Takes `listener` as a session's and follows it. `describe` gets its number.
    ///
    /// # Errors
    /// Gives it back if there are too many.
    pub fn adopt(
        self: &Rc<Self>,
        listener: OwnedFd,
        describe: impl FnOnce(super::notification::SessionId) -> super::notification::Session,
    ) -> Result<(), OwnedFd> {
        let live = self.begin(listener, describe)?;
        let session = &live.session;
        ::log::info!(
            "seccomp session {} of {} began, process {}",
            session.id.0,
            session.container,
            session.pid
        );
        tokio::task::spawn_local(Rc::clone(self).follow(live));
        Ok(())
    }
}

/// A whole state, or everything up to the end: bytes, and the first message's descriptors. runc
/// 1.1 leaves its connection open while the container's process makes calls already.
async fn read_all(connection: &AsyncFd<OwnedFd>) -> Result<(Vec<u8>, Vec<OwnedFd>), ArrivalError> {
    let (mut json, mut fds) = (Vec::new(), Vec::new());
    loop {
        let mut ready = connection.readable().await?;
        let Ok(received) = ready.try_io(|fd| read_some(fd.get_ref(), &mut json)) else { continue };
        let (count, some) = received?;
        if fds.is_empty() {
            fds = some;
        }
        if json.len() > SECCOMP_STATE_BYTES_MAX {
            return Err(ArrivalError::TooLong);
        }
        if count == 0 || is_whole(&json) {
            return Ok((json, fds));
        }
    }
}

/// Whether nothing can be missing of a state.
fn is_whole(json: &[u8]) -> bool {
    json.trim_ascii_end().last() == Some(&b'}') && serde_json::from_slice::<IgnoredAny>(json).is_ok()
}

fn read_some(socket: &OwnedFd, json: &mut Vec<u8>) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            fds.extend(some);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("some of its descriptors were lost; raise RLIMIT_NOFILE of podinit"));
    }
    json.extend_from_slice(bytes.get(..message.bytes).unwrap_or_default());
    Ok((message.bytes, fds))
}

/// Only root and the user that runs the pod: as at the RPC socket.
fn check_peer(socket: &OwnedFd) -> Result<(), ArrivalError> {
    let peer = sockopt::socket_peercred(socket).map_err(io::Error::from)?.uid;
    if peer.is_root() || peer == rustix::process::geteuid() {
        return Ok(());
    }
    Err(ArrivalError::Peer(peer.as_raw()))
}
