//! The commands for people: `podinit run`, `podinit pod …` and their kin. What an
//! engine starts (`serve` and the programs that podinit replaces) is elsewhere.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::attach_command::{self, AttachArgs};
use super::container::{self, CreateArgs, EventsArgs, ExecArgs, Names, PsArgs, RmArgs, StopArgs};
use super::exit::Failure;
use super::hook::HookCommand;
use super::limit::{self, LimitLogsArgs};
use super::logs::{self, LogsArgs};
use super::paths::Root;
use super::pod::PodCommand;
use super::run::{self, RunArgs};
use super::seccomp::SeccompCommand;
use super::stats::{self, StatsArgs};

/// What every command for people takes.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Directory of all pods
    #[arg(long, global = true, value_name = "DIR", env = "PODINIT_ROOT", default_value = "/run/podinit")]
    root: PathBuf,
}

impl Globals {
    /// The directory of all pods.
    ///
    /// # Errors
    /// If it is relative to a directory that is gone.
    pub fn root(&self) -> Result<Root, Failure> {
        Root::new(&self.root)
    }
}

/// The commands for people.
#[derive(Debug, Subcommand)]
pub enum PeopleCommand {
    /// Run a command in a new container, print its output and exit with its code
    #[command(after_help = run::HELP)]
    Run(Box<RunArgs>),
    /// Work with pods
    #[command(subcommand)]
    Pod(PodCommand),
    /// Make a container in a pod; `start` runs it. Prints POD/CONTAINER
    Create(CreateArgs),
    /// Run the commands of containers that were created
    Start(Names),
    /// Run a command in a running container and exit with its code
    #[command(after_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// Connect our terminal, or our streams, to a running container
    #[command(after_help = attach_command::HELP)]
    Attach(AttachArgs),
    /// Print the output of a container, or audit its log
    #[command(after_help = logs::HELP)]
    Logs(LogsArgs),
    /// List containers
    #[command(after_help = PS_HELP)]
    Ps(PsArgs),
    /// Wait until containers have exited and print their exit codes
    Wait(Names),
    /// Stop containers: a signal, a grace time, then SIGKILL
    Stop(StopArgs),
    /// Remove containers that have exited, with their logs
    Rm(RmArgs),
    /// Follow what happens in a pod
    #[command(after_help = EVENTS_HELP)]
    Events(EventsArgs),
    /// Print counters of a pod, or of a container's streams, as JSON
    Stats(StatsArgs),
    /// Work with hooks
    #[command(subcommand)]
    Hook(HookCommand),
    /// See and decide what happens to the system calls that containers' profiles notify of
    #[command(subcommand)]
    Seccomp(SeccompCommand),
    /// Limit how much of a running container's output is logged; replaces all its limits
    LimitLogs(LimitLogsArgs),
}

const EXEC_HELP: &str = "\
Both streams are kept while the command runs and printed when it has ended, at most 16 MiB of each.

Exit codes: the command's own; 128+N if signal N ended it; 124 if the time-out passed; 125 if podinit
failed; 126 if the command cannot be executed; 127 if it was not found.";

const PS_HELP: &str = "\
Fields of a container in JSON: pod, container, state (creating, created, running, stopping, exited),
pid, exit (null until it has exited; code, signal or unknown, oom_killed, oom_victim, exited_at_ns,
log_complete), created_at_ns, started_at_ns, bundle, log, terminal, monitor_restarts.";

const EVENTS_HELP: &str = "\
Fields of an event in JSON: pod, sequence, time_ns, container (null for the pod), event (created,
started, exited, deleted, oom-killed, exec-failed, monitor-restarted, stopping, pod-stopping,
init-ended, hook-failed, log-failed, log-gap, lost), pid, exit (as in `podinit ps`), reason, count.";

/// The end of `podinit --help`.
pub const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 not done, and the last line says why; 2 the command line was wrong. `run` and
`exec` exit with the command's own code and have codes of their own: see their --help.

A container is named CONTAINER, or POD/CONTAINER where several pods have one of that name.

Programs that podinit replaces, each with its own --help: `podinit conmonrs` (as serve), `podinit pinns`
and `podinit init` (tini, catatonit). Called as conmonrs, pinns or pause, it is that program.";

impl PeopleCommand {
    /// Runs the command; all there is to say has been said when it returns.
    #[must_use]
    pub fn run(self, globals: &Globals) -> ExitCode {
        let done = |result: Result<(), Failure>| result.map(|()| 0);
        let result = match self {
            Self::Run(args) => run::run(globals, &args).map_err(Failure::in_run),
            Self::Logs(args) => done(logs::run(globals, &args)),
            Self::Attach(args) => attach_command::run(globals, &args).map_err(Failure::in_run),
            Self::Pod(command) => done(command.run(globals)),
            Self::Create(args) => done(container::run_create(globals, &args)),
            Self::Start(names) => done(container::run_start(globals, &names)),
            Self::Exec(args) => container::run_exec(globals, &args).map_err(Failure::in_run),
            Self::Ps(args) => done(container::run_ps(globals, &args)),
            Self::Wait(names) => done(container::run_wait(globals, &names)),
            Self::Stop(args) => done(container::run_stop(globals, &args)),
            Self::Rm(args) => done(container::run_rm(globals, &args)),
            Self::Events(args) => done(container::run_events(globals, &args)),
            Self::Stats(args) => done(stats::run(globals, &args)),
            Self::Hook(command) => command.run(globals),
            Self::Seccomp(command) => done(command.run(globals)),
            Self::LimitLogs(args) => done(limit::run(globals, &args)),
        };
        match result {
            Ok(code) => ExitCode::from(code),
            Err(failure) => failure.report(),
        }
    }
}
