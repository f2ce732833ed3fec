//! Making a mount namespace that can be pinned here.
//!
//! The kernel lets a mount namespace be mounted only in one with a smaller
//! number, which keeps the two from holding one another alive. Up to Linux 6.17 a
//! newer one had a larger number. Since 6.18 each CPU takes numbers out of a batch
//! of its own, so a newer one may have a smaller number than the one that podinit
//! is in, unless that is the first one, and pinning it fails with `ELOOP`. Then a
//! CPU is looked for whose batch is far enough.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::make::Makings;
use super::{Error, Kind};
use crate::sys::nsfs::mount_namespace_id;

/// Calls `make` until the mnt namespace it made can be pinned in `own`, or each
/// CPU that this thread may use has been tried. What `make` starts inherits the
/// CPU; a process that stays is given back the others.
pub(super) fn make_younger(
    own: &OwnedFd,
    mut make: impl FnMut() -> Result<Makings, Error>,
) -> Result<Makings, Error> {
    let made = make()?;
    if is_younger(own, &made) {
        return Ok(made);
    }
    drop(made);
    let myself = Pid::from_raw(0);
    let failed =
        |e: nix::Error| Error::step("choose", "a CPU to make a mnt namespace on", std::io::Error::from(e));
    let before = sched_getaffinity(myself).map_err(failed)?;
    for cpu in (0..CpuSet::count()).filter(|cpu| before.is_set(*cpu).unwrap_or(false)) {
        let mut one = CpuSet::new();
        one.set(cpu).map_err(failed)?;
        sched_setaffinity(myself, &one).map_err(failed)?;
        let made = make();
        sched_setaffinity(myself, &before).map_err(failed)?;
        let made = made?;
        if is_younger(own, &made) {
            if let Some(pid) = made.0.as_ref().and_then(|process| i32::try_from(process.pid()).ok()) {
                sched_setaffinity(Pid::from_raw(pid), &before).map_err(failed)?;
            }
            return Ok(made);
        }
    }
    // Let the kernel say what it has to say.
    make()
}

/// Whether the kernel will let it be pinned, as far as that can be known.
fn is_younger(own: &OwnedFd, (_, created): &Makings) -> bool {
    let new = created.iter().find(|(kind, _)| *kind == Kind::Mnt);
    let new = new.and_then(|(_, fd)| mount_namespace_id(fd).ok());
    match (mount_namespace_id(own), new) {
        (Ok(own), Some(new)) => new > own,
        _ => true,
    }
}
