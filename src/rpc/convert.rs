//! Between Cap'n Proto readers and the monitor's own types.

use std::path::PathBuf;

use crate::monitor::error::{Code, Error};
use crate::monitor::id::ContainerId;
use crate::monitor::runtime::CgroupManager;
use crate::rpc::schema::conmon_capnp::conmon as wire;

/// Most entries of one list in a request. Engines send a handful; every one
/// becomes an allocation here.
const LIST_ENTRIES_MAX: u32 = 4096;

/// A refusal as it travels: its code, then the sentence.
pub(super) fn refuse(error: &Error) -> capnp::Error {
    let text = format!("{}: {error}", error.code().as_str());
    match error.code() {
        Code::NotSupported => capnp::Error::unimplemented(text),
        Code::ResourceExhausted => capnp::Error::overloaded(text),
        _ => capnp::Error::failed(text),
    }
}

/// Text that must be UTF-8 without NUL.
pub(super) fn text(reader: capnp::text::Reader<'_>, what: &str) -> Result<String, Error> {
    let text = reader.to_str().map_err(|_| Error::Invalid(format!("{what} is not UTF-8")))?;
    if text.contains('\0') {
        return Err(Error::Invalid(format!("{what} holds a NUL byte")));
    }
    Ok(text.to_owned())
}

/// An absolute path.
pub(super) fn path(reader: capnp::text::Reader<'_>, what: &str) -> Result<PathBuf, Error> {
    let path = PathBuf::from(text(reader, what)?);
    if !path.is_absolute() {
        return Err(Error::Invalid(format!("{what} {} is not an absolute path", path.display())));
    }
    Ok(path)
}

/// A list of texts.
pub(super) fn texts(list: capnp::text_list::Reader<'_>, what: &str) -> Result<Vec<String>, Error> {
    bounded(list.len(), what)?;
    list.iter().map(|item| text(item.map_err(|error| malformed(what, &error))?, what)).collect()
}

/// A list of absolute paths.
pub(super) fn paths(list: capnp::text_list::Reader<'_>, what: &str) -> Result<Vec<PathBuf>, Error> {
    bounded(list.len(), what)?;
    list.iter().map(|item| path(item.map_err(|error| malformed(what, &error))?, what)).collect()
}

/// Key and value pairs.
pub(super) fn pairs(
    list: capnp::struct_list::Reader<'_, wire::text_text_map_entry::Owned>,
    what: &str,
) -> Result<Vec<(String, String)>, Error> {
    bounded(list.len(), what)?;
    let pair = |entry: wire::text_text_map_entry::Reader<'_>| {
        let key = text(entry.get_key().map_err(|error| malformed(what, &error))?, what)?;
        let value = text(entry.get_value().map_err(|error| malformed(what, &error))?, what)?;
        if key.is_empty() || key.contains('=') {
            return Err(Error::Invalid(format!("{what}: {key:?} is not the name of a variable")));
        }
        Ok((key, value))
    };
    list.iter().map(pair).collect()
}

pub(super) fn container_id(reader: capnp::text::Reader<'_>) -> Result<ContainerId, Error> {
    let id = reader.to_str().map_err(|_| Error::Invalid("the container id is not UTF-8".into()))?;
    ContainerId::new(id)
}

pub(super) fn cgroup_manager(
    manager: Result<wire::CgroupManager, capnp::NotInSchema>,
) -> Result<CgroupManager, Error> {
    match manager {
        Ok(wire::CgroupManager::Systemd) => Ok(CgroupManager::Systemd),
        Ok(wire::CgroupManager::Cgroupfs) => Ok(CgroupManager::Cgroupfs),
        Err(capnp::NotInSchema(number)) => Err(Error::Invalid(format!(
            "there is no cgroup manager {number}; use 0 (systemd) or 1 (cgroupfs)"
        ))),
    }
}

pub(super) fn bounded(len: u32, what: &str) -> Result<(), Error> {
    if len > LIST_ENTRIES_MAX {
        return Err(Error::Invalid(format!(
            "{what} has {len} entries; at most {LIST_ENTRIES_MAX} are taken"
        )));
    }
    Ok(())
}

pub(super) fn malformed(what: &str, error: &capnp::Error) -> Error {
    Error::Invalid(format!("{what} cannot be read: {error}"))
}
