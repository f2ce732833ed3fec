//! The system call instruction and the call numbers of each architecture.

use core::arch::asm;

/// Makes a system call.
///
/// # Safety
/// The caller vouches for the arguments: pointers among them must be valid for
/// what the call reads and writes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn call(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let returned: isize;
    // SAFETY: the kernel clobbers rcx and r11 and returns in rax; memory effects are the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number => returned,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    returned
}

/// Makes a system call.
///
/// # Safety
/// The caller vouches for the arguments: pointers among them must be valid for
/// what the call reads and writes.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(super) unsafe fn call(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let returned: isize;
    // SAFETY: the kernel keeps every register but x0; memory effects are the caller's promise.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => returned,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, options(nostack));
    }
    returned
}

/// System call numbers (`asm/unistd_64.h`).
#[cfg(target_arch = "x86_64")]
#[allow(missing_docs)]
pub mod numbers {
    /// `AUDIT_ARCH_X86_64`: what a seccomp filter sees of a native call.
    pub const AUDIT_ARCH: u32 = 0xc000_003e;
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const GETPID: usize = 39;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const CHDIR: usize = 80;
    pub const SETPGID: usize = 109;
    pub const GETPPID: usize = 110;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const CAPSET: usize = 126;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const PRCTL: usize = 157;
    pub const RESTART_SYSCALL: usize = 219;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const PPOLL: usize = 271;
    pub const SECCOMP: usize = 317;
    pub const CLOSE_RANGE: usize = 436;
}

/// System call numbers (`asm-generic/unistd.h`).
#[cfg(target_arch = "aarch64")]
#[allow(missing_docs)]
pub mod numbers {
    /// `AUDIT_ARCH_AARCH64`: what a seccomp filter sees of a native call.
    pub const AUDIT_ARCH: u32 = 0xc000_00b7;
    pub const IOCTL: usize = 29;
    pub const CHDIR: usize = 49;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PPOLL: usize = 73;
    pub const CAPSET: usize = 91;
    pub const EXIT_GROUP: usize = 94;
    pub const CLOCK_GETTIME: usize = 113;
    pub const RESTART_SYSCALL: usize = 128;
    pub const KILL: usize = 129;
    pub const RT_SIGACTION: usize = 134;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const SETRESUID: usize = 147;
    pub const SETRESGID: usize = 149;
    pub const SETPGID: usize = 154;
    pub const SETSID: usize = 157;
    pub const SETGROUPS: usize = 159;
    pub const PRCTL: usize = 167;
    pub const GETPID: usize = 172;
    pub const GETPPID: usize = 173;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
    pub const SECCOMP: usize = 277;
    pub const CLOSE_RANGE: usize = 436;
}
