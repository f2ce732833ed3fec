//! Where streaming clients come in: a port of the loopback interface, with or
//! without TLS, or a Unix socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::net::SocketType;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::tls;
use crate::limits::BACKLOG_MAX;
use crate::monitor::config::StreamingDoor;
use crate::sys;

/// File name of the socket in the run directory.
pub const SOCKET_NAME: &str = "streaming.sock";

/// A client's connection, as the kernel has it.
#[derive(Debug)]
pub enum Stream {
    /// Over the loopback interface.
    Tcp(TcpStream),
    /// Over a Unix socket, or from [`tls`].
    Unix(UnixStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Stream {
    /// See [`TcpStream::try_io`].
    ///
    /// # Errors
    /// What `action` says; `WouldBlock` makes it forget the readiness.
    pub(super) fn try_io<T>(
        &self,
        interest: Interest,
        action: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, action),
            Self::Unix(stream) => stream.try_io(interest, action),
        }
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await,
            Self::Unix(stream) => stream.ready(interest).await,
        }
    }

    pub(super) fn try_write_vectored(&self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(parts),
            Self::Unix(stream) => stream.try_write_vectored(parts),
        }
    }
}

/// What is listened on.
#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// An open door.
#[derive(Debug)]
pub(super) struct Door {
    listener: Listener,
    tls: Option<tls::Files>,
}

impl Door {
    /// Listens, and says with what the URLs begin.
    pub(super) fn open(kind: &StreamingDoor, run_dir: &Path) -> io::Result<(Self, String)> {
        let tls = match kind {
            StreamingDoor::Socket => return Self::open_socket(&run_dir.join(SOCKET_NAME)),
            StreamingDoor::Port => None,
            StreamingDoor::EncryptedPort { certificates, key } => {
                Some(tls::Files { certificates: certificates.clone(), key: key.clone() })
            }
        };
        if let Some(files) = &tls {
            // Whoever asks for a URL shall hear what is wrong; its client could not.
            drop(files.acceptor()?);
        }
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", listener.local_addr()?);
        Ok((Self { listener: Listener::Tcp(TcpListener::from_std(listener)?), tls }, base))
    }

    fn open_socket(path: &Path) -> io::Result<(Self, String)> {
        match std::fs::remove_file(path) {
            // Of a monitor before this one.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = sys::socket::listen(path, SocketType::STREAM, BACKLOG_MAX)?;
        let listener = Listener::Unix(UnixListener::from_std(socket.into())?);
        let name = path.to_str().ok_or_else(|| io::Error::other("the run directory is not UTF-8"))?;
        Ok((Self { listener, tls: None }, format!("http+unix://{}", percent_encoded(name))))
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.listener {
            Listener::Tcp(listener) => Ok(Stream::Tcp(listener.accept().await?.0)),
            Listener::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }

    /// Makes a connection one that is spoken over: checks who it is, or undoes the encryption.
    pub(super) async fn welcome(&self, stream: Stream) -> io::Result<(Stream, Option<tls::Relay>)> {
        match (stream, &self.tls) {
            (Stream::Tcp(stream), tls) => {
                stream.set_nodelay(true)?;
                match tls {
                    None => Ok((Stream::Tcp(stream), None)),
                    Some(files) => {
                        let (plain, relay) = tls::decrypt(stream, files).await?;
                        Ok((Stream::Unix(plain), Some(relay)))
                    }
                }
            }
            (Stream::Unix(stream), _) => {
                let (peer, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
                if peer == 0 || peer == own {
                    Ok((Stream::Unix(stream), None))
                } else {
                    Err(io::Error::other(format!("its peer is user {peer}, not root nor user {own}")))
                }
            }
        }
    }
}

/// A path as the host part of a URL (RFC 3986, section 2.1).
fn percent_encoded(path: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_url() {
        assert_eq!(percent_encoded("/run/a b/ü-1.sock"), "%2Frun%2Fa%20b%2F%C3%BC-1.sock");
    }
}
