//! An event loop that looks again for a moment before it sleeps.
//!
//! Broker and plugin wait for each other at every call, for some microseconds. To
//! sleep meanwhile, and to be woken from another processor, costs more than that,
//! above all in a virtual machine. So who has sent a message and was answered soon
//! the last time gives its processor to whoever can use it (sched_yield(2)) and looks
//! again, until [`SECCOMP_AWAKE`] has passed.

use std::cell::Cell;
use std::io;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::time::Instant;

use crate::limits::{SECCOMP_AWAKE, SECCOMP_SOON};

thread_local! {
    /// When the last message was sent, if none has come since.
    static SENT: Cell<Option<Instant>> = const { Cell::new(None) };
    static IS_SOON: Cell<bool> = const { Cell::new(false) };
}

/// A message was sent, which will be answered or followed by another.
pub(crate) fn sent() {
    SENT.set(Some(Instant::now()));
}

/// A message has come.
pub(crate) fn came() {
    if let Some(sent) = SENT.take() {
        IS_SOON.set(sent.elapsed() < SECCOMP_SOON);
    }
}

/// The event loop is about to sleep.
pub(super) fn before_park() {
    if IS_SOON.get() && SENT.get().is_some_and(|sent| sent.elapsed() < SECCOMP_AWAKE) {
        std::thread::yield_now();
        // With something to do the event loop looks for what there is, and does not sleep.
        tokio::task::spawn_local(async {});
    }
}

/// An event loop that does so.
///
/// # Errors
/// If there can be none.
pub(crate) fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_park(before_park)
        .build_local(LocalOptions::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_answered_sleeps() {
        runtime().unwrap().block_on(async {
            IS_SOON.set(true);
            sent();
            tokio::time::sleep(SECCOMP_SOON * 2).await;
            came();
            assert!(!IS_SOON.get(), "the next wait is slept through");
            sent();
            came();
            assert!(IS_SOON.get());
            assert_eq!(SENT.get(), None);
        });
    }
}
