//! `--version` and `--version-json`, in the form that engines parse.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::version::{BUILD, Build};

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Detail {
    /// The build.
    Default,
    /// Also every package that it was built with.
    Full,
}

/// As what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines.
    Text,
    /// One JSON object.
    Json,
}

/// The JSON object: these keys, and no others, are what conmon-rs clients know.
#[derive(Serialize)]
struct Document {
    verbose: bool,
    version: &'static str,
    tag: &'static str,
    commit: &'static str,
    build_date: &'static str,
    target: &'static str,
    rust_version: &'static str,
    cargo_version: &'static str,
    cargo_tree: &'static str,
}

/// Prints the version on standard output, and nothing else.
#[must_use]
pub fn print(detail: Detail, format: Format) -> ExitCode {
    let text = match format {
        Format::Text => text(&BUILD, detail),
        Format::Json => match json(&BUILD, detail) {
            Ok(text) => text,
            Err(_) => return ExitCode::FAILURE,
        },
    };
    // Whoever has closed the other end does not want to know.
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn text(build: &Build, detail: Detail) -> String {
    let mut text = format!(
        "version: {}\ntag: {}\ncommit: {}\nbuild: {}\ntarget: {}\n{}\n{}\n",
        build.version,
        build.tag,
        build.commit,
        build.build_date,
        build.target,
        build.rust_version,
        build.cargo_version,
    );
    if detail == Detail::Full {
        text.push_str("\ncargo tree:\n");
        text.push_str(build.cargo_tree);
    }
    text
}

fn json(build: &Build, detail: Detail) -> serde_json::Result<String> {
    let verbose = detail == Detail::Full;
    let document = Document {
        verbose,
        version: build.version,
        tag: build.tag,
        commit: build.commit,
        build_date: build.build_date,
        target: build.target,
        rust_version: build.rust_version,
        cargo_version: build.cargo_version,
        cargo_tree: if verbose { build.cargo_tree } else { "" },
    };
    serde_json::to_string(&document).map(|text| text + "\n")
}
