//! The library for plugins in Rust: connect, decide, and reach into the process
//! that waits.
//!
//! ```no_run
//! use podinit::rpc::plugin::client::{Call, Plugin, Request, Verdict, dial_in, run};
//!
//! struct NoMkdir;
//!
//! impl Plugin for NoMkdir {
//!     async fn decide(&self, call: Call) -> Verdict {
//!         println!("{} wants to make a directory", call.notification.container);
//!         Verdict::Errno(13)
//!     }
//! }
//!
//! # fn main() -> Result<(), podinit::rpc::client::Error> {
//! let request = Request::new("no-mkdir", &["mkdir", "mkdirat"]);
//! run(async { dial_in("/run/podinit/pods/p/plugins.sock".as_ref(), request, NoMkdir).await?.ended().await })
//! # }
//! ```
//!
//! A plugin lives on one thread, in a tokio `LocalRuntime`, which [`run`] makes.

mod convert;
mod descriptors;
mod target;
mod types;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;

use capnp::message::ReaderOptions;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side, twoparty};
use rustix::net::SocketType;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::limits::{PLUGIN_MESSAGE_NESTING_MAX, PLUGIN_MESSAGE_WORDS_MAX};
use crate::rpc::client::{Code, Error};
use crate::rpc::plugin::{gate, stream};
use crate::rpc::schema::plugin_capnp as wire;
use crate::seccomp::awake;
use crate::sys::socket;
pub(in crate::rpc) use convert::{
    fill_notification, fill_selector, fill_verdict, read_notification, read_record, read_session,
};
use descriptors::Exchange;
pub use target::Call;
pub use types::*;

/// What a plugin does.
pub trait Plugin: 'static {
    /// Decides about one call of a container.
    fn decide(&self, call: Call) -> impl Future<Output = Verdict>;

    /// Hears of calls that have been answered, if it registered as an observer.
    /// `lost` were answered since the last time and do not come.
    fn observe(&self, _records: Vec<Record>, _lost: u64) -> impl Future<Output = ()> {
        async {}
    }

    /// Hears of the sessions that there are, at the beginning; of those that do not
    /// fit into one message, [`Plugin::session_opened`] tells.
    fn synchronise(&self, _sessions: &[Session]) {}

    /// Hears of a session that has begun.
    fn session_opened(&self, _session: &Session) {}

    /// Hears that the last process of a session is gone.
    fn session_closed(&self, _session: u64) {}
}

/// A plugin that its program looks into, too.
impl<P: Plugin> Plugin for Rc<P> {
    async fn decide(&self, call: Call) -> Verdict {
        P::decide(self, call).await
    }

    async fn observe(&self, records: Vec<Record>, lost: u64) {
        P::observe(self, records, lost).await;
    }

    fn synchronise(&self, sessions: &[Session]) {
        P::synchronise(self, sessions);
    }

    fn session_opened(&self, session: &Session) {
        P::session_opened(self, session);
    }

    fn session_closed(&self, session: u64) {
        P::session_closed(self, session);
    }
}

/// Runs a plugin to its end.
///
/// # Errors
/// What `plugin` ends with, or that the event loop could not be started.
pub fn run(plugin: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    awake::runtime().map_err(|error| Error::runtime(&error))?.block_on(plugin)
}

/// A registered plugin. Dropping it ends the registration.
pub struct Plugged {
    registration: wire::registration::Client,
    ended: watch::Receiver<bool>,
    _connection: Connection,
}

impl std::fmt::Debug for Plugged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugged").field("ended", &*self.ended.borrow()).finish_non_exhaustive()
    }
}

impl Plugged {
    /// Waits until the pod's monitor is gone.
    ///
    /// # Errors
    /// None so far; the type is that of [`run`].
    pub async fn ended(mut self) -> Result<(), Error> {
        // The sender is dropped with the connection, which says the same.
        self.ended.wait_for(|ended| *ended).await.ok();
        Ok(())
    }

    /// Gives verdicts that were put off with [`Verdict::Later`], or will be:
    /// session, id, verdict. Answers how many came too late.
    ///
    /// # Errors
    /// [`Code::Disconnected`].
    pub async fn answer(&self, answers: &[(u64, u64, Verdict)]) -> Result<u32, Error> {
        let mut call = self.registration.answer_request();
        let size = u32::try_from(answers.len()).map_err(|_| Error::too_long("the list of answers"))?;
        let mut list = call.get().init_answers(size);
        for (index, (session, id, verdict)) in (0..size).zip(answers) {
            let mut to = list.reborrow().get(index);
            to.set_session(*session);
            to.set_id(*id);
            fill_verdict(to.init_verdict(), verdict);
        }
        Ok(call.send().promise.await?.get()?.get_stale())
    }
}

/// The task that moves messages.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is read of one message at most, by either side.
pub(super) fn message_options() -> ReaderOptions {
    ReaderOptions {
        traversal_limit_in_words: Some(PLUGIN_MESSAGE_WORDS_MAX),
        nesting_limit: PLUGIN_MESSAGE_NESTING_MAX,
    }
}

/// Both halves of a connection, buffered.
type Network = Box<dyn capnp_rpc::VatNetwork<Side>>;

/// A monitor's connection to a plugin.
pub(super) fn network(stream: UnixStream, side: Side) -> io::Result<Network> {
    let (reader, writer) = stream::split(stream)?;
    let (reader, writer) = gate::pair(reader, writer);
    Ok(buffered(reader, writer, side))
}

/// A plugin's to a monitor. It is read whatever waits to be written: the monitor does not
/// read while its answers are not read, and one of the two has to begin.
fn network_of_plugin(stream: UnixStream, side: Side) -> io::Result<Network> {
    let (reader, writer) = stream::split(stream)?;
    Ok(buffered(reader, writer, side))
}

fn buffered<R, W>(reader: R, writer: W, side: Side) -> Network
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let (reader, writer) = (BufReader::new(reader).compat(), BufWriter::new(writer).compat_write());
    Box::new(twoparty::VatNetwork::new(reader, writer, side, message_options()))
}

/// Connects to the plugin socket of a pod and registers.
///
/// # Errors
/// [`Code::Disconnected`] if nobody serves it; [`Code::InvalidArgument`] if the
/// request is refused.
pub async fn dial_in(path: &Path, request: Request, plugin: impl Plugin) -> Result<Plugged, Error> {
    let stream = socket::connect(path, SocketType::STREAM).and_then(|stream| {
        let stream = std::os::unix::net::UnixStream::from(stream);
        stream.set_nonblocking(true)?;
        network_of_plugin(UnixStream::from_std(stream)?, Side::Client)
    });
    let mut system = RpcSystem::new(stream.map_err(|error| Error::connect(path, &error))?, None);
    let host: wire::plugin_host::Client = system.bootstrap(Side::Server);
    let (over, ended) = watch::channel(false);
    let task = tokio::task::spawn_local(async move {
        // Why is told to every call in flight; there is nobody else to tell.
        drop(system.await);
        over.send_replace(true);
    });
    let connection = Connection(task);
    let registration = register(&host, &request, Rc::new(plugin)).await?;
    Ok(Plugged { registration, ended, _connection: connection })
}

/// Listens at `path`, where every pod's monitor connects if it is in the
/// directory for that, and registers `plugin` with each. Does not return.
///
/// A socket that an earlier run left behind is replaced.
///
/// # Errors
/// If the socket cannot be made.
pub async fn listen(path: &Path, request: Request, plugin: impl Plugin) -> Result<(), Error> {
    let fail = |error: io::Error| Error {
        code: Code::Unknown,
        message: format!("listening at {}: {error}", path.display()),
    };
    remove_stale(path).map_err(fail)?;
    let listener = socket::listen(path, SocketType::STREAM, 16).map_err(fail)?;
    let listener = UnixListener::from_std(listener.into()).map_err(fail)?;
    let plugin = Rc::new(plugin);
    let request = Rc::new(request);
    loop {
        let (stream, _) = listener.accept().await.map_err(fail)?;
        let program = Program {
            plugin: Rc::clone(&plugin),
            request: Rc::clone(&request),
            registrations: RefCell::default(),
        };
        let bootstrap: wire::plugin_program::Client = capnp_rpc::new_client(program);
        let network = network_of_plugin(stream, Side::Server).map_err(fail)?;
        let system = RpcSystem::new(network, Some(bootstrap.client));
        tokio::task::spawn_local(async move { drop(system.await) });
    }
}

/// Removes a socket at which nobody listens any more.
///
/// # Errors
/// If it is there and cannot be removed.
pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The bootstrap object of a plugin that listens.
struct Program<P> {
    plugin: Rc<P>,
    request: Rc<Request>,
    /// They end with the connection, as this does.
    registrations: RefCell<Vec<wire::registration::Client>>,
}

impl<P: Plugin> wire::plugin_program::Server for Program<P> {
    async fn attach(
        self: Rc<Self>,
        params: wire::plugin_program::AttachParams,
        _: wire::plugin_program::AttachResults,
    ) -> Result<(), capnp::Error> {
        let host = params.get()?.get_host()?;
        let registration = register(&host, &self.request, Rc::clone(&self.plugin)).await;
        let registration = registration.map_err(|error| capnp::Error::failed(error.message))?;
        self.registrations.borrow_mut().push(registration);
        Ok(())
    }
}

async fn register<P: Plugin>(
    host: &wire::plugin_host::Client,
    request: &Request,
    plugin: Rc<P>,
) -> Result<wire::registration::Client, Error> {
    let mut call = host.register_request();
    convert::fill_request(call.get().init_request(), request)?;
    let server = Served { plugin, sessions: RefCell::default(), exchange: RefCell::default() };
    call.get().set_plugin(capnp_rpc::new_client(server));
    Ok(call.send().promise.await?.get()?.get_registration()?)
}

/// A plugin as the monitor sees it.
struct Served<P> {
    plugin: Rc<P>,
    sessions: RefCell<HashMap<u64, wire::target::Client>>,
    exchange: RefCell<Option<Rc<Exchange>>>,
}

impl<P: Plugin> Served<P> {
    fn call(&self, notification: wire::notification::Reader<'_>) -> capnp::Result<Call> {
        let notification = read_notification(notification)?;
        let target = self.sessions.borrow().get(&notification.session).cloned();
        Ok(Call { notification, target, exchange: self.exchange.borrow().clone() })
    }

    fn open(&self, session: wire::session::Reader<'_>) -> capnp::Result<Session> {
        let described = read_session(session)?;
        // A replay has no process that could be reached into.
        if session.has_target() {
            self.sessions.borrow_mut().insert(described.id, session.get_target()?);
        }
        Ok(described)
    }
}

impl<P: Plugin> wire::seccomp_plugin::Server for Served<P> {
    async fn synchronise(
        self: Rc<Self>,
        params: wire::seccomp_plugin::SynchroniseParams,
        _: wire::seccomp_plugin::SynchroniseResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let socket = params.get_host()?.get_descriptor_socket()?.to_str()?;
        self.exchange.replace((!socket.is_empty()).then(|| Exchange::new(Path::new(socket))));
        self.sessions.borrow_mut().clear();
        let sessions = params.get_sessions()?.iter().map(|session| self.open(session));
        let sessions = sessions.collect::<capnp::Result<Vec<_>>>()?;
        self.plugin.synchronise(&sessions);
        Ok(())
    }

    async fn session_opened(
        self: Rc<Self>,
        params: wire::seccomp_plugin::SessionOpenedParams,
        _: wire::seccomp_plugin::SessionOpenedResults,
    ) -> Result<(), capnp::Error> {
        let session = self.open(params.get()?.get_session()?)?;
        self.plugin.session_opened(&session);
        Ok(())
    }

    async fn session_closed(
        self: Rc<Self>,
        params: wire::seccomp_plugin::SessionClosedParams,
        _: wire::seccomp_plugin::SessionClosedResults,
    ) -> Result<(), capnp::Error> {
        let session = params.get()?.get_session();
        self.sessions.borrow_mut().remove(&session);
        self.plugin.session_closed(session);
        Ok(())
    }

    async fn decide(
        self: Rc<Self>,
        params: wire::seccomp_plugin::DecideParams,
        mut results: wire::seccomp_plugin::DecideResults,
    ) -> Result<(), capnp::Error> {
        let asked = params.get()?.get_notifications()?;
        let count = asked.len();
        if count == 1 {
            // The usual case needs no task.
            let verdict = self.plugin.decide(self.call(asked.get(0))?).await;
            fill_verdict(results.get().init_verdicts(1).get(0), &verdict);
            return Ok(());
        }
        // Side by side: none waits for another but at the end.
        let mut tasks = Vec::new();
        for notification in asked {
            let (call, plugin) = (self.call(notification)?, Rc::clone(&self.plugin));
            tasks.push(tokio::task::spawn_local(async move { plugin.decide(call).await }));
        }
        let mut verdicts = results.get().init_verdicts(count);
        for (index, task) in (0..count).zip(tasks) {
            let verdict = task.await.map_err(|_| capnp::Error::failed("the plugin panicked".into()))?;
            fill_verdict(verdicts.reborrow().get(index), &verdict);
        }
        Ok(())
    }

    async fn observe(
        self: Rc<Self>,
        params: wire::seccomp_plugin::ObserveParams,
        _: wire::seccomp_plugin::ObserveResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let records = params.get_records()?.iter().map(read_record).collect::<capnp::Result<_>>()?;
        self.plugin.observe(records, params.get_lost()).await;
        Ok(())
    }
}
