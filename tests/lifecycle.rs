//! What a pod promises about the life of its containers: exit codes, the last
//! byte, one owner of everything, and an end that leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{DEADLINE, Place, Pod, children_of, eventually, kill, pidfd, rounds, wait_readable, which};
use podinit::rpc::client::{
    Code, CreateContainer, Deletion, Ended, EventKind, ExecOutcome, ExecRequest, LogLimits, LogRate,
    NamespaceKind, NamespaceSource, Phase, PodClient, SandboxRequest, Stdio, WhenFast, WhenStuck,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

#[test]
fn container_from_create_to_delete() {
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        let pid = pod.create(&pod.container("c", &["sh", "-c", "echo out; echo err >&2; exit 42"])).unwrap();
        let status = pod.call(async |client| client.container_state(&pod.id("c")).await).unwrap();
        assert_eq!((status.phase, status.pid), (Phase::Created, Some(pid)));

        pod.start_container("c");
        assert_eq!(pod.wait("c").how, Ended::Code(42));
        let log = pod.log("c");
        assert_eq!((&log.stdout[..], &log.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));

        let status = pod.call(async |client| client.container_state(&pod.id("c")).await).unwrap();
        assert_eq!((status.phase, status.pid), (Phase::Exited, None));
        pod.call(async |client| client.delete_container(&pod.id("c"), Deletion::Exited).await).unwrap();
        let error = pod.call(async |client| client.container_state(&pod.id("c")).await).unwrap_err();
        assert_eq!(error.code, Code::NotFound);
    }
}

#[test]
fn container_with_terminal_has_one_stream() {
    let pod = Pod::start();
    let mut request = pod.container_with("c", &["sh", "-c", "echo out; echo err >&2; exit 3"], |config| {
        config["process"]["terminal"] = json!(true);
    });
    request.stdio = Stdio::Terminal;
    pod.create(&request).unwrap();
    pod.start_container("c");
    assert_eq!(pod.wait("c").how, Ended::Code(3));
    assert_eq!(pod.log("c").stdout, b"out\r\nerr\r\n");
}

#[test]
fn signal_is_told_as_a_signal() {
    let pod = Pod::start();
    let pid = pod.run("c", "exec sleep 600");
    kill(pid, "KILL");
    assert_eq!(pod.wait("c").how, Ended::Signal(9));
}

/// Numbers for tests that shall not do the same each time; the seed is printed by whoever fails.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self(u64::from(now.subsec_nanos()) | 1)
    }

    fn byte(&mut self) -> u8 {
        // xorshift64: good enough to choose exit codes.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_le_bytes()[3]
    }
}

const AT_ONCE: usize = 16;
const EXECS_PER_CONTAINER: usize = 4;

/// A peer lost one exit code in ten to whoever happened to wait at the time:
/// each failing create waited for any child.
#[test]
fn exit_codes_are_never_stolen() {
    let pod = Pod::start();
    pod.run("target", "exec sleep 3600");
    let mut random = Random::new();
    println!("seed {}", random.0);
    let containers: Vec<_> = (0..rounds(400))
        .map(|n| {
            let code = random.byte();
            (pod.container(&format!("c{n}"), &["sh", "-c", &format!("exit {code}")]), code)
        })
        .collect();
    let execs: Vec<_> = (0..containers.len() * EXECS_PER_CONTAINER).map(|_| random.byte()).collect();
    let failing = pod.container("failing", &["no-such-command"]);
    let target = pod.id("target");

    let failures = pod.call_within(DEADLINE * 5, async |client| {
        let is_done = Rc::new(Cell::new(false));
        let failures = tokio::task::spawn_local(fail_creates(client.clone(), failing, is_done.clone()));
        // Alternating, so that containers and execs are always under way together.
        let mut work: Vec<Job> = Vec::new();
        let mut execs = execs.into_iter();
        for (request, code) in containers {
            work.push(Job::Container(Box::new(request), code));
            work.extend(execs.by_ref().take(EXECS_PER_CONTAINER).map(Job::Exec));
        }
        let mut running = JoinSet::new();
        for job in work {
            while running.len() >= AT_ONCE {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn_local(do_job(client.clone(), target.clone(), job));
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
        is_done.set(true);
        failures.await.unwrap()
    });
    assert!(failures > rounds(50), "only {failures} creates failed beside the others");
}

enum Job {
    Container(Box<CreateContainer>, u8),
    Exec(u8),
}

async fn do_job(client: PodClient, target: String, job: Job) {
    match job {
        Job::Container(request, code) => {
            client.create_container(&request).await.unwrap();
            client.start_container(&request.id).await.unwrap();
            let exit = client.wait_container(&request.id).await.unwrap();
            assert_eq!(exit.how, Ended::Code(code), "{}", request.id);
            for path in &request.exit_paths {
                assert_eq!(fs::read_to_string(path).unwrap(), code.to_string(), "{}", path.display());
            }
            client.delete_container(&request.id, Deletion::Exited).await.unwrap();
        }
        Job::Exec(code) => {
            let command = ["sh", "-c", &format!("exit {code}")].map(str::to_owned).to_vec();
            let result =
                client.exec(&ExecRequest { id: target, command, ..ExecRequest::default() }).await.unwrap();
            match result.outcome {
                ExecOutcome::Exited(exit) => assert_eq!(exit.how, Ended::Code(code)),
                outcome => panic!("exit {code}: {outcome:?}: {}", String::from_utf8_lossy(&result.stderr)),
            }
        }
    }
}

/// Creates that fail in the OCI runtime, one after the other, until told to end; answers how many.
async fn fail_creates(client: PodClient, request: CreateContainer, is_done: Rc<Cell<bool>>) -> usize {
    let mut failures = 0;
    while !is_done.get() {
        let error = client.create_container(&request).await.unwrap_err();
        assert_eq!(error.code, Code::RuntimeFailed, "{error}");
        failures += 1;
    }
    failures
}

/// Text whose every part can be told from every other, in short lines and in some of 32 KB.
fn numbered_text(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes);
    let mut line = 0_usize;
    while text.len() < bytes {
        text.extend_from_slice(format!("{line:08}").as_bytes());
        if line % 8192 < 4096 && line.is_multiple_of(5) {
            text.push(b'\n');
        }
        line += 1;
    }
    text.truncate(bytes);
    text
}

/// A peer lost up to 61 KB in every third run: what was still in the pipe when
/// the container had gone.
#[test]
fn last_byte_before_the_exit_is_in_the_log() {
    let pod = Pod::start();
    for kib in [1, 8, 32, 64, 256, 1024] {
        let text = numbered_text(kib << 10);
        pod.place.rootfs_file("text", &text);
        let names: Vec<_> = (0..rounds(20)).map(|run| format!("k{kib}r{run}")).collect();
        let requests: Vec<_> = names.iter().map(|name| pod.container(name, &["cat", "/text"])).collect();
        pod.call(async |client| {
            let mut running = JoinSet::new();
            for request in requests {
                while running.len() >= 4 {
                    running.join_next().await.unwrap().unwrap();
                }
                running.spawn_local(do_job(
                    client.clone(),
                    String::new(),
                    Job::Container(Box::new(request), 0),
                ));
            }
            while let Some(done) = running.join_next().await {
                done.unwrap();
            }
        });
        for name in names {
            let got = pod.log(&name).stdout;
            assert!(got == text, "{name}: {} of {} bytes", got.len(), text.len());
        }
    }
}

/// The same for whoever takes no log but the answer of an exec.
#[test]
fn last_byte_of_an_exec_is_in_its_answer() {
    let pod = Pod::start();
    let text = numbered_text(1 << 20);
    pod.place.rootfs_file("text", &text);
    pod.run("c", "exec sleep 600");
    for _ in 0..rounds(20) {
        let got = pod.exec("c", "exec cat /text");
        assert!(got.stdout == text, "{} of {} bytes", got.stdout.len(), text.len());
    }
}

#[test]
fn exec_says_what_it_dropped() {
    const LIMIT: u64 = 16 << 20;
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    let result = pod.exec("c", "yes 0123456789abcde | head -c 20000000; echo err >&2");
    assert_eq!(result.stdout.len() as u64, LIMIT);
    assert_eq!(result.stdout_dropped, 20_000_000 - LIMIT);
    assert!(result.stdout.chunks_exact(16).all(|line| line == b"0123456789abcde\n"));
    assert_eq!((&result.stderr[..], result.stderr_dropped), (&b"err\n"[..], 0));
}

fn sandbox(pod: &Pod) -> SandboxRequest {
    let kinds = [NamespaceKind::Net, NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::Pid];
    SandboxRequest {
        pod_id: pod.name().to_owned(),
        namespaces: kinds.map(|kind| (kind, NamespaceSource::Create)).to_vec(),
        hostname: "a-pod".to_owned(),
        base_path: pod.place.path("pins"),
        ..SandboxRequest::default()
    }
}

/// A container in the namespaces that are pinned at these paths.
fn inside(config: &mut Value, pins: &[(NamespaceKind, std::path::PathBuf)]) {
    let mut namespaces = vec![json!({ "type": "mount" })];
    for (kind, path) in pins {
        let name = if *kind == NamespaceKind::Net { "network" } else { kind.name() };
        namespaces.push(json!({ "type": name, "path": path }));
    }
    config["linux"]["namespaces"] = json!(namespaces);
}

#[test]
fn pod_has_its_namespaces_and_podinit_as_pid_1() {
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        let request = sandbox(&pod);
        let made = pod.call(async |client| client.create_sandbox(&request).await).unwrap();
        let again = pod.call(async |client| client.create_sandbox(&request).await).unwrap();
        assert_eq!(made, again, "the same request again answers the same");

        let mut pins = Vec::new();
        for (kind, _) in &request.namespaces {
            let pin = made.pin(*kind).unwrap();
            let pinned = fs::metadata(&pin.path).unwrap().ino();
            let host = fs::metadata(format!("/proc/self/ns/{}", kind.name())).unwrap().ino();
            assert_eq!(pinned, pin.inode, "{kind:?}");
            assert_ne!(pinned, host, "{kind:?} is the host's");
            pins.push((*kind, pin.path.clone()));
        }
        let init = made.init_pid.unwrap();
        let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
        assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
        assert_eq!(fs::read_dir(format!("/proc/{init}/fd")).unwrap().count(), 0, "PID 1 holds descriptors");

        let join = |config: &mut Value| inside(config, &pins);
        pod.create(&pod.container_with("c", &["sleep", "600"], join)).unwrap();
        pod.start_container("c");
        assert_eq!(pod.exec_stdout("c", "hostname"), "a-pod\n");
        assert!(pod.exec_stdout("c", "ip link show lo").contains("LOOPBACK,UP"));
        assert!(pod.exec_stdout("c", "tr '\\0' ' ' < /proc/1/cmdline").contains("podinit"));
    }
}

#[test]
fn capabilities_of_a_container_do_not_reach_pid_1() {
    let wall = std::thread::spawn(|| podinit::sys::landlock::confine_thread().is_ok()).join().unwrap();
    if !wall {
        println!("partly tested: this kernel has no Landlock with signal scopes (Linux 6.12)");
    }
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        let made = pod.call(async |client| client.create_sandbox(&sandbox(&pod)).await).unwrap();
        let pins = [(NamespaceKind::Pid, made.pin(NamespaceKind::Pid).unwrap().path.clone())];
        let capable = |config: &mut Value| {
            let all = json!(["CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
            let sets = json!({ "bounding": all, "effective": all, "permitted": all });
            config["process"]["capabilities"] = sets;
            inside(config, &pins);
        };
        pod.create(&pod.container_with("c", &["sleep", "600"], capable)).unwrap();
        pod.start_container("c");

        assert!(pod.exec_stdout("c", "cat /proc/1/cmdline").contains("podinit"), "it is PID 1 of the pod");
        // What takes the right to trace it: its memory, its environment, its program.
        for secret in
            ["cat /proc/1/environ", "cat /proc/1/maps", "head -c 1 /proc/1/mem", "readlink /proc/1/exe"]
        {
            let said = pod.exec_stdout("c", &format!("{secret} 2>/dev/null || echo refused"));
            assert!(!wall || said == "refused\n", "{runtime}: {secret}: {said:?}");
        }
        pod.exec_stdout("c", "for s in KILL STOP TERM INT HUP SEGV; do kill -$s 1 2>/dev/null; done; true");
        assert!(pidfd(made.init_pid.unwrap()).is_some(), "PID 1 was ended");
        // The container's own processes are within reach of an exec.
        assert_eq!(pod.exec_stdout("c", "kill -0 $(pidof sleep) && echo reached"), "reached\n");
    }
}

#[test]
fn orphans_are_reaped_by_pid_1() {
    let pod = Pod::start();
    let made = pod.call(async |client| client.create_sandbox(&sandbox(&pod)).await).unwrap();
    let pins = [(NamespaceKind::Pid, made.pin(NamespaceKind::Pid).unwrap().path.clone())];
    let request = pod.container_with("c", &["sleep", "600"], |config| inside(config, &pins));
    pod.create(&request).unwrap();
    pod.start_container("c");

    // Each inner shell leaves a child behind that ends later, when nobody but PID 1 can wait for it.
    pod.exec_stdout(
        "c",
        "for i in $(seq 50); do sh -c 'sh -c \"exit 0\" & sh -c \"read x\" </dev/null &'; done",
    );
    let processes = pod.exec_stdout("c", "ps -o pid,ppid,stat,comm");
    assert!(!processes.lines().any(|line| line.contains(" Z ")), "{processes}");
    assert!(processes.lines().count() < 20, "{processes}");
}

#[test]
fn stop_kills_what_does_not_listen() {
    let pod = Pod::start();
    pod.run("deaf", "trap '' TERM; echo ready; while :; do sleep 1; done");
    pod.run("good", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    for name in ["deaf", "good"] {
        wait_log(&pod, name, b"ready\n");
    }
    let (deaf, good) = (pod.id("deaf"), pod.id("good"));
    let good = pod.call(async |client| client.stop_container(&good, 0, 30_000).await).unwrap();
    assert_eq!((good.exit.how, good.killed), (Ended::Code(5), false));
    let deaf = pod.call(async |client| client.stop_container(&deaf, 0, 100).await).unwrap();
    assert_eq!((deaf.exit.how, deaf.killed), (Ended::Signal(9), true));
    let again = pod.call(async |client| client.stop_container(&pod.id("deaf"), 0, 100).await).unwrap();
    assert_eq!(again.exit.how, Ended::Signal(9), "a stop of what has exited answers its record");
}

/// Waits until a container's log has this text: woken by each change of the file.
fn wait_log(pod: &Pod, name: &str, text: &[u8]) {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let changes = init(CreateFlags::CLOEXEC).unwrap();
    add_watch(&changes, pod.log_path(name), WatchFlags::MODIFY).unwrap();
    while pod.log(name).stdout != text {
        assert!(wait_readable(&changes), "{name}: {:?}", pod.log(name));
        rustix::io::read(&changes, &mut [0; 4096]).unwrap();
    }
}

#[test]
fn nothing_waits_for_a_stop_of_another() {
    let pod = Pod::start();
    pod.run("deaf", "trap '' TERM; echo ready; while :; do sleep 1; done");
    wait_log(&pod, "deaf", b"ready\n");
    pod.run("other", "exec sleep 600");
    let (deaf, other) = (pod.id("deaf"), pod.id("other"));
    let began = Instant::now();
    pod.call(async |client| {
        let stopping = client.clone();
        let stop_id = deaf.clone();
        // A grace time that no test waits for: the stop is ended by another stop.
        let stop =
            tokio::task::spawn_local(async move { stopping.stop_container(&stop_id, 0, 3_600_000).await });
        while client.container_state(&deaf).await.unwrap().phase != Phase::Stopping {
            tokio::task::yield_now().await;
        }
        client.reopen_log(&other).await.unwrap();
        client.reopen_log(&deaf).await.unwrap();
        let command = ["true".to_owned()].to_vec();
        let exec = ExecRequest { id: other.clone(), command, ..ExecRequest::default() };
        assert!(matches!(client.exec(&exec).await.unwrap().outcome, ExecOutcome::Exited(_)));
        assert_eq!(client.list_containers().await.unwrap().len(), 2);
        client.stop_container(&other, 9, 0).await.unwrap();
        client.stop_container(&deaf, 9, 0).await.unwrap();
        stop.await.unwrap().unwrap();
    });
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
}

#[test]
fn events_have_no_gap_and_can_be_replayed() {
    let pod = Pod::start();
    pod.run("c", "exit 3");
    pod.wait("c");
    pod.call(async |client| client.delete_container(&pod.id("c"), Deletion::Exited).await).unwrap();
    let of_c = pod.call(async |client| {
        let mut events = client.events(0).await.unwrap();
        let mut of_c = Vec::new();
        let mut sequence = 0;
        while of_c.last() != Some(&EventKind::Deleted) {
            let event = events.next().await.unwrap();
            assert_eq!(event.sequence, sequence + 1);
            sequence = event.sequence;
            if event.container == pod.id("c") {
                of_c.push(event.kind);
            }
        }
        // From the middle: the rest, and nothing before.
        let mut later = client.events(sequence - 1).await.unwrap();
        assert_eq!(later.next().await.unwrap().sequence, sequence);
        of_c
    });
    let names: Vec<_> =
        of_c.iter().map(|kind| format!("{kind:?}").chars().take(7).collect::<String>()).collect();
    assert_eq!(names, ["Created", "Started", "Exited(", "Deleted"]);
}

#[test]
fn limits_of_a_log_come_from_annotations_change_at_run_time_and_outlive_the_monitor() {
    let pod = Pod::start();
    let script = "seq 1 5000; while [ ! -e /go ]; do sleep 0.01; done; echo end";
    let request = pod.container_with("c", &["sh", "-c", script], |config| {
        config["annotations"]["org.podinit.log.rate-lines"] = json!("100");
        config["annotations"]["org.podinit.log.when-fast"] = json!("drop");
    });
    pod.create(&request).unwrap();
    pod.start_container("c");
    // Told as an event, in the counters, and in the log itself.
    let id = pod.id("c");
    let gap = pod.call(async |client| {
        let mut events = client.events(0).await.unwrap();
        loop {
            if let EventKind::LogGap(gap) = events.next().await.unwrap().kind {
                return gap;
            }
        }
    });
    assert!(!gap.stderr && gap.lines > 0 && gap.reason.contains("rate limit"), "{gap:?}");
    let stats = || pod.call(async |client| client.container_stats(&id).await.unwrap());
    // A gap ends with the next line that is let through, which need not be after the last one.
    eventually(|| stats().stdout.lines == 5000);
    let before = stats();
    assert_eq!((before.limits.stdout.lines_per_second, before.limits.when_fast), (100, WhenFast::Drop));
    assert!(before.stdout.rate_limited >= gap.bytes, "{before:?}");

    let limits = LogLimits { when_stuck: WhenStuck::DropOldest, buffer_bytes: 4096, ..LogLimits::default() };
    let total = LogRate { bytes_per_second: 1 << 30, ..LogRate::default() };
    pod.call(async |client| {
        client.set_log_limits(&id, &limits).await.unwrap();
        client.set_log_total(&total).await.unwrap();
    });
    let [monitor] = children_of(pod.keeper_pid())[..] else { panic!("one child of the keeper") };
    let gone = pidfd(monitor).unwrap();
    kill(monitor, "KILL");
    assert!(wait_readable(&gone));
    pod.reconnect();
    assert_eq!(stats().limits, limits);
    let pod_stats = pod.call(async |client| client.pod_stats().await.unwrap());
    assert_eq!(pod_stats.log_total, total);
    pod.place.rootfs_file("go", b"");
    assert!(pod.wait("c").log_complete, "what was dropped was dropped by an earlier monitor");
    let log = fs::read_to_string(pod.log_path("c")).unwrap();
    assert!(log.contains(" stdout F:gap podinit: ") && log.ends_with(" stdout F end\n"), "{log}");
}

#[test]
fn log_option_that_makes_no_sense_is_refused_before_anything_is_made() {
    let pod = Pod::start();
    let request = pod.container_with("c", &["true"], |config| {
        config["annotations"]["org.podinit.log.when-stuck"] = json!("panic");
    });
    let refused = pod.create(&request).unwrap_err().to_string();
    assert!(refused.contains("when-stuck") && refused.contains("drop-oldest"), "{refused}");
    assert!(!pod.log_path("c").exists());
}

/// What an engine sees when the monitor dies: the same pid, the same socket, a server again.
#[test]
fn monitor_that_is_killed_is_replaced_under_the_same_pid() {
    let pod = Pod::start();
    for round in 0..3 {
        let [monitor] = children_of(pod.keeper_pid())[..] else { panic!("one child of the keeper") };
        let gone = pidfd(monitor).unwrap();
        kill(monitor, "KILL");
        assert!(wait_readable(&gone));
        pod.reconnect();
        let version = pod.call(async |client| client.version().await).unwrap();
        assert_eq!(version.process_id, pod.keeper_pid());
        pod.assert_serves(&format!("after{round}"));
    }
}

#[test]
fn containers_outlive_the_monitor_with_their_streams_and_exit_codes() {
    let pod = Pod::start();
    let script = |go: &str| format!("echo one; while [ ! -e /{go} ]; do sleep 0.01; done; echo two; exit 42");
    for name in ["later", "meanwhile"] {
        pod.run(name, &script(name));
    }
    let [monitor] = children_of(pod.keeper_pid())[..] else { panic!("one child of the keeper") };
    let gone = pidfd(monitor).unwrap();
    kill(monitor, "KILL");
    // One ends with no monitor, or a fresh one; the other when the next one serves.
    pod.place.rootfs_file("meanwhile", b"");
    assert!(wait_readable(&gone));
    pod.reconnect();
    pod.place.rootfs_file("later", b"");
    for name in ["later", "meanwhile"] {
        let exit = pod.wait(name);
        assert_eq!(exit.shell_code(), Some(42), "{name}: {exit:?}");
        assert!(exit.log_complete, "{name}: {exit:?}");
        assert_eq!(pod.log(name).stdout, b"one\ntwo\n", "{name}");
        assert_eq!(fs::read_to_string(pod.exit_path(name)).unwrap(), "42");
    }
}

#[test]
fn second_server_in_a_directory_is_refused() {
    let pod = Pod::start();
    let output = common::serve(&pod.place, pod.run_dir(), &which("crun"), &common::Options::default());
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&*pod.run_dir().to_string_lossy()), "{said}");
    pod.assert_serves("c");
}

#[test]
fn create_whose_client_goes_away_is_finished_or_undone() {
    let place = Place::new();
    // Tells that it has begun, waits until it may go on, then does as asked.
    for fifo in ["begun", "go"] {
        nix::unistd::mkfifo(&place.path(fifo), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let (begun, go) = (place.path("begun"), place.path("go"));
    let crun = which("crun");
    let script = format!(
        "case \" $* \" in *' create '*) : >{}; read line <{};; esac\nexec {} \"$@\"",
        begun.display(),
        go.display(),
        crun.display()
    );
    let runtime = Some(place.script("slow-crun", &script));
    let pod = Pod::start_in(place, common::Options { runtime, ..Default::default() });
    let request = pod.container("c", &["sh", "-c", "exit 9"]);

    pod.call(async |client| {
        let create = client.clone();
        let pending = tokio::task::spawn_local(async move { create.create_container(&request).await });
        // The runtime runs when the other end of the pipe is opened.
        let opened = std::thread::spawn(move || fs::File::open(begun).map(drop));
        while !opened.is_finished() {
            tokio::task::yield_now().await;
        }
        pending.abort();
    });
    pod.reconnect();
    fs::write(&go, "go\n").unwrap();

    let id = pod.id("c");
    pod.call(async |client| {
        loop {
            match client.container_state(&id).await {
                Err(error) => break assert_eq!(error.code, Code::NotFound, "{error}"),
                Ok(status) if status.phase == Phase::Creating => tokio::task::yield_now().await,
                Ok(_) => {
                    let stop = client.stop_container(&id, 9, 0).await.unwrap();
                    break assert_eq!(stop.exit.how, Ended::Signal(9), "its end is known");
                }
            }
        }
    });
    // The script knows no second create without the pipes.
    fs::remove_file(pod.place.path("slow-crun")).unwrap();
    std::os::unix::fs::symlink(&crun, pod.place.path("slow-crun")).unwrap();
    pod.assert_serves("after");
}

#[test]
fn create_that_fails_leaves_nothing() {
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        for terminal in [false, true] {
            let name = if terminal { "terminal" } else { "pipes" };
            let mut request = pod.container_with(name, &["no-such-command"], |config| {
                config["process"]["terminal"] = json!(terminal);
            });
            request.stdio = if terminal { Stdio::Terminal } else { Stdio::Pipes };
            let error = pod.create(&request).unwrap_err();
            assert_eq!(error.code, Code::RuntimeFailed);
            assert!(error.message.contains("no-such-command"), "the runtime's own words: {error}");

            assert!(!pod.log_path(name).exists(), "a log of a container that never was");
            assert!(fs::read_dir(pod.place.path("tmp")).unwrap().next().is_none());
            assert_eq!(pod.call(async |client| client.list_containers().await).unwrap(), []);
            pod.run(name, "exit 4");
            assert_eq!(pod.wait(name).how, Ended::Code(4));
            pod.call(async |client| client.delete_container(&pod.id(name), Deletion::Exited).await).unwrap();
        }
    }
}

#[test]
fn shutdown_ends_everything() {
    let pod = Pod::start();
    pod.call(async |client| client.create_sandbox(&sandbox(&pod)).await).unwrap();
    pod.run("running", "exec sleep 600");
    pod.create(&pod.container("created", &["sleep", "600"])).unwrap();
    pod.run("exited", "exit 0");
    pod.wait("exited");
    let children = children_of(pod.keeper_pid());
    pod.shutdown();
    for child in children {
        assert!(pidfd(child).is_none(), "process {child} outlived the keeper");
    }
    // The rest is asserted when `pod` goes.
}

/// The engine's way: SIGINT to the pid, then it looks until that is gone.
#[test]
fn interrupt_ends_processes_and_writes_exit_files() {
    for signal in ["INT", "TERM"] {
        let pod = Pod::start();
        pod.call(async |client| client.create_sandbox(&sandbox(&pod)).await).unwrap();
        let pid = pod.run("c", "exec sleep 600");
        kill(pod.keeper_pid(), signal);
        pod.wait_end();
        assert!(pidfd(pid).is_none(), "the container outlived its pod");
        assert_eq!(fs::read_to_string(pod.exit_path("c")).unwrap(), "137");
        pod.delete_in_runtime();
    }
}

#[test]
fn launcher_returns_when_the_socket_is_served() {
    for _ in 0..rounds(20) {
        let place = Place::new();
        let run_dir = place.path("run");
        let output = common::serve(&place, &run_dir, &which("crun"), &common::Options::default());
        assert!(output.status.success(), "{output:?}");
        // The harness is not used here: it would hide a retry.
        let mut socket = std::os::unix::net::UnixStream::connect(run_dir.join("conmon.sock")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let error = socket.read(&mut [0]).unwrap_err();
        assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock), "{error}");
        let mode = fs::metadata(run_dir.join("conmon.sock")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);

        let pid = fs::read_to_string(run_dir.join("pidfile")).unwrap().parse().unwrap();
        let keeper = pidfd(pid).unwrap();
        kill(pid, "INT");
        assert!(wait_readable(&keeper));
        assert_eq!(common::processes_of(&place.name), []);
    }
}
