//! Sysctls of a pod: which exist per namespace, and what their names look like.
#![forbid(unsafe_code)]

use std::ffi::CString;

use super::{Error, Kind};
use crate::limits::SYSCTL_VALUE_BYTES_MAX;

/// Of the `kernel.` sysctls, those that every ipc namespace has of its own (ipc/ipc_sysctl.c).
const IPC: [&str; 12] = [
    "kernel/auto_msgmni",
    "kernel/msg_next_id",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/sem_next_id",
    "kernel/shm_next_id",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// A sysctl that is sound and belongs to a kind of namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below `/proc/sys`.
    pub path: CString,
    /// What is written there, as it is.
    pub value: Vec<u8>,
    /// The namespace that it is a property of.
    pub kind: Kind,
}

impl Sysctl {
    /// Checks a key and a value. Keys are written as sysctl.d(5) has it: if the
    /// first separator is a dot, dots separate and a slash stands for a dot in
    /// a name (`net.ipv4.conf.eth0/100.forwarding`); if it is a slash, slashes separate.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the key leaves `/proc/sys`, is malformed, or is a
    /// setting of the whole host; or the value is empty or longer than a page.
    pub fn parse(key: &str, value: &str) -> Result<Self, Error> {
        let invalid = |what: &str| Error::Invalid(format!("sysctl {key:?}: {what}"));
        let path = path_of(key);
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(invalid("a name like net.ipv4.ip_forward is needed, without empty parts or `..`"));
        }
        if value.is_empty() {
            return Err(invalid("its value is empty"));
        }
        if value.len() > SYSCTL_VALUE_BYTES_MAX {
            return Err(invalid("its value is longer than the kernel takes in one write"));
        }
        let kind = kind_of(&path)
            .ok_or_else(|| invalid("no namespace has it of its own, so setting it would change the host"))?;
        let path = CString::new(path).map_err(|_| invalid("it holds a NUL byte"))?;
        Ok(Self { path, value: value.as_bytes().to_vec(), kind })
    }
}

fn path_of(key: &str) -> String {
    match key.chars().find(|c| matches!(c, '.' | '/')) {
        Some('.') => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

fn kind_of(path: &str) -> Option<Kind> {
    if path.starts_with("net/") {
        return Some(Kind::Net);
    }
    if path.starts_with("fs/mqueue/") || IPC.contains(&path) {
        return Some(Kind::Ipc);
    }
    if matches!(path, "kernel/hostname" | "kernel/domainname") {
        return Some(Kind::Uts);
    }
    // user.max_user_namespaces and its kin are counted per user namespace (kernel/ucount.c).
    path.starts_with("user/max_").then_some(Kind::User)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_the_namespace_that_has_them() {
        let cases = [
            ("net.ipv4.ip_forward", Some(("net/ipv4/ip_forward", Kind::Net))),
            ("net/ipv4/conf/eth0.100/forwarding", Some(("net/ipv4/conf/eth0.100/forwarding", Kind::Net))),
            ("net.ipv4.conf.eth0/100.forwarding", Some(("net/ipv4/conf/eth0.100/forwarding", Kind::Net))),
            ("kernel.shmmax", Some(("kernel/shmmax", Kind::Ipc))),
            ("kernel.sem", Some(("kernel/sem", Kind::Ipc))),
            ("fs.mqueue.msg_max", Some(("fs/mqueue/msg_max", Kind::Ipc))),
            ("kernel.domainname", Some(("kernel/domainname", Kind::Uts))),
            ("user.max_net_namespaces", Some(("user/max_net_namespaces", Kind::User))),
            ("kernel.panic", None),
            ("vm.swappiness", None),
            ("net", None),
            ("", None),
            (".net", None),
            ("/net/ipv4/ip_forward", None),
            ("net..ip_forward", None),
            ("net/../kernel/panic", None),
            ("net.ipv4.", None),
            ("net/./x", None),
            ("net.ipv4.a\0b", None),
        ];
        for (key, expected) in cases {
            let got = Sysctl::parse(key, "1").ok();
            let got = got.as_ref().map(|s| (s.path.to_str().unwrap(), s.kind));
            assert_eq!(got, expected, "{key:?}");
        }
    }

    #[test]
    fn values_that_the_kernel_would_cut_or_ignore_are_refused() {
        assert!(Sysctl::parse("net.core.somaxconn", "").is_err());
        assert!(Sysctl::parse("net.core.somaxconn", &"1".repeat(SYSCTL_VALUE_BYTES_MAX)).is_ok());
        assert!(Sysctl::parse("net.core.somaxconn", &"1".repeat(SYSCTL_VALUE_BYTES_MAX + 1)).is_err());
    }
}
