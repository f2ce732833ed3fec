//! Hooks at their moments: which there are, when they run, what their failure
//! means, and how they ended.
//!
//! ```text
//!  files, clients ─▶ known, in order ─┐
//!  life cycle ─▶ moment ─▶ occasion ──┴▶ stage ─▶ attempt ─▶ result ─▶ log, event
//! ```
//!
//! [`moment`] is what the life cycle calls, one function each; [`stage`] chooses,
//! orders and judges; [`process`] runs one; [`place`] says where. Without a hook a
//! moment is one look at a list.
#![forbid(unsafe_code)]

mod below;
mod moment;
mod occasion;
mod place;
mod process;
mod resident;
mod source;
mod stage;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::hook::order::{Cycle, order};
use crate::hook::result::{HookResult, Results};
use crate::hook::{Catalogue, Hook, Stage, file, run};
use crate::limits::HOOKS_PARTING_MAX;
use crate::monitor::Monitor;
use crate::monitor::error::Error;
use crate::monitor::id::{ContainerId, PodId};
use crate::monitor::leaf::Leaf;
use crate::ns::sandbox::Record;
pub(in crate::monitor) use occasion::OfContainer;
pub use resident::{Call, Registered, Resident};

/// The socket for resident hooks, in the run directory.
pub const SOCKET_NAME: &str = "hooks.sock";

/// A hook that the pod knows.
#[derive(Debug, Clone)]
pub struct Known {
    /// What it is.
    pub hook: Rc<Hook>,
    /// Who runs it, if it is no program.
    pub resident: Option<Rc<dyn Resident>>,
}

impl Known {
    /// How long it may take.
    #[must_use]
    pub fn limit(&self) -> Duration {
        run::limit_of(&self.hook)
    }
}

/// The hooks of this pod.
#[derive(Debug, Default)]
pub struct Hooks {
    /// The files, as they were last read.
    catalogue: RefCell<Option<Catalogue>>,
    /// Of files, in the files' order.
    files: RefCell<Vec<Known>>,
    resident: RefCell<Vec<Known>>,
    /// Both, in the order in which they run.
    all: RefCell<Rc<Vec<Known>>>,
    results: RefCell<Results>,
    /// Cgroups of hooks that left something behind.
    leaves: RefCell<Vec<Leaf>>,
    leaf_count: Cell<u64>,
    /// When all hooks must have ended, once the pod is on its way out.
    parting: watch::Sender<Option<Instant>>,
    /// The pods' namespaces, as they were last read: every occasion needs them.
    sandboxes: RefCell<Option<Rc<Vec<Record>>>>,
    /// Pods that were told of their end.
    parted: RefCell<BTreeSet<String>>,
}

impl Hooks {
    fn next_leaf(&self) -> u64 {
        self.leaf_count.set(self.leaf_count.get() + 1);
        self.leaf_count.get()
    }

    fn keep_leaf(&self, leaf: Leaf) {
        self.leaves.borrow_mut().push(leaf);
    }

    /// The pod is ended at once: hooks get a short time, all together.
    pub(in crate::monitor) fn part(&self) {
        self.parting.send_replace(Some(Instant::now() + HOOKS_PARTING_MAX));
    }

    /// Waits until `deadline`, or until all hooks must have ended.
    async fn out_of_time(&self, deadline: Instant) {
        let mut parting = self.parting.subscribe();
        let earlier = async {
            match parting.wait_for(Option::is_some).await.map(|at| *at) {
                Ok(Some(at)) => tokio::time::sleep_until(at).await,
                // The sender is a field of `self`: it outlives this.
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => {}
            () = earlier => {}
        }
    }

    /// The pods' namespaces are others now.
    pub(in crate::monitor) fn forget_sandboxes(&self) {
        self.sandboxes.take();
    }

    /// Whether any hook runs at `stage`.
    fn any_at(&self, stage: Stage) -> bool {
        self.all.borrow().iter().any(|known| known.hook.stages.contains(&stage))
    }

    fn check_order(&self) -> Result<(), Error> {
        let (files, resident) = (self.files.borrow(), self.resident.borrow());
        let hooks = files.iter().chain(resident.iter()).map(|known| &*known.hook).collect::<Vec<_>>();
        order(&hooks).map(drop).map_err(|error: Cycle| Error::Invalid(error.to_string()))
    }

    /// Puts files and resident hooks into one order.
    fn arrange(&self) {
        let (files, resident) = (self.files.borrow(), self.resident.borrow());
        let known = files.iter().chain(resident.iter()).collect::<Vec<_>>();
        let hooks = known.iter().map(|known| &*known.hook).collect::<Vec<_>>();
        let all = match order(&hooks) {
            Ok(indices) => {
                indices.into_iter().filter_map(|at| known.get(at)).map(|known| (*known).clone()).collect()
            }
            Err(error) => {
                // Each source was checked by itself; together they contradict each other.
                ::log::error!("hooks run in the order of their names: {error}");
                known.into_iter().cloned().collect()
            }
        };
        self.all.replace(Rc::new(all));
    }
}

/// Which hook a client wants to run.
#[derive(Debug)]
pub enum Choice {
    /// A known one.
    Name(String),
    /// What a hook file would hold.
    Definition(String),
}

/// A client's request to run one hook once.
#[derive(Debug)]
pub struct RunHook {
    /// Which.
    pub choice: Choice,
    /// What it is told; else the first of its stages.
    pub stage: Option<Stage>,
    /// As a hook of this container; else of the pod.
    pub container: Option<ContainerId>,
    /// Which pod; else the only one.
    pub pod: Option<PodId>,
    /// Another bundle than the container's, or the run directory.
    pub bundle: Option<std::path::PathBuf>,
}

impl Monitor {
    /// Every hook, in the order in which they would run.
    #[must_use]
    pub fn list_hooks(&self) -> Rc<Vec<Known>> {
        Rc::clone(&self.hooks.all.borrow())
    }

    /// The results that are kept, from number `since` on.
    #[must_use]
    pub fn hook_results(&self, since: u64) -> Vec<Rc<HookResult>> {
        self.hooks.results.borrow().since(since)
    }

    /// Runs one hook once. What it is for (`when`) and what its failure would mean
    /// plays no part.
    ///
    /// # Errors
    /// If there is no such hook, container or pod, or the definition is none.
    pub async fn run_hook(self: &Rc<Self>, request: RunHook) -> Result<Rc<HookResult>, Error> {
        self.refuse_if_closing()?;
        let known = match request.choice {
            Choice::Name(name) => {
                let all = self.list_hooks();
                let found = all.iter().find(|known| known.hook.name == name).cloned();
                found.ok_or(Error::UnknownHook(name))?
            }
            Choice::Definition(text) => {
                let parsed = file::parse("(runHook)", text.as_bytes())
                    .map_err(|error| Error::Invalid(format!("the definition of the hook: {error}")))?;
                Known { hook: Rc::new(parsed.hook), resident: None }
            }
        };
        let stage = request.stage.or_else(|| known.hook.stages.first().copied());
        let stage = stage.ok_or_else(|| Error::Invalid("the hook has no stage; name one".to_owned()))?;
        let mut occasion = match &request.container {
            Some(id) => self.occasion_of_container(stage, self.find(id)?),
            None => self.occasion_of_pod(stage, request.pod.as_ref())?,
        };
        if let Some(bundle) = request.bundle {
            occasion.bundle = bundle;
        }
        Ok(self.run_known(&known, &occasion).await)
    }

    /// The engine says that the pod is at a stage that only the engine knows.
    ///
    /// # Errors
    /// If it is another stage, or a hook fails whose failure counts.
    pub async fn reach_stage(
        self: &Rc<Self>,
        stage: Stage,
        pod: Option<&PodId>,
    ) -> Result<Vec<Rc<HookResult>>, Error> {
        self.refuse_if_closing()?;
        if !matches!(stage, Stage::NetworkReady | Stage::PodReady) {
            return Err(Error::Invalid(format!(
                "{stage} is reached by what is done to the pod; networkReady and podReady can be told"
            )));
        }
        let occasion = Rc::new(self.occasion_of_pod(stage, pod)?);
        self.run_stage(&occasion).await
    }
}
