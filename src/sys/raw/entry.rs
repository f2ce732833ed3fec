//! Where the kernel starts the program, and the few symbols that the compiler
//! expects to find without a C library.

use core::arch::global_asm;
use core::panic::PanicInfo;

use crate::sys::raw::process::Command;

#[cfg(target_arch = "x86_64")]
global_asm!(
    // The kernel leaves argc, argv and envp at the stack pointer. A zero frame pointer ends back-traces.
    ".globl _start", "_start:", "xor %ebp, %ebp", "mov %rsp, %rdi", "and $-16, %rsp", "call {entry}", "ud2",
    // The compiler may turn any copy or comparison into one of these.
    ".globl memcpy", "memcpy:", "mov %rdi, %rax", "mov %rdx, %rcx", "rep movsb", "ret",
    ".globl memset", "memset:", "mov %rdi, %r8", "mov %esi, %eax", "mov %rdx, %rcx", "rep stosb",
    "mov %r8, %rax", "ret",
    ".globl bcmp", "bcmp:", ".globl memcmp", "memcmp:", "xor %eax, %eax", "mov %rdx, %rcx", "test %rcx, %rcx",
    "jz 2f", "repe cmpsb", "je 2f", "movzbl -1(%rdi), %eax", "movzbl -1(%rsi), %ecx", "sub %ecx, %eax",
    "2:", "ret",
    entry = sym entry,
    options(att_syntax)
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    // The kernel leaves argc, argv and envp at the stack pointer. A zero frame pointer ends back-traces.
    ".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "mov x0, sp", "bl {entry}", "brk 1",
    // The compiler may turn any copy or comparison into one of these.
    ".globl memcpy", "memcpy:", "mov x4, xzr",
    "1:", "cmp x4, x2", "b.eq 2f", "ldrb w3, [x1, x4]", "strb w3, [x0, x4]", "add x4, x4, 1", "b 1b", "2:", "ret",
    ".globl memset", "memset:", "mov x4, xzr",
    "1:", "cmp x4, x2", "b.eq 2f", "strb w1, [x0, x4]", "add x4, x4, 1", "b 1b", "2:", "ret",
    ".globl bcmp", "bcmp:", ".globl memcmp", "memcmp:", "mov x4, xzr", "mov x5, x0", "mov w0, wzr",
    "1:", "cmp x4, x2", "b.eq 2f", "ldrb w6, [x5, x4]", "ldrb w7, [x1, x4]", "add x4, x4, 1",
    "subs w0, w6, w7", "b.eq 1b", "2:", "ret",
    entry = sym entry
);

unsafe extern "C" {
    /// Defined nowhere: a program that could panic does not link. That is the
    /// proof that PID 1 never ends by a failed bounds check or an overflow.
    fn the_init_program_must_not_be_able_to_panic() -> !;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: never linked, so never called.
    unsafe { the_init_program_must_not_be_able_to_panic() }
}

/// The arguments and the environment that the kernel put on the stack of the
/// program, where they stay until it ends.
#[derive(Debug)]
pub struct Start {
    /// Points at argc, then argv with a null at its end, then envp with one.
    stack: *const usize,
    count: usize,
}

extern "C" fn entry(stack: *const usize) -> ! {
    // SAFETY: the kernel starts the stack with argc (execve(2), the ABI's process initialization).
    let count = unsafe { *stack };
    crate::main(Start { stack, count })
}

impl Start {
    /// How many arguments there are, the program's name included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Argument `index`, without its NUL.
    #[must_use]
    pub fn argument(&self, index: usize) -> Option<&'static [u8]> {
        if index >= self.count {
            return None;
        }
        // SAFETY: argv has `count` pointers, behind argc.
        let pointer = unsafe { *self.stack.add(1 + index) };
        Some(string(pointer as *const u8))
    }

    /// The value of environment variable `name`.
    #[must_use]
    pub fn variable(&self, name: &[u8]) -> Option<&'static [u8]> {
        let mut at = self.count + 2;
        loop {
            // SAFETY: envp follows argv's null and ends with one of its own, where this loop ends.
            let pointer = unsafe { *self.stack.add(at) };
            if pointer == 0 {
                return None;
            }
            if let Some(value) = string(pointer as *const u8).strip_prefix(name)
                && let Some(value) = value.strip_prefix(b"=")
            {
                return Some(value);
            }
            at += 1;
        }
    }

    /// The command that begins at argument `first`.
    #[must_use]
    pub fn command(&self, first: usize) -> Option<Command> {
        if first == 0 || first >= self.count {
            return None;
        }
        // SAFETY: argv has `count` pointers, so this one exists, and one before it.
        let arguments = unsafe { self.stack.add(1 + first) };
        // SAFETY: envp begins behind argv's null.
        let environment = unsafe { self.stack.add(self.count + 2) };
        // SAFETY: both end with a null and stay for the life of the program.
        Some(unsafe { Command::new(arguments.cast_mut(), environment) })
    }

    /// Makes the command line read `title` and `name`, which is argument `index`,
    /// and gives back the name, which has moved.
    #[must_use]
    pub fn retitle(self, title: &[u8], index: usize) -> &'static [u8] {
        let (Some(first), Some(name)) = (self.argument(0), self.argument(index)) else { return b"" };
        let area = first.as_ptr().cast_mut();
        let end = name.as_ptr() as usize + name.len();
        let space = end - area as usize;
        let length = name.len();
        if space < title.len() + length {
            return name;
        }
        let source = name.as_ptr();
        for at in 0..length {
            // SAFETY: the strings of argv are one block (execve(2)); the name moves within it, to the left.
            unsafe { *area.add(title.len() + at) = *source.add(at) };
        }
        for (at, byte) in title.iter().enumerate() {
            // SAFETY: as above. `first` is not used any more, and `self` is gone after this function.
            unsafe { *area.add(at) = *byte };
        }
        for at in title.len() + length..space {
            // SAFETY: as above.
            unsafe { *area.add(at) = 0 };
        }
        // SAFETY: the name was just written there, in memory that nothing else refers to.
        unsafe { core::slice::from_raw_parts(area.add(title.len()), length) }
    }
}

/// The bytes of a C string of the start stack.
fn string(start: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: the kernel ends each string with a NUL.
    while unsafe { *start.add(length) } != 0 {
        length += 1;
    }
    // SAFETY: `length` bytes were just read, and the start stack stays.
    unsafe { core::slice::from_raw_parts(start, length) }
}
