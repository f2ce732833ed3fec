//! The gap record: bytes that are missing in a log, said in the log itself, where
//! they are missing and in its own format.
//!
//! ```text
//! CRI      2026-11-23T01:02:03.123456789Z stdout F:gap podinit: 4096 bytes in 12 lines of stdout are missing: No space left on device
//! JSON     {"log":"podinit: 4096 bytes … \n","stream":"stdout","time":"…","gap":{"bytes":4096,"lines":12,"reason":"…"}}
//! journal  MESSAGE=podinit: 4096 bytes …  PODINIT_GAP_BYTES=4096  PODINIT_GAP_LINES=12  PODINIT_GAP_REASON=…
//! ```
//!
//! It is an ordinary record of the stream that lost them, so that every reader
//! shows it. What tells it from output that looks the same is the second tag (the
//! CRI format allows more of them after a colon, and readers look at the first
//! only), the `gap` object, or the fields: none of them can be written by a
//! container.
//!
//! Pure: text in, text out.

use serde::{Deserialize, Serialize};

use super::batch::Channel;
use super::json;
use super::stamp::Stamp;
use crate::limits::LOG_GAP_REASON_BYTES_MAX;

/// The tag field of a gap record in the CRI format.
pub const CRI_TAGS: &str = "F:gap";

/// Most bytes of a gap record in any file format: the reason twice, every byte of
/// it escaped, and what is around it.
pub const ENCODED_BYTES_MAX: usize = 12 * LOG_GAP_REASON_BYTES_MAX + 512;

/// Bytes that a log lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The stream that lost them.
    pub channel: Channel,
    /// Payload bytes, newlines not counted.
    pub bytes: u64,
    /// Lines, each counted where it ends.
    pub lines: u64,
    reason: String,
}

/// The `gap` object of a JSON record.
#[derive(Debug, Serialize, Deserialize)]
struct Counts {
    bytes: u64,
    lines: u64,
    reason: String,
}

/// What of a JSON record is looked at.
#[derive(Debug, Deserialize)]
struct JsonRecord {
    stream: String,
    gap: Counts,
}

impl Gap {
    /// `reason` is for a person. It becomes one line of at most
    /// [`LOG_GAP_REASON_BYTES_MAX`] bytes.
    #[must_use]
    pub fn new(channel: Channel, bytes: u64, lines: u64, reason: &str) -> Self {
        Self { channel, bytes, lines, reason: one_line(reason) }
    }

    /// Why they are missing.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The text that people read; the same in every format, so that it can be
    /// searched for.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { channel, bytes, lines, reason } = self;
        let name = channel.name();
        format!("podinit: {bytes} bytes in {lines} lines of {name} are missing: {reason}")
    }

    /// The record in the CRI format, with its newline.
    #[must_use]
    pub fn to_cri(&self, stamp: &Stamp) -> Vec<u8> {
        let mut line = stamp.to_vec();
        let (name, sentence) = (self.channel.name(), self.sentence());
        line.extend_from_slice(format!(" {name} {CRI_TAGS} {sentence}\n").as_bytes());
        line
    }

    /// Reads what [`Self::to_cri`] wrote, from the record's fields. `None` for any
    /// other record.
    #[must_use]
    pub fn from_cri(channel: Channel, tags: &[u8], payload: &[u8]) -> Option<Self> {
        if tags != CRI_TAGS.as_bytes() {
            return None;
        }
        let text = std::str::from_utf8(payload).ok()?.strip_prefix("podinit: ")?;
        let (bytes, text) = text.split_once(" bytes in ")?;
        let (lines, text) = text.split_once(" lines of ")?;
        let reason = text.strip_prefix(channel.name())?.strip_prefix(" are missing: ")?;
        Some(Self::new(channel, bytes.parse().ok()?, lines.parse().ok()?, reason))
    }

    /// The record in the JSON format, with its newline.
    #[must_use]
    pub fn to_json(&self, stamp: &Stamp) -> Vec<u8> {
        let mut line = b"{\"log\":\"".to_vec();
        json::escape_text(&self.sentence(), &mut line);
        let (bytes, lines, name) = (self.bytes, self.lines, self.channel.name());
        line.extend_from_slice(format!("\\n\",\"stream\":\"{name}\",\"time\":\"").as_bytes());
        line.extend_from_slice(stamp);
        line.extend_from_slice(
            format!("\",\"gap\":{{\"bytes\":{bytes},\"lines\":{lines},\"reason\":\"").as_bytes(),
        );
        json::escape_text(&self.reason, &mut line);
        line.extend_from_slice(b"\"}}\n");
        line
    }

    /// Reads what [`Self::to_json`] wrote, from a line with or without its newline.
    /// `None` for any other line.
    #[must_use]
    pub fn from_json(line: &[u8]) -> Option<Self> {
        // Most records are no gaps, and are not to be parsed for nothing. A container cannot write
        // this: within a string the quotes are escaped.
        memchr::memmem::find(line, b"\"gap\":{")?;
        let record: JsonRecord = serde_json::from_slice(line).ok()?;
        let channel = Channel::ALL.into_iter().find(|channel| channel.name() == record.stream)?;
        let Counts { bytes, lines, reason } = record.gap;
        Some(Self::new(channel, bytes, lines, &reason))
    }

    /// Name and value of the fields that a journal entry has beside its message.
    #[must_use]
    pub fn journal_fields(&self) -> [(&'static str, String); 3] {
        [
            ("PODINIT_GAP_BYTES", self.bytes.to_string()),
            ("PODINIT_GAP_LINES", self.lines.to_string()),
            ("PODINIT_GAP_REASON", self.reason.clone()),
        ]
    }
}

/// Without control characters, of which a newline would end the record, and not
/// longer than allowed.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for letter in text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }) {
        if line.len() + letter.len_utf8() > LOG_GAP_REASON_BYTES_MAX {
            break;
        }
        line.push(letter);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAMP: &Stamp = b"2026-11-23T01:02:03.123456789Z";

    fn from_cri(line: &[u8]) -> Option<Gap> {
        let line = line.strip_suffix(b"\n").unwrap();
        let fields: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
        let channel = if fields[1] == b"stdout" { Channel::Stdout } else { Channel::Stderr };
        Gap::from_cri(channel, fields[2], fields[3])
    }

    #[test]
    fn formats_are_as_documented() {
        let gap = Gap::new(Channel::Stderr, 7, 2, "disk\nfull \"now\"");
        assert_eq!(
            String::from_utf8(gap.to_cri(STAMP)).unwrap(),
            "2026-11-23T01:02:03.123456789Z stderr F:gap podinit: 7 bytes in 2 lines of stderr are missing: \
             disk full \"now\"\n"
        );
        assert_eq!(
            String::from_utf8(gap.to_json(STAMP)).unwrap(),
            concat!(
                r#"{"log":"podinit: 7 bytes in 2 lines of stderr are missing: disk full \"now\"\n","#,
                r#""stream":"stderr","time":"2026-11-23T01:02:03.123456789Z","#,
                r#""gap":{"bytes":7,"lines":2,"reason":"disk full \"now\""}}"#,
                "\n"
            )
        );
        assert_eq!(gap.journal_fields()[2], ("PODINIT_GAP_REASON", "disk full \"now\"".to_owned()));
    }

    #[test]
    fn output_that_looks_like_a_gap_is_none() {
        let sentence = Gap::new(Channel::Stdout, 7, 2, "x").sentence();
        assert_eq!(Gap::from_cri(Channel::Stdout, b"F", sentence.as_bytes()), None);
        assert_eq!(Gap::from_cri(Channel::Stderr, b"F:gap", sentence.as_bytes()), None, "another stream's");
        assert_eq!(Gap::from_cri(Channel::Stdout, b"F:gap", b"podinit: -1 bytes in 2 lines of"), None);
        let printed = br#"{"log":"\"gap\":{\"bytes\":1}\n","stream":"stdout","time":"x"}"#;
        assert_eq!(Gap::from_json(printed), None);
    }

    fn gaps() -> impl Strategy<Value = Gap> {
        (any::<bool>(), any::<u64>(), any::<u64>(), any::<String>()).prop_map(
            |(stdout, bytes, lines, reason)| {
                Gap::new(if stdout { Channel::Stdout } else { Channel::Stderr }, bytes, lines, &reason)
            },
        )
    }

    proptest! {
        #[test]
        fn every_gap_is_read_back(gap in gaps()) {
            prop_assert!(gap.reason().len() <= LOG_GAP_REASON_BYTES_MAX);
            let (cri, json) = (gap.to_cri(STAMP), gap.to_json(STAMP));
            for line in [&cri, &json] {
                prop_assert!(line.len() <= ENCODED_BYTES_MAX);
                prop_assert_eq!(memchr::memchr(b'\n', line), Some(line.len() - 1));
            }
            prop_assert_eq!(Gap::from_json(&json), Some(gap.clone()));
            prop_assert_eq!(from_cri(&cri), Some(gap));
        }

        #[test]
        fn any_bytes_are_a_gap_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _gap = Gap::from_json(&bytes);
            if let Some(gap) = Gap::from_cri(Channel::Stdout, b"F:gap", &bytes) {
                prop_assert_eq!(from_cri(&gap.to_cri(STAMP)), Some(gap));
            }
        }
    }
}
