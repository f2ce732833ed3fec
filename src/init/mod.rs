//! PID 1 of a pod. The program itself is `src/init/program`, compiled by
//! `build/init.rs` and contained in this binary; here is what starts it.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags};

pub mod survey;

/// PID 1 of a pod: a static executable of one page.
const POD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podinit-init-pod"));

/// The init of one command: a static executable of a few pages.
const COMMAND: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podinit-init-command"));

/// PID 1 of a pod, as a memory file that can be executed and never changed: so
/// `/proc/1/exe` of a pod leads to this file and not to a binary of the host.
///
/// Execute it with `execveat(fd, "", argv, envp, AT_EMPTY_PATH)` (or by
/// `/proc/self/fd/<n>`); the descriptor is close-on-exec. Its arguments are
/// `["podinit-init", "<pod id>"]` and, if not 10000, the grace time in milliseconds; its
/// environment should be empty.
///
/// # Errors
/// What memfd_create(2) and write(2) say: no descriptor or no memory left, or
/// a kernel that is told to refuse executable memory files
/// (`vm.memfd_noexec` = 2).
pub fn image() -> io::Result<OwnedFd> {
    sealed(POD)
}

/// The init that runs one command, as [`image`]. `podinit init` executes it; its
/// arguments are `podinit init`'s.
///
/// # Errors
/// As [`image`].
pub fn command_image() -> io::Result<OwnedFd> {
    sealed(COMMAND)
}

/// Becomes the init that runs one command, in place of this program; returns only
/// what prevented that. `arguments` are those behind the program's name.
#[must_use]
pub fn become_command(name: &OsStr, arguments: &[OsString]) -> io::Error {
    match command_image() {
        Ok(image) => crate::sys::exec::replace(image, name, arguments),
        Err(error) => error,
    }
}

/// The file that [`path_in`] writes.
pub const FILE_NAME: &str = "podinit-init";

/// Writes the init that runs one command into `directory`, as a file that can be
/// mounted into a container, and returns its path. A file that is there already
/// is kept if it is the same, and replaced if not.
///
/// # Errors
/// What open(2), write(2) and rename(2) say.
pub fn path_in(directory: &Path) -> io::Result<PathBuf> {
    const MODE: u32 = 0o555;
    let path = directory.join(FILE_NAME);
    let same = std::fs::read(&path).is_ok_and(|content| content == COMMAND)
        && std::fs::metadata(&path).is_ok_and(|data| data.permissions().mode() & 0o7777 == MODE);
    if !same {
        // A name of our own, so that two who write at once do not mix, and a rename, so that nobody sees half.
        let temporary = directory.join(format!(".{FILE_NAME}.{}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&temporary)?;
        let written = file
            .write_all(COMMAND)
            .and_then(|()| file.set_permissions(PermissionsExt::from_mode(MODE)))
            .and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(error) = written {
            std::fs::remove_file(&temporary)?;
            return Err(error);
        }
    }
    Ok(path)
}

fn sealed(program: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not know MFD_EXEC, and makes every memory file executable.
    let file = match rustix::fs::memfd_create("podinit-init", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("podinit-init", flags)?,
        made => made?,
    };
    let mut file = File::from(file);
    file.write_all(program)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// The pure parts of the programs, compiled once more for their unit tests.
#[cfg(test)]
#[path = "program"]
mod program {
    mod number;
    mod options;
    mod request;
}
