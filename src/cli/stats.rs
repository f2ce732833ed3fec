//! `podinit stats`: counters, for programs and for people who read JSON.

use clap::Args;

use super::exit::Failure;
use super::find::{find, reach};
use super::names::Reference;
use super::output;
use super::people::Globals;

/// `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// A container: bytes, lines, losses and stalls of its streams
    #[arg(required_unless_present = "pod")]
    container: Option<Reference>,

    /// A pod: its processes, zombies, orphans and execs
    #[arg(long, value_name = "POD", conflicts_with = "container")]
    pod: Option<String>,
}

/// Prints the counters.
///
/// # Errors
/// What to tell the user.
pub fn run(globals: &Globals, args: &StatsArgs) -> Result<(), Failure> {
    if let Some(pod) = &args.pod {
        let pod = reach(globals.root()?.pod(pod)?)?;
        return output::json(&pod.client.call(async |client| client.pod_stats().await)?);
    }
    // clap asks for one of the two.
    let Some(container) = &args.container else { return Ok(()) };
    let found = find(&globals.root()?, container)?;
    output::json(&found.pod.client.call(async |client| client.container_stats(&found.id).await)?)
}
