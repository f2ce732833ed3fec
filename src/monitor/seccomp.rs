//! The pod's socket for seccomp listeners, and the way to the broker behind it.
//!
//! `seccomp.sock` in the run directory is what a profile's `listenerPath` names.
//! It is there from the start, but a pod without such a profile pays for it with
//! a descriptor only: the broker's thread starts with the first connection.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::net::SocketType;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::limits::SECCOMP_ARRIVALS_MAX;
use crate::monitor::Monitor;
use crate::monitor::config::Config;
use crate::monitor::create::remove_stale;
use crate::monitor::error::Error;
use crate::monitor::id::ContainerId;
use crate::seccomp::arrival::Door;
use crate::seccomp::thread::{Extension, StopRequest};
use crate::seccomp::{Broker, Handle, Options, start};
use crate::sys::socket;

/// The socket's name in the run directory.
pub const NAME: &str = "seccomp.sock";

/// What the pod has of seccomp.
pub struct Seccomp {
    run_dir: PathBuf,
    rules: Option<PathBuf>,
    running: RefCell<Option<Handle>>,
    /// What the broker will be given at its start.
    doors: RefCell<Vec<Door>>,
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
        wake.map_or(Ok(()), |wake| self.start_at(wake))
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

    /// Makes the socket `name` in the run directory, for listeners of any
    /// container or of one.
    fn open(self: &Rc<Self>, name: &str, container: Option<&ContainerId>) -> Result<PathBuf, Error> {
        let path = self.run_dir.join(name);
        // An earlier monitor's, which nobody serves any more: the directory is locked by us.
        remove_stale(&path)?;
        let fail = |source| Error::io(format!("make the socket {}", path.display()), source);
        let backlog = i32::try_from(SECCOMP_ARRIVALS_MAX).unwrap_or(i32::MAX);
        let listener = socket::listen(&path, SocketType::STREAM, backlog).map_err(fail)?;
        let container = container.map(ToString::to_string);
        if let Some(handle) = self.handle() {
            handle.tell(move |broker| broker.open(Door { listener, container }));
            return Ok(path);
        }
        let wake = listener.try_clone().map_err(fail)?;
        self.doors.borrow_mut().push(Door { listener, container });
        self.start_at(wake)?;
        Ok(path)
    }

    /// Starts the broker at the first connection to `socket`, which it accepts by itself.
    fn start_at(self: &Rc<Self>, socket: OwnedFd) -> Result<(), Error> {
        let fail = |source: io::Error| Error::io("wait for seccomp's sockets", source);
        let socket = AsyncFd::with_interest(socket, Interest::READABLE).map_err(fail)?;
        let seccomp = Rc::clone(self);
        tokio::task::spawn_local(async move {
            // An error means that the event loop is going down, and so are we.
            if socket.readable().await.is_ok()
                && let Err(error) = seccomp.started()
            {
                ::log::error!("{error}; seccomp notifications are not served");
            }
        });
        Ok(())
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
        self.seccomp.open(NAME, None).map(drop)
    }

    /// Makes a socket that takes listeners of container `id` only; its path.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn seccomp_socket(&self, id: &ContainerId) -> Result<PathBuf, Error> {
        self.refuse_if_closing()?;
        self.seccomp.open(&format!("sockets/{id}.seccomp"), Some(id))
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
