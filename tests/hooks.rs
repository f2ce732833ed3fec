//! Hooks at their moments, as real programs see them: where they run, what they
//! are told, in which order, and what their failure means.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Options, Place, Pod, processes_of, which, write_program};
use podinit::rpc::client::{
    Code, Deletion, EventKind, HookChoice, HookFailurePolicy, HookOutcome, HookRegistration, HookRegistry,
    HookRequest, HookResult, NamespaceKind, NamespaceSource, Phase, SandboxRequest,
};
use serde_json::{Value, json};

/// A place with a directory of hooks.
struct Hooks {
    place: Place,
}

impl Hooks {
    fn new() -> Self {
        let place = Place::new();
        fs::create_dir(place.path("hooks")).unwrap();
        fs::create_dir(place.path("seen")).unwrap();
        Self { place }
    }

    /// A hook that runs a shell script, with more fields for the file.
    fn add(&self, name: &str, script: &str, stages: &[&str], podinit: Value) -> PathBuf {
        let program = self.place.path(&format!("{name}.sh"));
        let seen = self.place.path("seen");
        let head = format!("#!/bin/sh\nseen={}\n", seen.display());
        write_program(&program, &format!("{head}{script}\n"));
        self.define(name, &program, stages, podinit);
        program
    }

    fn define(&self, name: &str, program: &Path, stages: &[&str], podinit: Value) {
        let mut file = json!({
            "version": "1.0.0",
            "hook": { "path": program },
            "when": { "always": true },
            "stages": stages,
        });
        if !podinit.is_null() {
            file["podinit"] = podinit;
        }
        self.write(name, &file);
    }

    fn write(&self, name: &str, file: &Value) {
        let path = self.place.path("hooks").join(format!("{name}.json"));
        fs::write(path, file.to_string()).unwrap();
    }

    fn start(self) -> Pod {
        self.start_with("crun", &[])
    }

    fn start_with(self, runtime: &str, more: &[&str]) -> Pod {
        let directory = self.place.path("hooks").display().to_string();
        let mut arguments = vec!["--hooks-dir".to_owned(), directory];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let options = Options { runtime: Some(which(runtime)), arguments, ..Options::default() };
        Pod::start_in(self.place, options)
    }
}

fn seen(pod: &Pod, name: &str) -> String {
    let path = pod.place.path("seen").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn results(pod: &Pod) -> Vec<HookResult> {
    pod.call(async |client| client.hook_results(0).await).unwrap()
}

/// The results of one hook.
fn of(pod: &Pod, hook: &str) -> Vec<HookResult> {
    results(pod).into_iter().filter(|result| result.hook == format!("{hook}.json")).collect()
}

fn sandbox(pod: &Pod, kinds: &[NamespaceKind]) -> SandboxRequest {
    SandboxRequest {
        pod_id: pod.name().to_owned(),
        namespaces: kinds.iter().map(|kind| (*kind, NamespaceSource::Create)).collect(),
        hostname: if kinds.contains(&NamespaceKind::Uts) { "inside".to_owned() } else { String::new() },
        base_path: pod.place.path("pins"),
        ..SandboxRequest::default()
    }
}

const POD: [NamespaceKind; 4] =
    [NamespaceKind::Net, NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::Pid];

fn make_sandbox(pod: &Pod) {
    pod.call(async |client| client.create_sandbox(&sandbox(pod, &POD)).await).unwrap();
}

/// A container that shares the pod's namespaces.
fn create_in_pod(pod: &Pod, name: &str, script: &str) -> u32 {
    let sandboxes = pod.call(async |client| client.namespaces().await).unwrap();
    let request = pod.container_with(name, &["sh", "-c", script], |config| {
        let paths = sandboxes[0].namespaces.iter().map(|made| {
            let kind = match made.kind {
                NamespaceKind::Net => "network",
                other => other.name(),
            };
            json!({ "type": kind, "path": made.path })
        });
        let mut namespaces = paths.collect::<Vec<_>>();
        namespaces.push(json!({ "type": "mount" }));
        config["linux"]["namespaces"] = Value::from(namespaces);
    });
    pod.create(&request).unwrap()
}

fn state(pod: &Pod, name: &str) -> Value {
    serde_json::from_str(&seen(pod, name)).unwrap()
}

const STAGES: [&str; 11] = [
    "podCreate",
    "networkReady",
    "podReady",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "preStop",
    "containerExited",
    "poststop",
    "podStop",
];

#[test]
fn every_stage_is_reached_in_order_with_the_specifications_state() {
    for runtime in ["crun", "runc"] {
        let hooks = Hooks::new();
        let script = "cat >$seen/$PODINIT_STAGE; echo $PODINIT_STAGE >>$seen/order; \
                      hostname >>$seen/names; echo $PODINIT_POD $PODINIT_CONTAINER $PODINIT_HOOK >>$seen/told; \
                      [ $PODINIT_STAGE != createRuntime ] || pwd >$seen/directory";
        hooks.add("all", script, &STAGES, Value::Null);
        let pod = hooks.start_with(runtime, &[]);
        make_sandbox(&pod);
        for stage in ["networkReady", "podReady"] {
            let ended = pod.call(async |client| client.reach_stage(stage, "").await).unwrap();
            assert_eq!(ended.len(), 1);
        }
        let pid = create_in_pod(&pod, "c", "trap 'exit 3' TERM; while :; do sleep 0.05; done");
        pod.start_container("c");
        pod.call(async |client| client.stop_container(&pod.id("c"), 0, 60_000).await).unwrap();
        pod.call(async |client| client.delete_container(&pod.id("c"), Deletion::Exited).await).unwrap();
        pod.shutdown();

        assert_eq!(seen(&pod, "order"), STAGES.join("\n") + "\n", "{runtime}");
        assert_eq!(seen(&pod, "names"), "inside\n".repeat(STAGES.len()), "in the pod's uts namespace");
        assert!(seen(&pod, "told").starts_with(&format!("{} all.json\n", pod.name())));
        assert!(seen(&pod, "told").contains(&format!("{} {} all.json\n", pod.name(), pod.id("c"))));
        assert_eq!(seen(&pod, "directory").trim(), pod.bundle("c").to_str().unwrap());
        for (stage, status) in [
            ("podCreate", "creating"),
            ("networkReady", "created"),
            ("podReady", "running"),
            ("createRuntime", "creating"),
            ("createContainer", "creating"),
            ("startContainer", "created"),
            ("poststart", "running"),
            ("preStop", "running"),
            ("containerExited", "stopped"),
            ("poststop", "stopped"),
            ("podStop", "stopped"),
        ] {
            let state = state(&pod, stage);
            let of_pod = stage.starts_with("pod") || stage == "networkReady";
            let id = if of_pod { pod.name().to_owned() } else { pod.id("c") };
            assert_eq!((&state["status"], &state["id"]), (&json!(status), &json!(id)), "{stage}");
            assert_eq!(state["podinit"]["stage"], json!(stage));
            assert_eq!(state["podinit"]["podId"], json!(pod.name()));
            if status == "running" && !of_pod {
                assert_eq!(state["pid"], json!(pid), "{stage}: as the host counts");
            }
            if !of_pod {
                assert_eq!(state["ociVersion"], json!("1.0.2"));
                assert_eq!(state["bundle"], json!(pod.bundle("c")));
            }
        }
        for stage in ["containerExited", "poststop"] {
            let state = state(&pod, stage);
            assert_eq!(state["podinit"]["exitCode"], json!(3), "{stage}");
            assert_eq!(state["podinit"]["reason"], json!("exited"));
            assert_eq!(state.get("pid"), None, "its process is gone");
        }
        let deadline = state(&pod, "preStop")["podinit"]["deadlineMs"].as_u64().unwrap();
        assert!(deadline <= 30_000, "a hook's default time is less than the grace time");
    }
}

#[test]
fn a_hook_sees_the_namespaces_that_it_asked_for_and_no_others() {
    let hooks = Hooks::new();
    let links = "for n in net ipc uts pid mnt cgroup user; do echo $n $(readlink /proc/self/ns/$n); done";
    let kinds = [
        ("net", json!(["net"])),
        ("ipc", json!(["ipc"])),
        ("uts", json!(["uts"])),
        ("pid", json!(["pid"])),
        // Through the procfs in there a script is opened, so it must be in there, too.
        ("mnt", json!(["mnt", "pid"])),
        ("cgroup", json!(["cgroup"])),
        ("all", json!(["net", "ipc", "uts", "pid", "mnt", "cgroup", "user"])),
        ("none", json!([])),
    ];
    for (name, list) in &kinds {
        // In another mount namespace the file system is the container's: only output is left.
        let script = format!("{links}; echo; ip addr; ipcs -q 2>/dev/null; readlink /proc/1/ns/pid; cat");
        hooks.add(name, &script, &["createRuntime"], json!({ "namespaces": list, "output": "discard" }));
    }
    let pod = hooks.start();
    make_sandbox(&pod);
    let pid = create_in_pod(&pod, "c", "exec sleep 600");
    let link = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let container = pid.to_string();
    for (name, list) in kinds {
        let result = of(&pod, name).remove(0);
        let said = String::from_utf8_lossy(&result.stdout).into_owned();
        assert_eq!(result.outcome, HookOutcome::Code(0), "{name}: {said} {result:?}");
        let asked = list.as_array().unwrap();
        for line in said.lines().take_while(|line| !line.is_empty()) {
            let (kind, found) = line.split_once(' ').unwrap();
            // A process in another pid namespace cannot be seen in the host's procfs from there.
            if found.is_empty() {
                assert!(name == "pid", "{name}: {said}");
                continue;
            }
            let whose = if asked.contains(&json!(kind)) { container.as_str() } else { "thread-self" };
            // The harness has a mount namespace of its own, and so has the server.
            if kind == "mnt" && whose == "thread-self" {
                assert_ne!(found, link(&container, kind).to_str().unwrap(), "{name}");
                continue;
            }
            assert_eq!(found, link(whose, kind).to_str().unwrap(), "{name}: {kind}");
        }
        if name == "net" {
            assert!(said.contains("1: lo:") && !said.contains("\n2:"), "only the pod's loopback: {said}");
        }
        let told: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let inner = if asked.contains(&json!("pid")) { inner_pid(pid) } else { pid };
        assert_eq!(told["pid"], json!(inner), "{name}: its pid as the hook's namespace counts");
    }
}

fn inner_pid(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    line.split_whitespace().next_back().unwrap().parse().unwrap()
}

#[test]
fn namespaces_of_an_ended_container_are_still_there_for_its_hooks() {
    let hooks = Hooks::new();
    hooks.add(
        "late",
        "readlink /proc/self/ns/uts >$seen/$PODINIT_STAGE",
        &["containerExited", "poststop"],
        Value::Null,
    );
    hooks.add("gone", "true", &["containerExited"], json!({ "namespaces": ["mnt"], "failure": "warn" }));
    let pod = hooks.start();
    // A uts namespace of the container's own, in no pod.
    let pid = pod.create(&pod.container("c", &["true"])).unwrap();
    let own = fs::read_link(format!("/proc/{pid}/ns/uts")).unwrap();
    pod.start_container("c");
    pod.wait("c");
    pod.call(async |client| client.delete_container(&pod.id("c"), Deletion::Exited).await).unwrap();
    for stage in ["containerExited", "poststop"] {
        assert_eq!(seen(&pod, stage).trim(), own.to_str().unwrap(), "{stage}");
    }
    let HookOutcome::NotStarted(reason) = of(&pod, "gone").remove(0).outcome else {
        panic!("it was started")
    };
    assert!(reason.contains("its mnt namespace with it"), "{reason}");
}

#[test]
fn what_a_failure_means_depends_on_stage_and_policy() {
    // For each stage: a failing hook of each policy, then one that leaves a mark.
    for stage in
        ["createRuntime", "createContainer", "startContainer", "poststart", "preStop", "containerExited"]
    {
        for policy in ["fail", "warn", "ignore"] {
            let hooks = Hooks::new();
            hooks.add("1", "echo reason >&2; exit 3", &[stage], json!({ "failure": policy }));
            hooks.add("2", "echo $PODINIT_STAGE >>$seen/marks", &[stage, "poststop"], Value::Null);
            hooks.add("3", "exit 1", &["poststop"], Value::Null);
            let pod = hooks.start();
            let created = pod.create(&pod.container("c", &["sh", "-c", "exec sleep 600"]));
            let can_fail = policy == "fail" && !matches!(stage, "preStop" | "containerExited");
            let mut refused = None;
            match created {
                Err(error) => refused = Some(error),
                Ok(_) => {
                    let id = pod.id("c");
                    refused = pod.call(async |client| client.start_container(&id).await).err().or(refused);
                    pod.call(async |client| client.stop_container(&id, 9, 60_000).await).unwrap();
                    pod.call(async |client| client.delete_container(&id, Deletion::Exited).await).unwrap();
                }
            }
            assert_eq!(refused.is_some(), can_fail, "{stage} {policy}: {refused:?}");
            let marks = seen(&pod, "marks");
            assert!(marks.ends_with("poststop\n"), "{stage} {policy}: {marks}");
            assert_eq!(marks.contains(stage), !can_fail, "{stage} {policy}: the rest of the stage");
            if let Some(error) = refused {
                assert_eq!(error.code, Code::RuntimeFailed);
                assert!(
                    error.message.contains("hook 1.json failed at") && error.message.contains("with 3"),
                    "{error}"
                );
                let listed = pod.call(async |client| client.list_containers().await).unwrap();
                assert_eq!(listed, [], "nothing is left of it");
            }
            let first = if policy == "ignore" { "3.json" } else { "1.json" };
            assert_eq!(first_failure(&pod), first, "{stage} {policy}");
            assert_eq!(of(&pod, "1")[0].outcome, HookOutcome::Code(3));
        }
    }
}

/// Which hook's failure was told first.
fn first_failure(pod: &Pod) -> String {
    pod.call(async |client| {
        let mut events = client.events(0).await.unwrap();
        loop {
            if let EventKind::HookFailed(failure) = events.next().await.unwrap().kind {
                return failure.hook;
            }
        }
    })
}

#[test]
fn a_pod_that_a_hook_does_not_want_is_undone() {
    let hooks = Hooks::new();
    hooks.add("no", "test -e $seen/yes", &["podCreate", "podReady"], Value::Null);
    let pod = hooks.start();
    let error = pod.call(async |client| client.create_sandbox(&sandbox(&pod, &POD)).await).unwrap_err();
    assert_eq!(error.code, Code::RuntimeFailed, "{error}");
    assert_eq!(pod.call(async |client| client.namespaces().await).unwrap(), []);
    fs::write(pod.place.path("seen/yes"), "").unwrap();
    make_sandbox(&pod);
    fs::remove_file(pod.place.path("seen/yes")).unwrap();
    let error = pod.call(async |client| client.reach_stage("podReady", "").await).unwrap_err();
    assert_eq!(error.code, Code::RuntimeFailed, "{error}");
    let error = pod.call(async |client| client.reach_stage("poststart", "").await).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument, "{error}");
    let error = pod.call(async |client| client.reach_stage("podReady", "another").await).unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
}

#[test]
fn all_poststop_hooks_run_also_when_one_fails() {
    let hooks = Hooks::new();
    hooks.add("1", "exit 1", &["poststop"], Value::Null);
    hooks.add("2", "kill -KILL $$", &["poststop"], Value::Null);
    hooks.add("3", "cp /dev/null $seen/last", &["poststop"], Value::Null);
    let pod = hooks.start();
    pod.run("c", "true");
    pod.wait("c");
    pod.shutdown();
    assert_eq!(seen(&pod, "last"), "");
}

#[test]
fn order_is_names_then_after_and_before_and_neighbours_run_together() {
    let hooks = Hooks::new();
    let mark = |name: &str| format!("echo {name} >>$seen/order");
    hooks.add("b", &mark("b"), &["createRuntime"], Value::Null);
    hooks.add("A", &mark("A"), &["createRuntime"], json!({ "after": ["c.json"] }));
    hooks.add("c", &mark("c"), &["createRuntime"], Value::Null);
    // Each of these two waits until the other runs.
    let meet = |own: &str, other: &str| {
        format!("cp /dev/null $seen/{own}; until [ -e $seen/{other} ]; do sleep 0.01; done; {}", mark("met"))
    };
    hooks.add("x", &meet("x", "y"), &["createRuntime"], json!({ "concurrent": true }));
    hooks.add("y", &meet("y", "x"), &["createRuntime"], json!({ "concurrent": true }));
    let pod = hooks.start();
    pod.create(&pod.container("c", &["true"])).unwrap();
    assert_eq!(seen(&pod, "order"), "b\nc\nA\nmet\nmet\n");
    let names = pod.call(async |client| client.list_hooks().await).unwrap();
    let names = names.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>();
    assert_eq!(names, ["b.json", "c.json", "A.json", "x.json", "y.json"]);
}

/// One hook of createRuntime that fails in some way; its result, and whether anything of it is left.
fn failing(script: &str, timeout: Option<u64>, podinit: Value) -> (HookResult, Pod) {
    let hooks = Hooks::new();
    let program = hooks.add("h", script, &["createRuntime"], Value::Null);
    let mut file = json!({
        "version": "1.0.0",
        "hook": { "path": program, "env": [
            format!("PODINIT_TEST_POD={}", hooks.place.name), "PATH=/usr/bin:/bin",
        ] },
        "when": { "always": true },
        "stages": ["createRuntime"],
        "podinit": podinit,
    });
    if let Some(seconds) = timeout {
        file["hook"]["timeout"] = json!(seconds);
    }
    hooks.write("h", &file);
    let pod = hooks.start();
    let created = pod.create(&pod.container("c", &["true"]));
    let result = of(&pod, "h").remove(0);
    let is_wanted = result.outcome.is_success() || file["podinit"]["failure"] == json!("warn");
    assert_eq!(created.is_ok(), is_wanted, "{result:?}");
    (result, pod)
}

/// Processes of the pod, but for its own.
fn strangers(pod: &Pod) -> Vec<String> {
    let own = |command: &String| command.contains("podinit") || command.contains("/crun ");
    processes_of(pod.name()).into_iter().map(|(_, command)| command).filter(|c| !own(c)).collect()
}

#[test]
fn a_hook_that_hangs_is_killed_with_all_that_it_started() {
    for script in [
        // Hangs, with a child that hangs.
        "sleep 600 & sleep 600",
        // Ignores SIGTERM, and so do its children.
        "trap '' TERM; sleep 600 & while :; do sleep 600; done",
        // A child in a session of its own, whose parent has gone.
        "setsid sh -c 'trap \"\" TERM; setsid sleep 600 & sleep 600' & sleep 600",
    ] {
        let (result, pod) = failing(script, Some(1), json!({ "failure": "warn", "namespaces": [] }));
        assert_eq!(result.outcome, HookOutcome::TimedOut, "{script}");
        assert!(result.killed >= 1);
        let took = Duration::from_nanos(result.elapsed_ns);
        assert!(took >= Duration::from_secs(1), "{took:?}");
        assert_eq!(strangers(&pod), Vec::<String>::new(), "{script}");
    }
}

#[test]
fn a_hook_that_hangs_in_the_pods_pid_namespace_is_killed_too() {
    let hooks = Hooks::new();
    let program = hooks.add("h", "trap '' TERM; sleep 600 & sleep 600", &["podReady"], Value::Null);
    hooks.write(
        "h",
        &json!({
            "version": "1.0.0",
            "hook": { "path": program, "timeout": 1, "env": [format!("PODINIT_TEST_POD={}", hooks.place.name), "PATH=/bin:/usr/bin"] },
            "when": { "always": true }, "stages": ["podReady"],
            "podinit": { "namespaces": ["pid", "net"], "failure": "ignore" },
        }),
    );
    let pod = hooks.start();
    make_sandbox(&pod);
    let ended = pod.call(async |client| client.reach_stage("podReady", "").await).unwrap();
    assert_eq!(ended[0].outcome, HookOutcome::TimedOut);
    assert_eq!(strangers(&pod), Vec::<String>::new());
}

#[test]
fn a_daemon_that_holds_the_output_is_not_waited_for() {
    let script = "echo before; sleep 600 & echo after; exit 0";
    let (result, pod) = failing(script, None, json!({ "namespaces": [] }));
    assert_eq!(result.outcome, HookOutcome::Code(0));
    assert_eq!(result.stdout, b"before\nafter\n");
    assert_eq!(result.left_running, 1);
    assert!(Duration::from_nanos(result.elapsed_ns) < Duration::from_secs(30));
    // The harness asserts that it ends with the pod.
    assert_eq!(strangers(&pod).len(), 1);
}

#[test]
fn a_flood_keeps_its_end_and_delays_nobody() {
    let script = "head -c 10000000 /dev/zero | tr '\\0' x; echo the end; head -c 100000 /dev/zero >&2";
    let (result, _pod) = failing(script, None, json!({ "output": "discard" }));
    assert_eq!(result.outcome, HookOutcome::Code(0));
    assert!(result.stdout.ends_with(b"xthe end\n"));
    assert_eq!(result.stdout.len(), 64 << 10);
    assert_eq!(result.stdout_dropped, 10_000_008 - (64 << 10));
    assert_eq!(result.stderr_dropped, 100_000 - (64 << 10));
}

#[test]
fn endings_are_told_as_they_were() {
    for (script, outcome) in [
        ("exit 255", HookOutcome::Code(255)),
        ("kill -KILL $$", HookOutcome::Signal(9)),
        ("kill -USR1 $$", HookOutcome::Signal(10)),
    ] {
        let (result, _pod) = failing(script, None, json!({}));
        assert_eq!(result.outcome, outcome, "{script}");
    }
}

#[test]
fn a_hook_that_cannot_be_executed_says_why() {
    let hooks = Hooks::new();
    let program = hooks.add("h", "true", &["createRuntime"], Value::Null);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    let pod = hooks.start();
    let error = pod.create(&pod.container("c", &["true"])).unwrap_err();
    assert!(
        error.message.contains("cannot execute") && error.message.contains("Permission denied"),
        "{error}"
    );
    assert!(matches!(of(&pod, "h")[0].outcome, HookOutcome::NotStarted(_)));
}

#[test]
fn a_hook_that_changes_while_it_runs_is_what_it_was() {
    let hooks = Hooks::new();
    // Replaces its own file, and the definition, in the middle.
    let script = "echo old >>$seen/which; me=$0; printf '#!/bin/sh\\necho new >>%s/which\\n' $seen >$me.new; \
                  chmod 755 $me.new; mv $me.new $me; echo old >>$seen/which";
    hooks.add("h", script, &["createRuntime"], Value::Null);
    let pod = hooks.start();
    pod.create(&pod.container("one", &["true"])).unwrap();
    pod.create(&pod.container("two", &["true"])).unwrap();
    assert_eq!(seen(&pod, "which"), "old\nold\nnew\n");
}

#[test]
fn hook_files_are_read_again_when_they_change() {
    let hooks = Hooks::new();
    hooks.add("one", "true", &["createRuntime"], Value::Null);
    let pod = hooks.start();
    let directory = pod.place.path("hooks");
    let names = |pod: &Pod| {
        let hooks = pod.call(async |client| client.list_hooks().await).unwrap();
        hooks.into_iter().map(|hook| hook.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&pod), ["one.json"]);
    // The change is told before the next request can be read.
    fs::copy(directory.join("one.json"), directory.join(".two")).unwrap();
    fs::rename(directory.join(".two"), directory.join("two.json")).unwrap();
    until(|| names(&pod) == ["one.json", "two.json"]);
    fs::remove_file(directory.join("one.json")).unwrap();
    until(|| names(&pod) == ["two.json"]);
    // One that cannot be understood leaves the last one in force; a new one is in the way.
    fs::write(directory.join("two.json"), "{").unwrap();
    fs::write(directory.join("three.json"), "{").unwrap();
    until(|| {
        pod.create(&pod.container("c", &["true"])).is_err_and(|error| error.message.contains("three.json"))
    });
    fs::remove_file(directory.join("three.json")).unwrap();
    until(|| pod.create(&pod.container("d", &["true"])).is_ok());
    assert_eq!(names(&pod), ["two.json"]);
}

/// Waits for what follows from a change of a file, which nothing tells from outside.
fn until(mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + common::DEADLINE;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "it does not come");
        std::thread::yield_now();
    }
}

#[test]
fn state_of_any_size_arrives_and_need_not_be_read() {
    let hooks = Hooks::new();
    hooks.add("reads", "wc -c >$seen/bytes", &["createRuntime"], Value::Null);
    hooks.add("shuts", "exec <&-; sleep 0.1", &["createRuntime"], Value::Null);
    let pod = hooks.start();
    let request = pod.container_with("c", &["true"], |config| {
        config["annotations"] = json!({ "large": "x".repeat(300_000) });
    });
    pod.create(&request).unwrap();
    let bytes: usize = seen(&pod, "bytes").trim().parse().unwrap();
    assert!((300_000..301_000).contains(&bytes), "{bytes}");
}

#[test]
fn output_is_in_the_containers_log_with_the_hooks_name() {
    let hooks = Hooks::new();
    hooks.add("says", "echo out; echo err >&2; printf open", &["createRuntime"], Value::Null);
    hooks.add("silent", "echo secret", &["createRuntime"], json!({ "output": "discard" }));
    let pod = hooks.start();
    pod.run("c", "echo own; echo own >&2");
    pod.wait("c");
    let log = pod.log("c");
    assert_eq!(log.stdout, b"own\n");
    let expected = "[hook says.json] out\n[hook says.json] open\n[hook says.json] err\nown\n";
    assert_eq!(String::from_utf8(log.stderr).unwrap(), expected);
    assert_eq!(of(&pod, "silent")[0].stdout, b"secret\n");
}

#[test]
fn a_hook_is_tried_as_often_as_it_wants() {
    let script = "echo x >>$seen/tries; [ $(wc -l <$seen/tries) = 3 ]";
    let (result, pod) = failing(script, None, json!({ "retry": { "attempts": 5, "pause": 0 } }));
    assert_eq!((result.outcome, result.attempts), (HookOutcome::Code(0), 3));
    assert_eq!(seen(&pod, "tries"), "x\nx\nx\n");
}

#[test]
fn user_and_capabilities_are_as_the_file_says() {
    let hooks = Hooks::new();
    let script = "id -u; id -g; id -G; grep -E 'CapEff|NoNewPrivs' /proc/self/status";
    let podinit = json!({
        "user": { "uid": 1234, "gid": 2345, "additionalGids": [7] },
        "capabilities": ["CAP_NET_ADMIN"],
    });
    hooks.add("h", script, &["createRuntime"], podinit);
    let pod = hooks.start();
    fs::set_permissions(pod.place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    pod.create(&pod.container("c", &["true"])).unwrap();
    let said = String::from_utf8(of(&pod, "h")[0].stdout.clone()).unwrap();
    assert_eq!(said, "1234\n2345\n2345 7\nCapEff:\t0000000000001000\nNoNewPrivs:\t1\n");
}

#[test]
fn one_hook_can_be_run_by_name_or_by_definition() {
    let hooks = Hooks::new();
    let program =
        hooks.add("known", "echo $PODINIT_STAGE $PODINIT_CONTAINER; exit 5", &["poststart"], Value::Null);
    let pod = hooks.start();
    make_sandbox(&pod);
    let run = |request: HookRequest| pod.call(async |client| client.run_hook(&request).await);
    let by_name = || HookRequest::new(HookChoice::Name("known.json".to_owned()));
    let result = run(by_name()).unwrap();
    assert_eq!((result.outcome, result.stdout.as_slice()), (HookOutcome::Code(5), &b"poststart\n"[..]));
    create_in_pod(&pod, "c", "true");
    let result =
        run(HookRequest { container: pod.id("c"), stage: "preStop".to_owned(), ..by_name() }).unwrap();
    assert_eq!(String::from_utf8(result.stdout).unwrap(), format!("preStop {}\n", pod.id("c")));

    let definition = json!({
        "version": "1.0.0", "hook": { "path": program }, "when": {}, "stages": ["podStop"],
    });
    let defined = |text: String| HookRequest::new(HookChoice::Definition(text));
    assert_eq!(run(defined(definition.to_string())).unwrap().stage, "podStop");
    assert_eq!(run(defined("{}".to_owned())).unwrap_err().code, Code::InvalidArgument);
    for (request, code) in [
        (HookRequest::new(HookChoice::Name("nobody".to_owned())), Code::NotFound),
        (HookRequest { container: "nobody".to_owned(), ..by_name() }, Code::NotFound),
        (HookRequest { pod_id: "nobody".to_owned(), ..by_name() }, Code::NotFound),
        (HookRequest { stage: "nowhere".to_owned(), ..by_name() }, Code::InvalidArgument),
        (HookRequest { bundle: "relative".to_owned(), ..by_name() }, Code::InvalidArgument),
    ] {
        assert_eq!(run(request.clone()).unwrap_err().code, code, "{request:?}");
    }
    assert_eq!(told_results(&pod), results(&pod).len());
}

/// Numbers have no gap.
fn told_results(pod: &Pod) -> usize {
    let numbers = results(pod).into_iter().map(|result| result.sequence).collect::<Vec<_>>();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    numbers.len()
}

#[test]
fn resident_hooks_are_asked_and_forgotten() {
    let hooks = Hooks::new();
    hooks.add("file", "echo file >>$seen/order", &["createRuntime"], Value::Null);
    let pod = hooks.start_with("crun", &["--hooks-socket"]);
    let socket = pod.run_dir().join("hooks.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let seen_order = pod.place.path("seen/order");
    let fails_for = pod.id("bad");
    let request = |name: &str| pod.container(name, &["true"]);
    pod.call(async |client| {
        let registry = HookRegistry::connect(&socket).await.unwrap();
        let hook = HookRegistration {
            before: vec!["file.json".to_owned()],
            ..HookRegistration::new("resident", &["createRuntime"])
        };
        let answer = {
            let (path, bad) = (seen_order.clone(), fails_for.clone());
            async move |call: podinit::rpc::client::HookCall| {
                let state: Value = serde_json::from_str(&call.state).unwrap();
                assert_eq!(state["status"], json!("creating"));
                fs::write(&path, "resident\n").unwrap();
                if call.container == bad { Err("I do not want this".to_owned()) } else { Ok(()) }
            }
        };
        let registered = registry.register(&hook, answer).await.unwrap();
        let taken = registry.register(&hook, async |_| Ok(())).await.unwrap_err();
        assert_eq!(taken.code, Code::AlreadyExists);
        let nameless = registry.register(&HookRegistration::new("", &["poststop"]), async |_| Ok(())).await;
        assert_eq!(nameless.unwrap_err().code, Code::InvalidArgument);

        client.create_container(&request("good")).await.unwrap();
        assert_eq!(fs::read_to_string(&seen_order).unwrap(), "resident\nfile\n");
        let error = client.create_container(&request("bad")).await.unwrap_err();
        assert!(error.message.contains("I do not want this"), "{error}");
        drop(registered);
        let gone = loop {
            let hooks = client.list_hooks().await.unwrap();
            if hooks.len() == 1 {
                break hooks;
            }
            tokio::task::yield_now().await;
        };
        assert!(!gone[0].resident);
        client.create_container(&request("bad")).await.unwrap();
    });
}

#[test]
fn a_resident_hook_that_stalls_or_dies_is_a_failure_by_its_policy() {
    let pod = Hooks::new().start_with("crun", &["--hooks-socket"]);
    let socket = pod.run_dir().join("hooks.sock");
    let request = |name: &str| pod.container(name, &["true"]);
    pod.call(async |client| {
        let registry = HookRegistry::connect(&socket).await.unwrap();
        let stalls = HookRegistration {
            timeout_ms: 100,
            failure: HookFailurePolicy::Warn,
            ..HookRegistration::new("stalls", &["createRuntime"])
        };
        let stalling = registry.register(&stalls, async |_| std::future::pending().await).await.unwrap();
        client.create_container(&request("one")).await.unwrap();
        assert_eq!(client.hook_results(0).await.unwrap()[0].outcome, HookOutcome::TimedOut);
        drop((stalling, registry));

        // It dies when it is asked: the task that serves it is what holds the connection.
        let registry = HookRegistry::connect(&socket).await.unwrap();
        let (asked, mut told) = tokio::sync::mpsc::unbounded_channel();
        let dies = HookRegistration::new("dies", &["createRuntime"]);
        let waiting = registry
            .register(&dies, async move |_| {
                asked.send(()).unwrap();
                std::future::pending().await
            })
            .await
            .unwrap();
        let creating = tokio::task::spawn_local({
            let (client, request) = (client.clone(), request("two"));
            async move { client.create_container(&request).await }
        });
        told.recv().await.unwrap();
        drop((waiting, registry));
        let error = creating.await.unwrap().unwrap_err();
        assert!(error.message.contains("its connection has ended"), "{error}");
        client.create_container(&request("two")).await.unwrap();
    });
}

/// Two that start a container at the same time: its hooks run once, and one of the two is told so.
#[test]
fn a_container_is_started_once_and_so_are_its_hooks() {
    let hooks = Hooks::new();
    // Its end waits for the second start, which would otherwise be too late.
    let wait = "echo once >> $seen/started; while [ ! -e $seen/go ]; do sleep 0.01; done";
    hooks.add("slow", wait, &["startContainer"], Value::Null);
    let pod = hooks.start();
    pod.create(&pod.container("c", &["sleep", "1000"])).unwrap();
    let id = pod.id("c");
    let (first, second) = pod.call(async |client| {
        let start = || {
            let (client, id) = (client.clone(), id.clone());
            tokio::task::spawn_local(async move { client.start_container(&id).await })
        };
        let first = start();
        while !pod.place.path("seen/started").exists() {
            tokio::task::yield_now().await;
        }
        let second = start();
        tokio::task::yield_now().await;
        // Requests of one connection are taken in turn: it is under way when this is answered.
        client.version().await.unwrap();
        fs::write(pod.place.path("seen/go"), "").unwrap();
        (first.await.unwrap(), second.await.unwrap())
    });
    first.unwrap();
    assert_eq!(second.unwrap_err().code, Code::WrongState);
    assert_eq!(seen(&pod, "started"), "once\n");
    pod.shutdown();
}

#[test]
fn a_stop_does_not_wait_for_hooks_beyond_its_grace_time() {
    let hooks = Hooks::new();
    hooks.add("slow", "exec sleep 600", &["preStop"], json!({ "namespaces": [] }));
    let pod = hooks.start();
    pod.run("c", "trap 'exit 9' TERM; while :; do sleep 0.05; done");
    let id = pod.id("c");
    let began = std::time::Instant::now();
    let stopped = pod.call(async |client| client.stop_container(&id, 0, 500).await).unwrap();
    assert!(began.elapsed() < common::DEADLINE / 2);
    assert_eq!(of(&pod, "slow")[0].outcome, HookOutcome::TimedOut);
    assert!(stopped.exit.shell_code().is_some());
    let status = pod.call(async |client| client.container_state(&id).await).unwrap();
    assert_eq!(status.phase, Phase::Exited);
}

#[test]
fn a_pod_that_is_killed_by_a_signal_still_runs_its_last_hooks() {
    let hooks = Hooks::new();
    hooks.add("last", "echo $PODINIT_STAGE >>$seen/last", &["poststop", "podStop"], Value::Null);
    let pod = hooks.start();
    make_sandbox(&pod);
    create_in_pod(&pod, "c", "exec sleep 600");
    pod.start_container("c");
    common::kill(pod.keeper_pid(), "TERM");
    pod.wait_end();
    pod.delete_in_runtime();
    assert_eq!(seen(&pod, "last"), "poststop\npodStop\n");
}

#[test]
fn without_a_hook_nothing_is_spent() {
    let threads_and_fds = |pod: &Pod| {
        let children = common::children_of(pod.keeper_pid());
        let is_monitor = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"monitor")
        };
        let monitor = children.into_iter().find(is_monitor).unwrap();
        let inotify = |link: fs::DirEntry| {
            fs::read_link(link.path()).is_ok_and(|link| link.to_string_lossy().contains("inotify"))
        };
        let fds = fs::read_dir(format!("/proc/{monitor}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|link| inotify(link).then_some(()));
        (fs::read_dir(format!("/proc/{monitor}/task")).unwrap().count(), fds.count())
    };
    let pod = Pod::start();
    // The main thread and the relay's; one instance for the run directory and the hooks.
    assert_eq!(threads_and_fds(&pod), (2, 1));
    assert!(!pod.run_dir().join("hooks.sock").exists());
    pod.run("c", "true");
    pod.wait("c");
    // The relay's second thread, which looks after a write to the log, ends when there is none.
    until(|| threads_and_fds(&pod) == (2, 1));
}

#[test]
fn people_run_and_list_hooks() {
    let place = Place::new();
    let hook = place.path("h.json");
    let file = json!({
        "version": "1.0.0",
        "hook": { "path": "/bin/sh", "args": ["sh", "-c", "hostname; echo $PODINIT_STAGE >&2; exit 4"] },
        "when": { "always": true }, "stages": ["podReady"],
    });
    fs::create_dir(place.path("hooks")).unwrap();
    fs::write(&hook, file.to_string()).unwrap();
    fs::copy(&hook, place.path("hooks/known.json")).unwrap();
    let root = place.path("run");
    let podinit = |line: &[&str]| {
        let mut command = std::process::Command::new(common::binary());
        command
            .arg("--root")
            .arg(&root)
            .args(line)
            .env("PODINIT_TEST_POD", &place.name)
            .env("TMPDIR", place.path("tmp"));
        command.output().unwrap()
    };
    let name = place.name.as_str();
    let made = podinit(&[
        "pod",
        "create",
        name,
        "--hostname",
        "inside",
        "--hooks-dir",
        place.path("hooks").to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for hook in [hook.to_str().unwrap(), "known.json"] {
        let ran = podinit(&["hook", "run", "--pod", name, hook]);
        assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice()), (&b"inside\n"[..], &b"podReady\n"[..]));
        assert_eq!(ran.status.code(), Some(4));
    }
    let told = podinit(&["hook", "run", "--pod", name, "--stage", "podStop", "known.json"]);
    assert_eq!(told.stderr, b"podStop\n");
    assert_eq!(podinit(&["hook", "run", "--pod", name, "unknown"]).status.code(), Some(125));
    let listed = String::from_utf8(podinit(&["hook", "ls", name]).stdout).unwrap();
    assert!(listed.lines().nth(1).unwrap().starts_with("known.json  podReady  net,ipc,uts"), "{listed}");
    let results = podinit(&["hook", "results", name, "-o", "json"]);
    let results: Value = serde_json::from_slice(&results.stdout).unwrap();
    assert_eq!(results.as_array().unwrap().len(), 3);
    assert_eq!((&results[0]["code"], &results[0]["stdout"]), (&json!(4), &json!("inside\n")));
    let stopped = podinit(&["pod", "stop", name]);
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(common::find_leaks(name, &place.path("")), Vec::<String>::new());
}
