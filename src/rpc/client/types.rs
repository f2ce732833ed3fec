//! Requests and answers in plain Rust: what `schema/conmon.capnp` and
//! `schema/podinit.capnp` carry, without a Cap'n Proto type in sight. The
//! schemas say what each field means.

use std::path::PathBuf;

use serde::Serialize;

/// Who answers, and what it was built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The pod's stable pid: the keeper.
    pub process_id: u32,
    /// Semantic version without a leading "v".
    pub version: String,
    /// Source tag, or empty.
    pub tag: String,
    /// Source commit, or empty.
    pub commit: String,
    /// When it was built, or empty.
    pub build_date: String,
    /// Target triple.
    pub target: String,
    /// Compiler.
    pub rust_version: String,
    /// Build tool.
    pub cargo_version: String,
    /// Dependencies; only if asked for.
    pub cargo_tree: String,
}

/// Who manages cgroups, as the OCI runtime shall be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupManager {
    /// `--systemd-cgroup`.
    Systemd,
    /// The cgroup file system itself.
    Cgroupfs,
}

/// Format of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// The Kubernetes container runtime interface's lines.
    Cri,
    /// Docker's JSON lines.
    Json,
    /// The journal; it has no path.
    Journald,
}

/// One sink of a container's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDriver {
    /// Its format.
    pub kind: LogKind,
    /// Its file.
    pub path: PathBuf,
    /// Bytes after which the file is rotated; 0 = never.
    pub size_max: u64,
}

/// Whether a container gets a standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// Open, fed by attach.
    Open,
}

/// What a command's standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdio {
    /// Separate pipes.
    #[default]
    Pipes,
    /// One pseudo-terminal.
    Terminal,
}

/// `createContainer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateContainer {
    /// The new container's id.
    pub id: String,
    /// Directory with `config.json`.
    pub bundle: PathBuf,
    /// Must agree with `process.terminal` of the bundle.
    pub stdio: Stdio,
    /// Standard input.
    pub stdin: Stdin,
    /// Files that receive the decimal exit code; the first one is written last.
    pub exit_paths: Vec<PathBuf>,
    /// Files created if the container was OOM-killed.
    pub oom_exit_paths: Vec<PathBuf>,
    /// Log sinks.
    pub log_drivers: Vec<LogDriver>,
    /// Run once after the exit has been recorded.
    pub cleanup_command: Vec<String>,
    /// OCI runtime arguments before `create`.
    pub global_args: Vec<String>,
    /// OCI runtime arguments after `create`.
    pub command_args: Vec<String>,
    /// Added to the OCI runtime's environment.
    pub env: Vec<(String, String)>,
    /// How the OCI runtime manages cgroups.
    pub cgroup_manager: CgroupManager,
    /// Slots of the fd socket for descriptors 3, 4, …
    pub additional_fds: Vec<u64>,
    /// Slots of the fd socket that stay open until the container has exited.
    pub leak_fds: Vec<u64>,
    /// Who is the container's first process.
    pub first_process: FirstProcess,
    /// How the logs' files are kept: names and values as in the annotations
    /// `org.podinit.log.*`, without that prefix.
    pub log_options: Vec<(String, String)>,
}

/// Who is a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstProcess {
    /// The command of its bundle.
    Command,
    /// podinit's init, which starts the command, passes signals on and reaps.
    Init,
}

impl CreateContainer {
    /// A container of `bundle` with pipes, no standard input, no log and
    /// cgroups by file system.
    #[must_use]
    pub fn new(id: impl Into<String>, bundle: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            bundle: bundle.into(),
            stdio: Stdio::Pipes,
            stdin: Stdin::Null,
            exit_paths: Vec::new(),
            oom_exit_paths: Vec::new(),
            log_drivers: Vec::new(),
            cleanup_command: Vec::new(),
            global_args: Vec::new(),
            command_args: Vec::new(),
            env: Vec::new(),
            cgroup_manager: CgroupManager::Cgroupfs,
            additional_fds: Vec::new(),
            leak_fds: Vec::new(),
            first_process: FirstProcess::Command,
            log_options: Vec::new(),
        }
    }
}

/// `execSyncContainer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSync {
    /// In which container.
    pub id: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// 0 = no time-out.
    pub timeout_seconds: u64,
    /// The command's standard streams.
    pub stdio: Stdio,
    /// Added to the OCI runtime's environment.
    pub env: Vec<(String, String)>,
    /// How the OCI runtime manages cgroups.
    pub cgroup_manager: CgroupManager,
}

/// Answer of `execSyncContainer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSyncResult {
    /// 128+N after signal N; -2 not started; -3 timed out.
    pub exit_code: i32,
    /// What the command wrote, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// The same of its standard error, or why it did not start.
    pub stderr: Vec<u8>,
    /// The time-out passed and the command was killed.
    pub timed_out: bool,
}

/// When a container's standard input ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdinEof {
    /// With the container.
    Keep,
    /// When an attached client ends its side.
    Forward,
}

/// `attachContainer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// Which container.
    pub id: String,
    /// Where the SOCK_SEQPACKET socket shall be.
    pub socket_path: PathBuf,
    /// Empty = the container itself.
    pub exec_session_id: String,
    /// When standard input ends.
    pub stdin_eof: StdinEof,
    /// Bytes of earlier output that clients of the socket get first, at most.
    pub replay_bytes: u32,
}

/// `serveExecContainer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeExec {
    /// In which container.
    pub id: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The command's standard streams.
    pub stdio: Stdio,
    /// Which streams to serve.
    pub streams: Streams,
    /// How the OCI runtime manages cgroups.
    pub cgroup_manager: CgroupManager,
}

/// Which standard streams a remote client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Kind of a namespace. The order is the schema's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceKind {
    /// Network.
    Net,
    /// System V IPC and POSIX queues.
    Ipc,
    /// Host name.
    Uts,
    /// Users.
    User,
    /// Processes.
    Pid,
    /// Control groups.
    Cgroup,
    /// Mounts.
    Mnt,
    /// Clocks.
    Time,
}

impl NamespaceKind {
    /// Every kind.
    pub const ALL: [Self; 8] =
        [Self::Net, Self::Ipc, Self::Uts, Self::User, Self::Pid, Self::Cgroup, Self::Mnt, Self::Time];

    /// The kernel's name (`/proc/<pid>/ns/<name>`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::User => "user",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Mnt => "mnt",
            Self::Time => "time",
        }
    }
}

/// Where a pod gets a namespace from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceSource {
    /// Make a new one.
    Create,
    /// Share the host's.
    Host,
    /// Take the one pinned at this path.
    Path(PathBuf),
}

/// A range of ids of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// `createNamespaces`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreateNamespaces {
    /// Pins are `<base>/<kind>ns/<pod id>`.
    pub base_path: PathBuf,
    /// Name of the pins.
    pub pod_id: String,
    /// Kinds to create: ipc, net, pid, user or uts.
    pub namespaces: Vec<NamespaceKind>,
    /// Needed with user.
    pub uid_mappings: Vec<IdMapping>,
    /// Needed with user.
    pub gid_mappings: Vec<IdMapping>,
}

/// Where a sandbox's namespaces are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// Bind-mounted to a path.
    #[default]
    Pinned,
    /// By descriptor only.
    DescriptorOnly,
}

/// `createSandbox`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxRequest {
    /// The pod's id.
    pub pod_id: String,
    /// Kinds that are not listed are the host's.
    pub namespaces: Vec<(NamespaceKind, NamespaceSource)>,
    /// Empty = leave as it is.
    pub hostname: String,
    /// Empty = leave as it is.
    pub domainname: String,
    /// Written inside the created namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Needed with user.
    pub uid_mappings: Vec<IdMapping>,
    /// Needed with user.
    pub gid_mappings: Vec<IdMapping>,
    /// Empty = the pod's run directory.
    pub base_path: PathBuf,
    /// Where the namespaces are kept.
    pub placement: Placement,
}

/// One namespace of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedNamespace {
    /// Its kind.
    pub kind: NamespaceKind,
    /// Its pin; empty if it is kept by descriptor only.
    pub path: PathBuf,
    /// Its identity.
    pub inode: u64,
    /// The user namespace that owns it.
    pub owner_inode: u64,
    /// false: shared with the host, or taken from a path.
    pub created: bool,
}

/// The pod's namespaces and its PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod's id.
    pub pod_id: String,
    /// Its namespaces.
    pub namespaces: Vec<PinnedNamespace>,
    /// PID 1 of the pod's pid namespace as the host sees it.
    pub init_pid: Option<u32>,
    /// Unix time.
    pub created_at_ns: u64,
}

impl Sandbox {
    /// The pin of `kind`, if this sandbox has a namespace of its own or a taken one.
    #[must_use]
    pub fn pin(&self, kind: NamespaceKind) -> Option<&PinnedNamespace> {
        self.namespaces.iter().find(|n| n.kind == kind && !n.path.as_os_str().is_empty())
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Not known, and why.
    Unknown(String),
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// Whom of a container the kernel has killed for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomVictim {
    /// No process.
    Nobody,
    /// The first process, and perhaps others with it.
    FirstProcess,
    /// Only what the first process had started.
    Others,
}

/// A recorded exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus {
    /// How.
    pub how: Ended,
    /// The container's own cgroup counted an OOM kill.
    pub oom_killed: bool,
    /// Whom it was.
    pub oom_victim: OomVictim,
    /// Unix time.
    pub exited_at_ns: u64,
    /// Every byte of both streams is in the log.
    pub log_complete: bool,
}

impl ExitStatus {
    /// The code, or 128+N after signal N, as shells say it.
    #[must_use]
    pub fn shell_code(&self) -> Option<u8> {
        match self.how {
            Ended::Unknown(_) => None,
            Ended::Code(code) => Some(code),
            Ended::Signal(signal) => Some(signal.saturating_add(128)),
        }
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The OCI runtime is at it.
    Creating,
    /// Waits to be started.
    Created,
    /// Runs.
    Running,
    /// A stop was asked for and the process is still there.
    Stopping,
    /// Gone, and its exit recorded.
    Exited,
}

/// All that is known of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Until the process is gone.
    pub pid: Option<u32>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Unix time.
    pub created_at_ns: u64,
    /// Unix time; not if the engine started it through the OCI runtime itself.
    pub started_at_ns: Option<u64>,
    /// In [`Phase::Exited`].
    pub exit: Option<ExitStatus>,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Path of its first log file.
    pub log_path: Option<PathBuf>,
    /// How many times the monitor was restarted while it lived.
    pub restarts: u32,
}

/// Answer of `stopContainer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopResult {
    /// How it ended.
    pub exit: ExitStatus,
    /// The grace time passed and SIGKILL was needed.
    pub killed: bool,
}

/// Whether a container that still runs may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deletion {
    /// It must have exited.
    #[default]
    Exited,
    /// It is killed first.
    Force,
}

/// `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecRequest {
    /// In which container.
    pub id: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// 0 = no time-out.
    pub timeout_ms: u64,
    /// The command's standard streams.
    pub stdio: Stdio,
    /// Added to the environment of the command.
    pub env: Vec<(String, String)>,
}

/// What became of an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutcome {
    /// It ran and ended.
    Exited(ExitStatus),
    /// It could not be started: what the OCI runtime said.
    NotStarted(String),
    /// The time-out passed and it was killed.
    TimedOut,
}

/// Answer of `exec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// How it went.
    pub outcome: ExecOutcome,
    /// What it wrote, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// The same of its standard error.
    pub stderr: Vec<u8>,
    /// Bytes beyond those kept.
    pub stdout_dropped: u64,
    /// Bytes beyond those kept.
    pub stderr_dropped: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A container was created with this pid.
    Created(u32),
    /// It was started.
    Started,
    /// It ended.
    Exited(ExitStatus),
    /// It was forgotten.
    Deleted,
    /// Its cgroup counted an OOM kill.
    OomKilled,
    /// An exec could not be started.
    ExecFailed(String),
    /// The monitor was restarted, so many times so far.
    MonitorRestarted(u32),
    /// A stop was asked for.
    Stopping,
    /// The pod is being stopped.
    PodStopping,
    /// So many events before this one are no longer kept.
    Lost(u64),
    /// PID 1 of a pod's pid namespace has ended.
    InitEnded(InitEnd),
    /// A hook failed whose policy is to tell that.
    HookFailed(super::hook::HookFailure),
    /// A log cannot be written, and why.
    LogFailed(String),
    /// Output is missing in a log.
    LogGap(LogGap),
}

/// The end of a pod's init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitEnd {
    /// Which pod's.
    pub pod_id: String,
    /// How and when.
    pub exit: ExitStatus,
    /// Pids, as the pod counts, and names of what was still there when the grace
    /// time of a stop had passed.
    pub killed: Vec<(u32, String)>,
}

/// What a pod's network namespace looks like from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Its devices.
    pub interfaces: Vec<Interface>,
    /// Its routes.
    pub routes: Vec<Route>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// veth, bridge, ...; empty for a device without a kind.
    pub kind: String,
    /// Empty if it has none.
    pub hardware_address: String,
    /// Whether it is switched on.
    pub up: bool,
    /// Operational state (RFC 2863).
    pub state: String,
    /// Bytes.
    pub mtu: u32,
    /// Addresses with their prefix, such as `127.0.0.1/8`.
    pub addresses: Vec<String>,
    /// Counters.
    pub statistics: Statistics,
}

/// Counters of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Received.
    pub rx_bytes: u64,
    /// Received.
    pub rx_packets: u64,
    /// Received with an error.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Sent.
    pub tx_bytes: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Not sent, by an error.
    pub tx_errors: u64,
    /// Dropped instead of being sent.
    pub tx_dropped: u64,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where to, with the prefix.
    pub destination: String,
    /// Empty: directly reachable.
    pub gateway: String,
    /// Through which device.
    pub interface: String,
    /// Preferred source address; empty if there is none.
    pub source: String,
    /// The lower, the sooner taken.
    pub metric: u32,
}

/// Counters of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodStats {
    /// Orphans that the monitor has collected.
    pub orphans_reaped: u64,
    /// What runs under each pod's init.
    pub inits: Vec<InitStats>,
    /// Containers that are known.
    pub containers: u32,
    /// Execs that run.
    pub execs: u32,
    /// How often the monitor was restarted.
    pub monitor_restarts: u32,
    /// The limit of all containers' logs together.
    pub log_total: LogRate,
}

/// What runs under a pod's init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitStats {
    /// The pod.
    pub pod_id: String,
    /// The init, as the host counts.
    pub pid: u32,
    /// Living processes, itself not counted.
    pub processes: u32,
    /// Zombies.
    pub zombies: u32,
}

/// Counters of a container's streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerStats {
    /// Standard output, or the terminal.
    pub stdout: ChannelStats,
    /// Standard error.
    pub stderr: ChannelStats,
    /// Failed log writes, each of which was tried again: those of both channels, and
    /// rotations, compressing and synchronising that failed.
    pub write_errors: u64,
    /// The last of them.
    pub last_write_error: String,
    /// Longest time without reading because a log could not be written.
    pub stall_longest_ns: u64,
    /// Attached clients.
    pub clients: u32,
    /// Attached clients that were cut off because they did not read.
    pub clients_cut_off: u64,
    /// The limits of its log.
    pub limits: LogLimits,
    /// Bytes that wait because a log cannot be written.
    pub buffered: u64,
}

/// How much of a container's output is logged; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LogRate {
    /// Bytes in a second.
    pub bytes_per_second: u64,
    /// Bytes at once after a pause; 0: those of a second.
    pub bytes_burst: u64,
    /// Lines in a second.
    pub lines_per_second: u64,
    /// Lines at once after a pause; 0: those of a second.
    pub lines_burst: u64,
}

/// What happens when output comes faster than it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFast {
    /// The container waits.
    #[default]
    Block,
    /// What is too much is dropped.
    Drop,
}

/// What happens when a log cannot be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenStuck {
    /// The container waits.
    #[default]
    Block,
    /// The newest output is kept, up to a bound.
    DropOldest,
    /// The oldest output is kept, up to a bound.
    DropNewest,
}

/// The limits of a container's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LogLimits {
    /// Of standard output, or the terminal.
    pub stdout: LogRate,
    /// Of standard error.
    pub stderr: LogRate,
    /// Output comes faster than that.
    pub when_fast: WhenFast,
    /// The log cannot be written.
    pub when_stuck: WhenStuck,
    /// Bytes kept meanwhile; 0: the default.
    pub buffer_bytes: u64,
}

/// Output that is missing in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogGap {
    /// Of standard error, not of standard output.
    pub stderr: bool,
    /// Bytes, newlines not counted.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Why.
    pub reason: String,
}

/// What a log can be audited against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogAccount {
    /// Standard output, or the terminal.
    pub stdout: StreamAccount,
    /// Standard error.
    pub stderr: StreamAccount,
    /// The container has exited; nothing more will be counted.
    pub is_final: bool,
}

/// What was read of one stream, and what its log holds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAccount {
    /// Bytes read from the container, and of hooks whose lines are in its log.
    pub read_bytes: u64,
    /// Records in the first log that is a file, since the server opened it.
    pub records: u64,
    /// Their bytes, without newlines.
    pub payload_bytes: u64,
    /// Lines that they end.
    pub lines: u64,
}

/// Counters of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ChannelStats {
    /// Bytes read from the container.
    pub bytes: u64,
    /// Lines that ended.
    pub lines: u64,
    /// Log records that did not end a line.
    pub partials: u64,
    /// Payload bytes that a log could not keep, or that came too fast.
    pub dropped: u64,
    /// Of `dropped`: bytes that came too fast.
    pub rate_limited: u64,
    /// How long output was not read because it came too fast.
    pub throttled_ns: u64,
    /// Failed log writes that had records of this channel; each was tried again.
    pub write_errors: u64,
    /// Longest time for which a log had output of this channel to write and could not.
    pub stall_longest_ns: u64,
}

/// Something that happened in the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts from 1 without a gap.
    pub sequence: u64,
    /// Unix time.
    pub time_ns: u64,
    /// Empty for an event of the pod itself.
    pub container: String,
    /// What happened.
    pub kind: EventKind,
}
