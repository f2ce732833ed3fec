//! PID 1 of a pod. The program itself is `src/init/program`, compiled by
//! `build/init.rs` and contained in this binary; here is what starts it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

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
