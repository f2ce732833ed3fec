//! The example plugins in all their languages, each deciding about a real container.
//!
//! Go and Python are skipped where they are not installed, but not in CI.
//! `PODINIT_PYTHON` names a Python that has pycapnp.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::program::{argument, connect_while_rewriting, rewriting_reaches_nobody};
use common::{Options, Place, Pod, eventually, profile, which};
use serde_json::json;

const RUNTIMES: [&str; 2] = ["crun", "runc"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// How the example `name` is started; `None` if its language is not here.
type Language = fn(&Place, &str) -> Option<Command>;

fn rust(_: &Place, name: &str) -> Option<Command> {
    let deps = std::env::current_exe().unwrap();
    let program =
        deps.parent().and_then(Path::parent).unwrap().join("examples").join(format!("plugin-{name}"));
    // `cargo test` has made them; `cargo test --test plugin_examples` has not.
    if !program.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--quiet", "--examples"]).current_dir(root());
        assert!(build.status().expect("cargo").success());
    }
    Some(Command::new(program))
}

/// Says that something is missing, which in CI nothing may be.
fn is_missing(what: &str) -> Option<Command> {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{what} is needed in CI");
    common::skip(&format!("no {what}"));
    None
}

fn go(place: &Place, name: &str) -> Option<Command> {
    let mut build = Command::new("go");
    let program = place.path("logs").join(name);
    build.args(["build", "-o"]).arg(&program).arg(format!("./{name}"));
    match build.current_dir(root().join("examples/plugins/go")).status() {
        Err(_) => is_missing("go"),
        Ok(status) => {
            assert!(status.success(), "go build ./{name}");
            Some(Command::new(program))
        }
    }
}

fn python(_: &Place, name: &str) -> Option<Command> {
    let python = std::env::var_os("PODINIT_PYTHON").unwrap_or_else(|| "python3".into());
    let has_capnp = Command::new(&python).args(["-c", "import capnp"]).stderr(Stdio::null()).status();
    if !has_capnp.is_ok_and(|status| status.success()) {
        return is_missing("Python with pycapnp");
    }
    let mut command = Command::new(python);
    command.arg("-B").arg(root().join(format!("examples/plugins/python/{name}.py")));
    Some(command)
}

/// A plugin that runs. Ends with its scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended with its pod.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn spawn(mut command: Command) -> (Running, BufReader<ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("a plugin");
    let said = BufReader::new(child.stdout.take().unwrap());
    (Running(child), said)
}

fn makes_harmless_nodes(language: Language) {
    RUNTIMES.iter().for_each(|runtime| makes_harmless_nodes_under(runtime, language));
}

fn makes_harmless_nodes_under(runtime: &str, language: Language) {
    let pod = Pod::with_runtime(runtime);
    let Some(mut command) = language(&pod.place, "mknod") else { return };
    command.arg(pod.run_dir().join("plugins.sock"));
    let _plugin = spawn(command);
    eventually(|| pod.seccomp_plugins().len() == 1);
    pod.run_notified(
        "c",
        &["mknod", "mknodat"],
        "busybox mknod /tmp/null c 1 3 && echo gone >/tmp/null && busybox stat -c '%F %t %T %u' /tmp/null; \
         cd /tmp && busybox mknod zero c 1 5 && head -c 3 zero | wc -c; \
         busybox mknod /tmp/mem c 1 1 || echo no memory; busybox mknod /tmp/disk b 8 0 || echo no disk; \
         busybox mknod /tmp/fifo p && echo fifo; \
         busybox ln -s /tmp /tmp/link; busybox mknod /tmp/link/../../../tmp/full c 1 7; echo over",
    );
    let said = pod.output("c");
    for expected in ["character special file 1 3 0\n", "3\n", "no memory\n", "no disk\n", "fifo\n", "over\n"]
    {
        assert!(said.contains(expected), "{expected:?} in {said}");
    }
    assert!(!said.contains("gone"), "{said}");
    assert!(!Path::new("/tmp/full").exists(), "it was made on the host");
    // Somebody who may not make any, and whose they are.
    let script = "busybox mknod /dev/null2 c 1 3; cd /dev && busybox mknod null3 c 1 3; \
         busybox mknod /tmp/null c 1 3 && busybox stat -c '%t %u %g' /tmp/null; ls /dev";
    run_as_user(&pod, "user", script);
    let said = pod.output("user");
    assert!(
        said.starts_with("1 1000 1001\n") && !said.contains("null2\n") && !said.contains("null3\n"),
        "{said}"
    );
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
    gives_away_nothing_else(&pod);
}

/// Runs `script` as user 1000 and group 1001; mknod and mknodat are notified. Its pid.
fn run_as_user(pod: &Pod, name: &str, script: &str) -> u32 {
    // runc gives what it mounts there the same mode.
    let tmp = pod.place.path("rootfs/tmp");
    std::fs::set_permissions(tmp, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let request = pod.container_with(name, &["sh", "-c", script], |config| {
        config["linux"]["seccomp"] = profile(&pod.run_dir().join("seccomp.sock"), &["mknod", "mknodat"]);
        config["process"]["user"] = json!({ "uid": 1000, "gid": 1001 });
    });
    let pid = pod.create(&request).expect("create");
    pod.start_container(name);
    pid
}

/// Puts files of root in the place of nodes as soon as they are made, until the plugin
/// finds one of them. None may be the user's then.
fn gives_away_nothing_else(pod: &Pod) {
    use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
    let script = "mkdir /tmp/d && cd /tmp/d && echo ready || exit 1; \
         until busybox mknod node c 1 3 2>&1 | busybox grep -q 'not permitted'; do busybox rm -f node; done";
    let pid = run_as_user(pod, "race", script);
    eventually(|| pod.log("race").stdout == b"ready\n");
    let path = common::inside(pid, "tmp/d");
    let directory = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let ended = common::pidfd(pid).unwrap();
    let is_of_root = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_uid == 0;
    let mut last: Option<OwnedFd> = None;
    while !is_over(&ended) {
        // What is there is the node that the last one was exchanged for.
        rustix::fs::unlinkat(&directory, "file", AtFlags::empty()).ok();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, "file", flags, Mode::RUSR).unwrap();
        let exchange =
            || rustix::fs::renameat_with(&directory, "file", &directory, "node", RenameFlags::EXCHANGE);
        while exchange().is_err() && !is_over(&ended) {}
        // Another node has been made, or there will be none: the plugin is done with the one before.
        assert!(last.replace(file).is_none_or(|file| is_of_root(&file)), "it was given away");
    }
    pod.wait("race");
    assert!(last.is_some_and(|file| is_of_root(&file)), "it was given away");
}

fn is_over(process: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn mknod_in_rust() {
    makes_harmless_nodes(rust);
}

#[test]
fn mknod_in_go() {
    makes_harmless_nodes(go);
}

#[test]
fn mknod_in_python() {
    makes_harmless_nodes(python);
}

fn connects_to_a_list(language: Language) {
    RUNTIMES.iter().for_each(|runtime| connects_to_a_list_under(runtime, language));
}

fn connects_to_a_list_under(runtime: &str, language: Language) {
    let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let [allowed, other] = [0, 1].map(|index: usize| listeners[index].local_addr().unwrap());
    let pod = Pod::with_runtime(runtime);
    let Some(mut command) = language(&pod.place, "connect") else { return };
    command.arg(pod.run_dir().join("plugins.sock")).arg(allowed.to_string());
    let _plugin = spawn(command);
    eventually(|| pod.seccomp_plugins().len() == 1);
    let [server, _other] = listeners;
    let greeter = std::thread::spawn(move || server.accept().unwrap().0.write_all(b"hello\n").unwrap());
    let script = format!(
        "busybox nc 127.0.0.1 {} </dev/null; busybox nc 127.0.0.1 {} </dev/null || echo refused",
        allowed.port(),
        other.port()
    );
    pod.run_notified("c", &["connect"], &script);
    let said = pod.output("c");
    assert!(
        said.contains("hello\n") && said.contains("ermission denied") && said.contains("refused"),
        "{said}"
    );
    greeter.join().unwrap();
    rewriting_reaches_nobody(&pod, allowed.port());
}

#[test]
fn role_that_rewrites() {
    if let Some(port) = argument() {
        connect_while_rewriting(&port);
    }
}

#[test]
fn connect_in_rust() {
    connects_to_a_list(rust);
}

#[test]
fn connect_in_go() {
    connects_to_a_list(go);
}

#[test]
fn connect_in_python() {
    connects_to_a_list(python);
}

fn tells_of_every_pod(language: Language, tells_pod: bool) {
    RUNTIMES.iter().for_each(|runtime| tells_of_every_pod_under(runtime, language, tells_pod));
}

fn tells_of_every_pod_under(runtime: &str, language: Language, tells_pod: bool) {
    let place = Place::new();
    let directory: PathBuf = place.path("tmp").join("plugins.d");
    std::fs::create_dir(&directory).unwrap();
    let socket = directory.join("trace.sock");
    let Some(mut command) = language(&place, "trace") else { return };
    let (plugin, said) = spawn({
        command.arg(&socket);
        command
    });
    eventually(|| socket.exists());
    let arguments = vec!["--plugin-dir".to_owned(), directory.to_str().unwrap().to_owned()];
    let options = Options { runtime: Some(which(runtime)), arguments, ..Options::default() };
    let pod = Pod::start_in(place, options);
    // Until the observer is there, which nobody can see from outside, calls are made in vain.
    pod.run_notified("c", &["mkdir"], "while :; do mkdir /tmp/a 2>/dev/null; busybox usleep 20000; done");
    let id = pod.id("c");
    let line = said.lines().map(Result::unwrap).find(|line| line.contains("mkdir")).expect("a record");
    assert!(line.contains(&id) && line.contains("default"), "{line}");
    if tells_pod {
        let pod = pod.run_dir().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(line.split(' ').next(), Some(pod.as_str()), "{line}");
    }
    drop(plugin);
    std::fs::remove_file(&socket).unwrap();
    let stopped = pod.call(async |client| client.stop_container(&id, 9, 0).await);
    stopped.expect("stop");
}

#[test]
fn trace_in_rust() {
    tells_of_every_pod(rust, false);
}

#[test]
fn trace_in_go() {
    tells_of_every_pod(go, true);
}

#[test]
fn trace_in_python() {
    tells_of_every_pod(python, true);
}

#[test]
fn without_a_socket_there_is_a_line_on_how_to_start_it() {
    let place = Place::new();
    for language in [go as Language, python] {
        let Some(mut command) = language(&place, "mknod") else { continue };
        let output = command.output().expect("a plugin");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.starts_with("usage: mknod"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
