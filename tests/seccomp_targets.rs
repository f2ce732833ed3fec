//! What real processes do while their calls wait: many threads, another program, other
//! arguments, death. In containers, under crun and runc.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]
#![allow(clippy::print_stdout, reason = "it is a container's program, too")]

mod common;
mod seccomp_target;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use common::program::{argument, connect_while_rewriting, rewriting_reaches_nobody};
use common::{Options, Place, Pod, eventually, profile, which};
use libseccomp::ScmpSyscall;
use nix::unistd::{Pid, getpgid};
use podinit::rpc::client::{Code, SeccompStats};
use podinit::rpc::plugin::client::{self, Call, Request, dial_in};
use podinit::seccomp::verdict::Verdict;
use rustix::process::{Signal, pidfd_send_signal};
use seccomp_target::{MKDIR, Own, ready, registration};
use tokio::io::unix::AsyncFd;

const RUNTIMES: [&str; 2] = ["crun", "runc"];

fn stats(pod: &Pod) -> SeccompStats {
    pod.call(async |client| client.seccomp_stats().await).expect("stats")
}

/// Creates and starts a container that is this program in `role`; its pid.
fn run_role(pod: &Pod, role: &str, listener: &Path, calls: &[&str]) -> u32 {
    let request = pod.container_of_role("c", role, "yes", |config| {
        config["linux"]["seccomp"] = profile(listener, calls);
    });
    let pid = pod.create(&request).expect("create");
    pod.start_container("c");
    pid
}

const THREADS: i32 = 8;
const CALLS: i32 = 200;

#[test]
fn role_of_many_threads() {
    let Some(_) = argument() else { return };
    let is_right = |number: i32| getpgid(Some(Pid::from_raw(number))) == Ok(Pid::from_raw(number + 1));
    let thread = |first: i32| move || (first..first + CALLS).filter(|number| is_right(*number)).count();
    let threads: Vec<_> = (1..=THREADS).map(|number| std::thread::spawn(thread(number * 1000))).collect();
    let right: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    println!("{right} right");
}

#[test]
fn each_thread_of_a_container_has_its_own_answers() {
    for runtime in RUNTIMES {
        let own = Own::start();
        own.plugin(registration("p", &["getpgid"]), |notification, _| {
            let [number, ..] = notification.args;
            Box::pin(async move {
                // Others ask meanwhile, and are answered first.
                if number % 3 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(Verdict::Return(i64::try_from(number).unwrap() + 1))
            })
        });
        let pod = Pod::with_runtime(runtime);
        run_role(&pod, "role_of_many_threads", &own.socket(), &["getpgid"]);
        let said = pod.output("c");
        assert!(said.contains(&format!("{} right\n", THREADS * CALLS)), "{runtime}: {said}");
    }
}

/// Threads of [`role_that_executes`] that have a call waiting meanwhile.
const PENDING: usize = 10;

#[test]
fn role_that_executes() {
    let Some(_) = argument() else { return };
    for _ in 0..PENDING {
        std::thread::spawn(|| fs::create_dir("/tmp/pending"));
    }
    while !Path::new("/tmp/go-on").exists() {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("{}", Command::new("/bin/sh").args(["-c", "mkdir /tmp/after 2>&1; echo over"]).exec());
}

/// The kernel ends the other threads, and the calls that they wait in, when one executes a
/// program. The filter stays.
#[test]
fn a_process_may_execute_another_program_while_its_calls_wait() {
    for runtime in RUNTIMES {
        let own = Own::start();
        own.plugin(registration("p", &MKDIR), |notification, target| {
            Box::pin(async move {
                let path = notification.args[usize::from(notification.name.as_deref() == Some("mkdirat"))];
                if target.read_string(path, 4096).await.unwrap() == b"/tmp/pending" {
                    std::future::pending::<()>().await;
                }
                Ok(Verdict::Errno(libc::EXDEV))
            })
        });
        let pod = Pod::with_runtime(runtime);
        let pid = run_role(&pod, "role_that_executes", &own.socket(), &MKDIR);
        own.until("all are pending", |stats| stats.open == PENDING);
        fs::write(common::inside(pid, "tmp/go-on"), "").unwrap();
        let said = pod.output("c");
        assert!(said.contains("Invalid cross-device link\nover\n"), "{runtime}: {said}");
        let stats = own.until("the session's end", |stats| stats.sessions == 0 && stats.open == 0);
        assert_eq!((stats.received, stats.answered, stats.interrupted), (11, 1, 10), "{runtime}");
    }
}

#[test]
fn role_that_rewrites() {
    if let Some(port) = argument() {
        connect_while_rewriting(&port);
    }
}

/// A pod whose containers may connect to 127.0.0.1 and nowhere else.
fn pod_that_allows_one_address(runtime: &str) -> Pod {
    let place = Place::new();
    let rules = place.path("rules.json");
    let text = r#"{"version": 1, "defaults": {"patienceMs": 0}, "rules": [
        {"name": "net", "do": {"connect": {"allow": [{"address": "127.0.0.1"}]}}}]}"#;
    fs::write(&rules, text).unwrap();
    let arguments = vec!["--seccomp-rules".to_owned(), rules.to_str().unwrap().to_owned()];
    Pod::start_in(place, Options { runtime: Some(which(runtime)), arguments, ..Options::default() })
}

#[test]
fn an_address_that_a_container_changes_after_the_check_reaches_nobody() {
    for runtime in RUNTIMES {
        let pod = pod_that_allows_one_address(runtime);
        rewriting_reaches_nobody(&pod, 9);
    }
}

#[test]
fn a_target_that_dies_while_it_is_connected_is_let_go() {
    for runtime in RUNTIMES {
        let pod = pod_that_allows_one_address(runtime);
        // Nobody accepts, and there is no room for more: connect(2) waits for minutes.
        let full =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let full = TcpListener::from(full.unwrap());
        rustix::net::bind(&full, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let address = full.local_addr().unwrap();
        let soon = Duration::from_millis(200);
        let _fill: Vec<_> = std::iter::repeat_with(|| TcpStream::connect_timeout(&address, soon))
            .take_while(Result::is_ok)
            .collect();
        pod.run_notified("c", &["connect"], &format!("exec busybox nc 127.0.0.1 {}", address.port()));
        eventually(|| stats(&pod).open == 1);
        let id = pod.id("c");
        pod.call(async |pod| pod.stop_container(&id, 9, 0).await).expect("stop");
        eventually(|| stats(&pod).open == 0 && stats(&pod).sessions == 0);
        assert_eq!((stats(&pod).answered, stats(&pod).interrupted), (0, 1), "{runtime}");
    }
}

/// The broker is held up, so that the call waits in the kernel only when its process dies.
#[test]
fn a_target_that_dies_before_its_call_is_received_is_let_go() {
    let own = Own::start();
    own.plugin(registration("p", &MKDIR), |_, _| ready(Verdict::Errno(libc::EXDEV)));
    for runtime in RUNTIMES {
        let pod = Pod::with_runtime(runtime);
        let request = pod.container_with("c", &["mkdir", "/tmp/d"], |config| {
            config["linux"]["seccomp"] = profile(&own.socket(), &MKDIR);
        });
        let pid = pod.create(&request).expect("create");
        let before = own.until("the session", |stats| stats.sessions == 1).received;
        std::thread::scope(|scope| {
            let ((began, told), (go_on, held_up)) = (mpsc::channel(), mpsc::channel::<()>());
            let own = &own;
            scope.spawn(move || {
                own.ask(move |_| {
                    began.send(()).unwrap();
                    // It goes on when the other end is dropped.
                    held_up.recv().unwrap_err();
                });
            });
            told.recv().unwrap();
            pod.start_container("c");
            let numbers =
                MKDIR.map(|name| ScmpSyscall::from_name(name).unwrap().as_raw_syscall().to_string());
            eventually(|| {
                let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
                numbers.iter().any(|number| text.split(' ').next() == Some(number))
            });
            let id = pod.id("c");
            pod.call(async |pod| pod.stop_container(&id, 9, 0).await).expect("stop");
            drop(go_on);
        });
        let stats = own.until("the session's end", |stats| stats.sessions == 0 && stats.open == 0);
        assert_eq!(stats.received, before, "{runtime}: {stats:?}");
    }
}

/// Ends the process behind a call, at a moment that the path says, and goes on as if it were there.
struct Deadly;

/// What is done then; the process makes a directory of each name.
const MOMENTS: [&str; 9] =
    ["return", "errno", "continue", "give", "kill", "pass", "later", "look", "install"];

/// So often that one descriptor of a round is found.
const ROUNDS: usize = 3;

impl client::Plugin for Deadly {
    async fn decide(&self, call: Call) -> client::Verdict {
        let path = call.notification.text(0).unwrap().to_owned();
        let file = fs::File::open("/dev/null").unwrap();
        let ticket = call.hand_over(file.as_fd()).await.unwrap();
        let _copy = call.duplicate(1).await.unwrap();
        end(call.open(client::Place::Pidfd).await.unwrap()).await;
        assert!(!call.check().await.unwrap());
        match path.strip_prefix(b"/tmp/").unwrap() {
            b"errno" => client::Verdict::Errno(30),
            b"continue" => client::Verdict::Continue,
            b"give" => client::Verdict::AddDescriptor { ticket, at: None, close_on_exec: true },
            b"kill" => client::Verdict::Kill,
            b"pass" => client::Verdict::PassOn,
            b"later" => client::Verdict::Later,
            b"look" => {
                let argument = call.notification.arguments[0];
                assert_eq!(call.read_memory(argument, 1).await.unwrap_err().code, Code::NotFound);
                assert_eq!(call.duplicate(1).await.unwrap_err().code, Code::NotFound);
                client::Verdict::Return(0)
            }
            b"install" => {
                let installed = call.install(&ticket, None, true).await;
                assert_eq!(installed.unwrap_err().code, Code::NotFound);
                client::Verdict::Return(0)
            }
            _ => client::Verdict::Return(0),
        }
    }
}

/// Kills a process and waits for its end.
async fn end(process: OwnedFd) {
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    drop(AsyncFd::new(process).unwrap().readable().await.unwrap());
}

fn dies_at_each_moment(runtime: &str) {
    let pod = Pod::with_runtime(runtime);
    let monitor = common::children_of(pod.keeper_pid())[0];
    let descriptors = || fs::read_dir(format!("/proc/{monitor}/fd")).unwrap().count();
    // What the broker needs itself stays, but for what waits for the first plugin.
    pod.run_notified("first", &["mkdir"], "mkdir /tmp/a");
    pod.wait("first");
    eventually(|| stats(&pod).sessions == 0);
    let before = descriptors();
    let socket = pod.run_dir().join("plugins.sock");
    let (over, told) = tokio::sync::oneshot::channel::<()>();
    let plugin = std::thread::spawn(move || {
        tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
            let request =
                Request { allow_continue: true, deadline_ms: 120_000, ..Request::new("deadly", &["mkdir"]) };
            let _plugged = dial_in(&socket, request, Deadly).await.unwrap();
            drop(told.await);
        });
    });
    eventually(|| pod.seccomp_plugins().len() == 1);
    let names = MOMENTS.repeat(ROUNDS).join(" ");
    pod.run_notified("c", &["mkdir"], &format!("for i in {names}; do mkdir /tmp/$i; echo $?; done"));
    pod.wait("c");
    let calls = MOMENTS.len() * ROUNDS;
    assert_eq!(pod.log("c").stdout, "137\n".repeat(calls).as_bytes(), "{runtime}");
    eventually(|| stats(&pod).sessions == 0 && stats(&pod).open == 0);
    let stats = stats(&pod);
    assert_eq!((stats.answered, stats.interrupted), (1, calls as u64), "{runtime}: {stats:?}");
    drop(over);
    plugin.join().unwrap();
    // What was handed in and not used goes with the plugin's connections.
    eventually(|| descriptors() <= before);
}

#[test]
fn a_target_that_dies_at_any_moment_of_a_verdict_is_let_go() {
    RUNTIMES.iter().for_each(|runtime| dies_at_each_moment(runtime));
}
