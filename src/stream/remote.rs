//! The remote command protocol: five channels over a WebSocket or over SPDY. No I/O.
//!
//! Over a WebSocket the first byte of a message is its channel; in v5 a message
//! `255, n` ends channel n. Over SPDY the client opens a stream for each channel.

use serde::Deserialize;

use super::error::{StreamError, Violation};
use super::request::{CommandVersion, Protocol};
use super::spdy::{self, Last, ResetReason};
use super::status::Outcome;
use super::websocket::{self, Opcode, Step, put_close};

/// A channel, with its number in WebSocket messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Input of the command.
    Stdin = 0,
    /// Its output, or its terminal's.
    Stdout = 1,
    /// Its other output.
    Stderr = 2,
    /// How it ended.
    Error = 3,
    /// Sizes of its terminal.
    Resize = 4,
}

/// Message of v5 that ends a channel.
const END_OF_CHANNEL: u8 = 255;

impl Channel {
    const ALL: [Self; 5] = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];

    /// By the header of a SPDY stream.
    fn of_stream(name: &str) -> Option<Self> {
        Some(match name {
            "stdin" => Self::Stdin,
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            "error" => Self::Error,
            "resize" => Self::Resize,
            _ => return None,
        })
    }
}

/// A set of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels(u8);

impl Channels {
    /// None but [`Channel::Error`], which every session has.
    pub const LEAST: Self = Self(1 << Channel::Error as u8);

    /// These and one more.
    #[must_use]
    pub fn and(self, channel: Channel) -> Self {
        Self(self.0 | 1 << channel as u8)
    }

    /// All of these but one.
    #[must_use]
    pub fn without(self, channel: Channel) -> Self {
        Self(self.0 & !(1 << channel as u8))
    }

    /// Whether `channel` is one of them.
    #[must_use]
    pub fn has(self, channel: Channel) -> bool {
        self.0 & 1 << channel as u8 != 0
    }
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Sizes come as JSON objects, one after the other, cut anywhere.
#[derive(Debug, Default)]
struct Sizes(Vec<u8>);

impl Sizes {
    /// More than any size needs; what is longer is none.
    const BYTES_MAX: usize = 256;

    /// The last size that is complete now. What is no size is skipped.
    fn push(&mut self, bytes: &[u8]) -> Option<Size> {
        let mut last = None;
        for byte in bytes {
            self.0.push(*byte);
            if *byte == b'}' {
                last = serde_json::from_slice(&self.0).ok().or(last);
                self.0.clear();
            } else if self.0.len() > Self::BYTES_MAX {
                self.0.clear();
            }
        }
        last
    }
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Input for the command.
    Input {
        /// The next bytes.
        bytes: &'a [u8],
        /// They are the last.
        last: Last,
    },
    /// The client's terminal has this size now.
    Resize(Size),
}

#[derive(Debug)]
enum Transport {
    WebSocket { decoder: websocket::Decoder, channel: Option<u8> },
    Spdy { decoder: Box<spdy::Decoder>, encoder: spdy::Encoder, streams: [u32; 5], opened: Channels },
}

/// One side of a session: what a client says, and what to say to it.
#[derive(Debug)]
pub struct Remote {
    version: CommandVersion,
    sizes: Sizes,
    transport: Transport,
}

impl Remote {
    /// A session in this protocol. `None` if the protocol is not one of remote commands.
    #[must_use]
    pub fn new(protocol: Protocol) -> Option<Self> {
        let (version, transport) = match protocol {
            Protocol::WebSocket(version) => {
                (version, Transport::WebSocket { decoder: websocket::Decoder::default(), channel: None })
            }
            Protocol::Spdy(version) => {
                let (decoder, encoder) = (Box::default(), spdy::Encoder::default());
                let (streams, opened) = ([0; 5], Channels(0));
                (version, Transport::Spdy { decoder, encoder, streams, opened })
            }
            Protocol::Forward | Protocol::TunnelledForward => return None,
        };
        Some(Self { version, sizes: Sizes::default(), transport })
    }

    /// Whether the client has opened all channels of `wanted` that it has to open.
    #[must_use]
    pub fn has_opened(&self, wanted: Channels) -> bool {
        let wanted = if self.version.has_resize() { wanted } else { wanted.without(Channel::Resize) };
        match &self.transport {
            Transport::WebSocket { .. } => true,
            Transport::Spdy { opened, .. } => opened.0 & wanted.0 == wanted.0,
        }
    }

    /// Makes the next step. What must be answered at once is put into `replies`.
    ///
    /// # Errors
    /// If the client is leaving, or has broken the protocol.
    pub fn receive<'a>(
        &mut self,
        input: &'a mut [u8],
        replies: &mut Vec<u8>,
    ) -> Result<Step<Event<'a>>, StreamError> {
        match self.transport {
            Transport::WebSocket { .. } => self.receive_websocket(input, replies),
            Transport::Spdy { .. } => self.receive_spdy(input, replies),
        }
    }

    fn receive_websocket<'a>(
        &mut self,
        input: &'a mut [u8],
        replies: &mut Vec<u8>,
    ) -> Result<Step<Event<'a>>, StreamError> {
        let Transport::WebSocket { decoder, channel } = &mut self.transport else { return Ok(Step::MORE) };
        let websocket::Step { consumed, event } = decoder.next(input)?;
        let bytes = match event {
            Some(websocket::Event::Data { bytes, begins, .. }) => {
                if begins {
                    *channel = None;
                }
                bytes
            }
            Some(websocket::Event::Ping(bytes)) => {
                websocket::put_head(replies, Opcode::Pong, bytes.len());
                replies.extend_from_slice(bytes);
                return Ok(Step { consumed, event: None });
            }
            Some(websocket::Event::Close) => return Err(StreamError::Gone),
            Some(websocket::Event::Pong) | None => return Ok(Step { consumed, event: None }),
        };
        let (number, bytes) = match (*channel, bytes.split_first()) {
            (Some(number), _) => (number, bytes),
            (None, Some((number, rest))) => (*channel.insert(*number), rest),
            (None, None) => return Ok(Step { consumed, event: None }),
        };
        let event = match number {
            0 if !bytes.is_empty() => Some(Event::Input { bytes, last: Last::No }),
            4 => self.sizes.push(bytes).map(Event::Resize),
            END_OF_CHANNEL if self.version == CommandVersion::V5 && bytes.first() == Some(&0) => {
                Some(Event::Input { bytes: &[], last: Last::Yes })
            }
            _ => None,
        };
        Ok(Step { consumed, event })
    }

    fn receive_spdy<'a>(
        &mut self,
        input: &'a mut [u8],
        replies: &mut Vec<u8>,
    ) -> Result<Step<Event<'a>>, StreamError> {
        let Transport::Spdy { decoder, encoder, streams, opened } = &mut self.transport else {
            return Ok(Step::MORE);
        };
        let Step { consumed, event } = decoder.next(input)?;
        let is = |channel: Channel, stream: u32| streams[channel as usize] == stream;
        let event = match event {
            Some(spdy::Event::Open { stream, headers, last }) => {
                match headers.get("streamtype").and_then(Channel::of_stream) {
                    Some(channel) if !opened.has(channel) => {
                        streams[channel as usize] = stream;
                        *opened = opened.and(channel);
                        encoder.reply(replies, stream);
                        let ends = channel == Channel::Stdin && last == Last::Yes;
                        ends.then_some(Event::Input { bytes: &[], last })
                    }
                    _ => {
                        spdy::put_reset(replies, stream, ResetReason::RefusedStream);
                        None
                    }
                }
            }
            Some(spdy::Event::Data { stream, bytes, last }) if is(Channel::Stdin, stream) => {
                Some(Event::Input { bytes, last })
            }
            Some(spdy::Event::Data { stream, bytes, .. }) if is(Channel::Resize, stream) => {
                self.sizes.push(bytes).map(Event::Resize)
            }
            Some(spdy::Event::Reset(stream)) => {
                let ended = is(Channel::Stdin, stream);
                for known in streams.iter_mut().filter(|known| **known == stream) {
                    *known = 0;
                }
                ended.then_some(Event::Input { bytes: &[], last: Last::Yes })
            }
            Some(spdy::Event::Ping(id)) => {
                spdy::put_ping(replies, id);
                None
            }
            Some(spdy::Event::GoAway) => return Err(StreamError::Gone),
            // Of another channel, or of one that is closed.
            Some(spdy::Event::Data { .. }) => None,
            None => return Ok(Step { consumed, event: None }),
        };
        Ok(Step { consumed, event })
    }

    /// Puts what goes before `length` bytes of `channel`. False if the client does
    /// not want to hear that channel.
    pub fn put_head(&self, out: &mut Vec<u8>, channel: Channel, length: usize) -> bool {
        match &self.transport {
            Transport::WebSocket { .. } => {
                websocket::put_head(out, Opcode::Binary, length + 1);
                out.push(channel as u8);
            }
            Transport::Spdy { streams, .. } => match streams[channel as usize] {
                0 => return false,
                stream => spdy::put_data_head(out, stream, Last::No, length),
            },
        }
        true
    }

    /// Puts the end of `channel`, where a channel can end before the session.
    pub fn put_end(&mut self, out: &mut Vec<u8>, channel: Channel) {
        if let Transport::Spdy { streams, .. } = &mut self.transport {
            match std::mem::take(&mut streams[channel as usize]) {
                0 => {}
                stream => spdy::put_data_head(out, stream, Last::Yes, 0),
            }
        }
    }

    /// Puts how the session ended, and the end of all that is open.
    pub fn put_last_words(&mut self, out: &mut Vec<u8>, outcome: &Outcome) {
        let message = outcome.message(self.version);
        if !message.is_empty() && self.put_head(out, Channel::Error, message.len()) {
            out.extend_from_slice(message.as_bytes());
        }
        for channel in Channel::ALL {
            self.put_end(out, channel);
        }
        if matches!(self.transport, Transport::WebSocket { .. }) {
            put_close(out, 1000, "");
        }
    }

    /// Puts why the session cannot go on, for a client that may still listen.
    pub fn put_complaint(&self, out: &mut Vec<u8>, violation: Violation) {
        if matches!(self.transport, Transport::WebSocket { .. }) {
            put_close(out, 1002, violation.0);
        }
    }

    /// Puts a sign of life that nobody has asked for and nobody answers: an answer
    /// would wait behind the client's own input. If the client is dead, its kernel
    /// answers with a reset.
    pub fn put_heartbeat(&self, out: &mut Vec<u8>) {
        match &self.transport {
            Transport::WebSocket { .. } => websocket::put_head(out, Opcode::Pong, 0),
            Transport::Spdy { streams, .. } => match streams[Channel::Error as usize] {
                0 => {}
                stream => spdy::put_data_head(out, stream, Last::No, 0),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame; the mask is zero.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        websocket::put_head(&mut bytes, Opcode::Binary, payload.len());
        bytes[1] |= 0x80;
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn events(version: CommandVersion, mut stream: Vec<u8>) -> Vec<String> {
        let mut remote = Remote::new(Protocol::WebSocket(version)).unwrap();
        let (mut start, mut said) = (0, Vec::new());
        loop {
            let step = remote.receive(&mut stream[start..], &mut Vec::new()).unwrap();
            start += step.consumed;
            match step.event {
                Some(event) => said.push(format!("{event:?}")),
                None if step.consumed == 0 => return said,
                None => {}
            }
        }
    }

    #[test]
    fn input_resize_and_the_end_of_input() {
        let stream = [
            frame(b"\0in"),
            frame(b""),
            frame(b"\0"),
            frame(b"\x04{\"Width\":80,\"Height\":24}\n"),
            frame(b"\x04{\"Width\":-1}"),
            frame(b"\x09unknown"),
            frame(&[255, 0]),
        ]
        .concat();
        let input = format!("{:?}", Event::Input { bytes: b"in", last: Last::No });
        let resize = "Resize(Size { width: 80, height: 24 })".to_owned();
        let end = "Input { bytes: [], last: Yes }".to_owned();
        assert_eq!(events(CommandVersion::V5, stream.clone()), [input.clone(), resize.clone(), end]);
        assert_eq!(events(CommandVersion::V4, stream), [input, resize]);
    }

    #[test]
    fn sizes_may_be_cut_anywhere_and_garbage_is_bounded() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.push(b"{\"Width\":1,\"Hei"), None);
        assert_eq!(sizes.push(b"ght\":2}\n{\"Width\":3,"), Some(Size { width: 1, height: 2 }));
        assert_eq!(sizes.push(b"\"Height\":4}"), Some(Size { width: 3, height: 4 }));
        assert_eq!(sizes.push(&[b'x'; 10_000]), None);
        assert!(sizes.0.len() <= Sizes::BYTES_MAX);
    }
}
