//! Pause mode: PID 1 of a pod whose processes are started by others.
//!
//! It sleeps in one system call. The kernel reaps for it: with `SIGCHLD` ignored,
//! an orphan vanishes when it ends, and PID 1 is not even woken.
//!
//! It obeys TERM and INT from outside of the pid namespace only. The kernel
//! writes 0 for the pid of a sender that the namespace cannot see; a process
//! inside cannot forge that with kill(2), and other ways to send, in which it
//! could, are not obeyed at all.

use crate::sys::raw::security::{self, Instruction};
use crate::sys::raw::signal::{self, Disposition, Origin, Received, Set};
use crate::sys::raw::{numbers as nr, process, stdio};

use super::entry::Start;
use super::harden::{self, User};
use super::message::Message;
use super::request::Pause;
use super::teardown::{self, Outcome};

/// Everything that this mode calls after it has given up the rest.
static FILTER: [Instruction; 14] = security::allow_only([
    nr::RT_SIGTIMEDWAIT, // sleep; wait for the processes to end
    nr::RESTART_SYSCALL, // the kernel's own way to go on with a sleep after a stop
    nr::KILL,            // end the namespace's processes; ask whether there are any
    nr::WAIT4,           // collect those that ended meanwhile
    nr::RT_SIGACTION,    // want to know of children, at the end
    nr::CLOCK_GETTIME,   // the grace time
    nr::WRITE,           // the last message
    nr::EXIT_GROUP,
]);

/// Exit code when every process ended as asked.
const ENDED: u8 = 0;
/// Highest exit code: so many processes had to be killed, or more.
const KILLED_MAX: u64 = 100;

/// Gets ready to pause, then pauses.
pub(crate) fn run(start: Start, options: &Pause) -> ! {
    // Before anything else: a signal that comes now waits. Those that the kernel raises for a fault of this very
    // program are left alone: blocked, they would kill it all the same, but without saying where.
    let _ = signal::block(faults_excepted());
    let _ = signal::set_disposition(signal::CHLD, Disposition::Ignore);
    let _ = process::new_session();
    let _ = stdio::leave_directory();
    if options.keep_stderr {
        stdio::close(stdio::STDIN);
        stdio::close(stdio::STDOUT);
        let _ = stdio::close_from(stdio::STDERR + 1);
    } else {
        let _ = stdio::close_from(stdio::STDIN);
    }
    start.forget_environment();
    let lowest = start.lowest();
    let name = start.retitle(b"podinit: ", options.name);
    let _ = security::set_name(&short_name(name));
    go_on(lowest, name, options.grace_ms)
}

#[cfg(target_arch = "x86_64")]
fn go_on(lowest: *const u8, name: &'static [u8], grace_ms: u64) -> ! {
    struct Settled;
    impl crate::settle::Goal for Settled {
        fn go_on(name: &'static [u8], grace_ms: u64) -> ! {
            pause(name, grace_ms)
        }
    }
    crate::settle::settle::<Settled>(lowest, name, grace_ms)
}

#[cfg(not(target_arch = "x86_64"))]
fn go_on(_: *const u8, name: &'static [u8], grace_ms: u64) -> ! {
    pause(name, grace_ms)
}

/// Pauses until told to end; then ends the namespace.
fn pause(name: &'static [u8], grace_ms: u64) -> ! {
    let first = process::id() == 1;
    harden::apply(if first { User::Change } else { User::Keep }, &FILTER);
    // From here on nothing may exit but the end of this function.
    let reason = wait_for_order(first);
    let mut outcome = Outcome::default();
    if first {
        let grace_ns = if reason == signal::INT { 0 } else { grace_ms.saturating_mul(1_000_000) };
        teardown::run(grace_ns, is_order, &mut outcome);
    }
    Message::new()
        .text(name)
        .text(b": told to end by signal ")
        .number(reason as u64)
        .text(b"; processes that ended: ")
        .number(outcome.ended)
        .text(b", that had to be killed: ")
        .number(outcome.killed)
        .say();
    process::exit(if outcome.forced { outcome.killed.clamp(1, KILLED_MAX) as u8 } else { ENDED })
}

fn faults_excepted() -> Set {
    [signal::SEGV, signal::BUS, signal::ILL, signal::FPE, signal::TRAP, signal::SYS, signal::ABRT]
        .iter()
        .fold(Set::ALL, |set, fault| set.without(*fault))
}

/// Sleeps until an order to end comes; returns its signal. A process that is not
/// PID 1 has no outside, and obeys whoever may send to it.
fn wait_for_order(first: bool) -> i32 {
    // Only these wake us: whatever else is sent stays blocked, and costs nothing.
    let orders = Set::EMPTY.with(signal::TERM).with(signal::INT);
    loop {
        if let Ok(received) = signal::wait(orders, None)
            && (is_order(&received) || !first)
        {
            return received.signal;
        }
    }
}

/// TERM or INT, from outside of the namespace.
fn is_order(received: &Received) -> bool {
    matches!(received.signal, signal::TERM | signal::INT) && received.origin == Origin::Process(0)
}

/// `podinit:` and as much of the name as fits.
fn short_name(name: &[u8]) -> [u8; 16] {
    let mut short = *b"podinit:\0\0\0\0\0\0\0\0";
    for (place, byte) in short.iter_mut().skip(8).take(7).zip(name) {
        *place = *byte;
    }
    short
}
