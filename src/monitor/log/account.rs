//! What a log holds, counted where it is written, so that it can be checked where
//! it is read.
//!
//! Every file of a log carries its part of the account in an extended attribute,
//! [`ATTRIBUTE`]: what was written into the log before this file, and, from the
//! moment that the file is complete, what is in it. So files that lie somewhere
//! when their pod is long gone can still be audited, one by one and as a chain. An
//! attribute goes where its file is renamed to and is seen by no reader of logs;
//! one more file in an engine's log directory, or one more record in the log, would
//! be. It costs one system call for each file.
//!
//! Where the file system has no such attributes (an NFS before 4.2, a tmpfs before
//! Linux 6.6), only the counters of the monitor are left.

use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use super::batch::Channel;
use super::split::Tag;

/// The name of the attribute. Its value is JSON: [`FileAccount`].
pub const ATTRIBUTE: &str = "user.podinit.log";

/// Bytes of its value: a dozen numbers and their names.
const VALUE_BYTES_MAX: usize = 1024;

/// An amount of records of one channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Records, gap records not counted.
    pub records: u64,
    /// Their payload in bytes, without newlines.
    pub bytes: u64,
    /// Lines that they end.
    pub lines: u64,
}

impl Sums {
    /// One record more.
    pub fn add_record(&mut self, payload: usize, tag: Tag) {
        self.records += 1;
        self.bytes += payload as u64;
        self.lines += u64::from(tag == Tag::Full);
    }

    /// What a container wrote to get these: payload and newlines.
    #[must_use]
    pub fn output_bytes(self) -> u64 {
        self.bytes.saturating_add(self.lines)
    }

    /// Both together. Saturates: an attribute can say anything.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            bytes: self.bytes.saturating_add(other.bytes),
            lines: self.lines.saturating_add(other.lines),
        }
    }

    /// What is here and not in `other`, in every respect at least 0.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_sub(other.records),
            bytes: self.bytes.saturating_sub(other.bytes),
            lines: self.lines.saturating_sub(other.lines),
        }
    }
}

/// One of each channel, by [`Channel::index`].
pub type Both = [Sums; 2];

/// Channel by channel.
#[must_use]
pub fn each(one: Both, other: Both, join: impl Fn(Sums, Sums) -> Sums) -> Both {
    Channel::ALL.map(|channel| {
        let at = channel.index();
        join(one[at], other[at])
    })
}

/// The account of one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAccount {
    /// Which sequence of files it belongs to: when the log was opened, in
    /// nanoseconds since 1970. A monitor that takes over opens it anew.
    pub log: u64,
    /// Where in the file the account begins: what was in it already when it was
    /// opened, in bytes.
    pub from: u64,
    /// What the files of the sequence before this one hold.
    pub before: Both,
    /// What this one holds; not known while it is written.
    pub here: Option<Both>,
    /// The container's output ended in this file.
    pub is_last: bool,
}

impl FileAccount {
    /// Puts it into the attribute of the file `fd`. False if that cannot be done.
    pub fn store(&self, fd: impl AsFd) -> bool {
        let Ok(value) = serde_json::to_vec(self) else { return false };
        rustix::fs::fsetxattr(fd, ATTRIBUTE, &value, XattrFlags::empty()).is_ok()
    }

    /// Takes it from the attribute of the file `fd`, if that has one.
    #[must_use]
    pub fn load(fd: impl AsFd) -> Option<Self> {
        let mut value = [0_u8; VALUE_BYTES_MAX];
        let length = rustix::fs::fgetxattr(fd, ATTRIBUTE, &mut value[..]).ok()?;
        serde_json::from_slice(value.get(..length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greatest_account_fits_and_goes_with_the_file() {
        let greatest = [Sums { records: u64::MAX, bytes: u64::MAX, lines: u64::MAX }; 2];
        let account = FileAccount {
            log: u64::MAX,
            from: u64::MAX,
            before: greatest,
            here: Some(greatest),
            is_last: false,
        };
        assert!(serde_json::to_vec(&account).unwrap().len() <= VALUE_BYTES_MAX);
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        let file = std::fs::File::create(&old).unwrap();
        assert_eq!(FileAccount::load(&file), None);
        if account.store(&file) {
            std::fs::rename(&old, &new).unwrap();
            assert_eq!(FileAccount::load(std::fs::File::open(&new).unwrap()), Some(account));
        }
        rustix::fs::fsetxattr(&file, ATTRIBUTE, b"{\"log\":", XattrFlags::empty()).ok();
        assert_eq!(FileAccount::load(&file), None, "an attribute can say anything");
        assert_eq!(greatest[0].plus(greatest[1]), greatest[0]);
    }
}
