//! PID 1 of a pod: a program of its own, without a C library, a heap or a byte
//! of writable static data, so that a pod pays a few pages for it and nothing in
//! it can be leaked or corrupted. `build/init.rs` compiles it, the podinit binary
//! contains it, and [`podinit::init::image`] starts it from a sealed memory file.
//!
//! Two modes, chosen by the arguments (`options`): `pause` holds the pod's pid
//! namespace, `child` runs one command as tini and catatonit do.
#![no_std]
#![no_main]
// No C library: the compiler must not turn a loop into a call of one.
#![no_builtins]
#![deny(unsafe_code)]

#[path = "../../sys/raw/entry.rs"]
#[allow(unsafe_code, dead_code)]
mod entry;

mod harden;
mod message;
mod pause;
mod sys;
mod teardown;

/// Called by `entry` with a stack that is 16-byte aligned and nothing else.
fn main(start: entry::Start) -> ! {
    let name = start.retitle(b"podinit: ", 1);
    pause::run(pause::Pause { name, grace_ms: 10_000 })
}
