//! podinit: the init system of a pod. ARCHITECTURE.md is the map; the modules
//! below are in the order in which they may use one another.

pub mod limits;
pub mod sys;
pub mod version;

pub mod init;
pub mod keeper;

pub mod hook;
pub mod monitor;
pub mod ns;
pub mod seccomp;

pub mod stream;

pub mod rpc;

pub mod cli;
