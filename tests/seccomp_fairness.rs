//! What containers share of a plugin, one of them cannot take from the others: with real
//! notifications, of threads that are under filters as containers of a broker in this program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]

mod seccomp_target;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use podinit::seccomp::plugin::{PluginFailure, Registration};
use podinit::seccomp::verdict::{OnFailure, Verdict};
use seccomp_target::{Own, failure, never, ready, registration};

const PGID: [&str; 1] = ["getpgid"];

fn pgid() -> Result<i32, nix::errno::Errno> {
    nix::unistd::getpgid(None).map(nix::unistd::Pid::as_raw)
}

/// So many threads that make a call each; what each is answered.
fn pgids(count: usize) -> Vec<Result<i32, nix::errno::Errno>> {
    let thread = || std::thread::Builder::new().stack_size(128 << 10).spawn(pgid).unwrap();
    let threads: Vec<_> = (0..count).map(|_| thread()).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Answers `another` with 7, and nobody else.
fn holds(own: &Own, in_flight_max: usize) {
    let on_failure = OnFailure::Errno(libc::EIO);
    own.plugin(Registration { on_failure, in_flight_max, ..registration("p", &PGID) }, |notification, _| {
        if &*notification.container == "another" { ready(Verdict::Return(7)) } else { never() }
    });
}

#[test]
fn a_container_whose_calls_are_not_decided_costs_no_other_its_turn() {
    const CALLS: usize = 100;
    let own = Own::start();
    holds(&own, 64);
    let hostile: Vec<_> = ["c", "d"].map(|name| own.thread_of(name, &PGID, || pgids(CALLS))).into();
    own.until("all of them wait", |stats| stats.open == 2 * CALLS);
    let answers = own.thread_of("another", &PGID, || pgids(CALLS)).join().unwrap();
    assert_eq!(answers, [Ok(7); CALLS]);
    let stats = own.stats();
    assert_eq!((stats.open, stats.plugins[0].time_outs), (2 * CALLS, 0));
    own.withdraw("p");
    for hostile in hostile {
        // Those at which it was have its policy, those that waited have it, too.
        assert_eq!(hostile.join().unwrap(), [Err(nix::errno::Errno::EIO); CALLS]);
    }
}

#[test]
fn calls_of_one_container_all_have_their_turn() {
    const CALLS: usize = 100;
    for in_flight_max in [1, 2, 3] {
        let own = Own::start();
        holds(&own, in_flight_max);
        let answers = own.thread_of("another", &PGID, || pgids(CALLS)).join().unwrap();
        assert_eq!(answers, [Ok(7); CALLS], "{in_flight_max} at a time");
    }
}

#[test]
fn a_plugin_that_fails_at_one_containers_calls_is_asked_about_the_others() {
    const CALLS: usize = 200;
    let own = Own::start();
    let on_failure = OnFailure::Errno(libc::EIO);
    own.plugin(Registration { on_failure, ..registration("p", &PGID) }, |notification, _| {
        if &*notification.container == "another" {
            return ready(Verdict::Return(7));
        }
        failure(PluginFailure::Failed("what this container passed".into()))
    });
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let hostile = own.thread(&PGID, move || {
        while !over.load(Ordering::Relaxed) {
            assert_eq!(pgid(), Err(nix::errno::Errno::EIO));
        }
    });
    own.until("it is not asked any more", |stats| stats.plugins[0].suspended > 0);
    let answers = own.thread_of("another", &PGID, || [(); CALLS].map(|()| pgid())).join().unwrap();
    assert_eq!(answers, [Ok(7); CALLS]);
    // What went well elsewhere did not end it.
    let before = own.stats().plugins[0].suspended;
    own.until("it is not asked still", |stats| stats.plugins[0].suspended > before);
    is_over.store(true, Ordering::Relaxed);
    hostile.join().unwrap();
}
