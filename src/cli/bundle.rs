//! Bundles: a `config.json` made for a root file system, or the pod's own copy
//! of one that somebody else made. Both are placed in the pod: they join its
//! namespaces and have their cgroup below the pod's.
//!
//! Making one is pure; [`write`] puts it where the OCI runtime finds it.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::exit::Failure;
use super::paths::private_directories;
use crate::rpc::client::{IdMapping, NamespaceKind, Stdio};

/// Largest `config.json` that is read: the largest seen in the field is below 200 kB.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Whether a container may write to its root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootAccess {
    /// It may.
    ReadWrite,
    /// It may not.
    ReadOnly,
}

/// A mount, in the OCI runtime specification's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// File system type; `bind` for a bind mount.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where in the container.
    pub destination: String,
    /// Mount options.
    pub options: Vec<String>,
}

/// Who runs the command. Numbers only: podinit reads nobody's passwd file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The command and what surrounds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The command and its arguments; for a given bundle empty = the bundle's.
    pub args: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Who runs it.
    pub user: Option<User>,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// What the container gets from its pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InPod {
    /// The namespaces of the pod and their pins. Kinds that are not listed are the host's.
    pub namespaces: Vec<(NamespaceKind, String)>,
    /// Needed with a user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Needed with a user namespace.
    pub gid_mappings: Vec<IdMapping>,
    /// The container's cgroup, below the cgroup root.
    pub cgroups_path: String,
}

/// A container of a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromRootfs {
    /// The root file system.
    pub rootfs: String,
    /// Whether it may be written.
    pub access: RootAccess,
}

/// Limits and mounts that people add to either kind of bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extras {
    /// Mounts, after the standard ones.
    pub mounts: Vec<Mount>,
    /// Bytes of memory.
    pub memory_max: Option<u64>,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's and containerd's default set: what distributions' images expect to have.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Kernel interfaces that tell of, or reach, the host (the OCI runtimes' own default).
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes the `config.json` of a container of a root file system.
#[must_use]
pub fn from_rootfs(rootfs: &FromRootfs, process: &Process, extras: &Extras, pod: &InPod) -> Value {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": process.args,
            "env": [PATH],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": rootfs.rootfs, "readonly": rootfs.access == RootAccess::ReadOnly },
        "mounts": standard_mounts(pod),
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [{ "type": "mount" }],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    fill(&mut config, process, extras, pod);
    config
}

/// Makes the pod's own copy of somebody's `config.json`, which was in `directory`.
///
/// # Errors
/// If it is no JSON object, or says what cannot be had in this pod.
pub fn from_bundle(
    config: &str,
    directory: &Path,
    process: &Process,
    extras: &Extras,
    pod: &InPod,
) -> Result<Value, Failure> {
    let shown = directory.join("config.json");
    let mut config: Value = serde_json::from_str(config)
        .map_err(|error| Failure::new(format!("{} is not valid JSON: {error}", shown.display())))?;
    let object_at = |pointer: &str| config.pointer(pointer).is_some_and(Value::is_object);
    if !(object_at("/process") && object_at("/root")) {
        return Err(Failure::new(format!(
            "{} is not the configuration of a container: it has no process or no root",
            shown.display()
        )));
    }
    // In another directory, what was relative to the bundle must become absolute.
    let directory = utf8(directory)?;
    let rebase = |path: &mut Value| {
        if let Some(relative) = path.as_str().filter(|path| !path.starts_with('/')) {
            *path = json!(format!("{directory}/{relative}"));
        }
    };
    rebase(&mut config["root"]["path"]);
    for mount in config.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if is_bind(mount) {
            rebase(&mut mount["source"]);
        }
    }
    // The pod has a host name already; a container may not change it for all.
    if has_namespace(pod, NamespaceKind::Uts)
        && let Some(config) = config.as_object_mut()
    {
        config.remove("hostname");
        config.remove("domainname");
    }
    fill(&mut config, process, extras, pod);
    Ok(config)
}

/// A path as JSON can hold it.
///
/// # Errors
/// If it is not UTF-8.
pub fn utf8(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::new(format!("{} is not UTF-8, which a bundle's config.json must be", path.display()))
    })
}

/// Whether a `config.json` asks for a terminal.
#[must_use]
pub fn stdio(config: &Value) -> Stdio {
    match config.pointer("/process/terminal") {
        Some(Value::Bool(true)) => Stdio::Terminal,
        _ => Stdio::Pipes,
    }
}

fn is_bind(mount: &Value) -> bool {
    let options = mount.get("options").and_then(Value::as_array);
    mount.get("type").and_then(Value::as_str) == Some("bind")
        || options.into_iter().flatten().any(|option| option == "bind" || option == "rbind")
}

fn has_namespace(pod: &InPod, kind: NamespaceKind) -> bool {
    pod.namespaces.iter().any(|(have, _)| *have == kind)
}

fn standard_mounts(pod: &InPod) -> Vec<Value> {
    let mount = |kind: &str, source: &str, destination: &str, options: &[&str]| json!({ "type": kind, "source": source, "destination": destination, "options": options });
    // sysfs shows the network namespace; one may be mounted only by who owns that namespace.
    let foreign_net = has_namespace(pod, NamespaceKind::User) && !has_namespace(pod, NamespaceKind::Net);
    let sys = if foreign_net {
        mount("none", "/sys", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"])
    } else {
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"])
    };
    vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

/// The object under `key`, made if it is missing or something else.
fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    if !parent[key].is_object() {
        parent[key] = Value::Object(Map::new());
    }
    &mut parent[key]
}

/// The array under `key`, taken out; empty if it is missing or something else.
fn take_array(parent: &mut Value, key: &str) -> Vec<Value> {
    match parent[key].take() {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

/// What is the same for both kinds of bundle: the pod's share and what people asked for.
fn fill(config: &mut Value, process: &Process, extras: &Extras, pod: &InPod) {
    fill_process(object(config, "process"), process);
    let mut mounts = take_array(config, "mounts");
    for mount in &extras.mounts {
        mounts.push(json!({
            "type": mount.kind,
            "source": mount.source,
            "destination": mount.destination,
            "options": mount.options,
        }));
    }
    config["mounts"] = Value::Array(mounts);
    let linux = object(config, "linux");
    linux["cgroupsPath"] = json!(pod.cgroups_path);
    if let Some(bytes) = extras.memory_max {
        object(object(linux, "resources"), "memory")["limit"] = json!(bytes);
    }
    let mut namespaces = take_array(linux, "namespaces");
    for kind in
        [NamespaceKind::Net, NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::User, NamespaceKind::Pid]
    {
        namespaces.retain(|namespace| namespace["type"] != oci_name(kind));
    }
    for (kind, pin) in &pod.namespaces {
        namespaces.push(json!({ "type": oci_name(*kind), "path": pin }));
    }
    linux["namespaces"] = Value::Array(namespaces);
    if has_namespace(pod, NamespaceKind::User) {
        linux["uidMappings"] = mappings(&pod.uid_mappings);
        linux["gidMappings"] = mappings(&pod.gid_mappings);
    }
}

fn fill_process(config: &mut Value, process: &Process) {
    if !process.args.is_empty() {
        config["args"] = json!(process.args);
    }
    if let Some(cwd) = &process.cwd {
        config["cwd"] = json!(cwd);
    }
    if let Some(user) = process.user {
        config["user"] = json!({ "uid": user.uid, "gid": user.gid });
    }
    if process.stdio == Stdio::Terminal {
        config["terminal"] = json!(true);
    }
    let is_terminal = config["terminal"] == true;
    let mut env = take_array(config, "env");
    for (key, value) in &process.env {
        set_env(&mut env, key, value);
    }
    let has_term = env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")));
    if is_terminal && !has_term {
        set_env(&mut env, "TERM", "xterm");
    }
    config["env"] = Value::Array(env);
}

fn set_env(env: &mut Vec<Value>, key: &str, value: &str) {
    env.retain(|entry| {
        entry.as_str().and_then(|entry| entry.split_once('=')).is_none_or(|(have, _)| have != key)
    });
    env.push(json!(format!("{key}={value}")));
}

/// The specification's names of namespaces, which are not the kernel's.
fn oci_name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Net => "network",
        NamespaceKind::Mnt => "mount",
        other => other.name(),
    }
}

fn mappings(mappings: &[IdMapping]) -> Value {
    mappings.iter().map(|m| json!({ "containerID": m.inside, "hostID": m.outside, "size": m.size })).collect()
}

/// Reads the `config.json` of the bundle at `directory`.
///
/// # Errors
/// If there is none, or it is larger than 4 MiB.
pub fn read(directory: &Path) -> Result<String, Failure> {
    use io::Read;
    let path = directory.join("config.json");
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(format!("{} is not a bundle: it has no config.json", directory.display()))
        }
        _ => Failure::io(format_args!("reading {}", path.display()), &error),
    };
    let mut text = String::new();
    let file = fs::File::open(&path).map_err(failed)?;
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(Failure::new(format!("{} is larger than {CONFIG_BYTES_MAX} bytes", path.display())));
    }
    Ok(text)
}

/// Writes `config` to the bundle at `directory`, which must not exist.
///
/// # Errors
/// If it exists or cannot be made.
pub fn write(directory: &Path, config: &Value) -> Result<(), Failure> {
    if let Some(parent) = directory.parent() {
        private_directories(parent)?;
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(format!(
            "the pod has a container with the bundle {} already: choose another name",
            directory.display()
        )),
        _ => Failure::io(format_args!("making the bundle {}", directory.display()), &error),
    };
    fs::create_dir(directory).map_err(failed)?;
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(directory.join("config.json"))
        .map_err(failed)?;
    serde_json::to_writer_pretty(file, config).map_err(|error| failed(error.into()))
}

/// Parses `UID[:GID]`.
///
/// # Errors
/// A sentence for clap.
pub fn parse_user(text: &str) -> Result<User, String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number = |digits: &str| {
        digits.parse::<u32>().map_err(|_| "write the user as numbers: UID or UID:GID".to_owned())
    };
    Ok(User { uid: number(uid)?, gid: number(gid)? })
}

/// Parses `SOURCE:DESTINATION[:OPTION,…]`, a bind mount.
///
/// # Errors
/// A sentence for clap.
pub fn parse_volume(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts.as_slice() {
        [source, destination] => (*source, *destination, ""),
        [source, destination, options] => (*source, *destination, *options),
        _ => return Err("write it as SOURCE:DESTINATION or SOURCE:DESTINATION:OPTION,…".into()),
    };
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    bind(source, destination, options)
}

/// Parses `type=bind|tmpfs,src=PATH,dst=PATH[,ro][,OPTION…]`.
///
/// # Errors
/// A sentence for clap.
pub fn parse_mount(text: &str) -> Result<Mount, String> {
    let (mut kind, mut source, mut destination) = ("bind", None, None);
    let mut options = Vec::new();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("type", value)) => kind = value,
            Some(("src" | "source", value)) => source = Some(value),
            Some(("dst" | "destination" | "target", value)) => destination = Some(value),
            None if part == "readonly" => options.push("ro".to_owned()),
            _ => options.push(part.to_owned()),
        }
    }
    let destination = destination.ok_or("say where in the container: dst=PATH")?;
    match (kind, source) {
        ("bind", Some(source)) => bind(source, destination, options),
        ("bind", None) => Err("say what to mount: src=PATH".into()),
        ("tmpfs", None) => {
            let destination = absolute(destination)?;
            Ok(Mount { kind: "tmpfs".into(), source: "tmpfs".into(), destination, options })
        }
        ("tmpfs", Some(_)) => Err("a tmpfs has no src".into()),
        _ => Err("the type of a mount is bind or tmpfs".into()),
    }
}

fn absolute(path: &str) -> Result<String, String> {
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(format!("write paths in full, beginning with /, not {path:?}"))
    }
}

fn bind(source: &str, destination: &str, mut options: Vec<String>) -> Result<Mount, String> {
    if !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.insert(0, "rbind".into());
    }
    let (source, destination) = (absolute(source)?, absolute(destination)?);
    Ok(Mount { kind: "bind".into(), source, destination, options })
}

#[cfg(test)]
mod tests;
