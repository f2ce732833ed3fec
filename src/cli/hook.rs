//! `podinit hook`: commands for authors of hooks.

mod check;
mod run;

use clap::Subcommand;

use super::exit::Failure;
use super::people::Globals;
pub use check::CheckArgs;
pub use run::{LsArgs, ResultsArgs, RunArgs};

/// What can be done with hooks.
#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// Say whether hook files are right, in which order they run, and for whom
    #[command(after_help = check::HELP)]
    Check(CheckArgs),
    /// Run a hook once, in a pod, print its output and exit with its code
    #[command(after_help = run::HELP)]
    Run(RunArgs),
    /// List the hooks of a pod, in the order in which they run
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Tell how a pod's hooks ended
    Results(ResultsArgs),
}

impl HookCommand {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// If it could not do what it was asked to.
    pub fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let done = |result: Result<(), Failure>| result.map(|()| 0);
        match self {
            Self::Check(args) => done(check::run(&args)),
            Self::Run(args) => run::run(globals, &args),
            Self::Ls(args) => done(run::ls(globals, &args)),
            Self::Results(args) => done(run::results(globals, &args)),
        }
    }
}
