//! What can go wrong with namespaces, and what to do about it.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why namespaces could not be made, pinned, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong; nothing was begun.
    #[error("{0}")]
    Invalid(String),

    /// There is a pin already, or something that is none.
    #[error("{} exists: {found}; {advice}", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },

    /// A step failed. What was done before it has been undone.
    #[error("cannot {step} {object}: {source}{}", advice.as_deref().map(|a| format!(" ({a})")).unwrap_or_default())]
    Step {
        /// What was being done, as a verb.
        step: &'static str,
        /// On what.
        object: String,
        /// What to do about it, where that can be known.
        advice: Option<String>,
        /// What the kernel said.
        source: io::Error,
    },

    /// A check of what had been made did not hold. It has been undone.
    #[error("{}: {what}; nothing was kept", path.display())]
    Unverified {
        /// The pin.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },

    /// The pod exists, and was asked for in another way.
    #[error(
        "the namespaces of pod {pod} exist, and were asked for in another way; remove them first, or repeat the first request"
    )]
    Different {
        /// The pod's id.
        pod: String,
    },

    /// The pod was made, and a part of it is gone.
    #[error("the namespaces of pod {pod} were made, but {what}; remove them and ask again")]
    Lost {
        /// The pod's id.
        pod: String,
        /// What is gone.
        what: String,
    },

    /// Someone sent a signal that ends.
    #[error("interrupted by a signal; everything was undone")]
    Interrupted,

    /// A step failed, and so did undoing what was done before it.
    #[error("{cause}; and undoing it failed: {}; run `podinit gc`", .left.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NotUndone {
        /// The first error.
        cause: Box<Error>,
        /// What is left, and why.
        left: Vec<Error>,
    },
}

/// What sort of error it is, for those who must give it a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Do not repeat the request: it is wrong.
    Invalid,
    /// Something of that name exists, with other properties.
    Exists,
    /// A namespace or a path that was named does not exist.
    NotFound,
    /// Something that was there has gone; remove the rest.
    Lost,
    /// A limit was reached; the same request may succeed later.
    Exhausted,
    /// The system refused.
    Failed,
}

impl Error {
    /// What sort of error this is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Invalid(_) => Class::Invalid,
            Self::Exists { .. } | Self::Different { .. } => Class::Exists,
            Self::Lost { .. } => Class::Lost,
            Self::Unverified { .. } | Self::Interrupted => Class::Failed,
            Self::NotUndone { cause, .. } => cause.class(),
            Self::Step { source, .. } => match Errno::from_io_error(source) {
                Some(Errno::NOENT) => Class::NotFound,
                Some(Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN) => {
                    Class::Exhausted
                }
                _ => Class::Failed,
            },
        }
    }

    pub(crate) fn step(step: &'static str, object: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let advice = match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => Some("podinit needs CAP_SYS_ADMIN for this".to_owned()),
            Some(Errno::MFILE) => Some("raise the limit of open files, `ulimit -n`".to_owned()),
            Some(Errno::NFILE) => Some("raise the sysctl fs.file-max".to_owned()),
            Some(Errno::NOMEM) => Some("the kernel or the memory cgroup is out of memory".to_owned()),
            _ => None,
        };
        Self::Step { step, object: object.into(), advice, source }
    }

    /// The same error with this advice instead of the general one.
    pub(crate) fn advise(mut self, text: impl Into<String>) -> Self {
        if let Self::Step { advice, .. } = &mut self {
            *advice = Some(text.into());
        }
        self
    }

    pub(crate) fn on(step: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::step(step, path.display().to_string(), source)
    }

    pub(crate) fn with_left(self, left: Vec<Error>) -> Self {
        if left.is_empty() { self } else { Self::NotUndone { cause: Box::new(self), left } }
    }
}
