//! Finding a command as execvp(3) does.

use crate::sys::raw::Errno;
use crate::sys::raw::process::Command;

/// Where to look without `PATH`: what execvp(3) of the C libraries does.
const PATH: &[u8] = b"/usr/local/bin:/bin:/usr/bin";

/// Longest path, with its NUL, that the kernel takes.
const PATH_MAX: usize = 4096;

/// Becomes the command called `name`, which is looked for in `path` if it has no
/// slash. Returns why that failed: permission denied, if one was found that may
/// not be executed, tells more than that another place had none.
pub(crate) fn execute(command: &Command, name: &[u8], path: Option<&[u8]>) -> Errno {
    if name.is_empty() {
        return Errno::NOENT;
    }
    // Not `contains`: its fast search is code of core that could panic.
    if name.split(|byte| *byte == b'/').nth(1).is_some() {
        return attempt(command, b"", name);
    }
    let mut error = Errno::NOENT;
    for directory in path.unwrap_or(PATH).split(|byte| *byte == b':') {
        match attempt(command, directory, name) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCES => error = Errno::ACCES,
            other => return other,
        }
    }
    error
}

/// Tries `directory/name`; an empty directory is the current one.
fn attempt(command: &Command, directory: &[u8], name: &[u8]) -> Errno {
    let mut buffer = [0u8; PATH_MAX];
    let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    let mut length = 0;
    for byte in directory.iter().chain(slash).chain(name).chain(b"\0") {
        let Some(place) = buffer.get_mut(length) else { return Errno::NOENT };
        *place = *byte;
        length += 1;
    }
    let path = buffer.get(..length).unwrap_or_default();
    match command.execute(path) {
        Errno::NOEXEC => command.execute_by_shell(path),
        error => error,
    }
}
