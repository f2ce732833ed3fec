//! What a pod costs: private anonymous memory, threads and descriptors of the
//! keeper and the monitor together, beside Debian's conmon in the same run.
//!
//!     PODINIT_BINARY=target/podinit cargo bench --bench memory
//!
//! Measured is the binary that the environment names; docs/memory.md has the
//! method and what followed from it. Shorter and longer runs:
//! `BENCH_CONTAINERS` (50), `BENCH_EXECS` (5000), `BENCH_CONNECTIONS` (20000); one
//! part alone: `BENCH_ONLY` (containers, logs, execs, connections).
//! Ends with status 1 if a budget is exceeded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "common/mod.rs"]
mod measure;

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use common::{Pod, binary};
use measure::{Conmon, Cost, conmon_pidfile, crun, pause, processes, setting, until};
use podinit::rpc::client::{Client, ExecRequest};

/// Budgets in KiB and descriptors: what a pod may cost.
const IDLE_KIB: i64 = 400;
const QUIET_KIB: f64 = 12.0;
const FLAT_KIB: i64 = 64;
const FDS: f64 = 6.0;
const THREADS: usize = 3;

/// What a chatty container has logged.
const CHATTY_MIB: u64 = 8;

/// Execs at a time, of the many.
const AT_ONCE: usize = 4;

/// The table, and whether every budget was kept.
struct Report {
    exceeded: Vec<String>,
}

impl Report {
    fn row(&self, what: &str, cost: Cost) {
        println!(
            "| {what:<44} | {:>6} | {:>6} | {:>6} | {:>3} | {:>4} |",
            cost.anonymous_kib, cost.rss_kib, cost.pss_kib, cost.threads, cost.fds
        );
    }

    fn budget<T: PartialOrd + std::fmt::Display>(&mut self, what: &str, found: T, most: T) {
        let kept = found <= most;
        println!("  {what}: {found:.1}, budget {most:.1}{}", if kept { "" } else { ": EXCEEDED" });
        if !kept {
            self.exceeded.push(what.to_owned());
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the clock is what is waited for")]
/// What was freed is given back within this time.
fn settle() {
    pause(Duration::from_millis(1500));
}

fn cost(pod: &Pod) -> Cost {
    settle();
    Cost::of(&processes(pod))
}

fn main() -> ExitCode {
    let mut report = Report { exceeded: Vec::new() };
    println!("{}, {} bytes", binary().display(), fs::metadata(binary()).expect("the binary").len());
    println!("| {:<44} | {:>6} | {:>6} | {:>6} | thr | fds  |", "KiB", "anon", "rss", "pss");
    let quiet = setting("BENCH_CONTAINERS", 50);
    let only = std::env::var("BENCH_ONLY").ok();
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wanted("containers") {
        containers(&mut report, quiet);
        conmon(&report, quiet);
    }
    if wanted("logs") {
        chatty(&mut report);
    }
    if wanted("execs") {
        execs(&mut report, setting("BENCH_EXECS", 5000));
    }
    if wanted("connections") {
        connections(&mut report, setting("BENCH_CONNECTIONS", 20000));
    }
    if report.exceeded.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("over budget: {}", report.exceeded.join(", "));
    ExitCode::FAILURE
}

fn containers(report: &mut Report, quiet: usize) {
    let pod = Pod::start();
    let [keeper, monitor] = processes(&pod);
    settle();
    report.row("keeper, idle", Cost::of(&[keeper]));
    report.row("monitor, idle", Cost::of(&[monitor]));
    let idle = cost(&pod);
    report.row("pod, idle", idle);
    report.budget("idle KiB", idle.anonymous_kib, IDLE_KIB);
    report.budget("threads", idle.threads, THREADS);
    pod.run("first", "exec sleep 1000");
    let one = cost(&pod);
    report.row("pod, 1 container", one);
    for n in 1..quiet {
        pod.run(&format!("q{n}"), "exec sleep 1000");
    }
    let full = cost(&pod);
    report.row(&format!("pod, {quiet} quiet containers"), full);
    let each = |more: i64| more as f64 / quiet as f64;
    report.budget("KiB per quiet container", each(full.anonymous_kib - idle.anonymous_kib), QUIET_KIB);
    // The client's connection has been there from the start.
    let fds = |of: Cost| i64::try_from(of.fds).expect("a small number");
    report.budget("descriptors per container, keeper and monitor", each(fds(full) - fds(idle)), 2.0 * FDS);
    let [_, monitor] = processes(&pod);
    let of_monitor = Cost::of(&[monitor]);
    println!("  of these in the monitor: {:.1}", of_monitor.fds as f64 / quiet as f64);
}

fn chatty(report: &mut Report) {
    let pod = Pod::start();
    const COUNT: usize = 10;
    for n in 0..COUNT {
        pod.run(&format!("q{n}"), "while [ ! -e /tmp/go ]; do sleep 0.1; done; yes 0123456789012345 | head -c 8388608; exec sleep 1000");
    }
    let before = cost(&pod);
    report.row(&format!("pod, {COUNT} containers before they log"), before);
    for n in 0..COUNT {
        pod.exec_stdout(&format!("q{n}"), "touch /tmp/go");
    }
    for n in 0..COUNT {
        let path = pod.log_path(&format!("q{n}"));
        until("the logs", || fs::metadata(&path).is_ok_and(|file| file.len() > CHATTY_MIB << 20));
        until("the last line", || {
            let length = fs::metadata(&path).expect("a log").len();
            settle();
            fs::metadata(&path).expect("a log").len() == length
        });
    }
    let after = cost(&pod);
    report.row(&format!("pod, {COUNT} containers, 8 MiB each logged"), after);
    report.budget("KiB more after logging", after.anonymous_kib - before.anonymous_kib, FLAT_KIB);
}

fn execs(report: &mut Report, count: usize) {
    let pod = Pod::start();
    pod.run("c", "exec sleep 100000");
    let run = |times: usize| {
        let command = ["true"].map(str::to_owned).to_vec();
        let request = ExecRequest { id: pod.id("c"), command, ..ExecRequest::default() };
        pod.call_within(Duration::from_secs(7200), async |client| {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..AT_ONCE {
                let (client, request) = (client.clone(), request.clone());
                tasks.spawn_local(async move {
                    for _ in 0..times / AT_ONCE {
                        client.exec(&request).await.expect("an exec");
                    }
                });
            }
            tasks.join_all().await;
        });
    };
    run(200);
    let before = cost(&pod);
    report.row("pod, 200 execs done", before);
    run(count / 2);
    report.row(&format!("pod, {} execs more", count / 2), cost(&pod));
    run(count - count / 2);
    let after = cost(&pod);
    report.row(&format!("pod, {count} execs more"), after);
    report.budget("KiB more after execs", after.anonymous_kib - before.anonymous_kib, FLAT_KIB);
}

fn connections(report: &mut Report, count: usize) {
    let pod = Pod::start();
    let run = |times: usize| {
        for n in 0..times {
            // Every tenth says nothing.
            if n % 10 == 0 {
                drop(UnixStream::connect(pod.socket()).expect("a connection"));
                continue;
            }
            let client = Client::connect(&pod.socket()).expect("a connection");
            client.call(async |pod| pod.version().await.expect("an answer"));
        }
    };
    run(200);
    let before = cost(&pod);
    report.row("pod, 200 connections served", before);
    run(count);
    let after = cost(&pod);
    report.row(&format!("pod, {count} connections more"), after);
    report.budget("KiB more after connections", after.anonymous_kib - before.anonymous_kib, FLAT_KIB);
}

/// The same containers under Debian's conmon, one process each.
fn conmon(report: &Report, quiet: usize) {
    let pod = Pod::start();
    let mut pids = Vec::new();
    for n in 0..quiet {
        let name = format!("d{n}");
        pod.container(&name, &["sleep", "1000"]);
        let mut conmon = Conmon::start(&pod, &name, &[]);
        conmon.process.wait().expect("conmon forks");
        conmon.report();
        crun(&pod, &["start", &pod.id(&name)]);
        let pid = fs::read_to_string(conmon_pidfile(&pod.bundle(&name))).expect("conmon's pid");
        pids.push(pid.trim().parse::<u32>().expect("a pid"));
    }
    settle();
    report.row("Debian's conmon, 1 container", Cost::of(&pids[..1]));
    report.row(&format!("Debian's conmon, {quiet} containers"), Cost::of(&pids));
    for n in 0..quiet {
        crun(&pod, &["delete", "--force", &pod.id(&format!("d{n}"))]);
    }
    until("conmon's end", || pids.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap()));
    for entry in fs::read_dir(pod.place.path("tmp")).expect("a directory").flatten() {
        fs::remove_dir_all(entry.path())
            .or_else(|_| fs::remove_file(entry.path()))
            .expect("conmon's sockets");
    }
}
