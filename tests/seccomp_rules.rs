//! Rules in files: what happens while they cannot be used, and what the log is told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]

mod common;
mod seccomp_target;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, Once};

use common::{Options, Place, Pod, eventually};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{getpgid, mkfifo};
use podinit::seccomp::plugin::{PluginFailure, Registration};
use podinit::seccomp::rules::UNREADABLE;
use podinit::seccomp::start;
use podinit::seccomp::verdict::OnFailure;
use seccomp_target::{MKDIR, Own, failure, notify_with, registration, state};

const CALLS: [&str; 1] = ["getpgid"];

/// A rule for all calls, as the only one of its file.
fn rules(name: &str, action: &str) -> String {
    format!(
        r#"{{"version": 1, "defaults": {{"patienceMs": 0}}, "rules": [{{"name": "{name}", "do": {action}}}]}}"#
    )
}

/// A broker whose rules are those at `below` in a directory that `prepare` has filled.
fn started(below: &str, prepare: impl FnOnce(&Path)) -> Own {
    let directory = tempfile::tempdir().unwrap();
    prepare(directory.path());
    let listener = podinit::sys::socket::listen(
        &directory.path().join("seccomp.sock"),
        rustix::net::SocketType::STREAM,
        64,
    );
    let (sender, stops) = tokio::sync::mpsc::unbounded_channel();
    let options = podinit::seccomp::Options {
        pod: "p".to_owned(),
        doors: vec![podinit::seccomp::arrival::Door { listener: listener.unwrap(), container: None }],
        rules: Some(directory.path().join(below)),
        stops: sender,
    };
    Own { handle: start(options, Box::new(|_| {})).unwrap(), directory, stops }
}

/// Names of the rules that are asked.
fn asked(own: &Own) -> Vec<String> {
    own.ask(|broker| broker.registrations().into_iter().map(|listed| listed.registration.name).collect())
}

/// What a notified call returns.
fn answer(own: &Own) -> i32 {
    let call = || getpgid(None).map_or_else(|errno| -(errno as i32), nix::unistd::Pid::as_raw);
    own.thread(&CALLS, call).join().unwrap()
}

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Keeps from now on what is logged.
fn keep_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Lines).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// How many lines of the log have all of `words`.
fn lines(words: &[&str]) -> usize {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

#[test]
fn rules_that_cannot_be_read_at_the_start_let_nothing_through_until_they_are_mended() {
    let place = Place::new();
    let (directory, log) = (place.path("seccomp.d"), place.path("log"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.json"), rules("deny all", r#""deny""#)).unwrap();
    fs::write(directory.join("b.json"), "{oops").unwrap();
    let arguments = vec!["--seccomp-rules".to_owned(), directory.to_str().unwrap().to_owned()];
    let file = fs::File::create(&log).unwrap();
    let options = Options { arguments, log: Some(file.into()), ..Options::default() };
    let pod = Pod::start_in(place, options);
    let script = "mkdir /tmp/a; until mkdir /tmp/b 2>/dev/null; do sleep 0.02; done; exit 0";
    pod.run_notified("c", &MKDIR, script);
    eventually(|| {
        let stats = pod.call(async |client| client.seccomp_stats().await).unwrap();
        stats.rows.iter().any(|row| row.plugin == UNREADABLE && row.verdict == "errno")
    });

    let mut list = Command::new(common::binary());
    let list = list.args(["seccomp", "ls", "--socket"]).arg(pod.socket()).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.contains(UNREADABLE), "{list}");
    assert!(!list.contains("deny all"), "{list}");
    let told = || fs::read_to_string(&log).unwrap();
    eventually(|| told().contains("b.json"));
    let line = told().lines().find(|line| line.contains("b.json")).unwrap().to_owned();
    assert!(line.contains("line 1 column 2") && line.contains("ENOSYS"), "{line}");

    fs::remove_file(directory.join("a.json")).unwrap();
    fs::write(directory.join("b.json"), rules("mended", r#""continue""#)).unwrap();
    let said = pod.output("c");
    assert!(said.contains("Function not implemented"), "{said}");
    assert_eq!(pod.seccomp_plugins(), ["mended"]);
}

#[test]
fn rules_that_are_loaded_stand_in_for_files_that_cannot_be_read() {
    keep_log();
    let own = started("broken.json", |place| fs::write(place.join("broken.json"), "{oops").unwrap());
    assert_eq!(asked(&own), [UNREADABLE]);
    assert_eq!(answer(&own), -libc::ENOSYS);
    own.rules(r#"{"name": "loaded", "do": {"return": 7}}"#);
    assert_eq!(answer(&own), 7);
    let path = own.directory.path().join("broken.json");
    fs::write(&path, "{still").unwrap();
    eventually(|| lines(&[path.to_str().unwrap(), "stay as they are"]) > 0);
    assert_eq!(answer(&own), 7);
    fs::write(&path, rules("file", r#"{"return": 8}"#)).unwrap();
    eventually(|| asked(&own) == ["file"]);
    assert_eq!(answer(&own), 8);
}

#[test]
fn a_rules_file_that_breaks_later_leaves_the_rules_of_before() {
    keep_log();
    let own = started("rules.json", |place| {
        fs::write(place.join("rules.json"), rules("file", r#"{"return": 8}"#)).unwrap();
    });
    assert_eq!(asked(&own), ["file"]);
    let path = own.directory.path().join("rules.json");
    fs::write(&path, "{oops").unwrap();
    eventually(|| lines(&[path.to_str().unwrap(), "stay as they are"]) > 0);
    assert_eq!(answer(&own), 8);
}

#[test]
fn a_fifo_among_the_rules_does_not_hold_the_broker_up() {
    keep_log();
    let own = started(".", |place| mkfifo(&place.join("fifo.json"), Mode::S_IRWXU).unwrap());
    assert_eq!(asked(&own), [UNREADABLE]);
    let path = own.directory.path().join("./fifo.json");
    assert_eq!(lines(&[path.to_str().unwrap(), "it is not a file"]), 1);
    fs::remove_file(path).unwrap();
    eventually(|| asked(&own).is_empty());
}

#[test]
fn rules_at_a_path_that_cannot_be_watched_apply_when_it_is_mended() {
    keep_log();
    let own = started("loop", |place| symlink("loop", place.join("loop")).unwrap());
    assert_eq!(asked(&own), [UNREADABLE]);
    let path = own.directory.path().join("loop");
    eventually(|| lines(&[path.to_str().unwrap(), "only looked for"]) == 1);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.json"), rules("first", r#""deny""#)).unwrap();
    eventually(|| asked(&own) == ["first"]);
    // And changes are followed from then on.
    fs::write(path.join("a.json"), rules("second", r#""deny""#)).unwrap();
    eventually(|| asked(&own) == ["second"]);
}

#[test]
fn a_file_that_is_not_there_has_no_rules_until_it_is() {
    let own = started("later.json", |_| {});
    assert!(asked(&own).is_empty());
    fs::write(own.directory.path().join("later.json"), rules("file", r#""deny""#)).unwrap();
    eventually(|| asked(&own) == ["file"]);
}

#[test]
fn the_log_is_told_once_of_what_a_container_does_again_and_again() {
    keep_log();
    let own = Own::start();
    let twenty_calls = || (0..20).map(|_| getpgid(None)).collect::<Vec<_>>();
    own.rules(r#"{"name": "d", "match": {"containers": ["denied-1", "denied-2"]}, "do": "deny"}, {"name": "n", "do": "notifierAction"}"#);
    for container in ["denied-1", "denied-2"] {
        let said = own.thread_of(container, &CALLS, twenty_calls).join().unwrap();
        assert_eq!(said, [Err(Errno::EPERM); 20]);
        assert_eq!(lines(&["seccomp denies getpgid", container]), 1);
    }

    let mut of_container: serde_json::Value = serde_json::from_str(&state("annotated")).unwrap();
    of_container["state"]["annotations"] = serde_json::json!({ "seccomp-notifier-action.crio.io": "log" });
    let (socket, calls) = (own.socket(), CALLS.map(str::to_owned));
    let annotated = std::thread::spawn(move || {
        notify_with(&socket, &of_container.to_string(), &calls);
        twenty_calls()
    });
    assert_eq!(annotated.join().unwrap(), [Err(Errno::ENOSYS); 20]);
    assert_eq!(lines(&["blocked system call getpgid", "annotated"]), 1);

    let broken = Registration { on_failure: OnFailure::Errno(libc::EIO), ..registration("broken", &CALLS) };
    own.plugin(broken, |_, _| failure(PluginFailure::Failed("again".to_owned())));
    for container in ["failed-1", "failed-2"] {
        // Not so many that it is not asked any more.
        let said = own.thread_of(container, &CALLS, || [getpgid(None), getpgid(None)]).join().unwrap();
        assert_eq!(said, [Err(Errno::EIO); 2]);
        assert_eq!(lines(&["seccomp plugin broken", container]), 1);
    }
    let stats = own.stats();
    assert_eq!(stats.plugins.iter().find(|plugin| plugin.name == "broken").unwrap().failures, 4);
}
