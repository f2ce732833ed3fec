//! Numbers about a pod, on the wire.

use crate::monitor::Monitor;
use crate::monitor::log::account::Sums;
use crate::monitor::relay::{ChannelStats, StreamStats};
use crate::ns::network::{Interface, Network};
use crate::rpc::limits;
use crate::rpc::schema::podinit_capnp as wire;

/// Lists here are bounded by what the kernel has; a length beyond the wire's is cut.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

pub(super) fn set_pod(mut wire: wire::pod_stats::Builder<'_>, monitor: &Monitor) {
    wire.set_orphans_reaped(monitor.reaper.orphans());
    wire.set_containers(length(monitor.list().len()));
    wire.set_execs(length(monitor.execs()));
    wire.set_monitor_restarts(monitor.restarts());
    limits::set_rate(wire.reborrow().init_log_total(), &monitor.log_total());
    let surveyed = monitor.survey();
    let count = length(surveyed.len());
    let mut list = wire.init_inits(count);
    for (index, (pod, pid, processes)) in (0..count).zip(&surveyed) {
        let mut init = list.reborrow().get(index);
        init.set_pod_id(pod.as_str());
        init.set_pid(*pid);
        let zombies = processes.iter().filter(|process| process.zombie).count();
        init.set_zombies(length(zombies));
        init.set_processes(length(processes.len() - zombies));
    }
}

pub(super) fn set_container(mut wire: wire::container_stats::Builder<'_>, stats: &StreamStats) {
    wire.set_write_errors(stats.write_errors);
    wire.set_last_write_error(stats.last_write_error.as_deref().unwrap_or_default());
    wire.set_stall_longest_ns(stats.stall_longest_ns);
    wire.set_clients(length(stats.clients));
    wire.set_clients_cut_off(stats.clients_cut_off);
    wire.set_buffered(stats.buffered as u64);
    limits::set(wire.reborrow().init_limits(), &stats.limits);
    set_channel(wire.reborrow().init_stdout(), &stats.stdout);
    set_channel(wire.init_stderr(), &stats.stderr);
}

/// What a log can be audited against.
pub(super) fn set_account(mut wire: wire::log_account::Builder<'_>, stats: &StreamStats, is_final: bool) {
    wire.set_is_final(is_final);
    let ([stdout, stderr], [of_stdout, of_stderr]) = (stats.written, stats.added);
    set_stream(wire.reborrow().init_stdout(), stats.stdout.bytes + of_stdout, stdout);
    set_stream(wire.init_stderr(), stats.stderr.bytes + of_stderr, stderr);
}

fn set_stream(mut wire: wire::log_account::stream::Builder<'_>, read: u64, written: Sums) {
    wire.set_read_bytes(read);
    wire.set_records(written.records);
    wire.set_payload_bytes(written.bytes);
    wire.set_lines(written.lines);
}

fn set_channel(mut wire: wire::container_stats::channel_stats::Builder<'_>, stats: &ChannelStats) {
    wire.set_bytes(stats.bytes);
    wire.set_lines(stats.lines);
    wire.set_partials(stats.partials);
    wire.set_dropped(stats.dropped);
    wire.set_rate_limited(stats.rate_limited);
    wire.set_throttled_ns(stats.throttled_ns);
    wire.set_write_errors(stats.write_errors);
    wire.set_stall_longest_ns(stats.stall_longest_ns);
}

pub(super) fn set_network(mut wire: wire::network::Builder<'_>, network: &Network) {
    let count = length(network.interfaces.len());
    let mut list = wire.reborrow().init_interfaces(count);
    for (index, interface) in (0..count).zip(&network.interfaces) {
        set_interface(list.reborrow().get(index), interface);
    }
    let count = length(network.routes.len());
    let mut list = wire.init_routes(count);
    let text = |address: Option<std::net::IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    for (index, route) in (0..count).zip(&network.routes) {
        let mut wire = list.reborrow().get(index);
        wire.set_destination(&*route.destination.to_string());
        wire.set_prefix(route.prefix);
        wire.set_gateway(&*text(route.gateway));
        wire.set_interface(&*route.interface);
        wire.set_source(&*text(route.source));
        wire.set_metric(route.metric);
    }
}

fn set_interface(mut wire: wire::network::interface::Builder<'_>, interface: &Interface) {
    wire.set_index(interface.index);
    wire.set_name(&*interface.name);
    wire.set_kind(&*interface.kind);
    wire.set_hardware_address(&*interface.hardware_address);
    wire.set_up(interface.up);
    wire.set_state(&*interface.state);
    wire.set_mtu(interface.mtu);
    let count = length(interface.addresses.len());
    let mut list = wire.reborrow().init_addresses(count);
    for (index, address) in (0..count).zip(&interface.addresses) {
        let mut wire = list.reborrow().get(index);
        wire.set_address(&*address.address.to_string());
        wire.set_prefix(address.prefix);
    }
    let statistics = &interface.statistics;
    let mut wire = wire.init_statistics();
    wire.set_rx_bytes(statistics.rx_bytes);
    wire.set_rx_packets(statistics.rx_packets);
    wire.set_rx_errors(statistics.rx_errors);
    wire.set_rx_dropped(statistics.rx_dropped);
    wire.set_tx_bytes(statistics.tx_bytes);
    wire.set_tx_packets(statistics.tx_packets);
    wire.set_tx_errors(statistics.tx_errors);
    wire.set_tx_dropped(statistics.tx_dropped);
}
