//! Between the wire and the broker's types.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::{
    PATH_BYTES_MAX, PLUGIN_BATCH_MAX, PLUGIN_CALLS_MAX, PLUGIN_DEADLINE_DEFAULT, PLUGIN_NAME_BYTES_MAX,
    PLUGIN_READ_BYTES_MAX, PLUGIN_READS_MAX, SECCOMP_DEADLINE_MAX, SECCOMP_SELECTOR_ITEMS_MAX,
};
use crate::monitor::error::Error;
use crate::rpc::convert::{malformed, text};
use crate::rpc::schema::plugin_capnp as wire;
use crate::seccomp::decode::{Address, Content, Decoded, Read};
use crate::seccomp::foreign::ForeignFd;
use crate::seccomp::notification::{Notification, Session};
use crate::seccomp::plugin::{PluginFailure, Registration};
use crate::seccomp::select::{Comparison, Operator, Selector, Syscall};
use crate::seccomp::syscall::Architecture;
use crate::seccomp::verdict::{ERRNO_MAX, OnFailure, Verdict};

use super::client::message_options;

/// What a plugin has asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) registration: Registration,
    pub(super) terms: Terms,
    pub(super) is_observer: bool,
}

/// How a plugin wants its notifications.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// In one call, 1 or more.
    pub(super) batch_max: usize,
    /// Calls in flight, 1 or more.
    pub(super) calls_max: usize,
    /// With what well-known calls point to.
    pub(super) decode: bool,
    /// And with this.
    pub(super) reads: Vec<Read>,
}

fn invalid(sentence: impl Into<String>) -> Error {
    Error::Invalid(sentence.into())
}

/// Something of a request that could not be read at all.
fn field<T>(what: &str, value: capnp::Result<T>) -> Result<T, Error> {
    value.map_err(|error| malformed(what, &error))
}

fn bounded(what: &str, len: u32, max: usize) -> Result<(), Error> {
    if usize::try_from(len).is_ok_and(|len| len <= max) {
        return Ok(());
    }
    Err(invalid(format!("{what} has {len} entries; at most {max} are taken")))
}

/// Reads a registration's request.
pub(super) fn request(from: wire::registration_request::Reader<'_>) -> Result<Asked, Error> {
    let name = text(field("name", from.get_name())?, "name")?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > PLUGIN_NAME_BYTES_MAX || !name.chars().all(fits) {
        return Err(invalid(format!(
            "{name:?} cannot be a plugin's name: use 1 to {PLUGIN_NAME_BYTES_MAX} letters, digits, '.', '_' or '-'"
        )));
    }
    let deadline = match from.get_deadline_ms() {
        0 => PLUGIN_DEADLINE_DEFAULT,
        millis => Duration::from_millis(millis.into()),
    };
    if deadline > SECCOMP_DEADLINE_MAX {
        return Err(invalid(format!(
            "a deadline of {} ms is too long: at most {} s",
            deadline.as_millis(),
            SECCOMP_DEADLINE_MAX.as_secs()
        )));
    }
    let terms = terms(from)?;
    let kind = from.get_kind().map_err(|unknown| invalid(format!("there is no kind {}", unknown.0)))?;
    Ok(Asked {
        registration: Registration {
            name,
            selector: selector(field("selector", from.get_selector())?)?,
            priority: from.get_priority(),
            deadline,
            on_failure: on_failure(field("onFailure", from.get_on_failure())?)?,
            allow_continue: from.get_allow_continue(),
            in_flight_max: terms.batch_max.saturating_mul(terms.calls_max),
        },
        terms,
        is_observer: kind == wire::registration_request::Kind::Observer,
    })
}

fn terms(from: wire::registration_request::Reader<'_>) -> Result<Terms, Error> {
    let at_most = |what: &str, value: u16, max: usize| match usize::from(value) {
        value if value > max => Err(invalid(format!("{what} is {value}; at most {max} can be had"))),
        value => Ok(value),
    };
    let list = field("reads", from.get_reads())?;
    bounded("reads", list.len(), PLUGIN_READS_MAX)?;
    Ok(Terms {
        batch_max: at_most("batchMax", from.get_batch_max(), PLUGIN_BATCH_MAX)?.max(1),
        calls_max: match at_most("callsMax", from.get_calls_max(), PLUGIN_CALLS_MAX)? {
            0 => PLUGIN_CALLS_MAX,
            some => some,
        },
        decode: from.get_decode(),
        reads: list.iter().map(read).collect::<Result<_, _>>()?,
    })
}

fn read(from: wire::read::Reader<'_>) -> Result<Read, Error> {
    let index = |index: u8| match index {
        0..=5 => Ok(index),
        _ => Err(invalid(format!("a system call has arguments 0 to 5, not {index}"))),
    };
    let size = |size: u32, what: &str| match usize::try_from(size) {
        Ok(size) if size <= PLUGIN_READ_BYTES_MAX => Ok(size),
        _ => Err(invalid(format!(
            "{what} of {size} bytes cannot be had with each notification; at most {PLUGIN_READ_BYTES_MAX}"
        ))),
    };
    let argument = index(from.get_argument())?;
    Ok(match from.which().map_err(|unknown| invalid(format!("there is no read {}", unknown.0)))? {
        wire::read::Text(0) => Read::Text { argument, max: PATH_BYTES_MAX },
        wire::read::Text(max) => Read::Text { argument, max: size(max, "a text")? },
        wire::read::Bytes(bytes) => Read::Bytes { argument, size: size(bytes, "a piece")? },
        wire::read::SizedBy(by) => Read::SizedBy { argument, size: index(by)? },
    })
}

fn on_failure(from: wire::failure_policy::Reader<'_>) -> Result<OnFailure, Error> {
    let which =
        from.which().map_err(|unknown| invalid(format!("there is no failure policy {}", unknown.0)))?;
    Ok(match which {
        wire::failure_policy::Errno(0) => OnFailure::Errno(libc::EPERM),
        wire::failure_policy::Errno(number) if i32::from(number) <= ERRNO_MAX => {
            OnFailure::Errno(number.into())
        }
        wire::failure_policy::Errno(number) => {
            return Err(invalid(format!("{number} is no errno: they are 1 to {ERRNO_MAX}")));
        }
        wire::failure_policy::Next(()) => OnFailure::Next,
        wire::failure_policy::Continue(()) => OnFailure::Continue,
        wire::failure_policy::Kill(()) => OnFailure::Kill,
    })
}

/// Reads a selector. Its sense is judged when it is compiled.
pub(in crate::rpc) fn selector(from: wire::selector::Reader<'_>) -> Result<Selector, Error> {
    let names =
        |what: &str, list: capnp::Result<capnp::text_list::Reader<'_>>| -> Result<Vec<String>, Error> {
            let list = field(what, list)?;
            bounded(what, list.len(), SECCOMP_SELECTOR_ITEMS_MAX)?;
            list.iter().map(|item| text(field(what, item)?, what)).collect()
        };
    let syscalls = names("syscalls", from.get_syscalls())?.into_iter();
    let architectures = names("architectures", from.get_architectures())?.into_iter().map(|name| {
        let found = Architecture::ALL.into_iter().find(|known| known.as_str() == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = Architecture::ALL.iter().map(|known| known.as_str()).collect();
            invalid(format!("{name:?} is no architecture known here; use one of {}", known.join(", ")))
        })
    });
    let comparisons = field("comparisons", from.get_comparisons())?;
    bounded("comparisons", comparisons.len(), SECCOMP_SELECTOR_ITEMS_MAX)?;
    Ok(Selector {
        syscalls: syscalls.map(|name| name.parse().map_or(Syscall::Name(name), Syscall::Number)).collect(),
        arguments: comparisons.iter().map(comparison).collect::<Result<_, _>>()?,
        containers: names("containers", from.get_containers())?,
        metadata: names("metadata", from.get_metadata())?,
        annotations: labels("annotations", from.get_annotations())?,
        labels: labels("labels", from.get_labels())?,
        architectures: architectures.collect::<Result<_, _>>()?,
    })
}

fn comparison(from: wire::comparison::Reader<'_>) -> Result<Comparison, Error> {
    let values = field("values", from.get_values())?;
    bounded("values", values.len(), SECCOMP_SELECTOR_ITEMS_MAX)?;
    let operation =
        from.get_operation().map_err(|unknown| invalid(format!("there is no operation {}", unknown.0)))?;
    Ok(Comparison {
        index: from.get_argument(),
        mask: if from.get_mask() == 0 { u64::MAX } else { from.get_mask() },
        operator: match operation {
            wire::comparison::Operation::Equal => Operator::Equal,
            wire::comparison::Operation::NotEqual => Operator::NotEqual,
            wire::comparison::Operation::Less => Operator::Less,
            wire::comparison::Operation::LessOrEqual => Operator::LessOrEqual,
            wire::comparison::Operation::Greater => Operator::Greater,
            wire::comparison::Operation::GreaterOrEqual => Operator::GreaterOrEqual,
            wire::comparison::Operation::OneOf => Operator::OneOf,
        },
        values: values.iter().collect(),
    })
}

fn labels(
    what: &str,
    list: capnp::Result<capnp::struct_list::Reader<'_, wire::label::Owned>>,
) -> Result<BTreeMap<String, String>, Error> {
    let list = field(what, list)?;
    bounded(what, list.len(), SECCOMP_SELECTOR_ITEMS_MAX)?;
    let pair = |label: wire::label::Reader<'_>| {
        Ok((text(field(what, label.get_key())?, what)?, text(field(what, label.get_value())?, what)?))
    };
    list.iter().map(pair).collect()
}

/// What a plugin has answered.
#[derive(Debug)]
pub(super) enum Said {
    /// A verdict.
    Now(Verdict),
    /// There will be one.
    Later,
}

impl Said {
    /// The verdict that was put off before.
    pub(super) fn at_last(self) -> Result<Verdict, PluginFailure> {
        match self {
            Self::Now(verdict) => Ok(verdict),
            Self::Later => Err(PluginFailure::Nonsense("a verdict is put off once".into())),
        }
    }
}

/// Reads a verdict. `take` gives the descriptor that a ticket stands for.
///
/// # Errors
/// What is wrong with it.
pub(super) fn verdict(
    from: wire::verdict::Reader<'_>,
    take: impl FnOnce(&[u8]) -> Option<ForeignFd>,
) -> Result<Said, PluginFailure> {
    let nonsense = |text: &str| PluginFailure::Nonsense(text.to_owned());
    let which = from.which().map_err(|_| nonsense("there is no such verdict"))?;
    Ok(Said::Now(match which {
        wire::verdict::PassOn(()) => Verdict::Pass,
        // What a C library would take for an errno, and the kernel's own codes for restarting a call.
        wire::verdict::ReturnValue(value) if (-i64::from(ERRNO_MAX)..0).contains(&value) => {
            return Err(nonsense("this return value means an errno; say errno"));
        }
        wire::verdict::ReturnValue(value) => Verdict::Return(value),
        wire::verdict::Errno(number) if (1..=ERRNO_MAX).contains(&i32::from(number)) => {
            Verdict::Errno(number.into())
        }
        wire::verdict::Errno(_) => return Err(nonsense("an errno is 1 to 4095")),
        wire::verdict::Continue(()) => Verdict::Continue,
        wire::verdict::Kill(()) => Verdict::Kill,
        wire::verdict::Later(()) => return Ok(Said::Later),
        wire::verdict::AddDescriptor(descriptor) => {
            let Install { fd, at, close_on_exec } = descriptor
                .map_err(|_| "it cannot be read")
                .and_then(|descriptor| install(descriptor, take))
                .map_err(nonsense)?;
            Verdict::AddFd { fd, at, close_on_exec }
        }
    }))
}

/// A descriptor, and where it shall be.
#[derive(Debug)]
pub(super) struct Install {
    pub(super) fd: ForeignFd,
    pub(super) at: Option<u32>,
    pub(super) close_on_exec: bool,
}

/// Reads what is to be installed.
///
/// # Errors
/// What is wrong with it.
pub(super) fn install(
    from: wire::add_descriptor::Reader<'_>,
    take: impl FnOnce(&[u8]) -> Option<ForeignFd>,
) -> Result<Install, &'static str> {
    let at = match from.get_at() {
        -1 => None,
        number => Some(u32::try_from(number).map_err(|_| "a descriptor has a number, or -1")?),
    };
    let ticket = from.get_ticket().map_err(|_| "its ticket cannot be read")?;
    let fd = take(ticket).ok_or("no descriptor waits for this ticket; hand one over first")?;
    Ok(Install { fd, at, close_on_exec: from.get_close_on_exec() })
}

/// Reads a message, as it stands on the wire, as a plugin's answer to `decide`, and
/// as its request to `register`, with a connection's limits: how many verdicts it
/// has that can be carried out, and whether the request can. What a fuzzer calls.
#[must_use]
pub fn judge(message: &[u8]) -> (usize, bool) {
    let read = || {
        let mut rest = message;
        capnp::serialize::read_message(&mut rest, message_options()).ok()
    };
    let verdicts = read().and_then(|message| {
        let answer: wire::seccomp_plugin::decide_results::Reader<'_> = message.get_root().ok()?;
        let verdicts = answer.get_verdicts().ok()?;
        Some(verdicts.iter().take(PLUGIN_BATCH_MAX).filter(|one| verdict(*one, |_| None).is_ok()).count())
    });
    let request = read().is_some_and(|message| {
        message
            .get_root()
            .is_ok_and(|from| request(from).is_ok_and(|asked| asked.registration.selector.compile().is_ok()))
    });
    (verdicts.unwrap_or(0), request)
}

/// Bytes that a notification takes in a message, but for what each takes.
pub(super) fn notification_bytes(notification: &Notification, decoded: &[Decoded]) -> usize {
    decoded.iter().map(Decoded::bytes).sum::<usize>() + notification.container.len()
}

/// Bytes that a session takes in a message, at most: a text takes 8 more than it
/// has, for its zero and to be aligned, and a pointer to it as many.
pub(super) fn session_bytes(session: &Session) -> usize {
    const TEXT: usize = 16;
    let labels = session.annotations.len() + session.labels.len();
    session.bytes() + 2 * TEXT * labels + 16 * TEXT
}

/// Writes a notification.
pub(in crate::rpc) fn set_notification(
    mut to: wire::notification::Builder<'_>,
    notification: &Notification,
    decoded: &[Decoded],
) {
    to.set_id(notification.id);
    to.set_session(notification.session.0);
    to.set_container(&*notification.container);
    to.set_tid(notification.tid);
    to.set_syscall(notification.syscall);
    if let Some(name) = &notification.name {
        to.set_name(&**name);
    }
    if let Some(architecture) = Architecture::of(notification.arch, notification.syscall) {
        to.set_architecture(architecture.as_str());
    }
    to.set_instruction_pointer(notification.instruction_pointer);
    let mut arguments = to.reborrow().init_arguments(6);
    for (index, argument) in (0..).zip(notification.args) {
        arguments.set(index, argument);
    }
    let count = u32::try_from(decoded.len()).unwrap_or(0);
    if count == 0 {
        return;
    }
    let mut list = to.init_decoded(count);
    for (index, decoded) in (0..count).zip(decoded) {
        set_decoded(list.reborrow().get(index), decoded);
    }
}

fn set_decoded(mut to: wire::decoded::Builder<'_>, decoded: &Decoded) {
    to.set_argument(decoded.argument);
    to.set_cut(decoded.cut);
    match &decoded.content {
        Content::Text(text) => to.set_text(text),
        Content::Bytes(bytes) => to.set_bytes(bytes),
        Content::Failed(reason) => to.set_failed(reason),
        Content::Address(raw, address) => set_address(to.init_address(), raw, address),
    }
}

fn set_address(mut to: wire::socket_address::Builder<'_>, raw: &[u8], address: &Address) {
    to.set_raw(raw);
    match address {
        Address::Other(family) => to.set_other(*family),
        Address::Unix(path) => to.set_unix(path),
        Address::Internet(std::net::SocketAddr::V4(inet)) => {
            let mut to = to.init_inet();
            to.set_address(&inet.ip().octets());
            to.set_port(inet.port());
        }
        Address::Internet(std::net::SocketAddr::V6(inet)) => {
            let mut to = to.init_inet6();
            to.set_address(&inet.ip().octets());
            to.set_port(inet.port());
        }
    }
}

/// Writes a session, without a target.
pub(in crate::rpc) fn set_session(mut to: wire::session::Builder<'_>, session: &Session) {
    to.set_id(session.id.0);
    to.set_container(&*session.container);
    to.set_pid(session.pid);
    to.set_metadata(&*session.metadata);
    let count = |map: &BTreeMap<String, String>| u32::try_from(map.len()).unwrap_or(0);
    set_labels(to.reborrow().init_annotations(count(&session.annotations)), &session.annotations);
    set_labels(to.reborrow().init_labels(count(&session.labels)), &session.labels);
    to.set_exec(session.is_exec);
    to.set_since_ns(session.since_ns);
}

fn set_labels(mut to: capnp::struct_list::Builder<'_, wire::label::Owned>, map: &BTreeMap<String, String>) {
    for (index, (key, value)) in (0..to.len()).zip(map) {
        let mut label = to.reborrow().get(index);
        label.set_key(key);
        label.set_value(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(write: impl FnOnce(wire::verdict::Builder<'_>)) -> Result<Said, PluginFailure> {
        let mut message = capnp::message::Builder::new_default();
        write(message.init_root());
        verdict(message.get_root_as_reader().unwrap(), |ticket| {
            (ticket == b"good")
                .then(|| std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).into())
        })
    }

    #[test]
    fn an_empty_answer_allows_nothing() {
        assert!(matches!(judge(|_| ()), Ok(Said::Now(Verdict::Pass))));
    }

    #[test]
    fn nonsense_is_no_verdict() {
        for value in [-1, -4095] {
            assert!(judge(|mut to| to.set_return_value(value)).is_err(), "{value}");
        }
        for value in [0, 1, i64::MAX, -4096] {
            let said = judge(|mut to| to.set_return_value(value));
            assert!(matches!(said, Ok(Said::Now(Verdict::Return(same))) if same == value));
        }
        assert!(judge(|mut to| to.set_errno(0)).is_err());
        assert!(judge(|mut to| to.set_errno(4096)).is_err());
        assert!(matches!(judge(|mut to| to.set_errno(4095)), Ok(Said::Now(Verdict::Errno(4095)))));
    }

    #[test]
    fn a_descriptor_needs_its_ticket() {
        let with = |ticket: &'static [u8], at: i32| {
            judge(move |to| {
                let mut to = to.init_add_descriptor();
                to.set_ticket(ticket);
                to.set_at(at);
            })
        };
        assert!(matches!(with(b"good", -1), Ok(Said::Now(Verdict::AddFd { at: None, .. }))));
        assert!(matches!(with(b"good", 7), Ok(Said::Now(Verdict::AddFd { at: Some(7), .. }))));
        assert!(with(b"bad", -1).is_err());
        assert!(with(b"", -1).is_err());
        assert!(with(b"good", -2).is_err());
    }

    fn asked(write: impl FnOnce(wire::registration_request::Builder<'_>)) -> Result<Asked, Error> {
        let mut message = capnp::message::Builder::new_default();
        let mut to: wire::registration_request::Builder<'_> = message.init_root();
        to.set_name("p");
        write(to);
        request(message.get_root_as_reader().unwrap())
    }

    #[test]
    fn defaults_are_safe() {
        let asked = asked(|_| ()).unwrap();
        assert_eq!(asked.registration.on_failure, OnFailure::Errno(libc::EPERM));
        assert!(!asked.registration.allow_continue);
        assert_eq!(asked.registration.deadline, PLUGIN_DEADLINE_DEFAULT);
        assert_eq!((asked.terms.batch_max, asked.terms.calls_max), (1, PLUGIN_CALLS_MAX));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        type Write = fn(wire::registration_request::Builder<'_>);
        let cases: [(&str, Write); 7] = [
            ("plugin's name", |mut to| to.set_name("a b")),
            ("plugin's name", |mut to| to.set_name("")),
            ("too long", |mut to| to.set_deadline_ms(u32::MAX)),
            ("batchMax", |mut to| to.set_batch_max(u16::MAX)),
            ("no errno", |to| to.init_on_failure().set_errno(4096)),
            ("arguments 0 to 5", |to| to.init_reads(1).get(0).set_argument(6)),
            ("architecture", |to| to.init_selector().init_architectures(1).set(0, "pdp11")),
        ];
        for (reason, write) in cases {
            let error = asked(write).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
