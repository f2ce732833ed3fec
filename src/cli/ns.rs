//! `podinit ns`: the pods' namespaces, for people.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::gc::Format;
use crate::monitor::log::stamp::{Stamper, Timestamp};
use crate::ns::inspect::{Listed, enter, inspect, list};
use crate::ns::{Error, Kind};

/// Options of `podinit ns`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of everything; pods are in `<root>/pods`.
    #[arg(long, env = "PODINIT_ROOT", default_value = "/run/podinit", global = true)]
    root: PathBuf,

    #[command(subcommand)]
    command: Command,
}

/// What to do with namespaces.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the pods' namespaces: what is pinned where, by whom, since when.
    Ls {
        /// How to list.
        #[arg(long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Tell everything about a pod's namespaces, or about one that is pinned at a path; JSON.
    Inspect {
        /// A pod's id, or the path of a pin.
        #[arg(value_name = "POD|PATH")]
        what: String,
    },
    /// Run a command in a pod's namespaces; its exit code is the answer. 127: it was not found.
    Enter {
        /// The pod's id.
        pod: String,
        /// Enter only these kinds; several joined by commas.
        #[arg(long, value_delimiter = ',')]
        kinds: Vec<Kind>,
        /// The command; a shell if there is none.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// Runs `podinit ns`.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let pods = args.root.join("pods");
    let done = match args.command {
        Command::Ls { output } => list(&pods).and_then(|listed| show(output, &listed)),
        Command::Inspect { what } => inspect(&pods, &what).and_then(|found| json(&found)),
        Command::Enter { pod, kinds, command } => {
            let command = if command.is_empty() { vec!["/bin/sh".into()] } else { command };
            return match enter(&pods, &pod, &kinds, &command) {
                Ok(code) => ExitCode::from(code),
                Err(error) => fail(&error),
            };
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    super::complain(error);
    ExitCode::FAILURE
}

fn cannot_write(error: io::Error) -> Error {
    Error::Step { step: "write to", object: "standard output".to_owned(), advice: None, source: error }
}

fn json(value: &impl serde::Serialize) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from).map_err(cannot_write)?;
    writeln!(out).map_err(cannot_write)
}

/// RFC 3339 in UTC.
fn since(created_at_ns: u64) -> String {
    let nanos = u32::try_from(created_at_ns % 1_000_000_000).unwrap_or(0);
    let seconds = i64::try_from(created_at_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let stamp = Stamper::default().render(Timestamp::new(seconds, nanos));
    String::from_utf8_lossy(&stamp).into_owned()
}

fn show(format: Format, listed: &[Listed]) -> Result<(), Error> {
    if format == Format::Json {
        return json(&listed);
    }
    let heading = ["POD", "KIND", "INODE", "OWNER", "FROM", "KEEPER", "SINCE", "PATH"];
    let mut rows = vec![heading.map(str::to_owned)];
    for row in listed {
        rows.push([
            row.pod.clone(),
            row.kind.to_string(),
            row.inode.to_string(),
            row.owner_inode.to_string(),
            if row.created { "made" } else { "taken" }.to_owned(),
            row.keeper.map_or_else(|| "gone".to_owned(), |pid| pid.to_string()),
            since(row.created_at_ns),
            row.path.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string()),
        ]);
    }
    let widths: Vec<usize> = (0..heading.len())
        .map(|n| rows.iter().filter_map(|row| row.get(n)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut out = io::stdout().lock();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end()).map_err(cannot_write)?;
    }
    Ok(())
}
