//! Containers whose calls are notified.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{DEADLINE, Pod};

/// A profile that notifies of `calls` at `listener`, and allows all others.
pub fn profile(listener: &Path, calls: &[&str]) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": listener,
        "syscalls": [{ "names": calls, "action": "SCMP_ACT_NOTIFY" }],
    })
}

impl Pod {
    /// Creates and starts a container whose shell runs `script`, and whose `calls`
    /// are notified at the pod's socket.
    pub fn run_notified(&self, name: &str, calls: &[&str], script: &str) {
        let request = self.container_with(name, &["sh", "-c", script], |config| {
            config["linux"]["seccomp"] = profile(&self.run_dir().join("seccomp.sock"), calls);
        });
        self.create(&request).expect("create");
        self.start_container(name);
    }

    /// What a container wrote until its end, standard output first.
    pub fn output(&self, name: &str) -> String {
        self.wait(name);
        let log = self.log(name);
        String::from_utf8([log.stdout, log.stderr].concat()).unwrap()
    }

    /// Names of the seccomp plugins that decide, in order.
    pub fn seccomp_plugins(&self) -> Vec<String> {
        let plugins = self.call(async |client| client.seccomp_plugins().await).expect("plugins");
        plugins.into_iter().map(|plugin| plugin.name).collect()
    }
}

/// Waits for something that has no event of its own.
pub fn eventually(is_so: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "it did not come to be");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
