//! Starting a pod's server: finds the OCI runtime, runs this very binary's
//! `serve`, and waits until it says that it is ready.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use super::exit::Failure;
use super::paths::PodDir;
use crate::limits;
use crate::sys;

/// Those that are looked for, in this order: the one that starts containers
/// quickest first.
const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];

/// Finds the OCI runtime: `asked`, a path or a name, else the first of crun,
/// runc and youki that is in `$PATH`.
///
/// # Errors
/// If it is not there or not executable.
pub fn find_runtime(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    match asked {
        Some(path) if path.components().count() > 1 => {
            let path = std::path::absolute(path)
                .map_err(|e| Failure::io(format_args!("finding the OCI runtime {}", path.display()), &e))?;
            match executable(&path) {
                true => Ok(path),
                false => {
                    Err(Failure::new(format!("the OCI runtime {} is not an executable file", path.display())))
                }
            }
        }
        Some(name) => in_path(name).ok_or_else(|| {
            Failure::new(format!(
                "the OCI runtime {} is not in $PATH: install it, or give its path",
                name.display()
            ))
        }),
        None => RUNTIMES.iter().find_map(|name| in_path(Path::new(name))).ok_or_else(|| {
            Failure::new(format!(
                "there is no OCI runtime ({}) in $PATH: install one, or name it with --runtime",
                RUNTIMES.join(", ")
            ))
        }),
    }
}

fn in_path(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| executable(file))
}

fn executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What a pod was made with; kept in its directory, so that its containers can
/// be removed even after its server has crashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The OCI runtime.
    pub runtime: PathBuf,
    /// (inside, outside, size) of the pod's user namespace.
    pub uid_mappings: Vec<(u32, u32, u32)>,
    /// (inside, outside, size) of the pod's user namespace.
    pub gid_mappings: Vec<(u32, u32, u32)>,
}

impl Note {
    /// Writes it into the pod's directory, which nobody else uses yet.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, pod: &PodDir) -> Result<(), Failure> {
        let text = serde_json::to_string(self)
            .map_err(|error| Failure::new(format!("writing {}: {error}", pod.note().display())))?;
        std::fs::write(pod.note(), text)
            .map_err(|error| Failure::io(format_args!("writing {}", pod.note().display()), &error))
    }

    /// Reads it, if there is one that can be read.
    #[must_use]
    pub fn read(pod: &PodDir) -> Option<Self> {
        let text = std::fs::read_to_string(pod.note()).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// Starts the server of `pod`, whose directory exists, and returns when it
/// accepts connections. `more` are further flags of `serve`.
///
/// # Errors
/// What the server said on its standard error.
pub fn start_server(pod: &PodDir, runtime: &Path, more: &[OsString]) -> Result<(), Failure> {
    let doing = || format!("starting the server of pod {}", pod.id);
    // A file, not a pipe: nobody has to read while the server writes, and it may stay open later.
    let said = rustix::fs::memfd_create("podinit-serve", MemfdFlags::CLOEXEC)
        .map_err(|error| Failure::io(doing(), &error.into()))?;
    let stderr = said.try_clone().map_err(|error| Failure::io(doing(), &error))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("podinit")
        .arg("serve")
        .arg("--runtime-dir")
        .arg(&pod.path)
        .arg("--runtime")
        .arg(runtime)
        .arg("--runtime-root")
        .arg(pod.runtime_root())
        .args(more)
        .current_dir("/")
        // Not ours: a Ctrl-C on the terminal is for the command, not for the pod.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr));
    sys::spawn::prepare(&mut command, Vec::new()).map_err(|error| Failure::io(doing(), &error))?;
    let child = command.spawn().map_err(|error| Failure::io(doing(), &error))?;
    drop(command);
    match wait(child, limits::LAUNCH_TIMEOUT).map_err(|error| Failure::io(doing(), &error))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Failure::new(format!("{}: {}", doing(), words(said, &status.to_string())))),
        None => Err(Failure::new(format!(
            "{}: it was not ready after {} s and has been stopped",
            doing(),
            limits::LAUNCH_TIMEOUT.as_secs()
        ))),
    }
}

/// Waits for `child`; kills it at the deadline and answers `None`.
fn wait(mut child: Child, deadline: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let pidfd = match Pid::from_raw(child.id().cast_signed()) {
        Some(pid) => rustix::process::pidfd_open(pid, PidfdFlags::empty())?,
        None => return child.wait().map(Some),
    };
    if wait_for_exit(&pidfd, deadline)? {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Waits until the process of `pidfd` has ended, `timeout` at most; says whether it has.
///
/// # Errors
/// What poll(2) says.
pub fn wait_for_exit(pidfd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the server said, without our own name in front; else `otherwise`.
fn words(said: OwnedFd, otherwise: &str) -> String {
    let mut text = Vec::new();
    let mut file = File::from(said);
    let read = file
        .rewind()
        .and_then(|()| file.take(limits::RUNTIME_STDERR_BYTES_MAX as u64).read_to_end(&mut text).map(drop));
    let text = String::from_utf8_lossy(&text);
    match (read, text.trim()) {
        (Ok(()), said) if !said.is_empty() => said.trim_start_matches("podinit: ").to_owned(),
        _ => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_is_found_by_path_and_by_name() {
        assert!(find_runtime(Some(Path::new("sh"))).unwrap().ends_with("sh"));
        assert_eq!(find_runtime(Some(Path::new("/bin/sh"))).unwrap(), Path::new("/bin/sh"));
        for missing in ["/etc/passwd", "/nowhere/crun", "no-such-runtime-here"] {
            assert!(find_runtime(Some(Path::new(missing))).is_err(), "{missing}");
        }
    }

    #[test]
    fn wait_ends_with_the_process_or_with_the_time() {
        let quick = Command::new("true").spawn().unwrap();
        assert!(wait(quick, Duration::from_secs(60)).unwrap().unwrap().success());
        let slow = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(wait(slow, Duration::ZERO).unwrap().is_none());
    }

    #[test]
    fn note_is_read_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        let pod = super::super::paths::Root::new(root.path()).unwrap().pod("a").unwrap();
        assert_eq!(Note::read(&pod), None);
        pod.make().unwrap();
        let note = Note {
            runtime: "/bin/crun".into(),
            uid_mappings: vec![(0, 100_000, 65_536)],
            gid_mappings: Vec::new(),
        };
        note.write(&pod).unwrap();
        assert_eq!(Note::read(&pod), Some(note));
    }
}
