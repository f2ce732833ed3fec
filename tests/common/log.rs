//! A reader of CRI logs that shares no code with the writer under test.

use std::fs;
use std::path::Path;

/// The payload of a container's log, by stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Times of the records, as they stand there.
    pub stamps: Vec<String>,
}

impl Log {
    /// Reads a log file; a record that is not one fails the test.
    pub fn read(path: &Path) -> Self {
        let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut log = Self::default();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let fields: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
            let [stamp, stream, tag, payload] = fields[..] else {
                panic!("no CRI record: {:?}", String::from_utf8_lossy(line))
            };
            let stamp = String::from_utf8_lossy(stamp).into_owned();
            assert!(is_stamp(&stamp), "no time: {stamp:?}");
            let payload = match tag {
                b"F" => payload,
                b"P" => payload.strip_suffix(b"\n").unwrap_or(payload),
                _ => panic!("no tag: {:?}", String::from_utf8_lossy(line)),
            };
            match stream {
                b"stdout" => log.stdout.extend_from_slice(payload),
                b"stderr" => log.stderr.extend_from_slice(payload),
                _ => panic!("no stream: {:?}", String::from_utf8_lossy(line)),
            }
            log.stamps.push(stamp);
        }
        log
    }
}

/// RFC 3339 with nanoseconds in UTC: 2006-01-02T15:04:05.000000000Z, or +00:00.
fn is_stamp(text: &str) -> bool {
    let digits_at = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let marks = [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':'), (19, '.')];
    digits_at(0..4)
        && digits_at(20..29)
        && marks.iter().all(|(at, mark)| text.chars().nth(*at) == Some(*mark))
        && ["Z", "+00:00"].contains(&text.get(29..).unwrap_or(""))
}
