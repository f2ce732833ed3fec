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

/// Gathers one record.
pub fn encode(batch: &Batch<'_>, record: &Record, gather: &mut Gather) {
    let (held, chunk) = batch.payload(record);
    if held.is_empty() && chunk.len() <= COPY_BYTES_MAX {
        return gather.line(&head(batch, record.tag), chunk);
    }
    gather.copy(&head(batch, record.tag));
    gather.payload(batch, record);
    gather.byte(b'\n');
}

/// The 40 bytes before the payload; one copy is cheaper than four.
fn head(batch: &Batch<'_>, tag: Tag) -> [u8; OVERHEAD_BYTES - 1] {
    let mut head = *b"0000-00-00T00:00:00.000000000Z stdxxx P ";
    head[..STAMP_BYTES].copy_from_slice(batch.stamp);
    head[STAMP_BYTES + 1..STAMP_BYTES + 7].copy_from_slice(batch.channel.name().as_bytes());
    if tag == Tag::Full {
        head[STAMP_BYTES + 8] = b'F';
    }
    head
}

/// Bytes of one record in the log.
#[must_use]
pub fn encoded_bytes(record: &Record) -> usize {
    record.payload_bytes() + OVERHEAD_BYTES
}
