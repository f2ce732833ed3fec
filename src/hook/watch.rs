//! Tells when files in hooks directories have changed, and when something has
//! been removed from one more directory.
//!
//! One inotify instance does both: a user may have 128 of them (inotify(7)), and
//! each pod of a node has a monitor.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::limits::HOOK_WATCH_ATTEMPTS_MAX;

/// What happens to the files of a directory. `CREATE` is for links, which nobody
/// writes and closes.
const OF_FILES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// What a directory is watched for of which only a part of the way is there.
const OF_WAY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// What is told of the directory from which something may be removed.
const REMOVALS: WatchFlags = WatchFlags::DELETE.union(WatchFlags::MOVED_FROM);

/// What has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// Hook files may have changed: read the directories again.
    pub files: bool,
    /// Something may have been removed from the other directory.
    pub removals: bool,
}

/// Watches several directories, those that are still to come included. Its
/// descriptor is readable when there is something to [`Watch::take`].
#[derive(Debug)]
pub struct Watch {
    changes: OwnedFd,
    directories: Vec<PathBuf>,
    /// Descriptors of watches that are about hook files.
    of_files: RefCell<BTreeSet<i32>>,
    of_removals: Option<i32>,
}

impl Watch {
    /// Watches `directories`. What is read of them afterwards is what they are,
    /// or a change is told.
    ///
    /// # Errors
    /// If inotify instances or watches have run out (inotify(7)), or a directory
    /// cannot be read.
    pub fn new(directories: Vec<PathBuf>) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let watch = Self { changes, directories, of_files: RefCell::default(), of_removals: None };
        watch.aim()?;
        Ok(watch)
    }

    /// Also tells when something is removed from `directory`.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn and_removals_from(mut self, directory: &Path) -> io::Result<Self> {
        self.of_removals = Some(self.watch(directory, REMOVALS)?);
        Ok(self)
    }

    /// Takes what has been told, and watches what has come to be.
    ///
    /// # Errors
    /// As [`Watch::new`].
    pub fn take(&self) -> io::Result<Told> {
        // Room for the longest name (inotify(7)).
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(&self.changes, &mut buffer);
        let mut told = Told::default();
        loop {
            match events.next() {
                Ok(event) => {
                    let lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    told.files |= lost || self.of_files.borrow().contains(&event.wd());
                    if event.events().contains(ReadFlags::IGNORED) {
                        self.of_files.borrow_mut().remove(&event.wd());
                    }
                    told.removals |= lost || self.of_removals == Some(event.wd());
                }
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if told.files {
            self.aim()?;
        }
        Ok(told)
    }

    fn aim(&self) -> io::Result<()> {
        self.directories.iter().try_for_each(|directory| Ok(self.aim_at(directory)?))
    }

    /// Watches a directory, or as much of the way to it as there is.
    fn aim_at(&self, directory: &Path) -> Result<(), Errno> {
        for _ in 0..HOOK_WATCH_ATTEMPTS_MAX {
            let Some(absent) = self.add(directory, OF_FILES)? else { return Ok(()) };
            let mut way = absent.parent();
            while let Some(above) = way {
                if self.add(above, OF_WAY)?.is_none() {
                    break;
                }
                way = above.parent();
            }
            // It may have come before the way was watched.
            if !directory.exists() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Adds a watch; gives the path back if there is no such directory.
    fn add<'p>(&self, path: &'p Path, what: WatchFlags) -> Result<Option<&'p Path>, Errno> {
        match self.watch(path, what) {
            Ok(descriptor) => {
                self.of_files.borrow_mut().insert(descriptor);
                Ok(None)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Some(path)),
            Err(error) => Err(error),
        }
    }

    /// A directory has one watch, however many reasons there are for it: they add up.
    fn watch(&self, path: &Path, what: WatchFlags) -> Result<i32, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        inotify::add_watch(&self.changes, path, what | WatchFlags::MASK_ADD | WatchFlags::ONLYDIR)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::time::Timespec;
    use std::fs;

    /// Whether something has been told. A change is told before the call that
    /// makes it returns, so there is nothing to wait for.
    fn has_changed(watch: &Watch) -> bool {
        let readable = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&Timespec::default())).unwrap();
        let told = watch.take().unwrap();
        assert_eq!(told.files || told.removals, readable > 0);
        told.files
    }

    #[test]
    fn every_change_is_told_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let (here, file) = (place.path().join("here"), place.path().join("here/a.json"));
        fs::create_dir(&here).unwrap();
        let watch = Watch::new(vec![here.clone()]).unwrap();
        assert!(!has_changed(&watch));
        fs::write(&file, "1").unwrap();
        assert!(has_changed(&watch), "a new file");
        fs::read(&file).unwrap();
        fs::read_dir(&here).unwrap().count();
        assert!(!has_changed(&watch), "reading is no change");
        fs::write(&file, "2").unwrap();
        assert!(has_changed(&watch), "a written one");
        fs::rename(&file, here.join("b.json")).unwrap();
        assert!(has_changed(&watch), "a renamed one");
        fs::remove_file(here.join("b.json")).unwrap();
        assert!(has_changed(&watch), "a removed one");
        std::os::unix::fs::symlink("x", here.join("c.json")).unwrap();
        assert!(has_changed(&watch), "a link");
    }

    #[test]
    fn a_directory_may_come_and_go() {
        let place = tempfile::tempdir().unwrap();
        let (way, here) = (place.path().join("way"), place.path().join("way/here"));
        let watch = Watch::new(vec![here.clone()]).unwrap();
        for round in 0..3 {
            fs::create_dir(&way).unwrap();
            assert!(has_changed(&watch), "{round}: a part of the way");
            fs::create_dir(&here).unwrap();
            assert!(has_changed(&watch), "{round}: the directory");
            fs::write(here.join("a.json"), "1").unwrap();
            assert!(has_changed(&watch), "{round}: a file in it");
            fs::remove_dir_all(&way).unwrap();
            assert!(has_changed(&watch), "{round}: it is gone");
        }
    }

    #[test]
    fn one_directory_within_another_hides_nothing() {
        let place = tempfile::tempdir().unwrap();
        let watch = Watch::new(vec![place.path().to_owned(), place.path().join("within")]).unwrap();
        let watch = watch.and_removals_from(place.path()).unwrap();
        let file = place.path().join("a.json");
        fs::write(&file, "1").unwrap();
        watch.take().unwrap();
        fs::write(&file, "2").unwrap();
        assert_eq!(watch.take().unwrap(), Told { files: true, removals: true });
    }

    #[test]
    fn removals_elsewhere_are_no_change_of_files() {
        let place = tempfile::tempdir().unwrap();
        let (here, runs) = (place.path().join("here"), place.path().join("runs"));
        fs::create_dir(&here).unwrap();
        fs::create_dir_all(runs.join("pod")).unwrap();
        let watch = Watch::new(vec![here.clone()]).unwrap().and_removals_from(&runs).unwrap();
        fs::create_dir(runs.join("other")).unwrap();
        assert_eq!(watch.take().unwrap(), Told::default());
        fs::remove_dir(runs.join("pod")).unwrap();
        assert_eq!(watch.take().unwrap(), Told { files: false, removals: true });
        fs::write(here.join("a.json"), "1").unwrap();
        assert_eq!(watch.take().unwrap(), Told { files: true, removals: false });
        assert!(Watch::new(Vec::new()).unwrap().and_removals_from(&place.path().join("none")).is_err());
    }
}
