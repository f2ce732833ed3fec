//! The data plane through real pipes, terminals, sockets and files: nothing is
//! lost, nobody waits who should not, nothing is left behind.

#![allow(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use podinit::limits::LOG_RECORD_BYTES_MAX;
use podinit::monitor::log::limit::{LogLimits, Rate, WhenFast, WhenStuck};
use podinit::monitor::log::{LogConfig, LogKind, LogSet};
use podinit::monitor::relay::{Attach, Drained, Open, Output, Relay, StdinEnd, StreamId, StreamStats};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType};

#[path = "common/asked.rs"]
mod asked;

use asked::{DEADLINE, answer, stats, wait_for_stats};

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
        let logs = LogSet::open(&[LogConfig { size_max, ..LogConfig::new(LogKind::Cri, path) }]).unwrap();
        Self::with_logs(directory, logs, capture_max)
    }

    /// With a log that is a link to a file on `disk`.
    fn on(disk: &SmallDisk) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctr.log");
        std::os::unix::fs::symlink(disk.path().join("ctr.log"), &path).unwrap();
        Self::with_logs(directory, LogSet::open(&[LogConfig::new(LogKind::Cri, path)]).unwrap(), None)
    }

    fn with_logs(directory: tempfile::TempDir, logs: LogSet, capture_max: Option<usize>) -> Self {
        let relay = Relay::start().unwrap();
        let (out_read, out_write) = rustix::pipe::pipe().unwrap();
        let (err_read, err_write) = rustix::pipe::pipe().unwrap();
        let (in_read, in_write) = rustix::pipe::pipe().unwrap();
        let output = Output::Pipes { stdout: out_read, stderr: err_read };
        let id =
            relay.open(Open { output, stdin: Some(in_write), stdin_guard: None, logs, capture_max }).unwrap();
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
        answer(|reply| self.relay.finish(self.id, grace, reply))
    }

    fn stats(&self) -> StreamStats {
        stats(&self.relay, self.id)
    }

    fn wait_for_stats(&self, what: &str, reached: impl Fn(&StreamStats) -> bool) -> StreamStats {
        wait_for_stats(&self.relay, self.id, what, reached)
    }

    fn reopen(&self) {
        answer(|reply| self.relay.reopen_logs(self.id, reply)).unwrap();
    }

    fn limit(&self, limits: LogLimits) {
        answer(|reply| self.relay.set_limits(self.id, limits, reply)).unwrap();
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
        let attach = Attach {
            path: path.to_owned(),
            stdin_end: StdinEnd::of_request(stop_after_stdin_eof),
            replay: 0,
        };
        answer(|reply| self.relay.attach(self.id, attach, reply)).unwrap();
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
    let config = LogConfig::new(LogKind::Cri, path.clone());
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

/// Sends all of `input` and ends it; the container may have to be read meanwhile.
fn send_all(client: Client, input: Vec<u8>) -> std::thread::JoinHandle<Client> {
    std::thread::spawn(move || {
        input.chunks(32 << 10).for_each(|packet| client.send(packet));
        client.half_close();
        client
    })
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
    let sender = send_all(client, sent);
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
    let logs = LogSet::open(&[LogConfig::new(LogKind::Cri, path.clone())]).unwrap();
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
    let id = relay.open(Open { output, stdin, stdin_guard: None, logs, capture_max: None }).unwrap();
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

/// A tmpfs of a size, in a mount table of this thread's own. It is gone when it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: usize) -> Self {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        mount(Some("none"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(self.path(), nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

#[test]
fn full_disk_holds_the_container_back_and_nothing_is_lost_once_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(4 << 20);
    let filler = disk.path().join("filler");
    std::fs::write(&filler, vec![0; (4 << 20) - (40 << 10)]).unwrap();
    let path = disk.path().join("ctr.log");
    let logs = LogSet::open(&[LogConfig::new(LogKind::Cri, path.clone())]).unwrap();
    let mut fixture = Fixture::with_logs(directory, logs, None);

    let out = lines(1 << 20);
    let (mut stdout, bytes) = (fixture.stdout.take().unwrap(), out.clone());
    // A failed log must not become EPIPE or SIGPIPE in the container.
    let writer = std::thread::spawn(move || stdout.write_all(&bytes).unwrap());
    let stats = fixture.wait_for_stats("blocked", |stats| stats.write_errors > 2);
    assert!(stats.last_write_error.unwrap().contains("No space left"));
    assert!(!writer.is_finished(), "a pipe cannot hold all that was written");
    std::fs::remove_file(&filler).unwrap();
    writer.join().unwrap();
    let drained = fixture.exit();
    assert!(drained.complete && drained.stats.stall_longest_ns > 0, "{drained:?}");
    assert!(payload(&path, "stdout") == out);
}

#[test]
fn disk_that_stays_full_delays_the_end_by_the_grace_only_and_the_loss_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(64 << 10);
    let configs = ["full.log", "good.log"].map(|name| {
        let directory = if name == "full.log" { disk.path() } else { directory.path() };
        LogConfig::new(LogKind::Cri, directory.join(name))
    });
    let mut fixture = Fixture::with_logs(directory, LogSet::open(&configs).unwrap(), None);
    let out = lines(200 << 10);
    fixture.out().write_all(&out).unwrap();
    let drained = fixture.exit();
    assert!(!drained.complete);
    // The log that works is complete; the other one has lost what it does not have.
    assert!(payload(&configs[1].path, "stdout") == out);
    let kept = std::fs::read(&configs[0].path).unwrap();
    let whole = kept.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    std::fs::write(fixture.directory.path().join("whole"), &kept[..whole]).unwrap();
    let kept = payload(&fixture.directory.path().join("whole"), "stdout");
    assert!(out.starts_with(&kept));
    let newlines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    let lost = out.len() - newlines(&out) - (kept.len() - newlines(&kept));
    assert_eq!(drained.stats.stdout.dropped, lost as u64);
}

#[test]
fn record_cut_by_a_full_disk_is_whole_in_the_file_that_is_opened_next() {
    let disk = SmallDisk::new(64 << 10);
    let mut fixture = Fixture::on(&disk);
    let path = fixture.log_path();
    let out = lines(150 << 10);
    fixture.out().write_all(&out).unwrap();
    fixture.wait_for_stats("blocked", |stats| stats.write_errors > 0);
    std::fs::remove_file(&path).unwrap();
    fixture.reopen();
    assert!(fixture.exit().complete);
    // The old file ends where the disk was full, maybe within a record; the new one goes on with a whole one.
    let mut old = std::fs::read(disk.path().join("ctr.log")).unwrap();
    old.truncate(old.iter().rposition(|byte| *byte == b'\n').unwrap() + 1);
    let whole = fixture.directory.path().join("whole");
    std::fs::write(&whole, old).unwrap();
    let mut both = payload(&whole, "stdout");
    both.extend(payload(&path, "stdout"));
    assert!(both == out);
}

#[test]
fn fifo_that_nobody_reads_is_a_log_that_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    let logs = LogSet::open(&[LogConfig::new(LogKind::Cri, path.clone())]).unwrap();
    let mut fixture = Fixture::with_logs(directory, logs, None);
    let out = lines(300_000);
    let (mut stdout, bytes) = (fixture.stdout.take().unwrap(), out.clone());
    let writer = std::thread::spawn(move || stdout.write_all(&bytes).unwrap());
    fixture.wait_for_stats("blocked", |stats| stats.write_errors > 0);
    let copy = fixture.directory.path().join("copy");
    let mut fifo = File::open(&path).unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        fifo.read_to_end(&mut bytes).unwrap();
        bytes
    });
    writer.join().unwrap();
    fixture.stderr = None;
    assert!(fixture.finish(DEADLINE).complete);
    std::fs::write(&copy, reader.join().unwrap()).unwrap();
    assert!(payload(&copy, "stdout") == out);
}

#[test]
fn full_disk_drops_only_what_the_buffer_cannot_hold_if_the_container_shall_not_wait() {
    let disk = SmallDisk::new(64 << 10);
    let mut fixture = Fixture::on(&disk);
    let path = fixture.log_path();
    fixture.limit(LogLimits { when_stuck: WhenStuck::DropNewest, ..LogLimits::default() });
    let out = lines(4 << 20);
    fixture.out().write_all(&out).unwrap();
    let stats = fixture.wait_for_stats("all read", |stats| stats.stdout.bytes == out.len() as u64);
    assert!(stats.write_errors > 0 && stats.stdout.dropped > 0 && stats.buffered > 0, "{stats:?}");
    // Somewhere else there is room.
    std::fs::remove_file(&path).unwrap();
    fixture.reopen();
    let drained = fixture.exit();
    assert!(!drained.complete);
    assert_eq!(drained.stats.stdout.lines, out.iter().filter(|byte| **byte == b'\n').count() as u64);
    let log = std::fs::read_to_string(&path).unwrap();
    let gaps: Vec<&str> = log.lines().filter(|line| line.contains(" stdout F:gap podinit: ")).collect();
    let expected = format!("{} bytes in ", drained.stats.stdout.dropped);
    assert!(gaps.len() == 1 && gaps[0].contains(&expected) && gaps[0].contains("No space left"), "{gaps:?}");
}

#[test]
fn output_that_comes_too_fast_is_dropped_and_told_or_waits() {
    let out: Vec<u8> = (0..2000).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    let rate = Rate { lines_per_second: 1000, lines_burst: 100, ..Rate::default() };
    let limits = |when_fast| LogLimits { rates: [rate; 2], when_fast, ..LogLimits::default() };

    let mut fixture = Fixture::new();
    fixture.limit(limits(WhenFast::Drop));
    fixture.out().write_all(&out).unwrap();
    let stats = fixture.wait_for_stats("all read", |stats| stats.stdout.bytes == out.len() as u64);
    assert!(stats.stdout.rate_limited > 0 && stats.stdout.dropped == stats.stdout.rate_limited, "{stats:?}");
    let drained = fixture.exit();
    assert_eq!((drained.complete, drained.stats.stdout.lines), (false, 2000));
    let log = std::fs::read_to_string(fixture.log_path()).unwrap();
    let gap = log.lines().find_map(|line| line.split_once("F:gap podinit: ")).unwrap().1;
    assert!(gap.contains("faster than the rate limit"), "{gap}");

    let mut fixture = Fixture::new();
    fixture.limit(limits(WhenFast::Block));
    fixture.out().write_all(&out).unwrap();
    let stats = fixture.wait_for_stats("all read", |stats| stats.stdout.bytes == out.len() as u64);
    assert!(stats.stdout.throttled_ns > 0 && stats.stdout.dropped == 0, "{stats:?}");
    assert!(fixture.exit().complete);
    assert!(payload(&fixture.log_path(), "stdout") == out);
}

#[test]
fn pods_limit_holds_for_all_containers_and_can_be_lifted() {
    let mut fixture = Fixture::new();
    fixture.relay.set_pod_rate(Rate { bytes_per_second: 1, ..Rate::default() });
    let out = lines(100_000);
    fixture.out().write_all(&out).unwrap();
    fixture.wait_for_stats("throttled", |stats| stats.stdout.throttled_ns > 0);
    assert!(fixture.stats().stdout.bytes < 1000);
    fixture.relay.set_pod_rate(Rate::default());
    fixture.wait_for_stats("all read", |stats| stats.stdout.bytes == out.len() as u64);
    assert!(fixture.exit().complete);
}

#[test]
fn client_that_does_not_read_neither_stops_the_log_nor_stays() {
    let mut fixture = Fixture::new();
    let idle = fixture.attach(false);
    let out = lines(8 << 20);
    fixture.out().write_all(&out).unwrap();
    let drained = fixture.exit();
    assert!(drained.complete);
    assert_eq!(drained.stats.clients_cut_off, 1);
    assert!(payload(&fixture.log_path(), "stdout") == out);
    let (seen, told, done) = idle.receive_all();
    assert!(out.starts_with(&seen) && !done);
    assert!(String::from_utf8(told).unwrap().contains("attach ended"));
}

#[test]
fn slow_client_gets_all_of_a_burst() {
    let mut fixture = Fixture::new();
    let slow = fixture.attach(false);
    let out = lines(4 << 20);
    let (mut stdout, bytes) = (fixture.stdout.take().unwrap(), out.clone());
    let writer = std::thread::spawn(move || stdout.write_all(&bytes).unwrap());
    let mut seen = Vec::new();
    while seen.len() < out.len() {
        // Slower than the writer, and without a clock.
        (0..10).for_each(|_| drop(fixture.stats()));
        let packet = slow.receive();
        assert_eq!(packet[0], 2);
        seen.extend_from_slice(&packet[1..]);
    }
    writer.join().unwrap();
    assert!(seen == out);
    let drained = fixture.exit();
    assert_eq!(drained.stats.clients_cut_off, 0);
    assert_eq!(slow.receive(), [0]);
}

#[test]
fn client_that_leaves_does_not_end_stdin_for_the_next_one() {
    let mut fixture = Fixture::new();
    let first = fixture.attach(false);
    first.send(b"one ");
    drop(first);
    fixture.wait_for_stats("gone", |stats| stats.clients == 0);
    let second = fixture.attach(true);
    second.send(b"two");
    second.half_close();
    let mut got = String::new();
    fixture.stdin.take().unwrap().read_to_string(&mut got).unwrap();
    assert_eq!(got, "one two");
    fixture.out().write_all(b"bye").unwrap();
    fixture.exit();
    assert_eq!(second.receive_all(), (b"bye".to_vec(), Vec::new(), true));
}

#[test]
fn with_stdin_once_the_writer_ends_stdin_and_a_watcher_does_not() {
    let mut fixture = Fixture::new();
    let watcher = fixture.attach(true);
    let writer = fixture.attach(true);
    fixture.wait_for_stats("both", |stats| stats.clients == 2);
    writer.send(b"one ");
    drop(watcher);
    fixture.wait_for_stats("watcher gone", |stats| stats.clients == 1);
    writer.send(b"two");
    drop(writer);
    let mut got = String::new();
    fixture.stdin.take().unwrap().read_to_string(&mut got).unwrap();
    assert_eq!(got, "one two");
    fixture.exit();
}

#[test]
fn container_that_does_not_read_stdin_holds_its_client_and_loses_nothing() {
    let mut fixture = Fixture::new();
    let client = fixture.attach(true);
    let input = lines(2 << 20);
    let sent = input.clone();
    let sender = std::thread::spawn(move || {
        sent.chunks(32 << 10).for_each(|packet| client.send(packet));
        // The last packets are unread when the client goes.
        drop(client);
    });
    // Output goes on meanwhile.
    fixture.out().write_all(b"busy\n").unwrap();
    fixture.wait_for_stats("busy", |stats| stats.stdout.lines == 1);
    let mut got = Vec::new();
    fixture.stdin.take().unwrap().read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == input, "{} of {}", got.len(), input.len());
    fixture.exit();
}

#[test]
fn container_that_has_closed_its_output_gets_all_of_its_input() {
    let mut fixture = Fixture::new();
    let early = fixture.attach(true);
    (fixture.stdout, fixture.stderr) = (None, None);
    let late = fixture.attach(true);
    fixture.wait_for_stats("both", |stats| stats.clients == 2);
    let input = lines(2 << 20);
    let sent = input.clone();
    let sender = send_all(late, sent);
    let mut got = Vec::new();
    fixture.stdin.take().unwrap().read_to_end(&mut got).unwrap();
    assert!(got == input, "{} of {} bytes", got.len(), input.len());
    // Both directions have ended, and the process has not.
    for client in [early, sender.join().unwrap()] {
        assert_eq!(client.receive_all(), (Vec::new(), Vec::new(), true));
    }
    fixture.exit();
}

#[test]
fn empty_packet_before_the_last_ones_is_not_the_end() {
    let mut fixture = Fixture::new();
    let client = fixture.attach(true);
    // The pipe is full, so nothing of what follows is taken before the client is gone.
    let filling = vec![b'x'; 128 << 10];
    filling.chunks(32 << 10).for_each(|packet| client.send(packet));
    ["", "one ", "", "", "two"].iter().for_each(|packet| client.send(packet.as_bytes()));
    drop(client);
    let mut got = Vec::new();
    fixture.stdin.take().unwrap().read_to_end(&mut got).unwrap();
    assert_eq!(String::from_utf8(got.split_off(filling.len())).unwrap(), "one two");
    fixture.exit();
}

#[test]
fn attach_socket_is_private_made_again_and_never_replaces_a_file() {
    let mut fixture = Fixture::new();
    let long = fixture.directory.path().join("d".repeat(150));
    std::fs::create_dir(&long).unwrap();
    let path = long.join("attach");
    fixture.make_socket(&path, false);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fixture.make_socket(&path, false);
    // Clients remove the file when the last of them leaves.
    std::fs::remove_file(&path).unwrap();
    fixture.make_socket(&path, false);
    podinit::sys::socket::connect(&path, SocketType::SEQPACKET).unwrap();

    let file = long.join("file");
    std::fs::write(&file, "precious").unwrap();
    let attach = Attach { path: file.clone(), stdin_end: StdinEnd::Keep, replay: 0 };
    assert!(answer(|reply| fixture.relay.attach(fixture.id, attach, reply)).is_err());
    fixture.exit();
    assert!(!path.exists());
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn finished_stream_is_forgotten_and_its_descriptors_are_closed() {
    let mut fixture = Fixture::new();
    let mut still_held = fixture.stdout.take().unwrap();
    assert!(!fixture.finish(Duration::ZERO).complete);
    assert_eq!(still_held.write(b"late").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(answer(|reply| fixture.relay.stats(fixture.id, reply)), None);
}

#[test]
fn abandoned_stream_leaves_no_log() {
    let fixture = Fixture::new();
    assert!(fixture.log_path().exists());
    fixture.relay.abandon(fixture.id);
    answer(|reply| fixture.relay.stop(reply));
    assert!(!fixture.log_path().exists());
}

#[test]
fn relay_that_stops_writes_what_it_has_read_and_what_is_in_the_pipes() {
    let mut fixture = Fixture::new();
    fixture.out().write_all(&lines(60_000)).unwrap();
    answer(|reply| fixture.relay.stop(reply));
    assert!(payload(&fixture.log_path(), "stdout") == lines(60_000));
}

#[test]
fn follower_sees_everything_across_rotation_and_reopen_and_stops_at_the_end() {
    use podinit::monitor::log::reader::{Next, Selection, follow};
    use std::ops::ControlFlow;
    let mut fixture = Fixture::with(100 << 10, None);
    let exited = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (path, stop) = (fixture.log_path(), rustix::io::dup(&exited).unwrap());
    let (pieces, seen) = channel();
    let follower = std::thread::spawn(move || {
        follow(&path, &Selection::default(), &stop, &mut |next| {
            let Next::Piece(piece) = next else { return ControlFlow::Continue(()) };
            let mut bytes = piece.payload.to_vec();
            bytes.extend_from_slice(if piece.ends_line { b"\n" } else { b"" });
            pieces.send(bytes).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap()
    });
    let out = lines(1 << 20);
    let mut got = Vec::new();
    for (round, part) in out.chunks(40 << 10).enumerate() {
        fixture.out().write_all(part).unwrap();
        // The follower may be one rotation behind, not more: files before that are gone.
        let end = (round * 40) << 10;
        while got.len() + 200 < end {
            got.extend(seen.recv_timeout(DEADLINE).unwrap());
        }
        if round % 7 == 3 {
            // Not in the middle of a rotation of ours.
            let written = out.iter().take(((round * 40) << 10) + part.len());
            let lines = written.filter(|byte| **byte == b'\n').count() as u64;
            fixture.wait_for_stats("written", |stats| stats.stdout.lines == lines);
            std::fs::rename(
                fixture.log_path(),
                fixture.directory.path().join(format!("ctr.log.20261123-{round:06}")),
            )
            .unwrap();
            fixture.reopen();
        }
    }
    fixture.exit();
    rustix::io::write(&exited, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(follower.join().unwrap().malformed, 0);
    got.extend(seen.iter().flatten());
    assert!(got == out, "{} of {}", got.len(), out.len());
}
