//! What commands print: tables for people, JSON for programs, and one moving
//! line on a terminal's standard error while something takes long.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::exit::Failure;

/// How something is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people; they may change.
    Table,
    /// JSON for programs; field names stay.
    Json,
}

/// Something that is listed: a row of a table, or a JSON object by its [`Serialize`].
pub trait Row: Serialize {
    /// The columns' headings.
    const HEADINGS: &'static [&'static str];
    /// The columns' values.
    fn cells(&self) -> Vec<String>;
}

/// Prints `rows`: a table, or one JSON array.
///
/// # Errors
/// If standard output cannot be written.
pub fn list<R: Row>(format: Format, rows: &[R]) -> Result<(), Failure> {
    match format {
        Format::Table => print(&table(rows)),
        Format::Json => json(&rows),
    }
}

/// Prints `value` as JSON, indented.
///
/// # Errors
/// If standard output cannot be written.
pub fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(format!("writing the answer as JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// Prints `value` as JSON on one line.
///
/// # Errors
/// If standard output cannot be written.
pub fn json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::new(format!("writing the answer as JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// Writes what a command wrote, each stream to its own.
///
/// # Errors
/// As [`print`].
pub fn bytes(stdout: &[u8], stderr: &[u8]) -> Result<(), Failure> {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    out.write_all(stdout).and_then(|()| out.flush()).map_err(|error| failed("output", &error))?;
    err.write_all(stderr).map_err(|error| failed("error", &error))
}

/// Prints `text` as it is.
///
/// # Errors
/// [`Failure::OutputClosed`] if nobody reads any more; else what write(2) says.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| failed("output", &error))
}

/// The failure of a write to our standard output or error.
#[must_use]
pub fn failed(stream: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::io(format_args!("writing standard {stream}"), error),
    }
}

fn table<R: Row>(rows: &[R]) -> String {
    let mut lines: Vec<Vec<String>> = vec![R::HEADINGS.iter().map(ToString::to_string).collect()];
    lines.extend(rows.iter().map(R::cells));
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..R::HEADINGS.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// How long ago `at_ns` (Unix time) was, in its largest unit.
#[must_use]
pub fn age(at_ns: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.saturating_sub(Duration::from_nanos(at_ns)).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A line on standard error that shows that we are alive, from
/// [`SPINNER_DELAY`] after its start until it is dropped. Only on a terminal.
#[derive(Debug)]
pub struct Spinner {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is over sooner needs no sign of life.
const SPINNER_DELAY: Duration = Duration::from_millis(300);
const SPINNER_STEP: Duration = Duration::from_millis(120);

impl Spinner {
    /// Shows `doing` ("stopping pod a").
    #[must_use]
    pub fn start(doing: impl Into<String>) -> Self {
        if !io::stderr().is_terminal() {
            return Self { stop: None, thread: None };
        }
        let doing = doing.into();
        let (stop, stopped) = mpsc::channel();
        // If no thread can be had, nothing moves; nothing else is lost.
        let thread = std::thread::Builder::new().name("spinner".into()).spawn(move || spin(&doing, &stopped));
        Self { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn spin(doing: &str, stopped: &mpsc::Receiver<()>) {
    if stopped.recv_timeout(SPINNER_DELAY) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let mut stderr = io::stderr();
    for frame in ['|', '/', '-', '\\'].iter().cycle() {
        // The terminal may be gone; the work goes on.
        drop(write!(stderr, "\r{frame} {doing} "));
        if stopped.recv_timeout(SPINNER_STEP) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    drop(write!(stderr, "\r\x1b[K"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Fruit {
        name: &'static str,
        weight: u32,
    }

    impl Row for Fruit {
        const HEADINGS: &'static [&'static str] = &["NAME", "G"];
        fn cells(&self) -> Vec<String> {
            vec![self.name.into(), self.weight.to_string()]
        }
    }

    #[test]
    fn table_has_columns_and_no_trailing_space() {
        let rows = [Fruit { name: "fig", weight: 40 }, Fruit { name: "quince", weight: 250 }];
        assert_eq!(table(&rows), "NAME    G\nfig     40\nquince  250\n");
        assert_eq!(table::<Fruit>(&[]), "NAME  G\n");
    }

    #[test]
    fn age_is_in_its_largest_unit() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let ago = |seconds: u64| age(u64::try_from(now.as_nanos()).unwrap() - seconds * 1_000_000_000);
        assert_eq!([ago(180), ago(7300), ago(90_000)], ["3m", "2h", "1d"]);
        // A clock that went back is not an overflow.
        assert_eq!(age(u64::MAX), "0s");
    }
}
