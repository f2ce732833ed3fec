//! Prints, for every pod of a node, what was decided about its containers' calls:
//! a line of JSON each, as `podinit seccomp trace` does for one pod.
//!
//!     trace /run/podinit/plugins.d/trace.sock
//!
//! It listens, and every pod's monitor connects to it.
#![allow(missing_docs, clippy::print_stdout, reason = "a program")]

use podinit::rpc::client::Error;
use podinit::rpc::plugin::client::{Call, Kind, Plugin, Record, Request, Session, Verdict, listen, run};

struct Trace;

impl Plugin for Trace {
    async fn decide(&self, _: Call) -> Verdict {
        // An observer is not asked.
        Verdict::PassOn
    }

    async fn observe(&self, records: Vec<Record>, lost: u64) {
        for record in records {
            println!("{}", serde_json::to_string(&record).unwrap_or_default());
        }
        if lost > 0 {
            eprintln!("{lost} records were lost");
        }
    }

    fn synchronise(&self, sessions: &[Session]) {
        eprintln!("a pod with {} sessions", sessions.len());
    }
}

fn main() -> Result<(), Error> {
    let socket = std::env::args_os().nth(1).unwrap_or_else(|| "/run/podinit/plugins.d/trace.sock".into());
    let request = Request { kind: Kind::Observer, ..Request::new("trace", &[]) };
    run(async { listen(socket.as_ref(), request, Trace).await })
}
