//! What the keeper holds over a monitor's death: descriptors by name, and the
//! exit statuses of its children. Tables of a fixed size, in memory that is
//! reserved at the start and touched only when it is used.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::link::ChildExit;
use crate::limits::{KEPT_EXITS_MAX, KEPT_FDS_MAX, KEPT_NAME_BYTES_MAX};

/// Which monitor something was told to: the first is 1, so 0 is none.
pub(super) type Generation = u32;

/// A name of at most [`KEPT_NAME_BYTES_MAX`] bytes, in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    bytes: [u8; KEPT_NAME_BYTES_MAX],
    length: usize,
}

impl Name {
    /// `name`, which the link has checked; what is too long would be cut.
    pub(super) fn new(name: &str) -> Self {
        let name = &name[..name.floor_char_boundary(KEPT_NAME_BYTES_MAX)];
        let mut bytes = [0; KEPT_NAME_BYTES_MAX];
        for (slot, byte) in bytes.iter_mut().zip(name.as_bytes()) {
            *slot = *byte;
        }
        Self { bytes, length: name.len() }
    }

    /// The name.
    pub(super) fn as_str(&self) -> &str {
        // Made from a str and cut at a character's border: the default cannot occur.
        str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Kept {
    name: Name,
    fd: OwnedFd,
    told: Generation,
}

#[derive(Debug)]
struct Exit {
    exit: ChildExit,
    told: Generation,
}

/// The table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Everything that is held.
#[derive(Debug)]
pub(super) struct Held {
    fds: Vec<Kept>,
    exits: Vec<Exit>,
}

impl Held {
    /// Nothing yet, and room for all there may ever be.
    pub(super) fn new() -> Self {
        Self { fds: Vec::with_capacity(KEPT_FDS_MAX), exits: Vec::with_capacity(KEPT_EXITS_MAX) }
    }

    /// Whether there is nothing to lose.
    pub(super) fn is_empty(&self) -> bool {
        self.fds.is_empty() && self.exits.is_empty()
    }

    /// Holds `fd`, in place of what had the name before. `by` knows it.
    pub(super) fn keep(&mut self, name: &str, fd: OwnedFd, by: Generation) -> Result<(), Full> {
        if let Some(kept) = self.fds.iter_mut().find(|kept| kept.name.as_str() == name) {
            kept.fd = fd;
            kept.told = by;
            return Ok(());
        }
        if self.fds.len() == KEPT_FDS_MAX {
            return Err(Full);
        }
        self.fds.push(Kept { name: Name::new(name), fd, told: by });
        Ok(())
    }

    /// Closes what has that name, if anything has.
    pub(super) fn forget(&mut self, name: &str) {
        if let Some(index) = self.fds.iter().position(|kept| kept.name.as_str() == name) {
            self.fds.swap_remove(index);
        }
    }

    /// Whether another status has room. If not, its process stays a zombie, which keeps it as well.
    pub(super) fn has_room_for_exit(&self) -> bool {
        self.exits.len() < KEPT_EXITS_MAX
    }

    /// Remembers a status that no monitor knows yet.
    pub(super) fn remember(&mut self, exit: ChildExit) -> Result<(), Full> {
        if !self.has_room_for_exit() {
            return Err(Full);
        }
        self.exits.push(Exit { exit, told: 0 });
        Ok(())
    }

    /// Forgets the oldest status of `pid` that `by` was told: the number may
    /// have been another process's since.
    pub(super) fn seen(&mut self, pid: u32, by: Generation) {
        if let Some(index) = self.exits.iter().position(|e| e.exit.pid == pid && e.told == by) {
            self.exits.remove(index);
        }
    }

    /// Calls `tell` with each descriptor that `monitor` does not know, until it fails.
    pub(super) fn tell_fds<E>(
        &mut self,
        monitor: Generation,
        mut tell: impl FnMut(&str, BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for kept in self.fds.iter_mut().filter(|kept| kept.told != monitor) {
            tell(kept.name.as_str(), kept.fd.as_fd())?;
            kept.told = monitor;
        }
        Ok(())
    }

    /// Calls `tell` with each status that `monitor` does not know, the oldest first, until it fails.
    pub(super) fn tell_exits<E>(
        &mut self,
        monitor: Generation,
        mut tell: impl FnMut(ChildExit) -> Result<(), E>,
    ) -> Result<(), E> {
        for exit in self.exits.iter_mut().filter(|exit| exit.told != monitor) {
            tell(exit.exit)?;
            exit.told = monitor;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::link::Ended;
    use super::*;
    use std::fs::File;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn exit(pid: u32, code: u8) -> ChildExit {
        ChildExit { pid, how: Ended::Code(code), at_ns: 1 }
    }

    fn names(held: &mut Held, monitor: Generation) -> Vec<String> {
        let mut names = Vec::new();
        held.tell_fds(monitor, |name, _| {
            names.push(name.to_owned());
            Ok::<(), ()>(())
        })
        .unwrap();
        names
    }

    fn codes(held: &mut Held, monitor: Generation) -> Vec<u8> {
        let mut codes = Vec::new();
        held.tell_exits(monitor, |exit| {
            if let Ended::Code(code) = exit.how {
                codes.push(code);
            }
            Ok::<(), ()>(())
        })
        .unwrap();
        codes
    }

    #[test]
    fn each_monitor_is_told_everything_once_but_what_it_kept_itself() {
        let mut held = Held::new();
        held.keep("a", null(), 1).unwrap();
        held.keep("b", null(), 1).unwrap();
        assert_eq!(names(&mut held, 1), [""; 0]);
        assert_eq!(names(&mut held, 2), ["a", "b"]);
        assert_eq!(names(&mut held, 2), [""; 0]);
        held.forget("a");
        held.forget("a");
        held.keep("b", null(), 2).unwrap();
        assert_eq!(names(&mut held, 3), ["b"]);
    }

    #[test]
    fn telling_goes_on_where_it_failed() {
        let mut held = Held::new();
        for name in ["a", "b", "c"] {
            held.keep(name, null(), 1).unwrap();
        }
        let mut room = 1;
        let stopped = held.tell_fds(2, |_, _| {
            room -= 1;
            if room < 0 { Err(()) } else { Ok(()) }
        });
        assert_eq!(stopped, Err(()));
        assert_eq!(names(&mut held, 2), ["b", "c"]);
    }

    #[test]
    fn statuses_are_kept_until_seen_by_a_monitor_that_was_told() {
        let mut held = Held::new();
        held.remember(exit(7, 1)).unwrap();
        held.seen(7, 1);
        assert_eq!(codes(&mut held, 1), [1], "not told yet, so it cannot have been seen");
        held.remember(exit(7, 2)).unwrap();
        held.seen(7, 1);
        assert_eq!(codes(&mut held, 1), [2], "the same number again is another process");
        assert_eq!(codes(&mut held, 2), [2]);
        held.seen(7, 2);
        assert!(held.is_empty());
    }

    #[test]
    fn tables_end_at_their_limits_and_never_move() {
        let mut held = Held::new();
        let before = held.exits.as_ptr();
        for pid in 0..u32::try_from(KEPT_EXITS_MAX).unwrap() {
            held.remember(exit(pid, 0)).unwrap();
        }
        assert_eq!(held.remember(exit(1, 0)), Err(Full));
        assert_eq!(held.exits.as_ptr(), before);

        let fd = null();
        for number in 0..KEPT_FDS_MAX {
            // One descriptor is enough for the table: the others share its number's lifetime.
            held.keep(&format!("n{number}"), fd.try_clone().unwrap(), 1).unwrap();
        }
        assert_eq!(held.keep("one more", fd.try_clone().unwrap(), 1), Err(Full));
        held.keep("n7", fd, 1).expect("a name that is there already is replaced");
    }

    #[test]
    fn names_of_the_full_length_survive() {
        let name = "é".repeat(KEPT_NAME_BYTES_MAX / 2);
        assert_eq!(Name::new(&name).as_str(), name);
    }
}
