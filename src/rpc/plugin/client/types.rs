//! What a plugin registers, is asked and answers, in plain Rust types. They are
//! also the JSON of `podinit seccomp trace` and `replay`.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a plugin registers: whom it wants to decide about, and on what terms.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// In logs and statistics: 1 to 63 letters, digits, `.`, `_` or `-`.
    pub name: String,
    /// Which system calls of whom.
    pub selector: Selector,
    /// The lowest is asked first.
    pub priority: i32,
    /// Milliseconds for one verdict; 0 = the monitor's default.
    pub deadline_ms: u32,
    /// What happens when there is no verdict, or none that makes sense.
    pub on_failure: OnFailure,
    /// Without it [`Verdict::Continue`] is refused.
    pub allow_continue: bool,
    /// Whether it decides or only looks on.
    pub kind: Kind,
    /// Notifications in one call; 0 and 1: each has a call of its own.
    pub batch_max: u16,
    /// Calls in flight; 0 = the monitor's maximum.
    pub calls_max: u16,
    /// Bring the paths and socket addresses of well-known system calls.
    pub decode: bool,
    /// Bring this, too.
    pub reads: Vec<Read>,
}

impl Request {
    /// Decides about `syscalls` of every container of the pod, with decoded
    /// arguments, and otherwise the defaults.
    #[must_use]
    pub fn new(name: &str, syscalls: &[&str]) -> Self {
        let syscalls = syscalls.iter().map(|&name| name.to_owned()).collect();
        let selector = Selector { syscalls, ..Selector::default() };
        Self { name: name.to_owned(), selector, decode: true, ..Self::default() }
    }
}

/// What a plugin does with what it is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// It gives verdicts.
    #[default]
    Decider,
    /// It is told of verdicts, afterwards.
    Observer,
}

/// What stands in for a verdict that does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The call fails with this number.
    Errno(u16),
    /// The next plugin decides.
    Next,
    /// The kernel makes the call.
    Continue,
    /// SIGKILL to the process.
    Kill,
}

impl Default for OnFailure {
    fn default() -> Self {
        // 0 stands for EPERM on the wire.
        Self::Errno(0)
    }
}

/// Which notifications: all that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    /// Names as libseccomp has them, or decimal numbers.
    pub syscalls: Vec<String>,
    /// Of arguments; all of them must hold.
    pub comparisons: Vec<Comparison>,
    /// Container ids; any of them.
    pub containers: Vec<String>,
    /// The profile's `listenerMetadata`; any of them.
    pub metadata: Vec<String>,
    /// Annotations of the container; all of them.
    pub annotations: Vec<(String, String)>,
    /// Labels of the container; all of them.
    pub labels: Vec<(String, String)>,
    /// `SCMP_ARCH_X86_64` and so on, as profiles have them; any of them.
    pub architectures: Vec<String>,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// Is one of the values.
    OneOf,
}

/// A comparison of one argument, as an unsigned number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// 0 to 5.
    pub argument: u8,
    /// How.
    pub operation: Operation,
    /// With what: one value, but for [`Operation::OneOf`].
    pub values: Vec<u64>,
    /// Bits of the argument that are compared; 0 = all of them.
    pub mask: u64,
}

/// Memory to bring with a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// A text to its zero byte, at most so many bytes.
    Text {
        /// 0 to 5: the argument that points to it.
        argument: u8,
        /// Bytes; 0 = 4096.
        bytes_max: u32,
    },
    /// So many bytes.
    Bytes {
        /// 0 to 5: the argument that points to them.
        argument: u8,
        /// Their number.
        bytes: u32,
    },
    /// As many bytes as another argument says.
    SizedBy {
        /// 0 to 5: the argument that points to them.
        argument: u8,
        /// 0 to 5: the argument that has their number.
        size: u8,
    },
}

/// A listener: processes of one container, or of one exec, under one filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Not used again while the pod lives.
    pub id: u64,
    /// The container's id.
    pub container: String,
    /// The process that got the filter.
    pub pid: u32,
    /// The profile's `listenerMetadata`.
    pub metadata: String,
    /// Annotations of the container.
    pub annotations: Vec<(String, String)>,
    /// Its labels, where the engine passes them.
    pub labels: Vec<(String, String)>,
    /// Whether it is an exec's.
    pub exec: bool,
    /// Unix time in nanoseconds.
    pub since_ns: u64,
}

/// A system call that waits for a verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notification {
    /// Unique in its session.
    pub id: u64,
    /// The session.
    pub session: u64,
    /// The container's id.
    pub container: String,
    /// The calling thread, as the monitor sees it.
    pub tid: u32,
    /// The system call's number on [`Self::architecture`].
    pub syscall: i32,
    /// Its name; empty if libseccomp has none.
    pub name: String,
    /// As in [`Selector::architectures`].
    pub architecture: String,
    /// Where it was called from.
    pub instruction_pointer: u64,
    /// As they were in the registers.
    pub arguments: [u64; 6],
    /// What arguments pointed to when the call was received.
    pub decoded: Vec<Decoded>,
}

impl Notification {
    /// The path, or other text, that argument `index` pointed to; whole, or not at all.
    #[must_use]
    pub fn text(&self, index: u8) -> Option<&[u8]> {
        match &self.decoded(index)?.content {
            Content::Text(Bytes(text)) => Some(text),
            _ => None,
        }
    }

    /// The socket address that argument `index` pointed to.
    #[must_use]
    pub fn address(&self, index: u8) -> Option<&Address> {
        match &self.decoded(index)?.content {
            Content::Address(address) => Some(address),
            _ => None,
        }
    }

    fn decoded(&self, index: u8) -> Option<&Decoded> {
        self.decoded.iter().find(|decoded| decoded.argument == index && !decoded.cut)
    }
}

/// What one argument pointed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoded {
    /// 0 to 5.
    pub argument: u8,
    /// What was there.
    pub content: Content,
    /// There was more, or not all of it could be read.
    #[serde(default)]
    pub cut: bool,
}

/// The kinds of what an argument can point to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Up to a zero byte.
    Text(Bytes),
    /// Of a known length.
    Bytes(Bytes),
    /// A `struct sockaddr`.
    Address(Address),
    /// It could not be read, and why.
    Failed(String),
}

/// A socket address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// `struct sockaddr`, as it was.
    pub raw: Bytes,
    /// What it says.
    pub kind: AddressKind,
}

/// What a socket address says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressKind {
    /// A path; an abstract name begins with a zero byte.
    Unix(Bytes),
    /// IPv4 or IPv6.
    Internet(SocketAddr),
    /// Another address family.
    Other(u16),
}

/// Bytes that are mostly text: in JSON a string where they are UTF-8, and
/// otherwise a list of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            List(Vec<u8>),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Text(text) => Self(text.into_bytes()),
            Either::List(bytes) => Self(bytes),
        })
    }
}

/// A descriptor that changes hands: made by the monitor, good for one use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub Vec<u8>);

/// What a plugin says about a notification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The next plugin decides.
    #[default]
    PassOn,
    /// The call is not made and has returned this.
    Return(i64),
    /// The call is not made and has failed with this number, 1 to 4095.
    Errno(u16),
    /// The kernel makes the call, with whatever its pointers point to by then.
    Continue,
    /// The call returns the number of this descriptor.
    AddDescriptor {
        /// The descriptor.
        ticket: Ticket,
        /// The number that it shall have; `None` = the lowest that is free.
        at: Option<u32>,
        /// Close it on exec.
        close_on_exec: bool,
    },
    /// SIGKILL to the process.
    Kill,
    /// The answer comes by [`super::Plugged::answer`].
    Later,
}

/// A call that has been answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The call.
    pub notification: Notification,
    /// What was answered; [`Verdict::PassOn`] if nobody was there any more to be answered.
    #[serde(default)]
    pub verdict: Verdict,
    /// A plugin, a built-in, or `default`.
    #[serde(default)]
    pub decided_by: String,
    /// Microseconds from its reception to the answer.
    #[serde(default)]
    pub latency_us: u64,
    /// Unix time of the answer, in nanoseconds.
    #[serde(default)]
    pub at_ns: u64,
}

/// Who makes a call: the effective ids and capabilities of the thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// A bit each, capabilities(7).
    pub capabilities: u64,
}

/// What can be had of a process besides its descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its root directory (O_PATH).
    Root,
    /// Its working directory (O_PATH).
    WorkingDirectory,
    /// A pidfd of it.
    Pidfd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_bytes_that_are_no_text() {
        for bytes in [b"/tmp/x".to_vec(), vec![b'/', 0xff, 0]] {
            let text = serde_json::to_string(&Bytes(bytes.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Bytes>(&text).unwrap().0, bytes, "{text}");
        }
    }

    #[test]
    fn a_notification_can_be_written_by_hand() {
        let text = r#"{"name":"mkdir","decoded":[{"argument":0,"content":{"text":"/x"}}]}"#;
        let notification: Notification = serde_json::from_str(text).unwrap();
        assert_eq!(notification.text(0), Some(&b"/x"[..]));
        assert_eq!(notification.text(1), None);
        serde_json::from_str::<Notification>(r#"{"nmae":"mkdir"}"#).unwrap_err();
    }

    #[test]
    fn what_was_cut_is_not_taken_for_whole() {
        let content = Content::Text(Bytes(b"/allowed".to_vec()));
        let decoded = vec![Decoded { argument: 1, content, cut: true }];
        assert_eq!(Notification { decoded, ..Notification::default() }.text(1), None);
    }
}
