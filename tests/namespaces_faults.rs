//! Every system call of making a pod's namespaces fails once, and the maker is
//! killed once at each: nothing is left, or what is left is found by its record.
//!
//! This program calls itself below strace, which injects the faults. The calls to
//! try are those between two marks: attempts to look at files that do not exist.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use podinit::ns::sandbox::Sandboxes;
use podinit::ns::{Class, IdMapping, Kind, Placement, Request, Source};

const BEGIN: &str = "/nonexistent/podinit-faults-begin";
const END: &str = "/nonexistent/podinit-faults-end";

/// Where the inner program makes its pod, and how.
const DIRECTORY: &str = "PODINIT_FAULTS_DIRECTORY";
const KINDS: &str = "PODINIT_FAULTS_KINDS";

/// Exit codes of the inner program.
const MADE: i32 = 0;
const REFUSED: i32 = 101;

fn request(directory: &Path, kinds: &str) -> Request {
    let kinds: Vec<Kind> = kinds.split(',').map(|kind| kind.parse().unwrap()).collect();
    let mapping = if kinds.contains(&Kind::User) {
        vec![IdMapping { inside: 0, outside: 100_000, size: 65_536 }]
    } else {
        Vec::new()
    };
    Request {
        name: directory.file_name().unwrap().to_str().unwrap().to_owned(),
        namespaces: kinds.iter().map(|kind| (*kind, Source::Create)).collect(),
        hostname: Some("faulty".to_owned()),
        domainname: Some("example.org".to_owned()),
        sysctls: vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())],
        uid_mappings: mapping.clone(),
        gid_mappings: mapping,
        base: directory.join("pins"),
        placement: Placement::Pinned,
    }
}

/// The inner program; it does nothing unless the environment asks for it.
#[test]
fn inner_program_makes_a_pod() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let request = request(&directory, &std::env::var(KINDS).unwrap());
    fs::metadata(BEGIN).unwrap_err();
    let made = Sandboxes::new(&directory).create(&request);
    fs::metadata(END).unwrap_err();
    // A panic is exit code 101.
    made.unwrap_or_else(|error| panic!("refused: {error}"));
}

struct Place {
    _directory: tempfile::TempDir,
    directory: PathBuf,
    kinds: &'static str,
}

impl Place {
    fn new(kinds: &'static str) -> Self {
        let outer = tempfile::tempdir().unwrap();
        // A name that no other process has in its command line.
        let name = outer.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let directory = outer.path().join(format!("pod-{name}"));
        fs::create_dir(&directory).unwrap();
        Self { _directory: outer, directory, kinds }
    }

    fn name(&self) -> &str {
        self.directory.file_name().unwrap().to_str().unwrap()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.with_extension("said")).unwrap()
    }

    fn trace(&self) -> PathBuf {
        self.directory.with_extension("trace")
    }

    /// Runs the inner program below strace and returns its exit code, if it was not killed. What it
    /// said is in `<directory>.said`.
    fn run(&self, inject: Option<&str>) -> Option<i32> {
        let said = fs::File::create(self.directory.with_extension("said")).unwrap();
        let mut command = Command::new("strace");
        // -D: strace is the grandchild, so that only the inner program is waited for.
        command.args(["-D", "-f", "-qq", "-o"]).arg(self.trace());
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        command
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "inner_program_makes_a_pod", "--test-threads=1", "--nocapture"])
            .env(DIRECTORY, &self.directory)
            .env(KINDS, self.kinds)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said);
        command.status().expect("strace is installed").code()
    }

    /// As a restarted monitor, or the collector, does. The record must be enough to find everything.
    fn remove(&self, after: &str) {
        let sandboxes = Sandboxes::new(&self.directory);
        if let Some(init) = sandboxes.get(self.name()).unwrap().and_then(|record| record.init()) {
            init.end().unwrap();
        }
        sandboxes.remove(self.name()).unwrap_or_else(|errors| panic!("{after}: {errors:?}"));
        self.assert_clean(after);
    }

    /// No mount, no pin, no record, no process.
    fn assert_clean(&self, after: &str) {
        for (pid, _) in common::processes_of(self.name()) {
            // The tracer, and what has been killed and is on its way.
            if let Some(pidfd) = common::pidfd(pid) {
                assert!(common::wait_readable(&pidfd), "{after}: process {pid} is left");
            }
        }
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains(self.name()), "{after}: {mounts}");
        let mut left = Vec::new();
        files(&self.directory, &mut left);
        assert_eq!(left, Vec::<PathBuf>::new(), "{after}");
    }

    /// The calls between the marks: of each name those that strace shall count to.
    fn calls(&self) -> BTreeMap<String, BTreeSet<u32>> {
        assert_eq!(self.run(None), Some(MADE));
        self.remove("the trace");
        let trace = fs::read_to_string(self.trace()).unwrap();
        let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        let mut calls: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        let mut between = false;
        for line in trace.lines() {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let Some((name, rest)) =
                call.trim_start().split_once('(').filter(|(name, _)| !name.contains('<'))
            else {
                continue;
            };
            // Each thread is counted on its own.
            let count = counts.entry((pid, name)).or_default();
            *count += 1;
            between = (between || rest.contains(BEGIN)) && !rest.contains(END);
            if between && !matches!(name, "exit" | "exit_group" | "statx") {
                calls.entry(name.to_owned()).or_default().insert(*count);
            }
        }
        assert!(calls.contains_key("move_mount") && calls.contains_key("unshare"), "{calls:?}");
        calls
    }
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

fn every_call_fails(kinds: &'static str, errors: &[&str]) {
    common::private_mounts();
    let place = Place::new(kinds);
    // Linux frees a descriptor whatever close(2) answers. A close that strace lets fail is never made: what
    // waits for the end of a socket would wait for ever, as it cannot outside of this test.
    let can_fail = |(name, _): &(String, BTreeSet<u32>)| name != "close";
    for (name, whens) in place.calls().into_iter().filter(can_fail) {
        for (when, error) in whens.iter().flat_map(|when| errors.iter().map(move |error| (when, error))) {
            let inject = format!("{name}:error={error}:when={when}");
            match place.run(Some(&inject)) {
                // There was another way, or it did not matter.
                Some(MADE) => place.remove(&inject),
                // The test runner's own failures have the same code, and may come after the pod was made.
                Some(REFUSED) if place.said().contains("refused: ") => {
                    place.assert_clean(&format!("{inject}: {}", place.said()));
                }
                // The call was of the test runner or the C library, which gave up.
                _ => place.remove(&inject),
            }
        }
    }
}

fn killed_at_every_call(kinds: &'static str) {
    common::private_mounts();
    let place = Place::new(kinds);
    for (name, whens) in place.calls() {
        for when in whens {
            let inject = format!("{name}:signal=KILL:when={when}");
            place.run(Some(&inject));
            place.remove(&inject);
        }
    }
}

#[test]
fn made_by_a_thread_every_call_fails() {
    every_call_fails("net,uts", &["ENOSPC", "EPERM", "EMFILE", "ENOMEM"]);
}

#[test]
fn made_by_a_process_with_an_init_every_call_fails() {
    every_call_fails("user,net,uts,pid,mnt", &["ENOSPC", "ENOMEM"]);
}

#[test]
fn made_by_a_thread_killed_at_every_call() {
    killed_at_every_call("net,uts");
}

#[test]
fn made_by_a_process_with_an_init_killed_at_every_call() {
    killed_at_every_call("user,net,uts,pid,mnt");
}

#[test]
fn limits_of_the_kernel_are_named() {
    common::private_mounts();
    let directory = tempfile::tempdir().unwrap();
    let mut outer = request(&directory.path().join("outer"), "user,net,uts");
    outer.base = directory.path().join("pins");
    outer.sysctls.push(("user.max_ipc_namespaces".to_owned(), "0".to_owned()));
    podinit::ns::create(&outer).unwrap();
    let mut inner = request(&directory.path().join("inner"), "uts,ipc,net");
    inner.base = directory.path().join("pins");
    inner.namespaces.push((Kind::User, Source::Path(directory.path().join("pins/userns/outer"))));
    let error = podinit::ns::create(&inner).unwrap_err();
    assert_eq!(error.class(), Class::Exhausted, "{error}");
    assert!(error.to_string().contains("max_ipc_namespaces"), "{error}");
    podinit::ns::remove(&outer.base, "outer").unwrap();
}
