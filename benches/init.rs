//! The init programs beside tini, catatonit and dumb-init, in one run: memory, orphans, wake-ups, signals,
//! teardown. Prints what was measured, and ratios to the best of the others.
//!
//! Needs root, a memory cgroup (version 1 or 2), and Debian's tini, catatonit and dumb-init; those that are not
//! installed are left out. `cargo bench --bench init`; a word as argument runs only the parts whose names have it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the bench")]
#![allow(clippy::print_stdout)] // It is what a benchmark is for.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podinit::init;
use rustix::process::{Pid, Signal, WaitOptions};

/// Orphans of a storm.
const ORPHANS: u32 = 20_000;
/// Processes of a teardown.
const PROCESSES: usize = 1000;
/// Inits whose memory is measured together.
const INITS: u64 = 100;
/// Interleaved rounds; the median of each is compared.
const ROUNDS: usize = 5;
/// Signals of a latency measurement.
const SIGNALS: usize = 2000;

/// How to start an init as PID 1.
struct Candidate {
    name: &'static str,
    argv: Vec<String>,
    ours: bool,
    /// A memory file is made for each, as for each pod.
    image: bool,
}

fn candidates(program: &str) -> Vec<Candidate> {
    let make = |name, argv: &[&str], ours, image| Candidate {
        name,
        argv: argv.iter().map(ToString::to_string).collect(),
        ours,
        image,
    };
    let all = [
        make("podinit, pod", &["", "0123456789abcdef0123456789abcdef"], true, true),
        make("podinit, command", &[program, "--", "sleep", "1000"], true, false),
        make("tini", &["/usr/bin/tini", "--", "sleep", "1000"], false, false),
        make("catatonit -P", &["/usr/bin/catatonit", "-P"], false, false),
        make("catatonit", &["/usr/bin/catatonit", "--", "sleep", "1000"], false, false),
        make("dumb-init", &["/usr/bin/dumb-init", "--", "sleep", "1000"], false, false),
    ];
    all.into_iter().filter(|c| c.ours || PathBuf::from(&c.argv[0]).exists()).collect()
}

/// A running init.
struct Running {
    unshare: Child,
    init: u32,
    _image: Option<OwnedFd>,
}

impl Candidate {
    fn start(&self) -> Running {
        let image = self.image.then(|| init::image().expect("a memory file"));
        let mut argv = self.argv.clone();
        if let Some(image) = &image {
            argv[0] = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
        }
        let unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--"])
            .args(&argv)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let mut init = 0;
        until(|| {
            init = children(unshare.id()).first().copied().unwrap_or(0);
            let state = field(init, "State");
            let command = init != 0 && !field(init, "Name").contains("unshare");
            command
                && state.starts_with('S')
                && (!self.argv.contains(&"sleep".to_owned()) || !children(init).is_empty())
        });
        Running { unshare, init, _image: image }
    }
}

impl Running {
    fn inside(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--pid", "--target", &self.init.to_string(), "--", "sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn kill(&self, signal: Signal) {
        let pid = Pid::from_raw(self.init.cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("kill");
    }

    fn end(mut self) {
        self.kill(Signal::KILL);
        self.unshare.wait().expect("wait");
    }

    /// Nanoseconds on a processor, and times it was put on one.
    fn schedule(&self) -> (u64, u64) {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.init)).expect("schedstat");
        let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        (numbers[0], numbers[2])
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "something never happens");
        std::thread::park_timeout(Duration::from_micros(200));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn field(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Median of each candidate over interleaved rounds.
fn interleaved(
    candidates: &[Candidate],
    rounds: usize,
    mut measure: impl FnMut(&Candidate) -> f64,
) -> Vec<f64> {
    let mut all: Vec<Vec<f64>> = candidates.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (values, candidate) in all.iter_mut().zip(candidates) {
            values.push(measure(candidate));
        }
    }
    all.into_iter()
        .map(|mut values| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        })
        .collect()
}

/// Prints a table with the ratio of each of ours to the best of the others.
fn report(title: &str, unit: &str, candidates: &[Candidate], values: &[f64]) {
    let others = candidates.iter().zip(values).filter(|(c, _)| !c.ours).map(|(_, value)| *value);
    let best = others.fold(f64::INFINITY, f64::min);
    println!("\n{title}");
    for (candidate, value) in candidates.iter().zip(values) {
        let ratio = match candidate.ours && best > 0.0 {
            true => format!("  {:.2} x the best of the others", value / best),
            false => String::new(),
        };
        println!("  {:18} {value:10.2} {unit}{ratio}", candidate.name);
    }
}

/// A memory cgroup of our own, of either version.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make() -> Option<Self> {
        let parent = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(PathBuf::from);
        let parent = parent
            .into_iter()
            .find(|p| p.join("memory.usage_in_bytes").exists() || p.join("cgroup.controllers").exists())?;
        let path = parent.join(format!("podinit-bench-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn usage(&self) -> u64 {
        let names = ["memory.usage_in_bytes", "memory.current"];
        let text = names.iter().find_map(|name| fs::read_to_string(self.0.join(name)).ok());
        text.and_then(|text| text.trim().parse().ok()).expect("the usage of a memory cgroup")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        until(|| fs::remove_dir(&self.0).is_ok());
    }
}

/// Whole charge, kernel objects included, of one init with only a pid namespace: the growth of a memory cgroup by
/// a hundred, each started by a shell that is gone when it is measured, with no descriptor above 2 open.
fn memory(candidate: &Candidate, program: &str) -> f64 {
    let Some(cgroup) = Cgroup::make() else { return f64::NAN };
    // The image of a pod is a memory file for each, and is charged to whoever makes it: a copy of this program does.
    let this = std::env::current_exe().expect("this program");
    let start = |count: u64| {
        let mut command = Command::new(&this);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("PODINIT_BENCH_CGROUP", &cgroup.0);
        command.env("PODINIT_BENCH_COUNT", count.to_string()).env("PODINIT_BENCH_NAME", candidate.name);
        command.env("PODINIT_BENCH_PROGRAM", program).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().expect("a copy of this program");
        let pids = String::from_utf8(output.stdout).expect("pids");
        pids.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect::<Vec<u32>>()
    };
    // The first one brings what all share, such as the pages of the program file.
    let mut pids = start(1);
    let before = cgroup.usage();
    pids.extend(start(INITS));
    let after = cgroup.usage();
    for pid in pids {
        let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, Signal::KILL).expect("kill");
        rustix::process::waitpid(Some(pid), WaitOptions::empty()).expect("wait: we are the subreaper");
    }
    (after - before) as f64 / INITS as f64 / 1024.0
}

/// In the copy: starts inits inside of the cgroup, prints their pids, and goes.
fn memory_child(cgroup: &str) {
    fs::write(format!("{cgroup}/cgroup.procs"), std::process::id().to_string()).expect("to enter the cgroup");
    let variable = |name| std::env::var(name).expect("set by the parent");
    let program = variable("PODINIT_BENCH_PROGRAM");
    let candidate = candidates(&program).into_iter().find(|c| c.name == variable("PODINIT_BENCH_NAME"));
    let candidate = candidate.expect("known to both");
    let count: u64 = variable("PODINIT_BENCH_COUNT").parse().expect("a number");
    for _ in 0..count {
        let running = candidate.start();
        println!("{}", running.init);
        // unshare goes, so that only init is charged; init falls to the subreaper.
        let pid = Pid::from_raw(running.unshare.id().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, Signal::KILL).expect("kill");
        rustix::process::waitpid(Some(pid), WaitOptions::empty()).expect("wait");
    }
}

/// Makes orphans: a shell that leaves `true`-like children behind as fast as it can.
fn storm(running: &Running) {
    // Two workers; each subshell's child outlives it, and so falls to PID 1.
    let script = format!(
        "w() {{ i=0; while [ $i -lt {} ]; do ( ( : ) & ); i=$((i+1)); done; }}; w & w & wait",
        ORPHANS / 2
    );
    assert!(running.inside(&script).status().expect("nsenter").success());
}

/// Whether PID 1 and, if it runs one, its command are alone.
fn alone(running: &Running) -> bool {
    children(running.init).len() <= 1
}

fn orphans(candidates: &[Candidate]) {
    let mut wakeups = vec![Vec::new(); candidates.len()];
    let mut round = 0;
    let cpu = interleaved(candidates, ROUNDS, |candidate| {
        let running = candidate.start();
        let (before, switches) = running.schedule();
        storm(&running);
        until(|| alone(&running));
        let (after, switches_after) = running.schedule();
        wakeups[round % candidates.len()].push((switches_after - switches) as f64);
        round += 1;
        running.end();
        (after - before) as f64 / 1000.0 / f64::from(ORPHANS)
    });
    report(&format!("orphan storm of {ORPHANS}: processor time of init per orphan"), "us", candidates, &cpu);
    let wakeups: Vec<f64> = wakeups
        .into_iter()
        .map(|mut w| {
            w.sort_by(f64::total_cmp);
            w[w.len() / 2]
        })
        .collect();
    report("orphan storm: times that init was woken up", "", candidates, &wakeups);
}

fn drain(candidates: &[Candidate]) {
    let values = interleaved(candidates, ROUNDS, |candidate| {
        let running = candidate.start();
        running.kill(Signal::STOP);
        storm(&running);
        let start = Instant::now();
        running.kill(Signal::CONT);
        until(|| alone(&running));
        let took = start.elapsed();
        running.end();
        took.as_secs_f64() * 1000.0
    });
    report(
        &format!("drain: until {ORPHANS} orphans that ended while init was stopped are gone"),
        "ms",
        candidates,
        &values,
    );
}

fn idle(candidates: &[Candidate]) {
    let values = interleaved(candidates, 1, |candidate| {
        let running = candidate.start();
        std::thread::park_timeout(Duration::from_secs(1));
        let (_, before) = running.schedule();
        std::thread::park_timeout(Duration::from_secs(10));
        let (_, after) = running.schedule();
        running.end();
        (after - before) as f64
    });
    report("idle: wake-ups in 10 s", "", candidates, &values);
}

/// From a signal to init until the command has it: the command is a shell that answers each.
fn latency(program: &str) {
    let wanted = |name: &str| name != "podinit, pod" && name != "catatonit -P";
    let all: Vec<Candidate> = candidates(program).into_iter().filter(|c| wanted(c.name)).collect();
    let this = std::env::current_exe().expect("this program").to_str().expect("a path").to_owned();
    let values = interleaved(&all, ROUNDS, |candidate| {
        let mut argv = candidate.argv.clone();
        argv.truncate(2);
        let output = Command::new("unshare")
            .args(["--pid", "--fork", "--"])
            .args(&argv)
            .arg(&this)
            .env("PODINIT_BENCH_LATENCY", "1")
            .stderr(Stdio::null())
            .output()
            .expect("unshare");
        String::from_utf8(output.stdout).expect("a number").trim().parse().expect("a number")
    });
    report("signal: from kill(1, USR1) until init has sent it on, median round trip", "us", &all, &values);
}

/// In the copy, as the command of an init: sends PID 1 signals and waits for each to come back.
fn latency_child() {
    use nix::sys::signal::{SigSet, Signal, kill};
    use nix::unistd::Pid;
    let mut set = SigSet::empty();
    set.add(Signal::SIGUSR1);
    set.thread_block().expect("sigprocmask");
    let mut times: Vec<u128> = (0..SIGNALS)
        .map(|_| {
            let start = Instant::now();
            kill(Pid::from_raw(1), Signal::SIGUSR1).expect("kill");
            set.wait().expect("sigwait");
            start.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    println!("{}", times[SIGNALS / 2] as f64 / 1000.0);
}

/// From the signal that ends init until nothing of the namespace is left. Ours tells the processes first; the
/// others leave it to the kernel to kill them, so that theirs is the time of a kill.
fn teardown(candidates: &[Candidate]) {
    let values = interleaved(candidates, ROUNDS, |candidate| {
        let mut running = candidate.start();
        let script = format!("for i in $(seq {PROCESSES}); do sleep 1000 & done; exit 0");
        assert!(running.inside(&script).status().expect("nsenter").success());
        until(|| children(running.init).len() >= PROCESSES);
        let start = Instant::now();
        running.kill(Signal::TERM);
        running.unshare.wait().expect("wait");
        start.elapsed().as_secs_f64() * 1000.0
    });
    report(&format!("teardown of {PROCESSES} processes"), "ms", candidates, &values);
}

fn main() {
    if let Ok(cgroup) = std::env::var("PODINIT_BENCH_CGROUP") {
        return memory_child(&cgroup);
    }
    if std::env::var_os("PODINIT_BENCH_LATENCY").is_some() {
        return latency_child();
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let runs = |part: &str| wanted.is_empty() || wanted.iter().any(|word| part.contains(word.as_str()));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("prctl");
    let directory = tempfile::tempdir().expect("a directory");
    let program = init::path_in(directory.path()).expect("the program").to_str().expect("a path").to_owned();
    let all = candidates(&program);
    let names: Vec<&str> = all.iter().map(|candidate| candidate.name).collect();
    println!("{}; medians of {ROUNDS} interleaved rounds", names.join(", "));
    if runs("memory") {
        // Those that run a command are charged for it too: only those that do not are compared.
        let pausing: Vec<Candidate> =
            candidates(&program).into_iter().filter(|c| !c.argv.contains(&"sleep".to_owned())).collect();
        let values = interleaved(&pausing, 3, |candidate| memory(candidate, &program));
        report(&format!("memory: whole charge of one, over {INITS}"), "KiB", &pausing, &values);
    }
    if runs("orphans") {
        orphans(&all);
    }
    if runs("drain") {
        drain(&all);
    }
    if runs("idle") {
        idle(&all);
    }
    if runs("latency") {
        latency(&program);
    }
    if runs("teardown") {
        teardown(&all);
    }
}
