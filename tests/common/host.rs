//! A pod's plugin socket, spoken to without podinit's library: for what that would not do.

use std::path::Path;

use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use podinit::rpc::schema::plugin_capnp as wire;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// The host at `socket`.
pub(crate) async fn host(socket: &Path) -> wire::plugin_host::Client {
    let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (reader, writer) = tokio::net::UnixStream::from_std(stream).unwrap().into_split();
    let options = capnp::message::ReaderOptions::new();
    let network = twoparty::VatNetwork::new(reader.compat(), writer.compat_write(), Side::Client, options);
    let mut system = RpcSystem::new(Box::new(network), None);
    let host = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    host
}
