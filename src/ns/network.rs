//! What a pod's network looks like from inside: interfaces with addresses, state,
//! MTU and counters, and the routes. No program is started for it.
//!
//! netlink-packet-route knows the messages; they go over a plain socket. The
//! rtnetlink crate, which would do that, brings an async runtime and a background
//! task to this part of the code, which has none, and 1.5 MB to the binary, for three
//! requests that the kernel answers at once and in order.
//!
//! The socket is made by a thread that has moved into the namespace and ends at
//! once: a socket stays in the namespace that it was made in.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::Serialize;

use super::Error;
use crate::limits::{NETLINK_ANSWER_BYTES_MAX, NETLINK_ATTEMPTS_MAX};

/// A network namespace at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// In the kernel's order.
    pub interfaces: Vec<Interface>,
    /// Unicast routes of the main table, IPv4 first.
    pub routes: Vec<Route>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Number within the namespace.
    pub index: u32,
    /// Name within the namespace.
    pub name: String,
    /// Kind of a virtual interface (`veth`, `bridge`, ...); empty for loopback and hardware.
    pub kind: String,
    /// Hardware address, `aa:bb:...`; empty if it has none.
    pub hardware_address: String,
    /// Set up by an administrator; see `state` for whether it works.
    pub up: bool,
    /// Operational state, as RFC 2863 has it, in lower case. Loopback is `unknown`.
    pub state: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// In the kernel's order.
    pub addresses: Vec<Address>,
    /// Since the interface exists.
    pub statistics: Statistics,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Address {
    /// The interface's own address.
    pub address: IpAddr,
    /// Bits of it that name its network.
    pub prefix: u8,
}

/// Counters of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets received and thrown away.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets thrown away instead of sent.
    pub tx_dropped: u64,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The network; all zeros with prefix 0 is the default route.
    pub destination: IpAddr,
    /// Bits of it that count.
    pub prefix: u8,
    /// Next hop; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Name of the interface; empty if several share the route.
    pub interface: String,
    /// Address that packets are sent from.
    pub source: Option<IpAddr>,
    /// The smaller is preferred.
    pub metric: u32,
}

/// Looks at the network namespace `namespace`.
///
/// # Errors
/// [`Error::Step`]; the namespace is not changed in any case.
pub fn look(namespace: impl AsFd) -> Result<Network, Error> {
    let socket = socket_in(namespace)?;
    let mut interfaces = Vec::new();
    for message in dump(&socket, RouteNetlinkMessage::GetLink(LinkMessage::default()), "the interfaces")? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            interfaces.push(interface(link));
        }
    }
    for message in dump(&socket, RouteNetlinkMessage::GetAddress(AddressMessage::default()), "the addresses")?
    {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            let owner = interfaces.iter_mut().find(|i| i.index == message.header.index);
            if let (Some(owner), Some(address)) = (owner, address(&message)) {
                owner.addresses.push(address);
            }
        }
    }
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        for message in dump(&socket, RouteNetlinkMessage::GetRoute(query), "the routes")? {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                routes.extend(route(&message, &interfaces));
            }
        }
    }
    Ok(Network { interfaces, routes })
}

fn socket_in(namespace: impl AsFd) -> Result<OwnedFd, Error> {
    let namespace = namespace.as_fd();
    let make = || -> Result<OwnedFd, Error> {
        nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::step("join", "the net namespace", io::Error::from(e)))?;
        let family = rustix::net::AddressFamily::NETLINK;
        // No protocol is protocol 0: NETLINK_ROUTE.
        rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(|e| Error::step("open", "a netlink socket", e))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, make);
        let thread = thread.map_err(|e| Error::step("start", "a thread to join the net namespace", e))?;
        let panicked = |_| Error::step("join", "the net namespace", io::Error::other("the thread panicked"));
        thread.join().map_err(panicked)?
    })
}

/// All answers to one request. What changed while it was answered is asked for again.
fn dump(
    socket: &OwnedFd,
    request: RouteNetlinkMessage,
    what: &'static str,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    let failed = |e: io::Error| Error::step("ask the kernel for", what, e);
    for attempt in 0..NETLINK_ATTEMPTS_MAX {
        let mut message = NetlinkMessage::from(request.clone());
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.header.sequence_number = attempt;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        rustix::net::send(socket, &bytes, SendFlags::empty()).map_err(|e| failed(e.into()))?;
        if let Some(answers) = answers(socket).map_err(failed)? {
            return Ok(answers);
        }
    }
    Err(failed(io::Error::other("it changes too often to be read")))
}

/// Until the end of the answers; `None` if they do not fit together.
fn answers(socket: &OwnedFd) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
    let mut answers = Vec::new();
    let mut consistent = true;
    let mut buffer = vec![0; NETLINK_ANSWER_BYTES_MAX];
    loop {
        let length = match rustix::net::recv(socket, &mut buffer, RecvFlags::TRUNC) {
            Err(Errno::INTR) => continue,
            other => other?.1,
        };
        let mut rest = buffer.get(..length).ok_or_else(|| io::Error::other("its answer is too long"))?;
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(consistent.then_some(answers)),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
            // Messages are aligned to 4 bytes (netlink(7)); the last one may lack the padding.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(1);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn interface(link: LinkMessage) -> Interface {
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        kind: String::new(),
        hardware_address: String::new(),
        up: link.header.flags.contains(netlink_packet_route::link::LinkFlags::Up),
        state: String::new(),
        mtu: 0,
        addresses: Vec::new(),
        statistics: Statistics::default(),
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::OperState(state) => interface.state = state.to_string().to_lowercase(),
            LinkAttribute::Address(bytes) if bytes.iter().any(|byte| *byte != 0) => {
                let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                interface.hardware_address = parts.join(":");
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        interface.kind = kind.to_string();
                    }
                }
            }
            LinkAttribute::Stats64(s) => {
                interface.statistics = Statistics {
                    rx_bytes: s.rx_bytes,
                    rx_packets: s.rx_packets,
                    rx_errors: s.rx_errors,
                    rx_dropped: s.rx_dropped,
                    tx_bytes: s.tx_bytes,
                    tx_packets: s.tx_packets,
                    tx_errors: s.tx_errors,
                    tx_dropped: s.tx_dropped,
                };
            }
            _ => {}
        }
    }
    interface
}

/// IFA_LOCAL is our own address; on a point-to-point link IFA_ADDRESS is the
/// other end's. IPv6 has IFA_ADDRESS only.
fn address(message: &AddressMessage) -> Option<Address> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Some(Address { address: local.or(any)?, prefix: message.header.prefix_len })
}

/// A unicast route of the main table; the local table's repeat the addresses.
fn route(message: &RouteMessage, interfaces: &[Interface]) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let destination = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let prefix = header.destination_prefix_length;
    let mut route =
        Route { destination, prefix, gateway: None, interface: String::new(), source: None, metric: 0 };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => route.destination = ip(to)?,
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(index) => {
                let found = interfaces.iter().find(|interface| interface.index == *index);
                route.interface = found.map(|interface| interface.name.clone()).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
