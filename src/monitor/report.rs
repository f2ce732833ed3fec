//! The monitor's own log: one line per change of state, to standard output or
//! the journal.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::monitor::config::{LogLevel, LogSink};

/// journald's native socket (systemd.journal-fields(7) and its protocol page).
const JOURNAL: &str = "/run/systemd/journal/socket";

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

enum Sink {
    Stdout,
    Journal(UnixDatagram),
}

/// Begins to log at `level` to `sink`. A journal that is not there is no error:
/// then nothing is logged, as with [`LogSink::None`].
pub fn start(level: LogLevel, sink: LogSink) {
    let sink = match sink {
        LogSink::None => None,
        LogSink::Stdout => Some(Sink::Stdout),
        LogSink::Systemd => UnixDatagram::unbound().ok().map(Sink::Journal),
    };
    if let Some(sink) = sink
        && log::set_boxed_logger(Box::new(sink)).is_ok()
    {
        log::set_max_level(level.into());
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("podinit")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A log line that cannot be written has no better place to be told in.
        match self {
            Self::Stdout => {
                writeln!(std::io::stdout(), "{} {}", record.level(), record.args()).unwrap_or_default();
            }
            Self::Journal(socket) => {
                socket.send_to(&journal_entry(record), JOURNAL).map(drop).unwrap_or_default();
            }
        }
    }

    fn flush(&self) {}
}

/// The native protocol: `KEY=value` lines; a value with a newline in it would
/// need the binary form, so newlines become spaces.
fn journal_entry(record: &Record<'_>) -> Vec<u8> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut message = String::new();
    // Writing to a string does not fail.
    write!(message, "{}", record.args()).unwrap_or_default();
    let message = message.replace('\n', " ");
    format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=podinit\nMESSAGE={message}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_cannot_be_forged_by_a_message() {
        let entry =
            journal_entry(&Record::builder().level(Level::Warn).args(format_args!("a\nPRIORITY=0")).build());
        assert_eq!(entry, b"PRIORITY=4\nSYSLOG_IDENTIFIER=podinit\nMESSAGE=a PRIORITY=0\n");
    }
}
