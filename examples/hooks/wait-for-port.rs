//! poststart: waits until a container listens on a TCP port, so that whoever
//! started it can use it at once.
//!
//! It runs in the pod's network namespace: 127.0.0.1 is the pod's own. How long
//! to wait is the hook's time-out; when that is over podinit ends it.
//!
//!     rustc --edition 2024 -O -o wait-for-port wait-for-port.rs

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A connection is refused at once, so somebody has to wait.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    // The state. A hook that leaves it unread makes some engines fail.
    if let Err(error) = io::stdin().read_to_end(&mut Vec::new()) {
        eprintln!("cannot read the state: {error}");
        return ExitCode::FAILURE;
    }
    let port = std::env::var("PORT").ok().and_then(|port| port.parse::<u16>().ok());
    let Some(port) = port else {
        eprintln!("PORT is not set to a port's number; set it in hook.env");
        return ExitCode::FAILURE;
    };
    let began = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        sleep(PAUSE);
    }
    println!("port {port} answered after {} ms", began.elapsed().as_millis());
    ExitCode::SUCCESS
}
