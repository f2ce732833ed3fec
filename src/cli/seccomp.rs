//! `podinit seccomp`: what is notified, who decides, and how; and what plugin
//! authors need.

mod answer;
mod check;
mod replay;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tokio::time::timeout;

use super::exit::Failure;
use super::find::{self, find, reach};
use super::names::Reference;
use super::output::{self, Format, Row};
use super::people::Globals;
use crate::limits::LISTING_TIMEOUT;
use crate::rpc::client::{Client, Code, SeccompPlugin, SeccompRecorded, SeccompRow, SeccompStats};
use crate::rpc::plugin::client::{Record, Selector, Session, Verdict};
use crate::seccomp::syscall::errno_name;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum SeccompCommand {
    /// List listeners and who decides about their notifications
    #[command(after_help = LS_HELP)]
    Ls(LsArgs),
    /// Print what is decided, as it is decided
    #[command(after_help = TRACE_HELP)]
    Trace(TraceArgs),
    /// Print a profile that allows what rules with the action `record` saw of a container
    #[command(after_help = PROFILE_HELP)]
    Profile(ProfileArgs),
    /// Print how many verdicts there were, and how long they took
    #[command(after_help = STATS_HELP)]
    Stats(StatsArgs),
    /// Say what is wrong with a profile, or with rules
    #[command(after_help = check::HELP)]
    Check(check::CheckArgs),
    /// Decide, from the command line: a plugin that always says the same
    #[command(after_help = answer::HELP)]
    Answer(answer::AnswerArgs),
    /// Ask a plugin about recorded notifications, without a container
    #[command(after_help = replay::HELP)]
    Replay(replay::ReplayArgs),
}

const LS_HELP: &str = "\
Those who decide are listed in the order in which they are asked. A rule that needs plugins which are
MISSING, because they are not registered, is passed over until they are.

With --output json the tables are `sessions` and `plugins`.";

const TRACE_HELP: &str = "\
With --output json every line is one record, which `podinit seccomp replay` takes: notification (id,
session, container, tid, syscall, name, architecture, instruction_pointer, arguments, decoded), verdict,
decided_by, latency_us, at_ns. A verdict of \"pass_on\" means that the process was gone, or interrupted,
before there was one.";

const PROFILE_HELP: &str = "\
The profile allows the calls that were recorded, and refuses all others: join it with the profile that
notified of them. A call that libseccomp has no name for is not in it; --output table shows its number.

Of a container that was removed, name the pod, too: POD/CONTAINER.";

const STATS_HELP: &str = "\
The first table is of whole calls: what they were answered, and how long they waited for it, from their
reception on. The second is of who was asked: what it said, `pass` if it passed on, and how long that
took from when it was asked. Who failed, or missed its deadline, has said what its policy says; calls that
it was not asked about, because it had failed too often, are counted as `not asked` only. `default` is
what nobody decided.

With --output json the tables are `calls` and `rows`; entry n of a histogram is those that took less than
2^n microseconds and are in no entry before. `gone` is calls whose process was gone, or interrupted, before
they could be received; `suspended` is what the table has as `not asked`.";

/// Which pod is asked.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// The pod
    pod: Option<String>,

    /// conmon.sock of a pod that is not one of podinit's own
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Whom {
    fn reach(&self, globals: &Globals) -> Result<Client, Failure> {
        match (&self.socket, &self.pod) {
            (Some(socket), _) => connect(socket),
            (None, Some(pod)) => Ok(reach(globals.root()?.pod(pod)?)?.client),
            // clap asks for one of the two.
            (None, None) => Err(Failure::usage("which pod?")),
        }
    }
}

/// Connects to a pod by the name of its socket.
fn connect(socket: &Path) -> Result<Client, Failure> {
    let client = Client::connect(socket)?;
    let asked = client.call(async |pod| timeout(LISTING_TIMEOUT, pod.version()).await);
    match asked {
        // A pod has more than one socket.
        Ok(Err(error)) if error.code == Code::NotSupported => Err(Failure::new(format!(
            "{} is no pod's main socket: name conmon.sock in its directory",
            socket.display()
        ))),
        // Whatever else is wrong, the command's own question meets it.
        _ => Ok(client),
    }
}

/// `seccomp ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    whom: Whom,

    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `seccomp trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    whom: Whom,

    /// Only this system call; may be given several times
    #[arg(long = "syscall", value_name = "NAME")]
    syscalls: Vec<String>,

    /// Only this container; may be given several times
    #[arg(long = "container", value_name = "ID")]
    containers: Vec<String>,

    /// Show paths and socket addresses; every traced call waits until they are copied
    #[arg(long)]
    decode: bool,

    /// End after so many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// How to print
    #[arg(long, value_enum, default_value_t = Style::Text)]
    output: Style,
}

/// How records are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// A line for people; it may change.
    Text,
    /// A JSON object per line.
    Json,
}

/// `seccomp profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// The container
    container: Reference,

    /// conmon.sock of its pod, if that is not one of podinit's own
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// What to print
    #[arg(long, value_enum, default_value_t = Recording::Profile)]
    output: Recording,
}

/// What is printed of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Recording {
    /// The profile, as `linux.seccomp` of a config.json.
    Profile,
    /// The calls and how often each was made: columns for people; they may change.
    Table,
    /// The same: JSON for programs; field names stay.
    Json,
}

/// `seccomp stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    #[command(flatten)]
    whom: Whom,

    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl SeccompCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn run(self, globals: &Globals) -> Result<(), Failure> {
        match self {
            Self::Ls(args) => ls(globals, &args),
            Self::Trace(args) => trace(globals, &args),
            Self::Profile(args) => profile(globals, &args),
            Self::Stats(args) => stats(globals, &args),
            Self::Check(args) => check::run(&args),
            Self::Answer(args) => answer::run(args),
            Self::Replay(args) => replay::run(&args),
        }
    }
}

/// All of `seccomp ls`.
#[derive(Debug, Serialize)]
struct Listed {
    sessions: Vec<Session>,
    plugins: Vec<SeccompPlugin>,
}

impl Row for Session {
    const HEADINGS: &'static [&'static str] = &["SESSION", "CONTAINER", "PID", "KIND", "METADATA"];
    fn cells(&self) -> Vec<String> {
        let kind = if self.exec { "exec" } else { "container" };
        vec![
            self.id.to_string(),
            self.container.clone(),
            self.pid.to_string(),
            kind.to_owned(),
            self.metadata.clone(),
        ]
    }
}

impl Row for SeccompPlugin {
    const HEADINGS: &'static [&'static str] = &["PRIORITY", "NAME", "DEADLINE", "ON FAILURE", "MISSING"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.priority.to_string(),
            self.name.clone(),
            format!("{} ms", self.deadline_ms),
            policy(&self.on_failure),
            self.missing.join(","),
        ]
    }
}

/// What happens to calls that a plugin fails at, with the errno's name for its number.
fn policy(text: &str) -> String {
    let number = text.strip_prefix("errno:").and_then(|number| number.parse().ok());
    number.and_then(errno_name).unwrap_or_else(|| text.to_owned())
}

fn ls(globals: &Globals, args: &LsArgs) -> Result<(), Failure> {
    let client = args.whom.reach(globals)?;
    let sessions = find::ask(&client, |pod| pod.seccomp_sessions())?;
    let plugins = find::ask(&client, |pod| pod.seccomp_plugins())?;
    if args.output == Format::Json {
        return output::json(&Listed { sessions, plugins });
    }
    output::list(Format::Table, &sessions)?;
    output::print("\n")?;
    output::list(Format::Table, &plugins)
}

fn trace(globals: &Globals, args: &TraceArgs) -> Result<(), Failure> {
    let client = args.whom.reach(globals)?;
    let selector = Selector {
        syscalls: args.syscalls.clone(),
        containers: args.containers.clone(),
        ..Selector::default()
    };
    client.call(async |pod| {
        let mut trace = pod.seccomp_trace(&selector, args.decode).await?;
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0 {
            let Some(traced) = trace.next().await else {
                return Err(Failure::new("the pod has ended"));
            };
            for record in traced.records.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                left -= 1;
                match args.output {
                    Style::Json => output::json_line(record)?,
                    Style::Text => output::print(&line(record))?,
                }
            }
            if traced.lost > 0 {
                let text = format!("{} records were lost: they came faster than they were read", traced.lost);
                super::complain(&std::io::Error::other(text));
            }
        }
        Ok(())
    })
}

/// A record for people.
fn line(record: &Record) -> String {
    let call = &record.notification;
    let name = if call.name.is_empty() { call.syscall.to_string() } else { call.name.clone() };
    let arguments: Vec<String> =
        (0u8..).zip(call.arguments).map(|(index, value)| shown(record, index, value)).collect();
    format!(
        "{} {} {name}({}) = {} by {} in {} us\n",
        call.container,
        call.tid,
        arguments.join(", "),
        outcome(&record.verdict),
        record.decided_by,
        record.latency_us
    )
}

/// An argument: what it points to, if that is known, else the register.
fn shown(record: &Record, index: u8, value: u64) -> String {
    if let Some(text) = record.notification.text(index) {
        return format!("{:?}", String::from_utf8_lossy(text));
    }
    match record.notification.address(index).map(|address| &address.kind) {
        Some(crate::rpc::plugin::client::AddressKind::Internet(address)) => address.to_string(),
        _ => format!("{value:#x}"),
    }
}

/// A verdict in a few words.
fn outcome(verdict: &Verdict) -> String {
    match verdict {
        Verdict::PassOn => "interrupted".into(),
        Verdict::Return(value) => value.to_string(),
        Verdict::Errno(number) => errno_name(i32::from(*number)).unwrap_or_else(|| format!("errno {number}")),
        Verdict::Continue => "continued".into(),
        Verdict::AddDescriptor { at: Some(number), .. } => format!("descriptor {number}"),
        Verdict::AddDescriptor { at: None, .. } => "a descriptor".into(),
        Verdict::Kill => "killed".into(),
        Verdict::Later => "later".into(),
    }
}

fn profile(globals: &Globals, args: &ProfileArgs) -> Result<(), Failure> {
    let (client, id) = match (&args.socket, &args.container.pod) {
        (None, _) => {
            let found = find(&globals.root()?, &args.container).map_err(|failure| match failure {
                Failure::Said { code, message } if args.container.pod.is_none() => Failure::Said {
                    code,
                    message: format!(
                        "{message}; what was recorded of one that was removed has POD/{}",
                        args.container.container
                    ),
                },
                failure => failure,
            })?;
            (found.pod.client, found.id)
        }
        (Some(socket), None) => (connect(socket)?, args.container.container.clone()),
        (Some(_), Some(_)) => return Err(Failure::usage("--socket is the pod: name the container alone")),
    };
    let format = match args.output {
        Recording::Profile => {
            let profile = find::ask(&client, |pod| pod.seccomp_profile(&id))?;
            let value: serde_json::Value = serde_json::from_str(&profile).map_err(|error| {
                Failure::new(format!("the pod's server sent a profile that is no JSON: {error}"))
            })?;
            return output::json(&value);
        }
        Recording::Table => Format::Table,
        Recording::Json => Format::Json,
    };
    let mut calls = find::ask(&client, |pod| pod.seccomp_recorded(&id))?;
    calls.sort_by_key(|call| std::cmp::Reverse(call.count));
    output::list(format, &calls)
}

impl Row for SeccompRecorded {
    const HEADINGS: &'static [&'static str] = &["SYSTEM CALL", "ARCHITECTURE", "COUNT"];
    fn cells(&self) -> Vec<String> {
        let name = if self.name.is_empty() { self.number.to_string() } else { self.name.clone() };
        vec![name, self.architecture.clone(), self.count.to_string()]
    }
}

impl Row for SeccompRow {
    const HEADINGS: &'static [&'static str] =
        &["WHO", "SYSTEM CALL", "VERDICT", "COUNT", "MEDIAN us <", "99 % us <"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.plugin.clone(),
            self.syscall.clone(),
            self.verdict.clone(),
            self.total().to_string(),
            self.below_us(50).to_string(),
            self.below_us(99).to_string(),
        ]
    }
}

/// A row of whole calls, whoever decided.
#[derive(Debug, Serialize)]
struct Whole<'a>(&'a SeccompRow);

impl Row for Whole<'_> {
    const HEADINGS: &'static [&'static str] = &["SYSTEM CALL", "ANSWER", "COUNT", "MEDIAN us <", "99 % us <"];
    fn cells(&self) -> Vec<String> {
        self.0.cells().split_off(1)
    }
}

fn stats(globals: &Globals, args: &StatsArgs) -> Result<(), Failure> {
    let client = args.whom.reach(globals)?;
    let stats = find::ask(&client, |pod| pod.seccomp_stats())?;
    if args.output == Format::Json {
        return output::json(&stats);
    }
    output::print(&summary(&stats))?;
    output::list(Format::Table, &stats.calls.iter().map(Whole).collect::<Vec<_>>())?;
    output::print("\n")?;
    output::list(Format::Table, &stats.rows)
}

fn summary(stats: &SeccompStats) -> String {
    let mut text = format!(
        "{} received, {} answered, {} interrupted, {} open, {} listeners\n",
        stats.received, stats.answered, stats.interrupted, stats.open, stats.sessions
    );
    for plugin in &stats.plugins {
        text += &format!(
            "{}: {} registered, {} deadlines missed, {} failures, {} not asked, {} interrupted\n",
            plugin.name,
            plugin.registrations,
            plugin.timeouts,
            plugin.failures,
            plugin.suspended,
            plugin.interrupted
        );
    }
    text.push('\n');
    text
}
