//! `podinit gc`: removes what pods left whose keeper is gone.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::ns::gc::{Item, Mode, find};

/// Options of `podinit gc`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,

    /// Directory of everything; pods are in `<root>/pods`.
    #[arg(long, env = "PODINIT_ROOT", default_value = "/run/podinit")]
    root: PathBuf,

    /// Other directories whose subdirectories are run directories, such as an engine's.
    #[arg(long, value_name = "DIR")]
    run_dirs: Vec<PathBuf>,

    /// How to say it.
    #[arg(long, value_enum, default_value = "table")]
    output: Format,
}

/// How something is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Table,
    /// JSON for programs.
    Json,
}

/// What was found of one pod, and what became of it.
#[derive(Debug, Serialize)]
struct Collected {
    pod: String,
    items: Vec<Item>,
    removed: bool,
    errors: Vec<String>,
}

/// Runs `podinit gc`.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    match collect(&args) {
        Ok(collected) => {
            let failed = collected.iter().any(|pod| !pod.errors.is_empty());
            if show(&args, &collected).is_err() || failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            super::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn collect(args: &Args) -> Result<Vec<Collected>, crate::ns::Error> {
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Remove };
    let mut collected = Vec::new();
    for directory in std::iter::once(&args.root.join("pods")).chain(&args.run_dirs) {
        for leftover in find(directory, mode)? {
            let (pod, items) = (leftover.pod.clone(), leftover.items.clone());
            let errors = match mode {
                Mode::DryRun => Vec::new(),
                Mode::Remove => leftover.remove().err().unwrap_or_default(),
            };
            let removed = mode == Mode::Remove && errors.is_empty();
            let errors = errors.iter().map(ToString::to_string).collect();
            collected.push(Collected { pod, items, removed, errors });
        }
    }
    Ok(collected)
}

/// Lists it on standard output, and errors on standard error.
fn show(args: &Args, collected: &[Collected]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.output == Format::Json {
        serde_json::to_writer_pretty(&mut out, collected)?;
        writeln!(out)?;
        return out.flush();
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for pod in collected {
        let verb = if pod.errors.is_empty() { verb } else { "tried to remove" };
        for item in &pod.items {
            writeln!(out, "{}: {verb} {item}", pod.pod)?;
        }
        for error in &pod.errors {
            writeln!(std::io::stderr(), "podinit: {}: {error}", pod.pod)?;
        }
    }
    if collected.is_empty() {
        writeln!(out, "nothing is left over")?;
    }
    out.flush()
}
