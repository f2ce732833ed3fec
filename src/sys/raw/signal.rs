//! Signals: sets, dispositions, sending, and waiting for them.

use super::{Result, arch::call, check, numbers as nr, time::Timespec};

/// Hang-up of a terminal.
pub const HUP: i32 = 1;
/// Interrupt.
pub const INT: i32 = 2;
/// Illegal instruction.
pub const ILL: i32 = 4;
/// Breakpoint.
pub const TRAP: i32 = 5;
/// abort(3).
pub const ABRT: i32 = 6;
/// Bad memory access.
pub const BUS: i32 = 7;
/// Arithmetic fault.
pub const FPE: i32 = 8;
/// The end that nobody can refuse.
pub const KILL: i32 = 9;
/// Bad address.
pub const SEGV: i32 = 11;
/// Request to end.
pub const TERM: i32 = 15;
/// A child has ended, stopped or gone on.
pub const CHLD: i32 = 17;
/// Go on after a stop.
pub const CONT: i32 = 18;
/// The stop that nobody can refuse.
pub const STOP: i32 = 19;
/// Stop asked for on the terminal.
pub const TSTP: i32 = 20;
/// Terminal read in the background.
pub const TTIN: i32 = 21;
/// Terminal write in the background.
pub const TTOU: i32 = 22;
/// Bad system call.
pub const SYS: i32 = 31;
/// The highest signal number of Linux.
pub const LAST: i32 = 64;

/// A set of signals, as the kernel has it: signal n is bit n - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    /// No signal.
    pub const EMPTY: Self = Self(0);
    /// Every signal.
    pub const ALL: Self = Self(u64::MAX);

    /// This set with `signal`, if that is a signal number.
    #[must_use]
    pub const fn with(self, signal: i32) -> Self {
        Self(self.0 | Self::bit(signal))
    }

    /// This set without `signal`.
    #[must_use]
    pub const fn without(self, signal: i32) -> Self {
        Self(self.0 & !Self::bit(signal))
    }

    /// Whether `signal` is in the set.
    #[must_use]
    pub const fn has(self, signal: i32) -> bool {
        self.0 & Self::bit(signal) != 0
    }

    const fn bit(signal: i32) -> u64 {
        if signal < 1 || signal > LAST { 0 } else { 1 << (signal - 1) }
    }
}

/// How a signal was sent (`si_code`, sigaction(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By kill(2), tkill(2) or pidfd_send_signal(2): the kernel wrote the sender's
    /// pid, as our pid namespace sees it; 0 is a process outside of it.
    Process(i32),
    /// In any other way, in which the sender may have written its pid itself
    /// (rt_sigqueueinfo(2) takes any negative code but `SI_TKILL`) or has none.
    Other,
}

/// A signal that was waited for.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Where it came from.
    pub origin: Origin,
}

/// `siginfo_t`: 128 bytes; only its head matters here.
#[repr(C)]
struct Info {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    pid: i32,
    rest: [u32; 27],
}

const fn origin(code: i32, pid: i32) -> Origin {
    const SI_USER: i32 = 0;
    const SI_TKILL: i32 = -6;
    if code == SI_USER || code == SI_TKILL { Origin::Process(pid) } else { Origin::Other }
}

/// Blocks exactly the signals in `set` and returns those that were blocked before.
///
/// # Errors
/// None that a kernel has a reason for.
pub fn block(set: Set) -> Result<Set> {
    const SIG_SETMASK: usize = 2;
    let mut old = Set::EMPTY;
    let arguments = [SIG_SETMASK, &raw const set as usize, &raw mut old as usize, size_of::<Set>(), 0];
    // SAFETY: both sets live on this stack frame and are of the size given.
    check(unsafe { call(nr::RT_SIGPROCMASK, arguments) })?;
    Ok(old)
}

/// What happens when a signal arrives that is not blocked.
#[derive(Clone, Copy, Debug)]
pub enum Disposition {
    /// The kernel's default.
    Default,
    /// Nothing. For `CHLD`: children vanish when they end, and nobody is told.
    Ignore,
    /// For `CHLD`: children vanish when they end, and we are told.
    Vanish,
}

/// Sets what `signal` does; no handler is ever installed.
///
/// # Errors
/// `EINVAL` for a signal that does not exist or cannot be changed.
pub fn set_disposition(signal: i32, disposition: Disposition) -> Result<()> {
    // struct kernel_sigaction: handler, flags, restorer (x86 only), mask. The two words behind the flags are
    // zero, so one layout serves both architectures.
    const SIG_IGN: usize = 1;
    const SA_NOCLDWAIT: usize = 2;
    let action = match disposition {
        Disposition::Default => [0, 0, 0, 0],
        Disposition::Ignore => [SIG_IGN, 0, 0, 0],
        Disposition::Vanish => [0, SA_NOCLDWAIT, 0, 0],
    };
    let arguments = [signal as usize, action.as_ptr() as usize, 0, size_of::<Set>(), 0];
    // SAFETY: `action` is at least as large as the kernel's structure and lives across the call.
    check(unsafe { call(nr::RT_SIGACTION, arguments) })?;
    Ok(())
}

/// Waits until a signal of `set`, all of which must be blocked, is there, and
/// takes it. `timeout` none: for ever.
///
/// # Errors
/// `EAGAIN` when the time is over; `EINTR` after a stop.
pub fn wait(set: Set, timeout: Option<Timespec>) -> Result<Received> {
    let mut info = Info { signal: 0, errno: 0, code: 0, padding: 0, pid: 0, rest: [0; 27] };
    let timeout = timeout.as_ref().map_or(0, |t| core::ptr::from_ref(t) as usize);
    let arguments = [&raw const set as usize, &raw mut info as usize, timeout, size_of::<Set>(), 0];
    // SAFETY: set, info and timeout live across the call; info has siginfo_t's 128 bytes.
    check(unsafe { call(nr::RT_SIGTIMEDWAIT, arguments) })?;
    Ok(Received { signal: info.signal, origin: origin(info.code, info.pid) })
}

/// Sends `signal` to process `pid`; to its group if negative; with -1 to every
/// process that it may be sent to but this one and PID 1. Signal 0 only asks.
///
/// # Errors
/// `ESRCH`: there is none. `EPERM`: there is, but it may not be sent to any.
pub fn send(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: kill(2) takes numbers only.
    check(unsafe { call(nr::KILL, [pid as usize, signal as usize, 0, 0, 0]) })?;
    Ok(())
}
