//! The hooks of `examples/hooks`: their files are right, and their programs do
//! what they say with what a hook is given.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Options, Place, Pod};
use podinit::rpc::client::{HookOutcome, HookResult, NamespaceKind, NamespaceSource, SandboxRequest};
use serde_json::{Value, json};

const NAMES: [&str; 3] = ["print-addresses", "exit-codes", "wait-for-port"];

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hooks")
}

/// Installs the programs into a place, and the files that name them.
fn install(place: &Place) -> PathBuf {
    let (programs, files) = (place.path("programs"), place.path("hooks.d"));
    fs::create_dir(&programs).unwrap();
    fs::create_dir(&files).unwrap();
    for script in ["print-addresses.sh", "exit-codes.py"] {
        fs::copy(examples().join(script), programs.join(script)).unwrap();
    }
    let rustc = Command::new("rustc")
        .args(["--edition", "2024", "-D", "warnings", "-o"])
        .arg(programs.join("wait-for-port"))
        .arg(examples().join("wait-for-port.rs"))
        .output()
        .unwrap();
    assert!(rustc.status.success(), "{}", String::from_utf8_lossy(&rustc.stderr));
    for name in NAMES {
        let text = fs::read_to_string(examples().join(name).with_extension("json")).unwrap();
        let text = text.replace("/usr/libexec/podinit/hooks", programs.to_str().unwrap());
        let text = text.replace("/var/log", place.path("logs").to_str().unwrap());
        fs::write(files.join(name).with_extension("json"), text).unwrap();
    }
    files
}

/// What the file of an example says.
fn file(files: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(files.join(name).with_extension("json")).unwrap()).unwrap()
}

/// Starts an example as its file says, with a state to read.
fn start(files: &Path, name: &str, state: &Value) -> Child {
    let file = file(files, name);
    let mut hook = Command::new(file["hook"]["path"].as_str().unwrap());
    hook.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("PODINIT_POD", "the-pod");
    for variable in file["hook"]["env"].as_array().into_iter().flatten() {
        let (name, value) = variable.as_str().unwrap().split_once('=').unwrap();
        hook.env(name, value);
    }
    hook.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = hook.spawn().unwrap();
    child.stdin.take().unwrap().write_all(state.to_string().as_bytes()).unwrap();
    child
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Gives this thread, and what it starts, a network of its own with nothing but a loopback.
fn private_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

#[test]
fn every_file_is_right() {
    let place = Place::new();
    let files = install(&place);
    let check = Command::new(common::binary()).args(["hook", "check"]).arg(&files).output().unwrap();
    let text = said(&check);
    assert!(!text.contains("note:"), "{text}");
    for name in NAMES {
        assert!(text.contains(&format!("{name}.json at ")), "{text}");
    }
}

#[test]
fn addresses_are_those_of_the_namespace() {
    let place = Place::new();
    let files = install(&place);
    private_network();
    let text = said(&start(&files, "print-addresses", &json!({})).wait_with_output().unwrap());
    assert!(text.starts_with("pod the-pod is "), "{text}");
    assert!(text.contains("127.0.0.1/8"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains(" inet ")).count(), 1, "{text}");
}

#[test]
fn exit_codes_are_recorded() {
    let place = Place::new();
    let files = install(&place);
    let state = |id: &str, more: Value| {
        let mut told = json!({"podId": "p", "stage": "containerExited"});
        told.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"ociVersion": "1.2.0", "id": id, "status": "stopped", "bundle": "/b", "podinit": told})
    };
    let running: Vec<_> = (0..4)
        .map(|at| start(&files, "exit-codes", &state("many", json!({"exitCode": at, "reason": "exited"}))))
        .collect();
    for child in running {
        said(&child.wait_with_output().unwrap());
    }
    let last = start(&files, "exit-codes", &state("last", json!({"signal": 9, "reason": "oom"})));
    said(&last.wait_with_output().unwrap());
    let text = fs::read_to_string(place.path("logs/podinit-exit-codes.json")).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 5);
    let expected = json!({"pod": "p", "container": "last", "exitCode": null, "signal": 9, "reason": "oom"});
    assert_eq!(records[4], expected);
    let mut codes: Vec<_> = records[..4].iter().map(|record| record["exitCode"].as_u64().unwrap()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 1, 2, 3]);
}

#[test]
fn a_port_is_waited_for() {
    let place = Place::new();
    let files = install(&place);
    private_network();
    let hook = start(&files, "wait-for-port", &json!({}));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).unwrap();
    let text = said(&hook.wait_with_output().unwrap());
    drop(listener);
    assert!(text.starts_with("port 8080 answered after "), "{text}");
}

/// A container in the pod's namespaces that answers one connection, and exits with 3.
fn listen(pod: &Pod) {
    let sandboxes = pod.call(async |client| client.namespaces().await).unwrap();
    let script = "busybox nc -l -p 8080 < /dev/null > /dev/null; exit 3";
    let request = pod.container_with("c", &["sh", "-c", script], |config| {
        let of_pod = |kind: NamespaceKind| {
            let made = sandboxes[0].namespaces.iter().find(|made| made.kind == kind).unwrap();
            made.path.clone()
        };
        config["linux"]["namespaces"] = json!([
            {"type": "mount"},
            {"type": "network", "path": of_pod(NamespaceKind::Net)},
            {"type": "uts", "path": of_pod(NamespaceKind::Uts)},
        ]);
        config["annotations"]["com.example.wait-for-port"] = json!("8080");
    });
    pod.create(&request).unwrap();
}

/// The results of hooks, once there are so many: those of an exit come after it has been told.
fn results(pod: &Pod, count: usize) -> Vec<HookResult> {
    let deadline = Instant::now() + common::DEADLINE;
    loop {
        let results = pod.call(async |client| client.hook_results(0).await).unwrap();
        if results.len() >= count || Instant::now() > deadline {
            return results;
        }
        #[expect(clippy::disallowed_methods, reason = "nobody tells that a result is there")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn all_of_them_work_in_a_pod() {
    let place = Place::new();
    // One of them is not root, and has to find its program.
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let files = install(&place);
    let arguments = vec!["--hooks-dir".to_owned(), files.to_str().unwrap().to_owned()];
    let pod = Pod::start_in(place, Options { arguments, ..Options::default() });
    let sandbox = SandboxRequest {
        pod_id: pod.name().to_owned(),
        namespaces: [NamespaceKind::Net, NamespaceKind::Uts]
            .map(|kind| (kind, NamespaceSource::Create))
            .to_vec(),
        hostname: "inside".to_owned(),
        base_path: pod.place.path("pins"),
        ..SandboxRequest::default()
    };
    pod.call(async |client| client.create_sandbox(&sandbox).await).unwrap();

    let told = pod.call(async |client| client.reach_stage("networkReady", "").await).unwrap();
    assert_eq!(told.len(), 1);
    let text = String::from_utf8(told[0].stdout.clone()).unwrap();
    assert!(text.starts_with(&format!("pod {} is inside\n", pod.name())), "{told:?}");
    assert_eq!(text.lines().filter(|line| line.contains(" inet 127.0.0.1/8")).count(), 1, "{text}");

    listen(&pod);
    pod.start_container("c");
    pod.wait("c");
    let results = results(&pod, 3);
    let ran: Vec<_> = results.iter().map(|result| (result.hook.as_str(), &result.outcome)).collect();
    let expected = ["print-addresses.json", "wait-for-port.json", "exit-codes.json"];
    assert_eq!(ran, expected.map(|hook| (hook, &HookOutcome::Code(0))), "{results:?}");
    let codes = pod.place.path("logs/podinit-exit-codes.json");
    let record: Value = serde_json::from_slice(&fs::read(codes).unwrap()).unwrap();
    assert_eq!((&record["exitCode"], &record["reason"]), (&json!(3), &json!("exited")));
}
