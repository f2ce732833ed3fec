//! Plugins that lie, flood or break off, and what a plugin can reach of a process.
//! They speak the wire themselves, where the library would not let them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::cell::RefCell;
use std::future::Future;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::rc::Rc;
use std::time::Duration;

use common::host::host;
use common::{DEADLINE, Pod, eventually};
use podinit::rpc::client::Code;
use podinit::rpc::plugin::client::{Call, OnFailure, Place, Plugin, Request, Verdict, dial_in};
use podinit::rpc::schema::plugin_capnp as wire;

/// Runs a plugin on a thread of its own until the test says that it is over.
fn beside<F: Future<Output = ()>>(plugin: impl FnOnce() -> F + Send + 'static) -> Beside {
    let (over, told) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async move {
            tokio::select! {
                () = async { plugin().await; std::future::pending::<()>().await } => {}
                _ = told => {}
            }
        });
    });
    Beside { over: Some(over), thread: Some(thread) }
}

struct Beside {
    over: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.over.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the plugin panicked");
    }
}

/// Answers so many notifications.
type Lie = fn(u32, wire::seccomp_plugin::DecideResults);
/// Asks for something else than mkdir.
type Change = fn(wire::registration_request::Builder<'_>);

/// Writes whatever verdicts it likes.
struct Liar(Lie);

impl wire::seccomp_plugin::Server for Liar {
    async fn synchronise(
        self: Rc<Self>,
        _: wire::seccomp_plugin::SynchroniseParams,
        _: wire::seccomp_plugin::SynchroniseResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }

    async fn session_opened(
        self: Rc<Self>,
        _: wire::seccomp_plugin::SessionOpenedParams,
        _: wire::seccomp_plugin::SessionOpenedResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }

    async fn decide(
        self: Rc<Self>,
        params: wire::seccomp_plugin::DecideParams,
        results: wire::seccomp_plugin::DecideResults,
    ) -> Result<(), capnp::Error> {
        self.0(params.get()?.get_notifications()?.len(), results);
        Ok(())
    }
}

/// Registers for mkdir; what fails gets EIO.
async fn register(
    host: &wire::plugin_host::Client,
    plugin: impl wire::seccomp_plugin::Server + 'static,
    change: impl FnOnce(wire::registration_request::Builder<'_>),
) -> Result<wire::registration::Client, capnp::Error> {
    let mut call = host.register_request();
    let mut request = call.get().init_request();
    request.set_name("liar");
    request.reborrow().init_selector().init_syscalls(1).set(0, "mkdir");
    request.reborrow().init_on_failure().set_errno(5);
    change(request);
    call.get().set_plugin(capnp_rpc::new_client(plugin));
    call.send().promise.await?.get()?.get_registration()
}

#[test]
fn lies_are_failures_of_the_liar() {
    let lies: [(&str, Lie); 9] = [
        ("no verdict", |_, _| ()),
        ("one too many", |count, mut results| {
            results.get().init_verdicts(count + 1);
        }),
        ("far too many", |_, mut results| {
            results.get().init_verdicts(100_000);
        }),
        ("no errno", |count, mut results| results.get().init_verdicts(count).get(0).set_errno(5000)),
        ("an errno as a value", |count, mut results| {
            results.get().init_verdicts(count).get(0).set_return_value(-13);
        }),
        ("continue without leave", |count, mut results| {
            results.get().init_verdicts(count).get(0).set_continue(());
        }),
        ("a ticket of nobody", |count, mut results| {
            results.get().init_verdicts(count).get(0).init_add_descriptor().set_ticket(&[7; 16]);
        }),
        ("a ticket that is none", |count, mut results| {
            results.get().init_verdicts(count).get(0).init_add_descriptor().set_ticket(&[7; 100_000]);
        }),
        ("a number that is none", |count, mut results| {
            results.get().init_verdicts(count).get(0).init_add_descriptor().set_at(-7);
        }),
    ];
    let pod = Pod::start();
    let socket = pod.run_dir().join("plugins.sock");
    for (number, (what, lie)) in lies.into_iter().enumerate() {
        let socket = socket.clone();
        let liar = beside(async move || {
            let host = host(&socket).await;
            let registration = register(&host, Liar(lie), |_| ()).await.unwrap();
            let _held = (host, registration);
            std::future::pending::<()>().await;
        });
        eventually(|| pod.seccomp_plugins().len() == 1);
        let name = format!("c{number}");
        pod.run_notified(&name, &["mkdir"], "mkdir /tmp/a");
        assert!(pod.output(&name).contains("Input/output error"), "{what}");
        drop(liar);
        eventually(|| pod.seccomp_plugins().is_empty());
    }
}

#[test]
fn a_message_beyond_the_limit_ends_the_connection_and_nothing_else() {
    let pod = Pod::start();
    let socket = pod.run_dir().join("plugins.sock");
    let path = socket.clone();
    let _huge = beside(async move || {
        let host = host(&path).await;
        let answer = register(&host, Liar(|_, _| ()), |request| {
            request.init_selector().init_containers(1).set(0, "x".repeat(16 << 20));
        });
        assert!(answer.await.is_err());
    });
    // Nonsense from the first byte on: segment counts without end.
    let mut nonsense = StdStream::connect(&socket).unwrap();
    nonsense.write_all(&[0xff; 4096]).ok();
    let path = socket.clone();
    let _honest = beside(async move || {
        let host = host(&path).await;
        let registration = register(
            &host,
            Liar(|count, mut results| results.get().init_verdicts(count).get(0).set_errno(30)),
            |_| (),
        );
        let _held = (registration.await.unwrap(), host);
        std::future::pending::<()>().await;
    });
    eventually(|| pod.seccomp_plugins().len() == 1);
    pod.run_notified("c", &["mkdir"], "mkdir /tmp/a");
    assert!(pod.output("c").contains("Read-only"));
}

#[test]
fn floods_meet_limits() {
    let pod = Pod::start();
    let socket = pod.run_dir().join("plugins.sock");
    let path = socket.clone();
    let flood = beside(async move || {
        let host = host(&path).await;
        let mut held = Vec::new();
        let refused = loop {
            match register(&host, Liar(|_, _| ()), |_| ()).await {
                Ok(registration) => held.push(registration),
                Err(error) => break error,
            }
        };
        assert_eq!(held.len(), 16);
        assert!(refused.extra.contains("resource-exhausted"), "{refused}");
        // Answers that nobody asked for.
        let mut answer = held[0].answer_request();
        answer.get().init_answers(1000);
        assert_eq!(answer.send().promise.await.unwrap().get().unwrap().get_stale(), 1000);
        // One that goes makes room for another.
        held.pop();
        let again = register(&host, Liar(|_, _| ()), |_| ());
        held.push(again.await.unwrap());
        std::future::pending::<()>().await;
    });
    eventually(|| pod.seccomp_plugins().len() == 16);
    // Connections that say nothing: those beyond the limit are closed, and all when they end.
    let silent: Vec<StdStream> = (0..80).map(|_| StdStream::connect(&socket).unwrap()).collect();
    drop(silent);
    drop(flood);
    eventually(|| pod.seccomp_plugins().is_empty());
    pod.assert_serves("c");
}

#[test]
fn what_makes_no_sense_is_refused_when_it_registers() {
    let pod = Pod::start();
    let socket = pod.run_dir().join("plugins.sock");
    let cases: [(&str, Change); 4] = [
        ("no system call is called", |request| {
            request.init_selector().init_syscalls(1).set(0, "mkdri");
        }),
        ("arguments 0 to 5", |request| {
            let mut comparison = request.init_selector().init_comparisons(1).get(0);
            comparison.set_argument(6);
            comparison.init_values(1);
        }),
        ("plugin's name", |mut request| request.set_name("")),
        ("too long", |mut request| request.set_deadline_ms(u32::MAX)),
    ];
    let _plugin = beside(async move || {
        let host = host(&socket).await;
        for (reason, change) in cases {
            let Err(error) = register(&host, Liar(|_, _| ()), change).await else {
                panic!("{reason}: it was taken")
            };
            assert!(error.extra.contains("invalid-argument") && error.extra.contains(reason), "{error}");
        }
    });
    eventually(|| pod.seccomp_plugins().is_empty());
}

/// Puts its verdicts off, then gives them for calls that are not there, too.
#[derive(Default)]
struct Later(RefCell<Vec<(u64, u64)>>);

impl Plugin for Later {
    async fn decide(&self, call: Call) -> Verdict {
        self.0.borrow_mut().push((call.notification.session, call.notification.id));
        Verdict::Later
    }
}

#[test]
fn verdicts_can_be_put_off() {
    let pod = Pod::start();
    let socket = pod.run_dir().join("plugins.sock");
    let _plugin = beside(async move || {
        let later = Rc::new(Later::default());
        let request = Request { batch_max: 16, ..Request::new("later", &["mkdir"]) };
        let plugged = dial_in(&socket, request, Rc::clone(&later)).await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if later.0.borrow().len() < 10 {
                continue;
            }
            let (session, id) = later.0.borrow()[0];
            let wrong =
                [(session + 1, id, Verdict::Return(0)), (session, id + 1_000_000, Verdict::Return(0))];
            assert_eq!(plugged.answer(&wrong).await.unwrap(), 2);
            let asked = later.0.take();
            let right: Vec<_> =
                asked.iter().rev().map(|&(session, id)| (session, id, Verdict::Errno(30))).collect();
            assert_eq!(plugged.answer(&right).await.unwrap(), 0);
            // Once is enough.
            assert_eq!(plugged.answer(&right).await.unwrap(), 10);
        }
    });
    eventually(|| pod.seccomp_plugins().len() == 1);
    pod.run_notified("c", &["mkdir"], "for i in $(seq 10); do mkdir /tmp/$i & done; wait");
    assert_eq!(pod.output("c").matches("Read-only").count(), 10);
}

/// Tries everything that there is of a process.
struct Reach;

impl Plugin for Reach {
    async fn decide(&self, call: Call) -> Verdict {
        let notification = call.notification.clone();
        match notification.name.as_str() {
            "open" | "openat" => return self.open(&call).await,
            "socket" => return self.socket(&call).await,
            _ => {}
        }
        let path = notification.text(0).unwrap();
        assert_eq!(path, b"/tmp/reach");
        let address = notification.arguments[0];
        assert_eq!(call.read_text(address, 0).await.unwrap(), (path.to_vec(), false));
        assert_eq!(call.read_text(address, 4).await.unwrap(), (b"/tmp".to_vec(), true));
        assert_eq!(call.read_memory(address, 4).await.unwrap(), b"/tmp");
        assert_eq!(call.read_memory(1, 4).await.unwrap_err().code, Code::InvalidArgument);
        assert_eq!(call.read_memory(address, 65_537).await.unwrap_err().code, Code::InvalidArgument);
        call.write_memory(address, b"/TMP").await.unwrap();
        assert_eq!(call.read_memory(address, 5).await.unwrap(), b"/TMP/");
        call.write_memory(address, b"/tmp").await.unwrap();
        let credentials = call.credentials().await.unwrap();
        assert_eq!((credentials.uid, credentials.gid), (0, 0));
        let namespaces = call.namespaces().await.unwrap();
        assert!(namespaces.iter().any(|(kind, inode)| kind == "mnt" && *inode > 0), "{namespaces:?}");
        assert!(!call.cgroup().await.unwrap().is_empty());
        assert!(call.check().await.unwrap());
        // Its standard output: the same pipe.
        let copy = call.duplicate(1).await.unwrap();
        std::fs::File::from(copy).write_all(b"from the plugin\n").unwrap();
        assert_eq!(call.duplicate(99).await.unwrap_err().code, Code::InvalidArgument);
        let root = call.open(Place::Root).await.unwrap();
        rustix::fs::statat(&root, "bin/busybox", rustix::fs::AtFlags::empty()).unwrap();
        call.open(Place::WorkingDirectory).await.unwrap();
        call.open(Place::Pidfd).await.unwrap();
        // A descriptor before the answer.
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let ticket = call.hand_over(file.as_fd()).await.unwrap();
        assert_eq!(call.install(&ticket, Some(9), false).await.unwrap(), 9);
        assert_eq!(call.install(&ticket, Some(9), false).await.unwrap_err().code, Code::InvalidArgument);
        Verdict::Return(0)
    }
}

impl Reach {
    /// Something else is opened than was asked for.
    async fn open(&self, call: &Call) -> Verdict {
        let index = u8::from(call.notification.name == "openat");
        if call.notification.text(index) != Some(b"/tmp/given") {
            return Verdict::Continue;
        }
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"given by the plugin\n").unwrap();
        let ticket = call.hand_over(reader.as_fd()).await.unwrap();
        Verdict::AddDescriptor { ticket, at: None, close_on_exec: true }
    }

    /// The socket has an address already.
    async fn socket(&self, call: &Call) -> Verdict {
        use rustix::net::{AddressFamily, SocketType, bind, socket};
        let given = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&given, &SocketAddr::from((GIVEN, 0))).unwrap();
        let ticket = call.hand_over(given.as_fd()).await.unwrap();
        Verdict::AddDescriptor { ticket, at: None, close_on_exec: true }
    }
}

/// Where the socket is that a plugin gives.
const GIVEN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

/// A pod with [`Reach`].
fn with_reach(runtime: &str) -> (Pod, Beside) {
    let pod = Pod::with_runtime(runtime);
    let socket = pod.run_dir().join("plugins.sock");
    let plugin = beside(async move || {
        let request = Request {
            allow_continue: true,
            deadline_ms: 60_000,
            on_failure: OnFailure::Errno(5),
            ..Request::new("reach", &["mkdir", "open", "openat", "socket"])
        };
        dial_in(&socket, request, Reach).await.unwrap().ended().await.unwrap();
    });
    eventually(|| pod.seccomp_plugins().len() == 1);
    (pod, plugin)
}

fn reach_under(runtime: &str) {
    let (pod, _plugin) = with_reach(runtime);
    pod.run_notified("c", &["mkdir"], "mkdir /tmp/reach && echo done");
    let said = pod.output("c");
    assert!(said.contains("from the plugin\n") && said.contains("done"), "{said}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    pod.run_notified("d", &["socket"], &format!("busybox nc 127.0.0.1 {port} </dev/null && echo closed"));
    let (connection, peer) = listener.accept().unwrap();
    drop(connection);
    assert_eq!((peer.ip(), pod.output("d").as_str()), (GIVEN.into(), "closed\n"));
}

/// runc's own process opens files, too, between the filter and the container's program.
#[test]
fn a_plugin_can_have_another_file_opened() {
    for runtime in ["crun", "runc"] {
        let (pod, _plugin) = with_reach(runtime);
        pod.run_notified("c", &["open", "openat"], "cat /tmp/given");
        assert_eq!(pod.output("c"), "given by the plugin\n", "{runtime}");
    }
}

#[test]
fn a_plugin_reaches_the_process_under_crun() {
    reach_under("crun");
}

#[test]
fn a_plugin_reaches_the_process_under_runc() {
    reach_under("runc");
}

/// Keeps what it was asked about, and lets the call go.
#[derive(Default)]
struct Keeps(RefCell<Vec<Call>>);

impl Plugin for Keeps {
    async fn decide(&self, call: Call) -> Verdict {
        self.0.borrow_mut().push(call);
        Verdict::Errno(30)
    }
}

#[test]
fn power_over_a_process_ends_with_its_call() {
    let pod = Pod::start();
    let socket = pod.run_dir().join("plugins.sock");
    let (sender, refused) = std::sync::mpsc::channel();
    let _plugin = beside(async move || {
        let keeps = Rc::new(Keeps::default());
        let _plugged = dial_in(&socket, Request::new("keeps", &["mkdir"]), Rc::clone(&keeps)).await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let Some(call) = keeps.0.borrow_mut().pop() else { continue };
            // The verdict is on its way; soon the call is over.
            while call.check().await.unwrap() {}
            sender.send(call.read_memory(call.notification.arguments[0], 1).await.unwrap_err().code).unwrap();
        }
    });
    eventually(|| pod.seccomp_plugins().len() == 1);
    pod.run_notified("c", &["mkdir"], "mkdir /tmp/a; sleep 1000");
    assert_eq!(refused.recv_timeout(DEADLINE), Ok(Code::NotFound));
    let id = pod.id("c");
    pod.call(async |client| client.stop_container(&id, 9, 0).await).expect("stop");
}
