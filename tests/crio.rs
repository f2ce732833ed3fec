//! What CRI-O needs of a pod's monitor beyond the requests themselves. docs/crio.md says which
//! test holds which promise.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::ffi::OsString;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Options, Place, Pod, children_of, kill};
use podinit::rpc::client::{Attach, CreateContainer, Deletion, ExecRequest, StdinEof};
use rustix::fs::inotify;
use serde_json::json;

/// What happened in the directories that it watches, in the order in which it did.
struct Watcher {
    inotify: std::os::fd::OwnedFd,
    directories: Vec<(i32, PathBuf)>,
}

impl Watcher {
    fn new(directories: &[PathBuf]) -> Self {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let flags = inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::DELETE;
        let watch = |path: &PathBuf| (inotify::add_watch(&inotify, path, flags).unwrap(), path.clone());
        let directories = directories.iter().map(watch).collect();
        Self { inotify, directories }
    }

    /// All that has happened to one of these names until now.
    fn happened(&self, names: &[OsString]) -> Vec<(inotify::ReadFlags, PathBuf)> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut found = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                    let name = name.map(OsString::from).unwrap_or_default();
                    if names.contains(&name) {
                        let place = self.directories.iter().find(|(watch, _)| *watch == event.wd()).unwrap();
                        found.push((event.events(), place.1.join(name)));
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return found,
                Err(error) => panic!("inotify: {error}"),
            }
        }
    }
}

/// The Go client before 1.0, which CRI-O 1.36 has, gives the cgroup manager to the server, too.
#[test]
fn cgroup_manager_on_the_command_line_is_no_mistake() {
    for arguments in [["--cgroup-manager", "cgroupfs"], ["-c", "systemd"]] {
        let arguments = arguments.map(str::to_owned).to_vec();
        let pod = Pod::start_in(Place::new(), Options { arguments, ..Options::default() });
        // The requests say cgroupfs, and that counts.
        pod.assert_serves("c");
    }
}

/// CRI-O names `<run directory>/<container>/attach`, and makes no directory.
#[test]
fn directory_of_an_attach_socket_is_made_and_removed() {
    let pod = Pod::start();
    pod.run("c", "exec sleep 600");
    let directory = pod.run_dir().join(pod.id("c"));
    let request = Attach {
        id: pod.id("c"),
        socket_path: directory.join("attach"),
        exec_session_id: String::new(),
        stdin_eof: StdinEof::Keep,
        replay_bytes: 0,
    };
    for _ in 0..2 {
        pod.call(async |client| client.attach(&request).await).expect("attach");
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        // As a client does that leaves.
        fs::remove_file(&request.socket_path).expect("a socket");
    }
    pod.call(async |client| client.attach(&request).await).expect("attach");
    pod.call(async |client| client.stop_container(&pod.id("c"), 9, 0).await).expect("stop");
    pod.wait("c");
    pod.call(async |client| client.delete_container(&pod.id("c"), Deletion::Exited).await).expect("delete");
    assert!(!directory.exists());
}

/// CRI-O waits for the file in the exits directory, then reads the other and looks for the OOM file.
#[test]
fn exit_files_appear_at_once_and_in_the_order_that_a_watcher_needs() {
    let pod = Pod::start();
    for (name, script, is_oom) in [("hog", "exec tail /dev/zero", true), ("calm", "exit 3", false)] {
        let request = pod.container_with(name, &["sh", "-c", script], |config| {
            config["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20 } });
        });
        let (bundle, watched) = (pod.bundle(name), pod.exit_path(name));
        assert_eq!(
            request.exit_paths,
            [watched.clone(), bundle.join("exit")],
            "the order of CRI-O's request"
        );
        let watcher = Watcher::new(&[bundle.clone(), watched.parent().unwrap().to_owned()]);
        pod.create(&request).expect("create");
        pod.start_container(name);
        pod.wait(name);

        let names = ["oom".into(), "exit".into(), watched.file_name().unwrap().to_owned()];
        let created = |path: PathBuf| (inotify::ReadFlags::CREATE, path);
        let mut expected = vec![created(bundle.join("exit")), created(watched)];
        if is_oom {
            expected.insert(0, created(bundle.join("oom")));
        }
        // Nothing was written to after it had its name, and nothing was there for a moment only.
        assert_eq!(watcher.happened(&names), expected, "{name}");
    }
}

/// CRI-O sends SIGINT to the pid that it knows and waits for 10 s until that is gone.
#[test]
fn interrupt_ends_whatever_runs_in_less_than_ten_seconds() {
    let pod = Pod::start();
    for name in ["a", "b", "c"] {
        pod.run(name, "trap '' TERM INT HUP; while :; do sleep 1; done");
    }
    pod.create(&pod.container("created", &["true"])).expect("create");
    let busy = ExecRequest {
        id: pod.id("a"),
        command: ["sh", "-c", "trap '' TERM INT; echo ready; while :; do sleep 1; done"]
            .map(str::to_owned)
            .to_vec(),
        ..ExecRequest::default()
    };
    pod.call(async |client| {
        let exec = client.exec(&busy);
        let meanwhile = async { while client.pod_stats().await.expect("stats").execs == 0 {} };
        tokio::select! { _ = exec => panic!("the exec has ended"), () = meanwhile => {} }
    });
    let began = Instant::now();
    kill(pod.keeper_pid(), "INT");
    pod.wait_end();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    for name in ["a", "b", "c", "created"] {
        assert_eq!(fs::read_to_string(pod.exit_path(name)).expect("an exit file"), "137", "{name}");
    }
    pod.delete_in_runtime();
}

/// What a container prints of its limits.
fn limits_of(pod: &Pod, request: &CreateContainer, name: &str) -> String {
    pod.create(request).expect("create");
    pod.start_container(name);
    assert_eq!(pod.wait(name).shell_code(), Some(0));
    String::from_utf8(pod.log(name).stdout).unwrap()
}

#[test]
fn limits_of_a_container_are_those_of_its_spec_or_of_the_engine() {
    for runtime in ["crun", "runc"] {
        let options = Options {
            runtime: Some(common::which(runtime)),
            descriptors_max: Some("-S -n 1000"),
            ..Options::default()
        };
        let pod = Pod::start_in(Place::new(), options);
        let script = ["sh", "-c", "ulimit -S -n; ulimit -H -n; ulimit -S -u"];
        let told = limits_of(&pod, &pod.container("plain", &script), "plain");
        // The monitor may open more than the engine; its containers may not. (runc raises its own limit, too.)
        if runtime == "crun" {
            assert_eq!(told.lines().next(), Some("1000"));
        }

        let request = pod.container_with("limited", &script, |config| {
            config["process"]["rlimits"] = json!([
                { "type": "RLIMIT_NOFILE", "soft": 300, "hard": 400 },
                { "type": "RLIMIT_NPROC", "soft": 1234, "hard": 1234 },
            ]);
        });
        assert_eq!(limits_of(&pod, &request, "limited"), "300\n400\n1234\n", "{runtime}");
    }
}

/// `infra_ctr_cpuset` and a custom monitor cgroup: the engine puts the pid that it knows on some processors.
#[test]
fn monitor_runs_on_the_processors_that_its_cgroup_has_and_containers_on_theirs() {
    let tree = Path::new("/sys/fs/cgroup/cpuset");
    let all = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.expect("a list of processors").trim().to_owned()
    };
    if !tree.join("cpuset.cpus").exists() || !allowed(&all).starts_with("0-") {
        common::skip("no cpuset controller of cgroup v1, or one processor only");
        return;
    }
    let pod = Pod::start();
    let group = tree.join(format!("podinit-test-cpus-{}", std::process::id()));
    fs::create_dir(&group).expect("a cgroup");
    for (file, value) in
        [("cpuset.cpus", "0"), ("cpuset.mems", "0"), ("cgroup.procs", &pod.keeper_pid().to_string())]
    {
        fs::write(group.join(file), value).expect(file);
    }
    let pid = pod.run("c", "exec sleep 600");
    let of = |pid: u32| allowed(&fs::read_to_string(format!("/proc/{pid}/status")).expect("a process"));
    let monitors: Vec<String> =
        children_of(pod.keeper_pid()).into_iter().filter(|child| *child != pid).map(of).collect();
    let (keeper, container) = (of(pod.keeper_pid()), of(pid));
    pod.shutdown();
    drop(pod);
    let deadline = Instant::now() + common::DEADLINE;
    while fs::remove_dir(&group).is_err() {
        assert!(Instant::now() < deadline, "the cgroup is still in use");
    }
    assert_eq!(keeper, "0");
    assert!(!monitors.is_empty() && monitors.iter().all(|list| list == "0"), "{monitors:?}");
    assert_eq!(container, allowed(&all));
}

/// With a dropped ("spoofed") infra container the pod's own id names none, and any container may be the first.
#[test]
fn pod_without_an_infra_container_is_served_like_any_other() {
    let pod = Pod::start();
    let listed = pod.call(async |client| client.list_containers().await).expect("a list");
    assert!(listed.is_empty());
    pod.run("first", "exec sleep 600");
    pod.assert_serves("second");
    pod.call(async |client| client.stop_container(&pod.id("first"), 9, 0).await).expect("stop");
    // It goes on when the last one has ended: an engine may start the next.
    assert_eq!(pod.wait("first").shell_code(), Some(137));
    pod.assert_serves("third");
}
