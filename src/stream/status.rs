//! How a remote command ended, as Kubernetes' clients want to hear it: a
//! `metav1.Status` in JSON.

use serde_json::json;

use super::request::CommandVersion;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The command exited with this code; or the attached container's output ended (0).
    Exited(i32),
    /// There is no exit code, for this reason.
    Failed(String),
}

impl Outcome {
    /// What to send on the error channel; nothing for a success before v4.
    #[must_use]
    pub fn message(&self, version: CommandVersion) -> String {
        match (self, version.has_status()) {
            (Self::Exited(0), true) => json!({"metadata": {}, "status": "Success"}).to_string(),
            (Self::Exited(0), false) => String::new(),
            (Self::Exited(code), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string(),
            (Self::Exited(code), false) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            (Self::Failed(reason), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": reason,
                "reason": "InternalError",
                "details": {"causes": [{"message": reason}]},
                "code": 500,
            })
            .to_string(),
            (Self::Failed(reason), false) => reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_where_clients_look_for_it() {
        let text = Outcome::Exited(3).message(CommandVersion::V4);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }

    #[test]
    fn old_clients_take_any_text_for_an_error() {
        assert_eq!(Outcome::Exited(0).message(CommandVersion::V3), "");
        assert!(Outcome::Exited(1).message(CommandVersion::V2).contains("exit status 1"));
    }
}
