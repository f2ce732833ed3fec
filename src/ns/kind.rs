//! Kinds of namespaces, and their names in all the places that have one.
#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::sys::namespace::Flags;

/// A kind of namespace (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Network devices, addresses, routes, sockets.
    Net,
    /// System V objects and POSIX message queues.
    Ipc,
    /// Host name and domain name.
    Uts,
    /// User and group ids, capabilities; owns the other namespaces.
    User,
    /// Process ids.
    Pid,
    /// The root of the visible cgroup tree.
    Cgroup,
    /// The mounts.
    Mnt,
    /// Offsets of the monotonic clocks.
    Time,
}

impl Kind {
    /// Every kind, in the order in which namespaces are pinned: the user
    /// namespace, which owns the rest, first; mnt, whose pin is special, last.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Uts, Self::Ipc, Self::Net, Self::Cgroup, Self::Pid, Self::Time, Self::Mnt];

    /// The name in `/proc/<pid>/ns`, in OCI and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::User => "user",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Mnt => "mnt",
            Self::Time => "time",
        }
    }

    /// The directory below a base directory where pins of this kind are.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::Net => "netns",
            Self::Ipc => "ipcns",
            Self::Uts => "utsns",
            Self::User => "userns",
            Self::Pid => "pidns",
            Self::Cgroup => "cgroupns",
            Self::Mnt => "mntns",
            Self::Time => "timens",
        }
    }

    /// The `CLONE_NEW...` flag.
    pub(crate) fn flag(self) -> Flags {
        match self {
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Mnt => libc::CLONE_NEWNS,
            Self::Time => libc::CLONE_NEWTIME,
        }
    }

    /// The kind with this `CLONE_NEW...` flag.
    pub(crate) fn from_flag(flag: Flags) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.flag() == flag)
    }

    /// Where the calling thread's own is. For pid and time: the one that
    /// children are born in, which is the one that unshare(2) makes.
    pub(crate) fn own_path(self) -> &'static CStr {
        match self {
            Self::Net => c"/proc/thread-self/ns/net",
            Self::Ipc => c"/proc/thread-self/ns/ipc",
            Self::Uts => c"/proc/thread-self/ns/uts",
            Self::User => c"/proc/thread-self/ns/user",
            Self::Pid => c"/proc/thread-self/ns/pid_for_children",
            Self::Cgroup => c"/proc/thread-self/ns/cgroup",
            Self::Mnt => c"/proc/thread-self/ns/mnt",
            Self::Time => c"/proc/thread-self/ns/time_for_children",
        }
    }

    /// The sysctl in `/proc/sys/user` that limits how many there may be.
    pub(crate) fn limit(self) -> String {
        format!("/proc/sys/user/max_{}_namespaces", self.name())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("{name:?} is no kind of namespace; there are {}", all.join(", ")))
    }
}
