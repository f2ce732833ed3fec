//! Descriptors of the monitor, before and after many calls of every kind that moves some:
//! none may be left.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, read_dir};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use podinit::rpc::client::Error;
use podinit::rpc::plugin::client::{Call, Plugin, Request, Verdict, dial_in, run};
use podinit::rpc::schema::plugin_capnp as wire;

use crate::bench::{pause, processes, setting, until};
use crate::common::Pod;
use crate::common::host::host;
use crate::plugin::Ready;
use crate::{again, round};

/// What is done with descriptors, and the name of the container whose calls have it done:
/// nothing; the broker connects; a plugin gives one as the answer, or before it; a plugin asks
/// for one of the process and takes it, or leaves it where it is.
const KINDS: [&str; 6] = ["built-in", "connect", "given", "installed", "taken", "left"];
/// Errno of calls whose answer is no descriptor, and is the plugin's.
const ANSWER: u16 = 18;

/// Many calls of many sessions: the monitor has the descriptors it had. True if not.
pub(crate) fn leaks(pod: &Pod, socket: &Path) -> bool {
    let calls = setting("PODINIT_BENCH_LEAK_CALLS", 1_000_000);
    let sessions = 20;
    let before = descriptors(pod);
    let holder = Ready::wait(again(&["holder", text(&pod.run_dir().join("plugins.sock"))]));
    let mut failed = false;
    for kind in KINDS {
        // The connection on which a plugin's descriptors change hands stays.
        make(socket, kind, 1);
        let before = descriptors(pod);
        (0..sessions).for_each(|_| make(socket, kind, calls / sessions));
        let after = descriptors(pod);
        println!("{kind}: {calls} calls of {sessions} sessions: {before} descriptors before, {after} after");
        failed |= after > before;
    }
    drop(holder);
    let after = descriptors(pod);
    println!("without the plugin: {before} descriptors before, {after} after");
    failed || after > before
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A session that makes calls of `kind`.
fn make(socket: &Path, kind: &str, calls: usize) {
    if kind == "built-in" {
        round(socket, kind, calls);
        return;
    }
    let status = again(&["mover", text(socket), kind, &calls.to_string()]).status().expect("a target");
    assert!(status.success(), "a target: {status}");
}

/// How many the monitor has when no session is left, and no plugin but for the one that stays.
fn descriptors(pod: &Pod) -> usize {
    let [_, monitor] = processes(pod);
    until("the last session's end", || {
        pod.call(async |client| client.seccomp_sessions().await).expect("sessions").is_empty()
    });
    pause(Duration::from_millis(200));
    read_dir(format!("/proc/{monitor}/fd")).expect("the monitor").count()
}

/// The plugin that does it, at the pod's plugin socket.
pub(crate) fn holder(path: &Path) -> ExitCode {
    let plugin = async {
        let request = |kind: &str| {
            let mut request = Request { decode: false, ..Request::new(kind, &["getppid"]) };
            request.selector.containers = vec![kind.to_owned()];
            request
        };
        let mut plugged = Vec::new();
        for kind in ["given", "installed", "taken"] {
            plugged.push(dial_in(path, request(kind), Moves).await?);
        }
        let _registration = register(path, "left").await?;
        println!("ready");
        std::io::stdout().flush().expect("a pipe");
        plugged.pop().expect("a plugin").ended().await
    };
    if run(plugin).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Does with descriptors what the container is called.
struct Moves;

impl Plugin for Moves {
    async fn decide(&self, call: Call) -> Verdict {
        // What fails is no verdict that the target takes for the right one.
        moved(&call).await.unwrap_or(Verdict::Errno(5))
    }
}

async fn moved(call: &Call) -> Result<Verdict, Error> {
    if call.notification.container == "taken" {
        drop(call.duplicate(0).await?);
        return Ok(Verdict::Errno(ANSWER));
    }
    let ticket = call.hand_over(File::open("/dev/null").expect("a device").as_fd()).await?;
    if call.notification.container == "installed" {
        return Ok(Verdict::Return(call.install(&ticket, None, true).await?.into()));
    }
    Ok(Verdict::AddDescriptor { ticket, at: None, close_on_exec: true })
}

/// Asks for descriptors and leaves them: without the library, which takes them at once.
#[derive(Default)]
struct Leaves(RefCell<HashMap<u64, wire::target::Client>>);

async fn register(path: &Path, kind: &str) -> Result<wire::registration::Client, capnp::Error> {
    let mut call = host(path).await.register_request();
    let mut request = call.get().init_request();
    request.set_name(kind);
    let mut selector = request.init_selector();
    selector.reborrow().init_syscalls(1).set(0, "getppid");
    selector.init_containers(1).set(0, kind);
    call.get().set_plugin(capnp_rpc::new_client(Leaves::default()));
    call.send().promise.await?.get()?.get_registration()
}

impl wire::seccomp_plugin::Server for Leaves {
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
        let session = params.get()?.get_session()?;
        self.0.borrow_mut().insert(session.get_id(), session.get_target()?);
        Ok(())
    }

    async fn session_closed(
        self: Rc<Self>,
        params: wire::seccomp_plugin::SessionClosedParams,
        _: wire::seccomp_plugin::SessionClosedResults,
    ) -> Result<(), capnp::Error> {
        self.0.borrow_mut().remove(&params.get()?.get_session());
        Ok(())
    }

    async fn decide(
        self: Rc<Self>,
        params: wire::seccomp_plugin::DecideParams,
        mut results: wire::seccomp_plugin::DecideResults,
    ) -> Result<(), capnp::Error> {
        let notification = params.get()?.get_notifications()?.get(0);
        let target = self.0.borrow().get(&notification.get_session()).cloned();
        let mut request =
            target.ok_or_else(|| capnp::Error::failed("no session".into()))?.duplicate_request();
        request.get().set_id(notification.get_id());
        request.get().set_descriptor(0);
        request.send().promise.await?;
        results.get().init_verdicts(1).get(0).set_errno(ANSWER);
        Ok(())
    }
}
