//! The CRI log format, as kubelet, crictl and podman read it:
//!
//! ```text
//! 2026-11-23T01:02:03.123456789Z stdout F a whole line\n
//! 2026-11-23T01:02:03.123456789Z stderr P a piece of a line\n
//! ```
//!
//! Payload bytes are written as they are. No payload holds a newline, so a
//! newline always ends a record.
//!
//! Where bytes could not be kept, a gap record says so: see [`gap`](super::gap).

use super::batch::{Batch, COPY_BYTES_MAX, Gather};
use super::split::{Record, Tag};
use super::stamp::STAMP_BYTES;

/// ` stdout F ` and the newline.
const TAGS_BYTES: usize = 11;

/// Bytes that a record takes in the log beyond its payload.
pub const OVERHEAD_BYTES: usize = STAMP_BYTES + TAGS_BYTES;

/// What stands before a payload.
type Head = [u8; OVERHEAD_BYTES - 1];

/// Gathers the records of a batch, whose heads are all the same but for the tag.
#[derive(Debug)]
pub struct Encoder<'a> {
    batch: &'a Batch<'a>,
    full: Head,
    partial: Head,
}

impl<'a> Encoder<'a> {
    /// For the records of `batch`.
    #[must_use]
    pub fn new(batch: &'a Batch<'a>) -> Self {
        let mut partial = *b"0000-00-00T00:00:00.000000000Z stdxxx P ";
        partial[..STAMP_BYTES].copy_from_slice(batch.stamp);
        partial[STAMP_BYTES + 1..STAMP_BYTES + 7].copy_from_slice(batch.channel.name().as_bytes());
        let mut full = partial;
        full[STAMP_BYTES + 8] = b'F';
        Self { batch, full, partial }
    }

    /// Gathers one record.
    #[inline]
    pub fn encode(&self, record: &Record, gather: &mut Gather) {
        let head = if record.tag == Tag::Full { &self.full } else { &self.partial };
        let (held, chunk) = self.batch.payload(record);
        if held.is_empty() && chunk.len() <= COPY_BYTES_MAX {
            return gather.line(head, chunk);
        }
        gather.copy(head);
        gather.payload(self.batch, record);
        gather.byte(b'\n');
    }
}

/// Bytes of one record in the log.
#[must_use]
pub fn encoded_bytes(record: &Record) -> usize {
    record.payload_bytes() + OVERHEAD_BYTES
}
