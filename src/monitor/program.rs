//! The OCI runtime's program, where no container can write to it.
//!
//! A container can reach the program of a runtime that works in it (/proc/PID/exe), and
//! could replace it for everybody who starts it later (CVE-2019-5736). So crun begins
//! every call by mounting itself read-only, somewhere, and executing itself anew from
//! there: a quarter of what an exec costs. It does without when it finds itself on a
//! read-only file system and [`SEEN_TO`] says that this is no accident.
//!
//! So one such mount is made for all calls of a pod: of the program's directory, in no
//! mount namespace, so that nobody can find it, unmount it or make it writable. A
//! program that is replaced in its directory, as package managers do, is seen there.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::limits::FDS_PER_MESSAGE_MAX;
use crate::sys::mount;

/// In a runtime's environment: it has been executed from where it cannot be written to.
/// crun sets it for itself, as runc did before 1.2.
const SEEN_TO: &str = "_LIBCONTAINER_CLONED_BINARY";

/// Mounts that are held at most. There is another one when the path has come to mean
/// something else; the last may still be about to be used.
const MOUNTS_MAX: usize = 4;

/// A program that is executed many times.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    known: RefCell<Vec<Resolved>>,
}

/// What the path meant once, and how to execute that.
#[derive(Debug)]
struct Resolved {
    identity: (u64, u64),
    /// `None` if it is to be executed by its path.
    mounted: Option<(OwnedFd, OsString)>,
}

impl Program {
    /// The program at `path`. Nothing is mounted before its first use.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: RefCell::default() }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A command that executes it.
    pub(super) fn command(&self) -> Command {
        let Ok(found) = fs::metadata(&self.path) else { return Command::new(&self.path) };
        let identity = (found.dev(), found.ino());
        let mut known = self.known.borrow_mut();
        if known.last().is_none_or(|last| last.identity != identity) {
            let mounted = Self::mount(&self.path).unwrap_or_else(|error| {
                ::log::info!("{} is executed as it is: {error}", self.path.display());
                None
            });
            if known.len() == MOUNTS_MAX {
                known.remove(0);
            }
            known.push(Resolved { identity, mounted });
        }
        let Some((directory, name)) = known.last().and_then(|last| last.mounted.as_ref()) else {
            return Command::new(&self.path);
        };
        // By the directory, so that the process is called as the program is, not by a number.
        let directory = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let mut command = Command::new(directory.join(name));
        command.arg0(&self.path).env(SEEN_TO, "1");
        command
    }

    /// `None` if it is no program that gains by it.
    fn mount(path: &Path) -> io::Result<Option<(OwnedFd, OsString)>> {
        let path = fs::canonicalize(path)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let mut magic = [0; 4];
        File::open(&path)?.read_exact(&mut magic)?;
        // A script's interpreter could not open it: the descriptor is closed by then.
        if magic != *b"\x7fELF" || !name.to_str().is_some_and(|name| name.starts_with("crun")) {
            return Ok(None);
        }
        let directory = mount::read_only_copy(directory)?;
        // A descriptor that is passed on takes its number, from 3 on, before the program is
        // executed. With a low limit of open files there is no other: then it is as it is.
        let above_passed = i32::try_from(3 + FDS_PER_MESSAGE_MAX).map_err(io::Error::other)?;
        let directory = rustix::io::fcntl_dupfd_cloexec(directory, above_passed)?;
        Ok(Some((directory, name.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with a name that is believed to be crun's.
    fn installed(directory: &Path) -> PathBuf {
        let path = directory.join("crun");
        fs::copy("/bin/sh", &path).unwrap();
        path
    }

    fn said(command: &mut Command) -> String {
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    #[test]
    fn nobody_can_write_to_what_is_executed() {
        let place = tempfile::tempdir().unwrap();
        let program = Program::new(installed(place.path()));
        let script = "echo $0 $_LIBCONTAINER_CLONED_BINARY; cat /proc/$$/comm";
        let expected = format!("{} 1\ncrun\n", program.path().display());
        assert_eq!(said(program.command().arg("-c").arg(script)), expected);
        let executed = program.command().get_program().to_owned();
        let refused = File::options().write(true).open(executed).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        File::options().write(true).open(program.path()).unwrap();
    }

    #[test]
    fn what_is_installed_later_is_what_is_executed() {
        let place = tempfile::tempdir().unwrap();
        let path = installed(place.path());
        let program = Program::new(path.clone());
        assert_eq!(said(program.command().args(["-c", "echo old"])), "old\n");
        fs::copy("/bin/echo", place.path().join("new")).unwrap();
        fs::rename(place.path().join("new"), &path).unwrap();
        assert_eq!(said(program.command().arg("new")), "new\n");
        fs::write(place.path().join("script"), "#!/bin/sh\necho script $1\n").unwrap();
        fs::set_permissions(place.path().join("script"), fs::metadata(&path).unwrap().permissions()).unwrap();
        fs::rename(place.path().join("script"), &path).unwrap();
        assert_eq!(said(program.command().arg("1")), "script 1\n");
        for generation in 0..2 * MOUNTS_MAX {
            fs::remove_file(&path).unwrap();
            installed(place.path());
            assert_eq!(
                said(program.command().args(["-c", &format!("echo {generation}")])),
                format!("{generation}\n")
            );
        }
        assert!(program.known.borrow().len() <= MOUNTS_MAX);
    }

    #[test]
    fn others_are_executed_by_their_paths() {
        let program = Program::new("/bin/sh".into());
        assert_eq!(program.command().get_program(), "/bin/sh");
        let program = Program::new("/nowhere/crun".into());
        assert_eq!(program.command().output().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
