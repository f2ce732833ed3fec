//! The allocator, told to keep little. glibc's defaults suit programs that use
//! their memory again soon; a pod's monitor sleeps for hours after a burst.

use std::fs;
use std::process::Command;

/// Blocks from this size on get pages of their own, which are the kernel's again
/// the moment they are freed: the output of an exec, buffers of a burst of log.
/// Setting it also keeps glibc from raising it after the first such block.
const OWN_PAGES_FROM: libc::c_int = 64 << 10;

/// Free memory at the heap's end that is kept for the next allocation.
const SPARE: libc::c_int = 32 << 10;

/// Where glibc reads, once and before `main`, what no function sets.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Each thread keeps the last seven freed blocks of every size for itself, in 16-byte
/// steps up to this one instead of 1032: what is kept is neither merged with free
/// memory beside it nor given back, so that every size that is ever asked for stays.
/// Those up to here are most of what is asked for, and 16 KiB at most.
const KEPT_PER_THREAD: &str = "glibc.malloc.tcache_max=256";

/// Has the program that `command` starts keep little for each thread. It is to call
/// [`keep_small`]. Whoever has set glibc's tunables already is not overruled.
pub fn keep_small_in(command: &mut Command) {
    if std::env::var_os(TUNABLES).is_none() {
        command.env(TUNABLES, KEPT_PER_THREAD);
    }
}

/// Makes the heap small for the life of this process: one arena for all threads
/// (there are two, and the relay's allocates next to nothing), and free memory is
/// given back early. To be called before a second thread exists.
pub fn keep_small() {
    forget_tunables();
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, OWN_PAGES_FROM),
        (libc::M_TRIM_THRESHOLD, SPARE),
        (libc::M_TOP_PAD, 0),
    ] {
        // SAFETY: mallopt takes two ints and sets a parameter of the allocator. A parameter that is not
        // known is ignored, and then the default holds.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// What [`keep_small_in`] has set was for this program, not for those that it starts.
fn forget_tunables() {
    let alone = fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone && std::env::var_os(TUNABLES).is_some_and(|value| value == KEPT_PER_THREAD) {
        // SAFETY: this is the only thread, so nobody reads or changes the environment meanwhile.
        unsafe { std::env::remove_var(TUNABLES) };
    }
}

/// Gives memory that the allocator holds but nobody uses back to the kernel.
pub fn trim() {
    // SAFETY: malloc_trim takes a size, walks the allocator's own free lists under its lock, and may be
    // called at any time.
    unsafe { libc::malloc_trim(0) };
}
