//! Executing a command in a container and bringing back what it printed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::limits::{DRAIN_GRACE, EXEC_OUTPUT_BYTES_MAX};
use crate::monitor::Monitor;
use crate::monitor::console::ConsoleSocket;
use crate::monitor::container::{Container, drain};
use crate::monitor::create::{adopt_from, remove_stale, terminal_of};
use crate::monitor::error::Error;
use crate::monitor::event::Happening;
use crate::monitor::exec_leaf::{ExecLeaf, Home};
use crate::monitor::exit::{ExitCause, publish};
use crate::monitor::id::ContainerId;
use crate::monitor::log::LogSet;
use crate::monitor::relay::{Captured, Open, Output, StreamId};
use crate::monitor::running::Running;
use crate::monitor::runtime::{CgroupManager, Outcome, Purpose, pipe};

/// What a client asks for.
#[derive(Debug)]
pub struct ExecRequest {
    /// In which container.
    pub id: ContainerId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Time from now; `None` = as long as it takes.
    pub timeout: Option<Duration>,
    /// Give it a terminal; then all output is stdout.
    pub terminal: bool,
    /// Added to the command's environment.
    pub env: Vec<(String, String)>,
    /// Overrides the container's.
    pub cgroup_manager: Option<CgroupManager>,
}

/// How it went.
#[derive(Debug)]
pub enum ExecEnd {
    /// The command ended.
    Exited(ExitCause),
    /// The OCI runtime could not start it, and said this.
    NotStarted(String),
    /// Its time was over; it was killed with its descendants.
    TimedOut,
}

/// Result of an exec.
#[derive(Debug)]
pub struct ExecOutcome {
    /// How it went.
    pub end: ExecEnd,
    /// What it printed.
    pub output: Captured,
}

/// How the runtime's call ended, and the streams that it was given.
type Begun = (Outcome, Option<StreamId>);

impl Monitor {
    /// Executes a command and waits for its end.
    ///
    /// # Errors
    /// If the container is not there or the machine is out of something. A command
    /// that cannot be started is no error: see [`ExecEnd::NotStarted`].
    pub async fn exec(self: &Rc<Self>, request: ExecRequest) -> Result<ExecOutcome, Error> {
        let container = self.living(&request.id)?;
        if request.command.is_empty() {
            return Err(Error::Invalid("the command is empty; name a program to execute".into()));
        }
        let deadline = request.timeout.map(|timeout| Instant::now() + timeout);
        let (process, stream) = self.start_exec(&container, &request, deadline).await?;
        let end = match process {
            Ok(running) => wait_or_kill(&running, deadline).await,
            Err(end) => end,
        };
        let drained = match stream {
            Some(stream) => drain(&self.relay, stream, DRAIN_GRACE).await,
            None => None,
        };
        let output = drained.and_then(|drained| drained.captured).unwrap_or_default();
        Ok(ExecOutcome { end: self.explain(&container, end, &output), output })
    }

    /// A runtime that failed said why on the stream that the command would have had.
    fn explain(&self, container: &Container, end: ExecEnd, output: &Captured) -> ExecEnd {
        let ExecEnd::NotStarted(mut reason) = end else { return end };
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.trim().is_empty() {
            reason = said.trim().to_owned();
        }
        ::log::info!("container {}: exec did not start: {reason}", container.id);
        self.events.add(Some(&container.id), Happening::ExecFailed(reason.clone()));
        ExecEnd::NotStarted(reason)
    }

    /// Runs the runtime's `exec`; the process that it leaves behind, or how it ended
    /// without one.
    async fn start_exec(
        self: &Rc<Self>,
        container: &Container,
        request: &ExecRequest,
        deadline: Option<Instant>,
    ) -> Result<(Result<Running, ExecEnd>, Option<StreamId>), Error> {
        let _expecting = self.reaper.expect();
        let pid_file = self.exec_pid_file();
        let leaf = self.leaf_to_start_in(container).await;
        let command = self.exec_command(container, request, pid_file.path(), leaf.as_ref());
        let ended = match self.run_exec(container, request, command, deadline).await {
            Ok((Outcome::Success, stream)) => match adopt_from(&self.reaper, pid_file.path()) {
                Ok(child) => return Ok((Ok(self.note_exec(container, child, leaf)), stream)),
                Err(error) => Ok((Err(ExecEnd::NotStarted(error.to_string())), stream)),
            },
            Ok((Outcome::Failed(error), stream)) => Ok((Err(ExecEnd::NotStarted(error.to_string())), stream)),
            Ok((Outcome::TimedOut(_), stream)) => Ok((Err(ExecEnd::TimedOut), stream)),
            Err(error) => Err(error),
        };
        self.abandon_exec(container, pid_file, leaf).await;
        ended
    }

    async fn run_exec(
        &self,
        container: &Container,
        request: &ExecRequest,
        mut command: Command,
        deadline: Option<Instant>,
    ) -> Result<Begun, Error> {
        let process_file = self.process_file(container, request)?;
        if let Some(file) = &process_file {
            command.arg("--process").arg(file.path());
        }
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if request.terminal {
            self.exec_with_terminal(container, request, command, limit).await
        } else {
            self.exec_with_pipes(container, request, command, limit).await
        }
    }

    /// Where the OCI runtime tells the pid of an exec.
    pub(super) fn exec_pid_file(&self) -> ExecFile {
        ExecFile(self.execs_dir().join(self.unique("exec")))
    }

    /// Ends what an exec that is not followed has left: the command, if the runtime had
    /// started it before it failed or was killed, and its cgroup with whatever is in it.
    pub(super) async fn abandon_exec(
        self: &Rc<Self>,
        container: &Container,
        pid_file: ExecFile,
        leaf: Option<ExecLeaf>,
    ) {
        if let Ok(child) = adopt_from(&self.reaper, pid_file.path()) {
            self.note_exec(container, child, leaf).kill().await;
        } else if let Some(leaf) = leaf {
            leaf.kill();
            leaf.close().await;
        }
    }

    /// A process for the runtime's `exec --process`, if the environment is not the
    /// container's. `--env` would do with runc, which adds to it; crun replaces it
    /// by that, and every user of the machine could read it in the arguments.
    fn process_file(&self, container: &Container, request: &ExecRequest) -> Result<Option<ExecFile>, Error> {
        if request.env.is_empty() {
            return Ok(None);
        }
        let bundle = &container.saved.bundle;
        let config = std::fs::read(bundle.join("config.json"))
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).map_err(io::Error::other));
        let config = config.map_err(|source| Error::Bundle { path: bundle.clone(), source })?;
        let process = process_of(config, request);
        let file = ExecFile(self.execs_dir().join(self.unique("process")));
        publish(file.path(), process.to_string().as_bytes())
            .map_err(|error| Error::io(format!("write {}", file.path().display()), error))?;
        Ok(Some(file))
    }

    /// The runtime's `exec`, up to what depends on the streams.
    pub(super) fn exec_command(
        &self,
        container: &Container,
        request: &ExecRequest,
        pid_file: &Path,
        leaf: Option<&ExecLeaf>,
    ) -> Command {
        let mut options = container.saved.options.clone();
        options.cgroup_manager = request.cgroup_manager.unwrap_or(options.cgroup_manager);
        options.env.extend(request.env.iter().cloned());
        let mut command = self.runtime.command(&options);
        command.args(["exec", "--detach", "--pid-file"]).arg(pid_file);
        if let Some(name) = leaf.and_then(ExecLeaf::argument) {
            command.arg("--cgroup").arg(name);
        }
        command
    }

    /// A cgroup for one exec, where the OCI runtime can start it in one.
    pub(super) async fn leaf_to_start_in(&self, container: &Container) -> Option<ExecLeaf> {
        let home = container.saved.execs_home.as_ref().filter(|home| matches!(home, Home::Unified(_)))?;
        if !self.runtime.has_exec_cgroup(&container.id).await {
            return None;
        }
        ExecLeaf::make(home, &self.unique("exec"))
    }

    async fn exec_with_pipes(
        &self,
        container: &Container,
        request: &ExecRequest,
        mut command: Command,
        limit: Option<Duration>,
    ) -> Result<Begun, Error> {
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;
        command.stdout(stdout_write).stderr(stderr_write);
        append_target(&mut command, container, request);
        let stream = self.capture(Output::Pipes { stdout, stderr })?;
        let call = self.runtime.start(
            Purpose { action: "exec in", id: &container.id },
            command,
            Vec::new(),
            Vec::new(),
        );
        let mut call = call.inspect_err(|_| self.relay.abandon(stream))?;
        Ok((call.outcome(limit).await, Some(stream)))
    }

    async fn exec_with_terminal(
        &self,
        container: &Container,
        request: &ExecRequest,
        mut command: Command,
        limit: Option<Duration>,
    ) -> Result<Begun, Error> {
        let console = ConsoleSocket::new(&self.sockets_dir(), self.unique("console"))?;
        let (stderr, stderr_write) = pipe()?;
        command.arg("--tty").arg("--console-socket").arg(console.argument()).stderr(stderr_write);
        append_target(&mut command, container, request);
        let call = self.runtime.start(
            Purpose { action: "exec in", id: &container.id },
            command,
            Vec::new(),
            vec![stderr],
        )?;
        Ok(match terminal_of(call, &console, limit).await {
            Ok(master) => (Outcome::Success, Some(self.capture(Output::Terminal(master))?)),
            Err(error @ Error::RuntimeTimeout { .. }) => (Outcome::TimedOut(error), None),
            Err(error) => (Outcome::Failed(error), None),
        })
    }

    fn capture(&self, output: Output) -> Result<StreamId, Error> {
        let open = Open {
            output,
            stdin: None,
            stdin_guard: None,
            logs: LogSet::none(),
            capture_max: Some(EXEC_OUTPUT_BYTES_MAX),
        };
        Ok(self.relay.open(open)?)
    }
}

/// A file that one call of the runtime reads or writes; goes when this is dropped.
#[derive(Debug)]
pub(super) struct ExecFile(PathBuf);

impl ExecFile {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ExecFile {
    fn drop(&mut self) {
        if let Err(error) = remove_stale(&self.0) {
            ::log::warn!("{error}");
        }
    }
}

/// The container's own process with another command, a longer environment, and
/// the terminal that was asked for.
fn process_of(mut config: Value, request: &ExecRequest) -> Value {
    let process = config.get_mut("process").map(Value::take);
    let mut process = process.filter(Value::is_object).unwrap_or_else(|| Value::Object(Map::new()));
    let added = |entry: &Value| {
        let name = entry.as_str().and_then(|entry| entry.split('=').next());
        request.env.iter().any(|(key, _)| Some(key.as_str()) == name)
    };
    let mut env = process.get_mut("env").map(Value::take).and_then(into_list).unwrap_or_default();
    env.retain(|entry| !added(entry));
    env.extend(request.env.iter().map(|(key, value)| Value::from(format!("{key}={value}"))));
    process["env"] = Value::from(env);
    process["args"] = Value::from(request.command.clone());
    process["terminal"] = Value::from(request.terminal);
    process
}

fn into_list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(list) => Some(list),
        _ => None,
    }
}

/// The container, and the command unless a file names it.
pub(super) fn append_target(command: &mut Command, container: &Container, request: &ExecRequest) {
    command.arg(container.id.as_str());
    if request.env.is_empty() {
        command.args(&request.command);
    }
}

async fn wait_or_kill(running: &Running, deadline: Option<Instant>) -> ExecEnd {
    let exit = match deadline {
        None => running.child().exited().await,
        Some(deadline) => match tokio::time::timeout_at(deadline, running.child().exited()).await {
            Ok(exit) => exit,
            Err(_) => {
                running.kill().await;
                return ExecEnd::TimedOut;
            }
        },
    };
    ExecEnd::Exited(exit.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn process_is_the_containers_with_another_command_and_environment() {
        let request = ExecRequest {
            id: ContainerId::new("c").unwrap(),
            command: vec!["env".into(), "-0".into()],
            timeout: None,
            terminal: true,
            env: vec![("B".into(), "2=2".into()), ("C".into(), String::new())],
            cgroup_manager: None,
        };
        let own =
            json!({ "args": ["sleep"], "env": ["A=1", "B=old", "BB=3"], "cwd": "/x", "terminal": false });
        let expected = json!({
            "args": ["env", "-0"], "env": ["A=1", "BB=3", "B=2=2", "C="], "cwd": "/x", "terminal": true,
        });
        assert_eq!(process_of(json!({ "process": own }), &request), expected);
    }
}
