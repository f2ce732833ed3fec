//! Where the kernel starts the program, and the few symbols that the compiler
//! expects to find without a C library.

use core::arch::naked_asm;
use core::panic::PanicInfo;

use crate::sys::raw::process::Command;

/// The first instructions. The kernel leaves argc, argv and envp at the stack
/// pointer; a zero frame pointer ends back-traces.
///
/// # Safety
/// For the kernel only, as a program's entry point.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {entry}", "ud2", entry = sym entry)
}

/// The first instructions, as above.
///
/// # Safety
/// For the kernel only, as a program's entry point.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov x29, xzr", "mov x30, xzr", "mov x0, sp", "bl {entry}", "brk 1", entry = sym entry)
}

/// What the compiler may make of any copy, in place of the C library's: memcpy(3).
///
/// # Safety
/// As in C.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret");
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        "mov x4, xzr",
        "2: cmp x4, x2",
        "b.eq 3f",
        "ldrb w3, [x1, x4]",
        "strb w3, [x0, x4]",
        "add x4, x4, 1",
        "b 2b",
        "3: ret"
    );
}

/// What the compiler may make of any initialisation: memset(3).
///
/// # Safety
/// As in C.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("mov r8, rdi", "mov eax, esi", "mov rcx, rdx", "rep stosb", "mov rax, r8", "ret");
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        "mov x4, xzr",
        "2: cmp x4, x2",
        "b.eq 3f",
        "strb w1, [x0, x4]",
        "add x4, x4, 1",
        "b 2b",
        "3: ret"
    );
}

/// What the compiler may make of any comparison: memcmp(3).
///
/// # Safety
/// As in C.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, length: usize) -> i32 {
    #[cfg(target_arch = "x86_64")]
    naked_asm!(
        "xor eax, eax",
        "mov rcx, rdx",
        "test rcx, rcx",
        "jz 2f",
        "repe cmpsb",
        "je 2f",
        "movzx eax, byte ptr [rdi - 1]",
        "movzx ecx, byte ptr [rsi - 1]",
        "sub eax, ecx",
        "2: ret"
    );
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        "mov x4, xzr",
        "mov x5, x0",
        "mov w0, wzr",
        "2: cmp x4, x2",
        "b.eq 3f",
        "ldrb w6, [x5, x4]",
        "ldrb w7, [x1, x4]",
        "add x4, x4, 1",
        "subs w0, w6, w7",
        "b.eq 2b",
        "3: ret"
    );
}

/// memcmp(3) where only equality matters.
///
/// # Safety
/// As in C.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, length: usize) -> i32 {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("jmp {memcmp}", memcmp = sym memcmp);
    #[cfg(target_arch = "aarch64")]
    naked_asm!("b {memcmp}", memcmp = sym memcmp);
}

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
        let pointer = unsafe { *self.stack.wrapping_add(1 + index) };
        Some(string(pointer as *const u8))
    }

    /// The value of environment variable `name`.
    #[must_use]
    pub fn variable(&self, name: &[u8]) -> Option<&'static [u8]> {
        let mut at = self.count + 2;
        loop {
            // SAFETY: envp follows argv's null and ends with one of its own, where this loop ends.
            let pointer = unsafe { *self.stack.wrapping_add(at) };
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
        let arguments = self.stack.wrapping_add(1 + first);
        let environment = self.stack.wrapping_add(self.count + 2);
        // SAFETY: argv has `count` pointers, so this one exists, and one before it; envp begins behind argv's null.
        // Both end with a null and stay for the life of the program.
        Some(unsafe { Command::new(arguments.cast_mut(), environment) })
    }

    /// Overwrites the environment: what a caller left there is nobody's business.
    pub fn forget_environment(&self) {
        let mut at = self.count + 2;
        loop {
            // SAFETY: envp follows argv's null and ends with one of its own, where this loop ends.
            let mut byte = unsafe { *self.stack.wrapping_add(at) } as *mut u8;
            if byte.is_null() {
                return;
            }
            // SAFETY: a C string of the start stack, which is writable; nothing refers to it.
            while unsafe { *byte } != 0 {
                // SAFETY: as above, and not its end yet.
                unsafe { *byte = 0 };
                byte = byte.wrapping_add(1);
            }
            at += 1;
        }
    }

    /// The lowest of the strings, which lie at the top of the stack.
    #[must_use]
    pub fn lowest(&self) -> *const u8 {
        self.argument(0).map_or(self.stack.cast(), <[u8]>::as_ptr)
    }

    /// Makes the command line read `title` and `name`, which is argument `index`,
    /// and gives back the name, which has moved.
    #[must_use]
    pub fn retitle(self, title: &[u8], index: usize) -> &'static [u8] {
        let (Some(first), Some(name)) = (self.argument(0), self.argument(index)) else { return b"" };
        let last = self.argument(self.count - 1).unwrap_or(name);
        let area = first.as_ptr().cast_mut();
        let end = last.as_ptr() as usize + last.len();
        let space = end - area as usize;
        let length = name.len();
        if space < title.len() + length {
            return name;
        }
        let source = name.as_ptr();
        for at in 0..length {
            // SAFETY: the strings of argv are one block (execve(2)); the name moves within it, to the left.
            let byte = unsafe { *source.wrapping_add(at) };
            // SAFETY: as above.
            unsafe { *area.wrapping_add(title.len() + at) = byte };
        }
        for (at, byte) in title.iter().enumerate() {
            // SAFETY: as above. `first` is not used any more, and `self` is gone after this function.
            unsafe { *area.wrapping_add(at) = *byte };
        }
        for at in title.len() + length..space {
            // SAFETY: as above.
            unsafe { *area.wrapping_add(at) = 0 };
        }
        let moved = area.wrapping_add(title.len());
        // SAFETY: the name was just written there, in memory that nothing else refers to.
        unsafe { core::slice::from_raw_parts(moved, length) }
    }
}

/// The bytes of a C string of the start stack.
fn string(start: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: the kernel ends each string with a NUL.
    while unsafe { *start.wrapping_add(length) } != 0 {
        length += 1;
    }
    // SAFETY: `length` bytes were just read, and the start stack stays.
    unsafe { core::slice::from_raw_parts(start, length) }
}
