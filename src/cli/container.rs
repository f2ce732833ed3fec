//! `podinit create|start|ps|wait|stop|rm|events|exec`: each asks one pod's server.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Globals;
use super::bundle::{self, Extras, FromRootfs, Mount, Process, RootAccess, User};
use super::exit::{Failure, NOT_EXECUTABLE, PODINIT_FAILED, TIMED_OUT, code_of_failed_start, complain};
use super::find::{self, Containers, Pod, ask, find, reach, within};
use super::log_options::LogOptions;
use super::names::{self, Named, Reference, random_id};
use super::output::{self, Format, Spinner};
use super::paths::{PodDir, private_directories};
use super::pod::{for_each, share};
use super::view::{ContainerView, EventView, exit_words};
use crate::limits;
use crate::rpc::client::{
    CreateContainer, Deletion, ExecOutcome, ExecRequest, ExitStatus, FirstProcess, LogDriver, LogKind, Stdin,
    Stdio,
};

/// How a container is made.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["rootfs", "bundle"]))]
pub struct ContainerOptions {
    /// Root file system of the container
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,

    /// OCI bundle of the container; its config.json is copied and placed in the pod
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,

    /// Name of the container [default: a new one]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,

    /// Keep the command's standard input open
    #[arg(short, long)]
    pub interactive: bool,

    /// Start the command through podinit's init: it passes signals on and reaps
    #[arg(long)]
    pub init: bool,

    #[command(flatten)]
    settings: Settings,

    /// The command and its arguments [default: the bundle's]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// What may be changed about a container of either kind.
#[derive(Debug, Args)]
struct Settings {
    /// Do not let the container write to its root file system
    #[arg(long, conflicts_with = "bundle")]
    read_only: bool,

    /// Environment variable; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = names::key_value)]
    env: Vec<(String, String)>,

    /// Working directory of the command
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,

    /// User and group that run the command, as numbers
    #[arg(short, long, value_name = "UID[:GID]", value_parser = bundle::parse_user)]
    user: Option<User>,

    /// Bind mount; may be repeated
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:OPTION,…]", value_parser = bundle::parse_volume)]
    volume: Vec<Mount>,

    /// Mount: type=bind|tmpfs,src=PATH,dst=PATH[,ro][,OPTION…]; may be repeated
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = bundle::parse_mount)]
    mount: Vec<Mount>,

    /// Memory limit in bytes; k, m or g may follow
    #[arg(short, long, value_name = "BYTES", value_parser = names::bytes)]
    memory: Option<u64>,

    #[command(flatten)]
    log: LogOptions,
}

/// `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The pod it shall be in
    #[arg(long, value_name = "POD")]
    pod: String,

    #[command(flatten)]
    options: ContainerOptions,
}

/// Names of containers.
#[derive(Debug, Args)]
pub struct Names {
    /// CONTAINER or POD/CONTAINER
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<Reference>,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Only containers of this pod
    #[arg(long, value_name = "POD")]
    pod: Option<String>,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    names: Names,

    /// Signal that asks it to end
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM", value_parser = names::signal)]
    signal: u8,

    /// Seconds between the signal and SIGKILL
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u32,
}

/// `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    names: Names,

    /// Kill it first if it still runs
    #[arg(short, long)]
    force: bool,
}

/// `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// The pod
    pod: String,

    /// Only events after this sequence number
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    since: u64,

    /// End after so many events [default: with the pod]
    #[arg(short = 'n', long, value_name = "NUMBER")]
    count: Option<u64>,

    /// How to print them; JSON is one object a line
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// CONTAINER or POD/CONTAINER
    container: Reference,

    /// Give the command a terminal; both its streams are then one
    #[arg(short, long)]
    tty: bool,

    /// Environment variable; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = names::key_value)]
    env: Vec<(String, String)>,

    /// Seconds after which the command is killed [default: never]
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    timeout: u64,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A container that has been created: its name, and what its streams are.
#[derive(Debug)]
pub struct Created {
    /// Its id.
    pub id: String,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// Makes a container in `pod`; on failure nothing is left of it.
///
/// # Errors
/// What to tell the user. A command that cannot be started has the shells' code.
/// What `interrupt` says, if it ends first; the server then undoes what was begun.
pub fn make(
    pod: &Pod,
    options: &ContainerOptions,
    interrupt: impl AsyncFnOnce() -> Failure,
) -> Result<Created, Failure> {
    let id = options.name.clone().map_or_else(|| random_id(""), Ok)?;
    names::check_id(Named::Container, &id)?;
    let config = config(pod, &id, options)?;
    let stdio = bundle::stdio(&config);
    let directory = pod.dir.bundle(&id);
    bundle::write(&directory, &config)?;
    let created = create(pod, &id, options, stdio, interrupt);
    if created.is_err() {
        remove_files(&pod.dir, &id);
    }
    created?;
    Ok(Created { id, stdio })
}

fn create(
    pod: &Pod,
    id: &str,
    options: &ContainerOptions,
    stdio: Stdio,
    interrupt: impl AsyncFnOnce() -> Failure,
) -> Result<(), Failure> {
    let log = pod.dir.log(id);
    if let Some(parent) = log.parent() {
        private_directories(parent)?;
    }
    let request = CreateContainer {
        stdio,
        stdin: if options.interactive { Stdin::Open } else { Stdin::Null },
        log_drivers: vec![LogDriver {
            kind: LogKind::Cri,
            path: log,
            size_max: options.settings.log.log_size,
        }],
        first_process: if options.init { FirstProcess::Init } else { FirstProcess::Command },
        log_options: options.settings.log.pairs(),
        ..CreateContainer::new(id, pod.dir.bundle(id))
    };
    pod.client.call(async |client| {
        tokio::select! {
            created = client.create_container(&request) => created.map(drop).map_err(start_failure),
            failure = interrupt() => Err(failure),
        }
    })
}

/// A refusal of the OCI runtime may be about the command itself.
pub fn start_failure(error: crate::rpc::client::Error) -> Failure {
    let code = match error.code {
        crate::rpc::client::Code::RuntimeFailed => code_of_failed_start(&error.message),
        _ => PODINIT_FAILED,
    };
    match Failure::from(error) {
        Failure::Said { message, .. } if code != PODINIT_FAILED => Failure::Said { code, message },
        failure => failure,
    }
}

fn config(pod: &Pod, id: &str, options: &ContainerOptions) -> Result<serde_json::Value, Failure> {
    let settings = &options.settings;
    let process = Process {
        args: options.command.clone(),
        env: settings.env.clone(),
        cwd: settings.cwd.clone(),
        user: settings.user,
        stdio: if options.tty { Stdio::Terminal } else { Stdio::Pipes },
    };
    let extras = Extras {
        mounts: settings.volume.iter().chain(&settings.mount).cloned().collect(),
        memory_max: settings.memory,
    };
    let in_pod = share(pod, id)?;
    match (&options.rootfs, &options.bundle) {
        (Some(rootfs), _) => {
            if process.args.is_empty() {
                return Err(Failure::usage("say which command the container shall run"));
            }
            let access = if settings.read_only { RootAccess::ReadOnly } else { RootAccess::ReadWrite };
            let rootfs = FromRootfs { rootfs: bundle::utf8(&directory(rootfs)?)?, access };
            Ok(bundle::from_rootfs(&rootfs, &process, &extras, &in_pod))
        }
        (None, Some(theirs)) => {
            let theirs = directory(theirs)?;
            bundle::from_bundle(&bundle::read(&theirs)?, &theirs, &process, &extras, &in_pod)
        }
        (None, None) => Err(Failure::usage("say what to run: --rootfs DIR or --bundle DIR")),
    }
}

/// `path` in full, if it is a directory.
fn directory(path: &std::path::Path) -> Result<PathBuf, Failure> {
    let failed = |error| Failure::io(format_args!("finding the directory {}", path.display()), &error);
    let full = fs::canonicalize(path).map_err(failed)?;
    if full.is_dir() { Ok(full) } else { Err(Failure::new(format!("{} is not a directory", path.display()))) }
}

/// Removes what [`make`] made for a container: its bundle, its log and the
/// log's rotated parts. What is missing already is no matter.
pub fn remove_files(pod: &PodDir, id: &str) {
    drop(fs::remove_dir_all(pod.bundle(id)));
    let log = pod.log(id);
    let (Some(directory), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(|found| is_part_of_log(found, name)) {
            drop(fs::remove_file(entry.path()));
        }
    }
    drop(fs::remove_file(pod.attach_socket(id)));
}

/// Rotated parts are `NAME.<digits and dashes>`, perhaps with `.gz`. Another
/// container's log may begin with the same name, but ends in `.log`.
fn is_part_of_log(found: &str, name: &str) -> bool {
    match found.strip_prefix(name) {
        // The second is what a compressing process that was killed has left.
        Some("" | ".gz.tmp") => true,
        Some(rest) => {
            let suffix = rest.strip_suffix(".gz").unwrap_or(rest);
            suffix.strip_prefix('.').is_some_and(|digits| {
                !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit() || c == '-')
            })
        }
        None => false,
    }
}

/// `podinit create`.
///
/// # Errors
/// What to tell the user.
pub fn run_create(globals: &Globals, args: &CreateArgs) -> Result<(), Failure> {
    let pod = reach(globals.root()?.pod(&args.pod)?)?;
    let _spinner = Spinner::start(format!("creating a container in pod {}", args.pod));
    let created = make(&pod, &args.options, std::future::pending)?;
    output::print(&format!("{}/{}\n", pod.dir.id, created.id))
}

fn each(
    globals: &Globals,
    names: &Names,
    mut action: impl FnMut(&Pod, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let root = globals.root()?;
    let names: Vec<String> = names.containers.iter().map(ToString::to_string).collect();
    for_each(&names, |name| {
        let reference: Reference = name.parse().map_err(Failure::usage)?;
        let found = find(&root, &reference)?;
        action(&found.pod, &found.id)
    })
}

/// `podinit start`.
///
/// # Errors
/// What to tell the user.
pub fn run_start(globals: &Globals, names: &Names) -> Result<(), Failure> {
    each(globals, names, |pod, id| {
        pod.client.call(async |client| client.start_container(id).await).map_err(start_failure)?;
        output::print(&format!("{}/{id}\n", pod.dir.id))
    })
}

/// `podinit ps`.
///
/// # Errors
/// If a pod does not answer; what the others said has been printed.
pub fn run_ps(globals: &Globals, args: &PsArgs) -> Result<(), Failure> {
    let root = globals.root()?;
    let Containers { found, silent } = if let Some(id) = &args.pod {
        let pod = reach(root.pod(id)?)?;
        let list = ask(&pod.client, crate::rpc::client::PodClient::list_containers)?;
        let found = list.into_iter().map(|status| (pod.dir.clone(), status)).collect();
        Containers { found, silent: Vec::new() }
    } else {
        let _spinner = Spinner::start("asking every pod");
        find::containers(&root)?
    };
    let views: Vec<ContainerView> =
        found.into_iter().map(|(dir, status)| ContainerView::new(&dir, status)).collect();
    output::list(args.output, &views)?;
    silent.into_iter().next().map_or(Ok(()), Err)
}

/// `podinit wait`: prints exit codes, as shells say them.
///
/// # Errors
/// What to tell the user.
pub fn run_wait(globals: &Globals, names: &Names) -> Result<(), Failure> {
    each(globals, names, |pod, id| {
        let spinner = Spinner::start(format!("waiting for {}/{id}", pod.dir.id));
        let exit = pod.client.call(async |client| client.wait_container(id).await)?;
        drop(spinner);
        output::print(&format!("{}\n", code_of(&format!("{}/{id}", pod.dir.id), &exit)?))
    })
}

/// The exit code of `container` as shells say it.
///
/// # Errors
/// If it is not known; the reason why.
pub fn code_of(container: &str, exit: &ExitStatus) -> Result<u8, Failure> {
    exit.shell_code().ok_or_else(|| match &exit.how {
        crate::rpc::client::Ended::Unknown(why) => {
            Failure::new(format!("how {container} ended is not known: {why}"))
        }
        _ => Failure::new(format!("how {container} ended is not known: {}", exit_words(exit))),
    })
}

/// `podinit stop`.
///
/// # Errors
/// What to tell the user.
pub fn run_stop(globals: &Globals, args: &StopArgs) -> Result<(), Failure> {
    let grace = Duration::from_secs(args.time.into());
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    each(globals, &args.names, |pod, id| {
        let spinner = Spinner::start(format!("stopping {}/{id}", pod.dir.id));
        let patience = grace + limits::SHUTDOWN_PATIENCE;
        within(&pod.client, patience, async |client| client.stop_container(id, args.signal, grace_ms).await)?;
        drop(spinner);
        output::print(&format!("{}/{id}\n", pod.dir.id))
    })
}

/// `podinit rm`.
///
/// # Errors
/// What to tell the user.
pub fn run_rm(globals: &Globals, args: &RmArgs) -> Result<(), Failure> {
    let deletion = if args.force { Deletion::Force } else { Deletion::Exited };
    each(globals, &args.names, |pod, id| {
        delete(pod, id, deletion)?;
        output::print(&format!("{}/{id}\n", pod.dir.id))
    })
}

/// Deletes a container and what [`make`] made for it.
///
/// # Errors
/// What the server says.
pub fn delete(pod: &Pod, id: &str, deletion: Deletion) -> Result<(), Failure> {
    pod.client.call(async |client| client.delete_container(id, deletion).await)?;
    remove_files(&pod.dir, id);
    Ok(())
}

/// `podinit events`.
///
/// # Errors
/// What to tell the user.
pub fn run_events(globals: &Globals, args: &EventsArgs) -> Result<(), Failure> {
    let pod = reach(globals.root()?.pod(&args.pod)?)?;
    pod.client.call(async |client| {
        let mut events = client.events(args.since).await?;
        let mut left = args.count.unwrap_or(u64::MAX);
        while left > 0
            && let Some(event) = events.next().await
        {
            let view = EventView::new(&pod.dir.id, event);
            match args.output {
                Format::Table => output::print(&view.line())?,
                Format::Json => output::json_line(&view)?,
            }
            left -= 1;
        }
        Ok(())
    })
}

/// `podinit exec`; answers the command's exit code.
///
/// # Errors
/// What to tell the user, with the codes that `exec` promises.
pub fn run_exec(globals: &Globals, args: &ExecArgs) -> Result<u8, Failure> {
    let found = find(&globals.root()?, &args.container)?;
    let request = ExecRequest {
        id: found.id.clone(),
        command: args.command.clone(),
        timeout_ms: args.timeout.saturating_mul(1000),
        stdio: if args.tty { Stdio::Terminal } else { Stdio::Pipes },
        env: args.env.clone(),
    };
    let spinner = Spinner::start(format!("running {} in {}", args.command[0], args.container));
    let result = found.pod.client.call(async |client| client.exec(&request).await)?;
    drop(spinner);
    // What is on the streams of a command that never ran is the OCI runtime's, and told below.
    if !matches!(result.outcome, ExecOutcome::NotStarted(_)) {
        output::bytes(&result.stdout, &result.stderr)?;
    }
    for (stream, dropped) in [("output", result.stdout_dropped), ("error", result.stderr_dropped)] {
        if dropped > 0 {
            complain(&format!(
                "{dropped} bytes of standard {stream} beyond the first {} were not kept",
                limits::EXEC_OUTPUT_BYTES_MAX
            ));
        }
    }
    match result.outcome {
        ExecOutcome::Exited(exit) => code_of(&format!("the command in {}", args.container), &exit),
        ExecOutcome::NotStarted(why) => {
            // The container runs, so what could not be started is the command.
            let code = match code_of_failed_start(&why) {
                PODINIT_FAILED => NOT_EXECUTABLE,
                code => code,
            };
            Err(Failure::Said {
                code,
                message: format!("starting {} in {}: {why}", args.command[0], args.container),
            })
        }
        ExecOutcome::TimedOut => Err(Failure::Said {
            code: TIMED_OUT,
            message: format!("{} was killed after {} s", args.command[0], args.timeout),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_log_are_its_own() {
        for part in ["a.log", "a.log.1", "a.log.1.gz", "a.log.20261123-101112"] {
            assert!(is_part_of_log(part, "a.log"), "{part}");
        }
        // Containers `a.log`, `a.log.1` and `ab` have these logs.
        for other in ["a.log.log", "a.log.1.log", "ab.log", "a.log.", "a.log.gz", "b"] {
            assert!(!is_part_of_log(other, "a.log"), "{other}");
        }
    }
}
