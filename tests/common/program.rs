//! Functions of a test program as the programs of containers.
#![allow(clippy::print_stdout, reason = "its output is the container's")]

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::SockaddrIn;
use podinit::rpc::client::CreateContainer;
use serde_json::{Value, json};

use super::{Pod, profile};

/// What such a function is told.
const ARGUMENT: &str = "PODINIT_TEST_ARGUMENT";

/// What this program is told as a container's; `None` where it runs tests.
pub fn argument() -> Option<String> {
    std::env::var(ARGUMENT).ok()
}

impl Pod {
    /// A container of this test program, with the machine's libraries, whose `role` is a test that does
    /// something only if it has an [`argument`].
    pub fn container_of_role(
        &self,
        name: &str,
        role: &str,
        argument: &str,
        change: impl FnOnce(&mut Value),
    ) -> CreateContainer {
        self.container_with(name, &["/role", "--exact", role, "--nocapture"], |config| {
            let environment = config["process"]["env"].as_array_mut().unwrap();
            environment.push(json!(format!("{ARGUMENT}={argument}")));
            let bound = |source: &Path, destination: &str| {
                json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind", "ro"] })
            };
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(bound(&std::env::current_exe().unwrap(), "/role"));
            let libraries = ["/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).exists());
            mounts.extend(libraries.map(|path| bound(Path::new(path), path)));
            change(config);
        })
    }
}

/// Connects to port `port` of 127.0.0.1, while another thread writes 127.0.0.2 in its place, and
/// 127.0.0.1 again, without end.
pub fn connect_while_rewriting(port: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = port.parse().unwrap();
    // It must outlive who writes to it.
    let address: &'static _ = Box::leak(Box::new(SockaddrIn::new(127, 0, 0, 1, port)));
    let last_byte = (&raw const *address).addr() as u64 + 4 + 3;
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    let rewriter = std::thread::spawn(move || {
        let memory = File::options().write(true).open("/proc/self/mem").unwrap();
        while !told.load(Ordering::Relaxed) {
            memory.write_all_at(&[2], last_byte).unwrap();
            memory.write_all_at(&[1], last_byte).unwrap();
        }
    });
    let (mut connected, mut refused) = (0, 0);
    while connected < 50 || refused < 50 {
        match nix::sys::socket::connect(socket.as_raw_fd(), address) {
            Ok(()) => connected += 1,
            Err(nix::errno::Errno::EACCES) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if connected > 0 {
            assert_eq!(socket.peer_addr().unwrap(), SocketAddr::from(([127, 0, 0, 1], port)));
        }
    }
    is_over.store(true, Ordering::Relaxed);
    rewriter.join().unwrap();
    println!("connected to 127.0.0.1 only");
}

/// Has a container do that, where 127.0.0.1 and `port` are allowed and 127.0.0.2 is not: what was
/// copied decides, and is connected to. The test program has to have a role of this name.
pub fn rewriting_reaches_nobody(pod: &Pod, port: u16) {
    let request = pod.container_of_role("rewrites", "role_that_rewrites", &port.to_string(), |config| {
        config["linux"]["seccomp"] = profile(&pod.run_dir().join("seccomp.sock"), &["connect"]);
    });
    pod.create(&request).expect("create");
    pod.start_container("rewrites");
    let said = pod.output("rewrites");
    assert!(said.contains("connected to 127.0.0.1 only\n"), "{said}");
}
