//! Cap'n Proto server and client: translation only. No decision about a
//! container is made here, and nothing below this module names an RPC type.
#![forbid(unsafe_code)]

pub mod client;
mod conmon;
mod convert;
pub mod hooks;
mod limits;
pub mod plugin;
mod pod;
mod sandbox;
pub mod schema;
mod seccomp;
pub mod server;
mod stats;
pub mod trace;
