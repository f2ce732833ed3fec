//! The pods' namespaces that one server keeps: made once, answered again, found
//! again after a crash.
//!
//! Each pod has a record, `<run directory>/namespaces/<pod id>.json`, written
//! before the first namespace is made and again when all are there. So nothing
//! that this code made can be without a record, whenever it is killed: a record
//! of a pod that is still being made is what a crash left, and is undone by the
//! next request for that pod, by [`Sandboxes::remove`] and by `podinit gc`.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

use super::make::{Environment, Hosts};
use super::{Error, IdMapping, Kind, Made, Placement, PodInit, Request, Set, Source};
use crate::limits::{ID_BYTES_MAX, INIT_END_TIMEOUT};

/// The directory of records in a run directory.
pub const DIRECTORY: &str = "namespaces";

/// A namespace of a pod, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Its kind.
    pub kind: Kind,
    /// Where it is pinned, if it is.
    pub path: Option<PathBuf>,
    /// Its number.
    pub inode: u64,
    /// Number of the user namespace that owns it; see [`Made::owner_inode`].
    pub owner_inode: u64,
    /// It was made for this pod.
    pub created: bool,
}

/// The pod's init, as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRecord {
    /// Its pid, as the monitor counts.
    pub pid: u32,
    /// Number of the pid namespace of which it is PID 1. Together they are unique.
    pub namespace: u64,
}

/// Whether namespaces of the host were pinned, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostPins {
    /// For callers that want a path for every kind.
    Made,
    /// The rule.
    None,
}

/// How far a pod's namespaces are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Being made; or a crash ended that.
    Making {
        /// The process that is about to become the pod's init, once it is known.
        init: Option<InitRecord>,
    },
    /// All there.
    Made {
        /// In the order of the request.
        namespaces: Vec<Pinned>,
        /// If a pid namespace was made.
        init: Option<InitRecord>,
        /// Unix time in nanoseconds.
        created_at_ns: u64,
    },
}

/// What is remembered of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub request: Request,
    /// Whether the host's were pinned.
    pub host_pins: HostPins,
    /// How far it is.
    pub state: State,
}

/// An answer to a request.
#[derive(Debug)]
pub struct Sandbox {
    /// Its state is [`State::Made`].
    pub record: Record,
    /// The descriptors, for the keeper; `None` if the pod's namespaces were there already.
    pub made: Option<Set>,
}

/// What deployed clients ask for with createNamespaces.
#[derive(Debug, Clone)]
pub struct CreateNamespaces {
    /// Becomes the pins' file name.
    pub pod_id: String,
    /// Where pins go.
    pub base: PathBuf,
    /// Kinds to make, of [`LEGACY_KINDS`]; the others are the host's.
    pub kinds: Vec<Kind>,
    /// Lines of `inside outside size`.
    pub uid_mappings: Vec<String>,
    /// The same, for groups.
    pub gid_mappings: Vec<String>,
}

/// The kinds that createNamespaces answers, in that order.
pub const LEGACY_KINDS: [Kind; 5] = [Kind::Ipc, Kind::Pid, Kind::Net, Kind::User, Kind::Uts];

impl CreateNamespaces {
    /// The request that this is.
    ///
    /// # Errors
    /// [`Error::Invalid`]: a kind that createNamespaces does not know, or a malformed mapping.
    pub fn request(self) -> Result<Request, Error> {
        if let Some(kind) = self.kinds.iter().find(|kind| !LEGACY_KINDS.contains(kind)) {
            return Err(Error::Invalid(format!(
                "createNamespaces cannot make a {kind} namespace; createSandbox can"
            )));
        }
        let source = |kind| if self.kinds.contains(&kind) { Source::Create } else { Source::Host };
        let user = self.kinds.contains(&Kind::User);
        // Clients send their mappings whether they want a user namespace or not.
        let mappings = |lines: &[String]| if user { parse_mappings(lines) } else { Ok(Vec::new()) };
        Ok(Request {
            namespaces: LEGACY_KINDS.into_iter().map(|kind| (kind, source(kind))).collect(),
            uid_mappings: mappings(&self.uid_mappings)?,
            gid_mappings: mappings(&self.gid_mappings)?,
            name: self.pod_id,
            hostname: None,
            domainname: None,
            sysctls: Vec::new(),
            base: self.base,
            placement: Placement::Pinned,
        })
    }
}

fn parse_mappings(lines: &[String]) -> Result<Vec<IdMapping>, Error> {
    let parse = |line: &String| {
        let fields: Vec<Option<u32>> = line.split_whitespace().map(|field| field.parse().ok()).collect();
        match fields.as_slice() {
            [Some(inside), Some(outside), Some(size)] => {
                Ok(IdMapping { inside: *inside, outside: *outside, size: *size })
            }
            _ => Err(Error::Invalid(format!("{line:?} is no id mapping; write it as `inside outside size`"))),
        }
    };
    lines.iter().map(parse).collect()
}

/// The pods' namespaces of one run directory.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    directory: PathBuf,
}

impl Sandboxes {
    /// Those of the server whose files are in `run_dir`. Nothing is touched yet.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self { directory: run_dir.join(DIRECTORY) }
    }

    /// Makes a pod's namespaces as [`super::create`] does. The same request
    /// again answers the same, after a check that it is all still there.
    ///
    /// # Errors
    /// [`Error::Different`] if the pod exists and was asked for in another way;
    /// [`Error::Lost`] if it exists but a pin or its init does not any more.
    pub fn create(&self, request: &Request) -> Result<Sandbox, Error> {
        self.ensure(request, HostPins::None)
    }

    /// The same for clients of createNamespaces: five kinds in the order of
    /// [`LEGACY_KINDS`], all pinned, those not asked for being the host's.
    ///
    /// # Errors
    /// As [`Sandboxes::create`].
    pub fn create_namespaces(&self, request: CreateNamespaces) -> Result<Sandbox, Error> {
        self.ensure(&request.request()?, HostPins::Made)
    }

    fn ensure(&self, request: &Request, host_pins: HostPins) -> Result<Sandbox, Error> {
        check_pod(&request.name)?;
        request.check()?;
        match self.get(&request.name)? {
            Some(record) if matches!(record.state, State::Making { .. }) => {
                // A crash ended it. What it left is in the way.
                undo(&record).map_err(first)?;
            }
            Some(record) if record.request != *request || record.host_pins != host_pins => {
                return Err(Error::Different { pod: request.name.clone() });
            }
            Some(record) => {
                record.check()?;
                return Ok(Sandbox { record, made: None });
            }
            None => {}
        }
        let begun = |init| Record { request: request.clone(), host_pins, state: State::Making { init } };
        self.write(&begun(None))?;
        let hosts = if host_pins == HostPins::Made { Hosts::Pinned } else { Hosts::Unpinned };
        let environment = Environment { hosts, ..Environment::SANDBOX };
        let before_keeping = |init: Option<(u32, u64)>| match init {
            Some((pid, namespace)) => self.write(&begun(Some(InitRecord { pid, namespace }))),
            None => Ok(()),
        };
        let kept = super::create_in(request, &environment, before_keeping).and_then(|set| {
            let record = Record { state: State::of(&set), ..begun(None) };
            match self.write(&record) {
                Ok(()) => Ok(Sandbox { record, made: Some(set) }),
                Err(error) => Err(error.with_left(take_back(request, &set))),
            }
        });
        match kept {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                // With something left, the record stays, so that it can be found.
                if !matches!(error, Error::NotUndone { .. }) {
                    self.forget(&request.name)?;
                }
                Err(error)
            }
        }
    }

    /// Unpins a pod's namespaces and forgets them. Its init is the caller's to
    /// end and reap. A pod that does not exist is removed already.
    ///
    /// # Errors
    /// All that could not be removed; repeat it then.
    pub fn remove(&self, pod: &str) -> Result<(), Vec<Error>> {
        check_pod(pod).map_err(|e| vec![e])?;
        if let Some(record) = self.get(pod).map_err(|e| vec![e])? {
            undo(&record)?;
        }
        self.forget(pod).map_err(|e| vec![e])
    }

    /// What is remembered of a pod.
    ///
    /// # Errors
    /// If its record cannot be read, or was written by a program that is not this one.
    pub fn get(&self, pod: &str) -> Result<Option<Record>, Error> {
        let path = self.path(pod);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::on("read", &path, e)),
        };
        let record = serde_json::from_slice(&text).map_err(|e| {
            Error::on("understand", &path, e).advise("remove the file and the pins that it names")
        })?;
        Ok(Some(record))
    }

    /// Every pod, by its id.
    ///
    /// # Errors
    /// If the directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<Record>, Error> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::on("read the directory", &self.directory, e)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::on("read the directory", &self.directory, e))?;
            let name = entry.file_name();
            // Names that begin with a dot are records on their way.
            let pod = name.to_str().and_then(|n| n.strip_suffix(".json")).filter(|n| !n.starts_with('.'));
            if let Some(pod) = pod {
                records.extend(self.get(pod)?);
            }
        }
        records.sort_by(|a, b| a.request.name.cmp(&b.request.name));
        Ok(records)
    }

    fn path(&self, pod: &str) -> PathBuf {
        self.directory.join(format!("{pod}.json"))
    }

    fn temporary(&self, pod: &str) -> PathBuf {
        self.directory.join(format!(".{pod}.new"))
    }

    /// To a temporary name, then renamed: a reader sees the old or the new one.
    fn write(&self, record: &Record) -> Result<(), Error> {
        let made = fs::DirBuilder::new().mode(0o700).create(&self.directory);
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::on("make the directory", &self.directory, e));
            }
            _ => {}
        }
        let path = self.path(&record.request.name);
        let temporary = self.temporary(&record.request.name);
        let text = serde_json::to_vec(record).map_err(|e| Error::on("write", &path, e))?;
        let mut options = fs::OpenOptions::new();
        let written = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|e| {
            fs::remove_file(&temporary).ok();
            Error::on("write", &path, e)
        })
    }

    /// Removes the record, and one that was on its way when a crash came.
    fn forget(&self, pod: &str) -> Result<(), Error> {
        for path in [self.path(pod), self.temporary(pod)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::on("remove", &path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Pod ids also name records, with a suffix.
fn check_pod(pod: &str) -> Result<(), Error> {
    super::request::check_name(pod)?;
    if pod.starts_with('.') || pod.len() > ID_BYTES_MAX {
        let text = format!(
            "{pod:?} cannot be a pod id: it has 1 to {ID_BYTES_MAX} bytes and does not begin with a dot"
        );
        return Err(Error::Invalid(text));
    }
    Ok(())
}

fn first(mut errors: Vec<Error>) -> Error {
    if errors.len() > 1 {
        let cause = errors.remove(0);
        return cause.with_left(errors);
    }
    errors.pop().unwrap_or(Error::Interrupted)
}

fn undo(record: &Record) -> Result<(), Vec<Error>> {
    if let State::Making { init: Some(init) } = record.state {
        // Nobody got to know it.
        init.end().map_err(|e| vec![e])?;
    }
    match record.request.placement {
        Placement::Pinned => super::remove(&record.request.base, &record.request.name),
        Placement::DescriptorOnly => Ok(()),
    }
}

/// A set whose record could not be written must not stay.
fn take_back(request: &Request, set: &Set) -> Vec<Error> {
    if let Some(init) = &set.init {
        // Errors: it is gone already, or somebody else has reaped it.
        pidfd_send_signal(&init.pidfd, Signal::KILL).ok();
        waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED).ok();
    }
    match request.placement {
        Placement::Pinned => super::remove(&request.base, &request.name).err().unwrap_or_default(),
        Placement::DescriptorOnly => Vec::new(),
    }
}

impl State {
    fn of(set: &Set) -> Self {
        let remember = |made: &Made| Pinned {
            kind: made.kind,
            path: made.path.clone(),
            inode: made.inode,
            owner_inode: made.owner_inode,
            created: made.created,
        };
        let namespaces: Vec<Pinned> = set.namespaces.iter().map(remember).collect();
        let number = namespaces.iter().find(|n| n.kind == Kind::Pid).map(|n| n.inode);
        let record = |init: &PodInit| number.map(|namespace| InitRecord { pid: init.pid, namespace });
        let init = set.init.as_ref().and_then(record);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Enough until the year 2554.
        Self::Made { namespaces, init, created_at_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX) }
    }
}

impl Record {
    /// The pod's namespaces, as far as they are known.
    #[must_use]
    pub fn namespaces(&self) -> &[Pinned] {
        match &self.state {
            State::Made { namespaces, .. } => namespaces,
            State::Making { .. } => &[],
        }
    }

    /// The pod's init, if it has one.
    #[must_use]
    pub fn init(&self) -> Option<InitRecord> {
        match &self.state {
            State::Made { init, .. } | State::Making { init } => *init,
        }
    }

    /// Whether everything is still there.
    fn check(&self) -> Result<(), Error> {
        let lost = |what: String| Error::Lost { pod: self.request.name.clone(), what };
        for pinned in self.namespaces() {
            let Some(path) = &pinned.path else { continue };
            let found = super::make::open_pinned(pinned.kind, path)
                .map_err(|e| lost(format!("its {} namespace is not: {e}", pinned.kind)))?;
            let inode = super::make::inode(&found)?;
            if inode != pinned.inode {
                return Err(lost(format!(
                    "{} is namespace {inode} now, not {}",
                    path.display(),
                    pinned.inode
                )));
            }
        }
        match self.init() {
            Some(init) if !init.is_alive() => Err(lost(format!("its init, process {}, has ended", init.pid))),
            _ => Ok(()),
        }
    }
}

impl InitRecord {
    /// Whether it still runs. A process with its pid in another pid namespace is another process.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        // A zombie has no namespaces any more.
        fs::metadata(format!("/proc/{}/ns/pid", self.pid)).is_ok_and(|found| found.ino() == self.namespace)
    }

    /// Kills it, and with it everything in its pid namespace, and waits for the end.
    ///
    /// # Errors
    /// If it cannot be killed, or has not ended within [`INIT_END_TIMEOUT`].
    pub fn end(&self) -> Result<(), Error> {
        let failed = |e: Errno| Error::step("end", format!("the pod's init, process {}", self.pid), e);
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or_else(|| failed(Errno::SRCH))?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        // Only now is the number certain not to become another process's: look again.
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(failed(e)),
        }
        let timeout = Timespec::try_from(INIT_END_TIMEOUT).map_err(|_| failed(Errno::INVAL))?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => Err(failed(Errno::TIMEDOUT)),
            Ok(_) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy(kinds: &[Kind], mappings: &[&str]) -> CreateNamespaces {
        let mappings: Vec<String> = mappings.iter().map(|m| (*m).to_owned()).collect();
        CreateNamespaces {
            pod_id: "pod".to_owned(),
            base: "/base".into(),
            kinds: kinds.to_vec(),
            uid_mappings: mappings.clone(),
            gid_mappings: mappings,
        }
    }

    #[test]
    fn legacy_requests_name_all_five_kinds_in_their_order() {
        let request = legacy(&[Kind::Uts, Kind::Net], &["0 100000 65536"]).request().unwrap();
        let kinds: Vec<Kind> = request.namespaces.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, LEGACY_KINDS);
        assert!(request.creates(Kind::Uts) && request.creates(Kind::Net) && !request.creates(Kind::Pid));
        assert_eq!(request.uid_mappings, [], "without a user namespace they mean nothing");
        let request = legacy(&[Kind::User], &["0 100000 65536", " 7\t8 9"]).request().unwrap();
        assert_eq!(request.gid_mappings[1], IdMapping { inside: 7, outside: 8, size: 9 });
    }

    #[test]
    fn legacy_requests_that_make_no_sense() {
        assert!(legacy(&[Kind::Mnt], &[]).request().is_err());
        for line in ["", "0 1", "0 1 2 3", "0 -1 2", "a b c", "0 1 4294967296"] {
            assert!(legacy(&[Kind::User], &[line]).request().is_err(), "{line:?}");
        }
    }
}
