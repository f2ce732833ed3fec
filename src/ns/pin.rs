//! Pins: bind mounts of namespaces at `<base>/<kind>ns/<name>`.
//!
//! The base directory is whatever the caller names, symbolic links included. What
//! is below it is podinit's, and is opened by openat2(2) without following any
//! link or leaving the base, so a link that someone else planted there is an
//! error and not a way out.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::make::is_empty_file;
use super::request::check_name;
use super::{Error, Kind};
use crate::limits::PIN_STACK_MAX;
use crate::sys::mount;

/// statfs(2) of the file system that namespaces are on.
pub(crate) const NSFS_MAGIC: i64 = 0x6e73_6673;

/// How much of a base directory that does not exist is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parents {
    /// All of it, as `mkdir -p`.
    Make,
    /// Only its last component.
    Expect,
}

/// rwxr-xr-x: engines look for pins as other users, too.
const DIRECTORY_MODE: Mode =
    Mode::RWXU.union(Mode::RGRP).union(Mode::XGRP).union(Mode::ROTH).union(Mode::XOTH);

/// Something that was done, to be undone in reverse order.
#[derive(Debug)]
enum Undo {
    /// A directory was made.
    Directory(PathBuf),
    /// A directory was made below the base.
    KindDirectory(&'static str),
    /// The mnt directory was mounted on itself.
    Unbindable(&'static str),
    /// A file was made.
    File(Kind, OwnedFd),
    /// A namespace was mounted on the file.
    Mount(Kind, OwnedFd),
}

/// Pins of one name, on their way. Dropped, they are undone.
#[derive(Debug)]
pub(crate) struct Pins {
    name: String,
    base: Option<(PathBuf, OwnedFd)>,
    done: Vec<Undo>,
    /// Locked as long as the mnt pin is in the making.
    mnt_lock: Option<OwnedFd>,
}

impl Pins {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), base: None, done: Vec::new(), mnt_lock: None }
    }

    /// Opens the base directory, and makes what is missing of it.
    pub(crate) fn open_base(&mut self, path: &Path, parents: Parents) -> Result<(), Error> {
        let fd = match open_directory(path) {
            Err(Errno::NOENT) => {
                self.make_directory(path, parents)?;
                open_directory(path)
            }
            other => other,
        };
        let fd = fd.map_err(|e| Error::on("open the directory", path, e))?;
        self.base = Some((path.to_owned(), fd));
        Ok(())
    }

    fn make_directory(&mut self, path: &Path, parents: Parents) -> Result<(), Error> {
        let made = match rustix::fs::mkdir(path, DIRECTORY_MODE) {
            Err(Errno::NOENT) if parents == Parents::Make => {
                if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                    self.make_directory(parent, parents)?;
                }
                rustix::fs::mkdir(path, DIRECTORY_MODE)
            }
            other => other,
        };
        match made {
            Ok(()) => self.done.push(Undo::Directory(path.to_owned())),
            // Someone else was faster.
            Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::on("make the directory", path, e)),
        }
        Ok(())
    }

    fn base(&self) -> Result<(&Path, &OwnedFd), Error> {
        let base = self.base.as_ref().map(|(path, fd)| (path.as_path(), fd));
        base.ok_or_else(|| Error::Invalid("no base directory is open".to_owned()))
    }

    /// Pins the namespace `fd`, whose number is `inode`, and checks that it is there.
    pub(crate) fn pin(&mut self, kind: Kind, fd: &OwnedFd, inode: u64) -> Result<PathBuf, Error> {
        let mut directory = self.kind_directory(kind)?;
        if kind == Kind::Mnt {
            directory = self.unbindable(kind, directory)?;
        }
        let path = self.base()?.0.join(kind.directory()).join(&self.name);
        let target = self.target(kind, &directory, &path)?;
        let copy = directory.try_clone().map_err(|e| Error::on("pin a namespace at", &path, e))?;
        mount::bind(fd, &target, mount::Use::Best).map_err(|e| {
            let errno = Errno::from_io_error(&e);
            let error = Error::on("mount a namespace on", &path, e);
            if kind == Kind::Mnt && matches!(errno, Some(Errno::LOOP | Errno::INVAL)) {
                return error
                    .advise("a mnt namespace can be pinned only in one that is older, and not in itself");
            }
            if error.class() == super::Class::Exhausted {
                return error.advise("there may be too many mounts: see the sysctl fs.mount-max");
            }
            error
        })?;
        self.done.push(Undo::Mount(kind, copy));
        self.verify(&directory, &path, inode)?;
        Ok(path)
    }

    fn kind_directory(&mut self, kind: Kind) -> Result<OwnedFd, Error> {
        let name = kind.directory();
        let (base, fd) = self.base()?;
        let made = rustix::fs::mkdirat(fd, name, DIRECTORY_MODE);
        let path = base.join(name);
        match made {
            Ok(()) => self.done.push(Undo::KindDirectory(name)),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::on("make the directory", &path, e)),
        }
        self.open_kind_directory(name)
    }

    /// The same directory, below a mount of its own that is unbindable.
    fn unbindable(&mut self, kind: Kind, directory: OwnedFd) -> Result<OwnedFd, Error> {
        let name = kind.directory();
        let path = self.base_path().join(name);
        self.mnt_lock = Some(lock(&directory).map_err(|e| Error::on("lock the directory", &path, e))?);
        // Again, now that nobody else mounts on it.
        let mut top = self.open_kind_directory(name)?;
        if !is_mount_root(&top).map_err(|e| Error::on("look at", &path, e))? {
            mount::bind(&directory, &directory, mount::Use::Best)
                .map_err(|e| Error::on("mount on itself", &path, e))?;
            self.done.push(Undo::Unbindable(name));
            top = self.open_kind_directory(name)?;
        }
        mount::make_unbindable(&top).map_err(|e| Error::on("make unbindable", &path, e))?;
        Ok(top)
    }

    fn open_kind_directory(&self, name: &str) -> Result<OwnedFd, Error> {
        let (base, fd) = self.base()?;
        open_beneath(fd, name).map_err(|e| Error::on("open the directory", &base.join(name), e))
    }

    fn base_path(&self) -> PathBuf {
        self.base.as_ref().map(|(path, _)| path.clone()).unwrap_or_default()
    }

    /// The file to mount on: new, or one that is there for us.
    fn target(&mut self, kind: Kind, directory: &OwnedFd, path: &Path) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, self.name.as_str(), flags, Mode::empty()) {
            Ok(file) => {
                let copy = directory.try_clone().map_err(|e| {
                    // The only way to lose track of something: undo it right here.
                    rustix::fs::unlinkat(directory, self.name.as_str(), AtFlags::empty()).ok();
                    Error::on("make the file", path, e)
                })?;
                self.done.push(Undo::File(kind, copy));
                Ok(file)
            }
            Err(Errno::EXIST) => existing(directory, &self.name, path),
            Err(e) => Err(Error::on("make the file", path, e)),
        }
    }

    fn verify(&self, directory: &OwnedFd, path: &Path, inode: u64) -> Result<(), Error> {
        let unverified = |what: String| Error::Unverified { path: path.to_owned(), what };
        let place =
            open_place(directory, &self.name).map_err(|e| unverified(format!("it cannot be opened: {e}")))?;
        let seen = look(&place).map_err(|e| unverified(format!("it cannot be looked at: {e}")))?;
        if !seen.namespace {
            return Err(unverified("it does not lead to a namespace".to_owned()));
        }
        if seen.inode != inode {
            return Err(unverified(format!("it leads to namespace {}, not {inode}", seen.inode)));
        }
        Ok(())
    }

    /// They stay.
    pub(crate) fn keep(mut self) {
        self.done.clear();
    }

    /// Takes everything back that was done; returns what could not be.
    pub(crate) fn undo(mut self) -> Vec<Error> {
        self.undo_all()
    }

    fn undo_all(&mut self) -> Vec<Error> {
        let mut left = Vec::new();
        while let Some(undo) = self.done.pop() {
            if let Err(e) = self.undo_one(&undo) {
                left.push(e);
            }
        }
        left
    }

    fn undo_one(&self, undo: &Undo) -> Result<(), Error> {
        let base = self.base_path();
        let path = |kind: &Kind| base.join(kind.directory()).join(&self.name);
        match undo {
            Undo::Mount(kind, directory) => {
                mount::detach(directory, &self.name).map_err(|e| Error::on("unmount", &path(kind), e))
            }
            Undo::File(kind, directory) => {
                let gone = rustix::fs::unlinkat(directory, self.name.as_str(), AtFlags::empty());
                gone.map_err(|e| Error::on("remove", &path(kind), e))
            }
            Undo::Unbindable(name) => {
                mount::detach(self.base()?.1, name).map_err(|e| Error::on("unmount", &base.join(name), e))
            }
            Undo::KindDirectory(name) => {
                let gone = rustix::fs::unlinkat(self.base()?.1, *name, AtFlags::REMOVEDIR);
                unless_used(gone).map_err(|e| Error::on("remove", &base.join(name), e))
            }
            Undo::Directory(path) => {
                unless_used(rustix::fs::rmdir(path)).map_err(|e| Error::on("remove", path, e))
            }
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Only after a panic is there anything left to undo, and then nobody to tell.
        drop(self.undo_all());
    }
}

/// A directory that someone else uses by now is theirs.
fn unless_used(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY | Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// What is at a pin's place, looked at without opening it for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// A namespace is mounted there.
    pub(crate) namespace: bool,
    /// Something is mounted there.
    pub(crate) mounted: bool,
    /// A regular file without contents.
    pub(crate) empty_file: bool,
    /// Its inode; of a namespace, its number.
    pub(crate) inode: u64,
}

pub(crate) fn look(place: &OwnedFd) -> Result<Seen, Errno> {
    let stat = rustix::fs::fstat(place)?;
    Ok(Seen {
        namespace: rustix::fs::fstatfs(place)?.f_type == NSFS_MAGIC,
        mounted: is_mount_root(place)?,
        empty_file: is_empty_file(&stat),
        inode: stat.st_ino,
    })
}

fn is_mount_root(place: &OwnedFd) -> Result<bool, Errno> {
    let statx = rustix::fs::statx(place, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn existing(directory: &OwnedFd, name: &str, path: &Path) -> Result<OwnedFd, Error> {
    let place = open_place(directory, name).map_err(|e| Error::on("open", path, e))?;
    let seen = look(&place).map_err(|e| Error::on("look at", path, e))?;
    let (found, advice) = match seen {
        Seen { namespace: true, .. } => {
            ("a namespace is pinned there", "remove it first, or choose another name")
        }
        Seen { mounted: true, .. } => ("something is mounted on it", "unmount it, or choose another name"),
        Seen { empty_file: false, .. } => ("it is not an empty file", "choose another name"),
        _ => return Ok(place),
    };
    Err(Error::Exists { path: path.to_owned(), found, advice })
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// A directory of podinit's own.
pub(crate) fn open_beneath(base: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(base, name, flags, Mode::empty(), BENEATH)
}

/// What is at `name`, whatever it is.
pub(crate) fn open_place(directory: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), BENEATH)
}

/// Locks a directory until the result is dropped, against others who mount it on itself.
fn lock(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, c".", flags, Mode::empty())?;
    rustix::fs::flock(&fd, FlockOperation::LockExclusive)?;
    Ok(fd)
}

/// See [`super::remove`].
pub(crate) fn remove(base: &Path, name: &str) -> Result<(), Vec<Error>> {
    check_name(name).map_err(|e| vec![e])?;
    let fd = match open_directory(base) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(vec![Error::on("open the directory", base, e)]),
    };
    let mut errors = Vec::new();
    // The reverse of pinning, so that owners go last.
    for kind in Kind::ALL.into_iter().rev() {
        if let Err(e) = remove_one(base, &fd, kind, name) {
            errors.push(e);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn remove_one(base: &Path, base_fd: &OwnedFd, kind: Kind, name: &str) -> Result<(), Error> {
    let parent = base.join(kind.directory());
    let directory = match open_beneath(base_fd, kind.directory()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::on("open the directory", &parent, e)),
    };
    unpin(&directory, name, &parent.join(name))?;
    if kind == Kind::Mnt {
        let lock = lock(&directory).map_err(|e| Error::on("lock the directory", &parent, e))?;
        let empty = is_empty_directory(&lock).map_err(|e| Error::on("read the directory", &parent, e))?;
        let mounted = is_mount_root(&directory).map_err(|e| Error::on("look at", &parent, e))?;
        if empty && mounted {
            mount::detach(base_fd, kind.directory()).map_err(|e| Error::on("unmount", &parent, e))?;
        }
    }
    Ok(())
}

/// Unmounts and removes one pin, whichever of the two is still to be done.
fn unpin(directory: &OwnedFd, name: &str, path: &Path) -> Result<(), Error> {
    for _ in 0..PIN_STACK_MAX {
        let place = match open_place(directory, name) {
            Ok(place) => place,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::on("open", path, e)),
        };
        let seen = look(&place).map_err(|e| Error::on("look at", path, e))?;
        if seen.namespace {
            match mount::detach(directory, name) {
                // Someone else is unpinning, too.
                Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::NOENT)) => {}
                Err(e) => return Err(Error::on("unmount", path, e)),
                Ok(()) => {}
            }
        } else if seen.mounted || !seen.empty_file {
            let (found, advice) = ("it is not a pinned namespace", "it was left alone; remove it yourself");
            return Err(Error::Exists { path: path.to_owned(), found, advice });
        } else {
            return match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(Error::on("remove", path, e)),
            };
        }
    }
    let (found, advice) = ("too many namespaces are mounted on one another", "remove it again");
    Err(Error::Exists { path: path.to_owned(), found, advice })
}

fn is_empty_directory(directory: &OwnedFd) -> Result<bool, Errno> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
