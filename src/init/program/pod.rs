//! PID 1 of a pod: a program of its own, without a C library, a heap or a byte
//! of writable static data, so that a pod pays a few pages for it and nothing in
//! it can be leaked or corrupted. `build/init.rs` compiles it, the podinit binary
//! contains it, and `podinit::init::image` starts it from a sealed memory file.
//!
//! It is called with the pod's id and, if wanted, the grace time in milliseconds.
//! The other program of this folder, command.rs, can do this and more; that is
//! four pages instead of one, which every pod would pay.
#![no_std]
#![no_main]
// No C library: the compiler must not turn a loop into a call of one.
#![no_builtins]
#![deny(unsafe_code)]
// Cargo.toml's lints do not reach a program that is not a Cargo target; clippy-driver reads these.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
#![warn(clippy::too_many_lines, clippy::ptr_as_ptr, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../../sys/raw/entry.rs"]
#[allow(unsafe_code, dead_code)]
mod entry;
#[cfg(target_arch = "x86_64")]
#[path = "../../sys/raw/settle.rs"]
#[allow(unsafe_code)]
mod settle;
mod sys;

mod harden;
mod message;
mod number;
mod pause;
mod request;
mod teardown;

/// Called by `entry`, on the stack that the kernel made.
fn main(start: entry::Start) -> ! {
    let grace_ms = start.argument(2).and_then(number::parse).unwrap_or(request::GRACE_MS);
    let name = if start.count() > 1 { 1 } else { 0 };
    pause::run(start, &request::Pause { name, grace_ms, keep_stderr: false })
}
