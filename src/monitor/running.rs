//! Commands that run in containers beside their first processes.
//!
//! Whoever has started one holds a [`Running`]. Dropped before the command has ended, whatever the reason, also
//! a panic, it kills the command with all that it has started: nobody is there
//! any more who wants its output.

use std::rc::Rc;

use crate::limits::KILL_TIMEOUT;
use crate::monitor::Monitor;
use crate::monitor::container::Container;
use crate::monitor::exec_leaf::{ExecLeaf, Home};
use crate::monitor::reaper::Child;
use crate::monitor::tree;

/// The process of an exec, and where all that it starts is found.
#[derive(Debug)]
pub(super) struct Family {
    child: Child,
    leaf: Option<ExecLeaf>,
}

impl Family {
    /// Kills all of it, without waiting.
    fn kill_now(&self) {
        let found_all = self.leaf.as_ref().is_some_and(|leaf| {
            leaf.kill();
            leaf.argument().is_some()
        });
        if !found_all {
            tree::kill_descendants(self.child.pid());
        }
        if let Err(error) = self.child.signal(libc::SIGKILL) {
            ::log::error!("cannot kill process {}: {error}", self.child.pid());
        }
    }

    /// Kills all of it and waits until it is gone.
    pub(super) async fn kill(&self) {
        self.kill_now();
        let pid = self.child.pid();
        if tokio::time::timeout(KILL_TIMEOUT, self.child.exited()).await.is_err() {
            ::log::error!("process {pid} is still there {} s after SIGKILL", KILL_TIMEOUT.as_secs());
        }
        if let Some(leaf) = &self.leaf
            && !leaf.is_emptied().await
        {
            ::log::warn!("something that process {pid} has started is still there after SIGKILL");
        }
    }
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct Running(Rc<Family>);

impl Running {
    /// Its process.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.0.child
    }

    /// Kills it with all that it has started, if it has not ended, and waits until it
    /// is gone.
    pub async fn kill(&self) {
        if !self.0.child.has_exited() {
            self.0.kill().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.0.child.has_exited() {
            ::log::info!("process {} is killed: nobody waits for it any more", self.0.child.pid());
            self.0.kill_now();
        }
    }
}

impl Monitor {
    /// Takes note of a command that runs, until it has ended.
    /// `leaf` is the cgroup that the OCI runtime has started it in.
    pub(super) fn note_exec(
        self: &Rc<Self>,
        container: &Container,
        child: Child,
        leaf: Option<ExecLeaf>,
    ) -> Running {
        let leaf = leaf.or_else(|| self.leaf_to_move_to(container, &child));
        let family = Rc::new(Family { child, leaf });
        self.execs.borrow_mut().insert(family.child.pid(), Rc::clone(&family));
        tokio::task::spawn_local(Rc::clone(self).forget_exec(Rc::clone(&family)));
        Running(family)
    }

    /// A cgroup for a command that runs already. One that has ended needs none: nobody
    /// will have it killed, and moves are what is slow about many short commands at once.
    fn leaf_to_move_to(&self, container: &Container, child: &Child) -> Option<ExecLeaf> {
        let home = container.saved.execs_home.as_ref().filter(|home| matches!(home, Home::Freezer(_)))?;
        if child.has_ended() {
            return None;
        }
        let leaf = ExecLeaf::make(home, &self.unique("exec"))?;
        leaf.take_in(child.pid());
        Some(leaf)
    }

    async fn forget_exec(self: Rc<Self>, family: Rc<Family>) {
        family.child.exited().await;
        self.execs.borrow_mut().remove(&family.child.pid());
        if let Some(leaf) = &family.leaf {
            leaf.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::monitor::reaper::Reaper;

    #[test]
    fn a_panic_of_who_holds_it_kills_the_command() {
        let mut process = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let reaper = Reaper::default();
        let running = Running(Rc::new(Family { child: reaper.adopt(process.id()).unwrap(), leaf: None }));
        let holder = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _running = running;
            panic!("a defect");
        }));
        assert!(holder.is_err());
        assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
