//! The end of a pod that everybody has forgotten.
//!
//! An engine whose pod failed half-way removes the pod's directory and may never
//! say a word to its monitor. Without its directory nobody can find the monitor
//! any more, so if there is no container to look after, it ends.
//!
//! Seen through the directory *above*: the run directory itself is held open by
//! the keeper, and the kernel tells of its removal only when nobody holds it.

use std::path::Path;
use std::rc::Rc;

use crate::monitor::life::Phase;
use crate::monitor::{Monitor, Slot};

impl Monitor {
    /// The directory that is watched for the end of the run directory.
    pub(super) fn above_run_dir(&self) -> &Path {
        self.config.run_dir.parent().unwrap_or_else(|| Path::new("/"))
    }

    /// Ends the pod if its directory has gone and it has no container.
    pub(super) fn end_if_forgotten(self: &Rc<Self>) {
        let gone = matches!(self.config.run_dir.try_exists(), Ok(false));
        if gone && !self.terminating.get() && !self.has_work() {
            ::log::warn!("{} was removed, and there is no container: ending", self.config.run_dir.display());
            self.terminate();
        }
    }

    fn has_work(&self) -> bool {
        let is_over =
            |slot: &Slot| matches!(slot, Slot::Here(container) if container.phase() == Phase::Exited);
        !self.containers.borrow().values().all(is_over)
    }
}
