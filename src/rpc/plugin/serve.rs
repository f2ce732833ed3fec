//! The plugin socket of a pod: plugins dial in.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use rustix::net::SocketType;
use tokio::net::{UnixListener, UnixStream};

use super::client::network;
use super::descriptors::Tickets;
use super::dial;
use super::host::{Host, Shared};
use crate::limits::{ACCEPT_PAUSE, PLUGIN_CONNECTIONS_MAX};
use crate::monitor::seccomp::PLUGINS_NAME;
use crate::rpc::schema::plugin_capnp as wire;
use crate::rpc::server::check_peer;
use crate::seccomp::Broker;
use crate::seccomp::thread::Extension;
use crate::sys::socket;

/// Makes the plugin socket of the pod in `run_dir`.
///
/// # Errors
/// If it cannot be made.
pub fn bind(run_dir: &Path) -> io::Result<OwnedFd> {
    let path = run_dir.join(PLUGINS_NAME);
    match std::fs::remove_file(&path) {
        // An earlier monitor's: the run directory is locked by us.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    socket::listen(&path, SocketType::STREAM, i32::try_from(PLUGIN_CONNECTIONS_MAX).unwrap_or(i32::MAX))
}

/// What makes the broker's thread serve plugins at `listener`, and dial those that
/// listen in `directory`.
#[must_use]
pub fn extension(run_dir: PathBuf, listener: OwnedFd, directory: PathBuf) -> Extension {
    Box::new(move |broker: Rc<Broker>| {
        let tickets = Rc::new(Tickets::default());
        let descriptor_socket = tickets.serve(&run_dir);
        if let Err(error) = &descriptor_socket {
            ::log::error!("no descriptor can be passed to plugins: {error}");
        }
        let shared = Rc::new(Shared {
            broker,
            tickets,
            run_dir,
            descriptor_socket: descriptor_socket.ok(),
            registrations: Cell::new(0),
        });
        match UnixListener::from_std(listener.into()) {
            Ok(listener) => drop(tokio::task::spawn_local(accept(Rc::clone(&shared), listener))),
            Err(error) => ::log::error!("plugins cannot be served: {error}"),
        }
        tokio::task::spawn_local(dial::watch(shared, directory));
    })
}

/// Connections now, for as long as this is held.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

async fn accept(shared: Rc<Shared>, listener: UnixListener) {
    let connected = Rc::new(Cell::new(0));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if connected.get() >= PLUGIN_CONNECTIONS_MAX {
                    ::log::warn!("{PLUGIN_CONNECTIONS_MAX} plugins are connected already; refused one more");
                    continue;
                }
                if let Err(reason) = check_peer(&stream) {
                    ::log::warn!("refused a plugin's connection: {reason}");
                    continue;
                }
                connected.set(connected.get() + 1);
                let counted = Counted(Rc::clone(&connected));
                let shared = Rc::clone(&shared);
                tokio::task::spawn_local(async move {
                    converse(stream, shared).await;
                    drop(counted);
                });
            }
            Err(error) => {
                ::log::warn!("cannot accept a plugin's connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a plugin that has dialled in, to the end of the connection.
async fn converse(stream: UnixStream, shared: Rc<Shared>) {
    let host: wire::plugin_host::Client = capnp_rpc::new_client(Host::new(shared));
    match network(stream, Side::Server) {
        Ok(network) => {
            if let Err(error) = RpcSystem::new(network, Some(host.client)).await {
                ::log::debug!("a plugin's connection ended: {error}");
            }
        }
        Err(error) => ::log::warn!("cannot serve a plugin's connection: {error}"),
    }
}
