//! Thin safe wrappers over system calls that rustix and nix do not have, or
//! offer only as `unsafe`. All of podinit's `unsafe` is below this module, each
//! block with the invariant that makes it sound.
#![allow(unsafe_code)]

pub mod descendants;
pub mod enter;
pub mod exec;
pub mod fd;
pub mod fork;
pub mod heap;
pub mod landlock;
pub mod mount;
pub mod namespace;
pub mod nsfs;
pub mod oom;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod spawn;
