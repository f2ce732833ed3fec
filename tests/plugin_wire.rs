//! What goes over the wire between the monitor and plugins, and in which order and
//! how much of it. Threads of this program make the calls, so that there can be
//! hundreds at once; containers are in plugins.rs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

#[path = "common/fuse.rs"]
mod fuse;
#[path = "common/host.rs"]
mod host;
mod seccomp_target;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::time::Instant;

use nix::unistd::getppid;
use podinit::rpc::client::Code;
use podinit::rpc::plugin::client::{
    Call, Content, Kind, Notification, OnFailure, Plugged, Plugin, Read, Record, Request, Selector, Session,
    Verdict, dial_in, listen,
};
use podinit::rpc::plugin::replay::Replay;
use podinit::rpc::plugin::{bind, extension};
use podinit::rpc::schema::plugin_capnp as wire;
use podinit::sys::socket;
use rustix::net::SocketType;
use seccomp_target::{DEADLINE, MKDIR, Own, errno, notify_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

const PPID: [&str; 1] = ["getppid"];

/// A call whose second argument is any number that the test likes: what a plugin
/// takes for a pointer.
const SEEK: [&str; 1] = ["lseek"];

/// Makes that call.
fn seek(address: u64) -> rustix::io::Result<u64> {
    rustix::fs::seek(rustix::stdio::stdin(), rustix::fs::SeekFrom::Start(address))
}

/// Has the broker serve plugins; the socket where they dial in.
fn serve(own: &Own) -> PathBuf {
    let directory = own.directory.path().to_owned();
    let listener = bind(&directory).unwrap();
    let path = directory.join("plugins.sock");
    own.ask(move |broker| extension(directory.clone(), listener, directory.join("none"))(Rc::clone(broker)));
    path
}

/// Runs a plugin on a thread of its own, until it ends or this is dropped.
struct Beside {
    over: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn beside<F: Future<Output = ()>>(plugin: impl FnOnce() -> F + Send + 'static) -> Beside {
    let (over, told) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async move {
            tokio::select! {
                () = plugin() => {}
                _ = told => {}
            }
        });
    });
    Beside { over: Some(over), thread: Some(thread) }
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.over.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the plugin panicked");
    }
}

/// Registers `plugin`, and lets it decide until it is dropped.
fn plugged<P: Plugin>(
    own: &Own,
    socket: &Path,
    request: Request,
    plugin: impl FnOnce() -> P + Send + 'static,
) -> Beside {
    let (path, before) = (socket.to_owned(), own.ask(|broker| broker.registrations().len()));
    let beside = beside(async move || {
        let _plugged = dial_in(&path, request, plugin()).await.unwrap();
        std::future::pending().await
    });
    own.until("its registration", |_| own.ask(|broker| broker.registrations().len()) > before);
    beside
}

fn registrations(own: &Own) -> usize {
    own.ask(|broker| broker.registrations().len())
}

/// Six pieces of memory that argument 1 points to: as much as a plugin can have.
fn most_reads() -> Vec<Read> {
    (0..6).map(|_| Read::Bytes { argument: 1, bytes: 64 << 10 }).collect()
}

/// Memory with as much in it; it stays for ever.
fn memory() -> u64 {
    Box::leak(vec![7_u8; 1 << 20].into_boxed_slice()).as_ptr().addr() as u64
}

/// Puts every verdict off, and gives it before or after it says so.
struct PutsOff {
    plugged: RefCell<Option<Rc<Plugged>>>,
    answers_first: bool,
}

impl Plugin for PutsOff {
    async fn decide(&self, call: Call) -> Verdict {
        let plugged = Rc::clone(self.plugged.borrow().as_ref().unwrap());
        let answer = [(call.notification.session, call.notification.id, Verdict::Errno(30))];
        if self.answers_first {
            assert_eq!(plugged.answer(&answer).await.unwrap(), 0);
            assert_eq!(plugged.answer(&answer).await.unwrap(), 1, "once is enough");
        } else {
            tokio::task::spawn_local(async move {
                // There and back again: by then it is put off.
                plugged.answer(&[]).await.unwrap();
                assert_eq!(plugged.answer(&answer).await.unwrap(), 0);
            });
        }
        Verdict::Later
    }
}

#[test]
fn a_verdict_that_is_put_off_may_come_first() {
    for answers_first in [true, false] {
        let own = Own::start();
        let path = serve(&own);
        let (sender, can_answer) = mpsc::channel();
        let _plugin = beside(async move || {
            let plugin = Rc::new(PutsOff { plugged: RefCell::default(), answers_first });
            let request =
                Request { deadline_ms: 20_000, on_failure: OnFailure::Errno(62), ..Request::new("p", &PPID) };
            let plugged = dial_in(&path, request, Rc::clone(&plugin)).await.unwrap();
            plugin.plugged.replace(Some(Rc::new(plugged)));
            sender.send(()).unwrap();
            std::future::pending().await
        });
        // The monitor has registered it before it knows.
        can_answer.recv_timeout(DEADLINE).unwrap();
        let answers = own.thread(&PPID, || (0..10).map(|_| getppid().as_raw()).collect::<Vec<_>>());
        assert_eq!(answers.join().unwrap(), [-30; 10], "answers first: {answers_first}");
    }
}

/// Gives another verdict when it has given one.
struct SaysTwo(RefCell<Option<Rc<Plugged>>>);

impl Plugin for SaysTwo {
    async fn decide(&self, call: Call) -> Verdict {
        let plugged = Rc::clone(self.0.borrow().as_ref().unwrap());
        let answer = [(call.notification.session, call.notification.id, Verdict::Errno(30))];
        assert_eq!(plugged.answer(&answer).await.unwrap(), 0);
        Verdict::Errno(13)
    }
}

#[test]
fn two_verdicts_for_one_notification_are_none() {
    let own = Own::start();
    let path = serve(&own);
    let (sender, can_answer) = mpsc::channel();
    let _plugin = beside(async move || {
        let plugin = Rc::new(SaysTwo(RefCell::default()));
        let request = Request { on_failure: OnFailure::Errno(62), ..Request::new("p", &PPID) };
        let plugged = dial_in(&path, request, Rc::clone(&plugin)).await.unwrap();
        plugin.0.replace(Some(Rc::new(plugged)));
        sender.send(()).unwrap();
        std::future::pending().await
    });
    can_answer.recv_timeout(DEADLINE).unwrap();
    assert_eq!(own.thread(&PPID, || getppid().as_raw()).join().unwrap(), -62);
    assert_eq!(own.stats().plugins[0].failures, 1);
}

/// Counts the calls that it puts off.
struct Counts(watch::Sender<usize>);

impl Plugin for Counts {
    async fn decide(&self, _: Call) -> Verdict {
        self.0.send_modify(|count| *count += 1);
        Verdict::Later
    }
}

#[test]
fn calls_that_were_put_off_do_not_wait_for_a_plugin_that_is_gone() {
    const THREADS: usize = 10;
    let own = Own::start();
    let path = serve(&own);
    let _plugin = beside(async move || {
        let (sender, mut count) = watch::channel(0);
        let request =
            Request { deadline_ms: 300_000, on_failure: OnFailure::Errno(62), ..Request::new("p", &PPID) };
        let plugged = dial_in(&path, request, Counts(sender)).await.unwrap();
        count.wait_for(|count| *count == THREADS).await.unwrap();
        // The monitor has been told that they are put off. Then all is dropped.
        plugged.answer(&[]).await.unwrap();
    });
    own.until("its registration", |_| registrations(&own) == 1);
    let began = Instant::now();
    let threads = own.thread(&PPID, || {
        let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(|| getppid().as_raw())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(threads.join().unwrap(), [-62; THREADS]);
    assert!(began.elapsed() < DEADLINE, "long before the deadline");
    own.until("the end of its registration", |_| registrations(&own) == 0);
}

/// Refuses everything.
struct Refuses;

impl Plugin for Refuses {
    async fn decide(&self, _: Call) -> Verdict {
        Verdict::Errno(30)
    }
}

/// Passes on what a plugin says, `most` bytes of it, and then ends its connection. Counts them.
async fn pass_on(listener: UnixListener, to: PathBuf, most: usize, passed: Arc<AtomicUsize>) {
    let (mut plugin, _) = listener.accept().await.unwrap();
    let mut monitor = UnixStream::connect(to).await.unwrap();
    let (mut from_plugin, mut to_plugin) = plugin.split();
    let (mut from_monitor, mut to_monitor) = monitor.split();
    let mut bytes = vec![0; 64 << 10];
    let forth = async {
        while passed.load(Ordering::Relaxed) < most {
            let room = (most - passed.load(Ordering::Relaxed)).min(bytes.len());
            match from_plugin.read(&mut bytes[..room]).await {
                Ok(count @ 1..) => {
                    to_monitor.write_all(&bytes[..count]).await.unwrap();
                    passed.fetch_add(count, Ordering::Relaxed);
                }
                _ => break,
            }
        }
    };
    tokio::select! {
        () = forth => {}
        _ = tokio::io::copy(&mut from_monitor, &mut to_plugin) => {}
    }
}

/// What three calls are answered by a plugin of whose messages `most` bytes arrive, and how many did.
fn answers_after(own: &Own, path: &Path, most: usize) -> ([i32; 3], usize) {
    let (sender, told) = mpsc::channel();
    let passed = Arc::new(AtomicUsize::new(0));
    let (to, count) = (path.to_owned(), Arc::clone(&passed));
    let between = own.directory.path().join(format!("{most}.sock"));
    let plugin = beside(async move || {
        let listener = UnixListener::bind(&between).unwrap();
        tokio::task::spawn_local(pass_on(listener, to, most, count));
        let request =
            Request { deadline_ms: 60_000, on_failure: OnFailure::Errno(62), ..Request::new("p", &PPID) };
        let _plugged = dial_in(&between, request, Refuses).await;
        sender.send(()).unwrap();
        std::future::pending().await
    });
    told.recv_timeout(DEADLINE).unwrap();
    let answers = own.thread(&PPID, || [(); 3].map(|()| getppid().as_raw())).join().unwrap();
    drop(plugin);
    own.until("the end of its registration", |_| registrations(own) == 0);
    (answers, passed.load(Ordering::Relaxed))
}

/// A plugin's process can be killed while it writes: whatever has arrived by then, each call is
/// answered, by the plugin, by its policy, or as if it had never been there.
#[test]
fn a_connection_may_end_after_any_byte() {
    let own = Own::start();
    let path = serve(&own);
    let (answers, all) = answers_after(&own, &path, usize::MAX);
    assert_eq!(answers, [-30; 3]);
    let mut seen = HashSet::new();
    // Messages are of words of 8 bytes: at their borders, and within them.
    for most in (0..all).step_by(4) {
        let (answers, _) = answers_after(&own, &path, most);
        let ranks = answers.map(|answer| [-30, -62, -libc::ENOSYS].iter().position(|known| *known == answer));
        assert!(ranks.iter().all(Option::is_some) && ranks.is_sorted(), "{most} of {all} bytes: {answers:?}");
        seen.extend(answers);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    let stats = own.until("the sessions' end", |stats| stats.sessions == 0);
    assert_eq!((stats.received, stats.interrupted, stats.open), (stats.answered, 0, 0), "{stats:?}");
}

/// Refuses everything, once it may.
struct Waits(watch::Receiver<bool>);

impl Plugin for Waits {
    async fn decide(&self, call: Call) -> Verdict {
        assert!(call.notification.text(0).is_some_and(|path| path.len() > 4000));
        self.0.clone().wait_for(|may| *may).await.unwrap();
        Verdict::Errno(30)
    }
}

#[test]
fn a_batch_of_long_paths_is_sent_in_parts() {
    const THREADS: usize = 300;
    let own = Own::start();
    let path = serve(&own);
    let request = Request {
        batch_max: 256,
        calls_max: 1,
        deadline_ms: 60_000,
        on_failure: OnFailure::Errno(62),
        ..Request::new("p", &["rename"])
    };
    let (may, told) = watch::channel(false);
    let _plugin = plugged(&own, &path, request, move || Waits(told));
    let threads = own.thread(&["rename"], || {
        let rename = || {
            let path = format!("/{}", "x/".repeat(2040));
            errno(std::fs::rename(&path, &path))
        };
        let spawn = || std::thread::Builder::new().stack_size(128 << 10).spawn(rename).unwrap();
        let threads: Vec<_> = (0..THREADS).map(|_| spawn()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    // All but the first wait for its answer, and are sent together.
    own.until("all of them", |stats| stats.open == THREADS);
    may.send_replace(true);
    assert_eq!(threads.join().unwrap(), [30; THREADS]);
    assert_eq!(registrations(&own), 1);
}

/// Keeps what it observes; it takes nothing before it may.
struct Observes {
    may: watch::Receiver<bool>,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Plugin for Observes {
    async fn decide(&self, _: Call) -> Verdict {
        Verdict::PassOn
    }

    async fn observe(&self, records: Vec<Record>, lost: u64) {
        assert_eq!(lost, 0);
        self.may.clone().wait_for(|may| *may).await.unwrap();
        self.records.lock().unwrap().extend(records);
    }
}

#[test]
fn records_with_much_memory_are_sent_in_parts() {
    const CALLS: usize = 30;
    let own = Own::start();
    let path = serve(&own);
    let request = Request {
        kind: Kind::Observer,
        decode: false,
        reads: most_reads(),
        ..Request::new("observer", &SEEK)
    };
    let (may, told) = watch::channel(false);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let records = Arc::clone(&seen);
    let _plugin = plugged(&own, &path, request, move || Observes { may: told, records });
    let address = memory();
    own.thread(&SEEK, move || (0..CALLS).for_each(|_| assert!(seek(address).is_err()))).join().unwrap();
    may.send_replace(true);
    own.until("all records", |_| seen.lock().unwrap().len() == CALLS);
    for record in seen.lock().unwrap().iter() {
        let sizes: Vec<_> = record.notification.decoded.iter().map(size).collect();
        assert_eq!(sizes, [(65_536, false); 6]);
    }
}

fn size(decoded: &podinit::rpc::plugin::client::Decoded) -> (usize, bool) {
    match &decoded.content {
        Content::Bytes(bytes) => (bytes.0.len(), decoded.cut),
        _ => (0, decoded.cut),
    }
}

/// Counts sessions, and refuses everything.
struct Hears {
    synchronised: Cell<usize>,
    opened: Cell<usize>,
    heard: mpsc::Sender<(usize, usize)>,
}

impl Plugin for Hears {
    async fn decide(&self, _: Call) -> Verdict {
        self.heard.send((self.synchronised.get(), self.opened.get())).unwrap();
        Verdict::Errno(30)
    }

    fn synchronise(&self, sessions: &[Session]) {
        assert!(sessions.iter().all(|session| session.annotations[0].1.len() == 30_000));
        self.synchronised.set(sessions.len());
    }

    fn session_opened(&self, session: &Session) {
        assert_eq!(session.annotations[0].1.len(), 30_000);
        self.opened.set(self.opened.get() + 1);
    }
}

#[test]
fn sessions_with_long_annotations_are_told_in_parts() {
    const SESSIONS: usize = 100;
    let own = Own::start();
    let path = serve(&own);
    let gate = Arc::new(RwLock::new(()));
    let shut = gate.write().unwrap();
    let state = serde_json::json!({
        "ociVersion": "1.0.2", "fds": ["seccompFd"], "pid": 1, "metadata": "",
        "state": { "ociVersion": "1.0.2", "id": "c", "status": "creating", "pid": 1, "bundle": "/",
            "annotations": { "long": "x".repeat(30_000) } },
    })
    .to_string();
    let threads: Vec<_> = (1..=SESSIONS)
        .map(|count| {
            let (door, state, gate) = (own.socket(), state.clone(), Arc::clone(&gate));
            let thread = std::thread::spawn(move || {
                notify_with(&door, &state, &PPID.map(str::to_owned));
                drop(gate.read());
                getppid().as_raw()
            });
            own.until("the session", |stats| stats.sessions == count);
            thread
        })
        .collect();
    let (heard, told) = mpsc::channel();
    let plugin = move || Hears { synchronised: Cell::default(), opened: Cell::default(), heard };
    let _plugin = plugged(&own, &path, Request::new("p", &PPID), plugin);
    drop(shut);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), -30);
    }
    let (synchronised, opened) = told.recv().unwrap();
    assert!(synchronised > 0 && opened > 0, "{synchronised} at once, {opened} later");
    assert_eq!(synchronised + opened, SESSIONS, "before the first call");
}

/// Does not even read.
struct Stalls(Arc<RwLock<()>>);

impl Plugin for Stalls {
    async fn decide(&self, _: Call) -> Verdict {
        drop(self.0.read());
        Verdict::Errno(30)
    }
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn a_plugin_that_stalls_costs_a_bounded_memory() {
    const THREADS: usize = 400;
    let own = Own::start();
    let path = serve(&own);
    let gate = Arc::new(RwLock::new(()));
    let shut = gate.write().unwrap();
    let request = Request {
        decode: false,
        reads: most_reads(),
        deadline_ms: 2000,
        on_failure: OnFailure::Errno(62),
        ..Request::new("p", &SEEK)
    };
    let plugin = Arc::clone(&gate);
    let _plugin = plugged(&own, &path, request, move || Stalls(plugin));
    let address = memory();
    let before = resident_megabytes();
    let threads = own.thread(&SEEK, move || {
        let seek = move || seek(address).unwrap_err().raw_os_error();
        let spawn = || std::thread::Builder::new().stack_size(128 << 10).spawn(seek).unwrap();
        let threads: Vec<_> = (0..THREADS).map(|_| spawn()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(threads.join().unwrap(), [62; THREADS]);
    // 150 MB of memory were asked for. Other tests run beside this one.
    let after = resident_megabytes();
    assert!(after < before + 100, "{before} MB before, {after} MB after");
    // It goes on where it was.
    drop(shut);
    own.until("a verdict", |_| {
        own.thread(&SEEK, move || seek(address)).join().unwrap() == Err(rustix::io::Errno::ROFS)
    });
}

/// Refuses the calls of container `another`, and does not answer others.
struct Holds;

impl Plugin for Holds {
    async fn decide(&self, call: Call) -> Verdict {
        if call.notification.container == "another" {
            return Verdict::Errno(30);
        }
        std::future::pending().await
    }
}

#[test]
fn memory_of_calls_that_are_not_decided_leaves_room_for_other_containers() {
    const CALLS: usize = 60;
    let own = Own::start();
    let path = serve(&own);
    let request = Request {
        decode: false,
        reads: most_reads(),
        deadline_ms: 60_000,
        on_failure: OnFailure::Errno(62),
        ..Request::new("p", &SEEK)
    };
    let plugin = plugged(&own, &path, request, || Holds);
    let address = memory();
    let hostile = own.thread(&SEEK, move || {
        let seek = move || seek(address).unwrap_err().raw_os_error();
        let spawn = || std::thread::Builder::new().stack_size(128 << 10).spawn(seek).unwrap();
        let threads: Vec<_> = (0..CALLS).map(|_| spawn()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    // Theirs would be 22 MiB of memory.
    own.until("all of them wait", |stats| stats.open == CALLS);
    let answers = own.thread_of("another", &SEEK, move || [(); 20].map(|()| seek(address)));
    assert_eq!(answers.join().unwrap(), [Err(rustix::io::Errno::ROFS); 20]);
    assert_eq!(own.stats().open, CALLS);
    drop(plugin);
    assert_eq!(hostile.join().unwrap(), [62; CALLS]);
}

/// A program whose threads make directories again and again, by names in memory that does
/// not answer.
struct Unreadable {
    disk: fuse::SlowDisk,
    _directory: tempfile::TempDir,
    child: std::process::Child,
    /// Ends the session, after the program.
    _session: mpsc::Sender<()>,
}

impl Unreadable {
    /// `None` where there is no FUSE, or no Python.
    fn start(own: &Own, threads: usize) -> Option<Self> {
        const PROGRAM: &str = r#"
import ctypes, mmap, sys, threading
with open(sys.argv[1], "rb") as file:
    memory = mmap.mmap(file.fileno(), 1 << 17, access=mmap.ACCESS_COPY)
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
mkdir = ctypes.CDLL(None).mkdir
threads = int(sys.argv[2])
all = threading.Barrier(threads)
def work():
    # What a thread needs is there before its memory cannot be changed for those who read it.
    mkdir(None, 0)
    all.wait()
    while True: mkdir(address, 0)
threading.stack_size(1 << 17)
for _ in range(threads): threading.Thread(target=work).start()
"#;
        if !Path::new("/dev/fuse").exists()
            || std::process::Command::new("python3").arg("-V").output().is_err()
        {
            eprintln!("skipped: no /dev/fuse, or no python3");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let disk = fuse::SlowDisk::mount(directory.path());
        disk.fill(1 << 17);
        let mut program = std::process::Command::new("python3");
        program.args(["-I", "-B", "-c", PROGRAM]).arg(disk.log()).arg(threads.to_string());
        let (started, child) = mpsc::channel();
        let (session, ended) = mpsc::channel();
        own.thread(&MKDIR, move || {
            started.send(program.spawn().unwrap()).unwrap();
            ended.recv().unwrap_err();
        });
        let child = child.recv_timeout(DEADLINE).unwrap();
        Some(Self { disk, _directory: directory, child, _session: session })
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        self.disk.release();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn an_observer_of_memory_that_does_not_answer_holds_no_other_container_up() {
    const THREADS: usize = 300;
    let own = Own::start();
    let path = serve(&own);
    let syscalls = r#"["mkdir", "mkdirat"]"#;
    own.rules(&format!(
        r#"{{"name": "no", "match": {{"syscalls": {syscalls}}}, "do": {{"errno": "EROFS"}}}}"#
    ));
    let request = Request { kind: Kind::Observer, ..Request::new("observer", &MKDIR) };
    let records = Arc::default();
    let (_may, told) = watch::channel(false);
    let _plugin = plugged(&own, &path, request, move || Observes { may: told, records });
    let Some(unreadable) = Unreadable::start(&own, THREADS) else { return };
    unreadable.disk.wait_for_a_write();
    own.until("most of them wait", |stats| stats.open > 256);
    let (sender, answers) = mpsc::channel();
    own.thread_of("another", &MKDIR, move || {
        (0..20).for_each(|_| sender.send(errno(std::fs::create_dir("/proc/no"))).unwrap());
    });
    for _ in 0..20 {
        assert_eq!(answers.recv_timeout(DEADLINE), Ok(libc::EROFS));
    }
    // They themselves are not held up for ever.
    let before = own.stats().answered;
    own.until("answers to them", |stats| stats.answered > before + 10);
}

/// Reads a call's memory more often at a time than it may.
struct ReadsTooMuch(mpsc::Sender<usize>);

impl Plugin for ReadsTooMuch {
    async fn decide(&self, call: Call) -> Verdict {
        let (address, call) = (call.notification.arguments[0], Rc::new(call));
        if address == 0 {
            return Verdict::PassOn;
        }
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let call = Rc::clone(&call);
            reads.spawn_local(async move { call.read_memory(address, 64 << 10).await });
        }
        // 16 MiB would be 256 of them, of which a container has half.
        for _ in 0..1000 - 128 {
            let refused = reads.join_next().await.unwrap().unwrap().unwrap_err();
            assert_eq!(refused.code, Code::ResourceExhausted);
        }
        self.0.send(reads.len()).unwrap();
        while let Some(read) = reads.join_next().await {
            assert_ne!(read.unwrap().unwrap_err().code, Code::ResourceExhausted);
        }
        assert_ne!(call.read_memory(address, 64 << 10).await.unwrap_err().code, Code::ResourceExhausted);
        self.0.send(0).unwrap();
        std::future::pending().await
    }
}

#[test]
fn a_plugins_calls_to_a_process_are_bounded() {
    let own = Own::start();
    let path = serve(&own);
    let request = Request { decode: false, deadline_ms: 60_000, ..Request::new("p", &MKDIR) };
    let (sender, left) = mpsc::channel();
    let _plugin = plugged(&own, &path, request, || ReadsTooMuch(sender));
    let Some(unreadable) = Unreadable::start(&own, 1) else { return };
    assert_eq!(left.recv_timeout(DEADLINE), Ok(128));
    unreadable.disk.release();
    assert_eq!(left.recv_timeout(DEADLINE), Ok(0), "there is room again");
}

/// Asks for more memory at a time than a socket holds, with more questions than one holds.
struct AsksMuch;

impl Plugin for AsksMuch {
    async fn decide(&self, call: Call) -> Verdict {
        let (address, call) = (call.notification.arguments[1], Rc::new(call));
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..4000 {
            let call = Rc::clone(&call);
            reads.spawn_local(async move { call.read_memory(address, 4096).await });
        }
        while let Some(read) = reads.join_next().await {
            let read = read.unwrap();
            assert!(read.is_ok() || read.is_err_and(|error| error.code == Code::ResourceExhausted));
        }
        Verdict::Errno(30)
    }
}

#[test]
fn a_plugin_and_the_monitor_do_not_wait_for_each_other_to_read() {
    let own = Own::start();
    let path = serve(&own);
    let request = Request { decode: false, deadline_ms: 60_000, ..Request::new("p", &SEEK) };
    let _plugin = plugged(&own, &path, request, || AsksMuch);
    let address = memory();
    assert_eq!(own.thread(&SEEK, move || seek(address)).join().unwrap(), Err(rustix::io::Errno::ROFS));
}

/// Sends what it was brought.
struct Shows(mpsc::Sender<(usize, bool)>);

impl Plugin for Shows {
    async fn decide(&self, call: Call) -> Verdict {
        for decoded in &call.notification.decoded {
            self.0.send(size(decoded)).unwrap();
        }
        Verdict::Errno(30)
    }
}

/// The end of a mapping that no other follows.
fn end_of_memory() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let range = |line: &str| {
        let (begin, rest) = line.split_once('-')?;
        let (end, rest) = rest.split_once(' ')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(begin)?, number(end)?, rest.starts_with('r')))
    };
    let ranges: Vec<_> = maps.lines().filter_map(range).collect();
    // Of the program itself, whose mappings stay.
    let pair = ranges.windows(2).find(|pair| pair[0].2 && pair[0].1 != pair[1].0);
    pair.expect("a gap").first().unwrap().1
}

#[test]
fn memory_that_ends_too_soon_is_said_to_be_cut() {
    let own = Own::start();
    let path = serve(&own);
    let (sender, shown) = mpsc::channel();
    let reads = vec![Read::Bytes { argument: 1, bytes: 8 }, Read::Bytes { argument: 1, bytes: 64 }];
    let request = Request { decode: false, reads, ..Request::new("p", &SEEK) };
    let _plugin = plugged(&own, &path, request, move || Shows(sender));
    let address = end_of_memory() - 8;
    own.thread(&SEEK, move || seek(address)).join().unwrap().unwrap_err();
    assert_eq!(shown.recv_timeout(DEADLINE), Ok((8, false)));
    assert_eq!(shown.recv_timeout(DEADLINE), Ok((8, true)));
}

/// Asks for tickets without the library, which would use them at once.
struct Collects {
    targets: RefCell<Vec<wire::target::Client>>,
    tickets: mpsc::Sender<Vec<u8>>,
    may: watch::Receiver<bool>,
}

impl wire::seccomp_plugin::Server for Collects {
    async fn synchronise(
        self: Rc<Self>,
        _: wire::seccomp_plugin::SynchroniseParams,
        _: wire::seccomp_plugin::SynchroniseResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }

    async fn session_opened(
        self: Rc<Self>,
        params: wire::seccomp_plugin::SessionOpenedParams,
        _: wire::seccomp_plugin::SessionOpenedResults,
    ) -> Result<(), capnp::Error> {
        self.targets.borrow_mut().push(params.get()?.get_session()?.get_target()?);
        Ok(())
    }

    async fn session_closed(
        self: Rc<Self>,
        _: wire::seccomp_plugin::SessionClosedParams,
        _: wire::seccomp_plugin::SessionClosedResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }

    async fn decide(
        self: Rc<Self>,
        params: wire::seccomp_plugin::DecideParams,
        mut results: wire::seccomp_plugin::DecideResults,
    ) -> Result<(), capnp::Error> {
        let target = self.targets.borrow()[0].clone();
        for _ in 0..2 {
            let mut request = target.open_request();
            request.get().set_id(params.get()?.get_notifications()?.get(0).get_id());
            request.get().set_place(wire::target::Place::Pidfd);
            let answer = request.send().promise.await?;
            self.tickets.send(answer.get()?.get_ticket()?.to_vec()).unwrap();
        }
        self.may.clone().wait_for(|may| *may).await.unwrap();
        results.get().init_verdicts(1).get(0).set_errno(30);
        Ok(())
    }
}

/// The first byte of what the descriptor socket says to a ticket: see src/rpc/plugin/packet.rs.
fn fetch(exchange: &OwnedFd, ticket: &[u8]) -> u8 {
    let request = [b"t", ticket].concat();
    rustix::net::send(exchange, &request, rustix::net::SendFlags::NOSIGNAL).unwrap();
    let mut answer = [0; 256];
    let (read, _) = rustix::net::recv(exchange, &mut answer, rustix::net::RecvFlags::empty()).unwrap();
    assert!(read > 0);
    answer[0]
}

#[test]
fn a_ticket_ends_with_its_call() {
    let own = Own::start();
    let path = serve(&own);
    let (sender, tickets) = mpsc::channel();
    let (may, told) = watch::channel(false);
    let _plugin = beside(async move || {
        let mut call = host::host(&path).await.register_request();
        let mut request = call.get().init_request();
        request.set_name("p");
        request.init_selector().init_syscalls(1).set(0, PPID[0]);
        let plugin = Collects { targets: RefCell::default(), tickets: sender, may: told };
        call.get().set_plugin(capnp_rpc::new_client(plugin));
        let _registered = call.send().promise.await.unwrap();
        std::future::pending().await
    });
    own.until("its registration", |_| registrations(&own) == 1);
    let thread = own.thread(&PPID, || getppid().as_raw());
    let ticket = || tickets.recv_timeout(DEADLINE).unwrap();
    let (first, second) = (ticket(), ticket());
    let exchange =
        socket::connect(&own.directory.path().join("plugins-fd.sock"), SocketType::SEQPACKET).unwrap();
    assert_eq!(fetch(&exchange, &first), b'p');
    may.send_replace(true);
    assert_eq!(thread.join().unwrap(), -30);
    assert_eq!(fetch(&exchange, &second), b'e');
}

/// Answers each call in another way, hardly any of which makes sense.
struct Wild;

impl Plugin for Wild {
    async fn decide(&self, call: Call) -> Verdict {
        match call.notification.name.as_str() {
            "mkdir" => Verdict::Continue,
            "rmdir" => Verdict::Errno(5000),
            "chmod" => Verdict::Return(-5),
            "chown" => std::future::pending().await,
            "unlink" => Verdict::PassOn,
            _ => Verdict::Errno(30),
        }
    }
}

#[test]
fn a_replay_judges_as_the_broker_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.sock");
    let labels = vec![("app".to_owned(), "web".to_owned())];
    let request = Request {
        selector: Selector {
            labels: labels.clone(),
            metadata: vec!["some".to_owned()],
            ..Selector::default()
        },
        deadline_ms: 200,
        on_failure: OnFailure::Errno(62),
        ..Request::new("wild", &[])
    };
    let socket = path.clone();
    let _plugin = beside(async move || listen(&socket, request, Wild).await.unwrap());
    let end = std::time::Instant::now() + DEADLINE;
    while std::os::unix::net::UnixStream::connect(&path).is_err() {
        assert!(std::time::Instant::now() < end, "the plugin does not listen");
        std::thread::yield_now();
    }
    tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
        let replay = Replay::dial(&path).await.unwrap();
        let call = |session, name: &str| Notification { session, name: name.into(), ..Default::default() };
        // Nobody knows its labels.
        assert_eq!(replay.play(&call(1, "rename")).await.unwrap().plugin, None);
        let described = Session { id: 1, metadata: "some".into(), labels, ..Session::default() };
        replay.open(&described).await.unwrap();
        for (name, verdict, failure) in [
            ("rename", Verdict::Errno(30), None),
            ("unlink", Verdict::PassOn, None),
            ("mkdir", Verdict::Errno(62), Some("does not allow")),
            ("rmdir", Verdict::Errno(62), Some("1 to 4095")),
            ("chmod", Verdict::Errno(62), Some("means an errno")),
            ("chown", Verdict::Errno(62), Some("within 200 ms")),
        ] {
            let played = replay.play(&call(1, name)).await.unwrap();
            assert_eq!((played.plugin.as_deref(), played.verdict), (Some("wild"), verdict), "{name}");
            let text = played.failure.map(|failure| failure.to_string());
            assert_eq!(text.is_some(), failure.is_some(), "{name}: {text:?}");
            assert!(text.unwrap_or_default().contains(failure.unwrap_or_default()), "{name}");
        }
        assert_eq!(replay.play(&call(2, "rename")).await.unwrap().plugin, None);
    });
}
