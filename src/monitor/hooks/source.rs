//! Where hooks come from, and which occasions they are for.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Known;
use super::occasion::{Facts, Occasion};
use crate::hook::{Catalogue, Hook, Subject, Watch};
use crate::limits::WATCH_FALLBACK_PERIOD;
use crate::monitor::error::Error;
use crate::monitor::{Monitor, bundle};

impl Monitor {
    /// Reads the hook files, and reads them again whenever they change, for as long
    /// as the pod lives; and watches whether its run directory is there. Where the
    /// kernel cannot tell of changes (a user may have 128 inotify instances), it looks
    /// every [`WATCH_FALLBACK_PERIOD`]. The first reading is done when this returns; the
    /// rest is up to the future that it returns.
    pub fn watch_directories(self: &Rc<Self>) -> impl Future<Output = ()> + 'static {
        // Watched first: what changes between the two is read twice, not missed.
        let mut watch = self.new_watch();
        self.hooks.catalogue.replace(Some(Catalogue::read(self.config.hooks_dirs.clone())));
        self.take_files();
        let monitor = Rc::clone(self);
        async move {
            loop {
                let followed = match watch {
                    Ok(watch) => monitor.follow_directories(watch).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = followed {
                    let path = monitor.config.run_dir.display();
                    ::log::warn!(
                        "looking at hook files and {path} now and then, for want of a watch: {error}"
                    );
                }
                // Instances and watches may be free again by then.
                watch = loop {
                    tokio::time::sleep(WATCH_FALLBACK_PERIOD).await;
                    let watch = monitor.new_watch();
                    monitor.read_files_again();
                    monitor.end_if_forgotten();
                    if watch.is_ok() {
                        break watch;
                    }
                };
            }
        }
    }

    fn new_watch(&self) -> io::Result<Watch> {
        Watch::new(self.config.hooks_dirs.clone())?.and_removals_from(self.above_run_dir())
    }

    async fn follow_directories(self: &Rc<Self>, watch: Watch) -> io::Result<()> {
        let changes = AsyncFd::with_interest(watch.as_fd(), Interest::READABLE)?;
        self.end_if_forgotten();
        loop {
            let mut ready = changes.readable().await?;
            // The descriptor is empty afterwards.
            let told = watch.take()?;
            ready.clear_ready();
            if told.removals {
                self.end_if_forgotten();
            }
            if told.files {
                self.read_files_again();
            }
        }
    }

    fn read_files_again(&self) {
        let has_changed = self.hooks.catalogue.borrow_mut().as_mut().is_some_and(Catalogue::reload);
        if has_changed {
            self.take_files();
            ::log::debug!("hook files were read again: {} hooks", self.list_hooks().len());
        }
    }

    fn take_files(&self) {
        let catalogue = self.hooks.catalogue.borrow();
        let Some(catalogue) = catalogue.as_ref() else { return };
        for problem in catalogue.problems() {
            let kept = if problem.kept { "; what it said before stays in force" } else { "" };
            ::log::error!("hooks: {problem}{kept}");
        }
        let known = |hook: &Rc<Hook>| Known { hook: Rc::clone(hook), resident: None };
        self.hooks.files.replace(catalogue.hooks().iter().map(known).collect());
        self.hooks.arrange();
    }

    /// Refuses a new container while nobody can say which hooks it would have.
    ///
    /// # Errors
    /// With the file that is in the way.
    pub(in crate::monitor) fn check_hooks(&self) -> Result<(), Error> {
        let catalogue = self.hooks.catalogue.borrow();
        match catalogue.as_ref().and_then(Catalogue::obstacle) {
            Some(problem) => Err(Error::HookFile(problem.clone())),
            None => Ok(()),
        }
    }
}

/// What the bundle's config.json says that hooks are chosen by. One that cannot be
/// read says nothing: then only hooks that are for every container are for this.
pub(super) fn facts_of(bundle: &Path) -> Rc<Facts> {
    let facts = || -> Result<Facts, Error> {
        let config = Value::Object(bundle::read(bundle)?);
        let version = config.get("ociVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        let subject = Subject::of_config(&config).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(Facts { oci_version: version, subject })
    };
    Rc::new(facts().unwrap_or_else(|error| {
        ::log::error!("hooks cannot be chosen by what {} says: {error}", bundle.display());
        Facts::default()
    }))
}

/// Whether a hook's conditions hold.
pub(super) fn is_for(hook: &Hook, occasion: &Occasion) -> bool {
    hook.when.matches(&occasion.facts.subject).unwrap_or_else(|error| {
        ::log::error!("hook {}: {error}", hook.name);
        false
    })
}
