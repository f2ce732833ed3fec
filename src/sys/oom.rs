//! How soon the kernel's out-of-memory killer takes this process (proc(5),
//! `oom_score_adj`): -1000 is never, 1000 is first.

use std::ffi::CStr;
use std::io;

use rustix::fs::{Mode, OFlags};

const SCORE: &CStr = c"/proc/self/oom_score_adj";
const NEVER: &[u8] = b"-1000";
const NEUTRAL: &[u8] = b"0";

/// Protects this process and, by inheritance, what it starts. Without
/// `CAP_SYS_RESOURCE` that is not allowed, and nothing changes.
///
/// # Errors
/// `EACCES` without the capability; else what open(2) and write(2) say.
pub fn protect() -> io::Result<()> {
    write(NEVER)
}

/// Undoes [`protect`] in a child that is about to become somebody else's
/// program, so that no container inherits the protection. A score that is not
/// ours, because [`protect`] was refused or an operator chose it, stays as it is.
///
/// Makes system calls only, so it may be called between fork and exec.
///
/// # Errors
/// What open(2) and write(2) say.
pub fn unprotect() -> io::Result<()> {
    if is_protected() { write(NEUTRAL) } else { Ok(()) }
}

/// Whether this process is one that [`protect`] protected, or a child of one.
#[must_use]
pub fn is_protected() -> bool {
    let mut score = [0u8; 16];
    let Ok(file) = rustix::fs::open(SCORE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    let length = rustix::io::read(&file, &mut score).unwrap_or(0);
    score.get(..length).is_some_and(|score| score.trim_ascii_end() == NEVER)
}

fn write(score: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(SCORE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    /// Runs `cat /proc/self/oom_score_adj` after `before` in the child.
    fn score_after(before: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static) -> String {
        let mut command = Command::new("cat");
        command.arg("/proc/self/oom_score_adj");
        // SAFETY: the closures below make system calls only.
        unsafe { command.pre_exec(before) };
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn protection_is_not_inherited_by_an_unprotected_child() {
        let protected = score_after(|| {
            // Refused without the capability, and then there is nothing to inherit.
            drop(super::protect());
            super::unprotect()
        });
        assert_ne!(protected, "-1000");
    }

    #[test]
    fn an_operators_score_stays() {
        let score = score_after(|| {
            super::write(b"777")?;
            super::unprotect()
        });
        assert_eq!(score, "777");
    }
}
