//! PID 1 of a pod. The program itself is `src/init/program`, compiled by
//! `build/init.rs` and contained in this binary; here is what starts it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

/// The init program: a static executable of one page.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podinit-init"));

/// The init program as a memory file that can be executed and never changed: so
/// `/proc/1/exe` of a pod leads to this file and not to a binary of the host.
///
/// Execute it with `execveat(fd, "", argv, envp, AT_EMPTY_PATH)` (or by
/// `/proc/self/fd/<n>`); the descriptor is close-on-exec. As PID 1 of a pod it is
/// called `["podinit-init", "<pod id>"]`, with an empty environment.
///
/// # Errors
/// What memfd_create(2) and write(2) say: no descriptor or no memory left, or
/// a kernel that is told to refuse executable memory files
/// (`vm.memfd_noexec` = 2).
pub fn image() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not know MFD_EXEC, and makes every memory file executable.
    let file = match rustix::fs::memfd_create("podinit-init", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("podinit-init", flags)?,
        made => made?,
    };
    let mut rest = PROGRAM;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}
