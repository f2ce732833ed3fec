//! The broker with real notifications: threads of this program under filters, and
//! plugins in this program. Containers are in seccomp_containers.rs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails, fails its test")]

mod seccomp_target;

use std::fs::{File, create_dir};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use nix::unistd::getppid;
use podinit::limits::SECCOMP_LINGER_LISTENERS_MAX;
use podinit::seccomp::broker::Defaults;
use podinit::seccomp::foreign::ForeignFd;
use podinit::seccomp::notification::Notification;
use podinit::seccomp::plugin::{PluginFailure, Registration};
use podinit::seccomp::tap::Outcome;
use podinit::seccomp::target::{Target, TargetError};
use podinit::seccomp::verdict::{OnFailure, Verdict};
use seccomp_target::{DEADLINE, MKDIR, Own, errno, failure, never, notify, ready, registration};

const PPID: [&str; 1] = ["getppid"];

fn open(path: &str) -> ForeignFd {
    OwnedFd::from(File::open(path).unwrap()).into()
}

/// Where the path of a mkdir(2) or mkdirat(2) is.
fn path_argument(notification: &Notification) -> u64 {
    notification.args[usize::from(notification.name.as_deref() == Some("mkdirat"))]
}

#[test]
fn every_verdict_is_carried_out() {
    let own = Own::start();
    own.plugin(registration("ppid", &PPID), |_, _| ready(Verdict::Return(77)));
    own.plugin(registration("mkdir", &MKDIR), |_, _| ready(Verdict::Errno(libc::EXDEV)));
    own.plugin(registration("rmdir", &["rmdir", "unlinkat"]), |_, _| ready(Verdict::Continue));
    own.plugin(registration("memfd", &["memfd_create"]), |_, _| {
        ready(Verdict::AddFd { fd: open("/dev/zero"), at: None, close_on_exec: true })
    });
    own.plugin(registration("socket", &["socket"]), |_, _| {
        ready(Verdict::AddFd { fd: open("/dev/null"), at: Some(500), close_on_exec: false })
    });
    own.plugin(registration("pass", &["getpgid"]), |_, _| ready(Verdict::Pass));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let calls =
        ["getppid", "mkdir", "mkdirat", "rmdir", "unlinkat", "memfd_create", "socket", "getpgid", "getsid"];
    let thread = own.thread(&calls, move || {
        assert_eq!(getppid().as_raw(), 77);
        assert_eq!(errno(create_dir(path.join("new"))), libc::EXDEV);
        assert_eq!(errno(std::fs::remove_dir(path.join("new"))), libc::ENOENT);

        let zero = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::empty()).unwrap();
        let mut bytes = [1; 3];
        assert_eq!(rustix::io::read(&zero, &mut bytes).unwrap(), 3);
        assert_eq!(bytes, [0; 3], "the target reads from the file that it was given");
        assert!(rustix::io::fcntl_getfd(&zero).unwrap().contains(rustix::io::FdFlags::CLOEXEC));

        use rustix::net::{AddressFamily, SocketType, socket};
        let null = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&null), 500);
        assert_eq!(rustix::io::read(&null, &mut bytes).unwrap(), 0);
        assert!(!rustix::io::fcntl_getfd(&null).unwrap().contains(rustix::io::FdFlags::CLOEXEC));

        // Nobody decides, or nobody is asked: as if there were no such call.
        assert_eq!(rustix::process::getpgid(None).unwrap_err(), rustix::io::Errno::NOSYS);
        assert_eq!(rustix::process::getsid(None).unwrap_err(), rustix::io::Errno::NOSYS);
    });
    thread.join().unwrap();
    let stats = own.until("the session's end", |stats| stats.sessions == 0);
    assert_eq!((stats.received, stats.answered, stats.interrupted, stats.open), (7, 7, 0, 0), "{stats:?}");
}

#[test]
fn a_descriptor_that_does_not_fit_is_an_errno_and_no_hang() {
    let own = Own::start();
    own.plugin(registration("memfd", &["memfd_create"]), |_, _| {
        ready(Verdict::AddFd { fd: open("/dev/zero"), at: Some(u32::MAX), close_on_exec: true })
    });
    let thread = own.thread(&["memfd_create"], || {
        rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::empty()).map(drop)
    });
    assert_eq!(thread.join().unwrap().unwrap_err(), rustix::io::Errno::BADF);
}

#[test]
fn plugins_are_asked_by_priority_until_one_decides() {
    let own = Own::start();
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    // Registered in another order than they are asked in.
    for (name, priority, verdict) in
        [("third", 30, 3), ("second", 20, 2), ("first", 10, 0), ("second too", 20, 9)]
    {
        let asked = Arc::clone(&asked);
        own.plugin(Registration { priority, ..registration(name, &PPID) }, move |_, _| {
            asked.lock().unwrap().push(name);
            ready(if verdict == 0 { Verdict::Pass } else { Verdict::Return(verdict) })
        });
    }
    assert_eq!(own.thread(&PPID, || getppid().as_raw()).join().unwrap(), 2);
    assert_eq!(*asked.lock().unwrap(), ["first", "second"]);
    own.withdraw("second");
    assert_eq!(own.thread(&PPID, || getppid().as_raw()).join().unwrap(), 9);
}

#[test]
fn rules_come_before_plugins_of_the_same_priority_even_if_they_are_read_again() {
    let own = Own::start();
    let rule = |name: &str, value: i32| {
        format!(r#"{{"name": "{name}", "match": {{"syscalls": ["getppid"]}}, "do": {{"return": {value}}}}}"#)
    };
    let answer = || own.thread(&PPID, || getppid().as_raw()).join().unwrap();
    own.plugin(registration("p", &PPID), |_, _| ready(Verdict::Return(9)));
    own.plugin(Registration { priority: -1, ..registration("first", &PPID) }, |_, _| ready(Verdict::Pass));
    for rules in [[rule("a", 1), rule("b", 2)], [rule("a", 3), rule("c", 4)]] {
        own.rules(&rules.join(","));
        assert_eq!(answer(), if rules[0].contains("1}") { 1 } else { 3 });
    }
    own.rules("");
    assert_eq!(answer(), 9);
}

#[test]
fn a_plugin_that_fails_costs_only_its_own_verdict() {
    let own = Own::start();
    let soon = Duration::from_millis(20);
    let with =
        |name: &str, call: &str, on_failure| Registration { on_failure, ..registration(name, &[call]) };
    own.plugin(
        Registration { deadline: soon, ..with("stalls", "getppid", OnFailure::Errno(libc::ETIME)) },
        |_, _| never(),
    );
    own.plugin(with("fails", "getpgid", OnFailure::Next), |_, _| {
        failure(PluginFailure::Failed("on purpose".into()))
    });
    own.plugin(Registration { priority: 1, ..with("next", "getpgid", OnFailure::Next) }, |_, _| {
        ready(Verdict::Return(5))
    });
    own.plugin(with("lies", "getsid", OnFailure::Continue), |_, _| ready(Verdict::Errno(0)));
    own.plugin(
        Registration { allow_continue: false, ..with("goes on", "getuid", OnFailure::Errno(libc::EPERM)) },
        |_, _| ready(Verdict::Continue),
    );
    #[allow(clippy::panic, reason = "that is what is tested")]
    own.plugin(with("panics", "getgid", OnFailure::Errno(libc::EPERM)), |_, _| panic!("on purpose"));

    let thread = own.thread(&["getppid", "getpgid", "getsid", "getuid", "getgid"], || {
        let answers = (getppid().as_raw(), nix::unistd::getpgid(None).map(|pid| pid.as_raw()));
        let continued = nix::unistd::getsid(None).is_ok();
        (
            answers,
            continued,
            nix::unistd::getuid().as_raw().cast_signed(),
            nix::unistd::getgid().as_raw().cast_signed(),
        )
    });
    let (answers, continued, uid, gid) = thread.join().unwrap();
    assert_eq!(answers, (-libc::ETIME, Ok(5)));
    assert!(continued, "a lie is replaced by what the registration says");
    assert_eq!(uid, -libc::EPERM, "continue is not taken from who may not say it");
    assert_eq!(gid, -libc::ENOSYS, "a panic answers the call");
    let stats = own.stats();
    let of = |name: &str| stats.plugins.iter().find(|plugin| plugin.name == name).unwrap().clone();
    assert_eq!((of("stalls").time_outs, of("fails").failures, of("lies").failures), (1, 1, 1));
}

#[test]
fn a_plugin_that_keeps_failing_is_not_asked_for_a_while() {
    let own = Own::start();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let registration =
        Registration { on_failure: OnFailure::Errno(libc::EAGAIN), ..registration("p", &PPID) };
    own.plugin(registration, move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        failure(PluginFailure::Gone)
    });
    let thread = own.thread(&PPID, || {
        let began = Instant::now();
        for _ in 0..200 {
            assert_eq!(getppid().as_raw(), -libc::EAGAIN);
        }
        began.elapsed()
    });
    let took = thread.join().unwrap();
    // Five in a row, and then once a second.
    let most = 5 + usize::try_from(took.as_secs()).unwrap() + 1;
    assert!((5..=most).contains(&asked.load(Ordering::Relaxed)), "{asked:?} in {took:?}");
    assert!(own.stats().plugins[0].suspended >= 100);
}

#[test]
fn calls_do_not_wait_for_one_another() {
    let own = Own::start();
    const THREADS: usize = 40;
    // Nobody is answered until all have asked.
    let all = Arc::new(tokio::sync::Barrier::new(THREADS));
    own.plugin(registration("p", &PPID), move |notification, _| {
        let all = Arc::clone(&all);
        Box::pin(async move {
            all.wait().await;
            Ok(Verdict::Return(notification.tid.into()))
        })
    });
    // Threads of one session: the filter of who starts them is theirs.
    let threads = own.thread(&PPID, || {
        let threads: Vec<_> =
            (0..THREADS).map(|_| std::thread::spawn(|| (getppid(), nix::unistd::gettid()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for (answer, own_id) in threads.join().unwrap() {
        assert_eq!(answer, own_id, "each got its own answer");
    }
    assert_eq!(own.stats().open, 0);
}

#[test]
fn a_plugin_that_leaves_with_calls_pending_leaves_none_hanging() {
    let own = Own::start();
    const THREADS: usize = 100;
    own.plugin(Registration { on_failure: OnFailure::Next, ..registration("leaves", &PPID) }, |_, _| never());
    own.plugin(Registration { priority: 1, ..registration("stays", &PPID) }, |_, _| {
        ready(Verdict::Return(4))
    });
    let threads = own.thread(&PPID, || {
        let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(|| getppid().as_raw())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    own.until("all are pending", |stats| stats.open == THREADS);
    own.withdraw("leaves");
    assert_eq!(threads.join().unwrap(), [4; THREADS]);
    let stats = own.stats();
    assert_eq!((stats.answered, stats.open, stats.interrupted), (100, 0, 0));
}

/// More than are taken at a time: the kernel keeps the rest until there is room.
#[test]
fn calls_beyond_the_limit_wait_their_turn() {
    let own = Own::start();
    const THREADS: usize = podinit::limits::SECCOMP_CONTAINER_CALLS_MAX + 50;
    own.plugin(Registration { on_failure: OnFailure::Next, ..registration("leaves", &PPID) }, |_, _| never());
    own.plugin(Registration { priority: 1, ..registration("stays", &PPID) }, |_, _| {
        ready(Verdict::Return(4))
    });
    let threads = own.thread(&PPID, || {
        let thread =
            || std::thread::Builder::new().stack_size(64 << 10).spawn(|| getppid().as_raw()).unwrap();
        let threads: Vec<_> = (0..THREADS).map(|_| thread()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let full = podinit::limits::SECCOMP_CONTAINER_CALLS_MAX;
    own.until("no more are taken", |stats| stats.open == full);
    own.withdraw("leaves");
    assert_eq!(threads.join().unwrap(), [4; THREADS]);
}

#[test]
fn the_first_plugin_is_waited_for_and_only_the_first() {
    let own = Own::start_with(Defaults { patience: DEADLINE, unmatched: OnFailure::Errno(libc::EPERM) });
    let thread = own.thread(&["getppid", "getsid"], || (getppid().as_raw(), nix::unistd::getsid(None)));
    own.until("the call waits", |stats| stats.open == 1);
    own.plugin(registration("first", &PPID), |_, _| ready(Verdict::Return(3)));
    // The second call is nobody's, and does not wait: there has been a plugin.
    assert_eq!(thread.join().unwrap(), (3, Err(nix::errno::Errno::EPERM)));

    let impatient = Defaults { patience: Duration::from_millis(50), unmatched: OnFailure::Continue };
    let own = Own::start_with(impatient);
    let parent = getppid();
    assert_eq!(own.thread(&PPID, getppid).join().unwrap(), parent);
}

#[test]
fn a_target_can_be_read_and_changed_while_its_call_waits() {
    let own = Own::start();
    let (sender, kept) = std::sync::mpsc::channel();
    own.plugin(registration("p", &MKDIR), move |notification, target| {
        let sender = sender.clone();
        Box::pin(async move {
            let said = use_target(&notification, &target).await;
            sender.send(said.map_err(|error| error.to_string())).unwrap();
            Ok(Verdict::Continue)
        })
    });
    let directory = tempfile::tempdir().unwrap();
    let (asked, made) = (directory.path().join("asked"), directory.path().join("maked"));
    let file = File::open("/etc/passwd").unwrap();
    let thread = own.thread(&MKDIR, move || {
        create_dir(asked).unwrap();
        drop(file);
    });
    thread.join().unwrap();
    kept.recv_timeout(DEADLINE).unwrap().unwrap();
    assert!(made.is_dir(), "the path was changed before the kernel read it");
}

async fn use_target(notification: &Rc<Notification>, target: &Target) -> Result<(), TargetError> {
    assert!(target.is_waiting());
    let address = path_argument(notification);
    let path = target.read_string(address, 4096).await?;
    assert!(path.ends_with(b"/asked"));
    assert_eq!(target.read_memory(address, path.len()).await?, path);
    assert!(matches!(target.read_string(address, 3).await, Err(TargetError::Unterminated { .. })));
    assert!(matches!(target.read_memory(address, 2 << 20).await, Err(TargetError::TooMuch { .. })));
    assert!(matches!(target.read_memory(1, 1).await, Err(TargetError::Io { .. })));
    target.write_memory(address + path.len() as u64 - 5, b"maked".to_vec()).await?;

    let standard = target.duplicate_fd(0).await?;
    assert_eq!(
        rustix::fs::fstat(&standard).unwrap().st_ino,
        rustix::fs::fstat(std::io::stdin()).unwrap().st_ino
    );
    assert!(target.duplicate_fd(999_999).await.is_err());
    let number = target.install_fd(target.duplicate_fd(0).await?, None, true).await?;
    assert_eq!(
        rustix::fs::fstat(target.duplicate_fd(number).await?).unwrap().st_ino,
        rustix::fs::fstat(&standard).unwrap().st_ino
    );

    let credentials = target.credentials().await?;
    assert_eq!((credentials.pid, credentials.users[0]), (std::process::id(), 0));
    let namespaces = target.namespaces().await?;
    assert!(namespaces.iter().any(|namespace| namespace.kind == "mnt" && namespace.inode != 0));
    target.namespace("net").await?;
    assert!(target.namespace("../root").await.is_err());
    assert!(target.cgroup().await?.contains(':'));
    target.pidfd().await?;
    Ok(())
}

#[test]
fn a_target_is_out_of_reach_once_its_call_is_answered() {
    let own = Own::start();
    let (sender, later) = std::sync::mpsc::channel();
    own.plugin(registration("p", &PPID), move |_, target| {
        let sender = sender.clone();
        tokio::task::spawn_local(async move {
            while target.is_waiting() {
                tokio::task::yield_now().await;
            }
            let refused = [
                target.read_memory(4096, 1).await.map(drop),
                target.write_memory(4096, vec![1]).await,
                target.duplicate_fd(0).await.map(drop),
                target.install_fd(open("/dev/null"), None, true).await.map(drop),
                target.credentials().await.map(drop),
                target.namespaces().await.map(drop),
                target.cgroup().await.map(drop),
                target.pidfd().await.map(drop),
            ];
            sender.send(refused.iter().all(|answer| matches!(answer, Err(TargetError::Gone)))).unwrap();
        });
        ready(Verdict::Return(1))
    });
    own.thread(&PPID, getppid).join().unwrap();
    assert!(later.recv_timeout(DEADLINE).unwrap());
}

#[test]
fn observers_get_copies_and_hold_nobody_up() {
    let own = Own::start();
    own.plugin(registration("p", &PPID), |_, _| ready(Verdict::Return(6)));
    const CALLS: u64 = 3000;
    let (sender, seen) = std::sync::mpsc::channel();
    own.ask(move |broker| {
        let mut observer = broker.observe(podinit::seccomp::select::Selector::default()).unwrap();
        tokio::task::spawn_local(async move {
            let mut count = 0;
            while count + observer.lost() < CALLS {
                let observation = observer.next().await.unwrap();
                assert_eq!((observation.outcome, &*observation.by), (Outcome::Returned(6), "p"));
                assert_eq!(observation.notification.name.as_deref(), Some("getppid"));
                assert_eq!((&*observation.session.container, &*observation.session.metadata), ("c", "meta"));
                count += 1;
            }
            sender.send(count).unwrap();
        });
        // One that never looks.
        std::mem::forget(broker.observe(podinit::seccomp::select::Selector::default()).unwrap());
    });
    own.thread(&PPID, || (0..CALLS).for_each(|_| assert_eq!(getppid().as_raw(), 6))).join().unwrap();
    assert!(seen.recv_timeout(DEADLINE).unwrap() > 0);
}

#[test]
fn sessions_are_told_as_they_come_and_go() {
    let own = Own::start();
    let changes = own.ask(|broker| {
        let mut changes = broker.changes();
        let (sender, told) = std::sync::mpsc::channel();
        tokio::task::spawn_local(async move {
            while let Ok(change) = changes.recv().await {
                let text = match change {
                    podinit::seccomp::broker::Change::Began(session) => {
                        format!("{} began", session.container)
                    }
                    podinit::seccomp::broker::Change::Ended(_) => "ended".to_owned(),
                };
                sender.send(text).unwrap();
            }
        });
        told
    });
    let (first, second) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (in_thread, out_of_thread) = (Arc::clone(&first), Arc::clone(&second));
    let thread = own.thread(&PPID, move || {
        in_thread.wait();
        out_of_thread.wait();
    });
    first.wait();
    assert_eq!(changes.recv_timeout(DEADLINE).unwrap(), "c began");
    let sessions = own.ask(|broker| {
        broker
            .sessions()
            .iter()
            .map(|session| (session.container.to_string(), session.pid, session.is_exec))
            .collect::<Vec<_>>()
    });
    assert_eq!(sessions, [("c".to_owned(), std::process::id(), false)]);
    second.wait();
    thread.join().unwrap();
    assert_eq!(changes.recv_timeout(DEADLINE).unwrap(), "ended");
}

#[test]
fn ten_sessions_of_many_calls_lose_none() {
    let own = Own::start();
    own.rules(r#"{"name": "rule", "match": {"syscalls": ["getppid"]}, "do": {"return": 8}}"#);
    let threads: Vec<_> = (0..10)
        .map(|_| own.thread(&PPID, || (0..2000).filter(|_| getppid().as_raw() == 8).count()))
        .collect();
    let answered: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(answered, 20_000);
    let stats = own.until("the sessions' end", |stats| stats.sessions == 0);
    assert_eq!((stats.received, stats.answered), (20_000, 20_000));
    let entry = stats.entries.iter().find(|entry| entry.plugin == "rule").unwrap();
    assert_eq!((entry.syscall.as_str(), entry.histogram.total()), ("getppid", 20_000));
}

/// The broker stays with listeners that call without end: questions, listeners that
/// are new, and those that plugins decide about have their turn all the same.
#[test]
fn who_calls_without_end_holds_up_nobody() {
    let own = Own::start();
    own.rules(r#"{"name": "rule", "match": {"syscalls": ["getppid"]}, "do": {"return": 8}}"#);
    own.plugin(registration("p", &MKDIR), |_, _| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(Verdict::Errno(libc::EXDEV))
        })
    });
    let is_over = Arc::new(AtomicBool::new(false));
    // More than it stays with at a time.
    let busy: Vec<_> = (0..SECCOMP_LINGER_LISTENERS_MAX + 4)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            own.thread(&PPID, move || {
                let calls =
                    std::iter::from_fn(|| (!is_over.load(Ordering::Relaxed)).then(|| getppid().as_raw()));
                calls.fold((0_u64, 0_u64), |(right, wrong), said| match said {
                    8 => (right + 1, wrong),
                    _ => (right, wrong + 1),
                })
            })
        })
        .collect();
    own.until("they call", |stats| stats.sessions == busy.len() && stats.received > 10_000);
    for turn in 0..20 {
        let both = [PPID[0], MKDIR[0], MKDIR[1]];
        let newcomer = own.thread(&both, || (getppid().as_raw(), errno(create_dir("/tmp/never"))));
        assert_eq!(newcomer.join().unwrap(), (8, libc::EXDEV), "{turn}");
    }
    is_over.store(true, Ordering::Relaxed);
    let (right, wrong) = busy.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0), |all, one| {
        assert!(one.0 > 0, "each has its turn");
        (all.0 + one.0, all.1 + one.1)
    });
    assert_eq!(wrong, 0);
    let stats = own.until("the sessions' end", |stats| stats.sessions == 0);
    assert_eq!((stats.received, stats.answered, stats.open), (right + 40, right + 40, 0), "{stats:?}");
}

/// Another thread rewrites the address all the time. Whatever the broker sees in
/// its one copy is what it connects to: never to what is not allowed.
#[test]
fn an_address_that_changes_after_the_check_reaches_nobody() {
    use std::net::TcpListener;
    use std::os::unix::fs::FileExt;
    let own = Own::start();
    let allowed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = allowed.local_addr().unwrap().port();
    let forbidden = TcpListener::bind(("127.0.0.2", port)).unwrap();
    forbidden.set_nonblocking(true).unwrap();
    own.rules(r#"{"name": "net", "do": {"connect": {"allow": [{"address": "127.0.0.1"}]}}}"#);

    // It must outlive who writes to it.
    let address: &'static _ = Box::leak(Box::new(nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, port)));
    let place = (&raw const *address).addr() as u64 + 4 + 3;
    let done = Arc::new(AtomicUsize::new(0));
    let is_done = Arc::clone(&done);
    let flipper = std::thread::spawn(move || {
        let memory = File::options().write(true).open("/proc/self/mem").unwrap();
        while is_done.load(Ordering::Relaxed) == 0 {
            memory.write_all_at(&[2], place).unwrap();
            memory.write_all_at(&[1], place).unwrap();
        }
    });
    let thread = own.thread(&["connect"], move || {
        let mut outcomes = [0; 2];
        for _ in 0..300 {
            let socket = std::net::TcpStream::from(
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                    .unwrap(),
            );
            match nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), address) {
                Ok(()) => {
                    outcomes[0] += 1;
                    drop(allowed.accept().unwrap());
                }
                Err(nix::errno::Errno::EACCES) => outcomes[1] += 1,
                Err(other) => panic!("{other}"),
            }
        }
        outcomes
    });
    let outcomes = thread.join().unwrap();
    done.store(1, Ordering::Relaxed);
    flipper.join().unwrap();
    assert_eq!(outcomes[0] + outcomes[1], 300);
    let reached = forbidden.accept();
    assert!(reached.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{outcomes:?}");
}

#[test]
fn connections_are_made_for_the_target_and_only_where_allowed() {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    let own = Own::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, closed) = (listener.local_addr().unwrap().port(), {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        closed.local_addr().unwrap().port()
    });
    own.rules(&format!(
        r#"{{"name": "net", "do": {{"connect": {{"allow": [{{"address": "127.0.0.0/8", "ports": [{port}, {closed}]}}],
            "otherwise": "ENETUNREACH"}}}}}}"#
    ));
    let thread = own.thread(&["connect"], move || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(stream.peer_addr().unwrap().port(), port);
        assert_eq!(errno(TcpStream::connect(("127.0.0.1", closed))), libc::ECONNREFUSED);
        assert_eq!(errno(TcpStream::connect(("127.0.0.1", 1))), libc::ENETUNREACH);
        assert_eq!(errno(std::os::unix::net::UnixStream::connect("/nowhere")), libc::EACCES);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        let local = File::open("/dev/null").unwrap();
        let address = nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, port);
        let connect = |number| nix::sys::socket::connect(number, &address).unwrap_err();
        assert_eq!(connect(std::os::fd::AsRawFd::as_raw_fd(&local)), nix::errno::Errno::ENOTSOCK);
        assert_eq!(connect(9999), nix::errno::Errno::EBADF);
    });
    thread.join().unwrap();
    assert!(listener.accept().is_ok());
}

#[test]
fn what_was_recorded_is_a_profile() {
    let own = Own::start();
    own.rules(r#"{"name": "r", "match": {"containers": ["c"]}, "do": {"record": {"then": "errno:EPERM"}}}"#);
    own.thread(&["getppid", "getsid"], || {
        getppid();
        getppid();
        nix::unistd::getsid(None).unwrap_err();
    })
    .join()
    .unwrap();
    let recordings = own.ask(|broker| broker.recordings.list(None));
    assert_eq!(recordings.len(), 1);
    let counts: Vec<_> =
        recordings[0].calls.iter().map(|call| (call.name.clone().unwrap(), call.count)).collect();
    assert_eq!(counts, [("getppid".to_owned(), 2), ("getsid".to_owned(), 1)]);
    assert_eq!(recordings[0].profile()["syscalls"][0]["names"], serde_json::json!(["getppid", "getsid"]));
}

/// Listeners that are not worth one, in every way that was thought of; then one that is.
#[test]
fn what_is_no_listener_is_closed_and_the_next_one_is_taken() {
    use podinit::sys::socket::connect;
    use rustix::net::SocketType;
    use seccomp_target::{send, state};
    let own = Own::start();
    let null = File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); 253];
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for (bytes, fds) in [
        (b"nonsense".to_vec(), &[][..]),
        (state("c").into_bytes(), &[][..]),
        (state("c").into_bytes(), &[null.as_fd()]),
        (state("c").into_bytes(), &many),
        (state("c").replace("seccompFd", "other").into_bytes(), &[null.as_fd()]),
        (vec![b' '; 64 << 10], &[null.as_fd()]),
    ] {
        let connection = connect(&own.socket(), SocketType::STREAM).unwrap();
        send(&connection, &bytes, fds);
        drop(connection);
    }
    // Longer than is taken, up to where nobody reads any more.
    let connection = connect(&own.socket(), SocketType::STREAM).unwrap();
    let endless = vec![b' '; 64 << 10];
    while rustix::net::send(&connection, &endless, rustix::net::SendFlags::NOSIGNAL).is_ok() {}
    drop(connection);
    own.rules(r#"{"name": "r", "do": {"return": 2}}"#);
    assert_eq!(own.thread(&PPID, || getppid().as_raw()).join().unwrap(), 2);
    own.until("the session's end", |stats| stats.sessions == 0);
    let deadline = Instant::now() + DEADLINE;
    // Other tests of this program open descriptors, too; those of this one must go.
    while open() > before + 100 {
        assert!(Instant::now() < deadline, "{} descriptors before, {} now", before, open());
        std::thread::yield_now();
    }
    assert_eq!(own.stats().received, 1);
}

/// The state in several pieces, with descriptors that nobody asked for.
#[test]
fn a_state_may_come_in_pieces() {
    let own = Own::start();
    own.rules(r#"{"name": "r", "match": {"containers": ["pieces"]}, "do": {"return": 2}}"#);
    let (near, far) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    drop((near, far));
    let proxy = own.directory.path().join("proxy.sock");
    let listener = std::os::unix::net::UnixListener::bind(&proxy).unwrap();
    let target = own.socket();
    let proxied = std::thread::spawn(move || relay_in_pieces(&listener, &target));
    let socket = proxy.clone();
    let thread = std::thread::spawn(move || {
        notify(&socket, "pieces", &["getppid".to_owned()]);
        getppid().as_raw()
    });
    proxied.join().unwrap();
    assert_eq!(thread.join().unwrap(), 2);
}

fn relay_in_pieces(listener: &std::os::unix::net::UnixListener, target: &std::path::Path) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, recvmsg};
    let (incoming, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 64 << 10];
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let count = recvmsg(&incoming, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let fds: Vec<_> = control
        .drain()
        .flat_map(|part| match part {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    let outgoing = podinit::sys::socket::connect(target, SocketType::STREAM).unwrap();
    // The runtime names them all; the listener is the second.
    let text = String::from_utf8(bytes[..count].to_vec())
        .unwrap()
        .replace("[\"seccompFd\"]", "[\"x\",\"seccompFd\"]");
    let null = File::open("/dev/null").unwrap();
    for (index, piece) in text.as_bytes().chunks(50).enumerate() {
        let with = [null.as_fd(), fds[0].as_fd()];
        seccomp_target::send(&outgoing, piece, if index == 0 { &with } else { &with[..1] });
    }
}
