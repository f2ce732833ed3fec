//! A plugin of another process, beside the least that could do its work: a bare
//! loop of ioctls that sends every notification over a Unix socket to a process
//! that answers it. Both are two hops there and two hops back.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use podinit::sys::seccomp::{Answer, Buffer, Received, answer, receive, wake_in_step};

use crate::bench::{Samples, setting};
use crate::common::{Pod, binary};
use crate::{again, is_not_sustained, round, row, target};

/// The most that a plugin over Cap'n Proto may cost, in raw relays.
const FACTOR_MAX: f64 = 1.5;
/// `struct seccomp_notif` and `struct seccomp_notif_resp`.
const NOTIFICATION_BYTES: usize = 80;
/// See [`NOTIFICATION_BYTES`].
const RESPONSE_BYTES: usize = 24;

/// The process behind the raw relay: reads a notification's bytes, writes an answer's.
pub(crate) fn answerer(path: &Path) -> ExitCode {
    let door = UnixListener::bind(path).expect("a socket");
    println!("ready");
    std::io::stdout().flush().expect("a pipe");
    loop {
        let (mut relay, _) = door.accept().expect("a connection");
        let mut notification = [0; NOTIFICATION_BYTES];
        while relay.read_exact(&mut notification).is_ok() {
            relay.write_all(&[1; RESPONSE_BYTES]).expect("an answer");
        }
    }
}

/// Takes one listener after the other at the socket `path`, and answers every call
/// when the process at `answerer` has.
pub(crate) fn relay(path: &Path, answerer: &Path) -> ExitCode {
    let mut answerer = UnixStream::connect(answerer).expect("an answerer");
    target::each_listener(path, |listener| relay_calls(listener, &mut answerer))
}

fn relay_calls(listener: &OwnedFd, answerer: &mut UnixStream) {
    if std::env::var_os("PODINIT_BENCH_ASYNC_WAKE").is_none() {
        wake_in_step(listener.as_fd()).expect("Linux 6.6");
    }
    let mut buffer = Buffer::new().expect("notifications");
    while let Received::Call(call) = receive(listener.as_fd(), &mut buffer).expect("receive") {
        let mut bytes = [0; NOTIFICATION_BYTES];
        bytes[..8].copy_from_slice(&call.id.to_ne_bytes());
        answerer.write_all(&bytes).expect("an answerer");
        let mut said = [0; RESPONSE_BYTES];
        answerer.read_exact(&mut said).expect("an answer");
        assert_eq!(said, [1; RESPONSE_BYTES]);
        answer(listener.as_fd(), call.id, Answer::Errno(libc::EPERM)).expect("answer");
    }
}

/// A process that has said that it is ready.
pub(crate) struct Ready(Child);

impl Ready {
    pub(crate) fn wait(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a process");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("ready");
        Self(child)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Compares the two in turns; true if the plugin costs too much, or bears no load.
pub(crate) fn compare(pod: &Pod, socket: &Path) -> bool {
    let calls = setting("PODINIT_BENCH_CALLS", 2_000);
    let rounds = setting("PODINIT_BENCH_ROUNDS", 60);
    let paths = ["answerer.sock", "relay.sock"].map(|name| pod.place.path(name));
    let [answerer, relay] = paths.each_ref().map(|path| path.to_str().expect("text"));
    let _answerer = Ready::wait(again(&["answerer", answerer]));
    let _relay = Ready::wait(again(&["relay", relay, answerer]));
    let mut command = Command::new(binary());
    command.args(["seccomp", "answer", "--syscall", "getppid", "--container", "plugin"]);
    command.args(["--verdict", "errno:EXDEV", "--socket"]).arg(pod.run_dir().join("plugins.sock"));
    let _plugin = Ready::wait(command);

    let (mut raw, mut plugin) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        raw.add(round(Path::new(relay), "raw", calls));
        plugin.add(round(socket, "plugin", calls));
    }
    row("raw relay, two hops", &raw);
    row("plugin over Cap'n Proto", &plugin);
    let factor = plugin.median_times(&raw);
    println!("plugin: {factor:.2} raw relays (at most {FACTOR_MAX})");
    // Another errno than that of calls that the plugin would fail at.
    let is_slow = is_not_sustained("plugin", socket, libc::EXDEV);
    factor > FACTOR_MAX || is_slow
}
