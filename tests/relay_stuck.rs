//! A log whose write never returns must cost nobody else anything: not another
//! container, not a question, not an end.

#![allow(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use podinit::monitor::log::limit::{LogLimits, WhenStuck};
use podinit::monitor::log::{LogConfig, LogKind, LogSet};
use podinit::monitor::relay::{
    Attach, Drained, Notice, Open, Output, Relay, StdinEnd, StreamId, StreamStats,
};
use rustix::net::SocketType;

#[path = "common/asked.rs"]
mod asked;
#[path = "common/fuse.rs"]
mod fuse;

use asked::{DEADLINE, answer, stats, wait_for_stats};
use fuse::SlowDisk;

/// A container that the test plays.
struct Container<'a> {
    relay: &'a Relay,
    id: StreamId,
    stdout: Option<File>,
}

impl<'a> Container<'a> {
    fn new(relay: &'a Relay, log: &Path) -> Self {
        let config = LogConfig::new(LogKind::Cri, log.to_owned());
        let logs = LogSet::open(&[config]).unwrap();
        let (stdout, out) = rustix::pipe::pipe().unwrap();
        let (stderr, _err) = rustix::pipe::pipe().unwrap();
        let output = Output::Pipes { stdout, stderr };
        let open = Open { output, stdin: None, stdin_guard: None, logs, capture_max: None };
        Self { relay, id: relay.open(open).unwrap(), stdout: Some(out.into()) }
    }

    fn print(&mut self, text: &str) {
        self.stdout.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn stats(&self) -> StreamStats {
        stats(self.relay, self.id)
    }

    fn wait_for_lines(&self, count: u64) {
        self.wait_for("lines", |stats| stats.stdout.lines >= count);
    }

    fn wait_for(&self, what: &str, reached: impl Fn(&StreamStats) -> bool) -> StreamStats {
        wait_for_stats(self.relay, self.id, what, reached)
    }

    fn limit(&self, limits: LogLimits) {
        answer(|reply| self.relay.set_limits(self.id, limits, reply)).unwrap();
    }

    fn exit(mut self, grace: Duration) -> Drained {
        self.stdout = None;
        answer(|reply| self.relay.finish(self.id, grace, reply))
    }
}

/// The lines of a log of stdout.
fn lines(log: &[u8]) -> Vec<String> {
    let text = String::from_utf8(log.to_vec()).unwrap();
    text.lines().map(|line| line.split_once(" stdout F ").unwrap().1.to_owned()).collect()
}

/// Payload bytes (without newlines) and lines that the gap records of a log tell.
fn missing(log: &str) -> (u64, u64) {
    let gaps = log.lines().filter_map(|line| line.split_once(" stdout F:gap podinit: "));
    let numbers = gaps.map(|(_, text)| {
        let words: Vec<&str> = text.split(' ').collect();
        (words[0].parse::<u64>().unwrap(), words[3].parse::<u64>().unwrap())
    });
    numbers.fold((0, 0), |sum, gap| (sum.0 + gap.0, sum.1 + gap.1))
}

struct Scene {
    disk: SlowDisk,
    relay: Relay,
    notices: Receiver<Notice>,
    // After the disk: a directory with something mounted cannot be removed.
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = directory.path().join("disk");
        std::fs::create_dir(&mounted).unwrap();
        let disk = SlowDisk::mount(&mounted);
        let (told, notices) = channel();
        let told = std::sync::Mutex::new(told);
        let tell = move |_, notice| drop(told.lock().unwrap().send(notice));
        Self { disk, relay: Relay::start_telling(Box::new(tell)).unwrap(), notices, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[test]
fn others_are_read_asked_attached_and_ended_while_a_log_is_stuck_and_it_loses_nothing() {
    let scene = Scene::new();
    let mut stuck = Container::new(&scene.relay, &scene.disk.log());
    let mut other = Container::new(&scene.relay, &scene.path("other.log"));
    stuck.print("one\n");
    scene.disk.wait_for_a_write();

    for number in 0..100 {
        other.print(&format!("line {number}\n"));
    }
    other.wait_for_lines(100);
    assert_eq!(stuck.stats().stdout.bytes, 4);
    let path = scene.path("attach");
    let attach = Attach { path: path.clone(), stdin_end: StdinEnd::Keep, replay: 0 };
    answer(|reply| scene.relay.attach(stuck.id, attach, reply)).unwrap();
    podinit::sys::socket::connect(&path, SocketType::SEQPACKET).unwrap();
    assert!(other.exit(DEADLINE).complete);
    assert_eq!(lines(&std::fs::read(scene.path("other.log")).unwrap()).len(), 100);

    // The container is held back by its pipe, and by nothing else.
    stuck.print("two\nthree\n");
    scene.disk.release();
    let drained = stuck.exit(DEADLINE);
    let stats = &drained.stats;
    assert!(drained.complete && stats.stdout.stall_longest_ns >= 10_000_000, "{drained:?}");
    assert_eq!(stats.stdout.stall_longest_ns, stats.stall_longest_ns);
    assert!(stats.stderr.stall_longest_ns < stats.stdout.stall_longest_ns, "it printed nothing: {drained:?}");
    assert_eq!(lines(&scene.disk.content()), ["one", "two", "three"]);
}

#[test]
fn log_that_stays_stuck_delays_an_end_for_a_while_and_says_later_what_is_missing() {
    let scene = Scene::new();
    let mut stuck = Container::new(&scene.relay, &scene.disk.log());
    stuck.print("one\n");
    scene.disk.wait_for_a_write();
    stuck.print("two\nthree\n");
    let drained = stuck.exit(Duration::from_millis(50));
    assert!(!drained.complete);
    assert_eq!(drained.stats.stdout.dropped, 8);

    scene.disk.release();
    let until = Instant::now() + DEADLINE;
    while lines_so_far(&scene.disk) < 2 {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    answer(|reply| scene.relay.stop(reply));
    let log = String::from_utf8(scene.disk.content()).unwrap();
    assert!(log.contains(" stdout F one\n"), "{log}");
    assert!(log.contains(" stdout F:gap podinit: 8 bytes in 2 lines of stdout are missing: "), "{log}");
}

fn lines_so_far(disk: &SlowDisk) -> usize {
    disk.content().iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn many_stuck_logs_cost_a_healthy_one_nothing_and_their_threads_end() {
    let scene = Scene::new();
    let mut stuck: Vec<_> = (0..8).map(|_| Container::new(&scene.relay, &scene.disk.log())).collect();
    let mut other = Container::new(&scene.relay, &scene.path("other.log"));
    for container in &mut stuck {
        container.print("waits\n");
    }
    scene.disk.wait_for_a_write();
    other.print("does not\n");
    other.wait_for_lines(1);
    scene.disk.release();
    for container in stuck {
        assert!(container.exit(DEADLINE).complete);
    }
    assert_eq!(lines(&scene.disk.content()), ["waits"; 8]);
    assert!(other.exit(DEADLINE).complete);
    let until = Instant::now() + DEADLINE;
    // The leader stays, for as long as the relay does. Other tests have relays too.
    let relay_threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name == "relay\n").count()
    };
    while relay_threads() > 3 {
        assert!(Instant::now() < until, "{} threads", relay_threads());
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn container_that_shall_not_wait_goes_on_and_the_log_tells_what_it_lost() {
    for when_stuck in [WhenStuck::DropOldest, WhenStuck::DropNewest] {
        let scene = Scene::new();
        let mut container = Container::new(&scene.relay, &scene.disk.log());
        container.limit(LogLimits { when_stuck, buffer_bytes: 100_000, ..LogLimits::default() });
        container.print("first\n");
        scene.disk.wait_for_a_write();
        // Far more than pipe and buffer hold: none of it may wait.
        let line = |number: u32| format!("line {number} {}\n", "x".repeat(100));
        let (count, mut printed) = (20_000, 6);
        for number in 0..count {
            container.print(&line(number));
            printed += line(number).len() as u64;
        }
        let stats = container.wait_for("all of it read", |stats| stats.stdout.bytes == printed);
        assert!(stats.buffered <= 101_000 && stats.stdout.dropped > 1_000_000, "{stats:?}");
        scene.disk.release();
        container.wait_for("nothing that waits", |stats| stats.buffered == 0);
        container.print("last\n");
        let drained = container.exit(DEADLINE);
        assert!(!drained.complete);

        let log = String::from_utf8(scene.disk.content()).unwrap();
        let (bytes, lost) = missing(&log);
        assert_eq!(bytes, drained.stats.stdout.dropped);
        let kept: Vec<&str> =
            log.lines().filter_map(|line| line.split_once(" stdout F ")).map(|(_, text)| text).collect();
        assert_eq!(kept.len() as u64 + lost, u64::from(count) + 2);
        assert_eq!(drained.stats.stdout.lines, u64::from(count) + 2);
        assert_eq!((kept[0], kept[kept.len() - 1]), ("first", "last"));
        let newest = line(count - 1);
        let has_newest = kept.contains(&newest.trim_end());
        assert_eq!(has_newest, when_stuck == WhenStuck::DropOldest);
        let told = scene.notices.try_iter().filter(|notice| matches!(notice, Notice::Gap(_))).count();
        assert!((1..=2).contains(&told), "{told}");
    }
}
