//! The end of a pod that everybody has forgotten.
//!
//! An engine whose pod failed half-way removes the pod's directory and may never
//! say a word to its monitor. Without its directory nobody can find the monitor
//! any more, so if there is no container to look after, it ends.
//!
//! Seen through the directory *above*: the run directory itself is held open by
//! the keeper, and the kernel tells of its removal only when nobody holds it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::monitor::life::Phase;
use crate::monitor::{Monitor, Slot};

impl Monitor {
    /// Watches whether the run directory is there, for as long as the pod lives.
    /// Where inotify instances have run out the pod lives until it is told to end.
    pub async fn watch_run_dir(self: Rc<Self>) {
        if let Err(error) = self.watch().await {
            let path = self.config.run_dir.display();
            ::log::warn!("cannot watch {path}: {error}; if it is removed, end the pod with SIGTERM");
        }
    }

    async fn watch(self: &Rc<Self>) -> io::Result<()> {
        let above = self.config.run_dir.parent().unwrap_or_else(|| Path::new("/"));
        let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &changes,
            above,
            WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::ONLYDIR,
        )?;
        let changes = AsyncFd::with_interest(changes, Interest::READABLE)?;
        loop {
            self.end_if_forgotten();
            let mut ready = changes.readable().await?;
            let read = ready.try_io(|changes| read_all(changes.get_ref()));
            if let Ok(read) = read {
                read?;
            }
        }
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

/// Takes what has been told; that something was is all that counts.
fn read_all(changes: &OwnedFd) -> io::Result<()> {
    // Room for the longest name (inotify(7)).
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut events = inotify::Reader::new(changes, &mut buffer);
    events.next()?;
    loop {
        match events.next() {
            Ok(_) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
