//! The state that an OCI runtime sends with a listener (runtime-spec,
//! config-linux.md, "The Container Process State").

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::notification::{Session, SessionId};
use crate::limits::ID_BYTES_MAX;

/// The name of the listener among the descriptors.
const LISTENER: &str = "seccompFd";

/// Where CRI-O puts a container's labels, and the pod's id: annotations.
const CRIO_LABELS: &str = "io.kubernetes.cri-o.Labels";
const CRIO_POD: &str = "io.kubernetes.cri-o.SandboxID";
/// Where containerd puts the pod's id.
const CONTAINERD_POD: &str = "io.kubernetes.cri.sandbox-id";

/// What is used of it. What is not known here is not minded: the specification
/// may grow.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessState {
    /// Names of the descriptors, in their order.
    #[serde(default)]
    pub fds: Vec<String>,
    /// The process that installed the filter, as the runtime sees it.
    #[serde(default)]
    pub pid: i64,
    /// The profile's `listenerMetadata`.
    #[serde(default)]
    pub metadata: String,
    /// The container's state.
    pub state: ContainerState,
}

/// A container's state (runtime-spec, runtime.md, "State").
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// `creating`, or `running` for an exec.
    #[serde(default)]
    pub status: String,
    /// Its first process.
    #[serde(default)]
    pub pid: i64,
    /// Its bundle.
    #[serde(default)]
    pub bundle: PathBuf,
    /// Its annotations.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Not JSON, or not of this form.
    #[error("the runtime's state of the container process cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// No listener is among the descriptors.
    #[error("the runtime's state names no descriptor {LISTENER:?} among {0:?}")]
    NoListener(Vec<String>),
    /// An id that no engine gives.
    #[error("the runtime's state has a container id of {0} bytes; 1 to {ID_BYTES_MAX} are usual")]
    Id(usize),
}

impl ProcessState {
    /// Reads it.
    ///
    /// # Errors
    /// If it is not of the form that the specification gives.
    pub fn parse(json: &[u8]) -> Result<Self, StateError> {
        let parsed: Self = serde_json::from_slice(json)?;
        let length = parsed.state.id.len();
        if length == 0 || length > ID_BYTES_MAX {
            return Err(StateError::Id(length));
        }
        Ok(parsed)
    }

    /// Which of the descriptors is the listener.
    ///
    /// # Errors
    /// [`StateError::NoListener`].
    pub fn listener(&self) -> Result<usize, StateError> {
        let position = self.fds.iter().position(|name| name == LISTENER);
        position.ok_or_else(|| StateError::NoListener(self.fds.clone()))
    }

    /// The session that it describes, in a pod whose run directory is called
    /// `pod`, from `now` on.
    #[must_use]
    pub fn session(self, id: SessionId, pod: &str, now: u64) -> Session {
        let annotations = self.state.annotations.unwrap_or_default();
        let pod =
            annotations.get(CRIO_POD).or_else(|| annotations.get(CONTAINERD_POD)).map_or(pod, |pod| pod);
        let labels = annotations.get(CRIO_LABELS).and_then(|json| serde_json::from_str(json).ok());
        Session {
            id,
            pod: pod.into(),
            container: self.state.id.into(),
            metadata: self.metadata.into(),
            pid: u32::try_from(self.pid).unwrap_or(0),
            is_exec: self.state.status == "running",
            bundle: self.state.bundle,
            labels: labels.unwrap_or_default(),
            annotations,
            since_ns: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"ociVersion": "1.0.2", "fds": ["x", "seccompFd"], "pid": 4422, "metadata": "m",
        "new": 1, "state": {"ociVersion": "1.0.2", "id": "c", "status": "creating", "pid": 4422, "bundle": "/b",
        "annotations": {"io.kubernetes.cri-o.Labels": "{\"app\":\"web\"}", "io.kubernetes.cri-o.SandboxID": "s"}}}"#;

    #[test]
    fn a_state_becomes_a_session() {
        let state = ProcessState::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(state.listener().unwrap(), 1);
        let session = state.session(SessionId(3), "p", 5);
        assert_eq!((&*session.pod, &*session.container, &*session.metadata), ("s", "c", "m"));
        assert_eq!((session.pid, session.is_exec, session.since_ns), (4422, false, 5));
        assert_eq!(session.labels["app"], "web");
    }

    #[test]
    fn an_exec_and_a_pod_without_annotations() {
        let text =
            r#"{"fds": ["seccompFd"], "state": {"id": "c", "status": "running", "annotations": null}}"#;
        let session = ProcessState::parse(text.as_bytes()).unwrap().session(SessionId(1), "p", 0);
        assert_eq!((&*session.pod, session.is_exec, session.pid), ("p", true, 0));
        assert!(session.labels.is_empty());
    }

    #[test]
    fn what_is_no_state_is_refused() {
        for text in
            ["", "[]", "{}", r#"{"state": {}}"#, r#"{"state": {"id": ""}}"#, r#"{"state": {"id": 1}}"#]
        {
            ProcessState::parse(text.as_bytes()).unwrap_err();
        }
        let long = format!(r#"{{"state": {{"id": "{}"}}}}"#, "c".repeat(ID_BYTES_MAX + 1));
        assert!(ProcessState::parse(long.as_bytes()).unwrap_err().to_string().contains("129"));
        let none = ProcessState::parse(br#"{"fds": ["seccomp"], "state": {"id": "c"}}"#).unwrap();
        assert!(none.listener().unwrap_err().to_string().contains("seccompFd"));
    }
}
