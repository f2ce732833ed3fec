//! What running a hook costs beside starting the same program plainly, how soon a
//! hook is gone whose time is over, and what a resident hook costs.
//!
//!     PODINIT_BINARY=target/podinit cargo bench --bench hooks
//!
//! Everything is measured in turns in one run: the machine may have other work.
//! Times are around the whole request, the wire included. `BENCH_HOOKS` (200) and
//! `BENCH_TIMEOUTS` (5) make it shorter or longer. Ends with status 1 if a budget
//! is exceeded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "common/mod.rs"]
mod measure;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};

use common::{Options, Place, Pod, processes_of, which};
use measure::{Samples, milliseconds, setting};
use podinit::rpc::client::{
    HookChoice, HookOutcome, HookRegistration, HookRegistry, HookRequest, NamespaceKind, NamespaceSource,
    SandboxRequest,
};
use serde_json::json;

/// Over a plain fork and exec of the same program, as a ratio of medians.
const PLAIN: f64 = 1.5;
/// From start to end of a hook that has one second, in milliseconds.
const LATE_MS: (f64, f64) = (1000.0, 1200.0);
/// From the moment that a resident hook's turn has come until it has answered: to
/// another process and back. In milliseconds of the median.
const RESIDENT_MS: f64 = 0.1;

fn row(what: &str, samples: &Samples) {
    println!("| {what:<44} | {:>8.3} [{:.3} .. {:.3}]", samples.median(), samples.at(10), samples.at(90));
}

fn main() -> ExitCode {
    let place = Place::new();
    // What a hook typically is: a shell script that reads its input.
    let script = place.path("hook.sh");
    fs::write(&script, "#!/bin/sh\nwhile read -r line; do :; done\nexit 0\n").expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::create_dir(place.path("hooks")).expect("a directory");
    let file = json!({
        "version": "1.0.0", "hook": { "path": script, "env": ["PATH=/usr/bin:/bin"] },
        "when": { "always": true }, "stages": ["podStop"],
    });
    fs::write(place.path("hooks/script.json"), file.to_string()).expect("a hook");
    let arguments = vec![
        "--hooks-dir".to_owned(),
        place.path("hooks").display().to_string(),
        "--hooks-socket".to_owned(),
    ];
    let pod = Pod::start_in(place, Options { arguments, ..Options::default() });
    let kinds = [NamespaceKind::Net, NamespaceKind::Ipc, NamespaceKind::Uts];
    let sandbox = SandboxRequest {
        pod_id: pod.name().to_owned(),
        namespaces: kinds.iter().map(|kind| (*kind, NamespaceSource::Create)).collect(),
        base_path: pod.place.path("pins"),
        ..SandboxRequest::default()
    };
    pod.call(async |client| client.create_sandbox(&sandbox).await).expect("a sandbox");

    let mut over = Vec::new();
    let mut budget = |what: &str, found: f64, least: f64, most: f64| {
        let fits = (least..=most).contains(&found);
        println!("  {what}: {found:.3}, budget {least} .. {most}{}", if fits { "" } else { ": EXCEEDED" });
        if !fits {
            over.push(what.to_owned());
        }
    };
    let count = setting("BENCH_HOOKS", 200);
    let (plain, hook) = programs(&pod, count.min(200));
    budget("a hook over plain fork and exec, ratio", hook.median() / plain.median(), 0.0, PLAIN);
    let late = time_outs(&pod, setting("BENCH_TIMEOUTS", 5));
    budget("a hook of one second, shortest, ms", late.at(0), LATE_MS.0, LATE_MS.1);
    budget("a hook of one second, longest, ms", late.at(100), LATE_MS.0, LATE_MS.1);
    let asked = residents(&pod, count * 5);
    budget("a resident hook, asked and answered, ms", asked.median(), 0.0, RESIDENT_MS);
    if over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn by_name(name: &str) -> HookRequest {
    HookRequest::new(HookChoice::Name(name.to_owned()))
}

/// The same program with the same input: started plainly, and as a hook in the pod,
/// as a stage runs it. Nobody asks for a stage's hooks one by one, so the way of the
/// request is no part of it; it is told beside.
fn programs(pod: &Pod, count: usize) -> (Samples, Samples) {
    let script = pod.place.path("hook.sh");
    let state = "x".repeat(300);
    let plain = || {
        let mut command = Command::new(&script);
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a script");
        let mut stdin = child.stdin.take().expect("its input");
        stdin.write_all(state.as_bytes()).expect("it reads");
        drop(stdin);
        assert!(child.wait_with_output().expect("its end").status.success());
    };
    let hook = || {
        let result = pod.call(async |client| client.run_hook(&by_name("script.json")).await).expect("a run");
        assert_eq!(result.outcome, HookOutcome::Code(0));
    };
    let (mut alone, mut ours, mut inside) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..count {
        // Who comes first changes.
        if round % 2 == 0 {
            alone.add(milliseconds(plain));
            ours.add(milliseconds(hook));
        } else {
            ours.add(milliseconds(hook));
            alone.add(milliseconds(plain));
        }
    }
    let kept = pod.call(async |client| client.hook_results(0).await).expect("results");
    for result in &kept {
        #[allow(clippy::cast_precision_loss, reason = "nanoseconds of a run")]
        inside.add(result.elapsed_ns as f64 / 1e6);
    }
    row("fork and exec of a script", &alone);
    row("the same as a hook in the pod, requested", &ours);
    row("  of it without the way of the request", &inside);
    (alone, inside)
}

/// A hook that ignores SIGTERM, with a child that does, and another that has left its session.
fn time_outs(pod: &Pod, count: usize) -> Samples {
    let script = "trap '' TERM; sleep 600 & setsid sleep 600 & sleep 600";
    let definition = json!({
        "version": "1.0.0",
        "hook": { "path": which("sh"), "args": ["sh", "-c", script], "timeout": 1,
                  "env": ["PATH=/usr/bin:/bin", format!("PODINIT_TEST_POD=hook-{}", pod.name())] },
        "when": json!({}), "stages": ["podStop"],
    });
    let request = HookRequest::new(HookChoice::Definition(definition.to_string()));
    let mut samples = Samples::default();
    for _ in 0..count {
        samples.add(milliseconds(|| {
            let result = pod.call(async |client| client.run_hook(&request).await).expect("a run");
            assert_eq!(result.outcome, HookOutcome::TimedOut);
        }));
        let left = processes_of(&format!("hook-{}", pod.name()));
        assert!(left.is_empty(), "left: {left:?}");
    }
    row("a hook of one second that ignores SIGTERM", &samples);
    samples
}

/// A request that does nothing, and one that asks a hook in this process; what the
/// hook's part of that is.
fn residents(pod: &Pod, count: usize) -> Samples {
    let socket = pod.run_dir().join("hooks.sock");
    let (mut wire, mut resident, mut asked) = (Samples::default(), Samples::default(), Samples::default());
    pod.call(async |client| {
        let registry = HookRegistry::connect(&socket).await.expect("a registry");
        let hook = HookRegistration::new("resident", &["podStop"]);
        let _registered = registry.register(&hook, async |_| Ok(())).await.expect("registered");
        let request = by_name("resident");
        for _ in 0..count {
            let began = std::time::Instant::now();
            client.hook_results(u64::MAX).await.expect("an answer");
            wire.add(began.elapsed().as_secs_f64() * 1000.0);
            let began = std::time::Instant::now();
            let result = client.run_hook(&request).await.expect("a run");
            resident.add(began.elapsed().as_secs_f64() * 1000.0);
            assert_eq!(result.outcome, HookOutcome::Answered);
            #[allow(clippy::cast_precision_loss, reason = "nanoseconds of a call")]
            asked.add(result.elapsed_ns as f64 / 1e6);
        }
    });
    row("a request that does nothing", &wire);
    row("one that asks a resident hook", &resident);
    row("  of it without the way of the request", &asked);
    asked
}
