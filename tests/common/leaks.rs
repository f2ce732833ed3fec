//! Finds what a pod has left on the machine. The pod's unique name is in its
//! directory, its ids, its environment and its cgroups, and so in all of these.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// One sentence for each thing that is left; `dir` is the test's directory.
pub fn find(name: &str, dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for (pid, command) in processes_of(name) {
        left.push(format!("process {pid}: {command}"));
    }
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(name)).map(|line| format!("mount: {line}")));
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    left.extend(sockets.lines().filter(|line| line.contains(name)).map(|line| format!("socket: {line}")));
    for owned in ["run", "tmp", "pins", "root"] {
        files_below(&dir.join(owned), &mut left);
    }
    let is_of_pod = |path: &Path| path != dir && is_named(path, name);
    for (shared, depth) in [("/run", 3), ("/tmp", 1), ("/dev/shm", 1)] {
        named(Path::new(shared), depth, &is_of_pod, &mut left);
    }
    for tree in cgroup_trees(&mounts) {
        named(Path::new(tree), 2, &is_of_pod, &mut left);
    }
    left
}

/// Processes that name the pod in their command line or environment, but for this one.
pub fn processes_of(name: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if contains(&command, name) || contains(&environment, name) {
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

fn contains(text: &[u8], name: &str) -> bool {
    text.windows(name.len()).any(|part| part == name.as_bytes())
}

/// Where cgroups are mounted; what lies beneath a hybrid's hidden v2 tree is no cgroup.
fn cgroup_trees(mountinfo: &str) -> Vec<&str> {
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    mountinfo.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)).collect()
}

/// Every file, socket or link below a directory that was the pod's alone; empty
/// directories are nobody's loss.
fn files_below(dir: &Path, left: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path(), left),
            Ok(kind) if kind.is_socket() => left.push(format!("socket: {}", entry.path().display())),
            _ => left.push(format!("file: {}", entry.path().display())),
        }
    }
}

fn is_named(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|file| file.to_string_lossy().contains(name))
}

/// What is of the pod in a directory that everybody shares, so many levels deep.
fn named(dir: &Path, depth: u32, is_of_pod: &dyn Fn(&Path) -> bool, left: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_of_pod(&entry.path()) {
            left.push(format!("left: {}", entry.path().display()));
        } else if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            named(&entry.path(), depth - 1, is_of_pod, left);
        }
    }
}
