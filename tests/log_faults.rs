//! Logs that cannot be written, are rotated by several, or lose a part: real
//! containers, real file systems that fail. The container never notices but by
//! waiting, and the audit says what is there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use common::{DEADLINE, Options, Place, Pod};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podinit::rpc::client::{
    Attach, Code, ContainerStats, CreateContainer, LogDriver, LogKind, Stdin, StdinEof,
};
use rustix::net::SendFlags;

/// A mount that is gone when the test is.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, options: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        mount(Some("podinit-test"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(path.to_owned())
    }

    /// The directory over itself, read-only: who has a file open can write it, and no name can change.
    fn read_only(path: &Path) -> Self {
        mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}

fn podinit(arguments: &[&str]) -> Output {
    Command::new(common::binary()).args(arguments).output().expect("the binary runs")
}

/// What the audit of the log at `path` says, and whether it is complete.
fn audit(path: &Path) -> (bool, String) {
    let output = podinit(&["logs", "--verify", "--file", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => (true, said),
        Some(1) => (false, said + &String::from_utf8_lossy(&output.stderr)),
        other => panic!("{other:?}: {said}"),
    }
}

/// Everything that the log and its rotated parts hold, as it was written.
fn printed(path: &Path) -> Vec<u8> {
    let output = podinit(&["logs", "--stdout", "--file", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The numbers from 1 to `count`, a line each.
fn lines(count: usize) -> Vec<u8> {
    (1..=count).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

/// Writes them; ends with 3 if anything could not be written.
fn writes(count: usize) -> String {
    format!("seq 1 {count} || exit 3; exit 7")
}

fn stats(pod: &Pod, name: &str) -> ContainerStats {
    let id = pod.id(name);
    pod.call(async |client| client.container_stats(&id).await).expect("stats")
}

fn wait_for_stats(pod: &Pod, name: &str, what: &str, reached: impl Fn(&ContainerStats) -> bool) {
    let until = Instant::now() + DEADLINE;
    while !reached(&stats(pod, name)) {
        assert!(Instant::now() < until, "{what}: {:?}", stats(pod, name));
        std::thread::yield_now();
    }
}

fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

/// A container that writes to a CRI log at `log`, and how that is kept.
fn container(
    pod: &Pod,
    script: &str,
    log: &Path,
    size_max: u64,
    options: &[(&str, &str)],
) -> CreateContainer {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    CreateContainer {
        log_drivers: vec![LogDriver { kind: LogKind::Cri, path: log.to_owned(), size_max }],
        log_options: options,
        ..pod.container("c", &["sh", "-c", script])
    }
}

fn start(pod: &Pod, request: &CreateContainer) {
    pod.create(request).expect("create");
    pod.start_container("c");
}

#[test]
fn full_disk_makes_the_container_wait_and_loses_nothing() {
    let place = Place::new();
    let full = place.path("full");
    let disk = Mounted::tmpfs(&full, "size=1m");
    fs::write(full.join("filler"), vec![0; 900 << 10]).unwrap();
    let pod = Pod::start_in(place, Options::default());
    let log = full.join("c.log");
    start(&pod, &container(&pod, &writes(12_000), &log, 0, &[]));
    wait_for_stats(&pod, "c", "no space is left", |stats| stats.write_errors > 0);
    let (complete, said) = audit(&log);
    assert!(!complete && said.contains("the end: neither"), "only the pod's server knows now: {said}");
    fs::remove_file(full.join("filler")).unwrap();
    assert_eq!(pod.wait("c").shell_code(), Some(7), "no write of the container has failed");
    assert!(printed(&log) == lines(12_000));
    let (complete, said) = audit(&log);
    assert!(complete, "{said}");
    let last = stats(&pod, "c");
    assert!(last.stall_longest_ns > 0 && last.last_write_error.contains("space"), "{last:?}");
    drop(disk);
}

#[test]
fn failed_writes_and_stalls_are_counted_of_the_stream_whose_output_waits() {
    for [waits, other] in [["1", "2"], ["2", "1"]] {
        let place = Place::new();
        let full = place.path("full");
        let disk = Mounted::tmpfs(&full, "size=32m");
        fs::write(full.join("filler"), vec![0; (32 << 20) - (100 << 10)]).unwrap();
        let pod = Pod::start_in(place, Options::default());
        // More than a pipe holds, so that it is there until the end of the trouble.
        let script = format!("echo there is room >&{other}; seq 1 400000 >&{waits} || exit 3; exit 7");
        start(&pod, &container(&pod, &script, &full.join("c.log"), 0, &[]));
        wait_for_stats(&pod, "c", "no space is left", |stats| stats.write_errors > 5);
        fs::remove_file(full.join("filler")).unwrap();
        assert_eq!(pod.wait("c").shell_code(), Some(7));
        let last = stats(&pod, "c");
        let (waited, did_not) =
            if waits == "1" { (last.stdout, last.stderr) } else { (last.stderr, last.stdout) };
        assert_eq!((waited.lines, did_not.lines), (400_000, 1));
        assert_eq!((waited.write_errors, did_not.write_errors), (last.write_errors, 0), "{last:?}");
        assert_eq!(waited.stall_longest_ns, last.stall_longest_ns, "{last:?}");
        assert!(did_not.stall_longest_ns < waited.stall_longest_ns, "{last:?}");
        drop(disk);
    }
}

#[test]
fn full_disk_to_the_end_is_told_with_the_bytes_that_are_missing() {
    let place = Place::new();
    let full = place.path("full");
    let disk = Mounted::tmpfs(&full, "size=200k");
    let pod = Pod::start_in(place, Options::default());
    let log = full.join("c.log");
    start(&pod, &container(&pod, &writes(20_000), &log, 0, &[]));
    wait_for_stats(&pod, "c", "no space is left", |stats| stats.write_errors > 0);
    let id = pod.id("c");
    let stopped = pod.call(async |client| client.stop_container(&id, 9, 0).await).expect("stop");
    assert!(!stopped.exit.log_complete);
    let account = pod.call(async |client| client.log_account(&id).await).expect("account");
    assert!(account.is_final);
    let found = u64::try_from(printed(&log).len()).unwrap();
    let stream = account.stdout;
    assert!(found >= stream.payload_bytes + stream.lines, "what was counted is there");
    assert!(stream.read_bytes > stream.payload_bytes + stream.lines, "and what is not is known: {account:?}");
    drop(disk);
}

#[test]
fn fifo_that_nobody_reads_makes_the_container_wait() {
    let pod = Pod::start();
    let fifo = pod.place.path("logs").join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    start(&pod, &container(&pod, &writes(20_000), &fifo, 0, &[]));
    wait_for_stats(&pod, "c", "nobody reads", |stats| stats.write_errors > 0);
    let copy = pod.place.path("logs").join("copy");
    let reader = std::thread::spawn({
        let (fifo, copy) = (fifo.clone(), copy.clone());
        move || fs::write(copy, fs::read(fifo).unwrap()).unwrap()
    });
    assert_eq!(pod.wait("c").shell_code(), Some(7));
    reader.join().unwrap();
    assert!(printed(&copy) == lines(20_000));
    let (complete, said) = audit(&fifo);
    assert!(!complete && said.contains("not a regular file"), "{said}");
}

/// Pages of no file that the pod's processes have for themselves, in KiB.
fn private_kib(pod: &Pod) -> u64 {
    let monitors = common::children_of(pod.keeper_pid());
    let of = |pid: u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let anonymous = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
        anonymous.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
    };
    let is_ours = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.windows(7).any(|part| part == b"monitor"))
    };
    monitors.into_iter().filter(is_ours).map(of).sum()
}

#[test]
fn stuck_log_of_a_container_that_goes_on_costs_its_buffer_and_no_more() {
    let pod = Pod::start();
    let fifo = pod.place.path("logs").join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = "i=0; while [ $i -lt 8 ]; do seq 1 400000; i=$((i+1)); done; read x; exit 7";
    let mut request = container(&pod, script, &fifo, 0, &[("when-stuck", "drop-oldest"), ("buffer", "256k")]);
    request.stdin = Stdin::Open;
    let before = private_kib(&pod);
    start(&pod, &request);
    let all = 8 * lines(400_000).len() as u64;
    wait_for_stats(&pod, "c", "all was read", |stats| stats.stdout.bytes == all);
    let used = private_kib(&pod);
    // The ring, and what any busy relay has (docs/memory.md); the output was twenty megabytes.
    assert!(before > 0 && used < before + 3072, "{before} KiB before, {used} KiB with {all} bytes lost");
    let stats = stats(&pod, "c");
    assert!(stats.stdout.dropped > 0 && stats.buffered <= 256 << 10, "{stats:?}");
    let client = attach_to(&pod, &pod.place.path("attach"), StdinEof::Keep);
    rustix::net::send(&client, b"go on\n", SendFlags::empty()).unwrap();
    let id = pod.id("c");
    let exit = pod.call(async |client| client.wait_container(&id).await).expect("wait");
    assert_eq!((exit.shell_code(), exit.log_complete), (Some(7), false));
}

#[test]
fn directory_that_vanishes_costs_its_files_and_the_audit_says_how_much() {
    let pod = Pod::start();
    let directory = pod.place.path("logs").join("pod");
    fs::create_dir(&directory).unwrap();
    let log = directory.join("c.log");
    let script = "seq 1 2000; read x; seq 2001 4000; exit 7";
    let mut request = container(&pod, script, &log, 20_000, &[("backups", "9")]);
    request.stdin = Stdin::Open;
    start(&pod, &request);
    wait_for_stats(&pod, "c", "the first half", |stats| stats.stdout.lines == 2000);
    fs::remove_dir_all(&directory).unwrap();
    let id = pod.id("c");
    let reopened = pod.call(async |client| client.reopen_log(&id).await);
    assert!(reopened.unwrap_err().message.contains("goes on in the file that was open before"));
    fs::create_dir(&directory).unwrap();
    pod.call(async |client| client.reopen_log(&id).await).expect("reopen");
    let attach = pod.place.path("attach");
    let client = attach_to(&pod, &attach, StdinEof::Keep);
    rustix::net::send(&client, b"go on\n", SendFlags::empty()).unwrap();
    assert_eq!(pod.wait("c").shell_code(), Some(7));
    let all = lines(4000);
    let second = &all[lines(2000).len()..];
    assert!(printed(&log) == second);
    let (complete, said) = audit(&log);
    let payload = lines(2000).len() - 2000;
    let missing = format!("stdout: {payload} bytes in 2000 records (2000 lines) are missing before");
    assert!(!complete && said.contains(&missing), "{said}");
}

fn attach_to(pod: &Pod, path: &Path, stdin_eof: StdinEof) -> std::os::fd::OwnedFd {
    let request = Attach {
        id: pod.id("c"),
        socket_path: path.to_owned(),
        exec_session_id: String::new(),
        stdin_eof,
        replay_bytes: 0,
    };
    pod.call(async |client| client.attach(&request).await).expect("attach");
    podinit::sys::socket::connect(path, rustix::net::SocketType::SEQPACKET).unwrap()
}

#[test]
fn read_only_directory_stops_rotation_and_not_the_log() {
    let pod = Pod::start();
    let directory = pod.place.path("logs").join("pod");
    fs::create_dir(&directory).unwrap();
    let log = directory.join("c.log");
    let script = "seq 1 3000; n=3000; while read x; do n=$((n+1)); echo $n; done; exit 7";
    let mut request = container(&pod, script, &log, 20_000, &[("backups", "30"), ("sync", "exit")]);
    request.stdin = Stdin::Open;
    pod.create(&request).expect("create");
    let read_only = Mounted::read_only(&directory);
    pod.start_container("c");
    wait_for_stats(&pod, "c", "the first part", |stats| stats.stdout.lines == 3000);
    let during = stats(&pod, "c");
    assert!(during.write_errors > 0 && during.last_write_error.contains("Read-only"), "{during:?}");
    assert!(fs::metadata(&log).unwrap().len() > 100_000, "a log that is too large is better than none");
    drop(read_only);
    // A rotation that has failed is tried again at a later record.
    let client = attach_to(&pod, &pod.place.path("attach"), StdinEof::Forward);
    let mut written = 3000;
    wait_until("rotation works again", || {
        rustix::net::send(&client, b"\n", SendFlags::empty()).unwrap();
        written += 1;
        wait_for_stats(&pod, "c", "one more line", |stats| stats.stdout.lines == written);
        directory.join("c.log.1").exists()
    });
    rustix::net::shutdown(&client, rustix::net::Shutdown::Write).unwrap();
    assert_eq!(pod.wait("c").shell_code(), Some(7));
    assert!(printed(&log) == lines(usize::try_from(written).unwrap()));
    let (complete, said) = audit(&log);
    assert!(complete, "{said}");
}

#[test]
fn journal_that_refuses_does_not_touch_the_file_beside_it() {
    let place = Place::new();
    let run = Path::new("/run/systemd");
    assert!(run.is_dir(), "needed to put a refusing socket into; make it for this test");
    let _journal = Mounted::tmpfs(run, "size=1m");
    fs::create_dir(run.join("journal")).unwrap();
    // Bound, and nobody is behind it any more: ECONNREFUSED.
    drop(std::os::unix::net::UnixDatagram::bind(run.join("journal/socket")).unwrap());
    let pod = Pod::start_in(place, Options::default());
    let log = pod.place.path("logs").join("c.log");
    let mut request = container(&pod, &writes(5_000), &log, 0, &[]);
    request.log_drivers.push(LogDriver { kind: LogKind::Journald, path: PathBuf::new(), size_max: 0 });
    start(&pod, &request);
    let id = pod.id("c");
    let exit = pod.call(async |client| client.wait_container(&id).await).expect("wait");
    assert_eq!(exit.shell_code(), Some(7));
    assert!(printed(&log) == lines(5_000));
    let (complete, said) = audit(&log);
    assert!(complete, "the file is: {said}");
    let last = stats(&pod, "c");
    assert!(last.stdout.dropped > 0 && !exit.log_complete, "the journal is not: {last:?}");
}

#[test]
fn backups_are_compressed_and_read_and_audited_as_one_log() {
    let pod = Pod::start();
    let log = pod.place.path("logs").join("c.log");
    let options = [("backups", "50"), ("compress", "gzip"), ("sync", "rotation")];
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do seq 1 5000; done; exit 7";
    start(&pod, &container(&pod, script, &log, 100_000, &options));
    assert_eq!(pod.wait("c").shell_code(), Some(7));
    let rounds: Vec<u8> = (1..=5000).flat_map(|number| format!("{number}\n").into_bytes()).collect();
    let second = |suffix: &str| log.with_file_name(format!("c.log.{suffix}"));
    wait_until("something is compressed", || {
        fs::read_dir(log.parent().unwrap())
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().ends_with(".gz"))
    });
    assert!(second("1").exists() && !second("1.gz").exists());
    assert!(printed(&log) == rounds.repeat(10));
    wait_until("the process that compresses has ended", || !second("gz.tmp").exists());
    let (complete, said) = audit(&log);
    assert!(complete, "{said}");
    let tail = podinit(&["logs", "--tail", "40000", "--file", log.to_str().unwrap()]).stdout;
    assert!(tail == rounds.repeat(8), "{} bytes", tail.len());
}

#[test]
fn two_who_rotate_lose_nothing() {
    let pod = Pod::start();
    let log = pod.place.path("logs").join("c.log");
    start(&pod, &container(&pod, &writes(60_000), &log, 50_000, &[("backups", "59")]));
    let id = pod.id("c");
    // As kubelet does it: rename to a name with the time, then reopen. Ours goes on meanwhile, and either
    // may find that the other was first.
    for round in 0..5 {
        fs::rename(&log, log.with_file_name(format!("c.log.20261123-{round:06}"))).ok();
        match pod.call(async |client| client.reopen_log(&id).await) {
            Ok(()) => {}
            Err(error) if error.code == Code::NotFound => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(pod.wait("c").shell_code(), Some(7));
    let got = printed(&log);
    assert!(got == lines(60_000), "{} of {} bytes", got.len(), lines(60_000).len());
    let (complete, said) = audit(&log);
    assert!(complete, "{said}");
}

#[test]
fn option_that_is_not_known_is_refused_before_anything_is_made() {
    let pod = Pod::start();
    let log = pod.place.path("logs").join("c.log");
    let request = container(&pod, "true", &log, 0, &[("backup", "3")]);
    let error = pod.create(&request).unwrap_err();
    assert!(error.message.contains("there is no log option \"backup\""), "{error:?}");
    assert!(!log.exists());
    let annotated = pod.container_with("c", &["true"], |config| {
        config["annotations"] = serde_json::json!({ "org.podinit.log.compress": "gzip" });
    });
    assert!(pod.create(&annotated).unwrap_err().message.contains("backups must be 2 or more"));
}
