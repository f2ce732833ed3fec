//! The names of a log's files, and how they change when the log goes on in a new
//! one.
//!
//! The file before the last rotation is `<path>.1`, the one before that
//! `<path>.2`, and so on; those that are compressed have `.gz` after the number.
//! kubelet's own rotated files are `<path>.<date>`, which no number looks like, so
//! both can be there: kubelet counts ours as the oldest when it removes what is
//! too much.
//!
//! A crash at any point leaves files that the next rotation takes as they are: the
//! oldest is removed first, every file is renamed to a name that is free, and the
//! log itself comes last.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::limits::LOG_BACKUPS_MAX;

/// The file that was the log `number` rotations ago, 1 for the last.
#[must_use]
pub fn backup(path: &Path, number: u16) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

/// The same, once it is compressed.
#[must_use]
pub fn compressed(path: &Path, number: u16) -> PathBuf {
    with_suffix(path, &format!(".{number}.gz"))
}

/// What is being compressed, until it is complete. kubelet removes files of such a
/// name too, when it rotates.
#[must_use]
pub fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, ".gz.tmp")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The directory that `path` is in.
#[must_use]
pub fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Makes room for `<path>.1` among `backups` files and renames the log to it.
///
/// # Errors
/// What rename(2) says; the log then still has its name. That somebody else has
/// renamed it just now is no error.
pub fn shift(path: &Path, backups: u16) -> Result<(), Errno> {
    let last = backups.max(1);
    let taken = |number: u16| exists(&backup(path, number)) || exists(&compressed(path, number));
    // More than are wanted now: somebody has changed his mind.
    for number in (last + 1..=LOG_BACKUPS_MAX).take_while(|number| taken(*number)) {
        remove(path, number)?;
    }
    let free = (1..=last).find(|number| !taken(*number)).unwrap_or(last);
    remove(path, free)?;
    for number in (1..free).rev() {
        rename(&backup(path, number), &backup(path, number + 1))?;
        rename(&compressed(path, number), &compressed(path, number + 1))?;
    }
    rename(path, &backup(path, 1))
}

fn exists(path: &Path) -> bool {
    rustix::fs::lstat(path).is_ok()
}

/// Removes a backup in either form.
fn remove(path: &Path, number: u16) -> Result<(), Errno> {
    for name in [backup(path, number), compressed(path, number)] {
        match rustix::fs::unlink(&name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Renames what is there; nothing if there is nothing.
fn rename(from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::rename(from, to) {
        Err(Errno::NOENT) if !exists(from) => Ok(()),
        result => result,
    }
}

/// The right to rename backups of a log: rotation and the compressing process both
/// do that. Given up when it is dropped.
#[derive(Debug)]
pub struct Lock {
    _directory: OwnedFd,
}

impl Lock {
    /// Takes it: at once, or with `wait` when the other has given it up.
    ///
    /// # Errors
    /// `EWOULDBLOCK` if the other has it; what open(2) and flock(2) say.
    pub fn take(path: &Path, wait: bool) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory(path), flags, Mode::empty())?;
        let how = if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
        rustix::fs::flock(&directory, how)?;
        Ok(Self { _directory: directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the log and its backups, by suffix.
    fn files(path: &Path) -> Vec<(String, String)> {
        let prefix = path.file_name().unwrap().to_str().unwrap();
        let entries = std::fs::read_dir(directory(path)).unwrap().map(Result::unwrap);
        let mut files: Vec<_> = entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (
                    name.strip_prefix(prefix).unwrap().to_owned(),
                    std::fs::read_to_string(entry.path()).unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    }

    fn names(path: &Path) -> Vec<String> {
        files(path).into_iter().map(|(suffix, content)| format!("{suffix}={content}")).collect()
    }

    #[test]
    fn backups_move_up_and_the_oldest_goes() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        for generation in 1..=5 {
            std::fs::write(&path, generation.to_string()).unwrap();
            shift(&path, 3).unwrap();
        }
        assert_eq!(names(&path), [".1=5", ".2=4", ".3=3"]);
        std::fs::rename(backup(&path, 3), compressed(&path, 3)).unwrap();
        std::fs::rename(backup(&path, 2), compressed(&path, 2)).unwrap();
        std::fs::write(&path, "6").unwrap();
        shift(&path, 3).unwrap();
        assert_eq!(names(&path), [".1=6", ".2=5", ".3.gz=4"]);
        std::fs::write(&path, "7").unwrap();
        shift(&path, 1).unwrap();
        assert_eq!(names(&path), [".1=7"], "fewer are wanted now");
    }

    #[test]
    fn hole_that_a_crash_left_is_filled_before_anything_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        for (suffix, content) in [("", "new"), (".1", "a"), (".3.gz", "c")] {
            std::fs::write(with_suffix(&path, suffix), content).unwrap();
        }
        shift(&path, 3).unwrap();
        assert_eq!(names(&path), [".1=new", ".2=a", ".3.gz=c"]);
        shift(&path, 3).unwrap();
        assert!(!exists(&path), "somebody else has renamed it: only the backups move");
    }

    #[test]
    fn two_cannot_rename_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        let lock = Lock::take(&path, true).unwrap();
        assert_eq!(Lock::take(&path, false).unwrap_err(), Errno::WOULDBLOCK);
        drop(lock);
        Lock::take(&path, false).unwrap();
    }
}
