//! Rules as they are now: read at the start, and again after every change.
//!
//! A change that cannot be used changes nothing: the log says why, and the rules
//! of before are asked on. If there are none yet, every call is refused meanwhile.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::broker::Broker;
use super::rules::{Rules, Written};
use crate::limits::{SECCOMP_RULES_RETRY, SECCOMP_RULES_SETTLE};

/// Bytes of changes that are read at a time. What they are is of no interest.
const CHANGES_BYTES: usize = 4096;

/// The rules at one path, followed.
pub struct Watch {
    broker: Rc<Broker>,
    path: PathBuf,
    found: Option<Found>,
}

/// What there was when it was last looked at.
#[derive(PartialEq, Eq)]
struct Found {
    /// Files that are written again apply again: others may have set rules meanwhile.
    written: Option<Written>,
    /// Or why they cannot be used.
    rules: Result<Rules, String>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Watch {
    /// Reads the rules at `path`, a file or a directory, which need not exist.
    #[must_use]
    pub fn begin(broker: Rc<Broker>, path: PathBuf) -> Self {
        let mut watch = Self { broker, path, found: None };
        watch.load();
        watch
    }

    /// Follows their changes for ever.
    pub async fn go_on(mut self) {
        let mut is_told = false;
        loop {
            let watched = watch(&self.path);
            // What changed before the watch was there.
            self.load();
            let is_usable = self.found.as_ref().is_some_and(|found| found.rules.is_ok());
            let changed = match watched {
                Ok(changes) if is_usable => next(&changes).await,
                // What keeps them from being read need not be in the directory that is watched.
                Ok(changes) => timeout(SECCOMP_RULES_RETRY, next(&changes)).await.unwrap_or(Ok(())),
                Err(error) => Err(error),
            };
            match changed {
                Ok(()) => is_told = false,
                Err(error) => {
                    if !is_told {
                        let (path, period) = (self.path.display(), SECCOMP_RULES_RETRY.as_secs());
                        ::log::error!("changes of {path} are only looked for every {period} s: {error}");
                    }
                    is_told = true;
                    sleep(SECCOMP_RULES_RETRY).await;
                }
            }
            sleep(SECCOMP_RULES_SETTLE).await;
        }
    }

    fn load(&mut self) {
        // In this order: what is written in between differs the next time.
        let written = Written::at(&self.path).ok();
        let rules = Rules::read(&self.path).map_err(|error| error.to_string());
        let found = Found { written, rules };
        if self.found.as_ref() == Some(&found) {
            return;
        }
        match &found.rules {
            Ok(rules) => {
                self.apply(rules);
                ::log::info!("{} seccomp rules of {} apply", rules.rules.len(), self.path.display());
            }
            Err(error) if self.found.is_none() => {
                self.apply(&Rules::unreadable());
                ::log::error!("{error}; until that is mended, every call that is notified fails with ENOSYS");
            }
            Err(error) => ::log::error!("{error}; the seccomp rules stay as they are"),
        }
        self.found = Some(found);
    }

    fn apply(&self, rules: &Rules) {
        if let Err(error) = self.broker.set_rules(rules) {
            ::log::error!("{error}; the other seccomp rules apply");
        }
    }
}

/// Watches `path`: a directory itself, of a file the directory that it is in, of
/// what does not exist the nearest directory that does.
fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    for directory in path.ancestors() {
        match inotify::add_watch(&changes, directory, flags) {
            Ok(_) => return AsyncFd::with_interest(changes, Interest::READABLE),
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Waits for any change.
async fn next(changes: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = changes.readable().await?;
        let read = ready.try_io(|changes| {
            let mut space = [MaybeUninit::uninit(); CHANGES_BYTES];
            Ok(Reader::new(changes.get_ref(), &mut space).next().map(drop)?)
        });
        if let Ok(read) = read {
            return read;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rule(name: &str) -> String {
        format!(r#"{{"version": 1, "rules": [{{"name": "{name}", "do": "deny"}}]}}"#)
    }

    /// Waits until the broker asks just the rules `expected`.
    async fn until(broker: &Broker, expected: &[&str]) {
        let names = || {
            let plugins = broker.stats().plugins;
            let there = plugins.into_iter().filter(|plugin| plugin.registrations > 0);
            there.map(|plugin| plugin.name).collect::<Vec<_>>()
        };
        let reached = async {
            while names() != expected {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.expect("rules that are reloaded");
    }

    #[test]
    fn changes_are_followed_and_nonsense_is_not() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("later/seccomp.d");
        let (stops, _requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
            let broker = Broker::new("p", stops);
            tokio::task::spawn_local(Watch::begin(Rc::clone(&broker), directory.clone()).go_on());
            until(&broker, &[]).await;
            // The directory comes later.
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("a.json"), rule("a")).unwrap();
            until(&broker, &["a"]).await;
            // Nonsense changes nothing, and the next change is seen.
            std::fs::write(directory.join("b.json"), "nonsense").unwrap();
            tokio::time::sleep(2 * SECCOMP_RULES_SETTLE).await;
            until(&broker, &["a"]).await;
            // A change by renaming, as careful editors do it.
            std::fs::write(directory.join(".b"), rule("b")).unwrap();
            std::fs::rename(directory.join(".b"), directory.join("b.json")).unwrap();
            until(&broker, &["a", "b"]).await;
            std::fs::remove_dir_all(&directory).unwrap();
            until(&broker, &[]).await;
        });
    }

    #[test]
    fn rules_that_others_set_stay_until_a_file_is_written_again() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(place.path().join(".new"), text).unwrap();
            std::fs::rename(place.path().join(".new"), place.path().join(name)).unwrap();
        };
        let (stops, _requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
            let broker = Broker::new("p", stops);
            let names = || {
                let listed = broker.registrations().into_iter();
                listed.map(|listed| listed.registration.name).collect::<Vec<_>>()
            };
            write("a.json", &rule("file"));
            let mut watch = Watch::begin(Rc::clone(&broker), place.path().to_owned());
            assert_eq!(names(), ["file"]);
            broker.set_rules(&Rules::parse(rule("set").as_bytes()).unwrap()).unwrap();
            write("readme.txt", "no rules");
            watch.load();
            assert_eq!(names(), ["set"], "nothing was written that holds rules");
            write("a.json", &rule("file"));
            watch.load();
            assert_eq!(names(), ["file"], "what is written applies, whatever was there before");
        });
    }
}
