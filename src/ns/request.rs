//! What is asked for, and whether it makes sense. Nothing here touches the system.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::sysctl::Sysctl;
use super::{Error, Kind};
use crate::limits::{HOSTNAME_BYTES_MAX, ID_MAPPINGS_MAX, PIN_NAME_BYTES_MAX, SYSCTLS_MAX};

/// Where a pod's namespace comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A new one.
    Create,
    /// The one that podinit itself is in.
    Host,
    /// The one that is pinned here.
    Path(PathBuf),
}

/// A range of ids of a user namespace and the range outside that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside.
    pub inside: u32,
    /// First id outside, as the caller's user namespace counts.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// How namespaces are kept once they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Pinned below the base directory, where other programs find them.
    Pinned,
    /// Held by descriptor only: no mount and no path.
    DescriptorOnly,
}

/// A pod's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The pod's id; the file name of its pins.
    pub name: String,
    /// Each kind at most once. Kinds that are not named are not touched.
    pub namespaces: Vec<(Kind, Source)>,
    /// Needs a created uts namespace.
    pub hostname: Option<String>,
    /// Needs a created uts namespace.
    pub domainname: Option<String>,
    /// Keys and values; each needs the created namespace that has it.
    pub sysctls: Vec<(String, String)>,
    /// For a created user namespace, and only for that; id 0 must be mapped.
    pub uid_mappings: Vec<IdMapping>,
    /// The same, for groups.
    pub gid_mappings: Vec<IdMapping>,
    /// Pins are `<base>/<kind>ns/<name>`.
    pub base: PathBuf,
    /// Whether to pin at all.
    pub placement: Placement,
}

impl Request {
    /// Whether a new namespace of this kind is asked for.
    #[must_use]
    pub fn creates(&self, kind: Kind) -> bool {
        self.namespaces.contains(&(kind, Source::Create))
    }

    /// Checks everything that can be known beforehand.
    pub(super) fn check(&self) -> Result<Vec<Sysctl>, Error> {
        check_name(&self.name)?;
        for (n, (kind, _)) in self.namespaces.iter().enumerate() {
            if self.namespaces.iter().take(n).any(|(other, _)| other == kind) {
                return Err(Error::Invalid(format!(
                    "the {kind} namespace is asked for twice; name each kind once"
                )));
            }
        }
        if self.placement == Placement::Pinned && !self.base.is_absolute() {
            let base = self.base.display();
            return Err(Error::Invalid(format!("the base path {base} is not absolute; name it from / on")));
        }
        for (what, name) in [("host name", &self.hostname), ("domain name", &self.domainname)] {
            self.check_uts(what, name.as_deref())?;
        }
        if self.creates(Kind::User) {
            check_mappings("user", &self.uid_mappings)?;
            check_mappings("group", &self.gid_mappings)?;
        } else if !(self.uid_mappings.is_empty() && self.gid_mappings.is_empty()) {
            let text =
                "id mappings are given, but no user namespace is to be made; ask for one or leave them out";
            return Err(Error::Invalid(text.to_owned()));
        }
        self.check_sysctls()
    }

    fn check_uts(&self, what: &str, name: Option<&str>) -> Result<(), Error> {
        let Some(name) = name else { return Ok(()) };
        if name.is_empty() || name.len() > HOSTNAME_BYTES_MAX || name.contains('\0') {
            let text = format!("the {what} {name:?} must have 1 to {HOSTNAME_BYTES_MAX} bytes and no NUL");
            return Err(Error::Invalid(text));
        }
        if !self.creates(Kind::Uts) {
            let text = format!("the {what} {name:?} would be set on the host; ask for a uts namespace, too");
            return Err(Error::Invalid(text));
        }
        Ok(())
    }

    fn check_sysctls(&self) -> Result<Vec<Sysctl>, Error> {
        if self.sysctls.len() > SYSCTLS_MAX {
            return Err(Error::Invalid(format!("{} sysctls; at most {SYSCTLS_MAX}", self.sysctls.len())));
        }
        let mut all = Vec::with_capacity(self.sysctls.len());
        for (key, value) in &self.sysctls {
            let sysctl = Sysctl::parse(key, value)?;
            let kind = sysctl.kind;
            if !self.creates(kind) {
                let text = format!(
                    "sysctl {key:?} would be set outside of the pod; ask for a {kind} namespace, too"
                );
                return Err(Error::Invalid(text));
            }
            all.push(sysctl);
        }
        Ok(all)
    }
}

/// A pod id or file name of pins: one component of a path, printable.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let sound = !name.is_empty()
        && name.len() <= PIN_NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c.is_control());
    if sound {
        return Ok(());
    }
    let short: String = name.chars().take(PIN_NAME_BYTES_MAX).collect();
    let text = format!(
        "{short:?} cannot name a pin: 1 to {PIN_NAME_BYTES_MAX} bytes are needed, without `/` and control characters"
    );
    Err(Error::Invalid(text))
}

fn check_mappings(what: &str, mappings: &[IdMapping]) -> Result<(), Error> {
    let invalid = |text: String| Err(Error::Invalid(text));
    if mappings.is_empty() {
        return invalid(format!("a user namespace needs {what} id mappings, and there are none"));
    }
    if mappings.len() > ID_MAPPINGS_MAX {
        return invalid(format!("{} {what} id mappings; the kernel takes {ID_MAPPINGS_MAX}", mappings.len()));
    }
    for IdMapping { inside, outside, size } in mappings {
        if *size == 0 || inside.checked_add(size - 1).is_none() || outside.checked_add(size - 1).is_none() {
            return invalid(format!(
                "the {what} id mapping {inside} {outside} {size} is empty or leaves the 32 bits of an id"
            ));
        }
    }
    if !mappings.iter().any(|m| m.inside == 0) {
        return invalid(format!(
            "no {what} id mapping maps the id 0 of the user namespace, and its root must own the pod's namespaces"
        ));
    }
    Ok(())
}

/// The lines of `/proc/<pid>/uid_map`.
pub(super) fn map_file(mappings: &[IdMapping]) -> String {
    let mut text = String::with_capacity(mappings.len() * 24);
    for IdMapping { inside, outside, size } in mappings {
        // Writing to a String cannot fail.
        writeln!(text, "{inside} {outside} {size}").ok();
    }
    text
}
