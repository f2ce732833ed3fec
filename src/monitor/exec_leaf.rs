//! A cgroup of an exec's own, below its container's.
//!
//! Whatever a command starts is born in the command's cgroup, also what has left
//! its session and lost its parents (a daemon). So the cgroup finds it when the
//! command is to be killed with all that it has started. When the command has ended
//! by itself, what it has left behind goes to the container's cgroup, and this one
//! is removed.
//!
//! * v2: the OCI runtime starts the command in it (`exec --cgroup`), so nothing can
//!   be started beside it, and `cgroup.kill` ends all of it at once. No controller
//!   is enabled in it: memory and OOM kills are counted in the container's cgroup,
//!   as before.
//! * v1: the freezer's hierarchy only. Runtimes would take a command that is started in a
//!   sub-cgroup out of the container's other cgroups, so the command is moved when it
//!   runs, with what it has started by then; a daemon of its first milliseconds may be
//!   missed. A command that has ended by then gets none.
//!
//! Where neither can be had, [`tree`](super::tree) looks for descendants.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::limits::{LEAF_LOOK_AGAIN, LEAF_MOVES_MAX, LEAF_TIMEOUT};
use crate::monitor::cgroup::{Membership, Mounts};
use crate::monitor::leaf::{Leaf, Version};
use crate::monitor::tree::children;

/// A container's cgroup, as the place for its execs'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// In the one tree of v2.
    Unified(PathBuf),
    /// In the freezer's tree of v1.
    Freezer(PathBuf),
}

impl Home {
    /// The cgroup of a container, as its first process is in it. `None` if it shares it
    /// with this process, or cannot have cgroups below it that can be killed.
    pub(super) fn of(membership: &Membership, mounts: &Mounts) -> Option<Self> {
        if let Some(directory) = membership.own_directory(mounts, None) {
            // Linux 5.14 and newer.
            return directory.join("cgroup.kill").exists().then_some(Self::Unified(directory));
        }
        let directory = membership.own_directory(mounts, Some("freezer"))?;
        directory.join("freezer.state").exists().then_some(Self::Freezer(directory))
    }
}

/// The cgroup of one exec. [`ExecLeaf::close`] removes it.
#[derive(Debug)]
pub(super) struct ExecLeaf {
    leaf: Leaf,
    name: String,
    /// Where the container's processes are.
    home: PathBuf,
}

impl ExecLeaf {
    /// Makes one. `None` if it cannot be had.
    pub(super) fn make(home: &Home, name: &str) -> Option<Self> {
        let (version, home) = match home {
            Home::Unified(directory) => (Version::Two, directory),
            Home::Freezer(directory) => (Version::One, directory),
        };
        let name = format!("podinit-{name}");
        match Leaf::make(version, home.join(&name)) {
            Ok(leaf) => Some(Self { leaf, name, home: home.clone() }),
            Err(error) => {
                ::log::debug!("an exec gets no cgroup of its own: {name} in {}: {error}", home.display());
                None
            }
        }
    }

    /// The value of the OCI runtime's `exec --cgroup`, if it shall start the command in it.
    pub(super) fn argument(&self) -> Option<&str> {
        (self.leaf.version() == Version::Two).then_some(self.name.as_str())
    }

    /// Moves `pid` and its descendants into it.
    pub(super) fn take_in(&self, pid: u32) {
        let mut moved = BTreeSet::new();
        let mut new = vec![pid];
        for _ in 0..LEAF_MOVES_MAX {
            for pid in new {
                moved.insert(pid);
                if let Err(error) = fs::write(self.leaf.directory().join("cgroup.procs"), pid.to_string()) {
                    ::log::debug!("process {pid} of an exec is gone already: {error}");
                }
            }
            // Started before their parents were moved; from now on they are born where they belong.
            let below = moved.iter().flat_map(|pid| children(*pid));
            new = below.filter(|pid| !moved.contains(pid)).collect();
            if new.is_empty() {
                return;
            }
        }
    }

    /// Kills all that is in it, without waiting.
    pub(super) fn kill(&self) {
        self.leaf.kill();
    }

    /// Waits until nothing is in it any more. False if something does not go.
    pub(super) async fn is_emptied(&self) -> bool {
        let deadline = Instant::now() + LEAF_TIMEOUT;
        while !self.leaf.processes().is_empty() {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(LEAF_LOOK_AGAIN).await;
        }
        true
    }

    /// Removes it. What is still in it lives on in the container's cgroup.
    pub(super) async fn close(&self) {
        let mut pause = LEAF_LOOK_AGAIN;
        let deadline = Instant::now() + LEAF_TIMEOUT;
        while let Err(error) = self.leaf.remove() {
            if Instant::now() > deadline {
                // The OCI runtime removes it with the container's.
                ::log::debug!("{} stays: {error}", self.leaf.directory().display());
                return;
            }
            self.evict();
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(Duration::from_millis(100));
        }
    }

    fn evict(&self) {
        for pid in self.leaf.processes() {
            if let Err(error) = fs::write(self.home.join("cgroup.procs"), pid.to_string()) {
                ::log::debug!("process {pid} of an exec stays in its cgroup: {error}");
            }
        }
    }
}
