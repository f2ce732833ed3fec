//! The command's init: runs one command as PID 1 of its container, or as a
//! subreaper, as tini and catatonit do. What pod.rs says about how it is made is
//! true here too. It also has the pod's mode, for those who call it `pause`.
#![no_std]
#![no_main]
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

mod child;
mod descendants;
mod harden;
mod message;
mod number;
mod options;
mod pause;
mod request;
mod search;
mod teardown;

use message::Message;
use options::Mode;
use sys::raw::{process, stdio};

const USAGE: &[u8] = b"\
usage: podinit init [OPTIONS] [--] COMMAND [ARGUMENT]...
       podinit init -P [--grace MS] [NAME]

Runs a command as PID 1 of a container, or as a subreaper: sends signals on to it,
reaps orphans, and ends with its exit code (128 + n for signal n; 126: found but
not executable; 127: not found).

  -g, --group      send signals to the command's process group
  -s, --subreaper  adopt orphans (always done unless PID 1)
  -p SIGNAL        get SIGNAL when the parent process ends
  -e CODE          exit with 0 instead of CODE (may be repeated)
  -w               report every orphan that is reaped
  --wait           after the command's end, end the processes that are left
  --grace MS       how long they may take before they are killed (default 10000)
  -P, --pause      run no command: hold the pid namespace until TERM or INT from outside
  -v               accepted for compatibility
  -h, --help       this text
  -V, --version    the version
";

/// Called by `entry`, on the stack that the kernel made.
fn main(start: entry::Start) -> ! {
    match options::parse(start.count(), |index| start.argument(index)) {
        Mode::Pause(pause) => pause::run(start, &pause),
        Mode::Child(child) => child::run(&start, &with_environment(child, &start)),
        Mode::Help => print(USAGE),
        Mode::Version => print(concat!("podinit ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()),
        Mode::Wrong(why, index) => {
            let argument = if index == 0 { b"" } else { start.argument(index).unwrap_or_default() };
            Message::new().text(why).text(if index == 0 { b"" } else { b": " }).text(argument).say();
            Message::new().text(b"'podinit init --help' tells the options").say();
            process::exit(1)
        }
    }
}

/// The variables by which tini takes two of its options.
fn with_environment(mut child: options::Child, start: &entry::Start) -> options::Child {
    child.subreaper |= start.variable(b"TINI_SUBREAPER").is_some();
    child.group |= start.variable(b"TINI_KILL_PROCESS_GROUP").is_some();
    child
}

fn print(text: &[u8]) -> ! {
    let written = stdio::write(stdio::STDOUT, text);
    process::exit(if written.is_ok() { 0 } else { 1 })
}
