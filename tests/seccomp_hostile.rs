//! What one container does cannot cost another its calls, with real notifications:
//! threads of this program under filters, as containers of a broker in this program.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]

#[path = "common/fuse.rs"]
mod fuse;
mod seccomp_target;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::unistd::{getpgid, getppid};
use podinit::limits::{SECCOMP_CLOSES_MAX, SECCOMP_CONTAINER_CALLS_MAX, SECCOMP_CONTAINER_WORKERS_MAX};
use podinit::seccomp::foreign::Closer;
use podinit::seccomp::notification::{Notification, Session};
use podinit::seccomp::plugin::{Decision, Plugin, Registration};
use podinit::seccomp::select::{Call, Selector};
use podinit::seccomp::tap::Outcome;
use podinit::seccomp::target::{Target, TargetError};
use podinit::seccomp::verdict::{OnFailure, Verdict};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use seccomp_target::{DEADLINE, MKDIR, Own, errno, never, notify, registration};

const PPID: [&str; 1] = ["getppid"];

/// Answers getppid(2) of another container at once.
const PPID_RULE: &str =
    r#"{"name": "ppid", "match": {"syscalls": ["getppid"], "containers": ["another"]}, "do": {"return": 1}}"#;

/// A file system whose close(2) hangs, and a file of it, or `None` where there is no FUSE.
fn hanging_file() -> Option<(File, tempfile::TempDir, fuse::SlowDisk)> {
    if let Err(error) = File::open("/dev/fuse") {
        eprintln!("skipped: /dev/fuse: {error}");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = fuse::SlowDisk::mount(directory.path());
    disk.hold_flushes();
    let file = File::options().write(true).open(disk.log()).unwrap();
    Some((file, directory, disk))
}

/// A call of another container is answered.
fn check_another(own: &Own) {
    let (told, answer) = mpsc::channel();
    own.thread_of("another", &PPID, move || told.send(getppid().as_raw()).unwrap());
    assert_eq!(answer.recv_timeout(DEADLINE), Ok(1), "another container's call");
}

#[test]
fn descriptors_whose_close_hangs_hold_up_their_own_container_only() {
    let Some((file, _directory, disk)) = hanging_file() else { return };
    let own = Own::start();
    own.rules(&format!("{PPID_RULE}, {}", connect_rule(200_000)));
    // One that gives a target what it has itself, by another name.
    own.plugin(registration("copies", &["getpgid"]), |notification, target| {
        Box::pin(async move {
            let number = u32::try_from(notification.args[0]).unwrap();
            let fd = target.duplicate_fd(number).await.unwrap();
            Ok(Verdict::AddFd { fd, at: Some(500), close_on_exec: false })
        })
    });
    let (reports, said) = mpsc::channel();
    let hostile = own.thread(&["connect", "getpgid"], move || {
        let number = nix::unistd::Pid::from_raw(file.as_raw_fd());
        assert_eq!(nix::unistd::getpgid(Some(number)).unwrap().as_raw(), 500);
        let address = nix::sys::socket::SockaddrIn::new(192, 0, 2, 1, 80);
        let connect = || nix::sys::socket::connect(file.as_raw_fd(), &address).unwrap_err();
        let first = connect();
        reports.send(first).unwrap();
        // One is being closed, and the plugin's before it.
        let last = (0..=SECCOMP_CLOSES_MAX).map(|_| connect()).find(|errno| *errno != first);
        reports.send(last.expect("a refusal")).unwrap();
        // It hangs, too.
        drop(file);
    });
    disk.wait_for_a_write();
    assert_eq!(said.recv_timeout(DEADLINE), Ok(nix::errno::Errno::EACCES));
    check_another(&own);
    assert_eq!(said.recv_timeout(DEADLINE), Ok(nix::errno::Errno::EMFILE), "no more are copied");
    check_another(&own);
    disk.release();
    hostile.join().unwrap();
}

#[test]
fn what_is_opened_of_a_container_counts_over_its_sessions_until_it_is_closed() {
    let Some((file, _directory, disk)) = hanging_file() else { return };
    let own = Own::start();
    own.rules(&format!("{PPID_RULE}, {}", connect_rule(200_000)));
    let (reports, asked) = mpsc::channel();
    own.plugin(registration("opens", &["getpgid"]), move |notification, target| {
        reports.send(notification.container.to_string()).unwrap();
        Box::pin(async move {
            let is_refused =
                |error: &TargetError| matches!(error, TargetError::Io { source, .. } if source.raw_os_error() == Some(libc::EMFILE));
            for _ in 0..=SECCOMP_CLOSES_MAX {
                let Err(error) = target.root().await else { continue };
                assert!(is_refused(&error), "{error}");
                assert!(is_refused(&target.working_directory().await.unwrap_err()));
                assert!(is_refused(&target.pidfd().await.unwrap_err()));
                return Ok(Verdict::Return(8));
            }
            Ok(Verdict::Return(7))
        })
    });
    let getpgid = || getpgid(None).map(nix::unistd::Pid::as_raw);
    let hostile = own.thread(&["connect"], move || {
        let address = nix::sys::socket::SockaddrIn::new(192, 0, 2, 1, 80);
        nix::sys::socket::connect(file.as_raw_fd(), &address).unwrap_err();
        drop(file);
    });
    disk.wait_for_a_write();
    assert_eq!(own.thread(&["getpgid"], getpgid).join().unwrap(), Ok(8));
    assert_eq!(own.thread(&["getpgid"], getpgid).join().unwrap(), Err(nix::errno::Errno::EMFILE));
    assert_eq!(own.thread_of("another", &["getpgid"], getpgid).join().unwrap(), Ok(7));
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), ["c", "another"]);
    disk.release();
    hostile.join().unwrap();
}

/// Another descriptor is closed. Its pipe would not tell: programs that other tests start
/// have copies of everything until they execute, and that closes the file that hangs.
fn check_closes(closer: &Closer) {
    let place = tempfile::NamedTempFile::new().unwrap();
    let file = place.reopen().unwrap();
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    drop(closer.keep(file.into()));
    let deadline = Instant::now() + DEADLINE;
    while std::fs::read_link(&link).is_ok_and(|path| path == place.path()) {
        assert!(Instant::now() < deadline, "what else the plugin has is not closed");
        std::thread::yield_now();
    }
}

#[test]
fn a_file_that_a_plugin_gives_is_closed_by_the_container_that_gets_it() {
    for is_answer in [false, true] {
        let Some((file, _directory, disk)) = hanging_file() else { return };
        let own = Own::start();
        own.rules(PPID_RULE);
        let closer = Closer::default();
        let of_plugin = closer.clone();
        own.plugin(registration("gives", &["getpgid"]), move |_, target| {
            let fd = of_plugin.keep(file.try_clone().unwrap().into());
            Box::pin(async move {
                if is_answer {
                    return Ok(Verdict::AddFd { fd, at: None, close_on_exec: true });
                }
                let number = target.install_fd(fd, None, true).await.unwrap();
                Ok(Verdict::Return(number.into()))
            })
        });
        own.thread(&["getpgid"], || getpgid(None).unwrap()).join().unwrap();
        disk.wait_for_a_write();
        check_closes(&closer);
        check_another(&own);
        disk.release();
    }
}

/// Threads of a session of `container` that make a call each.
fn callers(own: &Own, container: &'static str, count: usize) -> JoinHandle<()> {
    own.thread_of(container, &["getpgid"], move || {
        let call = || getpgid(None).unwrap_err();
        let thread = || std::thread::Builder::new().stack_size(32 << 10).spawn(call).unwrap();
        let threads: Vec<_> = (0..count).map(|_| thread()).collect();
        for thread in threads {
            let errno = thread.join().unwrap();
            // The plugin's policy, or the default for those that came too late for it.
            assert!([nix::errno::Errno::EPERM, nix::errno::Errno::ENOSYS].contains(&errno), "{errno}");
        }
    })
}

/// While a session waits for room, calls are looked for that nobody waits for any more.
#[test]
fn calls_that_nobody_answers_hold_up_their_own_container_only() {
    let own = Own::start();
    own.plugin(registration("p", &["getpgid"]), |_, _| never());
    own.rules(PPID_RULE);
    let mut sessions = Vec::new();
    for (full, container) in (1..).zip(["a", "b", "c", "d"]) {
        sessions.push(callers(&own, container, SECCOMP_CONTAINER_CALLS_MAX + 10));
        own.until("it is full", |stats| stats.open == full * SECCOMP_CONTAINER_CALLS_MAX);
        sessions.extend((0..6).map(|_| callers(&own, container, 10)));
    }
    own.until("all have come", |stats| stats.sessions == sessions.len());
    let began = Instant::now();
    for _ in 0..100 {
        check_another(&own);
        assert_eq!(own.stats().open, 4 * SECCOMP_CONTAINER_CALLS_MAX);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "100 calls and 100 questions took {took:?}");
    own.withdraw("p");
    for session in sessions {
        session.join().unwrap();
    }
}

/// A socket that accepts nothing: connections to it wait.
struct Silent {
    port: u16,
    _sockets: Vec<OwnedFd>,
}

impl Silent {
    fn listen() -> Self {
        let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let name = nix::sys::socket::getsockname::<nix::sys::socket::SockaddrIn>(listener.as_raw_fd());
        let port = name.unwrap().port();
        // One of them fills the queue.
        let full = (0..2).map(|_| {
            let flags = SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            let connected = rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
            assert_eq!(connected, Err(rustix::io::Errno::INPROGRESS));
            socket
        });
        Self { port, _sockets: full.collect::<Vec<_>>().into_iter().chain([listener]).collect() }
    }

    /// `count` threads that connect to it; the errno of each.
    fn connect(&self, count: usize) -> impl FnOnce() -> Vec<i32> + Send + use<> {
        let port = self.port;
        move || {
            let connect = move || errno(TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
            let thread = || std::thread::Builder::new().stack_size(128 << 10).spawn(connect).unwrap();
            let threads: Vec<_> = (0..count).map(|_| thread()).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        }
    }
}

fn connect_rule(milliseconds: u64) -> String {
    format!(
        r#"{{"name": "net", "do": {{"connect": {{"allow": [{{"address": "127.0.0.0/8"}}], "timeoutMs": {milliseconds}}}}}}}"#
    )
}

fn connects(own: &Own) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    own.thread_of("another", &["connect"], move || drop(TcpStream::connect(address).unwrap()))
        .join()
        .unwrap();
}

#[test]
fn connections_that_time_out_cost_no_other_container_the_rule() {
    let own = Own::start();
    own.rules(&connect_rule(100));
    let silent = Silent::listen();
    let timed_out = own.thread(&["connect"], silent.connect(8)).join().unwrap();
    assert_eq!(timed_out, [libc::ETIMEDOUT; 8]);
    connects(&own);
    let stats = own.stats();
    assert_eq!(
        (stats.plugins[0].failures, stats.plugins[0].time_outs, stats.plugins[0].suspended),
        (0, 0, 0)
    );
}

#[test]
fn connections_that_hang_hold_up_no_other_container() {
    let own = Own::start();
    own.rules(&connect_rule(200_000));
    let silent = Silent::listen();
    let count = 2 * SECCOMP_CONTAINER_WORKERS_MAX + 6;
    let hostile = own.thread(&["connect"], silent.connect(count));
    own.until("all of them wait", |stats| stats.open == count);
    connects(&own);
    assert_eq!(own.stats().open, count);
    drop(silent);
    assert_eq!(hostile.join().unwrap().len(), count, "the turn of each has come");
}

#[test]
fn a_target_that_is_slow_costs_no_other_container_the_plugin() {
    let own = Own::start();
    let impatient = Registration {
        deadline: Duration::from_millis(50),
        on_failure: OnFailure::Errno(libc::EIO),
        ..registration("p", &["getpgid"])
    };
    own.plugin(impatient, |notification, target| {
        Box::pin(async move {
            if &*notification.container == "another" {
                return Ok(Verdict::Return(7));
            }
            // Never done with it, as with memory of a file system that does not answer.
            loop {
                target.read_memory(notification.instruction_pointer, 1 << 12).await.unwrap();
            }
        })
    });
    let getpgid = || getpgid(None).map(nix::unistd::Pid::as_raw);
    let hostile = own.thread(&["getpgid"], move || [(); 8].map(|()| getpgid()));
    assert_eq!(hostile.join().unwrap(), [Err(nix::errno::Errno::EIO); 8]);
    assert_eq!(own.thread_of("another", &["getpgid"], getpgid).join().unwrap(), Ok(7));
    let stats = own.stats();
    // The slow one is not asked about after five.
    assert_eq!((stats.plugins[0].time_outs, stats.plugins[0].suspended), (5, 3));
}

/// A program that is notified of `calls` because the thread that starts it is, and which outlives it.
fn start(own: &Own, calls: &[&str], mut program: Command) -> (Child, mpsc::Sender<()>) {
    let (started, child) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    own.thread(calls, move || {
        started.send(program.stderr(Stdio::null()).spawn().unwrap()).unwrap();
        ended.recv().unwrap_err();
    });
    (child.recv_timeout(DEADLINE).unwrap(), end)
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn who_is_killed_while_it_is_read_is_let_go_and_told_of() {
    let own = Own::start();
    let (sender, refused) = mpsc::channel();
    own.plugin(registration("p", &MKDIR), move |notification, target| {
        let sender = sender.clone();
        tokio::task::spawn_local(async move {
            let read = async || target.read_memory(notification.instruction_pointer, 1 << 12).await;
            while read().await.is_ok() {}
            sender.send(matches!(read().await, Err(TargetError::Gone))).unwrap();
        });
        never()
    });
    let (sender, outcomes) = mpsc::channel();
    own.ask(move |broker| {
        let mut observer = broker.observe(Selector::default()).unwrap();
        tokio::task::spawn_local(async move {
            let observation = observer.next().await.unwrap();
            sender.send((observation.by.to_string(), observation.outcome)).unwrap();
        });
    });
    let mut mkdir = Command::new("mkdir");
    mkdir.arg("/proc/no");
    let (child, _session) = start(&own, &MKDIR, mkdir);
    own.until("it waits", |stats| stats.open == 1);
    kill(child);
    assert!(refused.recv_timeout(DEADLINE).unwrap());
    // Others of its session live.
    let stats = own.until("its call is given up", |stats| stats.open == 0);
    assert_eq!((stats.sessions, stats.interrupted, stats.plugins[0].interrupted), (1, 1, 1));
    assert_eq!(outcomes.recv_timeout(DEADLINE), Ok(("p".to_owned(), Outcome::Interrupted)));
}

#[test]
fn who_is_killed_while_it_connects_is_let_go() {
    let own = Own::start();
    own.rules(&connect_rule(200_000));
    let silent = Silent::listen();
    let mut connect = Command::new("bash");
    connect.args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{}", silent.port)]);
    let (child, _session) = start(&own, &["connect"], connect);
    own.until("it waits", |stats| stats.open == 1);
    kill(child);
    own.until("its call is given up", |stats| stats.open == 0 && stats.sessions == 1);
}

#[test]
fn who_is_gone_when_its_turn_has_come_is_not_connected() {
    let own = Own::start();
    own.rules(&connect_rule(200_000));
    let silent = Silent::listen();
    let socket = |_| Arc::new(rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap());
    let sockets: Vec<_> = (0..SECCOMP_CONTAINER_WORKERS_MAX).map(socket).collect();
    let (copies, port) = (sockets.clone(), silent.port);
    let hostile = own.thread(&["connect"], move || {
        let connect = |socket| {
            move || {
                rustix::net::connect::<Arc<OwnedFd>>(socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
            }
        };
        let threads: Vec<_> = copies.into_iter().map(|socket| std::thread::spawn(connect(socket))).collect();
        for thread in threads {
            thread.join().unwrap().unwrap_err();
        }
    });
    own.until("all turns are taken", |stats| stats.open == sockets.len());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut connect = Command::new("bash");
    connect.args([
        "-c",
        &format!("exec 3<>/dev/tcp/{}", listener.local_addr().unwrap().to_string().replace(':', "/")),
    ]);
    let (child, _session) = start(&own, &["connect"], connect);
    own.until("it has come", |stats| stats.open == sockets.len() + 1);
    // Those that come later have been judged: it waits for its turn.
    let later = own.thread(&["connect"], || [(); 20].map(|()| errno(TcpStream::connect("192.0.2.1:80"))));
    assert_eq!(later.join().unwrap(), [libc::EACCES; 20]);
    kill(child);
    // Before the broker has looked whether it waits.
    for socket in sockets {
        rustix::net::shutdown(socket, Shutdown::Both).unwrap();
    }
    hostile.join().unwrap();
    own.until("all is over", |stats| stats.open == 0);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_listener_whose_decisions_panic_is_closed_and_no_call_hangs() {
    struct Panics;
    impl Plugin for Panics {
        fn decide(&self, _: Rc<Notification>, _: Target) -> Decision {
            never()
        }
        fn at_once(&self, _: &Session, _: &Call) -> Option<Verdict> {
            std::panic::resume_unwind(Box::new("on purpose"))
        }
    }
    let own = Own::start();
    own.ask(|broker| {
        std::mem::forget(broker.register(registration("panics", &PPID), Rc::new(Panics)).unwrap());
    });
    own.rules(PPID_RULE);
    let (sender, answers) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    own.thread(&PPID, move || {
        sender.send([getppid().as_raw(), getppid().as_raw()]).unwrap();
        ended.recv().unwrap_err();
    });
    assert_eq!(answers.recv_timeout(DEADLINE), Ok([-libc::ENOSYS; 2]));
    own.until("the session's end", |stats| stats.sessions == 0 && stats.open == 0);
    check_another(&own);
    drop(end);
}

#[test]
fn a_notified_execve_is_judged_by_its_path() {
    let own = Own::start();
    own.plugin(registration("exec", &["execve"]), |notification, target| {
        Box::pin(async move {
            let path = target.read_string(notification.args[0], 4096).await.unwrap();
            Ok(if path == b"/bin/true" { Verdict::Continue } else { Verdict::Errno(libc::EACCES) })
        })
    });
    let thread = own.thread(&["execve"], || {
        assert!(Command::new("/bin/true").status().unwrap().success());
        assert_eq!(errno(Command::new("/bin/false").status()), libc::EACCES);
    });
    thread.join().unwrap();
    let stats = own.until("the session's end", |stats| stats.sessions == 0);
    assert_eq!((stats.received, stats.answered), (2, 2));
}

/// This program again, whose first thread makes a call that is notified to `own`, and
/// which becomes another program as soon as it is told to.
fn start_to_become_another(own: &Own) -> Child {
    let this = std::env::current_exe().unwrap();
    let mut program = Command::new(this);
    program.args(["--exact", "becomes_another", "--nocapture", "--test-threads=1"]);
    program.env("PODINIT_NOTIFIED_AT", own.socket()).stdin(Stdio::piped()).stdout(Stdio::null());
    program.spawn().unwrap()
}

/// Not a test by itself: what `start_to_become_another` runs.
#[test]
fn becomes_another() {
    let Some(socket) = std::env::var_os("PODINIT_NOTIFIED_AT") else { return };
    std::thread::spawn(|| {
        std::io::stdin().read_line(&mut String::new()).unwrap();
        panic!("{}", Command::new("/bin/true").exec());
    });
    notify(socket.as_ref(), "c", &["getppid".to_owned()]);
    panic!("it was answered: {}", getppid());
}

#[test]
fn an_execve_beside_a_call_that_waits_gives_the_call_up() {
    let own = Own::start();
    own.plugin(registration("p", &PPID), |_, _| never());
    let mut child = start_to_become_another(&own);
    own.until("it waits", |stats| stats.open == 1);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let stats = own.until("the session's end", |stats| stats.sessions == 0 && stats.open == 0);
    assert_eq!((stats.received, stats.interrupted), (1, 1));
}
