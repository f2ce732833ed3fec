//! Plugins that listen: every socket in one directory is dialled by every pod, so
//! that one plugin serves a node. A plugin that is not there, or goes away, is
//! dialled again, at once when its socket changes and else less and less often.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::net::SocketType;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::client::network;
use super::host::{Host, Shared};
use crate::limits::{PLUGIN_ATTACH_TIMEOUT, PLUGIN_REDIAL_MAX, PLUGIN_REDIAL_MIN, PLUGIN_SOCKETS_MAX};
use crate::rpc::schema::plugin_capnp as wire;
use crate::rpc::server::check_peer;
use crate::sys::socket;

/// Where plugins listen, unless the command line says otherwise.
pub const DIRECTORY: &str = "/run/podinit/plugins.d";

/// Sockets that are dialled, and how to wake the task that waits to dial again.
type Dialled = Rc<RefCell<BTreeMap<OsString, Rc<Notify>>>>;

/// Dials what is in `directory`, and what comes, for ever.
pub(super) async fn watch(shared: Rc<Shared>, directory: PathBuf) {
    let dialled = Dialled::default();
    loop {
        if let Err(error) = follow(&shared, &directory, &dialled).await {
            ::log::debug!("the plugins in {} are not followed: {error}", directory.display());
        }
        // It is not there, or was removed. A plugin makes it when it is installed.
        sleep(PLUGIN_REDIAL_MAX).await;
    }
}

async fn follow(shared: &Rc<Shared>, directory: &Path, dialled: &Dialled) -> io::Result<()> {
    check_owner(directory)?;
    let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&changes, directory, what)?;
    let changes = AsyncFd::with_interest(changes, Interest::READABLE)?;
    loop {
        dial_all(shared, directory, dialled)?;
        let mut ready = changes.readable().await?;
        if let Ok(read) = ready.try_io(|changes| read_all(changes.get_ref())) {
            read?;
        }
    }
}

/// Whoever can write there can decide about every pod of the node.
fn check_owner(directory: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(directory)?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return Err(io::Error::other("it is not a directory"));
    }
    if (found.uid() != 0 && found.uid() != own) || found.mode() & 0o022 != 0 {
        ::log::warn!(
            "plugins in {} are not dialled: others than root and user {own} can write there",
            directory.display()
        );
        return Err(io::Error::other("others can write there"));
    }
    Ok(())
}

/// Takes what has been told; that something was is all that counts.
fn read_all(changes: &OwnedFd) -> io::Result<()> {
    // Room for the longest name (inotify(7)).
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut events = inotify::Reader::new(changes, &mut buffer);
    let mut event = events.next()?;
    loop {
        if event.events().contains(inotify::ReadFlags::IGNORED) {
            return Err(io::Error::other("it was removed"));
        }
        event = match events.next() {
            Ok(event) => event,
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
    }
}

/// Starts to dial every socket that is not dialled yet, and has the others that
/// wait do it now.
fn dial_all(shared: &Rc<Shared>, directory: &Path, dialled: &Dialled) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            continue;
        }
        let name = entry.file_name();
        let mut known = dialled.borrow_mut();
        if let Some(wake) = known.get(&name) {
            wake.notify_one();
            continue;
        }
        if known.len() >= PLUGIN_SOCKETS_MAX {
            ::log::warn!(
                "{} has more than {PLUGIN_SOCKETS_MAX} sockets; {} is not dialled",
                directory.display(),
                name.display()
            );
            continue;
        }
        let wake = Rc::new(Notify::new());
        known.insert(name.clone(), Rc::clone(&wake));
        let (shared, dialled, path) = (Rc::clone(shared), Rc::clone(dialled), directory.join(&name));
        tokio::task::spawn_local(async move {
            keep_dialling(&shared, &path, &wake).await;
            dialled.borrow_mut().remove(&name);
        });
    }
    Ok(())
}

/// Dials until there is no such socket any more.
async fn keep_dialling(shared: &Rc<Shared>, path: &Path, wake: &Notify) {
    let mut pause = PLUGIN_REDIAL_MIN;
    loop {
        match dial(shared, path).await {
            Ok(()) => pause = PLUGIN_REDIAL_MIN,
            Err(error) => ::log::info!("plugin {}: {error}", path.display()),
        }
        if !path.exists() {
            return;
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(PLUGIN_REDIAL_MAX),
            () = wake.notified() => {}
        }
    }
}

/// One conversation with a plugin. `Ok` if there was one.
async fn dial(shared: &Rc<Shared>, path: &Path) -> Result<(), String> {
    let stream = connect(path).map_err(|error| format!("cannot be reached: {error}"))?;
    check_peer(&stream)?;
    let network = network(stream, Side::Client).map_err(|error| format!("cannot be spoken to: {error}"))?;
    let mut system = RpcSystem::new(network, None);
    let program: wire::plugin_program::Client = system.bootstrap(Side::Server);
    let host: wire::plugin_host::Client = capnp_rpc::new_client(Host::new(Rc::clone(shared)));
    let mut request = program.attach_request();
    request.get().set_host(host);
    let attached = timeout(PLUGIN_ATTACH_TIMEOUT, request.send().promise);
    let mut system = std::pin::pin!(system);
    tokio::select! {
        biased;
        attached = attached => match attached {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("refused the pod: {error}")),
            Err(_) => return Err(format!("did not answer in {} s", PLUGIN_ATTACH_TIMEOUT.as_secs())),
        },
        ended = &mut system => {
            return Err(ended.map_or_else(|error| error.to_string(), |()| "closed the connection".into()));
        }
    }
    if let Err(error) = system.await {
        ::log::debug!("plugin {} is gone: {error}", path.display());
    }
    Ok(())
}

/// Connects without waiting: a plugin that does not accept is as one that is not there.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket::connect_now(path, SocketType::STREAM)?;
    UnixStream::from_std(socket.into())
}
