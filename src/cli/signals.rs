//! Signals to `podinit run` as something to wait for. They are blocked from the
//! first moment, so that none can end the command and leave a pod behind.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::exit::Failure;

/// Those that are passed on to the container, and the one that says that the
/// terminal's window has another size.
const CAUGHT: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// The signals of this process, read instead of suffered.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// The terminal's window has another size.
    WindowSize,
    /// Somebody wants the command to end, and how.
    End(u8),
    /// Anything else: the container may know what to do with it.
    Other(u8),
}

impl Signals {
    /// Blocks the signals in this thread, and so in all that it starts later.
    ///
    /// # Errors
    /// If the kernel gives no descriptor.
    pub fn block() -> Result<Self, Failure> {
        let failed = |error: nix::Error| Failure::io("waiting for signals", &error.into());
        let set: SigSet = CAUGHT.into_iter().collect();
        set.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags).map_err(failed)?))
    }

    /// Makes them awaitable in the event loop of the caller.
    ///
    /// # Errors
    /// If the event loop cannot take the descriptor.
    pub fn listen(&self) -> Result<Listening<'_>, Failure> {
        AsyncFd::with_interest(Shared(&self.0), Interest::READABLE)
            .map(Listening)
            .map_err(|error| Failure::io("waiting for signals", &error))
    }
}

/// tokio takes an owner; the signals outlive any one event loop.
#[derive(Debug)]
struct Shared<'a>(&'a SignalFd);

impl AsRawFd for Shared<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// See [`Signals::listen`].
#[derive(Debug)]
pub struct Listening<'a>(AsyncFd<Shared<'a>>);

impl Listening<'_> {
    /// The next signal. Nothing is lost if the future is dropped.
    pub async fn next(&self) -> Came {
        loop {
            let read = self.0.async_io(Interest::READABLE, |fd| match fd.0.read_signal() {
                Ok(Some(signal)) => Ok(signal),
                Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(error.into()),
            });
            // Reading a signalfd fails only by interruption (signalfd(2)).
            let Ok(signal) = read.await else { continue };
            let Ok(number) = u8::try_from(signal.ssi_signo) else { continue };
            return match Signal::try_from(i32::from(number)) {
                Ok(Signal::SIGWINCH) => Came::WindowSize,
                Ok(Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM) => Came::End(number),
                _ => Came::Other(number),
            };
        }
    }

    /// The next signal by which somebody wants the command to end.
    pub async fn end(&self) -> u8 {
        loop {
            if let Came::End(signal) = self.next().await {
                return signal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_and_not_suffered() {
        let signals = Signals::block().unwrap();
        let runtime = crate::rpc::client::local_runtime().unwrap();
        for signal in [Signal::SIGWINCH, Signal::SIGTERM] {
            // To this thread, not to the process (raise(3)): the other tests are in it too.
            nix::sys::signal::raise(signal).unwrap();
        }
        runtime.block_on(async {
            let listening = signals.listen().unwrap();
            let came = [listening.next().await, listening.next().await];
            assert!(came.contains(&Came::WindowSize) && came.contains(&Came::End(15)), "{came:?}");
        });
    }
}
