//! Creating a container: all of it, or nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use crate::limits::KILL_TIMEOUT;
use crate::monitor::bundle;
use crate::monitor::cgroup::{self, Membership, OomCounter};
use crate::monitor::console::ConsoleSocket;
use crate::monitor::container::{Container, Streams};
use crate::monitor::error::Error;
use crate::monitor::event::Happening;
use crate::monitor::exec_leaf::Home;
use crate::monitor::exit::ExitFiles;
use crate::monitor::id::ContainerId;
use crate::monitor::life::Phase;
use crate::monitor::log::journald::Identity;
use crate::monitor::log::limit::LogLimits;
use crate::monitor::log::options::OptionError;
use crate::monitor::log::{LogConfig, LogSet};
use crate::monitor::reaper::Child;
use crate::monitor::relay::{Open, Output};
use crate::monitor::runtime::{Call, CallOptions, DELETE, Purpose, pipe};
use crate::monitor::saved::{STDERR, STDIN, STDOUT, Saved, TERMINAL};
use crate::monitor::tree::start_ticks;
use crate::monitor::{Monitor, Slot};
use crate::sys::process::now_ns;
use crate::sys::spawn::PassedFd;

/// What a client asks for.
#[derive(Debug)]
pub struct CreateRequest {
    /// Id of the container.
    pub id: ContainerId,
    /// Its bundle: a directory with a `config.json`.
    pub bundle: PathBuf,
    /// Whether config.json says `terminal: true`.
    pub terminal: bool,
    /// Whether clients can write to its standard input.
    pub stdin: bool,
    /// Files that tell of its exit.
    pub files: ExitFiles,
    /// Where its output goes.
    pub logs: Vec<LogConfig>,
    /// How its logs are kept: the last word over the bundle's annotations.
    pub log_options: Vec<(String, String)>,
    /// Run after its exit.
    pub cleanup: Vec<String>,
    /// How the runtime is called.
    pub options: CallOptions,
    /// Arguments of the runtime's `create`.
    pub command_args: Vec<String>,
    /// Given to the runtime as descriptors 3, 4, ...
    pub additional_fds: Vec<OwnedFd>,
    /// Kept open until the container has exited.
    pub leak_fds: Vec<OwnedFd>,
    /// Start the command through podinit's init.
    pub init: bool,
}

/// The ends of a container's streams that stay here.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) output: Output,
    pub(super) stdin: Option<OwnedFd>,
    /// For resizes.
    pub(super) terminal: Option<OwnedFd>,
}

impl Ends {
    /// A terminal is one descriptor for everything.
    pub(super) fn of_terminal(master: OwnedFd, stdin: bool) -> Result<Self, Error> {
        let duplicate = || {
            let copy = master.try_clone();
            copy.map_err(|error| Error::io("duplicate the descriptor of the terminal", error))
        };
        let stdin = if stdin { Some(duplicate()?) } else { None };
        Ok(Self { stdin, terminal: Some(duplicate()?), output: Output::Terminal(master) })
    }
}

impl Monitor {
    /// Creates a container and returns the pid of its first process.
    ///
    /// # Errors
    /// If anything fails; then nothing of it is left.
    pub async fn create(self: &Rc<Self>, request: CreateRequest) -> Result<u32, Error> {
        self.refuse_if_closing()?;
        check_bundle(&request.bundle)?;
        self.check_hooks()?;
        if let Err(error) = cgroup::follow(self.stable_pid(), &self.cgroup_mounts) {
            // The containers are in cgroups of their own; only the monitor's own cost is in the wrong one.
            ::log::warn!("cannot follow the keeper to its cgroup: {error}");
        }
        self.reserve(&request.id)?;
        let id = request.id.clone();
        let created = self.create_reserved(request).await;
        self.created_or_not.notify_waiters();
        let mut containers = self.containers.borrow_mut();
        match created {
            Ok(container) => {
                let pid = container.child.pid();
                containers.insert(id.clone(), Slot::Here(Rc::clone(&container)));
                drop(containers);
                ::log::info!("container {id} created, pid {pid}");
                self.events.add(Some(&id), Happening::Created(pid));
                tokio::task::spawn_local(Rc::clone(self).follow(container));
                Ok(pid)
            }
            Err(error) => {
                containers.remove(&id);
                self.seccomp.close(&id);
                self.forget_streams(&id);
                ::log::warn!("container {id} was not created: {error}");
                Err(error)
            }
        }
    }

    /// Takes the id, unless it is in use. The record of a container that has
    /// exited gives way: engines delete containers through the runtime.
    fn reserve(&self, id: &ContainerId) -> Result<(), Error> {
        let mut containers = self.containers.borrow_mut();
        match containers.get(id) {
            // Also in its file, or the next monitor would know it again if this create fails.
            Some(Slot::Here(container)) if container.phase() == Phase::Exited => self.unsave(id),
            Some(_) => return Err(Error::Exists(id.to_string())),
            None => {}
        }
        containers.insert(id.clone(), Slot::Creating);
        Ok(())
    }

    async fn create_reserved(self: &Rc<Self>, mut request: CreateRequest) -> Result<Rc<Container>, Error> {
        let limits = choose_logs(&mut request)?;
        let stdin_once = if request.stdin { bundle::stdin_once(&request.bundle)? } else { None };
        if request.init {
            request.bundle = bundle::with_init(&request.bundle, &self.config.run_dir, &request.id)?;
        }
        self.seccomp.open_for(&request.id, &request.bundle)?;
        let (ends, child, logs) = self.make(&mut request).await?;
        let stdin_guard = self.stdin_guard(&request.id, &ends);
        let open = Open { output: ends.output, stdin: ends.stdin, stdin_guard, logs, capture_max: None };
        let relay = match self.relay.open(open) {
            Ok(relay) => relay,
            Err(error) => {
                self.undo_create(&request).await;
                return Err(error.into());
            }
        };
        self.begin_log_limits(relay, limits);
        // A process that has ended already is in none that matters.
        let membership = Membership::of(child.pid()).ok();
        let oom = membership.as_ref().and_then(|cgroups| OomCounter::of(cgroups, &self.cgroup_mounts));
        let execs_home = membership.as_ref().and_then(|cgroups| Home::of(cgroups, &self.cgroup_mounts));
        let saved = Saved {
            id: request.id.to_string(),
            pid: child.pid(),
            start_ticks: start_ticks(child.pid()).unwrap_or(0),
            bundle: request.bundle,
            terminal: request.terminal,
            stdin: request.stdin,
            stdin_once,
            created_at_ns: now_ns(),
            started_at_ns: 0,
            files: request.files,
            logs: request.logs,
            limits,
            cleanup: request.cleanup,
            options: request.options,
            execs_home,
            oom: oom.map(|counter| counter.parts()),
            ended: None,
            exit: None,
            unwritten: None,
            streams: None,
        };
        let streams = Streams { relay, terminal: ends.terminal, logged: true };
        let container = Rc::new(Container::new(request.id, saved, child, Some(streams)));
        self.hold_open(&container, request.leak_fds);
        self.save(&container);
        match self.hooks_after_create(&container).await {
            Ok(()) => Ok(container),
            Err(error) => {
                self.undo_created(&container).await;
                Err(error)
            }
        }
    }

    /// Has the runtime create it while its logs are opened: both, or nothing is left.
    async fn make(self: &Rc<Self>, request: &mut CreateRequest) -> Result<(Ends, Child, LogSet), Error> {
        let was_there = self.runtime.state_dir(&request.id).is_some_and(|directory| directory.exists());
        let expecting = self.reaper.expect();
        let opened = open_logs_aside(request.logs.clone(), request.id.clone());
        // The runtime takes longer than a thread that opens files, so they cost no time of their own.
        let (ends, logs) = tokio::join!(biased; self.run_create(request), opened);
        let made = ends.and_then(|ends| Ok((ends, adopt_from(&self.reaper, &pid_file(&request.bundle))?)));
        drop(expecting);
        match (made, logs) {
            (Ok((ends, child)), Ok(logs)) => Ok((ends, child, logs)),
            (Ok((_, child)), Err(error)) => {
                self.undo_process(&request.id, &child, &request.options, &request.bundle).await;
                Err(error)
            }
            (Err(error), logs) => {
                if let Ok(logs) = logs {
                    aside(move || logs.undo()).await?;
                }
                if !was_there {
                    self.undo_create(request).await;
                }
                Err(error)
            }
        }
    }

    /// Takes back a container that was complete, and that a hook does not want.
    async fn undo_created(self: &Rc<Self>, container: &Rc<Container>) {
        let saved = &container.saved;
        self.undo_process(&container.id, &container.child, &saved.options, &saved.bundle).await;
        if let Ok(stream) = container.stream() {
            self.relay.abandon(stream);
        }
        self.unsave(&container.id);
        self.release(container);
        self.hooks_after_delete(container).await;
    }

    /// Ends the first process of a container that was made, and takes it out of the
    /// runtime's books.
    async fn undo_process(&self, id: &ContainerId, child: &Child, options: &CallOptions, bundle: &Path) {
        if let Err(error) = child.signal(libc::SIGKILL) {
            ::log::error!("cannot kill process {} of {id}: {error}", child.pid());
        }
        if tokio::time::timeout(KILL_TIMEOUT, child.exited()).await.is_err() {
            ::log::error!("container {id} is still there after SIGKILL");
        }
        self.delete_in_runtime(id, options, bundle).await;
    }

    /// Runs the runtime's `create` with pipes or a terminal.
    async fn run_create(&self, request: &mut CreateRequest) -> Result<Ends, Error> {
        remove_stale(&pid_file(&request.bundle))?;
        let mut command = self.runtime.command(&request.options);
        command.arg("create").arg("--bundle").arg(&request.bundle);
        command.arg("--pid-file").arg(pid_file(&request.bundle)).args(&request.command_args);
        let passed = request.additional_fds.drain(..).zip(3..);
        let passed = passed.map(|(fd, number)| PassedFd { fd, number }).collect::<Vec<_>>();
        if request.terminal {
            self.create_with_terminal(request, command, passed).await
        } else {
            self.create_with_pipes(request, command, passed).await
        }
    }

    async fn create_with_pipes(
        &self,
        request: &CreateRequest,
        mut command: Command,
        passed: Vec<PassedFd>,
    ) -> Result<Ends, Error> {
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;
        command.stdout(stdout_write).stderr(stderr_write).arg(request.id.as_str());
        let mut stdin = None;
        if request.stdin {
            let (read, write) = pipe()?;
            command.stdin(read);
            stdin = Some(write);
        }
        let mut call = self.runtime.start(
            Purpose { action: "create", id: &request.id },
            command,
            passed,
            vec![stderr, stdout],
        )?;
        // While the runtime is at work, and takes longer.
        for (stream, fd) in [STDERR, STDOUT].into_iter().zip(call.heard()) {
            self.keep(&request.id, stream, fd);
        }
        if let Some(stdin) = &stdin {
            self.keep(&request.id, STDIN, stdin);
        }
        call.outcome(Some(self.config.create_timeout)).await.into_result()?;
        let mut ends = call.into_heard().into_iter();
        let (Some(stderr), Some(stdout)) = (ends.next(), ends.next()) else {
            return Err(Error::Internal("a create call lost its pipes"));
        };
        Ok(Ends { output: Output::Pipes { stdout, stderr }, stdin, terminal: None })
    }

    async fn create_with_terminal(
        &self,
        request: &CreateRequest,
        mut command: Command,
        passed: Vec<PassedFd>,
    ) -> Result<Ends, Error> {
        let console = ConsoleSocket::new(&self.sockets_dir(), self.unique("console"))?;
        let (stderr, stderr_write) = pipe()?;
        command.stderr(stderr_write).arg("--console-socket").arg(console.argument()).arg(request.id.as_str());
        let call = self.runtime.start(
            Purpose { action: "create", id: &request.id },
            command,
            passed,
            vec![stderr],
        )?;
        let master = terminal_of(call, &console, Some(self.config.create_timeout)).await?;
        self.keep(&request.id, TERMINAL, &master);
        Ends::of_terminal(master, request.stdin)
    }

    /// Removes what a failed create may have left in the runtime's books.
    async fn undo_create(&self, request: &CreateRequest) {
        self.delete_in_runtime(&request.id, &request.options, &request.bundle).await;
    }

    async fn delete_in_runtime(&self, id: &ContainerId, options: &CallOptions, bundle: &Path) {
        let there = self.runtime.state_dir(id).is_none_or(|directory| directory.exists());
        if there {
            let arguments = [DELETE, "--force"];
            let limit = crate::limits::RUNTIME_CALL_TIMEOUT;
            let deleted = self.runtime.run(Purpose { action: DELETE, id }, options, &arguments, limit).await;
            if let Err(error) = deleted {
                ::log::debug!("nothing of container {id} was left to delete: {error}");
            }
        }
        if let Err(error) = remove_stale(&pid_file(bundle)) {
            ::log::warn!("{error}");
        }
    }
}

/// Puts the options of the bundle and of the request into its logs; how they are
/// limited.
fn choose_logs(request: &mut CreateRequest) -> Result<LogLimits, Error> {
    let refused = |refused: OptionError| Error::Invalid(refused.to_string());
    let mut options = bundle::log_options(&request.bundle)?;
    options.add(std::mem::take(&mut request.log_options));
    options.apply(&mut request.logs).map_err(refused)?;
    options.limits().map_err(refused)
}

async fn open_logs_aside(configs: Vec<LogConfig>, id: ContainerId) -> Result<LogSet, Error> {
    aside(move || open_logs(&configs, &id)).await?
}

/// Does what may wait for a disk on a thread of its own.
async fn aside<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let (sender, done) = tokio::sync::oneshot::channel();
    // Whoever asked may be gone by then, and nobody else wants to know.
    let thread =
        std::thread::Builder::new().name("logs".to_owned()).spawn(move || sender.send(what()).is_ok());
    thread.map_err(|error| Error::io("start a thread to open container logs", error))?;
    done.await.map_err(|_| Error::Internal("the thread that opens container logs ended"))
}

/// Opens the logs of container `id`.
pub(super) fn open_logs(configs: &[LogConfig], id: &ContainerId) -> Result<LogSet, Error> {
    let identity = Identity { id: id.to_string(), ..Identity::default() };
    Ok(LogSet::open_as(configs, &identity)?)
}

/// Runs a call until the terminal has arrived and the runtime has exited with 0.
/// A runtime that dies without sending one is an error, not a wait without end.
pub(super) async fn terminal_of(
    mut call: Call,
    console: &ConsoleSocket,
    limit: Option<std::time::Duration>,
) -> Result<OwnedFd, Error> {
    // One future for both waits: dropped between the connection and its message,
    // it would take the terminal with it.
    let mut receive = std::pin::pin!(console.receive());
    let mut received = None;
    let outcome = {
        let mut outcome = std::pin::pin!(call.outcome(limit));
        loop {
            tokio::select! {
                outcome = &mut outcome => break outcome,
                terminal = &mut receive, if received.is_none() => received = Some(terminal),
            }
        }
    };
    outcome.into_result()?;
    match received {
        Some(received) => received,
        // Sent just before the exit, and the exit was seen first.
        None => tokio::time::timeout(crate::limits::CONSOLE_TIMEOUT, receive)
            .await
            .map_err(|_| Error::NoTerminalSent)?,
    }
}

/// Reads the pid that the runtime wrote to `path`, and tracks it.
pub(super) fn adopt_from(reaper: &crate::monitor::reaper::Reaper, path: &Path) -> Result<Child, Error> {
    let fail = |source| Error::NoProcess { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(fail)?;
    let pid = text.trim().parse::<u32>().map_err(|error| fail(io::Error::other(error)))?;
    reaper.adopt(pid).map_err(fail)
}

fn pid_file(bundle: &Path) -> PathBuf {
    bundle.join("pidfile")
}

fn check_bundle(bundle: &Path) -> Result<(), Error> {
    let fail = |source| Error::Bundle { path: bundle.to_owned(), source };
    if !bundle.is_absolute() {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "the path is not absolute")));
    }
    if !std::fs::metadata(bundle.join("config.json")).map_err(fail)?.is_file() {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "config.json is not a file")));
    }
    Ok(())
}

/// Removes a file that an earlier container may have left.
pub(super) fn remove_stale(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
