//! The format of docker's json-file driver, one object per line:
//!
//! ```text
//! {"log":"a whole line\n","stream":"stdout","time":"2026-11-23T01:02:03.123456789Z"}
//! ```
//!
//! A piece of a line that goes on has no `\n` at the end of `log`; nothing else
//! marks it, as with docker.
//!
//! JSON text is Unicode and container output need not be. Bytes that are not
//! UTF-8 become U+FFFD in `log`, as with docker; such a record has the payload's
//! exact bytes (with the newline) once more in `raw`, in base64, which docker's
//! readers skip. So nothing is lost, and well-formed output costs nothing more. A
//! line that is cut because of its length may be cut within a character; then both
//! pieces have a `raw`.

use super::batch::{Batch, Gather, SCRATCH_BYTES};
use super::split::{Record, Tag};
use super::stamp::STAMP_BYTES;
use crate::limits::LOG_RECORD_BYTES_MAX;

const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Most bytes that one record can take in the log: every byte a `\u00xx`, its
/// base64, and what is around them.
#[must_use]
pub fn encoded_bytes_max(record: &Record) -> usize {
    record.payload_bytes() * 6 + (record.payload_bytes() + 3) * 4 / 3 + 128
}

/// A record of the greatest length fits into what a driver can gather.
const _: () = assert!(LOG_RECORD_BYTES_MAX * 6 + (LOG_RECORD_BYTES_MAX + 3) * 4 / 3 + 128 <= SCRATCH_BYTES);

/// Something that takes the bytes of a record: a buffer, or a counter.
trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Gather {
    fn put(&mut self, bytes: &[u8]) {
        self.copy(bytes);
    }
}

impl Sink for usize {
    fn put(&mut self, bytes: &[u8]) {
        *self += bytes.len();
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Gathers one record.
pub fn encode(batch: &Batch<'_>, record: &Record, gather: &mut Gather) {
    render(batch, record, gather);
}

/// Bytes of one record in the log.
#[must_use]
pub fn encoded_bytes(batch: &Batch<'_>, record: &Record) -> usize {
    let mut bytes = 0;
    render(batch, record, &mut bytes);
    bytes
}

fn render(batch: &Batch<'_>, record: &Record, out: &mut impl Sink) {
    let (held, chunk) = batch.payload(record);
    // A character may lie across the two parts, so they are joined; that happens once per read at most.
    let joined = if held.is_empty() { None } else { Some([held, chunk].concat()) };
    let payload = joined.as_deref().unwrap_or(chunk);
    out.put(b"{\"log\":\"");
    let exact = escape(payload, out);
    if record.tag == Tag::Full {
        out.put(b"\\n");
    }
    out.put(b"\",");
    if exact == Exact::No {
        out.put(b"\"raw\":\"");
        base64(payload, record.tag, out);
        out.put(b"\",");
    }
    out.put(b"\"stream\":\"");
    out.put(batch.channel.name().as_bytes());
    end(batch.stamp, out);
}

fn end(stamp: &[u8; STAMP_BYTES], out: &mut impl Sink) {
    out.put(b"\",\"time\":\"");
    out.put(stamp);
    out.put(b"\"}\n");
}

#[derive(PartialEq, Eq)]
enum Exact {
    Yes,
    No,
}

/// The inside of a JSON string. Runs of plain bytes are copied at once.
fn escape(bytes: &[u8], out: &mut impl Sink) -> Exact {
    let mut exact = Exact::Yes;
    for part in bytes.utf8_chunks() {
        let text = part.valid().as_bytes();
        let mut from = 0;
        for (at, &byte) in text.iter().enumerate() {
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            out.put(text.get(from..at).unwrap_or_default());
            escape_byte(byte, out);
            from = at + 1;
        }
        out.put(text.get(from..).unwrap_or_default());
        if !part.invalid().is_empty() {
            exact = Exact::No;
            // One for each byte, like Go's encoder.
            part.invalid().iter().for_each(|_| out.put(REPLACEMENT));
        }
    }
    exact
}

fn escape_byte(byte: u8, out: &mut impl Sink) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.put(b"\\\""),
        b'\\' => out.put(b"\\\\"),
        b'\n' => out.put(b"\\n"),
        b'\r' => out.put(b"\\r"),
        b'\t' => out.put(b"\\t"),
        other => {
            let (high, low) = (usize::from(other >> 4), usize::from(other & 15));
            out.put(&[b'\\', b'u', b'0', b'0', HEX[high], HEX[low]]);
        }
    }
}

/// RFC 4648 with padding.
fn base64(payload: &[u8], tag: Tag, out: &mut impl Sink) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let newline: &[u8] = if tag == Tag::Full { b"\n" } else { b"" };
    let mut bytes = payload.iter().chain(newline).copied();
    while let Some(first) = bytes.next() {
        let (second, third) = (bytes.next(), bytes.next());
        let word =
            u32::from(first) << 16 | u32::from(second.unwrap_or(0)) << 8 | u32::from(third.unwrap_or(0));
        let digit = |shift: u32| DIGITS[(word >> shift & 63) as usize];
        let third_digit = if second.is_some() { digit(6) } else { b'=' };
        let fourth_digit = if third.is_some() { digit(0) } else { b'=' };
        out.put(&[digit(18), digit(12), third_digit, fourth_digit]);
    }
}

/// Appends `text` as the inside of a JSON string.
pub(super) fn escape_text(text: &str, out: &mut Vec<u8>) {
    let _exact = escape(text.as_bytes(), out);
}

#[cfg(test)]
mod tests {
    use super::super::batch::Channel;
    use super::super::split::Place;
    use super::super::stamp::Stamp;
    use super::*;
    use proptest::prelude::*;

    const STAMP: &Stamp = b"2026-11-23T01:02:03.123456789Z";

    fn line(held: &[u8], chunk: &[u8], tag: Tag) -> String {
        let record = Record { held: held.len(), start: 0, end: chunk.len(), tag, place: Place::First };
        let batch = Batch {
            channel: Channel::Stderr,
            stamp: STAMP,
            held,
            chunk,
            records: std::slice::from_ref(&record),
        };
        let mut out = Vec::new();
        render(&batch, &record, &mut out);
        assert_eq!(out.len(), encoded_bytes(&batch, &record));
        assert!(out.len() <= encoded_bytes_max(&record));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_are_dockers() {
        assert_eq!(
            line(b"a \"", b"\tb\\\x01\r", Tag::Full),
            concat!(
                r#"{"log":"a \"\tb\\\u0001\r\n","stream":"stderr","#,
                r#""time":"2026-11-23T01:02:03.123456789Z"}"#,
                "\n"
            )
        );
        assert!(line(b"", b"  indented", Tag::Partial).starts_with(r#"{"log":"  indented","stream""#));
    }

    #[test]
    fn character_across_two_reads_is_one_character() {
        let euro = "€".as_bytes();
        assert!(line(&euro[..1], &euro[1..], Tag::Full).starts_with(r#"{"log":"€\n","stream""#));
    }

    #[test]
    fn bytes_that_are_not_text_are_kept_in_raw() {
        let line = line(b"", b"a\xffb", Tag::Full);
        assert!(line.starts_with("{\"log\":\"a\u{fffd}b\\n\",\"raw\":\"Yf9iCg==\","), "{line}");
    }

    proptest! {
        #[test]
        fn every_record_is_json_and_text_comes_back(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let value: serde_json::Value = serde_json::from_str(&line(b"", &payload, Tag::Partial)).unwrap();
            let log = value["log"].as_str().unwrap();
            match std::str::from_utf8(&payload) {
                Ok(text) => {
                    prop_assert_eq!(log, text);
                    prop_assert!(value.get("raw").is_none());
                }
                Err(_) => prop_assert!(value["raw"].is_string()),
            }
        }
    }
}
