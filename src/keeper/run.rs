//! The keeper's loop: what happened goes into [`Life`], what it says is done.
//!
//! From [`Keeper::run`] on nothing allocates and nothing may make the keeper
//! exit but the pod's end: an error of a system call is an event like others.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit};
use rustix::time::{ClockId, clock_gettime};

use super::held::{Generation, Held, Name};
use super::life::{self, Action, Event, Life, Phase, Verdict};
use super::link::{
    ChildExit, Ended, MESSAGE_BYTES_MAX, SENTENCE_BYTES_MAX, ToKeeperFrame, ToMonitorFrame, receive_packet,
    send_packet,
};
use super::report::Report;
use super::{KeeperError, LOCK_NAME, Options, PIDFILE_NAME, Place, SOCKET_NAME};
use crate::limits::KEPT_FDS_MAX;
use crate::sys::fork::{EXIT_NOT_EXECUTED, Program};
use crate::sys::{descendants, process};

/// What the keeper was started with.
pub(super) struct Inherited {
    pub(super) listener: OwnedFd,
    pub(super) lock: OwnedFd,
}

/// Blocks every signal that is not a fault of the program itself, and gives
/// the descriptor that they are read from.
pub(super) fn block_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::all();
    // A blocked fault would be a loop instead of a core dump.
    for fault in [
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGSEGV,
        Signal::SIGSYS,
        Signal::SIGTRAP,
    ] {
        signals.remove(fault);
    }
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Nanoseconds of a clock that only goes forward.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}

/// The running monitor, and what it has been told.
struct Monitor {
    pid: u32,
    pidfd: OwnedFd,
    /// `None` once it has closed its end.
    link: Option<OwnedFd>,
    told: Told,
    /// What could not be kept, and it does not know yet.
    refused: Option<Name>,
    /// Whether the last message did not fit, so that the link must be polled for room.
    blocked: bool,
}

/// How far the conversation is, on the keeper's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Hello,
    HelloDone,
    Terminate,
}

/// Why the pod could not be served, in place.
struct Sentence {
    bytes: [u8; SENTENCE_BYTES_MAX],
    length: usize,
}

impl Sentence {
    fn set(&mut self, text: std::fmt::Arguments<'_>) {
        let mut rest = &mut self.bytes[..];
        // A sentence that does not fit is cut.
        drop(rest.write_fmt(text));
        let free = rest.len();
        self.length = self.bytes.len() - free;
    }

    fn set_if_empty(&mut self, text: std::fmt::Arguments<'_>) {
        if self.length == 0 {
            self.set(text);
        }
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

/// The keeper. See the module above.
pub(crate) struct Keeper {
    life: Life,
    held: Held,
    monitor: Option<Monitor>,
    signals: SignalFd,
    program: Program,
    inherited: Inherited,
    run_dir: OwnedFd,
    /// What this process was started with; its own is raised.
    open_files: Rlimit,
    pid: u32,
    failure: Sentence,
}

impl Keeper {
    /// Everything but the first monitor. `options.run_dir` is resolved here, before the working
    /// directory is left.
    pub(super) fn new(
        options: Options,
        signals: SignalFd,
        inherited: Inherited,
    ) -> Result<Self, KeeperError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run_dir = rustix::fs::open(&options.run_dir, flags, Mode::empty())
            .map_err(|errno| KeeperError::system("open the run directory")(errno.into()))?;
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|errno| KeeperError::system("become a subreaper")(errno.into()))?;
        rustix::process::chdir("/")
            .map_err(|errno| KeeperError::system("leave its directory")(errno.into()))?;
        if options.place == Place::Background {
            rustix::process::setsid()
                .map_err(|errno| KeeperError::system("start a session")(errno.into()))?;
        }
        rustix::thread::set_name(c"podinit-keeper")
            .map_err(|errno| KeeperError::system("name itself")(errno.into()))?;
        let pid = std::process::id();
        write_pid(&inherited.lock, pid).map_err(KeeperError::system("write its pid into the lock"))?;
        Ok(Self {
            life: Life::new(options.timing, now()),
            held: Held::new(),
            monitor: None,
            signals,
            program: options.program,
            inherited,
            run_dir,
            open_files: raise_open_files(),
            pid,
            failure: Sentence { bytes: [0; SENTENCE_BYTES_MAX], length: 0 },
        })
    }

    /// Runs until the pod has ended.
    pub(super) fn run(mut self, mut report: Report) -> ExitCode {
        loop {
            self.happened(Event::Tick, &mut report);
            self.collect(&mut report);
            self.tell();
            if self.life.phase() == Phase::Ended {
                break;
            }
            self.wait(&mut report);
        }
        self.clean_up();
        match self.life.verdict() {
            Verdict::Orderly => ExitCode::SUCCESS,
            Verdict::Forced => ExitCode::FAILURE,
        }
    }

    /// Takes an event in and does what follows from it.
    fn happened(&mut self, event: Event, report: &mut Report) {
        match self.life.step(event, now()) {
            Action::None => {}
            Action::StartMonitor => {
                if let Err(error) = self.start_monitor() {
                    self.failure.set(format_args!("cannot start the monitor: {error}"));
                    let held = self.holds();
                    self.happened(Event::MonitorGone(held), report);
                }
            }
            Action::ReportReady => report.ready(),
            Action::ReportFailure => {
                report.failed(self.failure.as_str());
                self.kill_children(report);
            }
            Action::AskToEnd => self.ask_by_signal_if_deaf(),
            Action::KillMonitor => {
                self.failure.set_if_empty(format_args!("the monitor did not serve in time and was killed"));
                self.signal_monitor(rustix::process::Signal::KILL);
            }
            Action::KillChildren => self.kill_children(report),
        }
    }

    fn start_monitor(&mut self) -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (link, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let passed = [self.inherited.listener.as_fd(), theirs.as_fd(), self.inherited.lock.as_fd()];
        let (pid, pidfd) = self.program.start(passed, &self.open_files)?;
        self.monitor = Some(Monitor {
            pid,
            pidfd,
            link: Some(link),
            told: Told::Nothing,
            refused: None,
            blocked: false,
        });
        Ok(())
    }

    /// The present monitor's number for [`Held`].
    fn generation(&self) -> Generation {
        self.life.restarts().saturating_add(1)
    }

    fn holds(&self) -> life::Held {
        if self.held.is_empty() && !descendants::has_child() {
            life::Held::Nothing
        } else {
            life::Held::Something
        }
    }

    /// Collects the statuses of children that have ended: the monitor's, then the others'.
    fn collect(&mut self, report: &mut Report) {
        if let Some(monitor) = &self.monitor
            && let Ok(Some(exit)) = process::reap_pidfd(monitor.pidfd.as_fd())
        {
            // What it said last still counts: a descriptor to keep, or Goodbye.
            self.listen(report);
            self.monitor = None;
            self.explain(exit);
            let held = self.holds();
            self.happened(Event::MonitorGone(held), report);
        }
        if matches!(self.life.phase(), Phase::Ending { .. }) {
            self.collect_killed(report);
        } else {
            self.collect_others();
        }
    }

    /// While statuses have room: a child that is not collected stays a zombie, and nothing is lost.
    fn collect_others(&mut self) {
        while self.held.has_room_for_exit() {
            let Ok(Some(ended)) = process::peek_ended() else { return };
            if self.monitor.as_ref().is_some_and(|monitor| monitor.pid == ended.pid) {
                // It has ended since its pidfd was looked at, which is readable now: the next round is at once.
                return;
            }
            let Ok(Some(exit)) = process::reap(ended.pid) else { return };
            if self.held.remember(exit).is_err() {
                return;
            }
        }
    }

    /// At the pod's end nobody is left to be told a status.
    fn collect_killed(&mut self, report: &mut Report) {
        let mut collected = false;
        while let Ok(Some(ended)) = process::peek_ended() {
            collected = true;
            if !matches!(process::reap(ended.pid), Ok(Some(_))) {
                break;
            }
        }
        if !descendants::has_child() {
            self.happened(Event::NoChildLeft, report);
        } else if collected {
            // What the dead had below them is ours now.
            self.kill_children(report);
        }
    }

    /// For the launcher, if the monitor has not said itself why it could not start.
    fn explain(&mut self, exit: ChildExit) {
        if self.life.has_served() {
            return;
        }
        let failure = &mut self.failure;
        match exit.how {
            Ended::Code(EXIT_NOT_EXECUTED) => {
                failure.set_if_empty(format_args!("the monitor program could not be executed"));
            }
            Ended::Code(code) => {
                failure
                    .set_if_empty(format_args!("the monitor ended with exit code {code} before it served"));
            }
            Ended::Signal(signal) => {
                failure.set_if_empty(format_args!("signal {signal} killed the monitor before it served"));
            }
        }
    }

    /// Sends what the monitor does not know yet, as far as it fits.
    fn tell(&mut self) {
        let generation = self.generation();
        let Some(monitor) = &mut self.monitor else { return };
        let Some(link) = &monitor.link else { return };
        let hello = ToMonitorFrame::Hello { restarts: self.life.restarts(), keeper_pid: self.pid };
        let stopping = self.life.is_stopping();
        let told =
            Conversation { link: link.as_fd(), told: &mut monitor.told, refused: &mut monitor.refused }
                .go_on(hello, &mut self.held, generation, stopping);
        // If the monitor has closed its end, that shows where the link is read.
        monitor.blocked = told == Err(Errno::AGAIN);
    }

    /// Takes in what the monitor has sent.
    fn listen(&mut self, report: &mut Report) {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let generation = self.generation();
        loop {
            let Some(monitor) = &mut self.monitor else { return };
            // One refusal is remembered; until it is told, the monitor's next messages wait.
            let Some(link) = monitor.link.as_ref().filter(|_| monitor.refused.is_none()) else { return };
            let (length, fd) = match receive_packet(link.as_fd(), &mut buffer) {
                Ok((0, _)) => {
                    monitor.link = None;
                    self.ask_by_signal_if_deaf();
                    return;
                }
                Ok(received) => received,
                Err(Errno::MSGSIZE) => return self.happened(Event::MonitorBroken, report),
                Err(_) => return,
            };
            match ToKeeperFrame::decode(&buffer[..length]) {
                Ok(ToKeeperFrame::Ready) => self.happened(Event::Ready, report),
                Ok(ToKeeperFrame::Failed(sentence)) => self.failure.set(format_args!("{sentence}")),
                Ok(ToKeeperFrame::Keep { name }) => {
                    let kept = fd.is_some_and(|fd| self.held.keep(name, fd, generation).is_ok());
                    if !kept {
                        monitor.refused = Some(Name::new(name));
                        self.tell();
                    }
                }
                Ok(ToKeeperFrame::Forget { name }) => self.held.forget(name),
                Ok(ToKeeperFrame::Seen { pid }) => self.held.seen(pid, generation),
                Ok(ToKeeperFrame::Goodbye) => self.happened(Event::Goodbye, report),
                Err(_) => return self.happened(Event::MonitorBroken, report),
            }
        }
    }

    /// A monitor that has closed its link can still be signalled.
    fn ask_by_signal_if_deaf(&mut self) {
        if self.life.is_stopping() && self.monitor.as_ref().is_some_and(|m| m.link.is_none()) {
            self.signal_monitor(rustix::process::Signal::TERM);
        }
    }

    fn signal_monitor(&self, signal: rustix::process::Signal) {
        if let Some(monitor) = &self.monitor {
            // It cannot fail but for a monitor that has ended, and that shows when it is collected.
            rustix::process::pidfd_send_signal(&monitor.pidfd, signal).ok();
        }
    }

    fn kill_children(&mut self, report: &mut Report) {
        if descendants::kill_children().is_err() {
            // Without the kernel's list there is no way to find them; do not stay for ever.
            self.happened(Event::NoChildLeft, report);
        }
    }

    /// Waits for the next event and takes it in.
    fn wait(&mut self, report: &mut Report) {
        let quiet = (self.signals.as_fd(), PollFlags::empty());
        let monitor = self.monitor.as_ref();
        let pidfd = monitor.map_or(quiet, |monitor| (monitor.pidfd.as_fd(), PollFlags::IN));
        let link = monitor.and_then(Monitor::polled).unwrap_or(quiet);
        let launcher = report.pipe().map_or(quiet, |pipe| (pipe, PollFlags::empty()));
        let mut fds = [(self.signals.as_fd(), PollFlags::IN), pidfd, link, launcher]
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
        let timeout = self.life.wake().map(|wake| {
            let ns = wake.saturating_sub(now());
            Timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or_default(),
            }
        });
        // Interrupted or not: everything below is asked without waiting.
        poll(&mut fds, timeout.as_ref()).ok();
        let launcher_gone = fds[3].revents().intersects(PollFlags::ERR | PollFlags::HUP);
        if launcher_gone {
            self.happened(Event::LauncherGone, report);
            *report = Report::Done;
        }
        self.read_signals(report);
        self.listen(report);
    }

    fn read_signals(&mut self, report: &mut Report) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            // SIGCHLD only wakes: `collect` looks by itself. The others mean nothing to a pod.
            if let Ok(libc::SIGTERM | libc::SIGINT) = i32::try_from(info.ssi_signo) {
                self.happened(Event::StopAsked, report);
            }
        }
    }

    /// Leaves none of our files, whoever should have removed them. The lock goes last and is held
    /// until this process is gone: see `take_lock` in the launcher.
    fn clean_up(&self) {
        for name in [SOCKET_NAME, PIDFILE_NAME, LOCK_NAME] {
            // Gone already, or the whole directory is: as good.
            unlinkat(&self.run_dir, name, AtFlags::empty()).ok();
        }
    }
}

impl Monitor {
    /// What to poll the link for.
    fn polled(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.refused.is_none());
        flags.set(PollFlags::OUT, self.blocked);
        self.link.as_ref().map(|link| (link.as_fd(), flags))
    }
}

/// The keeper's side of what is said on the link.
struct Conversation<'a> {
    link: BorrowedFd<'a>,
    told: &'a mut Told,
    refused: &'a mut Option<Name>,
}

impl Conversation<'_> {
    /// Says what is due, in order, until all is said or the link takes no more.
    fn go_on(
        &mut self,
        hello: ToMonitorFrame<'_>,
        held: &mut Held,
        to: Generation,
        stopping: bool,
    ) -> Result<(), Errno> {
        if *self.told == Told::Nothing {
            self.say(hello, None)?;
            *self.told = Told::Hello;
        }
        held.tell_fds(to, |name, fd| self.say(ToMonitorFrame::Kept { name }, Some(fd)))?;
        held.tell_exits(to, |exit| self.say(ToMonitorFrame::Exited(exit), None))?;
        if *self.told == Told::Hello {
            self.say(ToMonitorFrame::HelloDone, None)?;
            *self.told = Told::HelloDone;
        }
        if let Some(name) = *self.refused {
            self.say(ToMonitorFrame::Refused { name: name.as_str() }, None)?;
            *self.refused = None;
        }
        if stopping && *self.told == Told::HelloDone {
            self.say(ToMonitorFrame::Terminate, None)?;
            *self.told = Told::Terminate;
        }
        Ok(())
    }

    fn say(&self, frame: ToMonitorFrame<'_>, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        send_packet(self.link, frame.encode().bytes(), fd)
    }
}

/// For the one who finds the lock taken.
fn write_pid(lock: &OwnedFd, pid: u32) -> io::Result<()> {
    rustix::fs::ftruncate(lock, 0)?;
    let mut text = [0u8; 10];
    let mut rest = &mut text[..];
    write!(rest, "{pid}")?;
    let length = 10 - rest.len();
    rustix::io::pwrite(lock, &text[..length], 0)?;
    Ok(())
}

/// Lets this process hold as much as its table; the monitor gets back what was there before.
fn raise_open_files() -> Rlimit {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let needed = KEPT_FDS_MAX as u64 + 64;
    let raised = before.current.map(|soft| soft.max(before.maximum.map_or(needed, |hard| hard.min(needed))));
    // If it is not allowed, less can be kept, and the monitor is told so each time.
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: raised, ..before }).ok();
    before
}
