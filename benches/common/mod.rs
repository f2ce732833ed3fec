//! What the benches share: processes as the kernel accounts them, medians, and
//! Debian's conmon on a test's bundle.
#![allow(dead_code, unreachable_pub, reason = "each bench uses its part")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podinit::sys::spawn::{self, PassedFd};

use crate::common::{Pod, children_of, which};

/// A number from the environment, for longer or shorter runs.
pub fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().map_or(otherwise, |value| value.parse().expect("a number"))
}

/// What the kernel accounts to a set of processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Pages of no file, or copied from one: nobody else can use them.
    pub anonymous_kib: i64,
    pub rss_kib: i64,
    pub pss_kib: i64,
    pub threads: usize,
    pub fds: usize,
}

impl Cost {
    pub fn of(pids: &[u32]) -> Self {
        let mut cost = Self::default();
        for pid in pids {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process");
            let field = |name: &str| -> i64 {
                let line = rollup.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
                line.trim().trim_end_matches(" kB").parse().expect("kilobytes")
            };
            cost.anonymous_kib += field("Anonymous:");
            cost.rss_kib += field("Rss:");
            cost.pss_kib += field("Pss:");
            cost.threads += count(&format!("/proc/{pid}/task"));
            cost.fds += count(&format!("/proc/{pid}/fd"));
        }
        cost
    }
}

fn count(directory: &str) -> usize {
    fs::read_dir(directory).expect("a process").count()
}

/// The podinit processes of a pod: the keeper, then the monitor.
pub fn processes(pod: &Pod) -> [u32; 2] {
    let is_monitor = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"monitor")
    };
    let monitor = children_of(pod.keeper_pid()).into_iter().find(is_monitor).expect("a monitor");
    [pod.keeper_pid(), monitor]
}

/// Milliseconds of one run of `work`.
pub fn milliseconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1000.0
}

/// Many measurements of one thing.
#[derive(Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn at(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() - 1) * percent / 100]
    }

    /// The median of what each is more than the one of `others` that was measured beside it.
    pub fn median_over(&self, others: &Self) -> f64 {
        let differences = self.0.iter().zip(&others.0).map(|(own, other)| own - other);
        Self(differences.collect()).median()
    }

    /// The median of how many times each is the one of `others` that was measured beside it:
    /// a machine that is slower for a while is so for both.
    pub fn median_times(&self, others: &Self) -> f64 {
        let factors = self.0.iter().zip(&others.0).map(|(own, other)| own / other);
        Self(factors.collect()).median()
    }

    pub fn median(&self) -> f64 {
        self.at(50)
    }
}

/// One of Debian's conmon processes, with its container or exec.
pub struct Conmon {
    pub process: Child,
    /// What it reports: a pid, an exit code.
    pub sync: OwnedFd,
}

impl Conmon {
    /// Starts conmon for container `id` of `pod`, in the foreground of nothing: it forks by itself.
    pub fn start(pod: &Pod, name: &str, more: &[&str]) -> Self {
        let (id, bundle) = (pod.id(name), pod.bundle(name));
        let (sync, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
        let mut command = Command::new(which("conmon"));
        command.args(["--cid", &id, "--cuuid", &id, "--name", &id]).arg("--runtime").arg(which("crun"));
        command.arg("--runtime-arg").arg(format!("--root={}", pod.place.path("root").display()));
        command.arg("--bundle").arg(&bundle).arg("--persist-dir").arg(&bundle);
        command.arg("--container-pidfile").arg(bundle.join("pidfile"));
        command.arg("--conmon-pidfile").arg(conmon_pidfile(&bundle));
        command.arg("--socket-dir-path").arg(pod.place.path("tmp"));
        command.arg("--log-path").arg(pod.log_path(name)).args(["--log-level", "error"]).args(more);
        command.env("_OCI_SYNCPIPE", "3").current_dir(&bundle);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        spawn::prepare(&mut command, vec![PassedFd { fd: theirs, number: 3 }]).expect("descriptors");
        Self { process: command.spawn().expect("conmon is installed"), sync }
    }

    /// Waits for its next report.
    pub fn report(&self) -> String {
        let mut text = Vec::new();
        let mut chunk = [0; 512];
        while !text.contains(&b'\n') {
            match rustix::io::read(&self.sync, &mut chunk).expect("a pipe") {
                0 => break,
                count => text.extend_from_slice(&chunk[..count]),
            }
        }
        String::from_utf8(text).expect("text")
    }
}

/// Where conmon writes its own pid.
pub fn conmon_pidfile(bundle: &Path) -> PathBuf {
    bundle.join("conmon-pidfile")
}

/// Lets time pass: what is measured here does.
#[allow(clippy::disallowed_methods, reason = "a bench measures what is left after a while")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Waits until `done`, or fails at a generous deadline.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        pause(Duration::from_millis(5));
    }
}

/// A whole call of bare crun; it must succeed.
pub fn crun(pod: &Pod, arguments: &[&str]) {
    let mut command = Command::new(which("crun"));
    command.arg("--root").arg(pod.place.path("root")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    assert!(command.status().expect("crun is installed").success(), "crun {arguments:?}");
}
