//! Making, pinning and removing a pod's namespaces. These tests need root; they
//! use the library as the RPC server does, and look at the result through `/proc`
//! and with real programs.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;
mod joining;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use podinit::ns::sandbox::{CreateNamespaces, Record, Sandboxes, State};
use podinit::ns::{self, IdMapping, Kind, Placement, PodInit, Request, Source};

const EASY: [Kind; 3] = [Kind::Net, Kind::Ipc, Kind::Uts];

/// A base directory that must be empty of pins at the end of a test.
struct Base {
    directory: tempfile::TempDir,
}

impl Base {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn request(&self, name: &str, kinds: &[Kind]) -> Request {
        Request {
            name: name.to_owned(),
            namespaces: kinds.iter().map(|kind| (*kind, Source::Create)).collect(),
            hostname: None,
            domainname: None,
            sysctls: Vec::new(),
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            base: self.path().to_owned(),
            placement: Placement::Pinned,
        }
    }

    fn pin(&self, kind: Kind, name: &str) -> PathBuf {
        self.path().join(kind.directory()).join(name)
    }

    /// Nothing is mounted below, and there is no file.
    fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = mounts.lines().filter(|line| line.contains(self.path().to_str().unwrap()));
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
        for entry in fs::read_dir(self.path()).unwrap() {
            let directory = entry.unwrap().path();
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "{directory:?} is not empty");
        }
    }
}

impl Drop for Base {
    /// After a failed test, too, nothing stays mounted.
    fn drop(&mut self) {
        let names = fs::read_dir(self.path()).into_iter().flatten().flatten();
        let names = names.flat_map(|kind| fs::read_dir(kind.path()).into_iter().flatten().flatten());
        for name in names.map(|pin| pin.file_name()).collect::<Vec<_>>() {
            ns::remove(self.path(), name.to_str().unwrap()).ok();
        }
    }
}

fn not_root_mapping() -> Vec<IdMapping> {
    vec![IdMapping { inside: 0, outside: 100_000, size: 65_536 }]
}

fn inode(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn pins_are_the_namespaces_made_and_removal_leaves_nothing() {
    let base = Base::new();
    let kinds = [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup, Kind::Time, Kind::Mnt];
    let before: Vec<u64> = kinds.iter().map(|k| inode(format!("/proc/self/ns/{k}"))).collect();
    let set = ns::create(&base.request("pod", &kinds)).unwrap();
    for (made, own) in set.namespaces.iter().zip(&before) {
        let path = made.path.clone().unwrap();
        assert_eq!(path, base.pin(made.kind, "pod"));
        assert_eq!(inode(&path), made.inode, "{}", made.kind);
        assert_ne!(made.inode, *own, "{}", made.kind);
        assert_eq!(made.owner_inode, inode("/proc/self/ns/user"), "{}", made.kind);
        assert!(made.created);
        assert_eq!(inode(format!("/proc/self/ns/{}", made.kind)), *own, "the caller stays where it was");
    }
    ns::remove(base.path(), "pod").unwrap();
    base.assert_clean();
    ns::remove(base.path(), "pod").expect("removal can be repeated");
}

#[test]
fn user_namespace_owns_the_others_with_a_mapping_without_root() {
    let base = Base::new();
    let kinds = [Kind::User, Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup, Kind::Mnt, Kind::Time];
    let mut request = base.request("pod", &kinds);
    request.uid_mappings = not_root_mapping();
    request.gid_mappings = not_root_mapping();
    request.hostname = Some("inside".to_owned());
    request.sysctls = vec![
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned()),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("fs.mqueue.msg_max".to_owned(), "11".to_owned()),
        ("user.max_mnt_namespaces".to_owned(), "7".to_owned()),
    ];
    let set = ns::create(&request).unwrap();
    let user = set.namespaces.iter().find(|made| made.kind == Kind::User).unwrap();
    for made in set.namespaces.iter().filter(|made| made.kind != Kind::User) {
        assert_eq!(made.owner_inode, user.inode, "{}", made.kind);
        assert_eq!(inode(base.pin(made.kind, "pod")), made.inode);
    }
    ns::remove(base.path(), "pod").unwrap();
    base.assert_clean();
}

/// Ends a pod's init and takes its status, as a monitor does.
fn end(init: &PodInit) {
    use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
    pidfd_send_signal(&init.pidfd, Signal::KILL).unwrap();
    waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
}

fn assert_init_is_in(set: &ns::Set) {
    let init = set.init.as_ref().unwrap();
    for made in &set.namespaces {
        assert_eq!(inode(format!("/proc/{}/ns/{}", init.pid, made.kind)), made.inode, "{}", made.kind);
    }
    let status = fs::read_to_string(format!("/proc/{}/status", init.pid)).unwrap();
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", init.pid)).unwrap();
    // It changes its title once it runs.
    assert!(arguments.starts_with("podinit-init\0") || arguments.starts_with("podinit:"), "{arguments:?}");
    let nspid = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert_eq!(nspid.split_whitespace().last(), Some("1"));
    let open = fs::read_dir(format!("/proc/{}/fd", init.pid)).unwrap();
    assert!(open.count() <= 3, "init holds nothing but its standard streams");
}

#[test]
fn pid_namespace_has_our_init_as_pid_1() {
    let base = Base::new();
    let set = ns::create(&base.request("pod", &[Kind::Pid, Kind::Net, Kind::Ipc, Kind::Uts])).unwrap();
    assert_init_is_in(&set);
    let pin = base.pin(Kind::Pid, "pod");
    let seen = Command::new("nsenter")
        .arg(format!("--pid={}", pin.display()))
        .args(["sh", "-c", "echo $$"])
        .output()
        .unwrap();
    assert_ne!(String::from_utf8_lossy(&seen.stdout).trim(), "1", "PID 1 is taken: {seen:?}");
    assert!(seen.status.success(), "{seen:?}");
    end(set.init.as_ref().unwrap());
    ns::remove(base.path(), "pod").unwrap();
    base.assert_clean();
}

#[test]
fn every_kind_at_once_owned_by_a_user_namespace() {
    let base = Base::new();
    let mut request = base.request("pod", &Kind::ALL);
    request.uid_mappings = not_root_mapping();
    request.gid_mappings = not_root_mapping();
    let set = ns::create(&request).unwrap();
    let user = set.namespaces.iter().find(|made| made.kind == Kind::User).unwrap();
    for made in set.namespaces.iter().filter(|made| made.kind != Kind::User) {
        assert_eq!(made.owner_inode, user.inode, "{}", made.kind);
    }
    assert_init_is_in(&set);
    end(set.init.as_ref().unwrap());
    ns::remove(base.path(), "pod").unwrap();
    base.assert_clean();
}

#[test]
fn given_user_namespace_owns_what_is_made_in_it() {
    let base = Base::new();
    let mut request = base.request("first", &[Kind::User, Kind::Net]);
    request.uid_mappings = not_root_mapping();
    request.gid_mappings = not_root_mapping();
    let first = ns::create(&request).unwrap();
    let mut request = base.request("second", &[Kind::Pid, Kind::Uts, Kind::Ipc]);
    for kind in [Kind::Net, Kind::User] {
        request.namespaces.push((kind, Source::Path(base.pin(kind, "first"))));
    }
    request.hostname = Some("second".to_owned());
    let second = ns::create(&request).unwrap();
    let user = first.namespaces.iter().find(|made| made.kind == Kind::User).unwrap();
    for made in second.namespaces.iter().filter(|made| made.kind != Kind::User) {
        assert_eq!(made.owner_inode, user.inode, "{}", made.kind);
        assert_eq!(made.created, made.kind != Kind::Net);
    }
    assert_init_is_in(&second);
    end(second.init.as_ref().unwrap());

    let mut wrong = base.request("third", &[]);
    wrong.namespaces = vec![(Kind::Ipc, Source::Path(base.pin(Kind::Net, "first")))];
    let error = ns::create(&wrong).unwrap_err();
    assert_eq!(error.class(), ns::Class::Invalid, "{error}");

    for name in ["first", "second", "third"] {
        ns::remove(base.path(), name).unwrap();
    }
    base.assert_clean();
}

#[test]
fn descriptor_only_has_no_mount_and_no_path() {
    let base = Base::new();
    let mut request = base.request("pod", &EASY);
    request.placement = Placement::DescriptorOnly;
    let set = ns::create(&request).unwrap();
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    for made in &set.namespaces {
        assert_eq!(made.path, None);
        assert!(made.inode > 0);
    }
}

#[test]
fn what_is_in_the_way_is_refused_and_left_alone() {
    let base = Base::new();
    let directory = base.path().join("utsns");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "precious").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", directory.join("link")).unwrap();
    fs::create_dir(directory.join("directory")).unwrap();
    for name in ["file", "link", "directory"] {
        let error = ns::create(&base.request(name, &EASY)).unwrap_err();
        assert!(error.to_string().contains("utsns"), "{error}");
        assert!(ns::remove(base.path(), name).is_err(), "{name}");
        assert!(!base.path().join("netns").exists(), "undone, with the directory");
    }
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "precious");
    fs::remove_dir_all(&directory).unwrap();

    // A link planted in place of a directory leads nowhere.
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &directory).unwrap();
    ns::create(&base.request("pod", &EASY)).unwrap_err();
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    fs::remove_file(&directory).unwrap();

    // An empty file is what engines make for us.
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("pod"), "").unwrap();
    fs::set_permissions(directory.join("pod"), fs::Permissions::from_mode(0o600)).unwrap();
    ns::create(&base.request("pod", &EASY)).unwrap();
    let error = ns::create(&base.request("pod", &EASY)).unwrap_err();
    assert_eq!(error.class(), ns::Class::Exists, "{error}");
    assert!(!fs::metadata(directory.join("pod")).unwrap().file_type().is_block_device());
    ns::remove(base.path(), "pod").unwrap();
    base.assert_clean();
}

#[test]
fn loopback_is_up_in_both_families_and_seen_without_ip() {
    let base = Base::new();
    let set = ns::create(&base.request("pod", &EASY)).unwrap();
    let net = set.namespaces.iter().find(|made| made.kind == Kind::Net).unwrap();
    let network = ns::network::look(&net.fd).unwrap();
    let lo = network.interfaces.iter().find(|interface| interface.name == "lo").unwrap();
    assert!(lo.up);
    assert_eq!(lo.mtu, 65536);
    let addresses: Vec<String> = lo.addresses.iter().map(|a| format!("{}/{}", a.address, a.prefix)).collect();
    assert_eq!(addresses, ["127.0.0.1/8", "::1/128"]);
    assert_eq!(network.interfaces.len(), 1, "{network:?}");
    ns::remove(base.path(), "pod").unwrap();
    base.assert_clean();
}

#[test]
fn the_same_request_answers_the_same_and_another_is_refused() {
    let base = Base::new();
    let run_dir = tempfile::tempdir().unwrap();
    let sandboxes = Sandboxes::new(run_dir.path());
    let ask = |kinds: &[Kind]| CreateNamespaces {
        pod_id: "pod".to_owned(),
        base: base.path().to_owned(),
        kinds: kinds.to_vec(),
        uid_mappings: vec!["0 100000 65536".to_owned()],
        gid_mappings: vec!["0 100000 65536".to_owned()],
    };
    let all = [Kind::Net, Kind::Pid, Kind::Uts, Kind::User];
    let first = sandboxes.create_namespaces(ask(&all)).unwrap();
    let paths: Vec<_> = first.record.namespaces().iter().map(|n| n.path.clone().unwrap()).collect();
    let expected = ["ipc", "pid", "net", "user", "uts"].map(|k| base.path().join(format!("{k}ns/pod")));
    assert_eq!(paths, expected);
    assert_eq!(inode(&paths[0]), inode("/proc/self/ns/ipc"), "not asked for: the host's");
    for pinned in first.record.namespaces() {
        assert_eq!(inode(pinned.path.as_ref().unwrap()), pinned.inode);
        assert_eq!(pinned.created, all.contains(&pinned.kind));
    }

    // As after a restart of the monitor: only the files are known.
    let again = Sandboxes::new(run_dir.path()).create_namespaces(ask(&all)).unwrap();
    assert!(again.made.is_none());
    assert_eq!(again.record, first.record);
    let other = sandboxes.create_namespaces(ask(&[Kind::Net])).unwrap_err();
    assert_eq!(other.class(), ns::Class::Exists, "{other}");

    // A peer keeps answering "ok" when the pod's init has died.
    end(first.made.unwrap().init.as_ref().unwrap());
    let lost = sandboxes.create_namespaces(ask(&all)).unwrap_err();
    assert_eq!(lost.class(), ns::Class::Lost, "{lost}");

    sandboxes.remove("pod").unwrap();
    sandboxes.remove("pod").expect("removal can be repeated");
    assert_eq!(sandboxes.list().unwrap(), []);
    base.assert_clean();
}

#[test]
fn what_a_crash_left_half_made_is_no_obstacle() {
    let base = Base::new();
    let run_dir = tempfile::tempdir().unwrap();
    let sandboxes = Sandboxes::new(run_dir.path());
    let request = base.request("pod", &EASY);
    let made = sandboxes.create(&request).unwrap();
    // What the record says between its first and its second writing.
    let record = Record { state: State::Making { init: None }, ..made.record };
    let file = run_dir.path().join("namespaces/pod.json");
    fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
    fs::remove_file(base.pin(Kind::Net, "pod")).unwrap_err();
    let made = sandboxes.create(&request).unwrap();
    assert!(made.made.is_some(), "made anew");
    sandboxes.remove("pod").unwrap();
    base.assert_clean();
}

/// OCI's name of a kind.
fn oci(kind: Kind) -> &'static str {
    match kind {
        Kind::Net => "network",
        other => other.name(),
    }
}

#[test]
fn containers_of_real_runtimes_join_every_pinned_namespace() {
    common::private_mounts();
    for (runtime, user) in joining::RUNTIMES.into_iter().flat_map(|r| [(r, false), (r, true)]) {
        let base = Base::new();
        let mut kinds = vec![Kind::Net, Kind::Ipc, Kind::Uts, Kind::Pid, Kind::Cgroup];
        if user {
            kinds.push(Kind::User);
        }
        let mut request = base.request("pod", &kinds);
        request.hostname = Some("of-the-pod".to_owned());
        request.domainname = Some("example.org".to_owned());
        request.sysctls = vec![
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "81".to_owned()),
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ];
        if user {
            request.uid_mappings = not_root_mapping();
            request.gid_mappings = not_root_mapping();
        }
        let set = ns::create(&request).unwrap();
        let pins: Vec<(&str, &Path)> =
            set.namespaces.iter().map(|made| (oci(made.kind), made.path.as_deref().unwrap())).collect();
        let script = "for k in net ipc uts pid cgroup user; do readlink /proc/self/ns/$k; done
            hostname; cat /proc/sys/kernel/domainname
            cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced
            cat /proc/1/comm; stat -c %u:%g /proc/sys/net/ipv4/ip_forward /dev/mqueue; ls /sys/class/net";
        let said = joining::run(runtime, &pins, None, script);
        let mut lines = said.lines();
        for kind in [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Pid, Kind::Cgroup, Kind::User] {
            let made = set.namespaces.iter().find(|made| made.kind == kind);
            let inode = made.map_or_else(|| inode("/proc/self/ns/user"), |made| made.inode);
            assert_eq!(lines.next().unwrap(), format!("{kind}:[{inode}]"), "{runtime} user={user}");
        }
        let rest: Vec<&str> = lines.collect();
        let comm = rest[4];
        assert!(comm.starts_with("podinit"), "PID 1 of the container's pid namespace is {comm}");
        assert_eq!(rest[..4], ["of-the-pod", "example.org", "81", "1"], "{runtime} user={user}");
        assert_eq!(rest[5..], ["0:0", "0:0", "lo"], "{runtime} user={user}: the pod's root owns its own");
        end(set.init.as_ref().unwrap());
        ns::remove(base.path(), "pod").unwrap();
        base.assert_clean();
    }
}

/// Calls a CNI plugin as an engine does, and returns its answer.
fn cni(command: &str, config: &Value, netns: &Path, interface: &str) -> Value {
    // Debian's place, Fedora's, and upstream's.
    let places = ["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"].map(Path::new);
    let place = places.into_iter().find(|place| place.join("bridge").exists()).unwrap_or(places[0]);
    let plugin = place.join(config["type"].as_str().unwrap());
    let mut child = Command::new(&plugin)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", netns.file_name().unwrap())
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", interface)
        .env("CNI_PATH", place)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{plugin:?} (package containernetworking-plugins): {e}"));
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command} {config}: {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn ping(netns: &Path, address: &str) {
    let ping = ["busybox", "ping", "-c", "1", "-W", "10", address];
    let output =
        Command::new("nsenter").arg(format!("--net={}", netns.display())).args(ping).output().unwrap();
    assert!(output.status.success(), "{address}: {output:?}");
}

#[test]
fn cni_plugins_connect_two_pods_and_the_host() {
    common::private_mounts();
    // A host of the test's own: the machine's network is not touched.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let ip = |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().unwrap().success());
    ip(&["link", "set", "lo", "up"]);
    let base = Base::new();
    let state = tempfile::tempdir().unwrap();
    let bridge = json!({
        "cniVersion": "0.4.0", "name": "test", "type": "bridge", "bridge": "podinit0", "isGateway": true,
        "isDefaultGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.213.7.0/24", "dataDir": state.path()},
    });
    let loopback = json!({"cniVersion": "0.4.0", "name": "lo", "type": "loopback"});
    for pod in ["one", "two"] {
        ns::create(&base.request(pod, &EASY)).unwrap();
        let netns = base.pin(Kind::Net, pod);
        cni("ADD", &loopback, &netns, "lo");
        cni("ADD", &bridge, &netns, "eth0");
    }
    let (one, two) = (base.pin(Kind::Net, "one"), base.pin(Kind::Net, "two"));
    ping(&one, "10.213.7.3");
    ping(&two, "10.213.7.2");
    ping(&one, "10.213.7.1");
    ping(&one, "127.0.0.1");

    let network = ns::network::look(fs::File::open(&one).unwrap()).unwrap();
    let eth0 = network.interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
    assert_eq!((eth0.kind.as_str(), eth0.state.as_str(), eth0.up, eth0.mtu), ("veth", "up", true, 1500));
    assert_eq!(eth0.hardware_address.len(), 17, "{eth0:?}");
    assert_eq!(eth0.addresses[0].address.to_string(), "10.213.7.2");
    assert!(eth0.statistics.rx_packets >= 2 && eth0.statistics.tx_bytes > 0, "{eth0:?}");
    let default = network.routes.iter().find(|route| route.prefix == 0).unwrap();
    assert_eq!(default.gateway.unwrap().to_string(), "10.213.7.1");
    assert_eq!(default.interface, "eth0");

    for pod in ["one", "two"] {
        let netns = base.pin(Kind::Net, pod);
        cni("DEL", &bridge, &netns, "eth0");
        cni("DEL", &loopback, &netns, "lo");
        ns::remove(base.path(), pod).unwrap();
    }
    base.assert_clean();
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    assert!(!links.contains("veth"), "{links}");
}
