//! `podinit hook run|ls|results`: hooks of a pod that runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::Globals;
use crate::cli::exit::Failure;
use crate::cli::find::{ask, reach, within};
use crate::cli::names::Reference;
use crate::cli::output::{self, Format, Row, age};
use crate::limits::{HOOK_FILE_BYTES_MAX, HOOK_TIMEOUT_MAX, LISTING_TIMEOUT};
use crate::rpc::client::{HookChoice, HookDescription, HookOutcome, HookRequest, HookResult};

/// The end of `hook run --help`.
pub(super) const HELP: &str = "\
A hook that podinit is run with joins the namespaces of the pod, or of the container, that are named in
its file; its `when` plays no part. Nothing is refused or undone if it fails.

Exit codes: the hook's own; 128+N if signal N ended it; 124 if its time was over; 125 if podinit failed;
126 if it could not be started.";

/// `hook run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A hook file; or, if there is no such file, the name of a hook that the pod knows
    hook: String,

    /// The pod in which it runs
    #[arg(long, value_name = "POD")]
    pod: String,

    /// Run it as a hook of this container of the pod
    #[arg(long, value_name = "CONTAINER")]
    container: Option<Reference>,

    /// What the hook is told [default: the first of its own stages]
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,

    /// Working directory and bundle [default: the container's, or the pod's run directory]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

/// `hook ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Name of the pod
    pod: String,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `hook results`.
#[derive(Debug, Args)]
pub struct ResultsArgs {
    /// Name of the pod
    pod: String,

    /// Only from this sequence number on
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    since: u64,

    /// How to print it; JSON has the end of the hooks' output, too
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `hook run`; the exit code.
pub(super) fn run(globals: &Globals, args: &RunArgs) -> Result<u8, Failure> {
    result_of(globals, args).and_then(|result| {
        output::bytes(&result.stdout, &result.stderr)?;
        match result.outcome {
            HookOutcome::Code(code) => Ok(code),
            HookOutcome::Signal(signal) => Ok(signal.saturating_add(128)),
            HookOutcome::Answered => Ok(0),
            other => Err(Failure::Said {
                code: if other == HookOutcome::TimedOut { 124 } else { 126 },
                message: format!("hook {}: {}", result.hook, words(&other)),
            }),
        }
    })
}

fn result_of(globals: &Globals, args: &RunArgs) -> Result<HookResult, Failure> {
    let pod = reach(globals.root()?.pod(&args.pod)?).map_err(Failure::in_run)?;
    let choice = choose(&args.hook).map_err(Failure::in_run)?;
    let bundle = match &args.bundle {
        Some(path) => std::path::absolute(path)
            .map_err(|error| Failure::io(format_args!("finding {}", path.display()), &error).in_run())?,
        None => PathBuf::new(),
    };
    let request = HookRequest {
        stage: args.stage.clone().unwrap_or_default(),
        container: args.container.as_ref().map(|named| named.container.clone()).unwrap_or_default(),
        pod_id: pod.dir.id.clone(),
        bundle: bundle.to_string_lossy().into_owned(),
        ..HookRequest::new(choice)
    };
    // A hook has its own time; this is for a server that does not answer.
    let patience = HOOK_TIMEOUT_MAX + Duration::from_secs(60) + LISTING_TIMEOUT;
    within(&pod.client, patience, async |client| client.run_hook(&request).await).map_err(Failure::in_run)
}

/// A file if there is one, else a name.
fn choose(hook: &str) -> Result<HookChoice, Failure> {
    let path = PathBuf::from(hook);
    let failed = |error| Failure::io(format_args!("reading {}", path.display()), &error);
    match path.metadata() {
        Ok(found) if found.len() > HOOK_FILE_BYTES_MAX => Err(Failure::new(format!(
            "{}: a hook file has at most {HOOK_FILE_BYTES_MAX} bytes",
            path.display()
        ))),
        Ok(_) => std::fs::read_to_string(&path).map(HookChoice::Definition).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !hook.contains('/') => {
            Ok(HookChoice::Name(hook.to_owned()))
        }
        Err(error) => Err(failed(error)),
    }
}

/// `hook ls`.
pub(super) fn ls(globals: &Globals, args: &LsArgs) -> Result<(), Failure> {
    let pod = reach(globals.root()?.pod(&args.pod)?)?;
    let hooks = ask(&pod.client, async |client| client.list_hooks().await)?;
    output::list(args.output, &hooks.into_iter().map(HookView::from).collect::<Vec<_>>())
}

/// `hook results`.
pub(super) fn results(globals: &Globals, args: &ResultsArgs) -> Result<(), Failure> {
    let pod = reach(globals.root()?.pod(&args.pod)?)?;
    let results = ask(&pod.client, async |client| client.hook_results(args.since).await)?;
    output::list(args.output, &results.into_iter().map(ResultView::from).collect::<Vec<_>>())
}

fn words(outcome: &HookOutcome) -> String {
    match outcome {
        HookOutcome::Code(code) => code.to_string(),
        HookOutcome::Signal(signal) => format!("signal {signal}"),
        HookOutcome::TimedOut => "its time was over".to_owned(),
        HookOutcome::NotStarted(reason) => format!("not started: {reason}"),
        HookOutcome::Answered => "answered".to_owned(),
        HookOutcome::Refused(reason) => format!("refused: {reason}"),
        HookOutcome::Lost(reason) => format!("lost: {reason}"),
    }
}

/// A hook that a pod knows.
#[derive(Debug, Serialize)]
struct HookView {
    name: String,
    path: PathBuf,
    args: Vec<String>,
    stages: Vec<String>,
    namespaces: Vec<&'static str>,
    failure: &'static str,
    timeout_ms: u64,
    attempts: u32,
    concurrent: bool,
    resident: bool,
}

impl From<HookDescription> for HookView {
    fn from(hook: HookDescription) -> Self {
        Self {
            name: hook.name,
            path: hook.path,
            args: hook.args,
            stages: hook.stages,
            namespaces: hook.namespaces.iter().map(|kind| kind.name()).collect(),
            failure: hook.failure.name(),
            timeout_ms: hook.timeout_ms,
            attempts: hook.attempts,
            concurrent: hook.concurrent,
            resident: hook.resident,
        }
    }
}

impl Row for HookView {
    const HEADINGS: &'static [&'static str] = &["NAME", "STAGES", "NAMESPACES", "FAILURE", "TIME", "RUNS"];

    fn cells(&self) -> Vec<String> {
        let runs = if self.resident { "a resident client".into() } else { self.path.display().to_string() };
        vec![
            self.name.clone(),
            self.stages.join(","),
            self.namespaces.join(","),
            self.failure.to_owned(),
            format!("{} s", Duration::from_millis(self.timeout_ms).as_secs_f32()),
            runs,
        ]
    }
}

/// How a hook ended.
#[derive(Debug, Serialize)]
struct ResultView {
    sequence: u64,
    hook: String,
    stage: String,
    pod: String,
    container: Option<String>,
    started_at_ns: u64,
    elapsed_ns: u64,
    attempts: u32,
    code: Option<u8>,
    signal: Option<u8>,
    success: bool,
    outcome: String,
    stdout: String,
    stderr: String,
    stdout_dropped: u64,
    stderr_dropped: u64,
    left_running: u32,
    killed: u32,
}

impl From<HookResult> for ResultView {
    fn from(result: HookResult) -> Self {
        Self {
            sequence: result.sequence,
            hook: result.hook,
            stage: result.stage,
            pod: result.pod_id,
            container: Some(result.container).filter(|container| !container.is_empty()),
            started_at_ns: result.started_at_ns,
            elapsed_ns: result.elapsed_ns,
            attempts: result.attempts,
            code: if let HookOutcome::Code(code) = result.outcome { Some(code) } else { None },
            signal: if let HookOutcome::Signal(signal) = result.outcome { Some(signal) } else { None },
            success: result.outcome.is_success(),
            outcome: words(&result.outcome),
            stdout: String::from_utf8_lossy(&result.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&result.stderr).into_owned(),
            stdout_dropped: result.stdout_dropped,
            stderr_dropped: result.stderr_dropped,
            left_running: result.left_running,
            killed: result.killed,
        }
    }
}

impl Row for ResultView {
    const HEADINGS: &'static [&'static str] =
        &["SEQUENCE", "HOOK", "STAGE", "CONTAINER", "TOOK", "AGE", "OUTCOME"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.sequence.to_string(),
            self.hook.clone(),
            self.stage.clone(),
            self.container.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{:.1} ms", Duration::from_nanos(self.elapsed_ns).as_secs_f64() * 1000.0),
            age(self.started_at_ns),
            self.outcome.clone(),
        ]
    }
}
