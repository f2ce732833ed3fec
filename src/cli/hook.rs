//! `podinit hook`: commands for authors of hooks.

mod check;

use clap::Subcommand;

use super::exit::Failure;
pub use check::CheckArgs;

/// What can be done with hooks.
#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// Say whether hook files are right, in which order they run, and for whom
    #[command(after_help = check::HELP)]
    Check(CheckArgs),
}

impl HookCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// If it could not do what it was asked to.
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Check(args) => check::run(&args),
        }
    }
}
