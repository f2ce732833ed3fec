//! Hooks: programs that run at stated moments of a pod's and a container's life.
//!
//! What a hook is, is in [`definition`]: one file of a hooks directory, or what
//! a client asked for. A file's text becomes one in [`file`] (pure); [`directory`]
//! reads all of them, [`order`] puts them in order, [`watch`] tells when to read
//! them again, and [`matching`] says which containers they are for (pure). Nothing
//! here knows the monitor, which says when a stage is reached.
#![forbid(unsafe_code)]

pub mod definition;
pub mod directory;
pub mod file;
mod json;
pub mod matching;
mod older;
mod options;
pub mod order;
pub mod pattern;
pub mod result;
pub mod run;
pub mod watch;

pub use definition::{
    Cgroup, Failure, Hook, Options, Output, Retry, Stage, UnknownStage, User, When, default_directories,
};
pub use directory::Catalogue;
pub use matching::Subject;
pub use pattern::Pattern;
pub use watch::Watch;
