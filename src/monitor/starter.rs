//! Starting OCI runtimes from behind a wall that protects the pods' PID 1.
//!
//! A container with `CAP_SYS_PTRACE` may trace every process of its user
//! namespace, PID 1 of its pod included, and nothing that PID 1 does to itself
//! prevents that. A Landlock domain does: nobody in it can trace or signal a
//! process outside, and PID 1 is outside. A domain belongs to a thread and to
//! what that thread starts; so one thread starts every runtime, and all
//! containers and execs are in one domain and can reach one another.
//!
//! A domain cannot be entered again. After a crash of the monitor the living
//! containers are in the old one, and execs from a new one could not signal
//! them. So where there are containers already, nothing is walled off.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

use crate::sys::landlock;

/// Stack of the thread: it does nothing but start processes.
const STACK_BYTES: usize = 64 << 10;

/// The thread behind the wall.
#[derive(Debug)]
pub(super) struct Starter {
    commands: Sender<(Command, Sender<io::Result<Child>>)>,
}

impl Starter {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it cannot be made, or the kernel has no such wall (before Linux 6.12).
    pub(super) fn new() -> io::Result<Self> {
        let (commands, received) = channel();
        let (ready, readied) = channel();
        let work = move || {
            let confined = landlock::confine_thread();
            let go_on = confined.is_ok();
            if ready.send(confined).is_ok() && go_on {
                start_all(&received);
            }
        };
        Builder::new().name("starter".into()).stack_size(STACK_BYTES).spawn(work)?;
        readied.recv().map_err(io::Error::other)??;
        Ok(Self { commands })
    }

    /// Starts a program and waits until it runs.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(super) fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, answered) = channel();
        self.commands.send((command, answer)).map_err(|_| io::Error::other("the starter has ended"))?;
        answered.recv().map_err(io::Error::other)?
    }
}

fn start_all(commands: &Receiver<(Command, Sender<io::Result<Child>>)>) {
    while let Ok((mut command, answer)) = commands.recv() {
        let started = command.spawn();
        // It holds the other ends of the runtime's pipes.
        drop(command);
        // Who asked waits for the answer, and cannot be gone.
        answer.send(started).unwrap_or_default();
    }
}
