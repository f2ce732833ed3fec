//! The init programs, with real namespaces, signals, terminals and processes.
//! Needs root, and util-linux (unshare, nsenter, setpriv, setsid, kill).
//!
//! Where a test must see something happen, it waits for it, at most [`PATIENCE`].
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]
#![allow(unsafe_code)] // `attacker` makes system calls that no safe wrapper offers, on purpose.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use podinit::init::{self, survey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `done` is true: the kernel has no event for what these tests wait for.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "still waiting until {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// One field of `/proc/<pid>/status`.
fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn kill(signal: i32, pid: u32) {
    let sent = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -{signal} {pid}");
}

/// The init of a command, as a file.
fn command_program() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = init::path_in(directory.path()).unwrap();
    // Another test's fork may hold the file open for writing until its exec.
    let is_busy = |error: std::io::Error| error.raw_os_error() == Some(libc::ETXTBSY);
    until("the file can be executed", || !Command::new(&path).arg("-V").output().is_err_and(is_busy));
    (directory, path)
}

/// A process that ends with the test, whatever happens.
struct Guard(Child);

impl Guard {
    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "process {} does not end", self.0.id());
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn lines(&mut self) -> Lines {
        Lines(BufReader::new(self.0.stdout.take().unwrap()))
    }
}

/// What a process says, line by line; each within [`PATIENCE`].
struct Lines(BufReader<ChildStdout>);

impl Iterator for Lines {
    type Item = std::io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.buffer().is_empty() {
            let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
            let mut fds = [PollFd::new(self.0.get_ref(), PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "a line, or the end");
        }
        // They are written whole.
        self.0.by_ref().lines().next()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // Not by unshare's --kill-child: the kernel forgets that when init changes its user.
            let below: Vec<u32> = children(self.0.id())
                .into_iter()
                .flat_map(|pid| [vec![pid], children(pid)].concat())
                .collect();
            for pid in below {
                rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).ok();
            }
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// A pid namespace with the pod's init as its PID 1.
struct Pod {
    unshare: Guard,
    init: u32,
    _image: OwnedFd,
}

impl Pod {
    fn start(grace_ms: u32) -> Self {
        let image = init::image().unwrap();
        let program = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
        let child = Command::new("unshare")
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--",
                &program,
                "pod-1234567890",
                &grace_ms.to_string(),
            ])
            .env("SECRET", "of the host")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let unshare = Guard(child);
        until("init has given up its rights", || {
            children(unshare.0.id()).first().is_some_and(|init| status(*init, "Seccomp") == "2")
        });
        let init = children(unshare.0.id())[0];
        Self { unshare, init, _image: image }
    }

    /// A command that runs in the pod, as a child of ours: PID 1 sees its parent as outside.
    fn inside(&self, program: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--pid", "--target", &self.init.to_string(), "--"]).args(program);
        command
    }

    /// Runs a shell script in the pod and leaves it there, as an orphan of PID 1. Returns
    /// when the script, given `$1`, has created that file.
    fn daemon(&self, script: &str) {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready");
        let script = format!("{{ {script}\n }} >/dev/null 2>&1 </dev/null &");
        let status = self.inside(&["sh", "-c", &script, "sh", ready.to_str().unwrap()]).status().unwrap();
        assert!(status.success());
        until("the daemon is ready", || ready.exists());
    }

    fn living(&self) -> usize {
        survey::processes(self.init).unwrap().iter().filter(|process| !process.zombie).count()
    }

    fn stop(&mut self, signal: i32) -> i32 {
        kill(signal, self.init);
        let status = self.unshare.wait();
        status.code().unwrap_or_else(|| panic!("init was killed: {status:?}"))
    }
}

// --- the command's init -------------------------------------------------------------------------

#[test]
fn exit_codes_0_to_255_as_pid_1_and_as_subreaper() {
    let (_directory, program) = command_program();
    let program = program.to_str().unwrap();
    for code in 0..=255 {
        let script = format!("exit {code}");
        let first =
            Command::new("unshare").args(["-pf", program, "--", "sh", "-c", &script]).status().unwrap();
        let second = Command::new(program).args(["sh", "-c", &script]).status().unwrap();
        let mapped =
            Command::new(program).args(["-e", &code.to_string(), "sh", "-c", &script]).status().unwrap();
        assert_eq!(
            [first.code(), second.code(), mapped.code()],
            [Some(code), Some(code), Some(0)],
            "code {code}"
        );
    }
}

#[test]
fn command_that_dies_by_a_signal_gives_128_and_the_signal() {
    let (_directory, program) = command_program();
    for signal in [1, 2, 3, 6, 9, 10, 11, 13, 15, 24, 31, 34, 40, 64] {
        let script = format!("ulimit -c 0; kill -{signal} $$; exec sleep 100");
        let status =
            Command::new("unshare").arg("-pf").arg(&program).args(["sh", "-c", &script]).status().unwrap();
        assert_eq!(status.code(), Some(128 + signal), "signal {signal}");
    }
}

#[test]
fn commands_that_cannot_run_give_126_and_127() {
    let (directory, program) = command_program();
    let run = |command: &str| {
        let output = Command::new(&program).arg("--").arg(command).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(
        run("no-such-command"),
        (Some(127), "podinit: no-such-command: no such file (error 2)\n".to_owned())
    );
    assert_eq!(run("/etc/passwd/x").0, Some(127));
    assert_eq!(run("").0, Some(127));
    assert_eq!(
        run("/etc/passwd"),
        (Some(126), "podinit: /etc/passwd: permission denied (error 13)\n".to_owned())
    );
    let script = directory.path().join("script");
    fs::write(&script, "exit 55\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(run(script.to_str().unwrap()).0, Some(55), "a script without #! is for the shell");
}

/// Traps every signal that can be trapped, says so, and waits.
const TRAPS: &str = r#"
    for n in $(seq 1 64); do
        case $n in 9|19|17|32|33) ;; *) trap "echo $n" $n ;; esac
    done
    sleep 1000 & echo ready
    while :; do wait; done"#;

#[test]
fn every_signal_is_sent_on() {
    let (_directory, program) = command_program();
    for as_first in [true, false] {
        let mut command = Command::new(if as_first { "unshare" } else { "env" });
        command.args(if as_first { &["-pf", "--"] as &[_] } else { &["--"] }).arg(&program);
        let child = command.args(["--", "sh", "-c", TRAPS]).stdout(Stdio::piped()).spawn().unwrap();
        let mut guard = Guard(child);
        let mut lines = guard.lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let init = if as_first { children(guard.0.id())[0] } else { guard.0.id() };
        // Not those that cannot be caught, that tell of children, that are the C library's own, or that are the
        // kernel's for a fault of init itself.
        for signal in (1..=64).filter(|n| ![9, 19, 17, 32, 33, 4, 5, 6, 7, 8, 11, 31].contains(n)) {
            kill(signal, init);
            assert_eq!(lines.next().unwrap().unwrap(), signal.to_string());
        }
        let shell = children(init)[0];
        children(shell).iter().for_each(|pid| kill(9, *pid));
        kill(9, shell);
        assert_eq!(guard.wait().code(), Some(137));
    }
}

#[test]
fn group_option_reaches_the_whole_group() {
    let (_directory, program) = command_program();
    let script = "(trap 'echo inner' USR1; echo ready; sleep 1000 & wait; wait) &
                  trap 'echo outer' USR1; echo ready; wait; wait; wait";
    for (option, expected) in [("-g", 2), ("-s", 1)] {
        let child = Command::new("unshare")
            .args(["-pf", "--"])
            .arg(&program)
            .args([option, "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut guard = Guard(child);
        let mut lines = guard.lines();
        assert_eq!([lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()], ["ready", "ready"]);
        let init = children(guard.0.id())[0];
        kill(10, init);
        let mut heard: Vec<String> = (0..expected).map(|_| lines.next().unwrap().unwrap()).collect();
        heard.sort();
        assert_eq!(heard, if expected == 2 { vec!["inner", "outer"] } else { vec!["outer"] });
    }
}

#[test]
fn stop_and_continue_reach_the_command() {
    let (_directory, program) = command_program();
    let child = Command::new(&program).args(["sleep", "1000"]).spawn().unwrap();
    let guard = Guard(child);
    until("the command runs", || {
        children(guard.0.id()).first().is_some_and(|pid| status(*pid, "Name") == "sleep")
    });
    let command = children(guard.0.id())[0];
    kill(20, guard.0.id());
    until("the command is stopped", || status(command, "State").starts_with('T'));
    kill(18, guard.0.id());
    until("the command goes on", || status(command, "State").starts_with('S'));
    kill(15, guard.0.id());
}

#[test]
fn parent_death_signal_reaches_the_command() {
    let (directory, program) = command_program();
    let file = directory.path().join("told");
    let script = format!("trap 'echo > {}; exit' USR2; sleep 1000 & echo ready; wait", file.display());
    // The shell in between is the parent that dies.
    let child = Command::new("sh")
        .args(["-c", "\"$@\"; :", "sh"])
        .arg(&program)
        .args(["-p", "USR2", "--", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut guard = Guard(child);
    let mut lines = guard.lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let command = children(children(guard.0.id())[0])[0];
    let sleeper = children(command);
    kill(9, guard.0.id());
    until("the command was told", || file.exists());
    sleeper.iter().for_each(|pid| kill(9, *pid));
}

#[test]
fn what_is_left_is_ended_and_waited_for_if_asked() {
    let (directory, program) = command_program();
    let script = "(trap 'echo done > $0; exit' TERM; echo > $1; while :; do sleep 0.01; done) &
                  while ! test -e $1; do sleep 0.01; done; exit 5";
    for (number, wrapper) in [&["unshare", "-pf"] as &[&str], &["env"]].iter().enumerate() {
        let [done, ready] = ["done", "ready"].map(|name| directory.path().join(format!("{name}{number}")));
        let status = Command::new(wrapper[0])
            .args(&wrapper[1..])
            .arg(&program)
            .args(["--wait", "--", "sh", "-c", script])
            .args([&done, &ready])
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(5));
        assert!(done.exists(), "{wrapper:?}: the process that was left could not finish");
    }
}

#[test]
fn orphans_of_a_command_are_reaped_while_it_runs() {
    let (_directory, program) = command_program();
    let script = "for i in $(seq 200); do (true &) ; done; echo ready; read x";
    for option in ["-s", "-w"] {
        let child = Command::new("unshare")
            .args(["-pf", "--"])
            .arg(&program)
            .args([option, "--", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut guard = Guard(child);
        assert_eq!(guard.lines().next().unwrap().unwrap(), "ready");
        let init = children(guard.0.id())[0];
        until("only the command is left", || survey::processes(init).unwrap().len() == 1);
        drop(guard.0.stdin.take());
        assert_eq!(guard.wait().code(), Some(1));
    }
}

/// A terminal, and the init on it as the leader of a session.
fn on_terminal(program: &Path, arguments: &[&str]) -> (fs::File, Guard) {
    use rustix::pty;
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let name = pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = || Stdio::from(fs::OpenOptions::new().read(true).write(true).open(&name).unwrap());
    let child = Command::new("setsid")
        .args(["--ctty", "--wait"])
        .arg(program)
        .args(arguments)
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .unwrap();
    (fs::File::from(master), Guard(child))
}

/// Reads from a terminal until `text` has come.
fn read_until(master: &mut fs::File, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut byte = [0];
        master.read_exact(&mut byte).unwrap();
        seen.push(char::from(byte[0]));
    }
}

#[test]
fn command_gets_the_terminal_and_its_keys() {
    let (_directory, program) = command_program();
    let (mut master, mut guard) = on_terminal(
        &program,
        &[
            "-e",
            "0",
            "--",
            "sh",
            "-c",
            "trap 'echo heard; exit 7' INT; echo ready; while :; do sleep 0.05; done",
        ],
    );
    read_until(&mut master, "ready");
    master.write_all(b"\x03").unwrap();
    read_until(&mut master, "heard");
    assert_eq!(guard.wait().code(), Some(7));
}

#[test]
fn stop_key_stops_init_too_and_continue_gives_the_terminal_back() {
    let (_directory, program) = command_program();
    // A session leader's own group may not be stopped from the terminal (it would be orphaned), so, as in a shell,
    // init runs in a session that somebody else leads.
    let program = program.to_str().unwrap();
    let (mut master, mut guard) = on_terminal(
        Path::new("/bin/bash"),
        &[
            "--norc",
            "-c",
            "set -m; \"$@\"; echo stopped; fg >/dev/null; echo end $?",
            "bash",
            program,
            "--",
            "sh",
            "-c",
            "echo ready; read x; exit 9",
        ],
    );
    read_until(&mut master, "ready");
    master.write_all(b"\x1a").unwrap();
    read_until(&mut master, "stopped");
    master.write_all(b"line\n").unwrap();
    read_until(&mut master, "end 9");
    guard.wait();
}

#[test]
fn podinit_init_and_the_name_pause_lead_to_the_programs() {
    let podinit = env!("CARGO_BIN_EXE_podinit");
    let status = Command::new(podinit).args(["init", "--", "sh", "-c", "exit 42"]).status().unwrap();
    assert_eq!(status.code(), Some(42));
    let output = Command::new(podinit).args(["init", "--version"]).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        concat!("podinit ", env!("CARGO_PKG_VERSION"), "\n")
    );
    // Rust's runtime ignores SIGPIPE; a command must not inherit that.
    let output =
        Command::new(podinit).args(["init", "grep", "SigIgn", "/proc/self/status"]).output().unwrap();
    let ignored = String::from_utf8(output.stdout).unwrap();
    let ignored = u64::from_str_radix(ignored.trim().strip_prefix("SigIgn:\t").unwrap(), 16).unwrap();
    assert_eq!(ignored & (1 << 12), 0, "{ignored:x}");

    let directory = tempfile::tempdir().unwrap();
    let pause = directory.path().join("pause");
    std::os::unix::fs::symlink(podinit, &pause).unwrap();
    let child = Command::new("unshare").args(["-pf"]).arg(&pause).stderr(Stdio::piped()).spawn().unwrap();
    let mut guard = Guard(child);
    until("pause sleeps", || {
        children(guard.0.id()).first().is_some_and(|init| status_is(*init, "Seccomp", "2"))
    });
    kill(15, children(guard.0.id())[0]);
    assert_eq!(guard.wait().code(), Some(0));
    let mut said = String::new();
    guard.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("told to end by signal 15"), "{said}");
}

fn status_is(pid: u32, field: &str, value: &str) -> bool {
    status(pid, field) == value
}

// --- the pod's init -----------------------------------------------------------------------------

#[test]
fn nothing_to_steal() {
    let mut pod = Pod::start(1000);
    let proc = |name: &str| format!("/proc/{}/{name}", pod.init);
    assert_eq!(fs::read_dir(proc("fd")).unwrap().count(), 0, "open descriptors");
    let environment = fs::read(proc("environ")).unwrap();
    assert!(environment.iter().all(|byte| *byte == 0), "{:?}", String::from_utf8_lossy(&environment));
    assert_eq!(fs::read_link(proc("cwd")).unwrap(), Path::new("/"));
    let executable = fs::read_link(proc("exe")).unwrap();
    assert!(executable.to_str().unwrap().starts_with("/memfd:podinit-init"), "{executable:?}");
    let written = fs::OpenOptions::new().write(true).open(proc("exe"));
    assert!(written.is_err() || written.unwrap().write_all(b"x").is_err(), "the sealed file can be written");
    for (field, value) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000020"), // CAP_KILL
        ("CapEff", "0000000000000020"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Threads", "1"),
        ("Groups", ""),
        ("Uid", "4294967293\t4294967293\t4294967293\t4294967293"),
    ] {
        assert_eq!(status(pod.init, field), value, "{field}");
    }
    let title = fs::read_to_string(proc("cmdline")).unwrap();
    assert_eq!(title.trim_end_matches('\0').split('\0').next().unwrap(), "podinit: pod-1234567890");
    assert_eq!(status(pod.init, "Name"), "podinit:pod-123");
    // One page of program, one of stack, and nothing else that can be written or executed.
    let maps = fs::read_to_string(proc("maps")).unwrap();
    assert!(maps.lines().filter(|line| !line.contains("[v")).count() <= 2, "{maps}");
    assert_eq!(pod.stop(15), 0);
}

#[test]
fn inside_cannot_end_it_by_any_signal_and_outside_can() {
    let mut pod = Pod::start(1000);
    for signal in 1..=64 {
        let sent = pod.inside(&["kill", &format!("-{signal}"), "1"]).status().unwrap();
        assert!(sent.success());
    }
    // A signal whose sender's pid is forged to 0 looks like one from outside, but for its code.
    for (signal, code) in [(15, -1), (2, -1), (15, -2), (15, -3), (2, -60)] {
        attack(&pod, &format!("forge {signal} {code}"));
    }
    let here = pod.inside(&["sh", "-c", "kill -0 1 && echo alive"]).output().unwrap();
    assert_eq!(String::from_utf8(here.stdout).unwrap(), "alive\n");
    until("it sleeps again", || status(pod.init, "State").starts_with('S'));
    assert_eq!(pod.stop(15), 0);
}

/// Runs [`attacker`] in the pod; panics unless it succeeds.
fn attack(pod: &Pod, what: &str) {
    let this = std::env::current_exe().unwrap();
    let output = pod
        .inside(&[this.to_str().unwrap(), "--exact", "attacker", "--nocapture"])
        .env("PODINIT_ATTACK", what)
        .output()
        .unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stdout));
}

/// Not a test by itself: what `attack` runs inside of a pod. Succeeds if PID 1 withstands.
#[test]
fn attacker() {
    let Ok(what) = std::env::var("PODINIT_ATTACK") else { return };
    let words: Vec<&str> = what.split(' ').collect();
    match words.as_slice() {
        ["forge", signal, code] => {
            let mut info = [0i32; 32]; // siginfo_t: si_signo, si_errno, si_code, padding, si_pid = 0
            info[0] = signal.parse().unwrap();
            info[2] = code.parse().unwrap();
            // SAFETY: the array has siginfo_t's 128 bytes.
            let sent = unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, 1, info[0], info.as_ptr()) };
            assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
        }
        ["limits"] => {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the new limit lives across the call; the old one is not asked for.
            let set = unsafe { libc::prlimit(1, libc::RLIMIT_CPU, &raw const none, std::ptr::null_mut()) };
            assert_eq!(set, -1, "PID 1 can be ended by a limit of its processor time");
        }
        ["memory"] => {
            // SAFETY: PTRACE_SEIZE takes no pointer that is followed.
            let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, 1, 0, 0) };
            assert_eq!(traced, -1, "PID 1 can be traced");
            let mut byte = 0u8;
            let to = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let from = libc::iovec { iov_base: 0x1000 as *mut _, iov_len: 1 };
            // SAFETY: one byte of ours is written at most; the other address is the other process'.
            let read = unsafe { libc::process_vm_readv(1, &raw const to, 1, &raw const from, 1, 0) };
            let error = std::io::Error::last_os_error();
            assert_eq!((read, error.raw_os_error()), (-1, Some(libc::EPERM)), "memory of PID 1 can be read");
        }
        other => panic!("{other:?}"),
    }
}

/// What a process tries on PID 1 with a proc file system of the namespace. Prints what worked.
const PROBES: &str = r#"
    for file in mem environ maps auxv io syscall stack fd/0; do
        head -c1 /proc/1/$file >/dev/null 2>&1 && test -n "$(head -c1 /proc/1/$file | od)" && echo read $file
    done
    for link in exe cwd root fd/0 ns/net; do readlink /proc/1/$link >/dev/null 2>&1 && echo follow $link; done
    test -n "$(ls /proc/1/fd 2>/dev/null)" && echo list fd
    for file in mem exe comm timerslack_ns uid_map setgroups attr/current $WRITE; do
        (echo 1 >/proc/1/$file) 2>/dev/null && echo write $file
    done
    renice -n 5 -p 1 >/dev/null 2>&1 && echo renice
    taskset -p 1 1 >/dev/null 2>&1 && echo taskset
    :"#;

/// Runs the probes in the pod, behind `wrapper`.
fn probe(pod: &Pod, wrapper: &[&str], write: &str) -> String {
    let script = format!("mount -t proc proc /proc && WRITE='{write}' exec \"$@\"");
    let output = pod
        .inside(&["unshare", "--mount", "sh", "-c", &script, "sh"])
        .args(wrapper)
        .args(["sh", "-c", PROBES])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn root_with_a_containers_usual_capabilities_and_kill_cannot_touch_it() {
    let mut pod = Pod::start(1000);
    let capabilities = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
                        +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
    let wrapper = ["setpriv", "--bounding-set", capabilities];
    assert_eq!(probe(&pod, &wrapper, ""), "");
    let this = std::env::current_exe().unwrap();
    for what in ["limits", "memory"] {
        let output = pod
            .inside(&wrapper)
            .arg(&this)
            .args(["--exact", "attacker", "--nocapture"])
            .env("PODINIT_ATTACK", what)
            .output()
            .unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(pod.stop(15), 0);
}

#[test]
fn every_capability_of_a_user_namespace_of_the_pod_cannot_touch_it() {
    let mut pod = Pod::start(1000);
    // As in a pod with a user namespace: all capabilities there, CAP_SYS_PTRACE and CAP_KILL among them.
    let user = ["setpriv", "--reuid", "100000", "--regid", "100000", "--clear-groups"];
    let wrapper = [&user as &[_], &["unshare", "--user", "--map-root-user"]].concat();
    assert_eq!(probe(&pod, &wrapper, "oom_score_adj coredump_filter clear_refs"), "");
    let killed = pod.inside(&wrapper).args(["kill", "-KILL", "1"]).status().unwrap();
    assert!(!killed.success(), "not even a signal that would be ignored may be sent");
    let this = std::env::current_exe().unwrap();
    for what in ["limits", "memory"] {
        let output = pod
            .inside(&wrapper)
            .arg(&this)
            .args(["--exact", "attacker", "--nocapture"])
            .env("PODINIT_ATTACK", what)
            .output()
            .unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(pod.stop(15), 0);
}

#[test]
fn every_capability_behind_the_wall_cannot_trace_read_or_signal_it() {
    let mut pod = Pod::start(1000);
    let this = std::env::current_exe().unwrap();
    // Not by /proc/<pid>/ns, which takes the right to trace: as a runtime does, by the pinned namespace.
    let behind = |program: &[&str]| {
        let mut command = Command::new("nsenter");
        command.arg("--pid=/proc/self/fd/0").arg("--").args(program).env("PODINIT_ATTACK", "memory");
        command.stdin(fs::File::open(format!("/proc/{}/ns/pid", pod.init)).unwrap());
        let confined = move || podinit::sys::landlock::confine_thread().and_then(|()| command.output());
        std::thread::spawn(confined).join().unwrap()
    };
    let output = match behind(&[this.to_str().unwrap(), "--exact", "attacker", "--nocapture"]) {
        Ok(output) => output,
        Err(error) => return println!("not tested: Landlock of this kernel has no signal scope: {error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!behind(&["kill", "-KILL", "1"]).unwrap().status.success());
    // What an OCI runtime does in there still works.
    let script = "mount -t proc proc /proc && kill -0 $$ && test -r /proc/self/environ";
    assert!(behind(&["unshare", "--mount", "sh", "-c", script]).unwrap().status.success());
    assert_eq!(pod.stop(15), 0);
}

#[test]
fn orphans_vanish_without_waking_it_up() {
    let mut pod = Pod::start(1000);
    let switches = |pod: &Pod| status(pod.init, "voluntary_ctxt_switches");
    let before = switches(&pod);
    for _ in 0..10 {
        let made =
            pod.inside(&["sh", "-c", "for i in $(seq 100); do (sleep 0.001 &); done"]).status().unwrap();
        assert!(made.success());
    }
    until("all orphans are gone", || survey::processes(pod.init).unwrap().is_empty());
    assert_eq!(switches(&pod), before);
    assert_eq!(pod.stop(15), 0);
}

#[test]
fn survey_names_the_living_and_the_zombies() {
    let mut pod = Pod::start(1000);
    pod.daemon("sleep 1000 & sleep 0.1 & : > $1; exec tail -f /dev/null");
    let mut found = Vec::new();
    // Until each has executed what it is named for, and the one that nobody collects has ended.
    until("all are what they shall be", || {
        found = survey::processes(pod.init).unwrap();
        let mut names: Vec<_> = found.iter().map(|process| (process.name.as_str(), process.zombie)).collect();
        names.sort_unstable();
        names == [("sleep", false), ("sleep", true), ("tail", false)]
    });
    assert!(
        found.iter().all(|process| process.pid > 1 && process.pid < 1000),
        "pids are the pod's: {found:?}"
    );
    assert_eq!(pod.stop(15), 0);
    assert!(survey::processes(pod.init).is_err());
}

#[test]
fn processes_may_finish_and_the_grace_time_ends_with_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let mut pod = Pod::start(600_000);
    pod.daemon(&format!(
        "trap 'sleep 0.2; echo > {}; exit' TERM; : > $1; while :; do sleep 0.01; done",
        done.display()
    ));
    assert_eq!(pod.stop(15), 0);
    assert!(done.exists());
}

#[test]
fn stopped_process_can_finish_too() {
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let mut pod = Pod::start(600_000);
    pod.daemon(&format!("trap 'echo > {}; exit' TERM; : > $1; while :; do sleep 0.01; done", done.display()));
    let daemon = children(pod.init)[0];
    kill(19, daemon);
    until("it is stopped", || status(daemon, "State").starts_with('T'));
    assert_eq!(pod.stop(15), 0);
    assert!(done.exists());
}

#[test]
fn whoever_ignores_term_is_killed_after_the_grace_time_and_counted() {
    let mut pod = Pod::start(100);
    pod.daemon("trap '' TERM; sleep 1000 & sleep 1000 & : > $1; exec sleep 1000");
    pod.daemon("trap 'exit' TERM; : > $1; while :; do sleep 0.01; done");
    assert_eq!(pod.stop(15), 3);
}

#[test]
fn second_order_or_an_interrupt_ends_the_grace_time() {
    for signals in [&[15, 15] as &[i32], &[15, 2], &[2]] {
        let mut pod = Pod::start(600_000);
        pod.daemon("trap '' TERM; : > $1; exec sleep 1000");
        for signal in &signals[..signals.len() - 1] {
            kill(*signal, pod.init);
            // It has begun when it wants to know of children again.
            until("the end has begun", || {
                let ignored = u64::from_str_radix(&status(pod.init, "SigIgn"), 16).unwrap();
                ignored & (1 << (17 - 1)) == 0
            });
        }
        assert_eq!(pod.stop(signals[signals.len() - 1]), 1, "{signals:?}");
    }
}

#[test]
fn a_thousand_processes_end_in_order() {
    let mut pod = Pod::start(60_000);
    pod.daemon("for i in $(seq 1000); do sleep 1000 & done; : > $1; wait");
    assert!(pod.living() > 1000);
    assert_eq!(pod.stop(15), 0);
}

#[test]
fn processes_that_fork_while_dying_are_ended_too() {
    let mut pod = Pod::start(300);
    // Each of 20 answers TERM with 5 children that ignore it, and goes on: a bounded bomb.
    let script = "trap 'for i in 1 2 3 4 5; do (trap \"\" TERM; exec sleep 1000) & done' TERM
                  for i in $(seq 20); do (while :; do sleep 0.01; done) & done
                  : > $1; while :; do sleep 0.01; done";
    pod.daemon(script);
    let code = pod.stop(15);
    assert!(code >= 1, "{code}");
}

#[test]
fn orphans_that_come_during_the_end_are_reaped() {
    let mut pod = Pod::start(60_000);
    pod.daemon(
        "trap 'for i in $(seq 50); do (sleep 0.05 &); done; exit' TERM; : > $1; while :; do sleep 0.01; done",
    );
    assert_eq!(pod.stop(15), 0);
}

#[test]
fn first_process_of_a_container_is_waited_for_although_its_parent_is_outside() {
    let mut pod = Pod::start(600_000);
    let child = pod
        .inside(&["sh", "-c", "trap 'sleep 0.2; exit 33' TERM; echo ready; while :; do sleep 0.01; done"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut guard = Guard(child);
    assert_eq!(guard.lines().next().unwrap().unwrap(), "ready");
    kill(15, pod.init);
    // Its exit code is its parent's to collect, not PID 1's.
    assert_eq!(guard.wait().code(), Some(33));
    assert_eq!(pod.unshare.wait().code(), Some(0));
}

#[test]
fn kill_from_outside_ends_the_namespace_at_once() {
    let mut pod = Pod::start(600_000);
    pod.daemon("trap '' TERM; : > $1; exec sleep 1000");
    rustix::process::kill_process(Pid::from_raw(pod.init.cast_signed()).unwrap(), Signal::KILL).unwrap();
    assert!(!pod.unshare.wait().success());
    until("the namespace is gone", || !Path::new(&format!("/proc/{}", pod.init)).exists());
}

#[test]
fn image_is_sealed_and_one_page() {
    use rustix::fs::SealFlags;
    let image = init::image().unwrap();
    let seals = rustix::fs::fcntl_get_seals(&image).unwrap();
    assert!(
        seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL),
        "{seals:?}"
    );
    assert!(rustix::io::write(&image, b"x").is_err());
    let size = rustix::fs::fstat(&image).unwrap().st_size;
    assert!(size <= 4096, "{size} bytes: a pod would pay for a second page");
}

#[test]
fn file_for_containers_is_replaced_only_if_it_differs() {
    let directory = tempfile::tempdir().unwrap();
    let path = init::path_in(directory.path()).unwrap();
    let first = fs::metadata(&path).unwrap();
    init::path_in(directory.path()).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());
    assert_eq!(first.mode() & 0o7777, 0o555);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "something else").unwrap();
    init::path_in(directory.path()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), first.len());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "temporary files are left");
}
