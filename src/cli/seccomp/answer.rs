//! `podinit seccomp answer`: a plugin without a program.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::super::exit::Failure;
use crate::rpc::client::{Code, Error};
use crate::rpc::plugin::client::{
    Call, Comparison, OnFailure, Operation, Plugin, Request, Verdict, dial_in, listen, run as run_plugin,
};
use crate::seccomp::syscall::errno_number;
use crate::seccomp::verdict;

pub(super) const HELP: &str = "\
Verdicts: errno:NAME (or errno:NUMBER), return:VALUE, continue, kill, pass. `continue` lets the kernel
make the call with whatever its pointers point to by then: use it for what registers alone decide.

Numbers of --if are decimal, or hexadecimal after 0x. Of an argument of 32 bits only the lower half counts:
0&0xffffffff=8 compares no more than that.

Prints one line, `registered`, when it decides; with --listen, for each pod. Ends when the pod does; with
--listen, never.";

/// `seccomp answer`.
#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// The pod's plugin socket: plugins.sock in its directory
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Listen at the socket instead, and decide for every pod that dials it
    #[arg(long)]
    listen: bool,

    /// A system call to decide about; may be given several times
    #[arg(long = "syscall", value_name = "NAME", required = true)]
    syscalls: Vec<String>,

    /// Only in this container; may be given several times
    #[arg(long = "container", value_name = "ID")]
    containers: Vec<String>,

    /// Only where an argument, or the bits MASK of it, have a value; may be given several times
    #[arg(long = "if", value_name = "ARGUMENT[&MASK]=VALUE", value_parser = condition)]
    conditions: Vec<Comparison>,

    /// What to say
    #[arg(long, value_parser = parse_verdict, allow_hyphen_values = true)]
    verdict: Verdict,

    /// Name in statistics and logs
    #[arg(long, default_value = "answer")]
    name: String,

    /// Who is asked first: the lowest
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    priority: i32,

    /// Milliseconds to wait before every verdict
    #[arg(long, default_value_t = 0, value_name = "MS")]
    delay: u64,

    /// Milliseconds that the broker waits for a verdict; 0 for its default
    #[arg(long, default_value_t = 0, value_name = "MS")]
    deadline: u32,

    /// Verdict for calls that this plugin fails at: errno:NAME, continue, kill or next
    #[arg(long, value_name = "VERDICT", default_value = "errno:EPERM", value_parser = parse_failure)]
    on_failure: OnFailure,

    /// Notifications that are taken at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: u16,
}

fn condition(text: &str) -> Result<Comparison, String> {
    let parsed = || {
        let (left, value) = text.split_once('=')?;
        let (argument, mask) = match left.split_once('&') {
            // A mask of 0 stands for all bits on the wire.
            Some((argument, mask)) => (argument, number(mask).filter(|mask| *mask != 0)?),
            None => (left, u64::MAX),
        };
        let (argument, values) = (argument.parse().ok()?, vec![number(value)?]);
        Some(Comparison { argument, operation: Operation::Equal, values, mask })
    };
    parsed().ok_or_else(|| format!("{text:?} is not ARGUMENT[&MASK]=VALUE, such as 0=8 or 0&0xff=0x1f"))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn parse_verdict(text: &str) -> Result<Verdict, String> {
    let known = match text {
        "continue" => Some(Verdict::Continue),
        "kill" => Some(Verdict::Kill),
        "pass" => Some(Verdict::PassOn),
        _ => None,
    };
    let errno = || errno_number(text.strip_prefix("errno:")?).and_then(|number| u16::try_from(number).ok());
    let value = || text.strip_prefix("return:")?.parse().ok().map(Verdict::Return);
    known.or_else(|| errno().map(Verdict::Errno)).or_else(value).ok_or_else(|| {
        format!("{text:?} is no verdict; use errno:EPERM (any errno), return:0, continue, kill or pass")
    })
}

fn parse_failure(text: &str) -> Result<OnFailure, String> {
    let policy = verdict::OnFailure::try_from(text.to_owned()).map_err(|error| error.to_string())?;
    Ok(match policy {
        verdict::OnFailure::Errno(number) => OnFailure::Errno(u16::try_from(number).unwrap_or(0)),
        verdict::OnFailure::Continue => OnFailure::Continue,
        verdict::OnFailure::Kill => OnFailure::Kill,
        verdict::OnFailure::Next => OnFailure::Next,
    })
}

/// Says the same to everybody.
struct Answer {
    verdict: Verdict,
    delay: Duration,
    is_listener: bool,
}

/// Whoever started this waits for the line; nobody needs it otherwise.
fn say_registered() {
    writeln!(std::io::stdout(), "registered").ok();
}

/// A refusal, in words for who may have named the other of a pod's sockets.
fn told(error: Error, socket: &Path) -> Failure {
    match error.code {
        Code::NotSupported => Failure::new(format!(
            "{} is no socket for plugins: name plugins.sock in the pod's directory",
            socket.display()
        )),
        _ => error.into(),
    }
}

impl Plugin for Answer {
    async fn decide(&self, _: Call) -> Verdict {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self.verdict.clone()
    }

    fn synchronise(&self, _: &[crate::rpc::plugin::client::Session]) {
        // One that dials in says so when it is so.
        if self.is_listener {
            say_registered();
        }
    }
}

/// Decides until the pod ends.
///
/// # Errors
/// What to tell the user.
pub(super) fn run(args: AnswerArgs) -> Result<(), Failure> {
    let syscalls: Vec<&str> = args.syscalls.iter().map(String::as_str).collect();
    let mut request = Request {
        priority: args.priority,
        deadline_ms: args.deadline,
        on_failure: args.on_failure,
        allow_continue: args.verdict == Verdict::Continue,
        batch_max: args.batch,
        // Nothing is looked at.
        decode: false,
        ..Request::new(&args.name, &syscalls)
    };
    request.selector.comparisons = args.conditions;
    request.selector.containers = args.containers;
    let (socket, is_listener) = (args.socket, args.listen);
    let named = socket.clone();
    let answer = Answer { verdict: args.verdict, delay: Duration::from_millis(args.delay), is_listener };
    let ended = run_plugin(async move {
        if is_listener {
            return listen(&socket, request, answer).await;
        }
        let plugged = dial_in(&socket, request, answer).await?;
        say_registered();
        plugged.ended().await
    });
    ended.map_err(|error| told(error, &named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_have_masks_and_hexadecimal_numbers() {
        let parsed = |text: &str| condition(text).map(|is| (is.argument, is.mask, is.values[0]));
        assert_eq!(parsed("0=8"), Ok((0, u64::MAX, 8)));
        assert_eq!(parsed("0=0x10000000"), Ok((0, u64::MAX, 0x1000_0000)));
        assert_eq!(parsed("5&0xffffffff=7"), Ok((5, 0xffff_ffff, 7)));
        for wrong in ["", "0", "=8", "0=", "0=0x", "0=-1", "0&=1", "0&0=0", "x=1"] {
            assert!(condition(wrong).unwrap_err().contains("is not ARGUMENT"), "{wrong}");
        }
    }

    #[test]
    fn verdicts_have_words() {
        assert_eq!(parse_verdict("errno:EACCES"), Ok(Verdict::Errno(13)));
        assert_eq!(parse_verdict("errno:13"), Ok(Verdict::Errno(13)));
        assert_eq!(parse_verdict("return:-1"), Ok(Verdict::Return(-1)));
        assert_eq!(parse_verdict("pass"), Ok(Verdict::PassOn));
        for wrong in ["", "errno", "errno:0", "return:", "allow"] {
            assert!(parse_verdict(wrong).unwrap_err().contains("no verdict"), "{wrong}");
        }
    }
}
