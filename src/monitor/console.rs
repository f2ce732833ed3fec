//! The console socket: how an OCI runtime hands over the master of a terminal
//! (runtime-spec, "Terminals").

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, acceptfrom_with, recvmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::monitor::error::Error;
use crate::sys::socket;

/// Longest path of a Unix socket (unix(7): 108 bytes with the NUL).
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A socket that waits for one terminal; its file goes when this is dropped.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    directory: OwnedFd,
    name: String,
    listener: AsyncFd<OwnedFd>,
}

impl ConsoleSocket {
    /// Makes the socket `name` in `directory`, which only we can enter.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(directory: &Path, name: String) -> Result<Self, Error> {
        let path = directory.join(&name);
        let fail = |source| Error::io(format!("make the console socket {}", path.display()), source);
        let listener = socket::listen(&path, SocketType::STREAM, 1).map_err(fail)?;
        let opened = rustix::fs::open(
            directory,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|error| fail(error.into()))?;
        let listener = AsyncFd::with_interest(listener, Interest::READABLE).map_err(fail)?;
        Ok(Self { directory: opened, name, listener, path })
    }

    /// A path for the runtime's command line that fits its `sun_path`. A longer one
    /// leads through our descriptor of the directory; that takes the right to trace
    /// this process, which a runtime behind the wall of [`super::starter`] has not.
    #[must_use]
    pub fn argument(&self) -> PathBuf {
        if self.path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return self.path.clone();
        }
        let (pid, fd) = (std::process::id(), self.directory.as_raw_fd());
        PathBuf::from(format!("/proc/{pid}/fd/{fd}/{}", self.name))
    }

    /// Waits for the terminal. Cancel it when the runtime has exited.
    ///
    /// # Errors
    /// If what arrives is not a descriptor.
    pub async fn receive(&self) -> Result<OwnedFd, Error> {
        let fail = |source| Error::io("receive the terminal from the OCI runtime", source);
        let connection = loop {
            let mut ready = self.listener.readable().await.map_err(fail)?;
            let accepted = ready.try_io(|fd| {
                Ok(acceptfrom_with(fd.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
            });
            if let Ok(accepted) = accepted {
                break accepted.map_err(fail)?.0;
            }
        };
        let connection = AsyncFd::with_interest(connection, Interest::READABLE).map_err(fail)?;
        loop {
            let mut ready = connection.readable().await.map_err(fail)?;
            if let Ok(received) = ready.try_io(|fd| receive_fd(fd.get_ref())) {
                return received.map_err(fail);
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            ::log::debug!("console socket {} was gone already: {error}", self.path.display());
        }
    }
}

/// Takes the one descriptor of a message; its text, the terminal's name, is not
/// needed.
fn receive_fd(connection: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let mut parts = [io::IoSliceMut::new(&mut text)];
    recvmsg(connection.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.next().and_then(|mut fds| fds.next());
    fd.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the message held no descriptor"))
}
