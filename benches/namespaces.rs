//! Time and kernel memory of making and pinning a pod's namespaces, beside
//! util-linux's `unshare`, in one run and in turns, so that what else the machine
//! does falls on both alike. Needs root.
//!
//! ```text
//! cargo bench --bench namespaces                  # or `-- 200` for another number of rounds
//! PODINIT_BINARY=target/podinit cargo bench ...   # the static binary as the pinns program
//! ```
//!
//! A ratio below 1 means that podinit is faster. `unshare` also executes `true`,
//! as its users do; how long that takes alone is shown, too.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for developers, whose output is its purpose"
)]

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podinit::ns::{self, IdMapping, Kind, Placement, Request, Set, Source};

const ROUNDS: usize = 60;
/// How often a namespace is made while the kernel frees those of a storm.
const SETTLE_ROUNDS_MAX: usize = 300;
/// One pod's memory is below what else the kernel does meanwhile; its time is not.
const PODS: [usize; 3] = [1, 100, 500];
const EASY: [Kind; 3] = [Kind::Net, Kind::Ipc, Kind::Uts];
const OWNED: [Kind; 4] = [Kind::User, Kind::Net, Kind::Ipc, Kind::Uts];
const ALL: [Kind; 5] = [Kind::User, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Pid];

fn request(base: &Path, name: &str, kinds: &[Kind], placement: Placement) -> Request {
    let mapping = IdMapping { inside: 0, outside: 100_000, size: 65_536 };
    let mapping = if kinds.contains(&Kind::User) { vec![mapping] } else { Vec::new() };
    Request {
        name: name.to_owned(),
        namespaces: kinds.iter().map(|kind| (*kind, Source::Create)).collect(),
        hostname: None,
        domainname: None,
        sysctls: Vec::new(),
        uid_mappings: mapping.clone(),
        gid_mappings: mapping,
        base: base.to_owned(),
        placement,
    }
}

/// Ends a set's init, if it has one.
fn end(set: &Set) {
    use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
    if let Some(init) = &set.init {
        pidfd_send_signal(&init.pidfd, Signal::KILL).unwrap();
        waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    }
}

/// On a tmpfs, as /run, where engines pin, is on real hosts: a disk's journal is not what is measured.
fn base_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The program under test: cargo's, unless the environment names another.
fn binary() -> PathBuf {
    std::env::var_os("PODINIT_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_podinit").into(), PathBuf::from)
}

fn timed(command: &mut Command) -> Duration {
    command.stdin(Stdio::null());
    let begin = Instant::now();
    let status = command.status().unwrap();
    let time = begin.elapsed();
    assert!(status.success(), "{command:?}");
    time
}

/// One way of making namespaces: what is timed, and what cleans up after it.
struct Way<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> Duration + 'a>,
}

fn unshare(base: &Path, kinds: &[Kind]) -> Command {
    let mut command = Command::new("unshare");
    for kind in kinds.iter().filter(|kind| **kind != Kind::Pid) {
        let file = base.join(kind.name());
        fs::write(&file, "").unwrap();
        command.arg(format!("--{}={}", kind.name(), file.display()));
    }
    if kinds.contains(&Kind::User) {
        // One line of mapping, as podinit writes; ranges would need the setuid newuidmap.
        command.arg("--map-root-user");
        // Without a mount namespace it pins from inside the user namespace, which may not mount.
        command.args(["--mount", "--propagation", "unchanged"]);
    }
    if kinds.contains(&Kind::Pid) {
        let file = base.join("pid");
        fs::write(&file, "").unwrap();
        command.args(["--fork", &format!("--pid={}", file.display())]);
    }
    command.arg("true");
    command
}

fn unpin_files(base: &Path, kinds: &[Kind]) {
    for kind in kinds {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(base.join(kind.name()), flags).ok();
    }
}

fn pinns(base: &Path, kinds: &[Kind]) -> Command {
    let mut command = Command::new(binary());
    command.arg("pinns").arg("-d").arg(base).args(["-f", "pod"]);
    command.args(kinds.iter().map(|kind| format!("--{kind}")));
    if kinds.contains(&Kind::User) {
        command.args(["--uid-mapping=0-100000-65536@", "--gid-mapping=0-100000-65536@"]);
    }
    command
}

/// Runs the ways in turns and prints their medians and ratios to the first.
fn compare(title: &str, rounds: usize, mut ways: Vec<Way<'_>>) {
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for (way, times) in ways.iter_mut().zip(&mut times) {
            times.push((way.run)());
            settle();
        }
    }
    println!("{title}");
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    for (way, median) in ways.iter().zip(&medians) {
        let ratio = median.as_secs_f64() / medians[0].as_secs_f64();
        println!("  {:<44} {:>7} us  {ratio:.2}x", way.name, median.as_micros());
    }
}

/// The kernel unmakes network namespaces in the background, and would go on with it in the next round.
/// Making one more waits for the lock that the clean-up holds.
fn settle() {
    assert!(Command::new("unshare").args(["--net", "true"]).status().unwrap().success());
}

fn latency(rounds: usize) {
    for (title, kinds) in [("net + ipc + uts", &EASY[..]), ("user + net + ipc + uts", &OWNED[..])] {
        let base = base_directory();
        let base = base.path();
        compare(title, rounds, ways(base, kinds));
    }
    let base = base_directory();
    let base = base.path();
    let all = |placement| {
        move || {
            let request = request(base, "pod", &ALL, placement);
            let begin = Instant::now();
            let set = ns::create(&request).unwrap();
            let time = begin.elapsed();
            end(&set);
            ns::remove(base, "pod").unwrap();
            time
        }
    };
    let other = Way {
        name: "unshare --fork --pid=... --user=... true",
        run: Box::new(|| {
            let time = timed(&mut unshare(base, &ALL));
            unpin_files(base, &ALL);
            time
        }),
    };
    let ours =
        Way { name: "podinit, as the RPC server, with an init", run: Box::new(all(Placement::Pinned)) };
    let bare = Way { name: "the same, by descriptor only", run: Box::new(all(Placement::DescriptorOnly)) };
    compare("user + net + ipc + uts + pid", rounds, vec![other, ours, bare]);
}

fn ways<'a>(base: &'a Path, kinds: &'a [Kind]) -> Vec<Way<'a>> {
    let create = move |placement| {
        move || {
            let request = request(base, "pod", kinds, placement);
            let begin = Instant::now();
            let set = ns::create(&request).unwrap();
            let time = begin.elapsed();
            drop(set);
            ns::remove(base, "pod").unwrap();
            time
        }
    };
    vec![
        Way {
            name: "unshare --net=FILE ... true",
            run: Box::new(move || {
                let time = timed(&mut unshare(base, kinds));
                unpin_files(base, kinds);
                time
            }),
        },
        Way {
            name: "podinit, as the pinns program",
            run: Box::new(move || {
                let time = timed(&mut pinns(base, kinds));
                ns::remove(base, "pod").unwrap();
                time
            }),
        },
        Way { name: "podinit, as the RPC server", run: Box::new(create(Placement::Pinned)) },
        Way { name: "the same, by descriptor only", run: Box::new(create(Placement::DescriptorOnly)) },
        Way { name: "true alone", run: Box::new(|| timed(&mut Command::new("true"))) },
    ]
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(name: &str) -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024
}

/// What the kernel keeps for itself: slabs, per-CPU memory, vmalloc, page tables, stacks.
fn kernel_memory() -> i64 {
    ["Slab:", "Percpu:", "VmallocUsed:", "PageTables:", "KernelStack:"].into_iter().map(meminfo).sum()
}

fn counts() -> (usize, usize) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    (mounts, open)
}

/// Makes and removes many pods: what each costs, and that nothing is left.
fn storm(pods: usize, placement: Placement) {
    let base = base_directory();
    let before = counts();
    let memory = kernel_memory();
    let mut sets = Vec::new();
    let begin = Instant::now();
    for n in 0..pods {
        sets.push(ns::create(&request(base.path(), &n.to_string(), &EASY, placement)).unwrap());
    }
    let made = begin.elapsed();
    let used = kernel_memory() - memory;
    let begin = Instant::now();
    drop(sets);
    for n in 0..pods {
        ns::remove(base.path(), &n.to_string()).unwrap();
    }
    let removed = begin.elapsed();
    for entry in fs::read_dir(base.path()).unwrap() {
        assert_eq!(fs::read_dir(entry.unwrap().path()).unwrap().count(), 0);
    }
    assert_eq!(counts(), before, "mounts or descriptors are left");
    // The kernel frees in the background; the next storm must not have that to its credit.
    let returned = (0..SETTLE_ROUNDS_MAX).any(|_| {
        settle();
        kernel_memory() - memory <= used.max(0) / 10
    });
    let each = |time: Duration| time.as_micros() / u128::try_from(pods).unwrap();
    println!(
        "  {pods:>4} pods {placement:?}: made in {} us each, removed in {} us each, {} KiB of kernel memory each{}",
        each(made),
        each(removed),
        used / i64::try_from(pods).unwrap() / 1024,
        if returned { "" } else { " (more than a tenth of it not returned yet)" }
    );
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    println!("medians of {rounds} rounds; the program is {}", binary().display());
    latency(rounds);
    println!("net + ipc + uts, many at once");
    // The first pods fill the kernel's caches, which are not a cost of the later ones.
    storm(PODS[1], Placement::DescriptorOnly);
    println!("  (that was to warm up)");
    for pods in PODS {
        for placement in [Placement::DescriptorOnly, Placement::Pinned] {
            storm(pods, placement);
        }
    }
}
