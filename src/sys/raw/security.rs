//! What a process gives up: capabilities, privileges, system calls.

use super::{Result, arch::call, check, numbers as nr};

/// prctl(2) with numbers only.
fn prctl(option: usize, a: usize, b: usize) -> Result<usize> {
    // SAFETY: only used below, with options that take no pointer.
    check(unsafe { call(nr::PRCTL, [option, a, b, 0, 0]) })
}

/// Names this process in `/proc/<pid>/comm`; the kernel keeps 15 bytes.
///
/// # Errors
/// None that a kernel has a reason for.
pub fn set_name(name: &[u8; 16]) -> Result<()> {
    const PR_SET_NAME: usize = 15;
    // SAFETY: the kernel copies at most 16 bytes, which the array has.
    check(unsafe { call(nr::PRCTL, [PR_SET_NAME, name.as_ptr() as usize, 0, 0, 0]) })?;
    Ok(())
}

/// No core dumps, and ptrace(2), `/proc/<pid>/mem`, `fd`, `environ`, `maps` only
/// for a process with `CAP_SYS_PTRACE` over this one's user namespace.
///
/// # Errors
/// None that a kernel has a reason for.
pub fn set_undumpable() -> Result<()> {
    const PR_SET_DUMPABLE: usize = 4;
    prctl(PR_SET_DUMPABLE, 0, 0)?;
    Ok(())
}

/// Sends this process `signal` when its parent ends; 0: nothing.
///
/// # Errors
/// `EINVAL` for a signal that does not exist.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    const PR_SET_PDEATHSIG: usize = 1;
    prctl(PR_SET_PDEATHSIG, signal as usize, 0)?;
    Ok(())
}

/// Makes orphans below this process its children.
///
/// # Errors
/// None that a kernel has a reason for.
pub fn set_subreaper() -> Result<()> {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0)?;
    Ok(())
}

/// No program that this process executes ever gains privileges.
///
/// # Errors
/// None that a kernel has a reason for.
pub fn set_no_new_privileges() -> Result<()> {
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0)?;
    Ok(())
}

/// `CAP_KILL`: signals to processes of other users.
pub const CAP_KILL: u32 = 1 << 5;
/// `CAP_SETGID` and `CAP_SETUID`: becoming another user.
pub const CAP_SETIDS: u32 = 1 << 6 | 1 << 7;

/// Changes to a user and group that nobody else has, keeping the permitted
/// capabilities.
///
/// # Errors
/// `EPERM` without `CAP_SETUID` and `CAP_SETGID`; `EINVAL` if the user
/// namespace does not map the number.
pub fn become_user(id: u32) -> Result<()> {
    const PR_SET_KEEPCAPS: usize = 8;
    prctl(PR_SET_KEEPCAPS, 1, 0)?;
    let id = id as usize;
    // SAFETY: setgroups(2) with no group reads nothing. May be denied in a user namespace, where it is also moot.
    let _ = unsafe { call(nr::SETGROUPS, [0; 5]) };
    // SAFETY: setresgid(2) takes numbers only.
    check(unsafe { call(nr::SETRESGID, [id, id, id, 0, 0]) })?;
    // SAFETY: setresuid(2) takes numbers only.
    check(unsafe { call(nr::SETRESUID, [id, id, id, 0, 0]) })?;
    Ok(())
}

/// Empties the bounding and the ambient set.
pub fn drop_bounding_capabilities() {
    const PR_CAPBSET_DROP: usize = 24;
    const PR_CAP_AMBIENT: usize = 47;
    const CLEAR_ALL: usize = 4;
    let mut capability = 0;
    // EINVAL ends the list of what this kernel knows; EPERM (no CAP_SETPCAP) ends it too.
    while prctl(PR_CAPBSET_DROP, capability, 0).is_ok() {
        capability += 1;
    }
    // Fails before Linux 4.3 only, which has no ambient set.
    let _ = prctl(PR_CAP_AMBIENT, CLEAR_ALL, 0);
}

/// Keeps of all capabilities those in the mask `keep` (all below 32), permitted
/// and effective; nothing is inheritable.
///
/// # Errors
/// `EPERM` if one of `keep` is not permitted already.
pub fn set_capabilities(keep: u32) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [
        Data { effective: keep, permitted: keep, inheritable: 0 },
        Data { effective: 0, permitted: 0, inheritable: 0 },
    ];
    // SAFETY: version 3 reads a header and two data structures; all live on this stack frame.
    check(unsafe { call(nr::CAPSET, [&raw const header as usize, data.as_ptr() as usize, 0, 0, 0]) })?;
    Ok(())
}

/// One instruction of classic BPF: `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

impl Instruction {
    /// Loads the 32-bit word at byte `offset` of `struct seccomp_data`.
    const fn load(offset: u32) -> Self {
        Self { code: 0x20, jump_true: 0, jump_false: 0, value: offset }
    }

    /// Skips `skip` instructions if the word is `value`.
    const fn if_equal(value: u32, skip: u8) -> Self {
        Self { code: 0x15, jump_true: skip, jump_false: 0, value }
    }

    /// Ends with `verdict`.
    const fn end(verdict: u32) -> Self {
        Self { code: 0x06, jump_true: 0, jump_false: 0, value: verdict }
    }
}

const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO` with EPERM. Not a kill: PID 1 must not end by a mistake.
const REFUSE: u32 = 0x0005_0001;

/// A filter that lets exactly `N` system calls through; `LENGTH` must be `N + 6`.
///
/// ```text
/// load arch;  other than ours?  -> refuse      (a 32-bit call has other numbers)
/// load number; one of the list? -> allow       (x32 numbers have bit 30 set and so match nothing)
/// refuse with EPERM
/// allow
/// ```
#[must_use]
#[allow(clippy::indexing_slicing)] // Evaluated by the compiler, where a wrong index is an error.
pub const fn allow_only<const N: usize, const LENGTH: usize>(calls: [usize; N]) -> [Instruction; LENGTH] {
    assert!(LENGTH == N + 6 && N < 200);
    let mut filter = [Instruction::end(REFUSE); LENGTH];
    filter[0] = Instruction::load(4);
    filter[1] = Instruction::if_equal(nr::AUDIT_ARCH, 1);
    filter[3] = Instruction::load(0);
    let mut at = 0;
    while at < N {
        // From the instruction behind this one over the rest of the list and the refusal.
        filter[4 + at] = Instruction::if_equal(calls[at] as u32, (N - at) as u8);
        at += 1;
    }
    filter[LENGTH - 1] = Instruction::end(ALLOW);
    filter
}

/// Installs a filter on this process, for ever. Needs `set_no_new_privileges`.
///
/// # Errors
/// `EINVAL` if the kernel has no seccomp filters.
pub fn set_filter(filter: &[Instruction]) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    const SET_MODE_FILTER: usize = 1;
    let program = Program { length: filter.len() as u16, filter: filter.as_ptr() };
    // SAFETY: the kernel copies `length` instructions, which the slice has, before it returns.
    check(unsafe { call(nr::SECCOMP, [SET_MODE_FILTER, 0, &raw const program as usize, 0, 0]) })?;
    Ok(())
}
