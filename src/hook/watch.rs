//! Tells when files in hooks directories have changed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
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
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What a directory is watched for of which only a part of the way is there.
const OF_WAY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// One inotify instance for several directories, those that are still to come
/// included. Its descriptor is readable when something may have changed; then
/// call [`Watch::take`] and read the directories again.
#[derive(Debug)]
pub struct Watch {
    changes: OwnedFd,
    directories: Vec<PathBuf>,
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
        let watch = Self { changes, directories };
        watch.aim()?;
        Ok(watch)
    }

    /// Takes what has been told, and watches what has come to be.
    ///
    /// # Errors
    /// As [`Watch::new`].
    pub fn take(&self) -> io::Result<()> {
        // Room for the longest name (inotify(7)).
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(&self.changes, &mut buffer);
        loop {
            match events.next() {
                Ok(_) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.aim()
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
        let path_or_here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match inotify::add_watch(&self.changes, path_or_here, what) {
            Ok(_) => Ok(None),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Some(path)),
            Err(error) => Err(error),
        }
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
    use std::fs;

    /// Whether something has been told. A change is told before the call that
    /// makes it returns, so there is nothing to wait for.
    fn has_changed(watch: &Watch) -> bool {
        let told = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&rustix::time::Timespec::default()));
        watch.take().unwrap();
        told.unwrap() > 0
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
}
