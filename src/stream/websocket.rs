//! WebSocket frames (RFC 6455, sections 5 and 4.2.2) as a server sees them. No
//! I/O: bytes in, events out, and frame headers to put before bytes.
//!
//! A message is never gathered: its parts are handed out as they come, so that a
//! frame of any length costs no memory. Only control frames, 125 bytes at most,
//! must be there as a whole.

use sha1::{Digest, Sha1};

use super::error::Violation;

/// The longest header of a frame that we send: no mask.
pub const HEAD_BYTES_MAX: usize = 10;

/// RFC 6455, section 5.5.
const CONTROL_BYTES_MAX: usize = 125;

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes of a binary message.
    Data {
        /// The next of them; may be empty at the beginning or the end.
        bytes: &'a [u8],
        /// They are the message's first.
        begins: bool,
        /// They are its last.
        ends: bool,
    },
    /// To be answered with a pong of the same bytes.
    Ping(&'a [u8]),
    /// An answer that was not asked for.
    Pong,
    /// The client has sent all that it will send.
    Close,
}

/// What was made of some input.
#[derive(Debug, PartialEq, Eq)]
pub struct Step<E> {
    /// Bytes that are done with. 0 means, always: come again with more behind them.
    pub consumed: usize,
    /// What they said.
    pub event: Option<E>,
}

impl<E> Step<E> {
    /// The input is not enough.
    pub(super) const MORE: Self = Self { consumed: 0, event: None };
}

/// Kind of a frame (section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// Binary message.
    Binary = 2,
    /// End of the conversation.
    Close = 8,
    /// Answer to a ping.
    Pong = 10,
}

#[derive(Debug)]
struct Payload {
    left: u64,
    mask: [u8; 4],
    begins: bool,
    is_final: bool,
}

/// Takes a client's bytes apart.
#[derive(Debug, Default)]
pub struct Decoder {
    payload: Option<Payload>,
    /// A message has begun and has not ended.
    in_message: bool,
}

/// A frame's header, as far as its payload's place.
struct Head {
    opcode: u8,
    is_final: bool,
    mask: [u8; 4],
    length: u64,
    bytes: usize,
}

impl Head {
    fn parse(input: &[u8]) -> Result<Option<Self>, Violation> {
        let [first, second, rest @ ..] = input else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Violation("a WebSocket frame uses an extension that was not agreed on"));
        }
        if second & 0x80 == 0 {
            return Err(Violation("a WebSocket frame of a client is not masked"));
        }
        let (length, more) = match second & 0x7f {
            126 => match rest.first_chunk::<2>() {
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 2),
                None => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(length) => (u64::from_be_bytes(*length), 8),
                None => return Ok(None),
            },
            short => (u64::from(short), 0),
        };
        let Some(mask) = rest.get(more..).and_then(|rest| rest.first_chunk::<4>()) else { return Ok(None) };
        let (opcode, is_final) = (first & 0x0f, first & 0x80 != 0);
        Ok(Some(Self { opcode, is_final, mask: *mask, length, bytes: 2 + more + 4 }))
    }
}

impl Decoder {
    /// Makes the next step. `input` is unmasked in place as far as it is consumed.
    ///
    /// # Errors
    /// [`Violation`] if a client may not send that; the connection is then of no
    /// use any more.
    pub fn next<'a>(&mut self, input: &'a mut [u8]) -> Result<Step<Event<'a>>, Violation> {
        if self.payload.is_some() {
            return Ok(self.part(input));
        }
        let Some(head) = Head::parse(input)? else { return Ok(Step::MORE) };
        if head.opcode >= 8 {
            return Self::control(&head, input);
        }
        let begins = match (head.opcode, self.in_message) {
            (0, true) => false,
            (2, false) => true,
            (1, false) => return Err(Violation("a text message; messages must be binary")),
            (0..=2, _) => return Err(Violation("a part of a message is out of place")),
            _ => return Err(Violation("a WebSocket frame of an unknown kind")),
        };
        let Head { length, mask, is_final, bytes: consumed, .. } = head;
        self.in_message = !is_final;
        if length == 0 {
            let event = Some(Event::Data { bytes: &[], begins, ends: is_final });
            return Ok(Step { consumed, event });
        }
        self.payload = Some(Payload { left: length, mask, begins, is_final });
        Ok(Step { consumed, event: None })
    }

    fn control<'a>(head: &Head, input: &'a mut [u8]) -> Result<Step<Event<'a>>, Violation> {
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        if length > CONTROL_BYTES_MAX || !head.is_final {
            return Err(Violation("a WebSocket control frame is too long or in parts"));
        }
        let Some(bytes) = input.get_mut(head.bytes..head.bytes + length) else { return Ok(Step::MORE) };
        unmask(bytes, head.mask);
        let event = match head.opcode {
            8 => Event::Close,
            9 => Event::Ping(bytes),
            10 => Event::Pong,
            _ => return Err(Violation("a WebSocket frame of an unknown kind")),
        };
        Ok(Step { consumed: head.bytes + length, event: Some(event) })
    }

    /// The next bytes of a message.
    fn part<'a>(&mut self, input: &'a mut [u8]) -> Step<Event<'a>> {
        let Some(payload) = &mut self.payload else { return Step::MORE };
        let count = usize::try_from(payload.left).unwrap_or(usize::MAX).min(input.len());
        if count == 0 {
            return Step::MORE;
        }
        let bytes = input.split_at_mut(count).0;
        unmask(bytes, payload.mask);
        payload.mask.rotate_left(count % 4);
        payload.left -= count as u64;
        let begins = std::mem::replace(&mut payload.begins, false);
        let is_over = payload.left == 0;
        let ends = is_over && payload.is_final;
        if is_over {
            self.payload = None;
        }
        Step { consumed: count, event: Some(Event::Data { bytes, begins, ends }) }
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let mut words = bytes.chunks_exact_mut(4);
    let key = u32::from_ne_bytes(mask);
    for word in &mut words {
        let masked = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        word.copy_from_slice(&(masked ^ key).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= key;
    }
}

/// The header of a whole message, or control frame, of `length` bytes.
pub fn put_head(out: &mut Vec<u8>, opcode: Opcode, length: usize) {
    out.push(0x80 | opcode as u8);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// A close frame: a code of RFC 6455, section 7.4.1, and a word to a person.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    put_head(out, Opcode::Close, 2 + end);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..end]);
}

/// `Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key` (section 4.2.2).
#[must_use]
pub fn accept_key(key: &str) -> String {
    let digest =
        Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    base64(&digest)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let digit = (word >> (18 - 6 * n)) & 63;
            text.push(if n > group.len() { '=' } else { char::from(DIGITS[digit as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client's frame.
    fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_head(&mut bytes, Opcode::Binary, payload.len());
        bytes[0] = first;
        bytes[1] |= 0x80;
        bytes.extend_from_slice(&mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }

    /// Messages and pings of a stream that arrives in portions.
    fn decode(stream: &[u8], portion: usize) -> Result<Vec<Vec<u8>>, Violation> {
        let mut decoder = Decoder::default();
        let (mut buffer, mut said, mut message) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in stream.chunks(portion.max(1)) {
            buffer.extend_from_slice(chunk);
            let mut start = 0;
            loop {
                let step = decoder.next(&mut buffer[start..])?;
                match step.event {
                    Some(Event::Data { bytes, begins, ends }) => {
                        assert!(!begins || message.is_empty());
                        message.extend_from_slice(bytes);
                        if ends {
                            said.push(std::mem::take(&mut message));
                        }
                    }
                    Some(Event::Ping(bytes)) => said.push([b"ping ", bytes].concat()),
                    Some(Event::Close) => said.push(b"close".to_vec()),
                    Some(Event::Pong) => said.push(b"pong".to_vec()),
                    None if step.consumed == 0 => break,
                    None => {}
                }
                start += step.consumed;
            }
            buffer.drain(..start);
        }
        Ok(said)
    }

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_ping_between_the_parts_of_a_message() {
        let stream = [
            frame(0x02, [1, 2, 3, 4], b"one "),
            frame(0x89, [9, 9, 9, 9], b"hi"),
            frame(0x00, [5, 6, 7, 8], b""),
            frame(0x80, [0, 0, 0, 0], b"two"),
            frame(0x88, [7, 7, 7, 7], &[3, 232]),
        ]
        .concat();
        for portion in 1..stream.len() {
            let said = decode(&stream, portion).unwrap();
            assert_eq!(said, [b"ping hi".to_vec(), b"one two".to_vec(), b"close".to_vec()]);
        }
    }

    #[test]
    fn what_a_client_may_not_send() {
        let unmasked = vec![0x82, 0];
        let cases = [
            ("unmasked", unmasked),
            ("text", frame(0x81, [0; 4], b"x")),
            ("extension", frame(0xc2, [0; 4], b"x")),
            ("continuation of nothing", frame(0x80, [0; 4], b"x")),
            ("ping in parts", frame(0x09, [0; 4], b"x")),
            ("long ping", frame(0x89, [0; 4], &[0; 126])),
            ("unknown control", frame(0x8b, [0; 4], b"")),
            ("unknown data", frame(0x83, [0; 4], b"")),
            ("message in message", [frame(2, [0; 4], b"x"), frame(2, [0; 4], b"y")].concat()),
        ];
        for (name, stream) in cases {
            assert!(decode(&stream, stream.len()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_frame_of_exabytes_is_handed_out_as_it_comes() {
        let mut stream = vec![0x82, 0xff];
        stream.extend_from_slice(&u64::MAX.to_be_bytes());
        stream.extend_from_slice(&[0; 4]);
        let mut decoder = Decoder::default();
        assert_eq!(decoder.next(&mut stream).unwrap().consumed, 14);
        let mut more = [7; 100];
        let step = decoder.next(&mut more).unwrap().event;
        assert_eq!(step, Some(Event::Data { bytes: &[7; 100], begins: true, ends: false }));
    }

    #[test]
    fn every_way_to_write_a_length() {
        let messages = [0, 1, 125, 126, 65_535, 65_536].map(|length| vec![b'x'; length]);
        let stream = messages.iter().flat_map(|m| frame(0x82, [1, 2, 3, 4], m)).collect::<Vec<_>>();
        assert_eq!(decode(&stream, 10_000).unwrap(), messages);
    }

    #[test]
    fn a_close_reason_fits_and_stays_utf_8() {
        let mut out = Vec::new();
        put_close(&mut out, 1000, &"ü".repeat(100));
        assert_eq!(out.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_survive_any_mask_any_length_and_any_portions(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1000), 1..4),
            mask in any::<[u8; 4]>(), portion in 1usize..1200,
        ) {
            let stream = messages.iter().flat_map(|m| frame(0x82, mask, m)).collect::<Vec<_>>();
            prop_assert_eq!(decode(&stream, portion).unwrap(), messages);
        }

        #[test]
        fn garbage_is_taken_or_refused(stream in prop::collection::vec(any::<u8>(), 0..500), portion in 1usize..50) {
            let _outcome = decode(&stream, portion);
        }
    }
}
