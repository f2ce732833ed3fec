//! What the fuzz targets check, as plain functions of bytes: the targets are one
//! line each, and `tests/fuzz_checks.rs` runs the same checks on a stable compiler.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each target uses one check, and a check fails by panicking"
)]

use std::ops::ControlFlow;

use podinit::hook::Pattern;
use podinit::hook::file::parse as parse_hook;
use podinit::limits::LOG_RECORD_BYTES_MAX;
use podinit::monitor::log::batch::{Batch, Channel, Gather};
use podinit::monitor::log::decode::decode;
use podinit::monitor::log::gap::Gap;
use podinit::monitor::log::reader::{Parser, Selection, Summary};
use podinit::monitor::log::ring::{End, Ring};
use podinit::monitor::log::split::{Place, Record, Splitter, Tag};
use podinit::monitor::log::stamp::Timestamp;
use podinit::monitor::log::{Item, json};
use podinit::seccomp::builtin::connect::Address;
use podinit::seccomp::lint::{lint, lint_rules};
use podinit::seccomp::notification::SessionId;
use podinit::seccomp::rules::Rules;
use podinit::seccomp::select::{Call, Comparison, Operator, Selector};
use podinit::seccomp::state::ProcessState;
use podinit::seccomp::syscall::{Architecture, name, number};
use podinit::stream::error::StreamError;
use podinit::stream::remote::{Event as RemoteEvent, Remote};
use podinit::stream::request::{CommandVersion, Protocol, Request};
use podinit::stream::websocket::Step;
use podinit::stream::{spdy as stream_spdy, websocket as stream_websocket};

const STAMP: &[u8; 30] = b"2026-11-23T01:02:03.123456789Z";

/// How `data` is to be cut: its first byte, and the rest.
fn portions(data: &[u8]) -> (usize, &[u8]) {
    match data.split_first() {
        Some((first, rest)) => (usize::from(*first) * 97 + 1, rest),
        None => (1, data),
    }
}

fn records(stream: &[u8], portion: usize, capacity: usize) -> Vec<(Vec<u8>, Tag, Place)> {
    let mut splitter = Splitter::default();
    let mut batch = Vec::with_capacity(capacity);
    let mut all = Vec::new();
    let payload = |splitter: &Splitter, chunk: &[u8], record: &Record| {
        [&splitter.held()[..record.held], &chunk[record.start..record.end]].concat()
    };
    for mut chunk in stream.chunks(portion) {
        loop {
            let cut = splitter.split(chunk, &mut batch);
            all.extend(
                batch.iter().map(|record| (payload(&splitter, chunk, record), record.tag, record.place)),
            );
            splitter.commit(chunk, cut);
            assert!(splitter.held().len() <= LOG_RECORD_BYTES_MAX);
            if cut.exhausted {
                break;
            }
            chunk = &chunk[cut.consumed..];
        }
    }
    all.extend(splitter.last().iter().map(|last| (payload(&splitter, &[], last), last.tag, last.place)));
    all
}

/// Any split of a stream into reads gives the same records, and they give back
/// the stream.
pub(crate) fn split(data: &[u8]) {
    let (portion, stream) = portions(data);
    let whole = records(stream, stream.len().max(1), 1 << 10);
    assert_eq!(records(stream, portion, portion % 13 + 1), whole);
    let mut back = Vec::new();
    for (payload, tag, _) in whole {
        assert!(payload.len() <= LOG_RECORD_BYTES_MAX && !payload.contains(&b'\n'));
        back.extend_from_slice(&payload);
        back.extend_from_slice(if tag == Tag::Full { b"\n" } else { b"" });
    }
    assert_eq!(back, stream);
}

/// Any bytes are read as a log in either format or refused, in whatever portions
/// they come.
pub(crate) fn log_reader(data: &[u8]) {
    let (portion, log) = portions(data);
    let read = |portion: usize| -> (Vec<(Timestamp, Vec<u8>, bool)>, u64) {
        let mut parser = Parser::new(Selection::default());
        let mut pieces = Vec::new();
        for part in log.chunks(portion) {
            let flow = parser.push(part, &mut |piece| {
                pieces.push((piece.time, piece.payload.to_vec(), piece.ends_line));
                ControlFlow::Continue(())
            });
            assert!(flow.is_continue());
        }
        let Summary { malformed } = parser.summary();
        (pieces, malformed)
    };
    let (pieces, malformed) = read(portion);
    assert_eq!(read(log.len().max(1)), (pieces.clone(), malformed));
    let records = log.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
    let good = records.filter(|record| decode(record).is_some()).count();
    assert_eq!(pieces.len(), good);
}

/// Any payload becomes one line of JSON, from which its bytes can be had again.
pub(crate) fn json(data: &[u8]) {
    let (portion, payload) = portions(data);
    let payload: Vec<u8> =
        payload.iter().copied().filter(|byte| *byte != b'\n').take(LOG_RECORD_BYTES_MAX).collect();
    let (held, chunk) = payload.split_at(portion.min(payload.len()));
    let tag = if portion % 2 == 0 { Tag::Full } else { Tag::Partial };
    let record = Record { held: held.len(), start: 0, end: chunk.len(), tag, place: Place::First };
    let records = [record];
    let batch = Batch { channel: Channel::Stdout, stamp: STAMP, held, chunk, records: &records };
    let mut gather = Gather::default();
    json::encode(&batch, &record, &mut gather);
    let mut line = Vec::new();
    gather.append_to(&mut line, &batch);
    assert_eq!(line.len(), json::encoded_bytes(&batch, &record));
    assert!(line.len() <= json::encoded_bytes_max(&record));
    assert_eq!(memchr::memchr(b'\n', &line), Some(line.len() - 1));
    let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
    let newline: &[u8] = if tag == Tag::Full { b"\n" } else { b"" };
    let expected = [&payload, newline].concat();
    match std::str::from_utf8(&expected) {
        Ok(text) => assert_eq!(value["log"].as_str(), Some(text)),
        Err(_) => assert_eq!(base64(value["raw"].as_str().unwrap()), expected),
    }
    let decoded = decode(line.strip_suffix(b"\n").unwrap()).unwrap();
    // Only a newline tells a line from a piece of one, so a piece is one that has none at its end.
    assert_eq!((&*decoded.payload, decoded.tag, decoded.gap), (&payload[..], tag, None));
}

/// Any line is a gap record or none; one that is, is read back as it was.
pub(crate) fn gap(data: &[u8]) {
    let channel = Channel::Stdout;
    let found = [Gap::from_cri(channel, b"F:gap", data), Gap::from_json(data)];
    let stated = data.split_first_chunk::<16>().map(|(numbers, reason)| {
        let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().unwrap());
        Gap::new(channel, number(0), number(8), &String::from_utf8_lossy(reason))
    });
    for gap in found.into_iter().flatten().chain(stated) {
        let cri = gap.to_cri(STAMP);
        assert_eq!(decode(cri.strip_suffix(b"\n").unwrap()).unwrap().gap, Some(gap.clone()));
        let json = gap.to_json(STAMP);
        assert_eq!(memchr::memchr(b'\n', &json), Some(json.len() - 1));
        assert_eq!(Gap::from_json(&json), Some(gap));
    }
}

/// What goes through the buffer of a stuck log is kept or told to be missing.
pub(crate) fn ring(data: &[u8]) {
    let (portion, stream) = portions(data);
    for end in [End::Oldest, End::Newest] {
        let mut ring = Ring::new(end, portion, "full");
        let (mut bytes, mut lines) = (0, 0);
        let mut count = |items: std::collections::VecDeque<Item>| {
            for item in items {
                match item {
                    Item::Bytes { bytes: kept, .. } => {
                        let newlines = memchr::memchr_iter(b'\n', &kept).count();
                        bytes += kept.len() - newlines;
                        lines += newlines;
                    }
                    Item::Gap { gap, .. } => {
                        bytes += usize::try_from(gap.bytes).unwrap();
                        lines += usize::try_from(gap.lines).unwrap();
                    }
                }
            }
        };
        for (turn, part) in stream.chunks(portion % 97 + 1).enumerate() {
            let channel = if turn % 3 == 0 { Channel::Stderr } else { Channel::Stdout };
            ring.push(channel, STAMP, part);
            if turn % 7 == 6 {
                count(ring.take());
                ring.taken_is_written();
            }
        }
        count(ring.take());
        let newlines = memchr::memchr_iter(b'\n', stream).count();
        assert_eq!((bytes, lines), (stream.len() - newlines, newlines));
    }
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0_usize, 0_u32);
    for digit in text.bytes().filter(|byte| *byte != b'=') {
        word = word << 6 | DIGITS.iter().position(|known| *known == digit).unwrap();
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(word >> bits & 0xff).unwrap());
        }
    }
    bytes
}

/// Feeds a decoder that keeps what it has not used up, as a connection does.
/// False if it refused something.
fn feed<E>(
    stream: &[u8],
    portion: usize,
    mut next: impl FnMut(&mut [u8]) -> Result<(usize, bool), E>,
) -> bool {
    let mut buffer = Vec::new();
    for chunk in stream.chunks(portion) {
        buffer.extend_from_slice(chunk);
        let mut start = 0;
        loop {
            match next(&mut buffer[start..]) {
                Ok((0, had_event)) => {
                    assert!(!had_event, "an event that used up nothing would come again");
                    break;
                }
                Ok((consumed, _)) => start += consumed,
                Err(_) => return false,
            }
        }
        buffer.drain(..start);
    }
    true
}

/// Any portions of what a WebSocket client sends give the same messages.
pub(crate) fn websocket(data: &[u8]) {
    use stream_websocket::{Decoder, Event};
    let (portion, stream) = portions(data);
    let read = |portion: usize| {
        let (mut decoder, mut said) = (Decoder::default(), Vec::new());
        let accepted = feed(stream, portion, |input| {
            let Step { consumed, event } = decoder.next(input)?;
            match &event {
                Some(Event::Data { bytes, .. }) => said.extend_from_slice(bytes),
                Some(Event::Ping(bytes)) => said.extend_from_slice(bytes),
                Some(Event::Pong | Event::Close) => said.push(b'|'),
                None => {}
            }
            Ok::<_, podinit::stream::error::Violation>((consumed, event.is_some()))
        });
        (accepted, said)
    };
    assert_eq!(read(portion), read(stream.len().max(1)));
}

/// Any portions of what a SPDY client sends give the same streams and data.
pub(crate) fn spdy(data: &[u8]) {
    use stream_spdy::{Decoder, Event};
    let (portion, stream) = portions(data);
    let read = |portion: usize| {
        let (mut decoder, mut said) = (Decoder::default(), Vec::new());
        let accepted = feed(stream, portion, |input| {
            let Step { consumed, event } = decoder.next(input)?;
            match &event {
                Some(Event::Data { bytes, .. }) => said.extend_from_slice(bytes),
                Some(other) => said.extend_from_slice(format!("{other:?}").as_bytes()),
                None => {}
            }
            Ok::<_, podinit::stream::error::Violation>((consumed, event.is_some()))
        });
        (accepted, said)
    };
    assert_eq!(read(portion), read(stream.len().max(1)));
}

/// Whatever a plugin sends is judged: its verdicts and requests make sense, or are
/// refused, and none of it takes more than a connection's limits.
pub(crate) fn plugin(message: &[u8]) {
    let (verdicts, _) = podinit::rpc::plugin::judge(message);
    assert!(verdicts <= podinit::limits::PLUGIN_BATCH_MAX);
}

/// Any `struct sockaddr` of a process says something, and never more than is there.
pub(crate) fn address(raw: &[u8]) {
    use podinit::seccomp::decode::Address;
    match Address::parse(raw) {
        Address::Unix(path) => assert!(path.len() + 2 <= raw.len()),
        Address::Internet(inet) => assert!(raw.len() >= if inet.is_ipv4() { 8 } else { 24 }),
        Address::Other(_) => {}
    }
}

/// Any portions of a remote command's client give the same input, sizes and replies.
pub(crate) fn remote(data: &[u8]) {
    let (portion, stream) = portions(data);
    let protocols = [
        Protocol::WebSocket(CommandVersion::V5),
        Protocol::WebSocket(CommandVersion::V4),
        Protocol::Spdy(CommandVersion::V4),
    ];
    for protocol in protocols {
        let read = |portion: usize| {
            let mut remote = Remote::new(protocol).unwrap();
            let (mut said, mut replies) = (Vec::new(), Vec::new());
            let accepted = feed(stream, portion, |input| {
                let Step { consumed, event } = remote.receive(input, &mut replies)?;
                if let Some(RemoteEvent::Input { bytes, .. }) = &event {
                    said.extend_from_slice(bytes);
                }
                Ok::<_, StreamError>((consumed, event.is_some()))
            });
            (accepted, said, replies)
        };
        assert_eq!(read(portion), read(stream.len().max(1)), "{protocol:?}");
    }
}

/// A request's head is read or refused; what is read can be answered.
pub(crate) fn request(data: &[u8]) {
    match Request::parse(data) {
        Ok(None) => {}
        Ok(Some((length, request))) => {
            assert!(length <= data.len());
            assert!(request.switch().ends_with("\r\n\r\n"));
        }
        Err(refusal) => assert!(refusal.answer().starts_with("HTTP/1.1 4")),
    }
}

/// Any bytes are a hook or are refused, with a reason that a person can read.
/// Its own name for its stages is read again as the same.
pub(crate) fn hook_file(data: &[u8]) {
    match parse_hook("a.json", data) {
        Ok(parsed) => {
            assert!(parsed.hook.path.is_absolute());
            for (at, stage) in parsed.hook.stages.iter().enumerate() {
                assert_eq!(stage.name().parse(), Ok(*stage));
                assert!(!parsed.hook.stages[..at].contains(stage));
            }
        }
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
}

/// Any text is a pattern or is refused; in parentheses it means the same, and a
/// quoted text matches itself.
pub(crate) fn hook_pattern(data: &[u8]) {
    let (portion, data) = portions(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut cut = portion.min(text.len());
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let (pattern, subject) = text.split_at(cut);
    if let Ok(compiled) = Pattern::new(pattern) {
        assert_eq!(compiled.as_str(), pattern);
        if let Ok(grouped) = Pattern::new(&format!("(?:{pattern})")) {
            assert_eq!(grouped.matches(subject), compiled.matches(subject));
        }
    }
    if !subject.contains("\\E") && !subject.ends_with('\\') && subject.len() < 4096 {
        assert!(Pattern::new(&format!("^\\Q{subject}\\E$")).unwrap().matches(subject));
    }
}

/// Any bytes are the state of a container process, or refused; what is read of it
/// is what is in it.
pub(crate) fn seccomp_state(data: &[u8]) {
    let Ok(state) = ProcessState::parse(data) else { return };
    if let Ok(position) = state.listener() {
        assert_eq!(state.fds[position], "seccompFd");
    }
    let (container, metadata) = (state.state.id.clone(), state.metadata.clone());
    let session = state.session(SessionId(1), "pod", 0);
    assert_eq!((&*session.container, &*session.metadata), (container.as_str(), metadata.as_str()));
    assert!(!container.is_empty() && container.len() <= podinit::limits::ID_BYTES_MAX);
}

/// Any bytes are rules and a profile, or refused; rules that are taken can be used.
pub(crate) fn seccomp_rules(data: &[u8]) {
    if let Ok(rules) = Rules::parse(data) {
        for rule in &rules.rules {
            rule.selector.clone().compile().unwrap();
        }
        assert!(lint_rules(&rules).len() <= rules.rules.len() + 1);
        assert!(rules.defaults().patience <= podinit::limits::SECCOMP_DEADLINE_MAX);
    }
    if let Ok(findings) = lint(data) {
        assert!(findings.iter().all(|finding| !finding.text.is_empty()));
    }
}

/// Any registers are a call that can be named and compared, and any bytes an
/// address or none.
pub(crate) fn seccomp_call(data: &[u8]) {
    let mut words = data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let mut next = || words.next().unwrap_or(0);
    let (first, value, mask) = (next(), next(), next());
    let call = Call {
        arch: u32::try_from(first >> 32).unwrap(),
        syscall: i32::from_le_bytes(u32::try_from(first & 0xffff_ffff).unwrap().to_le_bytes()),
        args: std::array::from_fn(|_| next()),
    };
    if let (Some(name), Some(architecture)) =
        (name(call.arch, call.syscall), Architecture::of(call.arch, call.syscall))
    {
        assert_eq!(number(&name, architecture), Some(call.syscall), "{name}");
    }
    let with = |operator| {
        let arguments = vec![Comparison { index: 5, mask, operator, values: vec![value] }];
        Selector { arguments, ..Selector::default() }.compile().unwrap().call(&call)
    };
    assert_eq!(with(Operator::Equal), !with(Operator::NotEqual));
    assert_eq!(with(Operator::Less), !with(Operator::GreaterOrEqual));
    assert_eq!(with(Operator::Greater), !with(Operator::LessOrEqual));
    if let Some(Address::Internet(address)) = Address::parse(data) {
        assert!(data.len() >= if address.is_ipv4() { 16 } else { 24 });
    }
}
