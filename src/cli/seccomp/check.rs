//! `podinit seccomp check`: what is wrong with a profile, or with rules.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::super::exit::Failure;
use super::super::output::{self, Format, Row};
use crate::limits::SECCOMP_RULES_BYTES_MAX;
use crate::seccomp::lint::{Finding, Severity, lint, lint_rules};
use crate::seccomp::rules::Rules;

pub(super) const HELP: &str = "\
FILE is a profile (`linux.seccomp` of the OCI runtime specification), a config.json that contains one,
or a rules file of podinit.

Exit codes: 1 if there is an error among the findings, or FILE cannot be read; 0 otherwise.";

/// `seccomp check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// What to check
    file: PathBuf,

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
/// If it is, or the file cannot be read.
pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let path = args.file.display();
    let size = std::fs::metadata(&args.file).map(|found| found.len());
    let text = size.and_then(|size| match size {
        0..=SECCOMP_RULES_BYTES_MAX => std::fs::read(&args.file),
        _ => Err(std::io::Error::other(format!(
            "it has {size} bytes; at most {SECCOMP_RULES_BYTES_MAX} are read"
        ))),
    });
    let text = text.map_err(|error| Failure::io(format_args!("reading {path}"), &error))?;
    let findings = findings(&text).map_err(|reason| Failure::new(format!("{path}: {reason}")))?;
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let printed: Vec<Printed> = findings
        .into_iter()
        .map(|Finding { severity, code, text }| Printed { severity: severity.as_str(), code, text })
        .collect();
    output::list(args.output, &printed)?;
    match errors {
        0 => Ok(()),
        1 => Err(Failure::new(format!("{path} has an error"))),
        _ => Err(Failure::new(format!("{path} has {errors} errors"))),
    }
}

fn findings(text: &[u8]) -> Result<Vec<Finding>, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))?;
    if value.get("rules").is_some() || value.get("defaults").is_some() {
        let rules = Rules::parse(text).map_err(|error| error.to_string())?;
        return Ok(lint_rules(&rules));
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
}
