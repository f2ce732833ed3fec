//! Hooks that are no programs: a client that is connected is asked.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::Known;
use crate::hook::{Hook, Stage};
use crate::limits::RESIDENT_HOOKS_MAX;
use crate::monitor::Monitor;
use crate::monitor::error::Error;

/// What a resident hook is told.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it runs.
    pub stage: Stage,
    /// For which pod.
    pub pod: String,
    /// For which container; empty for a hook of the pod.
    pub container: String,
    /// The OCI state, as JSON.
    pub state: String,
}

/// The way to a resident hook.
pub trait Resident: std::fmt::Debug {
    /// Asks it; the error is why it failed.
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Result<(), String>>>>;
}

/// A registration; the hook is forgotten when this is dropped.
#[derive(Debug)]
pub struct Registered {
    monitor: Rc<Monitor>,
    name: String,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let hooks = &self.monitor.hooks;
        hooks.resident.borrow_mut().retain(|known| known.hook.name != self.name);
        hooks.arrange();
        ::log::info!("the resident hook {} is gone", self.name);
    }
}

impl Monitor {
    /// Takes up a resident hook.
    ///
    /// # Errors
    /// If its name is taken, or contradicts the order of others; if there are too many.
    pub fn register_hook(
        self: &Rc<Self>,
        hook: Hook,
        resident: Rc<dyn Resident>,
    ) -> Result<Registered, Error> {
        self.refuse_if_closing()?;
        if hook.name.is_empty() || hook.stages.is_empty() {
            return Err(Error::Invalid("a resident hook needs a name and a stage".to_owned()));
        }
        let count = self.hooks.resident.borrow().len();
        if count >= RESIDENT_HOOKS_MAX {
            return Err(Error::TooManyHooks(RESIDENT_HOOKS_MAX));
        }
        if self.hooks.all.borrow().iter().any(|known| known.hook.name == hook.name) {
            return Err(Error::HookExists(hook.name));
        }
        let name = hook.name.clone();
        let known = Known { hook: Rc::new(hook), resident: Some(resident) };
        self.hooks.resident.borrow_mut().push(known);
        let registered = Registered { monitor: Rc::clone(self), name };
        // Dropped on an error, it takes the hook away again.
        self.hooks.check_order()?;
        self.hooks.arrange();
        ::log::info!("resident hook {} is registered", registered.name);
        Ok(registered)
    }
}
