//! Unix sockets whose path may be longer than `sun_path` (108 bytes, unix(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The directory of a socket, opened, and an address that reaches the socket
/// through it: `/proc/self/fd/<n>/<name>` is short whatever the path.
struct Address {
    _directory: File,
    address: SocketAddrUnix,
}

impl Address {
    fn new(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket path needs a file name"));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = File::from(rustix::fs::open(parent, flags, Mode::empty())?);
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self { address: SocketAddrUnix::new(short)?, _directory: directory })
    }
}

/// Makes a socket, binds it to `path` with mode 0600 and listens. The socket is
/// close-on-exec and non-blocking.
///
/// # Errors
/// `EADDRINUSE` if the path exists; else what socket(2), bind(2), listen(2) say.
pub fn listen(path: &Path, kind: SocketType, backlog: i32) -> io::Result<OwnedFd> {
    let address = Address::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    // bind(2) makes the file with the socket inode's mode: 0600 from birth, whatever the umask lets.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address.address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Connects to the socket at `path`, blocking until it is accepted or refused.
///
/// # Errors
/// What socket(2) and connect(2) say.
pub fn connect(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let address = Address::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &address.address)?;
    Ok(socket)
}

/// Connects to the socket at `path` if that needs no waiting. The socket is
/// non-blocking.
///
/// # Errors
/// `EAGAIN` if the backlog is full; else what socket(2) and connect(2) say.
pub fn connect_now(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let address = Address::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &address.address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn path_beyond_sun_path_is_bound_private_and_connects() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("d".repeat(200));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("conmon.sock");

        let _listener = listen(&path, SocketType::STREAM, 1).unwrap();
        connect(&path, SocketType::STREAM).unwrap();

        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path, SocketType::STREAM, 1).is_err(), "a live socket must not be replaced");
    }
}
