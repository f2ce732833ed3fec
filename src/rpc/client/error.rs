//! What a call can answer instead of its result.

use std::fmt;
use std::io;
use std::path::Path;

/// Why a request was refused: the codes of `schema/podinit.capnp`, and two that
/// only this side can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request itself is wrong; do not repeat it.
    InvalidArgument,
    /// No such container, namespace or file.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The container is not in a state that allows this.
    WrongState,
    /// The OCI runtime said no.
    RuntimeFailed,
    /// A deadline passed; what was begun has been undone.
    Timeout,
    /// A limit of podinit or of the kernel was reached; retry later.
    ResourceExhausted,
    /// This server has no such method.
    NotSupported,
    /// The pod is being stopped.
    ShuttingDown,
    /// A defect of podinit.
    Internal,
    /// The connection could not be made or has ended; whether the request was
    /// carried out is not known.
    Disconnected,
    /// The server answered with a code, or with no code, that this client does not know.
    Unknown,
}

/// Each code and its name on the wire.
const NAMES: [(Code, &str); 10] = [
    (Code::InvalidArgument, "invalid-argument"),
    (Code::NotFound, "not-found"),
    (Code::AlreadyExists, "already-exists"),
    (Code::WrongState, "wrong-state"),
    (Code::RuntimeFailed, "runtime-failed"),
    (Code::Timeout, "timeout"),
    (Code::ResourceExhausted, "resource-exhausted"),
    (Code::NotSupported, "not-supported"),
    (Code::ShuttingDown, "shutting-down"),
    (Code::Internal, "internal"),
];

impl Code {
    /// The code's name on the wire; `disconnected` and `unknown` never are on it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match NAMES.iter().find(|(code, _)| *code == self) {
            Some((_, name)) => name,
            None if self == Self::Disconnected => "disconnected",
            None => "unknown",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(code, _)| *code)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal: a code for programs, a sentence with its causes for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of refusal.
    pub code: Code,
    /// "<sentence>[: <cause>]*", without the code.
    pub message: String,
}

impl Error {
    pub(in crate::rpc) fn connect(path: &Path, error: &io::Error) -> Self {
        let message = match error.kind() {
            io::ErrorKind::NotFound => {
                format!("nothing listens at {}: the pod is not running", path.display())
            }
            io::ErrorKind::ConnectionRefused => {
                format!("nobody serves {}: the pod's server has ended without cleaning up", path.display())
            }
            _ => format!("connecting to {}: {error}", path.display()),
        };
        Self { code: Code::Disconnected, message }
    }

    pub(in crate::rpc) fn runtime(error: &io::Error) -> Self {
        Self { code: Code::ResourceExhausted, message: format!("starting the client's event loop: {error}") }
    }

    pub(in crate::rpc) fn too_long(what: &str) -> Self {
        Self::invalid(format!("{what} is too long for one request"))
    }

    pub(super) fn invalid(message: String) -> Self {
        Self { code: Code::InvalidArgument, message }
    }
}

/// What capnp-rpc puts in front of a text that the other side sent.
const REMOTE: &str = "remote exception: ";

impl From<capnp::Error> for Error {
    fn from(error: capnp::Error) -> Self {
        let mut text = error.extra.as_str();
        while let Some(rest) = text.strip_prefix(REMOTE) {
            text = rest;
        }
        if let Some((name, message)) = text.split_once(": ")
            && let Some(code) = Code::from_name(name)
        {
            return Self { code, message: message.to_owned() };
        }
        let code = match error.kind {
            capnp::ErrorKind::Unimplemented => Code::NotSupported,
            capnp::ErrorKind::Disconnected => Code::Disconnected,
            capnp::ErrorKind::Overloaded => Code::ResourceExhausted,
            _ => Code::Unknown,
        };
        let message = match (code, text) {
            (Code::Disconnected, _) => "the pod's server has closed the connection".to_owned(),
            // Local kinds (a malformed answer, a limit passed) carry their sentence in the kind.
            (_, "") => format!("the pod's server sent an answer that cannot be read: {}", error.kind),
            (_, text) => text.to_owned(),
        };
        Self { code, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(kind: capnp::ErrorKind, text: &str) -> Error {
        capnp::Error { kind, extra: format!("{REMOTE}{text}") }.into()
    }

    #[test]
    fn every_code_of_the_schema_is_understood() {
        let schema = include_str!("../../../schema/podinit.capnp");
        let listed: Vec<&str> = schema
            .lines()
            .skip_while(|line| !line.contains("Codes:"))
            .skip(1)
            .map_while(|line| line.strip_prefix("#   "))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(listed, NAMES.map(|(_, name)| name));
        for (code, name) in NAMES {
            let error = remote(capnp::ErrorKind::Failed, &format!("{name}: it did not work: because"));
            assert_eq!(error, Error { code, message: "it did not work: because".into() });
        }
    }

    #[test]
    fn text_without_a_code_keeps_its_words() {
        let error = remote(capnp::ErrorKind::Failed, "some thing: went wrong");
        assert_eq!(error, Error { code: Code::Unknown, message: "some thing: went wrong".into() });
        let error = remote(capnp::ErrorKind::Unimplemented, "Method not implemented.");
        assert_eq!(error.code, Code::NotSupported);
    }
}
