//! The namespaces of the pods that this monitor serves, by pod id.
//!
//! What was made is written down in the run directory, so that the next monitor
//! answers the same and can remove it. Namespaces without a pin are held by the
//! keeper, whose copies keep them alive.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::keeper::ToKeeper;
use crate::limits::{INIT_GRACE, KILL_TIMEOUT};
use crate::monitor::Monitor;
use crate::monitor::create::remove_stale;
use crate::monitor::error::Error;
use crate::monitor::exit::publish;
use crate::monitor::id::PodId;
use crate::monitor::reaper::Child;
use crate::monitor::saved::Kept;
use crate::monitor::tree::start_ticks;
use crate::ns;
use crate::sys::process::now_ns;

/// A namespace of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Namespace {
    /// Its kind.
    pub kind: ns::Kind,
    /// Where it is pinned; `None` if it is held by descriptor only, or the host's.
    pub path: Option<PathBuf>,
    /// Its inode number.
    pub inode: u64,
    /// That of the user namespace that owns it.
    pub owner_inode: u64,
    /// Made for this pod, not the host's or taken from a path.
    pub created: bool,
}

/// What outlives a monitor of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedSandbox {
    /// What was asked for; its name is the pod id.
    pub request: ns::Request,
    /// What was made, in the order of the request.
    pub namespaces: Vec<Namespace>,
    /// PID 1 of the pod's pid namespace, and when it was started, in clock ticks.
    pub init: Option<(u32, u64)>,
    /// Unix time in nanoseconds.
    pub created_at_ns: u64,
}

/// The namespaces of a pod.
#[derive(Debug)]
pub struct Sandbox {
    /// Everything about it.
    pub saved: SavedSandbox,
    init: Option<Child>,
    removed: Cell<bool>,
}

impl Sandbox {
    /// PID 1 of the pod's pid namespace as the host sees it, while it lives.
    #[must_use]
    pub fn init_pid(&self) -> Option<u32> {
        self.init.as_ref().filter(|init| !init.has_exited()).map(Child::pid)
    }
}

impl Monitor {
    /// Makes the namespaces of a pod, or answers what the same request made before.
    ///
    /// # Errors
    /// If they cannot be made, all of them; or if the pod id has others.
    pub fn create_sandbox(&self, request: ns::Request) -> Result<Rc<Sandbox>, Error> {
        let pod = PodId::new(&request.name)?;
        self.make_sandbox(&pod, request, ns::create)
    }

    /// As [`Monitor::create_sandbox`], with another way to make them.
    pub(crate) fn make_sandbox(
        &self,
        pod: &PodId,
        request: ns::Request,
        make: impl FnOnce(&ns::Request) -> Result<ns::Set, ns::Error>,
    ) -> Result<Rc<Sandbox>, Error> {
        self.refuse_if_closing()?;
        if let Some(sandbox) = self.sandboxes.borrow().get(pod) {
            let same = sandbox.saved.request == request;
            return if same { Ok(Rc::clone(sandbox)) } else { Err(Error::SandboxExists(pod.to_string())) };
        }
        let set = make(&request)?;
        let init = set.init.as_ref().map(|init| init.pid);
        let saved = SavedSandbox {
            namespaces: set.namespaces.iter().map(describe).collect(),
            init: init.map(|pid| (pid, start_ticks(pid).unwrap_or(0))),
            created_at_ns: now_ns(),
            request,
        };
        for made in set.namespaces.into_iter().filter(|made| made.created && made.path.is_none()) {
            let name = kept_name(pod, made.kind);
            if let Err(error) = self.keeper.send(&ToKeeper::Keep { name: &name, fd: made.fd.as_fd() }) {
                ::log::warn!("{name} would not survive a crash of this monitor: {error}");
            }
            self.unpinned.borrow_mut().insert(name, made.fd);
        }
        // Our child, and not collected: the pid is its.
        let init = init.and_then(|pid| self.reaper.adopt(pid).ok());
        let sandbox = Rc::new(Sandbox { saved, init, removed: Cell::new(false) });
        self.save_sandbox(pod, &sandbox.saved);
        self.sandboxes.borrow_mut().insert(pod.clone(), Rc::clone(&sandbox));
        ::log::info!("pod {pod}: made {} namespaces", sandbox.saved.namespaces.len());
        Ok(sandbox)
    }

    /// All sandboxes, by pod id.
    #[must_use]
    pub fn list_sandboxes(&self) -> Vec<Rc<Sandbox>> {
        self.sandboxes.borrow().values().map(Rc::clone).collect()
    }

    /// Ends the pods' init processes and unpins what was pinned. Returns what could
    /// not be removed.
    pub(super) async fn remove_sandboxes(&self) -> Vec<Error> {
        let mut failed = Vec::new();
        let sandboxes = self.sandboxes.borrow().clone();
        for (pod, sandbox) in sandboxes {
            if sandbox.removed.replace(true) {
                continue;
            }
            if let Some(init) = &sandbox.init {
                end_init(init).await;
            }
            for made in &sandbox.saved.namespaces {
                self.unpinned.borrow_mut().remove(&kept_name(&pod, made.kind));
            }
            match ns::remove(&sandbox.saved.request.base, pod.as_str()) {
                Ok(()) => {
                    self.sandboxes.borrow_mut().remove(&pod);
                    failed.extend(remove_stale(&self.sandbox_path(&pod)).err());
                }
                Err(errors) => {
                    sandbox.removed.set(false);
                    failed.extend(errors.into_iter().map(Error::from));
                }
            }
        }
        failed
    }

    /// Takes over the sandboxes of an earlier monitor.
    pub(super) fn resume_sandboxes(&self, kept: &mut Kept) {
        let Ok(entries) = std::fs::read_dir(self.sandboxes_dir()) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let read = std::fs::read(&path)
                .and_then(|text| serde_json::from_slice::<SavedSandbox>(&text).map_err(io::Error::other));
            let checked = read.map_err(|error| Error::io(format!("read {}", path.display()), error));
            match checked.and_then(|saved| Ok((PodId::new(&saved.request.name)?, saved))) {
                Ok((pod, saved)) => self.resume_sandbox(pod, saved, kept),
                Err(error) => ::log::error!("a pod's namespaces are not known any more: {error}"),
            }
        }
    }

    fn resume_sandbox(&self, pod: PodId, saved: SavedSandbox, kept: &mut Kept) {
        for made in &saved.namespaces {
            let name = kept_name(&pod, made.kind);
            if let Some(fd) = kept.fds.remove(&name) {
                self.unpinned.borrow_mut().insert(name, fd);
            }
        }
        let init = saved.init.map(|(pid, ticks)| {
            let told = kept.exits.iter().find(|exit| exit.pid == pid).copied();
            self.reaper.resume(pid, ticks, told)
        });
        let sandbox = Sandbox { saved, init, removed: Cell::new(false) };
        self.sandboxes.borrow_mut().insert(pod, Rc::new(sandbox));
    }

    fn save_sandbox(&self, pod: &PodId, saved: &SavedSandbox) {
        let path = self.sandbox_path(pod);
        let written =
            serde_json::to_vec(saved).map_err(io::Error::other).and_then(|text| publish(&path, &text));
        if let Err(error) = written {
            let path = path.display();
            ::log::error!("{path}: {error}; after a crash of this monitor the namespaces would not be known");
        }
    }

    fn sandbox_path(&self, pod: &PodId) -> PathBuf {
        self.sandboxes_dir().join(format!("{pod}.json"))
    }
}

/// Asks PID 1 to end its namespace in order: TERM, its own grace time, KILL. Then
/// SIGKILL, which the kernel passes on to all of it.
async fn end_init(init: &Child) {
    for (signal, limit) in [(libc::SIGTERM, INIT_GRACE), (libc::SIGKILL, KILL_TIMEOUT)] {
        if let Err(error) = init.signal(signal) {
            ::log::error!("cannot signal the pod's init, process {}: {error}", init.pid());
        }
        if tokio::time::timeout(limit, init.exited()).await.is_ok() {
            return;
        }
    }
    ::log::error!("the pod's init, process {}, is still there after SIGKILL", init.pid());
}

fn describe(made: &ns::Made) -> Namespace {
    Namespace {
        kind: made.kind,
        path: made.path.clone(),
        inode: made.inode,
        owner_inode: made.owner_inode,
        created: made.created,
    }
}

/// The name of a namespace that only the keeper's copy keeps alive. No container
/// id holds a `:`.
fn kept_name(pod: &PodId, kind: ns::Kind) -> String {
    format!("ns:{pod}/{kind}")
}
