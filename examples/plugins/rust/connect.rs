//! Lets containers connect to the addresses of a list, and to nothing else.
//!
//!     connect /run/podinit/pods/<pod>/plugins.sock 10.0.0.1:53 [::1]:443
//!
//! The profile must notify of connect, and should refuse io_uring_setup, which is
//! a way around it. The plugin makes the connection itself, with the address that
//! it judged, on a copy of the process's socket: were the call continued, another
//! thread could put another address in place.
#![allow(missing_docs, clippy::print_stdout, reason = "a program")]

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use podinit::rpc::plugin::client::{AddressKind, Call, Plugin, Request, Verdict, dial_in, run};
use rustix::io::Errno;

struct Connect {
    allowed: Vec<SocketAddr>,
}

impl Plugin for Connect {
    async fn decide(&self, call: Call) -> Verdict {
        let kind = call.notification.address(1).map(|address| &address.kind);
        let Some(AddressKind::Internet(address)) = kind else { return errno(Errno::ACCESS) };
        if !self.allowed.contains(address) {
            return errno(Errno::ACCESS);
        }
        let Ok(number) = i32::try_from(call.notification.arguments[0] & 0xffff_ffff) else {
            return errno(Errno::BADF);
        };
        let Ok(socket) = call.duplicate(number).await else { return errno(Errno::BADF) };
        let address = *address;
        // It can take minutes; others are decided meanwhile.
        let (done, connected) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || done.send(connect(&socket, address)));
        match connected.await {
            Ok(Ok(())) => Verdict::Return(0),
            Ok(Err(error)) => errno(error),
            Err(_) => errno(Errno::IO),
        }
    }
}

fn connect(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    rustix::net::connect(socket, &address)
}

fn errno(errno: Errno) -> Verdict {
    Verdict::Errno(u16::try_from(errno.raw_os_error()).unwrap_or(1))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("usage: connect SOCKET ADDRESS:PORT...")?;
    let allowed = arguments.map(|address| address.parse()).collect::<Result<_, _>>()?;
    let request = Request { deadline_ms: 180_000, ..Request::new("connect", &["connect"]) };
    Ok(run(async {
        let plugged = dial_in(socket.as_ref(), request, Connect { allowed }).await?;
        println!("registered");
        plugged.ended().await
    })?)
}
