//! The `podinit` key of a hook file. Nobody else reads it, so a name in it that
//! is not known is a mistake, and is refused.

use std::time::Duration;

use caps::Capability;

use super::definition::{Cgroup, Failure, Options, Output, Retry, Stage, User};
use super::file::{self, FileError};
use super::json::Field;
use crate::limits::{HOOK_ATTEMPTS_MAX, HOOK_RETRY_PAUSE_MAX};
use crate::ns::Kind;

/// Every field of the key.
const FIELDS: [&str; 12] = [
    "stages",
    "timeout",
    "namespaces",
    "failure",
    "retry",
    "after",
    "before",
    "user",
    "capabilities",
    "cgroup",
    "output",
    "concurrent",
];

/// What the key says.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Further stages: a file with such under its own `stages` is refused by
    /// everybody else.
    pub(super) stages: Vec<Stage>,
    /// Instead of the hook's own, and finer.
    pub(super) timeout: Option<Duration>,
    pub(super) options: Options,
}

/// Reads the key.
pub(super) fn parse(own: &Field<'_>) -> Result<Own, FileError> {
    refuse_unknown(own, &FIELDS)?;
    let defaults = Options::default();
    let options = Options {
        namespaces: own.optional("namespaces", namespaces)?.unwrap_or(defaults.namespaces),
        failure: own.optional("failure", |field| one_of(field, &Failure::ALL, Failure::name))?,
        retry: own.optional("retry", retry)?.unwrap_or_default(),
        after: own.optional("after", Field::texts)?.unwrap_or_default(),
        before: own.optional("before", Field::texts)?.unwrap_or_default(),
        user: own.optional("user", user)?,
        capabilities: own.optional("capabilities", capabilities)?,
        cgroup: own
            .optional("cgroup", |field| one_of(field, &Cgroup::ALL, Cgroup::name))?
            .unwrap_or_default(),
        output: own
            .optional("output", |field| one_of(field, &Output::ALL, Output::name))?
            .unwrap_or_default(),
        concurrent: own.optional("concurrent", Field::bool)?.unwrap_or_default(),
    };
    Ok(Own {
        stages: own.optional("stages", file::stages)?.unwrap_or_default(),
        timeout: own.optional("timeout", |field| positive(field, seconds(field)?))?,
        options,
    })
}

fn refuse_unknown(field: &Field<'_>, known: &[&str]) -> Result<(), FileError> {
    match field.unknown(known)?.into_iter().next() {
        None => Ok(()),
        Some(name) => {
            let reason = format!("there is no such field; there are {}", known.join(", "));
            Err(FileError::Field { field: name, reason })
        }
    }
}

fn one_of<T: Copy>(field: &Field<'_>, all: &[T], name: impl Fn(T) -> &'static str) -> Result<T, FileError> {
    let text = field.text()?;
    all.iter().copied().find(|known| name(*known) == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|known| name(*known)).collect();
        field.wrong(format!("{text:?} is none of {}", names.join(", ")))
    })
}

fn seconds(field: &Field<'_>) -> Result<Duration, FileError> {
    let seconds = field.number()?;
    Duration::try_from_secs_f64(seconds).map_err(|_| field.wrong(format!("{seconds} seconds cannot be")))
}

fn positive(field: &Field<'_>, duration: Duration) -> Result<Duration, FileError> {
    if duration.is_zero() {
        return Err(field.wrong("the seconds of a time-out are greater than zero"));
    }
    Ok(duration)
}

fn namespaces(field: &Field<'_>) -> Result<Vec<Kind>, FileError> {
    let mut kinds = Vec::new();
    for item in field.list()? {
        let kind = one_of(&item, &Options::NAMESPACES, Kind::name)?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

fn retry(field: &Field<'_>) -> Result<Retry, FileError> {
    refuse_unknown(field, &["attempts", "pause"])?;
    let attempts = field.get("attempts")?.ok_or_else(|| field.wrong("attempts is missing"))?;
    let count = u32::try_from(attempts.whole_number()?).unwrap_or_default();
    if !(1..=HOOK_ATTEMPTS_MAX).contains(&count) {
        return Err(attempts.wrong(format!("attempts are 1 to {HOOK_ATTEMPTS_MAX}, the first included")));
    }
    let pause = match field.get("pause")? {
        None => Duration::ZERO,
        Some(pause) => {
            let duration = seconds(&pause)?;
            if duration > HOOK_RETRY_PAUSE_MAX {
                let most = HOOK_RETRY_PAUSE_MAX.as_secs();
                return Err(pause.wrong(format!("a pause is {most} seconds at most")));
            }
            duration
        }
    };
    Ok(Retry { attempts: count, pause })
}

fn user(field: &Field<'_>) -> Result<User, FileError> {
    refuse_unknown(field, &["uid", "gid", "additionalGids"])?;
    let id = |item: &Field<'_>| {
        // The greatest number means "none" to system calls.
        let id = u32::try_from(item.whole_number()?).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| item.wrong("an id is a number from 0 to 4294967294"))
    };
    let required = |name: &str| match field.get(name)? {
        Some(item) => id(&item),
        None => Err(field.wrong(format!("{name} is missing"))),
    };
    let further = match field.get("additionalGids")? {
        None => Vec::new(),
        Some(list) => list.list()?.iter().map(id).collect::<Result<_, _>>()?,
    };
    Ok(User { uid: required("uid")?, gid: required("gid")?, additional_gids: further })
}

fn capabilities(field: &Field<'_>) -> Result<Vec<Capability>, FileError> {
    let mut named = Vec::new();
    for item in field.list()? {
        let text = item.text()?;
        let capability: Capability = text
            .parse()
            .map_err(|_| item.wrong(format!("{text:?} is no capability; one is CAP_NET_ADMIN")))?;
        if !named.contains(&capability) {
            named.push(capability);
        }
    }
    Ok(named)
}
