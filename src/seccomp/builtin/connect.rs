//! connect(2) to addresses that are allowed, made by the broker.
//!
//! The address is in the target's memory, where another of its threads can change
//! it after it was looked at. So the kernel is never told to go on: the address is
//! copied once, judged, and used by the broker itself, on its own copy of the
//! target's socket. What the target's memory says by then is of no importance.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use crate::seccomp::foreign::ForeignFd;
use crate::seccomp::notification::Notification;
use crate::seccomp::plugin::{Decision, Plugin, PluginFailure};
use crate::seccomp::rules;
use crate::seccomp::select::restricting;
use crate::seccomp::target::{Target, TargetError};
use crate::seccomp::verdict::{OnFailure, Verdict};
use crate::seccomp::worker::Workers;

/// The greatest length that the kernel takes for an address (`struct
/// sockaddr_storage`, linux/socket.h).
const ADDRESS_BYTES_MAX: u64 = 128;

/// Addresses that may be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "an entry such as {\"address\": \"10.0.0.0/8\", \"ports\": [443]}")]
pub struct Allowed {
    /// Which hosts.
    pub address: Network,
    /// Which ports; all if there are none, which in JSON is to be left out.
    #[serde(default, deserialize_with = "restricting")]
    pub ports: Vec<u16>,
}

/// An IPv4 or IPv6 network: `10.0.0.0/8`, `::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.as_str(), None),
        };
        let parsed = IpAddr::from_str(address).ok().and_then(|address| {
            let bits = if address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
            let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok())?;
            (prefix <= bits).then_some(Self { address, prefix })
        });
        parsed.ok_or_else(|| format!("{text:?} is no network; write 10.0.0.0/8, ::1 or the like"))
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = Ipv4Addr::BITS - self.prefix;
                network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = Ipv6Addr::BITS - self.prefix;
                network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

/// An address as a program passes it to connect(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// IPv4 or IPv6.
    Internet(SocketAddr),
    /// `AF_UNSPEC`: the socket is to have no peer any more.
    Nothing,
    /// `AF_UNIX`.
    Unix,
    /// Another family.
    Other(u16),
}

impl Address {
    /// Reads a `struct sockaddr`. `None` if it is too short for its family: the
    /// kernel says `EINVAL` then.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let family = u16::from_ne_bytes(take(bytes, 0)?);
        let port = || Some(u16::from_be_bytes(take(bytes, 2)?));
        Some(match i32::from(family) {
            libc::AF_UNSPEC => Self::Nothing,
            libc::AF_UNIX => Self::Unix,
            // struct sockaddr_in: family, port, address, and padding that counts (ip(7)).
            libc::AF_INET => {
                let _whole: [u8; 16] = take(bytes, 0)?;
                Self::Internet(SocketAddrV4::new(Ipv4Addr::from(take::<4>(bytes, 4)?), port()?).into())
            }
            // struct sockaddr_in6: family, port, flow, address, scope (ipv6(7)). The scope may be missing
            // (SIN6_LEN_RFC2133, linux/in6.h).
            libc::AF_INET6 => {
                let flow = u32::from_be_bytes(take(bytes, 4)?);
                let scope = take(bytes, 24).map_or(0, u32::from_ne_bytes);
                let address = Ipv6Addr::from(take::<16>(bytes, 8)?);
                Self::Internet(SocketAddrV6::new(address, port()?, flow, scope).into())
            }
            _ => Self::Other(family),
        })
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The action `connect`.
pub(crate) struct Connector {
    rule: Rc<rules::Connect>,
    /// Of its own: connections that hang shall not keep anybody from reading memory.
    workers: Workers,
}

impl Connector {
    pub(crate) fn new(rule: &rules::Connect) -> Self {
        Self { rule: Rc::new(rule.clone()), workers: Workers::default() }
    }
}

impl Plugin for Connector {
    fn decide(&self, notification: Rc<Notification>, target: Target) -> Decision {
        let (rule, workers) = (Rc::clone(&self.rule), self.workers.clone());
        Box::pin(async move {
            let limit = Duration::from_millis(rule.timeout_ms);
            match timeout(limit, connect(&rule, &workers, &notification, &target)).await {
                // Not a failure of the rule: it is the target that chose whom to wait for.
                Err(_elapsed) => Ok(Verdict::Errno(libc::ETIMEDOUT)),
                Ok(connected) => match connected {
                    Ok(verdict) => Ok(verdict),
                    // Whatever is answered now is heard by nobody.
                    Err(TargetError::Gone) => Ok(Verdict::Errno(libc::EINTR)),
                    Err(TargetError::Io { source, .. }) => Ok(errno(&source)),
                    Err(error) => Err(PluginFailure::Failed(error.to_string())),
                },
            }
        })
    }
}

async fn connect(
    rule: &rules::Connect,
    workers: &Workers,
    notification: &Notification,
    target: &Target,
) -> Result<Verdict, TargetError> {
    let [socket, address, length, ..] = notification.args;
    // Both are ints: what is above them in the register is noise.
    let (socket, length) = (socket & u64::from(u32::MAX), length & u64::from(u32::MAX));
    let socket = u32::try_from(socket).map_err(|_| TargetError::Malformed("the arguments"))?;
    if length > ADDRESS_BYTES_MAX {
        return Ok(Verdict::Errno(libc::EINVAL));
    }
    let length = usize::try_from(length).map_err(|_| TargetError::Malformed("the arguments"))?;
    // The order in which the kernel finds fault: the descriptor, then the memory.
    let socket = target.duplicate_fd(socket).await?;
    let bytes = match target.read_memory(address, length).await {
        Ok(bytes) if bytes.len() == length => bytes,
        Ok(_) => return Ok(Verdict::Errno(libc::EFAULT)),
        Err(TargetError::Io { .. }) => return Ok(Verdict::Errno(libc::EFAULT)),
        Err(error) => return Err(error),
    };
    let Some(address) = Address::parse(&bytes) else { return Ok(Verdict::Errno(libc::EINVAL)) };
    match address {
        Address::Internet(peer) if !is_allowed(rule, peer) => Ok(Verdict::Errno(rule.otherwise.0)),
        Address::Unix => Ok(match rule.unix {
            OnFailure::Next => Verdict::Pass,
            policy => policy.verdict(),
        }),
        Address::Other(_) => Ok(Verdict::Errno(rule.otherwise.0)),
        Address::Internet(_) | Address::Nothing => {
            // It may have waited for its turn, and then nobody may wait for it any more.
            let made = target.work(workers, "connect a socket", move || dial(&socket, address)).await?;
            Ok(made.map_or_else(|error| errno(&error), |()| Verdict::Return(0)))
        }
    }
}

fn errno(error: &io::Error) -> Verdict {
    Verdict::Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

fn is_allowed(rule: &rules::Connect, peer: SocketAddr) -> bool {
    // ::ffff:10.0.0.1 reaches 10.0.0.1.
    let address = peer.ip().to_canonical();
    rule.allow.iter().any(|allowed| {
        let port = allowed.ports.is_empty() || allowed.ports.contains(&peer.port());
        port && allowed.address.contains(address)
    })
}

/// Waits as long as the target's own call would: the socket says.
fn dial(socket: &ForeignFd, address: Address) -> io::Result<()> {
    let connected = match address {
        Address::Internet(SocketAddr::V4(peer)) => rustix::net::connect(socket, &peer),
        Address::Internet(SocketAddr::V6(peer)) => rustix::net::connect(socket, &peer),
        _ => rustix::net::connect_unspec(socket),
    };
    connected.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        Network::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn networks_contain_what_they_say() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("::/0", "fd00::1", "10.0.0.1"),
            ("::1", "::1", "::2"),
        ] {
            assert!(network(text).contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network(text).contains(outside.parse().unwrap()), "{text} {outside}");
        }
        for wrong in ["", "/8", "10.0.0.0/33", "::/129", "10.0.0/8", "host", "10.0.0.0/x", "10.0.0.0/-1"] {
            assert!(Network::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let v4 = [2, 0, 1, 187, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Address::parse(&v4), Some(Address::Internet("10.0.0.1:443".parse().unwrap())));
        assert_eq!(Address::parse(&v4[..15]), None);
        let mut v6 = [0; 28];
        v6[0] = 10;
        v6[2..4].copy_from_slice(&443_u16.to_be_bytes());
        v6[23] = 1;
        v6[24..28].copy_from_slice(&7_u32.to_ne_bytes());
        let expected = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 443, 0, 7);
        assert_eq!(Address::parse(&v6), Some(Address::Internet(expected.into())));
        assert!(matches!(Address::parse(&v6[..24]), Some(Address::Internet(_))), "the old length");
        assert_eq!(Address::parse(&v6[..23]), None);
        assert_eq!(Address::parse(&[1, 0]), Some(Address::Unix));
        assert_eq!(Address::parse(&[0, 0]), Some(Address::Nothing));
        assert_eq!(Address::parse(&[16, 0]), Some(Address::Other(16)));
        assert_eq!(Address::parse(&[2]), None);
    }

    #[test]
    fn a_mapped_address_is_judged_as_what_it_reaches() {
        let allow = vec![Allowed { address: network("10.0.0.0/8"), ports: vec![443] }];
        let rule = rules::Connect {
            allow,
            otherwise: rules::Errno(libc::EACCES),
            unix: OnFailure::Errno(libc::EACCES),
            timeout_ms: 1,
        };
        assert!(is_allowed(&rule, "[::ffff:10.0.0.1]:443".parse().unwrap()));
        assert!(!is_allowed(&rule, "[::ffff:11.0.0.1]:443".parse().unwrap()));
        assert!(!is_allowed(&rule, "10.0.0.1:80".parse().unwrap()));
    }

    proptest! {
        /// Any bytes are an address or refused.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..130)) {
            let parsed = Address::parse(&bytes);
            prop_assert_eq!(parsed.is_none() && bytes.len() >= 28, false);
        }
    }
}
