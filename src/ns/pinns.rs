//! The job of the `pinns` program: one process that makes namespaces where it
//! stands, pins them, and ends.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::make::{Environment, Hosts, InitImage, Place, SetUp};
use super::pin::Parents;
use super::{Error, IdMapping, Kind, Placement, Request, Source, create_in};

/// What `pinns` is asked for; see [`Request`] for the fields.
#[derive(Debug)]
pub struct Job {
    /// Where pins go; absolute. Its last component is made if it is missing.
    pub dir: PathBuf,
    /// The file name of each pin.
    pub filename: String,
    /// What to pin; namespaces of the host are pinned, too.
    pub namespaces: Vec<(Kind, Source)>,
    /// Keys and values.
    pub sysctls: Vec<(String, String)>,
    /// For a new user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// For a new user namespace.
    pub gid_mappings: Vec<IdMapping>,
}

/// Does it. The calling thread may be in the new namespaces afterwards, and
/// signals that end a program stay blocked: the caller's next act is to exit.
///
/// # Errors
/// See [`Error`]; everything was undone, also when a signal came.
pub fn run(job: Job) -> Result<(), Error> {
    ending_signals().thread_block().map_err(|e| Error::step("block", "signals", std::io::Error::from(e)))?;
    let request = Request {
        name: job.filename,
        namespaces: job.namespaces,
        hostname: None,
        domainname: None,
        sysctls: job.sysctls,
        uid_mappings: job.uid_mappings,
        gid_mappings: job.gid_mappings,
        base: job.dir,
        placement: Placement::Pinned,
    };
    let environment = Environment {
        hosts: Hosts::Pinned,
        set_up: SetUp::Bare,
        // Pins made in a new mount namespace would be seen by nobody.
        place: if request.creates(Kind::Mnt) { Place::Thread } else { Place::Here },
        base: Parents::Expect,
        init: InitImage(|| Err(std::io::ErrorKind::Unsupported.into())),
    };
    let uninterrupted = |_| if interrupted() { Err(Error::Interrupted) } else { Ok(()) };
    create_in(&request, &environment, uninterrupted).map(drop)
}

fn ending_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Whether one of them has come.
fn interrupted() -> bool {
    let fd = SignalFd::with_flags(&ending_signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    // Without a descriptor to be had nothing is known of a signal, and the pins are complete.
    fd.is_ok_and(|fd| matches!(fd.read_signal(), Ok(Some(_))))
}
