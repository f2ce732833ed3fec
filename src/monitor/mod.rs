//! Pod and container state, OCI runtime calls, exec, exit, OOM.
#![forbid(unsafe_code)]

pub mod config;
