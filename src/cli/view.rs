//! What programs read: the JSON objects of `--output json`, and their rows as
//! tables. Field names are a promise: they may be added to, never changed.

use std::path::PathBuf;

use serde::Serialize;

use super::output::{Row, age};
use super::paths::PodDir;
use crate::rpc::client::{
    ContainerStatus, Ended, Event, EventKind, ExitStatus, LogGap, OomVictim, Phase, PinnedNamespace, Sandbox,
    Stdio, Version,
};

/// How a container ended. Exactly one of `code`, `signal` and `unknown` is not null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExitView {
    /// Exit code.
    pub code: Option<u8>,
    /// Signal that ended it.
    pub signal: Option<u8>,
    /// Why neither is known.
    pub unknown: Option<String>,
    /// Its cgroup counted an OOM kill.
    pub oom_killed: bool,
    /// Whom the kernel killed: `first-process`, or only `others`; null for nobody.
    pub oom_victim: Option<&'static str>,
    /// Unix time in nanoseconds.
    pub exited_at_ns: u64,
    /// Every byte it wrote is in its log.
    pub log_complete: bool,
}

impl From<&ExitStatus> for ExitView {
    fn from(exit: &ExitStatus) -> Self {
        let (code, signal, unknown) = match &exit.how {
            Ended::Code(code) => (Some(*code), None, None),
            Ended::Signal(signal) => (None, Some(*signal), None),
            Ended::Unknown(why) => (None, None, Some(why.clone())),
        };
        Self {
            code,
            signal,
            unknown,
            oom_killed: exit.oom_killed,
            oom_victim: match exit.oom_victim {
                OomVictim::Nobody => None,
                OomVictim::FirstProcess => Some("first-process"),
                OomVictim::Others => Some("others"),
            },
            exited_at_ns: exit.exited_at_ns,
            log_complete: exit.log_complete,
        }
    }
}

/// An exit as people read it.
#[must_use]
pub fn exit_words(exit: &ExitStatus) -> String {
    let how = match &exit.how {
        Ended::Code(code) => code.to_string(),
        Ended::Signal(signal) => format!("signal {signal}"),
        Ended::Unknown(_) => "unknown".into(),
    };
    match exit.oom_victim {
        OomVictim::Nobody => how,
        OomVictim::FirstProcess => format!("{how} (OOM)"),
        OomVictim::Others => format!("{how} (OOM of a child)"),
    }
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerView {
    /// Its pod's id.
    pub pod: String,
    /// Its id.
    pub container: String,
    /// creating, created, running, stopping or exited.
    pub state: &'static str,
    /// Null once the process is gone.
    pub pid: Option<u32>,
    /// Null until it has exited.
    pub exit: Option<ExitView>,
    /// Unix time in nanoseconds.
    pub created_at_ns: u64,
    /// Unix time in nanoseconds; null until podinit has started it.
    pub started_at_ns: Option<u64>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its first log file.
    pub log: Option<PathBuf>,
    /// It has a terminal.
    pub terminal: bool,
    /// How many times the monitor was restarted while it lived.
    pub monitor_restarts: u32,
    #[serde(skip)]
    exit_words: String,
}

impl ContainerView {
    /// The view of `status` in `pod`.
    #[must_use]
    pub fn new(pod: &PodDir, status: ContainerStatus) -> Self {
        Self {
            pod: pod.id.clone(),
            container: status.id,
            state: match status.phase {
                Phase::Creating => "creating",
                Phase::Created => "created",
                Phase::Running => "running",
                Phase::Stopping => "stopping",
                Phase::Exited => "exited",
            },
            pid: status.pid,
            exit_words: status.exit.as_ref().map_or_else(|| "-".into(), exit_words),
            exit: status.exit.as_ref().map(ExitView::from),
            created_at_ns: status.created_at_ns,
            started_at_ns: status.started_at_ns,
            bundle: status.bundle,
            log: status.log_path,
            terminal: status.stdio == Stdio::Terminal,
            monitor_restarts: status.restarts,
        }
    }
}

impl Row for ContainerView {
    const HEADINGS: &'static [&'static str] = &["POD", "CONTAINER", "STATE", "PID", "EXIT", "AGE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.pod.clone(),
            self.container.clone(),
            self.state.into(),
            self.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            self.exit_words.clone(),
            age(self.created_at_ns),
        ]
    }
}

/// A namespace of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespaceView {
    /// net, ipc, uts, user, pid, cgroup, mnt or time.
    pub kind: &'static str,
    /// Where it is pinned; null if it is kept by descriptor only.
    pub path: Option<PathBuf>,
    /// Its identity.
    pub inode: u64,
    /// The user namespace that owns it.
    pub owner_inode: u64,
    /// false: the host's, or taken from a path.
    pub created: bool,
}

impl From<&PinnedNamespace> for NamespaceView {
    fn from(namespace: &PinnedNamespace) -> Self {
        Self {
            kind: namespace.kind.name(),
            path: Some(namespace.path.clone()).filter(|path| !path.as_os_str().is_empty()),
            inode: namespace.inode,
            owner_inode: namespace.owner_inode,
            created: namespace.created,
        }
    }
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodView {
    /// Its id.
    pub pod: String,
    /// running, silent (its server does not answer) or dead (its server is gone).
    pub state: &'static str,
    /// Pid of its keeper; null unless running.
    pub keeper_pid: Option<u32>,
    /// PID 1 of its pid namespace as the host sees it; null if it has none of its own.
    pub init_pid: Option<u32>,
    /// Version of podinit that serves it; null unless running.
    pub version: Option<String>,
    /// Unix time in nanoseconds; null unless running.
    pub created_at_ns: Option<u64>,
    /// Its directory.
    pub directory: PathBuf,
    /// Its server's socket.
    pub socket: PathBuf,
    /// Its namespaces.
    pub namespaces: Vec<NamespaceView>,
    /// Its containers.
    pub containers: Vec<ContainerView>,
}

impl PodView {
    /// A pod whose server did not tell more.
    #[must_use]
    pub fn without_server(pod: &PodDir, state: &'static str) -> Self {
        Self {
            pod: pod.id.clone(),
            state,
            keeper_pid: None,
            init_pid: None,
            version: None,
            created_at_ns: None,
            directory: pod.path.clone(),
            socket: pod.socket(),
            namespaces: Vec::new(),
            containers: Vec::new(),
        }
    }

    /// A pod whose server told all this.
    #[must_use]
    pub fn running(
        pod: &PodDir,
        version: Version,
        sandboxes: &[Sandbox],
        containers: Vec<ContainerStatus>,
    ) -> Self {
        let sandbox = sandboxes.iter().find(|sandbox| sandbox.pod_id == pod.id);
        Self {
            keeper_pid: Some(version.process_id),
            init_pid: sandbox.and_then(|sandbox| sandbox.init_pid),
            version: Some(version.version),
            created_at_ns: sandbox.map(|sandbox| sandbox.created_at_ns),
            namespaces: sandbox
                .map(|sandbox| sandbox.namespaces.iter().map(NamespaceView::from).collect())
                .unwrap_or_default(),
            containers: containers.into_iter().map(|status| ContainerView::new(pod, status)).collect(),
            ..Self::without_server(pod, "running")
        }
    }
}

impl Row for PodView {
    const HEADINGS: &'static [&'static str] = &["POD", "STATE", "KEEPER", "INIT", "CONTAINERS", "AGE"];

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<u32>| number.map_or_else(|| "-".into(), |number| number.to_string());
        vec![
            self.pod.clone(),
            self.state.into(),
            number(self.keeper_pid),
            number(self.init_pid),
            self.containers.len().to_string(),
            self.created_at_ns.map_or_else(|| "-".into(), age),
        ]
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventView {
    /// Its pod's id.
    pub pod: String,
    /// Counts from 1 without a gap.
    pub sequence: u64,
    /// Unix time in nanoseconds.
    pub time_ns: u64,
    /// Null for an event of the pod itself.
    pub container: Option<String>,
    /// created, started, exited, deleted, oom-killed, exec-failed,
    /// monitor-restarted, stopping, pod-stopping, init-ended, hook-failed or lost.
    pub event: &'static str,
    /// Of `created`.
    pub pid: Option<u32>,
    /// Of `exited`.
    pub exit: Option<ExitView>,
    /// Of `exec-failed` and `hook-failed`.
    pub reason: Option<String>,
    /// Of `monitor-restarted` (so many times so far) and `lost` (so many events).
    pub count: Option<u64>,
    #[serde(skip)]
    exit_words: String,
}

impl EventView {
    /// The view of `event` in pod `pod`.
    #[must_use]
    pub fn new(pod: &str, event: Event) -> Self {
        let mut view = Self {
            pod: pod.to_owned(),
            sequence: event.sequence,
            time_ns: event.time_ns,
            container: Some(event.container).filter(|container| !container.is_empty()),
            event: "",
            pid: None,
            exit: None,
            reason: None,
            count: None,
            exit_words: String::new(),
        };
        view.event = match event.kind {
            EventKind::Created(pid) => {
                view.pid = Some(pid);
                "created"
            }
            EventKind::Started => "started",
            EventKind::Exited(exit) => {
                view.exit = Some(ExitView::from(&exit));
                view.exit_words = exit_words(&exit);
                "exited"
            }
            EventKind::Deleted => "deleted",
            EventKind::OomKilled => "oom-killed",
            EventKind::ExecFailed(reason) => {
                view.reason = Some(reason);
                "exec-failed"
            }
            EventKind::MonitorRestarted(times) => {
                view.count = Some(times.into());
                "monitor-restarted"
            }
            EventKind::Stopping => "stopping",
            EventKind::PodStopping => "pod-stopping",
            EventKind::InitEnded(end) => {
                view.exit_words = exit_words(&end.exit);
                view.exit = Some(ExitView::from(&end.exit));
                let killed = end.killed.iter().map(|(pid, name)| format!("{name} ({pid})"));
                let killed = killed.collect::<Vec<_>>().join(", ");
                view.reason =
                    Some(killed).filter(|names| !names.is_empty()).map(|n| format!("had to kill {n}"));
                "init-ended"
            }
            EventKind::HookFailed(failure) => {
                view.reason = Some(format!("{} at {}: {}", failure.hook, failure.stage, failure.reason));
                "hook-failed"
            }
            EventKind::LogFailed(why) => {
                view.reason = Some(why);
                "log-failed"
            }
            EventKind::LogGap(gap) => {
                let LogGap { stderr, bytes, lines, reason } = gap;
                let stream = if stderr { "stderr" } else { "stdout" };
                view.reason = Some(format!("{bytes} bytes in {lines} lines of {stream}: {reason}"));
                "log-gap"
            }
            EventKind::Lost(events) => {
                view.count = Some(events);
                "lost"
            }
        };
        view
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let about = self.container.as_ref().map_or_else(|| self.pod.clone(), |c| format!("{}/{c}", self.pod));
        let detail = match self.event {
            "created" => self.pid.map(|pid| format!("pid {pid}")),
            "exited" => Some(self.exit_words.clone()),
            "init-ended" => {
                let killed = self.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
                Some(format!("{}{killed}", self.exit_words))
            }
            _ => self.reason.clone().or_else(|| self.count.map(|count| count.to_string())),
        };
        let detail = detail.map(|detail| format!("  {detail}")).unwrap_or_default();
        format!("{:>6}  {:<17}  {about}{detail}\n", self.sequence, self.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(value: &impl Serialize) -> Vec<String> {
        let value = serde_json::to_value(value).unwrap();
        value.as_object().unwrap().keys().cloned().collect()
    }

    /// Programs depend on these names. Add to the lists; never take away.
    #[test]
    fn field_names_are_a_promise() {
        let exit = ExitStatus {
            how: Ended::Code(3),
            oom_killed: false,
            oom_victim: OomVictim::Nobody,
            exited_at_ns: 5,
            log_complete: true,
        };
        assert_eq!(
            keys(&ExitView::from(&exit)),
            ["code", "exited_at_ns", "log_complete", "oom_killed", "oom_victim", "signal", "unknown"]
        );
        let event =
            Event { sequence: 1, time_ns: 2, container: "c".into(), kind: EventKind::Exited(exit.clone()) };
        assert_eq!(
            keys(&EventView::new("p", event.clone())),
            ["container", "count", "event", "exit", "pid", "pod", "reason", "sequence", "time_ns"]
        );
        assert_eq!(EventView::new("p", event).line(), "     1  exited             p/c  3\n");
        let pod = super::super::paths::Root::new(std::path::Path::new("/r")).unwrap().pod("p").unwrap();
        assert_eq!(
            keys(&PodView::without_server(&pod, "dead")),
            [
                "containers",
                "created_at_ns",
                "directory",
                "init_pid",
                "keeper_pid",
                "namespaces",
                "pod",
                "socket",
                "state",
                "version"
            ]
        );
        let status = ContainerStatus {
            id: "c".into(),
            phase: Phase::Exited,
            pid: None,
            bundle: "/b".into(),
            created_at_ns: 1,
            started_at_ns: None,
            exit: Some(ExitStatus {
                how: Ended::Signal(9),
                oom_killed: true,
                oom_victim: OomVictim::FirstProcess,
                ..exit
            }),
            stdio: Stdio::Pipes,
            log_path: None,
            restarts: 0,
        };
        let view = ContainerView::new(&pod, status);
        assert_eq!(
            keys(&view),
            [
                "bundle",
                "container",
                "created_at_ns",
                "exit",
                "log",
                "monitor_restarts",
                "pid",
                "pod",
                "started_at_ns",
                "state",
                "terminal"
            ]
        );
        assert_eq!(view.cells()[4], "signal 9 (OOM)");
    }
}
