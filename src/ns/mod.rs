//! A pod's namespaces: made, set up, pinned, found, removed.
//!
//! ```text
//!            Request                              what is asked for, checked  (request, sysctl)
//!               │
//!            make ── a thread, or a process       new namespaces, set up inside   (make)
//!               │    where user or pid need one
//!            Pins ── bind mount, verify           below <base>/<kind>ns/<name>    (pin)
//!               │
//!              Set                                descriptors, inodes, owners, the pod's init
//! ```
//!
//! All or nothing: whatever fails, what was done before is undone, and the error
//! names the step. A namespace of the host is never returned for one that could
//! not be made: what was made is compared with the caller's own.
//!
//! Who makes them. A thread may unshare net, ipc, uts, cgroup, mnt and time for
//! itself, and takes a quarter of the time of a process (0.2 against 0.6 ms on
//! the machine where `benches/namespaces.rs` was first run: a fork copies the
//! monitor's page tables and makes it fault its pages in again). A user namespace
//! needs a process of its own, and a pid namespace a PID 1; that process then
//! also makes the others, because who makes a namespace owns what is in it.
//!
//! Pins are made from outside, by the caller, so that everyone who shares its
//! mounts sees them.
#![forbid(unsafe_code)]

mod error;
pub mod gc;
pub mod inspect;
mod kind;
pub(crate) mod make;
pub mod network;
mod order;
mod pin;
pub mod pinns;
mod request;
pub mod sandbox;
pub mod sysctl;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use error::{Class, Error};
pub use kind::Kind;
pub use request::{IdMapping, Placement, Request, Source};

use make::{Environment, InitImage};
use pin::Pins;

/// A namespace of a pod.
#[derive(Debug)]
pub struct Made {
    /// Its kind.
    pub kind: Kind,
    /// Where it is pinned; `None` if it is the host's or held by descriptor only.
    pub path: Option<PathBuf>,
    /// Its number, which `/proc/<pid>/ns` shows.
    pub inode: u64,
    /// The user namespace that owns it; 0 if that is not visible from here, as
    /// is the parent of the first user namespace.
    pub owner_inode: u64,
    /// It was made for this pod.
    pub created: bool,
    /// Keeps it alive whatever happens to the pin.
    pub fd: OwnedFd,
}

/// PID 1 of the pod's pid namespace; a child of the caller, which must reap it.
#[derive(Debug)]
pub struct PodInit {
    /// Its pid as the caller sees it.
    pub pid: u32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// A pod's namespaces, in the order of the request.
#[derive(Debug)]
pub struct Set {
    /// Each kind of the request.
    pub namespaces: Vec<Made>,
    /// If a pid namespace was made. The namespace lives as long as this process.
    pub init: Option<PodInit>,
}

/// Makes, takes and pins what `request` says. It blocks for about a millisecond
/// and may be called from any thread of any process.
///
/// # Errors
/// See [`Error`]; nothing is left then.
pub fn create(request: &Request) -> Result<Set, Error> {
    create_in(request, &Environment::SANDBOX, |_| Ok(()))
}

/// [`create`], with the differences between the callers. `before_keeping` is called
/// when all is made, with the pid of the process that is about to become the
/// pod's init and the number of its pid namespace; if it fails, all is undone.
pub(crate) fn create_in(
    request: &Request,
    environment: &Environment,
    before_keeping: impl FnOnce(Option<(u32, u64)>) -> Result<(), Error>,
) -> Result<Set, Error> {
    let sysctls = request.check()?;
    let making = make::make(request, sysctls, environment)?;
    let make::Making { found, process } = making;
    let process = process.filter(|_| request.creates(Kind::Pid));
    let mut pins = Pins::new(&request.name);
    let made = pin_all(request, environment, found, &mut pins).and_then(|namespaces| {
        let pid_namespace = namespaces.iter().find(|made| made.kind == Kind::Pid);
        before_keeping(
            process.as_ref().zip(pid_namespace).map(|(process, made)| (process.pid(), made.inode)),
        )?;
        // The last step, after which nothing can fail: no init is left without its pins.
        let init = process.map(make::start_init).transpose()?;
        Ok(Set { namespaces, init })
    });
    match made {
        Ok(set) => {
            pins.keep();
            Ok(set)
        }
        Err(error) => Err(error.with_left(pins.undo())),
    }
}

fn pin_all(
    request: &Request,
    environment: &Environment,
    found: Vec<Made>,
    pins: &mut Pins,
) -> Result<Vec<Made>, Error> {
    let mut namespaces = found;
    if request.placement == Placement::DescriptorOnly {
        return Ok(namespaces);
    }
    pins.open_base(&request.base, environment.base)?;
    for kind in Kind::ALL {
        let Some(made) = namespaces.iter_mut().find(|made| made.kind == kind) else { continue };
        let host = request.namespaces.contains(&(kind, Source::Host));
        if made.created || (host && environment.hosts == make::Hosts::Pinned) {
            made.path = Some(pins.pin(kind, &made.fd, made.inode)?);
        }
    }
    Ok(namespaces)
}

/// Unpins the namespaces of the pod `name` below `base`. It can be repeated, and
/// finishes what a crash left half done. Empty `<kind>ns` directories stay: other
/// pods may be about to use them.
///
/// # Errors
/// All that could not be removed; the rest has been.
pub fn remove(base: &Path, name: &str) -> Result<(), Vec<Error>> {
    pin::remove(base, name)
}

impl Environment {
    /// An engine that asks over RPC.
    pub(crate) const SANDBOX: Self = Self {
        hosts: make::Hosts::Unpinned,
        set_up: make::SetUp::Pod,
        place: make::Place::Thread,
        base: pin::Parents::Make,
        init: InitImage(crate::init::image),
    };
}
