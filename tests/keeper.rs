//! The keeper over the deaths of its monitor: the built binary, with a monitor
//! of this file's own. That monitor is this very test program, started again
//! with [`ROLE`] in its environment: it speaks the real link, and does what a
//! test tells it through the listening socket it was passed.
//!
//! ```text
//!   test ── starts ──▶ podinit keeper ── starts ──▶ this program as a monitor
//!     └──── one line in, one line out, over the listening socket ────┘
//! ```
//!
//! Since the keeper holds that socket, a question asked while no monitor runs
//! is answered by the next one: no test sleeps.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use podinit::keeper::{
    Ended, LINK_FD, LISTENER_FD, LOCK_FD, Link, MONITOR_LOCK_FD, REPORT_FD, ToKeeper, ToMonitor, report,
};
use podinit::sys::{fd, socket, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketType;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// In the environment of a monitor: how it starts.
const ROLE: &str = "KEEPER_TEST_MONITOR";

/// Bound on every wait; nothing that passes comes near it.
const DEADLINE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

fn wait_readable(fd: impl AsFd, what: &str) {
    let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&DEADLINE)));
    assert_ne!(ready, Ok(0), "{what} did not come");
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap()).unwrap()
}

/// Waits until a process that is not our child has ended. It may have already.
fn wait_gone(number: u32) {
    if let Ok(pidfd) = pidfd_open(pid(number), PidfdFlags::empty()) {
        wait_readable(&pidfd, "the end of a process");
    }
}

// ---------------------------------------------------------------- the monitor

/// The test program as a monitor; without [`ROLE`], nothing.
#[test]
fn monitor_of_this_file() {
    if let Some(role) = std::env::var_os(ROLE) {
        Monitor::start(role.to_str().unwrap()).serve();
    }
}

struct Monitor {
    listener: UnixListener,
    link: Link,
    _lock: OwnedFd,
    restarts: u32,
    keeper: u32,
    kept: BTreeMap<String, OwnedFd>,
    exits: Vec<String>,
    refused: Vec<String>,
    deaf: bool,
}

impl Monitor {
    fn start(role: &str) -> Self {
        let mut monitor = Self {
            listener: fd::take_inherited(LISTENER_FD).unwrap().into(),
            link: Link::new(fd::take_inherited(LINK_FD).unwrap()),
            _lock: fd::take_inherited(MONITOR_LOCK_FD).unwrap(),
            restarts: u32::MAX,
            keeper: 0,
            kept: BTreeMap::new(),
            exits: Vec::new(),
            refused: Vec::new(),
            deaf: false,
        };
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        match role {
            "die" => std::process::abort(),
            "fail" => monitor.link.send(&ToKeeper::Failed("no such runtime: /x/crun")).unwrap(),
            "hang" => loop {
                wait_readable(&monitor.listener, "nothing: it hangs");
            },
            _ => {}
        }
        if role == "fail" {
            std::process::abort();
        }
        while !monitor.hear() {
            wait_readable(&monitor.link, "HelloDone");
        }
        monitor.link.send(&ToKeeper::Ready).unwrap();
        monitor
    }

    /// Takes in what the keeper sent; whether HelloDone was there.
    fn hear(&mut self) -> bool {
        let mut done = false;
        while let Some(message) = self.link.receive().unwrap() {
            match message {
                ToMonitor::Hello { restarts, keeper_pid } => {
                    assert_eq!(self.restarts, u32::MAX, "one Hello");
                    (self.restarts, self.keeper) = (restarts, keeper_pid);
                }
                ToMonitor::Kept { name, fd } => drop(self.kept.insert(name, fd)),
                ToMonitor::Refused { name } => self.refused.push(name),
                ToMonitor::Exited(exit) => {
                    assert!(exit.at_ns > 1_600_000_000_000_000_000, "{exit:?}");
                    self.exits.push(match exit.how {
                        Ended::Code(code) => format!("{}:{code}", exit.pid),
                        Ended::Signal(signal) => format!("{}:signal-{signal}", exit.pid),
                    });
                }
                ToMonitor::HelloDone => done = true,
                ToMonitor::Terminate if self.deaf => {}
                ToMonitor::Terminate => self.goodbye(),
            }
        }
        done
    }

    fn goodbye(&self) -> ! {
        self.link.send(&ToKeeper::Goodbye).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
        unreachable!("killed")
    }

    fn serve(mut self) {
        loop {
            let mut fds =
                [PollFd::new(&self.link, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            let (told, asked) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if told {
                self.hear();
            }
            if asked && let Ok((client, _)) = self.listener.accept() {
                client.set_nonblocking(false).unwrap();
                let mut line = String::new();
                BufReader::new(&client).read_line(&mut line).unwrap();
                let answer = self.answer(line.trim_end());
                writeln!(&client, "{answer}").unwrap();
            }
        }
    }

    fn answer(&mut self, question: &str) -> String {
        let (verb, rest) = question.split_once(' ').unwrap_or((question, ""));
        match verb {
            "pid" => std::process::id().to_string(),
            "hello" => format!("{} {}", self.restarts, self.keeper),
            "kept" => self.kept.keys().cloned().collect::<Vec<_>>().join(","),
            "keep" => {
                let (read, write) = rustix::pipe::pipe().unwrap();
                rustix::io::write(&write, rest.as_bytes()).unwrap();
                self.link.send(&ToKeeper::Keep { name: rest, fd: read.as_fd() }).unwrap();
                String::new()
            }
            "forget" => {
                self.link.send(&ToKeeper::Forget { name: rest }).unwrap();
                String::new()
            }
            "read" => {
                let mut buffer = [0; 64];
                let length = rustix::io::read(&self.kept[rest], &mut buffer).unwrap();
                String::from_utf8(buffer[..length].to_vec()).unwrap()
            }
            "spawn" => {
                let mut command = Command::new("sh");
                command.args(["-c", rest]).stdin(Stdio::null());
                let child = command.spawn().unwrap();
                let id = child.id().to_string();
                // Left to the keeper, as containers are when a monitor dies.
                std::mem::forget(child);
                id
            }
            "exit" => {
                while self.exits.is_empty() {
                    wait_readable(&self.link, "an Exited");
                    self.hear();
                }
                self.exits.remove(0)
            }
            "exits" => self.exits.join(","),
            "seen" => {
                self.link.send(&ToKeeper::Seen { pid: rest.parse().unwrap() }).unwrap();
                String::new()
            }
            "fill" => {
                // One descriptor under as many names as the keeper takes, and one more.
                for number in 0..=podinit::limits::KEPT_FDS_MAX {
                    let fd = self.listener.as_fd();
                    self.link.send(&ToKeeper::Keep { name: &format!("n{number}"), fd }).unwrap();
                }
                while self.refused.is_empty() {
                    wait_readable(&self.link, "a Refused");
                    self.hear();
                }
                self.refused.join(",")
            }
            "deaf" => {
                self.deaf = true;
                String::new()
            }
            "nonsense" => {
                rustix::net::send(&self.link, b"\xffnonsense", rustix::net::SendFlags::empty()).unwrap();
                String::new()
            }
            "goodbye" => self.goodbye(),
            _ => panic!("unknown question {question:?}"),
        }
    }
}

// ------------------------------------------------------------------- the test

/// A keeper in a directory of its own.
struct Keeper {
    directory: tempfile::TempDir,
    process: Child,
    report: Option<File>,
}

impl Keeper {
    /// A keeper whose monitor starts as `role` says, with `options` on its command line.
    fn start(role: &str, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = socket::listen(&directory.path().join("conmon.sock"), SocketType::STREAM, 16).unwrap();
        let lock = File::options().create_new(true).write(true).open(directory.path().join("lock")).unwrap();
        fs::write(directory.path().join("pidfile"), "1").unwrap();
        let (report, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_podinit"));
        command.arg("keeper").arg("--run-dir").arg(directory.path());
        command.args(["--restart-pause-max-ms", "1"]).args(options);
        let this = std::env::current_exe().unwrap();
        command.arg("--").arg(&this).arg(&this);
        command.args(["--exact", "monitor_of_this_file", "--nocapture"]).env(ROLE, role);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let passed = [(listener, LISTENER_FD), (lock.into(), LOCK_FD), (theirs, REPORT_FD)];
        let passed = passed.map(|(fd, number)| spawn::PassedFd { fd, number });
        spawn::prepare(&mut command, passed.into()).unwrap();
        let process = command.spawn().unwrap();
        drop(command);
        Self { directory, process, report: Some(report.into()) }
    }

    /// A keeper whose monitor serves.
    fn serving() -> Self {
        let mut keeper = Self::start("serve", &[]);
        assert_eq!(keeper.reported(), [report::READY]);
        keeper
    }

    /// What the launcher would read.
    fn reported(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        self.report.take().unwrap().read_to_end(&mut text).unwrap();
        text
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The present or the next monitor's answer; empty if it ends instead.
    fn ask(&self, question: &str) -> String {
        let stream = UnixStream::connect(self.path("conmon.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        writeln!(&stream, "{question}").unwrap();
        let mut line = String::new();
        match BufReader::new(&stream).read_line(&mut line) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                panic!("{question}: {error}")
            }
            _ => line.trim_end().to_owned(),
        }
    }

    fn monitor(&self) -> u32 {
        self.ask("pid").parse().unwrap()
    }

    /// Kills the monitor and waits until it is gone.
    fn kill_monitor(&self) {
        let monitor = self.monitor();
        let pidfd = pidfd_open(pid(monitor), PidfdFlags::empty()).unwrap();
        kill_process(pid(monitor), Signal::KILL).unwrap();
        wait_readable(&pidfd, "the monitor's end");
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.process.id()), signal).unwrap();
    }

    /// Waits for its end, which leaves nothing in its directory.
    fn ended(mut self) -> ExitStatus {
        let pidfd = pidfd_open(pid(self.process.id()), PidfdFlags::empty()).unwrap();
        wait_readable(&pidfd, "the keeper's end");
        let left: Vec<_> = fs::read_dir(self.directory.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [""; 0].map(PathBuf::from), "files are left");
        self.process.wait().unwrap()
    }

    /// Ends it with a request, which the monitor heeds.
    fn end(self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().code(), Some(0));
    }
}

impl Drop for Keeper {
    /// Only if a test has failed: the end of a keeper is a test's last line.
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::TERM);
            self.process.wait().unwrap();
        }
    }
}

fn status_field(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn a_killed_monitor_is_replaced_and_the_pid_stays() {
    let keeper = Keeper::serving();
    let id = keeper.process.id();
    assert_eq!(keeper.ask("hello"), format!("0 {id}"));
    let first = keeper.monitor();
    keeper.kill_monitor();
    assert_ne!(keeper.monitor(), first);
    assert_eq!(keeper.ask("hello"), format!("1 {id}"));
    keeper.end();
}

#[test]
fn descriptors_survive_a_monitor_killed_right_after_it_sent_them() {
    let keeper = Keeper::serving();
    for name in ["c1/stdout", "c1/stderr", "gone"] {
        keeper.ask(&format!("keep {name}"));
    }
    keeper.ask("forget gone");
    keeper.ask("forget never-there");
    keeper.kill_monitor();
    assert_eq!(keeper.ask("kept"), "c1/stderr,c1/stdout");
    assert_eq!(keeper.ask("read c1/stdout"), "c1/stdout", "its content, too");
    keeper.ask("forget c1/stdout");
    keeper.kill_monitor();
    assert_eq!(keeper.ask("kept"), "c1/stderr");
    keeper.end();
}

#[test]
fn statuses_of_orphans_are_told_to_each_monitor_until_seen() {
    let keeper = Keeper::serving();
    let script = "while ! [ -e go ]; do sleep 0.01; done; exit 42";
    let script = script.replace("go", keeper.path("go").to_str().unwrap());
    let living: u32 = keeper.ask(&format!("spawn {script}")).parse().unwrap();
    keeper.kill_monitor();
    assert_eq!(keeper.ask("exits"), "", "it runs");
    fs::write(keeper.path("go"), "").unwrap();
    assert_eq!(keeper.ask("exit"), format!("{living}:42"));
    fs::remove_file(keeper.path("go")).unwrap();

    keeper.kill_monitor();
    assert_eq!(keeper.ask("exits"), format!("{living}:42"), "not seen, so told again");
    keeper.ask(&format!("seen {living}"));
    keeper.kill_monitor();
    assert_eq!(keeper.ask("exits"), "");

    let killed = keeper.ask("spawn kill -40 $$");
    keeper.kill_monitor();
    assert_eq!(keeper.ask("exit"), format!("{killed}:signal-40"), "of a real-time signal, too");
    keeper.end();
}

#[test]
fn what_does_not_fit_is_refused_and_the_rest_is_kept() {
    let keeper = Keeper::serving();
    let last = podinit::limits::KEPT_FDS_MAX;
    assert_eq!(keeper.ask("fill"), format!("n{last}"));
    keeper.kill_monitor();
    assert_eq!(keeper.ask("kept").split(',').count(), last);
    keeper.end();
}

#[test]
fn goodbye_ends_the_pod_with_all_that_is_below() {
    let keeper = Keeper::serving();
    let orphan: u32 = keeper.ask("spawn setsid sleep 600 & exec sleep 600").parse().unwrap();
    keeper.ask("goodbye");
    assert_eq!(keeper.ended().code(), Some(0));
    wait_gone(orphan);
}

#[test]
fn int_and_term_end_it_in_order_and_other_signals_do_not() {
    for signal in [Signal::TERM, Signal::INT] {
        let keeper = Keeper::serving();
        let monitor = keeper.monitor();
        for harmless in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::PIPE, Signal::QUIT, Signal::ALARM] {
            keeper.signal(harmless);
        }
        assert_eq!(keeper.monitor(), monitor);
        keeper.signal(signal);
        assert_eq!(keeper.ended().code(), Some(0));
    }
}

#[test]
fn a_monitor_that_hangs_is_killed_with_everything_below_it() {
    let mut keeper = Keeper::start("serve", &["--stop-timeout-ms", "200"]);
    assert_eq!(keeper.reported(), [report::READY]);
    let directory = keeper.path("pids");
    fs::create_dir(&directory).unwrap();
    // A tree three deep, in sessions of its own, that ignores TERM.
    let script = format!(
        "trap '' TERM; cd {}; touch $$; setsid sh -c 'touch $$; setsid sh -c \"touch \\$\\$; touch done; \
         exec sleep 600\" & wait; exec sleep 600' & exec sleep 600",
        directory.display()
    );
    keeper.ask(&format!("spawn {script}"));
    while !directory.join("done").exists() {
        keeper.ask("pid");
    }
    keeper.ask("deaf");
    let pids: Vec<u32> = fs::read_dir(&directory)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    assert_eq!(pids.len(), 3);
    fs::remove_dir_all(&directory).unwrap();

    keeper.signal(Signal::TERM);
    assert_eq!(keeper.ended().code(), Some(1), "it was not in order");
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} has survived");
    }
}

#[test]
fn a_stop_while_the_monitor_is_dead_is_heeded_by_the_next() {
    let keeper = Keeper::serving();
    keeper.kill_monitor();
    keeper.end();
}

#[test]
fn a_monitor_that_talks_nonsense_is_replaced() {
    let keeper = Keeper::serving();
    keeper.ask("keep c1/stdout");
    let first = keeper.monitor();
    keeper.ask("nonsense");
    wait_gone(first);
    assert_eq!(keeper.ask("kept"), "c1/stdout");
    keeper.end();
}

#[test]
fn a_monitor_that_cannot_start_is_reported_with_its_own_sentence() {
    let mut keeper = Keeper::start("fail", &[]);
    assert_eq!(keeper.reported(), b"Fno such runtime: /x/crun");
    assert_eq!(keeper.ended().code(), Some(1));
}

#[test]
fn a_monitor_that_dies_before_it_serves_is_reported() {
    let mut keeper = Keeper::start("die", &[]);
    assert_eq!(keeper.reported(), b"Fsignal 6 killed the monitor before it served");
    assert_eq!(keeper.ended().code(), Some(1));
}

#[test]
fn a_launcher_that_goes_away_takes_the_pod_with_it() {
    let mut keeper = Keeper::start("hang", &["--stop-timeout-ms", "100"]);
    drop(keeper.report.take());
    assert_eq!(keeper.ended().code(), Some(1));
}

#[test]
fn in_the_foreground_the_sentence_goes_to_standard_error() {
    let this = std::env::current_exe().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let listener = socket::listen(&directory.path().join("conmon.sock"), SocketType::STREAM, 1).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_podinit"));
    command.args(["keeper", "--foreground", "--run-dir"]).arg(directory.path()).arg("--");
    command.arg(&this).args(["monitor", "--exact", "monitor_of_this_file"]).env(ROLE, "fail");
    let lock = tempfile::tempfile().unwrap();
    let passed = [(listener, LISTENER_FD), (lock.into(), LOCK_FD)];
    spawn::prepare(&mut command, passed.map(|(fd, number)| spawn::PassedFd { fd, number }).into()).unwrap();
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("podinit: no such runtime: /x/crun\n"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_keeper_started_by_hand_says_how_it_is_started() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podinit"));
    command.args(["keeper", "--foreground", "--nonsense"]);
    command.arg0("podinit");
    let null = || File::open("/dev/null").unwrap().into();
    let passed = [(null(), LISTENER_FD), (null(), LOCK_FD)];
    spawn::prepare(&mut command, passed.map(|(fd, number)| spawn::PassedFd { fd, number }).into()).unwrap();
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("podinit: podinit keeper: unknown option; "), "{said}");
}

#[test]
fn memory_and_descriptors_stay_the_same_over_200_monitors() {
    let keeper = Keeper::serving();
    let id = keeper.process.id();
    let measure = || {
        let fds = fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
        (status_field(id, "RssAnon"), status_field(id, "VmData"), status_field(id, "Threads"), fds)
    };
    let restart = || {
        keeper.ask("keep c1/stdout");
        let orphan = keeper.ask("spawn exit 3");
        keeper.kill_monitor();
        assert_eq!(keeper.ask("exit"), format!("{orphan}:3"));
        keeper.ask(&format!("seen {orphan}"));
        // The link keeps order: once this was answered by the next monitor, the above was heeded.
    };
    for _ in 0..5 {
        restart();
    }
    keeper.ask("pid");
    let before = measure();
    assert_eq!(before.2, "1", "one thread");
    for _ in 0..200 {
        restart();
    }
    keeper.ask("pid");
    assert_eq!(measure(), before);
    keeper.end();
}
