//! What `podinit seccomp` tells of a pod whose calls are notified.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::cell::RefCell;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use common::{Pod, eventually};
use serde_json::Value;

const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];

/// `podinit seccomp` for the pod.
fn seccomp(pod: &Pod, line: &[&str]) -> Output {
    let mut command = Command::new(common::binary());
    command.arg("seccomp").args(line).arg("--socket").arg(pod.socket());
    command.output().expect("the binary runs")
}

/// Its standard output, where it must succeed.
fn printed(pod: &Pod, line: &[&str]) -> String {
    let output = seccomp(pod, line);
    assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn json(pod: &Pod, line: &[&str]) -> Value {
    let text = printed(pod, &[line, &["--output", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The words of each line of a table, its headings left out.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
}

fn load(pod: &Pod, rules: &str) {
    let rules = format!(r#"{{"version": 1, "defaults": {{"patienceMs": 0}}, "rules": [{rules}]}}"#);
    pod.call(async |client| client.seccomp_load_rules(&rules).await).expect("rules");
}

#[test]
fn a_recording_is_a_profile_and_a_table_of_counts() {
    let pod = Pod::start();
    load(&pod, r#"{"name": "record", "do": {"record": {"then": "errno:EROFS"}}}"#);
    let calls = [&MKDIR[..], &["chmod", "fchmodat", "fchmodat2"]].concat();
    pod.run_notified("c", &calls, "mkdir /tmp/a; mkdir /tmp/b; mkdir /tmp/c; busybox chmod 700 /tmp; exit 0");
    pod.wait("c");
    let id = pod.id("c");

    let profile: Value = serde_json::from_str(&printed(&pod, &["profile", &id])).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let names = profile["syscalls"][0]["names"].as_array().unwrap();
    assert_eq!(names.len(), 2, "{profile}");
    let of_profile = |field: &str| profile.as_object().unwrap().contains_key(field);
    assert!(!of_profile("counts") && !of_profile("calls"), "it is for OCI runtimes: {profile}");

    let recorded = json(&pod, &["profile", &id]);
    let recorded = recorded.as_array().unwrap();
    let counts: Vec<_> = recorded.iter().map(|call| call["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [3, 1], "the most frequent first: {recorded:?}");
    assert!(MKDIR.contains(&recorded[0]["name"].as_str().unwrap()), "{recorded:?}");
    assert_eq!(recorded[0]["architecture"], profile["architectures"][0]);

    let table = printed(&pod, &["profile", &id, "--output", "table"]);
    let name = recorded[0]["name"].as_str().unwrap();
    assert_eq!(rows(&table)[0], [name, recorded[0]["architecture"].as_str().unwrap(), "3"]);

    // Nothing was recorded of another one, and a socket is a pod already.
    let output = seccomp(&pod, &["profile", "other"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was recorded"), "{output:?}");
    assert_eq!(seccomp(&pod, &["profile", &format!("pod/{id}")]).status.code(), Some(2));
}

#[test]
fn statistics_are_of_whole_calls_and_of_who_was_asked() {
    let pod = Pod::start();
    load(
        &pod,
        r#"{"name": "passes", "do": "notifierAction"},
           {"name": "refuses", "do": {"errno": "EROFS"}}"#,
    );
    pod.run_notified("c", &MKDIR, "mkdir /tmp/a; mkdir /tmp/b; exit 0");
    pod.wait("c");
    let stats = json(&pod, &["stats"]);
    let shown = |list: &str| {
        let rows = stats[list].as_array().unwrap().iter();
        let shown = rows.map(|row| {
            let total: u64 = row["histogram"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
            (row["plugin"].as_str().unwrap_or("-"), row["verdict"].as_str().unwrap(), total)
        });
        shown.collect::<Vec<_>>()
    };
    assert_eq!(shown("rows"), [("passes", "pass", 2), ("refuses", "errno", 2)]);
    assert_eq!(shown("calls"), [("-", "errno", 2)]);

    let text = printed(&pod, &["stats"]);
    let mut tables = text.split("\n\n").skip(1);
    let whole = rows(tables.next().unwrap());
    assert_eq!((whole.len(), &whole[0][1..3]), (1, &["errno", "2"][..]), "{text}");
    let who = rows(tables.next().unwrap());
    assert_eq!(who.iter().map(|row| row[0]).collect::<Vec<_>>(), ["passes", "refuses"], "{text}");
}

#[test]
fn a_rule_that_waits_for_its_plugin_is_listed_as_such() {
    let pod = Pod::start();
    load(
        &pod,
        r#"{"name": "always", "do": {"errno": "EROFS"}},
           {"name": "rest", "needs": ["guard", "other"], "do": "continue"}"#,
    );
    let missing = |listed: &Value| {
        let plugins = listed["plugins"].as_array().unwrap().iter();
        plugins.map(|plugin| plugin["missing"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(missing(&json(&pod, &["ls"])), ["[]", r#"["guard","other"]"#]);
    let text = printed(&pod, &["ls"]);
    assert!(text.lines().any(|line| line.contains("rest") && line.ends_with("guard,other")), "{text}");
}

/// A command that needs no pod: exit code, standard output and standard error.
fn alone(line: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(common::binary()).arg("seccomp").args(line).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_other_socket_of_a_pod_is_told_from_an_older_pod() {
    let pod = Pod::start();
    let (conmon, plugins) = (pod.socket(), pod.run_dir().join("plugins.sock"));
    for (line, wanted) in [
        (&["ls", "--socket", plugins.to_str().unwrap()][..], "name conmon.sock"),
        (&["profile", "c", "--socket", plugins.to_str().unwrap()], "name conmon.sock"),
        (
            &["answer", "--syscall", "mkdir", "--verdict", "pass", "--socket", conmon.to_str().unwrap()],
            "name plugins.sock",
        ),
    ] {
        let (code, _, said) = alone(line);
        assert_eq!(code, Some(1), "{line:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("older"), "{line:?}: {said}");
    }
    let (code, _, said) = alone(&["ls"]);
    assert!(code == Some(2) && said.contains("--socket"), "{said}");
}

#[test]
fn a_directory_of_rules_is_checked_as_a_whole() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().to_str().unwrap();
    let write = |name: &str, rule: &str| {
        let text = format!(r#"{{"version": 1, "rules": [{{"name": "r", {rule}}}]}}"#);
        std::fs::write(place.path().join(name), text).unwrap();
    };
    write("a.json", r#""do": "deny""#);
    assert_eq!(alone(&["check", path]), (Some(0), "nothing found\n".to_owned(), String::new()));
    assert_eq!(alone(&["check", path, "--output", "json"]).1.trim(), "[]");
    write("b.json", r#""do": "deny""#);
    let (code, found, _) = alone(&["check", path]);
    assert!(code == Some(0) && found.contains("duplicate-name"), "{found}");
    write("c.json", r#""do": "deny", "match": {"syscalls": []}"#);
    let (code, _, said) = alone(&["check", path]);
    assert!(code == Some(1) && said.contains("c.json") && said.contains("restricts nothing"), "{said}");
}

#[test]
fn a_replay_that_compared_nothing_has_not_found_what_was_expected() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (calls, socket) = (path("calls.json"), path("socket"));
    // Of one that was killed while it waited.
    drop(UnixListener::bind(&socket).unwrap());
    let (code, _, said) = alone(&["replay", "--plugin", &socket, "/dev/null"]);
    assert!(
        code == Some(1) && said.contains("no plugin can be reached") && !said.contains("the pod"),
        "{said}"
    );
    let answer = ["answer", "--socket", &socket, "--syscall", "mkdir", "--verdict", "errno:EROFS"];
    for (recorded, is_expected) in [
        (r#"{"notification": {"name": "mkdir"}, "verdict": {"errno": 30}}"#, true),
        (r#"{"notification": {"name": "mkdir"}, "verdict": {"errno": 1}}"#, false),
        (r#"{"name": "mkdir"}"#, false),
        ("", false),
    ] {
        std::fs::write(&calls, recorded).unwrap();
        let mut replay = Command::new(common::binary());
        replay.args(["seccomp", "replay", "--expect", "--serve", &socket, &calls]);
        let replay = replay.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a replay");
        let replay = RefCell::new(replay);
        eventually(|| {
            alone(&answer);
            replay.borrow_mut().try_wait().unwrap().is_some()
        });
        let replayed = replay.into_inner().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&replayed.stderr);
        assert!(said.contains("waiting for a plugin"), "{said}");
        assert_eq!(replayed.status.success(), is_expected, "{recorded}: {said}");
        // The next one begins where one was killed.
        drop(UnixListener::bind(&socket).unwrap());
    }
}
