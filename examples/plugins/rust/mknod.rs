//! Makes harmless device nodes for containers that may not make any.
//!
//!     mknod /run/podinit/pods/<pod>/plugins.sock
//!
//! The profile must notify of mknod and mknodat. A node that is not in the list is
//! refused, and so is one in a directory that is neither the process's own nor open to
//! everybody, unless root asks; what is no device is left to the kernel, which the mode,
//! a register, decides.
#![allow(missing_docs, clippy::print_stdout, reason = "a program")]

use std::os::fd::OwnedFd;
use std::path::Path;

use podinit::rpc::client::Error;
use podinit::rpc::plugin::client::{Call, Place, Plugin, Request, Verdict, dial_in, run};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Major and minor of null, zero, full, random and urandom (null(4), random(4)).
const HARMLESS: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

struct Mknod;

impl Plugin for Mknod {
    async fn decide(&self, call: Call) -> Verdict {
        // mknodat has a directory before the other arguments.
        let first = u8::from(call.notification.name == "mknodat");
        let [_, rest @ ..] = call.notification.arguments;
        let (mode, device) = if first == 0 { (rest[0], rest[1]) } else { (rest[1], rest[2]) };
        let mode = u32::try_from(mode & 0xffff).unwrap_or(0);
        if FileType::from_raw_mode(mode) != FileType::CharacterDevice {
            let is_device = FileType::from_raw_mode(mode) == FileType::BlockDevice;
            return if is_device { Verdict::Errno(1) } else { Verdict::Continue };
        }
        if !HARMLESS.contains(&(rustix::fs::major(device), rustix::fs::minor(device))) {
            return Verdict::Errno(1);
        }
        match make(&call, first, mode, device).await {
            Ok(()) => Verdict::Return(0),
            Err(errno) => Verdict::Errno(u16::try_from(errno.raw_os_error()).unwrap_or(1)),
        }
    }
}

/// Makes the node at the path that was copied, whatever the process does to its memory meanwhile.
async fn make(call: &Call, first: u8, mode: u32, device: u64) -> Result<(), Errno> {
    let path = call.notification.text(first).ok_or(Errno::FAULT)?;
    let path = Path::new(std::str::from_utf8(path).map_err(|_| Errno::ILSEQ)?);
    let name = path.file_name().ok_or(Errno::EXIST)?;
    let (base, how) = base(call, first, path).await.map_err(|_| Errno::PERM)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = rustix::fs::openat2(
        base,
        parent.unwrap_or_else(|| Path::new(".")),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        how | ResolveFlags::NO_MAGICLINKS,
    )?;
    let owner = call.credentials().await.map_err(|_| Errno::PERM)?;
    // What was opened is the process's own if its call still waits.
    if !call.check().await.unwrap_or(false) {
        return Err(Errno::INTR);
    }
    // The plugin itself may make nodes anywhere.
    let place = rustix::fs::fstat(&parent)?;
    if owner.uid != 0 && owner.uid != place.st_uid && place.st_mode & 0o002 == 0 {
        return Err(Errno::ACCESS);
    }
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, mode, device)?;
    // By now the name can be another file's, even one from outside, mounted there: what is given away is
    // the node, or nothing. Nothing is removed either: by its name it could be that file.
    let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat2(&parent, name, how, Mode::empty(), ResolveFlags::NO_XDEV)?;
    let found = rustix::fs::fstat(&node)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if kind != FileType::CharacterDevice || found.st_rdev != device {
        return Err(Errno::PERM);
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
    rustix::fs::chownat(&node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// Where the path begins, and how far it may lead: nowhere out of the container.
async fn base(call: &Call, first: u8, path: &Path) -> Result<(OwnedFd, ResolveFlags), Error> {
    if path.is_absolute() {
        return Ok((call.open(Place::Root).await?, ResolveFlags::IN_ROOT));
    }
    // An int: what is in the upper half of the register means nothing. AT_FDCWD is negative.
    let directory = i32::try_from(call.notification.arguments[0] & 0xffff_ffff).ok();
    let base = match directory.filter(|_| first == 1) {
        Some(descriptor) => call.duplicate(descriptor).await?,
        None => call.open(Place::WorkingDirectory).await?,
    };
    Ok((base, ResolveFlags::BENEATH))
}

fn main() -> Result<(), Error> {
    let socket = std::env::args_os().nth(1).unwrap_or_else(|| "plugins.sock".into());
    // The mode is the process's to choose, its umask has been applied by nobody yet.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let request = Request { allow_continue: true, ..Request::new("mknod", &["mknod", "mknodat"]) };
    run(async {
        let plugged = dial_in(socket.as_ref(), request, Mknod).await?;
        println!("registered");
        plugged.ended().await
    })
}
