//! What is known of a stopped call, and of the listener that it came from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

/// One listener of the pod's, by a number that is not used again. A container
/// has one for its first process and one for every exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A listener, as the OCI runtime has described it (runtime-spec,
/// config-linux.md, "The Container Process State").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// The pod: what the engine's annotations say, else the name of the run directory.
    pub pod: Rc<str>,
    /// The container's id.
    pub container: Rc<str>,
    /// The profile's `listenerMetadata`; empty if it has none.
    pub metadata: Rc<str>,
    /// The process that the profile was installed in, as the runtime sees it;
    /// not the container's first process in a session of an exec.
    pub pid: u32,
    /// Whether it is an exec's.
    pub is_exec: bool,
    /// The container's bundle, as the runtime says.
    pub bundle: PathBuf,
    /// The container's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The container's labels, where the engine passes them in an annotation.
    pub labels: BTreeMap<String, String>,
    /// When the listener arrived: Unix time in nanoseconds.
    pub since_ns: u64,
}

impl Session {
    /// Bytes of its texts.
    pub(crate) fn bytes(&self) -> usize {
        let maps = self.annotations.iter().chain(&self.labels);
        let texts: usize = maps.map(|(key, value)| key.len() + value.len()).sum();
        texts + self.container.len() + self.metadata.len() + self.bundle.as_os_str().len()
    }
}

/// A call that waits for an answer (`struct seccomp_notif`, seccomp_unotify(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The kernel's number of it, unique for its listener.
    pub id: u64,
    /// Its listener.
    pub session: SessionId,
    /// The thread that made the call, in this process' pid namespace; 0 if it
    /// cannot be seen from here.
    pub tid: u32,
    /// The container's id.
    pub container: Rc<str>,
    /// The profile's `listenerMetadata`.
    pub metadata: Rc<str>,
    /// The call's number.
    pub syscall: i32,
    /// Its name; `None` for a number that libseccomp does not know.
    pub name: Option<Rc<str>>,
    /// The architecture that the number is of: an `AUDIT_ARCH_*` of linux/audit.h.
    pub arch: u32,
    /// Where in the program the call was made.
    pub instruction_pointer: u64,
    /// The registers. Of a 32-bit argument the upper half may hold anything.
    pub args: [u64; 6],
}

impl Notification {
    /// The name, or the number as text.
    #[must_use]
    pub fn call(&self) -> Rc<str> {
        self.name.clone().unwrap_or_else(|| self.syscall.to_string().into())
    }
}
