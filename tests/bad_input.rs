//! Whatever a client, an OCI runtime or the kernel does to a pod's server: one
//! clear error, and the server lives on.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{DEADLINE, Options, Place, Pod, serve, which};
use podinit::rpc::client::{
    Attach, Code, CreateContainer, CreateNamespaces, Deletion, Error, ExecOutcome, ExecRequest, ExecSync,
    IdMapping, NamespaceKind, NamespaceSource, SandboxRequest, StdinEof, Stdio,
};
use serde_json::json;

/// Ids that could leave their directory, be taken for an option, or be no file's name.
fn bad_ids() -> Vec<String> {
    let bad = ["", ".", "..", "a/b", "../a", "/etc", "a\0b", "-a", "--root=/", " ", "a b", "a\nb"];
    let mut ids: Vec<String> = bad.map(str::to_owned).to_vec();
    ids.push("a".repeat(300));
    ids
}

/// Asserts that a refusal has the code, and a sentence of a length that a person reads.
fn assert_refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Error>, code: Code) {
    let error = answer.expect_err(what);
    assert_eq!(error.code, code, "{what}: {error}");
    assert!(error.message.len() > 10, "{what}: {error}");
    assert!(!error.message.contains("os error") || error.message.contains(": "), "a bare errno: {error}");
}

#[test]
fn unknown_container_is_not_found() {
    let pod = Pod::start();
    let id = pod.id("no");
    let command = vec!["true".to_owned()];
    pod.call(async |client| {
        assert_refused("state", client.container_state(&id).await, Code::NotFound);
        assert_refused("start", client.start_container(&id).await, Code::NotFound);
        assert_refused("stop", client.stop_container(&id, 0, 0).await, Code::NotFound);
        assert_refused("delete", client.delete_container(&id, Deletion::Force).await, Code::NotFound);
        assert_refused("wait", client.wait_container(&id).await, Code::NotFound);
        assert_refused("reopen", client.reopen_log(&id).await, Code::NotFound);
        assert_refused("resize", client.set_window_size(&id, 80, 24).await, Code::NotFound);
        let exec = ExecRequest { id: id.clone(), command: command.clone(), ..ExecRequest::default() };
        assert_refused("exec", client.exec(&exec).await, Code::NotFound);
        let cgroup_manager = podinit::rpc::client::CgroupManager::Cgroupfs;
        let stdio = Stdio::Terminal;
        let exec =
            ExecSync { id: id.clone(), command, timeout_seconds: 0, stdio, env: Vec::new(), cgroup_manager };
        assert_refused("execSync", client.exec_sync(&exec).await, Code::NotFound);
        let attach = Attach {
            id: id.clone(),
            socket_path: pod.place.path("tmp/attach"),
            exec_session_id: String::new(),
            stdin_eof: StdinEof::Keep,
            replay_bytes: 0,
        };
        assert_refused("attach", client.attach(&attach).await, Code::NotFound);
    });
    pod.assert_serves("c");
}

#[test]
fn bad_container_ids_are_refused_before_use() {
    let pod = Pod::start();
    let bundle = pod.container("c", &["true"]).bundle;
    for id in bad_ids() {
        let mut request = CreateContainer::new(id.clone(), &bundle);
        request.exit_paths = vec![pod.place.path("exits/bad")];
        let answer = pod.create(&request);
        assert_refused(&format!("create {id:?}"), answer, Code::InvalidArgument);
        let answer = pod.call(async |client| client.container_state(&id).await);
        let error = answer.expect_err("a container of that name");
        assert!([Code::InvalidArgument, Code::NotFound].contains(&error.code), "{id:?}: {error}");
    }
    assert!(fs::read_dir(pod.place.path("exits")).unwrap().next().is_none());
    pod.assert_serves("c");
}

#[test]
fn bad_pod_ids_are_refused_before_use() {
    let pod = Pod::start();
    for id in bad_ids() {
        let request = CreateNamespaces {
            base_path: pod.place.path("pins"),
            pod_id: id.clone(),
            namespaces: vec![NamespaceKind::Net],
            ..CreateNamespaces::default()
        };
        let answer = pod.call(async |client| client.create_namespaces(&request).await);
        assert_refused(&format!("createNamespaces {id:?}"), answer, Code::InvalidArgument);
        let request = SandboxRequest {
            base_path: pod.place.path("pins"),
            pod_id: id.clone(),
            namespaces: vec![(NamespaceKind::Net, NamespaceSource::Create)],
            ..SandboxRequest::default()
        };
        let answer = pod.call(async |client| client.create_sandbox(&request).await);
        assert_refused(&format!("createSandbox {id:?}"), answer, Code::InvalidArgument);
    }
    pod.assert_serves("c");
}

#[test]
fn user_namespace_needs_mappings_that_make_sense() {
    let pod = Pod::start();
    let mapping = |inside, outside, size| vec![IdMapping { inside, outside, size }];
    let cases = [
        (vec![], vec![]),
        (mapping(0, 0, 1), vec![]),
        (mapping(0, 0, 0), mapping(0, 0, 0)),
        (mapping(0, u32::MAX - 1, 10), mapping(0, u32::MAX - 1, 10)),
    ];
    for (uid_mappings, gid_mappings) in cases {
        let request = CreateNamespaces {
            base_path: pod.place.path("pins"),
            pod_id: pod.name().to_owned(),
            namespaces: vec![NamespaceKind::User],
            uid_mappings,
            gid_mappings,
        };
        let answer = pod.call(async |client| client.create_namespaces(&request).await);
        assert_refused(&format!("{request:?}"), answer, Code::InvalidArgument);
    }
    pod.assert_serves("c");
}

#[test]
fn bad_bundles_are_refused() {
    let pod = Pod::start();
    let empty = pod.place.path("bundles/empty");
    fs::create_dir(&empty).unwrap();
    let garbled = pod.place.path("bundles/garbled");
    fs::create_dir(&garbled).unwrap();
    fs::write(garbled.join("config.json"), "{").unwrap();
    let missing = pod.place.path("bundles/missing");
    for bundle in [&empty, &garbled, &missing, Path::new("relative"), Path::new("")] {
        for stdio in [Stdio::Pipes, Stdio::Terminal] {
            let request = CreateContainer { stdio, ..CreateContainer::new(pod.id("c"), bundle) };
            let error = pod.create(&request).expect_err("a container without a bundle");
            let known = [Code::InvalidArgument, Code::NotFound, Code::RuntimeFailed];
            assert!(known.contains(&error.code), "{}: {error}", bundle.display());
        }
    }
    pod.assert_serves("c");
}

#[test]
fn logs_that_cannot_be_opened_fail_the_create() {
    let pod = Pod::start();
    let mut request = pod.container("c", &["true"]);
    request.log_drivers[0].path = pod.place.path("no-such-directory/c.log");
    let error = pod.create(&request).expect_err("a container without its log");
    assert!(error.message.contains("no-such-directory"), "{error}");
    pod.assert_serves("c");
}

#[test]
fn id_that_is_taken_is_refused() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    assert_refused("create", pod.create(&pod.container("c", &["true"])), Code::AlreadyExists);
    pod.assert_serves("d");
    // The first one was not touched.
    assert_eq!(pod.exec_stdout("c", "echo here"), "here\n");
}

#[test]
fn exec_of_nothing_is_refused() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    for command in [vec![], vec![String::new()]] {
        let exec = ExecRequest { id: pod.id("c"), command, ..ExecRequest::default() };
        match pod.call(async |client| client.exec(&exec).await) {
            Err(error) => assert_eq!(error.code, Code::InvalidArgument, "{error}"),
            Ok(result) => assert!(matches!(result.outcome, ExecOutcome::NotStarted(_)), "{result:?}"),
        }
    }
    pod.assert_serves("d");
}

/// A pod whose OCI runtime is a script that does `text` for `create`.
fn pod_with_create(text: &str, arguments: &[&str]) -> Pod {
    let place = Place::new();
    let script =
        format!("case \" $* \" in *' create '*) {text};; esac\nexec {} \"$@\"", which("crun").display());
    let runtime = Some(place.script("crun-with-a-twist", &script));
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Pod::start_in(place, Options { runtime, arguments, ..Options::default() })
}

/// Both kinds of stdio: a terminal has its own way to fail, for no descriptor ever comes.
fn create_both_ways(pod: &Pod) -> [Error; 2] {
    [Stdio::Pipes, Stdio::Terminal].map(|stdio| {
        let mut request = pod.container_with("c", &["true"], |config| {
            config["process"]["terminal"] = json!(stdio == Stdio::Terminal);
        });
        request.stdio = stdio;
        pod.create(&request).expect_err("a container of a runtime that made none")
    })
}

fn assert_answers(pod: &Pod) {
    assert_eq!(pod.call(async |client| client.list_containers().await).unwrap(), []);
    assert_eq!(pod.call(async |client| client.version().await).unwrap().process_id, pod.keeper_pid());
}

#[test]
fn runtime_that_fails_is_quoted() {
    let pod = pod_with_create("echo 'the disk is on fire' >&2; exit 3", &[]);
    for error in create_both_ways(&pod) {
        assert_eq!(error.code, Code::RuntimeFailed, "{error}");
        assert!(error.message.contains("the disk is on fire"), "{error}");
        assert!(error.message.contains('3'), "its exit code: {error}");
    }
    assert_answers(&pod);
}

#[test]
fn runtime_that_hangs_is_ended() {
    let pod = pod_with_create("echo 'still thinking' >&2; sleep 86399", &["--create-timeout", "1"]);
    for error in create_both_ways(&pod) {
        assert_eq!(error.code, Code::Timeout, "{error}");
    }
    // Its child too: the leak check at the end would find it.
    assert_answers(&pod);
}

#[test]
fn runtime_that_floods_stderr_is_cut_short() {
    let pod = pod_with_create("yes 'a line of a very long complaint' | head -c 1048576 >&2; exit 1", &[]);
    for error in create_both_ways(&pod) {
        assert_eq!(error.code, Code::RuntimeFailed, "{error}");
        assert!(error.message.contains("a very long complaint"));
        assert!(error.message.len() < 64 << 10, "{} bytes", error.message.len());
    }
    assert_answers(&pod);
}

#[test]
fn runtime_that_dies_of_a_signal_is_named() {
    let pod = pod_with_create("kill -SEGV $$", &[]);
    for error in create_both_ways(&pod) {
        assert_eq!(error.code, Code::RuntimeFailed, "{error}");
        assert!(error.message.contains("signal"), "{error}");
    }
    assert_answers(&pod);
}

#[test]
fn runtime_that_lies_about_the_pid_is_caught() {
    for said in ["", "not a pid", "0", "-1", "99999999999"] {
        let script =
            format!("for a; do case $p in --pid-file) printf '%s' '{said}' > $a;; esac; p=$a; done; exit 0");
        let pod = pod_with_create(&script, &[]);
        for error in create_both_ways(&pod) {
            assert_eq!(error.code, Code::RuntimeFailed, "{said:?}: {error}");
        }
        assert_answers(&pod);
    }
}

#[test]
fn runtime_that_has_gone_is_named() {
    let pod = pod_with_create("exit 0", &[]);
    fs::remove_file(pod.place.path("crun-with-a-twist")).unwrap();
    for error in create_both_ways(&pod) {
        assert_eq!(error.code, Code::RuntimeFailed, "{error}");
        assert!(error.message.contains("crun-with-a-twist"), "{error}");
    }
    assert_answers(&pod);
}

#[test]
fn directory_with_a_long_path_is_served() {
    let place = Place::new();
    let pod = Pod::start_in(place, Options { run_dir_bytes_min: 300, ..Options::default() });
    assert!(pod.socket().as_os_str().len() > 108);
    pod.assert_serves("c");
}

#[test]
fn thousand_idle_connections_cost_nobody_else_anything() {
    let pod = Pod::start();
    // It has spoken: those that have not are the ones to be closed.
    pod.assert_serves("before");
    let idle: Vec<_> = (0..1000).map_while(|_| UnixStream::connect(pod.socket()).ok()).collect();
    assert_eq!(idle.len(), 1000);
    pod.assert_serves("beside");
    // A new one is served too, while all of them are there.
    pod.reconnect();
    pod.assert_serves("new");
    drop(idle);
    pod.reconnect();
    pod.assert_serves("after");
}

#[test]
fn exhausted_descriptors_are_an_error_and_no_end() {
    let options = Options { descriptors_max: Some("-n 48"), ..Options::default() };
    let pod = Pod::start_in(Place::new(), options);
    pod.assert_serves("before");
    let idle: Vec<_> = (0..200).map_while(|_| UnixStream::connect(pod.socket()).ok()).collect();
    assert!(idle.len() > 100);
    // Nothing is left for a container's pipes, or just enough is: both are answers.
    let error = pod.create(&pod.container("during", &["true"])).err();
    let code = error.as_ref().map(|error| error.code);
    assert!([None, Some(Code::ResourceExhausted)].contains(&code), "{error:?}");
    drop(idle);
    pod.reconnect();
    pod.assert_serves("after");
}

#[test]
fn what_is_no_message_ends_its_connection_only() {
    let pod = Pod::start();
    // A plausible start with sizes beyond all reason, plain text, zeros, and half a message.
    let messages: [&[u8]; 4] = [&[0xff; 64], b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &[0, 0, 0, 0, 200]];
    for message in messages {
        let mut socket = UnixStream::connect(pod.socket()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(message).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        // Whatever is answered, the connection ends.
        drop(socket.read_to_end(&mut Vec::new()));
    }
    pod.assert_serves("c");
}

#[test]
fn start_that_cannot_succeed_says_why() {
    let place = Place::new();
    let file = place.path("a-file");
    fs::write(&file, "").unwrap();
    let crun = which("crun");
    let run_dir = place.path("run");
    let cases = [
        (run_dir.as_path(), Path::new("/no/such/runtime"), "/no/such/runtime"),
        (run_dir.as_path(), file.as_path(), "a-file"),
        (file.as_path(), crun.as_path(), "a-file"),
    ];
    for (run_dir, runtime, named) in cases {
        let output = serve(&place, run_dir, runtime, &Options::default());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{named}");
        assert!(said.contains(named) && said.lines().count() <= 2, "{said}");
        assert_eq!(common::processes_of(&place.name), [], "{named}");
    }
}
