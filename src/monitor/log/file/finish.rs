//! What becomes of a file when the log goes on in another one: its name, its
//! account, its way to the disk.

use std::time::Instant;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::account::{self, FileAccount, each};
use super::super::compress::Compressor;
use super::super::options::{Compression, SyncPolicy};
use super::super::rotate::{Lock, directory, shift};
use super::{FileSink, Open, identity_at, open_append};
use crate::limits::{LOG_RETRY_MAX, LOG_RETRY_MIN};

impl FileSink {
    /// Makes the file the first backup and goes on in a new one. If that fails, the
    /// old file grows beyond its limit: a log that is too large is better than none.
    pub(super) fn rotate(&mut self) {
        match self.make_backup().and_then(|()| open_append(&self.path, OFlags::CREATE)) {
            Ok(open) => {
                self.rotate_again_at = None;
                self.replace(open);
                self.compress();
            }
            // The compressing process is about to rename a backup, which takes no time.
            Err(Errno::WOULDBLOCK) => self.rotate_again_at = Some(Instant::now() + LOG_RETRY_MIN),
            Err(errno) => {
                self.note_error("rotation failed", errno);
                self.rotate_again_at = Some(Instant::now() + LOG_RETRY_MAX);
            }
        }
    }

    fn make_backup(&self) -> Result<(), Errno> {
        let _lock = match self.options.compression {
            Compression::Gzip => Some(Lock::take(&self.path, false)?),
            Compression::None => None,
        };
        // Somebody else may have renamed it already, then there is nothing to rename.
        let current = self.open.as_ref().map(|open| open.identity);
        if identity_at(&self.path) == current { shift(&self.path, self.options.backups) } else { Ok(()) }
    }

    /// Has old files compressed, unless that is being done.
    fn compress(&mut self) {
        if self.options.compression == Compression::None
            || self.compressor.as_ref().is_some_and(Compressor::is_running)
        {
            return;
        }
        match Compressor::start(&self.path, self.options.backups) {
            Ok(compressor) => self.compressor = Some(compressor),
            // They stay as they are until the next rotation.
            Err(error) => {
                self.other_errors += 1;
                self.last_error = Some(format!("compressing old files failed: {error}"));
            }
        }
    }

    fn note_error(&mut self, what: &str, errno: Errno) {
        self.other_errors += 1;
        self.last_error = Some(format!("{what}: {}", std::io::Error::from(errno)));
    }

    /// The log goes on in `open`.
    pub(super) fn replace(&mut self, open: Open) {
        let old = self.open.replace(open);
        // What is in the old file of a record that was cut there does not count here.
        self.backlog.skip = 0;
        self.end_torn_line();
        self.begin_account();
        if let Some(old) = old {
            self.seal(&old, false);
            if self.options.sync != SyncPolicy::None {
                self.sync(&old);
            }
        }
    }

    /// Notes in the file, which was just opened, where our account begins.
    pub(super) fn begin_account(&mut self) {
        let (log, before) = (self.log, self.written);
        let Some(open) = self.open.as_mut().filter(|open| open.kind == FileType::RegularFile) else { return };
        (open.from, open.before) = (open.size, before);
        // Where there are no attributes, the counters have to do.
        let account = FileAccount { log, from: open.size, before, here: None, is_last: false };
        let _stored = account.store(&open.fd);
    }

    /// Notes in the file what of the log is in it, once that is all.
    pub(super) fn seal(&self, open: &Open, is_last: bool) {
        if open.kind == FileType::RegularFile {
            let here = Some(each(self.written, open.before, account::Sums::minus));
            let (log, from, before) = (self.log, open.from, open.before);
            let _stored = FileAccount { log, from, before, here, is_last }.store(&open.fd);
        }
    }

    /// Brings the file, and the names in its directory, to the disk.
    pub(super) fn sync(&mut self, open: &Open) {
        if open.kind != FileType::RegularFile {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let names = rustix::fs::open(directory(&self.path), flags, Mode::empty());
        let synced = rustix::fs::fsync(&open.fd).and_then(|()| rustix::fs::fsync(names?));
        if let Err(errno) = synced {
            self.note_error("synchronising the file failed", errno);
        }
    }
}
