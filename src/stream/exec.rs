//! A streaming exec: a command whose streams are a client's.
//!
//! The command's pipes, or its terminal, are read here and not by the relay: there
//! is one reader, no log and no capture, and whoever reads slowly shall slow down
//! this command and nothing else. Bytes wait in the kernel's pipe and in one buffer
//! per stream.
//!
//! * Output is sent to its end before the exit code. Where a process in the
//!   background keeps a stream open, its end is [`DRAIN_GRACE`] without output after
//!   the command's exit.
//! * The command is killed with its descendants when its client is gone.
//! * The end of the client's input closes the command's stdin; a terminal has no
//!   such end, there the client sends the end-of-file character. A command that has
//!   closed its output still gets its input.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;

use rustix::termios::Winsize;

use super::command::Client;
use super::error::StreamError;
use super::inlet::{Plug, Portion};
use super::remote::{Channel, Size};
use super::status::Outcome;
use super::wire::Inbox;
use crate::limits::{DRAIN_GRACE, STREAM_CHUNK_BYTES};
use crate::monitor::Monitor;
use crate::monitor::exec::ExecRequest;
use crate::monitor::exit::ExitCause;
use crate::monitor::reaper::Child;
use crate::monitor::relay::Output;
use crate::monitor::session::{ExecSession, ExecStdin};

/// Runs the session to its end.
pub(super) async fn run(
    monitor: Rc<Monitor>,
    client: Client,
    inbox: Inbox,
    (request, stdin): (ExecRequest, ExecStdin),
) {
    let id = request.id.clone();
    let ended = start_and_converse(monitor, &client, inbox, (request, stdin)).await;
    if let Err(error) = &ended {
        log::info!("container {id}: a streaming exec was ended: {error}");
    }
    client.dismiss(ended).await;
}

async fn start_and_converse(
    monitor: Rc<Monitor>,
    client: &Client,
    inbox: Inbox,
    (request, stdin): (ExecRequest, ExecStdin),
) -> Result<Outcome, StreamError> {
    let mut listening = pin!(client.listen(inbox));
    tokio::select! {
        ready = client.ready() => ready?,
        error = &mut listening => return Err(error),
    }
    // A task, so that it runs to its end whatever becomes of the client.
    let mut starting = tokio::task::spawn_local(monitor.exec_session(request, stdin));
    let (started, gone) = tokio::select! {
        started = &mut starting => (started, None),
        error = &mut listening => (starting.await, Some(error)),
    };
    let reason = match (started, gone) {
        (Ok(Ok(session)), None) => return converse(client, session, listening).await,
        (Ok(Ok(session)), Some(error)) => {
            session.running.kill().await;
            return Err(error);
        }
        (_, Some(error)) => return Err(error),
        (Ok(Err(error)), None) => error.to_string(),
        (Err(_), None) => "the request ended in a panic".to_owned(),
    };
    Ok(Outcome::Failed(reason))
}

/// Connects the command and the client until one of them has ended.
async fn converse(
    client: &Client,
    session: ExecSession,
    listening: impl Future<Output = StreamError>,
) -> Result<Outcome, StreamError> {
    let ExecSession { running, output, stdin } = session;
    let ended = match Streams::new(output, stdin) {
        Err(source) => Err(StreamError::Process { doing: "wait for the streams of the command", source }),
        Ok(streams) => tokio::select! {
            ended = streams.relay(client, running.child()) => ended,
            error = listening => Err(error),
        },
    };
    // All its streams are closed by now. One that has ended is not there to be killed.
    running.kill().await;
    ended.map(|cause| Outcome::Exited(cause.shell_code()))
}

/// Our ends of a command's streams.
enum Streams {
    Pipes { stdin: Option<Plug>, stdout: Plug, stderr: Plug },
    Terminal(Plug),
}

impl Streams {
    fn new(output: Output, stdin: Option<OwnedFd>) -> io::Result<Self> {
        Ok(match output {
            Output::Terminal(master) => Self::Terminal(Plug::new(master)?),
            Output::Pipes { stdout, stderr } => Self::Pipes {
                stdin: stdin.map(Plug::writer).transpose()?,
                stdout: Plug::reader(stdout)?,
                stderr: Plug::reader(stderr)?,
            },
        })
    }

    /// Carries everything, until all output has been sent and the command has exited:
    /// one that closes its output may go on reading.
    async fn relay(self, client: &Client, child: &Child) -> Result<ExitCause, StreamError> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let output = async {
                    tokio::try_join!(
                        send(client, Channel::Stdout, &stdout, child),
                        send(client, Channel::Stderr, &stderr, child),
                    )?;
                    Ok(child.exited().await.into())
                };
                tokio::select! {
                    ended = output => ended,
                    never = take_input(client, stdin) => match never {},
                }
            }
            Self::Terminal(master) => {
                let resize = |Size { width, height }| {
                    let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
                    Ok(rustix::termios::tcsetwinsize(master.fd(), size)?)
                };
                let input = async {
                    client.stdin.feed(&master, Portion::Any).await;
                    client.stdin.discard();
                    std::future::pending::<Infallible>().await
                };
                let output = async {
                    send(client, Channel::Stdout, &master, child).await?;
                    Ok(child.exited().await.into())
                };
                tokio::select! {
                    ended = output => ended,
                    never = input => match never {},
                    never = client.resizes(resize) => match never {},
                }
            }
        }
    }
}

/// Gives the command its input, and closes it at its end.
async fn take_input(client: &Client, stdin: Option<Plug>) -> Infallible {
    if let Some(stdin) = stdin {
        client.stdin.feed(&stdin, Portion::Any).await;
    }
    client.stdin.discard();
    std::future::pending().await
}

/// Sends what comes out of `from`, and then its end.
async fn send(client: &Client, channel: Channel, from: &Plug, child: &Child) -> Result<(), StreamError> {
    let mut buffer = vec![0; STREAM_CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = abandoned(child) => break,
        };
        let doing = "read the output of the command";
        let count = read.map_err(|source| StreamError::Process { doing, source })?;
        if count == 0 {
            break;
        }
        client.say(channel, buffer.get(..count).unwrap_or_default()).await?;
    }
    client.end(channel).await
}

/// The command has exited and been quiet since; somebody else holds its stream.
async fn abandoned(child: &Child) {
    child.exited().await;
    tokio::time::sleep(DRAIN_GRACE).await;
}
