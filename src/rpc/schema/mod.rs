//! Code generated from `schema/*.capnp` (`make schema`; tests/schema.rs notices drift).
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]

#[rustfmt::skip]
pub mod conmon_capnp;
#[rustfmt::skip]
pub mod plugin_capnp;
#[rustfmt::skip]
pub mod podinit_capnp;
