//! Cap'n Proto server and client: translation only.
#![forbid(unsafe_code)]

pub mod client;
pub mod schema;
