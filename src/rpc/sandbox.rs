//! Sandboxes on the wire.

use std::path::PathBuf;

use crate::monitor::error::Error;
use crate::ns::sandbox::{CreateNamespaces, InitRecord, Pinned, Record, State};
use crate::ns::{IdMapping, Kind, Placement, Request, Source};
use crate::rpc::convert::{bounded, malformed, path, text, texts};
use crate::rpc::schema::conmon_capnp::conmon;
use crate::rpc::schema::podinit_capnp as wire;

/// What a client asks for; `base` is where pins go if it does not say.
pub(super) fn request(request: wire::sandbox_request::Reader<'_>, base: PathBuf) -> Result<Request, Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    let wanted = request.get_namespaces().map_err(bad)?;
    let sysctls = request.get_sysctls().map_err(bad)?;
    bounded(wanted.len(), "namespaces")?;
    bounded(sysctls.len(), "sysctls")?;
    let sysctl = |pair: wire::key_value::Reader<'_>| {
        Ok((text(pair.get_key().map_err(bad)?, "sysctl")?, text(pair.get_value().map_err(bad)?, "sysctl")?))
    };
    let base_path = request.get_base_path().map_err(bad)?;
    Ok(Request {
        name: text(request.get_pod_id().map_err(bad)?, "podId")?,
        namespaces: wanted.iter().map(namespace).collect::<Result<_, _>>()?,
        hostname: optional(request.get_hostname().map_err(bad)?, "hostname")?,
        domainname: optional(request.get_domainname().map_err(bad)?, "domainname")?,
        sysctls: sysctls.iter().map(sysctl).collect::<Result<_, Error>>()?,
        uid_mappings: mappings(request.get_uid_mappings().map_err(bad)?)?,
        gid_mappings: mappings(request.get_gid_mappings().map_err(bad)?)?,
        base: if base_path.is_empty() { base } else { path(base_path, "basePath")? },
        placement: if request.get_unpinned() { Placement::DescriptorOnly } else { Placement::Pinned },
    })
}

/// Writes a sandbox into an answer.
pub(super) fn set(mut wire: wire::sandbox::Builder<'_>, record: &Record) {
    wire.set_pod_id(&record.request.name);
    wire.set_init_pid(record.init().filter(InitRecord::is_alive).map_or(0, |init| init.pid));
    if let State::Made { created_at_ns, .. } = record.state {
        wire.set_created_at_ns(created_at_ns);
    }
    let made = record.namespaces();
    let count = u32::try_from(made.len()).unwrap_or(u32::MAX);
    let mut list = wire.init_namespaces(count);
    for (index, made) in (0..count).zip(made) {
        let mut wire = list.reborrow().get(index);
        wire.set_kind(kind_to_wire(made.kind));
        wire.set_inode(made.inode);
        wire.set_owner_inode(made.owner_inode);
        wire.set_created(made.created);
        if let Some(path) = &made.path {
            wire.set_path(&*path.to_string_lossy());
        }
    }
}

/// What a client of createNamespaces asks for.
pub(super) fn conmon_request(
    request: conmon::create_namespaces_request::Reader<'_>,
) -> Result<CreateNamespaces, Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    let kinds = request.get_namespaces().map_err(bad)?;
    bounded(kinds.len(), "namespaces")?;
    Ok(CreateNamespaces {
        pod_id: text(request.get_pod_id().map_err(bad)?, "podId")?,
        base: path(request.get_base_path().map_err(bad)?, "basePath")?,
        kinds: kinds
            .iter()
            .map(|kind| kind.map(kind_of_conmon).map_err(|capnp::NotInSchema(number)| unknown(number)))
            .collect::<Result<_, _>>()?,
        uid_mappings: texts(request.get_uid_mappings().map_err(bad)?, "uidMappings")?,
        gid_mappings: texts(request.get_gid_mappings().map_err(bad)?, "gidMappings")?,
    })
}

/// The answer to createNamespaces: a path for each of the five kinds.
pub(super) fn set_conmon(wire: conmon::create_namespaces_response::Builder<'_>, record: &Record) {
    let known = |made: &Pinned| Some((kind_to_conmon(made.kind)?, made.path.clone()?));
    let made = record.namespaces().iter().filter_map(known).collect::<Vec<_>>();
    let count = u32::try_from(made.len()).unwrap_or(u32::MAX);
    let mut list = wire.init_namespaces(count);
    for (index, (kind, path)) in (0..count).zip(made) {
        let mut wire = list.reborrow().get(index);
        wire.set_type(kind);
        wire.set_path(&*path.to_string_lossy());
    }
}

fn kind_of_conmon(kind: conmon::Namespace) -> Kind {
    match kind {
        conmon::Namespace::Ipc => Kind::Ipc,
        conmon::Namespace::Net => Kind::Net,
        conmon::Namespace::Pid => Kind::Pid,
        conmon::Namespace::User => Kind::User,
        conmon::Namespace::Uts => Kind::Uts,
    }
}

fn kind_to_conmon(kind: Kind) -> Option<conmon::Namespace> {
    Some(match kind {
        Kind::Ipc => conmon::Namespace::Ipc,
        Kind::Net => conmon::Namespace::Net,
        Kind::Pid => conmon::Namespace::Pid,
        Kind::User => conmon::Namespace::User,
        Kind::Uts => conmon::Namespace::Uts,
        Kind::Cgroup | Kind::Mnt | Kind::Time => return None,
    })
}

fn namespace(request: wire::namespace_request::Reader<'_>) -> Result<(Kind, Source), Error> {
    use wire::namespace_request::Which;
    let kind = kind_of_wire(request.get_kind().map_err(|capnp::NotInSchema(number)| unknown(number))?);
    let source = match request.which().map_err(|capnp::NotInSchema(number)| unknown(number))? {
        Which::Create(()) => Source::Create,
        Which::Host(()) => Source::Host,
        Which::Path(reader) => {
            let reader = reader.map_err(|error| malformed("the request", &error))?;
            Source::Path(path(reader, "path of the namespace")?)
        }
    };
    Ok((kind, source))
}

fn unknown(number: u16) -> Error {
    Error::Invalid(format!("there is no kind or source of namespaces with the number {number}"))
}

fn optional(reader: capnp::text::Reader<'_>, what: &str) -> Result<Option<String>, Error> {
    if reader.is_empty() { Ok(None) } else { text(reader, what).map(Some) }
}

fn mappings(list: capnp::struct_list::Reader<'_, wire::id_mapping::Owned>) -> Result<Vec<IdMapping>, Error> {
    bounded(list.len(), "id mappings")?;
    let mapping = |m: wire::id_mapping::Reader<'_>| IdMapping {
        inside: m.get_inside(),
        outside: m.get_outside(),
        size: m.get_size(),
    };
    Ok(list.iter().map(mapping).collect())
}

pub(super) fn kind_to_wire(kind: Kind) -> wire::NamespaceKind {
    match kind {
        Kind::Net => wire::NamespaceKind::Net,
        Kind::Ipc => wire::NamespaceKind::Ipc,
        Kind::Uts => wire::NamespaceKind::Uts,
        Kind::User => wire::NamespaceKind::User,
        Kind::Pid => wire::NamespaceKind::Pid,
        Kind::Cgroup => wire::NamespaceKind::Cgroup,
        Kind::Mnt => wire::NamespaceKind::Mnt,
        Kind::Time => wire::NamespaceKind::Time,
    }
}

fn kind_of_wire(kind: wire::NamespaceKind) -> Kind {
    match kind {
        wire::NamespaceKind::Net => Kind::Net,
        wire::NamespaceKind::Ipc => Kind::Ipc,
        wire::NamespaceKind::Uts => Kind::Uts,
        wire::NamespaceKind::User => Kind::User,
        wire::NamespaceKind::Pid => Kind::Pid,
        wire::NamespaceKind::Cgroup => Kind::Cgroup,
        wire::NamespaceKind::Mnt => Kind::Mnt,
        wire::NamespaceKind::Time => Kind::Time,
    }
}
