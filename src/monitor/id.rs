//! Ids that are safe to use as file names and as arguments.

use std::fmt;

use crate::limits::ID_BYTES_MAX;
use crate::monitor::error::Error;

/// A container's id, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// A pod's id, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(String);

impl ContainerId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`Error::Id`] if it could leave a directory, be taken for an option, or
    /// is longer than [`ID_BYTES_MAX`].
    pub fn new(id: &str) -> Result<Self, Error> {
        check("container id", id).map(Self)
    }

    /// The id itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PodId {
    /// Checks `id`.
    ///
    /// # Errors
    /// As [`ContainerId::new`].
    pub fn new(id: &str) -> Result<Self, Error> {
        if id.is_empty() {
            // Deployed clients look for these words.
            return Err(Error::Invalid("no pod ID provided: namespaces are named after it".into()));
        }
        check("pod id", id).map(Self)
    }

    /// The id itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(what: &'static str, id: &str) -> Result<String, Error> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    let reason = if id.is_empty() {
        "it is empty"
    } else if id.len() > ID_BYTES_MAX {
        "it is too long"
    } else if !id.chars().all(usable) {
        "it holds a character that is not allowed"
    } else if id.starts_with(['.', '-', '+']) {
        "it does not begin with a letter, a digit or '_'"
    } else {
        return Ok(id.to_owned());
    };
    Err(Error::Id { what, id: id.chars().take(ID_BYTES_MAX).collect(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_engines_pass() {
        for id in ["a", "_x", &"f".repeat(64), "busybox.1+rc_2-3", &"9".repeat(ID_BYTES_MAX)] {
            assert_eq!(ContainerId::new(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn ids_that_could_leave_a_directory_or_become_an_option_do_not() {
        let long = "x".repeat(300);
        for id in ["", ".", "..", "../x", "a/b", "/", "a\0b", "-rf", ".hidden", "ü", "a b", &long] {
            assert!(matches!(ContainerId::new(id), Err(Error::Id { .. })), "{id:?}");
            assert!(PodId::new(id).is_err(), "{id:?}");
        }
    }
}
