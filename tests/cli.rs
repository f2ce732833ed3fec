//! The commands for people, driven as people drive them: the built binary, real
//! pods, a real OCI runtime, pipes and a pseudo-terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use common::{Place, find_leaks, kill, pidfd, wait_readable};
use serde_json::Value;

/// A place of its own for the pods of one test; asserts at its end that nothing is left.
struct People {
    place: Place,
}

impl People {
    fn new() -> Self {
        Self { place: Place::new() }
    }

    /// A command line, with `ROOTFS` replaced by the root file system's path.
    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(common::binary());
        let rootfs = self.place.path("rootfs");
        for word in line {
            if *word == "ROOTFS" {
                command.arg(&rootfs)
            } else {
                command.arg(word)
            };
        }
        command
            .env("PODINIT_ROOT", self.place.path("run"))
            // So that whatever it leaves behind is known to be its own.
            .env("PODINIT_TEST_POD", &self.place.name)
            .env("TMPDIR", self.place.path("tmp"))
            .stdin(Stdio::null());
        command
    }

    fn output(&self, line: &[&str]) -> Output {
        self.command(line).output().expect("the binary runs")
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, line: &[&str]) -> String {
        let output = self.output(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line:?}: {}: {said}", output.status);
        assert_eq!(said, "", "{line:?} says something on standard error");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Exit code and standard error of a command that must not succeed.
    fn fails(&self, line: &[&str]) -> (i32, String) {
        let output = self.output(line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{line:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().expect("an exit code"), said)
    }

    fn json(&self, line: &[&str]) -> Value {
        let text = self.ok(&[line, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// A pod with a name that no other test has; containers take the names they like.
    fn pod(&self) -> String {
        self.ok(&["pod", "create", &self.place.name, "--runtime", "crun"]).trim().to_owned()
    }

    /// Runs a shell script in a pod of its own.
    fn run(&self, script: &str) -> Output {
        self.output(&["run", "--runtime", "crun", "--rootfs", "ROOTFS", "sh", "-c", script])
    }

    /// Makes and starts a container of `pod` that runs a shell script.
    fn start(&self, pod: &str, name: &str, script: &str) {
        self.ok(&["create", "--pod", pod, "--name", name, "--rootfs", "ROOTFS", "sh", "-c", script]);
        self.ok(&["start", &format!("{pod}/{name}")]);
    }

    fn pod_dirs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.place.path("run/pods")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for People {
    fn drop(&mut self) {
        let ids: Vec<String> = self
            .pod_dirs()
            .iter()
            .map(|dir| dir.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        if std::thread::panicking() {
            for id in ids {
                drop(self.command(&["pod", "rm", "-f", &id]).output());
            }
            return;
        }
        for id in ids {
            self.ok(&["pod", "stop", "-t", "0", &id]);
        }
        let left = find_leaks(&self.place.name, &self.place.path(""));
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}

/// Waits for a child, at most as long as any wait of a test.
fn end_of(mut child: Child) -> i32 {
    let gone = pidfd(child.id()).expect("a process");
    assert!(wait_readable(gone), "process {} does not end", child.id());
    child.wait().unwrap().code().expect("an exit code")
}

/// Reads until `text` has come, or the test's time is over.
fn read_until(from: &mut (impl Read + std::os::fd::AsFd), text: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        assert!(wait_readable(&*from), "{text:?} did not come: {:?}", String::from_utf8_lossy(&seen));
        let mut part = [0; 4096];
        let length = from.read(&mut part).unwrap_or(0);
        assert!(length > 0, "{text:?} did not come: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&part[..length]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Bytes of every value in no order that a text filter would leave alone.
fn binary_bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn run_exits_as_its_command_does() {
    let people = People::new();
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 137, 254, 255] {
        let output = people.run(&format!("exit {code}"));
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0));
    }
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        assert_eq!(people.run(&format!("kill -s {signal} $$")).status.code(), Some(code));
    }
    assert!(people.pod_dirs().is_empty(), "a pod is left");
}

#[test]
fn run_tells_its_own_failures_from_the_commands() {
    let people = People::new();
    people.place.rootfs_file("text", b"no program\n");
    for (line, code) in [
        (["run", "--rootfs", "ROOTFS", "no-such-command"].as_slice(), 127),
        (&["run", "--rootfs", "ROOTFS", "/bin/no-such-command"], 127),
        (&["run", "--rootfs", "ROOTFS", "/text"], 126),
        (&["run", "--rootfs", "/nowhere", "true"], 125),
        (&["run", "--bundle", "ROOTFS"], 125),
        (&["run", "--runtime", "/bin/false", "--rootfs", "ROOTFS", "true"], 125),
        (&["run", "--runtime", "no-such-runtime", "--rootfs", "ROOTFS", "true"], 125),
        (&["run", "--pod", "no-such-pod", "--rootfs", "ROOTFS", "true"], 125),
        (&["run", "--rootfs", "ROOTFS"], 2),
        (&["run", "true"], 2),
        (&["run", "--rootfs", "ROOTFS", "--name", "../x", "true"], 2),
        (&["run", "--rootfs", "ROOTFS", "--no-such-flag", "true"], 2),
        (&["run", "--pod", "p", "--host", "net", "--rootfs", "ROOTFS", "true"], 2),
    ] {
        let (found, said) = people.fails(line);
        assert_eq!(found, code, "{line:?}: {said}");
        assert!(!said.is_empty(), "{line:?} says nothing");
        assert!(people.pod_dirs().is_empty(), "{line:?} left its pod");
    }
}

#[test]
fn run_prints_both_streams_byte_for_byte() {
    let people = People::new();
    // No newline at the end, and lines of every length in between.
    let (out, err) = (binary_bytes(1 << 20), binary_bytes((1 << 20) + 7));
    people.place.rootfs_file("out", &out);
    people.place.rootfs_file("err", &err);
    let output = people.run("cat /out & cat /err >&2; wait; exit 3");
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout == out, "{} bytes instead of {}", output.stdout.len(), out.len());
    assert!(output.stderr == err, "{} bytes instead of {}", output.stderr.len(), err.len());
}

#[test]
fn container_is_in_the_pod_and_has_what_was_asked_for() {
    let people = People::new();
    fs::write(people.place.path("tmp/mounted"), "from outside\n").unwrap();
    let volume = format!("{}:/mnt:ro", people.place.path("tmp").display());
    let script = "hostname; echo $A; pwd; id -u; id -g; cat /mnt/mounted; touch /x || echo read-only; \
                  cat /proc/1/comm; echo $HOME";
    let line = [
        "run",
        "--hostname",
        "a-pod",
        "-e",
        "A=b c",
        "--cwd",
        "/tmp",
        "-u",
        "7:8",
        "-v",
        &volume,
        "--read-only",
        "--rootfs",
        "ROOTFS",
        "sh",
        "-c",
        script,
    ];
    fs::create_dir(people.place.path("rootfs/mnt")).unwrap();
    std::os::unix::fs::symlink("busybox", people.place.path("rootfs/bin/id")).unwrap();
    let output = people.output(&line);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..7],
        ["a-pod", "b c", "/tmp", "7", "8", "from outside", "read-only"],
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(lines[7].contains("podinit"), "PID 1 is {}", lines[7]);
    fs::remove_file(people.place.path("tmp/mounted")).unwrap();
}

#[test]
fn bundle_is_run_in_the_pod_and_left_as_it_is() {
    let people = People::new();
    let bundle = people.place.path("bundles/theirs");
    fs::create_dir(&bundle).unwrap();
    std::os::unix::fs::symlink(people.place.path("rootfs"), bundle.join("rootfs")).unwrap();
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "hostname": "theirs",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["sh", "-c", "hostname; exit 9"],
                     "env": ["PATH=/bin"], "cwd": "/" },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "uts" }] },
    });
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let output = people.output(&["run", "--hostname", "a-pod", "--bundle", bundle.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"a-pod\n");
    assert_eq!(fs::read_to_string(bundle.join("config.json")).unwrap(), config.to_string());
    fs::remove_file(bundle.join("rootfs")).unwrap();
}

#[test]
fn run_passes_signals_on_and_cleans_up() {
    let people = People::new();
    let script = "trap 'exit 7' TERM; trap 'exit 8' USR1; echo ready; while :; do sleep 0.1; done";
    for (signal, code) in [("TERM", 7), ("USR1", 8)] {
        let mut command = people.command(&["run", "--rootfs", "ROOTFS", "sh", "-c", script]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "ready");
        kill(child.id(), signal);
        assert_eq!(end_of(child), code, "{signal}");
        assert!(people.pod_dirs().is_empty(), "a pod is left");
    }
}

#[test]
fn run_kills_what_does_not_listen_at_the_third_signal() {
    let people = People::new();
    let script = "trap 'echo no' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = people.command(&["run", "--rootfs", "ROOTFS", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    read_until(&mut stdout, "ready");
    for _ in 0..2 {
        kill(child.id(), "TERM");
        read_until(&mut stdout, "no");
    }
    kill(child.id(), "TERM");
    assert_eq!(end_of(child), 137);
}

#[test]
fn run_ends_when_nobody_reads_any_more() {
    let people = People::new();
    let mut command = people.command(&["run", "--rootfs", "ROOTFS", "yes"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 2];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"y\n");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    // As `yes` itself would have ended.
    assert_eq!((end_of(child), said.as_str()), (141, ""));
}

#[test]
fn run_gives_a_command_its_input() {
    let people = People::new();
    let input = binary_bytes(1 << 20);
    let mut command = people.command(&["run", "-i", "--rootfs", "ROOTFS", "sh", "-c", "cat; echo end >&2"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let given = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&given).unwrap());
    let mut found = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut found).unwrap();
    writer.join().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((end_of(child), said.as_str()), (0, "end\n"));
    assert!(found == input, "{} bytes instead of {}", found.len(), input.len());
}

#[test]
fn run_puts_an_init_before_the_command() {
    let people = People::new();
    // The orphan's parent is the init, which is process 2 here: process 1 is the pod's.
    let script = "(sleep 0.1; grep PPid /proc/self/status) & cat /proc/$PPID/comm; wait; kill -TERM $$";
    let output = people.output(&["run", "--init", "--rootfs", "ROOTFS", "sh", "-c", script]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("podinit-init\n"), "{said}");
    assert_eq!(output.status.code(), Some(143), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn counters_are_told() {
    let people = People::new();
    let pod = people.pod();
    people.start(&pod, "c", "echo out; echo err >&2; : > /dev/null; sleep 600");
    people.ok(&["exec", "c", "true"]);
    let stats = |line: &[&str]| serde_json::from_str::<Value>(&people.ok(line)).unwrap();
    let streams = stats(&["stats", "c"]);
    assert_eq!(streams["stdout"]["dropped"], 0, "{streams}");
    let of_pod = stats(&["stats", "--pod", &pod]);
    assert_eq!((&of_pod["containers"], &of_pod["inits"][0]["zombies"]), (&1.into(), &0.into()), "{of_pod}");
    let network = stats(&["pod", "network", &pod]);
    assert_eq!(network["interfaces"][0]["name"], "lo", "{network}");
    assert_eq!(network["interfaces"][0]["up"], true, "{network}");
    people.ok(&["pod", "stop", "--time", "1", &pod]);
}

#[test]
fn limits_of_a_log_are_set_and_seen() {
    let people = People::new();
    let pod = people.pod();
    people.start(&pod, "c", "sleep 600");
    let limit = ["limit-logs", "c", "--rate-lines", "1000", "--burst-lines", "10", "--when-fast", "drop"];
    people.ok(&limit);
    people.ok(&["limit-logs", "--pod", &pod, "--rate-bytes", "100m"]);
    let stats = |line: &[&str]| serde_json::from_str::<Value>(&people.ok(line)).unwrap();
    let limits = stats(&["stats", "c"])["limits"].clone();
    assert_eq!(limits["stderr"]["lines_per_second"], 1000, "{limits}");
    assert_eq!((&limits["when_fast"], &limits["when_stuck"]), (&"drop".into(), &"block".into()), "{limits}");
    assert_eq!(stats(&["stats", "--pod", &pod])["log_total"]["bytes_per_second"], 100 << 20);

    let refused = people.output(&["limit-logs", "c", "--buffer", "1g"]);
    assert_eq!(refused.status.code(), Some(1), "more than a container may have");
    people.ok(&["rm", "--force", "c"]);
    people.ok(&["pod", "stop", "--time", "1", &pod]);
}

/// A pseudo-terminal and a command on it, in a session of its own.
fn on_terminal(mut command: Command) -> (fs::File, Child, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let slave = OwnedFd::from(slave);
    let size = rustix::termios::Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size).unwrap();
    let end = || Stdio::from(slave.try_clone().unwrap());
    let child = command.process_group(0).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    (fs::File::from(master), child, slave)
}

#[test]
fn run_on_a_terminal_is_a_terminal_inside() {
    let people = People::new();
    let script = "tty -s || test -t 0; stty size; trap 'stty size' WINCH; echo ready; \
                  while :; do read -r line || continue; echo \"got <$line>\"; [ \"$line\" != bye ] || exit 5; done";
    let command = people.command(&["run", "-it", "--rootfs", "ROOTFS", "sh", "-c", script]);
    let (mut terminal, child, slave) = on_terminal(command);
    let before = rustix::termios::tcgetattr(&slave).unwrap();
    let seen = read_until(&mut terminal, "ready");
    assert!(seen.contains("31 97"), "{seen:?}");
    let raw = rustix::termios::tcgetattr(&slave).unwrap();
    assert!(!raw.local_modes.contains(rustix::termios::LocalModes::ICANON), "the terminal is not raw");

    terminal.write_all(b"one two\r").unwrap();
    let seen = read_until(&mut terminal, "got <one two>");
    // Echoed once, by the container's terminal.
    assert_eq!(seen.matches("one two").count(), 2, "{seen:?}");

    let size = rustix::termios::Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size).unwrap();
    // The kernel tells the terminal's foreground group; this one has no session, so we do.
    kill(child.id(), "WINCH");
    terminal.write_all(b"next\r").unwrap();
    read_until(&mut terminal, "40 120");

    terminal.write_all(b"bye\r").unwrap();
    assert_eq!(end_of(child), 5);
    let after = rustix::termios::tcgetattr(&slave).unwrap();
    assert_eq!(after.local_modes, before.local_modes, "the terminal was not restored");
}

#[test]
fn containers_have_a_life_of_their_own() {
    let people = People::new();
    let pod = people.pod();
    people.start(&pod, "c", "echo out; echo err >&2; sleep 600");
    let listed = people.json(&["ps"]);
    assert_eq!((&listed[0]["container"], &listed[0]["state"]), (&"c".into(), &"running".into()));
    assert!(listed[0]["exit"].is_null() && listed[0]["pid"].is_u64(), "{listed}");

    let output = people.output(&["exec", "-e", "A=1", "c", "sh", "-c", "echo $A; echo e >&2; exit 3"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"1\n"[..], &b"e\n"[..]));
    assert_eq!(people.fails(&["exec", "c", "no-such-command"]).0, 127);
    assert_eq!(people.fails(&["exec", "no-such-container", "true"]).0, 125);
    assert_eq!(people.fails(&["exec", "--timeout", "1", "c", "sleep", "600"]).0, 124);

    let (code, said) = people.fails(&["rm", "c"]);
    assert_eq!(code, 1, "{said}");
    assert_eq!(people.ok(&["stop", "-t", "30", "c"]), format!("{pod}/c\n"));
    assert_eq!(people.ok(&["wait", "c"]), "143\n");
    let listed = people.json(&["ps", "--pod", &pod]);
    assert_eq!((&listed[0]["state"], &listed[0]["exit"]["signal"]), (&"exited".into(), &15.into()));
    assert_eq!(listed[0]["exit"]["log_complete"], true);

    people.ok(&["rm", "c"]);
    assert_eq!(people.json(&["ps"]), serde_json::json!([]));
    let dir = people.place.path("run/pods").join(&pod);
    assert!(!dir.join("bundles/c").exists() && !dir.join("logs/c.log").exists(), "its files are left");
}

#[test]
fn stop_kills_after_the_grace_time() {
    let people = People::new();
    let pod = people.pod();
    people.start(&pod, "c", "trap '' TERM; echo ready; while :; do sleep 0.1; done");
    let mut logs = people.command(&["logs", "-f", "c"]).stdout(Stdio::piped()).spawn().unwrap();
    read_until(logs.stdout.as_mut().unwrap(), "ready");
    people.ok(&["stop", "-t", "1", "c"]);
    assert_eq!(people.ok(&["wait", "c"]), "137\n");
    assert_eq!(end_of(logs), 0);
}

#[test]
fn logs_are_printed_followed_and_cut() {
    let people = People::new();
    let pod = people.pod();
    let go = people.place.path("rootfs/go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    people.start(
        &pod,
        "c",
        "for i in 1 2 3; do echo out $i; done; echo err >&2; read -r x </go; echo last; echo end",
    );
    let mut follow = people.command(&["logs", "-f", "c"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = follow.stdout.take().unwrap();
    let early = read_until(&mut stdout, "out 3\n");

    fs::write(&go, "go\n").unwrap();
    people.ok(&["wait", "c"]);
    let mut late = String::new();
    stdout.read_to_string(&mut late).unwrap();
    assert_eq!(early + &late, "out 1\nout 2\nout 3\nlast\nend\n");
    assert_eq!(end_of(follow), 0);

    assert_eq!(people.ok(&["logs", "--stdout", "--tail", "2", "c"]), "last\nend\n");
    let stderr = people.output(&["logs", "--stderr", "c"]);
    assert!(stderr.stdout.is_empty() && stderr.stderr.starts_with(b"err\n"));
    assert_eq!(people.ok(&["logs", "--stdout", "--since", "1h", "c"]), "out 1\nout 2\nout 3\nlast\nend\n");
    assert_eq!(people.ok(&["logs", "--since", "2999-01-01T00:00:00Z", "c"]), "");
    let stamped = people.ok(&["logs", "--stdout", "-t", "--tail", "2", "c"]);
    let first = stamped.lines().next().unwrap();
    assert!(
        first.ends_with("Z last") && first.len() == "2026-11-23T01:02:03.000000000Z last".len(),
        "{first}"
    );
}

#[test]
fn run_loses_nothing_when_its_log_is_rotated() {
    let people = People::new();
    let script =
        "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; [ $((i % 50)) != 0 ] || sleep 0.2; done";
    let line = ["run", "--log-size", "2k", "--rootfs", "ROOTFS", "sh", "-c", script];
    let wanted: String = (1..=300).map(|i| format!("line {i}\n")).collect();
    assert_eq!(people.ok(&line), wanted);
}

#[test]
fn log_is_audited_while_it_grows_at_its_end_and_with_a_part_missing() {
    let people = People::new();
    let pod = people.pod();
    let script = "seq 1 2000; read x; seq 1 2000; echo err >&2";
    let line = ["create", "--pod", &pod, "--name", "c", "-i", "--log-size", "20k", "--log-backups", "20"];
    people.ok(&[&line[..], &["--rootfs", "ROOTFS", "sh", "-c", script]].concat());
    people.ok(&["start", "c"]);
    let verify = ["logs", "--verify", &pod, "-c", "c"];
    let until = std::time::Instant::now() + common::DEADLINE;
    while people.ok(&["logs", "--tail", "1", "c"]) != "2000\n" {
        assert!(std::time::Instant::now() < until, "the first part is not there");
    }
    let said = people.ok(&verify);
    assert!(said.starts_with("complete so far: ") && said.contains("in 2000 records (2000 lines)"), "{said}");

    // The end of what was written, what follows, and the exit code; our input's end is the container's.
    let mut attached = people.command(&["attach", "--replay", "20", "c"]);
    let mut attached = attached.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    attached.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    let output = attached.wait_with_output().unwrap();
    let second: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("1997\n1998\n1999\n2000\n{second}"));
    assert_eq!(output.status.code(), Some(0));

    let said = people.ok(&verify);
    assert!(
        said.starts_with("complete: ") && said.contains("stderr: 3 bytes in 1 records (1 lines)"),
        "{said}"
    );
    let log = people.place.path("run").join("pods").join(&pod).join("logs/c.log");
    fs::remove_file(log.with_extension("log.2")).unwrap();
    let output = people.output(&verify);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("not complete: ") && said.contains("are missing before"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn detach_keys_leave_a_terminal_running_and_its_output_for_the_next_one() {
    let people = People::new();
    let pod = people.pod();
    let script = "stty -echo; echo ready; while read line; do echo got $line; done";
    let line = ["create", "--pod", &pod, "--name", "c", "-it", "--rootfs", "ROOTFS", "sh", "-c", script];
    people.ok(&line);
    people.ok(&["start", "c"]);
    let (mut terminal, child, _slave) = on_terminal(people.command(&["attach", "--replay", "1k", "c"]));
    read_until(&mut terminal, "ready");
    terminal.write_all(b"one\r").unwrap();
    read_until(&mut terminal, "got one");
    terminal.write_all(b"\x10\x11").unwrap();
    assert_eq!(end_of(child), 0);
    let line = ["attach", "--replay", "1k", "--detach-keys", "ctrl-x", "c"];
    let (mut terminal, child, _slave) = on_terminal(people.command(&line));
    read_until(&mut terminal, "got one");
    terminal.write_all(b"two\r").unwrap();
    read_until(&mut terminal, "got two");
    terminal.write_all(b"\x18").unwrap();
    assert_eq!(end_of(child), 0);
    people.ok(&["rm", "-f", "c"]);
}

#[test]
fn memory_limit_ends_in_an_oom_that_is_told() {
    let people = People::new();
    let pod = people.pod();
    let script = "tail /dev/zero";
    let line =
        ["run", "--pod", &pod, "--name", "c", "--memory", "16m", "--rootfs", "ROOTFS", "sh", "-c", script];
    assert_eq!(people.output(&line).status.code(), Some(137));
    let listed = people.json(&["ps"]);
    assert_eq!(listed[0]["exit"]["oom_killed"], true, "{listed}");
}

#[test]
fn name_that_several_containers_have_is_refused() {
    let people = People::new();
    let (one, two) = (format!("{}a", people.place.name), format!("{}b", people.place.name));
    for pod in [&one, &two] {
        people.ok(&["pod", "create", pod]);
        people.start(pod, "same", "sleep 600");
    }
    people.start(&one, "other", "sleep 600");
    let (code, said) = people.fails(&["exec", "same", "true"]);
    assert_eq!(code, 125);
    assert!(said.contains(&format!("{one}/same")) && said.contains(&format!("{two}/same")), "{said}");
    people.ok(&["exec", &format!("{two}/same"), "true"]);
    people.ok(&["exec", "other", "true"]);
}

#[test]
fn pods_are_listed_inspected_and_followed() {
    let people = People::new();
    let pod = people.pod();
    let listed = people.json(&["pod", "ls"]);
    assert_eq!((&listed[0]["pod"], &listed[0]["state"]), (&pod.as_str().into(), &"running".into()));
    let inspected = people.json(&["pod", "inspect", &pod]);
    let kinds: Vec<&str> =
        inspected["namespaces"].as_array().unwrap().iter().filter_map(|n| n["kind"].as_str()).collect();
    assert!(["net", "ipc", "uts", "pid"].iter().all(|kind| kinds.contains(kind)), "{inspected}");
    assert!(inspected["init_pid"].is_u64() && inspected["keeper_pid"].is_u64(), "{inspected}");

    people.start(&pod, "c", "exit 4");
    people.ok(&["wait", "c"]);
    let events = people.ok(&["events", &pod, "--count", "3", "--output", "json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(names, ["created", "started", "exited"]);
    assert_eq!(events[2]["exit"]["code"], 4);

    let (code, said) = people.fails(&["pod", "create", &pod]);
    assert!(code == 1 && said.contains("already"), "{said}");
    let (code, said) = people.fails(&["pod", "rm", &pod]);
    assert!(code == 1 && said.contains("podinit pod stop"), "{said}");
    people.ok(&["pod", "stop", &pod]);
    assert_eq!(people.json(&["pod", "ls"]), serde_json::json!([]));
    assert_eq!(people.fails(&["pod", "stop", &pod]).0, 1);
}

#[test]
fn pod_that_cannot_be_made_leaves_nothing() {
    let people = People::new();
    for line in [
        ["pod", "create", "--sysctl", "net.no.such=1"].as_slice(),
        &["pod", "create", "--ns", "net=/no/such/pin,pid"],
        &["pod", "create", "--runtime", "/no/such/runtime"],
    ] {
        let (code, said) = people.fails(line);
        assert_eq!(code, 1, "{said}");
        assert!(people.pod_dirs().is_empty(), "{line:?}");
    }
}

#[test]
fn what_a_crash_left_is_removed() {
    let people = People::new();
    let pod = people.pod();
    people.start(&pod, "c", "sleep 600");
    let keeper = people.json(&["pod", "inspect", &pod])["keeper_pid"].as_u64().unwrap();
    let keeper = u32::try_from(keeper).unwrap();
    let gone = pidfd(keeper).unwrap();
    let monitors: Vec<OwnedFd> = common::children_of(keeper).into_iter().filter_map(pidfd).collect();
    kill(keeper, "KILL");
    assert!(wait_readable(gone));
    // Whoever was below it: the monitor and PID 1 of the pod end too, or are ended by `rm`.
    people.ok(&["pod", "rm", "-f", &pod]);
    for process in monitors {
        assert!(wait_readable(process), "a child of the keeper lives on");
    }
    assert_eq!(people.json(&["pod", "ls"]), serde_json::json!([]));
}

#[test]
fn listing_into_a_closed_pipe_is_silent() {
    let people = People::new();
    let (read, write) = rustix::pipe::pipe().unwrap();
    drop(read);
    let mut command = people.command(&["ps"]);
    let output = command.stdout(Stdio::from(write)).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_pod_is_made_with_its_rules_and_its_plugins() {
    let people = People::new();
    let (rules, plugins) = (people.place.path("tmp/rules.json"), people.place.path("tmp/plugins.d"));
    fs::write(&rules, r#"{"version": 1, "rules": [{"name": "no-mkdir", "do": {"errno": 30}}]}"#).unwrap();
    fs::create_dir(&plugins).unwrap();
    let (rules, socket) = (rules.to_str().unwrap(), plugins.join("a.sock"));
    let plugins = plugins.to_str().unwrap();
    let line = ["--socket", socket.to_str().unwrap(), "--syscall", "rmdir", "--verdict", "errno:EPERM"];
    let listen = [&["seccomp", "answer", "--listen"], &line[..]].concat();
    let mut plugin = people.command(&listen).stdout(Stdio::piped()).spawn().unwrap();
    let pod = people.place.name.as_str();
    let made = ["pod", "create", pod, "--runtime", "crun", "--seccomp-rules", rules, "--plugin-dir", plugins];
    people.ok(&made);
    // Whoever traces starts the broker.
    let mut trace = people.command(&["seccomp", "trace", pod]).stdout(Stdio::null()).spawn().unwrap();
    let mut registered = [0; "registered\n".len()];
    plugin.stdout.take().unwrap().read_exact(&mut registered).unwrap();
    common::eventually(|| people.ok(&["seccomp", "ls", pod]).contains("EPERM"));
    let listed = people.ok(&["seccomp", "ls", pod]);
    assert!(listed.contains("no-mkdir") && listed.contains("answer"), "{listed}");
    let (code, said) = people.fails(&["seccomp", "profile", "gone"]);
    assert!(code == 1 && said.contains("POD/gone"), "{said}");
    for child in [&mut trace, &mut plugin] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    fs::remove_file(rules).unwrap();
    fs::remove_dir_all(plugins).unwrap();
}

/// Every command's help, as it was when somebody last looked at it. After a
/// change: `PODINIT_UPDATE_HELP=1 cargo test --test cli help`.
#[test]
fn help_is_what_it_was() {
    let commands = [
        "",
        "run",
        "pod",
        "pod create",
        "pod stop",
        "pod ls",
        "pod rm",
        "pod inspect",
        "create",
        "start",
        "exec",
        "logs",
        "ps",
        "wait",
        "stop",
        "rm",
        "events",
        "hook",
        "hook check",
        "hook run",
        "hook ls",
        "hook results",
        "seccomp",
        "seccomp ls",
        "seccomp trace",
        "seccomp profile",
        "seccomp stats",
        "seccomp check",
        "seccomp answer",
        "seccomp replay",
        "limit-logs",
    ];
    let mut text = String::new();
    for command in commands {
        let output = Command::new(common::binary())
            .args(command.split_whitespace())
            .arg("--help")
            .env_remove("PODINIT_ROOT")
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}");
        let help = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        text.push_str(
            &format!("$ podinit {command} --help\n{}\n\n", lines.join("\n"))
                .replace("podinit  --", "podinit --"),
        );
    }
    let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cli/help.txt");
    if std::env::var_os("PODINIT_UPDATE_HELP").is_some() {
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::write(&kept, &text).unwrap();
    }
    let wanted = fs::read_to_string(&kept).unwrap_or_default();
    assert!(wanted == text, "the help differs from {}; it is now:\n{text}", kept.display());
}
