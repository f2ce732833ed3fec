//! Containers of real OCI runtimes that join pinned namespaces.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The runtimes that every joining test is run with.
pub const RUNTIMES: [&str; 2] = ["crun", "runc"];

/// First id outside, and how many, of the user namespaces of these tests.
pub const MAPPED: (u32, u32) = (100_000, 65_536);

/// Runs `script` in a container that joins `namespaces` (OCI type and path), and returns what it said.
pub fn run(runtime: &str, namespaces: &[(&str, &Path)], hostname: Option<&str>, script: &str) -> String {
    let bundle = tempfile::tempdir().unwrap();
    // The user namespace's root has to get through.
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let rootfs = bundle.path().join("rootfs");
    for directory in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "hostname", "readlink", "id", "stat", "ip", "ls", "ping", "ipcs"] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let config = config(namespaces, hostname, script);
    fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let id = bundle.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
    let output = Command::new(runtime)
        .arg("--root")
        .arg(bundle.path().join("root"))
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(&id)
        .output()
        .unwrap();
    assert!(output.status.success(), "{runtime}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn config(namespaces: &[(&str, &Path)], hostname: Option<&str>, script: &str) -> Value {
    let joined = namespaces.iter().map(|(kind, path)| json!({"type": kind, "path": path}));
    let mut own = vec![json!({"type": "mount"})];
    if !namespaces.iter().any(|(kind, _)| *kind == "pid") {
        own.push(json!({"type": "pid"}));
    }
    let mut linux = json!({ "namespaces": joined.chain(own).collect::<Vec<_>>() });
    if namespaces.iter().any(|(kind, _)| *kind == "user") {
        let mapping = json!([{"containerID": 0, "hostID": MAPPED.0, "size": MAPPED.1}]);
        linux["uidMappings"] = mapping.clone();
        linux["gidMappings"] = mapping;
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-ec", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"]
            },
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            // The kernel lets sysfs and mqueue be mounted by who owns the net and the ipc namespace only.
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
        ],
        "linux": linux,
    });
    if let Some(hostname) = hostname {
        config["hostname"] = json!(hostname);
    }
    config
}
