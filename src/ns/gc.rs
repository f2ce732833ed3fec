//! Finding and removing what pods left whose keeper is gone.
//!
//! A keeper holds the lock of its pod's run directory as long as it lives, so a
//! directory whose lock can be had belongs to nobody. While its leftovers are
//! removed the collector has the lock, so no new server can take the directory.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::Serialize;

use super::sandbox::{InitRecord, Sandboxes};
use super::{Error, Kind};
use crate::limits::RUN_DIR_DEPTH_MAX;

/// The file in a run directory that its keeper has locked.
pub const LOCK_NAME: &str = "lock";

/// Something that a pod left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Item {
    /// The pod's init, without anyone who would reap it.
    Process {
        /// Its pid.
        pid: u32,
    },
    /// A pinned namespace.
    Pin {
        /// Its kind.
        kind: Kind,
        /// Where.
        path: PathBuf,
    },
    /// Another mount.
    Mount {
        /// Where.
        path: PathBuf,
    },
    /// A socket that nobody listens on.
    Socket {
        /// Where.
        path: PathBuf,
    },
    /// The run directory itself, with all that is in it.
    Directory {
        /// Where.
        path: PathBuf,
    },
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { pid } => write!(f, "process {pid} (the pod's init)"),
            Self::Pin { kind, path } => write!(f, "pin of a {kind} namespace, {}", path.display()),
            Self::Mount { path } => write!(f, "mount on {}", path.display()),
            Self::Socket { path } => write!(f, "socket {}", path.display()),
            Self::Directory { path } => write!(f, "directory {}", path.display()),
        }
    }
}

/// A run directory whose keeper is gone.
#[derive(Debug)]
pub struct Leftover {
    /// The directory's name: for pods of people, the pod's id.
    pub pod: String,
    /// What is left, in the order of removal.
    pub items: Vec<Item>,
    run_dir: PathBuf,
    inits: Vec<InitRecord>,
    _lock: Option<File>,
}

/// Whether locks are made where there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only look.
    DryRun,
    /// Look in order to remove.
    Remove,
}

/// Looks at every run directory in `pods`, and returns those whose keeper is gone.
/// They stay locked until the result is dropped.
///
/// # Errors
/// If `pods` or something in it cannot be read. That it does not exist is no error.
pub fn find(pods: &Path, mode: Mode) -> Result<Vec<Leftover>, Error> {
    let entries = match fs::read_dir(pods) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::on("read the directory", pods, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::on("read the directory", pods, e))?;
        // A link is not followed: it was not made by podinit.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(examine(&entry.path(), mode)?);
        }
    }
    found.sort_by(|a, b| a.pod.cmp(&b.pod));
    Ok(found)
}

fn examine(run_dir: &Path, mode: Mode) -> Result<Option<Leftover>, Error> {
    let Claim::Gone(lock) = claim(run_dir, mode)? else { return Ok(None) };
    let mut leftover = Leftover {
        pod: run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        items: Vec::new(),
        run_dir: run_dir.to_owned(),
        inits: Vec::new(),
        _lock: lock,
    };
    for record in Sandboxes::new(run_dir).list()? {
        if let Some(init) = record.init().filter(InitRecord::is_alive) {
            leftover.items.push(Item::Process { pid: init.pid });
            leftover.inits.push(init);
        }
        // The record of a pod that was being made does not say what is there already.
        for kind in Kind::ALL {
            let path = record.request.base.join(kind.directory()).join(&record.request.name);
            if fs::symlink_metadata(&path).is_ok() {
                leftover.items.push(Item::Pin { kind, path });
            }
        }
    }
    for path in mounts_below(run_dir)? {
        let known = |item: &Item| matches!(item, Item::Pin { path: pin, .. } if *pin == path);
        if !leftover.items.iter().any(known) {
            leftover.items.push(Item::Mount { path });
        }
    }
    sockets_below(run_dir, RUN_DIR_DEPTH_MAX, &mut leftover.items);
    leftover.items.push(Item::Directory { path: run_dir.to_owned() });
    Ok(Some(leftover))
}

/// Whether a run directory has a keeper.
enum Claim {
    Alive,
    /// No. With its lock, unless there is none.
    Gone(Option<File>),
}

fn claim(run_dir: &Path, mode: Mode) -> Result<Claim, Error> {
    let path = run_dir.join(LOCK_NAME);
    let failed = |e: io::Error| Error::on("open the lock", &path, e);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).mode(0o600);
    if mode == Mode::Remove {
        // So that a server that is just being started there finds it taken.
        options.write(true).create(true).truncate(false);
    }
    let lock = match options.open(&path) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Claim::Gone(None)),
        Err(e) => return Err(failed(e)),
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Claim::Gone(Some(lock))),
        Err(Errno::AGAIN) => Ok(Claim::Alive),
        Err(e) => Err(failed(e.into())),
    }
}

/// Mount points below `directory`, the innermost first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut below = mount_points(|_| true)?;
    below.retain(|mount| mount.starts_with(directory) && mount != directory);
    below.reverse();
    Ok(below)
}

/// Mount points of those lines of mountinfo (proc(5)) whose fields are `wanted`, in the order of mounting.
pub(crate) fn mount_points(wanted: impl Fn(&[&[u8]]) -> bool) -> Result<Vec<PathBuf>, Error> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let table = fs::read(path).map_err(|e| Error::on("read", path, e))?;
    let mut points = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        if let Some(point) = fields.get(4).filter(|_| wanted(&fields)) {
            points.push(unescape(point));
        }
    }
    Ok(points)
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = match (first, after) {
            (b'\\', [a, b, c, ..]) => {
                let digits = [*a, *b, *c];
                std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
            }
            _ => None,
        };
        plain.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

/// What cannot be read is not listed; removing the directory will tell.
fn sockets_below(directory: &Path, depth: usize, items: &mut Vec<Item>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_socket() => items.push(Item::Socket { path: entry.path() }),
            Ok(kind) if kind.is_dir() && depth > 0 => sockets_below(&entry.path(), depth - 1, items),
            _ => {}
        }
    }
}

impl Leftover {
    /// Removes everything.
    ///
    /// # Errors
    /// All that could not be removed; the rest has been, and it can be repeated.
    pub fn remove(self) -> Result<(), Vec<Error>> {
        let mut errors = Vec::new();
        for init in &self.inits {
            errors.extend(init.end().err());
        }
        let sandboxes = Sandboxes::new(&self.run_dir);
        match sandboxes.list() {
            Ok(records) => {
                for record in records {
                    errors.extend(sandboxes.remove(&record.request.name).err().into_iter().flatten());
                }
            }
            Err(e) => errors.push(e),
        }
        match mounts_below(&self.run_dir) {
            Ok(mounts) => {
                for mount in mounts {
                    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                    let done = rustix::mount::unmount(&mount, flags);
                    errors.extend(done.err().map(|e| Error::on("unmount", &mount, e)));
                }
            }
            Err(e) => errors.push(e),
        }
        // With something left that is known only from here, the directory stays.
        if errors.is_empty() {
            let gone = fs::remove_dir_all(&self.run_dir);
            errors.extend(gone.err().map(|e| Error::on("remove the directory", &self.run_dir, e)));
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_as_the_kernel_writes_them() {
        assert_eq!(unescape(b"/run/a\\040b\\134c"), Path::new("/run/a b\\c"));
        assert_eq!(unescape(b"/run/a\\04"), Path::new("/run/a\\04"));
        assert_eq!(unescape(b"\\999"), Path::new("\\999"));
    }
}
