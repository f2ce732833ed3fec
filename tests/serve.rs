//! `podinit serve` and `conmonrs` as an engine calls them: what is printed, what
//! is refused and how, and that a refusal leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{FlockOperation, flock};

fn podinit(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podinit"));
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("CONMON_")) {
        command.env_remove(variable);
    }
    command.arg0(name).args(args).output().unwrap()
}

fn serve(directory: &Path) -> Output {
    podinit("podinit", &["serve", "--runtime", "/bin/true", "--runtime-dir", directory.to_str().unwrap()])
}

/// It failed with this exit status and one line, which says all of `words`.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "nothing on standard output");
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

#[test]
fn version_json_is_all_that_is_printed() {
    for (name, args) in [
        ("podinit", &["--version-json"][..]),
        ("podinit", &["serve", "--vj"]),
        ("/usr/bin/conmonrs", &["--version-json", "default"]),
        ("conmonrs", &["-j", "full"]),
        ("podinit", &["conmonrs", "--version-json=full"]),
    ] {
        let output = podinit(name, args);
        assert!(output.status.success() && output.stderr.is_empty(), "{name} {args:?}");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let document = document.as_object().unwrap();
        let mut keys: Vec<_> = document.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "build_date",
                "cargo_tree",
                "cargo_version",
                "commit",
                "rust_version",
                "tag",
                "target",
                "verbose",
                "version"
            ]
        );
        let full = args.iter().any(|arg| arg.ends_with("full"));
        assert_eq!(document["verbose"], full);
        for (key, value) in document.iter().filter(|(key, _)| *key != "verbose") {
            assert!(
                value.as_str().is_some_and(|text| text.is_empty() == (key == "cargo_tree" && !full)),
                "{key}"
            );
        }
    }
}

#[test]
fn version_lines_are_those_of_conmon_rs() {
    let output = podinit("conmonrs", &["--version"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    let beginnings = ["version: ", "tag: ", "commit: ", "build: ", "target: ", "rustc ", "cargo "];
    assert_eq!(text.lines().count(), beginnings.len(), "{text}");
    for (line, beginning) in text.lines().zip(beginnings) {
        assert!(line.starts_with(beginning), "{line}");
    }
    let full = podinit("podinit", &["-v", "full"]).stdout;
    assert!(full.len() > text.len() && full.starts_with(text.as_bytes()));
}

/// CRI-O and the Go client look for these words to tell that a monitor is too old.
#[test]
fn an_unknown_option_is_an_unexpected_argument() {
    for (name, args) in [("conmonrs", &["--nonsense"][..]), ("podinit", &["serve", "--nonsense"])] {
        let output = podinit(name, args);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stderr.starts_with(b"error: unexpected argument"));
    }
}

#[test]
fn help_names_the_commands() {
    let output = podinit("podinit", &["--help"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("\n  serve "));
}

#[test]
fn missing_and_wrong_settings_are_told_with_the_flag() {
    assert_refused(&podinit("conmonrs", &[]), 1, &["--runtime PATH", "CONMON_RUNTIME"]);
    let line = ["--runtime", "/bin/true", "--runtime-dir", " "];
    assert_refused(&podinit("conmonrs", &line), 1, &["--runtime-dir DIR"]);
    let line = ["--runtime", "/nowhere/crun", "--runtime-dir", "/nowhere/x"];
    assert_refused(&podinit("conmonrs", &line), 1, &["/nowhere/crun", "No such file"]);
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn settings_come_from_the_environment_too() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podinit"));
    command.arg0("conmonrs").env("CONMON_RUNTIME", "/nowhere/runc").env("CONMON_RUNTIME_DIR", "/nowhere/x");
    assert_refused(&command.output().unwrap(), 1, &["/nowhere/runc"]);
}

/// conmon-rs: a second server in the same directory unlinks the live socket and takes over.
#[test]
fn a_second_server_does_not_steal_the_socket_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("conmon.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let inode = fs::metadata(&socket).unwrap().ino();
    let path = directory.path().join("lock");
    fs::write(&path, "4711").unwrap();
    let lock = File::open(&path).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();

    assert_refused(&serve(directory.path()), 1, &["served already", "4711"]);
    assert_eq!(fs::metadata(&socket).unwrap().ino(), inode);
    assert_eq!(fs::read_to_string(&path).unwrap(), "4711");
}

#[test]
fn a_lock_that_is_a_link_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("precious");
    fs::write(&target, "content").unwrap();
    symlink(&target, directory.path().join("lock")).unwrap();
    assert_refused(&serve(directory.path()), 1, &["lock"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "content");
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(12345), None).unwrap();
    assert_refused(&serve(directory.path()), 1, &["belongs to user 12345"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_run_directory_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_refused(&serve(file.path()), 1, &["make the directory"]);
    assert_refused(&serve(&file.path().join("below")), 1, &["make the directory"]);
}

#[test]
fn an_existing_run_directory_keeps_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // What cannot be made is refused after the run directory was accepted.
    fs::create_dir(directory.path().join("conmon.sock")).unwrap();
    assert_refused(&serve(directory.path()), 1, &["conmon.sock"]);
    assert_eq!(fs::metadata(directory.path()).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(!directory.path().join("lock").exists(), "the lock is removed again");
}
