//! Log throughput: podinit's relay beside a plain copy and Debian's conmon, in one
//! run and in turns, because only ratios mean something on a machine with other
//! work.
//!
//! ```text
//! cargo bench --bench logs -- [--mib 1024] [--rounds 5] [--dir /dev/shm --dir /var/tmp] [--input 100-byte]
//! ```
//!
//! The "container" is `cat` of a 64 MiB file, as often as needed, with its stdout
//! on a pipe. *copy* is `cat > file` at the other end: what no relay can beat by
//! much. conmon (if installed) gets the same through a runtime that starts that
//! `cat`. podinit is the relay with the CRI driver in this process; its CPU time
//! is this process's. All outputs are checked to have the right size.
//!
//! At the end, ten containers print as fast as they can for a while, and the
//! least that was read of one is compared with the most.
#![allow(clippy::zombie_processes, reason = "collected by `wait`, for the resources they used")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops when it cannot run"
)]

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use podinit::limits::LOG_RECORD_BYTES_MAX;
use podinit::monitor::log::cri::OVERHEAD_BYTES;
use podinit::monitor::log::{LogConfig, LogKind, LogSet};
use podinit::monitor::relay::{Open, Output, Relay, StreamId};
use rustix::process::{Pid, WaitId, WaitIdOptions};

const SOURCE_MIB: u64 = 64;

/// How many containers print at once.
const CONTAINERS: usize = 10;

/// How much they print together before they are compared.
const FAIRNESS_BYTES: u64 = 1 << 30;

/// What the container prints.
#[derive(Debug, Clone, Copy)]
struct Input {
    name: &'static str,
    /// With the newline; 0 for no newline at all.
    line_bytes: usize,
}

const INPUTS: [Input; 3] = [
    Input { name: "100-byte lines", line_bytes: 100 },
    Input { name: "4 KiB lines", line_bytes: 4096 },
    Input { name: "no newlines", line_bytes: 0 },
];

#[derive(Debug, Clone, Copy)]
struct Measured {
    wall: Duration,
    cpu: Duration,
}

struct Options {
    mib: u64,
    rounds: usize,
    directories: Vec<PathBuf>,
    /// Only inputs whose name contains this, and no comparison of ten containers.
    input: Option<String>,
}

fn options() -> Options {
    let mut options = Options { mib: 1024, rounds: 5, directories: Vec::new(), input: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--mib" => options.mib = arguments.next().unwrap().parse().unwrap(),
            "--rounds" => options.rounds = arguments.next().unwrap().parse().unwrap(),
            "--input" => options.input = Some(arguments.next().unwrap()),
            "--dir" => options.directories.push(arguments.next().unwrap().into()),
            // cargo's own.
            "--bench" => {}
            other => panic!("unknown option {other}"),
        }
    }
    if options.directories.is_empty() {
        options.directories = vec!["/dev/shm".into(), "/var/tmp".into()];
    }
    options.mib = options.mib.next_multiple_of(SOURCE_MIB);
    options
}

fn main() {
    let options = options();
    // conmon forks itself away; its CPU time is told to whoever inherits it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    println!("{} MiB of each input, median of {} rounds", options.mib, options.rounds);
    println!(
        "| on | input | copy MB/s (CPU s) | conmon | podinit | podinit/copy | podinit/conmon | CPU podinit/conmon |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for directory in &options.directories {
        let wanted = |input: &Input| options.input.as_ref().is_none_or(|word| input.name.contains(word));
        for input in INPUTS.into_iter().filter(wanted) {
            compare(directory, input, &options);
        }
    }
    for directory in options.directories.iter().filter(|_| options.input.is_none()) {
        fairness(directory);
    }
}

/// Ten containers at once: how much of each was read when one had been read of
/// for long enough.
fn fairness(directory: &Path) {
    let work = tempfile::tempdir_in(directory).unwrap();
    let relay = Relay::start().unwrap();
    let mut containers: Vec<(StreamId, Child)> = (0..CONTAINERS)
        .map(|number| {
            let path = work.path().join(format!("{number}.log"));
            let config = LogConfig::new(LogKind::Cri, path);
            let (stdout, out) = rustix::pipe::pipe().unwrap();
            let (stderr, err) = rustix::pipe::pipe().unwrap();
            let logs = LogSet::open(&[config]).unwrap();
            let output = Output::Pipes { stdout, stderr };
            let open = Open { output, stdin: None, stdin_guard: None, logs, capture_max: None };
            let id = relay.open(open).unwrap();
            (id, Command::new("yes").arg("x".repeat(99)).stdout(out).stderr(err).spawn().unwrap())
        })
        .collect();
    let read = |id: StreamId| {
        let (reply, stats) = channel();
        relay.stats(id, Box::new(move |answer| reply.send(answer).unwrap()));
        stats.recv().unwrap().unwrap().stdout.bytes
    };
    let start = Instant::now();
    let counts = loop {
        let counts: Vec<u64> = containers.iter().map(|(id, _)| read(*id)).collect();
        if counts.iter().sum::<u64>() >= FAIRNESS_BYTES {
            break counts;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let rate = counts.iter().sum::<u64>() as f64 / 1e6 / start.elapsed().as_secs_f64();
    for (id, child) in &mut containers {
        child.kill().unwrap();
        child.wait().unwrap();
        let (reply, drained) = channel();
        relay.finish(*id, Duration::from_secs(60), Box::new(move |end| reply.send(end).unwrap()));
        assert!(drained.recv().unwrap().complete);
    }
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    println!(
        "{CONTAINERS} containers at once on {}: {rate:.0} MB/s, least/most {:.2} (target: 0.80)",
        directory.display(),
        *least as f64 / *most as f64
    );
}

fn compare(directory: &Path, input: Input, options: &Options) {
    let work = tempfile::tempdir_in(directory).unwrap();
    let source = Source::new(work.path(), input, options.mib);
    let mut runs: [Vec<Measured>; 3] = Default::default();
    for _ in 0..options.rounds {
        runs[0].push(copy(work.path(), &source));
        runs[1].extend(conmon(work.path(), &source));
        runs[2].push(relay(work.path(), &source));
    }
    let [copy, conmon, podinit] = runs.map(median);
    let rate = |measured: Measured| source.bytes as f64 / 1e6 / measured.wall.as_secs_f64();
    let cell = |measured: Option<Measured>| {
        measured.map_or_else(|| "-".to_owned(), |m| format!("{:.0} ({:.2})", rate(m), m.cpu.as_secs_f64()))
    };
    let ratio = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => format!("{:.2}", a / b),
        _ => "-".to_owned(),
    };
    println!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |",
        directory.display(),
        input.name,
        cell(copy),
        cell(conmon),
        cell(podinit),
        ratio(podinit.map(rate), copy.map(rate)),
        ratio(podinit.map(rate), conmon.map(rate)),
        ratio(podinit.map(|m| m.cpu.as_secs_f64()), conmon.map(|m| m.cpu.as_secs_f64())),
    );
}

fn median(mut runs: Vec<Measured>) -> Option<Measured> {
    runs.sort_by_key(|measured| measured.wall);
    runs.get(runs.len() / 2).copied()
}

/// What the container prints, as a command.
struct Source {
    file: PathBuf,
    times: usize,
    bytes: u64,
    /// Size of the CRI log that it makes with whole lines.
    log_bytes: u64,
}

impl Source {
    fn new(directory: &Path, input: Input, mib: u64) -> Self {
        let file = directory.join("source");
        let size = usize::try_from(SOURCE_MIB << 20).unwrap();
        let mut bytes = vec![b'x'; size];
        if input.line_bytes > 0 {
            bytes.iter_mut().skip(input.line_bytes - 1).step_by(input.line_bytes).for_each(|b| *b = b'\n');
            *bytes.last_mut().unwrap() = b'\n';
        }
        std::fs::write(&file, &bytes).unwrap();
        let times = mib / SOURCE_MIB;
        let bytes_all = times * (size as u64);
        let records = match input.line_bytes {
            0 => bytes_all.div_ceil(LOG_RECORD_BYTES_MAX as u64),
            _ => times * memchr::memchr_iter(b'\n', &bytes).count() as u64,
        };
        let newline_is_payload = u64::from(input.line_bytes == 0);
        let log_bytes = bytes_all + records * (OVERHEAD_BYTES as u64 - 1 + newline_is_payload);
        Self { file, times: usize::try_from(times).unwrap(), bytes: bytes_all, log_bytes }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("cat");
        command.args(std::iter::repeat_n(&self.file, self.times));
        command
    }
}

/// Waits for a child and gives its CPU time, from what is left of it in /proc.
fn wait(pid: u32) -> Duration {
    let id = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(id), look).unwrap();
    let cpu = cpu_of(pid);
    rustix::process::waitid(WaitId::Pid(id), WaitIdOptions::EXITED).unwrap();
    cpu
}

fn copy(directory: &Path, source: &Source) -> Measured {
    let target = directory.join("copy");
    let start = Instant::now();
    let mut producer = source.command().stdout(Stdio::piped()).spawn().unwrap();
    let output = producer.stdout.take().unwrap();
    let copier: Child =
        Command::new("cat").stdin(output).stdout(File::create(&target).unwrap()).spawn().unwrap();
    let cpu = wait(copier.id());
    let wall = start.elapsed();
    wait(producer.id());
    assert_eq!(std::fs::metadata(&target).unwrap().len(), source.bytes);
    std::fs::remove_file(&target).unwrap();
    Measured { wall, cpu }
}

fn relay(directory: &Path, source: &Source) -> Measured {
    let path = directory.join("podinit.log");
    let relay = Relay::start().unwrap();
    let logs = LogSet::open(&[LogConfig::new(LogKind::Cri, path.clone())]).unwrap();
    let cpu_before = own_cpu();
    let start = Instant::now();
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let (err_read, err_write) = rustix::pipe::pipe().unwrap();
    let output = Output::Pipes { stdout: out_read, stderr: err_read };
    let id = relay.open(Open { output, stdin: None, stdin_guard: None, logs, capture_max: None }).unwrap();
    let producer = source.command().stdout(out_write).stderr(err_write).spawn().unwrap();
    wait(producer.id());
    let (reply, drained) = channel();
    relay.finish(id, Duration::from_secs(60), Box::new(move |end| reply.send(end).unwrap()));
    let drained = drained.recv().unwrap();
    let (wall, cpu) = (start.elapsed(), own_cpu() - cpu_before);
    assert!(drained.complete && drained.stats.stdout.bytes == source.bytes, "{drained:?}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), source.log_bytes);
    std::fs::remove_file(&path).unwrap();
    Measured { wall, cpu }
}

fn own_cpu() -> Duration {
    cpu_of(std::process::id())
}

/// User and system time: fields 14 and 15 of stat, in ticks of 10 ms.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name before may hold blanks.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |field: &str| field.parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(fields[11]) + ticks(fields[12])))
}

/// conmon with a runtime that starts the source on the stdio that conmon gives it.
fn conmon(directory: &Path, source: &Source) -> Option<Measured> {
    Command::new("conmon").arg("--version").stdout(Stdio::null()).status().ok()?;
    let runtime = directory.join("runtime");
    let files = vec![source.file.display().to_string(); source.times].join(" ");
    // `create` leaves the container running and tells its pid; every other call is a no-op.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *create*) ;; *) exit 0;; esac\n\
         while [ $# -gt 0 ]; do [ \"$1\" = --pid-file ] && pid_file=$2; shift; done\n\
         cat {files} & echo $! > \"$pid_file\"\n"
    );
    std::fs::write(&runtime, script).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.join("conmon.log");
    let pid_file = directory.join("conmon.pid");
    let id = "podinit-bench-0123456789";
    let start = Instant::now();
    let status = Command::new("conmon")
        .args(["-c", id, "-u", id, "-n", id, "--no-sync-log", "--full-attach", "-b"])
        .arg(directory)
        .arg("-r")
        .arg(&runtime)
        .arg("-l")
        .arg(format!("k8s-file:{}", path.display()))
        .arg("-p")
        .arg(directory.join("container.pid"))
        .arg("--conmon-pidfile")
        .arg(&pid_file)
        .status()
        .unwrap();
    assert!(status.success());
    let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let cpu = wait(pid);
    let wall = start.elapsed();
    assert!(std::fs::metadata(&path).unwrap().len() > source.bytes);
    std::fs::remove_file(&path).unwrap();
    Some(Measured { wall, cpu })
}
