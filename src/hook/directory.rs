//! The hooks of several directories.
//!
//! A file that cannot be used does not take the others with it. What its hook
//! was before stays in force: somebody wanted it to run. If there is no before,
//! nobody can say what it would have been for, so it stands in the way of new
//! containers ([`Catalogue::obstacle`]) and of nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::definition::Hook;
use super::file::{self, FileError, Parsed};
use super::order;
use crate::limits::{HOOK_FILE_BYTES_MAX, HOOK_FILES_MAX};

/// A hook file that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its name, which is the hook's.
    pub name: String,
    /// Its directory, as an index into those that were asked for.
    pub directory: usize,
}

/// What is wrong with a file, a directory, or the whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Problem {
    /// Where.
    pub path: PathBuf,
    /// What is wrong, and what to do about it.
    pub reason: String,
    /// Whether what was there before is still in force.
    pub kept: bool,
}

/// Directories that were opened, and what was found in them.
#[derive(Debug, Default)]
pub struct Listing {
    directories: Vec<(PathBuf, Option<OwnedFd>)>,
    /// Files whose names end in `.json`, by directory, each in the order of names.
    pub files: Vec<Found>,
    /// Directories that could not be read.
    pub problems: Vec<Problem>,
}

impl Listing {
    /// Looks into `directories`, in rising preference. One that does not exist is empty.
    #[must_use]
    pub fn new(directories: &[PathBuf]) -> Self {
        let mut listing = Self::default();
        for (at, path) in directories.iter().enumerate() {
            let opened = open(path).unwrap_or_else(|error| {
                listing.trouble(path, error);
                None
            });
            match opened.as_ref().map(names).transpose() {
                Ok(None) => {}
                Ok(Some(names)) => listing.note(path, at, names),
                Err(error) => listing.trouble(path, error),
            }
            listing.directories.push((path.clone(), opened));
        }
        if listing.files.len() > HOOK_FILES_MAX {
            let last = listing.files.drain(HOOK_FILES_MAX..).next_back();
            let path = last.map(|found| listing.path(&found)).unwrap_or_default();
            let reason = format!("there are more than {HOOK_FILES_MAX} hook files; the last are not read");
            listing.problems.push(Problem { path, reason, kept: false });
        }
        listing
    }

    fn note(&mut self, path: &Path, directory: usize, names: BTreeSet<OsString>) {
        for name in names {
            match name.into_string() {
                Ok(name) => self.files.push(Found { name, directory }),
                Err(name) => {
                    let reason = "its name is not UTF-8; rename it".to_owned();
                    self.problems.push(Problem { path: path.join(name), reason, kept: false });
                }
            }
        }
    }

    fn trouble(&mut self, path: &Path, error: io::Error) {
        let reason = format!("the directory cannot be read: {error}");
        self.problems.push(Problem { path: path.to_owned(), reason, kept: false });
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, found: &Found) -> PathBuf {
        let directory = self.directories.get(found.directory);
        directory.map(|(path, _)| path.join(&found.name)).unwrap_or_default()
    }

    /// The file that replaces this one: of the same name, in a later directory.
    #[must_use]
    pub fn replacement(&self, found: &Found) -> Option<&Found> {
        let later = |other: &&Found| other.name == found.name && other.directory > found.directory;
        self.files.iter().filter(later).max()
    }

    /// Reads a file; none if it has gone, or is a link to nothing.
    ///
    /// # Errors
    /// If it cannot be read, or is no hook file.
    pub fn read(&self, found: &Found) -> Result<Option<Parsed>, FileError> {
        let directory = self.directories.get(found.directory).and_then(|(_, opened)| opened.as_ref());
        let Some(directory) = directory else { return Ok(None) };
        let Some(text) = text(directory, &found.name)? else { return Ok(None) };
        let parsed = file::parse(&found.name, &text)?;
        file::check_program(&parsed.hook)?;
        Ok(Some(parsed))
    }
}

/// Opens a directory; none if there is none.
fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode).contains(Mode::WOTH) {
        return Err(io::Error::other("everybody may write in it, and so run programs as root; chmod o-w"));
    }
    Ok(Some(directory))
}

/// The names in a directory that end in `.json`, sorted.
fn names(directory: &OwnedFd) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.ends_with(b".json") {
            names.insert(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// The text of a file; none if there is none.
fn text(directory: impl AsFd, name: &str) -> Result<Option<Vec<u8>>, FileError> {
    // Not blocking: it may be a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Links are followed within the directory: mounted ConfigMaps consist of such.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::XDEV | Errno::LOOP) => {
            return Err(FileError::Unfit("it is a symbolic link out of its directory; put the file there"));
        }
        Err(error) => return Err(FileError::Read(error.into())),
    };
    let status = rustix::fs::fstat(&file).map_err(|error| FileError::Read(error.into()))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(FileError::Unfit("it is no regular file"));
    }
    if Mode::from_raw_mode(status.st_mode).contains(Mode::WOTH) {
        return Err(FileError::Unfit("everybody may write it, and so run programs as root; chmod o-w"));
    }
    let mut text = Vec::new();
    // One byte more shows that it is too large.
    let read = std::fs::File::from(file).take(HOOK_FILE_BYTES_MAX + 1).read_to_end(&mut text);
    read.map_err(FileError::Read)?;
    Ok(Some(text))
}

/// The hooks of some directories, in order, as they were when last read.
#[derive(Debug)]
pub struct Catalogue {
    directories: Vec<PathBuf>,
    hooks: Vec<Rc<Hook>>,
    problems: Vec<Problem>,
}

impl Catalogue {
    /// Reads `directories`, in rising preference: of files of the same name the
    /// one in the last of them counts.
    #[must_use]
    pub fn read(directories: Vec<PathBuf>) -> Self {
        let mut catalogue = Self { directories, hooks: Vec::new(), problems: Vec::new() };
        catalogue.reload();
        catalogue
    }

    /// Reads the directories again. Whether a hook, their order, or what is wrong
    /// with them has changed.
    pub fn reload(&mut self) -> bool {
        let listing = Listing::new(&self.directories);
        let mut before: BTreeMap<String, Rc<Hook>> =
            self.hooks.iter().map(|hook| (hook.name.clone(), Rc::clone(hook))).collect();
        let mut problems = listing.problems.clone();
        let mut hooks = Vec::with_capacity(listing.files.len());
        for found in listing.files.iter().filter(|found| listing.replacement(found).is_none()) {
            let last_good = before.remove(&found.name);
            match listing.read(found) {
                Ok(None) => {}
                Ok(Some(parsed)) => hooks.push(same_or_new(last_good, parsed.hook)),
                Err(error) => {
                    let kept = last_good.is_some();
                    problems.push(Problem { path: listing.path(found), reason: error.to_string(), kept });
                    hooks.extend(last_good);
                }
            }
        }
        // Nobody knows what is in a directory that cannot be read.
        if !listing.problems.is_empty() {
            hooks.extend(before.into_values());
        }
        let borrowed: Vec<&Hook> = hooks.iter().map(Rc::as_ref).collect();
        let by_name = || {
            let mut order: Vec<usize> = (0..borrowed.len()).collect();
            order.sort_by_cached_key(|at| borrowed.get(*at).map(|hook| order::sort_key(&hook.name)));
            order
        };
        let order = order::order(&borrowed).unwrap_or_else(|cycle| {
            let path = self.directories.last().cloned().unwrap_or_default();
            problems.push(Problem { path, reason: cycle.to_string(), kept: false });
            by_name()
        });
        let hooks: Vec<_> = order.into_iter().filter_map(|at| hooks.get(at).cloned()).collect();
        let has_changed = hooks != self.hooks || problems != self.problems;
        self.hooks = hooks;
        self.problems = problems;
        has_changed
    }

    /// Every hook, in the order in which hooks run.
    #[must_use]
    pub fn hooks(&self) -> &[Rc<Hook>] {
        &self.hooks
    }

    /// What is wrong.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Why no new container may be made: a hook is missing that somebody wanted,
    /// or the order is unknown. All else goes on.
    #[must_use]
    pub fn obstacle(&self) -> Option<&Problem> {
        self.problems.iter().find(|problem| !problem.kept)
    }
}

/// Keeps the hook that is shared already if nothing has changed.
fn same_or_new(before: Option<Rc<Hook>>, now: Hook) -> Rc<Hook> {
    match before {
        Some(before) if *before == now => before,
        _ => Rc::new(now),
    }
}

#[cfg(test)]
mod tests;
