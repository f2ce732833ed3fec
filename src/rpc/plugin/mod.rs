//! Plugins of other processes, over Cap'n Proto (`schema/plugin.capnp`).
//!
//! `host` is what a plugin finds at the plugin socket, or is given when it was
//! dialled (`dial`). Each registration becomes a `remote`, which the broker knows
//! as a plugin like any other. `target` is what a plugin may do to a process
//! whose call is in its hands; `descriptors` is how descriptors change hands.
//! [`client`] is the other side, for plugins in Rust.

#![forbid(unsafe_code)]

pub mod client;
mod descriptors;
mod dial;
mod gate;
mod host;
mod packet;
mod remote;
pub mod replay;
mod serve;
mod stream;
mod target;
pub(super) mod translate;
pub(super) mod watch;

pub use dial::DIRECTORY;
pub use serve::{bind, extension};
pub use translate::judge;
