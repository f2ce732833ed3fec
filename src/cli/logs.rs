//! `podinit logs`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use tokio::sync::oneshot;

use super::Globals;
use super::exit::Failure;
use super::find::{self, reach};
use super::follow::{Follow, Printer, Times};
use super::names::Reference;
use super::verify;
use crate::monitor::log::batch::Channel;
use crate::monitor::log::reader::Selection;
use crate::monitor::log::stamp::{self, Timestamp};
use crate::rpc::client::{Client, Code};

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// CONTAINER or POD/CONTAINER; with --container, the POD
    #[arg(required_unless_present_any = ["container", "file"])]
    name: Option<Reference>,

    /// The container
    #[arg(short, long, value_name = "CONTAINER")]
    container: Option<Reference>,

    /// Read this log and its rotated parts, whosever it is
    #[arg(long, value_name = "PATH", conflicts_with_all = ["name", "container", "follow"])]
    file: Option<PathBuf>,

    /// Do not print the log but say whether it is complete, or what is missing
    #[arg(long, conflicts_with_all = ["follow", "since", "tail", "timestamps", "stdout", "stderr"])]
    verify: bool,

    /// Go on as the log grows, until the container has exited
    #[arg(short, long)]
    follow: bool,

    /// Only what is not older: a time such as 2026-11-23T01:02:03Z, or an age such as 90s, 10m, 2h or 1d
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,

    /// Of what is there at the start, only the last so many lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,

    #[command(flatten)]
    only: Only,

    /// Begin each line with the time at which podinit read it
    #[arg(short, long)]
    timestamps: bool,
}

/// The end of `podinit logs --help`.
pub const HELP: &str = "\
Rotated parts are read too, compressed ones as well, whoever rotated them.

--verify compares all parts with what the pod's server has counted, or with what the parts say about
themselves, and with the gaps that the log tells of. Exit codes: 0 if the log is complete; 1 if not, or
if that cannot be known.";

/// One stream instead of both.
#[derive(Debug, Args)]
struct Only {
    /// Only standard output
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,

    /// Only standard error
    #[arg(long)]
    stderr: bool,
}

impl LogsArgs {
    /// As kubectl has it, the pod and then the container; or the container in full.
    fn reference(&self) -> Result<Reference, Failure> {
        let one = |name: &Option<Reference>| name.clone().ok_or_else(|| Failure::usage("name a container"));
        match (&self.name, &self.container) {
            (Some(pod), Some(container)) if pod.pod.is_none() && container.pod.is_none() => {
                Ok(Reference { pod: Some(pod.container.clone()), container: container.container.clone() })
            }
            (Some(_), Some(_)) => {
                Err(Failure::usage("with --container CONTAINER, the other name is the POD"))
            }
            (None, container) => one(container),
            (name, None) => one(name),
        }
    }
}

/// `podinit logs`.
///
/// # Errors
/// What to tell the user.
pub fn run(globals: &Globals, args: &LogsArgs) -> Result<(), Failure> {
    let channel = match (args.only.stdout, args.only.stderr) {
        (true, _) => Some(Channel::Stdout),
        (_, true) => Some(Channel::Stderr),
        _ => None,
    };
    let follow = |path| Follow {
        path,
        selection: Selection { since: args.since, tail: args.tail, channel },
        times: if args.timestamps { Times::Show } else { Times::Hide },
    };
    if let Some(path) = &args.file {
        return if args.verify { verify::of_file(path) } else { follow(path.clone()).print() };
    }
    let root = globals.root()?;
    let place = find::place(&root, &args.reference()?)?;
    let dir = root.pod(&place.pod)?;
    // A pod whose server has crashed still has its logs.
    if Client::connect(&dir.socket()).is_err() && dir.log(&place.container).exists() {
        return match args.verify {
            true => verify::of_silent_pod(&dir, &place.container),
            false => follow(dir.log(&place.container)).print(),
        };
    }
    let pod = reach(dir)?;
    let status = pod.client.call(async |client| client.container_state(&place.container).await)?;
    let path = status
        .log_path
        .ok_or_else(|| Failure::new(format!("{place} has no log: it was created without a log file")))?;
    if args.verify {
        return verify::of_running_pod(&pod, &place.container, &path);
    }
    if !args.follow {
        return follow(path).print();
    }
    pod.client.call(async |client| {
        let (tell, mut outcome) = oneshot::channel();
        let printer = Printer::start(follow(path), move |end| drop(tell.send(end)))?;
        let gone = || Err(Failure::new("following the log ended without a reason"));
        tokio::select! {
            end = &mut outcome => return end.unwrap_or_else(|_| gone()),
            exit = client.wait_container(&place.container) => match exit {
                // Removed, or its pod stopped, while we looked on: its log has ended too.
                Err(error) if !matches!(error.code, Code::NotFound | Code::Disconnected | Code::ShuttingDown) => {
                    return Err(error.into());
                }
                _ => printer.finish(),
            }
        }
        outcome.await.unwrap_or_else(|_| gone())
    })
}

/// Parses a time, or how long ago it was.
fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Some(at) = stamp::parse(text.as_bytes()) {
        return Ok(at);
    }
    let wrong = || "write a time as 2026-11-23T01:02:03Z, or an age as 90s, 10m, 2h or 1d".to_owned();
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(wrong()),
    };
    let age = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)).ok_or_else(wrong)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = now.saturating_sub(Duration::from_secs(age));
    Ok(Timestamp::new(then.as_secs().cast_signed(), then.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_an_age() {
        assert_eq!(parse_since("1970-01-01T00:00:01Z").unwrap(), Timestamp::new(1, 0));
        let hour_ago = parse_since("1h").unwrap();
        assert!(parse_since("2h").unwrap() < hour_ago && hour_ago < parse_since("59m").unwrap());
        assert_eq!(parse_since("99999999d").unwrap(), Timestamp::new(0, 0));
        for bad in ["", "h", "10", "-1s", "1w", "yesterday", "é", "99999999999999999999d"] {
            assert!(parse_since(bad).is_err(), "{bad}");
        }
    }
}
