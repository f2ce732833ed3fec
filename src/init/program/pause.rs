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

use super::message::Message;
use super::{harden, teardown};

/// How to pause.
pub(crate) struct Pause {
    /// The pod's id, for the name of the process and the last message.
    pub(crate) name: &'static [u8],
    /// How long processes may take to end after TERM, in milliseconds.
    pub(crate) grace_ms: u64,
}

/// Everything that this mode calls from here on.
static FILTER: [Instruction; 15] = security::allow_only([
    nr::RT_SIGTIMEDWAIT, // sleep; wait for the processes to end
    nr::RESTART_SYSCALL, // the kernel's own way to go on with a sleep after a stop
    nr::KILL,            // end the namespace's processes; ask whether there are any
    nr::WAIT4,           // collect those that ended meanwhile
    nr::RT_SIGACTION,    // want to know of children, at the end
    nr::CLOCK_GETTIME,   // the grace time
    nr::WRITE,           // the last message
    nr::CLOSE_RANGE,     // nothing is left open
    nr::EXIT_GROUP,
]);

/// Exit code when every process ended as asked.
const ENDED: u8 = 0;
/// Exit code when some process had to be killed.
const FORCED: u8 = 1;

/// Pauses until told to end; then ends the namespace.
pub(crate) fn run(pause: Pause) -> ! {
    // Before anything else: a signal that comes now waits. Those that the kernel raises for a fault of this very
    // program are left alone: blocked, they would kill it all the same, but without saying where.
    let _ = signal::block(faults_excepted());
    let _ = signal::set_disposition(signal::CHLD, Disposition::Ignore);
    let _ = process::new_session();
    let _ = stdio::leave_directory();
    let _ = stdio::close_from(0);
    let _ = security::set_name(&short_name(pause.name));
    harden::apply(&FILTER);
    // From here on nothing may exit but the end of this function.
    let reason = wait_for_order();
    let grace_ns = if reason == signal::INT { 0 } else { pause.grace_ms * 1_000_000 };
    let outcome = teardown::run(grace_ns, is_order);
    Message::new()
        .text(b"pod ")
        .text(pause.name)
        .text(b": told to end by signal ")
        .number(reason as u64)
        .text(b" from outside; processes ended: ")
        .number(outcome.ended)
        .text(b", killed: ")
        .number(outcome.killed)
        .say();
    process::exit(if outcome.forced { FORCED } else { ENDED })
}

fn faults_excepted() -> Set {
    [signal::SEGV, signal::BUS, signal::ILL, signal::FPE, signal::TRAP, signal::SYS, signal::ABRT]
        .iter()
        .fold(Set::ALL, |set, fault| set.without(*fault))
}

/// Sleeps until an order to end comes; returns its signal.
fn wait_for_order() -> i32 {
    // Only these wake us: whatever else is sent stays blocked, and costs nothing.
    let orders = Set::EMPTY.with(signal::TERM).with(signal::INT);
    loop {
        if let Ok(received) = signal::wait(orders, None)
            && is_order(&received)
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
