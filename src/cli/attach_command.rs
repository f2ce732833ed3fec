//! `podinit attach`: our terminal, or our streams, become a running container's.

use std::io::IsTerminal;

use clap::Args;
use tokio::sync::oneshot;

use super::Globals;
use super::attach::{Attached, End, InputEnd, RawTerminal, Sink, window_size};
use super::container::code_of;
use super::detach::{DetachKeys, Detector};
use super::exit::Failure;
use super::find::{Found, find};
use super::names::{self, Reference};
use super::paths::private_directories;
use super::signals::{Came, Listening, Signals};
use crate::limits::ATTACH_REPLAY_BYTES_MAX;
use crate::rpc::client::{Attach, ContainerStatus, PodClient, StdinEof, Stdio};

/// `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// CONTAINER or POD/CONTAINER
    container: Reference,

    /// First print the end of what it wrote before, at most so many bytes; k or m may follow
    #[arg(long, value_name = "BYTES", value_parser = replay_bytes, default_value = "0", hide_default_value = true)]
    replay: u32,

    /// Do not give our input to it
    #[arg(long)]
    no_stdin: bool,

    /// Keys that, typed on a terminal, end the attach and leave the container running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
}

/// The end of `podinit attach --help`.
pub const HELP: &str = "\
Several can be attached to one container; each gets all of its output. The end of our input is the end of
the container's, unless our input is a terminal. Signals end the attach and not the container.

Exit codes: 0 after the detach keys; the container's own if it exits meanwhile; 125 if podinit failed.";

/// Attaches; answers the exit code.
///
/// # Errors
/// What to tell the user.
pub fn run(globals: &Globals, args: &AttachArgs) -> Result<u8, Failure> {
    let signals = Signals::block()?;
    let found = find(&globals.root()?, &args.container)?;
    let status = found.pod.client.call(async |client| client.container_state(&found.id).await)?;
    let attached = attach(&found, args)?;
    // Dropped last, after all output has been printed.
    let raw = if status.stdio == Stdio::Terminal && !args.no_stdin { RawTerminal::enter()? } else { None };
    let code = found.pod.client.call(async |client| {
        let session = Session { client, found: &found, signals: signals.listen()?, status: &status };
        session.fit_window().await;
        session.watch(attached, args).await
    });
    drop(raw);
    code
}

fn attach(found: &Found, args: &AttachArgs) -> Result<Attached, Failure> {
    let socket_path = found.pod.dir.attach_socket(&found.id);
    if let Some(parent) = socket_path.parent() {
        private_directories(parent)?;
    }
    // A person at a terminal comes and goes; what is piped in has an end that is meant.
    let comes_and_goes = args.no_stdin || std::io::stdin().is_terminal();
    let request = Attach {
        id: found.id.clone(),
        socket_path: socket_path.clone(),
        exec_session_id: String::new(),
        stdin_eof: if comes_and_goes { StdinEof::Keep } else { StdinEof::Forward },
        replay_bytes: args.replay,
    };
    found.pod.client.call(async |client| client.attach(&request).await)?;
    Attached::connect(&socket_path)
        .map_err(|error| Failure::io(format_args!("attaching to {}", found.id), &error))
}

struct Session<'a> {
    client: &'a PodClient,
    found: &'a Found,
    signals: Listening<'a>,
    status: &'a ContainerStatus,
}

impl Session<'_> {
    /// Moves bytes until the container has exited or nobody wants them any more.
    async fn watch(&self, attached: Attached, args: &AttachArgs) -> Result<u8, Failure> {
        let (tell_output, mut output) = oneshot::channel();
        let (tell_input, mut input) = oneshot::channel();
        if !args.no_stdin {
            let (attached, keys) = (attached.clone(), args.detach_keys.clone());
            let keys = std::io::stdin().is_terminal().then(|| Detector::new(keys));
            // Ends with our input or with this process: nobody can wait for a person to type.
            // Told or not: the event loop may be gone by then.
            spawn("input", move || {
                tell_input.send(attached.copy_input(keys)).ok();
            })?;
        }
        let printing = attached.clone();
        spawn("output", move || drop(tell_output.send(printing.copy_output(Sink::Print))))?;
        let mut input_ended = false;
        loop {
            tokio::select! {
                end = &mut output => return self.ended(end.unwrap_or(Ok(End::Lost))).await,
                // Without an input thread the sender is gone.
                end = &mut input, if !input_ended => match end {
                    Ok(InputEnd::Detached) => return Ok(0),
                    _ => input_ended = true,
                },
                came = self.signals.next() => match came {
                    Came::WindowSize => self.fit_window().await,
                    Came::End(signal) => {
                        return Err(Failure::Said {
                            code: signal.saturating_add(128),
                            message: format!("detached from {} by signal {signal}", self.found.id),
                        });
                    }
                    Came::Other(_) => {}
                },
            }
        }
    }

    async fn ended(&self, end: Result<End, Failure>) -> Result<u8, Failure> {
        let name = format!("{}/{}", self.found.pod.dir.id, self.found.id);
        match end? {
            End::Done => code_of(&name, &self.client.wait_container(&self.found.id).await?),
            End::Lost => Err(Failure::new(format!(
                "the connection to {name} was lost: it does not read as fast as the container writes, or the \
                 pod's server has ended"
            ))),
        }
    }

    async fn fit_window(&self) {
        if self.status.stdio == Stdio::Terminal
            && std::io::stdin().is_terminal()
            && let Some((columns, rows)) = window_size()
        {
            // A window of the wrong size is no reason to end anything.
            drop(self.client.set_window_size(&self.found.id, columns, rows).await);
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
    spawned.map(drop).map_err(|error| Failure::io("starting a thread", &error))
}

fn replay_bytes(text: &str) -> Result<u32, String> {
    let bytes = names::bytes(text)?;
    let fits = usize::try_from(bytes).is_ok_and(|bytes| bytes <= ATTACH_REPLAY_BYTES_MAX);
    let too_many =
        || format!("at most {ATTACH_REPLAY_BYTES_MAX} bytes are replayed; `podinit logs` prints all");
    u32::try_from(bytes).ok().filter(|_| fits).ok_or_else(too_many)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_is_bounded() {
        assert_eq!(replay_bytes("64k"), Ok(64 << 10));
        assert_eq!(replay_bytes("1m"), Ok(1 << 20));
        assert!(replay_bytes("1048577").is_err() && replay_bytes("5g").is_err());
    }
}
