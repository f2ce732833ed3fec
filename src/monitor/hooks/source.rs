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
use crate::monitor::error::Error;
use crate::monitor::{Monitor, bundle};

impl Monitor {
    /// Reads the hook files, and reads them again whenever they change, for as long
    /// as the pod lives; and watches whether its run directory is there. The first
    /// reading is done when this returns; the rest is up to the future that it returns.
    pub fn watch_directories(self: &Rc<Self>) -> impl Future<Output = ()> + 'static {
        let directories = self.config.hooks_dirs.clone();
        // Watched first: what changes between the two is read twice, not missed.
        let watch = Watch::new(directories.clone());
        let watch = watch.and_then(|watch| watch.and_removals_from(self.above_run_dir()));
        self.hooks.catalogue.replace(Some(Catalogue::read(directories)));
        self.take_files();
        let monitor = Rc::clone(self);
        async move {
            let followed = match watch {
                Ok(watch) => monitor.follow_directories(watch).await,
                Err(error) => Err(error),
            };
            if let Err(error) = followed {
                let path = monitor.config.run_dir.display();
                ::log::warn!(
                    "cannot watch hook files and {path}: {error}; \
                     restart the pod after a change of the files, and end it with SIGTERM"
                );
            }
        }
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
