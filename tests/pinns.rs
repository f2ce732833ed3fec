//! The `pinns` program, driven as an engine drives it: every option and error,
//! and every system call of it failing once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;
mod joining;

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use podinit::ns;

const MAPPING: [&str; 2] = ["--uid-mapping=0-100000-65536@", "--gid-mapping=0-200000-65536@"];

/// A directory for pins, empty and unmounted again at the end.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What strace saw: beside the directory, which is looked at for what is left.
    fn trace(&self) -> PathBuf {
        self.path().with_extension("trace")
    }

    fn pin(&self, kind: &str) -> PathBuf {
        self.path().join(format!("{kind}ns/pod"))
    }

    /// `pinns -d DIR -f pod` and `arguments`.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(common::binary());
        command.arg("pinns").arg("-d").arg(self.path()).args(["-f", "pod"]).args(arguments);
        command
    }

    fn pinns(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let below = self.path().to_str().unwrap();
        mounts.lines().filter(|line| line.contains(below)).map(str::to_owned).collect()
    }

    fn entries(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Not even a directory.
    fn assert_untouched(&self, after: &str) {
        assert_eq!(self.mounts(), Vec::<String>::new(), "{after}");
        assert_eq!(self.entries(), Vec::<PathBuf>::new(), "{after}");
    }

    /// Removes the pins; then nothing but empty directories is there.
    fn clear(&self, after: &str) {
        ns::remove(self.path(), "pod").unwrap_or_else(|errors| panic!("{after}: {errors:?}"));
        assert_eq!(self.mounts(), Vec::<String>::new(), "{after}");
        for directory in self.entries() {
            fs::remove_dir(&directory).unwrap_or_else(|e| panic!("{after}: {directory:?}: {e}"));
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        ns::remove(self.path(), "pod").ok();
        fs::remove_file(self.trace()).ok();
    }
}

fn inode(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b""[..], &b""[..]));
}

/// Exit status 1, nothing on standard output, one line on standard error.
fn assert_refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(output.stdout, b"");
    assert!(said.starts_with("[pinns:e]: ") && said.contains(reason), "wanted {reason:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn each_option_pins_its_namespace() {
    common::private_mounts();
    let host = |kind: &str| inode(format!("/proc/self/ns/{kind}"));
    for (kind, short) in [("uts", "-u"), ("ipc", "-i"), ("net", "-n"), ("cgroup", "-c"), ("mnt", "-m")] {
        for (arguments, new) in [
            (short.to_owned(), true),
            (format!("--{kind}"), true),
            (format!("--{kind}=something"), true),
            (format!("--{kind}=host"), false),
        ] {
            let dir = Dir::new();
            if arguments == "--mnt=host" {
                assert_refused(&dir.pinns(&[&arguments]), "and not in itself");
                dir.assert_untouched(&arguments);
                continue;
            }
            assert_ok(&dir.pinns(&[&arguments]));
            let own = inode(format!("/proc/thread-self/ns/{kind}"));
            assert_eq!(inode(dir.pin(kind)) != own, new, "{arguments}");
            assert_eq!(dir.entries().len(), 1, "{arguments}: only what was asked for");
            assert_eq!(dir.entries()[0].metadata().unwrap().permissions().mode() & 0o777, 0o755);
            dir.clear(&arguments);
        }
    }
    // The user namespace of the host with =host, a new one otherwise; both need mappings.
    for (arguments, new) in [("-U", true), ("--user", true), ("--user=host", false)] {
        let dir = Dir::new();
        assert_ok(&dir.pinns(&[arguments, MAPPING[0], MAPPING[1]]));
        assert_eq!(inode(dir.pin("user")) != host("user"), new, "{arguments}");
        dir.clear(arguments);
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_one_line_and_undone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    let [uid, gid] = MAPPING;
    let cases: &[(&[&str], &str)] = &[
        (&[], "no namespace"),
        (&["--user"], "needs --uid-mapping and --gid-mapping"),
        (&["--user", uid], "needs --uid-mapping and --gid-mapping"),
        (&["--user=host"], "needs --uid-mapping and --gid-mapping"),
        (&["--net", uid], "without --user"),
        (&["--user", "--uid-mapping=0-1", gid], "no id mapping"),
        (&["--user", "--uid-mapping=5-100000-10", gid], "maps the id 0"),
        (&["--user", "--uid-mapping=0-100000-10@5-200000-10", gid], "overlap"),
        (&["--user", "--uid-mapping", gid], "needs --uid-mapping and --gid-mapping"),
        (&["--net", "-d", file], "is not a directory"),
        (&["--net", "-d", "/proc/nonexistent/deep"], "cannot make the directory"),
        (&["--net", "-f", "a/b"], "cannot name a pin"),
        (&["--net", "-f", ".."], "cannot name a pin"),
        (&["--net", "-f", ""], "cannot name a pin"),
        (&["--net", "-s", "net.ipv4.ip_forward"], "has no `=`"),
        (&["--net", "-s", "=1"], "sysctl"),
        (&["--net", "-s", "net.ipv4.ip_forward="], "empty"),
        (&["--net", "--sysctl"], "--sysctl=key=value"),
        (&["--net", "-s", "net.ipv4.ip_forward=word"], "does not take this value"),
        (&["--net", "-s", "net.ipv4.nonexistent=1"], "/proc/sys/net/ipv4/nonexistent"),
        (&["--net", "-s", "kernel.panic=1"], "would change the host"),
        (&["--net", "-s", "/net/ipv4/ip_forward=1"], "sysctl"),
        (&["--net", "-s", "net/../kernel/panic=1"], "sysctl"),
        (&["--net", "-s", "kernel.shm_rmid_forced=1"], "ask for a ipc namespace"),
        (&["--net=host", "-s", "net.ipv4.ip_forward=1"], "outside of the pod"),
        (&["--nonsense"], "no option --nonsense"),
        (&["-x"], "no option -x"),
        (&["-p"], "no option -p"),
        (&["--net", "-d"], "needs a value"),
    ];
    for (arguments, reason) in cases {
        let dir = Dir::new();
        assert_refused(&dir.pinns(arguments), reason);
        dir.assert_untouched(&format!("{arguments:?}"));
    }
    let bare =
        |arguments: &[&str]| Command::new(common::binary()).arg("pinns").args(arguments).output().unwrap();
    assert_refused(&bare(&["-f", "pod", "--net"]), "--dir");
    assert_refused(&bare(&["-d", "/nonexistent", "--net"]), "--filename");
}

#[test]
fn answers_to_its_own_name_and_to_help_and_version() {
    let dir = Dir::new();
    let link = dir.path().join("pinns");
    std::os::unix::fs::symlink(common::binary(), &link).unwrap();
    let said = |arguments: &[&str]| Command::new(&link).args(arguments).output().unwrap();
    for help in ["-h", "--help"] {
        let help = said(&[help]);
        assert!(help.status.success());
        let text = String::from_utf8(help.stdout).unwrap();
        for option in
            ["--dir", "--filename", "--uts", "--ipc", "--net", "--user", "--cgroup", "--mnt", "--sysctl"]
        {
            assert!(text.contains(option), "{option}");
        }
    }
    let version = String::from_utf8(said(&["--version"]).stdout).unwrap();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    assert_refused(&said(&[]), "--dir");
}

#[test]
fn takes_the_files_and_directories_that_an_engine_made() {
    let dir = Dir::new();
    for kind in ["net", "user"] {
        fs::create_dir(dir.path().join(format!("{kind}ns"))).unwrap();
        fs::write(dir.pin(kind), "").unwrap();
        std::os::unix::fs::chown(dir.pin(kind), Some(100_000), Some(200_000)).unwrap();
    }
    // One level of the directory itself may be missing, and it may be relative.
    let below = dir.path().join("below");
    let output = dir.command(&["-n", "-d", "below"]).current_dir(dir.path()).output().unwrap();
    assert_ok(&output);
    ns::remove(&below, "pod").unwrap();
    assert_ok(&dir.pinns(&["--net", "--user", MAPPING[0], MAPPING[1]]));
    let again = dir.pinns(&["--net", "--uts"]);
    assert_refused(&again, "a namespace is pinned there");
    assert!(!dir.path().join("utsns").exists(), "what was made before is undone");

    // Undone means: the engine's own files stay.
    ns::remove(dir.path(), "pod").unwrap();
    fs::write(dir.pin("net"), "").unwrap();
    assert_refused(&dir.pinns(&["--net", "-s", "net.ipv4.nonexistent=1"]), "nonexistent");
    assert!(dir.pin("net").exists());
}

#[test]
fn containers_of_real_runtimes_join_what_pinns_pinned() {
    common::private_mounts();
    let mapping = format!("0-{}-{}@", joining::MAPPED.0, joining::MAPPED.1);
    let user = ["--user".to_owned(), format!("--uid-mapping={mapping}"), format!("--gid-mapping={mapping}")];
    for (runtime, user) in joining::RUNTIMES.into_iter().flat_map(|r| [(r, &[][..]), (r, &user[..])]) {
        let dir = Dir::new();
        let mut arguments = vec!["-s", "net.ipv4.ping_group_range=0 65535", "-s", "kernel.shm_rmid_forced=1"];
        arguments.extend(["--ipc", "--net", "--uts", "--cgroup"]);
        arguments.extend(user.iter().map(String::as_str));
        assert_ok(&dir.pinns(&arguments));
        let pins =
            [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup"), ("user", "user")];
        let pins = pins.map(|(oci, kind)| (oci, dir.pin(kind)));
        let joined: Vec<(&str, &Path)> =
            pins.iter().filter(|(_, pin)| pin.exists()).map(|(oci, pin)| (*oci, pin.as_path())).collect();
        let script = "for k in net ipc uts cgroup user; do readlink /proc/self/ns/$k; done; hostname
            cat /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shm_rmid_forced
            stat -c %u:%g /proc/sys/net/ipv4/ip_forward /dev/mqueue";
        let said = joining::run(runtime, &joined, Some("from-the-runtime"), script);
        let lines: Vec<&str> = said.lines().collect();
        for (n, kind) in ["net", "ipc", "uts", "cgroup", "user"].into_iter().enumerate() {
            let pin = Some(dir.pin(kind)).filter(|pin| pin.exists());
            let pin = pin.unwrap_or_else(|| format!("/proc/self/ns/{kind}").into());
            assert_eq!(lines[n], format!("{kind}:[{}]", inode(pin)), "{runtime}");
        }
        assert_eq!(lines[5..], ["from-the-runtime", "0\t65535", "1", "0:0", "0:0"], "{runtime} {user:?}");
        dir.clear(runtime);
    }
}

#[test]
fn undone_when_told_to_end() {
    // The signal comes with the last mount, before pinns has decided to keep what it made.
    for kinds in [&["-n", "-i", "-u"][..], &["-n", "-m", "--user", MAPPING[0], MAPPING[1]][..]] {
        for signal in ["TERM", "INT", "HUP"] {
            let dir = Dir::new();
            let inject = format!("inject=move_mount:signal={signal}:when=1");
            let output = strace(&dir, &["-e", &inject], kinds);
            assert!(!output.status.success(), "{output:?}");
            dir.assert_untouched(signal);
        }
    }
}

/// Runs pinns below strace, whose exit status is that of pinns.
fn strace(dir: &Dir, options: &[&str], arguments: &[&str]) -> Output {
    let inner = dir.command(arguments);
    // strace waits for every process that it traces, so a process that is left shows as a time-out.
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "60", "strace", "-f", "-qq", "-o"]).arg(dir.trace());
    command.args(options).arg(inner.get_program()).args(inner.get_args());
    let output = command.output().expect("strace is installed");
    assert!(!matches!(output.status.code(), Some(124 | 137)), "{options:?}: a process was left: {output:?}");
    output
}

/// The system calls of one run: of each name which calls to try, counted as strace
/// counts, by process. Those of the program's start, before it looks at its own
/// namespaces, are left out: they are the C library's, and make nothing.
fn calls(dir: &Dir, arguments: &[&str]) -> BTreeMap<String, RangeInclusive<u32>> {
    assert_ok(&strace(dir, &[], arguments));
    let trace = fs::read_to_string(dir.trace()).unwrap();
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut tried: BTreeMap<String, RangeInclusive<u32>> = BTreeMap::new();
    let mut started = false;
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        // "... resumed" is the second half of a call.
        let Some((name, values)) = call.trim_start().split_once('(').filter(|(name, _)| !name.contains('<'))
        else {
            continue;
        };
        let count = counts.entry((name, pid)).or_default();
        *count += 1;
        let count = *count;
        started |= values.contains("/proc/thread-self/ns/");
        // These cannot fail.
        if started && !matches!(name, "execve" | "exit_group" | "exit") {
            let range = tried.entry(name.to_owned()).or_insert(count..=count);
            *range = count.min(*range.start())..=count.max(*range.end());
        }
    }
    assert!(tried.contains_key("open_tree") && tried.contains_key("move_mount"), "{tried:?}");
    tried
}

const EASY: [&str; 5] = ["-n", "-i", "-u", "-s", "net.ipv4.ip_forward=1"];
const HARD: [&str; 8] = ["--user", MAPPING[0], MAPPING[1], "-n", "-u", "-m", "-s", "net.ipv4.ip_forward=1"];

#[test]
fn every_system_call_may_fail() {
    common::private_mounts();
    for arguments in [&EASY[..], &HARD[..]] {
        let dir = Dir::new();
        let calls = calls(&dir, arguments);
        dir.clear("the trace");
        for (name, tried) in calls {
            for error in ["ENOSPC", "EPERM", "EMFILE", "ENOMEM"] {
                for when in tried.clone() {
                    let inject = format!("inject={name}:error={error}:when={when}");
                    let output = strace(&dir, &["-e", &inject], arguments);
                    if output.status.success() {
                        // It had another way, or it did not matter: then everything is there.
                        assert!(dir.pin("net").exists() && dir.pin("uts").exists(), "{inject}");
                        assert_ne!(inode(dir.pin("net")), inode("/proc/self/ns/net"), "{inject}");
                        dir.clear(&inject);
                    } else {
                        dir.assert_untouched(&format!("{inject}: {output:?}"));
                    }
                }
            }
        }
    }
}

#[test]
fn killed_at_every_system_call() {
    common::private_mounts();
    for arguments in [&EASY[..], &HARD[..]] {
        let dir = Dir::new();
        let calls = calls(&dir, arguments);
        dir.clear("the trace");
        for (name, tried) in calls {
            for when in tried {
                let inject = format!("inject={name}:signal=KILL:when={when}");
                strace(&dir, &["-e", &inject], arguments);
                dir.clear(&inject);
            }
        }
    }
}
