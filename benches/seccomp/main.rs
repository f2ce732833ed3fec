//! What a notified system call costs: a bare loop of ioctls as the floor, then
//! the broker of the shipped binary, where nobody wants the call and where a
//! built-in decides; calls that are sustained; descriptors that leak.
//!
//! Every number is of the same target: a process that makes one call again and
//! again, under a filter that notifies of it. It starts itself anew for that, and
//! for the bare loop, so that each side is a process of its own.
//!
//! What is compared takes turns, and what counts is the median of how many times
//! each is its neighbour: a call is two switches of context, whose cost the machine
//! changes from one second to the next, for both alike.
//!
//! `PODINIT_BENCH_CALLS` calls a round (2000), `PODINIT_BENCH_ROUNDS` rounds (60),
//! `PODINIT_BENCH_SECONDS` seconds of every load (5), `PODINIT_BENCH_LEAK_CALLS`
//! calls of every kind for the leak (1000000).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a bench")]

#[path = "../common/mod.rs"]
mod bench;
#[path = "../../tests/common/mod.rs"]
mod common;
mod leak;
mod plugin;
mod target;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use bench::{Samples, setting};
use common::{Options, Place, Pod};

/// The most that the broker may cost, in bare loops.
const FACTOR_MAX: f64 = 1.3;
/// Calls per second that one container must get, with none lost.
const SUSTAINED: f64 = 10_000.0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("target") => target::run(&arguments[2..]),
        Some("load") => target::load(&arguments[2..]),
        Some("mover") => target::move_descriptors(&arguments[2..]),
        Some("holder") => leak::holder(Path::new(&arguments[2])),
        Some("bare") => target::bare(Path::new(&arguments[2])),
        Some("relay") => plugin::relay(Path::new(&arguments[2]), Path::new(&arguments[3])),
        Some("answerer") => plugin::answerer(Path::new(&arguments[2])),
        _ => compare(),
    }
}

/// This program again, in another role.
fn again(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(arguments).stdout(Stdio::piped());
    command
}

/// Runs one target against the socket at `path`; nanoseconds per call.
fn round(path: &Path, container: &str, calls: usize) -> f64 {
    let path = path.to_str().expect("text");
    let output = again(&["target", path, container, &calls.to_string()]).output().expect("a target");
    assert!(output.status.success(), "a target: {}", output.status);
    String::from_utf8(output.stdout).expect("text").trim().parse().expect("nanoseconds per call")
}

/// The bare loop at `path`, ready.
struct Bare(Child);

impl Bare {
    fn start(path: &Path) -> Self {
        let mut child = again(&["bare", path.to_str().expect("text")]).spawn().expect("a bare loop");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("ready");
        Self(child)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn pod_with_rules() -> (Pod, PathBuf) {
    let place = Place::new();
    let rules = place.path("rules.json");
    let text = r#"{"version": 1, "defaults": {"unmatched": "errno:EPERM", "patienceMs": 0}, "rules": [
        {"name": "bench", "match": {"containers": ["built-in"], "syscalls": ["getppid"]},
         "do": {"errno": "EPERM"}},
        {"name": "connect", "match": {"containers": ["connect"], "syscalls": ["connect"]},
         "do": {"connect": {"allow": [{"address": "127.0.0.1"}]}}}]}"#;
    std::fs::write(&rules, text).expect("rules");
    let arguments = vec!["--seccomp-rules".to_owned(), rules.to_str().expect("text").to_owned()];
    let pod = Pod::start_in(place, Options { arguments, ..Options::default() });
    let socket = pod.run_dir().join("seccomp.sock");
    (pod, socket)
}

fn compare() -> ExitCode {
    let calls = setting("PODINIT_BENCH_CALLS", 2_000);
    let rounds = setting("PODINIT_BENCH_ROUNDS", 60);
    let (pod, socket) = pod_with_rules();
    let bare_socket = pod.place.path("bare.sock");
    let bare_loop = Bare::start(&bare_socket);

    let (mut bare, mut nobody, mut built_in) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        bare.add(round(&bare_socket, "bare", calls));
        nobody.add(round(&socket, "nobody", calls));
        built_in.add(round(&socket, "built-in", calls));
    }
    drop(bare_loop);
    println!(
        "{:28} {:>8} {:>8} {:>8}",
        format!("{calls} calls, {rounds} rounds"),
        "least",
        "quarter",
        "median"
    );
    row("bare loop of ioctls", &bare);
    row("broker, nobody wants it", &nobody);
    row("broker, built-in errno", &built_in);
    let mut failed = false;
    for (name, samples) in [("nobody wants it", &nobody), ("built-in errno", &built_in)] {
        let factor = samples.median_times(&bare);
        println!("{name}: {factor:.2} bare loops (at most {FACTOR_MAX})");
        failed |= factor > FACTOR_MAX;
    }
    failed |= is_not_sustained("built-in", &socket, libc::EPERM);
    failed |= plugin::compare(&pod, &socket);
    failed |= leak::leaks(&pod, &socket);
    pod.shutdown();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn row(name: &str, samples: &Samples) {
    let [least, quarter, median] = [0, 25, 50].map(|percent| samples.at(percent) / 1e3);
    println!("{name:28} {least:8.2} {quarter:8.2} {median:8.2} µs");
}

/// Whether `container` does not get its calls per second, or loses any: one that is not answered with `errno`.
fn is_not_sustained(container: &str, socket: &Path, errno: i32) -> bool {
    let seconds = setting("PODINIT_BENCH_SECONDS", 5).to_string();
    let mut failed = false;
    for threads in ["1", "4"] {
        let path = socket.to_str().expect("text");
        let output = again(&["load", path, container, threads, &seconds, &errno.to_string()]).output();
        let output = output.expect("a target");
        assert!(output.status.success(), "a target: {}", output.status);
        let text = String::from_utf8(output.stdout).expect("text");
        let numbers: Vec<f64> = text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [calls, lost, nanoseconds] = numbers[..] else { panic!("three numbers: {text}") };
        let per_second = calls / nanoseconds * 1e9;
        println!(
            "{container}, {threads} threads: {per_second:.0} calls/s for {seconds} s (at least {SUSTAINED:.0}), {lost} of {calls} lost"
        );
        failed |= per_second < SUSTAINED || lost > 0.0;
    }
    failed
}
