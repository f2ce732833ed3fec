//! Exec sessions: commands in a container whose streams somebody else handles, who
//! talks with them as they run.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::rc::Rc;

use crate::limits::{RUNTIME_CALL_TIMEOUT, RUNTIME_STDERR_BYTES_MAX};
use crate::monitor::Monitor;
use crate::monitor::console::ConsoleSocket;
use crate::monitor::container::Container;
use crate::monitor::create::{adopt_from, terminal_of};
use crate::monitor::error::Error;
use crate::monitor::event::Happening;
use crate::monitor::exec::{ExecRequest, append_target};
use crate::monitor::relay::Output;
use crate::monitor::running::Running;
use crate::monitor::runtime::{Outcome, Purpose, pipe};

/// What a command has as its standard input. (A terminal is always both ways.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecStdin {
    /// A pipe.
    Pipe,
    /// Nothing to read.
    Null,
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct ExecSession {
    /// Its process; killed if this is dropped before it has ended.
    pub running: Running,
    /// Our ends of its output; the terminal's master is for input, too.
    pub output: Output,
    /// Our end of its input, unless it has a terminal.
    pub stdin: Option<OwnedFd>,
}

impl Monitor {
    /// Starts a command. It runs until it ends, is killed, or the pod ends. To be
    /// run as a task of its own: cancelled half way, it would leave the command
    /// behind.
    ///
    /// # Errors
    /// [`Error::NotStarted`] with what the OCI runtime said; if the container is not
    /// there, or the machine is out of something.
    pub async fn exec_session(
        self: Rc<Self>,
        request: ExecRequest,
        stdin: ExecStdin,
    ) -> Result<ExecSession, Error> {
        self.refuse_if_closing()?;
        let container = self.living(&request.id)?;
        let _expecting = self.reaper.expect();
        let pid_file = self.exec_pid_file();
        let leaf = self.leaf_to_start_in(&container).await;
        let command = self.exec_command(&container, &request, pid_file.path(), leaf.as_ref());
        let started = if request.terminal {
            self.session_with_terminal(&container, &request, command).await
        } else {
            self.session_with_pipes(&container, &request, command, stdin).await
        };
        let begun = started.and_then(|streams| Ok((streams, adopt_from(&self.reaper, pid_file.path())?)));
        let session = match begun {
            Ok(((output, stdin), child)) => {
                Ok(ExecSession { running: self.note_exec(&container, child, leaf), output, stdin })
            }
            Err(error) => {
                self.abandon_exec(&container, pid_file, leaf).await;
                Err(error)
            }
        };
        session.inspect_err(|error| {
            ::log::info!("container {}: {error}", container.id);
            self.events.add(Some(&container.id), Happening::ExecFailed(error.to_string()));
        })
    }

    async fn session_with_pipes(
        &self,
        container: &Container,
        request: &ExecRequest,
        mut command: Command,
        stdin: ExecStdin,
    ) -> Result<(Output, Option<OwnedFd>), Error> {
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;
        command.stdout(stdout_write).stderr(stderr_write);
        let stdin = match stdin {
            ExecStdin::Null => None,
            ExecStdin::Pipe => {
                let (read, write) = pipe()?;
                command.stdin(read);
                Some(write)
            }
        };
        append_target(&mut command, container, request);
        let purpose = Purpose { action: "exec in", id: &container.id };
        let mut call = self.runtime.start(purpose, command, Vec::new(), Vec::new())?;
        match call.outcome(Some(RUNTIME_CALL_TIMEOUT)).await {
            Outcome::Success => Ok((Output::Pipes { stdout, stderr }, stdin)),
            Outcome::Failed(error) | Outcome::TimedOut(error) => {
                // The runtime speaks where the command would have spoken.
                let said = what_is_in(&stderr);
                Err(Error::NotStarted(if said.is_empty() { error.to_string() } else { said }))
            }
        }
    }

    async fn session_with_terminal(
        &self,
        container: &Container,
        request: &ExecRequest,
        mut command: Command,
    ) -> Result<(Output, Option<OwnedFd>), Error> {
        let console = ConsoleSocket::new(&self.sockets_dir(), self.unique("console"))?;
        let (stderr, stderr_write) = pipe()?;
        command.arg("--tty").arg("--console-socket").arg(console.argument()).stderr(stderr_write);
        append_target(&mut command, container, request);
        let purpose = Purpose { action: "exec in", id: &container.id };
        let call = self.runtime.start(purpose, command, Vec::new(), vec![stderr])?;
        let master = terminal_of(call, &console, Some(RUNTIME_CALL_TIMEOUT)).await;
        let master = master.map_err(|error| Error::NotStarted(error.to_string()))?;
        Ok((Output::Terminal(master), None))
    }
}

/// Text that waits in a pipe.
fn what_is_in(pipe: &OwnedFd) -> String {
    let mut text = vec![0; RUNTIME_STDERR_BYTES_MAX];
    // Its writer may live on, so it must not block.
    let read =
        rustix::io::ioctl_fionbio(pipe, true).and_then(|()| rustix::io::read(pipe, text.as_mut_slice()));
    text.truncate(read.unwrap_or(0));
    String::from_utf8_lossy(&text).trim().to_owned()
}
