//! The pod's socket for seccomp listeners, and the way to the broker behind it.
//!
//! `seccomp.sock` in the run directory is what a profile's `listenerPath` names.
//! It is there from the start, but a pod without such a profile pays for it with
//! a descriptor only: the broker's thread starts with the first connection.
//!
//! An engine that wants to be sure whose listener it is names another path in the
//! profile: `seccomp/<container id>.sock` below the run directory. That socket is
//! made for the create and takes listeners of that container only.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::net::SocketType;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::limits::{CONFIG_BYTES_MAX, SECCOMP_ARRIVALS_MAX};
use crate::monitor::config::Config;
use crate::monitor::create::remove_stale;
use crate::monitor::error::Error;
use crate::monitor::id::ContainerId;
use crate::monitor::{Monitor, make_private_dir};
use crate::seccomp::arrival::Door;
use crate::seccomp::thread::{Extension, StopRequest};
use crate::seccomp::{Broker, Handle, Options, start};
use crate::sys::socket;

/// The socket's name in the run directory.
pub const NAME: &str = "seccomp.sock";

/// The directory of containers' own sockets.
pub(super) const DIRECTORY: &str = "seccomp";

/// Name of the socket that plugins of other processes dial, in the same place.
pub const PLUGINS_NAME: &str = "plugins.sock";

/// Name of the socket on which descriptors change hands with them.
pub const DESCRIPTORS_NAME: &str = "plugins-fd.sock";

/// What the pod has of seccomp.
pub struct Seccomp {
    run_dir: PathBuf,
    rules: Option<PathBuf>,
    running: RefCell<Option<Handle>>,
    /// What the broker will be given at its start.
    doors: RefCell<Vec<Door>>,
    /// Who waits for the first connection to a container's own socket.
    waiting: RefCell<HashMap<ContainerId, AbortHandle>>,
    extensions: RefCell<Vec<Extension>>,
    stops: RefCell<Option<mpsc::UnboundedSender<StopRequest>>>,
}

impl std::fmt::Debug for Seccomp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seccomp").field("running", &self.running.borrow().is_some()).finish_non_exhaustive()
    }
}

impl Seccomp {
    pub(super) fn new(config: &Config) -> Rc<Self> {
        Rc::new(Self {
            run_dir: config.run_dir.clone(),
            rules: config.seccomp_rules.clone(),
            running: RefCell::default(),
            doors: RefCell::default(),
            waiting: RefCell::default(),
            extensions: RefCell::default(),
            stops: RefCell::default(),
        })
    }

    /// Plugs something into the broker when it starts, or now if it has. A
    /// connection to `wake`, a listening socket, starts it.
    ///
    /// # Errors
    /// If the socket cannot be watched.
    pub fn extend(self: &Rc<Self>, wake: Option<OwnedFd>, extension: Extension) -> Result<(), Error> {
        if let Some(handle) = self.handle() {
            handle.tell(move |broker| extension(Rc::clone(broker)));
            return Ok(());
        }
        self.extensions.borrow_mut().push(extension);
        wake.map_or(Ok(()), |wake| self.start_at(wake).map(drop))
    }

    /// The way to the broker, if it runs.
    #[must_use]
    pub fn handle(&self) -> Option<Handle> {
        self.running.borrow().clone()
    }

    /// The way to the broker, which is started if it does not run.
    ///
    /// # Errors
    /// If there can be no other thread.
    pub fn started(&self) -> Result<Handle, Error> {
        if let Some(handle) = self.handle() {
            return Ok(handle);
        }
        let Some(stops) = self.stops.borrow().clone() else {
            return Err(Error::Internal("seccomp is not served yet"));
        };
        let pod = self.run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let options = Options { pod, doors: self.doors.take(), rules: self.rules.clone(), stops };
        let extensions = self.extensions.take();
        let extend = move |broker: Rc<Broker>| {
            for extension in extensions {
                extension(Rc::clone(&broker));
            }
        };
        let handle = start(options, Box::new(extend))
            .map_err(|error| Error::io("start the thread of seccomp's broker", error))?;
        ::log::info!("seccomp's broker has started");
        Ok(self.running.borrow_mut().insert(handle).clone())
    }

    /// Makes the socket at `path`, for listeners of any container or of one.
    fn open(self: &Rc<Self>, path: &Path, container: Option<&ContainerId>) -> Result<(), Error> {
        // An earlier monitor's, which nobody serves any more: the directory is locked by us.
        remove_stale(path)?;
        let fail = |source| Error::io(format!("make the socket {}", path.display()), source);
        let backlog = i32::try_from(SECCOMP_ARRIVALS_MAX).unwrap_or(i32::MAX);
        let listener = socket::listen(path, SocketType::STREAM, backlog).map_err(fail)?;
        let door = |listener| Door { listener, container: container.map(ToString::to_string) };
        if let Some(handle) = self.handle() {
            let door = door(listener);
            handle.tell(move |broker| broker.open(door));
            return Ok(());
        }
        let wake = listener.try_clone().map_err(fail)?;
        self.doors.borrow_mut().push(door(listener));
        let waiting = self.start_at(wake)?;
        if let Some(container) = container {
            self.waiting.borrow_mut().insert(container.clone(), waiting);
        }
        Ok(())
    }

    fn socket_of(&self, id: &ContainerId) -> PathBuf {
        self.run_dir.join(DIRECTORY).join(format!("{id}.sock"))
    }

    /// Makes the socket of container `id`, if the profile in `bundle` names it.
    ///
    /// # Errors
    /// If it cannot be made. What is wrong with the bundle the OCI runtime says.
    pub(super) fn open_for(self: &Rc<Self>, id: &ContainerId, bundle: &Path) -> Result<(), Error> {
        let path = self.socket_of(id);
        if listener_path(bundle).as_ref() != Some(&path) {
            return Ok(());
        }
        make_private_dir(&self.run_dir.join(DIRECTORY))?;
        self.open(&path, Some(id))
    }

    /// Removes the socket of container `id`, if it has one.
    pub(super) fn close(&self, id: &ContainerId) {
        let path = self.socket_of(id);
        if !path.exists() {
            return;
        }
        if let Err(error) = remove_stale(&path) {
            ::log::warn!("{error}");
        }
        if let Some(waiting) = self.waiting.borrow_mut().remove(id) {
            waiting.abort();
        }
        let container = id.to_string();
        self.doors.borrow_mut().retain(|door| door.container.as_ref() != Some(&container));
        if let Some(handle) = self.handle() {
            handle.tell(move |broker| broker.close(&container));
        }
    }

    /// Starts the broker at the first connection to `socket`, which it accepts by itself.
    fn start_at(self: &Rc<Self>, socket: OwnedFd) -> Result<AbortHandle, Error> {
        let fail = |source: io::Error| Error::io("wait for seccomp's sockets", source);
        let socket = AsyncFd::with_interest(socket, Interest::READABLE).map_err(fail)?;
        let seccomp = Rc::clone(self);
        let waiting = tokio::task::spawn_local(async move {
            // An error means that the event loop is going down, and so are we.
            if socket.readable().await.is_ok()
                && let Err(error) = seccomp.started()
            {
                ::log::error!("{error}; seccomp notifications are not served");
            }
        });
        Ok(waiting.abort_handle())
    }
}

impl Monitor {
    /// Makes the pod's socket for listeners, and ends containers when rules say so.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn serve_seccomp(self: &Rc<Self>) -> Result<(), Error> {
        let (stops, mut requests) = mpsc::unbounded_channel();
        self.seccomp.stops.replace(Some(stops));
        let monitor = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while let Some(request) = requests.recv().await {
                tokio::task::spawn_local(Rc::clone(&monitor).stop_for_seccomp(request));
            }
        });
        self.seccomp.open(&self.config.run_dir.join(NAME), None)
    }

    async fn stop_for_seccomp(self: Rc<Self>, request: StopRequest) {
        let StopRequest { container, reason } = request;
        ::log::warn!("ending container {container}: {reason}");
        let stopped = async {
            let id = ContainerId::new(&container)?;
            let signal = u8::try_from(libc::SIGKILL).unwrap_or(9);
            self.stop(&id, signal, std::time::Duration::ZERO).await
        };
        if let Err(error) = stopped.await {
            ::log::error!("container {container} was not ended: {error}");
        }
    }
}

/// The `listenerPath` of a bundle's profile (runtime-spec, config-linux.md).
fn listener_path(bundle: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Config {
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Linux {
        seccomp: Option<Profile>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Profile {
        listener_path: Option<PathBuf>,
    }
    let path = bundle.join("config.json");
    if std::fs::metadata(&path).ok()?.len() > CONFIG_BYTES_MAX {
        return None;
    }
    let text = std::fs::read(path).ok()?;
    // Most bundles have none, and this is a hundred times faster than to read it all.
    memchr::memmem::find(&text, b"listenerPath")?;
    serde_json::from_slice::<Config>(&text).ok()?.linux?.seccomp?.listener_path
}
