//! A registration, as the broker asks it: in its turn, within its deadline, and
//! not at all for a while if it has failed too often.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::notification::Notification;
use super::plugin::{Plugin, PluginFailure, Registration};
use super::select::{Matcher, SelectError};
use super::share::Shares;
use super::stats::{Counters, count};
use super::target::Target;
use super::verdict::Verdict;
use crate::limits::{
    SECCOMP_DEADLINE_MAX, SECCOMP_FAILURES_IN_A_ROW_MAX, SECCOMP_IN_FLIGHT_DEFAULT, SECCOMP_SUSPENSION,
};

/// A registration's number; not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistrationId(pub u64);

/// See the module.
pub(super) struct Route {
    pub(super) id: RegistrationId,
    pub(super) name: Rc<str>,
    pub(super) registration: Registration,
    pub(super) matcher: Matcher,
    pub(super) plugin: Rc<dyn Plugin>,
    pub(super) counters: Rc<Counters>,
    /// Not a rule: somebody else's, whose end is the end of what it was asked.
    pub(super) is_plugin: bool,
    /// Names of plugins without which it is passed over.
    pub(super) needs: Vec<String>,
    /// Whether all of them are registered.
    pub(super) has_needs: Cell<bool>,
    permits: Rc<Shares>,
    in_a_row: Cell<u32>,
    suspended_until: Cell<Option<Instant>>,
    gone: watch::Sender<bool>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").field("id", &self.id).field("registration", &self.registration).finish()
    }
}

impl Route {
    pub(super) fn new(
        id: RegistrationId,
        mut registration: Registration,
        plugin: Rc<dyn Plugin>,
        counters: Rc<Counters>,
    ) -> Result<Self, SelectError> {
        let matcher = std::mem::take(&mut registration.selector).compile()?;
        registration.deadline = registration.deadline.clamp(Duration::from_millis(1), SECCOMP_DEADLINE_MAX);
        let at_a_time = match registration.in_flight_max {
            0 => SECCOMP_IN_FLIGHT_DEFAULT,
            given => given,
        };
        Ok(Self {
            id,
            name: registration.name.as_str().into(),
            registration,
            matcher,
            plugin,
            counters,
            is_plugin: true,
            needs: Vec::new(),
            has_needs: Cell::new(true),
            permits: Shares::new(at_a_time),
            in_a_row: Cell::new(0),
            suspended_until: Cell::new(None),
            gone: watch::channel(false).0,
        })
    }

    /// Ends every question that is under way.
    pub(super) fn withdraw(&self) {
        self.gone.send_replace(true);
    }

    /// Asks for a verdict. The result is one that can be carried out.
    pub(super) async fn ask(
        &self,
        notification: Rc<Notification>,
        target: Target,
    ) -> Result<Verdict, PluginFailure> {
        if self.is_plugin {
            self.refuse_if_suspended()?;
        }
        let deadline = self.registration.deadline;
        let touched = target.clone();
        let answer = async {
            let _permit = self.permits.acquire(&notification.container, 1).await;
            self.plugin.decide(notification, target).await
        };
        let mut gone = self.gone.subscribe();
        let answer = tokio::select! {
            biased;
            answer = timeout(deadline, answer) => answer.unwrap_or(Err(PluginFailure::Deadline(deadline))),
            _ = gone.wait_for(|gone| *gone) => Err(PluginFailure::Gone),
        };
        let checked = answer.and_then(|verdict| self.check(verdict));
        self.note(checked.as_ref().err(), touched.is_slow());
        checked
    }

    /// As [`Registration::check`].
    pub(super) fn check(&self, verdict: Verdict) -> Result<Verdict, PluginFailure> {
        self.registration.check(verdict)
    }

    fn refuse_if_suspended(&self) -> Result<(), PluginFailure> {
        let Some(until) = self.suspended_until.get() else { return Ok(()) };
        let now = Instant::now();
        if now < until {
            count(&self.counters.suspended);
            return Err(PluginFailure::Suspended);
        }
        // This call tries; the others wait for how it goes.
        self.suspended_until.set(Some(now + SECCOMP_SUSPENSION));
        Ok(())
    }

    fn note(&self, failure: Option<&PluginFailure>, is_target_slow: bool) {
        match failure {
            None => {
                self.in_a_row.set(0);
                self.suspended_until.set(None);
                return;
            }
            Some(PluginFailure::Deadline(_)) => count(&self.counters.time_outs),
            Some(_) => count(&self.counters.failures),
        }
        // One container's doing must not cost the others their verdicts. A rule has no other failures.
        if !self.is_plugin || is_target_slow {
            return;
        }
        self.in_a_row.set(self.in_a_row.get().saturating_add(1));
        if self.in_a_row.get() >= SECCOMP_FAILURES_IN_A_ROW_MAX {
            if self.suspended_until.get().is_none() {
                let name = &self.name;
                ::log::warn!(
                    "seccomp plugin {name} failed {} times in a row; pausing it",
                    self.in_a_row.get()
                );
            }
            self.suspended_until.set(Some(Instant::now() + SECCOMP_SUSPENSION));
        }
    }
}
