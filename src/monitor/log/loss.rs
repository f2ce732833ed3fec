//! What could not be kept, and how that is said in a log.

use super::batch::Channel;

/// Bytes that a log lost, for its gap record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The stream that lost them.
    pub channel: Channel,
    /// Payload bytes, newlines not counted.
    pub bytes: u64,
    /// Lines, each counted where it ends.
    pub lines: u64,
    /// Why, for a person.
    pub reason: String,
}

impl Loss {
    /// The sentence of a gap record; the same in every format, so that it can be
    /// searched for.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { channel, bytes, lines, reason } = self;
        // The reason must not end the record.
        let reason = reason.replace(['\n', '\r'], " ");
        format!("[podinit: {bytes} bytes and {lines} lines of {} lost: {reason}]", channel.name())
    }
}
