//! What decides: the interface between the broker and everything that answers
//! notifications, in this process or in another.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::notification::{Notification, Session};
use super::select::{Call, Selector};
use super::target::Target;
use super::verdict::{ERRNO_MAX, OnFailure, Verdict};

/// How somebody who decides wants to be asked.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Shown in statistics and logs. Not unique: a plugin may register twice.
    pub name: String,
    /// Which notifications it wants.
    pub selector: Selector,
    /// Who is asked first: the least number. Of equal ones, rules come before plugins,
    /// rules in their files' order, and plugins as they registered.
    pub priority: i32,
    /// How long it may take for one verdict, waiting in line included. More than
    /// [`crate::limits::SECCOMP_DEADLINE_MAX`] is taken for that.
    pub deadline: Duration,
    /// What a call gets that it fails at.
    pub on_failure: OnFailure,
    /// Whether [`Verdict::Continue`] is taken from it; else that is a failure.
    pub allow_continue: bool,
    /// How many calls it is asked about at a time; more wait in line, and those of one
    /// container as soon as they are half of it. 0 is
    /// [`crate::limits::SECCOMP_IN_FLIGHT_DEFAULT`].
    pub in_flight_max: usize,
}

impl Registration {
    /// Takes a verdict only if the registration allows it and the kernel knows it.
    ///
    /// # Errors
    /// [`PluginFailure::Nonsense`].
    pub fn check(&self, verdict: Verdict) -> Result<Verdict, PluginFailure> {
        match verdict {
            Verdict::Continue if !self.allow_continue => {
                Err(PluginFailure::Nonsense("it said continue, which its registration does not allow".into()))
            }
            Verdict::Errno(errno) if !(1..=ERRNO_MAX).contains(&errno) => {
                Err(PluginFailure::Nonsense(format!("{errno} is no errno; they are 1 to {ERRNO_MAX}")))
            }
            verdict => Ok(verdict),
        }
    }
}

/// Why there is no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PluginFailure {
    /// It is gone: disconnected, or ended.
    #[error("the plugin is gone")]
    Gone,
    /// It did not answer in time. The broker says this, not a plugin.
    #[error("the plugin did not answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// It answered with an error.
    #[error("the plugin failed: {0}")]
    Failed(String),
    /// What it answered is no verdict.
    #[error("the plugin's answer cannot be used: {0}")]
    Nonsense(String),
    /// It was not asked, because it failed too often just before.
    #[error("the plugin is not asked for a while, because it failed too often")]
    Suspended,
}

/// A verdict on its way. Dropped when its deadline has passed.
pub type Decision = Pin<Box<dyn Future<Output = Result<Verdict, PluginFailure>>>>;

/// Something that decides. It runs on the broker's thread and must not block it.
pub trait Plugin {
    /// Decides about a call that the selector has chosen.
    fn decide(&self, notification: Rc<Notification>, target: Target) -> Decision;

    /// A verdict that needs neither time nor a look at the target, and so is no
    /// [`Verdict::AddFd`]. With `None`, [`Plugin::decide`] is asked.
    fn at_once(&self, _session: &Session, _call: &Call) -> Option<Verdict> {
        None
    }
}
