//! Attached clients that ask for the past, and what the end of their input does:
//! through a real relay, with real pipes, sockets and log files.

#![allow(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use podinit::monitor::log::options::FileOptions;
use podinit::monitor::log::{LogConfig, LogKind, LogSet};
use podinit::monitor::relay::{
    Attach, Drained, Open, Output, Relay, RelayError, StdinEnd, StreamId, StreamStats,
};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType};

#[path = "common/asked.rs"]
mod asked;

use asked::{answer, stats, wait_for_stats};

/// A relay with one container that the test plays.
struct Fixture {
    relay: Relay,
    id: StreamId,
    directory: tempfile::TempDir,
    stdout: Option<File>,
    stderr: Option<File>,
    stdin: File,
}

impl Fixture {
    /// With a log of the kind that is rotated at this size, or without one.
    fn new(log: Option<(LogKind, u64)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let file = FileOptions { backups: 60, ..FileOptions::default() };
        let configs: Vec<LogConfig> = log
            .into_iter()
            .map(|(kind, size_max)| LogConfig { kind, path: path.clone(), size_max, file })
            .collect();
        let relay = Relay::start().unwrap();
        let (out_read, out_write) = rustix::pipe::pipe().unwrap();
        let (err_read, err_write) = rustix::pipe::pipe().unwrap();
        let (in_read, in_write) = rustix::pipe::pipe().unwrap();
        let open = Open {
            output: Output::Pipes { stdout: out_read, stderr: err_read },
            stdin: Some(in_write),
            stdin_guard: None,
            logs: LogSet::open(&configs).unwrap(),
            capture_max: None,
        };
        let id = relay.open(open).unwrap();
        let (stdout, stderr) = (Some(out_write.into()), Some(err_write.into()));
        Self { relay, id, directory, stdout, stderr, stdin: in_read.into() }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stdout.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn stats(&self) -> StreamStats {
        stats(&self.relay, self.id)
    }

    fn wait_for_stats(&self, what: &str, reached: impl Fn(&StreamStats) -> bool) {
        wait_for_stats(&self.relay, self.id, what, reached);
    }

    fn try_attach(&self, replay: usize, stdin_end: StdinEnd) -> Result<Client, RelayError> {
        let path = self.directory.path().join("attach");
        let attach = Attach { path: path.clone(), stdin_end, replay };
        answer(|reply| self.relay.attach(self.id, attach, reply))?;
        let before = self.stats().clients;
        let client = Client { socket: podinit::sys::socket::connect(&path, SocketType::SEQPACKET).unwrap() };
        self.wait_for_stats("accepted", |stats| stats.clients > before);
        Ok(client)
    }

    fn attach(&self, replay: usize) -> Client {
        self.try_attach(replay, StdinEnd::Keep).unwrap()
    }

    fn exit(&mut self) -> Drained {
        (self.stdout, self.stderr) = (None, None);
        answer(|reply| self.relay.finish(self.id, Duration::from_millis(500), reply))
    }
}

/// An attached client.
struct Client {
    socket: OwnedFd,
}

impl Client {
    /// Everything up to the end; stdout, stderr, and whether `done` came.
    fn receive_all(&self) -> (Vec<u8>, Vec<u8>, bool) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; 8193];
        loop {
            let (count, _) =
                rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
            match &buffer[..count] {
                [] => return (stdout, stderr, false),
                [0] => return (stdout, stderr, true),
                [2, payload @ ..] => stdout.extend_from_slice(payload),
                [3, payload @ ..] => stderr.extend_from_slice(payload),
                other => panic!("unknown packet {other:?}"),
            }
        }
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL).unwrap(), bytes.len());
    }
}

/// Lines that can be told apart, `bytes` of them or a few more.
fn lines(from: usize, bytes: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for number in from.. {
        if text.len() >= bytes {
            break;
        }
        writeln!(text, "line {number} {:1$}", "", number % 90).unwrap();
    }
    text
}

#[test]
fn late_client_gets_the_end_of_the_past_and_all_that_follows_without_a_gap() {
    for (kind, size_max) in [(LogKind::Cri, 0), (LogKind::Cri, 20_000), (LogKind::Json, 20_000)] {
        let mut fixture = Fixture::new(Some((kind, size_max)));
        let before = lines(0, 100_000);
        fixture.write(&before);
        // The start of a line, which is in no record yet.
        fixture.write(b"half a ");
        let read = before.len() as u64 + 7;
        fixture.wait_for_stats("all is read", |stats| stats.stdout.bytes == read);
        let client = fixture.attach(30_000);
        let after = [b"line\n".to_vec(), lines(9_000, 200_000)].concat();
        let writer = std::thread::spawn({
            let (mut stdout, after) = (fixture.stdout.take().unwrap(), after.clone());
            move || stdout.write_all(&after).unwrap()
        });
        let reader = std::thread::spawn(move || client.receive_all());
        writer.join().unwrap();
        assert!(fixture.exit().complete);
        let (stdout, stderr, done) = reader.join().unwrap();
        let whole = [&before[..], b"half a ", &after].concat();
        assert!(whole.ends_with(&stdout), "{kind:?}: {} bytes", stdout.len());
        let replayed = stdout.len() - after.len();
        assert!((29_000..=30_000).contains(&replayed), "{kind:?}: {replayed}");
        assert!(stdout.starts_with(b"line "), "from the beginning of a line on");
        assert!(stderr.is_empty() && done);
    }
}

#[test]
fn replay_in_the_middle_of_a_flood_has_every_byte_once() {
    let mut fixture = Fixture::new(Some((LogKind::Cri, 1 << 20)));
    let flood = lines(0, 6 << 20);
    let writer = std::thread::spawn({
        let (mut stdout, flood) = (fixture.stdout.take().unwrap(), flood.clone());
        move || stdout.write_all(&flood).unwrap()
    });
    let mut readers = Vec::new();
    for round in 1..=4 {
        fixture.wait_for_stats("some of it", |stats| stats.stdout.bytes > round << 20);
        let client = fixture.attach(64 << 10);
        readers.push(std::thread::spawn(move || client.receive_all()));
    }
    writer.join().unwrap();
    assert!(fixture.exit().complete);
    for reader in readers {
        let (stdout, stderr, done) = reader.join().unwrap();
        // One that was too slow is told so; nobody gets a stream with a hole in it that is not told.
        if stderr.is_empty() {
            assert!(flood.ends_with(&stdout) && done, "{} bytes", stdout.len());
        } else {
            assert!(String::from_utf8(stderr).unwrap().contains("podinit: "));
        }
    }
}

#[test]
fn past_that_fits_is_replayed_whole_and_a_log_is_needed() {
    let mut fixture = Fixture::new(Some((LogKind::Cri, 0)));
    fixture.write(b"one\n");
    fixture.stderr.as_mut().unwrap().write_all(b"two\n").unwrap();
    fixture.wait_for_stats("both", |stats| stats.stdout.lines == 1 && stats.stderr.lines == 1);
    let client = fixture.attach(1 << 20);
    // The end comes before the client has read anything.
    fixture.exit();
    assert_eq!(client.receive_all(), (b"one\n".to_vec(), b"two\n".to_vec(), true));

    let silent = Fixture::new(None);
    assert!(matches!(silent.try_attach(1, StdinEnd::Keep), Err(RelayError::NothingToReplay)));
    silent.attach(0);
}

#[test]
fn log_that_is_gone_costs_the_past_and_not_the_present() {
    let mut fixture = Fixture::new(Some((LogKind::Cri, 0)));
    fixture.write(b"past\n");
    fixture.wait_for_stats("read", |stats| stats.stdout.lines == 1);
    std::fs::remove_file(fixture.directory.path().join("log")).unwrap();
    let client = fixture.attach(1000);
    fixture.write(b"present\n");
    fixture.exit();
    let (stdout, stderr, done) = client.receive_all();
    assert_eq!((stdout.as_slice(), done), (&b"present\n"[..], true));
    assert!(String::from_utf8(stderr).unwrap().contains("earlier output is not replayed"));
}

#[test]
fn only_a_stop_after_eof_lets_a_client_end_stdin() {
    let mut fixture = Fixture::new(Some((LogKind::Cri, 0)));
    let keeps = fixture.try_attach(0, StdinEnd::Keep).unwrap();
    keeps.send(b"one ");
    rustix::net::shutdown(&keeps.socket, Shutdown::Write).unwrap();
    let mut got = [0; 4];
    fixture.stdin.read_exact(&mut got).unwrap();
    // Its half-close has been seen by the time at which the next client's bytes arrive.
    let ends = fixture.try_attach(0, StdinEnd::HalfClose).unwrap();
    ends.send(b"two ");
    fixture.stdin.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"two ");
    drop(ends);
    fixture.wait_for_stats("one is left", |stats| stats.clients == 1);
    let last = fixture.try_attach(0, StdinEnd::HalfClose).unwrap();
    last.send(b"three");
    rustix::net::shutdown(&last.socket, Shutdown::Write).unwrap();
    let mut rest = String::new();
    fixture.stdin.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "three");
    fixture.write(b"still here\n");
    fixture.exit();
    assert_eq!(keeps.receive_all().0, b"still here\n", "who has ended its input still gets output");
}
