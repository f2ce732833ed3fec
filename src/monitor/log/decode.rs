//! From a line of a log to the record that it is, in either file format: what
//! [`cri`](super::cri) and [`json`](super::json) write, and what other monitors do.
//!
//! Pure, and for bytes that anybody may have written.

use std::borrow::Cow;

use serde::Deserialize;

use super::batch::Channel;
use super::gap::Gap;
use super::split::Tag;
use super::stamp::{self, Timestamp};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was read from the container.
    pub time: Timestamp,
    /// Where it came from.
    pub channel: Channel,
    /// Whether it ends its line.
    pub tag: Tag,
    /// Its bytes.
    pub payload: Cow<'a, [u8]>,
    /// It is no output but says how much of it is missing here.
    pub gap: Option<Gap>,
}

/// What of a JSON record is looked at.
#[derive(Debug, Deserialize)]
struct JsonRecord<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow, default)]
    raw: Option<Cow<'a, str>>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

/// Decodes one record of either format, given without its newline. `None` if it is
/// none.
#[must_use]
pub fn decode(line: &[u8]) -> Option<Record<'_>> {
    // No time begins like this.
    if line.first() == Some(&b'{') { json(line) } else { cri(line) }
}

/// Other monitors' stamps (with an offset, with fewer digits) and further tags
/// after `P` or `F` are understood.
fn cri(line: &[u8]) -> Option<Record<'_>> {
    let (time, rest) = word(line)?;
    let (name, rest) = word(rest)?;
    let (tags, payload) = word(rest)?;
    let tag = match tags {
        [b'F'] | [b'F', b':', ..] => Tag::Full,
        [b'P'] | [b'P', b':', ..] => Tag::Partial,
        _ => return None,
    };
    let channel = channel(name)?;
    let gap = Gap::from_cri(channel, tags, payload);
    Some(Record { time: stamp::parse(time)?, channel, tag, payload: Cow::Borrowed(payload), gap })
}

fn json(line: &[u8]) -> Option<Record<'_>> {
    let record: JsonRecord<'_> = serde_json::from_slice(line).ok()?;
    let mut payload = match (record.raw, record.log) {
        (Some(raw), _) => Cow::Owned(base64(raw.as_bytes())?),
        (None, Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
        (None, Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
    };
    let tag = if payload.ends_with(b"\n") { Tag::Full } else { Tag::Partial };
    if tag == Tag::Full {
        payload = match payload {
            Cow::Borrowed(bytes) => Cow::Borrowed(bytes.strip_suffix(b"\n").unwrap_or(bytes)),
            Cow::Owned(mut bytes) => {
                bytes.pop();
                Cow::Owned(bytes)
            }
        };
    }
    let (channel, time) = (channel(record.stream.as_bytes())?, stamp::parse(record.time.as_bytes())?);
    Some(Record { time, channel, tag, payload, gap: Gap::from_json(line) })
}

fn channel(name: &[u8]) -> Option<Channel> {
    Channel::ALL.into_iter().find(|known| known.name().as_bytes() == name)
}

/// The time of a CRI record, of which perhaps only the beginning is given.
#[must_use]
pub fn leading_time(line: &[u8]) -> Option<Timestamp> {
    stamp::parse(word(line)?.0)
}

fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b' ', text)?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

/// RFC 4648, section 4, with padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let unpadded = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in unpadded.chunks(4) {
        let mut bits = 0_u32;
        for at in 0..4 {
            bits = bits << 6 | group.get(at).map_or(Some(0), |digit| sextet(*digit))?;
        }
        let [_, decoded @ ..] = bits.to_be_bytes();
        // Two digits are one byte, three are two, four are three.
        bytes.extend_from_slice(decoded.get(..group.len().checked_sub(1)?)?);
    }
    Some(bytes)
}

fn sextet(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use super::super::batch::{Batch, Gather};
    use super::super::split::Splitter;
    use super::super::stamp::Stamp;
    use super::super::{cri, json};
    use super::*;
    use proptest::prelude::*;

    const STAMP: &Stamp = b"2026-11-23T01:02:03.123456789Z";

    #[test]
    fn records_of_other_monitors_are_read_and_nonsense_is_not() {
        let conmon = decode(b"2026-11-23T02:02:03.123456789+01:00 stderr F a b ").unwrap();
        assert_eq!(
            (conmon.channel, conmon.tag, &*conmon.payload),
            (Channel::Stderr, Tag::Full, &b"a b "[..])
        );
        let tags = decode(b"2026-11-23T02:02:03Z stdout P:x ").unwrap();
        assert_eq!((tags.tag, &*tags.payload), (Tag::Partial, &b""[..]));
        let docker = br#"{"log":"a \u2028 \"b\"\n","stream":"stderr","attrs":{"x":"y"},"time":"2026-11-23T02:02:03.1Z"}"#;
        let docker = decode(docker).unwrap();
        assert_eq!((docker.tag, &*docker.payload), (Tag::Full, "a \u{2028} \"b\"".as_bytes()));
        for bad in [
            &b""[..],
            b"x",
            b"2026-11-23T02:02:03Z stdin F x",
            b"2026-11-23T02:02:03Z stdout X x",
            b"{",
            br#"{"log":"x","stream":"stdin","time":"2026-11-23T02:02:03Z"}"#,
            br#"{"log":"x","stream":"stdout","time":"now"}"#,
            br#"{"log":"x","raw":"!","stream":"stdout","time":"2026-11-23T02:02:03Z"}"#,
        ] {
            assert_eq!(decode(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn gap_records_are_told_from_output() {
        let gap = Gap::new(Channel::Stderr, 7, 2, "disk full");
        for line in [gap.to_cri(STAMP), gap.to_json(STAMP)] {
            let record = decode(line.strip_suffix(b"\n").unwrap()).unwrap();
            assert_eq!(record.gap.as_ref(), Some(&gap));
            assert_eq!((&*record.payload, record.tag), (gap.sentence().as_bytes(), Tag::Full));
        }
        let printed = format!("2026-11-23T01:02:03Z stderr F {}", gap.sentence());
        assert_eq!(decode(printed.as_bytes()).unwrap().gap, None);
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_decoded(
            output in prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..600),
        ) {
            let (mut splitter, mut records) = (Splitter::default(), Vec::with_capacity(1000));
            let cut = splitter.split(&output, &mut records);
            for as_json in [false, true] {
                let mut got = Vec::new();
                for record in &records {
                    let records = std::slice::from_ref(record);
                    let channel = Channel::Stdout;
                    let batch = Batch { channel, stamp: STAMP, held: &[], chunk: &output, records };
                    let (mut gather, mut line) = (Gather::default(), Vec::new());
                    if as_json { json::encode(&batch, record, &mut gather) } else { cri::Encoder::new(&batch).encode(record, &mut gather) }
                    gather.append_to(&mut line, &batch);
                    let decoded = decode(line.strip_suffix(b"\n").unwrap()).unwrap();
                    got.extend_from_slice(&decoded.payload);
                    got.extend_from_slice(if decoded.tag == Tag::Full { b"\n" } else { b"" });
                    prop_assert_eq!(decoded.gap, None);
                }
                prop_assert_eq!(&got[..], &output[..cut.consumed]);
            }
            splitter.commit(&output, cut);
        }

        #[test]
        fn any_bytes_are_a_record_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _record = decode(&bytes);
            let _record = decode(&[&b"{\"log\":\""[..], &bytes].concat());
            let _bytes = base64(&bytes);
        }
    }
}
