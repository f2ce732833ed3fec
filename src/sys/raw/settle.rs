//! Making a long-lived process small: one page of stack, and the program next to it.
//!
//! The kernel starts a program with its strings at the top of the stack, up to
//! two pages of random space below them, and maps it far away. That is two or
//! three private pages where one is enough, and a page table of its own for the
//! program and the vdso at each of three levels. Here the stack pointer moves up
//! to the strings, the program moves to the page below the stack, and whatever
//! is mapped below goes: the rest of the stack, the vdso, which a program without
//! a C library does not call, and with them their page tables. That is 16 KiB
//! less for a pod, of some 80.
//!
//! The program is position independent and its addresses stay random: they
//! follow the stack's.

use core::arch::asm;

/// Size of a page on x86-64.
const PAGE: usize = 4096;
/// What the program may use of the stack from then on.
const STACK_MIN: usize = 3072;
/// Below the strings and above anything else that the kernel maps: the stack
/// begins with 132 KiB, and other mappings keep 128 MiB away from it.
const STACK_MAX: usize = 1 << 20;

/// What the program goes on with.
pub trait Goal {
    /// Takes a string of the start stack and a number.
    fn go_on(name: &'static [u8], number: u64) -> !;
}

/// Where the program is again on firm ground.
extern "C" fn arrive<G: Goal>(name: *const u8, length: usize, number: u64) -> ! {
    // SAFETY: `settle` took the two apart, and the strings of the start stack are where they were.
    G::go_on(unsafe { core::slice::from_raw_parts(name, length) }, number)
}

/// Moves stack and program, unmaps everything below them, then goes on to `G`.
///
/// `lowest` is the lowest of the strings that the kernel put at the top of the
/// stack. Nothing else that was on the stack exists from then on.
pub fn settle<G: Goal>(lowest: *const u8, name: &'static [u8], number: u64) -> ! {
    let stack = (lowest as usize) & !15;
    let kept = (stack - STACK_MIN) & !(PAGE - 1);
    let (start, end): (usize, usize);
    // SAFETY: the two symbols are the bounds of the program's one segment (build/layout.ld).
    unsafe {
        asm!("lea {}, [rip + program_start]", "lea {}, [rip + program_end]", out(reg) start, out(reg) end,
            options(nomem, nostack, preserves_flags));
    }
    let length = (end - start + PAGE - 1) & !(PAGE - 1);
    let target = kept - length;
    // SAFETY: from the first instruction on nothing of the old stack is used: all that is needed is in registers, and
    // `goal` gets pointers into the strings only, which are above the new stack pointer. The munmap takes what is
    // below the kept pages. The mremap leaves the old mapping in place (MREMAP_DONTUNMAP), so that the next
    // instruction is still there; if the kernel refuses it (before Linux 5.13), the program goes on where it is.
    // Else the jump leads to the same code in the new place, and what `goal` is told to release is the old one.
    unsafe {
        asm!(
            "mov rsp, rax",
            "xor ebp, ebp",
            "push r11",
            "push rcx",
            "mov eax, 11", // munmap(kept - STACK_MAX, STACK_MAX)
            "syscall",
            "mov eax, 25", // mremap(start, length, length, MAYMOVE | FIXED | DONTUNMAP, target)
            "mov rdi, r12",
            "mov rsi, r13",
            "mov rdx, r13",
            "mov r10d, 7",
            "mov r8, r14",
            "syscall",
            "cmp rax, r14",
            "jne 2f",
            "sub r14, r12",
            "lea rax, [rip + 3f]",
            "add rax, r14",
            "add r15, r14",
            "jmp rax",
            "3:",
            "mov eax, 11", // munmap(0, target)
            "xor edi, edi",
            "mov rsi, r8",
            "syscall",
            "2:",
            "mov rdi, r9",
            "pop rsi",
            "pop rdx",
            "call r15",
            "ud2",
            in("rax") stack,
            in("r11") number,
            in("rcx") name.len(),
            in("rdi") kept - STACK_MAX,
            in("rsi") STACK_MAX,
            in("r9") name.as_ptr(),
            in("r12") start,
            in("r13") length,
            in("r14") target,
            in("r15") arrive::<G>,
            options(noreturn)
        );
    }
}
