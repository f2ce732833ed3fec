//! The launcher: everything that can be refused is refused here, in the order
//! that leaves nothing behind, before the process that stays is started.
//!
//! ```text
//!   directories ─▶ lock ─▶ stale socket removed ─▶ bind, listen ─▶ keeper ─▶ 'R' ─▶ pidfile ─▶ exit 0
//!                                                                     └────▶ 'F' sentence  ─▶ exit 1
//! ```
//!
//! A client's connect succeeds from before this command ends: the socket listens
//! before the keeper is started, and the monitor serves before `pidfile` exists.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::SocketType;

use super::FlagError;
use super::handover::monitor_args;
use crate::keeper::{self, LOCK_NAME, PIDFILE_NAME, SOCKET_NAME};
use crate::limits::BACKLOG_MAX;
use crate::monitor::config::{Config, LogSink};
use crate::sys;
use crate::sys::spawn::PassedFd;

/// Why a pod's server did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Flag(#[from] FlagError),
    #[error("cannot {doing} {}: {source}", .path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} belongs to user {owner}, who could replace what the server trusts; use a directory of your own",
        .path.display())]
    ForeignDirectory { path: PathBuf, owner: u32 },
    #[error("{} is served already, by process {holder}; stop it or use another --runtime-dir", .path.display())]
    Served { path: PathBuf, holder: String },
    #[error("cannot start the keeper: {0}")]
    Start(io::Error),
    #[error("{0}")]
    Refused(String),
    #[error(
        "the keeper ended before the pod was served ({0}); if nobody killed it, --skip-fork shows what it says"
    )]
    KeeperDied(std::process::ExitStatus),
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
    let path = path.to_owned();
    move |source| ServeError::File { doing, path, source }
}

/// Starts the server and returns when it serves.
pub(super) fn start_server(config: &Config) -> Result<(), ServeError> {
    let claim = Claim::new(config)?;
    let (report, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| ServeError::Start(errno.into()))?;
    let mut command = keeper_command(config, &[]);
    let stream = || match config.log_sink {
        LogSink::Stdout => Stdio::inherit(),
        LogSink::None | LogSink::Systemd => Stdio::null(),
    };
    command.stdin(Stdio::null()).stdout(stream()).stderr(stream());
    claim.hand_over(&mut command, Some(theirs))?;
    let mut keeper = command.spawn().map_err(ServeError::Start)?;
    // Our copies of what it was given: the report ends when the keeper's is closed.
    drop(command);
    let mut said = Vec::new();
    File::from(report).read_to_end(&mut said).map_err(ServeError::Start)?;
    match said.split_first() {
        Some((&keeper::report::READY, _)) => {}
        Some((_, sentence)) => {
            // It ends by itself; when this command returns nothing of it is left.
            keeper.wait().map_err(ServeError::Start)?;
            return Err(ServeError::Refused(String::from_utf8_lossy(sentence).into_owned()));
        }
        None => return Err(ServeError::KeeperDied(keeper.wait().map_err(ServeError::Start)?)),
    }
    if let Err(error) = write_pidfile(&config.run_dir, keeper.id()) {
        let pid = i32::try_from(keeper.id()).ok().and_then(rustix::process::Pid::from_raw);
        // Our child, not waited for: the pid is its own. If it has ended, that is what we want.
        pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok());
        keeper.wait().map_err(ServeError::Start)?;
        return Err(error);
    }
    claim.keep();
    Ok(())
}

/// Becomes the server, for `--skip-fork`: the same pid, session and streams.
pub(super) fn become_server(config: &Config) -> Result<(), ServeError> {
    let claim = Claim::new(config)?;
    let mut command = keeper_command(config, &["--foreground"]);
    claim.hand_over(&mut command, None)?;
    Err(ServeError::Start(command.exec()))
}

/// `podinit keeper …`, of this very file even if it has been replaced meanwhile.
fn keeper_command(config: &Config, options: &[&str]) -> Command {
    const SELF: &str = "/proc/self/exe";
    let mut command = Command::new(SELF);
    command.arg0("podinit").arg("keeper").arg("--run-dir").arg(&config.run_dir).args(options);
    command.args(["--", SELF, "podinit", "monitor"]).args(monitor_args(config));
    sys::heap::keep_small_in(&mut command);
    command
}

/// A run directory that is this process's: lock and socket. Dropped, it is as
/// it was before; see [`Claim::keep`].
struct Claim {
    run_dir: PathBuf,
    lock: File,
    listener: OwnedFd,
    kept: bool,
}

impl Claim {
    fn new(config: &Config) -> Result<Self, ServeError> {
        // What this process and its children make is for others to read, unless they say otherwise: exit files,
        // and what a container makes under an OCI runtime that passes the mask on. Private files are made so.
        rustix::process::umask(Mode::WGRP | Mode::WOTH);
        make_directory(&config.run_dir)?;
        check_owner(&config.run_dir)?;
        if let Some(root) = &config.runtime_root {
            make_directory(root)?;
        }
        let lock = take_lock(&config.run_dir)?;
        let socket = config.run_dir.join(SOCKET_NAME);
        let listener = remove_stale(&config.run_dir)
            .and_then(|()| listen(&socket))
            .inspect_err(|_| release(&config.run_dir, &lock))?;
        // Not allowed to everyone, and not needed to work.
        sys::oom::protect().ok();
        Ok(Self { run_dir: config.run_dir.clone(), lock, listener, kept: false })
    }

    /// Gives lock, socket and report to the keeper that `command` starts.
    fn hand_over(&self, command: &mut Command, report: Option<OwnedFd>) -> Result<(), ServeError> {
        let listener = self.listener.try_clone().map_err(ServeError::Start)?;
        let lock = self.lock.try_clone().map_err(ServeError::Start)?;
        let mut passed = vec![
            PassedFd { fd: listener, number: keeper::LISTENER_FD },
            PassedFd { fd: lock.into(), number: keeper::LOCK_FD },
        ];
        passed.extend(report.map(|fd| PassedFd { fd, number: keeper::REPORT_FD }));
        sys::spawn::prepare(command, passed).map_err(ServeError::Start)
    }

    /// The keeper has it now.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            release(&self.run_dir, &self.lock);
        }
    }
}

/// Removes socket and lock, unless the lock's path is another server's by now:
/// a keeper that ended has removed ours.
fn release(run_dir: &Path, lock: &File) {
    let path = run_dir.join(LOCK_NAME);
    if is_at(lock, &path) {
        fs::remove_file(run_dir.join(SOCKET_NAME)).ok();
        fs::remove_file(path).ok();
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(id).ok() == fs::symlink_metadata(path).map(id).ok()
}

/// Makes `path` private, with its parents; one that exists stays as it is.
fn make_directory(path: &Path) -> Result<(), ServeError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(file_error("make the directory", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result.map_err(file_error("make the directory", path)),
    }
}

fn check_owner(path: &Path) -> Result<(), ServeError> {
    let owner = path.metadata().map_err(file_error("look at the directory", path))?.uid();
    if owner == rustix::process::geteuid().as_raw() {
        Ok(())
    } else {
        Err(ServeError::ForeignDirectory { path: path.to_owned(), owner })
    }
}

/// Takes the lock of `run_dir`, which lasts as long as any process has it open.
fn take_lock(run_dir: &Path) -> Result<File, ServeError> {
    let path = run_dir.join(LOCK_NAME);
    loop {
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(file_error("open the lock", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => {
                return Err(ServeError::Served { path: run_dir.to_owned(), holder: holder(&mut lock) });
            }
            Err(errno) => return Err(file_error("take the lock", &path)(errno.into())),
        }
        // The one who had it may have removed it between our open and its end.
        if is_at(&lock, &path) {
            lock.set_len(0).map_err(file_error("write into the lock", &path))?;
            lock.write_all(std::process::id().to_string().as_bytes())
                .map_err(file_error("write into the lock", &path))?;
            return Ok(lock);
        }
    }
}

/// The pid in a lock that another process has.
fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    match lock.take(16).read_to_string(&mut text) {
        Ok(length) if length > 0 => text,
        _ => "(it has not said yet)".to_owned(),
    }
}

/// Listens on `path`.
fn listen(path: &Path) -> Result<OwnedFd, ServeError> {
    sys::socket::listen(path, SocketType::STREAM, BACKLOG_MAX).map_err(file_error("listen on", path))
}

/// Removes what a server that crashed has left; only with the lock, which says that it is gone.
fn remove_stale(run_dir: &Path) -> Result<(), ServeError> {
    for name in [SOCKET_NAME, PIDFILE_NAME] {
        let path = run_dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("remove the stale", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Decimal, without a newline: engines parse the whole content.
fn write_pidfile(run_dir: &Path, pid: u32) -> Result<(), ServeError> {
    let path = run_dir.join(PIDFILE_NAME);
    let temporary = run_dir.join(OsString::from(format!(".{PIDFILE_NAME}.{}", std::process::id())));
    fs::write(&temporary, pid.to_string())
        .and_then(|()| fs::rename(&temporary, &path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .map_err(file_error("write", &path))
}
