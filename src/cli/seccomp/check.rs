//! `podinit seccomp check`: what is wrong with a profile, or with rules.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::super::exit::Failure;
use super::super::output::{self, Format, Row};
use crate::limits::SECCOMP_RULES_BYTES_MAX;
use crate::seccomp::lint::{Finding, Severity, lint, lint_rules};
use crate::seccomp::rules::Rules;

pub(super) const HELP: &str = "\
PATH is a profile (`linux.seccomp` of the OCI runtime specification), a config.json that contains one,
a rules file of podinit, or a directory of these, which is read as --seccomp-rules is.

Exit codes: 1 if there is an error among the findings, or PATH cannot be used; 0 otherwise.";

/// `seccomp check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// What to check
    path: PathBuf,

    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// A finding, as it is printed.
#[derive(Debug, Serialize)]
struct Printed {
    severity: &'static str,
    code: &'static str,
    text: String,
}

impl Row for Printed {
    const HEADINGS: &'static [&'static str] = &["SEVERITY", "CODE", "FINDING"];
    fn cells(&self) -> Vec<String> {
        vec![self.severity.to_owned(), self.code.to_owned(), self.text.clone()]
    }
}

/// Prints what is wrong.
///
/// # Errors
/// If it is, or it cannot be read.
pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let path = args.path.display();
    let findings = if args.path.is_dir() {
        lint_rules(&Rules::read(&args.path).map_err(|error| Failure::new(error.to_string()))?)
    } else {
        let text = read(&args.path).map_err(|error| Failure::io(format_args!("reading {path}"), &error))?;
        findings(&text).map_err(|reason| Failure::new(format!("{path}: {reason}")))?
    };
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let printed: Vec<Printed> = findings
        .into_iter()
        .map(|Finding { severity, code, text }| Printed { severity: severity.as_str(), code, text })
        .collect();
    if printed.is_empty() && args.output == Format::Table {
        output::print("nothing found\n")?;
    } else {
        output::list(args.output, &printed)?;
    }
    match errors {
        0 => Ok(()),
        1 => Err(Failure::new(format!("{path} has an error"))),
        _ => Err(Failure::new(format!("{path} has {errors} errors"))),
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::metadata(path)?.len() {
        0..=SECCOMP_RULES_BYTES_MAX => std::fs::read(path),
        size => Err(std::io::Error::other(format!(
            "it has {size} bytes; at most {SECCOMP_RULES_BYTES_MAX} are read"
        ))),
    }
}

fn findings(text: &[u8]) -> Result<Vec<Finding>, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let has_one_of = |fields: &[&str]| fields.iter().any(|field| value.get(field).is_some());
    // Engines give their profiles versions, too.
    if has_one_of(&["rules", "defaults"]) || (has_one_of(&["version"]) && !has_one_of(&["defaultAction"])) {
        let rules = Rules::parse(text).map_err(|error| error.to_string())?;
        return Ok(lint_rules(&rules));
    }
    if !has_one_of(&["defaultAction", "syscalls", "linux", "ociVersion"]) {
        return Err("it is neither a profile, nor a config.json, nor rules".to_owned());
    }
    let profile = value.pointer("/linux/seccomp").unwrap_or(&value);
    lint(profile.to_string().as_bytes()).map_err(|error| format!("it is no profile: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_in_a_configuration() {
        let profile = r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#;
        let alone = findings(profile.as_bytes()).unwrap();
        assert!(!alone.is_empty());
        let within = format!(r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{profile}}}}}"#);
        assert_eq!(findings(within.as_bytes()).unwrap(), alone);
        findings(b"{").unwrap_err();
    }

    #[test]
    fn what_the_monitor_refuses_is_no_sound_file() {
        assert_eq!(findings(br#"{"version": 1}"#), Ok(vec![]));
        for (text, reason) in [
            (r#"{"version": 1, "ruls": []}"#, "unknown field `ruls`"),
            ("{}", "neither"),
            ("[]", "neither"),
            (r#"{"name": "package"}"#, "neither"),
            (r#"{"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}"#, "neither"),
        ] {
            let error = findings(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
