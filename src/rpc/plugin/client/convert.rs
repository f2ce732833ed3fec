//! Between the wire and a plugin's types, both ways: `podinit seccomp replay`
//! plays the monitor.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::types::{
    Address, AddressKind, Bytes, Comparison, Content, Credentials, Decoded, Kind, Notification, OnFailure,
    Operation, Place, Read, Record, Request, Selector, Session, Ticket, Verdict,
};
use crate::rpc::client::Error;
use crate::rpc::schema::plugin_capnp as wire;

fn count(what: &str, len: usize) -> Result<u32, Error> {
    u32::try_from(len).map_err(|_| Error::too_long(what))
}

fn fill_texts(mut list: capnp::text_list::Builder<'_>, texts: &[String]) {
    for (index, text) in (0..list.len()).zip(texts) {
        list.set(index, text);
    }
}

/// Writes what a plugin asks for.
pub(super) fn fill_request(
    mut to: wire::registration_request::Builder<'_>,
    request: &Request,
) -> Result<(), Error> {
    to.set_name(&request.name);
    fill_selector(to.reborrow().init_selector(), &request.selector)?;
    to.set_priority(request.priority);
    to.set_deadline_ms(request.deadline_ms);
    let mut policy = to.reborrow().init_on_failure();
    match request.on_failure {
        OnFailure::Errno(number) => policy.set_errno(number),
        OnFailure::Next => policy.set_next(()),
        OnFailure::Continue => policy.set_continue(()),
        OnFailure::Kill => policy.set_kill(()),
    }
    to.set_allow_continue(request.allow_continue);
    to.set_kind(match request.kind {
        Kind::Decider => wire::registration_request::Kind::Decider,
        Kind::Observer => wire::registration_request::Kind::Observer,
    });
    to.set_batch_max(request.batch_max);
    to.set_calls_max(request.calls_max);
    to.set_decode(request.decode);
    let mut reads = to.init_reads(count("the list of reads", request.reads.len())?);
    for (index, read) in (0..reads.len()).zip(&request.reads) {
        let mut to = reads.reborrow().get(index);
        match *read {
            Read::Text { argument, bytes_max } => {
                to.set_argument(argument);
                to.set_text(bytes_max);
            }
            Read::Bytes { argument, bytes } => {
                to.set_argument(argument);
                to.set_bytes(bytes);
            }
            Read::SizedBy { argument, size } => {
                to.set_argument(argument);
                to.set_sized_by(size);
            }
        }
    }
    Ok(())
}

/// Writes a selector.
pub(in crate::rpc) fn fill_selector(
    mut to: wire::selector::Builder<'_>,
    selector: &Selector,
) -> Result<(), Error> {
    let size = count("the list of system calls", selector.syscalls.len())?;
    fill_texts(to.reborrow().init_syscalls(size), &selector.syscalls);
    let size = count("the list of containers", selector.containers.len())?;
    fill_texts(to.reborrow().init_containers(size), &selector.containers);
    let size = count("the list of architectures", selector.architectures.len())?;
    fill_texts(to.reborrow().init_architectures(size), &selector.architectures);
    let size = count("the list of metadata", selector.metadata.len())?;
    fill_texts(to.reborrow().init_metadata(size), &selector.metadata);
    let size = count("the list of annotations", selector.annotations.len())?;
    fill_labels(to.reborrow().init_annotations(size), &selector.annotations);
    let size = count("the list of labels", selector.labels.len())?;
    fill_labels(to.reborrow().init_labels(size), &selector.labels);
    let size = count("the list of comparisons", selector.comparisons.len())?;
    let mut list = to.init_comparisons(size);
    for (index, comparison) in (0..size).zip(&selector.comparisons) {
        fill_comparison(list.reborrow().get(index), comparison)?;
    }
    Ok(())
}

fn fill_comparison(mut to: wire::comparison::Builder<'_>, comparison: &Comparison) -> Result<(), Error> {
    to.set_argument(comparison.argument);
    to.set_operation(match comparison.operation {
        Operation::Equal => wire::comparison::Operation::Equal,
        Operation::NotEqual => wire::comparison::Operation::NotEqual,
        Operation::Less => wire::comparison::Operation::Less,
        Operation::LessOrEqual => wire::comparison::Operation::LessOrEqual,
        Operation::Greater => wire::comparison::Operation::Greater,
        Operation::GreaterOrEqual => wire::comparison::Operation::GreaterOrEqual,
        Operation::OneOf => wire::comparison::Operation::OneOf,
    });
    to.set_mask(comparison.mask);
    let mut values = to.init_values(count("the list of values", comparison.values.len())?);
    for (index, value) in (0..values.len()).zip(&comparison.values) {
        values.set(index, *value);
    }
    Ok(())
}

/// Writes keys and values.
pub(in crate::rpc) fn fill_labels(
    mut to: capnp::struct_list::Builder<'_, wire::label::Owned>,
    labels: &[(String, String)],
) {
    for (index, (key, value)) in (0..to.len()).zip(labels) {
        let mut label = to.reborrow().get(index);
        label.set_key(key);
        label.set_value(value);
    }
}

/// Text, whatever it holds.
fn read_text(reader: capnp::text::Reader<'_>) -> String {
    String::from_utf8_lossy(reader.as_bytes()).into_owned()
}

pub(in crate::rpc) fn read_session(session: wire::session::Reader<'_>) -> capnp::Result<Session> {
    Ok(Session {
        id: session.get_id(),
        container: read_text(session.get_container()?),
        pid: session.get_pid(),
        metadata: read_text(session.get_metadata()?),
        annotations: read_labels(session.get_annotations()?)?,
        labels: read_labels(session.get_labels()?)?,
        exec: session.get_exec(),
        since_ns: session.get_since_ns(),
    })
}

fn read_labels(
    list: capnp::struct_list::Reader<'_, wire::label::Owned>,
) -> capnp::Result<Vec<(String, String)>> {
    list.iter().map(|label| Ok((read_text(label.get_key()?), read_text(label.get_value()?)))).collect()
}

pub(in crate::rpc) fn read_notification(
    notification: wire::notification::Reader<'_>,
) -> capnp::Result<Notification> {
    let mut arguments = [0; 6];
    for (argument, value) in arguments.iter_mut().zip(notification.get_arguments()?) {
        *argument = value;
    }
    Ok(Notification {
        id: notification.get_id(),
        session: notification.get_session(),
        container: read_text(notification.get_container()?),
        tid: notification.get_tid(),
        syscall: notification.get_syscall(),
        name: read_text(notification.get_name()?),
        architecture: read_text(notification.get_architecture()?),
        instruction_pointer: notification.get_instruction_pointer(),
        arguments,
        decoded: notification.get_decoded()?.iter().map(read_decoded).collect::<capnp::Result<_>>()?,
    })
}

fn read_decoded(decoded: wire::decoded::Reader<'_>) -> capnp::Result<Decoded> {
    let content = match decoded.which().map_err(capnp::Error::from)? {
        wire::decoded::Text(text) => Content::Text(Bytes(text?.to_vec())),
        wire::decoded::Bytes(bytes) => Content::Bytes(Bytes(bytes?.to_vec())),
        wire::decoded::Address(address) => Content::Address(read_address(address?)?),
        wire::decoded::Failed(reason) => Content::Failed(read_text(reason?)),
    };
    Ok(Decoded { argument: decoded.get_argument(), content, cut: decoded.get_cut() })
}

fn read_address(address: wire::socket_address::Reader<'_>) -> capnp::Result<Address> {
    let kind = match address.which().map_err(capnp::Error::from)? {
        wire::socket_address::Other(family) => AddressKind::Other(family),
        wire::socket_address::Unix(path) => AddressKind::Unix(Bytes(path?.to_vec())),
        wire::socket_address::Inet(internet) | wire::socket_address::Inet6(internet) => {
            AddressKind::Internet(read_internet(internet?)?)
        }
    };
    Ok(Address { raw: Bytes(address.get_raw()?.to_vec()), kind })
}

fn read_internet(internet: wire::socket_address::internet::Reader<'_>) -> capnp::Result<SocketAddr> {
    let bytes = internet.get_address()?;
    let address = if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        IpAddr::V4(Ipv4Addr::from(four))
    } else if let Ok(sixteen) = <[u8; 16]>::try_from(bytes) {
        IpAddr::V6(Ipv6Addr::from(sixteen))
    } else {
        let text = format!("an internet address of {} bytes", bytes.len());
        return Err(capnp::Error::failed(text));
    };
    Ok(SocketAddr::new(address, internet.get_port()))
}

/// Writes a notification, as the monitor does.
pub(in crate::rpc) fn fill_notification(
    mut to: wire::notification::Builder<'_>,
    notification: &Notification,
) -> Result<(), Error> {
    to.set_id(notification.id);
    to.set_session(notification.session);
    to.set_container(&notification.container);
    to.set_tid(notification.tid);
    to.set_syscall(notification.syscall);
    to.set_name(&notification.name);
    to.set_architecture(&notification.architecture);
    to.set_instruction_pointer(notification.instruction_pointer);
    let mut arguments = to.reborrow().init_arguments(6);
    for (index, argument) in (0..).zip(notification.arguments) {
        arguments.set(index, argument);
    }
    let size = count("the list of decoded arguments", notification.decoded.len())?;
    let mut list = to.init_decoded(size);
    for (index, decoded) in (0..size).zip(&notification.decoded) {
        fill_decoded(list.reborrow().get(index), decoded);
    }
    Ok(())
}

fn fill_decoded(mut to: wire::decoded::Builder<'_>, decoded: &Decoded) {
    to.set_argument(decoded.argument);
    to.set_cut(decoded.cut);
    match &decoded.content {
        Content::Text(Bytes(text)) => to.set_text(text),
        Content::Bytes(Bytes(bytes)) => to.set_bytes(bytes),
        Content::Failed(reason) => to.set_failed(reason),
        Content::Address(address) => fill_address(to.init_address(), address),
    }
}

/// Writes a socket address.
pub(in crate::rpc) fn fill_address(mut to: wire::socket_address::Builder<'_>, address: &Address) {
    to.set_raw(&address.raw.0);
    match &address.kind {
        AddressKind::Other(family) => to.set_other(*family),
        AddressKind::Unix(Bytes(path)) => to.set_unix(path),
        AddressKind::Internet(SocketAddr::V4(inet)) => {
            let mut to = to.init_inet();
            to.set_address(&inet.ip().octets());
            to.set_port(inet.port());
        }
        AddressKind::Internet(SocketAddr::V6(inet)) => {
            let mut to = to.init_inet6();
            to.set_address(&inet.ip().octets());
            to.set_port(inet.port());
        }
    }
}

pub(in crate::rpc) fn fill_verdict(mut to: wire::verdict::Builder<'_>, verdict: &Verdict) {
    match verdict {
        Verdict::PassOn => to.set_pass_on(()),
        Verdict::Return(value) => to.set_return_value(*value),
        Verdict::Errno(number) => to.set_errno(*number),
        Verdict::Continue => to.set_continue(()),
        Verdict::Kill => to.set_kill(()),
        Verdict::Later => to.set_later(()),
        Verdict::AddDescriptor { ticket, at, close_on_exec } => {
            fill_descriptor(to.init_add_descriptor(), ticket, *at, *close_on_exec);
        }
    }
}

/// Writes which descriptor is installed where.
pub(super) fn fill_descriptor(
    mut to: wire::add_descriptor::Builder<'_>,
    ticket: &Ticket,
    at: Option<u32>,
    close_on_exec: bool,
) {
    to.set_ticket(&ticket.0);
    // No process can have a descriptor beyond that; the monitor refuses it.
    to.set_at(at.map_or(-1, |number| i32::try_from(number).unwrap_or(i32::MAX)));
    to.set_close_on_exec(close_on_exec);
}

fn read_verdict(verdict: wire::verdict::Reader<'_>) -> capnp::Result<Verdict> {
    Ok(match verdict.which().map_err(capnp::Error::from)? {
        wire::verdict::PassOn(()) => Verdict::PassOn,
        wire::verdict::ReturnValue(value) => Verdict::Return(value),
        wire::verdict::Errno(number) => Verdict::Errno(number),
        wire::verdict::Continue(()) => Verdict::Continue,
        wire::verdict::Kill(()) => Verdict::Kill,
        wire::verdict::Later(()) => Verdict::Later,
        wire::verdict::AddDescriptor(descriptor) => {
            let descriptor = descriptor?;
            Verdict::AddDescriptor {
                ticket: Ticket(descriptor.get_ticket()?.to_vec()),
                at: u32::try_from(descriptor.get_at()).ok(),
                close_on_exec: descriptor.get_close_on_exec(),
            }
        }
    })
}

pub(in crate::rpc) fn read_record(record: wire::record::Reader<'_>) -> capnp::Result<Record> {
    Ok(Record {
        notification: read_notification(record.get_notification()?)?,
        verdict: read_verdict(record.get_verdict()?)?,
        decided_by: read_text(record.get_decided_by()?),
        latency_us: record.get_latency_us(),
        at_ns: record.get_at_ns(),
    })
}

pub(super) fn read_credentials(credentials: wire::credentials::Reader<'_>) -> capnp::Result<Credentials> {
    Ok(Credentials {
        uid: credentials.get_uid(),
        gid: credentials.get_gid(),
        groups: credentials.get_groups()?.iter().collect(),
        capabilities: credentials.get_capabilities(),
    })
}

pub(super) fn place(place: Place) -> wire::target::Place {
    match place {
        Place::Root => wire::target::Place::Root,
        Place::WorkingDirectory => wire::target::Place::WorkingDirectory,
        Place::Pidfd => wire::target::Place::Pidfd,
    }
}
