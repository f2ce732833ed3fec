//! `podinit limit-logs`: how much of a running container's output is logged.

use clap::{Args, ValueEnum};

use super::exit::Failure;
use super::find::{find, reach};
use super::names::{self, Reference};
use super::people::Globals;
use crate::rpc::client::{LogLimits, LogRate, WhenFast, WhenStuck};

/// `limit-logs`.
#[derive(Debug, Args)]
pub struct LimitLogsArgs {
    /// CONTAINER or POD/CONTAINER
    #[arg(required_unless_present = "pod")]
    container: Option<Reference>,

    /// The pod: what all its containers together may print
    #[arg(long, value_name = "POD", conflicts_with_all = ["container", "stream", "when_fast", "when_stuck", "buffer"])]
    pod: Option<String>,

    #[command(flatten)]
    rate: RateArgs,

    /// Limit only this stream; the other one gets no limit
    #[arg(long, value_enum)]
    stream: Option<Stream>,

    /// What happens to output that comes faster
    #[arg(long, value_enum, default_value_t = Fast::Block)]
    when_fast: Fast,

    /// What happens to output while the log cannot be written
    #[arg(long, value_enum, default_value_t = Stuck::Block)]
    when_stuck: Stuck,

    /// Bytes kept while the log cannot be written; k, m or g may follow [default: 1m]
    #[arg(long, value_name = "BYTES", value_parser = names::bytes, default_value = "0", hide_default_value = true)]
    buffer: u64,
}

/// How much may come. 0 is no limit.
#[derive(Debug, Clone, Copy, Args)]
struct RateArgs {
    /// Bytes in a second; k, m or g may follow [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = names::bytes, default_value = "0", hide_default_value = true)]
    rate_bytes: u64,

    /// Lines in a second [default: no limit]
    #[arg(long, value_name = "LINES", default_value_t = 0, hide_default_value = true)]
    rate_lines: u64,

    /// Bytes at once after a pause [default: those of a second]
    #[arg(long, value_name = "BYTES", value_parser = names::bytes, default_value = "0", hide_default_value = true)]
    burst_bytes: u64,

    /// Lines at once after a pause [default: those of a second]
    #[arg(long, value_name = "LINES", default_value_t = 0, hide_default_value = true)]
    burst_lines: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Fast {
    /// The container waits
    Block,
    /// It is dropped, and the log says how much
    Drop,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stuck {
    /// The container waits
    Block,
    /// The newest is kept; the log says how much is missing
    DropOldest,
    /// The oldest is kept; the log says how much is missing
    DropNewest,
}

/// Sets the limits.
///
/// # Errors
/// What to tell the user.
pub(super) fn run(globals: &Globals, args: &LimitLogsArgs) -> Result<(), Failure> {
    let rate = LogRate {
        bytes_per_second: args.rate.rate_bytes,
        bytes_burst: args.rate.burst_bytes,
        lines_per_second: args.rate.rate_lines,
        lines_burst: args.rate.burst_lines,
    };
    if let Some(pod) = &args.pod {
        let pod = reach(globals.root()?.pod(pod)?)?;
        return Ok(pod.client.call(async |client| client.set_log_total(&rate).await)?);
    }
    // clap asks for one of the two.
    let Some(container) = &args.container else { return Ok(()) };
    let of = |stream| if args.stream.is_none_or(|only| only == stream) { rate } else { LogRate::default() };
    let limits = LogLimits {
        stdout: of(Stream::Stdout),
        stderr: of(Stream::Stderr),
        when_fast: match args.when_fast {
            Fast::Block => WhenFast::Block,
            Fast::Drop => WhenFast::Drop,
        },
        when_stuck: match args.when_stuck {
            Stuck::Block => WhenStuck::Block,
            Stuck::DropOldest => WhenStuck::DropOldest,
            Stuck::DropNewest => WhenStuck::DropNewest,
        },
        buffer_bytes: args.buffer,
    };
    let found = find(&globals.root()?, container)?;
    Ok(found.pod.client.call(async |client| client.set_log_limits(&found.id, &limits).await)?)
}
