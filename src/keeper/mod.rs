//! The keeper: the pod's stable pid, and the memory that a monitor's death
//! does not touch.
//!
//! ```text
//!   podinit serve (launcher)
//!     │ takes the lock, binds and listens on conmon.sock
//!     │ starts ──▶ podinit keeper          3 = conmon.sock, 4 = lock, 5 = report
//!     │              │ own session, cwd /, subreaper, signals blocked
//!     │              │ starts ──▶ podinit monitor   3 = conmon.sock, 4 = link, 5 = lock
//!     │              │ Hello … HelloDone ─▶│
//!     │              │◀──────────── Ready ─│
//!     │◀─── 'R' ─────│                     │ serves
//!     │ writes pidfile (the keeper's pid)  │
//!     └ exits 0      │                     │
//!                    │      (dies) ────────┘
//!                    │ starts the next ──▶ podinit monitor
//!                    │ Hello, Kept*, Exited*, HelloDone ─▶│
//! ```
//!
//! The keeper holds descriptors and exit statuses, starts the monitor, and
//! passes on a request to stop. It reads nothing that a container wrote, has
//! one thread, waits in one place (`poll`), and allocates nothing after its
//! start: its tables have a fixed size ([`crate::limits`]).
//!
//! - `link`: the messages between keeper and monitor.
//! - `life`: every decision, pure.
//! - `held`: the tables.
//! - `report`: what the launcher is told.
//! - `run`: the loop that ties them to the system.
//!
//! Its children are the monitor and whatever the kernel gives it as a
//! subreaper: with a monitor's death, all that this monitor had started. Their
//! statuses are told to each monitor until one has seen them. If there are more
//! than [`crate::limits::KEPT_EXITS_MAX`], the rest stay zombies for as long:
//! the kernel remembers them as well.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::limits::{RESTART_PAUSE_MAX, STOP_TIMEOUT};
use crate::sys::fd::take_inherited;
use crate::sys::fork::Program;
use life::Timing;
use report::Report;

mod held;
mod life;
pub mod link;
pub mod report;
mod run;

pub use link::{ChildExit, Ended, Link, LinkError, ToKeeper, ToMonitor};

/// Where keeper and monitor find the listening RPC socket.
pub const LISTENER_FD: RawFd = 3;

/// Where the monitor finds its end of the [`Link`].
pub const LINK_FD: RawFd = 4;

/// Where the monitor finds the lock: held for as long as either process lives.
pub const MONITOR_LOCK_FD: RawFd = 5;

/// Where the keeper finds the lock.
pub const LOCK_FD: RawFd = 4;

/// Where the keeper finds the pipe to the launcher, unless in the foreground.
pub const REPORT_FD: RawFd = 5;

/// The RPC socket's name in the run directory.
pub const SOCKET_NAME: &str = "conmon.sock";

/// The pidfile's name in the run directory.
pub const PIDFILE_NAME: &str = "pidfile";

/// The lock's name in the run directory. It holds the keeper's pid.
pub const LOCK_NAME: &str = "lock";

/// Why a keeper could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeeperError {
    /// The command line; only `podinit serve` writes it.
    #[error("podinit keeper: {0}; it is started by `podinit serve`, not by hand")]
    Arguments(&'static str),
    /// A system call at the start.
    #[error("the keeper cannot {doing}: {source}")]
    System {
        /// What failed.
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl KeeperError {
    fn system(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}

/// Whether somebody waits for the pod to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A launcher, at the report pipe.
    Background,
    /// This is the process that was started; it keeps its session and streams.
    Foreground,
}

/// The keeper's command line.
#[derive(Debug)]
struct Options {
    run_dir: PathBuf,
    place: Place,
    timing: Timing,
    program: Program,
}

impl Options {
    /// `--run-dir DIR [--foreground] [--stop-timeout-ms N] [--restart-pause-max-ms N] -- PATH ARGV0 [ARG…]`
    fn parse(args: &[OsString]) -> Result<Self, KeeperError> {
        const VALUE: KeeperError = KeeperError::Arguments("an option lacks its value");
        let mut run_dir = None;
        let mut place = Place::Background;
        let mut timing = Timing { stop_timeout: STOP_TIMEOUT, restart_pause_max: RESTART_PAUSE_MAX };
        let mut args = args.iter();
        while let Some(option) = args.next() {
            match option.to_str() {
                Some("--") => break,
                Some("--foreground") => place = Place::Foreground,
                Some("--run-dir") => run_dir = Some(PathBuf::from(args.next().ok_or(VALUE)?)),
                Some("--stop-timeout-ms") => timing.stop_timeout = milliseconds(args.next())?,
                Some("--restart-pause-max-ms") => timing.restart_pause_max = milliseconds(args.next())?,
                _ => return Err(KeeperError::Arguments("unknown option")),
            }
        }
        let [path, argv @ ..] = args.as_slice() else {
            return Err(KeeperError::Arguments("no program for the monitor after --"));
        };
        let program = Program::new(path, argv).map_err(KeeperError::system("prepare the monitor"))?;
        let run_dir = run_dir.ok_or(KeeperError::Arguments("no --run-dir"))?;
        Ok(Self { run_dir, place, timing, program })
    }
}

fn milliseconds(value: Option<&OsString>) -> Result<Duration, KeeperError> {
    value
        .and_then(|value| value.to_str()?.parse().ok())
        .map(Duration::from_millis)
        .ok_or(KeeperError::Arguments("a duration is not a number of milliseconds"))
}

/// `podinit keeper ARGS`: runs until the pod has ended. Exit status 0 if it
/// ended in order, 1 if the monitor had to be killed or never served.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let mut report = Report::Foreground;
    match start(args, &mut report) {
        Ok(keeper) => keeper.run(report),
        Err(error) => {
            report.failed(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Everything that may fail, and all that allocates.
fn start(args: &[OsString], report: &mut Report) -> Result<run::Keeper, KeeperError> {
    // First of all: a TERM from here on is a request to stop, not the end of the pod's memory.
    let signals = run::block_signals().map_err(KeeperError::system("block signals"))?;
    let listener = take_inherited(LISTENER_FD).map_err(KeeperError::system("find its RPC socket"))?;
    let lock = take_inherited(LOCK_FD).map_err(KeeperError::system("find its lock"))?;
    if !args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--foreground") {
        let pipe = take_inherited(REPORT_FD).map_err(KeeperError::system("find its report pipe"))?;
        *report = Report::Pipe(pipe);
    }
    let options = Options::parse(args)?;
    run::Keeper::new(options, signals, run::Inherited { listener, lock })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, KeeperError> {
        Options::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_up_to_the_program() {
        let options =
            parse("--run-dir /run/x --stop-timeout-ms 5 -- /proc/self/exe podinit --foreground").unwrap();
        assert_eq!(options.run_dir, PathBuf::from("/run/x"));
        assert_eq!(options.place, Place::Background);
        assert_eq!(options.timing.stop_timeout, Duration::from_millis(5));
        assert_eq!(options.timing.restart_pause_max, RESTART_PAUSE_MAX);
    }

    #[test]
    fn bad_command_lines_are_errors() {
        for line in [
            "",
            "--run-dir",
            "--run-dir /x",
            "--run-dir /x --",
            "--stop-timeout-ms x -- a b",
            "--x",
            "-- a b",
        ] {
            assert!(matches!(parse(line), Err(KeeperError::Arguments(_))), "{line}");
        }
    }
}
