//! Limits of logs, and what is missing in them, on the wire.

use crate::limits::LOG_BUFFER_BYTES_MAX;
use crate::monitor::error::Error;
use crate::monitor::log::batch::Channel;
use crate::monitor::log::gap::Gap;
use crate::monitor::log::limit::{LogLimits, Rate, WhenFast, WhenStuck};
use crate::rpc::schema::podinit_capnp as wire;

/// What a client asks for, without the id.
pub(super) enum Limits {
    Container(LogLimits),
    /// All containers together.
    Total(Rate),
}

/// Reads a request; `for_pod`: it has no id.
pub(super) fn read(request: wire::log_limits::Reader<'_>, for_pod: bool) -> Result<Limits, Error> {
    let wrong = |why: &str| Error::Invalid(format!("limits of a log: {why}"));
    let unreadable = |error: capnp::Error| wrong(&error.to_string());
    let unknown = |error: capnp::NotInSchema| wrong(&error.to_string());
    let total = rate(request.get_total().map_err(unreadable)?);
    let rates =
        [rate(request.get_stdout().map_err(unreadable)?), rate(request.get_stderr().map_err(unreadable)?)];
    let when_fast = match request.get_when_fast().map_err(unknown)? {
        wire::log_limits::WhenFast::Block => WhenFast::Block,
        wire::log_limits::WhenFast::Drop => WhenFast::Drop,
    };
    let when_stuck = match request.get_when_stuck().map_err(unknown)? {
        wire::log_limits::WhenStuck::Block => WhenStuck::Block,
        wire::log_limits::WhenStuck::DropOldest => WhenStuck::DropOldest,
        wire::log_limits::WhenStuck::DropNewest => WhenStuck::DropNewest,
    };
    let buffer_bytes = request.get_buffer_bytes();
    let limits = LogLimits { rates, when_fast, when_stuck, buffer_bytes };
    if buffer_bytes > LOG_BUFFER_BYTES_MAX as u64 {
        return Err(wrong(&format!("bufferBytes is more than {LOG_BUFFER_BYTES_MAX}")));
    }
    match (for_pod, limits == LogLimits::default(), total.is_none()) {
        (true, true, _) => Ok(Limits::Total(total)),
        (true, false, _) => Err(wrong("only total is a pod's; name a container for the others")),
        (false, _, true) => Ok(Limits::Container(limits)),
        (false, _, false) => Err(wrong("total is a pod's; leave the id out")),
    }
}

fn rate(wire: wire::log_rate::Reader<'_>) -> Rate {
    Rate {
        bytes_per_second: wire.get_bytes_per_second(),
        bytes_burst: wire.get_bytes_burst(),
        lines_per_second: wire.get_lines_per_second(),
        lines_burst: wire.get_lines_burst(),
    }
}

pub(super) fn set_rate(mut wire: wire::log_rate::Builder<'_>, rate: &Rate) {
    wire.set_bytes_per_second(rate.bytes_per_second);
    wire.set_bytes_burst(rate.bytes_burst);
    wire.set_lines_per_second(rate.lines_per_second);
    wire.set_lines_burst(rate.lines_burst);
}

pub(super) fn set(mut wire: wire::log_limits::Builder<'_>, limits: &LogLimits) {
    let [stdout, stderr] = &limits.rates;
    set_rate(wire.reborrow().init_stdout(), stdout);
    set_rate(wire.reborrow().init_stderr(), stderr);
    wire.set_when_fast(match limits.when_fast {
        WhenFast::Block => wire::log_limits::WhenFast::Block,
        WhenFast::Drop => wire::log_limits::WhenFast::Drop,
    });
    wire.set_when_stuck(match limits.when_stuck {
        WhenStuck::Block => wire::log_limits::WhenStuck::Block,
        WhenStuck::DropOldest => wire::log_limits::WhenStuck::DropOldest,
        WhenStuck::DropNewest => wire::log_limits::WhenStuck::DropNewest,
    });
    wire.set_buffer_bytes(limits.buffer_bytes);
}

pub(super) fn set_gap(mut wire: wire::log_gap::Builder<'_>, gap: &Gap) {
    wire.set_stderr(gap.channel == Channel::Stderr);
    wire.set_bytes(gap.bytes);
    wire.set_lines(gap.lines);
    wire.set_reason(gap.reason());
}
