//! cgroup v2 and systemd as the manager of cgroups, with real containers.
//!
//! They run wherever both are; `make test-vm` brings a machine that has them. Where they are
//! missing, the tests are skipped, but for the machine that was made for them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Place, Pod};
use podinit::rpc::client::{
    CgroupManager, CreateContainer, Ended, ExecOutcome, ExecRequest, ExitStatus, LogDriver, LogKind,
    OomVictim,
};
use serde_json::{Value, json};

/// Who makes a container's cgroup, and with which OCI runtime.
const WAYS: [(&str, CgroupManager); 4] = [
    ("crun", CgroupManager::Cgroupfs),
    ("runc", CgroupManager::Cgroupfs),
    ("crun", CgroupManager::Systemd),
    ("runc", CgroupManager::Systemd),
];

/// Whether this machine has what these tests are about; skips the test if not.
fn is_right_machine() -> bool {
    let has_memory = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"));
    let is_right = has_memory && Path::new("/run/systemd/private").exists();
    let is_made_for_it = std::env::var_os("PODINIT_VM").is_some();
    assert!(is_right || !is_made_for_it, "the virtual machine has no cgroup v2 with memory, or no systemd");
    if !is_right {
        common::skip("no cgroup v2 with a memory controller, or no systemd; see `make test-vm`");
    }
    is_right
}

/// A container with a limit of 16 MiB, in a cgroup that `manager` makes.
fn limited(pod: &Pod, manager: CgroupManager, name: &str, script: &str) -> CreateContainer {
    limited_with(pod, manager, name, script, json!({}))
}

fn limited_with(
    pod: &Pod,
    manager: CgroupManager,
    name: &str,
    script: &str,
    unified: Value,
) -> CreateContainer {
    let id = pod.id(name);
    let mut request = pod.container_with(name, &["sh", "-c", script], |config| {
        config["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20 }, "unified": unified });
        if manager == CgroupManager::Systemd {
            config["linux"]["cgroupsPath"] = json!(format!("{}:podinit:{id}", slice_of(pod)));
        }
    });
    request.cgroup_manager = manager;
    request
}

/// A pod's own slice, as the kubelet makes one.
fn slice_of(pod: &Pod) -> String {
    format!("{}.slice", pod.name())
}

/// Ends a pod, and then its slice, which systemd keeps.
fn end(pod: Pod) {
    pod.shutdown();
    let status = std::process::Command::new("systemctl").args(["stop", &slice_of(&pod)]).status();
    assert!(status.expect("systemctl").success());
}

fn run(pod: &Pod, name: &str, request: &CreateContainer) -> u32 {
    let pid = pod.create(request).expect("create");
    pod.start_container(name);
    pid
}

fn told(exit: &ExitStatus) -> (Ended, bool, OomVictim) {
    (exit.how.clone(), exit.oom_killed, exit.oom_victim)
}

/// The cgroup of a process in the one tree.
fn cgroup_of(pid: u32) -> PathBuf {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    let path = membership.trim().strip_prefix("0::/").expect("only the one tree");
    Path::new("/sys/fs/cgroup").join(path)
}

#[test]
fn victims_of_an_oom_kill_are_told_apart() {
    if !is_right_machine() {
        return;
    }
    for (runtime, manager) in WAYS {
        let pod = Pod::with_runtime(runtime);
        let way = format!("{runtime}, {manager:?}");
        run(&pod, "neighbour", &limited(&pod, manager, "neighbour", "exec sleep 600"));

        run(&pod, "hog", &limited(&pod, manager, "hog", "exec tail /dev/zero"));
        assert_eq!(told(&pod.wait("hog")), (Ended::Signal(9), true, OomVictim::FirstProcess), "{way}");

        run(&pod, "parent", &limited(&pod, manager, "parent", "tail /dev/zero; exit 4"));
        assert_eq!(told(&pod.wait("parent")), (Ended::Code(4), true, OomVictim::Others), "{way}");

        // All of them at once, so the first one, too.
        let group = json!({ "memory.oom.group": "1" });
        run(&pod, "group", &limited_with(&pod, manager, "group", "tail /dev/zero; exit 4", group));
        assert_eq!(told(&pod.wait("group")), (Ended::Signal(9), true, OomVictim::FirstProcess), "{way}");

        // One that was killed by somebody else, after all that.
        pod.call(async |client| client.stop_container(&pod.id("neighbour"), 9, 0).await).expect("stop");
        assert_eq!(told(&pod.wait("neighbour")), (Ended::Signal(9), false, OomVictim::Nobody), "{way}");
        end(pod);
    }
}

/// systemd removes the cgroup of a scope as soon as it is empty; the verdict must be there by then.
#[test]
fn verdict_does_not_depend_on_who_removes_the_cgroup() {
    if !is_right_machine() {
        return;
    }
    let pod = Pod::start();
    for round in 0..4 {
        let (hog, other) = (format!("hog{round}"), format!("other{round}"));
        run(&pod, &other, &limited(&pod, CgroupManager::Systemd, &other, "exec sleep 600"));
        run(&pod, &hog, &limited(&pod, CgroupManager::Systemd, &hog, "exec tail /dev/zero"));
        assert!(pod.wait(&hog).oom_killed, "round {round}");
        pod.call(async |client| client.stop_container(&pod.id(&other), 9, 0).await).expect("stop");
        assert!(!pod.wait(&other).oom_killed, "round {round}");
    }
    end(pod);
}

/// A nested cgroup of the container's own counts as the container's.
#[test]
fn kills_below_the_containers_cgroup_are_its_own() {
    if !is_right_machine() {
        return;
    }
    let pod = Pod::start();
    let pid = run(&pod, "c", &limited(&pod, CgroupManager::Cgroupfs, "c", "exec sleep 600"));
    let request = ExecRequest {
        id: pod.id("c"),
        command: ["sh", "-c", "exec tail /dev/zero"].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    };
    let result = pod.call(async |client| client.exec(&request).await).expect("an answer");
    assert!(matches!(result.outcome, ExecOutcome::Exited(exit) if exit.shell_code() == Some(137)));
    let below = fs::read_dir(cgroup_of(pid)).expect("a cgroup").flatten();
    let below: Vec<_> = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect();
    assert!(below.is_empty(), "the exec has left {below:?}");
    pod.call(async |client| client.stop_container(&pod.id("c"), 15, 0).await).expect("stop");
    let exit = pod.wait("c");
    assert!(exit.oom_killed, "{exit:?}");
}

/// Started in its own cgroup, an exec has no moment in which a daemon could be born outside.
#[test]
fn time_out_kills_a_daemon_of_the_first_moment() {
    if !is_right_machine() {
        return;
    }
    for (runtime, manager) in WAYS {
        let pod = Pod::with_runtime(runtime);
        let pid = run(&pod, "c", &limited(&pod, manager, "c", "exec sleep 600"));
        let script = "(setsid sh -c '(setsid sleep 601 &); exec sleep 602' &); exec sleep 603";
        let request = ExecRequest {
            id: pod.id("c"),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout_ms: 1500,
            ..ExecRequest::default()
        };
        let result = pod.call(async |client| client.exec(&request).await).expect("an answer");
        assert!(matches!(result.outcome, ExecOutcome::TimedOut), "{runtime}, {manager:?}: {result:?}");
        let left = fs::read_to_string(cgroup_of(pid).join("cgroup.procs")).expect("a cgroup");
        assert_eq!(left.trim(), pid.to_string(), "{runtime}, {manager:?}");
        let left = pod.exec_stdout("c", "ps -o args");
        let left: Vec<&str> = left.lines().filter(|line| line.starts_with("sleep 60")).collect();
        assert_eq!(left, ["sleep 600"], "{runtime}, {manager:?}");
        end(pod);
    }
}

/// What CRI-O does: a scope of systemd's for the pid that it knows.
#[test]
fn monitor_follows_the_keeper_to_a_scope_of_systemd() {
    if !is_right_machine() {
        return;
    }
    let pod = Pod::start_in(Place::new(), common::Options::default());
    let scope = format!("{}-monitor.scope", pod.name());
    let status = std::process::Command::new("busctl")
        .args([
            "call",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
        ])
        .args(["StartTransientUnit", "ssa(sv)a(sa(sv))", &scope, "replace", "2"])
        .args(["PIDs", "au", "1", &pod.keeper_pid().to_string(), "Delegate", "b", "true", "0"])
        .status();
    assert!(status.expect("busctl").success());
    let in_scope = |pid: u32| cgroup_of(pid).ends_with(&scope);
    let deadline = std::time::Instant::now() + common::DEADLINE;
    while !in_scope(pod.keeper_pid()) {
        assert!(std::time::Instant::now() < deadline, "systemd has not moved the keeper");
        std::thread::yield_now();
    }
    let pid = pod.run("c", "exec sleep 600");
    let ours = common::children_of(pod.keeper_pid());
    assert!(!ours.is_empty() && ours.iter().all(|pid| in_scope(*pid)), "the monitor is elsewhere");
    assert!(!in_scope(pid), "the container has a cgroup of its own");
}

/// The pod's server is the last that the kernel would kill; its containers are like any other process.
#[test]
fn protection_from_the_oom_killer_is_not_inherited() {
    if !is_right_machine() {
        return;
    }
    for runtime in ["crun", "runc"] {
        let pod = Pod::with_runtime(runtime);
        let score = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a process");
            text.trim().parse::<i32>().expect("a number")
        };
        let pid = pod.run("c", "exec sleep 600");
        for server in [pod.keeper_pid(), common::children_of(pod.keeper_pid())[0]] {
            assert_eq!(score(server), -1000, "{runtime}");
        }
        assert_eq!(score(pid), 0, "{runtime}");
        assert_eq!(
            pod.exec_stdout("c", "while read -r score; do echo $score; done </proc/self/oom_score_adj"),
            "0\n"
        );
    }
}

/// CRI-O's `log_to_journald`, with the real journal.
#[test]
fn journal_gets_every_line_with_its_fields() {
    if !is_right_machine() {
        return;
    }
    let pod = Pod::start();
    let script = "echo out; echo '<3>worse'; printf partial >&2; head -c 300000 /dev/zero | tr '\\0' x";
    let mut request = pod.container("c", &["sh", "-c", script]);
    let journal = LogDriver { kind: LogKind::Journald, path: PathBuf::new(), size_max: 0 };
    request.log_drivers.push(journal);
    run(&pod, "c", &request);
    assert_eq!(pod.wait("c").how, Ended::Code(0));

    let id = pod.id("c");
    let entries = || -> Vec<Value> {
        let output = std::process::Command::new("journalctl")
            .args(["--all", "--output=json", &format!("CONTAINER_ID_FULL={id}")])
            .output()
            .expect("journalctl");
        let text = String::from_utf8(output.stdout).expect("JSON");
        text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
    };
    let length = |entry: &Value| entry["MESSAGE"].as_str().map_or(0, str::len);
    // The journal takes its time; the last record of the long line is what it is waited for.
    let deadline = std::time::Instant::now() + common::DEADLINE;
    let found = loop {
        let found = entries();
        if found.iter().map(length).sum::<usize>() >= 300_000 {
            break found;
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}");
        std::thread::yield_now();
    };
    let with =
        |text: &str| found.iter().find(|entry| entry["MESSAGE"].as_str().is_some_and(|it| it.trim() == text));
    let short: String = id.chars().take(12).collect();
    let (out, worse, partial) = (with("out").unwrap(), with("worse").unwrap(), with("partial").unwrap());
    assert_eq!((&out["PRIORITY"], &out["CONTAINER_ID"]), (&json!("6"), &json!(short)));
    assert_eq!(worse["PRIORITY"], json!("3"));
    assert_eq!((&partial["PRIORITY"], &partial["CONTAINER_PARTIAL_MESSAGE"]), (&json!("3"), &json!("true")));
}
