//! What is counted of calls and of those who are asked: who was slow is seen, and
//! nobody is blamed for another.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]

mod seccomp_target;

use std::time::{Duration, Instant};

use nix::unistd::getppid;
use podinit::seccomp::broker::Defaults;
use podinit::seccomp::plugin::{PluginFailure, Registration};
use podinit::seccomp::stats::{Entry, Stats};
use podinit::seccomp::verdict::{OnFailure, Verdict, VerdictKind};
use seccomp_target::{DEADLINE, Own, failure, ready, registration};

const PPID: [&str; 1] = ["getppid"];

/// How long something takes that is slow; everything else takes much less.
const SLOW: Duration = Duration::from_millis(600);

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

/// The only row of `who`: its verdict, how often, and µs that each took less than.
fn only(entries: &[Entry], who: &str) -> (VerdictKind, u64, u64) {
    let mut of = entries.iter().filter(|entry| entry.plugin == who);
    let entry = of.next().unwrap_or_else(|| panic!("no row of {who:?}: {entries:?}"));
    assert!(of.next().is_none(), "more than one row of {who:?}: {entries:?}");
    assert_eq!(entry.syscall, "getppid");
    (entry.verdict, entry.histogram.total(), entry.histogram.below(100))
}

/// What `calls` calls of getppid(2), one after the other, returned, and what is counted then.
fn calls(own: &Own, calls: usize) -> (Vec<i32>, Stats) {
    let thread = own.thread(&PPID, move || (0..calls).map(|_| getppid().as_raw()).collect::<Vec<_>>());
    let answers = thread.join().unwrap();
    (answers, own.until("the session's end", |stats| stats.sessions == 0 && stats.open == 0))
}

#[test]
fn who_is_slow_and_passes_on_is_seen_and_who_decides_is_not_blamed() {
    let own = Own::start();
    own.plugin(registration("slow", &PPID), |_, _| {
        Box::pin(async {
            tokio::time::sleep(SLOW).await;
            Ok(Verdict::Pass)
        })
    });
    own.plugin(Registration { priority: 1, ..registration("decides", &PPID) }, |_, _| {
        ready(Verdict::Return(5))
    });
    let (answers, stats) = calls(&own, 2);
    assert_eq!(answers, [5, 5]);
    let (verdict, count, below) = only(&stats.entries, "slow");
    assert_eq!((verdict, count), (VerdictKind::Pass, 2));
    assert!(below > micros(SLOW), "{below}");
    let (verdict, count, below) = only(&stats.entries, "decides");
    assert_eq!((verdict, count), (VerdictKind::Return, 2));
    assert!(below <= micros(SLOW), "the time of another: {below}");
    let (verdict, count, below) = only(&stats.calls, "");
    assert_eq!((verdict, count), (VerdictKind::Return, 2));
    assert!(below > micros(SLOW), "the calls waited longer: {below}");
}

#[test]
fn rules_that_pass_on_and_the_default_have_rows_of_their_own() {
    let own = Own::start();
    own.rules(
        r#"{"name": "passes", "do": "notifierAction"},
           {"name": "no mkdir", "match": {"syscalls": ["mkdir"]}, "do": "deny"}"#,
    );
    let (answers, stats) = calls(&own, 3);
    assert_eq!(answers, [-libc::ENOSYS; 3]);
    let kind_and_count = |entries: &[Entry], who: &str| {
        let (verdict, count, _) = only(entries, who);
        (verdict, count)
    };
    assert_eq!(kind_and_count(&stats.entries, "passes"), (VerdictKind::Pass, 3));
    assert_eq!(kind_and_count(&stats.entries, "default"), (VerdictKind::Errno, 3));
    assert_eq!(kind_and_count(&stats.calls, ""), (VerdictKind::Errno, stats.answered));
    assert_eq!(stats.entries.len(), 2, "who was not asked has no row: {:?}", stats.entries);
}

#[test]
fn who_is_not_asked_after_failures_has_a_count_and_no_row() {
    let own = Own::start();
    let fails = Registration { on_failure: OnFailure::Errno(libc::EAGAIN), ..registration("fails", &PPID) };
    own.plugin(fails, |_, _| failure(PluginFailure::Failed("on purpose".into())));
    let (answers, stats) = calls(&own, 50);
    assert_eq!(answers, [-libc::EAGAIN; 50]);
    let (verdict, said, _) = only(&stats.entries, "fails");
    let counted = &stats.plugins[0];
    assert_eq!(verdict, VerdictKind::Errno, "what the failure led to");
    assert_eq!((said, said + counted.suspended), (counted.failures, 50));
    assert!(counted.suspended > 0);
    assert_eq!((only(&stats.calls, "").1, stats.answered), (50, 50));
}

#[test]
fn a_missed_deadline_is_a_row_of_what_it_led_to() {
    let own = Own::start();
    let stalls =
        Registration { deadline: SLOW, on_failure: OnFailure::Next, ..registration("stalls", &PPID) };
    own.plugin(stalls, |_, _| seccomp_target::never());
    let (answers, stats) = calls(&own, 1);
    assert_eq!((answers[0], stats.plugins[0].time_outs), (-libc::ENOSYS, 1));
    let (verdict, count, below) = only(&stats.entries, "stalls");
    assert_eq!((verdict, count), (VerdictKind::Pass, 1));
    assert!(below > micros(SLOW), "{below}");
    let (verdict, count, below) = only(&stats.entries, "default");
    assert_eq!((verdict, count), (VerdictKind::Errno, 1));
    assert!(below <= micros(SLOW), "{below}");
}

#[test]
fn the_wait_for_the_first_plugin_is_not_that_plugins() {
    let own = Own::start_with(Defaults { patience: DEADLINE, ..Defaults::default() });
    let thread = own.thread(&PPID, || getppid().as_raw());
    own.until("the call waits", |stats| stats.open == 1);
    let waits = Instant::now();
    own.until("it has waited for long", |_| waits.elapsed() > SLOW);
    own.plugin(registration("late", &PPID), |_, _| ready(Verdict::Return(6)));
    assert_eq!(thread.join().unwrap(), 6);
    let stats = own.until("the session's end", |stats| stats.sessions == 0);
    assert!(only(&stats.entries, "late").2 <= micros(SLOW));
    assert!(only(&stats.calls, "").2 > micros(SLOW));

    // Where none comes, it is the default's.
    let own = Own::start_with(Defaults { patience: SLOW, ..Defaults::default() });
    let (answers, stats) = calls(&own, 1);
    assert_eq!(answers, [-libc::ENOSYS]);
    assert_eq!(only(&stats.entries, "default"), only(&stats.calls, ""));
}
