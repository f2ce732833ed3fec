//! The two processes at the ends: one that makes notified calls, one that does
//! nothing but answer them.

use std::io::{IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use podinit::sys::seccomp::{Answer, Buffer, Received, answer, receive, wake_in_step};
use podinit::sys::socket;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, acceptfrom_with, recvmsg, sendmsg,
};

/// Makes `calls` calls of getppid(2) under a filter that notifies of it, whose
/// listener goes to the socket at `path`; prints the nanoseconds of one.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let [path, container, calls] = arguments else { return ExitCode::FAILURE };
    let calls: u32 = calls.parse().expect("a number");
    be_notified(Path::new(path), container, "getppid");
    // The first ones wait for the other side to be ready.
    for _ in 0..100 {
        once();
    }
    let began = Instant::now();
    for _ in 0..calls {
        once();
    }
    println!("{}", began.elapsed().as_nanos() / u128::from(calls.max(1)));
    ExitCode::SUCCESS
}

/// As [`run`], by `threads` threads, each as fast as it can, for `seconds`; prints the calls,
/// how many of them were not answered with `errno`, and the nanoseconds that all took.
pub(crate) fn load(arguments: &[String]) -> ExitCode {
    let [path, container, threads, seconds, errno] = arguments else { return ExitCode::FAILURE };
    let [threads, seconds, errno] =
        [threads, seconds, errno].map(|text| text.parse::<u32>().expect("a number"));
    be_notified(Path::new(path), container, "getppid");
    once();
    let expected = -i32::try_from(errno).expect("an errno");
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds.into());
    let thread = move || {
        let (mut calls, mut lost) = (0_u64, 0_u64);
        while Instant::now() < end {
            calls += 1;
            lost += u64::from(nix::unistd::getppid().as_raw() != expected);
        }
        (calls, lost)
    };
    let threads: Vec<_> = (0..threads).map(|_| std::thread::spawn(thread)).collect();
    let counts = threads.into_iter().map(|thread| thread.join().expect("a thread"));
    let (calls, lost) = counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!("{calls} {lost} {}", began.elapsed().as_nanos());
    ExitCode::SUCCESS
}

/// Makes `calls` calls of a kind of [`crate::leak`], which is also the container's name; each has to
/// have the answer that belongs to it.
pub(crate) fn move_descriptors(arguments: &[String]) -> ExitCode {
    let [path, kind, calls] = arguments else { return ExitCode::FAILURE };
    let calls: u32 = calls.parse().expect("a number");
    let call = if kind == "connect" { "connect" } else { "getppid" };
    be_notified(Path::new(path), kind, call);
    // Without a handshake: connections would be more than there are ports.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    for _ in 0..calls {
        match kind.as_str() {
            "connect" => rustix::net::connect(&socket, &peer).expect("a connection of the broker's"),
            "given" | "installed" => {
                let number = nix::unistd::getppid().as_raw();
                drop(podinit::sys::fd::take_inherited(number).expect("a descriptor of the plugin's"));
            }
            _ => assert_eq!(nix::unistd::getppid().as_raw(), -libc::EXDEV),
        }
    }
    ExitCode::SUCCESS
}

/// Has `call` of this thread, and of those that it starts, notified to the socket at `path`.
fn be_notified(path: &Path, container: &str, call: &str) {
    // As a container's process: in a scheduling group of its own (sched(7), "The autogroup feature").
    // A switch from one group to another is dearer, and the broker is in another one anyway.
    rustix::process::setsid().expect("a session");
    let connection = socket::connect(path, SocketType::STREAM).expect("a socket");
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).expect("a filter");
    filter.add_rule(ScmpAction::Notify, ScmpSyscall::from_name(call).expect("a call")).expect("a rule");
    filter.load().expect("a filter that is loaded");
    send(&connection, &filter, container);
}

/// One call, which must be refused: were a call lost, its real answer would be a pid.
fn once() {
    // getppid(2) cannot fail, so libc gives the kernel's answer as it is.
    assert!(nix::unistd::getppid().as_raw() < 0, "a call was not answered by us");
}

fn send(connection: &OwnedFd, filter: &ScmpFilterContext, container: &str) {
    let number = filter.get_notify_fd().expect("a listener");
    let fd = podinit::sys::fd::take_inherited(number).expect("a listener");
    let state = serde_json::json!({
        "ociVersion": "1.0.2", "fds": ["seccompFd"], "pid": std::process::id(), "metadata": "",
        "state": { "ociVersion": "1.0.2", "id": container, "status": "creating",
                   "pid": std::process::id(), "bundle": "/" },
    });
    let text = state.to_string();
    let fds: [BorrowedFd<'_>; 1] = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let parts = [IoSlice::new(text.as_bytes())];
    let sent = sendmsg(connection, &parts, &mut control, SendFlags::empty()).expect("sent");
    assert_eq!(sent, text.len());
}

/// Takes one listener after the other at the socket `path`, and refuses every call
/// by nothing but ioctls.
pub(crate) fn bare(path: &Path) -> ExitCode {
    each_listener(path, serve)
}

/// Takes one listener after the other at the socket `path`, and has `serve` do with
/// each what it likes.
pub(crate) fn each_listener(path: &Path, mut serve: impl FnMut(&OwnedFd)) -> ExitCode {
    let door = socket::listen(path, SocketType::STREAM, 8).expect("a socket");
    println!("ready");
    std::io::stdout().flush().expect("a pipe");
    loop {
        let mut fds = [rustix::event::PollFd::new(&door, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).expect("poll");
        let (connection, _) = acceptfrom_with(&door, SocketFlags::CLOEXEC).expect("a connection");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        recvmsg(&connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).expect("a message");
        let listener = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        serve(&listener.expect("a listener"));
    }
}

fn serve(listener: &OwnedFd) {
    if std::env::var_os("PODINIT_BENCH_ASYNC_WAKE").is_none() {
        wake_in_step(listener.as_fd()).expect("Linux 6.6");
    }
    let mut buffer = Buffer::new().expect("notifications");
    loop {
        // At the end of the last user the kernel says that there is nothing.
        match receive(listener.as_fd(), &mut buffer).expect("receive") {
            Received::Call(call) => {
                answer(listener.as_fd(), call.id, Answer::Errno(libc::EPERM)).expect("answer");
            }
            Received::Gone => return,
        }
    }
}
