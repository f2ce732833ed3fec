//! What the monitor can refuse or fail at. Every error has a code for programs
//! and a sentence for people; `rpc` only carries them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::hook::Stage;
use crate::hook::directory::Problem;
use crate::monitor::exit::ExitCause;
use crate::monitor::life::Phase;
use crate::monitor::log::LogError;
use crate::monitor::relay::RelayError;
use crate::ns;

/// The reason codes of `schema/podinit.capnp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request itself is wrong.
    InvalidArgument,
    /// No such container, namespace or file.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// Not in this state.
    WrongState,
    /// The OCI runtime said no.
    RuntimeFailed,
    /// A deadline passed.
    Timeout,
    /// A limit was reached.
    ResourceExhausted,
    /// Not in this version.
    NotSupported,
    /// The pod is being stopped.
    ShuttingDown,
    /// A defect of podinit.
    Internal,
}

impl Code {
    /// The code as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid-argument",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::WrongState => "wrong-state",
            Self::RuntimeFailed => "runtime-failed",
            Self::Timeout => "timeout",
            Self::ResourceExhausted => "resource-exhausted",
            Self::NotSupported => "not-supported",
            Self::ShuttingDown => "shutting-down",
            Self::Internal => "internal",
        }
    }
}

/// A refusal or failure of the monitor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An id that could not be a file name, or worse.
    #[error("{what} {id:?} is not usable: {reason}; use 1 to 128 letters, digits, '_', '-', '.', '+'")]
    Id {
        /// "container id" or "pod id".
        what: &'static str,
        /// The id, shortened.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The bundle cannot be used.
    #[error(
        "bundle {path:?} of the container cannot be used: {source}; it must be a directory with a config.json"
    )]
    Bundle {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No container of this id is known.
    #[error("child not available: no container {0:?} in this pod")]
    UnknownContainer(String),
    /// The id is taken.
    #[error("container {0:?} exists already; delete it first or choose another id")]
    Exists(String),
    /// The life cycle does not allow it.
    #[error("container {id:?} is {phase}: {reason}")]
    WrongState {
        /// Which container.
        id: String,
        /// Where it is in its life.
        phase: Phase,
        /// Why that matters.
        reason: &'static str,
    },
    /// The container has exited, so it cannot be executed in or attached to.
    #[error("child not available: container {0:?} has exited")]
    HasExited(String),
    /// Resize without a terminal.
    #[error("container has no terminal: {0:?} was created without one")]
    NoTerminal(String),
    /// A create request names a slot of the socket for descriptors that holds none.
    #[error("no file descriptor in slot {0}")]
    EmptySlot(u64),
    /// The OCI runtime could not be started.
    #[error("cannot start the OCI runtime {runtime:?} to {action} {id:?}: {source}")]
    RuntimeSpawn {
        /// Its path.
        runtime: PathBuf,
        /// `create`, `start`, ...
        action: &'static str,
        /// Which container.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// The OCI runtime failed.
    #[error("cannot {action} container {id:?}: child command exited with: {status}: {stderr}")]
    Runtime {
        /// `create`, `start`, ...
        action: &'static str,
        /// Which container.
        id: String,
        /// How it ended: deployed clients look for the words before it.
        status: ExitCause,
        /// What it said, shortened to its end.
        stderr: String,
    },
    /// The OCI runtime did not start a command in a container.
    #[error("the command was not started: {0}")]
    NotStarted(String),
    /// The OCI runtime took too long and was killed.
    #[error("the OCI runtime did not {action} container {id:?} within {} s and was killed: {stderr}", limit.as_secs())]
    RuntimeTimeout {
        /// `create`, `start`, ...
        action: &'static str,
        /// Which container.
        id: String,
        /// The limit.
        limit: Duration,
        /// What it said until then.
        stderr: String,
    },
    /// The OCI runtime succeeded without leaving a process that can be followed.
    #[error("the OCI runtime succeeded, but the process that it left cannot be followed: {path:?}: {source}")]
    NoProcess {
        /// Its pid file.
        path: PathBuf,
        /// What is wrong with it, or with the process.
        source: io::Error,
    },
    /// The OCI runtime succeeded without sending the terminal it was asked for.
    #[error(
        "the OCI runtime succeeded without sending a terminal; does config.json say `\"terminal\": true`?"
    )]
    NoTerminalSent,
    /// The process is still there after SIGKILL.
    #[error(
        "container {0:?} is still there after SIGKILL; a process in uninterruptible sleep needs the kernel or storage behind it to answer"
    )]
    Unkillable(String),
    /// A system call of our own.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What, on what.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// A log could not be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The data plane refused.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Namespaces could not be made.
    #[error(transparent)]
    Namespaces(#[from] ns::Error),
    /// The pod has no network namespace that we know of.
    #[error("pod {0:?} has no network namespace here; make one with createSandbox or createNamespaces")]
    NoNetwork(String),
    /// No such pod.
    #[error("{}", unknown_pod(.0.as_deref()))]
    UnknownPod(Option<String>),
    /// No hook of this name is known.
    #[error("there is no hook {0:?}; listHooks names those there are")]
    UnknownHook(String),
    /// The name is taken.
    #[error("hook {0:?} exists already; choose another name")]
    HookExists(String),
    /// There are as many resident hooks as there may be.
    #[error("there are {0} resident hooks already; end one")]
    TooManyHooks(usize),
    /// There are as many connections as there may be.
    #[error("there are {0} clients already; one of them must disconnect first")]
    TooManyClients(usize),
    /// A hook file that cannot be used: nobody can say which hooks a container would have.
    #[error("no container can be made while hook file {0}; correct or remove it")]
    HookFile(Problem),
    /// A hook failed, and its failure counts.
    #[error("hook {hook} failed at {stage}: {reason}")]
    Hook {
        /// Its name.
        hook: String,
        /// When it ran.
        stage: Stage,
        /// What became of it.
        reason: String,
        /// Whether its time was over.
        is_late: bool,
    },
    /// A method of a later version.
    #[error("{0} is not supported by this version of podinit")]
    NotSupported(&'static str),
    /// The pod is on its way out.
    #[error("the pod is being stopped")]
    ShuttingDown,
    /// Should not happen.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing: doing.into(), source: source.into() }
    }

    /// The reason code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Id { .. } | Self::Invalid(_) => Code::InvalidArgument,
            Self::Bundle { source, .. } => unless_exhausted(source),
            Self::Log(error) => match error {
                LogError::Open { source, .. }
                | LogError::Reopen { source, .. }
                | LogError::Journal { source } => unless_exhausted(source),
                LogError::NotAFile { .. } | LogError::Ended => Code::InvalidArgument,
            },
            Self::UnknownContainer(_)
            | Self::HasExited(_)
            | Self::NoNetwork(_)
            | Self::UnknownPod(_)
            | Self::UnknownHook(_)
            | Self::EmptySlot(_) => Code::NotFound,
            Self::Exists(_) | Self::HookExists(_) => Code::AlreadyExists,
            Self::WrongState { .. } | Self::NoTerminal(_) | Self::HookFile(_) => Code::WrongState,
            Self::TooManyHooks(_) | Self::TooManyClients(_) => Code::ResourceExhausted,
            Self::Hook { is_late: true, .. } => Code::Timeout,
            Self::Hook { is_late: false, .. } => Code::RuntimeFailed,
            Self::Runtime { .. }
            | Self::RuntimeSpawn { .. }
            | Self::NoProcess { .. }
            | Self::NoTerminalSent
            | Self::NotStarted(_) => Code::RuntimeFailed,
            Self::Namespaces(error) => match error.class() {
                ns::Class::Invalid => Code::InvalidArgument,
                ns::Class::Exists => Code::AlreadyExists,
                ns::Class::NotFound | ns::Class::Lost => Code::NotFound,
                ns::Class::Exhausted => Code::ResourceExhausted,
                ns::Class::Failed => Code::RuntimeFailed,
            },
            Self::RuntimeTimeout { .. } | Self::Unkillable(_) => Code::Timeout,
            Self::Io { source, .. } => io_code(source),
            Self::Relay(error) => match error {
                RelayError::Unknown => Code::NotFound,
                RelayError::NothingToReplay => Code::WrongState,
                RelayError::Socket { source, .. } => io_code(source),
                RelayError::SocketTaken { .. } => Code::AlreadyExists,
                RelayError::Start(_) | RelayError::Stream(_) | RelayError::TooManySockets { .. } => {
                    Code::ResourceExhausted
                }
                RelayError::Ended => Code::ShuttingDown,
            },
            Self::NotSupported(_) => Code::NotSupported,
            Self::ShuttingDown => Code::ShuttingDown,
            Self::Internal(_) => Code::Internal,
        }
    }
}

fn unknown_pod(id: Option<&str>) -> String {
    match id {
        Some(id) => format!("no pod {id:?} has its namespaces from here; make them with createSandbox"),
        None => {
            "which pod is not clear: none, or more than one, has its namespaces from here; name it".into()
        }
    }
}

/// What a client named cannot be opened: its fault, unless the machine is out of
/// something.
fn unless_exhausted(error: &io::Error) -> Code {
    match io_code(error) {
        Code::ResourceExhausted => Code::ResourceExhausted,
        _ => Code::InvalidArgument,
    }
}

fn io_code(error: &io::Error) -> Code {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::ENOSPC) => {
            Code::ResourceExhausted
        }
        Some(libc::ENOENT) => Code::NotFound,
        Some(libc::EEXIST | libc::EADDRINUSE) => Code::AlreadyExists,
        _ => Code::Internal,
    }
}
