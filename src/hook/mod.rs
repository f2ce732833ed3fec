//! Hooks: programs that run at stated moments of a pod's and a container's life.
//!
//! What a hook is, is in [`definition`]: one file of a hooks directory, or what
//! a client asked for. Everything about the files is pure or reads only; nothing
//! here knows the monitor, which says when a stage is reached.
#![forbid(unsafe_code)]

pub mod definition;
pub mod pattern;

pub use definition::{
    Cgroup, Failure, Hook, Options, Output, Retry, Stage, UnknownStage, User, When, default_directories,
};
pub use pattern::Pattern;
