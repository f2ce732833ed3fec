//! The moments of the life cycle at which hooks run: one function for each, so
//! that the life cycle has one call for each.

use std::rc::Rc;

use tokio::time::Instant;

use super::below::Below;
use super::occasion::{Facts, Occasion};
use super::process::kill_all;
use super::source;
use crate::hook::Stage;
use crate::monitor::Monitor;
use crate::monitor::container::Container;
use crate::monitor::error::Error;
use crate::monitor::id::PodId;
use crate::ns::sandbox::Record;

/// The stages of a container that has ended.
const LATE: [Stage; 2] = [Stage::ContainerExited, Stage::Poststop];

impl Monitor {
    /// The pod's namespaces are there: podCreate.
    pub(in crate::monitor) async fn hooks_after_sandbox(self: &Rc<Self>, pod: &PodId) -> Result<(), Error> {
        if !self.hooks.any_at(Stage::PodCreate) {
            return Ok(());
        }
        let occasion = Rc::new(self.occasion_of_pod(Stage::PodCreate, Some(pod))?);
        self.run_stage(&occasion).await.map(drop)
    }

    /// The runtime's `create` has succeeded: createRuntime, then createContainer.
    pub(in crate::monitor) async fn hooks_after_create(
        self: &Rc<Self>,
        container: &Rc<Container>,
    ) -> Result<(), Error> {
        let late = self.list_hooks();
        let late = late.iter().filter(|known| LATE.iter().any(|stage| known.hook.stages.contains(stage)));
        let mut kinds = late.flat_map(|known| known.hook.options.namespaces.clone()).collect::<Vec<_>>();
        if !kinds.is_empty() {
            kinds.sort_unstable();
            kinds.dedup();
            self.hold_namespaces(container, &kinds);
        }
        for stage in [Stage::CreateRuntime, Stage::CreateContainer] {
            self.reach(stage, container, None).await?;
        }
        Ok(())
    }

    /// Before the runtime's `start`.
    pub(in crate::monitor) async fn hooks_before_start(
        self: &Rc<Self>,
        container: &Rc<Container>,
    ) -> Result<(), Error> {
        self.reach(Stage::StartContainer, container, None).await
    }

    /// After the runtime's `start`.
    pub(in crate::monitor) async fn hooks_after_start(
        self: &Rc<Self>,
        container: &Rc<Container>,
    ) -> Result<(), Error> {
        self.reach(Stage::Poststart, container, None).await
    }

    /// Before the stop signal; `deadline` is when SIGKILL would be sent.
    pub(in crate::monitor) async fn hooks_before_stop(
        self: &Rc<Self>,
        container: &Rc<Container>,
        deadline: Instant,
    ) {
        // A failure has been told; the stop goes on.
        self.reach(Stage::PreStop, container, Some(deadline)).await.ok();
    }

    /// The exit is being recorded: containerExited, as a task of its own, which
    /// runs when it has been. It takes the container's turn now, so that poststop
    /// comes after it.
    pub(in crate::monitor) fn hooks_on_exit(self: &Rc<Self>, container: &Rc<Container>) {
        if !self.hooks.any_at(Stage::ContainerExited) {
            return;
        }
        let (monitor, container) = (Rc::clone(self), Rc::clone(container));
        tokio::task::spawn_local(async move {
            // A failure has been told.
            monitor.reach(Stage::ContainerExited, &container, None).await.ok();
        });
    }

    /// The container has been deleted, or the pod ends with it: poststop, once.
    pub(in crate::monitor) async fn hooks_after_delete(self: &Rc<Self>, container: &Rc<Container>) {
        if container.hooks.is_over.replace(true) {
            return;
        }
        // A failure has been told, and every hook had its turn.
        self.reach(Stage::Poststop, container, None).await.ok();
        container.hooks.held.take();
    }

    /// Everything of the pod has been stopped, and its namespaces are still there:
    /// podStop, for each pod once.
    pub(in crate::monitor) async fn hooks_before_pod_end(self: &Rc<Self>) {
        if !self.hooks.any_at(Stage::PodStop) {
            return;
        }
        for record in self.sandboxes().iter() {
            let name = &record.request.name;
            let Ok(pod) = PodId::new(name) else { continue };
            if !self.hooks.parted.borrow_mut().insert(name.clone()) {
                continue;
            }
            if let Ok(occasion) = self.occasion_of_pod(Stage::PodStop, Some(&pod)) {
                // A failure has been told.
                self.run_stage(&Rc::new(occasion)).await.ok();
            }
        }
    }

    /// Ends what hooks have left behind, also those of an earlier monitor.
    pub(in crate::monitor) async fn end_hooks_leftovers(&self) {
        let mut leaves = self.hooks.leaves.take();
        if self.restarts.get() > 0
            && let Some(below) = Below::own(&self.cgroup_mounts)
        {
            leaves.extend(below.leaves_of(self.stable_pid()));
        }
        for leaf in leaves {
            kill_all(&leaf).await;
            if let Err(error) = leaf.remove() {
                ::log::warn!("the cgroup of a hook is left: {}: {error}", leaf.directory().display());
            }
        }
    }

    async fn reach(
        self: &Rc<Self>,
        stage: Stage,
        container: &Rc<Container>,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        if !self.hooks.any_at(stage) {
            return Ok(());
        }
        let turn = Rc::clone(&container.hooks.turn);
        let _turn = match deadline {
            None => turn.lock().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, turn.lock()).await {
                Ok(turn) => turn,
                // A stop waits no longer than it may, whatever an earlier hook does.
                Err(_) => {
                    ::log::warn!("container {}: no time is left for its hooks at {stage}", container.id);
                    return Ok(());
                }
            },
        };
        let mut occasion = self.occasion_of_container(stage, Rc::clone(container));
        occasion.deadline = deadline;
        self.run_stage(&Rc::new(occasion)).await.map(drop)
    }

    /// The container has reached a stage.
    pub(super) fn occasion_of_container(&self, stage: Stage, container: Rc<Container>) -> Occasion {
        let facts = container.hooks.facts.get_or_init(|| source::facts_of(&container.saved.bundle));
        let sandbox = self.only_sandbox();
        Occasion {
            stage,
            pod: sandbox.as_ref().map_or_else(|| self.own_name(), |record| record.request.name.clone()),
            sandbox,
            facts: Rc::clone(facts),
            bundle: container.saved.bundle.clone(),
            container: Some(container),
            deadline: None,
        }
    }

    /// The pod has reached a stage.
    ///
    /// # Errors
    /// If there is no such pod.
    pub(super) fn occasion_of_pod(&self, stage: Stage, pod: Option<&PodId>) -> Result<Occasion, Error> {
        let named = |pod: &PodId| {
            let all = self.sandboxes();
            all.iter().find(|record| record.request.name == pod.as_str()).cloned()
        };
        let sandbox = pod.map_or_else(|| self.only_sandbox(), named);
        let sandbox = sandbox.ok_or_else(|| Error::UnknownPod(pod.map(PodId::to_string)))?;
        Ok(Occasion {
            stage,
            pod: sandbox.request.name.clone(),
            sandbox: Some(sandbox),
            container: None,
            facts: Rc::new(Facts::default()),
            bundle: self.config.run_dir.clone(),
            deadline: None,
        })
    }

    fn only_sandbox(&self) -> Option<Record> {
        match self.sandboxes().as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        }
    }

    /// The pods' namespaces. What cannot be read is asked for again the next time.
    fn sandboxes(&self) -> Rc<Vec<Record>> {
        if let Some(known) = &*self.hooks.sandboxes.borrow() {
            return Rc::clone(known);
        }
        let read = self.list_sandboxes().map(Rc::new);
        match read {
            Ok(read) => {
                self.hooks.sandboxes.replace(Some(Rc::clone(&read)));
                read
            }
            Err(error) => {
                ::log::error!("the pods' namespaces are not known: {error}");
                Rc::default()
            }
        }
    }

    /// What the pod is called where nobody has named it: its run directory's name.
    fn own_name(&self) -> String {
        let name = self.config.run_dir.file_name();
        name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}
