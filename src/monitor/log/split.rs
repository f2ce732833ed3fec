//! Cutting a byte stream into log records. Pure: what was held from earlier
//! reads and a chunk go in, ranges come out.
//!
//! The rule depends on nothing but the bytes, so any way of reading the same
//! stream gives the same records:
//!
//! * A record ends at a newline, which is not part of it: [`Tag::Full`].
//! * A line of more than [`LOG_RECORD_BYTES_MAX`] bytes is cut after every that
//!   many bytes into [`Tag::Partial`] records; its last piece is `Full` and never
//!   empty. A line of exactly that length is one `Full` record.
//! * Bytes after the last newline are held until their line ends. At the end of
//!   the stream they become one `Partial` record, because that is what they are:
//!   a reader adds a newline after `Full` and nothing after `Partial`, so only
//!   `Partial` gives back the bytes that were written. (conmon and containerd do
//!   the same; conmon 2.2.0 tried an extra `Full` record and broke its readers.)

use crate::limits::LOG_RECORD_BYTES_MAX;

/// Whether a record ends its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tag {
    /// The record is the last piece, or all, of a line that ended with a newline.
    Full,
    /// The line goes on in the next record, or the stream ended within it.
    Partial,
}

/// Whether a record begins its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The first, or only, piece of its line.
    First,
    /// A later piece of a line that is too long for one record.
    Later,
}

/// One record, as ranges: its payload is the first `held` bytes of what was held
/// from earlier chunks (none or all of it), then `chunk[start..end]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Bytes from earlier chunks.
    pub held: usize,
    /// Where the payload starts in the chunk.
    pub start: usize,
    /// Where it ends, without the newline.
    pub end: usize,
    /// Whether it ends its line.
    pub tag: Tag,
    /// Whether it begins its line.
    pub place: Place,
}

impl Record {
    /// Payload bytes, without a newline.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.held + self.end - self.start
    }
}

/// What is kept of one stream between two chunks: at most
/// [`LOG_RECORD_BYTES_MAX`] bytes, and no heap at all between two lines.
#[derive(Debug, Default)]
pub struct Splitter {
    held: Vec<u8>,
    within_line: bool,
}

/// How far [`Splitter::split`] came. Give it back to [`Splitter::commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of the chunk that the records cover.
    pub consumed: usize,
    /// All records of the chunk were found; what is left of it is to be held.
    pub exhausted: bool,
    /// At least one record was found, so what was held is used up.
    found: bool,
    within_line: bool,
}

impl Splitter {
    /// The start of a line, from earlier chunks.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Whether a part of a line has become a record and the rest has not.
    #[must_use]
    pub fn is_within_line(&self) -> bool {
        self.within_line
    }

    /// Replaces `records` by the records that end in `chunk`, up to its capacity.
    /// Nothing changes here until [`Self::commit`].
    pub fn split(&self, chunk: &[u8], records: &mut Vec<Record>) -> Cut {
        records.clear();
        let mut held = self.held.len();
        let mut within_line = self.within_line;
        let mut at = 0;
        while records.len() < records.capacity() {
            let rest = chunk.get(at..).unwrap_or_default();
            let room = LOG_RECORD_BYTES_MAX - held;
            // One byte more than fits: the newline of a line of the greatest length.
            let window = rest.get(..=room).unwrap_or(rest);
            let (length, tag) = match memchr::memchr(b'\n', window) {
                Some(length) => (length, Tag::Full),
                None if window.len() > room => (room, Tag::Partial),
                None => {
                    let found = !records.is_empty();
                    return Cut { consumed: at, exhausted: true, found, within_line };
                }
            };
            let place = if within_line { Place::Later } else { Place::First };
            records.push(Record { held, start: at, end: at + length, tag, place });
            within_line = tag == Tag::Partial;
            at += length + usize::from(tag == Tag::Full);
            held = 0;
        }
        Cut { consumed: at, exhausted: false, found: !records.is_empty(), within_line }
    }

    /// Forgets what the records of `cut` covered and, if the chunk is exhausted,
    /// holds the rest of it.
    pub fn commit(&mut self, chunk: &[u8], cut: Cut) {
        self.within_line = cut.within_line;
        if cut.found {
            // The allocation goes too: a stream between two lines holds no heap.
            self.held = Vec::new();
        }
        if cut.exhausted {
            self.held.extend_from_slice(chunk.get(cut.consumed..).unwrap_or_default());
        }
    }

    /// The end of the stream: the record for what is held, if anything is.
    #[must_use]
    pub fn last(&self) -> Option<Record> {
        let place = if self.within_line { Place::Later } else { Place::First };
        let record = Record { held: self.held.len(), start: 0, end: 0, tag: Tag::Partial, place };
        (record.held > 0).then_some(record)
    }

    /// Forgets what is held, once the record of [`Self::last`] is written.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Records with their bytes, as a driver would see them.
    fn records(reads: &[&[u8]], capacity: usize) -> Vec<(Vec<u8>, Tag, Place)> {
        let mut splitter = Splitter::default();
        let mut batch = Vec::with_capacity(capacity);
        let mut all = Vec::new();
        let take = |splitter: &Splitter, record: &Record, chunk: &[u8]| {
            let mut payload = splitter.held()[..record.held].to_vec();
            payload.extend_from_slice(&chunk[record.start..record.end]);
            assert_eq!(payload.len(), record.payload_bytes());
            (payload, record.tag, record.place)
        };
        for read in reads {
            let mut rest = *read;
            loop {
                let cut = splitter.split(rest, &mut batch);
                all.extend(batch.iter().map(|record| take(&splitter, record, rest)));
                splitter.commit(rest, cut);
                if cut.exhausted {
                    break;
                }
                rest = &rest[cut.consumed..];
            }
            assert!(splitter.held().len() <= LOG_RECORD_BYTES_MAX);
        }
        all.extend(splitter.last().iter().map(|record| take(&splitter, record, &[])));
        splitter.clear();
        assert_eq!(splitter.last(), None);
        all
    }

    #[test]
    fn lines_around_the_greatest_length() {
        for (length, expected) in [
            (LOG_RECORD_BYTES_MAX - 1, vec![Tag::Full]),
            (LOG_RECORD_BYTES_MAX, vec![Tag::Full]),
            (LOG_RECORD_BYTES_MAX + 1, vec![Tag::Partial, Tag::Full]),
            (2 * LOG_RECORD_BYTES_MAX, vec![Tag::Partial, Tag::Full]),
            (2 * LOG_RECORD_BYTES_MAX + 1, vec![Tag::Partial, Tag::Partial, Tag::Full]),
        ] {
            let mut line = vec![b'x'; length];
            line.push(b'\n');
            let at_once = records(&[&line], 8);
            assert_eq!(at_once.iter().map(|r| r.1).collect::<Vec<_>>(), expected, "{length}");
            assert_eq!(at_once[0].2, Place::First);
            assert!(at_once[1..].iter().all(|r| r.2 == Place::Later));
            for cut in [1, LOG_RECORD_BYTES_MAX - 1, LOG_RECORD_BYTES_MAX, length - 1, length] {
                let (head, tail) = line.split_at(cut.min(length));
                assert_eq!(records(&[head, tail], 8), at_once, "{length} cut at {cut}");
            }
        }
    }

    #[test]
    fn empty_lines_are_records_and_an_empty_stream_has_none() {
        assert_eq!(records(&[b"\n\n"], 8).len(), 2);
        assert_eq!(records(&[b""], 8).len(), 0);
        assert_eq!(records(&[b"a", b"", b"b"], 8), [(b"ab".to_vec(), Tag::Partial, Place::First)]);
    }

    /// Streams of short and of very long lines.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..200),
            1 => (any::<u8>(), 0..3 * LOG_RECORD_BYTES_MAX).prop_map(|(byte, length)| vec![byte; length]),
        ];
        prop::collection::vec(line, 0..12).prop_map(|lines| lines.join(&b'\n'))
    }

    proptest! {
        #[test]
        fn any_split_into_reads_gives_the_same_records(
            stream in stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            capacity in 1..50_usize,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let reads: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(records(&reads, capacity), records(&[&stream], 4096));
        }

        #[test]
        fn records_give_back_the_stream(stream in stream()) {
            let mut back = Vec::new();
            for (payload, tag, _) in records(&[&stream], 7) {
                prop_assert!(payload.len() <= LOG_RECORD_BYTES_MAX);
                back.extend_from_slice(&payload);
                back.extend_from_slice(if tag == Tag::Full { b"\n" } else { b"" });
            }
            prop_assert_eq!(back, stream);
        }
    }
}
