//! Nothing to steal, and little to attack: what PID 1 gives up before the first
//! process of a container can see it.
//!
//! | given up | against |
//! | --- | --- |
//! | every descriptor, the working directory | reaching host files through `/proc/1/fd`, `/proc/1/cwd` |
//! | being dumpable | ptrace(2), `/proc/1/mem`, `environ`, `maps` for whoever lacks `CAP_SYS_PTRACE` |
//! | the user id, for one that nobody has | `prlimit(1, RLIMIT_CPU)` (which ends PID 1), scheduler and affinity calls, allowed between processes of one user |
//! | all capabilities but `CAP_KILL` | use of PID 1's rights, were it ever taken over |
//! | all system calls but those of the mode | the same |
//!
//! Each step is best effort: an init that refused to start on a kernel that lacks
//! one of them would help nobody. What was achieved can be read in `/proc/1/status`.

use crate::sys::raw::security::{self, Instruction};

/// The user and group of PID 1 where the user namespace maps it: close to the
/// end of the number space, which no allocator of id ranges hands out.
pub(crate) const NOBODY_ELSE: u32 = 4_294_967_293;

/// Gives up everything but `CAP_KILL` and what `filter` allows.
pub(crate) fn apply(filter: &[Instruction]) {
    let _ = security::set_undumpable();
    let _ = security::set_no_new_privileges();
    security::drop_bounding_capabilities();
    let _ = security::become_user(NOBODY_ELSE);
    if security::set_capabilities(Some(security::CAP_KILL)).is_err() {
        let _ = security::set_capabilities(None);
    }
    // A change of user made the process dumpable as /proc/sys/fs/suid_dumpable says: say it again.
    let _ = security::set_undumpable();
    let _ = security::set_filter(filter);
}
