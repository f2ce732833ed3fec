//! `podinit seccomp replay`: a plugin is asked about recorded notifications.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::exit::{Failure, complain};
use super::super::output;
use crate::limits::REPLAY_LINE_BYTES_MAX;
use crate::rpc::client::{Code, Error};
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

    /// Fail if a verdict is not the recorded one, or none was recorded
    #[arg(long)]
    expect: bool,

    /// The recorded notifications
    file: PathBuf,
}

/// A line of the file.
#[derive(Debug)]
enum Line {
    Record(Box<Record>),
    Session(Box<Session>),
    Notification(Box<Notification>),
}

impl Line {
    /// Reads it as what its fields say that it is.
    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
        let has = |field| value.get(field).is_some();
        if has("notification") {
            let record = Record::deserialize(&value).map(|record| Self::Record(Box::new(record)));
            record.map_err(|error| format!("is no record: {error}"))
        } else if ["pid", "metadata", "annotations", "labels", "exec", "since_ns"].into_iter().any(has) {
            let session = Session::deserialize(&value).map(|session| Self::Session(Box::new(session)));
            session.map_err(|error| format!("is no session: {error}"))
        } else {
            let call = Notification::deserialize(&value).map(|call| Self::Notification(Box::new(call)));
            call.map_err(|error| format!("is no notification: {error}"))
        }
    }
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
            (None, Some(path)) => {
                complain(&format!("waiting for a plugin that dials {}", path.display()));
                Replay::listen(path).await?
            }
            // clap asks for one of the two.
            (None, None) => return Ok(()),
        };
        failure = play(args, &replay, &mut lines).await.err();
        Ok(())
    });
    played.map_err(told)?;
    failure.map_or(Ok(()), Err)
}

/// What a plugin, and no pod, has failed at.
fn told(error: Error) -> Failure {
    Failure::new(match error.code {
        Code::NotSupported => format!("who listens there is no plugin ({})", error.message),
        _ => error.message,
    })
}

async fn play(args: &ReplayArgs, replay: &Replay, lines: &mut impl BufRead) -> Result<(), Failure> {
    let path = args.file.display();
    let (mut compared, mut different) = (0, 0);
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
        let line = Line::parse(&text).map_err(|reason| {
            Failure::new(format!("line {number} of {path} {reason}; see `podinit seccomp replay --help`"))
        })?;
        let (notification, recorded) = match line {
            Line::Record(record) => (record.notification, Some(record.verdict)),
            Line::Notification(notification) => (*notification, None),
            Line::Session(session) => {
                replay.open(&session).await.map_err(told)?;
                continue;
            }
        };
        let played = replay.play(&notification).await.map_err(told)?;
        output::json_line(&Printed {
            line: number,
            name: &notification.name,
            plugin: played.plugin,
            verdict: &played.verdict,
            took_us: u64::try_from(played.took.as_micros()).unwrap_or(u64::MAX),
            failure: played.failure.map(|failure| failure.to_string()),
        })?;
        if let Some(recorded) = recorded {
            compared += 1;
            different += u64::from(recorded != played.verdict);
        }
    }
    if args.expect && compared == 0 {
        return Err(Failure::new(format!("no line of {path} has a recorded verdict: nothing was compared")));
    }
    if args.expect && different > 0 {
        return Err(Failure::new(format!("{different} verdicts are not the recorded ones")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_its_fields_say_or_refused_with_the_reason() {
        let session = r#"{"id":1,"container":"c","pid":1,"metadata":"","annotations":[],"labels":[],"exec":false,"since_ns":0}"#;
        assert!(matches!(Line::parse(session), Ok(Line::Session(_))));
        assert!(matches!(Line::parse(r#"{"name":"mkdir"}"#), Ok(Line::Notification(_))));
        let record = Line::parse(r#"{"notification":{"name":"mkdir"},"verdict":{"errno":1}}"#);
        assert!(matches!(record, Ok(Line::Record(_))));
        for (text, reason) in [
            (r#"{"arguments":[1,2]}"#, "length 6"),
            (r#"{"nmae":"mkdir"}"#, "unknown field `nmae`"),
            (r#"{"notification":{},"verdct":1}"#, "is no record: unknown field `verdct`"),
            (r#"{"id":1,"pid":1}"#, "is no session: missing field `container`"),
            ("{", "is no JSON"),
        ] {
            let error = Line::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
