//! Seccomp in real containers: the shipped binary with rules, and a broker of the
//! test's own with plugins, under crun and runc.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]

mod common;
mod seccomp_target;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Options, Place, Pod, profile, which};
use podinit::rpc::plugin::client::{self, Call, Plugin, Request, dial_in};
use podinit::seccomp::plugin::Registration;
use podinit::seccomp::verdict::{OnFailure, Verdict};
use seccomp_target::{MKDIR, Own, never, ready, registration};
use serde_json::json;

const RUNTIMES: [&str; 2] = ["crun", "runc"];
const WAIT_KILLABLE: &str = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";

/// A pod with `rules` as its rules file.
fn pod_with_rules(runtime: &str, rules: &str) -> Pod {
    let place = Place::new();
    let path = place.path("rules.json");
    write_rules(&path, rules);
    let arguments = vec!["--seccomp-rules".to_owned(), path.to_str().unwrap().to_owned()];
    Pod::start_in(place, Options { runtime: Some(which(runtime)), arguments, ..Options::default() })
}

fn write_rules(path: &Path, rules: &str) {
    let text = format!(r#"{{"version": 1, "defaults": {{"patienceMs": 0}}, "rules": [{rules}]}}"#);
    fs::write(path, text).unwrap();
}

/// Creates and starts a container whose shell runs `script`, with a profile that
/// notifies of `calls` at `listener`.
fn run(pod: &Pod, name: &str, listener: &Path, calls: &[&str], script: &str) -> u32 {
    let request = pod.container_with(name, &["sh", "-c", script], |config| {
        config["linux"]["seccomp"] = profile(listener, calls);
        config["linux"]["seccomp"]["listenerMetadata"] = json!("some metadata");
        // Big enough for several reads.
        config["annotations"] = json!({
            "seccomp-notifier-action.crio.io": if name == "stopped" { "stop" } else { "log" },
            "long": "x".repeat(100_000),
        });
    });
    let pid = pod.create(&request).expect("create");
    pod.start_container(name);
    pid
}

fn pod_socket(pod: &Pod) -> std::path::PathBuf {
    pod.run_dir().join("seccomp.sock")
}

fn stdout(pod: &Pod, name: &str) -> String {
    String::from_utf8(pod.log(name).stdout).unwrap()
}

#[test]
fn built_ins_decide_under_both_runtimes() {
    let rules = r#"
        {"name": "errno", "match": {"syscalls": ["mkdir", "mkdirat"]}, "do": {"errno": "EXDEV"}},
        {"name": "return", "match": {"syscalls": ["chmod", "fchmodat"]}, "do": {"return": 0}},
        {"name": "continue", "match": {"syscalls": ["rmdir"]}, "do": "continue"},
        {"name": "deny", "match": {"syscalls": ["link", "linkat"]}, "do": "deny"},
        {"name": "kill", "match": {"syscalls": ["symlink", "symlinkat"]}, "do": "kill"},
        {"name": "record", "match": {"syscalls": ["sync"]}, "do": {"record": {}}}"#;
    let calls = [
        "mkdir",
        "mkdirat",
        "chmod",
        "fchmodat",
        "rmdir",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "sync",
        "swapoff",
    ];
    let script = "exec 2>&1; cd /tmp; touch f
        mkdir d; busybox chmod 0 f && echo chmod $(busybox stat -c %a f); busybox rmdir gone; busybox ln f g
        busybox ln -s f l; echo killed $?; busybox sync && echo synced; busybox swapoff x; echo end";
    for runtime in RUNTIMES {
        let pod = pod_with_rules(runtime, rules);
        run(&pod, "c", &pod_socket(&pod), &calls, script);
        assert_eq!(pod.wait("c").shell_code(), Some(0), "{runtime}");
        let said = stdout(&pod, "c");
        for expected in [
            "'d': Invalid cross-device link",
            "chmod 644",
            "'gone': No such file or directory",
            "g: Operation not permitted",
            "killed 137",
            "synced",
            // Nobody's.
            "swapoff: x: Function not implemented",
            "end",
        ] {
            assert!(said.contains(expected), "{runtime}: no {expected:?} in {said}");
        }
    }
}

#[test]
fn execs_are_sessions_of_their_own_and_rules_change_under_them() {
    let rule = |errno: &str| {
        format!(
            r#"{{"name": "r", "match": {{"syscalls": ["mkdir", "mkdirat"]}}, "do": {{"errno": "{errno}"}}}}"#
        )
    };
    for runtime in RUNTIMES {
        let pod = pod_with_rules(runtime, &rule("EXDEV"));
        run(&pod, "c", &pod_socket(&pod), &MKDIR, "sleep 1000");
        let mkdir = || pod.exec_stdout("c", "mkdir /tmp/d 2>&1 || true");
        for _ in 0..3 {
            assert!(mkdir().contains("Invalid cross-device link"), "{runtime}");
        }
        write_rules(&pod.place.path("rules.json"), &rule("EDOM"));
        let deadline = std::time::Instant::now() + common::DEADLINE;
        while !mkdir().contains("Numerical argument out of domain") {
            assert!(std::time::Instant::now() < deadline, "{runtime}: the new rules do not apply");
        }
    }
}

#[test]
fn a_container_is_ended_after_its_last_forbidden_call() {
    let rules = r#"{"name": "stop", "match": {"syscalls": ["swapoff"]}, "do": {"stopContainer": {"delayMs": 200}}},
        {"name": "crio", "match": {"syscalls": ["mkdir", "mkdirat"]}, "do": "notifierAction"}"#;
    for runtime in RUNTIMES {
        let pod = pod_with_rules(runtime, rules);
        let calls = ["swapoff", "mkdir", "mkdirat"];
        run(&pod, "logged", &pod_socket(&pod), &calls, "mkdir /tmp/d 2>&1; echo still here");
        assert_eq!(pod.wait("logged").shell_code(), Some(0), "{runtime}");
        assert!(stdout(&pod, "logged").contains("Function not implemented\nstill here"), "{runtime}");
        run(&pod, "rule", &pod_socket(&pod), &calls, "busybox swapoff x; sleep 1000");
        run(&pod, "stopped", &pod_socket(&pod), &calls, "mkdir /tmp/d; sleep 1000");
        for name in ["rule", "stopped"] {
            assert_eq!(pod.wait(name).shell_code(), Some(137), "{runtime}: {name}");
        }
    }
}

#[test]
fn connections_of_a_container_go_where_they_may() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let rules = r#"{"name": "net", "do": {"connect": {"allow": [{"address": "127.0.0.1"}]}}}"#;
    for runtime in RUNTIMES {
        let pod = pod_with_rules(runtime, rules);
        // The test's containers share the host's network.
        let script = format!(
            "exec 2>&1; echo hello | busybox nc 127.0.0.1 {port}; echo $?; busybox nc 127.0.0.2 {port}; echo $?"
        );
        run(&pod, "c", &pod_socket(&pod), &["connect"], &script);
        let (mut connection, _) = listener.accept().unwrap();
        let mut said = String::new();
        let mut hello = [0; 6];
        std::io::Read::read_exact(&mut connection, &mut hello).unwrap();
        drop(connection);
        assert_eq!(&hello, b"hello\n");
        pod.wait("c");
        said.push_str(&stdout(&pod, "c"));
        assert!(said.starts_with("0\n") && said.contains("Permission denied"), "{runtime}: {said}");
    }
}

#[test]
fn a_pod_without_notifications_has_no_thread_for_them() {
    let pod = Pod::start();
    pod.assert_serves("c");
    let monitor = common::children_of(pod.keeper_pid())[0];
    let threads = fs::read_dir(format!("/proc/{monitor}/task")).unwrap();
    let names: Vec<_> =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("seccomp")), "{names:?}");
}

/// With a plugin of the test's own: what the runtime says of a container and of an
/// exec arrives, and both are decided.
#[test]
fn plugins_see_containers_and_execs() {
    for runtime in RUNTIMES {
        let own = Own::start();
        own.plugin(registration("p", &MKDIR), |_, _| ready(Verdict::Errno(libc::EXDEV)));
        let pod = Pod::with_runtime(runtime);
        let pid = run(&pod, "c", &own.socket(), &MKDIR, "sleep 1000");
        assert_eq!(own.stats().sessions, 1);
        let said = own.ask(|broker| {
            let session = &broker.sessions()[0];
            let long = session.annotations.get("long").map(String::len);
            (session.container.to_string(), session.metadata.to_string(), session.is_exec, session.pid, long)
        });
        assert_eq!(said, (pod.id("c"), "some metadata".to_owned(), false, pid, Some(100_000)), "{runtime}");
        assert!(pod.exec_stdout("c", "mkdir /tmp/d 2>&1 || true").contains("Invalid cross-device link"));
        let stats = own.until("the exec's end", |stats| stats.sessions == 1);
        assert_eq!((stats.received, stats.answered), (1, 1), "{runtime}");
        drop(pod);
        own.until("the container's end", |stats| stats.sessions == 0);
    }
}

#[test]
fn a_target_that_dies_with_its_call_pending_is_let_go() {
    for runtime in RUNTIMES {
        let own = Own::start();
        own.plugin(registration("p", &MKDIR), |_, _| never());
        let pod = Pod::with_runtime(runtime);
        let script = "for i in 1 2 3 4 5 6 7 8 9 10; do mkdir /tmp/$i & done; wait";
        run(&pod, "c", &own.socket(), &MKDIR, script);
        own.until("all are pending", |stats| stats.open == 10);
        let id = pod.id("c");
        pod.call(async |pod| pod.stop_container(&id, 9, 0).await).expect("stop");
        let stats = own.until("the session's end", |stats| stats.sessions == 0 && stats.open == 0);
        assert_eq!((stats.received, stats.answered, stats.interrupted), (10, 0, 10), "{runtime}");
    }
}

/// Signals interrupt a call, which is made again; at the end every one is answered,
/// and those that were interrupted wait for nobody.
#[test]
fn signals_during_a_call_lose_nothing() {
    let own = Own::start();
    // So slow that the signals are there first.
    own.plugin(registration("p", &["chdir"]), |_, _| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Verdict::Continue)
        })
    });
    let pod = Pod::start();
    // The shell itself makes the call, and has a handler.
    let script = "trap 'n=$((n+1))' URG; me=$$
        (for i in $(seq 30); do kill -URG $me; busybox usleep 10000; done) & storm=$!
        for i in $(seq 5); do until cd /tmp 2>/dev/null; do again=yes; done; cd /; done
        wait $storm; wait; cd /tmp && pwd; echo $n > /dev/null; echo done";
    run(&pod, "c", &own.socket(), &["chdir"], script);
    assert_eq!(pod.wait("c").shell_code(), Some(0));
    assert_eq!(stdout(&pod, "c"), "/tmp\ndone\n");
    let stats = own.until("the session's end", |stats| stats.sessions == 0);
    assert_eq!(stats.received, stats.answered + stats.interrupted, "{stats:?}");
    assert!(stats.interrupted > 0, "{stats:?}");
}

/// The program of `storm.go`, in the root file system of `pod`; `None` without Go, which is needed in CI.
fn go_storm(pod: &Pod) -> Option<()> {
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(pod.place.path("rootfs/bin/storm")).arg("tests/seccomp_target/storm.go");
    build.env("CGO_ENABLED", "0").env("GOFLAGS", "").current_dir(env!("CARGO_MANIFEST_DIR"));
    let Ok(status) = build.status() else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "go is needed in CI");
        common::skip("no go");
        return None;
    };
    assert!(status.success(), "go build");
    Some(())
}

/// A Go program whose runtime interrupts it all the time gets every verdict. Without
/// the flag some calls are made anew; with it none is, once it was received.
fn survives_its_own_signals(runtime: &str, flags: &[&str]) {
    const CALLS: u64 = 25;
    let own = Own::start();
    let turn = AtomicU64::new(0);
    // Every other verdict takes so long that the runtime sends a signal meanwhile.
    own.plugin(registration("p", &MKDIR), move |_, _| {
        let pause = Duration::from_millis(30 * (turn.fetch_add(1, Ordering::Relaxed) % 2));
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            Ok(Verdict::Errno(libc::EXDEV))
        })
    });
    let pod = Pod::with_runtime(runtime);
    let Some(()) = go_storm(&pod) else { return };
    let request = pod.container_with("c", &["/bin/storm", &CALLS.to_string()], |config| {
        config["linux"]["seccomp"] = profile(&own.socket(), &MKDIR);
        config["linux"]["seccomp"]["flags"] = json!(flags);
    });
    match pod.create(&request) {
        Ok(_) => {}
        Err(error) if !flags.is_empty() && error.to_string().contains("seccomp flag") => {
            common::skip(&format!("{runtime} does not know the flag: {error}"));
            return;
        }
        Err(error) => panic!("{runtime}: {error}"),
    }
    pod.start_container("c");
    // Four goroutines, and two kinds of calls.
    let made = 8 * CALLS;
    assert_eq!(pod.output("c"), format!("{made} calls, 0 wrong\n"), "{runtime}, {flags:?}");
    let stats = own.until("the session's end", |stats| stats.sessions == 0 && stats.open == 0);
    assert_eq!(stats.received, stats.answered + stats.interrupted, "{stats:?}");
    assert_eq!(stats.interrupted > 0, flags.is_empty(), "{stats:?}");
    if flags.is_empty() {
        // A signal at the moment of the answer: the kernel takes the answer, and has the call made anew.
        assert!(stats.answered >= made, "{stats:?}");
    } else {
        assert_eq!(stats.answered, made, "{stats:?}");
    }
}

/// Refuses, every other time so slowly that the program's runtime sends a signal meanwhile.
struct Slow(AtomicU64);

impl Plugin for Slow {
    async fn decide(&self, _: Call) -> client::Verdict {
        let pause = Duration::from_millis(30 * (self.0.fetch_add(1, Ordering::Relaxed) % 2));
        tokio::time::sleep(pause).await;
        client::Verdict::Errno(18)
    }
}

/// Calls that are made anew are other calls for a plugin: it still has the ones before in its hands.
#[test]
fn go_survives_its_own_signals_while_a_plugin_decides() {
    const CALLS: u64 = 25;
    for runtime in RUNTIMES {
        let pod = Pod::with_runtime(runtime);
        let Some(()) = go_storm(&pod) else { return };
        let socket = pod.run_dir().join("plugins.sock");
        let (over, told) = tokio::sync::oneshot::channel::<()>();
        let plugin = std::thread::spawn(move || {
            tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
                let request = Request { deadline_ms: 60_000, ..Request::new("slow", &MKDIR) };
                let _plugged = dial_in(&socket, request, Slow(AtomicU64::new(0))).await.unwrap();
                told.await.unwrap_err();
            });
        });
        common::eventually(|| pod.seccomp_plugins().len() == 1);
        let request = pod.container_with("c", &["/bin/storm", &CALLS.to_string()], |config| {
            config["linux"]["seccomp"] = profile(&pod_socket(&pod), &MKDIR);
        });
        pod.create(&request).expect("create");
        pod.start_container("c");
        assert_eq!(pod.output("c"), format!("{} calls, 0 wrong\n", 8 * CALLS), "{runtime}");
        let stats = || pod.call(async |client| client.seccomp_stats().await).expect("stats");
        common::eventually(|| stats().sessions == 0 && stats().open == 0);
        let stats = stats();
        assert_eq!(stats.received, stats.answered + stats.interrupted, "{runtime}: {stats:?}");
        assert!(stats.interrupted > 0 && stats.answered >= 8 * CALLS, "{runtime}: {stats:?}");
        drop(over);
        plugin.join().unwrap();
    }
}

#[test]
fn go_under_crun_survives_its_own_signals() {
    survives_its_own_signals("crun", &[]);
}

#[test]
fn go_under_runc_survives_its_own_signals() {
    survives_its_own_signals("runc", &[]);
}

#[test]
fn go_under_crun_is_not_interrupted_with_the_flag() {
    survives_its_own_signals("crun", &[WAIT_KILLABLE]);
}

#[test]
fn go_under_runc_is_not_interrupted_with_the_flag() {
    survives_its_own_signals("runc", &[WAIT_KILLABLE]);
}

#[test]
fn a_container_may_have_a_socket_of_its_own() {
    let rules = r#"{"name": "r", "match": {"syscalls": ["mkdir", "mkdirat"]}, "do": {"errno": "EXDEV"}}"#;
    for runtime in RUNTIMES {
        let pod = pod_with_rules(runtime, rules);
        let socket = |name: &str| pod.run_dir().join(format!("seccomp/{}.sock", pod.id(name)));
        run(&pod, "own", &socket("own"), &MKDIR, "mkdir /tmp/d 2>&1; sleep 1000");
        assert!(pod.exec_stdout("own", "mkdir /tmp/d 2>&1 || true").contains("Invalid cross-device link"));
        // Another container at that socket: its listener is closed, as if nobody were there.
        run(&pod, "other", &socket("own"), &MKDIR, "mkdir /tmp/d 2>&1");
        pod.wait("other");
        assert!(stdout(&pod, "other").contains("Function not implemented"), "{}", stdout(&pod, "other"));
        let id = pod.id("own");
        pod.call(async |pod| pod.stop_container(&id, 9, 0).await).expect("stop");
        assert!(!socket("own").exists(), "{runtime}");
    }
}

/// The monitor dies: what waits is refused by the kernel, and the next monitor
/// serves the same sockets.
#[test]
fn a_monitor_that_dies_leaves_no_call_hanging() {
    let rules = r#"{"name": "r", "match": {"syscalls": ["mkdir", "mkdirat"]}, "do": {"errno": "EXDEV"}}"#;
    let pod = pod_with_rules("crun", rules);
    let own = pod.run_dir().join(format!("seccomp/{}.sock", pod.id("own")));
    run(&pod, "own", &own, &MKDIR, "sleep 1000");
    let monitor = common::children_of(pod.keeper_pid())[0];
    let (ended, id) = (common::pidfd(monitor).unwrap(), pod.id("own"));
    common::kill(monitor, "KILL");
    assert!(common::wait_readable(&ended));
    pod.reconnect();
    pod.call(async |pod| pod.version().await).expect("the next monitor");
    assert!(
        pod.exec_stdout("own", "mkdir /tmp/d 2>&1 || true").contains("Invalid cross-device link"),
        "{id}"
    );
    run(&pod, "new", &pod_socket(&pod), &MKDIR, "mkdir /tmp/d 2>&1");
    pod.wait("new");
    assert!(stdout(&pod, "new").contains("Invalid cross-device link"));
}

#[test]
fn a_container_without_a_socket_does_not_start() {
    for runtime in RUNTIMES {
        let pod = Pod::with_runtime(runtime);
        let request = pod.container_with("c", &["true"], |config| {
            config["linux"]["seccomp"] = profile(&pod.run_dir().join("nobody.sock"), &["mkdir"]);
        });
        pod.create(&request).unwrap_err();
        pod.assert_serves("after");
    }
}

#[test]
fn a_slow_plugin_has_a_deadline_in_a_container_too() {
    let own = Own::start();
    let policy = Registration {
        deadline: Duration::from_millis(50),
        on_failure: OnFailure::Errno(libc::ETIME),
        ..registration("stalls", &MKDIR)
    };
    own.plugin(policy, |_, _| never());
    let pod = Pod::with_runtime("runc");
    run(&pod, "c", &own.socket(), &MKDIR, "mkdir /tmp/d 2>&1");
    assert_eq!(pod.wait("c").shell_code(), Some(1));
    assert!(stdout(&pod, "c").contains("Timer expired"), "{}", stdout(&pod, "c"));
}
