//! What a monitor is told at its start.

use std::path::PathBuf;
use std::time::Duration;

/// How much the monitor says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Only what needs an operator.
    Error,
    /// Also what may explain a later error.
    Warn,
    /// Also every change of a container's or the pod's state.
    Info,
    /// Also requests and OCI runtime calls.
    Debug,
    /// The same as `Debug`, for engines that ask for it.
    Trace,
}

/// Where the monitor's own log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSink {
    /// Nowhere.
    None,
    /// Standard output, which then stays open after start-up.
    Stdout,
    /// The journal, if there is one.
    Systemd,
}

/// Where streaming clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamingDoor {
    /// A port of the loopback interface.
    Port,
    /// The same, with TLS.
    EncryptedPort {
        /// PEM: the server's certificate, then those that it rests on.
        certificates: PathBuf,
        /// PEM: its private key.
        key: PathBuf,
    },
    /// A Unix socket in the run directory.
    Socket,
}

/// The monitor's configuration; the same for every monitor that the keeper starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// OCI runtime: an existing executable file.
    pub runtime: PathBuf,
    /// The pod's run directory, mode 0700, exists.
    pub run_dir: PathBuf,
    /// Passed to the OCI runtime as `--root=`.
    pub runtime_root: Option<PathBuf>,
    /// Bound on the OCI runtime's `create`.
    pub create_timeout: Duration,
    /// How many descriptors a program may have that is started for a container: the
    /// soft limit that the engine started us with. The monitor raises its own.
    pub open_files: Option<u64>,
    /// Where streaming clients come in.
    pub streaming: StreamingDoor,
    /// Directories of hook files, in rising preference.
    pub hooks_dirs: Vec<PathBuf>,
    /// Whether plugins may register resident hooks, at a socket of their own.
    pub hooks_socket: bool,
    /// Where spans of requests go (OTLP over gRPC), if they are wanted.
    pub tracing: Option<String>,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Where it is logged.
    pub log_sink: LogSink,
    /// Rules for seccomp notifications: a file, or a directory of `*.json`.
    pub seccomp_rules: Option<PathBuf>,
    /// Where seccomp plugins listen, which are dialled when there is something for them.
    pub plugin_dir: PathBuf,
}
