//! Compressing old files of a log, in a process of its own: podinit, started by
//! the monitor in the role `compress-log`.
//!
//! It has the lowest priority for the processor and the disk, takes some 400 KiB,
//! and ends when nothing is left to do; of one log there is one at a time. What it
//! reads was written by a container, and what a container writes is never parsed
//! here. It dies with its pod; the next one removes what it left.
//!
//! The first backup stays as it is, so that whoever follows the log has a whole
//! rotation's time to finish it.
//!
//! Backups change their names meanwhile. So the result gets its name, and the
//! original is removed, under [`Lock`], after a look at where the original is by
//! then.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use flate2::write::GzEncoder;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::account::{ATTRIBUTE, FileAccount};
use super::rotate::{Lock, backup, compressed, directory, temporary};

/// The first argument of a process that compresses.
pub const ROLE: &str = "compress-log";

/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

/// Why a file could not be compressed. The original is still there.
#[derive(Debug, thiserror::Error)]
#[error("compress {path:?}: {source}")]
pub struct CompressError {
    path: PathBuf,
    source: io::Error,
}

/// A process that compresses.
#[derive(Debug)]
pub struct Compressor {
    /// A pipe that only it reads: without a reader it has ended. Nothing is sent.
    life: ChildStdin,
}

impl Compressor {
    /// Starts one for the backups of the log at `path`. It is an orphan of the
    /// monitor, which collects those.
    ///
    /// # Errors
    /// What fork(2) or execve(2) say.
    pub fn start(path: &Path, backups: u16) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(ROLE).arg(backups.to_string()).arg(path).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let life = command.spawn()?.stdin.take();
        Ok(Self { life: life.ok_or(io::ErrorKind::BrokenPipe)? })
    }

    /// Whether it is still at work.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let mut poll = [PollFd::new(&self.life, PollFlags::empty())];
        let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
        let [poll] = poll;
        polled.is_ok() && !poll.revents().intersects(PollFlags::ERR | PollFlags::HUP)
    }
}

/// Compresses every backup of the log at `path` from the second on, oldest first.
/// Does nothing if another process is doing that.
///
/// # Errors
/// The first file that cannot be compressed; the later ones stay as they are too.
pub fn run(path: &Path, backups: u16) -> Result<(), CompressError> {
    let failed = |source: io::Error| CompressError { path: path.to_owned(), source };
    for _ in 0..=backups {
        let Some(output) = Output::open(path).map_err(failed)? else { return Ok(()) };
        let plain = (2..=backups).rev().map(|number| backup(path, number));
        let Some((original, name)) = plain.filter_map(open_original).next() else {
            output.discard();
            return Ok(());
        };
        let failed = |source: io::Error| CompressError { path: name.clone(), source };
        match compress(&original, &output.file) {
            Ok(()) => output.commit(path, backups, &original).map_err(failed)?,
            Err(error) => {
                output.discard();
                return Err(failed(error));
            }
        }
    }
    Ok(())
}

fn open_original(name: PathBuf) -> Option<(File, PathBuf)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(&name, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some((file, name))
}

fn compress(mut original: &File, output: &File) -> io::Result<()> {
    let mut encoder = GzEncoder::new(output, flate2::Compression::default());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match original.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => encoder.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    encoder.finish()?;
    // Where there are no attributes there is none to copy.
    if let Some(account) = FileAccount::load(original) {
        let _stored = account.store(output);
    }
    // The original is removed after this: until then nothing may be only in memory.
    output.sync_all()
}

/// The file that is being made; locked, so that two processes cannot both make it.
#[derive(Debug)]
struct Output {
    file: File,
    name: PathBuf,
}

impl Output {
    /// `None` if another process is at it.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let name = temporary(path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file: OwnedFd = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            result => result?,
        }
        let file = File::from(file);
        // The one who had the lock before may have given the file its last name, or removed it.
        let there = std::fs::symlink_metadata(&name).ok();
        if identity(&file.metadata()?) != there.as_ref().map(identity).unwrap_or_default() {
            return Ok(None);
        }
        // What a process that died has left.
        file.set_len(0)?;
        rustix::fs::fremovexattr(file.as_fd(), ATTRIBUTE).ok();
        Ok(Some(Self { file, name }))
    }

    /// Puts it into the place of `original`, wherever that is by now.
    fn commit(self, path: &Path, backups: u16, original: &File) -> io::Result<()> {
        let _lock = Lock::take(path, true)?;
        let wanted = identity(&original.metadata()?);
        let is_original = |number: &u16| {
            std::fs::symlink_metadata(backup(path, *number)).is_ok_and(|found| identity(&found) == wanted)
        };
        let Some(number) = (1..=backups).find(is_original) else {
            // It was the oldest, and went.
            self.discard();
            return Ok(());
        };
        std::fs::rename(&self.name, compressed(path, number))?;
        rustix::fs::fsync(rustix::fs::open(
            directory(path),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)?;
        std::fs::remove_file(backup(path, number))
    }

    fn discard(self) {
        // If it stays, the next process uses it.
        std::fs::remove_file(self.name).ok();
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unzip(path: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        flate2::read::MultiGzDecoder::new(File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn all_but_the_first_backup_are_compressed_and_keep_their_account() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        for number in 1..=4 {
            std::fs::write(backup(&path, number), vec![b'x'; 1000 * usize::from(number)]).unwrap();
        }
        let both = Default::default();
        let account = FileAccount { log: 1, from: 2, before: both, here: Some(both), is_last: false };
        let stored = account.store(File::options().write(true).open(backup(&path, 2)).unwrap());
        std::fs::write(temporary(&path), "half of a file that a process left").unwrap();
        run(&path, 4).unwrap();
        assert!(backup(&path, 1).exists() && !compressed(&path, 1).exists());
        for number in 2..=4 {
            assert_eq!(unzip(&compressed(&path, number)), vec![b'x'; 1000 * usize::from(number)]);
            assert!(!backup(&path, number).exists());
        }
        let carried = FileAccount::load(File::open(compressed(&path, 2)).unwrap());
        assert_eq!(carried, stored.then_some(account));
        assert!(!temporary(&path).exists());
        run(&path, 4).unwrap();
    }

    #[test]
    fn result_follows_an_original_that_was_renamed_meanwhile() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        std::fs::write(backup(&path, 2), "old").unwrap();
        let (original, _) = open_original(backup(&path, 2)).unwrap();
        let output = Output::open(&path).unwrap().unwrap();
        assert!(Output::open(&path).unwrap().is_none(), "one at a time");
        compress(&original, &output.file).unwrap();
        std::fs::rename(backup(&path, 2), backup(&path, 3)).unwrap();
        std::fs::write(backup(&path, 2), "newer").unwrap();
        output.commit(&path, 3, &original).unwrap();
        assert_eq!(unzip(&compressed(&path, 3)), b"old");
        assert_eq!(std::fs::read(backup(&path, 2)).unwrap(), b"newer");

        let (original, _) = open_original(backup(&path, 2)).unwrap();
        let output = Output::open(&path).unwrap().unwrap();
        std::fs::remove_file(backup(&path, 2)).unwrap();
        output.commit(&path, 3, &original).unwrap();
        assert!(!temporary(&path).exists() && !compressed(&path, 2).exists(), "it was the oldest, and went");
    }
}
