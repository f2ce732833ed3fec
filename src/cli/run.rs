//! `podinit run`: a container from its making to its exit code, with its streams
//! on ours.
//!
//! ```text
//!                     ┌ printer thread: log ─► our output          (without -t)
//! event loop ─────────┼ output thread: attach socket ─► our output (with -t; else discarded)
//! (wait, signals,     └ input thread: our input ─► attach socket   (with -i)
//!  window size)
//! ```
//!
//! The log, not the attach socket, is what is printed without a terminal: it
//! holds every byte of both streams however slowly we are read. A terminal has
//! one stream, and whoever sits at it wants it at once.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;

use super::Globals;
use super::attach::{Attached, End, RawTerminal, Sink, window_size};
use super::container::{self, ContainerOptions, Created, code_of, start_failure};
use super::exit::{Failure, complain};
use super::find::{Pod, reach};
use super::follow::{Follow, Printer};
use super::output;
use super::paths::private_directories;
use super::pod::{self, PodOptions};
use super::signals::{Came, Listening, Signals};
use super::teardown::Process;
use crate::limits;
use crate::rpc::client::{Attach, Deletion, ExitStatus, PodClient, StdinEof, Stdio};

/// What a process gets whose reader has gone; shells say 128+13.
const SIGPIPE: u8 = 13;
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// Who wants the command to end so often does not want to wait any more.
const ENDS_UNTIL_KILL: u32 = 3;

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Run it in this pod [default: a new pod, which is stopped at the end]
    #[arg(long, value_name = "POD", conflicts_with = "PodOptions", help_heading = "Pod")]
    pod: Option<String>,

    /// Print POD/CONTAINER once it runs and leave it running
    #[arg(short, long, conflicts_with_all = ["tty", "interactive", "rm"])]
    detach: bool,

    /// Remove the container at the end; in a new pod that is always done
    #[arg(long)]
    rm: bool,

    #[command(flatten)]
    container: ContainerOptions,

    #[command(flatten)]
    options: PodOptions,
}

/// The end of `podinit run --help`.
pub const HELP: &str = "\
Without -t, both streams are printed byte for byte from the container's log, which --log-size may
rotate meanwhile. With -i and -t the terminal is put into raw mode, and follows its window's size.
HUP, INT, QUIT, TERM, USR1 and USR2 are passed on to the command; the third of HUP, INT, QUIT and
TERM kills it. If nobody reads the output any more, the container is stopped.

Exit codes: the command's own; 128+N if signal N ended it; 125 if podinit failed; 126 if the command
cannot be executed; 127 if it was not found; 2 if the command line was wrong.";

/// Runs a container; answers its exit code.
///
/// # Errors
/// What to tell the user, with the codes that `run` promises.
pub fn run(globals: &Globals, args: &RunArgs) -> Result<u8, Failure> {
    let signals = Signals::block()?;
    if let Some(id) = &args.pod {
        let pod = reach(globals.root()?.pod(id)?)?;
        return in_pod(&pod, args, &signals);
    }
    let pod = pod::create(globals, None, &args.options)?;
    let result = in_pod(&pod, args, &signals);
    if args.detach && result.is_ok() {
        return result;
    }
    // What the command did is worth more than how the clean-up went.
    let stopped = pod::stop(pod, Duration::ZERO);
    match (result, stopped) {
        (Ok(code), Err(Failure::Said { message, .. })) => {
            complain(&message);
            Ok(code)
        }
        (result, _) => result,
    }
}

fn in_pod(pod: &Pod, args: &RunArgs, signals: &Signals) -> Result<u8, Failure> {
    let interrupt = async || match signals.listen() {
        Ok(listening) => interrupted(listening.end().await),
        Err(failure) => failure,
    };
    let created = container::make(pod, &args.container, interrupt)?;
    let result = match args.detach {
        true => detach(pod, &created),
        false => stay(pod, args, &created, signals),
    };
    if args.rm || (result.is_err() && args.pod.is_some()) {
        container::delete(pod, &created.id, Deletion::Force).map_err(|failure| match &result {
            Ok(_) => failure,
            Err(first) => first.clone(),
        })?;
    }
    result
}

fn interrupted(signal: u8) -> Failure {
    Failure::Said {
        code: signal.saturating_add(128),
        message: format!("interrupted by signal {signal} before the container ran"),
    }
}

fn detach(pod: &Pod, created: &Created) -> Result<u8, Failure> {
    pod.client.call(async |client| client.start_container(&created.id).await).map_err(start_failure)?;
    output::print(&format!("{}/{}\n", pod.dir.id, created.id))?;
    Ok(0)
}

fn stay(pod: &Pod, args: &RunArgs, created: &Created, signals: &Signals) -> Result<u8, Failure> {
    let is_terminal = created.stdio == Stdio::Terminal;
    let attached = match is_terminal || args.container.interactive {
        true => Some(attach(pod, created)?),
        false => None,
    };
    // Dropped last, after all output has been printed.
    let raw = match is_terminal && args.container.interactive {
        true => RawTerminal::enter()?,
        false => None,
    };
    let exit = pod.client.call(async |client| {
        let mut session = Session { client, id: &created.id, signals: signals.listen()?, ends: 0 };
        if is_terminal {
            session.fit_window().await;
        }
        // Before the start, so that the first byte is not missed.
        let threads = Threads::start(pod, args, created, attached)?;
        session.start_and_watch(threads).await
    })?;
    drop(raw);
    code_of(&format!("{}/{}", pod.dir.id, created.id), &exit)
}

fn attach(pod: &Pod, created: &Created) -> Result<Attached, Failure> {
    let socket_path = pod.dir.attach_socket(&created.id);
    if let Some(parent) = socket_path.parent() {
        private_directories(parent)?;
    }
    let request = Attach {
        id: created.id.clone(),
        socket_path: socket_path.clone(),
        exec_session_id: String::new(),
        stdin_eof: StdinEof::Forward,
        replay_bytes: 0,
    };
    pod.client.call(async |client| client.attach(&request).await)?;
    Attached::connect(&socket_path)
        .map_err(|error| Failure::io(format_args!("attaching to {}", created.id), &error))
}

/// The threads that move bytes while the event loop waits.
struct Threads {
    printer: Option<Printer>,
    attached: Option<Attached>,
    /// What became of the output, told once.
    outcome: oneshot::Receiver<Result<End, Failure>>,
}

impl Threads {
    fn start(
        pod: &Pod,
        args: &RunArgs,
        created: &Created,
        attached: Option<Attached>,
    ) -> Result<Self, Failure> {
        let (tell, outcome) = oneshot::channel();
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
            spawned.map(drop).map_err(|error| Failure::io("starting a thread", &error))
        };
        if args.container.interactive
            && let Some(attached) = attached.clone()
        {
            // Ends with our input or with this process: nobody can wait for a person to type.
            spawn(
                "input",
                Box::new(move || {
                    attached.copy_input(None);
                }),
            )?;
        }
        let sink = if created.stdio == Stdio::Terminal { Sink::Print } else { Sink::Discard };
        let output = attached.clone().map(|attached| move || attached.copy_output(sink));
        let mut printer = None;
        match (output, sink) {
            // Told or not: the event loop may be gone by then.
            (Some(output), Sink::Print) => spawn("output", Box::new(move || drop(tell.send(output()))))?,
            (output, _) => {
                if let Some(output) = output {
                    spawn("output", Box::new(move || drop(output())))?;
                }
                let follow = Follow::everything(pod.dir.log(&created.id));
                printer = Some(Printer::start(follow, move |end| drop(tell.send(end.map(|()| End::Done))))?);
            }
        }
        Ok(Self { printer, attached, outcome })
    }
}

/// One container, watched from its start to its exit.
struct Session<'a> {
    client: &'a PodClient,
    id: &'a str,
    signals: Listening<'a>,
    /// How often somebody wanted it to end.
    ends: u32,
}

impl Session<'_> {
    async fn start_and_watch(&mut self, mut threads: Threads) -> Result<ExitStatus, Failure> {
        self.client.start_container(self.id).await.map_err(start_failure)?;
        let client = self.client;
        let mut wait = std::pin::pin!(client.wait_container(self.id));
        let mut ended_early = None;
        let exit = loop {
            tokio::select! {
                exit = &mut wait => break exit?,
                came = self.signals.next() => self.pass_on(came).await,
                end = &mut threads.outcome, if ended_early.is_none() => {
                    let end = end.unwrap_or(Ok(End::Lost));
                    if end.is_err() {
                        // Nobody sees what it writes any more.
                        self.stop().await;
                    }
                    ended_early = Some(end);
                }
            }
        };
        if let Some(printer) = &threads.printer {
            printer.finish();
        }
        let end = match ended_early {
            Some(end) => end,
            None => self.rest_of_output(&mut threads).await,
        };
        self.verdict(exit, end)
    }

    /// The container has gone; what it wrote is in the log or on its way through the socket.
    async fn rest_of_output(&mut self, threads: &mut Threads) -> Result<End, Failure> {
        let mut patience = std::pin::pin!(tokio::time::sleep(limits::OUTPUT_PATIENCE));
        loop {
            tokio::select! {
                end = &mut threads.outcome => return end.unwrap_or(Ok(End::Lost)),
                // The log ends where it ends; a socket may say nothing for ever.
                () = &mut patience, if threads.printer.is_none() => {
                    if let Some(attached) = &threads.attached {
                        attached.close();
                    }
                    return Ok(End::Lost);
                }
                came = self.signals.next() => if let Came::End(signal) = came {
                    self.ends += 1;
                    if self.ends >= ENDS_UNTIL_KILL {
                        return Err(Failure::Said {
                            code: signal.saturating_add(128),
                            message: "interrupted before all output was printed".into(),
                        });
                    }
                }
            }
        }
    }

    fn verdict(&self, exit: ExitStatus, end: Result<End, Failure>) -> Result<ExitStatus, Failure> {
        match end {
            Ok(End::Done) if exit.log_complete => {}
            Ok(End::Done) => {
                complain(&format!("{}: its output is not complete: some of it was not logged", self.id))
            }
            Ok(End::Lost) => {
                complain(&format!("{}: the end of its output was lost; see `podinit logs`", self.id))
            }
            // As a program that wrote to the pipe itself would have ended.
            Err(Failure::OutputClosed) => {
                return Ok(ExitStatus { how: crate::rpc::client::Ended::Signal(SIGPIPE), ..exit });
            }
            Err(failure) => return Err(failure),
        }
        Ok(exit)
    }

    async fn pass_on(&mut self, came: Came) {
        let signal = match came {
            Came::WindowSize => return self.fit_window().await,
            Came::End(_) if self.ends + 1 >= ENDS_UNTIL_KILL => SIGKILL,
            Came::End(signal) => {
                self.ends += 1;
                signal
            }
            Came::Other(signal) => signal,
        };
        if let Err(failure) = self.signal(signal).await
            && let Failure::Said { message, .. } = failure
        {
            complain(&format!("passing signal {signal} on: {message}"));
        }
    }

    /// Signals the container's process. Not a `stop`: what it does then is its own affair.
    async fn signal(&self, signal: u8) -> Result<(), Failure> {
        let Some(pid) = self.client.container_state(self.id).await?.pid else { return Ok(()) };
        let Some(process) = Process::of_pid(pid) else { return Ok(()) };
        // The descriptor is of the container's process if that still has the number now.
        if self.client.container_state(self.id).await?.pid == Some(pid) {
            process
                .signal(signal)
                .map_err(|error| Failure::io(format_args!("signalling process {pid}"), &error))?;
        }
        Ok(())
    }

    async fn stop(&self) {
        let grace_ms = u32::try_from(limits::STOP_GRACE.as_millis()).unwrap_or(u32::MAX);
        // If it cannot be stopped, waiting for it goes on.
        if let Err(error) = self.client.stop_container(self.id, SIGTERM, grace_ms).await {
            complain(&error.message);
        }
    }

    async fn fit_window(&self) {
        if std::io::stdin().is_terminal()
            && let Some((columns, rows)) = window_size()
        {
            // A window of the wrong size is no reason to end anything.
            drop(self.client.set_window_size(self.id, columns, rows).await);
        }
    }
}
