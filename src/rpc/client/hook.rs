//! The client's methods and types for hooks.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::convert::{read_path, read_text};
use super::{Connection, Error, NamespaceKind, PodClient, bootstrap, connect_stream, convert};
use crate::rpc::schema::podinit_capnp as pod;

/// Which hook `runHook` is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookChoice {
    /// One that the pod knows, by its name.
    Name(String),
    /// What a hook file of version 1.0.0 would hold.
    Definition(String),
}

/// One run of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRequest {
    /// Which.
    pub hook: HookChoice,
    /// What it is told; empty = the first of its own stages.
    pub stage: String,
    /// As a hook of which container; empty = of the pod.
    pub container: String,
    /// Which pod; empty = the only one.
    pub pod_id: String,
    /// Its bundle; empty = the container's, or the pod's run directory.
    pub bundle: String,
}

impl HookRequest {
    /// Runs `hook` as a hook of the only pod.
    #[must_use]
    pub fn new(hook: HookChoice) -> Self {
        Self {
            hook,
            stage: String::new(),
            container: String::new(),
            pod_id: String::new(),
            bundle: String::new(),
        }
    }
}

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookOutcome {
    /// With this exit status.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Its time was over.
    TimedOut,
    /// It was not started, for this reason.
    NotStarted(String),
    /// A resident hook succeeded.
    Answered,
    /// A resident hook failed, for this reason.
    Refused(String),
    /// Its status is not known, for this reason.
    Lost(String),
}

impl HookOutcome {
    /// Whether the hook did what it was to do.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Code(0) | Self::Answered)
    }
}

/// One run of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookResult {
    /// Counts from 1.
    pub sequence: u64,
    /// The hook's name.
    pub hook: String,
    /// When it ran.
    pub stage: String,
    /// For which pod.
    pub pod_id: String,
    /// For which container; empty for a hook of the pod.
    pub container: String,
    /// Unix time in nanoseconds.
    pub started_at_ns: u64,
    /// Nanoseconds, all attempts together.
    pub elapsed_ns: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// How the last attempt ended.
    pub outcome: HookOutcome,
    /// The last 64 KiB of its standard output.
    pub stdout: Vec<u8>,
    /// The last 64 KiB of its standard error.
    pub stderr: Vec<u8>,
    /// Bytes before `stdout`.
    pub stdout_dropped: u64,
    /// Bytes before `stderr`.
    pub stderr_dropped: u64,
    /// Processes that it left behind.
    pub left_running: u32,
    /// Processes that were killed because its time was over.
    pub killed: u32,
}

/// What the failure of a hook means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookFailurePolicy {
    /// What it belongs to fails.
    Fail,
    /// It is told.
    Warn,
    /// It is in the results only.
    Ignore,
}

impl HookFailurePolicy {
    /// The name in hook files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Warn => "warn",
            Self::Ignore => "ignore",
        }
    }
}

/// A hook that a pod knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookDescription {
    /// Its name.
    pub name: String,
    /// Its program; empty for a resident hook.
    pub path: PathBuf,
    /// The program's arguments, `argv[0]` too.
    pub args: Vec<String>,
    /// When it runs.
    pub stages: Vec<String>,
    /// Which namespaces it joins.
    pub namespaces: Vec<NamespaceKind>,
    /// What its failure means.
    pub failure: HookFailurePolicy,
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
    /// How often it is tried.
    pub attempts: u32,
    /// Whether it may run beside its neighbours.
    pub concurrent: bool,
    /// Whether a client that is connected runs it.
    pub resident: bool,
}

/// The failure of a hook, as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookFailure {
    /// Number of the result.
    pub sequence: u64,
    /// The hook's name.
    pub hook: String,
    /// When it ran.
    pub stage: String,
    /// For which pod.
    pub pod_id: String,
    /// Whether something was refused or undone because of it.
    pub fatal: bool,
    /// What became of it.
    pub reason: String,
}

impl PodClient {
    /// `runHook`. A hook that fails is no error: see [`HookResult::outcome`].
    ///
    /// # Errors
    /// [`super::Code::NotFound`] if there is no such hook, container or pod;
    /// [`super::Code::InvalidArgument`] if the definition is none.
    pub async fn run_hook(&self, hook: &HookRequest) -> Result<HookResult, Error> {
        let mut call = self.pod.run_hook_request();
        let mut request = call.get().init_request();
        match &hook.hook {
            HookChoice::Name(name) => request.set_name(name),
            HookChoice::Definition(definition) => request.set_definition(definition),
        }
        request.set_stage(&hook.stage);
        request.set_container(&hook.container);
        request.set_pod_id(&hook.pod_id);
        request.set_bundle(&hook.bundle);
        let answer = call.send().promise.await?;
        Ok(read_result(answer.get()?.get_result()?)?)
    }

    /// `listHooks`, in the order in which they would run.
    ///
    /// # Errors
    /// As the server says.
    pub async fn list_hooks(&self) -> Result<Vec<HookDescription>, Error> {
        let answer = self.pod.list_hooks_request().send().promise.await?;
        let list = answer.get()?.get_hooks()?;
        Ok(list.iter().map(read_description).collect::<capnp::Result<_>>()?)
    }

    /// `hookResults` from sequence number `since` on.
    ///
    /// # Errors
    /// As the server says.
    pub async fn hook_results(&self, since: u64) -> Result<Vec<HookResult>, Error> {
        let mut request = self.pod.hook_results_request();
        request.get().set_since(since);
        let answer = request.send().promise.await?;
        let list = answer.get()?.get_results()?;
        Ok(list.iter().map(read_result).collect::<capnp::Result<_>>()?)
    }

    /// `reachStage`: `networkReady` or `podReady`; the results of its hooks.
    ///
    /// # Errors
    /// [`super::Code::RuntimeFailed`] if a hook failed whose policy is `fail`.
    pub async fn reach_stage(&self, stage: &str, pod_id: &str) -> Result<Vec<HookResult>, Error> {
        let mut call = self.pod.reach_stage_request();
        let mut request = call.get().init_request();
        request.set_stage(stage);
        request.set_pod_id(pod_id);
        let answer = call.send().promise.await?;
        let list = answer.get()?.get_results()?;
        Ok(list.iter().map(read_result).collect::<capnp::Result<_>>()?)
    }
}

/// What a resident hook says of itself when it registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRegistration {
    /// Its name; no other hook has it.
    pub name: String,
    /// When it runs.
    pub stages: Vec<String>,
    /// For everything. Otherwise all other conditions that are given must hold.
    pub always: bool,
    /// Regular expressions for key and value of an annotation.
    pub annotations: Vec<(String, String)>,
    /// Regular expressions for a container's command.
    pub commands: Vec<String>,
    /// For containers with bind mounts.
    pub has_bind_mounts: bool,
    /// Names of hooks that run before it.
    pub after: Vec<String>,
    /// Names of hooks that run after it.
    pub before: Vec<String>,
    /// How long it may take, in milliseconds; 0 is the default.
    pub timeout_ms: u64,
    /// What its failure means.
    pub failure: HookFailurePolicy,
    /// Whether it may run beside its neighbours.
    pub concurrent: bool,
}

impl HookRegistration {
    /// A hook for everything at these stages, whose failure counts.
    #[must_use]
    pub fn new(name: &str, stages: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            stages: stages.iter().map(|stage| (*stage).to_owned()).collect(),
            always: true,
            annotations: Vec::new(),
            commands: Vec::new(),
            has_bind_mounts: false,
            after: Vec::new(),
            before: Vec::new(),
            timeout_ms: 0,
            failure: HookFailurePolicy::Fail,
            concurrent: false,
        }
    }
}

/// What a resident hook is asked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookCall {
    /// Which stage has been reached.
    pub stage: String,
    /// In which pod.
    pub pod_id: String,
    /// By which container; empty for a stage of the pod.
    pub container: String,
    /// The OCI state, as JSON.
    pub state: String,
}

/// A connection to the `hooks.sock` of a pod, for resident hooks. Like
/// [`PodClient`] it lives on one thread.
#[derive(Clone)]
pub struct HookRegistry {
    registry: pod::hook_registry::Client,
    _connection: Rc<Connection>,
}

impl std::fmt::Debug for HookRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookRegistry").finish_non_exhaustive()
    }
}

/// A registered hook; it is forgotten when this is dropped.
pub struct RegisteredHook {
    _registration: pod::registration::Client,
    _registry: HookRegistry,
}

impl std::fmt::Debug for RegisteredHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisteredHook").finish_non_exhaustive()
    }
}

impl HookRegistry {
    /// Connects to the socket at `path`, of any length.
    ///
    /// # Errors
    /// [`super::Code::Disconnected`] if nobody serves it.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let stream = connect_stream(path).map_err(|error| Error::connect(path, &error))?;
        let (registry, connection) = bootstrap(stream);
        Ok(Self { registry, _connection: Rc::new(connection) })
    }

    /// Registers a hook; `run` is called for each of its moments. What it fails
    /// with is the reason that others are told.
    ///
    /// # Errors
    /// [`super::Code::AlreadyExists`] if the name is taken;
    /// [`super::Code::InvalidArgument`] if it makes no sense.
    pub async fn register(
        &self,
        hook: &HookRegistration,
        run: impl AsyncFn(HookCall) -> Result<(), String> + 'static,
    ) -> Result<RegisteredHook, Error> {
        let mut call = self.registry.register_request();
        let mut wire = call.get().init_hook();
        wire.set_name(&hook.name);
        wire.set_timeout_ms(hook.timeout_ms);
        wire.set_concurrent(hook.concurrent);
        wire.set_failure(match hook.failure {
            HookFailurePolicy::Fail => pod::HookFailurePolicy::Fail,
            HookFailurePolicy::Warn => pod::HookFailurePolicy::Warn,
            HookFailurePolicy::Ignore => pod::HookFailurePolicy::Ignore,
        });
        let count = |texts: &[String]| convert::count("the registration", texts.len());
        convert::fill_texts(wire.reborrow().init_stages(count(&hook.stages)?), &hook.stages);
        convert::fill_texts(wire.reborrow().init_after(count(&hook.after)?), &hook.after);
        convert::fill_texts(wire.reborrow().init_before(count(&hook.before)?), &hook.before);
        let mut when = wire.init_when();
        when.set_always(hook.always);
        when.set_has_bind_mounts(hook.has_bind_mounts);
        convert::fill_texts(when.reborrow().init_commands(count(&hook.commands)?), &hook.commands);
        let pairs = convert::count("the registration", hook.annotations.len())?;
        convert::fill_key_values(when.init_annotations(pairs), &hook.annotations);
        call.get().set_resident(capnp_rpc::new_client(Plugin { run }));
        let answer = call.send().promise.await?;
        Ok(RegisteredHook { _registration: answer.get()?.get_registration()?, _registry: self.clone() })
    }
}

/// The object that the server asks.
struct Plugin<F> {
    run: F,
}

impl<F: AsyncFn(HookCall) -> Result<(), String> + 'static> pod::resident_hook::Server for Plugin<F> {
    async fn run(
        self: Rc<Self>,
        params: pod::resident_hook::RunParams,
        _: pod::resident_hook::RunResults,
    ) -> Result<(), capnp::Error> {
        let call = params.get()?.get_call()?;
        let call = HookCall {
            stage: read_text(call.get_stage()?)?,
            pod_id: read_text(call.get_pod_id()?)?,
            container: read_text(call.get_container()?)?,
            state: read_text(call.get_state()?)?,
        };
        (self.run)(call).await.map_err(capnp::Error::failed)
    }
}

fn read_result(result: pod::hook_result::Reader<'_>) -> capnp::Result<HookResult> {
    let outcome = match result.which()? {
        pod::hook_result::Code(code) => HookOutcome::Code(code),
        pod::hook_result::Signal(signal) => HookOutcome::Signal(signal),
        pod::hook_result::TimedOut(()) => HookOutcome::TimedOut,
        pod::hook_result::NotStarted(why) => HookOutcome::NotStarted(read_text(why?)?),
        pod::hook_result::Answered(()) => HookOutcome::Answered,
        pod::hook_result::Refused(why) => HookOutcome::Refused(read_text(why?)?),
        pod::hook_result::Lost(why) => HookOutcome::Lost(read_text(why?)?),
    };
    Ok(HookResult {
        sequence: result.get_sequence(),
        hook: read_text(result.get_hook()?)?,
        stage: read_text(result.get_stage()?)?,
        pod_id: read_text(result.get_pod_id()?)?,
        container: read_text(result.get_container()?)?,
        started_at_ns: result.get_started_at_ns(),
        elapsed_ns: result.get_elapsed_ns(),
        attempts: result.get_attempts(),
        outcome,
        stdout: result.get_stdout()?.to_vec(),
        stderr: result.get_stderr()?.to_vec(),
        stdout_dropped: result.get_stdout_dropped(),
        stderr_dropped: result.get_stderr_dropped(),
        left_running: result.get_left_running(),
        killed: result.get_killed(),
    })
}

fn read_description(hook: pod::hook_description::Reader<'_>) -> capnp::Result<HookDescription> {
    let texts = |list: capnp::text_list::Reader<'_>| -> capnp::Result<Vec<String>> {
        list.iter().map(|text| read_text(text?)).collect()
    };
    let kinds = hook.get_namespaces()?;
    Ok(HookDescription {
        name: read_text(hook.get_name()?)?,
        path: read_path(hook.get_path()?),
        args: texts(hook.get_args()?)?,
        stages: texts(hook.get_stages()?)?,
        namespaces: kinds
            .iter()
            .map(|kind| Ok(convert::read_namespace_kind(kind?)))
            .collect::<capnp::Result<_>>()?,
        failure: match hook.get_failure()? {
            pod::HookFailurePolicy::Fail => HookFailurePolicy::Fail,
            pod::HookFailurePolicy::Warn => HookFailurePolicy::Warn,
            pod::HookFailurePolicy::Ignore => HookFailurePolicy::Ignore,
        },
        timeout_ms: hook.get_timeout_ms(),
        attempts: hook.get_attempts(),
        concurrent: hook.get_concurrent(),
        resident: hook.get_resident(),
    })
}

pub(super) fn read_failure(failure: pod::hook_failure::Reader<'_>) -> capnp::Result<HookFailure> {
    Ok(HookFailure {
        sequence: failure.get_sequence(),
        hook: read_text(failure.get_hook()?)?,
        stage: read_text(failure.get_stage()?)?,
        pod_id: read_text(failure.get_pod_id()?)?,
        fatal: failure.get_fatal(),
        reason: read_text(failure.get_reason()?)?,
    })
}
