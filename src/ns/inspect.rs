//! Looking at pods' namespaces from outside, and running commands in them: what
//! `podinit ns` does. It reads the records and the pins, and needs no server.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::gc::LOCK_NAME;
use super::make::{describe, open_pinned};
use super::network::{Network, look};
use super::sandbox::{Pinned, Record, Sandboxes, State};
use super::{Error, Kind, Source};
use crate::sys::namespace::{Inside, StepError};

/// A namespace in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Id of the pod.
    pub pod: String,
    /// Its kind.
    pub kind: Kind,
    /// Its number.
    pub inode: u64,
    /// Number of the user namespace that owns it; 0 if that is not visible.
    pub owner_inode: u64,
    /// It was made for this pod.
    pub created: bool,
    /// Where it is pinned, if it is.
    pub path: Option<PathBuf>,
    /// The pid of the pod's keeper; `None` if it is gone (`podinit gc` removes the pod).
    pub keeper: Option<u32>,
    /// When it was made: Unix time in nanoseconds.
    pub created_at_ns: u64,
}

/// A namespace in detail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspected {
    /// The pod's id; `None` if it was asked for by path.
    pub pod: Option<String>,
    /// Its kind.
    pub kind: Kind,
    /// Its number.
    pub inode: u64,
    /// Number of the user namespace that owns it.
    pub owner_inode: u64,
    /// Every place where it is mounted, as seen from here.
    pub pins: Vec<PathBuf>,
    /// Processes that are in it.
    pub processes: Vec<u32>,
    /// Of a network namespace: what it looks like inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// Every namespace of the pods whose run directories are in `pods`.
///
/// # Errors
/// If a directory or a record cannot be read.
pub fn list(pods: &Path) -> Result<Vec<Listed>, Error> {
    let mut listed = Vec::new();
    for run_dir in run_dirs(pods)? {
        let keeper = keeper(&run_dir);
        for record in Sandboxes::new(&run_dir).list()? {
            let State::Made { namespaces, created_at_ns, .. } = record.state else { continue };
            for Pinned { kind, path, inode, owner_inode, created } in namespaces {
                let pod = record.request.name.clone();
                listed.push(Listed { pod, kind, inode, owner_inode, created, path, keeper, created_at_ns });
            }
        }
    }
    Ok(listed)
}

/// Looks at the namespaces of the pod `what`, or at the one pinned at the path `what`.
///
/// # Errors
/// If there is no such pod, or nothing is pinned there.
pub fn inspect(pods: &Path, what: &str) -> Result<Vec<Inspected>, Error> {
    if what.contains('/') {
        let path = std::path::absolute(what).map_err(|e| Error::on("find", Path::new(what), e))?;
        let (kind, fd) = open_any(&path)?;
        return Ok(vec![inspect_one(None, kind, fd)?]);
    }
    let record = find(pods, what)?;
    let open = open_all(&record, &[])?;
    open.into_iter().map(|(kind, fd)| inspect_one(Some(what.to_owned()), kind, fd)).collect()
}

/// Runs `command` in the pod's namespaces of these `kinds` (all that are its own
/// if empty) and waits for it. Its exit code, or 128 and the number of the signal
/// that ended it, as shells have it; 127 if it cannot be found.
///
/// The calling thread is in the namespaces afterwards: its next act is to exit.
///
/// # Errors
/// If a namespace cannot be joined, or the command not be started.
pub fn enter(pods: &Path, pod: &str, kinds: &[Kind], command: &[OsString]) -> Result<u8, Error> {
    let record = find(pods, pod)?;
    let open = open_all(&record, kinds)?;
    let names: Vec<Kind> = open.iter().map(|(kind, _)| *kind).collect();
    let inside = Inside {
        // The namespaces are in the order of `Kind::ALL`: the user namespace, which gives the rights
        // to join the others, is the first, and mnt, after which no path is what it was, the last.
        join: open.into_iter().map(|(kind, fd)| (kind.flag(), fd)).collect(),
        become_root: names.contains(&Kind::User),
        ..Inside::default()
    };
    inside.carry_out().map_err(|StepError { step, errno }| match step {
        crate::sys::namespace::Step::Join(n) => {
            let kind = names.get(n).map_or("", |kind| kind.name());
            Error::step("join", format!("the {kind} namespace of pod {pod}"), errno)
        }
        _ => Error::step("become", "root of the user namespace", errno),
    })?;
    let (program, arguments) =
        command.split_first().ok_or_else(|| Error::Invalid("no command is given".to_owned()))?;
    // A new process, since a pid namespace is entered by children only.
    match Command::new(program).args(arguments).status() {
        Ok(status) => {
            let code = status.code().or_else(|| status.signal().map(|signal| signal + 128));
            Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(127),
        Err(e) => Err(Error::step("execute", program.to_string_lossy(), e)),
    }
}

fn run_dirs(pods: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(pods) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::on("read the directory", pods, e)),
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut directories: Vec<PathBuf> = directories.map(|entry| entry.path()).collect();
    directories.sort();
    Ok(directories)
}

/// The keeper's pid, which is in the lock that it holds.
fn keeper(run_dir: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(run_dir.join(LOCK_NAME)).ok()?.trim().parse().ok()?;
    // A keeper that is gone holds nothing.
    let lock = fs::File::open(run_dir.join(LOCK_NAME)).ok()?;
    let free = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared);
    if free.is_ok() { None } else { Some(pid) }
}

fn find(pods: &Path, pod: &str) -> Result<Record, Error> {
    for run_dir in run_dirs(pods)? {
        for record in Sandboxes::new(&run_dir).list()? {
            if record.request.name == pod {
                return Ok(record);
            }
        }
    }
    let text =
        format!("there is no pod {pod:?} with namespaces below {}; see `podinit ns ls`", pods.display());
    Err(Error::Invalid(text))
}

/// Opens the pod's namespaces: of these kinds, or all that are not the host's.
fn open_all(record: &Record, kinds: &[Kind]) -> Result<Vec<(Kind, OwnedFd)>, Error> {
    let pod = &record.request.name;
    let mut open = Vec::new();
    for kind in Kind::ALL {
        let source = record.request.namespaces.iter().find(|(other, _)| *other == kind);
        let wanted = if kinds.is_empty() {
            source.is_some_and(|(_, source)| *source != Source::Host)
        } else {
            kinds.contains(&kind)
        };
        if !wanted {
            continue;
        }
        let known = record.namespaces().iter().find(|pinned| pinned.kind == kind);
        let known = known.ok_or_else(|| Error::Invalid(format!("pod {pod} has no {kind} namespace")))?;
        let init = record.init().map(|init| PathBuf::from(format!("/proc/{}/ns/{kind}", init.pid)));
        let place = known.path.clone().or(init).ok_or_else(|| {
            let text =
                format!("the {kind} namespace of pod {pod} is kept by descriptor only; it has no path");
            Error::Invalid(text)
        })?;
        let fd = open_pinned(kind, &place)?;
        let made = describe(kind, fd, &Source::Host)?;
        if made.inode != known.inode {
            let what = format!("{} is namespace {} now, not {}", place.display(), made.inode, known.inode);
            return Err(Error::Lost { pod: pod.clone(), what });
        }
        open.push((kind, made.fd));
    }
    Ok(open)
}

/// The namespace at a path, whatever its kind.
fn open_any(path: &Path) -> Result<(Kind, OwnedFd), Error> {
    let mut last = None;
    for kind in Kind::ALL {
        match open_pinned(kind, path) {
            Ok(fd) => return Ok((kind, fd)),
            Err(Error::Invalid(_)) => {}
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| Error::Invalid(format!("{} is not a pinned namespace", path.display()))))
}

fn inspect_one(pod: Option<String>, kind: Kind, fd: OwnedFd) -> Result<Inspected, Error> {
    let made = describe(kind, fd, &Source::Host)?;
    let network = if kind == Kind::Net { Some(look(made.fd.as_fd())?) } else { None };
    Ok(Inspected {
        pod,
        kind,
        inode: made.inode,
        owner_inode: made.owner_inode,
        pins: pins_of(kind, made.inode)?,
        processes: processes_in(kind, made.inode),
        network,
    })
}

/// Mount points whose root is this namespace.
fn pins_of(kind: Kind, inode: u64) -> Result<Vec<PathBuf>, Error> {
    let root = format!("{kind}:[{inode}]");
    let pins =
        super::gc::mount_points(|fields| fields.get(3).is_some_and(|field| *field == root.as_bytes()))?;
    Ok(pins)
}

fn processes_in(kind: Kind, inode: u64) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_in = |pid: &u32| fs::metadata(format!("/proc/{pid}/ns/{kind}")).is_ok_and(|ns| ns.ino() == inode);
    pids.filter(is_in).collect()
}
