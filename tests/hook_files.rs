//! Hook files: the same files, given to podinit and to podman, whose hooks leave
//! marks. Podman 4.3, as Debian has it, is the reference for hooks.d 1.0.0.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use common::{Place, which};
use serde_json::{Value, json};

/// Hook files of one test, and a podman that has its state beside them.
struct Files {
    place: Place,
}

impl Files {
    fn new() -> Self {
        let files = Self { place: Place::new() };
        // Its locks are files of the test's own, not shared memory of the machine's.
        fs::write(files.place.path("containers.conf"), "[engine]\nlock_type = \"file\"\n").unwrap();
        files
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.place.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A hook file whose hook writes its file's name to the marks.
    fn hook(&self, directory: &str, name: &str, when: &Value) {
        // crun 1.8 fails if a hook ends before it was given all of its input.
        let marks = self.place.path("marks");
        let script = format!("/bin/cat > /dev/null; echo {directory}/{name} >> {}", marks.display());
        let file = json!({
            "version": "1.0.0",
            "hook": {"path": "/bin/sh", "args": ["sh", "-c", script]},
            "when": when,
            "stages": ["createRuntime"],
        });
        self.write(directory, name, file.to_string().as_bytes());
    }

    fn write(&self, directory: &str, name: &str, text: &[u8]) {
        fs::write(self.directory(directory).join(name), text).unwrap();
    }

    /// A first hook that keeps what podman gives the OCI runtime, as the bundle `seen`.
    fn keep_config(&self, directory: &str) {
        let seen = self.directory("seen");
        let script = format!(
            "sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/' | xargs -I @bundle@ cp @bundle@/config.json {}",
            seen.display()
        );
        let file = json!({
            "version": "1.0.0",
            "hook": {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]},
            "when": {"always": true},
            "stages": ["createRuntime"],
        });
        self.write(directory, "!keep.json", file.to_string().as_bytes());
    }

    /// Runs a container with podman; what it says, and which hooks ran, in order.
    fn podman(&self, directories: &[&str], options: &[&str], command: &str) -> (Output, Vec<String>) {
        let (place, marks) = (&self.place, self.place.path("marks"));
        fs::write(&marks, "").unwrap();
        let mut podman = Command::new(which("podman"));
        podman.env("CONTAINERS_CONF", place.path("containers.conf"));
        podman.args(["--storage-driver=vfs", "--events-backend=none", "--cgroup-manager=cgroupfs"]);
        podman.args(["--runtime", "crun"]);
        podman.arg(format!("--runtime-flag=root={}", place.path("podman/crun").display()));
        for (option, below) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
            ("--network-config-dir", "networks"),
        ] {
            podman.arg(option).arg(self.directory("podman").join(below));
        }
        for directory in directories {
            podman.arg("--hooks-dir").arg(place.path(directory));
        }
        // Not the defaults, which are more than a test may be allowed.
        podman.args(["run", "--rm", "--cgroups=disabled", "--network=none", "--ulimit=nofile=1024:1024"]);
        podman.arg("--ulimit=nproc=1024:1024").args(options);
        let output = podman.arg("--rootfs").arg(place.path("rootfs")).arg(command).output().unwrap();
        let marks = fs::read_to_string(marks).unwrap().lines().map(str::to_owned).collect();
        (output, marks)
    }

    fn check(&self, directories: &[&str], bundle: Option<&str>) -> (bool, String, String) {
        let mut check = Command::new(common::binary());
        check.args(["hook", "check"]).args(directories.iter().map(|name| self.place.path(name)));
        if let Some(bundle) = bundle {
            check.arg("--bundle").arg(self.place.path(bundle));
        }
        let output = check.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    /// The hooks that podinit would run for a bundle's container, in order.
    fn chosen(&self, directories: &[&str], bundle: &str) -> Vec<String> {
        let (good, said, wrong) = self.check(directories, Some(bundle));
        assert!(good, "{wrong}");
        let mut chosen = Vec::new();
        let mut hook = "";
        for line in said.lines() {
            match line.strip_prefix("   ") {
                None => hook = line.split(' ').nth(1).unwrap(),
                Some(line) if line.starts_with("runs for the container") => chosen.push(hook),
                Some(_) => {}
            }
        }
        let below = |path: &str| PathBuf::from(path).strip_prefix(self.place.path("")).unwrap().to_owned();
        let names = chosen.into_iter().map(|path| below(path).to_str().unwrap().to_owned());
        names.filter(|name| !name.ends_with("!keep.json")).collect()
    }
}

/// Conditions, one hook each: every rule of the format.
fn conditions() -> Vec<Value> {
    vec![
        json!({}),
        json!({"always": true}),
        json!({"always": false}),
        json!({"always": null}),
        json!({"always": null, "commands": ["true"]}),
        json!({"always": true, "annotations": {"^test.a$": "^1$"}}),
        json!({"always": false, "annotations": {"^test.a$": "^1$"}}),
        json!({"always": true, "annotations": {"^test.a$": "^2$"}}),
        json!({"always": true, "commands": ["false"]}),
        json!({"always": true, "hasBindMounts": true}),
        json!({"always": true, "hasBindMounts": false}),
        json!({"hasBindMounts": true}),
        json!({"hasBindMounts": false}),
        json!({"hasBindMounts": null}),
        json!({"hasbindmounts": true, "ALWAYS": true}),
        json!({"annotations": {}}),
        json!({"annotations": null}),
        json!({"annotations": {"": ""}}),
        json!({"annotations": {"test.a": "1"}}),
        json!({"annotations": {"test.a": "2"}}),
        json!({"annotations": {"^a$": "1"}}),
        json!({"annotations": {"est.": "^two words$"}}),
        json!({"annotations": {"^test\\.": "^x$"}}),
        json!({"annotations": {"test.a": "1", "test.b": "two"}}),
        json!({"annotations": {"test.a": "1", "test.b": "three"}}),
        json!({"annotations": {"test.*": "^$"}}),
        json!({"annotations": {".*": "1|x"}}),
        json!({"annotations": {"^test.é$": "."}}),
        json!({"annotations": {"(?i)^TEST.A$": "[[:digit:]]"}}),
        json!({"annotations": {"^test.a$": "\\D"}}),
        json!({"annotations": {"^test.b$": "\\bwords\\b"}}),
        json!({"annotations": {"^test.lt$": "\\<b\\>"}}),
        json!({"annotations": {"^test.lt$": "^b$"}}),
        json!({"annotations": {"^test.brace$": "^a{,2}$"}}),
        json!({"annotations": {"^test.brace$": "^\\Qa{,2}\\E$"}}),
        json!({"annotations": {"^test.lines$": "^one$"}}),
        json!({"annotations": {"^test.lines$": "(?m)^two$"}}),
        json!({"annotations": {"^test.lines$": "one.two"}}),
        json!({"annotations": {"^test.lines$": "(?s)one.two"}}),
        json!({"annotations": {"^test.lines$": "(?P<first>one)\\s(?:two)"}}),
        json!({"commands": []}),
        json!({"commands": null}),
        json!({"commands": [""]}),
        json!({"commands": ["true"]}),
        json!({"commands": ["^true$"]}),
        json!({"commands": ["^/bin/true$"]}),
        json!({"commands": ["^/bin/(true|false)$"]}),
        json!({"commands": ["nothing", "also nothing"]}),
        json!({"commands": ["nothing", "/tr"]}),
        json!({"commands": ["true"], "hasBindMounts": true}),
        json!({"commands": ["true"], "hasBindMounts": true, "annotations": {"test.a": "1"}}),
        json!({"commands": ["x{1000}"], "hasBindMounts": true}),
        json!({"commands": ["true"], "unknown": 1}),
    ]
}

#[test]
fn matching_is_what_podman_does() {
    let files = Files::new();
    files.keep_config("hooks");
    let conditions = conditions();
    for (at, when) in conditions.iter().enumerate() {
        files.hook("hooks", &format!("{at:02}.json"), when);
    }
    let annotations = [
        "test.a=1",
        "test.b=two words",
        "test.é=é",
        "test.lt=<b>",
        // Podman takes a list of fields, which are quoted as in CSV.
        "\"test.brace=a{,2}\"",
        "\"test.lines=one\ntwo\"",
        "test.empty=",
        "other=x",
    ];
    let annotations: Vec<_> = annotations.iter().flat_map(|pair| ["--annotation", pair]).collect();
    let volume = format!("{}:/data", files.place.path("tmp").display());
    let mounted = [&annotations[..], &["--volume", &volume]].concat();
    let containers = [(&annotations[..], "/bin/true"), (&mounted, "/bin/true"), (&[], "/bin/echo")];
    let mut counts = Vec::new();
    for (options, command) in containers {
        let (output, ran) = files.podman(&["hooks"], options, command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(files.chosen(&["hooks"], "seen"), ran, "{options:?} {command}");
        counts.push(ran.len());
    }
    // That some run and some do not was decided by somebody who read the format.
    assert_eq!(counts, [24, 29, 4], "of {}", conditions.len());
}

#[test]
fn directories_and_order_are_what_podman_has() {
    let files = Files::new();
    files.keep_config("a");
    let always = json!({"always": true});
    for name in ["B.json", "a.json", "C.json", "_.json", "10.json", "9.json", "é.json", "Z.json", "z1.json"]
    {
        files.hook("a", name, &always);
    }
    for (name, when) in
        [("a.json", &always), ("9.json", &json!({})), ("É0.json", &always), ("new.json", &always)]
    {
        files.hook("b", name, when);
    }
    files.write("b", "not a hook", b"{");
    files.write("b", "x.json.bak", b"{");
    files.write("b", "x.JSON", b"{");
    symlink("new.json", files.place.path("b/link.json")).unwrap();
    symlink("nothing", files.place.path("b/nowhere.json")).unwrap();
    for directories in [&["a", "b"][..], &["a"], &["a", "b", "a"], &["a", "missing"]] {
        files.directory("missing");
        fs::remove_dir(files.place.path("missing")).unwrap();
        let (output, ran) = files.podman(directories, &[], "/bin/true");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let there: Vec<_> = directories.iter().copied().filter(|name| *name != "missing").collect();
        let chosen = files.chosen(&there, "seen");
        // The hook that a link leads to marks itself by its own name.
        let chosen: Vec<_> = chosen.iter().map(|name| name.replace("link.json", "new.json")).collect();
        assert_eq!(chosen, ran, "{directories:?}");
        assert!(ran.len() >= 9, "{ran:?}");
    }
}

/// Who takes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Both,
    Neither,
    /// Podman does; the page on hooks says why podinit does not.
    Podman,
    /// It has what only podinit knows.
    Podinit,
}

/// Texts of files, and who takes them.
fn texts() -> Vec<(String, Taken)> {
    let good = json!({"version": "1.0.0", "hook": {"path": "/bin/true"}, "when": {}, "stages": ["poststop"]});
    let with = |pointer: &str, value: Value| {
        let mut file = good.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        file.pointer_mut(parent).unwrap()[name] = value;
        file.to_string()
    };
    let without = |name: &str| {
        let mut file = good.clone();
        file.as_object_mut().unwrap().remove(name);
        file.to_string()
    };
    let older = json!({"hook": "/bin/true", "stages": ["poststop"], "cmds": ["x"]});
    vec![
        (good.to_string(), Taken::Both),
        (with("/podinit", json!({"failure": "warn", "stages": ["podReady"]})), Taken::Both),
        (with("/stages", json!([])), Taken::Both),
        (with("/other", json!({"a": [1, {"b": null}]})), Taken::Both),
        (with("/hook/timeout", json!(1)), Taken::Both),
        (with("/hook/args", Value::Null), Taken::Both),
        (without("when"), Taken::Both),
        (format!(" \n{}\n", good.to_string().replace("version", "vErSiOn")), Taken::Both),
        (with("/hook/path", json!("/bin")), Taken::Both),
        (String::new(), Taken::Neither),
        ("null".to_owned(), Taken::Neither),
        ("[]".to_owned(), Taken::Neither),
        ("{".to_owned(), Taken::Neither),
        (format!("{good}x"), Taken::Neither),
        (with("/version", json!("1.0.1")), Taken::Neither),
        (with("/version", json!(1)), Taken::Neither),
        (without("hook"), Taken::Neither),
        (without("stages"), Taken::Neither),
        (with("/stages", Value::Null), Taken::Neither),
        (with("/stages", json!("poststop")), Taken::Neither),
        (with("/stages", json!(["postStop"])), Taken::Neither),
        (with("/stages", json!([""])), Taken::Neither),
        (with("/hook/path", json!("")), Taken::Neither),
        (with("/hook/args", json!("x")), Taken::Neither),
        (with("/hook/timeout", json!(1.0)), Taken::Neither),
        (with("/hook/timeout", json!("1")), Taken::Neither),
        (with("/when/always", json!("true")), Taken::Neither),
        (with("/when/annotations", json!({"[": "a"})), Taken::Neither),
        (with("/when/annotations", json!({"a": "(?=b)"})), Taken::Neither),
        (with("/when/annotations", json!(["a"])), Taken::Neither),
        (with("/when/commands", json!(["a**"])), Taken::Neither),
        (with("/when/commands", json!("a")), Taken::Neither),
        (older.to_string(), Taken::Podman),
        // It goes on without the hook, and without a word.
        (with("/hook/path", json!("/no/such/program")), Taken::Podman),
        (with("/hook/path", json!("bin/true")), Taken::Podman),
        (with("/hook/timeout", json!(0)), Taken::Podman),
        (with("/hook/env", json!(["A"])), Taken::Podman),
        (with("/when/commands", json!(["\\pL"])), Taken::Podman),
        (with("/podinit", json!({"failures": "warn"})), Taken::Podman),
        (good.to_string().replace("\"when\":{}", "\"when\":{},\"When\":{}"), Taken::Podman),
        (with("/stages", json!(["podReady"])), Taken::Podinit),
    ]
}

#[test]
fn files_are_taken_as_podman_takes_them() {
    let files = Files::new();
    for (at, (text, taken)) in texts().into_iter().enumerate() {
        let directory = format!("hooks{at}");
        files.write(&directory, "a.json", text.as_bytes());
        let (podman, _) = files.podman(&[&directory], &[], "/bin/true");
        let (good, _, wrong) = files.check(&[&directory], None);
        let found = match (podman.status.success(), good) {
            (true, true) => Taken::Both,
            (false, false) => Taken::Neither,
            (true, false) => Taken::Podman,
            (false, true) => Taken::Podinit,
        };
        let podman = String::from_utf8_lossy(&podman.stderr);
        assert_eq!(found, taken, "{text}\npodman: {podman}\npodinit: {wrong}");
    }
}

#[test]
fn check_explains() {
    let files = Files::new();
    files.hook("low", "1.json", &json!({"always": true}));
    files.hook("low", "2.json", &json!({"annotations": {"^a$": "b"}, "commands": ["sh"]}));
    files.hook("high", "1.json", &json!({"hasBindMounts": false}));
    let program = files.place.path("program");
    fs::write(&program, "").unwrap();
    let own = json!({
        "version": "1.0.0",
        "hook": {"path": program, "timeout": 601},
        "when": {"annotations": {"a": "b"}},
        "stages": ["prestart", "poststop"],
        "podinit": {"stages": ["podReady"], "after": ["2.json", "none.json"], "namespaces": ["mnt"]},
        "comment": "x",
    });
    files.write("high", "0.json", own.to_string().as_bytes());
    files.directory("bundle");
    let config = json!({"annotations": {"a": "b"}, "process": {"args": ["/bin/ls"]}});
    files.write("bundle", "config.json", config.to_string().as_bytes());

    let (good, said, wrong) = files.check(&["low", "high"], Some("bundle"));
    assert!(good && wrong.is_empty(), "{wrong}");
    let (low, high) = (files.place.path("low"), files.place.path("high"));
    let (low, high, program) = (low.display(), high.display(), program.display());
    let expected = format!(
        "1. {high}/1.json at createRuntime\n   \
            hasBindMounts: false: does not hold\n   \
            does not run for the container\n   \
            note: hasBindMounts: false never holds, so the hook never runs\n\
         2. {low}/2.json at createRuntime\n   \
            annotations: \"^a$\": \"b\": holds\n   \
            commands: [\"sh\"]: does not hold\n   \
            does not run for the container\n\
         3. {high}/0.json at createRuntime, poststop, podReady\n   \
            annotations: \"a\": \"b\": holds\n   \
            runs for the container at createRuntime, poststop\n   \
            does not run for its pod\n   \
            note: comment is not known, and ignored\n   \
            note: {program} cannot be executed; chmod +x\n   \
            note: at podReady there is no container, so nothing but always: true holds\n   \
            note: it is given 600 seconds at most\n   \
            note: at poststop the container's mnt namespace is gone, so the hook fails\n   \
            note: there is no hook \"none.json\" to come after or before\n   \
         {low}/1.json: not read: {high}/1.json replaces it\n"
    );
    assert_eq!(said, expected);
}

#[test]
fn check_fails_for_whatever_is_wrong() {
    let files = Files::new();
    files.hook("hooks", "good.json", &json!({"always": true}));
    assert!(files.check(&["hooks"], None).0);

    let (good, _, wrong) = files.check(&["hooks", "none"], None);
    assert!(!good && wrong.contains("looking into"), "{wrong}");

    files.write(
        "hooks",
        "broken.json",
        b"{\"hook\": \"/bin/true\", \"stage\": [\"poststop\"], \"cmd\": [\"sh\"]}",
    );
    let (good, said, wrong) = files.check(&["hooks"], None);
    assert!(!good && said.contains("good.json"), "{said}");
    assert!(wrong.contains("broken.json: it is of the format 0.1.0"), "{wrong}");
    assert!(wrong.contains("{\"hook\":{\"path\":\"/bin/true\"},\"stages\":[\"poststop\"]"), "{wrong}");
    assert!(wrong.ends_with("podinit: faults: 1; hook files: 2\n"), "{wrong}");

    fs::remove_file(files.place.path("hooks/broken.json")).unwrap();
    for (name, other) in [("x.json", "y.json"), ("y.json", "x.json")] {
        let file = json!({
            "version": "1.0.0", "hook": {"path": "/bin/true"}, "when": {"always": true}, "stages": [],
            "podinit": {"after": [other]},
        });
        files.write("hooks", name, file.to_string().as_bytes());
    }
    let (good, _, wrong) = files.check(&["hooks"], None);
    assert!(!good && wrong.contains("after and before contradict each other"), "{wrong}");

    fs::remove_file(files.place.path("hooks/x.json")).unwrap();
    let everybody = fs::Permissions::from_mode(0o666);
    fs::set_permissions(files.place.path("hooks/y.json"), everybody).unwrap();
    let (good, _, wrong) = files.check(&["hooks"], None);
    assert!(!good && wrong.contains("chmod o-w"), "{wrong}");

    let (good, _, wrong) = files.check(&["hooks"], Some("no-bundle"));
    assert!(!good && wrong.contains("no-bundle/config.json"), "{wrong}");
}
