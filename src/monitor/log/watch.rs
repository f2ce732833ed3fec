//! Noticing that a log grows or is rotated.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::reader::ReadError;
use super::rotate::directory;

/// Notices when the log changes.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: OwnedFd,
    path: PathBuf,
}

impl Watch {
    pub(super) fn new(path: &Path) -> Result<Self, ReadError> {
        let failed = |errno: Errno| ReadError::Watch { path: path.to_owned(), source: errno.into() };
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(failed)?;
        let names = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&inotify, directory(path), names).map_err(failed)?;
        Ok(Self { inotify, path: path.to_owned() })
    }

    /// Watches a file too, under whatever name it has by now. (The files that were
    /// followed before stay watched: nothing is written to them.)
    pub(super) fn file(&self, file: impl AsFd) -> Result<(), ReadError> {
        let name = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        inotify::add_watch(&self.inotify, name, inotify::WatchFlags::MODIFY)
            .map(|_| ())
            .map_err(|errno| ReadError::Watch { path: self.path.clone(), source: errno.into() })
    }

    /// Waits for a change, or until `stop` is readable.
    pub(super) fn wait(&self, stop: &impl AsFd) -> Result<(), ReadError> {
        let failed = |errno: Errno| ReadError::Watch { path: self.path.clone(), source: errno.into() };
        loop {
            let mut fds = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let [_, stop] = fds;
            if self.take_changes() || !stop.revents().is_empty() {
                return Ok(());
            }
        }
    }

    /// Whether one of the changes so far concerns the log.
    fn take_changes(&self) -> bool {
        let name = self.path.file_name();
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut space);
        let mut concerns = false;
        while let Ok(event) = events.next() {
            // Events of the file itself come without a name; events may also have been lost.
            let named = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            concerns |= named.is_none() || named == name;
        }
        concerns
    }
}

pub(super) fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let polled = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()));
    let [fd] = fds;
    polled.is_ok() && !fd.revents().is_empty()
}
