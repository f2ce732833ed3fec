//! The monitor's process: started by the keeper, with the listening socket at
//! descriptor 3, the link to the keeper at 4 and the run directory's lock at 5.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

use crate::cli::complain;
use crate::cli::serve::handover::monitor_config;
use crate::keeper::{Link, LinkError, ToKeeper, ToMonitor};
use crate::monitor::Monitor;
use crate::monitor::config::Config;
use crate::monitor::error::Error;
use crate::monitor::saved::Kept;
use crate::rpc::hooks::serve_registry;
use crate::rpc::plugin;
use crate::rpc::server::Server;
use crate::sys::fd::take_inherited;

/// What the keeper passed.
struct Inherited {
    listener: OwnedFd,
    link: Rc<Link>,
    /// Held, so that the directory stays locked while either process lives.
    _lock: OwnedFd,
}

/// Monitors the pod until it is shut down.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    crate::sys::heap::keep_small();
    let config = match monitor_config(arguments) {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    let take = || Ok::<_, io::Error>((take_inherited(3)?, take_inherited(4)?, take_inherited(5)?));
    let Ok((listener, link, lock)) = take() else {
        complain(&io::Error::other("the monitor is started by the keeper; use `podinit serve`"));
        return ExitCode::FAILURE;
    };
    let inherited = Inherited { listener, link: Rc::new(Link::new(link)), _lock: lock };
    match start(config, &inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let sentence = format!("{error}");
            if let Err(error) = inherited.link.send(&ToKeeper::Failed(&sentence)) {
                complain(&io::Error::other(format!("{sentence} (and the keeper cannot be told: {error})")));
            }
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config, inherited: &Inherited) -> Result<(), Error> {
    crate::monitor::report::start(config.log_level, config.log_sink);
    // Before any thread exists, so that the relay's has the same mask.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|error| Error::io("block signals", error))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| Error::io("become the reaper of the containers' orphans", error))?;
    raise_descriptor_limit();
    let runtime =
        tokio::runtime::LocalRuntime::new().map_err(|error| Error::io("start the event loop", error))?;
    runtime.block_on(serve(config, inherited, &signals))
}

async fn serve(config: Config, inherited: &Inherited, signals: &SigSet) -> Result<(), Error> {
    let fail = |doing: &'static str| move |error| Error::io(doing, error);
    let signals = SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| Error::io("read signals", error))?;
    let signals = AsyncFd::with_interest(signals, Interest::READABLE).map_err(fail("wait for signals"))?;
    let link = AsyncFd::with_interest(Rc::clone(&inherited.link), Interest::READABLE)
        .map_err(fail("wait for the keeper"))?;

    let greeting = greeting(&link).await;
    let (keeper_pid, kept) =
        greeting.map_err(|error| Error::io("hear the keeper out", io::Error::other(error)))?;
    let monitor = Monitor::new(config, Rc::clone(&inherited.link), keeper_pid)?;
    monitor.take_over(kept);

    if let Some(endpoint) = &monitor.config.tracing {
        crate::rpc::trace::start(endpoint);
    }
    let listener = inherited.listener.try_clone().map_err(fail("duplicate the listening socket"))?;
    let listener = UnixListener::from_std(listener.into()).map_err(fail("listen"))?;
    // Read before the first request, which they may be for.
    tokio::task::spawn_local(monitor.watch_directories());
    if monitor.config.hooks_socket {
        tokio::task::spawn_local(serve_registry(&monitor)?);
    }
    let server = Server::new(Rc::clone(&monitor));
    tokio::task::spawn_local(Rc::clone(&server).serve(listener));
    serve_plugins(&monitor)?;
    monitor.serve_seccomp()?;
    inherited
        .link
        .send(&ToKeeper::Ready)
        .map_err(|error| Error::io("tell the keeper that all is ready", io::Error::other(error)))?;
    ::log::info!("serving the pod in {}", monitor.config.run_dir.display());

    tokio::select! {
        () = obey_signals(&monitor, &signals) => {}
        () = hear_keeper(&monitor, &link) => {}
        () = monitor.ended() => {}
    }
    server.close().await;
    crate::rpc::trace::finish().await;
    if let Err(error) = inherited.link.send(&ToKeeper::Goodbye) {
        ::log::warn!("cannot say goodbye to the keeper: {error}");
    }
    Ok(())
}

/// Lets plugins of other processes decide about seccomp notifications.
fn serve_plugins(monitor: &Monitor) -> Result<(), Error> {
    let fail = |error| Error::io("make the plugin socket", error);
    let config = &monitor.config;
    let listener = plugin::bind(&config.run_dir).map_err(fail)?;
    let wake = listener.try_clone().map_err(fail)?;
    let extension = plugin::extension(config.run_dir.clone(), listener, config.plugin_dir.clone());
    monitor.seccomp.extend(Some(wake), extension)
}

/// Hears what the keeper has kept from earlier monitors.
async fn greeting(link: &AsyncFd<Rc<Link>>) -> Result<(u32, Kept), LinkError> {
    let (mut keeper, mut kept) = (0, Kept::default());
    loop {
        match next_message(link).await? {
            ToMonitor::Hello { restarts, keeper_pid } => (keeper, kept.restarts) = (keeper_pid, restarts),
            ToMonitor::Kept { name, fd } => drop(kept.fds.insert(name, fd)),
            ToMonitor::Exited(exit) => kept.exits.push(exit),
            ToMonitor::HelloDone => return Ok((keeper, kept)),
            other => ::log::debug!("the keeper said {other:?} in its greeting"),
        }
    }
}

async fn next_message(link: &AsyncFd<Rc<Link>>) -> Result<ToMonitor, LinkError> {
    loop {
        // Readiness fails only when the event loop is going down, and so are we.
        let Ok(mut ready) = link.readable().await else { return Err(LinkError::Closed) };
        match link.get_ref().receive()? {
            Some(message) => return Ok(message),
            None => ready.clear_ready(),
        }
    }
}

async fn obey_signals(monitor: &Rc<Monitor>, signals: &AsyncFd<SignalFd>) {
    loop {
        // Statuses may have come before the first SIGCHLD was awaited.
        if let Err(error) = monitor.reaper.collect() {
            ::log::error!("cannot collect children: {error}");
        }
        let Ok(mut ready) = signals.readable().await else { return };
        while let Ok(Some(signal)) = signals.get_ref().read_signal() {
            if i32::try_from(signal.ssi_signo).is_ok_and(|n| n == libc::SIGTERM || n == libc::SIGINT) {
                monitor.terminate();
            }
        }
        ready.clear_ready();
    }
}

async fn hear_keeper(monitor: &Rc<Monitor>, link: &AsyncFd<Rc<Link>>) {
    loop {
        match next_message(link).await {
            Ok(ToMonitor::Exited(exit)) => {
                // Of a container it is seen when it has been recorded; of anything else, now.
                if !monitor.reaper.deliver(exit)
                    && let Err(error) = link.get_ref().send(&ToKeeper::Seen { pid: exit.pid })
                {
                    ::log::warn!("cannot tell the keeper that a status has arrived: {error}");
                }
            }
            Ok(ToMonitor::Terminate) => monitor.terminate(),
            Ok(ToMonitor::Refused { name }) => {
                ::log::warn!("the keeper is full: {name} would not survive a crash of this monitor");
            }
            Ok(other) => ::log::debug!("the keeper said {other:?}"),
            Err(LinkError::Closed) => {
                ::log::error!("the keeper is gone; serving on until the pod is shut down");
                monitor.keeper_is_gone();
                return std::future::pending().await;
            }
            Err(error) => ::log::error!("cannot understand the keeper: {error}"),
        }
    }
}

/// A pod needs a handful of descriptors per container; the soft limit is often
/// 1024. Without the right to raise it we go on with what there is.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        ::log::warn!("cannot raise the limit of open files: {error}");
    }
}
