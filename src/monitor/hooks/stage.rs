//! One stage: the hooks that are for this occasion, in order, and what becomes of
//! a failure.

use std::rc::Rc;

use tokio::time::Instant;

use super::Known;
use super::occasion::Occasion;
use super::place::pid_seen;
use super::process::{Attempt, Surroundings};
use super::resident::Call;
use crate::hook::result::{HookResult, Outcome};
use crate::hook::run::{State, Told, environment_of, status_at};
use crate::hook::{Failure, Hook, Output};
use crate::limits::HOOK_REASON_BYTES_MAX;
use crate::monitor::Monitor;
use crate::monitor::error::Error;
use crate::monitor::event::{Happening, HookFailure};
use crate::sys::process::now_ns;

impl Monitor {
    /// Runs the hooks of a stage.
    ///
    /// # Errors
    /// The first failure that counts; no further hook is started then.
    pub(super) async fn run_stage(
        self: &Rc<Self>,
        occasion: &Rc<Occasion>,
    ) -> Result<Vec<Rc<HookResult>>, Error> {
        let all = self.list_hooks();
        let chosen = all.iter().filter(|known| is_for(&known.hook, occasion)).cloned().collect::<Vec<_>>();
        let mut results = Vec::new();
        for batch in batches(chosen) {
            let ended = self.run_batch(batch, occasion).await;
            let mut failed = None;
            for (known, result) in ended {
                let policy = self.judge(&known.hook, &result);
                if policy == Some(Failure::Fail) && failed.is_none() {
                    failed = Some(failure(&result));
                }
                results.push(result);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(results)
    }

    /// Hooks that may run at the same time.
    async fn run_batch(
        self: &Rc<Self>,
        batch: Vec<Known>,
        occasion: &Rc<Occasion>,
    ) -> Vec<(Known, Rc<HookResult>)> {
        if let [known] = batch.as_slice() {
            let result = self.run_known(known, occasion).await;
            return vec![(known.clone(), result)];
        }
        let tasks = batch.into_iter().map(|known| {
            let (monitor, occasion) = (Rc::clone(self), Rc::clone(occasion));
            let running = known.clone();
            let task = tokio::task::spawn_local(async move { monitor.run_known(&running, &occasion).await });
            (known, task)
        });
        let mut ended = Vec::new();
        for (known, task) in tasks.collect::<Vec<_>>() {
            match task.await {
                Ok(result) => ended.push((known, result)),
                Err(error) => ::log::error!("the run of hook {} is lost: {error}", known.hook.name),
            }
        }
        ended
    }

    /// Tells of a failure as its policy wants; which policy, if it failed.
    fn judge(&self, hook: &Hook, result: &HookResult) -> Option<Failure> {
        if result.outcome.is_success() {
            return None;
        }
        let policy = hook.failure_at(result.stage);
        let about = result.container.as_deref().unwrap_or(&result.pod);
        if policy == Failure::Ignore {
            ::log::debug!("hook {} at {} of {about}: {}", hook.name, result.stage, result.outcome);
            return Some(policy);
        }
        ::log::warn!("hook {} failed at {} of {about}: {}", hook.name, result.stage, result.outcome);
        let container = result.container.as_ref();
        let container = container.and_then(|id| crate::monitor::id::ContainerId::new(id).ok());
        let failure = HookFailure {
            sequence: result.sequence,
            hook: hook.name.clone(),
            stage: result.stage,
            pod: result.pod.clone(),
            fatal: policy == Failure::Fail,
            reason: result.outcome.to_string(),
        };
        self.events.add(container.as_ref(), Happening::HookFailed(failure));
        Some(policy)
    }

    /// Runs one hook, as often as it wants to be tried.
    pub(super) async fn run_known(&self, known: &Known, occasion: &Occasion) -> Rc<HookResult> {
        let hook = &*known.hook;
        let (started_at_ns, began) = (now_ns(), Instant::now());
        let retry = hook.options.retry;
        let mut attempts = 1;
        let attempt = loop {
            let attempt = self.try_known(known, occasion, attempts).await;
            let has_time = self.limit(known, occasion).is_some_and(|limit| limit > retry.pause);
            if attempt.outcome.is_success() || attempts >= retry.attempts || !has_time {
                break attempt;
            }
            ::log::info!("hook {}, attempt {attempts}: {}; trying again", hook.name, attempt.outcome);
            tokio::time::sleep(retry.pause).await;
            attempts += 1;
        };
        let result = HookResult {
            sequence: 0,
            hook: hook.name.clone(),
            stage: occasion.stage,
            pod: occasion.pod.clone(),
            container: occasion.container_id().map(str::to_owned),
            started_at_ns,
            elapsed: began.elapsed(),
            attempts,
            outcome: attempt.outcome,
            stdout: attempt.stdout,
            stderr: attempt.stderr,
            left_running: attempt.left_running,
            killed: attempt.killed,
        };
        if hook.options.output == Output::Log {
            self.log_output(&result, occasion).await;
        }
        self.hooks.results.borrow_mut().add(result)
    }

    /// What is left of a hook's time: its own, the stage's, and that of a pod on
    /// its way out. `None` if nothing is.
    fn limit(&self, known: &Known, occasion: &Occasion) -> Option<std::time::Duration> {
        let now = Instant::now();
        let others = [occasion.deadline, *self.hooks.parting.borrow()].into_iter().flatten().min();
        let own = known.limit();
        let left = others.map_or(own, |at| at.saturating_duration_since(now).min(own));
        (!left.is_zero()).then_some(left)
    }

    async fn try_known(&self, known: &Known, occasion: &Occasion, attempt: u32) -> Attempt {
        let Some(limit) = self.limit(known, occasion) else {
            return Attempt::not_started("there was no time left for it".to_owned());
        };
        let hook = &*known.hook;
        let join = match &known.resident {
            Some(_) => Vec::new(),
            None => match self.namespaces_for(hook, occasion) {
                Ok(join) => join,
                Err(reason) => return Attempt::not_started(reason),
            },
        };
        let (exit_code, signal, reason) = occasion.exit();
        let told = Told {
            pod_id: &occasion.pod,
            stage: occasion.stage.name(),
            hook: &hook.name,
            attempt,
            container: occasion.container_id(),
            exit_code,
            signal,
            reason,
            deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        };
        let state = State {
            oci_version: occasion.oci_version(),
            id: occasion.id(),
            status: status_at(occasion.stage),
            pid: occasion.pid().and_then(|pid| pid_seen(pid, &join)),
            bundle: occasion.bundle(),
            annotations: &occasion.facts.subject.annotations,
            podinit: told,
        };
        let state = match serde_json::to_string(&state) {
            Ok(state) => state,
            Err(error) => return Attempt::not_started(format!("cannot write its state: {error}")),
        };
        if let Some(resident) = &known.resident {
            let call = Call {
                stage: occasion.stage,
                pod: occasion.pod.clone(),
                container: occasion.container_id().unwrap_or_default().to_owned(),
                state,
            };
            return Attempt::without_output(ask(resident.call(call), limit).await);
        }
        let environment = environment_of(hook, occasion.stage, &occasion.pod, occasion.container_id());
        let Ok(environment) = environment else {
            return Attempt::not_started("there is a NUL byte in its environment".to_owned());
        };
        let around = Surroundings {
            join,
            below: self.below(hook, occasion),
            directory: occasion.bundle.clone(),
            environment,
            state: state.into_bytes(),
        };
        self.attempt(hook, around, limit).await
    }

    /// To the container's log while its streams are open, else to our own.
    async fn log_output(&self, result: &HookResult, occasion: &Occasion) {
        let mut lines = Vec::new();
        result.stdout.tagged(&result.hook, &mut lines);
        result.stderr.tagged(&result.hook, &mut lines);
        if lines.is_empty() {
            return;
        }
        let stream = occasion.container.as_ref().and_then(|container| container.stream().ok());
        if let Some(stream) = stream {
            let sent = lines.clone();
            let taken = super::super::ask(|reply| self.relay.add_lines(stream, sent, reply)).await;
            if matches!(taken, Ok(true)) {
                return;
            }
        }
        for line in String::from_utf8_lossy(&lines).lines() {
            let printable: String =
                line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
            ::log::info!("{printable}");
        }
    }
}

/// Asks a resident hook, and waits for its answer at most `limit`.
async fn ask(answer: impl Future<Output = Result<(), String>>, limit: std::time::Duration) -> Outcome {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(())) => Outcome::Answered,
        Ok(Err(mut reason)) => {
            let end = reason.floor_char_boundary(HOOK_REASON_BYTES_MAX);
            reason.truncate(end);
            Outcome::Refused(reason)
        }
        Err(_) => Outcome::TimedOut(limit),
    }
}

fn is_for(hook: &Hook, occasion: &Occasion) -> bool {
    hook.stages.contains(&occasion.stage) && super::source::is_for(hook, occasion)
}

fn failure(result: &HookResult) -> Error {
    Error::Hook {
        hook: result.hook.clone(),
        stage: result.stage,
        reason: result.outcome.to_string(),
        is_late: matches!(result.outcome, Outcome::TimedOut(_)),
    }
}

/// Neighbours that may run at the same time: `concurrent`, and none that is to
/// come after another.
fn batches(hooks: Vec<Known>) -> Vec<Vec<Known>> {
    let mut batches: Vec<Vec<Known>> = Vec::new();
    for known in hooks {
        let options = &known.hook.options;
        let fits = batches.last().is_some_and(|batch| {
            options.concurrent
                && batch.iter().all(|other| {
                    let theirs = &other.hook.options;
                    let waits =
                        options.after.contains(&other.hook.name) || theirs.before.contains(&known.hook.name);
                    theirs.concurrent && !waits
                })
        });
        match batches.last_mut() {
            Some(batch) if fits => batch.push(known),
            _ => batches.push(vec![known]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::{Options, When};

    fn known(name: &str, concurrent: bool, after: &[&str]) -> Known {
        let after = after.iter().map(|name| (*name).to_owned()).collect();
        let hook = Hook {
            name: name.to_owned(),
            path: "/bin/true".into(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: None,
            when: When::always(),
            stages: Vec::new(),
            options: Options { concurrent, after, ..Options::default() },
        };
        Known { hook: Rc::new(hook), resident: None }
    }

    #[test]
    fn neighbours_run_together_unless_one_waits_for_another() {
        let hooks = vec![
            known("a", true, &[]),
            known("b", true, &[]),
            known("c", true, &["a"]),
            known("d", false, &[]),
            known("e", true, &[]),
        ];
        let names = |batch: &Vec<Known>| batch.iter().map(|k| k.hook.name.clone()).collect::<String>();
        assert_eq!(batches(hooks).iter().map(names).collect::<Vec<_>>(), ["ab", "c", "d", "e"]);
    }
}
