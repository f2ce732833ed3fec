//! Pod and container state, OCI runtime calls, exec, exit, OOM.
#![forbid(unsafe_code)]

pub mod config;
pub mod log;
pub mod relay;
