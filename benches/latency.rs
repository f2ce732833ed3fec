//! What a pod's server adds to the time of the OCI runtime's create and exec,
//! beside the bare runtime and Debian's conmon, taking turns in one run.
//!
//!     PODINIT_BINARY=target/podinit cargo bench --bench latency
//!
//! Times are around the whole request, in milliseconds: median [p10 .. p90].
//! `BENCH_CREATES` (40), `BENCH_EXECS` (200) and `BENCH_ROUNDS` (10, of the
//! parallel execs) make it shorter or longer. Ends with status 1 if a budget is
//! exceeded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "common/mod.rs"]
mod measure;

use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use common::{Pod, which};
use measure::{Conmon, Samples, crun, milliseconds, setting};
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
    let mut over = Vec::new();
    let mut budget = |what: &str, found: f64, most: f64| {
        println!("  {what}: {found:+.2}, budget {most:.2}{}", if found <= most { "" } else { ": EXCEEDED" });
        if found > most {
            over.push(what.to_owned());
        }
    };
    let (bare, ours) = creates(&pod, setting("BENCH_CREATES", 40));
    budget("create over bare", ours.median() - bare.median(), CREATE_MS);
    let (bare, ours) = execs(&pod, setting("BENCH_EXECS", 200));
    budget("exec over bare", ours.median() - bare.median(), EXEC_MS);
    let (bare, ours) = parallel(&pod, setting("BENCH_ROUNDS", 10));
    budget("parallel execs, ratio to bare", ours.median() / bare.median(), PARALLEL);
    for entry in fs::read_dir(pod.place.path("tmp")).expect("a directory").flatten() {
        fs::remove_dir_all(entry.path())
            .or_else(|_| fs::remove_file(entry.path()))
            .expect("conmon's sockets");
    }
    if over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// crun with the stdio that a monitor gives it, waited for.
fn bare(pod: &Pod, arguments: &[&str]) {
    let mut command = Command::new(which("crun"));
    command.arg("--root").arg(pod.place.path("root")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("crun is installed");
    assert!(child.wait().expect("a child").success(), "crun {arguments:?}");
}

fn creates(pod: &Pod, count: usize) -> (Samples, Samples) {
    let (mut alone, mut ours, mut debian) = (Samples::default(), Samples::default(), Samples::default());
    for n in 0..count {
        let name = format!("bare{n}");
        let (id, request) = (pod.id(&name), pod.container(&name, &["sleep", "1000"]));
        let (bundle, pidfile) = (request.bundle.display().to_string(), request.bundle.join("pidfile"));
        let pidfile = pidfile.display().to_string();
        alone.add(milliseconds(|| {
            bare(pod, &["create", "--bundle", &bundle, "--pid-file", &pidfile, &id]);
        }));
        crun(pod, &["delete", "--force", &id]);

        let name = format!("ours{n}");
        let (id, request) = (pod.id(&name), pod.container(&name, &["sleep", "1000"]));
        ours.add(milliseconds(|| {
            pod.create(&request).expect("create");
        }));
        pod.call(async |client| client.delete_container(&id, Deletion::Force).await).expect("delete");

        let name = format!("conmon{n}");
        pod.container(&name, &["sleep", "1000"]);
        let mut started = None;
        debian.add(milliseconds(|| {
            let conmon = Conmon::start(pod, &name, &["--sync"]);
            assert!(conmon.report().contains("pid"), "conmon made no container");
            started = Some(conmon);
        }));
        crun(pod, &["delete", "--force", &pod.id(&name)]);
        let mut conmon = started.expect("just started");
        conmon.process.wait().expect("conmon ends with its container");
    }
    row("create, bare crun", &alone);
    row("create, podinit", &ours);
    row("create, Debian's conmon", &debian);
    (alone, ours)
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
    let (mut alone, mut ours, mut debian, mut wire) =
        (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    let process = serde_json::json!({
        "user": { "uid": 0, "gid": 0 }, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/", "terminal": false,
    });
    let spec = pod.bundle("c").join("exec.json");
    fs::write(&spec, process.to_string()).expect("a file");
    let spec = spec.display().to_string();
    for _ in 0..count {
        alone.add(milliseconds(|| bare(pod, &["exec", &id, "true"])));
        ours.add(milliseconds(|| {
            pod.call(async |client| client.exec_sync(&request).await).expect("exec");
        }));
        debian.add(milliseconds(|| {
            let mut conmon = Conmon::start(pod, "c", &["--exec", "--sync", "--exec-process-spec", &spec]);
            let mut said = conmon.report();
            if !said.contains("exit_code") {
                said = conmon.report();
            }
            assert!(said.contains("exit_code"), "conmon said {said:?}");
            conmon.process.wait().expect("conmon ends with its exec");
        }));
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
    let (mut alone, mut ours) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        alone.add(milliseconds(|| {
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
        }));
        ours.add(milliseconds(|| {
            pod.call_within(Duration::from_secs(60), async |client| {
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..AT_ONCE {
                    let (client, request) = (client.clone(), request.clone());
                    tasks.spawn_local(async move { client.exec_sync(&request).await.expect("exec") });
                }
                tasks.join_all().await;
            });
        }));
    }
    row("30 execs at once, bare crun", &alone);
    row("30 execs at once, podinit", &ours);
    (alone, ours)
}
