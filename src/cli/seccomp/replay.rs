//! `podinit seccomp replay`: a plugin is asked about recorded notifications.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::super::exit::Failure;
use super::super::output;
use crate::limits::REPLAY_LINE_BYTES_MAX;
use crate::rpc::plugin::client::{Notification, Record, Session, Verdict, run as run_plugin};
use crate::rpc::plugin::replay::Replay;

pub(super) const HELP: &str = "\
FILE has one JSON object per line: a record, as `podinit seccomp trace --decode --output json` prints
it, or a notification alone, of which only what the plugin looks at need be there:

  {\"name\":\"mkdir\",\"decoded\":[{\"argument\":0,\"content\":{\"text\":\"/tmp/x\"}}]}

A line can also be a session, as `podinit seccomp ls --output json` lists them: of it are the
notifications that follow with its number, for plugins that select by metadata, annotations or labels.

Prints a JSON object for each notification: line, name, plugin (the registration that was asked; null if
none wanted it), verdict, took_us; and failure, if the verdict is what the plugin's failure leads to.
There is no process behind a notification, so that a plugin that reaches into one is told `not-found`.";

/// `seccomp replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Socket where the plugin listens
    #[arg(long, value_name = "PATH", required_unless_present = "serve")]
    plugin: Option<PathBuf>,

    /// Socket to make, as a pod would, for a plugin that dials in
    #[arg(long, value_name = "PATH", conflicts_with = "plugin")]
    serve: Option<PathBuf>,

    /// Fail if a verdict is not the recorded one
    #[arg(long)]
    expect: bool,

    /// The recorded notifications
    file: PathBuf,
}

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Record(Box<Record>),
    Session(Box<Session>),
    Notification(Box<Notification>),
}

/// A line of the output.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    line: usize,
    name: &'a str,
    plugin: Option<String>,
    verdict: &'a Verdict,
    took_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// Asks about every line.
///
/// # Errors
/// What to tell the user.
pub(super) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let fail = |error| Failure::io(format_args!("reading {}", args.file.display()), &error);
    let mut lines = BufReader::new(File::open(&args.file).map_err(fail)?);
    let mut failure = None;
    let played = run_plugin(async {
        let replay = match (&args.plugin, &args.serve) {
            (Some(path), _) => Replay::dial(path).await?,
            (None, Some(path)) => Replay::listen(path).await?,
            // clap asks for one of the two.
            (None, None) => return Ok(()),
        };
        failure = play(args, &replay, &mut lines).await.err();
        Ok(())
    });
    played?;
    failure.map_or(Ok(()), Err)
}

async fn play(args: &ReplayArgs, replay: &Replay, lines: &mut impl BufRead) -> Result<(), Failure> {
    let path = args.file.display();
    let mut different = 0;
    for number in 1.. {
        let mut text = String::new();
        let read = lines.by_ref().take(REPLAY_LINE_BYTES_MAX).read_line(&mut text);
        let read =
            read.map_err(|error| Failure::io(format_args!("reading line {number} of {path}"), &error))?;
        if read == 0 {
            break;
        }
        if text.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&text).map_err(|_| {
            Failure::new(format!(
                "line {number} of {path} is no record, notification or session: see `podinit seccomp replay --help`"
            ))
        })?;
        let (notification, recorded) = match line {
            Line::Record(record) => (record.notification, Some(record.verdict)),
            Line::Notification(notification) => (*notification, None),
            Line::Session(session) => {
                replay.open(&session).await?;
                continue;
            }
        };
        let played = replay.play(&notification).await?;
        output::json_line(&Printed {
            line: number,
            name: &notification.name,
            plugin: played.plugin,
            verdict: &played.verdict,
            took_us: u64::try_from(played.took.as_micros()).unwrap_or(u64::MAX),
            failure: played.failure.map(|failure| failure.to_string()),
        })?;
        if recorded.is_some_and(|recorded| recorded != played.verdict) {
            different += 1;
        }
    }
    if args.expect && different > 0 {
        return Err(Failure::new(format!("{different} verdicts are not the recorded ones")));
    }
    Ok(())
}
