//! `podinit ns` and `podinit gc`, on run directories with real namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use podinit::ns::sandbox::{Sandbox, Sandboxes};
use podinit::ns::{Kind, Placement, Request, Source};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

/// `<root>/pods/<id>`, with a lock that the test holds in the keeper's place.
struct Pod {
    root: tempfile::TempDir,
    run_dir: PathBuf,
    lock: Option<File>,
    sandbox: Sandbox,
}

impl Pod {
    fn new(kinds: &[Kind]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let run_dir = root.path().join("pods/web");
        fs::create_dir_all(&run_dir).unwrap();
        fs::write(run_dir.join("lock"), std::process::id().to_string()).unwrap();
        let lock = File::open(run_dir.join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let request = Request {
            name: "web".to_owned(),
            namespaces: kinds.iter().map(|kind| (*kind, Source::Create)).collect(),
            hostname: Some("web-0".to_owned()),
            domainname: None,
            sysctls: Vec::new(),
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            // As engines have it: pins are not in the run directory.
            base: root.path().join("pins"),
            placement: Placement::Pinned,
        };
        let sandbox = Sandboxes::new(&run_dir).create(&request).unwrap();
        Self { root, run_dir, lock: Some(lock), sandbox }
    }

    fn podinit(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(common::binary());
        command.args(arguments).env("PODINIT_ROOT", self.root.path()).output().unwrap()
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.podinit(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(arguments)).unwrap()
    }

    /// What a keeper's death by SIGKILL leaves.
    fn lose_keeper(&mut self) {
        drop(self.lock.take());
    }

    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let root = self.root.path().to_str().unwrap();
        mounts.lines().filter(|line| line.contains(root)).map(str::to_owned).collect()
    }

    /// Takes the status of the init that was ended.
    fn reap(&self) {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let set = self.sandbox.made.as_ref().unwrap();
        let init = set.init.as_ref().unwrap();
        waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
    }
}

#[test]
fn a_living_pod_is_listed_inspected_and_entered_and_not_collected() {
    let mut pod = Pod::new(&[Kind::Net, Kind::Uts, Kind::Pid]);
    let table = pod.stdout(&["ns", "ls"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("POD") && lines[1].starts_with("web"), "{table}");
    let listed = pod.json(&["ns", "ls", "--output", "json"]);
    assert_eq!(listed[0]["kind"], "net");
    assert_eq!(listed[0]["keeper"], std::process::id());
    assert_eq!(listed[0]["inode"], pod.sandbox.record.namespaces()[0].inode);

    let all = pod.json(&["ns", "inspect", "web"]);
    let net = all.as_array().unwrap().iter().find(|one| one["kind"] == "net").unwrap();
    assert_eq!(net["network"]["interfaces"][0]["name"], "lo");
    let path = pod.root.path().join("pins/netns/web");
    assert_eq!(net["pins"][0], path.to_str().unwrap());
    assert_eq!(net["processes"][0], pod.sandbox.record.init().unwrap().pid);
    let by_path = pod.json(&["ns", "inspect", path.to_str().unwrap()]);
    assert_eq!(by_path[0]["inode"], net["inode"]);

    assert_eq!(pod.stdout(&["ns", "enter", "web", "--", "hostname"]), "web-0\n");
    let own_uts = format!("{}\n", fs::read_link("/proc/self/ns/uts").unwrap().display());
    let uts = ["ns", "enter", "web", "--kinds", "net", "--", "readlink", "/proc/self/ns/uts"];
    assert_eq!(pod.stdout(&uts), own_uts, "only the kinds that were named");
    let exit = |script: &str| pod.podinit(&["ns", "enter", "web", "--", "sh", "-c", script]).status.code();
    assert_eq!(exit("exit 42"), Some(42));
    assert_eq!(exit("kill -TERM $$"), Some(128 + 15));
    assert_eq!(pod.podinit(&["ns", "enter", "web", "--", "/nonexistent"]).status.code(), Some(127));
    for unknown in
        [&["ns", "enter", "nobody"][..], &["ns", "inspect", "nobody"], &["ns", "inspect", "/etc/passwd"]]
    {
        let output = pod.podinit(unknown);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.starts_with(b"podinit: "), "{output:?}");
    }

    assert_eq!(pod.stdout(&["gc"]), "nothing is left over\n");
    assert!(pod.run_dir.exists());
    pod.lose_keeper();
    pod.stdout(&["gc"]);
    pod.reap();
}

#[test]
fn what_a_dead_pod_left_is_found_and_removed() {
    common::private_mounts();
    let mut pod = Pod::new(&[Kind::Net, Kind::Ipc, Kind::Uts, Kind::Pid, Kind::Mnt]);
    drop(UnixListener::bind(pod.run_dir.join("conmon.sock")).unwrap());
    let mounted = pod.run_dir.join("a directory");
    fs::create_dir(&mounted).unwrap();
    rustix::mount::mount_bind("/usr", &mounted).unwrap();
    // A link must not lead the collector anywhere.
    let precious = tempfile::tempdir().unwrap();
    fs::write(precious.path().join("file"), "precious").unwrap();
    std::os::unix::fs::symlink(precious.path(), pod.run_dir.join("link")).unwrap();
    pod.lose_keeper();

    let listed = pod.json(&["ns", "ls", "--output", "json"]);
    assert!(listed[0]["keeper"].is_null());
    let before = pod.mounts();
    let found = pod.json(&["gc", "--dry-run", "--output", "json"]);
    assert_eq!(pod.mounts(), before, "a dry run changes nothing");
    let items = found[0]["items"].as_array().unwrap();
    let count = |what: &str| items.iter().filter(|item| item["what"] == what).count();
    let expected = [("process", 1), ("pin", 5), ("mount", 1), ("socket", 1), ("directory", 1)];
    assert_eq!(expected.map(|(what, _)| (what, count(what))), expected, "{found}");
    assert_eq!(found[0]["pod"], "web");
    assert!(pod.stdout(&["gc", "--dry-run"]).contains("would remove pin of a net namespace"));

    let removed = pod.json(&["gc", "--output", "json"]);
    assert_eq!(removed[0]["removed"], true, "{removed}");
    pod.reap();
    assert_eq!(pod.mounts(), Vec::<String>::new());
    assert!(!pod.run_dir.exists());
    assert_eq!(fs::read_to_string(precious.path().join("file")).unwrap(), "precious");
    assert!(Path::new("/usr/bin").exists(), "unmounted, not emptied");
    assert_eq!(pod.stdout(&["gc"]), "nothing is left over\n");
}
