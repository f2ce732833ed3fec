//! The data plane through real pipes, terminals, sockets and files: nothing is
//! lost, nobody waits who should not, nothing is left behind.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use podinit::limits::LOG_RECORD_BYTES_MAX;
use podinit::monitor::log::{LogConfig, LogKind, LogSet};
use podinit::monitor::relay::{Attach, Drained, Open, Output, Relay, StreamId, StreamStats};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType};

/// Long enough for a loaded machine; no test waits that long when all is well.
const DEADLINE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_millis(500);

/// A relay with one container that the test plays.
struct Fixture {
    relay: Relay,
    id: StreamId,
    directory: tempfile::TempDir,
    stdout: Option<File>,
    stderr: Option<File>,
    stdin: Option<File>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(0, None)
    }

    fn with(size_max: u64, capture_max: Option<usize>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctr.log");
        let logs = LogSet::open(&[LogConfig { kind: LogKind::Cri, path, size_max }]).unwrap();
        Self::with_logs(directory, logs, capture_max)
    }

    fn with_logs(directory: tempfile::TempDir, logs: LogSet, capture_max: Option<usize>) -> Self {
        let relay = Relay::start().unwrap();
        let (out_read, out_write) = rustix::pipe::pipe().unwrap();
        let (err_read, err_write) = rustix::pipe::pipe().unwrap();
        let (in_read, in_write) = rustix::pipe::pipe().unwrap();
        let output = Output::Pipes { stdout: out_read, stderr: err_read };
        let id = relay.open(Open { output, stdin: Some(in_write), logs, capture_max }).unwrap();
        let (stdout, stderr, stdin) = (Some(out_write.into()), Some(err_write.into()), Some(in_read.into()));
        Self { relay, id, directory, stdout, stderr, stdin }
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("ctr.log")
    }

    fn out(&mut self) -> &mut File {
        self.stdout.as_mut().unwrap()
    }

    fn exit(&mut self) -> Drained {
        self.stdout = None;
        self.stderr = None;
        self.finish(GRACE)
    }

    fn finish(&self, grace: Duration) -> Drained {
        let (reply, drained) = channel();
        self.relay.finish(self.id, grace, Box::new(move |end| reply.send(end).unwrap()));
        drained.recv_timeout(DEADLINE).unwrap()
    }

    fn stats(&self) -> StreamStats {
        let (reply, stats) = channel();
        self.relay.stats(self.id, Box::new(move |answer| reply.send(answer).unwrap()));
        stats.recv_timeout(DEADLINE).unwrap().unwrap()
    }

    fn wait_for_stats(&self, what: &str, reached: impl Fn(&StreamStats) -> bool) -> StreamStats {
        let until = Instant::now() + DEADLINE;
        loop {
            let stats = self.stats();
            if reached(&stats) {
                return stats;
            }
            assert!(Instant::now() < until, "{what}: {stats:?}");
            std::thread::yield_now();
        }
    }

    fn reopen(&self) {
        let (reply, reopened) = channel();
        self.relay.reopen_logs(self.id, Box::new(move |answer| reply.send(answer).unwrap()));
        reopened.recv_timeout(DEADLINE).unwrap().unwrap();
    }

    fn attach(&self, stop_after_stdin_eof: bool) -> Client {
        let path = self.directory.path().join("attach");
        self.make_socket(&path, stop_after_stdin_eof);
        let client = Client { socket: podinit::sys::socket::connect(&path, SocketType::SEQPACKET).unwrap() };
        let before = self.stats().clients;
        if before == 0 {
            self.wait_for_stats("accepted", |stats| stats.clients > 0);
        }
        client
    }

    fn make_socket(&self, path: &Path, stop_after_stdin_eof: bool) {
        let (reply, made) = channel();
        let attach = Attach { path: path.to_owned(), stop_after_stdin_eof };
        self.relay.attach(self.id, attach, Box::new(move |answer| reply.send(answer).unwrap()));
        made.recv_timeout(DEADLINE).unwrap().unwrap();
    }
}

/// An attached client.
struct Client {
    socket: OwnedFd,
}

impl Client {
    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 8193];
        let (count, _) = rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        buffer.truncate(count);
        buffer
    }

    /// Everything up to the end; stdout, stderr, and whether `done` came.
    fn receive_all(&self) -> (Vec<u8>, Vec<u8>, bool) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.receive().as_slice() {
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

    fn half_close(&self) {
        rustix::net::shutdown(&self.socket, Shutdown::Write).unwrap();
    }
}

/// The payload of the CRI records of `stream` in the file.
fn payload(path: &Path, stream: &str) -> Vec<u8> {
    let log = std::fs::read(path).unwrap();
    let mut payload = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let (head, rest) = line.split_at(31);
        assert_eq!((head[29], head[30]), (b'Z', b' '), "{}", String::from_utf8_lossy(line));
        let (name, rest) = rest.split_at(6);
        assert_eq!(rest[0], b' ');
        let (tag, rest) = (rest[1], &rest[3..rest.len() - 1]);
        assert!(rest.len() <= LOG_RECORD_BYTES_MAX);
        if name == stream.as_bytes() {
            payload.extend_from_slice(rest);
            payload.extend_from_slice(if tag == b'F' { b"\n" } else { b"" });
        }
    }
    payload
}

/// `count` bytes in lines of changing length.
fn lines(count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 200);
    for number in 0.. {
        if bytes.len() >= count {
            break;
        }
        let width = number * 7 % 150;
        writeln!(bytes, "line {number} {:width$}", "x").unwrap();
    }
    bytes.truncate(count);
    bytes
}

#[test]
fn last_byte_of_a_container_that_exits_at_once_is_logged() {
    for size in [1, 1 << 10, 32 << 10, 64 << 10, (64 << 10) + 1, 256 << 10, 1 << 20] {
        for _ in 0..5 {
            let mut fixture = Fixture::new();
            let (out, err) = (lines(size), lines(size / 2));
            let mut stderr = fixture.stderr.take().unwrap();
            let to_stderr = err.clone();
            let writer = std::thread::spawn(move || stderr.write_all(&to_stderr).unwrap());
            fixture.out().write_all(&out).unwrap();
            writer.join().unwrap();
            let drained = fixture.exit();
            assert!(drained.complete, "{drained:?}");
            assert_eq!(drained.stats.stdout.bytes, size as u64);
            assert_eq!(payload(&fixture.log_path(), "stdout"), out, "{size}");
            assert_eq!(payload(&fixture.log_path(), "stderr"), err, "{size}");
        }
    }
}

#[test]
fn log_file_is_private_and_appended_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ctr.log");
    std::fs::write(&path, "2026-01-01T00:00:00.000000000Z stdout F before\n").unwrap();
    let config = LogConfig { kind: LogKind::Cri, path: path.clone(), size_max: 0 };
    let mut fixture = Fixture::with_logs(directory, LogSet::open(&[config]).unwrap(), None);
    fixture.out().write_all(b"after\n").unwrap();
    fixture.exit();
    assert_eq!(payload(&path, "stdout"), b"before\nafter\n");

    let fresh = Fixture::new();
    assert_eq!(std::fs::metadata(fresh.log_path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn capture_keeps_the_first_bytes_and_counts_the_rest() {
    let mut fixture = Fixture::with(0, Some(100_000));
    let out = lines(300_000);
    fixture.out().write_all(&out).unwrap();
    let captured = fixture.exit().captured.unwrap();
    assert_eq!(captured.stdout, out[..100_000]);
    assert_eq!((captured.stdout_dropped, captured.stderr_dropped), (200_000, 0));
}

#[test]
fn background_child_that_keeps_the_output_open_cannot_delay_the_end_beyond_the_grace() {
    let mut fixture = Fixture::new();
    fixture.out().write_all(b"said\nunfinished").unwrap();
    fixture.stderr = None;
    let drained = fixture.finish(Duration::from_millis(50));
    assert!(!drained.complete);
    assert_eq!(payload(&fixture.log_path(), "stdout"), b"said\nunfinished");
}

#[test]
fn two_attached_clients_each_get_everything_and_done_after_both_streams() {
    let mut fixture = Fixture::new();
    let first = fixture.attach(false);
    let second = fixture.attach(false);
    fixture.wait_for_stats("two clients", |stats| stats.clients == 2);
    let (out, err) = (lines(700_000), lines(300_000));
    let readers = [first, second].map(|client| std::thread::spawn(move || client.receive_all()));
    fixture.out().write_all(&out).unwrap();
    // The first stream's end must not end the clients.
    fixture.stdout = None;
    fixture.stderr.as_mut().unwrap().write_all(&err).unwrap();
    assert!(fixture.exit().complete);
    for reader in readers {
        let (stdout, stderr, done) = reader.join().unwrap();
        assert!(stdout == out && stderr == err && done);
    }
    assert!(!fixture.directory.path().join("attach").exists(), "the socket must be removed at the end");
}

#[test]
fn attached_stdin_is_binary_safe_and_of_any_size() {
    let mut fixture = Fixture::new();
    let client = fixture.attach(true);
    let mut input = Vec::new();
    for round in 0..4_usize {
        let packet: Vec<u8> = (0..32 << 10).map(|at| u8::try_from((at * 7 + round) % 251).unwrap()).collect();
        input.extend_from_slice(&packet);
    }
    input[1000..2000].fill(0);
    let sent = input.clone();
    let sender = std::thread::spawn(move || {
        sent.chunks(32 << 10).for_each(|packet| client.send(packet));
        client.half_close();
        client
    });
    let mut got = Vec::new();
    fixture.stdin.take().unwrap().read_to_end(&mut got).unwrap();
    assert!(got == input, "{} of {} bytes", got.len(), input.len());
    let client = sender.join().unwrap();
    fixture.out().write_all(b"still here\n").unwrap();
    fixture.exit();
    assert_eq!(client.receive_all(), (b"still here\n".to_vec(), Vec::new(), true));
}

#[test]
fn reopen_after_a_rename_goes_to_a_new_file_and_can_be_repeated() {
    let mut fixture = Fixture::new();
    let old = fixture.directory.path().join("ctr.log.old");
    fixture.out().write_all(b"one\n").unwrap();
    fixture.wait_for_stats("one line", |stats| stats.stdout.lines == 1);
    fixture.reopen();
    std::fs::rename(fixture.log_path(), &old).unwrap();
    fixture.out().write_all(b"two\n").unwrap();
    fixture.wait_for_stats("two lines", |stats| stats.stdout.lines == 2);
    fixture.reopen();
    fixture.reopen();
    fixture.out().write_all(b"three\n").unwrap();
    fixture.exit();
    assert_eq!(payload(&old, "stdout"), b"one\ntwo\n");
    assert_eq!(payload(&fixture.log_path(), "stdout"), b"three\n");
}

#[test]
fn rotation_by_size_splits_no_record_and_loses_none() {
    let mut fixture = Fixture::with(64 << 10, None);
    // Both files together hold what was written.
    let out = lines(70_000);
    fixture.out().write_all(&out).unwrap();
    fixture.exit();
    let rotated = fixture.directory.path().join("ctr.log.1");
    for path in [&rotated, &fixture.log_path()] {
        assert!(std::fs::metadata(path).unwrap().len() <= 64 << 10);
    }
    let mut both = payload(&rotated, "stdout");
    both.extend(payload(&fixture.log_path(), "stdout"));
    assert!(both == out);
}

#[test]
fn terminal_output_and_input_go_through_the_master() {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ctr.log");
    let logs = LogSet::open(&[LogConfig { kind: LogKind::Cri, path: path.clone(), size_max: 0 }]).unwrap();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let peer = || {
        ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap()
    };
    let relay = Relay::start().unwrap();
    let first = peer();
    let stdin = Some(rustix::io::dup(&master).unwrap());
    let output = Output::Terminal(rustix::io::dup(&master).unwrap());
    let id = relay.open(Open { output, stdin, logs, capture_max: None }).unwrap();
    let mut fixture = Fixture { relay, id, directory, stdout: None, stderr: None, stdin: None };
    let client = fixture.attach(false);

    rustix::io::write(&first, b"hello\n").unwrap();
    fixture.wait_for_stats("hello", |stats| stats.stdout.lines == 1);
    // A container (an init system, say) may close its terminal and open it again.
    drop(first);
    let second = peer();
    rustix::io::write(&second, b"again\n").unwrap();
    fixture.wait_for_stats("again", |stats| stats.stdout.lines == 2);
    client.send(b"typed\n");
    let mut typed = [0; 16];
    assert_eq!(rustix::io::read(&second, &mut typed).unwrap(), 6);
    rustix::io::write(&second, b"last").unwrap();
    drop(second);
    assert!(fixture.exit().complete);
    // The terminal's own echo comes back too.
    assert_eq!(payload(&path, "stdout"), b"hello\r\nagain\r\ntyped\r\nlast");
    assert_eq!(client.receive_all(), (b"hello\r\nagain\r\ntyped\r\nlast".to_vec(), Vec::new(), true));
}
