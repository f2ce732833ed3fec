use super::*;
use crate::sys::process::{Ended, reap_pidfd};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::Read;
use std::process::{Child, Command};

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// `sh -c script` with its output in a pipe.
fn shell(script: &str) -> (Entry, OwnedFd) {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let entry = Entry {
        image: Image::Path(c("/bin/sh")),
        arguments: vec![c("sh"), c("-c"), c(script)],
        environment: vec![c("PATH=/usr/bin:/bin"), c("A=1")],
        stdio: [null(), write, null()],
        cgroup: None,
        tasks: Vec::new(),
        join: Vec::new(),
        directories: vec![c("/nonexistent"), c("/")],
        ids: None,
        capabilities: None,
    };
    (entry, read)
}

/// What the program wrote and how it ended; the pid of a second process, if there was one.
fn run(entry: Entry, output: OwnedFd) -> (String, Ended, Option<u32>) {
    let started = start(&entry).unwrap();
    let joins_pid = entry.joins_pid();
    drop(entry);
    let mut text = String::new();
    File::from(output).read_to_string(&mut text).unwrap();
    let mut how = wait(&started.pidfd);
    let mut second = None;
    if joins_pid && let Some(Report::Became(pid)) = read_report(&started.report).unwrap() {
        assert_eq!(how, Ended::Code(0));
        let raw = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).unwrap();
        how = wait(&pidfd);
        second = Some(pid);
    }
    (text, how, second)
}

fn wait(pidfd: &OwnedFd) -> Ended {
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None).unwrap();
    reap_pidfd(pidfd.as_fd()).unwrap().unwrap().how
}

#[test]
fn program_begins_as_it_was_said() {
    let script = "echo $A $HOME; pwd; umask; ulimit -n; ls /proc/$$/fd; exit 7";
    let (entry, output) = shell(script);
    let (text, how, _) = run(entry, output);
    assert_eq!(text, "1\n/\n0022\n1024\n0\n1\n2\n");
    assert_eq!(how, Ended::Code(7));
}

#[test]
fn program_that_cannot_be_executed_is_reported() {
    let (mut entry, _output) = shell("");
    entry.image = Image::Path(c("/etc/passwd"));
    let started = start(&entry).unwrap();
    assert_eq!(wait(&started.pidfd), Ended::Code(127));
    let report = read_report(&started.report).unwrap();
    assert_eq!(report, Some(Report::Failed(Step::Execute, Errno::ACCESS)));
    // Other tests' children may hold the other end until they have executed their programs.
    assert!(matches!(read_report(&started.report).unwrap(), None | Some(Report::End)));
}

/// `unshare … sleep`, dropped with its namespaces.
struct Holder(Child);

impl Holder {
    fn new(kinds: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        // exec makes the sleeper the very process that is known here.
        let child = command.args(kinds).args(["sh", "-c", "echo; exec sleep 1000"]);
        let mut child = child.stdout(std::process::Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    fn namespace(&self, name: &str) -> OwnedFd {
        File::open(format!("/proc/{}/ns/{name}", self.0.id())).unwrap().into()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn namespaces_are_joined() {
    let holder = Holder::new(&["--uts", "--ipc"]);
    let (mut entry, output) = shell("readlink /proc/$$/ns/uts /proc/$$/ns/ipc");
    entry.join =
        vec![(libc::CLONE_NEWUTS, holder.namespace("uts")), (libc::CLONE_NEWIPC, holder.namespace("ipc"))];
    let (text, how, _) = run(entry, output);
    let link = |name: &str| std::fs::read_link(format!("/proc/{}/ns/{name}", holder.0.id())).unwrap();
    assert_eq!(text, format!("{}\n{}\n", link("uts").display(), link("ipc").display()));
    assert_eq!(how, Ended::Code(0));
}

#[test]
fn program_in_a_pid_namespace_is_the_callers_child() {
    let holder = Holder::new(&["--pid", "--fork", "--kill-child"]);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.0.id())).unwrap();
    let inner = children.trim();
    let namespace = File::open(format!("/proc/{inner}/ns/pid")).unwrap();
    let (mut entry, output) = shell("kill -TERM $$");
    entry.join = vec![(libc::CLONE_NEWPID, namespace.into())];
    let (_, how, second) = run(entry, output);
    assert_eq!(how, Ended::Signal(15));
    assert!(second.is_some());
}

#[test]
fn users_and_capabilities_are_as_asked() {
    let ids = Ids { user: 1234, group: 2345, groups: vec![7, 8] };
    let (mut entry, output) =
        shell("id -u; id -g; id -G; grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNew' /proc/self/status");
    entry.ids = Some(ids);
    entry.capabilities = Some(1 << 12);
    let (text, how, _) = run(entry, output);
    assert_eq!(how, Ended::Code(0), "{text}");
    let mask = "0000000000001000";
    let expected = format!(
        "1234\n2345\n2345 7 8\nCapPrm:\t{mask}\nCapEff:\t{mask}\nCapBnd:\t{mask}\nCapAmb:\t{mask}\nNoNewPrivs:\t1\n"
    );
    assert_eq!(text, expected);
    let (mut entry, output) = shell("grep CapEff /proc/self/status");
    entry.capabilities = Some(0);
    assert_eq!(run(entry, output).0, "CapEff:\t0000000000000000\n", "root is bounded, too");
}

#[test]
fn an_opened_image_is_executed_even_as_a_script() {
    use std::os::unix::fs::OpenOptionsExt;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("script");
    {
        use std::io::Write;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(true).mode(0o755).open(&path).unwrap();
        file.write_all(b"#!/bin/sh\necho by \"$1\"\n").unwrap();
    }
    let (mut entry, output) = shell("");
    entry.image = Image::Opened(File::open(&path).unwrap().into());
    entry.arguments = vec![c("script"), c("descriptor")];
    std::fs::remove_file(&path).unwrap();
    let (text, _, _) = run(entry, output);
    assert_eq!(text, "by descriptor\n");
}
