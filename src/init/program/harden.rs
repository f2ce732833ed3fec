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
const NOBODY_ELSE: u32 = 4_294_967_293;

/// Whether to become another user.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// One that nobody else is. For PID 1.
    Change,
    /// Whoever we are, so that he may still signal us.
    Keep,
}

/// Gives up everything but `CAP_KILL` and what `filter` allows.
pub(crate) fn apply(user: User, filter: &[Instruction]) {
    let _ = security::set_undumpable();
    let _ = security::set_no_new_privileges();
    security::drop_bounding_capabilities();
    // Only with CAP_KILL: without it, a user of its own could not signal the processes that it has to end.
    if user == User::Change && security::set_capabilities(security::CAP_KILL | security::CAP_SETIDS).is_ok() {
        let _ = security::become_user(NOBODY_ELSE);
    }
    if security::set_capabilities(security::CAP_KILL).is_err() {
        let _ = security::set_capabilities(0);
    }
    // A change of user made the process as dumpable as fs.suid_dumpable says: say it again.
    let _ = security::set_undumpable();
    let _ = security::set_filter(filter);
}
