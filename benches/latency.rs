//! What a pod's server adds to the time of the OCI runtime's create and exec,
//! beside the bare runtime and Debian's conmon, taking turns in one run.
//!
//!     PODINIT_BINARY=target/podinit cargo bench --bench latency
//!
//! Times are around the whole request, in milliseconds: median [p10 .. p90]. What
//! is added is the median of the differences within each round, which were
//! measured at the same time: the machine may have other work.
//!
//! Meanwhile somebody moves a process from cgroup to cgroup, as always somebody does
//! on a node with many pods. On a machine where nobody else does, whoever moves the
//! first one waits for a grace period of the kernel's RCU, which may take longer than all
//! of a create, for each by chance. `BENCH_QUIET=1` leaves it as it is.
//!
//! `BENCH_CREATES` (100), `BENCH_EXECS` (200) and `BENCH_ROUNDS` (20, of the
//! parallel execs) make it shorter or longer. Ends with status 1 if a budget is
//! exceeded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "common/mod.rs"]
mod measure;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Pod, which};
use measure::{Conmon, Samples, crun, milliseconds, pause, setting, until};
use podinit::monitor::cgroup::Mounts;
use podinit::rpc::client::{CgroupManager, Deletion, ExecSync, Stdio as Streams};

/// Budgets over the bare runtime, in milliseconds of the median.
const CREATE_MS: f64 = 1.0;
const EXEC_MS: f64 = 0.8;
/// Of many execs at once: a ratio, with what two runs of the same differ by here.
const PARALLEL: f64 = 1.05;

/// Execs that are started at once.
const AT_ONCE: usize = 30;

fn row(what: &str, samples: &Samples) {
    println!("| {what:<40} | {:>7.2} [{:.2} .. {:.2}]", samples.median(), samples.at(10), samples.at(90));
}

fn main() -> ExitCode {
    let pod = Pod::start();
    let movement = (setting("BENCH_QUIET", 0) == 0).then(|| Movement::start(&pod));
    let mut over = Vec::new();
    let mut budget = |what: &str, found: f64, most: f64| {
        println!("  {what}: {found:+.2}, budget {most:.2}{}", if found <= most { "" } else { ": EXCEEDED" });
        if found > most {
            over.push(what.to_owned());
        }
    };
    let (bare, ours) = creates(&pod, setting("BENCH_CREATES", 100));
    budget("create over bare", ours.median_over(&bare), CREATE_MS);
    let (bare, ours) = execs(&pod, setting("BENCH_EXECS", 200));
    budget("exec over bare", ours.median_over(&bare), EXEC_MS);
    let (bare, ours) = parallel(&pod, setting("BENCH_ROUNDS", 20));
    budget("parallel execs, ratio to bare", ours.median() / bare.median(), PARALLEL);
    drop(movement);
    for entry in fs::read_dir(pod.place.path("tmp")).expect("a directory").flatten() {
        fs::remove_dir_all(entry.path())
            .or_else(|_| fs::remove_file(entry.path()))
            .expect("conmon's sockets");
    }
    if over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Moves a process to and fro between two cgroups, often enough that the kernel's lock
/// for that stays as it is while it is in use: `cgroup_threadgroup_rwsem`, whose writers
/// wait for a grace period only if there was none since the last.
struct Movement {
    stop: Arc<AtomicBool>,
    mover: Option<JoinHandle<()>>,
    process: Child,
    places: [PathBuf; 2],
}

impl Movement {
    /// Less than any grace period.
    const PERIOD: Duration = Duration::from_millis(2);

    fn start(pod: &Pod) -> Self {
        let mounts = Mounts::read();
        let tree = mounts.find("freezer", "/").or_else(|| mounts.find("", "/")).expect("cgroups");
        let places = ["move-a", "move-b"].map(|name| tree.join(pod.id(name)));
        for place in &places {
            fs::create_dir(place).expect("a cgroup");
        }
        let process = Command::new("sleep").arg("infinity").spawn().expect("sleep");
        let stop = Arc::new(AtomicBool::new(false));
        let files = places.clone().map(|place| place.join("cgroup.procs"));
        let (pid, stopped) = (process.id().to_string(), Arc::clone(&stop));
        let mover = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for file in &files {
                    fs::write(file, &pid).expect("a move");
                    pause(Self::PERIOD);
                }
            }
        });
        Self { stop, mover: Some(mover), process, places }
    }
}

impl Drop for Movement {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.mover.take().map(JoinHandle::join).expect("a thread").expect("moves");
        self.process.kill().and_then(|()| self.process.wait()).expect("a child");
        for place in &self.places {
            until("a cgroup that is left", || fs::remove_dir(place).is_ok());
        }
    }
}

/// crun with the stdio that a monitor gives it, waited for.
fn bare(pod: &Pod, arguments: &[&str]) {
    let mut command = Command::new(which("crun"));
    command.arg("--root").arg(pod.place.path("root")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("crun is installed");
    assert!(child.wait().expect("a child").success(), "crun {arguments:?}");
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Bare,
    Podinit,
    Conmon,
}

/// All orders, for the rounds to take in turn: what one leaves behind (cgroups on their
/// way out) then costs each the same.
const ORDERS: [[Way; 3]; 6] = {
    use Way::{Bare as B, Conmon as C, Podinit as P};
    [[B, P, C], [C, P, B], [P, C, B], [B, C, P], [C, B, P], [P, B, C]]
};

/// Runs `work` in every way, `count` times.
fn take_turns(count: usize, mut work: impl FnMut(Way, usize) -> f64) -> [Samples; 3] {
    let mut samples = [Samples::default(), Samples::default(), Samples::default()];
    for (round, order) in (0..count).zip(ORDERS.iter().cycle()) {
        for way in order {
            samples[*way as usize].add(work(*way, round));
        }
    }
    samples
}

/// The kernel removes cgroups and mount namespaces behind our back for about so long.
const PAUSE: Duration = Duration::from_millis(20);

fn creates(pod: &Pod, count: usize) -> (Samples, Samples) {
    let [alone, ours, debian] = take_turns(count, |way, round| {
        pause(PAUSE);
        create(pod, way, round)
    });
    row("create, bare crun", &alone);
    row("create, podinit", &ours);
    row("create, Debian's conmon", &debian);
    (alone, ours)
}

fn create(pod: &Pod, way: Way, round: usize) -> f64 {
    let name = format!("{way:?}{round}").to_lowercase();
    let (id, request) = (pod.id(&name), pod.container(&name, &["sleep", "1000"]));
    match way {
        Way::Bare => {
            let (bundle, pidfile) = (request.bundle.display().to_string(), request.bundle.join("pidfile"));
            let pidfile = pidfile.display().to_string();
            let arguments = ["create", "--bundle", &bundle, "--pid-file", &pidfile, &id];
            let took = milliseconds(|| bare(pod, &arguments));
            crun(pod, &["delete", "--force", &id]);
            took
        }
        Way::Podinit => {
            let took = milliseconds(|| {
                pod.create(&request).expect("create");
            });
            pod.call(async |client| client.delete_container(&id, Deletion::Force).await).expect("delete");
            took
        }
        Way::Conmon => {
            let mut started = None;
            let took = milliseconds(|| {
                let conmon = Conmon::start(pod, &name, &["--sync"]);
                assert!(conmon.report().contains("pid"), "conmon made no container");
                started = Some(conmon);
            });
            crun(pod, &["delete", "--force", &id]);
            started.expect("just started").process.wait().expect("conmon ends with its container");
            took
        }
    }
}

fn exec_request(pod: &Pod) -> ExecSync {
    ExecSync {
        id: pod.id("c"),
        command: vec!["true".to_owned()],
        timeout_seconds: 0,
        stdio: Streams::Pipes,
        env: Vec::new(),
        cgroup_manager: CgroupManager::Cgroupfs,
    }
}

fn execs(pod: &Pod, count: usize) -> (Samples, Samples) {
    pod.run("c", "exec sleep 100000");
    let id = pod.id("c");
    let request = exec_request(pod);
    let process = serde_json::json!({
        "user": { "uid": 0, "gid": 0 }, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/", "terminal": false,
    });
    let spec = pod.bundle("c").join("exec.json");
    fs::write(&spec, process.to_string()).expect("a file");
    let spec = spec.display().to_string();
    let [alone, ours, debian] = take_turns(count, |way, _| {
        milliseconds(|| match way {
            Way::Bare => bare(pod, &["exec", &id, "true"]),
            Way::Podinit => {
                pod.call(async |client| client.exec_sync(&request).await).expect("exec");
            }
            Way::Conmon => {
                let more = ["--exec", "--sync", "--exec-process-spec", &spec];
                let mut conmon = Conmon::start(pod, "c", &more);
                let mut said = conmon.report();
                if !said.contains("exit_code") {
                    said = conmon.report();
                }
                assert!(said.contains("exit_code"), "conmon said {said:?}");
                conmon.process.wait().expect("conmon ends with its exec");
            }
        })
    });
    let mut wire = Samples::default();
    for _ in 0..count {
        wire.add(milliseconds(|| {
            pod.call(async |client| client.version().await).expect("version");
        }));
    }
    row("exec true, bare crun", &alone);
    row("exec true, podinit", &ours);
    row("exec true, Debian's conmon", &debian);
    row("version", &wire);
    (alone, ours)
}

fn parallel(pod: &Pod, rounds: usize) -> (Samples, Samples) {
    let id = pod.id("c");
    let request = exec_request(pod);
    let bare_ones = || {
        let mut children = Vec::new();
        for _ in 0..AT_ONCE {
            let mut command = Command::new(which("crun"));
            command.arg("--root").arg(pod.place.path("root")).args(["exec", &id, "true"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            children.push(command.spawn().expect("crun is installed"));
        }
        for mut child in children {
            assert!(child.wait().expect("a child").success());
        }
    };
    let our_ones = || {
        pod.call_within(Duration::from_secs(60), async |client| {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..AT_ONCE {
                let (client, request) = (client.clone(), request.clone());
                tasks.spawn_local(async move { client.exec_sync(&request).await.expect("exec") });
            }
            tasks.join_all().await;
        });
    };
    let (mut alone, mut ours) = (Samples::default(), Samples::default());
    for round in 0..rounds {
        // Who comes first changes.
        if round % 2 == 0 {
            alone.add(milliseconds(bare_ones));
            ours.add(milliseconds(our_ones));
        } else {
            ours.add(milliseconds(our_ones));
            alone.add(milliseconds(bare_ones));
        }
    }
    row("30 execs at once, bare crun", &alone);
    row("30 execs at once, podinit", &ours);
    (alone, ours)
}
