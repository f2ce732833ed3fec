//! What a test asks of a relay, whose answers come by a call from its thread.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use podinit::monitor::relay::{Relay, Reply, StreamId, StreamStats};

/// Long enough for a loaded machine; no test waits that long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What `ask` is answered.
pub fn answer<T: Send + 'static>(ask: impl FnOnce(Reply<T>)) -> T {
    let (reply, answer) = channel();
    ask(Box::new(move |value| reply.send(value).unwrap()));
    answer.recv_timeout(DEADLINE).unwrap()
}

/// The counters of a stream that is there.
pub fn stats(relay: &Relay, id: StreamId) -> StreamStats {
    answer(|reply| relay.stats(id, reply)).unwrap()
}

/// Waits until the counters are as expected.
pub fn wait_for_stats(
    relay: &Relay,
    id: StreamId,
    what: &str,
    reached: impl Fn(&StreamStats) -> bool,
) -> StreamStats {
    let until = Instant::now() + DEADLINE;
    loop {
        let stats = stats(relay, id);
        if reached(&stats) {
            return stats;
        }
        assert!(Instant::now() < until, "{what}: {stats:?}");
        std::thread::yield_now();
    }
}
