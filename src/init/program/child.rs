//! Child mode: one command, as PID 1 of its container or as a subreaper.
//!
//! Every signal that can be sent is sent on to the command; orphans are reaped;
//! the end of the command is ours, with its code. The command gets back the signal
//! mask, a process group of its own, and the terminal, if there is one.
//!
//! Where the kernel can (Linux 6.15), orphans vanish without us, and the
//! command's exit code is read from its pidfd; else we collect them. Either way a
//! storm of orphans wakes us up every few milliseconds, not once for each.

use crate::sys::raw::process::{self, Change, Child as Process, Command, Ended};
use crate::sys::raw::security::{self, Instruction};
use crate::sys::raw::signal::{self, Disposition, Set};
use crate::sys::raw::time::Timespec;
use crate::sys::raw::{Errno, numbers as nr, stdio};

use super::entry::Start;
use super::harden::{self, User};
use super::message::Message;
use super::options::Child;
use super::teardown::{self, Outcome};
use super::{descendants, search};

/// Everything that this mode calls once the command runs.
static FILTER: [Instruction; 20] = security::allow_only([
    nr::RT_SIGTIMEDWAIT,
    nr::RESTART_SYSCALL,
    nr::PPOLL,         // whether the command has ended
    nr::READ,          // the list of children
    nr::KILL,          // send signals on
    nr::WAIT4,         // reap
    nr::GETPID,        // to stop together with the command
    nr::IOCTL,         // how the command ended; the terminal's foreground
    nr::RT_SIGACTION,  // want to know of children, at the end
    nr::CLOCK_GETTIME, // the grace time
    nr::OPENAT,        // the list of children
    nr::CLOSE,
    nr::WRITE, // messages
    nr::EXIT_GROUP,
]);

/// How long orphans are let gather before we look again.
const GATHER_NS: u64 = 1_000_000;
/// How long at most, while there are more at each look: the end of a command is noticed that late in a storm.
const GATHER_MAX_NS: u64 = 8_000_000;
/// How long the kernel usually takes at most from telling of an end to having reaped.
const REAPED_NS: u64 = 50_000;

/// The command while it runs.
struct Running<'o> {
    options: &'o Child,
    process: Process,
    /// Whether this is PID 1 of a pid namespace.
    first: bool,
}

/// Runs the command.
pub(crate) fn run(start: &Start, options: &Child) -> ! {
    // First of all: what comes from now on is for the command.
    let mask = signal::block(forwarded()).unwrap_or(Set::EMPTY);
    let first = process::id() == 1;
    if options.subreaper || !first {
        let _ = security::set_subreaper();
    }
    if options.parent_death_signal != 0 {
        adopt_death(options.parent_death_signal);
    }
    let reaps_itself = first && !options.report_orphans && kernel_reaps();
    if !reaps_itself {
        let _ = signal::set_disposition(signal::CHLD, Disposition::Default);
    }
    let Some(command) = start.command(options.command) else { process::exit(1) };
    let process = match process::fork() {
        Ok(None) => become_command(start, options, &command, mask),
        Ok(Some(process)) => process,
        Err(error) => {
            Message::new().text(b"cannot fork: error ").number(error.0.unsigned_abs().into()).say();
            process::exit(1)
        }
    };
    // Also here, or a signal to the group could come before the child has made it.
    let _ = process::lead_group(process.pid);
    let running = Running { options, process, first };
    let _ = stdio::leave_directory();
    harden::apply(if first { User::Change } else { User::Keep }, &FILTER);
    let ended = if reaps_itself { running.wait(Running::look) } else { running.wait(Running::reap) };
    running.finish(ended)
}

/// The signals that are not of our own making.
fn forwarded() -> Set {
    [signal::SEGV, signal::BUS, signal::ILL, signal::FPE, signal::TRAP, signal::SYS, signal::ABRT]
        .iter()
        .fold(Set::ALL, |set, fault| set.without(*fault))
}

/// Asks for a signal when the parent ends. If it has ended before we could ask,
/// the signal is due now.
fn adopt_death(wanted: i32) {
    let before = process::parent();
    let _ = security::set_parent_death_signal(wanted);
    if process::parent() != before {
        let _ = signal::send(process::id(), wanted);
    }
}

/// Tries out whether children can vanish by themselves and leave their exit code
/// behind in a pidfd. If so, it stays that way.
fn kernel_reaps() -> bool {
    const CODE: u8 = 77;
    const LOOKS: usize = 100;
    if signal::set_disposition(signal::CHLD, Disposition::Vanish).is_err() {
        return false;
    }
    let Ok(made) = process::fork() else { return false };
    let Some(child) = made else { process::exit(CODE) };
    let _ = signal::wait(Set::EMPTY.with(signal::CHLD), None);
    let mut ended = None;
    for _ in 0..LOOKS {
        ended = process::ended(child.descriptor);
        if ended.is_some() {
            break;
        }
        let _ = signal::wait(Set::EMPTY, Some(Timespec::from_ns(REAPED_NS)));
    }
    stdio::close(child.descriptor);
    ended == Some(Ended::Code(CODE))
}

/// In the child: what the command must find as if we were not there.
fn become_command(start: &Start, options: &Child, command: &Command, mask: Set) -> ! {
    let _ = signal::set_disposition(signal::CHLD, Disposition::Default);
    let _ = process::lead_group(0);
    // Still blocked: TTOU, which a change of the foreground from the background sends. No terminal, or not
    // ours: nothing to hand over.
    let _ = stdio::set_foreground(stdio::STDIN, process::id());
    let _ = signal::block(mask);
    let name = start.argument(options.command).unwrap_or_default();
    let error = search::execute(command, name, start.variable(b"PATH"));
    let missing = error == Errno::NOENT || error == Errno::NOTDIR;
    let reason: &[u8] = match error {
        Errno::NOENT | Errno::NOTDIR => b"no such file",
        Errno::ACCES => b"permission denied",
        _ => b"cannot be executed",
    };
    Message::new()
        .text(name)
        .text(b": ")
        .text(reason)
        .text(b" (error ")
        .number(error.0.unsigned_abs().into())
        .text(b")")
        .say();
    process::exit(if missing { 127 } else { 126 })
}

impl Running<'_> {
    /// Waits for the end of the command, for which `look` looks when a child has ended.
    fn wait(&self, look: fn(&Self) -> Option<Ended>) -> Ended {
        let mut gather_ns = None;
        loop {
            // While orphans gather, CHLD does not wake us; all else does.
            let set = if gather_ns.is_some() { Set::ALL.without(signal::CHLD) } else { Set::ALL };
            let received = signal::wait(set, gather_ns.map(Timespec::from_ns));
            if let Ok(received) = received
                && received.signal != signal::CHLD
            {
                self.forward(received.signal);
                continue;
            }
            if let Some(ended) = look(self) {
                return ended;
            }
            gather_ns = if received.is_ok() { Some(GATHER_NS) } else { self.gather_on(gather_ns) };
        }
    }

    /// After a time of gathering: if more came meanwhile, a longer one.
    fn gather_on(&self, gather_ns: Option<u64>) -> Option<u64> {
        let ns = gather_ns?;
        let more = signal::wait(Set::EMPTY.with(signal::CHLD), Some(Timespec::from_ns(0))).is_ok();
        more.then(|| (ns * 2).min(GATHER_MAX_NS))
    }

    /// Looks whether the command has ended. The kernel reaps, and it does so a few microseconds after it told us,
    /// or when a tracer of the command lets it: once the command is over, only waiting helps.
    fn look(&self) -> Option<Ended> {
        let command = self.process.descriptor;
        let mut ended = process::ended(command);
        let mut sleep_ns = REAPED_NS;
        while ended.is_none() && process::over(command) {
            let _ = signal::wait(Set::EMPTY, Some(Timespec::from_ns(sleep_ns)));
            sleep_ns = (sleep_ns * 2).min(GATHER_NS);
            ended = process::ended(command);
        }
        ended
    }

    /// Reaps all that have ended; the command may be one of them.
    fn reap(&self) -> Option<Ended> {
        while let Ok(Some(changed)) = process::reap() {
            match changed.change {
                Change::Ended(ended) if changed.pid == self.process.pid => return Some(ended),
                Change::Stopped(by) if changed.pid == self.process.pid => self.stop_too(by),
                Change::Stopped(_) => {}
                Change::Ended(_) => self.report(changed.pid),
            }
        }
        None
    }

    fn report(&self, pid: i32) {
        if self.options.report_orphans {
            Message::new().text(b"reaped orphan ").number(pid.unsigned_abs().into()).say();
        }
    }

    /// Sends a signal on to the command.
    fn forward(&self, signal: i32) {
        if signal == signal::CHLD {
            return;
        }
        if signal == signal::CONT && !self.first {
            // We were stopped together with the command, and whoever woke us up has given us the terminal.
            let _ = stdio::set_foreground(stdio::STDIN, self.process.pid);
        }
        let to = if self.options.group { -self.process.pid } else { self.process.pid };
        let _ = signal::send(to, signal);
    }

    /// The command was stopped from its terminal: then our parent, a shell, must
    /// see us stopped, or it would wait for ever.
    fn stop_too(&self, by: i32) {
        let by_terminal = matches!(by, signal::TSTP | signal::TTIN | signal::TTOU);
        if !self.first && by_terminal && stdio::foreground(stdio::STDIN).is_ok() {
            let _ = signal::send(process::id(), signal::STOP);
        }
    }

    /// Ends what is left, if asked to, and then us, with the command's code.
    fn finish(&self, ended: Ended) -> ! {
        if let Some(wait_ms) = self.options.wait_ms {
            let grace_ns = wait_ms.saturating_mul(1_000_000);
            let mut outcome = Outcome::default();
            let hurry = |received: &signal::Received| matches!(received.signal, signal::TERM | signal::INT);
            if self.first {
                teardown::run(grace_ns, hurry, &mut outcome);
            } else {
                descendants::end(grace_ns, hurry, &mut outcome);
            }
            if outcome.forced {
                Message::new().text(b"processes that had to be killed: ").number(outcome.killed).say();
            }
        }
        process::exit(self.options.map(ended.code()))
    }
}
