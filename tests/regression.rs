//! What other monitors of pods got wrong, each once, by the name of what is guarded.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{DEADLINE, Options, Place, Pod, children_of, kill, pidfd, wait_readable, which};
use podinit::rpc::client::{
    Attach, CgroupManager, Client, CreateContainer, Ended, EventKind, ExecOutcome, ExecRequest, ExecSync,
    OomVictim, PodClient, StdinEof, Stdio,
};
use podinit::sys::socket;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, recv, send, sendmsg,
};
use serde_json::json;

/// Waits until `done`; the tests' deadline is its bound.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "still waiting for {what}");
        std::thread::yield_now();
    }
}

fn monitor_of(pod: &Pod) -> u32 {
    let is_monitor = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"monitor")
    };
    children_of(pod.keeper_pid()).into_iter().find(is_monitor).expect("a monitor")
}

fn exec_request(pod: &Pod, script: &str) -> ExecRequest {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    ExecRequest { id: pod.id("c"), command, ..ExecRequest::default() }
}

/// A container with a terminal.
fn with_terminal(pod: &Pod, name: &str, script: &str) {
    let mut request = pod.container_with(name, &["sh", "-c", script], |config| {
        config["process"]["terminal"] = json!(true);
    });
    request.stdio = Stdio::Terminal;
    pod.create(&request).expect("create");
}

#[test]
fn signal_ends_a_pod_whose_client_stays_connected() {
    let pod = Pod::start();
    pod.call(async |client| client.version().await).expect("version");
    kill(pod.keeper_pid(), "INT");
    pod.wait_end();
}

#[test]
fn resize_before_the_start_is_remembered() {
    let pod = Pod::start();
    with_terminal(&pod, "c", "stty size");
    pod.call(async |client| client.set_window_size(&pod.id("c"), 132, 43).await).expect("resize");
    pod.start_container("c");
    pod.wait("c");
    assert_eq!(String::from_utf8(pod.log("c").stdout).unwrap(), "43 132\r\n");
}

#[test]
fn reopen_and_resize_during_an_exec_reach_the_container() {
    let pod = Pod::start();
    with_terminal(
        &pod,
        "c",
        "until [ -e /tmp/go ]; do sleep 0.1; done; stty size; until [ -e /tmp/end ]; do sleep 0.1; done",
    );
    pod.start_container("c");
    let (id, rotated) = (pod.id("c"), pod.log_path("c").with_extension("1"));
    let request = exec_request(&pod, "echo running; while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 5");
    pod.call(async |client| {
        let exec = client.exec(&request);
        let meanwhile = async {
            fs::rename(pod.log_path("c"), &rotated).expect("rotate");
            client.reopen_log(&id).await.expect("reopen");
            client.set_window_size(&id, 99, 11).await.expect("resize");
            let go = exec_request(&pod, "touch /tmp/go");
            client.exec(&go).await.expect("exec");
        };
        let (result, ()) = tokio::join!(exec, meanwhile);
        let result = result.expect("exec");
        assert!(matches!(result.outcome, ExecOutcome::Exited(exit) if exit.shell_code() == Some(5)));
        assert_eq!(result.stdout, b"running\n");
    });
    pod.exec_stdout("c", "touch /tmp/end");
    pod.wait("c");
    assert_eq!(String::from_utf8(pod.log("c").stdout).unwrap(), "11 99\r\n");
    assert_eq!(fs::read(&rotated).expect("the old log"), b"");
}

/// A runtime that is crun but for its `exec` and for `create` of what is called `bad`.
fn half_broken(place: &Place) -> PathBuf {
    let crun = which("crun");
    let text = format!(
        r#"case "$*" in *" exec "*|*create*bad) echo "it went wrong" >&2; exit 3;; esac
exec {} "$@""#,
        crun.display()
    );
    place.script("runtime", &text)
}

#[test]
fn runtime_that_dies_before_it_sends_the_terminal_is_an_error() {
    let place = Place::new();
    let runtime = half_broken(&place);
    let pod = Pod::start_in(place, Options { runtime: Some(runtime), ..Options::default() });
    pod.run("c", "exec sleep 600");

    let mut request = pod.container("bad", &["true"]);
    request.stdio = Stdio::Terminal;
    let error = pod.create(&request).expect_err("a runtime that fails");
    assert!(error.to_string().contains("it went wrong"), "{error}");

    let request = ExecRequest { stdio: Stdio::Terminal, ..exec_request(&pod, "true") };
    let result = pod.call(async |client| client.exec(&request).await).expect("an answer");
    assert!(
        matches!(&result.outcome, ExecOutcome::NotStarted(said) if said.contains("it went wrong")),
        "{result:?}"
    );
    assert_eq!(files_in(&pod.run_dir().join("sockets")), Vec::<String>::new());
}

fn files_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn exec_leaves_no_file_however_it_ends() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    let missing = ["no-such-program"].map(str::to_owned).to_vec();
    let slow = exec_request(&pod, "exec sleep 600");
    for request in [
        exec_request(&pod, "exit 0"),
        ExecRequest { stdio: Stdio::Terminal, ..exec_request(&pod, "exit 0") },
        ExecRequest { command: missing, ..exec_request(&pod, "") },
        ExecRequest { timeout_ms: 300, ..slow },
    ] {
        pod.call(async |client| client.exec(&request).await).expect("an answer");
    }
    for directory in ["execs", "sockets"] {
        assert_eq!(files_in(&pod.run_dir().join(directory)), Vec::<String>::new(), "{directory}");
    }
}

#[test]
fn environment_of_an_exec_reaches_its_command() {
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        pod.run("c", "exec sleep 600");
        let request = ExecSync {
            id: pod.id("c"),
            command: ["sh", "-c", "echo \"$FIRST/$SECOND/$PATH\""].map(str::to_owned).to_vec(),
            timeout_seconds: 0,
            stdio: Stdio::Pipes,
            env: vec![("FIRST".into(), "a b=c".into()), ("SECOND".into(), String::new())],
            cgroup_manager: CgroupManager::Cgroupfs,
        };
        let result = pod.call(async |client| client.exec_sync(&request).await).expect("exec");
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(String::from_utf8(result.stdout).unwrap(), "a b=c///bin\n", "{runtime}: {said}");
    }
}

#[test]
fn out_of_memory_is_told_of_that_container_only() {
    let pod = Pod::start();
    let limit = |config: &mut serde_json::Value| {
        config["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20 } });
    };
    pod.run("neighbour", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 137");
    pod.create(&pod.container_with("hog", &["tail", "/dev/zero"], limit)).expect("create");
    pod.start_container("hog");
    let hog = pod.wait("hog");
    assert_eq!((hog.how, hog.oom_killed, hog.oom_victim), (Ended::Signal(9), true, OomVictim::FirstProcess));

    // One that runs beside it, and one that comes after it.
    pod.exec_stdout("neighbour", "touch /tmp/go");
    pod.create(&pod.container_with("next", &["sh", "-c", "exit 137"], limit)).expect("create");
    pod.start_container("next");
    // A first process that has only lost a child goes on, and ends as it likes.
    pod.create(&pod.container_with("parent", &["sh", "-c", "tail /dev/zero; exit 4"], limit))
        .expect("create");
    pod.start_container("parent");
    let parent = pod.wait("parent");
    assert_eq!((parent.how, parent.oom_killed, parent.oom_victim), (Ended::Code(4), true, OomVictim::Others));

    for innocent in ["neighbour", "next"] {
        let exit = pod.wait(innocent);
        assert_eq!(exit.shell_code(), Some(137));
        assert!(!exit.oom_killed, "{innocent}: {exit:?}");
    }
}

#[test]
fn background_child_that_holds_stdout_does_not_hold_an_exec() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    let result = pod.exec("c", "sleep 600 & echo done; exit 4");
    assert!(matches!(result.outcome, ExecOutcome::Exited(exit) if exit.shell_code() == Some(4)));
    assert_eq!(result.stdout, b"done\n");
}

#[test]
fn time_out_of_an_exec_kills_its_whole_tree() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    let script = "(sleep 601 & sleep 602) & sh -c 'trap \"\" TERM; sleep 603; true'; sleep 604";
    let request = ExecRequest { timeout_ms: 700, ..exec_request(&pod, script) };
    let result = pod.call(async |client| client.exec(&request).await).expect("an answer");
    assert!(matches!(result.outcome, ExecOutcome::TimedOut), "{result:?}");
    let left = pod.exec_stdout("c", "ps -o args");
    let left: Vec<&str> = left.lines().filter(|line| line.starts_with("sleep 60")).collect();
    assert_eq!(left, ["sleep 600"]);
}

/// A daemon has left its session and its parents, and is killed all the same: it cannot leave its cgroup.
#[test]
fn time_out_of_an_exec_kills_its_daemons() {
    // Each waits for a time-out that must leave a slow machine time for a second exec.
    std::thread::scope(|threads| {
        for runtime in ["crun", "runc"] {
            threads.spawn(move || daemons_die_with_their_exec(runtime));
        }
    });
}

fn daemons_die_with_their_exec(runtime: &str) {
    let pod = Pod::with_runtime(runtime);
    pod.run("c", "exec sleep 600");
    let daemon =
        "(setsid sh -c '(setsid sleep 601 &) ; exec sleep 602' &); touch /tmp/started; exec sleep 603";
    let script = format!("until [ -e /tmp/go ]; do sleep 0.05; done; {daemon}");
    let timeout_ms = if common::is_emulated() { 40_000 } else { 8000 };
    let request = ExecRequest { timeout_ms, ..exec_request(&pod, &script) };
    let result = pod.call(async |client| {
        let mut exec = std::pin::pin!(client.exec(&request));
        let meanwhile = async {
            // Counted when its cgroup has it.
            while client.pod_stats().await.expect("stats").execs == 0 {}
            client.exec(&exec_request(&pod, "touch /tmp/go")).await.expect("exec");
        };
        tokio::select! {
            result = &mut exec => panic!("{runtime}: too slow for this test: {result:?}"),
            () = meanwhile => {}
        }
        exec.await.expect("an answer")
    });
    assert!(matches!(result.outcome, ExecOutcome::TimedOut), "{runtime}: {result:?}");
    let left = pod.exec_stdout("c", "ls /tmp/started; ps -o args");
    let is_of_interest = |line: &&str| line.starts_with("sleep 60") || *line == "/tmp/started";
    let left: Vec<&str> = left.lines().filter(is_of_interest).collect();
    assert_eq!(left, ["/tmp/started", "sleep 600"], "{runtime}");
}

/// What a command leaves behind lives on, in the container's own cgroup.
#[test]
fn exec_that_ends_leaves_its_daemons_alone() {
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        let pid = pod.run("c", "exec sleep 600");
        pod.exec_stdout("c", "(setsid sleep 601 >/dev/null 2>&1 &)");
        let own = || fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
        let daemons = || {
            let named = |(pid, command): (u32, String)| command.starts_with("sleep 601").then_some(pid);
            common::processes_of(pod.name()).into_iter().filter_map(named).collect::<Vec<_>>()
        };
        until("the daemon in the container's cgroup", || {
            let [daemon] = daemons()[..] else { return false };
            fs::read_to_string(format!("/proc/{daemon}/cgroup")).is_ok_and(|membership| membership == own())
        });
    }
}

/// What a command prints while the runtime that has started it is still there.
#[test]
fn output_before_a_late_return_of_the_runtime_is_kept() {
    let place = Place::new();
    let text = format!(
        "{} \"$@\"; status=$?\ncase \"$*\" in *' exec '*) sleep 0.3;; esac\nexit $status",
        which("crun").display()
    );
    let runtime = place.script("runtime", &text);
    let pod = Pod::start_in(place, Options { runtime: Some(runtime), ..Options::default() });
    pod.run("c", "exec sleep 600");
    let result = pod.exec("c", "yes 0123456789abcde | head -c 1000000");
    assert_eq!(result.stdout.len(), 1_000_000);
    assert!(result.stdout.starts_with(b"0123456789abcde\n"));
}

/// How keeper and monitor allocate is no business of what they start.
#[test]
fn settings_of_the_allocator_are_not_handed_on() {
    const VARIABLE: &str = "GLIBC_TUNABLES";
    let place = Place::new();
    let seen = place.path("seen");
    let text =
        format!("echo \"<${VARIABLE}>\" >>{}\nexec {} \"$@\"", seen.display(), which("crun").display());
    let runtime = place.script("runtime", &text);
    let pod = Pod::start_in(place, Options { runtime: Some(runtime), ..Options::default() });
    pod.run("c", "exec sleep 600");
    pod.exec_stdout("c", "true");
    for process in [pod.keeper_pid(), monitor_of(&pod)] {
        let environment = fs::read(format!("/proc/{process}/environ")).expect("a process of the pod");
        let mut variables = environment.split(|byte| *byte == 0);
        assert!(variables.any(|variable| variable.starts_with(VARIABLE.as_bytes())), "process {process}");
    }
    let seen = fs::read_to_string(seen).expect("the runtime was called");
    assert!(seen.lines().count() >= 3 && seen.lines().all(|line| line == "<>"), "{seen}");
}

#[test]
fn command_that_begins_with_a_dash_is_a_command() {
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        pod.run("c", "exec sleep 600");
        for program in ["--version", "-x", "--"] {
            let command = [program, "argument"].map(str::to_owned).to_vec();
            let request = ExecRequest { command, ..exec_request(&pod, "") };
            let result = pod.call(async |client| client.exec(&request).await).expect("an answer");
            let ExecOutcome::NotStarted(reason) = result.outcome else { panic!("{runtime}: {result:?}") };
            // Each runtime has quotation marks of its own.
            let mut words = reason.split(['`', '"', '\\']);
            assert!(words.any(|word| word == program), "{runtime}: {reason}");
        }
    }
}

/// A client that goes away in the middle of an exec leaves neither an unreaped
/// process nor a container that cannot be killed.
#[test]
fn exec_whose_client_goes_away_is_finished() {
    let pod = Pod::start();
    let pid = pod.run("c", "exec sleep 600");
    let request = exec_request(&pod, "touch /tmp/there; while [ ! -e /tmp/go ]; do sleep 0.1; done");
    for pause in [0, 1, 4, 8, 16] {
        let client = Client::connect(&pod.socket()).expect("a connection");
        client.call(async |client| {
            drop(tokio::time::timeout(Duration::from_millis(pause), client.exec(&request)).await);
        });
    }
    pod.exec_stdout("c", "touch /tmp/go");
    until("the execs' end", || files_in(&pod.run_dir().join("execs")).is_empty());
    let monitor = monitor_of(&pod);
    until("the execs' processes", || children_of(monitor) == [pid]);
    kill(pid, "KILL");
    assert_eq!(pod.wait("c").how, Ended::Signal(9));
}

#[test]
fn broken_pipe_signals_are_nothing() {
    let pod = Pod::start();
    let monitor = monitor_of(&pod);
    // systemd sends it to every process of an engine's monitor scope when the machine goes down.
    for pid in [pod.keeper_pid(), monitor] {
        kill(pid, "PIPE");
    }
    pod.assert_serves("c");
    assert_eq!(monitor_of(&pod), monitor);
}

#[test]
fn attach_socket_that_a_client_removed_is_made_again() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    let path = pod.place.path("tmp").join("attach");
    let request = Attach {
        id: pod.id("c"),
        socket_path: path.clone(),
        exec_session_id: String::new(),
        stdin_eof: StdinEof::Keep,
        replay_bytes: 0,
    };
    for _ in 0..common::rounds(20) {
        pod.call(async |client| client.attach(&request).await).expect("attach");
        let mode = fs::metadata(&path).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        drop(socket::connect(&path, SocketType::SEQPACKET).expect("somebody listens"));
        fs::remove_file(&path).expect("the socket is there");
    }
}

#[test]
fn monitor_whose_directory_vanishes_ends_by_itself() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    let (keeper, monitor) = (pod.keeper_pid(), monitor_of(&pod));
    fs::remove_dir_all(pod.run_dir()).expect("remove");
    // While there is a container it is looked after.
    pod.call(async |client| client.version().await).expect("an answer");
    assert!(Path::new(&format!("/proc/{keeper}")).exists());

    let ended = pidfd(monitor).expect("a monitor");
    kill(pod.call(async |client| client.container_state(&pod.id("c")).await).unwrap().pid.unwrap(), "KILL");
    assert!(wait_readable(&ended), "the monitor is still there");
    pod.wait_end();
    assert_eq!(fs::read_to_string(pod.exit_path("c")).expect("an exit file"), "137");
    pod.delete_in_runtime();
}

#[test]
fn empty_pod_whose_directory_vanishes_ends_at_once() {
    let pod = Pod::start();
    fs::remove_dir_all(pod.run_dir()).expect("remove");
    pod.wait_end();
}

/// An engine moves the pid that it knows; the monitor's cost follows.
#[test]
fn monitor_follows_the_keeper_to_its_cgroup() {
    let pod = Pod::start();
    let Some(tree) = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|tree| tree.join("cgroup.procs").exists())
    else {
        common::skip("no cgroup tree is mounted");
        return;
    };
    let group = tree.join(format!("podinit-test-{}", std::process::id()));
    fs::create_dir(&group).expect("a cgroup");
    fs::write(group.join("cgroup.procs"), pod.keeper_pid().to_string()).expect("move the keeper");
    pod.run("c", "exec sleep 600");

    let members = fs::read_to_string(group.join("cgroup.procs")).expect("members");
    let monitor = monitor_of(&pod).to_string();
    let followed = members.lines().any(|pid| pid == monitor);
    pod.shutdown();
    drop(pod);
    until("an empty cgroup", || fs::remove_dir(&group).is_ok());
    assert!(followed, "the monitor {monitor} is not among {members:?}");
}

/// The engine's side of the socket for descriptors.
struct Descriptors {
    socket: OwnedFd,
    requests: u64,
}

impl Descriptors {
    fn connect(pod: &Pod) -> Self {
        let path = pod.call(async |client| client.start_fd_socket().await).expect("a socket");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        Self { socket: socket::connect(&path, SocketType::SEQPACKET).expect("connect"), requests: 0 }
    }

    /// Sends `fds` under a header that announces `count`; the answer's words and what follows them.
    fn ask(&mut self, count: u64, fds: &[&OwnedFd]) -> (u64, Vec<u8>) {
        self.requests += 1;
        let header = (self.requests << 32 | count).to_le_bytes();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(300))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(&self.socket, &[IoSlice::new(&header)], &mut control, SendFlags::empty()).expect("send");
        let mut answer = vec![0; 4096];
        let (count, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty()).expect("an answer");
        answer.truncate(count);
        let body = answer.split_off(8);
        (u64::from_le_bytes(answer.try_into().unwrap()), body)
    }

    fn send(&mut self, fds: &[&OwnedFd]) -> Vec<u64> {
        let (header, body) = self.ask(fds.len() as u64, fds);
        assert_eq!(header, self.requests << 32 | fds.len() as u64);
        body.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }
}

fn pipe() -> (fs::File, OwnedFd) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (read.into(), write)
}

#[test]
fn descriptors_reach_the_container_in_their_order() {
    let pod = Pod::start();
    let mut engine = Descriptors::connect(&pod);
    let (mut first, first_write) = pipe();
    let (mut second, second_write) = pipe();
    let (held, held_write) = pipe();
    let slots = engine.send(&[&first_write, &second_write, &held_write]);
    drop((first_write, second_write, held_write));

    let script = "echo three >&3; echo four >&4; exec sleep 600";
    let mut request = pod.container("c", &["sh", "-c", script]);
    (request.additional_fds, request.leak_fds) = (slots[..2].to_vec(), slots[2..].to_vec());
    request.command_args = ["--preserve-fds", "2"].map(str::to_owned).to_vec();
    let pid = pod.create(&request).expect("create");
    pod.start_container("c");

    let mut line = [0; 6];
    first.read_exact(&mut line).expect("what the container wrote");
    assert_eq!(&line, b"three\n");
    second.read_exact(&mut line[..5]).expect("what the container wrote");
    assert_eq!(&line[..5], b"four\n");

    // A slot is used up, and the refusal takes nothing.
    request.id = pod.id("again");
    let error = pod.create(&request).expect_err("slots that are empty");
    assert!(error.to_string().contains(&format!("no file descriptor in slot {}", slots[0])), "{error}");

    // What is held open stays so until the exit, also over the death of a monitor.
    kill_monitor(&pod);
    pod.call(async |client| client.version().await).expect("the next monitor");
    assert!(!is_readable_now(&held), "closed before the container's exit");
    kill(pid, "KILL");
    pod.wait("c");
    for mut end in [first, second, held] {
        assert_eq!(end.read(&mut line).expect("the end of a pipe"), 0);
    }
}

fn is_readable_now(fd: &fs::File) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn as_many_descriptors_as_a_message_holds_are_taken() {
    let pod = Pod::start();
    pod.call(async |client| client.version().await).expect("an answer");
    let before = descriptors_of(monitor_of(&pod));
    let mut engine = Descriptors::connect(&pod);
    let (mut read, write) = pipe();
    let slots = engine.send(&[&write; 253]);
    assert_eq!(slots.len(), 253);

    let mut request = pod.container("c", &["sh", "-c", "echo last >&255; exec sleep 600"]);
    request.additional_fds = slots;
    request.command_args = ["--preserve-fds", "253"].map(str::to_owned).to_vec();
    let pid = pod.create(&request).expect("create");
    drop(write);
    pod.start_container("c");
    let mut line = [0; 5];
    read.read_exact(&mut line).expect("what the container wrote");
    assert_eq!(&line, b"last\n");
    kill(pid, "KILL");
    pod.wait("c");
    assert_eq!(read.read(&mut line).expect("the end of a pipe"), 0);
    drop(engine);
    // The socket's listener stays, and what else the monitor opens once; the 253 do not.
    until("closed descriptors", || descriptors_of(monitor_of(&pod)) <= before + 8);
}

/// The runtime's program is found through a descriptor, too, once it has been executed.
#[test]
fn every_descriptor_is_handed_over_after_an_earlier_create() {
    let pod = Pod::start();
    pod.run("first", "exec sleep 600");
    let file = |number: u32| pod.place.path(&format!("passed-{number}"));
    let files: Vec<OwnedFd> =
        (3..256).map(|number| fs::File::create(file(number)).expect("a file").into()).collect();
    let mut engine = Descriptors::connect(&pod);
    let slots = engine.send(&files.iter().collect::<Vec<_>>());

    let script = "for number in $(seq 3 255); do echo $number >&$number; done";
    let mut request = pod.container("c", &["sh", "-c", script]);
    request.additional_fds = slots;
    request.command_args = ["--preserve-fds", "253"].map(str::to_owned).to_vec();
    pod.create(&request).expect("create");
    pod.start_container("c");
    assert_eq!(pod.wait("c").how, Ended::Code(0));
    for number in 3..256 {
        assert_eq!(fs::read_to_string(file(number)).expect("a file"), format!("{number}\n"));
    }
}

fn descriptors_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count()
}

#[test]
fn wrong_requests_for_descriptors_are_answered_with_a_text() {
    let pod = Pod::start();
    let mut engine = Descriptors::connect(&pod);
    let (mut read, write) = pipe();
    let (header, text) = engine.ask(2, &[&write]);
    assert_eq!(header, 1 << 32 | 0xffff_ffff);
    assert_eq!(String::from_utf8(text).unwrap(), "the request announces 2 descriptors and brings 1");

    // Nothing is kept of it; and header 0 closes what was not used.
    let slots = engine.send(&[&write]);
    drop(write);
    assert!(!is_readable_now(&read));
    send(&engine.socket, &0_u64.to_le_bytes(), SendFlags::empty()).expect("send");
    assert!(wait_readable(&read));
    assert_eq!(read.read(&mut [0; 1]).expect("the end of a pipe"), 0);
    let mut request = pod.container("c", &["true"]);
    request.additional_fds = slots;
    pod.create(&request).expect_err("a slot that is empty");

    // So does the end of the connection.
    let (mut read, write) = pipe();
    engine.send(&[&write]);
    drop((engine, write));
    assert_eq!(read.read(&mut [0; 1]).expect("the end of a pipe"), 0);
    pod.assert_serves("still");
}

/// A runtime that is crun, but hangs for a while when it is called with this text.
fn hanging(place: &Place, when: &str, script: &str) -> Options {
    let text = format!(
        "CRUN={}\ncase \" $* \" in {when}) {script};; esac\nexec $CRUN \"$@\"",
        which("crun").display()
    );
    Options { runtime: Some(place.script("runtime", &text)), ..Options::default() }
}

/// A pod with two containers: the OCI runtime hangs at `action` for one of them when `then`
/// is done.
fn while_a_runtime_hangs(action: &str, then: impl AsyncFnOnce(&Pod, &PodClient)) -> Pod {
    let place = Place::new();
    let begun = place.path("begun");
    nix::unistd::mkfifo(&begun, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let when = format!("*' {action} '*-hung' '");
    let options = hanging(&place, &when, &format!(": >{}; exec sleep 1000", begun.display()));
    let pod = Pod::start_in(place, options);
    pod.run("c", "exec sleep 600");
    let request = pod.container("hung", &["sleep", "600"]);
    pod.call(async |client| {
        let under_way = client.clone();
        let pending = tokio::task::spawn_local(async move {
            let created = under_way.create_container(&request).await;
            created.and(under_way.start_container(&request.id).await)
        });
        // The runtime runs when the other end of the pipe is opened.
        let opened = std::thread::spawn(move || fs::File::open(begun).map(drop));
        while !opened.is_finished() {
            tokio::task::yield_now().await;
        }
        then(&pod, &client).await;
        drop(pending);
    });
    pod
}

/// That nothing is left in the run directory is asserted when the pod goes.
#[test]
fn end_of_a_pod_records_every_exit_while_a_runtime_hangs() {
    for (action, exited) in [("create", ["c"].as_slice()), ("start", &["c", "hung"])] {
        let check = |pod: Pod| {
            pod.wait_end();
            for name in exited {
                let code = fs::read_to_string(pod.exit_path(name));
                assert_eq!(code.expect("an exit file"), "137", "{action}: {name}");
            }
            pod.delete_in_runtime();
        };
        for signal in ["INT", "TERM"] {
            check(while_a_runtime_hangs(action, async |pod, _| kill(pod.keeper_pid(), signal)));
        }
        check(while_a_runtime_hangs(action, async |_, client| client.shutdown(0).await.expect("shutdown")));
    }
}

fn kill_monitor(pod: &Pod) {
    let monitor = monitor_of(pod);
    let ended = pidfd(monitor).expect("a monitor");
    kill(monitor, "KILL");
    assert!(wait_readable(&ended));
    pod.reconnect();
}

#[test]
fn container_whose_log_is_gone_is_followed_by_the_next_monitor() {
    let pod = Pod::start();
    let script = "while [ ! -e /go ]; do sleep 0.01; done; seq 100000; exit 42";
    pod.run("c", script);
    fs::rename(pod.place.path("logs"), pod.place.path("elsewhere")).expect("rename");
    kill_monitor(&pod);
    assert_eq!(pod.exec_stdout("c", "echo here"), "here\n");
    pod.place.rootfs_file("go", b"");
    let id = pod.id("c");
    let exit = pod.call(async |client| client.wait_container(&id).await).expect("wait");
    assert_eq!((exit.how, exit.log_complete), (Ended::Code(42), false));
    assert_eq!(fs::read_to_string(pod.exit_path("c")).expect("an exit file"), "42");
    pod.call(async |client| {
        let mut events = client.events(0).await.expect("events");
        loop {
            let event = events.next().await.expect("an event");
            if let EventKind::LogFailed(why) = event.kind {
                return assert!(event.container == id && why.contains("open container log"), "{why}");
            }
        }
    });
}

#[test]
fn time_out_of_an_exec_kills_its_command_also_when_the_runtime_hangs_after_it() {
    let place = Place::new();
    let options = hanging(&place, "*' exec '*'sleep 601'*", "$CRUN \"$@\"; exec sleep 1000");
    let pod = Pod::start_in(place, options);
    pod.run("c", "exec sleep 600");
    let script = "touch /tmp/started; sleep 601 & exec sleep 602";
    let timeout_ms = if common::is_emulated() { 40_000 } else { 4000 };
    let request = ExecRequest { timeout_ms, ..exec_request(&pod, script) };
    let result = pod.call(async |client| client.exec(&request).await).expect("an answer");
    assert!(matches!(result.outcome, ExecOutcome::TimedOut), "{result:?}");
    let left = pod.exec_stdout("c", "ls /tmp/started; ps -o args");
    let is_of_interest = |line: &&str| line.starts_with("sleep 60") || *line == "/tmp/started";
    let left: Vec<&str> = left.lines().filter(is_of_interest).collect();
    assert_eq!(left, ["/tmp/started", "sleep 600"]);
}

/// A container whose cleanup command is this script, with arguments of its own.
fn with_cleanup(pod: &Pod, name: &str, script: &str) -> CreateContainer {
    let mut request = pod.container(name, &["sh", "-c", "exec sleep 600"]);
    request.cleanup_command = ["sh", "-c", script, "cleanup", "a b", "c"].map(str::to_owned).to_vec();
    request
}

#[test]
fn cleanup_command_runs_at_the_exit_with_its_arguments() {
    let options = Options { descriptors_max: Some("-Sn 700"), ..Options::default() };
    let pod = Pod::start_in(Place::new(), options);
    let (said, whole) = (pod.place.path("said"), pod.place.path("whole"));
    let script = format!(
        "{{ printf '%s\\n' \"$@\"; ulimit -n; cat /proc/self/oom_score_adj; }} >{0}; mv {0} {1}",
        said.display(),
        whole.display()
    );
    let pid = pod.create(&with_cleanup(&pod, "c", &script)).expect("create");
    pod.start_container("c");
    assert!(!said.exists() && !whole.exists());
    kill(pid, "KILL");
    pod.wait("c");
    until("the cleanup command", || whole.exists());
    // Neither the monitor's limit of open files nor its protection from the kernel's killer.
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("our own");
    assert_eq!(fs::read_to_string(&whole).expect("its output"), format!("a b\nc\n700\n{own}"));
}

#[test]
fn cleanup_command_ends_its_work_when_the_pod_ends() {
    for signal in [None, Some("INT")] {
        let pod = Pod::start();
        let done = pod.place.path("done");
        let script = format!("sleep 1; echo done >{}", done.display());
        pod.create(&with_cleanup(&pod, "c", &script)).expect("create");
        pod.start_container("c");
        match signal {
            None => pod.shutdown(),
            Some(signal) => {
                kill(pod.keeper_pid(), signal);
                pod.wait_end();
                pod.delete_in_runtime();
            }
        }
        assert_eq!(fs::read_to_string(&done).expect("what it has done"), "done\n", "{signal:?}");
    }
}

#[test]
fn exit_file_whose_directory_comes_late_is_written() {
    for dies in [false, true] {
        let pod = Pod::start();
        let exits = pod.place.path("exits");
        fs::remove_dir(&exits).expect("an empty directory");
        pod.run("c", "exit 5");
        let id = pod.id("c");
        let exit = pod.call(async |client| client.wait_container(&id).await).expect("wait");
        assert_eq!(exit.how, Ended::Code(5));
        if dies {
            kill_monitor(&pod);
            pod.call(async |client| client.container_state(&id).await).expect("a container");
        }
        fs::create_dir(&exits).expect("a directory");
        until("the exit file", || pod.exit_path("c").exists());
        pod.wait("c");
    }
}

#[test]
fn exit_of_a_container_that_gave_way_does_not_come_back() {
    let pod = Pod::start();
    pod.run("c", "exit 3");
    pod.wait("c");
    pod.delete_in_runtime();
    pod.create(&pod.container("c", &["no-such-command"])).expect_err("no such command");
    kill_monitor(&pod);
    assert_eq!(pod.call(async |client| client.list_containers().await).expect("a list"), []);
}
