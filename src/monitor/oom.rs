//! Whether the kernel has killed a process of a container for want of memory.
//!
//! The container's own cgroup counts that ([`OomCounter`]), and is asked when its
//! first process has ended. But on cgroup v2 systemd removes the cgroup of a scope as
//! soon as it is empty, often before we can look, and an open file of it says nothing
//! from then on. What its slice has counted stays: a cgroup counts the kills of all that
//! is below it. So
//!
//! * one file per slice, not per container, is waited on: whenever the slice's number grows, the
//!   containers are asked who it was, and what none of them can explain is noted as
//!   somebody else's (another pod may have the same parent);
//! * when a container's own number is gone with its cgroup, what the slice's has grown
//!   by since then, and no other container explains, was the container's.
//!
//! With v1, and with cgroups that the OCI runtime makes, nothing is removed before it is
//! deleted. There is no thread in this, and no inotify instance.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::OOM_READS_MAX;
use crate::monitor::cgroup::{self, OomCounter};
use crate::monitor::container::Container;
use crate::monitor::{Monitor, Slot};

/// What is known of the kills in one container.
#[derive(Debug)]
pub(super) struct OomTrack {
    counter: OomCounter,
    /// The file of the cgroup above, where that counts.
    above: Option<PathBuf>,
    /// Kills that its own cgroup was seen to have counted.
    seen: Cell<u64>,
    /// What nobody could explain of the number above, when its own was last read.
    foreign: Cell<i64>,
    is_over: Cell<bool>,
}

/// The number of one cgroup that has containers below it.
#[derive(Debug, Default)]
pub(super) struct Above {
    /// Kills of containers that have ended.
    attributed: i64,
    is_watched: bool,
}

/// What is left of that number, see [`Monitor::sum`].
#[derive(Debug, Clone, Copy)]
struct Sum {
    foreign: i64,
    /// All containers could be asked.
    is_complete: bool,
}

/// By the file that has the number.
pub(super) type Ledger = RefCell<HashMap<PathBuf, Above>>;

impl OomTrack {
    pub(super) fn new(counter: OomCounter) -> Self {
        let above = counter.above().filter(|file| cgroup::read_oom_kills(file).is_some());
        let (seen, foreign, is_over) = Default::default();
        Self { counter, above, seen, foreign, is_over }
    }

    /// Its own number; `None` if it cannot be read any more.
    fn read(&self) -> Option<u64> {
        let kills = self.counter.kills()?;
        self.seen.set(kills.max(self.seen.get()));
        Some(kills)
    }
}

impl Monitor {
    /// Takes note of what is counted already, and of what will be.
    pub(super) fn watch_oom(self: &Rc<Self>, container: &Container) {
        let Some(above) = container.oom.as_ref().and_then(|track| track.above.clone()) else { return };
        self.explain_oom(&above);
        let mut ledger = self.oom_ledger.borrow_mut();
        let entry = ledger.entry(above.clone()).or_default();
        if !std::mem::replace(&mut entry.is_watched, true) {
            tokio::task::spawn_local(Rc::clone(self).watch_above(above));
        }
    }

    /// How many processes of a container that has ended were killed. Asked once.
    pub(super) fn oom_kills(&self, container: &Container) -> u64 {
        let Some(track) = &container.oom else { return 0 };
        let own = track.read();
        track.is_over.set(true);
        let Some(above) = &track.above else { return own.unwrap_or_default() };
        let kills = own.unwrap_or_else(|| {
            let now = self.sum(above).map_or(0, |sum| sum.foreign);
            let grown = now.saturating_sub(track.foreign.get());
            u64::try_from(grown).unwrap_or_default().max(track.seen.get())
        });
        let mut ledger = self.oom_ledger.borrow_mut();
        let entry = ledger.entry(above.clone()).or_default();
        entry.attributed = entry.attributed.saturating_add_unsigned(kills);
        kills
    }

    /// Asks the containers below `above` for their numbers, and takes what is left of
    /// its own for somebody else's. Not while there is one that cannot be asked any
    /// more: what is left may be its.
    fn explain_oom(&self, above: &Path) {
        let below = self.containers_below(above);
        let tracks = || below.iter().filter_map(|container| container.oom.as_ref());
        if let Some(Sum { foreign, is_complete: true }) = self.sum(above) {
            tracks().for_each(|track| track.foreign.set(foreign));
        }
    }

    /// Kills that `above` has counted, without those of the containers that we know of.
    fn sum(&self, above: &Path) -> Option<Sum> {
        let below = self.containers_below(above);
        let attributed = self.oom_ledger.borrow().get(above).map_or(0, |entry| entry.attributed);
        let mut total = cgroup::read_oom_kills(above)?;
        for _ in 0..OOM_READS_MAX {
            let mut sum = Sum { foreign: 0, is_complete: true };
            for track in below.iter().filter_map(|container| container.oom.as_ref()) {
                sum.is_complete &= track.read().is_some();
                sum.foreign = sum.foreign.saturating_sub_unsigned(track.seen.get());
            }
            let after = cgroup::read_oom_kills(above)?;
            // A kill between the two looks would be missing in one of the numbers.
            if total == after {
                sum.foreign = sum.foreign.saturating_sub(attributed).saturating_add_unsigned(total);
                return Some(sum);
            }
            total = after;
        }
        None
    }

    /// Containers below `above` that have not ended.
    fn containers_below(&self, above: &Path) -> Vec<Rc<Container>> {
        let containers = self.containers.borrow();
        let is_below = |container: &Rc<Container>| {
            let track = container.oom.as_ref();
            track.is_some_and(|track| track.above.as_deref() == Some(above) && !track.is_over.get())
        };
        let here = containers.values().filter_map(|slot| match slot {
            Slot::Here(container) => Some(container),
            Slot::Creating => None,
        });
        here.filter(|container| is_below(container)).cloned().collect()
    }

    /// Explains every growth of a number, as long as there are containers below it.
    async fn watch_above(self: Rc<Self>, above: PathBuf) {
        if let Err(error) = self.explain_growth(&above).await {
            ::log::debug!("{} is not watched any more: {error}", above.display());
        }
        if let Some(entry) = self.oom_ledger.borrow_mut().get_mut(&above) {
            entry.is_watched = false;
        }
    }

    async fn explain_growth(&self, above: &Path) -> io::Result<()> {
        // cgroup v2 tells of a change by an exceptional condition (cgroups(7), "Cgroups v2 cgroup.events").
        let file = AsyncFd::with_interest(File::open(above)?, Interest::PRIORITY)?;
        let mut last = None;
        while !self.containers_below(above).is_empty() {
            // Reading it is what arms it again.
            let mut text = [0; 512];
            let count = rustix::io::pread(file.get_ref(), &mut text, 0)?;
            let text = String::from_utf8_lossy(text.get(..count).unwrap_or_default());
            let kills = cgroup::oom_kill_field(&text);
            if last != kills {
                self.explain_oom(above);
                last = kills;
            }
            file.ready(Interest::PRIORITY).await?.clear_ready();
        }
        Ok(())
    }
}
