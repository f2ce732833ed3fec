//! What a plugin finds: it can be registered with, and that is all.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::AbortHandle;

use super::descriptors::{Owner, Tickets};
use super::remote::{Remote, RemotePlugin};
use super::translate::{self, Asked};
use super::watch::{Wanted, Watch};
use crate::limits::{PLUGIN_ATTACH_TIMEOUT, PLUGIN_GATHERED_BYTES_MAX, PLUGIN_REGISTRATIONS_MAX};
use crate::monitor::error::Error;
use crate::rpc::convert::refuse;
use crate::rpc::schema::plugin_capnp as wire;
use crate::seccomp::Broker;
use crate::seccomp::broker::{Change, RegisterError, Registered};

/// What all plugins of a pod share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) broker: Rc<Broker>,
    pub(super) tickets: Rc<Tickets>,
    pub(super) run_dir: PathBuf,
    /// Where descriptors change hands; `None` if that socket could not be made.
    pub(super) descriptor_socket: Option<PathBuf>,
    pub(super) registrations: Cell<u64>,
}

/// The `PluginHost` of one connection.
#[derive(Debug)]
pub(super) struct Host {
    shared: Rc<Shared>,
    /// Registrations of this connection now.
    count: Rc<Cell<usize>>,
}

impl Host {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self { shared, count: Rc::default() }
    }
}

/// One of a connection's registrations.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(count: &Rc<Cell<usize>>) -> Result<Self, capnp::Error> {
        if count.get() >= PLUGIN_REGISTRATIONS_MAX {
            let most = PLUGIN_REGISTRATIONS_MAX;
            return Err(exhausted(&format!("at most {most} registrations are taken over one connection")));
        }
        count.set(count.get() + 1);
        Ok(Self(Rc::clone(count)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Ends a task.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A registration: it ends when this is dropped, which the end of the connection does.
struct Registration {
    remote: Rc<Remote>,
    tickets: Rc<Tickets>,
    owner: Owner,
    _registered: Option<Registered>,
    _tasks: Vec<Task>,
    _place: Place,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.tickets.close(self.owner);
    }
}

impl wire::registration::Server for Registration {
    async fn answer(
        self: Rc<Self>,
        params: wire::registration::AnswerParams,
        mut results: wire::registration::AnswerResults,
    ) -> Result<(), capnp::Error> {
        let mut stale = 0;
        for answer in params.get()?.get_answers()? {
            let session = crate::seccomp::notification::SessionId(answer.get_session());
            if !self.remote.answer((session, answer.get_id()), answer.get_verdict()?) {
                stale += 1;
            }
        }
        results.get().set_stale(stale);
        Ok(())
    }
}

pub(super) fn exhausted(sentence: &str) -> capnp::Error {
    capnp::Error::overloaded(format!("resource-exhausted: {sentence}"))
}

/// Why the broker did not take a registration.
pub(in crate::rpc) fn refused(error: &RegisterError) -> capnp::Error {
    match error {
        RegisterError::Selector { .. } => refuse(&Error::Invalid(error.to_string())),
        _ => exhausted(&error.to_string()),
    }
}

impl wire::plugin_host::Server for Host {
    async fn register(
        self: Rc<Self>,
        params: wire::plugin_host::RegisterParams,
        mut results: wire::plugin_host::RegisterResults,
    ) -> Result<(), capnp::Error> {
        let place = Place::take(&self.count)?;
        let params = params.get()?;
        let asked = translate::request(params.get_request()?).map_err(|error| refuse(&error))?;
        let registration = self.shared.register(asked, params.get_plugin()?, place).await?;
        results.get().set_registration(capnp_rpc::new_client(registration));
        Ok(())
    }
}

impl Shared {
    async fn register(
        self: &Rc<Self>,
        asked: Asked,
        plugin: wire::seccomp_plugin::Client,
        place: Place,
    ) -> Result<Registration, capnp::Error> {
        let Asked { registration, terms, is_observer } = asked;
        self.registrations.set(self.registrations.get() + 1);
        let wanted = Wanted { decode: terms.decode, reads: terms.reads.clone() };
        let broker = Rc::clone(&self.broker);
        let sessions = Box::new(move || broker.sessions());
        let number = self.registrations.get();
        let remote = Remote::new(number, plugin.clone(), terms, Rc::clone(&self.tickets), sessions);
        // Told of changes from before it is told of what there is, so that nothing falls in between.
        let mut tasks = vec![self.follow(&remote)];
        let synchronised = tokio::time::timeout(PLUGIN_ATTACH_TIMEOUT, self.synchronise(&remote, &plugin));
        synchronised.await.unwrap_or_else(|_| {
            let seconds = PLUGIN_ATTACH_TIMEOUT.as_secs();
            Err(capnp::Error::failed(format!("timeout: the plugin did not synchronise in {seconds} s")))
        })?;
        let name = registration.name.clone();
        let registered = if is_observer {
            let watch = Watch::begin(&self.broker, &name, registration.selector, wanted);
            tasks.push(observe(watch.map_err(|error| refused(&error))?, plugin));
            None
        } else {
            let plugin = Rc::new(RemotePlugin(Rc::clone(&remote)));
            Some(self.broker.register(registration, plugin).map_err(|error| refused(&error))?)
        };
        ::log::info!("seccomp plugin {name} has registered");
        Ok(Registration {
            owner: remote.owner(),
            remote,
            tickets: Rc::clone(&self.tickets),
            _registered: registered,
            _tasks: tasks,
            _place: place,
        })
    }

    async fn synchronise(
        &self,
        remote: &Rc<Remote>,
        plugin: &wire::seccomp_plugin::Client,
    ) -> Result<(), capnp::Error> {
        let mut request = plugin.synchronise_request();
        let mut host = request.get().init_host();
        host.set_pod_id(&*self.run_dir.file_name().unwrap_or_default().to_string_lossy());
        host.set_run_directory(&*self.run_dir.to_string_lossy());
        if let Some(path) = &self.descriptor_socket {
            host.set_descriptor_socket(&*path.to_string_lossy());
        }
        host.set_monitor_pid(std::process::id());
        host.set_version(env!("CARGO_PKG_VERSION"));
        let mut sessions = self.broker.sessions();
        let mut bytes = 0;
        let fitting = sessions.iter().take_while(|session| {
            bytes += translate::session_bytes(session);
            bytes <= PLUGIN_GATHERED_BYTES_MAX
        });
        sessions.truncate(fitting.count());
        let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
        let mut list = request.get().init_sessions(count);
        for (index, session) in (0..count).zip(&sessions) {
            remote.describe(list.reborrow().get(index), session);
        }
        request.send().promise.await?;
        // The others, each in a message of its own.
        remote.compare();
        Ok(())
    }

    /// Passes on which sessions come and go.
    fn follow(&self, remote: &Rc<Remote>) -> Task {
        let mut changes = self.broker.changes();
        let remote = Rc::clone(remote);
        let task = tokio::task::spawn_local(async move {
            loop {
                match changes.recv().await {
                    Ok(Change::Began(session)) => remote.opened(&session),
                    Ok(Change::Ended(session)) => remote.closed(session),
                    Err(RecvError::Lagged(_)) => remote.compare(),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Task(task.abort_handle())
    }
}

/// Sends an observer what it wants to see.
fn observe(mut watch: Watch, plugin: wire::seccomp_plugin::Client) -> Task {
    let task = tokio::task::spawn_local(async move {
        while let Some(seen) = watch.next().await {
            let mut request = plugin.observe_request();
            request.get().set_lost(seen.lost);
            seen.fill(request.get().init_records(seen.count()));
            if let Err(error) = request.send().promise.await {
                ::log::debug!("an observer is gone: {error}");
                return;
            }
        }
    });
    Task(task.abort_handle())
}
