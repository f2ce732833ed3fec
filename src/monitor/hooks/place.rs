//! Where a hook runs: which namespaces it joins, and which cgroup its own is in.
//!
//! Never the host's by accident: a namespace that was asked for and cannot be had
//! is a failure of the hook. One that the container or the pod shares with the
//! host is the host's, and nothing has to be joined.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::below::Below;
use super::occasion::Occasion;
use crate::hook::{Cgroup, Hook};
use crate::monitor::Monitor;
use crate::monitor::container::Container;
use crate::monitor::id::PodId;
use crate::monitor::sandbox::kept_name;
use crate::ns::Kind;
use crate::ns::sandbox::Record;
use crate::sys::nsfs;

/// The kinds that are held for the hooks of a container that has ended. Not pid,
/// which is of no use without its PID 1; not mnt, which would keep file systems busy.
const HELD: [Kind; 5] = [Kind::Net, Kind::Ipc, Kind::Uts, Kind::User, Kind::Cgroup];

/// Pid namespaces may be nested this deep (pid_namespaces(7)).
const PID_DEPTH_MAX: usize = 32;

impl Monitor {
    /// The namespaces that `hook` joins, those of this process left out, a user
    /// namespace last.
    pub(super) fn namespaces_for(
        &self,
        hook: &Hook,
        occasion: &Occasion,
    ) -> Result<Vec<(Kind, OwnedFd)>, String> {
        let mut join = Vec::new();
        for kind in &hook.options.namespaces {
            let found = match &occasion.container {
                Some(container) if !container.child.has_exited() => of_process(container.child.pid(), *kind)
                    .map_err(|error| format!("cannot open the container's {kind} namespace: {error}"))?,
                Some(container) => self.of_ended(container, *kind, occasion.sandbox.as_ref())?,
                None => self.of_pod(*kind, occasion.sandbox.as_ref())?,
            };
            if let Some(namespace) = found {
                join.push((*kind, namespace));
            }
        }
        join.sort_by_key(|(kind, _)| *kind == Kind::User);
        Ok(join)
    }

    /// A namespace of a container that has ended.
    fn of_ended(
        &self,
        container: &Container,
        kind: Kind,
        pod: Option<&Record>,
    ) -> Result<Option<OwnedFd>, String> {
        let held = container.hooks.held.borrow();
        let held = held.as_ref().and_then(|held| held.iter().find(|(have, _)| *have == kind));
        match held {
            Some((_, None)) => Ok(None),
            Some((_, Some(namespace))) => {
                let copy = namespace.try_clone();
                copy.map(Some).map_err(|error| format!("cannot duplicate a descriptor: {error}"))
            }
            None if has(pod, kind) => self.of_pod(kind, pod),
            None => Err(format!(
                "the container has ended, and its {kind} namespace with it; leave {kind} out of `namespaces`"
            )),
        }
    }

    /// A namespace of the pod; `None` if it shares the host's.
    fn of_pod(&self, kind: Kind, pod: Option<&Record>) -> Result<Option<OwnedFd>, String> {
        let Some(record) = pod else { return Ok(None) };
        let Some(made) = record.namespaces().iter().find(|made| made.kind == kind) else { return Ok(None) };
        let opened = if let Some(path) = &made.path {
            crate::ns::make::open_pinned(kind, path).map_err(|error| error.to_string())?
        } else if made.created {
            let name = PodId::new(&record.request.name).map(|pod| kept_name(&pod, kind));
            let name = name.map_err(|error| error.to_string())?;
            let unpinned = self.unpinned.borrow();
            let held = unpinned.get(&name).ok_or_else(|| format!("the pod's {kind} namespace is gone"))?;
            held.try_clone().map_err(|error| format!("cannot duplicate a descriptor: {error}"))?
        } else {
            return Ok(None);
        };
        Ok((!is_own(&opened, kind)).then_some(opened))
    }

    /// Keeps what hooks may ask for when `container` has ended.
    pub(super) fn hold_namespaces(&self, container: &Container, kinds: &[Kind]) {
        let pid = container.child.pid();
        let mut held = Vec::new();
        for kind in kinds.iter().filter(|kind| HELD.contains(kind)) {
            match of_process(pid, *kind) {
                Ok(namespace) => held.push((*kind, namespace)),
                Err(error) => {
                    ::log::warn!("hooks of {} will not have its {kind} namespace: {error}", container.id);
                }
            }
        }
        container.hooks.held.replace(Some(held));
    }

    /// Where the cgroup of a hook is made.
    pub(super) fn below(&self, hook: &Hook, occasion: &Occasion) -> Option<Below> {
        let living = occasion.container.as_ref().filter(|container| !container.child.has_exited());
        let around = living
            .filter(|_| hook.options.cgroup == Cgroup::Pod)
            .and_then(|container| Below::around(container.child.pid(), &self.cgroup_mounts));
        around.or_else(|| Below::own(&self.cgroup_mounts))
    }
}

/// Whether the pod has a namespace of this kind of its own.
fn has(pod: Option<&Record>, kind: Kind) -> bool {
    let mut made = pod.into_iter().flat_map(Record::namespaces);
    made.any(|made| made.kind == kind && (made.created || made.path.is_some()))
}

/// A namespace of a process that has not been collected; `None` if it is ours.
fn of_process(pid: u32, kind: Kind) -> std::io::Result<Option<OwnedFd>> {
    let path = format!("/proc/{pid}/ns/{}", kind.name());
    let own = Path::new("/proc/self/ns").join(kind.name());
    if std::fs::metadata(&path)?.ino() == std::fs::metadata(own)?.ino() {
        return Ok(None);
    }
    File::open(path).map(|file| Some(file.into()))
}

fn is_own(namespace: &OwnedFd, kind: Kind) -> bool {
    let own = std::fs::metadata(Path::new("/proc/self/ns").join(kind.name())).map(|own| own.ino());
    let theirs = rustix::fs::fstat(namespace).map(|theirs| theirs.st_ino);
    matches!((own, theirs), (Ok(own), Ok(theirs)) if own == theirs)
}

/// The pid of process `pid` as the pid namespace among `joined` counts; our own
/// count if there is none. `None` if it cannot be seen from there.
pub(super) fn pid_seen(pid: u32, joined: &[(Kind, OwnedFd)]) -> Option<u32> {
    let Some((_, from)) = joined.iter().find(|(kind, _)| *kind == Kind::Pid) else { return Some(pid) };
    let from = rustix::fs::fstat(from).ok()?.st_ino;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // From our namespace inwards (proc(5)).
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let mut namespace: OwnedFd = File::open(format!("/proc/{pid}/ns/pid")).ok()?.into();
    for number in numbers.split_ascii_whitespace().rev().take(PID_DEPTH_MAX) {
        if rustix::fs::fstat(&namespace).ok()?.st_ino == from {
            return number.parse().ok();
        }
        namespace = nsfs::parent(&namespace).ok()?;
    }
    None
}
