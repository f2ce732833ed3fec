//! `podinit pod create|stop|ls|rm|inspect`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Globals;
use super::bundle::InPod;
use super::exit::{Failure, complain};
use super::find::{Pod, ask, reach, within};
use super::launch::{self, Note};
use super::names::{key_value, random_id};
use super::output::{self, Format, Spinner};
use super::paths::PodDir;
use super::teardown::{self, Process};
use super::view::PodView;
use crate::limits;
use crate::rpc::client::{
    Client, Code, IdMapping, NamespaceKind, NamespaceSource, PodClient, SandboxRequest,
};

/// What can be done with pods.
#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// Make a pod: its server, its namespaces and its PID 1. Prints its name.
    Create(Box<CreateArgs>),
    /// Stop all containers of pods, then the pods themselves; nothing of them is left.
    Stop(StopArgs),
    /// List pods.
    #[command(visible_alias = "list", after_help = JSON_HELP)]
    Ls(LsArgs),
    /// Remove what a crash left of pods.
    Rm(RmArgs),
    /// Show all there is to know about a pod.
    #[command(after_help = JSON_HELP)]
    Inspect(InspectArgs),
    /// Show a pod's network from inside, as JSON: interfaces, addresses, routes, counters.
    Network(NetworkArgs),
}

const JSON_HELP: &str = "\
Fields of a pod in JSON: pod, state (running, silent, dead), keeper_pid, init_pid, version,
created_at_ns, directory, socket, namespaces (each: kind, path, inode, owner_inode, created) and
containers (as `podinit ps`).";

/// How a pod is made.
#[derive(Debug, Args)]
pub struct PodOptions {
    /// OCI runtime: a path, or a name in $PATH [default: the first of crun, runc, youki]
    #[arg(long, value_name = "RUNTIME", help_heading = "Pod")]
    pub runtime: Option<PathBuf>,

    /// Namespaces that the pod has of its own: of net, ipc, uts, pid and user; KIND=PATH takes a pinned one
    #[arg(
        long,
        value_name = "KIND[=PATH],…",
        value_delimiter = ',',
        default_value = "net,ipc,uts,pid",
        value_parser = parse_namespace,
        help_heading = "Pod"
    )]
    pub ns: Vec<(NamespaceKind, NamespaceSource)>,

    /// Namespaces that the pod shares with the host, of those in --ns
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = parse_kind, help_heading = "Pod")]
    pub host: Vec<NamespaceKind>,

    /// Host name inside the pod [default: the pod's name]
    #[arg(long, value_name = "NAME", help_heading = "Pod")]
    pub hostname: Option<String>,

    /// Kernel setting inside the pod's namespaces; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Pod")]
    pub sysctl: Vec<(String, String)>,

    /// Directory of hook files, instead of podinit's own; may be repeated, the last one counts most
    #[arg(long, value_name = "DIR", help_heading = "Pod")]
    pub hooks_dir: Vec<PathBuf>,

    /// Let plugins register resident hooks, at hooks.sock in the pod's directory
    #[arg(long, help_heading = "Pod")]
    pub hooks_socket: bool,

    /// Rules for seccomp notifications: a file, or a directory of *.json files
    /// [default: /etc/podinit/seccomp.d]
    #[arg(long, value_name = "PATH", help_heading = "Pod")]
    pub seccomp_rules: Option<PathBuf>,

    /// Directory of the sockets of seccomp plugins that serve every pod [default: /run/podinit/plugins.d]
    #[arg(long, value_name = "DIR", help_heading = "Pod")]
    pub plugin_dir: Option<PathBuf>,

    /// Range of user ids of the pod's user namespace; may be repeated
    #[arg(long, value_name = "INSIDE:OUTSIDE:SIZE", value_parser = parse_mapping, help_heading = "Pod")]
    pub uidmap: Vec<IdMapping>,

    /// Range of group ids of the pod's user namespace; may be repeated
    #[arg(long, value_name = "INSIDE:OUTSIDE:SIZE", value_parser = parse_mapping, help_heading = "Pod")]
    pub gidmap: Vec<IdMapping>,
}

/// `pod create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the pod [default: a new one]
    pod: Option<String>,

    #[command(flatten)]
    options: PodOptions,
}

/// `pod stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Names of pods
    #[arg(required = true)]
    pods: Vec<String>,

    /// Seconds that containers get between SIGTERM and SIGKILL
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u32,
}

/// `pod ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `pod rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names of pods
    #[arg(required = true)]
    pods: Vec<String>,

    /// Also remove pods that run, at once
    #[arg(short, long)]
    force: bool,
}

/// `pod inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Name of the pod
    pod: String,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    output: Format,
}

/// `pod network`.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Name of the pod
    pod: String,
}

impl PodCommand {
    /// Does it.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn run(self, globals: &Globals) -> Result<(), Failure> {
        match self {
            Self::Create(args) => {
                let pod = create(globals, args.pod.as_deref(), &args.options)?;
                output::print(&format!("{}\n", pod.dir.id))
            }
            Self::Stop(args) => for_each(&args.pods, |id| {
                let pod = reach(globals.root()?.pod(id)?)?;
                stop(pod, Duration::from_secs(args.time.into()))
            }),
            Self::Ls(args) => {
                let spinner = Spinner::start("asking every pod");
                let views: Vec<PodView> = globals.root()?.pods()?.iter().map(view).collect();
                drop(spinner);
                output::list(args.output, &views)
            }
            Self::Rm(args) => for_each(&args.pods, |id| remove(&globals.root()?.pod(id)?, args.force)),
            Self::Inspect(args) => inspect(globals, &args),
            Self::Network(args) => {
                let pod = reach(globals.root()?.pod(&args.pod)?)?;
                output::json(&pod.client.call(async |client| client.network(&pod.dir.id).await)?)
            }
        }
    }
}

/// Does `action` for each of `names`; one that fails does not keep the others
/// from being done. All but the last failure are told as they come.
///
/// # Errors
/// The last failure.
pub fn for_each<T: AsRef<str>>(
    names: &[T],
    mut action: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut last = Ok(());
    for name in names {
        if let Err(failure) = action(name.as_ref())
            && let Err(Failure::Said { message, .. }) = std::mem::replace(&mut last, Err(failure))
        {
            complain(&message);
        }
    }
    last
}

/// Makes a pod; on failure nothing is left of it.
///
/// # Errors
/// What to tell the user.
pub fn create(globals: &Globals, id: Option<&str>, options: &PodOptions) -> Result<Pod, Failure> {
    let id = id.map_or_else(|| random_id("pod-"), |id| Ok(id.to_owned()))?;
    let dir = globals.root()?.pod(&id)?;
    let request = sandbox_request(&id, options)?;
    let runtime = launch::find_runtime(options.runtime.as_deref())?;
    let _spinner = Spinner::start(format!("creating pod {id}"));
    dir.make()?;
    match start(&dir, &request, runtime, options) {
        Ok(client) => Ok(Pod { dir, client }),
        Err(failure) => {
            // The reason for the failure matters more than what undoing it met.
            if let Err(Failure::Said { message, .. }) = remove(&dir, true) {
                complain(&message);
            }
            Err(failure.while_doing(format_args!("creating pod {id}")))
        }
    }
}

fn start(
    dir: &PodDir,
    request: &SandboxRequest,
    runtime: PathBuf,
    options: &PodOptions,
) -> Result<Client, Failure> {
    let triples =
        |mappings: &[IdMapping]| mappings.iter().map(|m| (m.inside, m.outside, m.size)).collect::<Vec<_>>();
    let note = Note {
        runtime,
        uid_mappings: triples(&request.uid_mappings),
        gid_mappings: triples(&request.gid_mappings),
    };
    note.write(dir)?;
    launch::start_server(dir, &note.runtime, &server_flags(options)?)?;
    let client = Client::connect(&dir.socket())?;
    client.call(async |pod| pod.create_sandbox(request).await)?;
    Ok(client)
}

/// What the pod's server is told about hooks and seccomp. It runs in another directory.
fn server_flags(options: &PodOptions) -> Result<Vec<OsString>, Failure> {
    let mut flags: Vec<OsString> = Vec::new();
    let hooks = options.hooks_dir.iter().map(|path| ("--hooks-dir", path));
    let rules = options.seccomp_rules.iter().map(|path| ("--seccomp-rules", path));
    let plugins = options.plugin_dir.iter().map(|path| ("--plugin-dir", path));
    for (flag, given) in hooks.chain(rules).chain(plugins) {
        let path = std::path::absolute(given);
        let path = path.map_err(|e| Failure::io(format_args!("finding {}", given.display()), &e))?;
        flags.extend([flag.into(), path.into_os_string()]);
    }
    if options.hooks_socket {
        flags.push("--hooks-socket".into());
    }
    Ok(flags)
}

fn sandbox_request(id: &str, options: &PodOptions) -> Result<SandboxRequest, Failure> {
    let mut namespaces = options.ns.clone();
    for (index, (kind, _)) in namespaces.iter().enumerate() {
        if namespaces.iter().take(index).any(|(earlier, _)| earlier == kind) {
            return Err(Failure::usage(format!("--ns names {} twice", kind.name())));
        }
    }
    namespaces.retain(|(kind, _)| !options.host.contains(kind));
    let creates = |kind: NamespaceKind| {
        namespaces.iter().any(|(have, source)| *have == kind && *source == NamespaceSource::Create)
    };
    let has_mappings = !(options.uidmap.is_empty() && options.gidmap.is_empty());
    if creates(NamespaceKind::User) && (options.uidmap.is_empty() || options.gidmap.is_empty()) {
        return Err(Failure::usage("--ns user needs --uidmap and --gidmap, such as 0:100000:65536"));
    }
    if has_mappings && !creates(NamespaceKind::User) {
        return Err(Failure::usage("--uidmap and --gidmap are for a user namespace: add user to --ns"));
    }
    let hostname = match &options.hostname {
        Some(_) if !creates(NamespaceKind::Uts) => {
            return Err(Failure::usage(
                "--hostname would rename the host: the pod has no uts namespace of its own",
            ));
        }
        Some(name) => name.clone(),
        // 64 bytes is what the kernel takes (sethostname(2)).
        None if creates(NamespaceKind::Uts) => id.chars().take(64).collect(),
        None => String::new(),
    };
    Ok(SandboxRequest {
        pod_id: id.to_owned(),
        namespaces,
        hostname,
        sysctls: options.sysctl.clone(),
        uid_mappings: options.uidmap.clone(),
        gid_mappings: options.gidmap.clone(),
        ..SandboxRequest::default()
    })
}

/// What a container of this pod shares with it. `cgroup` is the last part of its cgroup's path.
///
/// # Errors
/// If the pod does not answer, or pins where JSON cannot say it.
pub fn share(pod: &Pod, container: &str) -> Result<InPod, Failure> {
    let sandboxes = ask(&pod.client, PodClient::namespaces)?;
    let sandbox = sandboxes.iter().find(|sandbox| sandbox.pod_id == pod.dir.id);
    let mut namespaces = Vec::new();
    for namespace in sandbox.into_iter().flat_map(|sandbox| &sandbox.namespaces) {
        // The host's own user namespace cannot be joined, only kept.
        let joinable = namespace.created || namespace.kind != NamespaceKind::User;
        if joinable && !namespace.path.as_os_str().is_empty() {
            namespaces.push((namespace.kind, super::bundle::utf8(&namespace.path)?));
        }
    }
    let note = Note::read(&pod.dir);
    let ranges = |triples: Option<&Vec<(u32, u32, u32)>>| -> Vec<IdMapping> {
        let range = |(inside, outside, size): &(u32, u32, u32)| IdMapping {
            inside: *inside,
            outside: *outside,
            size: *size,
        };
        triples.into_iter().flatten().map(range).collect()
    };
    Ok(InPod {
        namespaces,
        uid_mappings: ranges(note.as_ref().map(|note| &note.uid_mappings)),
        gid_mappings: ranges(note.as_ref().map(|note| &note.gid_mappings)),
        cgroups_path: format!("/podinit/{}/{container}", pod.dir.id),
    })
}

/// Stops a pod in order and removes its files.
///
/// # Errors
/// If the server does not end in time, or files are left.
pub fn stop(pod: Pod, grace: Duration) -> Result<(), Failure> {
    let _spinner = Spinner::start(format!("stopping pod {}", pod.dir.id));
    let doing = format!("stopping pod {}", pod.dir.id);
    let keeper = Process::of_pid(ask(&pod.client, async |pod| pod.version().await)?.process_id);
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    let patience = grace + limits::SHUTDOWN_PATIENCE;
    let answer = within(&pod.client, patience, async |client| match client.shutdown(grace_ms).await {
        // It answers just before its end; an end that was quicker than the answer is an end too.
        Err(error) if error.code == Code::Disconnected => Ok(()),
        answer => answer,
    });
    answer.map_err(|failure| failure.while_doing(&doing))?;
    let gone = match keeper {
        Some(keeper) => keeper.wait(limits::SHUTDOWN_PATIENCE),
        None => Ok(true),
    };
    match gone {
        Ok(true) => teardown::remove_directory(&pod.dir),
        Ok(false) => Err(Failure::new(format!(
            "{doing}: its server has not ended after {} s: do `podinit pod rm -f {}`",
            limits::SHUTDOWN_PATIENCE.as_secs(),
            pod.dir.id
        ))),
        Err(error) => Err(Failure::io(doing, &error)),
    }
}

fn remove(dir: &PodDir, force: bool) -> Result<(), Failure> {
    if !dir.path.exists() {
        return Err(Failure::new(format!(
            "there is no pod {}: `podinit pod ls` lists those there are",
            dir.id
        )));
    }
    let _spinner = Spinner::start(format!("removing pod {}", dir.id));
    if let Ok(client) = Client::connect(&dir.socket()) {
        if !force {
            return Err(Failure::new(format!(
                "pod {id} is running: stop it with `podinit pod stop {id}`, or remove it at once with -f",
                id = dir.id
            )));
        }
        match stop(Pod { dir: dir.clone(), client }, Duration::ZERO) {
            Ok(()) => return Ok(()),
            // Its server cannot do it any more; what follows does not need it.
            Err(Failure::Said { message, .. }) => complain(&message),
            Err(closed) => return Err(closed),
        }
    }
    if let Some(keeper) = Process::of_pidfile(dir) {
        keeper
            .end(limits::SHUTDOWN_PATIENCE)
            .map_err(|error| Failure::io(format_args!("ending the server of pod {}", dir.id), &error))?;
    }
    teardown::remove_leftovers(dir)
}

fn view(dir: &PodDir) -> PodView {
    let Ok(client) = Client::connect(&dir.socket()) else { return PodView::without_server(dir, "dead") };
    let told = ask(&client, async |pod| {
        Ok((pod.version().await?, pod.namespaces().await?, pod.list_containers().await?))
    });
    match told {
        Ok((version, sandboxes, containers)) => PodView::running(dir, version, &sandboxes, containers),
        Err(_) => PodView::without_server(dir, "silent"),
    }
}

fn inspect(globals: &Globals, args: &InspectArgs) -> Result<(), Failure> {
    let dir = globals.root()?.pod(&args.pod)?;
    if !dir.path.exists() {
        return Err(Failure::new(format!(
            "there is no pod {}: `podinit pod ls` lists those there are",
            dir.id
        )));
    }
    let view = view(&dir);
    match args.output {
        Format::Json => output::json(&view),
        Format::Table => output::list(Format::Table, &[view]),
    }
}

fn parse_kind(text: &str) -> Result<NamespaceKind, String> {
    // What an OCI runtime makes for each container is not the pod's.
    let ours = |kind: &NamespaceKind| {
        !matches!(kind, NamespaceKind::Cgroup | NamespaceKind::Mnt | NamespaceKind::Time)
    };
    let found = NamespaceKind::ALL.into_iter().filter(ours).find(|kind| kind.name() == text);
    found.ok_or_else(|| "a pod's namespaces are net, ipc, uts, pid and user".into())
}

fn parse_namespace(text: &str) -> Result<(NamespaceKind, NamespaceSource), String> {
    match text.split_once('=') {
        None => Ok((parse_kind(text)?, NamespaceSource::Create)),
        Some((kind, path)) if path.starts_with('/') => {
            Ok((parse_kind(kind)?, NamespaceSource::Path(PathBuf::from(path))))
        }
        Some((_, path)) => Err(format!("write the path in full, beginning with /, not {path:?}")),
    }
}

fn parse_mapping(text: &str) -> Result<IdMapping, String> {
    let numbers: Option<Vec<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([inside, outside, size]) if *size > 0 => {
            Ok(IdMapping { inside: *inside, outside: *outside, size: *size })
        }
        _ => Err("write it as INSIDE:OUTSIDE:SIZE, three numbers, such as 0:100000:65536".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: PodOptions,
    }

    fn request(line: &[&str]) -> Result<SandboxRequest, Failure> {
        let line = Line::try_parse_from([&["x"], line].concat())
            .map_err(|error| Failure::usage(error.to_string()))?;
        sandbox_request("p", &line.options)
    }

    #[test]
    fn pod_has_four_namespaces_and_its_own_name() {
        let request = request(&[]).unwrap();
        let kinds: Vec<&str> = request.namespaces.iter().map(|(kind, _)| kind.name()).collect();
        assert_eq!(kinds, ["net", "ipc", "uts", "pid"]);
        assert!(request.namespaces.iter().all(|(_, source)| *source == NamespaceSource::Create));
        assert_eq!((request.pod_id.as_str(), request.hostname.as_str()), ("p", "p"));
    }

    #[test]
    fn options_reach_the_request() {
        let request = request(&[
            "--ns=net=/run/netns/a,uts,user",
            "--host=pid",
            "--hostname=h",
            "--sysctl=net.core.somaxconn=512",
            "--uidmap=0:100000:65536",
            "--gidmap=0:200000:65536",
        ])
        .unwrap();
        assert_eq!(
            request.namespaces,
            [
                (NamespaceKind::Net, NamespaceSource::Path("/run/netns/a".into())),
                (NamespaceKind::Uts, NamespaceSource::Create),
                (NamespaceKind::User, NamespaceSource::Create),
            ]
        );
        assert_eq!(request.hostname, "h");
        assert_eq!(request.sysctls, [("net.core.somaxconn".into(), "512".into())]);
        assert_eq!(request.gid_mappings, [IdMapping { inside: 0, outside: 200_000, size: 65_536 }]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            ["--ns=mnt"].as_slice(),
            &["--ns=net,net"],
            &["--ns=net=relative"],
            &["--ns=user"],
            &["--uidmap=0:0:1", "--gidmap=0:0:1"],
            &["--ns=user", "--uidmap=0:0:0", "--gidmap=0:0:1"],
            &["--host=uts", "--hostname=h"],
            &["--host=everything"],
            &["--sysctl=novalue"],
        ] {
            assert!(matches!(request(bad), Err(Failure::Said { code: 2, .. })), "{bad:?}");
        }
        // The name of a pod that shares the host's uts namespace must not become the host's.
        assert_eq!(request(&["--host=uts"]).unwrap().hostname, "");
    }

    #[test]
    fn one_failure_does_not_keep_the_others_from_being_done() {
        let mut done = Vec::new();
        let result = for_each(&["a", "b", "c"], |name| {
            done.push(name.to_owned());
            if name == "c" { Ok(()) } else { Err(Failure::new(name)) }
        });
        assert_eq!(done, ["a", "b", "c"]);
        assert_eq!(result, Err(Failure::new("b")));
    }
}
