//! One binary, several roles: the name it is called by, or its first argument,
//! says which. See [`podinit::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    podinit::cli::main(std::env::args_os().collect())
}
