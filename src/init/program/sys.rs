//! The system calls, under the same path as in the podinit crate, whose lints
//! and unit tests the other modules go through too.

#[path = "../../sys/raw/mod.rs"]
#[allow(unsafe_code, dead_code)]
pub(crate) mod raw;
