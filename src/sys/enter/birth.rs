//! Making the child: as a copy of the caller, or sharing its memory until it
//! executes a program, as vfork(2) does. The latter spares copying page tables,
//! which is most of what starting a small program costs.
//!
//! By clone3(2) in both cases: nothing else can put a process into a version 2
//! cgroup at its birth, and moving it there later waits for every processor.

use std::arch::asm;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The child's stack while it shares the caller's memory. It calls a few levels
/// deep with small frames.
const STACK_BYTES: usize = 64 << 10;

/// `CLONE_INTO_CGROUP` (linux/sched.h), which does not fit into libc's `c_int`.
const INTO_CGROUP: u64 = 0x2_0000_0000;

fn wide(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn arguments(pidfd: &mut RawFd, cgroup: Option<BorrowedFd<'_>>) -> libc::clone_args {
    // SAFETY: all of clone_args is integers, for which zero is valid and means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = wide(libc::CLONE_PIDFD);
    arguments.pidfd = std::ptr::from_mut(pidfd).expose_provenance() as u64;
    arguments.exit_signal = wide(libc::SIGCHLD);
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = wide(cgroup.as_raw_fd());
    }
    arguments
}

fn child_of(pid: i64, pidfd: RawFd) -> Option<(u32, OwnedFd)> {
    let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// A copy of this thread as a process, in `cgroup` from its birth; `None` in it.
pub(super) fn copy(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    let mut arguments = arguments(&mut pidfd, cgroup);
    let size = size_of::<libc::clone_args>();
    // SAFETY: `arguments` lives on this stack frame and has the size that is told. Without CLONE_VM the
    // copy has its own memory and goes on on a copy of this stack. The pidfd is stored on this frame.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(child_of(pid, pidfd))
}

/// A process that shares this one's memory and runs `main` on a stack of its own,
/// in `cgroup` from its birth. Returns when it has executed a program or ended:
/// this thread stands still until then. `main` must not return, nor change memory
/// that anybody else looks at.
pub(super) fn share<F: Fn() -> std::convert::Infallible>(
    cgroup: Option<BorrowedFd<'_>>,
    main: F,
) -> io::Result<(u32, OwnedFd)> {
    // Words of 16 bytes, which is what a stack is aligned to.
    let mut stack = Vec::<u128>::with_capacity(STACK_BYTES / size_of::<u128>());
    let mut pidfd: RawFd = -1;
    let mut arguments = arguments(&mut pidfd, cgroup);
    arguments.flags |= wide(libc::CLONE_VM | libc::CLONE_VFORK);
    arguments.stack = stack.as_mut_ptr().expose_provenance() as u64;
    arguments.stack_size = STACK_BYTES as u64;
    let main = std::ptr::from_ref(&main).cast();
    // SAFETY: `arguments` is complete and lives on this stack frame, as does `main`, and the stack is
    // allocated; CLONE_VFORK keeps this frame standing until the child uses none of them any more.
    let pid = unsafe { clone3_on_stack(&mut arguments, begin::<F>, main) };
    if pid < 0 {
        // An errno is below 4096.
        return Err(io::Error::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EINVAL)));
    }
    child_of(pid, pidfd).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The first function of the child's own stack.
extern "C" fn begin<F: Fn() -> std::convert::Infallible>(main: *const libc::c_void) -> ! {
    // SAFETY: `share` gave the address of an F on a frame that stands still meanwhile.
    let main = unsafe { &*main.cast::<F>() };
    match main() {}
}

/// clone3(2); the child begins with `main(argument)` on the stack that `arguments` names.
///
/// # Safety
/// `arguments` must name a stack that is allocated, with its size a multiple of 16,
/// and everything that the child uses must stay until it is gone.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_on_stack(
    arguments: &mut libc::clone_args,
    main: extern "C" fn(*const libc::c_void) -> !,
    argument: *const libc::c_void,
) -> i64 {
    let returned: i64;
    // SAFETY: the kernel clobbers rcx and r11 and returns in rax. The child has 0 in rax, the same
    // registers else, and its own stack; it never comes to the end of this block.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => returned,
            in("rdi") std::ptr::from_mut(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") main,
            in("r9") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    returned
}

/// clone3(2); the child begins with `main(argument)` on the stack that `arguments` names.
///
/// # Safety
/// As its sibling's.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_on_stack(
    arguments: &mut libc::clone_args,
    main: extern "C" fn(*const libc::c_void) -> !,
    argument: *const libc::c_void,
) -> i64 {
    let returned: i64;
    // SAFETY: the kernel returns in x0 and keeps every other register. The child has 0 there, the same
    // registers else, and its own stack; it never comes to the end of this block.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x10",
            "blr x9",
            "brk 1",
            "2:",
            inlateout("x0") std::ptr::from_mut(arguments) => returned,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x9") main,
            in("x10") argument,
        );
    }
    returned
}
