//! The allocator, told to keep little. glibc's defaults suit programs that use
//! their memory again soon; a pod's monitor sleeps for hours after a burst.

/// Blocks from this size on get pages of their own, which are the kernel's again
/// the moment they are freed: the output of an exec, buffers of a burst of log.
/// Setting it also keeps glibc from raising it after the first such block.
const OWN_PAGES_FROM: libc::c_int = 64 << 10;

/// Free memory at the heap's end that is kept for the next allocation.
const SPARE: libc::c_int = 32 << 10;

/// Makes the heap small for the life of this process: one arena for all threads
/// (there are two, and the relay's allocates next to nothing), and free memory is
/// given back early. To be called before a second thread exists.
pub fn keep_small() {
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

/// Gives memory that the allocator holds but nobody uses back to the kernel.
pub fn trim() {
    // SAFETY: malloc_trim takes a size, walks the allocator's own free lists under its lock, and may be
    // called at any time.
    unsafe { libc::malloc_trim(0) };
}
