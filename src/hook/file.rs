//! A hook file: hooks.d 1.0.0 (oci-hooks(5)) with podinit's own fields under one
//! more key. Parsing is pure; that the program is there is asked separately.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::definition::{Hook, Stage, UnknownStage, When};
use super::json::{Field, Json};
use super::pattern::{BadPattern, Pattern};
use super::{older, options};
use crate::limits::{HOOK_FILE_BYTES_MAX, HOOK_PATTERNS_MAX};

/// The one version of the format that is read.
pub const VERSION: &str = "1.0.0";

/// Why a hook file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be opened or read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),

    /// Something is at its place that must not be read as one.
    #[error("{0}")]
    Unfit(&'static str),

    /// It is too large.
    #[error("it is larger than {HOOK_FILE_BYTES_MAX} bytes, which no hook file is")]
    Large,

    /// It is no JSON.
    #[error("it is not JSON: {0}")]
    NotJson(String),

    /// It is of the format before 1.0.0.
    #[error("{0}")]
    Older(String),

    /// It is of a format that is not known.
    #[error("version: it is {0:?}; only \"1.0.0\" is read")]
    Version(String),

    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),

    /// A field is wrong.
    #[error("{field}: {reason}")]
    Field {
        /// Its name, with the fields that it is in.
        field: String,
        /// What is wrong.
        reason: String,
    },

    /// The program is not there.
    #[error("hook.path: there is no {}: {source}", path.display())]
    Program {
        /// What the file says.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The hook.
    pub hook: Hook,
    /// What is no fault, and yet hardly meant.
    pub notes: Vec<String>,
}

/// Reads the text of a hook file.
///
/// # Errors
/// If it is not JSON, not of version 1.0.0, or a field is missing or wrong.
pub fn parse(name: &str, text: &[u8]) -> Result<Parsed, FileError> {
    if u64::try_from(text.len()).map_or(true, |length| length > HOOK_FILE_BYTES_MAX) {
        return Err(FileError::Large);
    }
    let json = Json::parse(text)?;
    let file = Field::whole(&json);
    let version = file.optional("version", Field::text)?.unwrap_or_default();
    match version {
        VERSION => {}
        "" | "0.1.0" => return Err(older::explain(&file)),
        other => return Err(FileError::Version(other.to_owned())),
    }

    let mut notes = ignored(&file, &["version", "hook", "when", "stages", "podinit"])?;
    let program = file.get("hook")?.ok_or(FileError::Missing("hook.path"))?;
    notes.extend(ignored(&program, &["path", "args", "env", "timeout"])?);
    let conditions = file.get("when")?;
    if let Some(conditions) = &conditions {
        notes.extend(ignored(conditions, &["always", "annotations", "commands", "hasBindMounts"])?);
    }
    let own = file.optional("podinit", options::parse)?.unwrap_or_default();
    let mut stages = stages(&file.get("stages")?.ok_or(FileError::Missing("stages"))?)?;
    stages.extend(own.stages);
    let hook = Hook {
        name: name.to_owned(),
        path: path(&program)?,
        args: program.optional("args", Field::texts)?.unwrap_or_default(),
        env: program.optional("env", environment)?.unwrap_or_default(),
        timeout: own.timeout.or(timeout(&program)?),
        when: conditions.as_ref().map(when).transpose()?.unwrap_or_default(),
        stages: once(stages),
        options: own.options,
    };
    Ok(Parsed { hook, notes })
}

/// Asks whether the program of a hook is there, as other engines do.
///
/// # Errors
/// If it is not.
pub fn check_program(hook: &Hook) -> Result<(), FileError> {
    let there = std::fs::metadata(&hook.path);
    there.map(|_| ()).map_err(|source| FileError::Program { path: hook.path.clone(), source })
}

fn ignored(field: &Field<'_>, known: &[&str]) -> Result<Vec<String>, FileError> {
    let unknown = field.unknown(known)?;
    Ok(unknown.into_iter().map(|name| format!("{name} is not known, and ignored")).collect())
}

fn path(program: &Field<'_>) -> Result<PathBuf, FileError> {
    let field = program.get("path")?.ok_or(FileError::Missing("hook.path"))?;
    match field.text()? {
        "" => Err(FileError::Missing("hook.path")),
        text if text.starts_with('/') => Ok(text.into()),
        text => Err(field.wrong(format!("{text:?} does not begin at /"))),
    }
}

fn environment(field: &Field<'_>) -> Result<Vec<(String, String)>, FileError> {
    let variable = |item: &Field<'_>| match item.text()?.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(item.wrong("a variable is NAME=value")),
    };
    field.list()?.iter().map(variable).collect()
}

fn timeout(program: &Field<'_>) -> Result<Option<Duration>, FileError> {
    let Some(field) = program.get("timeout")? else { return Ok(None) };
    match u64::try_from(field.whole_number()?) {
        Ok(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(field.wrong("the seconds of a time-out are greater than zero")),
    }
}

fn when(conditions: &Field<'_>) -> Result<When, FileError> {
    let pattern = |field: &Field<'_>, text: &str| {
        Pattern::new(text).map_err(|bad: BadPattern| field.wrong(bad.to_string()))
    };
    let mut annotations = Vec::new();
    if let Some(field) = conditions.get("annotations")? {
        for (key, value) in field.pairs()? {
            annotations.push((pattern(&value, key)?, pattern(&value, value.text()?)?));
        }
    }
    let mut commands = Vec::new();
    if let Some(field) = conditions.get("commands")? {
        for item in field.list()? {
            commands.push(pattern(&item, item.text()?)?);
        }
    }
    if annotations.len() * 2 + commands.len() > HOOK_PATTERNS_MAX {
        let reason = format!("there are more than {HOOK_PATTERNS_MAX} regular expressions");
        return Err(conditions.wrong(reason));
    }
    Ok(When {
        always: conditions.optional("always", Field::bool)?,
        annotations,
        commands,
        has_bind_mounts: conditions.optional("hasBindMounts", Field::bool)?,
    })
}

/// A list of names of stages.
pub(super) fn stages(field: &Field<'_>) -> Result<Vec<Stage>, FileError> {
    let stage = |item: &Field<'_>| {
        item.text()?.parse().map_err(|unknown: UnknownStage| item.wrong(unknown.to_string()))
    };
    field.list()?.iter().map(stage).collect()
}

fn once(stages: Vec<Stage>) -> Vec<Stage> {
    let mut seen = Vec::with_capacity(stages.len());
    for stage in stages {
        if !seen.contains(&stage) {
            seen.push(stage);
        }
    }
    seen
}

#[cfg(test)]
mod tests;
