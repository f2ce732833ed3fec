//! The harness of the tests that drive the built binary: a pod per test, with a
//! real OCI runtime, in a mount namespace of the test's own.
//!
//! ```no_run
//! let pod = Pod::start();
//! pod.run("c", "echo out; exit 42");
//! assert_eq!(pod.wait("c").how, Ended::Code(42));
//! assert_eq!(pod.log("c").stdout, "out\n");
//! ```
//!
//! When a [`Pod`] goes out of scope it is shut down, and the test fails if
//! anything is left of it: a process, a mount, a socket, a file, a cgroup.
//!
//! Nothing here waits for time to pass. Every wait is for an event and has
//! [`DEADLINE`] as its bound, which no passing test comes near.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test program uses its part of the harness"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

pub(crate) mod host;
mod leaks;
mod log;
mod notified;
pub mod program;

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use podinit::rpc::client::{
    Client, CreateContainer, Error, ExecOutcome, ExecRequest, ExecResult, ExitStatus, LogDriver, LogKind,
    PodClient,
};
use serde_json::{Value, json};

pub use leaks::find as find_leaks;
pub use leaks::processes_of;
pub use log::Log;
pub use notified::{eventually, profile};

/// Bound on every wait.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Whether this machine is the emulated one of `make test-vm`, on which everything takes many
/// times as long.
pub fn is_emulated() -> bool {
    std::env::var_os("PODINIT_VM").is_some()
}

/// A bound on waits that an emulated machine needs longer for.
fn bound(deadline: Duration) -> Duration {
    if is_emulated() { deadline * 5 } else { deadline }
}

/// How often to do what is done many times over to find a rare fault: a tenth on an emulated
/// machine, whose subject is not how often.
pub fn rounds(number: usize) -> usize {
    if is_emulated() { number.div_ceil(10) } else { number }
}

/// Says that the rest of a test is skipped, and why. scripts/test.sh, which names a file
/// for it, does not count such a test as passed.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = format!("{}::{}", env!("CARGO_CRATE_NAME"), thread.name().unwrap_or_default());
    eprintln!("skipped: {test}: {reason}");
    if let Some(path) = std::env::var_os("PODINIT_SKIPPED") {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        // One write, so that tests that run at once do not write into each other's lines.
        file.write_all(format!("{test}: {reason}\n").as_bytes()).unwrap();
    }
}

/// What containers run: applets of the busybox in their root file system.
const APPLETS: [&str; 25] = [
    "cat", "cp", "dd", "echo", "false", "head", "hostname", "ip", "kill", "ls", "md5sum", "mkdir", "ps",
    "readlink", "seq", "setsid", "sh", "sleep", "stty", "tail", "touch", "tr", "true", "wc", "yes",
];

/// The program under test: the release binary if the environment names it, else cargo's.
pub fn binary() -> PathBuf {
    std::env::var_os("PODINIT_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_podinit").into(), PathBuf::from)
}

/// Gives this thread, and what it starts, a mount namespace of its own without
/// a hybrid cgroup's v2 tree (scripts/private-mounts.sh says why).
///
/// Per thread, because the test runner has one for each test.
pub fn private_mounts() {
    use nix::mount::{MsFlags, mount, umount};
    use nix::sched::{CloneFlags, unshare};

    assert!(nix::unistd::geteuid().is_root(), "containers and namespaces need root");
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("private propagation");
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let of_kind = |kind: &str| -> Vec<String> {
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields.filter(|fields| fields[2] == kind).map(|fields| fields[1].to_owned()).collect()
    };
    if !of_kind("cgroup").is_empty() {
        for tree in of_kind("cgroup2") {
            umount(tree.as_str()).expect("unmounting the v2 tree of a hybrid cgroup");
            // crun makes its directories in what lies beneath; that shall not be the machine's.
            let options = Some("mode=755,size=16m");
            mount(Some("podinit-private"), tree.as_str(), Some("tmpfs"), MsFlags::empty(), options)
                .expect("a private directory in its place");
        }
    }
}

/// How a pod is started, where it differs from [`Pod::start`].
#[derive(Debug, Default)]
pub struct Options {
    /// Program to use as the OCI runtime; `crun` if not given.
    pub runtime: Option<PathBuf>,
    /// More arguments of `podinit serve`.
    pub arguments: Vec<String>,
    /// RLIMIT_NOFILE of the server, as arguments of the shell's `ulimit`.
    pub descriptors_max: Option<&'static str>,
    /// Where the server logs, in place of nowhere: its standard output.
    pub log: Option<OwnedFd>,
    /// Length that the run directory's path shall have at least.
    pub run_dir_bytes_min: usize,
}

/// A directory of one test, and all that one pod has in it.
#[derive(Debug)]
pub struct Place {
    /// Unique on this machine; in every path, id and environment of the pod.
    pub name: String,
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        private_mounts();
        // The last letter keeps one name from being the beginning of another.
        let name = format!("pt{}x{}z", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir().unwrap();
        let place = Self { name, dir };
        for sub in ["root", "logs", "exits", "pins", "bundles", "tmp"] {
            fs::create_dir(place.path(sub)).unwrap();
        }
        make_rootfs(&place.path("rootfs"));
        place
    }

    /// A path below the test's directory.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// An executable shell script, for use as an OCI runtime.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        write_program(&path, &format!("#!/bin/sh\n{text}\n"));
        path
    }

    /// A file of the root file system that all containers share.
    pub fn rootfs_file(&self, name: &str, content: &[u8]) {
        fs::write(self.path("rootfs").join(name), content).unwrap();
    }
}

/// Writes an executable file. Another process does it: what another test starts meanwhile
/// would inherit the open file from this one, and nobody could execute it (ETXTBSY, execve(2)).
pub fn write_program(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut install = install.spawn().unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}

/// A root file system of a static busybox.
pub fn make_rootfs(path: &Path) {
    for dir in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(path.join(dir)).unwrap();
    }
    let busybox = which("busybox");
    fs::copy(&busybox, path.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", path.join("bin").join(applet)).unwrap();
    }
}

/// Where a program is, as a shell would find it.
pub fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{program} is not installed: run `make deps`"))
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    pub place: Place,
    client: RefCell<Client>,
    run_dir: PathBuf,
    runtime: PathBuf,
    /// The keeper, by descriptor: its end is an event.
    keeper: OwnedFd,
    keeper_pid: u32,
    is_stopped: Cell<bool>,
}

impl Pod {
    /// A pod with crun.
    pub fn start() -> Self {
        Self::start_in(Place::new(), Options::default())
    }

    /// A pod with the OCI runtime of that name.
    pub fn with_runtime(name: &str) -> Self {
        Self::start_in(Place::new(), Options { runtime: Some(which(name)), ..Options::default() })
    }

    pub fn start_in(place: Place, options: Options) -> Self {
        let mut run_dir = place.path("run");
        while run_dir.as_os_str().len() < options.run_dir_bytes_min {
            run_dir.push("a-directory-with-a-long-name");
        }
        let runtime = options.runtime.clone().unwrap_or_else(|| which("crun"));
        let output = serve(&place, &run_dir, &runtime, &options);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podinit serve: {}: {said}", output.status);

        let text = fs::read_to_string(run_dir.join("pidfile")).expect("the keeper's pid");
        let keeper_pid: u32 = text.parse().expect("a pid and nothing else");
        let client = Client::connect(&run_dir.join("conmon.sock")).expect("a server that listens already");
        let keeper = pidfd(keeper_pid).expect("a keeper that lives");
        Self {
            place,
            client: RefCell::new(client),
            run_dir,
            runtime,
            keeper,
            keeper_pid,
            is_stopped: Cell::new(false),
        }
    }

    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// The container id that `name` stands for: no other test uses it.
    pub fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.place.name)
    }

    pub fn keeper_pid(&self) -> u32 {
        self.keeper_pid
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("conmon.sock")
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Runs requests to their end, or fails the test at the deadline.
    pub fn call<T>(&self, request: impl AsyncFnOnce(PodClient) -> T) -> T {
        self.call_within(DEADLINE, request)
    }

    /// The same with a deadline of its own, for many requests at once.
    pub fn call_within<T>(&self, deadline: Duration, request: impl AsyncFnOnce(PodClient) -> T) -> T {
        let client = self.client.borrow();
        client.call(async |pod| {
            let answer = tokio::time::timeout(bound(deadline), request(pod.clone())).await;
            answer.expect("an answer before the deadline")
        })
    }

    /// A new connection instead of the one there was.
    pub fn reconnect(&self) {
        let client = Client::connect(&self.socket()).expect("a server that listens");
        drop(self.client.replace(client));
    }

    /// A bundle, and the request that creates a container of it: pipes, a CRI
    /// log, an OOM file and two exit files, as CRI-O asks for: the one that it watches first.
    pub fn container(&self, name: &str, args: &[&str]) -> CreateContainer {
        self.container_with(name, args, |_| ())
    }

    /// The same, with changes to `config.json`.
    pub fn container_with(
        &self,
        name: &str,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> CreateContainer {
        let id = self.id(name);
        let bundle = self.place.path("bundles").join(&id);
        fs::create_dir_all(&bundle).unwrap();
        let mut config = self.config(&id, args);
        change(&mut config);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();

        let log = LogDriver { kind: LogKind::Cri, path: self.log_path(name), size_max: 0 };
        CreateContainer {
            exit_paths: vec![self.exit_path(name), bundle.join("exit")],
            oom_exit_paths: vec![bundle.join("oom")],
            log_drivers: vec![log],
            ..CreateContainer::new(id, bundle)
        }
    }

    fn config(&self, id: &str, args: &[&str]) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/bin", format!("PODINIT_TEST_POD={}", self.place.name)],
                "cwd": "/",
            },
            "root": { "path": self.place.path("rootfs"), "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            ],
            "linux": {
                // One level, so that the runtime removes all that it made.
                "cgroupsPath": format!("/{id}"),
                "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            },
        })
    }

    pub fn create(&self, request: &CreateContainer) -> Result<u32, Error> {
        self.call(async |pod| pod.create_container(request).await)
    }

    /// Creates and starts a container that runs a shell script.
    pub fn run(&self, name: &str, script: &str) -> u32 {
        let pid = self.create(&self.container(name, &["sh", "-c", script])).expect("create");
        self.start_container(name);
        pid
    }

    pub fn start_container(&self, name: &str) {
        let id = self.id(name);
        self.call(async |pod| pod.start_container(&id).await).expect("start");
    }

    /// Waits for the exit, and asserts that all that must precede it is there.
    pub fn wait(&self, name: &str) -> ExitStatus {
        let id = self.id(name);
        let exit = self.call(async |pod| pod.wait_container(&id).await).expect("wait");
        assert!(exit.log_complete, "{id}: the log is not complete");
        let code = exit.shell_code().expect("a known exit").to_string();
        for path in [self.exit_path(name), self.bundle(name).join("exit")] {
            assert_eq!(fs::read_to_string(&path).expect("an exit file"), code, "{}", path.display());
        }
        assert_eq!(self.bundle(name).join("oom").exists(), exit.oom_killed, "{id}: the OOM file");
        exit
    }

    pub fn exec(&self, name: &str, script: &str) -> ExecResult {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecRequest { id: self.id(name), command, ..ExecRequest::default() };
        self.call(async |pod| pod.exec(&request).await).expect("exec")
    }

    /// What an exec wrote, for one that must succeed.
    pub fn exec_stdout(&self, name: &str, script: &str) -> String {
        let result = self.exec(name, script);
        let said = String::from_utf8_lossy(&result.stderr);
        match &result.outcome {
            ExecOutcome::Exited(exit) if exit.shell_code() == Some(0) => {}
            outcome => panic!("{script}: {outcome:?}: {said}"),
        }
        String::from_utf8(result.stdout).expect("text")
    }

    pub fn bundle(&self, name: &str) -> PathBuf {
        self.place.path("bundles").join(self.id(name))
    }

    pub fn exit_path(&self, name: &str) -> PathBuf {
        self.place.path("exits").join(self.id(name))
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.place.path("logs").join(format!("{}.log", self.id(name)))
    }

    /// The container's log, its records put together again.
    pub fn log(&self, name: &str) -> Log {
        Log::read(&self.log_path(name))
    }

    /// Asserts that the server does its main job, whatever was done to it before.
    pub fn assert_serves(&self, name: &str) {
        let version = self.call(async |pod| pod.version().await).expect("version");
        assert_eq!(version.process_id, self.keeper_pid);
        self.run(name, "echo alive; exit 7");
        assert_eq!(self.wait(name).shell_code(), Some(7));
        assert_eq!(self.log(name).stdout, b"alive\n");
    }

    /// Waits until the keeper has gone.
    pub fn wait_end(&self) {
        assert!(wait_readable(&self.keeper), "process {} is still there", self.keeper_pid);
        self.is_stopped.set(true);
    }

    /// Ends the pod in the orderly way.
    pub fn shutdown(&self) {
        self.call(async |pod| pod.shutdown(0).await).expect("shutdown");
        self.wait_end();
    }

    /// What a test that failed half-way needs: the end of the pod, whatever it answers.
    fn end(&self) {
        if self.is_stopped.get() {
            return;
        }
        let is_ending = Client::connect(&self.socket())
            .is_ok_and(|client| client.call(async |pod| pod.shutdown(0).await).is_ok());
        if !is_ending || !wait_readable(&self.keeper) {
            for (pid, _) in processes_of(&self.place.name) {
                kill(pid, "KILL");
            }
        }
    }

    /// What an engine does with the containers of a pod that was ended by a signal.
    pub fn delete_in_runtime(&self) {
        let root = self.place.path("root");
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let id = entry.file_name();
            let mut command = Command::new(&self.runtime);
            command.arg("--root").arg(&root).args(["delete", "--force"]).arg(&id);
            drop(command.output());
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed already; a second panic would hide why.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end()));
            drop(ended);
            for leak in leaks::find(&self.place.name, self.place.dir.path()) {
                eprintln!("left behind: {leak}");
            }
            self.delete_in_runtime();
            return;
        }
        if !self.is_stopped.get() {
            self.shutdown();
        }
        let left = leaks::find(&self.place.name, self.place.dir.path());
        assert!(left.is_empty(), "the pod left behind:\n  {}", left.join("\n  "));
    }
}

/// Runs `podinit serve` until it says that the pod can be used.
pub fn serve(place: &Place, run_dir: &Path, runtime: &Path, options: &Options) -> Output {
    let mut command = match &options.descriptors_max {
        None => Command::new(binary()),
        Some(limit) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]).arg(binary());
            shell
        }
    };
    command
        .arg("serve")
        .arg("--runtime-dir")
        .arg(run_dir)
        .arg("--runtime")
        .arg(runtime)
        .arg("--runtime-root")
        .arg(place.path("root"))
        .args(["--log-driver", if options.log.is_some() { "stdout" } else { "none" }])
        .args(&options.arguments)
        .env("PODINIT_TEST_POD", &place.name)
        .env("TMPDIR", place.path("tmp"))
        .stdin(std::process::Stdio::null());
    if let Some(log) = &options.log {
        // Its standard error is the server's then, and would have no end here.
        command.stdout(log.try_clone().unwrap()).stderr(std::process::Stdio::null());
    }
    command.output().expect("the binary runs")
}

/// A descriptor of a process; `None` if there is no such process.
pub fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.try_into().ok()?)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Waits until a descriptor is readable (a pidfd: until the process has ended); false at the deadline.
pub fn wait_readable(fd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: bound(DEADLINE).as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).expect("poll") == 1
}

/// Sends a signal by its name.
pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(status.is_ok(), "kill {pid}: {status:?}");
}

/// A path in the container of which `pid` is a process.
pub fn inside(pid: u32, path: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root").join(path)
}

/// Children of a process, as the kernel lists them.
pub fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
