use super::*;

fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        stdio: Stdio::Pipes,
    }
}

fn pod() -> InPod {
    InPod {
        namespaces: vec![
            (NamespaceKind::Net, "/p/netns/a".into()),
            (NamespaceKind::Pid, "/p/pidns/a".into()),
            (NamespaceKind::Uts, "/p/utsns/a".into()),
        ],
        cgroups_path: "/podinit/a/c".into(),
        ..InPod::default()
    }
}

fn rootfs() -> FromRootfs {
    FromRootfs { rootfs: "/images/busybox".into(), access: RootAccess::ReadOnly }
}

fn namespaces(config: &Value) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    config["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| (text(&namespace["type"]).unwrap(), text(&namespace["path"])))
        .collect()
}

#[test]
fn container_of_a_rootfs_joins_its_pod() {
    let config = from_rootfs(&rootfs(), &process(&["sh", "-c", "id"]), &Extras::default(), &pod());
    assert_eq!(config["root"], json!({ "path": "/images/busybox", "readonly": true }));
    assert_eq!(config["process"]["args"], json!(["sh", "-c", "id"]));
    assert_eq!(config["process"]["env"], json!([PATH]));
    assert_eq!(config["linux"]["cgroupsPath"], "/podinit/a/c");
    assert_eq!(config.get("hostname"), None, "the pod's uts namespace has one already");
    assert_eq!(
        namespaces(&config),
        [
            ("mount".into(), None),
            ("network".into(), Some("/p/netns/a".into())),
            ("pid".into(), Some("/p/pidns/a".into())),
            ("uts".into(), Some("/p/utsns/a".into())),
        ],
        "ipc was not made for the pod, so it is the host's"
    );
}

#[test]
fn what_people_ask_for_is_in_the_config() {
    let process = Process {
        env: vec![("PATH".into(), "/x".into()), ("A".into(), "b=c".into())],
        cwd: Some("/srv".into()),
        user: Some(User { uid: 7, gid: 8 }),
        stdio: Stdio::Terminal,
        ..process(&["sh"])
    };
    let extras = Extras { mounts: vec![parse_volume("/a:/b:ro").unwrap()], memory_max: Some(64 << 20) };
    let config = from_rootfs(&rootfs(), &process, &extras, &pod());
    assert_eq!(config["process"]["env"], json!(["PATH=/x", "A=b=c", "TERM=xterm"]));
    assert_eq!(config["process"]["cwd"], "/srv");
    assert_eq!(config["process"]["user"], json!({ "uid": 7, "gid": 8 }));
    assert_eq!(stdio(&config), Stdio::Terminal);
    assert_eq!(config["linux"]["resources"]["memory"]["limit"], 64 << 20);
    let last = config["mounts"].as_array().unwrap().last().unwrap();
    assert_eq!(
        *last,
        json!({ "type": "bind", "source": "/a", "destination": "/b", "options": ["rbind", "ro"] })
    );
}

#[test]
fn user_namespace_brings_its_mappings_and_no_foreign_sysfs() {
    let range = IdMapping { inside: 0, outside: 100_000, size: 65_536 };
    let pod = InPod {
        namespaces: vec![(NamespaceKind::User, "/p/userns/a".into())],
        uid_mappings: vec![range],
        gid_mappings: vec![range],
        cgroups_path: "/podinit/a/c".into(),
    };
    let config = from_rootfs(&rootfs(), &process(&["sh"]), &Extras::default(), &pod);
    let wanted = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    assert_eq!(config["linux"]["uidMappings"], wanted);
    assert_eq!(config["linux"]["gidMappings"], wanted);
    let mounts = config["mounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["type"] != "sysfs"), "{mounts:?}");
}

#[test]
fn bundle_keeps_what_is_its_own() {
    let theirs = json!({
        "ociVersion": "1.0.2",
        "hostname": "theirs",
        "process": { "args": ["server"], "env": ["A=1"], "cwd": "/", "terminal": true },
        "root": { "path": "rootfs" },
        "mounts": [
            { "type": "bind", "source": "data", "destination": "/data" },
            { "type": "tmpfs", "source": "tmpfs", "destination": "/tmp" },
        ],
        "linux": {
            "namespaces": [{ "type": "network" }, { "type": "ipc" }, { "type": "mount" }],
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" },
        },
        "annotations": { "x": "y" },
    });
    let config =
        from_bundle(&theirs.to_string(), Path::new("/b"), &process(&[]), &Extras::default(), &pod()).unwrap();
    assert_eq!(config["process"]["args"], json!(["server"]));
    assert_eq!(config["process"]["env"], json!(["A=1", "TERM=xterm"]));
    assert_eq!(stdio(&config), Stdio::Terminal);
    assert_eq!(config["root"]["path"], "/b/rootfs");
    assert_eq!(config["mounts"][0]["source"], "/b/data");
    assert_eq!(config["mounts"][1]["source"], "tmpfs");
    assert_eq!(config["annotations"], theirs["annotations"]);
    assert_eq!(config["linux"]["seccomp"], theirs["linux"]["seccomp"]);
    assert_eq!(config.get("hostname"), None);
    let kinds: Vec<String> = namespaces(&config).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["mount", "network", "pid", "uts"]);
}

#[test]
fn bundle_that_is_none_is_an_error_not_a_panic() {
    let dir = Path::new("/b");
    for bad in ["", "[]", "{}", "null", r#"{"process":1,"root":{}}"#] {
        assert!(from_bundle(bad, dir, &process(&[]), &Extras::default(), &pod()).is_err(), "{bad}");
    }
    // Odd types where lists and objects belong are replaced by what is needed.
    let odd = r#"{"process":{"env":7},"root":{},"mounts":"x","linux":[]}"#;
    let config = from_bundle(odd, dir, &process(&["a"]), &Extras::default(), &pod()).unwrap();
    assert_eq!(config["process"]["args"], json!(["a"]));
}

#[test]
fn bundle_is_written_once_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("bundles/c");
    write(&directory, &json!({ "a": 1 })).unwrap();
    let mode = fs::metadata(directory.join("config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(read(&directory).unwrap(), "{\n  \"a\": 1\n}");
    assert!(write(&directory, &json!({})).is_err());
    assert!(read(root.path()).is_err());
}

#[test]
fn mounts_are_parsed() {
    let tmpfs = parse_mount("type=tmpfs,dst=/t,size=1m").unwrap();
    assert_eq!((tmpfs.kind.as_str(), tmpfs.options), ("tmpfs", vec!["size=1m".to_owned()]));
    let bind = parse_mount("type=bind,source=/a,target=/b,readonly").unwrap();
    assert_eq!(bind, parse_volume("/a:/b:ro").unwrap());
    for bad in ["", "dst=/a", "src=/a", "type=nfs,src=/a,dst=/b", "type=tmpfs,src=/a,dst=/b", "src=a,dst=/b"]
    {
        assert!(parse_mount(bad).is_err(), "{bad}");
    }
    for bad in ["", "/a", "/a:b", "/a:/b:ro:x"] {
        assert!(parse_volume(bad).is_err(), "{bad}");
    }
}

#[test]
fn users_are_numbers() {
    assert_eq!(parse_user("1000"), Ok(User { uid: 1000, gid: 0 }));
    assert_eq!(parse_user("1:2"), Ok(User { uid: 1, gid: 2 }));
    for bad in ["", "root", "1:", "-1", "1:2:3", "4294967296"] {
        assert!(parse_user(bad).is_err(), "{bad}");
    }
}
