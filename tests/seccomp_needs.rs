//! Rules that need a plugin: they let nothing through while it is not there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]

mod common;
mod seccomp_target;

use std::io::Read;
use std::os::unix::process::parent_id;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use common::{Pod, eventually};
use nix::unistd::getppid;
use podinit::seccomp::broker::Defaults;
use podinit::seccomp::plugin::{PluginFailure, Registration};
use podinit::seccomp::verdict::{OnFailure, Verdict};
use seccomp_target::{DEADLINE, Own, failure, never, ready, registration};

const PPID: [&str; 1] = ["getppid"];

/// Continues what `guard`, which comes before it, has no objection to.
const REST: &str = r#"{"name": "rest", "priority": 1, "needs": ["guard"], "do": "continue"}"#;

/// The plugin that is needed: when it fails, the next in line is asked.
fn guard() -> Registration {
    Registration { on_failure: OnFailure::Next, ..registration("guard", &PPID) }
}

/// What a call returns that is continued.
fn continued() -> i32 {
    i32::try_from(parent_id()).unwrap()
}

/// What one call returns.
fn answer(own: &Own) -> i32 {
    own.thread(&PPID, || getppid().as_raw()).join().unwrap()
}

#[test]
fn a_rule_lets_nothing_through_before_its_plugin_has_come_and_after_it_has_gone() {
    let own = Own::start();
    own.rules(REST);
    assert_eq!(answer(&own), -libc::ENOSYS);
    // One listener over all changes: what it remembers of who is asked is made anew.
    let ((ask, asked), (answers, answered)) = (mpsc::channel::<()>(), mpsc::channel());
    let thread = own.thread(&PPID, move || {
        for () in asked {
            answers.send(getppid().as_raw()).unwrap();
        }
    });
    let call = || {
        ask.send(()).unwrap();
        answered.recv_timeout(DEADLINE).unwrap()
    };
    assert_eq!(call(), -libc::ENOSYS);
    own.plugin(guard(), |_, _| ready(Verdict::Pass));
    assert_eq!(call(), continued());
    // Another one does not stand in for it.
    own.plugin(registration("other", &PPID), |_, _| ready(Verdict::Pass));
    own.withdraw("guard");
    assert_eq!(call(), -libc::ENOSYS);
    own.plugin(guard(), |_, _| ready(Verdict::Pass));
    assert_eq!(call(), continued());
    // Rules that are read again know what there is.
    own.rules(REST);
    assert_eq!(call(), continued());
    drop(ask);
    thread.join().unwrap();
}

#[test]
fn a_call_in_the_hands_of_a_plugin_that_dies_is_not_let_through() {
    let own = Own::start();
    own.rules(REST);
    own.plugin(guard(), |_, _| never());
    let thread = own.thread(&PPID, || getppid().as_raw());
    own.until("the call waits", |stats| stats.open == 1);
    own.withdraw("guard");
    assert_eq!(thread.join().unwrap(), -libc::ENOSYS);
}

#[test]
fn a_call_at_which_the_plugin_fails_is_not_let_through() {
    let own = Own::start();
    own.rules(&format!(r#"{REST}, {{"name": "last", "priority": 2, "do": {{"errno": "EUCLEAN"}}}}"#));
    // Until it is not asked any more, and then.
    own.plugin(guard(), |_, _| failure(PluginFailure::Gone));
    let thread = own.thread(&PPID, || (0..20).map(|_| getppid().as_raw()).collect::<Vec<_>>());
    assert_eq!(thread.join().unwrap(), [-libc::EUCLEAN; 20]);
    assert!(own.stats().plugins.iter().any(|plugin| plugin.name == "guard" && plugin.suspended > 0));
    own.withdraw("guard");
    let slow = Registration { deadline: Duration::from_millis(20), ..guard() };
    own.plugin(slow, |_, _| never());
    assert_eq!(answer(&own), -libc::EUCLEAN);
}

#[test]
fn a_call_that_waits_for_the_first_plugin_is_judged_by_it_and_then_let_through() {
    let own = Own::start_with(Defaults { patience: DEADLINE, ..Defaults::default() });
    let rules = format!(r#"{{"version": 1, "defaults": {{"patienceMs": 60000}}, "rules": [{REST}]}}"#);
    let rules = podinit::seccomp::rules::Rules::parse(rules.as_bytes()).unwrap();
    own.ask(move |broker| broker.set_rules(&rules)).unwrap();
    let thread = own.thread(&PPID, || getppid().as_raw());
    own.until("the call waits", |stats| stats.open == 1);
    let (sender, asked) = mpsc::channel();
    own.plugin(guard(), move |_, _| {
        sender.send(()).unwrap();
        ready(Verdict::Pass)
    });
    assert_eq!(thread.join().unwrap(), continued());
    asked.recv_timeout(DEADLINE).unwrap();
}

/// The plugin is a process, whose connection breaks before its registration is seen to end.
#[test]
fn a_hundred_calls_in_the_hands_of_a_process_that_is_killed_are_not_let_through() {
    let pod = Pod::start();
    let rules = format!(r#"{{"version": 1, "defaults": {{"patienceMs": 0}}, "rules": [{REST}]}}"#);
    pod.call(async |client| client.seccomp_load_rules(&rules).await).unwrap();
    let mut command = Command::new(common::binary());
    command.args(["seccomp", "answer", "--socket"]).arg(pod.run_dir().join("plugins.sock"));
    command.args(["--name", "guard", "--syscall", "mkdir", "--verdict", "pass", "--on-failure", "next"]);
    command.args(["--delay", "600000", "--deadline", "120000"]);
    let mut plugin = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; "registered\n".len()];
    plugin.stdout.take().unwrap().read_exact(&mut said).unwrap();

    let script = "for i in $(seq 100); do mkdir /tmp/$i 2>/tmp/said.$i & done; wait; ls -d /tmp/[0-9]*; \
                  cat /tmp/said.* | tr -d '\\r' | grep -c 'Function not implemented'; exit 0";
    pod.run_notified("c", &["mkdir"], script);
    let stats = || pod.call(async |client| client.seccomp_stats().await).unwrap();
    eventually(|| stats().open == 100);
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    let said = pod.output("c");
    assert!(said.lines().any(|line| line.trim() == "100"), "{said}");
    assert!(stats().rows.iter().all(|row| row.plugin != "rest"), "{:?}", stats().rows);
}
