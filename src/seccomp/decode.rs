//! What arguments point to: paths and socket addresses, copied once, for those
//! who want to judge values and not pointers.
//!
//! The process can change the memory after it was copied. Whoever allows a call
//! because of what is here must act on the copy, and not continue the call.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::notification::Notification;
use super::target::{Target, TargetError};
use crate::limits::{PATH_BYTES_MAX, PLUGIN_READ_BYTES_MAX};

/// A piece of memory that an argument points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// A text, to its zero byte, of at most so many bytes.
    Text {
        /// The pointer, 0 to 5.
        argument: u8,
        /// Bytes.
        max: usize,
    },
    /// So many bytes.
    Bytes {
        /// The pointer, 0 to 5.
        argument: u8,
        /// Bytes.
        size: usize,
    },
    /// As many bytes as another argument says.
    SizedBy {
        /// The pointer, 0 to 5.
        argument: u8,
        /// The argument with the number of bytes, 0 to 5.
        size: u8,
    },
    /// A `struct sockaddr`, as long as another argument says.
    Address {
        /// The pointer, 0 to 5.
        argument: u8,
        /// The argument with its length, 0 to 5.
        size: u8,
    },
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The pointer's argument.
    pub argument: u8,
    /// What was there.
    pub content: Content,
    /// There was more than is read, or not all that was asked for.
    pub cut: bool,
}

impl Decoded {
    /// Bytes of memory that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(bytes) | Content::Bytes(bytes) | Content::Address(bytes, _) => bytes.len(),
            Content::Failed(_) => 0,
        }
    }
}

/// What can be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Up to a zero byte, which is not in it.
    Text(Vec<u8>),
    /// Of a length that was known.
    Bytes(Vec<u8>),
    /// A socket address: as it was, and what it says.
    Address(Vec<u8>, Address),
    /// It could not be read.
    Failed(String),
}

/// What a `struct sockaddr` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A path; an abstract name begins with a zero byte; an unnamed one is empty (unix(7)).
    Unix(Vec<u8>),
    /// IPv4 or IPv6 (ip(7), ipv6(7)).
    Internet(SocketAddr),
    /// Of another family, or too short for its family.
    Other(u16),
}

/// The greatest `struct sockaddr` (`struct sockaddr_storage`, sys/socket.h).
const ADDRESS_BYTES_MAX: usize = 128;

/// Paths that a system call takes: their arguments, by the call's name.
const PATHS: &[(&[u8], &[&str])] = &[
    (
        &[0],
        &[
            "access",
            "acct",
            "chdir",
            "chmod",
            "chown",
            "chown32",
            "chroot",
            "creat",
            "execve",
            "lchown",
            "lchown32",
            "lstat",
            "lstat64",
            "mkdir",
            "mknod",
            "open",
            "readlink",
            "rmdir",
            "stat",
            "stat64",
            "statfs",
            "statfs64",
            "swapoff",
            "swapon",
            "truncate",
            "truncate64",
            "umount",
            "umount2",
            "unlink",
            "utime",
            "utimes",
        ],
    ),
    (
        &[1],
        &[
            "execveat",
            "faccessat",
            "faccessat2",
            "fchmodat",
            "fchmodat2",
            "fchownat",
            "fspick",
            "fstatat64",
            "futimesat",
            "inotify_add_watch",
            "mkdirat",
            "mknodat",
            "name_to_handle_at",
            "newfstatat",
            "open_tree",
            "openat",
            "openat2",
            "readlinkat",
            "statx",
            "unlinkat",
            "utimensat",
        ],
    ),
    (
        &[0, 1],
        &[
            "getxattr",
            "lgetxattr",
            "link",
            "lremovexattr",
            "lsetxattr",
            "pivot_root",
            "removexattr",
            "rename",
            "setxattr",
            "symlink",
        ],
    ),
    (&[0, 1, 2], &["mount"]),
    (&[0, 2], &["symlinkat"]),
    (&[1, 3], &["linkat", "move_mount", "renameat", "renameat2"]),
];

/// Socket addresses that a system call takes: pointer and length.
const ADDRESSES: &[(&str, u8, u8)] = &[("bind", 1, 2), ("connect", 1, 2), ("sendto", 4, 5)];

/// What the arguments of a well-known system call point to.
#[must_use]
pub fn well_known(name: &str) -> Vec<Read> {
    let addresses = ADDRESSES.iter().filter(|(call, ..)| *call == name);
    let addresses = addresses.map(|&(_, argument, size)| Read::Address { argument, size });
    let paths = PATHS.iter().filter(|(_, names)| names.contains(&name)).flat_map(|(arguments, _)| *arguments);
    addresses.chain(paths.map(|&argument| Read::Text { argument, max: PATH_BYTES_MAX })).collect()
}

impl Read {
    fn argument(self) -> u8 {
        match self {
            Self::Text { argument, .. }
            | Self::Bytes { argument, .. }
            | Self::SizedBy { argument, .. }
            | Self::Address { argument, .. } => argument,
        }
    }

    /// Bytes that it brings at most.
    #[must_use]
    pub fn bytes_max(self, notification: &Notification) -> usize {
        match self {
            Self::Text { max, .. } => max,
            Self::Bytes { size, .. } => size,
            Self::SizedBy { size, .. } => length(notification, size, PLUGIN_READ_BYTES_MAX).0,
            Self::Address { size, .. } => length(notification, size, ADDRESS_BYTES_MAX).0,
        }
    }

    /// Reads it; `None` where the pointer is null.
    pub async fn of(self, notification: &Notification, target: &Target) -> Option<Decoded> {
        let argument = self.argument();
        let address = value(notification, argument);
        if address == 0 {
            return None;
        }
        let size = self.bytes_max(notification);
        let (read, cut) = match self {
            Self::Text { max, .. } => (target.read_string(address, max).await.map(Content::Text), false),
            Self::Bytes { .. } => (target.read_memory(address, size).await.map(Content::Bytes), false),
            Self::SizedBy { size: by, .. } => {
                let cut = length(notification, by, size).1;
                (target.read_memory(address, size).await.map(Content::Bytes), cut)
            }
            Self::Address { size: by, .. } => {
                let cut = length(notification, by, size).1;
                let read = target.read_memory(address, size).await;
                (read.map(|raw| Content::Address(raw.clone(), Address::parse(&raw))), cut)
            }
        };
        let content = read.unwrap_or_else(|error: TargetError| Content::Failed(error.to_string()));
        let mut decoded = Decoded { argument, content, cut };
        // Memory ends where a page is not there. A text has its end, and a failure says so itself.
        decoded.cut |=
            matches!(decoded.content, Content::Bytes(_) | Content::Address(..)) && decoded.bytes() < size;
        Some(decoded)
    }
}

fn value(notification: &Notification, argument: u8) -> u64 {
    notification.args.get(usize::from(argument)).copied().unwrap_or(0)
}

/// The length that argument `index` gives, `max` at most, and whether that is less.
/// Lengths are 32 bits wide in every call that has one; a size_t of more is cut anyway.
fn length(notification: &Notification, index: u8, max: usize) -> (usize, bool) {
    let asked = usize::try_from(value(notification, index) & 0xffff_ffff).unwrap_or(usize::MAX);
    (asked.min(max), asked > max)
}

impl Address {
    /// Reads a `struct sockaddr` of any length.
    #[must_use]
    pub fn parse(raw: &[u8]) -> Self {
        let Some((family, rest)) = raw.split_first_chunk::<2>() else { return Self::Other(0) };
        let family = u16::from_ne_bytes(*family);
        match i32::from(family) {
            libc::AF_UNIX => Self::Unix(unix_path(rest)),
            libc::AF_INET => inet(rest).map_or(Self::Other(family), Self::Internet),
            libc::AF_INET6 => inet6(rest).map_or(Self::Other(family), Self::Internet),
            _ => Self::Other(family),
        }
    }
}

/// An abstract name has its length, zero bytes and all; a path ends at a zero byte.
fn unix_path(bytes: &[u8]) -> Vec<u8> {
    if bytes.first() == Some(&0) {
        return bytes.to_vec();
    }
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// `struct sockaddr_in` after its family: port, address, padding.
fn inet(bytes: &[u8]) -> Option<SocketAddr> {
    let (port, rest) = bytes.split_first_chunk::<2>()?;
    let (address, _) = rest.split_first_chunk::<4>()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(*address), u16::from_be_bytes(*port)).into())
}

/// `struct sockaddr_in6` after its family: port, flow, address, scope.
fn inet6(bytes: &[u8]) -> Option<SocketAddr> {
    let (port, rest) = bytes.split_first_chunk::<2>()?;
    let (flow, rest) = rest.split_first_chunk::<4>()?;
    let (address, rest) = rest.split_first_chunk::<16>()?;
    let scope = rest.first_chunk::<4>().map_or(0, |scope| u32::from_ne_bytes(*scope));
    let address = Ipv6Addr::from(*address);
    Some(SocketAddrV6::new(address, u16::from_be_bytes(*port), u32::from_be_bytes(*flow), scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(family: i32, rest: &[u8]) -> Vec<u8> {
        [&u16::try_from(family).unwrap().to_ne_bytes()[..], rest].concat()
    }

    #[test]
    fn addresses_are_what_the_kernel_would_take() {
        let four = Address::parse(&raw(libc::AF_INET, &[0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(four, Address::Internet("127.0.0.1:80".parse().unwrap()));
        let mut six = vec![1, 187, 0, 0, 0, 0];
        six.extend(Ipv6Addr::LOCALHOST.octets());
        six.extend([0; 4]);
        assert_eq!(
            Address::parse(&raw(libc::AF_INET6, &six)),
            Address::Internet("[::1]:443".parse().unwrap())
        );
        assert_eq!(
            Address::parse(&raw(libc::AF_UNIX, b"/run/x\0garbage")),
            Address::Unix(b"/run/x".to_vec())
        );
        assert_eq!(Address::parse(&raw(libc::AF_UNIX, b"\0ab\0c")), Address::Unix(b"\0ab\0c".to_vec()));
        assert_eq!(Address::parse(&raw(libc::AF_UNIX, b"")), Address::Unix(vec![]));
        assert_eq!(Address::parse(&raw(libc::AF_NETLINK, b"x")), Address::Other(16));
    }

    #[test]
    fn short_addresses_are_not_completed() {
        assert_eq!(Address::parse(b""), Address::Other(0));
        assert_eq!(Address::parse(b"\x02"), Address::Other(0));
        assert_eq!(Address::parse(&raw(libc::AF_INET, &[0, 80, 127, 0, 0])), Address::Other(2));
        assert_eq!(Address::parse(&raw(libc::AF_INET6, &[0; 21])), Address::Other(10));
    }

    #[test]
    fn well_known_calls_have_their_paths() {
        let text = |argument| Read::Text { argument, max: PATH_BYTES_MAX };
        assert_eq!(well_known("mkdir"), [text(0)]);
        assert_eq!(well_known("renameat2"), [text(1), text(3)]);
        assert_eq!(well_known("connect"), [Read::Address { argument: 1, size: 2 }]);
        assert_eq!(well_known("getpid"), []);
    }
}
