//! A client of a pod's socket: every method of `Pod` and `Conmon` in plain Rust
//! types. [`PodClient`] is async and lives on one thread; [`Client`] is the same
//! with its own event loop, for callers that have none.
//!
//! Both are cheap to make; neither reconnects. When the server goes away, calls
//! in flight and all later ones answer [`Code::Disconnected`].

mod convert;
mod error;
mod hook;
mod seccomp;
mod types;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capnp::message::ReaderOptions;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use tokio::runtime::LocalRuntime;
use tokio::sync::mpsc;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::limits;
use crate::rpc::schema::conmon_capnp::conmon;
use crate::rpc::schema::podinit_capnp::{event_listener, pod, subscription};
pub use error::{Code, Error};
pub use hook::*;
pub use seccomp::{
    SeccompPlugin, SeccompPluginCounters, SeccompRecorded, SeccompRow, SeccompStats, Trace, Traced,
};
pub use types::*;

/// A connection to a pod. Clones share it; it closes with the last one.
///
/// Its futures must be polled inside the [`LocalRuntime`] (or `LocalSet`) that
/// [`PodClient::connect`] was called in.
#[derive(Clone)]
pub struct PodClient {
    pod: pod::Client,
    _connection: Rc<Connection>,
}

impl std::fmt::Debug for PodClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodClient").finish_non_exhaustive()
    }
}

/// The task that moves messages; ends with the last client.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The server's bootstrap capability, and the task that moves messages.
fn bootstrap<C: FromClientHook>(stream: tokio::net::UnixStream) -> (C, Connection) {
    let (reader, writer) = stream.into_split();
    let side = rpc_twoparty_capnp::Side::Client;
    let network = twoparty::VatNetwork::new(reader.compat(), writer.compat_write(), side, reader_options());
    let mut system = RpcSystem::new(Box::new(network), None);
    let client = system.bootstrap(rpc_twoparty_capnp::Side::Server);
    let task = tokio::task::spawn_local(async move {
        // The reason is told to every call in flight; there is nobody else to tell.
        drop(system.await);
    });
    (client, Connection(task))
}

/// What is read of one message at most. Refuses a server gone mad before it
/// fills this process's memory.
fn reader_options() -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options
        .traversal_limit_in_words(Some(limits::ANSWER_WORDS_MAX))
        .nesting_limit(limits::ANSWER_NESTING_MAX);
    options
}

impl PodClient {
    /// Connects to the pod socket at `path`, of any length.
    ///
    /// # Errors
    /// [`Code::Disconnected`] if nobody serves it.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let stream = connect_stream(path).map_err(|error| Error::connect(path, &error))?;
        Ok(Self::start(stream))
    }

    fn start(stream: tokio::net::UnixStream) -> Self {
        let (pod, connection) = bootstrap(stream);
        Self { pod, _connection: Rc::new(connection) }
    }

    fn conmon(&self) -> conmon::Client {
        self.pod.clone().cast_to()
    }

    /// `listContainers`.
    ///
    /// # Errors
    /// What the server refuses with; so for every method below.
    pub async fn list_containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        let answer = self.pod.list_containers_request().send().promise.await?;
        let list = answer.get()?.get_containers()?;
        Ok(list.iter().map(convert::read_status).collect::<capnp::Result<_>>()?)
    }

    /// `containerState`.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn container_state(&self, id: &str) -> Result<ContainerStatus, Error> {
        let mut request = self.pod.container_state_request();
        request.get().set_id(id);
        let answer = request.send().promise.await?;
        Ok(convert::read_status(answer.get()?.get_status()?)?)
    }

    /// `startContainer`.
    ///
    /// # Errors
    /// [`Code::WrongState`] unless it is created; [`Code::RuntimeFailed`].
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let mut request = self.pod.start_container_request();
        request.get().set_id(id);
        request.send().promise.await?;
        Ok(())
    }

    /// `stopContainer`: `signal` 0 is SIGTERM.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn stop_container(&self, id: &str, signal: u8, grace_ms: u32) -> Result<StopResult, Error> {
        let mut request = self.pod.stop_container_request();
        request.get().set_id(id);
        request.get().set_signal(signal);
        request.get().set_grace_ms(grace_ms);
        let answer = request.send().promise.await?;
        let result = answer.get()?.get_result()?;
        Ok(StopResult { exit: convert::read_exit(result.get_exit()?)?, killed: result.get_killed() })
    }

    /// `deleteContainer`.
    ///
    /// # Errors
    /// [`Code::WrongState`] if it still runs and `deletion` is not by force.
    pub async fn delete_container(&self, id: &str, deletion: Deletion) -> Result<(), Error> {
        let mut request = self.pod.delete_container_request();
        request.get().set_id(id);
        request.get().set_force(deletion == Deletion::Force);
        request.send().promise.await?;
        Ok(())
    }

    /// `waitContainer`.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn wait_container(&self, id: &str) -> Result<ExitStatus, Error> {
        let mut request = self.pod.wait_container_request();
        request.get().set_id(id);
        let answer = request.send().promise.await?;
        Ok(convert::read_exit(answer.get()?.get_exit()?)?)
    }

    /// `events` with a sequence number above `since`, then live ones. The server
    /// sends one when the one before has been taken, so a slow reader costs one
    /// event of memory here.
    ///
    /// # Errors
    /// As the server says.
    pub async fn events(&self, since: u64) -> Result<Events, Error> {
        let (sender, receiver) = mpsc::channel(1);
        let mut request = self.pod.events_request();
        request.get().set_since(since);
        request.get().set_listener(capnp_rpc::new_client(Listener { sender }));
        let answer = request.send().promise.await?;
        let subscription = answer.get()?.get_subscription()?;
        Ok(Events { receiver, _subscription: subscription, _client: self.clone() })
    }

    /// `shutdown`.
    ///
    /// # Errors
    /// As the server says; [`Code::Disconnected`] if it ended before it could answer.
    pub async fn shutdown(&self, grace_ms: u32) -> Result<(), Error> {
        let mut request = self.pod.shutdown_request();
        request.get().set_grace_ms(grace_ms);
        request.send().promise.await?;
        Ok(())
    }

    /// `createSandbox`.
    ///
    /// # Errors
    /// [`Code::AlreadyExists`] if the pod has other namespaces already.
    pub async fn create_sandbox(&self, sandbox: &SandboxRequest) -> Result<Sandbox, Error> {
        let mut request = self.pod.create_sandbox_request();
        convert::fill_sandbox(request.get().init_request(), sandbox)?;
        let answer = request.send().promise.await?;
        Ok(convert::read_sandbox(answer.get()?.get_sandbox()?)?)
    }

    /// `namespaces`.
    ///
    /// # Errors
    /// As the server says.
    pub async fn namespaces(&self) -> Result<Vec<Sandbox>, Error> {
        let answer = self.pod.namespaces_request().send().promise.await?;
        let list = answer.get()?.get_sandboxes()?;
        Ok(list.iter().map(convert::read_sandbox).collect::<capnp::Result<_>>()?)
    }

    /// `network`: what the network namespace of pod `pod_id` looks like from inside.
    ///
    /// # Errors
    /// As [`Self::list_containers`]; [`Code::NotFound`] if the pod has none.
    pub async fn network(&self, pod_id: &str) -> Result<Network, Error> {
        let mut request = self.pod.network_request();
        request.get().set_pod_id(pod_id);
        let answer = request.send().promise.await?;
        Ok(convert::read_network(answer.get()?.get_network()?)?)
    }

    /// `podStats`.
    ///
    /// # Errors
    /// As [`Self::list_containers`].
    pub async fn pod_stats(&self) -> Result<PodStats, Error> {
        let answer = self.pod.pod_stats_request().send().promise.await?;
        Ok(convert::read_pod_stats(answer.get()?.get_stats()?)?)
    }

    /// `containerStats`. Of a container that has exited: as they were at its end.
    ///
    /// # Errors
    /// As [`Self::list_containers`]; [`Code::NotFound`].
    pub async fn container_stats(&self, id: &str) -> Result<ContainerStats, Error> {
        let mut request = self.pod.container_stats_request();
        request.get().set_id(id);
        let answer = request.send().promise.await?;
        Ok(convert::read_container_stats(answer.get()?.get_stats()?)?)
    }

    /// The other part of `containerStats`: what the container's log can be audited
    /// against.
    ///
    /// # Errors
    /// As [`Self::container_stats`].
    pub async fn log_account(&self, id: &str) -> Result<LogAccount, Error> {
        let mut request = self.pod.container_stats_request();
        request.get().set_id(id);
        let answer = request.send().promise.await?;
        Ok(convert::read_log_account(answer.get()?.get_account()?)?)
    }

    /// `setLogLimits` of a container: replaces all of its limits.
    ///
    /// # Errors
    /// As [`Self::list_containers`]; [`Code::NotFound`], [`Code::InvalidArgument`].
    pub async fn set_log_limits(&self, id: &str, limits: &LogLimits) -> Result<(), Error> {
        let mut call = self.pod.set_log_limits_request();
        let mut request = call.get().init_request();
        request.set_id(id);
        convert::set_log_limits(request, limits);
        call.send().promise.await?;
        Ok(())
    }

    /// `setLogLimits` of the pod: of all containers' logs together.
    ///
    /// # Errors
    /// As [`Self::list_containers`].
    pub async fn set_log_total(&self, rate: &LogRate) -> Result<(), Error> {
        let mut call = self.pod.set_log_limits_request();
        convert::set_log_total(call.get().init_request(), rate);
        call.send().promise.await?;
        Ok(())
    }

    /// `exec`.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::WrongState`]; a command that cannot be
    /// started is not an error but [`ExecOutcome::NotStarted`].
    pub async fn exec(&self, exec: &ExecRequest) -> Result<ExecResult, Error> {
        let mut call = self.pod.exec_request();
        let mut request = call.get().init_request();
        request.set_id(&exec.id);
        let size = convert::count("the command", exec.command.len())?;
        convert::fill_texts(request.reborrow().init_command(size), &exec.command);
        request.set_timeout_ms(exec.timeout_ms);
        request.set_terminal(exec.stdio == Stdio::Terminal);
        let size = convert::count("the environment", exec.env.len())?;
        convert::fill_key_values(request.reborrow().init_env(size), &exec.env);
        let answer = call.send().promise.await?;
        Ok(convert::read_exec(answer.get()?.get_result()?)?)
    }

    /// `version`.
    ///
    /// # Errors
    /// As the server says.
    pub async fn version(&self) -> Result<Version, Error> {
        let mut request = self.conmon().version_request();
        request.get().init_request();
        let answer = request.send().promise.await?;
        Ok(convert::read_version(answer.get()?.get_response()?)?)
    }

    /// `createContainer`; answers the pid of the container's process.
    ///
    /// # Errors
    /// [`Code::AlreadyExists`], [`Code::RuntimeFailed`], [`Code::Timeout`].
    pub async fn create_container(&self, create: &CreateContainer) -> Result<u32, Error> {
        if create.first_process == FirstProcess::Init || !create.log_options.is_empty() {
            let mut request = self.pod.create_container_request();
            request.get().set_init(create.first_process == FirstProcess::Init);
            let size = convert::count("the list of log options", create.log_options.len())?;
            convert::fill_key_values(request.get().init_log_options(size), &create.log_options);
            convert::fill_create_container(request.get().init_request(), create)?;
            return Ok(request.send().promise.await?.get()?.get_container_pid());
        }
        let mut request = self.conmon().create_container_request();
        convert::fill_create_container(request.get().init_request(), create)?;
        let answer = request.send().promise.await?;
        Ok(answer.get()?.get_response()?.get_container_pid())
    }

    /// `execSyncContainer`.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::WrongState`].
    pub async fn exec_sync(&self, exec: &ExecSync) -> Result<ExecSyncResult, Error> {
        let mut call = self.conmon().exec_sync_container_request();
        let mut request = call.get().init_request();
        request.set_id(&exec.id);
        let size = convert::count("the command", exec.command.len())?;
        convert::fill_texts(request.reborrow().init_command(size), &exec.command);
        request.set_timeout_sec(exec.timeout_seconds);
        request.set_terminal(exec.stdio == Stdio::Terminal);
        let size = convert::count("the environment", exec.env.len())?;
        convert::fill_entries(request.reborrow().init_env_vars(size), &exec.env);
        request.set_cgroup_manager(convert::cgroup_manager(exec.cgroup_manager));
        let answer = call.send().promise.await?;
        let response = answer.get()?.get_response()?;
        Ok(ExecSyncResult {
            exit_code: response.get_exit_code(),
            stdout: response.get_stdout()?.to_vec(),
            stderr: response.get_stderr()?.to_vec(),
            timed_out: response.get_timed_out(),
        })
    }

    /// `attach`: makes the attach socket, to which the caller then connects. Without a
    /// replay it is `attachContainer`, which every server has.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::WrongState`].
    pub async fn attach(&self, attach: &Attach) -> Result<(), Error> {
        if attach.replay_bytes > 0 {
            let mut call = self.pod.attach_request();
            let mut request = call.get().init_request();
            request.set_id(&attach.id);
            request.set_socket_path(convert::path_text(&attach.socket_path));
            request.set_exec_session(&attach.exec_session_id);
            request.set_stop_after_stdin_eof(attach.stdin_eof == StdinEof::Forward);
            request.set_replay_bytes(attach.replay_bytes);
            call.send().promise.await?;
            return Ok(());
        }
        let mut call = self.conmon().attach_container_request();
        let mut request = call.get().init_request();
        request.set_id(&attach.id);
        request.set_socket_path(convert::path_text(&attach.socket_path));
        request.set_exec_session_id(&attach.exec_session_id);
        request.set_stop_after_stdin_eof(attach.stdin_eof == StdinEof::Forward);
        call.send().promise.await?;
        Ok(())
    }

    /// `reopenLogContainer`.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let mut request = self.conmon().reopen_log_container_request();
        request.get().init_request().set_id(id);
        request.send().promise.await?;
        Ok(())
    }

    /// `setWindowSizeContainer`: columns and rows of a container's terminal.
    ///
    /// # Errors
    /// [`Code::WrongState`] if it has no terminal.
    pub async fn set_window_size(&self, id: &str, columns: u16, rows: u16) -> Result<(), Error> {
        let mut call = self.conmon().set_window_size_container_request();
        let mut request = call.get().init_request();
        request.set_id(id);
        request.set_width(columns);
        request.set_height(rows);
        call.send().promise.await?;
        Ok(())
    }

    /// `createNamespaces`: kinds and pins of all five that `Conmon` knows.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for another kind.
    pub async fn create_namespaces(
        &self,
        namespaces: &CreateNamespaces,
    ) -> Result<Vec<(NamespaceKind, PathBuf)>, Error> {
        let mut call = self.conmon().create_namespaces_request();
        let mut request = call.get().init_request();
        request.set_base_path(convert::path_text(&namespaces.base_path));
        request.set_pod_id(&namespaces.pod_id);
        let size = convert::count("the list of namespaces", namespaces.namespaces.len())?;
        let mut list = request.reborrow().init_namespaces(size);
        for (index, kind) in (0u32..).zip(&namespaces.namespaces) {
            list.set(index, convert::conmon_namespace(*kind)?);
        }
        let texts = convert::mapping_texts(&namespaces.uid_mappings);
        let size = convert::count("the list of uid mappings", texts.len())?;
        convert::fill_texts(request.reborrow().init_uid_mappings(size), &texts);
        let texts = convert::mapping_texts(&namespaces.gid_mappings);
        let size = convert::count("the list of gid mappings", texts.len())?;
        convert::fill_texts(request.reborrow().init_gid_mappings(size), &texts);
        let answer = call.send().promise.await?;
        let mut pins = Vec::new();
        for pin in answer.get()?.get_response()?.get_namespaces()? {
            let kind = convert::read_conmon_namespace(pin.get_type().map_err(capnp::Error::from)?);
            pins.push((kind, convert::read_path(pin.get_path()?)));
        }
        Ok(pins)
    }

    /// `startFdSocket`: path of the socket that takes descriptors.
    ///
    /// # Errors
    /// As the server says.
    pub async fn start_fd_socket(&self) -> Result<PathBuf, Error> {
        let mut request = self.conmon().start_fd_socket_request();
        request.get().init_request();
        let answer = request.send().promise.await?;
        Ok(convert::read_path(answer.get()?.get_response()?.get_path()?))
    }

    /// `serveExecContainer`: address for a remote client.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::WrongState`].
    pub async fn serve_exec(&self, exec: &ServeExec) -> Result<String, Error> {
        let mut call = self.conmon().serve_exec_container_request();
        let mut request = call.get().init_request();
        request.set_id(&exec.id);
        let size = convert::count("the command", exec.command.len())?;
        convert::fill_texts(request.reborrow().init_command(size), &exec.command);
        request.set_tty(exec.stdio == Stdio::Terminal);
        request.set_stdin(exec.streams.stdin);
        request.set_stdout(exec.streams.stdout);
        request.set_stderr(exec.streams.stderr);
        request.set_cgroup_manager(convert::cgroup_manager(exec.cgroup_manager));
        let answer = call.send().promise.await?;
        Ok(convert::read_text(answer.get()?.get_response()?.get_url()?)?)
    }

    /// `serveAttachContainer`: address for a remote client.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::WrongState`].
    pub async fn serve_attach(&self, id: &str, streams: Streams) -> Result<String, Error> {
        let mut call = self.conmon().serve_attach_container_request();
        let mut request = call.get().init_request();
        request.set_id(id);
        request.set_stdin(streams.stdin);
        request.set_stdout(streams.stdout);
        request.set_stderr(streams.stderr);
        let answer = call.send().promise.await?;
        Ok(convert::read_text(answer.get()?.get_response()?.get_url()?)?)
    }

    /// `servePortForwardContainer`: address for a remote client.
    ///
    /// # Errors
    /// [`Code::NotFound`] if nothing is pinned at `net_ns`.
    pub async fn serve_port_forward(&self, net_ns: &Path) -> Result<String, Error> {
        let mut request = self.conmon().serve_port_forward_container_request();
        request.get().init_request().set_net_ns_path(convert::path_text(net_ns));
        let answer = request.send().promise.await?;
        Ok(convert::read_text(answer.get()?.get_response()?.get_url()?)?)
    }
}

fn connect_stream(path: &Path) -> std::io::Result<tokio::net::UnixStream> {
    let socket = crate::sys::socket::connect(path, rustix::net::SocketType::STREAM)?;
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

/// Events of a pod, one at a time. Dropping it ends the subscription.
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    _subscription: subscription::Client,
    _client: PodClient,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// The next event; `None` when the server has gone away.
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }
}

struct Listener {
    sender: mpsc::Sender<Event>,
}

impl event_listener::Server for Listener {
    async fn event(
        self: Rc<Self>,
        params: event_listener::EventParams,
        _results: event_listener::EventResults,
    ) -> Result<(), capnp::Error> {
        let event = convert::read_event(params.get()?.get_event()?)?;
        let gone = |_| capnp::Error::disconnected("the listener has gone away".into());
        self.sender.send(event).await.map_err(gone)
    }
}

/// A [`PodClient`] with its own event loop, for callers that are not async.
///
/// Messages move only while [`Client::call`] runs.
#[derive(Debug)]
pub struct Client {
    // Before the runtime: its drop aborts a task of it.
    pod: PodClient,
    runtime: LocalRuntime,
}

impl Client {
    /// Connects to the pod socket at `path`, of any length.
    ///
    /// # Errors
    /// [`Code::Disconnected`] if nobody serves it.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let runtime = local_runtime()?;
        let pod = runtime.block_on(PodClient::connect(path))?;
        Ok(Self { pod, runtime })
    }

    /// Runs one request, or any future made of several, to its end:
    /// `client.call(async |pod| pod.version().await)`.
    pub fn call<'a, T, F: Future<Output = T>>(&'a self, request: impl FnOnce(&'a PodClient) -> F) -> T {
        self.runtime.block_on(request(&self.pod))
    }
}

/// The event loop in which a [`PodClient`] lives: this thread and no other.
///
/// # Errors
/// [`Code::ResourceExhausted`] if the kernel gives no epoll descriptor.
pub fn local_runtime() -> Result<LocalRuntime, Error> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_io().enable_time().build_local(Default::default()).map_err(|error| Error::runtime(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::schema::podinit_capnp::event;
    use std::cell::Cell;
    use std::os::unix::net::UnixListener;

    #[test]
    fn nobody_there_is_told_apart_from_a_dead_socket() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("conmon.sock");
        let error = Client::connect(&path).unwrap_err();
        assert_eq!(error.code, Code::Disconnected);
        assert!(error.message.contains("not running"), "{error}");

        drop(UnixListener::bind(&path).unwrap());
        let error = Client::connect(&path).unwrap_err();
        assert_eq!(error.code, Code::Disconnected);
        assert!(error.message.contains("without cleaning up"), "{error}");
    }

    #[test]
    fn server_that_closes_the_connection_ends_the_call() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("conmon.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::connect(&path).unwrap();
        drop(listener.accept().unwrap());
        let error = client.call(async |pod| pod.version().await).unwrap_err();
        assert_eq!(error.code, Code::Disconnected, "{error}");
    }

    /// Sends events as fast as they are taken and counts those.
    struct Flood {
        taken: Rc<Cell<u64>>,
    }

    impl subscription::Server for Flood {}
    impl conmon::Server for Flood {}
    impl pod::Server for Flood {
        async fn events(
            self: Rc<Self>,
            params: pod::EventsParams,
            mut results: pod::EventsResults,
        ) -> Result<(), capnp::Error> {
            let listener = params.get()?.get_listener()?;
            let taken = self.taken.clone();
            tokio::task::spawn_local(async move {
                loop {
                    let mut request = listener.event_request();
                    let mut event: event::Builder<'_> = request.get().init_event();
                    event.set_sequence(taken.get() + 1);
                    event.set_started(());
                    if request.send().promise.await.is_err() {
                        break;
                    }
                    taken.set(taken.get() + 1);
                }
            });
            results.get().set_subscription(capnp_rpc::new_client(Flood { taken: self.taken.clone() }));
            Ok(())
        }
    }

    #[test]
    fn slow_reader_of_events_holds_one() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let taken = Rc::new(Cell::new(0));
        local_runtime().unwrap().block_on(async {
            let flood: pod::Client = capnp_rpc::new_client(Flood { taken: taken.clone() });
            far.set_nonblocking(true).unwrap();
            let (reader, writer) = tokio::net::UnixStream::from_std(far).unwrap().into_split();
            let network = twoparty::VatNetwork::new(
                reader.compat(),
                writer.compat_write(),
                rpc_twoparty_capnp::Side::Server,
                reader_options(),
            );
            let system = RpcSystem::new(Box::new(network), Some(flood.clone().client));
            let server = tokio::task::spawn_local(system);

            near.set_nonblocking(true).unwrap();
            let pod = PodClient::start(tokio::net::UnixStream::from_std(near).unwrap());
            let mut events = pod.events(0).await.unwrap();
            for sequence in 1..=100 {
                let event = events.next().await.unwrap();
                assert_eq!((event.sequence, event.kind), (sequence, EventKind::Started));
                // One is in the channel, one waits in the listener for room.
                assert!(taken.get() <= sequence + 1, "{} taken at {sequence}", taken.get());
            }
            // Enough turns of the loop for a listener without a bound to run away.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            assert!(taken.get() <= 102, "{} taken", taken.get());
            server.abort();
        });
    }
}
