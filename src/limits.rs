//! Every limit of podinit, in one place, each with its reason.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Longest container id or pod id in bytes. Ids become file names, and engines
/// use 64 hexadecimal digits.
pub const ID_BYTES_MAX: usize = 128;

/// Bytes kept of each stream of an exec: what the CRI allows for ExecSync.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Bytes kept of what an OCI runtime says on its stderr; it becomes an error text.
pub const RUNTIME_STDERR_BYTES_MAX: usize = 16 << 10;

/// Payload bytes of one log record; a longer line is cut into partial records.
pub const LOG_RECORD_BYTES_MAX: usize = 16 << 10;

/// How long `create` of an OCI runtime may take, unless configured: CRI-O's own
/// default for its other monitor.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(240);

/// How long a stream may stay open after its process has exited, when some
/// other process still holds it. What is in the pipe by then is kept.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Client connections served at a time; more wait in the socket's backlog. An
/// unbounded number would be an unbounded heap.
pub const CONNECTIONS_MAX: usize = 64;

/// Events kept for replay.
pub const EVENTS_KEPT_MAX: usize = 1024;

/// File descriptors that the keeper holds for the monitor.
pub const KEPT_FDS_MAX: usize = 1024;

/// Exit statuses that the keeper remembers until a monitor has seen them.
pub const KEPT_EXITS_MAX: usize = 1024;
