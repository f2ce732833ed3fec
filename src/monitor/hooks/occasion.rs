//! What a stage is reached by: the pod or a container of it, and what there is to
//! tell a hook about that.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::time::Instant;

use crate::hook::run::OCI_VERSION;
use crate::hook::{Stage, Subject};
use crate::monitor::container::Container;
use crate::monitor::exit::{ExitCause, ExitRecord};
use crate::ns::Kind;
use crate::ns::sandbox::Record;

/// What a container's bundle says that hooks are chosen by, or told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `ociVersion`; empty if it is not known.
    pub(super) oci_version: String,
    /// What conditions are held against.
    pub(super) subject: Subject,
}

/// Namespaces of a container; `None` in place of one that is the host's.
pub(super) type Held = Vec<(Kind, Option<OwnedFd>)>;

/// What is kept of a container for its hooks. Costs nothing without any.
#[derive(Debug, Default)]
pub(in crate::monitor) struct OfContainer {
    pub(super) facts: OnceCell<Rc<Facts>>,
    /// What hooks will ask for when the container has ended.
    pub(super) held: RefCell<Option<Held>>,
    /// Stages of one container do not overlap.
    pub(super) turn: Rc<tokio::sync::Mutex<()>>,
    /// Poststop hooks run once.
    pub(super) is_over: Cell<bool>,
}

/// A stage that has been reached.
#[derive(Debug)]
pub(super) struct Occasion {
    pub(super) stage: Stage,
    /// The pod's id.
    pub(super) pod: String,
    /// The pod's namespaces, where they were made here.
    pub(super) sandbox: Option<Record>,
    /// The container, at a stage of one.
    pub(super) container: Option<Rc<Container>>,
    pub(super) facts: Rc<Facts>,
    /// The working directory.
    pub(super) bundle: PathBuf,
    /// When everything must have ended.
    pub(super) deadline: Option<Instant>,
}

impl Occasion {
    /// The id that the state tells.
    pub(super) fn id(&self) -> &str {
        self.container.as_ref().map_or(&self.pod, |container| container.id.as_str())
    }

    pub(super) fn container_id(&self) -> Option<&str> {
        self.container.as_ref().map(|container| container.id.as_str())
    }

    pub(super) fn oci_version(&self) -> &str {
        if self.facts.oci_version.is_empty() { OCI_VERSION } else { &self.facts.oci_version }
    }

    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The process that the state tells, as we count: the container's, or PID 1 of the pod.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.container {
            Some(container) => (!container.child.has_exited()).then(|| container.child.pid()),
            None => {
                let init = self.sandbox.as_ref().and_then(Record::init);
                init.filter(crate::ns::sandbox::InitRecord::is_alive).map(|init| init.pid)
            }
        }
    }

    /// Exit code, signal and a word for how the container ended, if it has.
    pub(super) fn exit(&self) -> (Option<u8>, Option<u8>, Option<&'static str>) {
        let Some(record) = self.container.as_ref().and_then(|container| container.exit()) else {
            return (None, None, None);
        };
        let ExitRecord { cause, oom_killed, .. } = &*record;
        let because = |word| Some(if *oom_killed { "oom" } else { word });
        match cause {
            ExitCause::Code(code) => (Some(*code), None, because("exited")),
            ExitCause::Signal(signal) => (None, Some(*signal), because("signal")),
            ExitCause::Unknown(_) => (None, None, because("unknown")),
        }
    }
}
