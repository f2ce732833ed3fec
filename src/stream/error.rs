//! Why a streaming session ends before its time.

use std::io;

/// A client has sent what the protocol does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client broke the protocol: {0}")]
pub struct Violation(pub &'static str);

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The client closed the connection, or said that it is leaving.
    #[error("the client is gone")]
    Gone,
    /// The connection broke.
    #[error("the connection to the client broke: {0}")]
    Connection(#[source] io::Error),
    /// See [`Violation`].
    #[error(transparent)]
    Violation(#[from] Violation),
    /// Too many answers wait for the client.
    #[error("the client asks, but does not read the answers")]
    DoesNotRead,
    /// Nothing was said by either side for too long.
    #[error("neither side said anything for {} s", crate::limits::STREAM_IDLE_MAX.as_secs())]
    Idle,
    /// SPDY streams are missing.
    #[error("the client did not open all the streams that were asked for within {} s", crate::limits::STREAM_OPEN_TIMEOUT.as_secs())]
    StreamsMissing,
    /// A process's pipe or a container's socket.
    #[error("cannot {doing}: {source}")]
    Process {
        /// What, on what.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}
