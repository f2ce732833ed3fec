//! Command lines: they parse, call one function, and turn its error into an exit code.
//!
//! Exit status of every podinit command: 0 success, 1 it failed and said why on
//! standard error, 2 the command line is wrong. Commands that run a container
//! add its own.
#![forbid(unsafe_code)]

pub mod attach;
pub mod attach_command;
pub mod bundle;
pub mod compress;
pub mod container;
pub mod detach;
pub mod exit;
pub mod find;
pub mod follow;
pub mod gc;
pub mod hook;
pub mod init;
pub mod launch;
mod limit;
pub mod log_options;
pub mod logs;
pub mod monitor;
pub mod names;
pub mod ns;
pub mod output;
pub mod paths;
pub mod people;
pub mod pinns;
pub mod pod;
pub mod run;
pub mod seccomp;
pub mod serve;
pub mod signals;
pub mod stats;
pub mod teardown;
pub mod verify;
pub mod version;
pub mod view;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::keeper;
use crate::monitor::log::compress::ROLE;
pub use people::Globals;
use version::{Detail, Format};

/// The init system of a pod.
#[derive(Debug, Parser)]
#[command(name = "podinit", arg_required_else_help = true, disable_version_flag = true)]
#[command(after_help = people::EXIT_CODES)]
struct Podinit {
    /// Print the version and exit.
    #[arg(long, short = 'v', num_args = 0..=1, default_missing_value = "default", value_name = "DETAIL")]
    version: Option<Detail>,

    /// Print the version as JSON and exit.
    #[arg(long, short = 'j', num_args = 0..=1, default_missing_value = "default", value_name = "DETAIL")]
    version_json: Option<Detail>,

    #[command(flatten)]
    globals: Globals,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What `podinit` can be asked to do: one line here and one in [`Command::run`].
#[derive(Debug, Subcommand)]
enum Command {
    /// Start a pod's server; returns when it accepts requests. Also called as `conmonrs`.
    Serve(serve::Args),
    /// List, inspect and enter the pods' namespaces.
    Ns(ns::Args),
    /// Remove what is left of pods whose keeper is gone.
    Gc(gc::Args),

    #[command(flatten)]
    People(people::PeopleCommand),
}

impl Command {
    fn run(self, globals: &Globals) -> ExitCode {
        match self {
            Self::Serve(args) => serve::run(args),
            Self::Ns(args) => ns::run(args),
            Self::Gc(args) => gc::run(args),
            Self::People(command) => command.run(globals),
        }
    }
}

/// Runs the role that `argv` names: by the name the program was called by, or
/// by its first argument. Roles that podinit starts itself come before clap,
/// whose memory they shall not carry.
#[must_use]
pub fn main(argv: Vec<OsString>) -> ExitCode {
    match called_as(&argv) {
        Some("conmonrs") => return serve::main_as_conmonrs(argv),
        Some("pause") => return init::pause(argv.get(1..).unwrap_or_default()),
        Some("pinns") => return pinns::main(argv.get(1..).unwrap_or_default()),
        _ => {}
    }
    let rest = argv.get(2..).unwrap_or_default();
    match argv.get(1).and_then(|role| role.to_str()) {
        Some("init") => init::init(rest),
        Some("keeper") => keeper::main(rest),
        Some("monitor") => monitor::main(rest),
        Some(ROLE) => compress::main(rest),
        Some("pinns") => pinns::main(rest),
        Some("conmonrs") => serve::main_as_conmonrs(argv.into_iter().skip(1).collect()),
        _ => commands(argv),
    }
}

/// The last component of `argv[0]`.
fn called_as(argv: &[OsString]) -> Option<&str> {
    argv.first().and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str)
}

fn commands(argv: Vec<OsString>) -> ExitCode {
    let podinit = match Podinit::try_parse_from(argv) {
        Ok(podinit) => podinit,
        Err(error) => return refuse(&error),
    };
    match podinit {
        Podinit { version: Some(detail), .. } => version::print(detail, Format::Text),
        Podinit { version_json: Some(detail), .. } => version::print(detail, Format::Json),
        Podinit { command: Some(command), globals, .. } => command.run(&globals),
        // clap shows the help for an empty command line; this is `podinit --`.
        Podinit { command: None, .. } => ExitCode::from(2),
    }
}

/// Prints what clap has to say, be it the help on standard output or what is wrong.
fn refuse(error: &clap::Error) -> ExitCode {
    // If it cannot be printed there is nowhere to say so.
    error.print().ok();
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Says on standard error what went wrong.
fn complain(error: &dyn std::error::Error) {
    // If it cannot be printed there is nowhere to say so.
    writeln!(std::io::stderr(), "podinit: {error}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_tree_is_consistent() {
        Podinit::command().debug_assert();
    }

    #[test]
    fn program_name_is_the_last_component() {
        assert_eq!(called_as(&["/usr/bin/conmonrs".into()]), Some("conmonrs"));
        assert_eq!(called_as(&[]), None);
    }
}
