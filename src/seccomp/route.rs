//! A registration, as the broker asks it: in its turn, within its deadline, and
//! not at all for a while about a container at whose calls it has failed too often.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
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
    SECCOMP_DEADLINE_MAX, SECCOMP_FAILURES_IN_A_ROW_MAX, SECCOMP_IN_FLIGHT_DEFAULT, SECCOMP_SESSIONS_MAX,
    SECCOMP_SUSPENSION,
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
    /// Containers at whose last call it has failed.
    failures: RefCell<HashMap<Rc<str>, Failures>>,
    gone: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    suspended_until: Option<Instant>,
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
            failures: RefCell::default(),
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
        let container = Rc::clone(&notification.container);
        self.refuse_if_suspended(&container)?;
        let deadline = self.registration.deadline;
        let answer = async {
            let _permit = self.permits.acquire(&container, 1).await;
            self.plugin.decide(notification, target).await
        };
        let mut gone = self.gone.subscribe();
        let answer = tokio::select! {
            biased;
            answer = timeout(deadline, answer) => answer.unwrap_or(Err(PluginFailure::Deadline(deadline))),
            _ = gone.wait_for(|gone| *gone) => Err(PluginFailure::Gone),
        };
        let checked = answer.and_then(|verdict| self.check(verdict));
        self.note(&container, checked.as_ref().err());
        checked
    }

    /// As [`Registration::check`].
    pub(super) fn check(&self, verdict: Verdict) -> Result<Verdict, PluginFailure> {
        self.registration.check(verdict)
    }

    fn refuse_if_suspended(&self, container: &str) -> Result<(), PluginFailure> {
        let mut failures = self.failures.borrow_mut();
        let Some(until) = failures.get_mut(container).and_then(|of_it| of_it.suspended_until.as_mut()) else {
            return Ok(());
        };
        let now = Instant::now();
        if now < *until {
            count(&self.counters.suspended);
            return Err(PluginFailure::Suspended);
        }
        // This call tries; the container's others wait for how it goes.
        *until = now + SECCOMP_SUSPENSION;
        Ok(())
    }

    fn note(&self, container: &Rc<str>, failure: Option<&PluginFailure>) {
        let mut failures = self.failures.borrow_mut();
        match failure {
            None => {
                failures.remove(container);
                return;
            }
            Some(PluginFailure::Deadline(_)) => count(&self.counters.time_outs),
            Some(_) => count(&self.counters.failures),
        }
        // What a rule fails at is always the container's own doing.
        if !self.is_plugin {
            return;
        }
        // Those of containers that are gone stay; what is forgotten is counted anew.
        if failures.len() >= SECCOMP_SESSIONS_MAX {
            failures.clear();
        }
        let of_it = failures.entry(Rc::clone(container)).or_default();
        of_it.in_a_row = of_it.in_a_row.saturating_add(1);
        if of_it.in_a_row >= SECCOMP_FAILURES_IN_A_ROW_MAX {
            let until = Instant::now() + SECCOMP_SUSPENSION;
            if of_it.suspended_until.replace(until).is_none() {
                let (name, times) = (&self.name, of_it.in_a_row);
                ::log::warn!(
                    "seccomp plugin {name} failed at {times} calls of {container} in a row; it is not asked about them for a while"
                );
            }
        }
    }
}
