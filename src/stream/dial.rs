//! Reaching a server in a pod from outside of its network.
//!
//! A socket belongs to the network namespace in which it was made, whoever uses it
//! afterwards. So a thread moves into the namespace, makes sockets, and ends; the
//! monitor itself stays where it is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::limits::{FORWARD_ADDRESSES_MAX, FORWARD_DIAL_TIMEOUT};
use crate::monitor::error::Error;
use crate::ns::network;
use crate::sys::nsfs;

/// Opens the network namespace at `path`.
///
/// # Errors
/// If it is anything else: joining the wrong namespace would be worse.
pub(super) fn open_namespace(path: &Path) -> Result<OwnedFd, Error> {
    let fail = |error: Errno| Error::io(format!("open the network namespace {}", path.display()), error);
    let wrong = || Error::Invalid(format!("{} is no network namespace", path.display()));
    // As a mere place first: opening a pipe or a device could block, or do something.
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    let system = rustix::fs::fstatfs(&place).map_err(fail)?;
    if system.f_type != libc::NSFS_MAGIC {
        return Err(wrong());
    }
    let place = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
    let namespace = rustix::fs::open(place, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    if nsfs::kind(&namespace).map_err(|_| wrong())? != libc::CLONE_NEWNET {
        return Err(wrong());
    }
    Ok(namespace)
}

/// Connects to `port` in `namespace`: to 127.0.0.1 and ::1 at once, and the first
/// that accepts wins. If both refuse, the server may listen on an address of the
/// pod only, so those are tried in the same way.
///
/// # Errors
/// A sentence for the client.
pub(super) async fn dial(namespace: &OwnedFd, port: u16) -> Result<TcpStream, String> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let refused = match first_to_accept(namespace, &loopback, port).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let own = own_addresses(namespace);
    if !own.is_empty()
        && let Ok(stream) = first_to_accept(namespace, &own, port).await
    {
        return Ok(stream);
    }
    Err(format!("cannot connect to port {port} in the pod: {refused}"))
}

/// The pod's addresses that can be named without their interface.
fn own_addresses(namespace: &OwnedFd) -> Vec<IpAddr> {
    let network = match network::look(namespace) {
        Ok(network) => network,
        Err(error) => {
            log::warn!("cannot look at a pod's addresses: {error}");
            return Vec::new();
        }
    };
    let all = network.interfaces.into_iter().flat_map(|interface| interface.addresses);
    let usable = all.map(|address| address.address).filter(|address| {
        let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        !link_local && !address.is_loopback()
    });
    usable.take(FORWARD_ADDRESSES_MAX).collect()
}

async fn first_to_accept(namespace: &OwnedFd, addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    for (socket, address) in sockets_in(namespace, addresses)? {
        let socket = TcpSocket::from_std_stream(socket.into());
        let address = SocketAddr::new(address, port);
        attempts.spawn_local(async move {
            match tokio::time::timeout(FORWARD_DIAL_TIMEOUT, socket.connect(address)).await {
                Ok(connected) => connected,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        });
    }
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    // The first success drops the set, and with it the other attempts.
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(error) => failed = io::Error::other(error),
        }
    }
    Err(failed)
}

/// One socket for each address whose family the namespace has.
fn sockets_in(namespace: &OwnedFd, addresses: &[IpAddr]) -> io::Result<Vec<(OwnedFd, IpAddr)>> {
    let namespace = namespace.as_fd();
    let make = || {
        nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::socket_with(family, SocketType::STREAM, flags, None) {
                Ok(socket) => sockets.push((socket, *address)),
                Err(Errno::AFNOSUPPORT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sockets)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("dial".into()).stack_size(64 << 10);
        let thread = thread.spawn_scoped(scope, make)?;
        thread.join().map_err(|_| io::Error::other("the thread that makes sockets panicked"))?
    })
}
