//! What a pod does when there is too little of something: readers of its log, room
//! for clients, notifications of the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use common::{Options, Place, Pod, eventually, wait_readable};
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use podinit::limits::CONNECTIONS_MAX;
use podinit::rpc::client::{Client, Code, Ended, Error};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

#[test]
fn log_that_nobody_reads_holds_up_nothing() {
    const BYTES: usize = 4096;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    assert_eq!(fcntl_setpipe_size(&writer, BYTES).unwrap(), BYTES);
    let (mut reader, mut writer) = (File::from(reader), File::from(writer));
    writer.write_all(&[b'x'; BYTES]).unwrap();
    let arguments = ["--log-level", "debug"].map(str::to_owned).to_vec();
    let options = Options { log: Some(writer.into()), arguments, ..Options::default() };
    let pod = Pod::start_in(Place::new(), options);
    let pid = pod.run("c", "exec sleep 600");
    for _ in 0..10 {
        assert_eq!(pod.exec_stdout("c", "echo answered"), "answered\n");
    }
    common::kill(pid, "KILL");
    assert_eq!(pod.wait("c").how, Ended::Signal(9));

    // Then somebody reads.
    reader.read_exact(&mut [0; BYTES]).unwrap();
    pod.run("d", "exec sleep 600");
    let mut said = String::new();
    while !said.contains('\n') {
        assert!(wait_readable(&reader), "{said:?} and no more");
        let mut chunk = [0; BYTES];
        let count = reader.read(&mut chunk).unwrap();
        said.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
    }
    let lost = said.strip_prefix("WARN lost ").and_then(|rest| rest.split_once(" lines")).expect(&said).0;
    assert!(lost.parse::<u32>().unwrap() > 0, "{said}");
}

fn greet(socket: &Path) -> Result<Client, Error> {
    let client = Client::connect(socket)?;
    client.call(async |pod| pod.version().await)?;
    Ok(client)
}

#[test]
fn client_for_whom_there_is_no_room_is_told_so() {
    let pod = Pod::start();
    let socket = pod.socket();
    pod.call(async |client| client.version().await).expect("a first client");
    let mut clients: Vec<_> = (1..CONNECTIONS_MAX).map(|_| greet(&socket).expect("room")).collect();

    let error = greet(&socket).expect_err("no room");
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    for client in &clients {
        client.call(async |pod| pod.version().await).expect("those that were there are served on");
    }

    // One that comes while there is no room has it as soon as another leaves.
    std::thread::scope(|threads| {
        let late = threads.spawn(|| greet(&socket).map(drop));
        drop(clients.pop());
        late.join().unwrap().expect("room");
    });
}

/// On a kernel that has no inotify instance left for this user.
#[test]
fn changes_are_seen_without_a_watch() {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
    let inotify = ScmpSyscall::from_name("inotify_init1").unwrap();
    filter.add_rule(ScmpAction::Errno(libc::EMFILE), inotify).unwrap();
    filter.set_ctl_nnp(false).unwrap();
    // For this thread, and what it starts.
    filter.load().unwrap();

    let place = Place::new();
    let hooks = place.path("hooks");
    fs::create_dir(&hooks).unwrap();
    let arguments = vec!["--hooks-dir".to_owned(), hooks.to_str().unwrap().to_owned()];
    let pod = Pod::start_in(place, Options { arguments, ..Options::default() });
    let listed = || pod.call(async |client| client.list_hooks().await).expect("hooks").len();
    assert_eq!(listed(), 0);
    let hook = r#"{"version": "1.0.0", "hook": {"path": "/bin/true"}, "when": {"always": true},
        "stages": ["poststop"]}"#;
    fs::write(hooks.join("a.json"), hook).unwrap();
    eventually(|| listed() == 1);

    fs::remove_dir_all(pod.run_dir()).unwrap();
    pod.wait_end();
}
