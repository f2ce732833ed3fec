//! What a hook is given: its argument vector, its environment, and the state that
//! it reads from its standard input. Pure.

use std::collections::BTreeMap;
use std::ffi::{CString, NulError};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use caps::Capability;
use serde::Serialize;

use super::{Hook, Stage};
use crate::limits::{HOOK_TIMEOUT, HOOK_TIMEOUT_MAX};

/// `$PATH` of a hook whose file has no environment of its own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The version of the OCI runtime specification whose state is told where no
/// bundle says another.
pub const OCI_VERSION: &str = "1.2.0";

/// The OCI state (runtime.md, State), and what podinit adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    /// Of the bundle.
    pub oci_version: &'a str,
    /// The container's id; for a hook of the pod the pod's.
    pub id: &'a str,
    /// As the specification has it at this stage.
    pub status: &'static str,
    /// The container's process, or PID 1 of the pod, as the hook's pid namespace
    /// counts; absent where it cannot be seen from there, or is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The container's bundle; for a hook of the pod its run directory.
    pub bundle: &'a Path,
    /// The container's.
    pub annotations: &'a BTreeMap<String, String>,
    /// What only podinit tells.
    pub podinit: Told<'a>,
}

/// The `podinit` key of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told<'a> {
    /// The pod.
    pub pod_id: &'a str,
    /// The stage, by its name in hook files.
    pub stage: &'static str,
    /// The hook.
    pub hook: &'a str,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The container, at a stage of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<&'a str>,
    /// The container's exit status, if it ended with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// The signal that ended the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Why the container ended, in a word: exited, signal, oom, unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Milliseconds that are left until the hook is killed.
    pub deadline_ms: u64,
}

/// The status that a container has at a stage, by the specification; a pod's is
/// told in the same words.
#[must_use]
pub fn status_at(stage: Stage) -> &'static str {
    match stage {
        Stage::CreateRuntime | Stage::CreateContainer | Stage::PodCreate => "creating",
        Stage::StartContainer | Stage::NetworkReady => "created",
        Stage::Poststart | Stage::PreStop | Stage::PodReady => "running",
        Stage::ContainerExited | Stage::Poststop | Stage::PodStop => "stopped",
    }
}

/// How long a hook may take.
#[must_use]
pub fn limit_of(hook: &Hook) -> Duration {
    hook.timeout.unwrap_or(HOOK_TIMEOUT).min(HOOK_TIMEOUT_MAX)
}

/// The hook's path as a C string.
///
/// # Errors
/// If there is a NUL byte in it.
pub fn path_of(hook: &Hook) -> Result<CString, NulError> {
    CString::new(hook.path.as_os_str().as_bytes())
}

/// The argument vector: what the file says, or the path alone.
///
/// # Errors
/// If there is a NUL byte in it.
pub fn arguments_of(hook: &Hook) -> Result<Vec<CString>, NulError> {
    if hook.args.is_empty() {
        return Ok(vec![path_of(hook)?]);
    }
    hook.args.iter().map(|argument| CString::new(argument.as_bytes())).collect()
}

/// The whole environment: what the file says, else a `$PATH`; and, unless the
/// file says otherwise, which hook this is and why it runs.
///
/// # Errors
/// If there is a NUL byte in it.
pub fn environment_of(
    hook: &Hook,
    stage: Stage,
    pod: &str,
    container: Option<&str>,
) -> Result<Vec<CString>, NulError> {
    let mut variables: Vec<(&str, &str)> =
        hook.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if variables.is_empty() {
        variables.push(("PATH", PATH));
    }
    let told = [
        ("PODINIT_POD", Some(pod)),
        ("PODINIT_STAGE", Some(stage.name())),
        ("PODINIT_HOOK", Some(hook.name.as_str())),
        ("PODINIT_CONTAINER", container),
    ];
    for (name, value) in told {
        if let Some(value) = value
            && !variables.iter().any(|(have, _)| *have == name)
        {
            variables.push((name, value));
        }
    }
    variables.into_iter().map(|(name, value)| CString::new(format!("{name}={value}"))).collect()
}

/// Capabilities as a mask of `1 << CAP_…`.
#[must_use]
pub fn mask_of(capabilities: &[Capability]) -> u64 {
    capabilities.iter().fold(0, |mask, capability| mask | capability.bitmask())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::{Options, When};
    use serde_json::json;

    fn hook(env: &[(&str, &str)]) -> Hook {
        Hook {
            name: "h.json".to_owned(),
            path: "/bin/h".into(),
            args: Vec::new(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            timeout: None,
            when: When::always(),
            stages: vec![Stage::Poststart],
            options: Options::default(),
        }
    }

    fn texts(strings: Vec<CString>) -> Vec<String> {
        strings.into_iter().map(|string| string.into_string().unwrap()).collect()
    }

    #[test]
    fn environment_is_the_files_or_a_small_fixed_one() {
        let environment = environment_of(&hook(&[]), Stage::Poststart, "p", Some("c")).unwrap();
        let told = ["PODINIT_POD=p", "PODINIT_STAGE=poststart", "PODINIT_HOOK=h.json", "PODINIT_CONTAINER=c"];
        assert_eq!(texts(environment), [&[format!("PATH={PATH}").as_str()], &told[..]].concat());
        let environment =
            environment_of(&hook(&[("PODINIT_POD", "mine")]), Stage::PodStop, "p", None).unwrap();
        assert_eq!(texts(environment), ["PODINIT_POD=mine", "PODINIT_STAGE=podStop", "PODINIT_HOOK=h.json"]);
        assert!(environment_of(&hook(&[("A", "\0")]), Stage::PodStop, "p", None).is_err());
    }

    #[test]
    fn arguments_and_time_have_defaults_and_a_ceiling() {
        let mut hook = hook(&[]);
        assert_eq!(texts(arguments_of(&hook).unwrap()), ["/bin/h"]);
        assert_eq!(limit_of(&hook), HOOK_TIMEOUT);
        hook.args = vec!["name".to_owned(), "x".to_owned()];
        hook.timeout = Some(HOOK_TIMEOUT_MAX * 2);
        assert_eq!(texts(arguments_of(&hook).unwrap()), ["name", "x"]);
        assert_eq!(limit_of(&hook), HOOK_TIMEOUT_MAX);
    }

    #[test]
    fn state_is_the_specifications_and_one_key_more() {
        let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let podinit = Told {
            pod_id: "p",
            stage: Stage::ContainerExited.name(),
            hook: "h",
            attempt: 2,
            container: Some("c"),
            exit_code: Some(3),
            signal: None,
            reason: Some("exited"),
            deadline_ms: 1500,
        };
        let state = State {
            oci_version: "1.0.2",
            id: "c",
            status: status_at(Stage::ContainerExited),
            pid: None,
            bundle: Path::new("/b"),
            annotations: &annotations,
            podinit,
        };
        let expected = json!({
            "ociVersion": "1.0.2", "id": "c", "status": "stopped", "bundle": "/b",
            "annotations": { "a": "b" },
            "podinit": { "podId": "p", "stage": "containerExited", "hook": "h", "attempt": 2,
                         "container": "c", "exitCode": 3, "reason": "exited", "deadlineMs": 1500 },
        });
        assert_eq!(serde_json::to_value(&state).unwrap(), expected);
    }
}
