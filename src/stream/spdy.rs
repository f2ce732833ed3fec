//! SPDY/3.1 (draft-mbelshe-httpbis-spdy-00 and its 3.1 successor) as far as
//! Kubernetes speaks it. No I/O: bytes in, events out, and frames to send.
//!
//! What Go's spdystream, the other side of every conversation here, does and does
//! not do (github.com/moby/spdystream v0.5.1):
//!
//! * It never sends `WINDOW_UPDATE` and does not understand one. A sender that kept
//!   to the windows would stop after 64 KiB for ever, so there are no windows: the
//!   connection's own flow control holds both sides back.
//! * Only the client opens streams; it waits for a `SYN_REPLY`, whose headers nobody
//!   reads. So we never have headers to send, and need no compressor: a block
//!   without headers is a constant. That saves 260 KiB for each connection.
//! * It stops reading at a `GOAWAY`. So we send none: streams are closed one by one.
//!
//! Data is handed out as it comes, whatever the length of its frame; a control
//! frame must be there as a whole, and is bounded.

mod dictionary;

use flate2::{Decompress, FlushDecompress, Status};

use super::error::Violation;
use super::websocket::Step;
use crate::limits::{SPDY_CONTROL_BYTES_MAX, SPDY_HEADER_BYTES_MAX};
use dictionary::{DICTIONARY_ID, dictionary};

/// Bytes of every frame's header.
pub const HEAD_BYTES: usize = 8;

/// The most that one data frame holds: its length has 24 bits.
pub const DATA_BYTES_MAX: usize = (1 << 24) - 1;

const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is refused (section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// It cannot be.
    ProtocolError = 1,
    /// Not this one, or not so many.
    RefusedStream = 3,
}

/// More of what a side has to say on a stream follows, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It follows.
    No,
    /// This was all (`FLAG_FIN`).
    Yes,
}

/// The headers that a stream was opened with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Value of the header `name`, in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Section 2.6.10: a count, then name and value, each after its length.
    fn parse(mut block: &[u8]) -> Option<Self> {
        let count = take_u32(&mut block)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut block)?;
            headers.push((name.to_ascii_lowercase(), take_text(&mut block)?));
        }
        Some(Self(headers))
    }
}

fn take_u32(block: &mut &[u8]) -> Option<u32> {
    let (number, rest) = block.split_first_chunk()?;
    *block = rest;
    Some(u32::from_be_bytes(*number))
}

fn take_text(block: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_u32(block)?).ok()?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A new stream; to be answered with a reply or a reset.
    Open {
        /// Its number: odd, and greater than all before.
        stream: u32,
        /// What it is for.
        headers: Headers,
        /// The client will send nothing on it.
        last: Last,
    },
    /// Bytes of a stream.
    Data {
        /// Whose; maybe one that was never opened.
        stream: u32,
        /// The next of them.
        bytes: &'a [u8],
        /// They are its last.
        last: Last,
    },
    /// A stream is over in both directions.
    Reset(u32),
    /// To be answered with the same.
    Ping(u32),
    /// The client is leaving.
    GoAway,
}

#[derive(Debug)]
struct Data {
    stream: u32,
    left: u32,
    last: Last,
}

/// Takes a client's bytes apart.
#[derive(Debug)]
pub struct Decoder {
    data: Option<Data>,
    inflater: Decompress,
    greatest: u32,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { data: None, inflater: Decompress::new(true), greatest: 0 }
    }
}

impl Decoder {
    /// Makes the next step.
    ///
    /// # Errors
    /// [`Violation`] if a client may not send that; the connection is then of no
    /// use any more.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Step<Event<'a>>, Violation> {
        if self.data.is_some() {
            return Ok(self.data(input));
        }
        let Some(([a, b, c, d, flags, length @ ..], rest)) = input.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(Step::MORE);
        };
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
        let word = u32::from_be_bytes([*a, *b, *c, *d]);
        let last = if flags & FLAG_FIN == 0 { Last::No } else { Last::Yes };
        if word & 0x8000_0000 == 0 {
            if length == 0 {
                let event = Some(Event::Data { stream: word, bytes: &[], last });
                return Ok(Step { consumed: HEAD_BYTES, event });
            }
            self.data = Some(Data { stream: word, left: length, last });
            return Ok(Step { consumed: HEAD_BYTES, event: None });
        }
        if (a & 0x7f, *b) != (0, 3) {
            return Err(Violation("a SPDY frame of another version than 3"));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > SPDY_CONTROL_BYTES_MAX {
            return Err(Violation("a SPDY control frame is too long"));
        }
        let Some(payload) = rest.get(..length) else { return Ok(Step::MORE) };
        let event = self.control(u16::from_be_bytes([*c, *d]), payload, last)?;
        Ok(Step { consumed: HEAD_BYTES + length, event })
    }

    fn data<'a>(&mut self, input: &'a [u8]) -> Step<Event<'a>> {
        let Some(data) = &mut self.data else { return Step::MORE };
        let count = usize::try_from(data.left).unwrap_or(usize::MAX).min(input.len());
        if count == 0 {
            return Step::MORE;
        }
        data.left = data.left.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        let (stream, is_over, last) = (data.stream, data.left == 0, data.last);
        if is_over {
            self.data = None;
        }
        let last = if is_over { last } else { Last::No };
        let bytes = input.split_at(count).0;
        Step { consumed: count, event: Some(Event::Data { stream, bytes, last }) }
    }

    fn control<'a>(
        &mut self,
        kind: u16,
        mut payload: &[u8],
        last: Last,
    ) -> Result<Option<Event<'a>>, Violation> {
        let short = || Violation("a SPDY control frame is too short");
        let mut number = || take_u32(&mut payload).map(|number| number & 0x7fff_ffff).ok_or_else(short);
        Ok(match kind {
            SYN_STREAM => {
                let stream = number()?;
                let _associated = number()?;
                let block = payload.get(2..).ok_or_else(short)?;
                let headers = self.headers(block)?;
                if stream % 2 == 0 || stream <= self.greatest {
                    return Err(Violation("a SPDY stream has a number that is not its turn"));
                }
                self.greatest = stream;
                Some(Event::Open { stream, headers, last })
            }
            HEADERS => {
                let stream = number()?;
                // Nobody has a use for them, but the decompressor must see every block.
                self.headers(payload)?;
                Some(Event::Data { stream, bytes: &[], last })
            }
            SYN_REPLY => return Err(Violation("a SPDY reply to a stream that was not opened")),
            RST_STREAM => Some(Event::Reset(number()?)),
            PING => Some(Event::Ping(take_u32(&mut payload).ok_or_else(short)?)),
            GOAWAY => Some(Event::GoAway),
            // SETTINGS, WINDOW_UPDATE, and what a server may ignore.
            _ => None,
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, Violation> {
        let plain = self.inflate(block)?;
        Headers::parse(&plain).ok_or(Violation("the headers of a SPDY stream cannot be read"))
    }

    /// All blocks of a connection are one zlib stream.
    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Violation> {
        const BAD: Violation = Violation("the headers of a SPDY stream cannot be decompressed");
        let mut plain = vec![0; SPDY_HEADER_BYTES_MAX];
        let mut length = 0;
        loop {
            let (before_in, before_out) = (self.inflater.total_in(), self.inflater.total_out());
            let space = plain.get_mut(length..).unwrap_or_default();
            let outcome = self.inflater.decompress(block, space, FlushDecompress::Sync);
            let taken = usize::try_from(self.inflater.total_in() - before_in).map_err(|_| BAD)?;
            let given = usize::try_from(self.inflater.total_out() - before_out).map_err(|_| BAD)?;
            block = block.get(taken..).ok_or(BAD)?;
            length += given;
            match outcome {
                Ok(Status::StreamEnd) => return Err(BAD),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    self.inflater.set_dictionary(&dictionary()).map_err(|_| BAD)?;
                    continue;
                }
                Err(_) => return Err(BAD),
            }
            if length == plain.len() {
                return Err(Violation("the headers of a SPDY stream are too long"));
            }
            if block.is_empty() {
                plain.truncate(length);
                return Ok(plain);
            }
            if taken == 0 && given == 0 {
                return Err(BAD);
            }
        }
    }
}

/// Makes the frames that a server sends.
#[derive(Debug, Default)]
pub struct Encoder {
    has_replied: bool,
}

impl Encoder {
    /// Accepts a stream: a reply without headers.
    pub fn reply(&mut self, out: &mut Vec<u8>, stream: u32) {
        // RFC 1950: deflate with a 32 KiB window, a dictionary, and the check bits for that.
        let begin: &[u8] = if self.has_replied { &[] } else { &[0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2] };
        self.has_replied = true;
        // RFC 1951, section 3.2.4: a stored block of four bytes, the number 0; then an empty one, which
        // ends a flush.
        const NO_HEADERS: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        put_control(out, SYN_REPLY, 4 + begin.len() + NO_HEADERS.len());
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(begin);
        out.extend_from_slice(&NO_HEADERS);
    }
}

/// The header of a data frame of `length` bytes, at most [`DATA_BYTES_MAX`].
pub fn put_data_head(out: &mut Vec<u8>, stream: u32, last: Last, length: usize) {
    out.extend_from_slice(&stream.to_be_bytes());
    out.push(if last == Last::Yes { FLAG_FIN } else { 0 });
    put_length(out, length);
}

/// Answers a ping.
pub fn put_ping(out: &mut Vec<u8>, id: u32) {
    put_control(out, PING, 4);
    out.extend_from_slice(&id.to_be_bytes());
}

/// Ends a stream in both directions.
pub fn put_reset(out: &mut Vec<u8>, stream: u32, reason: ResetReason) {
    put_control(out, RST_STREAM, 8);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&(reason as u32).to_be_bytes());
}

fn put_control(out: &mut Vec<u8>, kind: u16, length: usize) {
    out.extend_from_slice(&[0x80, 3]);
    out.extend_from_slice(&kind.to_be_bytes());
    out.push(0);
    put_length(out, length);
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length.min(DATA_BYTES_MAX)).unwrap_or(0);
    out.extend_from_slice(&length.to_be_bytes()[1..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    /// A client: it compresses, as Go's does.
    struct Client {
        deflater: Compress,
        bytes: Vec<u8>,
    }

    impl Client {
        fn new() -> Self {
            let mut deflater = Compress::new(Compression::best(), true);
            deflater.set_dictionary(&dictionary()).unwrap();
            Self { deflater, bytes: Vec::new() }
        }

        fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
            let mut plain = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            let mut block = Vec::with_capacity(plain.len() + 1000);
            self.deflater.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
            put_control(&mut self.bytes, SYN_STREAM, 10 + block.len());
            self.bytes.extend_from_slice(&stream.to_be_bytes());
            self.bytes.extend_from_slice(&[0; 6]);
            self.bytes.extend_from_slice(&block);
        }

        fn data(&mut self, stream: u32, last: Last, bytes: &[u8]) {
            put_data_head(&mut self.bytes, stream, last, bytes.len());
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// What a stream says that arrives in portions, each data frame as one text.
    fn decode(stream: &[u8], portion: usize) -> Result<Vec<String>, Violation> {
        let mut decoder = Decoder::default();
        let (mut buffer, mut said, mut data) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in stream.chunks(portion.max(1)) {
            buffer.extend_from_slice(chunk);
            let mut start = 0;
            loop {
                let step = decoder.next(&buffer[start..])?;
                match step.event {
                    None if step.consumed == 0 => break,
                    None => {}
                    Some(Event::Data { stream, bytes, last }) => {
                        data.extend_from_slice(bytes);
                        if decoder.data.is_none() {
                            said.push(format!("{stream} {last:?} {data:?}"));
                            data.clear();
                        }
                    }
                    Some(other) => said.push(format!("{other:?}")),
                }
                start += step.consumed;
            }
            buffer.drain(..start);
        }
        Ok(said)
    }

    #[test]
    fn a_conversation() {
        let mut client = Client::new();
        client.open(1, &[("streamtype", "error"), ("port", "80")]);
        client.open(3, &[("Streamtype", "stdin")]);
        client.data(3, Last::No, b"hello");
        put_ping(&mut client.bytes, 7);
        client.data(3, Last::Yes, b"");
        put_reset(&mut client.bytes, 1, ResetReason::RefusedStream);
        put_control(&mut client.bytes, GOAWAY, 8);
        client.bytes.extend_from_slice(&[0; 8]);
        for portion in (1..client.bytes.len()).step_by(7) {
            let said = decode(&client.bytes, portion).unwrap();
            assert_eq!(said.len(), 7, "{said:?}");
            assert!(said[0].contains("\"streamtype\", \"error\""), "{said:?}");
            assert!(said[1].contains("\"streamtype\", \"stdin\""), "{said:?}");
            assert_eq!(said[2], format!("3 No {:?}", b"hello"));
            assert_eq!(said[3], "Ping(7)");
            assert_eq!(said[4], "3 Yes []");
            assert_eq!(said[5..], ["Reset(1)", "GoAway"]);
        }
    }

    #[test]
    fn our_replies_are_a_zlib_stream() {
        let mut out = Vec::new();
        let mut encoder = Encoder::default();
        encoder.reply(&mut out, 1);
        let first = out.len();
        encoder.reply(&mut out, 3);
        let mut decoder = Decoder::default();
        for frame in [&out[..first], &out[first..]] {
            assert_eq!(decoder.headers(&frame[12..]).unwrap(), Headers::default());
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut client = Client::new();
        client.open(1, &[("a", &"0".repeat(100_000))]);
        assert!(client.bytes.len() < SPDY_CONTROL_BYTES_MAX);
        assert!(decode(&client.bytes, 1000).is_err());
    }

    #[test]
    fn streams_have_numbers_in_order() {
        for numbers in [[2, 4], [3, 1], [1, 1], [0, 1]] {
            let mut client = Client::new();
            for number in numbers {
                client.open(number, &[]);
            }
            assert!(decode(&client.bytes, 1000).is_err(), "{numbers:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn headers_and_data_survive_any_portions(
            names in prop::collection::vec(("[a-z]{1,20}", ".{0,40}"), 0..6),
            data in prop::collection::vec(any::<u8>(), 0..2000), portion in 1usize..3000,
        ) {
            let mut client = Client::new();
            let pairs = names.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<Vec<_>>();
            for stream in [1, 3, 5] {
                client.open(stream, &pairs);
                client.data(stream, Last::Yes, &data);
            }
            let said = decode(&client.bytes, portion).unwrap();
            let headers = Headers(names.to_vec());
            let open = format!("{:?}", Event::Open { stream: 5, headers, last: Last::No });
            prop_assert_eq!(&said[4], &open);
            prop_assert_eq!(&said[5], &format!("5 Yes {data:?}"));
        }

        #[test]
        fn garbage_is_taken_or_refused(
            garbage in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..12, portion in 1usize..50,
        ) {
            let mut stream = Vec::new();
            put_control(&mut stream, u16::from(kind), garbage.len());
            stream.extend_from_slice(&garbage);
            stream.extend_from_slice(&garbage);
            let _outcome = decode(&stream, portion);
        }
    }
}
