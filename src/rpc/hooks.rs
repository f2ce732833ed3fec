//! Hooks on the wire: their methods of `Pod`, and the registry of resident hooks
//! on its own socket.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use rustix::net::SocketType;
use tokio::io::{BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::hook::result::{HookResult, Outcome};
use crate::hook::{Failure, Hook, Options, Pattern, Stage, When};
use crate::limits::{ACCEPT_PAUSE, BACKLOG_MAX, HOOK_FILE_BYTES_MAX, HOOK_PATTERNS_MAX, RESIDENT_HOOKS_MAX};
use crate::monitor::Monitor;
use crate::monitor::error::Error;
use crate::monitor::event::HookFailure;
use crate::monitor::hooks::{Call, Choice, Known, Registered, Resident, RunHook, SOCKET_NAME};
use crate::monitor::id::{ContainerId, PodId};
use crate::rpc::convert::{malformed, path, refuse, text, texts};
use crate::rpc::sandbox::kind_to_wire;
use crate::rpc::schema::podinit_capnp as wire;
use crate::rpc::server::check_peer;
use crate::sys;

/// Words (8 bytes) of one message: a registration, with its patterns, is a few KiB.
const MESSAGE_WORDS_MAX: usize = (1 << 20) / 8;

/// Pointers in pointers of one message: ours nest four deep.
const MESSAGE_NESTING_MAX: i32 = 16;

/// Reads a request to run a hook.
pub(super) fn run_request(request: wire::hook_request::Reader<'_>) -> Result<RunHook, Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    let choice = match request.which().map_err(|_| Error::Invalid("name a hook, or define one".into()))? {
        wire::hook_request::Name(name) => Choice::Name(text(name.map_err(bad)?, "name")?),
        wire::hook_request::Definition(definition) => {
            let definition = text(definition.map_err(bad)?, "definition")?;
            if definition.len() as u64 > HOOK_FILE_BYTES_MAX {
                return Err(Error::Invalid(format!(
                    "the definition of a hook has at most {HOOK_FILE_BYTES_MAX} bytes"
                )));
            }
            Choice::Definition(definition)
        }
    };
    let given = |reader: capnp::Result<capnp::text::Reader<'_>>, what| -> Result<Option<String>, Error> {
        Ok(Some(text(reader.map_err(bad)?, what)?).filter(|text| !text.is_empty()))
    };
    let bundle = request.get_bundle().map_err(bad)?;
    Ok(RunHook {
        choice,
        stage: given(request.get_stage(), "stage")?.map(|name| stage(&name)).transpose()?,
        container: given(request.get_container(), "container")?
            .map(|id| ContainerId::new(&id))
            .transpose()?,
        pod: given(request.get_pod_id(), "podId")?.map(|id| PodId::new(&id)).transpose()?,
        bundle: if bundle.is_empty() { None } else { Some(path(bundle, "bundle")?) },
    })
}

/// Reads which stage of which pod has been reached.
pub(super) fn stage_request(
    request: wire::stage_request::Reader<'_>,
) -> Result<(Stage, Option<PodId>), Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    let name = text(request.get_stage().map_err(bad)?, "stage")?;
    let pod = text(request.get_pod_id().map_err(bad)?, "podId")?;
    let pod = if pod.is_empty() { None } else { Some(PodId::new(&pod)?) };
    Ok((stage(&name)?, pod))
}

fn stage(name: &str) -> Result<Stage, Error> {
    name.parse().map_err(|error: crate::hook::UnknownStage| Error::Invalid(error.to_string()))
}

/// Writes a result.
pub(super) fn set_result(mut wire: wire::hook_result::Builder<'_>, result: &HookResult) {
    wire.set_sequence(result.sequence);
    wire.set_hook(&result.hook);
    wire.set_stage(result.stage.name());
    wire.set_pod_id(&result.pod);
    wire.set_container(result.container.as_deref().unwrap_or_default());
    wire.set_started_at_ns(result.started_at_ns);
    wire.set_elapsed_ns(u64::try_from(result.elapsed.as_nanos()).unwrap_or(u64::MAX));
    wire.set_attempts(result.attempts);
    wire.set_stdout(result.stdout.bytes());
    wire.set_stderr(result.stderr.bytes());
    wire.set_stdout_dropped(result.stdout.dropped());
    wire.set_stderr_dropped(result.stderr.dropped());
    wire.set_left_running(u32::try_from(result.left_running).unwrap_or(u32::MAX));
    wire.set_killed(u32::try_from(result.killed).unwrap_or(u32::MAX));
    match &result.outcome {
        Outcome::Code(code) => wire.set_code(*code),
        Outcome::Signal(signal) => wire.set_signal(*signal),
        Outcome::TimedOut(_) => wire.set_timed_out(()),
        Outcome::NotStarted(reason) => wire.set_not_started(reason),
        Outcome::Answered => wire.set_answered(()),
        Outcome::Refused(reason) => wire.set_refused(reason),
        Outcome::Lost(reason) => wire.set_lost(reason),
    }
}

/// Writes a list of results.
pub(super) fn set_results(
    mut list: capnp::struct_list::Builder<'_, wire::hook_result::Owned>,
    results: &[Rc<HookResult>],
) {
    for (index, result) in (0..list.len()).zip(results) {
        set_result(list.reborrow().get(index), result);
    }
}

/// Writes what a hook is.
pub(super) fn set_description(mut wire: wire::hook_description::Builder<'_>, known: &Known) {
    let hook = &*known.hook;
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    wire.set_name(&hook.name);
    wire.set_path(&*hook.path.to_string_lossy());
    let mut args = wire.reborrow().init_args(count(hook.args.len()));
    for (index, argument) in (0..).zip(&hook.args) {
        args.set(index, argument);
    }
    let mut stages = wire.reborrow().init_stages(count(hook.stages.len()));
    for (index, stage) in (0..).zip(&hook.stages) {
        stages.set(index, stage.name());
    }
    let joined = if known.resident.is_some() { &[][..] } else { &hook.options.namespaces };
    let mut kinds = wire.reborrow().init_namespaces(count(joined.len()));
    for (index, kind) in (0..).zip(joined) {
        kinds.set(index, kind_to_wire(*kind));
    }
    wire.set_failure(match hook.options.failure.unwrap_or(Failure::Fail) {
        Failure::Fail => wire::HookFailurePolicy::Fail,
        Failure::Warn => wire::HookFailurePolicy::Warn,
        Failure::Ignore => wire::HookFailurePolicy::Ignore,
    });
    wire.set_timeout_ms(u64::try_from(known.limit().as_millis()).unwrap_or(u64::MAX));
    wire.set_attempts(hook.options.retry.attempts);
    wire.set_concurrent(hook.options.concurrent);
    wire.set_resident(known.resident.is_some());
}

/// Writes a failure into an event.
pub(super) fn set_failure(mut wire: wire::hook_failure::Builder<'_>, failure: &HookFailure) {
    wire.set_sequence(failure.sequence);
    wire.set_hook(&failure.hook);
    wire.set_stage(failure.stage.name());
    wire.set_pod_id(&failure.pod);
    wire.set_fatal(failure.fatal);
    wire.set_reason(&failure.reason);
}

/// Reads what a resident hook says of itself.
fn registration(reader: wire::hook_registration::Reader<'_>) -> Result<Hook, Error> {
    let bad = |error: capnp::Error| malformed("the registration", &error);
    let stages = texts(reader.get_stages().map_err(bad)?, "stages")?;
    let mut known = Vec::new();
    for name in &stages {
        let stage = stage(name)?;
        if !known.contains(&stage) {
            known.push(stage);
        }
    }
    let failure = match reader.get_failure() {
        Ok(wire::HookFailurePolicy::Fail) => Failure::Fail,
        Ok(wire::HookFailurePolicy::Warn) => Failure::Warn,
        Ok(wire::HookFailurePolicy::Ignore) => Failure::Ignore,
        Err(capnp::NotInSchema(number)) => {
            return Err(Error::Invalid(format!("there is no failure policy {number}")));
        }
    };
    let millis = reader.get_timeout_ms();
    let options = Options {
        failure: Some(failure),
        after: texts(reader.get_after().map_err(bad)?, "after")?,
        before: texts(reader.get_before().map_err(bad)?, "before")?,
        concurrent: reader.get_concurrent(),
        ..Options::default()
    };
    Ok(Hook {
        name: text(reader.get_name().map_err(bad)?, "name")?,
        path: std::path::PathBuf::new(),
        args: Vec::new(),
        env: Vec::new(),
        timeout: (millis > 0).then(|| Duration::from_millis(millis)),
        when: condition(reader.get_when().map_err(bad)?)?,
        stages: known,
        options,
    })
}

fn condition(reader: wire::hook_condition::Reader<'_>) -> Result<When, Error> {
    let bad = |error: capnp::Error| malformed("when", &error);
    let pattern = |text: &str| Pattern::new(text).map_err(|error| Error::Invalid(error.to_string()));
    let (pairs, commands) = (reader.get_annotations().map_err(bad)?, reader.get_commands().map_err(bad)?);
    let count = usize::try_from(u64::from(pairs.len()) * 2 + u64::from(commands.len())).unwrap_or(usize::MAX);
    if count > HOOK_PATTERNS_MAX {
        return Err(Error::Invalid(format!("a hook has at most {HOOK_PATTERNS_MAX} regular expressions")));
    }
    let mut annotations = Vec::new();
    for pair in pairs {
        let key = text(pair.get_key().map_err(bad)?, "annotations")?;
        let value = text(pair.get_value().map_err(bad)?, "annotations")?;
        annotations.push((pattern(&key)?, pattern(&value)?));
    }
    let commands = texts(commands, "commands")?;
    Ok(When {
        always: reader.get_always().then_some(true),
        annotations,
        commands: commands.iter().map(|text| pattern(text)).collect::<Result<_, _>>()?,
        has_bind_mounts: reader.get_has_bind_mounts().then_some(true),
    })
}

/// Accepts plugins with resident hooks on `hooks.sock`, for as long as the pod lives.
///
/// # Errors
/// If the socket cannot be made.
pub fn serve_registry(monitor: &Rc<Monitor>) -> Result<impl Future<Output = ()> + 'static, Error> {
    let path = monitor.config.run_dir.join(SOCKET_NAME);
    let fail = |error| Error::io(format!("listen on {}", path.display()), error);
    // The run directory is locked, so one that is there is what a crash has left.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = sys::socket::listen(&path, SocketType::STREAM, BACKLOG_MAX).map_err(fail)?;
    let listener = UnixListener::from_std(listener.into()).map_err(fail)?;
    let monitor = Rc::clone(monitor);
    Ok(async move {
        let permits = Arc::new(Semaphore::new(RESIDENT_HOOKS_MAX));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let monitor = Rc::clone(&monitor);
                    tokio::task::spawn_local(async move {
                        plugin(monitor, stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    ::log::debug!("a plugin was not accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Serves one connection to its end.
async fn plugin(monitor: Rc<Monitor>, stream: UnixStream) {
    if let Err(reason) = check_peer(&stream) {
        ::log::warn!("refused a plugin: {reason}");
        return;
    }
    let (reader, writer) = stream.into_split();
    let options = ReaderOptions {
        traversal_limit_in_words: Some(MESSAGE_WORDS_MAX),
        nesting_limit: MESSAGE_NESTING_MAX,
    };
    let (reader, writer) = (BufReader::new(reader).compat(), BufWriter::new(writer).compat_write());
    let network = twoparty::VatNetwork::new(reader, writer, Side::Server, options);
    let registry: wire::hook_registry::Client = capnp_rpc::new_client(Registry { monitor });
    let system = RpcSystem::new(Box::new(network), Some(registry.client));
    if let Err(error) = system.await {
        ::log::debug!("a plugin is gone: {error}");
    }
}

/// The bootstrap object of a plugin's connection.
struct Registry {
    monitor: Rc<Monitor>,
}

impl wire::hook_registry::Server for Registry {
    async fn register(
        self: Rc<Self>,
        params: wire::hook_registry::RegisterParams,
        mut results: wire::hook_registry::RegisterResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let hook = registration(params.get_hook()?).map_err(|error| refuse(&error))?;
        let plugin = Plugin(params.get_resident()?);
        let registered = self.monitor.register_hook(hook, Rc::new(plugin)).map_err(|error| refuse(&error))?;
        results.get().set_registration(capnp_rpc::new_client(Registration { _held: registered }));
        Ok(())
    }
}

/// Ends the registration when the client drops its capability or is gone.
struct Registration {
    _held: Registered,
}

impl wire::registration::Server for Registration {}

/// A resident hook at the other end of a connection.
struct Plugin(wire::resident_hook::Client);

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").finish_non_exhaustive()
    }
}

impl Resident for Plugin {
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Result<(), String>>>> {
        let mut request = self.0.run_request();
        let mut wire = request.get().init_call();
        wire.set_stage(call.stage.name());
        wire.set_pod_id(&call.pod);
        wire.set_container(&call.container);
        wire.set_state(&call.state);
        let promise = request.send().promise;
        Box::pin(async move { promise.await.map(drop).map_err(|error| words(&error)) })
    }
}

/// What a plugin said, without what the library puts before it.
fn words(error: &capnp::Error) -> String {
    match error.kind {
        capnp::ErrorKind::Disconnected => "its connection has ended".to_owned(),
        _ => error.extra.trim_start_matches("remote exception: ").to_owned(),
    }
}
