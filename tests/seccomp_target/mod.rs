//! Threads of a test that make notified calls, and a broker in the test's own
//! process that they are notified to.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

use std::cell::RefCell;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use podinit::seccomp::arrival::Door;
use podinit::seccomp::broker::{Defaults, Registered};
use podinit::seccomp::notification::Notification;
use podinit::seccomp::plugin::{Decision, Plugin, PluginFailure, Registration};
use podinit::seccomp::rules::Rules;
use podinit::seccomp::select::{Selector, Syscall};
use podinit::seccomp::stats::Stats;
use podinit::seccomp::target::Target;
use podinit::seccomp::thread::StopRequest;
use podinit::seccomp::verdict::{OnFailure, Verdict};
use podinit::seccomp::{Broker, Handle, Options, start};
use podinit::sys::socket;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg};
use tokio::sync::mpsc::UnboundedReceiver;

/// Bound on every wait; no passing test comes near.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What libc calls to make a directory, on every architecture.
pub const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];

thread_local! {
    /// Registrations, on the broker's thread.
    static KEPT: RefCell<Vec<(String, Registered)>> = const { RefCell::new(Vec::new()) };
}

/// A broker of the test's own.
pub struct Own {
    pub handle: Handle,
    pub directory: tempfile::TempDir,
    pub stops: UnboundedReceiver<StopRequest>,
}

impl Own {
    /// One that does not wait for plugins.
    pub fn start() -> Self {
        Self::start_with(Defaults { patience: Duration::ZERO, ..Defaults::default() })
    }

    pub fn start_with(defaults: Defaults) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, stops) = tokio::sync::mpsc::unbounded_channel();
        let listener =
            socket::listen(&directory.path().join("seccomp.sock"), SocketType::STREAM, 64).unwrap();
        let options = Options {
            pod: "p".to_owned(),
            doors: vec![Door { listener, container: None }],
            rules: Some(directory.path().join("no-rules")),
            stops: sender,
        };
        let handle = start(options, Box::new(move |broker| broker.set_defaults(defaults))).unwrap();
        Self { handle, directory, stops }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("seccomp.sock")
    }

    pub fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Rc<Broker>) -> T + Send + 'static) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let answer = tokio::time::timeout(DEADLINE, self.handle.ask(question)).await;
            answer.expect("an answer in time").expect("a broker")
        })
    }

    /// Rules, as in a file.
    pub fn rules(&self, rules: &str) {
        let text = format!(r#"{{"version": 1, "defaults": {{"patienceMs": 0}}, "rules": [{rules}]}}"#);
        let rules = Rules::parse(text.as_bytes()).expect("rules");
        self.ask(move |broker| broker.set_rules(&rules)).expect("rules that apply");
    }

    /// Registers a plugin that `decide`s.
    pub fn plugin<F>(&self, registration: Registration, decide: F)
    where
        F: Fn(Rc<Notification>, Target) -> Decision + Send + 'static,
    {
        self.ask(move |broker| {
            let name = registration.name.clone();
            let registered = broker.register(registration, Rc::new(Fake(decide))).expect("registered");
            KEPT.with_borrow_mut(|kept| kept.push((name, registered)));
        });
    }

    /// Ends the registrations of that name.
    pub fn withdraw(&self, name: &str) {
        let name = name.to_owned();
        self.ask(move |_| KEPT.with_borrow_mut(|kept| kept.retain(|(other, _)| *other != name)));
    }

    pub fn stats(&self) -> Stats {
        self.ask(|broker| broker.stats())
    }

    /// Waits until the statistics are as expected.
    pub fn until(&self, what: &str, reached: impl Fn(&Stats) -> bool) -> Stats {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let stats = self.stats();
            if reached(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "{what}: {stats:?}");
            std::thread::yield_now();
        }
    }

    /// A thread of container `c` that is notified of `calls`, and then does `work`.
    pub fn thread<T: Send + 'static>(
        &self,
        calls: &[&str],
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.thread_of("c", calls, work)
    }

    /// The same, of another container.
    pub fn thread_of<T: Send + 'static>(
        &self,
        container: &'static str,
        calls: &[&str],
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (socket, calls) = (self.socket(), calls.iter().map(ToString::to_string).collect::<Vec<_>>());
        std::thread::spawn(move || {
            notify(&socket, container, &calls);
            work()
        })
    }
}

/// A plugin that is a function.
struct Fake<F>(F);

impl<F: Fn(Rc<Notification>, Target) -> Decision> Plugin for Fake<F> {
    fn decide(&self, notification: Rc<Notification>, target: Target) -> Decision {
        (self.0)(notification, target)
    }
}

/// A verdict without a pause.
pub fn ready(verdict: Verdict) -> Decision {
    Box::pin(std::future::ready(Ok(verdict)))
}

/// A verdict that never comes.
pub fn never() -> Decision {
    Box::pin(std::future::pending())
}

/// A failure.
pub fn failure(failure: PluginFailure) -> Decision {
    Box::pin(std::future::ready(Err(failure)))
}

/// A plugin for `calls`: a patient one that fails with `EPERM`.
pub fn registration(name: &str, calls: &[&str]) -> Registration {
    let syscalls = calls.iter().map(|name| Syscall::Name((*name).to_owned())).collect();
    Registration {
        name: name.to_owned(),
        selector: Selector { syscalls, ..Selector::default() },
        priority: 0,
        deadline: DEADLINE,
        on_failure: OnFailure::Errno(libc::EPERM),
        allow_continue: true,
        in_flight_max: 0,
    }
}

/// Puts this thread under a filter that notifies of `calls`, and sends the
/// listener to the socket at `door`, as a runtime does.
pub fn notify(door: &Path, container: &str, calls: &[String]) {
    notify_with(door, &state(container), calls);
}

/// As [`notify`], with what the runtime says of the container.
pub fn notify_with(door: &Path, state: &str, calls: &[String]) {
    // libseccomp knows one listener of a process at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap();
    let connection = socket::connect(door, SocketType::STREAM).unwrap();
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
    for call in calls {
        // One that this architecture does not have is nobody's.
        if let Ok(call) = ScmpSyscall::from_name(call) {
            filter.add_rule(ScmpAction::Notify, call).unwrap();
        }
    }
    filter.load().unwrap();
    let listener = podinit::sys::fd::take_inherited(filter.get_notify_fd().unwrap()).unwrap();
    send(&connection, state.as_bytes(), &[listener.as_fd()]);
    // libseccomp closes it.
    let _number = listener.into_raw_fd();
    libseccomp::reset_global_state().unwrap();
    drop(guard);
}

/// What a runtime says of container `container`.
pub fn state(container: &str) -> String {
    let pid = std::process::id();
    serde_json::json!({
        "ociVersion": "1.0.2", "fds": ["seccompFd"], "pid": pid, "metadata": "meta",
        "state": { "ociVersion": "1.0.2", "id": container, "status": "creating", "pid": pid, "bundle": "/" },
    })
    .to_string()
}

pub fn send(connection: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let sent = sendmsg(connection, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

/// The errno of a call that must fail.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().expect("an errno")
}
