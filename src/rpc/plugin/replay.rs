//! The monitor's part, played to a plugin without a container: recorded
//! notifications go in, verdicts come out. Selectors, deadlines and the judgement of
//! a verdict are the broker's own. Nobody is suspended: each answer counts.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use rustix::net::SocketType;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::client::{self, Notification, Verdict, fill_notification, network, remove_stale};
use super::host::refused;
use super::translate::{self, Said};
use crate::limits::PLUGIN_ATTACH_TIMEOUT;
use crate::rpc::client::{Code, Error};
use crate::rpc::convert::refuse;
use crate::rpc::schema::plugin_capnp as wire;
use crate::seccomp::broker::RegisterError;
use crate::seccomp::notification::{Session, SessionId};
use crate::seccomp::plugin::{PluginFailure, Registration as Terms};
use crate::seccomp::select::{Call, Matcher};
use crate::seccomp::syscall::{Architecture, number};
use crate::seccomp::verdict::Verdict as Judged;
use crate::sys::socket;

/// A plugin that waits for notifications.
pub struct Replay {
    stage: Rc<Stage>,
    /// Those that were described, by their number.
    sessions: RefCell<BTreeMap<u64, Session>>,
    _connection: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("registered", &self.stage.registered.borrow().len()).finish()
    }
}

/// What a plugin said about one notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Played {
    /// The registration that was asked; `None` if none wanted it.
    pub plugin: Option<String>,
    /// Its verdict, or what its failure leads to.
    pub verdict: Verdict,
    /// Why it had none of its own, if it failed.
    pub failure: Option<PluginFailure>,
    /// How long it took.
    pub took: Duration,
}

/// Where a plugin registers.
#[derive(Default)]
struct Stage {
    registered: RefCell<Vec<Rc<Registered>>>,
    came: Notify,
}

struct Registered {
    terms: Terms,
    /// Is told what was decided, and never asked.
    is_observer: bool,
    matcher: Matcher,
    plugin: wire::seccomp_plugin::Client,
    later: Rc<Later>,
    ended: Cell<bool>,
}

/// Where a verdict goes that was put off.
type Reply = oneshot::Sender<Result<Judged, PluginFailure>>;

/// Verdicts that were put off.
#[derive(Default)]
struct Later {
    waiting: RefCell<HashMap<(u64, u64), Reply>>,
}

struct Registration {
    registered: Rc<Registered>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registered.ended.set(true);
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
            let key = (answer.get_session(), answer.get_id());
            let verdict = read(answer.get_verdict()?).and_then(Said::at_last);
            let waiting = self.registered.later.waiting.borrow_mut().remove(&key);
            if waiting.is_none_or(|waiting| waiting.send(verdict).is_err()) {
                stale += 1;
            }
        }
        results.get().set_stale(stale);
        Ok(())
    }
}

/// Reads a verdict. No descriptor can change hands.
fn read(verdict: wire::verdict::Reader<'_>) -> Result<Said, PluginFailure> {
    translate::verdict(verdict, |_| None)
}

struct Host(Rc<Stage>);

impl wire::plugin_host::Server for Host {
    async fn register(
        self: Rc<Self>,
        params: wire::plugin_host::RegisterParams,
        mut results: wire::plugin_host::RegisterResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let asked = translate::request(params.get_request()?).map_err(|error| refuse(&error))?;
        let plugin = params.get_plugin()?;
        let (mut terms, is_observer) = (asked.registration, asked.is_observer);
        let matcher = std::mem::take(&mut terms.selector)
            .compile()
            .map_err(|source| refused(&RegisterError::Selector { name: terms.name.clone(), source }))?;
        // No session exists yet, and no descriptor can change hands.
        plugin.synchronise_request().send().promise.await?;
        let registered = Rc::new(Registered {
            terms,
            is_observer,
            matcher,
            plugin,
            later: Rc::default(),
            ended: Cell::new(false),
        });
        let mut all = self.0.registered.borrow_mut();
        let position = all.partition_point(|other| other.terms.priority <= registered.terms.priority);
        all.insert(position, Rc::clone(&registered));
        self.0.came.notify_one();
        results.get().set_registration(capnp_rpc::new_client(Registration { registered }));
        Ok(())
    }
}

impl Replay {
    /// Meets a plugin that listens at `path`, and waits until it has registered.
    ///
    /// # Errors
    /// [`Code::Disconnected`] if there is none; [`Code::Timeout`] if it does not register.
    pub async fn dial(path: &Path) -> Result<Self, Error> {
        let stream = socket::connect_now(path, SocketType::STREAM)
            .and_then(|stream| network(UnixStream::from_std(stream.into())?, Side::Client))
            .map_err(|error| Error {
                code: Code::Disconnected,
                message: format!("no plugin can be reached at {}: {error}", path.display()),
            })?;
        let stage = Rc::new(Stage::default());
        let mut system = RpcSystem::new(stream, None);
        let program: wire::plugin_program::Client = system.bootstrap(Side::Server);
        let connection = tokio::task::spawn_local(async move { drop(system.await) });
        let mut request = program.attach_request();
        request.get().set_host(capnp_rpc::new_client(Host(Rc::clone(&stage))));
        timeout(PLUGIN_ATTACH_TIMEOUT, request.send().promise).await.map_err(|_| silent())??;
        Self::ready(stage, connection).await
    }

    /// Listens at `path`, as a pod does, until a plugin has dialled in and registered.
    /// A socket that an earlier run left behind is replaced.
    ///
    /// # Errors
    /// If the socket cannot be made, or the plugin's connection ends.
    pub async fn listen(path: &Path) -> Result<Self, Error> {
        let fail = |error: std::io::Error| Error {
            code: Code::Unknown,
            message: format!("listening at {}: {error}", path.display()),
        };
        remove_stale(path).map_err(fail)?;
        let listener = socket::listen(path, SocketType::STREAM, 1).map_err(fail)?;
        let _removed = Remove(path.to_owned());
        let listener = UnixListener::from_std(listener.into()).map_err(fail)?;
        let (stream, _) = listener.accept().await.map_err(fail)?;
        let stage = Rc::new(Stage::default());
        let host: wire::plugin_host::Client = capnp_rpc::new_client(Host(Rc::clone(&stage)));
        let network = network(stream, Side::Server).map_err(fail)?;
        let system = RpcSystem::new(network, Some(host.client));
        let connection = tokio::task::spawn_local(async move { drop(system.await) });
        Self::ready(stage, connection).await
    }

    async fn ready(stage: Rc<Stage>, connection: tokio::task::JoinHandle<()>) -> Result<Self, Error> {
        let came = async {
            while stage.registered.borrow().is_empty() {
                stage.came.notified().await;
            }
        };
        timeout(PLUGIN_ATTACH_TIMEOUT, came).await.map_err(|_| silent())?;
        Ok(Self { stage, sessions: RefCell::default(), _connection: connection })
    }

    /// Describes a session to the plugin: what selectors can ask of its notifications.
    ///
    /// # Errors
    /// What the plugin says if it does not take it.
    pub async fn open(&self, described: &client::Session) -> Result<(), Error> {
        let map = |labels: &[(String, String)]| labels.iter().cloned().collect();
        let session = Session {
            container: described.container.as_str().into(),
            metadata: described.metadata.as_str().into(),
            pid: described.pid,
            is_exec: described.exec,
            annotations: map(&described.annotations),
            labels: map(&described.labels),
            since_ns: described.since_ns,
            ..nameless(described.id)
        };
        let registered: Vec<Rc<Registered>> = self.stage.registered.borrow().clone();
        for one in registered.iter().filter(|one| !one.ended.get()) {
            let mut request = one.plugin.session_opened_request();
            translate::set_session(request.get().init_session(), &session);
            request.send().promise.await?;
        }
        self.sessions.borrow_mut().insert(described.id, session);
        Ok(())
    }

    /// Asks the plugin about `notification`, as the broker would: by priority,
    /// until one of its registrations decides.
    ///
    /// # Errors
    /// [`Code::Disconnected`] if the plugin goes away.
    pub async fn play(&self, notification: &Notification) -> Result<Played, Error> {
        let described = self.sessions.borrow().get(&notification.session).cloned();
        let session = described.unwrap_or_else(|| Session {
            container: notification.container.as_str().into(),
            ..nameless(notification.session)
        });
        let call = call(notification);
        let began = std::time::Instant::now();
        let mut played =
            Played { plugin: None, verdict: Verdict::PassOn, failure: None, took: Duration::ZERO };
        let registered: Vec<Rc<Registered>> = self.stage.registered.borrow().clone();
        for one in registered.iter().filter(|one| !one.ended.get() && !one.is_observer) {
            if !one.matcher.session(&session) || !one.matcher.call(&call) {
                continue;
            }
            let deadline = one.terms.deadline;
            let asked = timeout(deadline, one.ask(notification)).await;
            let (verdict, failure) = match asked.unwrap_or(Err(PluginFailure::Deadline(deadline))) {
                Err(failure @ PluginFailure::Gone) => {
                    let message = format!("{}: {failure}", one.terms.name);
                    return Err(Error { code: Code::Disconnected, message });
                }
                Err(failure) => (one.terms.on_failure.verdict(), Some(failure)),
                Ok(verdict) => (verdict, None),
            };
            played = Played {
                plugin: Some(one.terms.name.clone()),
                verdict: shown(&verdict),
                failure,
                took: began.elapsed(),
            };
            if played.verdict != Verdict::PassOn {
                break;
            }
        }
        Ok(played)
    }
}

/// A verdict as it is recorded.
fn shown(verdict: &Judged) -> Verdict {
    match verdict {
        Judged::Pass => Verdict::PassOn,
        Judged::Return(value) => Verdict::Return(*value),
        Judged::Errno(errno) => Verdict::Errno(u16::try_from(*errno).unwrap_or(u16::MAX)),
        Judged::Continue => Verdict::Continue,
        Judged::Kill => Verdict::Kill,
        Judged::AddFd { at, close_on_exec, .. } => Verdict::AddDescriptor {
            ticket: client::Ticket(Vec::new()),
            at: *at,
            close_on_exec: *close_on_exec,
        },
    }
}

impl Registered {
    async fn ask(&self, notification: &Notification) -> Result<Judged, PluginFailure> {
        let key = (notification.session, notification.id);
        let (later, put_off) = oneshot::channel();
        // One that is left of an earlier call is replaced.
        self.later.waiting.borrow_mut().insert(key, later);
        let mut request = self.plugin.decide_request();
        fill_notification(request.get().init_notifications(1).get(0), notification)
            .map_err(|error| PluginFailure::Failed(error.message))?;
        let answer = request.send().promise.await.map_err(|error| failure(&error))?;
        let verdicts =
            answer.get().and_then(|answer| answer.get_verdicts()).map_err(|error| failure(&error))?;
        if verdicts.len() != 1 {
            return Err(PluginFailure::Nonsense(format!("{} verdicts for one notification", verdicts.len())));
        }
        let verdict = match read(verdicts.get(0))? {
            Said::Now(verdict) => verdict,
            Said::Later => put_off.await.unwrap_or(Err(PluginFailure::Gone))?,
        };
        self.later.waiting.borrow_mut().remove(&key);
        self.terms.check(verdict)
    }
}

/// Why a plugin has not answered, all of it: its author reads it.
fn failure(error: &capnp::Error) -> PluginFailure {
    match error.kind {
        capnp::ErrorKind::Disconnected => PluginFailure::Gone,
        _ => PluginFailure::Failed(error.to_string()),
    }
}

/// A session of which nothing is known.
fn nameless(id: u64) -> Session {
    Session {
        id: SessionId(id),
        pod: "replay".into(),
        container: "".into(),
        metadata: "".into(),
        pid: 0,
        is_exec: false,
        bundle: PathBuf::new(),
        annotations: BTreeMap::new(),
        labels: BTreeMap::new(),
        since_ns: 0,
    }
}

/// What selectors look at. A number that the file does not give is had by the name.
fn call(notification: &Notification) -> Call {
    let architecture = Architecture::ALL
        .into_iter()
        .find(|known| known.as_str() == notification.architecture)
        .unwrap_or(Architecture::NATIVE);
    let by_name = || number(&notification.name, architecture);
    let syscall = if notification.syscall == 0 { by_name().unwrap_or(0) } else { notification.syscall };
    Call { arch: architecture.audit(), syscall, args: notification.arguments }
}

fn silent() -> Error {
    let message = format!("the plugin did not register in {} s", PLUGIN_ATTACH_TIMEOUT.as_secs());
    Error { code: Code::Timeout, message }
}

/// Removes a socket.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // It may be gone already.
        std::fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PLUGIN_REASON_BYTES_MAX;

    #[test]
    fn what_a_plugin_failed_with_is_told_to_its_end() {
        let trace = format!("{}\nKeyError: 'what'", "line\n".repeat(PLUGIN_REASON_BYTES_MAX));
        let PluginFailure::Failed(told) = failure(&capnp::Error::failed(trace)) else { panic!("another") };
        assert!(told.ends_with("\nKeyError: 'what'"), "{told}");
    }
}
