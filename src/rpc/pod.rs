//! The methods of `Pod`.

use std::rc::Rc;
use std::time::Duration;

use crate::limits::ATTACH_REPLAY_BYTES_MAX;
use crate::monitor::container::Container;
use crate::monitor::error::Error;
use crate::monitor::event::{Event, EventLog, Happening, InitEnd};
use crate::monitor::exec::{ExecEnd, ExecRequest};
use crate::monitor::exit::{ExitCause, ExitRecord, OomVictim};
use crate::monitor::id::{ContainerId, PodId};
use crate::monitor::life::Phase;
use crate::monitor::relay::{Attach, StdinEnd};
use crate::rpc::conmon::create_request;
use crate::rpc::convert::{bounded, container_id, malformed, path, refuse, text, texts};
use crate::rpc::hooks;
use crate::rpc::limits::{self, Limits};
use crate::rpc::sandbox;
use crate::rpc::schema::podinit_capnp as wire;
use crate::rpc::seccomp::Control;
use crate::rpc::server::{PodServer, detached};
use crate::rpc::stats;

impl wire::pod::Server for PodServer {
    async fn list_containers(
        self: Rc<Self>,
        _: wire::pod::ListContainersParams,
        mut results: wire::pod::ListContainersResults,
    ) -> Result<(), capnp::Error> {
        let listed = self.monitor.list();
        let count = u32::try_from(listed.len()).unwrap_or(u32::MAX);
        let mut containers = results.get().init_containers(count);
        for (index, (id, container)) in (0..count).zip(&listed) {
            set_status(containers.reborrow().get(index), id, container.as_deref());
        }
        Ok(())
    }

    async fn container_state(
        self: Rc<Self>,
        params: wire::pod::ContainerStateParams,
        mut results: wire::pod::ContainerStateResults,
    ) -> Result<(), capnp::Error> {
        let id = container_id(params.get()?.get_id()?).map_err(|error| refuse(&error))?;
        let container = self.monitor.state(&id).map_err(|error| refuse(&error))?;
        set_status(results.get().init_status(), &id, container.as_deref());
        Ok(())
    }

    async fn start_container(
        self: Rc<Self>,
        params: wire::pod::StartContainerParams,
        _: wire::pod::StartContainerResults,
    ) -> Result<(), capnp::Error> {
        let id = container_id(params.get()?.get_id()?).map_err(|error| refuse(&error))?;
        let monitor = Rc::clone(&self.monitor);
        detached(async move { monitor.start(&id).await }).await
    }

    async fn stop_container(
        self: Rc<Self>,
        params: wire::pod::StopContainerParams,
        mut results: wire::pod::StopContainerResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let id = container_id(params.get_id()?).map_err(|error| refuse(&error))?;
        let (signal, grace) = (params.get_signal(), Duration::from_millis(params.get_grace_ms().into()));
        let monitor = Rc::clone(&self.monitor);
        let stopped = detached(async move { monitor.stop(&id, signal, grace).await }).await?;
        let mut result = results.get().init_result();
        result.set_killed(stopped.killed);
        set_exit(result.init_exit(), &stopped.exit);
        Ok(())
    }

    async fn delete_container(
        self: Rc<Self>,
        params: wire::pod::DeleteContainerParams,
        _: wire::pod::DeleteContainerResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let id = container_id(params.get_id()?).map_err(|error| refuse(&error))?;
        let force = params.get_force();
        let monitor = Rc::clone(&self.monitor);
        detached(async move { monitor.delete(&id, force).await }).await
    }

    async fn wait_container(
        self: Rc<Self>,
        params: wire::pod::WaitContainerParams,
        mut results: wire::pod::WaitContainerResults,
    ) -> Result<(), capnp::Error> {
        let id = container_id(params.get()?.get_id()?).map_err(|error| refuse(&error))?;
        let container = self.monitor.settled(&id).await.map_err(|error| refuse(&error))?;
        set_exit(results.get().init_exit(), &*container.recorded().await);
        Ok(())
    }

    async fn events(
        self: Rc<Self>,
        params: wire::pod::EventsParams,
        mut results: wire::pod::EventsResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (since, listener) = (params.get_since(), params.get_listener()?);
        let monitor = Rc::clone(&self.monitor);
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = forward(&monitor.events, since, &listener).await {
                ::log::debug!("an event listener is gone: {error}");
            }
        });
        let subscription: wire::subscription::Client = capnp_rpc::new_client(Subscription(task));
        results.get().set_subscription(subscription);
        Ok(())
    }

    async fn shutdown(
        self: Rc<Self>,
        params: wire::pod::ShutdownParams,
        _: wire::pod::ShutdownResults,
    ) -> Result<(), capnp::Error> {
        let grace = Duration::from_millis(params.get()?.get_grace_ms().into());
        let monitor = Rc::clone(&self.monitor);
        detached(async move { monitor.shutdown(grace).await }).await?;
        let monitor = Rc::clone(&self.monitor);
        tokio::task::spawn_local(async move {
            // After this answer is in the connection's queue; `Server::close` sends what is in there.
            tokio::task::yield_now().await;
            monitor.finish();
        });
        Ok(())
    }

    async fn create_sandbox(
        self: Rc<Self>,
        params: wire::pod::CreateSandboxParams,
        mut results: wire::pod::CreateSandboxResults,
    ) -> Result<(), capnp::Error> {
        let base = self.monitor.config.run_dir.join("ns");
        let request = sandbox::request(params.get()?.get_request()?, base).map_err(|error| refuse(&error))?;
        let monitor = Rc::clone(&self.monitor);
        let made = detached(async move { monitor.create_sandbox(&request).await }).await?;
        sandbox::set(results.get().init_sandbox(), &made);
        Ok(())
    }

    async fn namespaces(
        self: Rc<Self>,
        _: wire::pod::NamespacesParams,
        mut results: wire::pod::NamespacesResults,
    ) -> Result<(), capnp::Error> {
        let made = self.monitor.list_sandboxes().map_err(|error| refuse(&error))?;
        let count = u32::try_from(made.len()).unwrap_or(u32::MAX);
        let mut list = results.get().init_sandboxes(count);
        for (index, made) in (0..count).zip(&made) {
            sandbox::set(list.reborrow().get(index), made);
        }
        Ok(())
    }

    async fn exec(
        self: Rc<Self>,
        params: wire::pod::ExecParams,
        mut results: wire::pod::ExecResults,
    ) -> Result<(), capnp::Error> {
        let request = exec_request(params.get()?.get_request()?)?;
        let monitor = Rc::clone(&self.monitor);
        let outcome = detached(async move { monitor.exec(request).await }).await?;
        let mut result = results.get().init_result();
        result.set_stdout(&outcome.output.stdout);
        result.set_stderr(&outcome.output.stderr);
        result.set_stdout_dropped(outcome.output.stdout_dropped);
        result.set_stderr_dropped(outcome.output.stderr_dropped);
        match outcome.end {
            ExecEnd::Exited(cause) => set_cause(result.init_exit(), &cause),
            ExecEnd::NotStarted(reason) => result.set_not_started(&reason),
            ExecEnd::TimedOut => result.set_timed_out(()),
        }
        Ok(())
    }

    async fn create_container(
        self: Rc<Self>,
        params: wire::pod::CreateContainerParams,
        mut results: wire::pod::CreateContainerResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let mut request =
            create_request(params.get_request()?, &self.monitor).map_err(|error| refuse(&error))?;
        request.init = params.get_init();
        request.log_options = log_options(params.get_log_options()?).map_err(|error| refuse(&error))?;
        let monitor = Rc::clone(&self.monitor);
        let pid = detached(async move { monitor.create(request).await }).await?;
        results.get().set_container_pid(pid);
        Ok(())
    }

    async fn seccomp(
        self: Rc<Self>,
        _: wire::pod::SeccompParams,
        mut results: wire::pod::SeccompResults,
    ) -> Result<(), capnp::Error> {
        let control = Control { seccomp: Rc::clone(&self.monitor.seccomp) };
        results.get().set_control(capnp_rpc::new_client(control));
        Ok(())
    }

    async fn network(
        self: Rc<Self>,
        params: wire::pod::NetworkParams,
        mut results: wire::pod::NetworkResults,
    ) -> Result<(), capnp::Error> {
        let pod = text(params.get()?.get_pod_id()?, "podId").and_then(|pod| PodId::new(&pod));
        let network = pod.and_then(|pod| self.monitor.network(&pod)).map_err(|error| refuse(&error))?;
        stats::set_network(results.get().init_network(), &network);
        Ok(())
    }

    async fn pod_stats(
        self: Rc<Self>,
        _: wire::pod::PodStatsParams,
        mut results: wire::pod::PodStatsResults,
    ) -> Result<(), capnp::Error> {
        stats::set_pod(results.get().init_stats(), &self.monitor);
        Ok(())
    }

    async fn run_hook(
        self: Rc<Self>,
        params: wire::pod::RunHookParams,
        mut results: wire::pod::RunHookResults,
    ) -> Result<(), capnp::Error> {
        let request = hooks::run_request(params.get()?.get_request()?).map_err(|error| refuse(&error))?;
        let monitor = Rc::clone(&self.monitor);
        let result = detached(async move { monitor.run_hook(request).await }).await?;
        hooks::set_result(results.get().init_result(), &result);
        Ok(())
    }

    async fn list_hooks(
        self: Rc<Self>,
        _: wire::pod::ListHooksParams,
        mut results: wire::pod::ListHooksResults,
    ) -> Result<(), capnp::Error> {
        let known = self.monitor.list_hooks();
        let count = u32::try_from(known.len()).unwrap_or(u32::MAX);
        let mut list = results.get().init_hooks(count);
        for (index, known) in (0..count).zip(known.iter()) {
            hooks::set_description(list.reborrow().get(index), known);
        }
        Ok(())
    }

    async fn hook_results(
        self: Rc<Self>,
        params: wire::pod::HookResultsParams,
        mut results: wire::pod::HookResultsResults,
    ) -> Result<(), capnp::Error> {
        let kept = self.monitor.hook_results(params.get()?.get_since());
        let count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
        hooks::set_results(results.get().init_results(count), &kept);
        Ok(())
    }

    async fn reach_stage(
        self: Rc<Self>,
        params: wire::pod::ReachStageParams,
        mut results: wire::pod::ReachStageResults,
    ) -> Result<(), capnp::Error> {
        let request = hooks::stage_request(params.get()?.get_request()?);
        let (stage, pod) = request.map_err(|error| refuse(&error))?;
        let monitor = Rc::clone(&self.monitor);
        let ended = detached(async move { monitor.reach_stage(stage, pod.as_ref()).await }).await?;
        let count = u32::try_from(ended.len()).unwrap_or(u32::MAX);
        hooks::set_results(results.get().init_results(count), &ended);
        Ok(())
    }

    async fn container_stats(
        self: Rc<Self>,
        params: wire::pod::ContainerStatsParams,
        mut results: wire::pod::ContainerStatsResults,
    ) -> Result<(), capnp::Error> {
        let id = container_id(params.get()?.get_id()?).map_err(|error| refuse(&error))?;
        let (counted, is_final) = self.monitor.stream_stats(&id).await.map_err(|error| refuse(&error))?;
        stats::set_container(results.get().init_stats(), &counted);
        stats::set_account(results.get().init_account(), &counted, is_final);
        Ok(())
    }

    async fn attach(
        self: Rc<Self>,
        params: wire::pod::AttachParams,
        _: wire::pod::AttachResults,
    ) -> Result<(), capnp::Error> {
        let (id, attach) = attach_request(params.get()?.get_request()?).map_err(|error| refuse(&error))?;
        self.monitor.attach(&id, attach).await.map_err(|error| refuse(&error))
    }

    async fn set_log_limits(
        self: Rc<Self>,
        params: wire::pod::SetLogLimitsParams,
        _: wire::pod::SetLogLimitsResults,
    ) -> Result<(), capnp::Error> {
        let request = params.get()?.get_request()?;
        let id = request.get_id()?;
        let limits = limits::read(request, id.is_empty()).map_err(|error| refuse(&error))?;
        let set = match limits {
            Limits::Total(rate) => self.monitor.set_log_total(rate),
            Limits::Container(limits) => match container_id(id) {
                Ok(id) => self.monitor.set_log_limits(&id, limits).await,
                Err(error) => Err(error),
            },
        };
        set.map_err(|error| refuse(&error))
    }
}

/// Ends the forwarding when the client drops its capability or is gone.
struct Subscription(tokio::task::JoinHandle<()>);

impl wire::subscription::Server for Subscription {}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn forward(
    events: &EventLog,
    mut since: u64,
    listener: &wire::event_listener::Client,
) -> Result<(), capnp::Error> {
    loop {
        let event = events.after(since).await;
        since = event.sequence;
        let mut request = listener.event_request();
        set_event(request.get().init_event(), &event);
        request.send().promise.await?;
    }
}

fn set_event(mut wire: wire::event::Builder<'_>, event: &Event) {
    wire.set_sequence(event.sequence);
    wire.set_time_ns(event.time_ns);
    wire.set_container(event.container.as_ref().map_or("", ContainerId::as_str));
    match &event.what {
        Happening::Created(pid) => wire.set_created(*pid),
        Happening::Started => wire.set_started(()),
        Happening::Stopping => wire.set_stopping(()),
        Happening::OomKilled => wire.set_oom_killed(()),
        Happening::Exited(record) => set_exit(wire.init_exited(), record),
        Happening::Deleted => wire.set_deleted(()),
        Happening::ExecFailed(reason) => wire.set_exec_failed(reason),
        Happening::MonitorRestarted(times) => wire.set_monitor_restarted(*times),
        Happening::PodStopping => wire.set_pod_stopping(()),
        Happening::Lost(count) => wire.set_lost(*count),
        Happening::InitEnded(end) => set_init_end(wire.init_init_ended(), end),
        Happening::HookFailed(failure) => hooks::set_failure(wire.init_hook_failed(), failure),
        Happening::LogFailed(why) => wire.set_log_failed(why),
        Happening::LogGap(gap) => limits::set_gap(wire.init_log_gap(), gap),
    }
}

fn set_init_end(mut wire: wire::init_end::Builder<'_>, end: &InitEnd) {
    wire.set_pod_id(end.pod.as_str());
    let mut exit = wire.reborrow().init_exit();
    exit.set_exited_at_ns(end.at_ns);
    set_cause(exit, &end.cause);
    let count = u32::try_from(end.killed.len()).unwrap_or(u32::MAX);
    let mut list = wire.init_killed(count);
    for (index, process) in (0..count).zip(&end.killed) {
        let mut wire = list.reborrow().get(index);
        wire.set_pid(process.pid);
        wire.set_name(&*process.name);
    }
}

fn set_status(
    mut wire: wire::container_status::Builder<'_>,
    id: &ContainerId,
    container: Option<&Container>,
) {
    wire.set_id(id.as_str());
    let Some(container) = container else {
        wire.set_phase(wire::ContainerPhase::Creating);
        return;
    };
    wire.set_phase(match container.phase() {
        Phase::Creating => wire::ContainerPhase::Creating,
        Phase::Created => wire::ContainerPhase::Created,
        Phase::Running => wire::ContainerPhase::Running,
        // Its exit is not recorded yet, so for a client it is still on its way out.
        Phase::Stopping | Phase::Draining => wire::ContainerPhase::Stopping,
        Phase::Exited | Phase::Gone => wire::ContainerPhase::Exited,
    });
    wire.set_bundle(&*container.saved.bundle.to_string_lossy());
    wire.set_created_at_ns(container.saved.created_at_ns);
    wire.set_started_at_ns(container.started_at_ns());
    wire.set_terminal(container.saved.terminal);
    if let Some(path) = container.log_path() {
        wire.set_log_path(&*path.to_string_lossy());
    }
    match container.exit() {
        Some(record) => set_exit(wire.init_exit(), &record),
        None => wire.set_pid(container.child.pid()),
    }
}

fn set_exit(mut wire: wire::exit_status::Builder<'_>, record: &ExitRecord) {
    wire.set_oom_killed(record.oom_killed);
    wire.set_oom_victim(match record.oom_victim() {
        OomVictim::Nobody => wire::OomVictim::Nobody,
        OomVictim::FirstProcess => wire::OomVictim::FirstProcess,
        OomVictim::Others => wire::OomVictim::Others,
    });
    wire.set_exited_at_ns(record.at_ns);
    wire.set_log_complete(record.log_complete);
    set_cause(wire, &record.cause);
}

fn set_cause(mut wire: wire::exit_status::Builder<'_>, cause: &ExitCause) {
    match cause {
        ExitCause::Code(code) => wire.set_code(*code),
        ExitCause::Signal(signal) => wire.set_signal(*signal),
        ExitCause::Unknown(reason) => wire.set_unknown(reason),
    }
}

fn log_options(
    list: capnp::struct_list::Reader<'_, wire::key_value::Owned>,
) -> Result<Vec<(String, String)>, Error> {
    bounded(list.len(), "logOptions")?;
    let bad = |error: capnp::Error| malformed("logOptions", &error);
    let option = |pair: wire::key_value::Reader<'_>| {
        let name = text(pair.get_key().map_err(bad)?, "the name of a log option")?;
        Ok((name, text(pair.get_value().map_err(bad)?, "the value of a log option")?))
    };
    list.iter().map(option).collect()
}

fn attach_request(request: wire::attach_request::Reader<'_>) -> Result<(ContainerId, Attach), Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    let id = container_id(request.get_id().map_err(bad)?)?;
    if !request.get_exec_session().map_err(bad)?.is_empty() {
        return Err(Error::Invalid(
            "nothing but a container can be attached to: leave execSession empty".into(),
        ));
    }
    let replay = usize::try_from(request.get_replay_bytes()).unwrap_or(usize::MAX);
    if replay > ATTACH_REPLAY_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "replayBytes is {replay}; at most {ATTACH_REPLAY_BYTES_MAX} bytes are replayed"
        )));
    }
    let attach = Attach {
        path: path(request.get_socket_path().map_err(bad)?, "socketPath")?,
        stdin_end: StdinEnd::of_request(request.get_stop_after_stdin_eof()),
        replay,
    };
    Ok((id, attach))
}

fn exec_request(request: wire::exec_request::Reader<'_>) -> Result<ExecRequest, capnp::Error> {
    let millis = request.get_timeout_ms();
    let id = container_id(request.get_id()?).map_err(|error| refuse(&error))?;
    let command = texts(request.get_command()?, "command").map_err(|error| refuse(&error))?;
    let mut env = Vec::new();
    for pair in request.get_env()? {
        let key = text(pair.get_key()?, "env").map_err(|error| refuse(&error))?;
        env.push((key, text(pair.get_value()?, "env").map_err(|error| refuse(&error))?));
    }
    Ok(ExecRequest {
        id,
        command,
        timeout: (millis > 0).then(|| Duration::from_millis(millis.min(TIMEOUT_MILLIS_MAX))),
        terminal: request.get_terminal(),
        env,
        cgroup_manager: None,
    })
}

/// A hundred years: a clock must be able to add it.
const TIMEOUT_MILLIS_MAX: u64 = 100 * 365 * 86_400_000;
