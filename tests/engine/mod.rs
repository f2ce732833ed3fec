//! A CRI-O of a test's own, with everything it writes below the test's directory, in a mount and
//! a network namespace of the test's own; and crictl, which asks it what the kubelet would ask.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use serde_json::{Value, json};

use crate::common::{self, Place, find_leaks, pidfd, processes_of, wait_readable};

/// The image of containers: a busybox.
pub(crate) const IMAGE: &str = "localhost/podinit-test:1";
/// The image of infra containers: podinit as `/pause`.
const PAUSE_IMAGE: &str = "localhost/podinit-pause:1";

/// How CRI-O shares out the pid namespaces of a pod; the numbers are the CRI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PidMode {
    /// One for all: the infra container's, which is kept.
    Pod = 0,
    /// One for each container; CRI-O drops the infra container.
    Container = 1,
}

/// A running CRI-O.
#[derive(Debug)]
pub(crate) struct Crio {
    pub(crate) place: Place,
    programs: PathBuf,
    daemon: RefCell<Option<Child>>,
    pods: Cell<u32>,
}

impl Crio {
    pub(crate) fn start() -> Self {
        Self::start_with(|config| config.to_owned())
    }

    /// With changes to its configuration.
    pub(crate) fn start_with(change: impl FnOnce(&str) -> String) -> Self {
        let programs = std::env::var_os("PODINIT_CRIO").expect("PODINIT_CRIO: run `make test-crio`").into();
        let place = Place::new();
        private_machine();
        for directory in ["bin", "cni", "crio", "crio/lib", "attach"] {
            fs::create_dir(place.path(directory)).unwrap();
        }
        for name in ["conmonrs", "pinns"] {
            symlink(common::binary(), place.path("bin").join(name)).unwrap();
        }
        let copied = Command::new("cp").arg("-a").arg(images()).arg(place.path("crio/storage")).status();
        assert!(copied.unwrap().success());
        fs::write(
            place.path("crio/policy.json"),
            json!({ "default": [{ "type": "insecureAcceptAnything" }] }).to_string(),
        )
        .unwrap();
        fs::write(place.path("cni/10-test.conflist"), network(&place).to_string()).unwrap();
        fs::write(place.path("crio/crio.conf"), change(&config(&place))).unwrap();
        let crio = Self { place, programs, daemon: RefCell::new(None), pods: Cell::new(0) };
        crio.boot();
        crio
    }

    /// Starts the daemon, after [`Crio::start`], [`Crio::halt`] or [`Crio::kill`].
    pub(crate) fn boot(&self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.place.path("crio/log")).unwrap();
        let mut command = Command::new(self.programs.join("crio"));
        command
            .arg("--config")
            .arg(self.place.path("crio/crio.conf"))
            .args(["--config-dir", ""])
            .env("PODINIT_TEST_POD", &self.place.name)
            .env("TMPDIR", self.place.path("tmp"))
            .env("CONTAINERS_STORAGE_CONF", "/dev/null")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        *self.daemon.borrow_mut() = Some(command.spawn().unwrap());
        self.poll("an answer of CRI-O", || self.crictl(&["version"]).status.success().then_some(()));
    }

    /// Ends the daemon in order; its pods go on.
    pub(crate) fn halt(&self) {
        self.end("TERM");
    }

    /// Kills the daemon; its pods go on.
    pub(crate) fn kill(&self) {
        self.end("KILL");
    }

    fn end(&self, signal: &str) {
        if let Some(mut daemon) = self.daemon.borrow_mut().take() {
            let pidfd = pidfd(daemon.id()).expect("CRI-O has ended by itself");
            common::kill(daemon.id(), signal);
            assert!(wait_readable(&pidfd), "CRI-O does not end");
            daemon.wait().unwrap();
        }
    }

    /// A command of crictl's, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let socket = format!("unix://{}", self.place.path("crio/crio.sock").display());
        let mut command = Command::new(self.programs.join("crictl"));
        command
            .args(["--config", "/dev/null", "-t", "60s", "-r", &socket, "-i", &socket])
            .args(arguments)
            .env("PODINIT_TEST_POD", &self.place.name)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn crictl(&self, arguments: &[&str]) -> Output {
        finish(self.command(arguments))
    }

    /// What crictl writes, for a command that must succeed.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = self.crictl(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "crictl {arguments:?}: {}: {said}\n{}",
            output.status,
            self.log_tail()
        );
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn log_tail(&self) -> String {
        let text = fs::read(self.place.path("crio/log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ask(arguments)).unwrap()
    }

    /// Starts a pod; its configuration can be changed.
    pub(crate) fn pod_with(
        &self,
        handler: &str,
        pid: PidMode,
        change: impl FnOnce(&mut Value),
    ) -> Sandbox<'_> {
        let number = self.pods.get();
        self.pods.set(number + 1);
        let name = format!("{}-{number}", self.place.name);
        let mut config = json!({
            "metadata": { "name": name, "namespace": "test", "uid": name, "attempt": 0 },
            "hostname": "inside",
            "log_directory": self.place.path("logs").join(&name),
            "linux": {
                "cgroup_parent": self.cgroup_parent(),
                "security_context": { "namespace_options": { "network": 0, "pid": pid as u32 } },
            },
        });
        change(&mut config);
        let path = self.place.path("crio").join(format!("{name}.json"));
        fs::write(&path, config.to_string()).unwrap();
        let id = self.ask(&["runp", "--runtime", handler, path.to_str().unwrap()]);
        Sandbox {
            crio: self,
            id,
            logs: self.place.path("logs").join(&name),
            config: path,
            containers: Cell::new(0),
        }
    }

    pub(crate) fn pod(&self, handler: &str, pid: PidMode) -> Sandbox<'_> {
        self.pod_with(handler, pid, |_| ())
    }

    /// All pods' cgroup; CRI-O expects the kubelet to make and remove it.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/{}-pods", self.place.name)
    }

    /// Keepers of this CRI-O's pods: pid and command line.
    pub(crate) fn keepers(&self) -> Vec<u32> {
        let is_keeper = |pid: &u32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).nth(1) == Some(b"keeper")
        };
        processes_of(&self.place.name).into_iter().map(|(pid, _)| pid).filter(is_keeper).collect()
    }

    /// Asks again until there is an answer, [`common::DEADLINE`] at most: for what CRI-O tells
    /// nobody of by itself.
    pub(crate) fn poll<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + common::DEADLINE;
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(Instant::now() < deadline, "{what}: not in time\n{}", self.log_tail());
            std::thread::yield_now();
        }
    }

    /// What is left of this CRI-O's pods, but for what the kubelet would remove.
    fn find_leaks(&self) -> Vec<String> {
        let parents = self.cgroups();
        for parent in &parents {
            // Not if anything is in it.
            drop(fs::remove_dir(parent));
        }
        find_leaks(&self.place.name, &self.place.path(""))
    }

    /// All pods' cgroup, in each tree that has it.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let trees = fields.filter(|fields| fields[2].starts_with("cgroup"));
        let parents = trees.map(|fields| PathBuf::from(format!("{}{}", fields[1], self.cgroup_parent())));
        parents.filter(|parent| parent.exists()).collect()
    }
}

/// Removes a cgroup and those below it, as far as no process is in them.
fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    drop(fs::remove_dir(path));
}

impl Drop for Crio {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                drop(self.crictl(&["rmp", "--all", "--force"]));
                self.halt();
            })));
            eprintln!("CRI-O said:\n{}", self.log_tail());
            for (pid, _) in processes_of(&self.place.name) {
                let process = pidfd(pid);
                common::kill(pid, "KILL");
                process.map(wait_readable);
            }
            self.cgroups().iter().for_each(|parent| remove_cgroup(parent));
            return;
        }
        self.halt();
        let left = self.find_leaks();
        assert!(left.is_empty(), "left behind:\n  {}\n{}", left.join("\n  "), self.log_tail());
    }
}

/// A pod in a CRI-O.
#[derive(Debug)]
pub(crate) struct Sandbox<'a> {
    pub(crate) crio: &'a Crio,
    pub(crate) id: String,
    pub(crate) logs: PathBuf,
    config: PathBuf,
    containers: Cell<u32>,
}

impl<'a> Sandbox<'a> {
    /// Creates a container, which is not started.
    pub(crate) fn create_with(&self, command: &[&str], change: impl FnOnce(&mut Value)) -> Container<'a> {
        let number = self.containers.get();
        self.containers.set(number + 1);
        let mut config = json!({
            "metadata": { "name": format!("c{number}"), "attempt": 0 },
            "image": { "image": IMAGE },
            "command": command,
            "envs": [{ "key": "PODINIT_TEST_POD", "value": self.crio.place.name }],
            "log_path": format!("c{number}.log"),
            "linux": {},
        });
        let sandbox: Value = serde_json::from_str(&fs::read_to_string(&self.config).unwrap()).unwrap();
        config["linux"]["security_context"] = sandbox["linux"]["security_context"].clone();
        change(&mut config);
        let log = self.logs.join(config["log_path"].as_str().unwrap());
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let path = self.config.with_extension(format!("{number}.json"));
        fs::write(&path, config.to_string()).unwrap();
        let id = self.crio.ask(&["create", &self.id, path.to_str().unwrap(), self.config.to_str().unwrap()]);
        Container { crio: self.crio, id, log }
    }

    /// Creates and starts a container that runs a shell script.
    pub(crate) fn run_with(&self, script: &str, change: impl FnOnce(&mut Value)) -> Container<'a> {
        let container = self.create_with(&["sh", "-c", script], change);
        self.crio.ask(&["start", &container.id]);
        container
    }

    pub(crate) fn run(&self, script: &str) -> Container<'a> {
        self.run_with(script, |_| ())
    }

    pub(crate) fn inspect(&self) -> Value {
        self.crio.json(&["inspectp", &self.id])
    }

    /// Stops and removes it as the kubelet does: containers first, here without any grace.
    pub(crate) fn remove(self) {
        for container in self.crio.ask(&["ps", "--quiet", "--pod", &self.id]).lines() {
            self.crio.ask(&["stop", "--timeout", "0", container]);
        }
        self.crio.ask(&["stopp", &self.id]);
        self.crio.ask(&["rmp", &self.id]);
    }
}

/// A container in a CRI-O.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    crio: &'a Crio,
    pub(crate) id: String,
    pub(crate) log: PathBuf,
}

impl Container<'_> {
    pub(crate) fn inspect(&self) -> Value {
        self.crio.json(&["inspect", &self.id])
    }

    pub(crate) fn pid(&self) -> u32 {
        self.inspect()["info"]["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Waits for its end: exit code and reason.
    pub(crate) fn wait(&self) -> (i64, String) {
        let status = self.crio.poll("the end of a container", || {
            let status = self.inspect()["status"].take();
            (status["state"] == "CONTAINER_EXITED").then_some(status)
        });
        (status["exitCode"].as_i64().unwrap_or(0), status["reason"].as_str().unwrap().to_owned())
    }

    /// An exec of kubelet's probes: one answer with all output.
    pub(crate) fn exec_sync(&self, script: &str) -> Output {
        self.crio.crictl(&["exec", "--sync", &self.id, "sh", "-c", script])
    }

    /// The container's log, its records put together again.
    pub(crate) fn log(&self) -> common::Log {
        common::Log::read(&self.log)
    }
}

/// Waits for the end of a command, which is killed at the deadline, and takes its output.
pub(crate) fn finish(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    finish_child(child)
}

pub(crate) fn finish_child(child: Child) -> Output {
    let pid = child.id();
    let process = pidfd(pid).expect("a child");
    // The output is read while it runs, so that it never waits for us.
    std::thread::scope(|scope| {
        let output = scope.spawn(|| child.wait_with_output().unwrap());
        let is_over = wait_readable(&process);
        if !is_over {
            common::kill(pid, "KILL");
        }
        let output = output.join().unwrap();
        assert!(is_over, "a command did not end in time: {}", String::from_utf8_lossy(&output.stdout));
        output
    })
}

/// A network namespace for this thread and what it starts, with a loopback device; and nothing
/// of the machine's where CRI-O, CNI and podman write whatever they are told.
fn private_machine() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    for directory in ["/run", "/var/lib/cni"] {
        fs::create_dir_all(directory).unwrap();
        let options = Some("mode=755,size=64m");
        mount(Some("podinit-private"), directory, Some("tmpfs"), MsFlags::empty(), options).unwrap();
    }
}

/// CNI's configuration: a bridge, and addresses that are remembered in the test's directory.
fn network(place: &Place) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "podinit-test", "plugins": [{
        "type": "bridge", "bridge": "podinit0", "isGateway": true,
        "ipam": { "type": "host-local", "dataDir": place.path("crio/addresses"),
                  "ranges": [[{ "subnet": "10.213.0.0/24" }]] },
    }]})
}

/// An OCI runtime, which is told what it or this machine can do where CRI-O asks for more.
///
/// Debian 12's crun refuses every bundle of a specification after 1.1, though it knows all that
/// is in these. And without CAP_SYS_RESOURCE, as in many containers, nobody can be protected
/// from the OOM killer.
fn runtime(place: &Place, name: &str) -> PathBuf {
    let mut edits = vec![r#"s/"ociVersion": *"[^"]*"/"ociVersion":"1.0.2"/"#];
    let is_able = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap();
    if !is_able {
        edits.push(r#"s/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/"#);
    }
    let script = format!(
        r#"previous=''
for word in "$@"; do
    case $previous in -b | --bundle) sed -i '{}' "$word/config.json" ;; esac
    previous=$word
done
exec {} "$@""#,
        edits.join(";"),
        common::which(name).display()
    );
    place.script(&format!("bin/{name}"), &script)
}

fn config(place: &Place) -> String {
    let plugins = ["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"];
    let plugins = plugins.into_iter().find(|path| Path::new(path).join("bridge").exists());
    include_str!("crio.conf")
        .replace("@plugins@", plugins.expect("CNI's plugins: run `make deps`"))
        .replace("@crun@", runtime(place, "crun").to_str().unwrap())
        .replace("@runc@", runtime(place, "runc").to_str().unwrap())
        .replace("@conmon@", common::which("conmon").to_str().unwrap())
        .replace("@image@", PAUSE_IMAGE)
        .replace("@dir@", place.path("").to_str().unwrap().trim_end_matches('/'))
}

/// A store of images with both, which each test copies: made once in each run of the tests.
fn images() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-crio");
        drop(fs::remove_dir_all(&dir));
        let pause = dir.join("pause");
        fs::create_dir_all(&pause).unwrap();
        fs::copy(common::binary(), pause.join("pause")).unwrap();
        common::make_rootfs(&dir.join("rootfs"));
        for (directory, image) in [("rootfs", IMAGE), ("pause", PAUSE_IMAGE)] {
            let archive = dir.join(directory).with_extension("tar");
            let status = Command::new("tar")
                .arg("-C")
                .arg(dir.join(directory))
                .arg("-cf")
                .arg(&archive)
                .arg(".")
                .status();
            assert!(status.unwrap().success());
            let mut command = Command::new("podman");
            command
                .arg("--root")
                .arg(dir.join("storage"))
                .arg("--runroot")
                .arg(dir.join("runroot"))
                .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"])
                .args(["import", "--change", "ENV PATH=/bin"])
                .arg(archive)
                .arg(image);
            let output = finish(command);
            assert!(output.status.success(), "podman: {}", String::from_utf8_lossy(&output.stderr));
        }
        dir.join("storage")
    })
}
