//! The monitor's part, played to a plugin without a container: recorded
//! notifications go in, verdicts come out. The selectors are the broker's own.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use rustix::net::SocketType;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::client::{Notification, Verdict, fill_notification, network, read_verdict};
use super::host::refused;
use super::translate;
use crate::limits::PLUGIN_ATTACH_TIMEOUT;
use crate::rpc::client::{Code, Error};
use crate::rpc::convert::refuse;
use crate::rpc::schema::plugin_capnp as wire;
use crate::seccomp::broker::RegisterError;
use crate::seccomp::notification::{Session, SessionId};
use crate::seccomp::select::{Call, Matcher};
use crate::seccomp::syscall::{Architecture, number};
use crate::sys::socket;

/// A plugin that waits for notifications.
pub struct Replay {
    stage: Rc<Stage>,
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
    /// Its verdict.
    pub verdict: Verdict,
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
    name: String,
    priority: i32,
    deadline: Duration,
    matcher: Matcher,
    plugin: wire::seccomp_plugin::Client,
    later: Rc<Later>,
    ended: Cell<bool>,
}

/// Verdicts that were put off.
#[derive(Default)]
struct Later {
    waiting: RefCell<HashMap<(u64, u64), oneshot::Sender<Verdict>>>,
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
            let verdict = read_verdict(answer.get_verdict()?)?;
            let waiting = self.registered.later.waiting.borrow_mut().remove(&key);
            if waiting.is_none_or(|waiting| waiting.send(verdict).is_err()) {
                stale += 1;
            }
        }
        results.get().set_stale(stale);
        Ok(())
    }
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
        let asked = asked.registration;
        let matcher = asked
            .selector
            .compile()
            .map_err(|source| refused(&RegisterError::Selector { name: asked.name.clone(), source }))?;
        // No session exists, and no descriptor can change hands.
        plugin.synchronise_request().send().promise.await?;
        let registered = Rc::new(Registered {
            name: asked.name,
            priority: asked.priority,
            deadline: asked.deadline,
            matcher,
            plugin,
            later: Rc::default(),
            ended: Cell::new(false),
        });
        let mut all = self.0.registered.borrow_mut();
        let position = all.partition_point(|other| other.priority <= registered.priority);
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
            .map_err(|error| Error::connect(path, &error))?;
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
    ///
    /// # Errors
    /// If the socket cannot be made, or the plugin's connection ends.
    pub async fn listen(path: &Path) -> Result<Self, Error> {
        let fail = |error: std::io::Error| Error {
            code: Code::Unknown,
            message: format!("listening at {}: {error}", path.display()),
        };
        let _removed = Remove(path.to_owned());
        let listener = socket::listen(path, SocketType::STREAM, 1).map_err(fail)?;
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
        Ok(Self { stage, _connection: connection })
    }

    /// Asks the plugin about `notification`, as the broker would: by priority,
    /// until one of its registrations decides.
    ///
    /// # Errors
    /// [`Code::Timeout`] if the deadline passes; what the plugin says if it fails.
    pub async fn play(&self, notification: &Notification) -> Result<Played, Error> {
        let (session, call) = selected_by(notification);
        let began = std::time::Instant::now();
        let mut played = Played { plugin: None, verdict: Verdict::PassOn, took: Duration::ZERO };
        let registered: Vec<Rc<Registered>> = self.stage.registered.borrow().clone();
        for one in registered.iter().filter(|one| !one.ended.get()) {
            if !one.matcher.session(&session) || !one.matcher.call(&call) {
                continue;
            }
            let asked = timeout(one.deadline, one.ask(notification)).await;
            played.verdict = asked.map_err(|_| Error {
                code: Code::Timeout,
                message: format!("{} did not answer in {} ms", one.name, one.deadline.as_millis()),
            })??;
            played.plugin = Some(one.name.clone());
            played.took = began.elapsed();
            if played.verdict != Verdict::PassOn {
                break;
            }
        }
        Ok(played)
    }
}

impl Registered {
    async fn ask(&self, notification: &Notification) -> Result<Verdict, Error> {
        let key = (notification.session, notification.id);
        let (later, put_off) = oneshot::channel();
        self.later.waiting.borrow_mut().insert(key, later);
        let mut request = self.plugin.decide_request();
        fill_notification(request.get().init_notifications(1).get(0), notification)?;
        let answer = request.send().promise.await?;
        let verdicts = answer.get()?.get_verdicts()?;
        if verdicts.len() != 1 {
            let message = format!("{} gave {} verdicts for one notification", self.name, verdicts.len());
            return Err(Error { code: Code::Unknown, message });
        }
        let verdict = match read_verdict(verdicts.get(0))? {
            Verdict::Later => put_off.await.unwrap_or_default(),
            verdict => verdict,
        };
        self.later.waiting.borrow_mut().remove(&key);
        Ok(verdict)
    }
}

/// What selectors look at. A number that the file does not give is had by the name.
fn selected_by(notification: &Notification) -> (Session, Call) {
    let architecture = Architecture::ALL
        .into_iter()
        .find(|known| known.as_str() == notification.architecture)
        .unwrap_or(Architecture::NATIVE);
    let by_name = || number(&notification.name, architecture);
    let syscall = if notification.syscall == 0 { by_name().unwrap_or(0) } else { notification.syscall };
    let session = Session {
        id: SessionId(notification.session),
        pod: "replay".into(),
        container: notification.container.as_str().into(),
        metadata: "".into(),
        pid: 0,
        is_exec: false,
        bundle: PathBuf::new(),
        annotations: std::collections::BTreeMap::new(),
        labels: std::collections::BTreeMap::new(),
        since_ns: 0,
    };
    (session, Call { arch: architecture.audit(), syscall, args: notification.arguments })
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
