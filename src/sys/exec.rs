//! Becoming another program.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Replaces this process by the program in `image`, called `name`, with
/// `arguments` and this process' environment. Returns only what prevented that.
#[must_use]
pub fn replace(image: OwnedFd, name: &OsStr, arguments: &[OsString]) -> io::Error {
    let strings = std::iter::once(name).chain(arguments.iter().map(OsString::as_os_str));
    let strings: Result<Vec<CString>, _> = strings.map(|text| CString::new(text.as_bytes())).collect();
    let environment: Result<Vec<CString>, _> = std::env::vars_os()
        .map(|(key, value)| CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    let (Ok(strings), Ok(environment)) = (strings, environment) else {
        return io::Error::new(io::ErrorKind::InvalidInput, "an argument contains a NUL");
    };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv, envp) = (pointers(&strings), pointers(&environment));
    // SAFETY: SIG_DFL is a valid disposition, and no handler code is installed. Rust's runtime ignores SIGPIPE, and
    // ignored it would stay in the new program, and in all that it starts.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: both arrays end with a null and point at C strings; arrays and strings live until the call returns.
    unsafe { libc::fexecve(image.as_raw_fd(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}
