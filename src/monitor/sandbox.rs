//! The namespaces of the pods that this monitor serves.
//!
//! [`ns::sandbox`] makes, remembers and removes them; here is what belongs to
//! this process: the inits, which are its children, and the descriptors of
//! namespaces without a pin, which the keeper holds too.

use std::os::fd::AsFd;
use std::rc::Rc;

use crate::init::survey::{self, Process};
use crate::keeper::ToKeeper;
use crate::limits::{INIT_GRACE, KILL_TIMEOUT};
use crate::monitor::Monitor;
use crate::monitor::console::SOCKET_PATH_BYTES_MAX;
use crate::monitor::error::Error;
use crate::monitor::event::{Happening, InitEnd};
use crate::monitor::id::PodId;
use crate::monitor::reaper::Child;
use crate::monitor::saved::Kept;
use crate::monitor::tree::start_ticks;
use crate::ns;
use crate::ns::network::Network;
use crate::ns::sandbox::{CreateNamespaces, Record, Sandbox};
use crate::sys::process::now_ns;

impl Monitor {
    /// Makes the namespaces of a pod, or answers what the same request made before.
    ///
    /// # Errors
    /// If they cannot be made, all of them; or if the pod id has others.
    pub async fn create_sandbox(self: &Rc<Self>, request: &ns::Request) -> Result<Record, Error> {
        let pod = PodId::new(&request.name)?;
        self.refuse_if_closing()?;
        let sandbox = self.namespaces.create(request)?;
        self.complete(&pod, sandbox).await
    }

    /// The same for clients of createNamespaces: always five kinds, those not asked
    /// for being the host's.
    ///
    /// # Errors
    /// As [`Monitor::create_sandbox`].
    pub async fn create_namespaces(self: &Rc<Self>, request: CreateNamespaces) -> Result<Record, Error> {
        let pod = PodId::new(&request.pod_id)?;
        self.refuse_if_closing()?;
        let sandbox = self.namespaces.create_namespaces(request)?;
        self.complete(&pod, sandbox).await
    }

    /// Holds what was made and lets hooks look at it; if one does not want the pod,
    /// nothing of it is left.
    async fn complete(self: &Rc<Self>, pod: &PodId, sandbox: Sandbox) -> Result<Record, Error> {
        let is_new = sandbox.made.is_some();
        self.hooks.forget_sandboxes();
        let record = self.hold(pod, sandbox);
        if is_new && let Err(error) = self.hooks_after_sandbox(pod).await {
            for error in self.remove_sandbox(pod).await {
                ::log::error!("pod {pod} is not wanted, and something of it is left: {error}");
            }
            return Err(error);
        }
        Ok(record)
    }

    async fn remove_sandbox(&self, pod: &PodId) -> Vec<Error> {
        let init = self.inits.borrow().get(pod).cloned();
        if let Some(init) = init {
            self.end_init(pod, &init).await;
        }
        self.unpinned.borrow_mut().retain(|name, _| !name.starts_with(&format!("ns:{pod}/")));
        let removed = self.namespaces.remove(pod.as_str());
        self.hooks.forget_sandboxes();
        removed.err().into_iter().flatten().map(Error::from).collect()
    }

    /// All sandboxes, by pod id.
    ///
    /// # Errors
    /// If what is remembered of them cannot be read.
    pub fn list_sandboxes(&self) -> Result<Vec<Record>, Error> {
        Ok(self.namespaces.list()?)
    }

    /// What a pod's network namespace looks like from inside.
    ///
    /// # Errors
    /// If the pod has none, or it cannot be entered.
    pub fn network(&self, pod: &PodId) -> Result<Network, Error> {
        let none = || Error::NoNetwork(pod.to_string());
        let record = self.namespaces.get(pod.as_str())?.ok_or_else(none)?;
        let net = record.namespaces().iter().find(|made| made.kind == ns::Kind::Net).ok_or_else(none)?;
        if let Some(fd) = self.unpinned.borrow().get(&kept_name(pod, ns::Kind::Net)) {
            return Ok(ns::network::look(fd)?);
        }
        let path = net.path.clone().unwrap_or_else(|| "/proc/self/ns/net".into());
        let file = std::fs::File::open(&path)
            .map_err(|error| Error::io(format!("open the network namespace {}", path.display()), error))?;
        Ok(ns::network::look(&file)?)
    }

    /// The processes in the pid namespaces of the pods, by pod id.
    #[must_use]
    pub fn survey(&self) -> Vec<(PodId, u32, Vec<Process>)> {
        let inits = self.inits.borrow();
        let living = inits.iter().filter(|(_, init)| !init.has_exited());
        let surveyed = living.map(|(pod, init)| {
            // One that has just ended has no processes.
            (pod.clone(), init.pid(), survey::processes(init.pid()).unwrap_or_default())
        });
        surveyed.collect()
    }

    fn hold(self: &Rc<Self>, pod: &PodId, sandbox: Sandbox) -> Record {
        let Sandbox { record, made } = sandbox;
        let Some(set) = made else { return record };
        // Our child, and not collected: the pid is its.
        if let Some(init) = set.init.and_then(|init| self.reaper.adopt_own(init.pid).ok()) {
            self.follow_init(pod.clone(), init);
        }
        for made in set.namespaces.into_iter().filter(|made| made.created && made.path.is_none()) {
            let name = kept_name(pod, made.kind);
            if let Err(error) = self.keeper.send(&ToKeeper::Keep { name: &name, fd: made.fd.as_fd() }) {
                ::log::warn!("{name} would not survive a crash of this monitor: {error}");
            }
            self.unpinned.borrow_mut().insert(name, made.fd);
        }
        ::log::info!("pod {pod} has its namespaces");
        record
    }

    /// Follows a pod's init to its end, asked for or not, and tells it.
    fn follow_init(self: &Rc<Self>, pod: PodId, init: Child) {
        self.inits.borrow_mut().insert(pod.clone(), init.clone());
        // From behind the wall a runtime reaches console sockets by their own paths only.
        let console = self.sockets_dir().join(self.unique("console"));
        // Their number grows by some digits over the years.
        if console.as_os_str().len() + 8 > SOCKET_PATH_BYTES_MAX {
            ::log::warn!("PID 1 of pod {pod} is not walled off: the run directory's path is too long");
        } else if self.containers.borrow().is_empty() {
            self.runtime.wall_off();
        }
        let monitor = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let exit = init.exited().await;
            monitor.inits.borrow_mut().remove(&pod);
            let killed = monitor.killed.borrow_mut().remove(&pod).unwrap_or_default();
            let at_ns = exit.map_or_else(now_ns, |exit| exit.at_ns);
            let end = InitEnd { pod, cause: exit.into(), at_ns, killed };
            ::log::info!("a pod's init ended: {end:?}");
            monitor.events.add(None, Happening::InitEnded(end));
        });
    }

    /// Asks PID 1 to end its namespace in order: TERM, a grace time, KILL. What is
    /// there when our patience ends is noted, then SIGKILL, which the kernel passes
    /// on to all of the namespace.
    async fn end_init(&self, pod: &PodId, init: &Child) {
        for (signal, limit) in [(libc::SIGTERM, INIT_GRACE), (libc::SIGKILL, KILL_TIMEOUT)] {
            if let Err(error) = init.signal(signal) {
                ::log::error!("cannot signal the init of pod {pod}, process {}: {error}", init.pid());
            }
            if tokio::time::timeout(limit, init.exited()).await.is_ok() {
                return;
            }
            let left = survey::processes(init.pid()).unwrap_or_default();
            let left = left.into_iter().filter(|process| !process.zombie).collect();
            self.killed.borrow_mut().insert(pod.clone(), left);
        }
        ::log::error!("the init of pod {pod}, process {}, is still there after SIGKILL", init.pid());
    }

    /// Ends the pods' init processes and unpins what was pinned. Returns what could
    /// not be removed.
    pub(super) async fn remove_sandboxes(&self) -> Vec<Error> {
        let inits = self.inits.borrow().clone();
        for (pod, init) in &inits {
            self.end_init(pod, init).await;
        }
        self.unpinned.take();
        let records = match self.namespaces.list() {
            Ok(records) => records,
            Err(error) => return vec![error.into()],
        };
        let removed = records.iter().filter_map(|record| self.namespaces.remove(&record.request.name).err());
        removed.flatten().map(Error::from).collect()
    }

    /// Takes over the sandboxes of an earlier monitor.
    pub(super) fn resume_sandboxes(self: &Rc<Self>, kept: &mut Kept) {
        let records = self.namespaces.list().unwrap_or_else(|error| {
            ::log::error!("the pods' namespaces are not known any more: {error}");
            Vec::new()
        });
        for record in records {
            let Ok(pod) = PodId::new(&record.request.name) else { continue };
            for made in record.namespaces() {
                let name = kept_name(&pod, made.kind);
                if let Some(fd) = kept.fds.remove(&name) {
                    self.unpinned.borrow_mut().insert(name, fd);
                }
            }
            if let Some(init) = record.init().filter(ns::sandbox::InitRecord::is_alive) {
                let child = self.reaper.resume(init.pid, start_ticks(init.pid).unwrap_or(0), None);
                self.follow_init(pod, child);
            }
        }
    }
}

/// The name of a namespace that only the keeper's copy keeps alive. No container
/// id holds a `:`.
pub(super) fn kept_name(pod: &PodId, kind: ns::Kind) -> String {
    format!("ns:{pod}/{kind}")
}
