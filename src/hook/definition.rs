//! What a hook is, whoever defined it: the fields of a hooks.d 1.0.0 file
//! (oci-hooks(5)), and podinit's own beside them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use caps::Capability;

use super::pattern::Pattern;
use crate::ns::Kind;

/// The directories that hooks are read from unless others are named, in rising
/// preference: a file of a later one replaces one of the same name.
///
/// They are podinit's own, so that what an engine injects from its directories
/// is not run a second time.
#[must_use]
pub fn default_directories() -> [&'static Path; 2] {
    ["/usr/share/podinit/hooks.d", "/etc/podinit/hooks.d"].map(Path::new)
}

/// A moment at which hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The pod's namespaces are pinned; there is no network in them yet.
    PodCreate,
    /// The engine says that the pod's network is complete.
    NetworkReady,
    /// The engine says that the pod is ready for containers.
    PodReady,
    /// The container has been created, and not answered yet. `prestart` in files.
    CreateRuntime,
    /// As [`Stage::CreateRuntime`], after it.
    CreateContainer,
    /// Before the container's command is started.
    StartContainer,
    /// The container's command has been started.
    Poststart,
    /// Before the container is asked to end.
    PreStop,
    /// The container has ended, and how has been recorded.
    ContainerExited,
    /// The container has been deleted.
    Poststop,
    /// The pod ends; its namespaces are still there.
    PodStop,
}

/// A name that no stage has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no stage {0:?}; there are {list}", list = Stage::ALL.map(Stage::name).join(", "))]
pub struct UnknownStage(pub String);

impl Stage {
    /// Every stage, in the order of a pod's life.
    pub const ALL: [Self; 11] = [
        Self::PodCreate,
        Self::NetworkReady,
        Self::PodReady,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::PreStop,
        Self::ContainerExited,
        Self::Poststop,
        Self::PodStop,
    ];

    /// The name in files, in a hook's environment and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PodCreate => "podCreate",
            Self::NetworkReady => "networkReady",
            Self::PodReady => "podReady",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::PreStop => "preStop",
            Self::ContainerExited => "containerExited",
            Self::Poststop => "poststop",
            Self::PodStop => "podStop",
        }
    }

    /// Whether it is a stage of the pod, with no container to speak of.
    #[must_use]
    pub fn is_of_pod(self) -> bool {
        matches!(self, Self::PodCreate | Self::NetworkReady | Self::PodReady | Self::PodStop)
    }

    /// Whether something that was begun can still be called off when a hook
    /// fails. At the other stages what happened has happened, and every hook
    /// gets its turn.
    #[must_use]
    pub fn can_be_refused(self) -> bool {
        !matches!(self, Self::PreStop | Self::ContainerExited | Self::Poststop | Self::PodStop)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = UnknownStage;

    /// `prestart` is the older name of `createRuntime`.
    fn from_str(name: &str) -> Result<Self, UnknownStage> {
        if name == "prestart" {
            return Ok(Self::CreateRuntime);
        }
        let known = Self::ALL.into_iter().find(|stage| stage.name() == name);
        known.ok_or_else(|| UnknownStage(name.to_owned()))
    }
}

/// A hook: a program, when it runs, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Hook {
    /// Name of its file, with `.json`, or the name that a client gave.
    pub name: String,
    /// The program, absolute, in the host's mount namespace.
    pub path: PathBuf,
    /// The whole argument vector, with `argv[0]`; empty = the path alone.
    pub args: Vec<String>,
    /// The environment: names and values.
    pub env: Vec<(String, String)>,
    /// How long it may take; absent = the runner's default.
    pub timeout: Option<Duration>,
    /// Which containers it is for.
    pub when: When,
    /// At which stages it runs; none twice.
    pub stages: Vec<Stage>,
    /// What only podinit knows.
    pub options: Options,
}

impl Hook {
    /// What its failure at a stage means: what the hook says, else what the OCI
    /// runtime specification says of such a stage. Where nothing can be called
    /// off, a failure is a warning at most.
    #[must_use]
    pub fn failure_at(&self, stage: Stage) -> Failure {
        match self.options.failure {
            Some(Failure::Fail) | None if stage.can_be_refused() => Failure::Fail,
            Some(Failure::Fail) | None => Failure::Warn,
            Some(other) => other,
        }
    }
}

/// Conditions; every one that is given must hold. None given = never.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct When {
    /// `true` holds, `false` never does.
    pub always: Option<bool>,
    /// For each pair of patterns, some annotation must match with both its key
    /// and its value.
    pub annotations: Vec<(Pattern, Pattern)>,
    /// One of these must match the command's first argument.
    pub commands: Vec<Pattern>,
    /// `true` holds if the container has bind mounts of its user; `false` never does.
    pub has_bind_mounts: Option<bool>,
}

impl When {
    /// Holds for everything.
    #[must_use]
    pub fn always() -> Self {
        Self { always: Some(true), ..Self::default() }
    }
}

/// The fields of the `podinit` key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Namespaces to join: the container's at a stage of a container, else the
    /// pod's. Of [`Options::NAMESPACES`].
    pub namespaces: Vec<Kind>,
    /// What a failure means; absent = what the stage says ([`Hook::failure_at`]).
    pub failure: Option<Failure>,
    /// How often it is tried.
    pub retry: Retry,
    /// Names of hooks that run before this one, where they are.
    pub after: Vec<String>,
    /// Names of hooks that run after this one, where they are.
    pub before: Vec<String>,
    /// Who runs it; absent = root.
    pub user: Option<User>,
    /// What all of its capability sets contain; absent = what podinit has.
    pub capabilities: Option<Vec<Capability>>,
    /// Whose cgroup its own is below.
    pub cgroup: Cgroup,
    /// What becomes of its output.
    pub output: Output,
    /// May run at the same time as its neighbours in order that may, too.
    pub concurrent: bool,
}

impl Options {
    /// The kinds of namespaces that a hook may ask for.
    pub const NAMESPACES: [Kind; 7] =
        [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Pid, Kind::User, Kind::Mnt, Kind::Cgroup];
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespaces: vec![Kind::Net, Kind::Ipc, Kind::Uts],
            failure: None,
            retry: Retry::default(),
            after: Vec::new(),
            before: Vec::new(),
            user: None,
            capabilities: None,
            cgroup: Cgroup::default(),
            output: Output::default(),
            concurrent: false,
        }
    }
}

/// What the failure of a hook means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// What the stage belongs to fails; later hooks of the stage do not run.
    Fail,
    /// It is logged and told as an event; the rest goes on.
    Warn,
    /// It is in the hook's result only.
    Ignore,
}

impl Failure {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Fail, Self::Warn, Self::Ignore];

    /// The name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Warn => "warn",
            Self::Ignore => "ignore",
        }
    }
}

/// How often a hook that fails is tried. A time-out is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all, the first included; at least 1.
    pub attempts: u32,
    /// Pause before each further attempt.
    pub pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 1, pause: Duration::ZERO }
    }
}

/// Who runs a hook: ids, as its user namespace counts them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups; those of podinit are dropped in any case.
    pub additional_gids: Vec<u32>,
}

/// Whose cgroup a hook's own is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Cgroup {
    /// The pod's: what the hook uses counts for the pod, and its limits hold.
    #[default]
    Pod,
    /// The monitor's: the pod's limits do not hold.
    Monitor,
}

impl Cgroup {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Pod, Self::Monitor];

    /// The name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Monitor => "monitor",
        }
    }
}

/// What becomes of a hook's output, beside its last part in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Output {
    /// To the container's log where the stage has one, else to podinit's.
    #[default]
    Log,
    /// Nothing.
    Discard,
}

impl Output {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Log, Self::Discard];

    /// The name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Discard => "discard",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_name_that_is_its_own() {
        for stage in Stage::ALL {
            assert_eq!(stage.name().parse(), Ok(stage));
        }
        assert_eq!("prestart".parse(), Ok(Stage::CreateRuntime));
        let unknown = "PostStart".parse::<Stage>().unwrap_err();
        assert!(unknown.to_string().contains("poststart, preStop"), "{unknown}");
    }

    #[test]
    fn a_failure_counts_where_something_can_be_called_off() {
        let hook = |failure| Hook {
            name: "h".to_owned(),
            path: "/bin/true".into(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: None,
            when: When::always(),
            stages: Vec::new(),
            options: Options { failure, ..Options::default() },
        };
        for stage in Stage::ALL {
            let most = if stage.can_be_refused() { Failure::Fail } else { Failure::Warn };
            assert_eq!(hook(None).failure_at(stage), most, "{stage}");
            assert_eq!(hook(Some(Failure::Fail)).failure_at(stage), most, "{stage}");
            assert_eq!(hook(Some(Failure::Warn)).failure_at(stage), Failure::Warn);
            assert_eq!(hook(Some(Failure::Ignore)).failure_at(stage), Failure::Ignore);
        }
    }
}
