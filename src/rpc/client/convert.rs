//! Between plain types and Cap'n Proto's. Fill functions write a request, read
//! functions take an answer apart; nothing here decides anything.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use capnp::text;

use super::error::Error;
use super::types::*;
use crate::rpc::schema::conmon_capnp::conmon;
use crate::rpc::schema::podinit_capnp as pod;

pub(super) fn count(what: &str, length: usize) -> Result<u32, Error> {
    u32::try_from(length).map_err(|_| Error::too_long(what))
}

/// A path as it is, whatever its bytes.
pub(super) fn path_text(path: &Path) -> text::Reader<'_> {
    text::Reader(path.as_os_str().as_bytes())
}

pub(super) fn read_path(text: text::Reader<'_>) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(text.as_bytes()))
}

pub(super) fn read_text(text: text::Reader<'_>) -> capnp::Result<String> {
    Ok(text.to_string()?)
}

pub(super) fn fill_texts(mut list: capnp::text_list::Builder<'_>, texts: &[String]) {
    for (index, text) in (0u32..).zip(texts) {
        list.set(index, text);
    }
}

pub(super) fn fill_paths(mut list: capnp::text_list::Builder<'_>, paths: &[PathBuf]) {
    for (index, path) in (0u32..).zip(paths) {
        list.set(index, path_text(path));
    }
}

pub(super) fn fill_entries(
    mut list: capnp::struct_list::Builder<'_, conmon::text_text_map_entry::Owned>,
    entries: &[(String, String)],
) {
    for (index, (key, value)) in (0u32..).zip(entries) {
        let mut entry = list.reborrow().get(index);
        entry.set_key(key);
        entry.set_value(value);
    }
}

pub(super) fn fill_key_values(
    mut list: capnp::struct_list::Builder<'_, pod::key_value::Owned>,
    entries: &[(String, String)],
) {
    for (index, (key, value)) in (0u32..).zip(entries) {
        let mut entry = list.reborrow().get(index);
        entry.set_key(key);
        entry.set_value(value);
    }
}

pub(super) fn cgroup_manager(manager: CgroupManager) -> conmon::CgroupManager {
    match manager {
        CgroupManager::Systemd => conmon::CgroupManager::Systemd,
        CgroupManager::Cgroupfs => conmon::CgroupManager::Cgroupfs,
    }
}

/// "CONTAINER HOST SIZE", as `Conmon` wants them.
pub(super) fn mapping_texts(mappings: &[IdMapping]) -> Vec<String> {
    mappings.iter().map(|m| format!("{} {} {}", m.inside, m.outside, m.size)).collect()
}

/// The kinds that `Conmon` knows.
pub(super) fn conmon_namespace(kind: NamespaceKind) -> Result<conmon::Namespace, Error> {
    match kind {
        NamespaceKind::Ipc => Ok(conmon::Namespace::Ipc),
        NamespaceKind::Net => Ok(conmon::Namespace::Net),
        NamespaceKind::Pid => Ok(conmon::Namespace::Pid),
        NamespaceKind::User => Ok(conmon::Namespace::User),
        NamespaceKind::Uts => Ok(conmon::Namespace::Uts),
        NamespaceKind::Cgroup | NamespaceKind::Mnt | NamespaceKind::Time => {
            Err(Error::invalid(format!("createNamespaces has no namespace kind {}", kind.name())))
        }
    }
}

pub(super) fn read_conmon_namespace(kind: conmon::Namespace) -> NamespaceKind {
    match kind {
        conmon::Namespace::Ipc => NamespaceKind::Ipc,
        conmon::Namespace::Net => NamespaceKind::Net,
        conmon::Namespace::Pid => NamespaceKind::Pid,
        conmon::Namespace::User => NamespaceKind::User,
        conmon::Namespace::Uts => NamespaceKind::Uts,
    }
}

fn namespace_kind(kind: NamespaceKind) -> pod::NamespaceKind {
    match kind {
        NamespaceKind::Net => pod::NamespaceKind::Net,
        NamespaceKind::Ipc => pod::NamespaceKind::Ipc,
        NamespaceKind::Uts => pod::NamespaceKind::Uts,
        NamespaceKind::User => pod::NamespaceKind::User,
        NamespaceKind::Pid => pod::NamespaceKind::Pid,
        NamespaceKind::Cgroup => pod::NamespaceKind::Cgroup,
        NamespaceKind::Mnt => pod::NamespaceKind::Mnt,
        NamespaceKind::Time => pod::NamespaceKind::Time,
    }
}

pub(super) fn read_namespace_kind(kind: pod::NamespaceKind) -> NamespaceKind {
    match kind {
        pod::NamespaceKind::Net => NamespaceKind::Net,
        pod::NamespaceKind::Ipc => NamespaceKind::Ipc,
        pod::NamespaceKind::Uts => NamespaceKind::Uts,
        pod::NamespaceKind::User => NamespaceKind::User,
        pod::NamespaceKind::Pid => NamespaceKind::Pid,
        pod::NamespaceKind::Cgroup => NamespaceKind::Cgroup,
        pod::NamespaceKind::Mnt => NamespaceKind::Mnt,
        pod::NamespaceKind::Time => NamespaceKind::Time,
    }
}

pub(super) fn fill_log_drivers(
    mut list: capnp::struct_list::Builder<'_, conmon::log_driver::Owned>,
    drivers: &[LogDriver],
) {
    for (index, driver) in (0u32..).zip(drivers) {
        let mut entry = list.reborrow().get(index);
        entry.set_type(match driver.kind {
            LogKind::Cri => conmon::log_driver::Type::ContainerRuntimeInterface,
            LogKind::Json => conmon::log_driver::Type::Json,
            LogKind::Journald => conmon::log_driver::Type::Journald,
        });
        entry.set_path(path_text(&driver.path));
        entry.set_max_size(driver.size_max);
    }
}

pub(super) fn fill_create_container(
    mut request: conmon::create_container_request::Builder<'_>,
    create: &CreateContainer,
) -> Result<(), Error> {
    request.set_id(&create.id);
    request.set_bundle_path(path_text(&create.bundle));
    request.set_terminal(create.stdio == Stdio::Terminal);
    request.set_stdin(create.stdin == Stdin::Open);
    let size = count("the list of exit files", create.exit_paths.len())?;
    fill_paths(request.reborrow().init_exit_paths(size), &create.exit_paths);
    let size = count("the list of OOM exit files", create.oom_exit_paths.len())?;
    fill_paths(request.reborrow().init_oom_exit_paths(size), &create.oom_exit_paths);
    let size = count("the list of log drivers", create.log_drivers.len())?;
    fill_log_drivers(request.reborrow().init_log_drivers(size), &create.log_drivers);
    let size = count("the clean-up command", create.cleanup_command.len())?;
    fill_texts(request.reborrow().init_cleanup_cmd(size), &create.cleanup_command);
    let size = count("the list of OCI runtime arguments", create.global_args.len())?;
    fill_texts(request.reborrow().init_global_args(size), &create.global_args);
    let size = count("the list of OCI runtime arguments", create.command_args.len())?;
    fill_texts(request.reborrow().init_command_args(size), &create.command_args);
    let size = count("the environment", create.env.len())?;
    fill_entries(request.reborrow().init_env_vars(size), &create.env);
    request.set_cgroup_manager(cgroup_manager(create.cgroup_manager));
    request.set_additional_fds(create.additional_fds.as_slice())?;
    request.set_leak_fds(create.leak_fds.as_slice())?;
    Ok(())
}

fn fill_mappings(mut list: capnp::struct_list::Builder<'_, pod::id_mapping::Owned>, mappings: &[IdMapping]) {
    for (index, mapping) in (0u32..).zip(mappings) {
        let mut entry = list.reborrow().get(index);
        entry.set_inside(mapping.inside);
        entry.set_outside(mapping.outside);
        entry.set_size(mapping.size);
    }
}

pub(super) fn fill_sandbox(
    mut request: pod::sandbox_request::Builder<'_>,
    sandbox: &SandboxRequest,
) -> Result<(), Error> {
    request.set_pod_id(&sandbox.pod_id);
    let size = count("the list of namespaces", sandbox.namespaces.len())?;
    let mut list = request.reborrow().init_namespaces(size);
    for (index, (kind, source)) in (0u32..).zip(&sandbox.namespaces) {
        let mut entry = list.reborrow().get(index);
        entry.set_kind(namespace_kind(*kind));
        match source {
            NamespaceSource::Create => entry.set_create(()),
            NamespaceSource::Host => entry.set_host(()),
            NamespaceSource::Path(path) => entry.set_path(path_text(path)),
        }
    }
    request.set_hostname(&sandbox.hostname);
    request.set_domainname(&sandbox.domainname);
    let size = count("the list of sysctls", sandbox.sysctls.len())?;
    fill_key_values(request.reborrow().init_sysctls(size), &sandbox.sysctls);
    let size = count("the list of uid mappings", sandbox.uid_mappings.len())?;
    fill_mappings(request.reborrow().init_uid_mappings(size), &sandbox.uid_mappings);
    let size = count("the list of gid mappings", sandbox.gid_mappings.len())?;
    fill_mappings(request.reborrow().init_gid_mappings(size), &sandbox.gid_mappings);
    request.set_base_path(path_text(&sandbox.base_path));
    request.set_unpinned(sandbox.placement == Placement::DescriptorOnly);
    Ok(())
}

pub(super) fn read_version(answer: conmon::version_response::Reader<'_>) -> capnp::Result<Version> {
    Ok(Version {
        process_id: answer.get_process_id(),
        version: read_text(answer.get_version()?)?,
        tag: read_text(answer.get_tag()?)?,
        commit: read_text(answer.get_commit()?)?,
        build_date: read_text(answer.get_build_date()?)?,
        target: read_text(answer.get_target()?)?,
        rust_version: read_text(answer.get_rust_version()?)?,
        cargo_version: read_text(answer.get_cargo_version()?)?,
        cargo_tree: read_text(answer.get_cargo_tree()?)?,
    })
}

pub(super) fn read_exit(exit: pod::exit_status::Reader<'_>) -> capnp::Result<ExitStatus> {
    let how = match exit.which()? {
        pod::exit_status::Unknown(why) => Ended::Unknown(read_text(why?)?),
        pod::exit_status::Code(code) => Ended::Code(code),
        pod::exit_status::Signal(signal) => Ended::Signal(signal),
    };
    Ok(ExitStatus {
        how,
        oom_killed: exit.get_oom_killed(),
        oom_victim: match exit.get_oom_victim()? {
            pod::OomVictim::Nobody => OomVictim::Nobody,
            pod::OomVictim::FirstProcess => OomVictim::FirstProcess,
            pod::OomVictim::Others => OomVictim::Others,
        },
        exited_at_ns: exit.get_exited_at_ns(),
        log_complete: exit.get_log_complete(),
    })
}

pub(super) fn read_status(status: pod::container_status::Reader<'_>) -> capnp::Result<ContainerStatus> {
    let phase = match status.get_phase()? {
        pod::ContainerPhase::Creating => Phase::Creating,
        pod::ContainerPhase::Created => Phase::Created,
        pod::ContainerPhase::Running => Phase::Running,
        pod::ContainerPhase::Stopping => Phase::Stopping,
        pod::ContainerPhase::Exited => Phase::Exited,
    };
    let log_path = read_path(status.get_log_path()?);
    Ok(ContainerStatus {
        id: read_text(status.get_id()?)?,
        phase,
        pid: Some(status.get_pid()).filter(|pid| *pid != 0),
        bundle: read_path(status.get_bundle()?),
        created_at_ns: status.get_created_at_ns(),
        started_at_ns: Some(status.get_started_at_ns()).filter(|at| *at != 0),
        exit: if phase == Phase::Exited { Some(read_exit(status.get_exit()?)?) } else { None },
        stdio: if status.get_terminal() { Stdio::Terminal } else { Stdio::Pipes },
        log_path: Some(log_path).filter(|path| !path.as_os_str().is_empty()),
        restarts: status.get_restarts(),
    })
}

pub(super) fn read_sandbox(sandbox: pod::sandbox::Reader<'_>) -> capnp::Result<Sandbox> {
    let mut namespaces = Vec::new();
    for namespace in sandbox.get_namespaces()? {
        namespaces.push(PinnedNamespace {
            kind: read_namespace_kind(namespace.get_kind()?),
            path: read_path(namespace.get_path()?),
            inode: namespace.get_inode(),
            owner_inode: namespace.get_owner_inode(),
            created: namespace.get_created(),
        });
    }
    Ok(Sandbox {
        pod_id: read_text(sandbox.get_pod_id()?)?,
        namespaces,
        init_pid: Some(sandbox.get_init_pid()).filter(|pid| *pid != 0),
        created_at_ns: sandbox.get_created_at_ns(),
    })
}

pub(super) fn read_exec(result: pod::exec_result::Reader<'_>) -> capnp::Result<ExecResult> {
    let outcome = match result.which()? {
        pod::exec_result::Exit(exit) => ExecOutcome::Exited(read_exit(exit?)?),
        pod::exec_result::NotStarted(why) => ExecOutcome::NotStarted(read_text(why?)?),
        pod::exec_result::TimedOut(()) => ExecOutcome::TimedOut,
    };
    Ok(ExecResult {
        outcome,
        stdout: result.get_stdout()?.to_vec(),
        stderr: result.get_stderr()?.to_vec(),
        stdout_dropped: result.get_stdout_dropped(),
        stderr_dropped: result.get_stderr_dropped(),
    })
}

fn read_init_end(end: pod::init_end::Reader<'_>) -> capnp::Result<InitEnd> {
    let killed =
        end.get_killed()?.iter().map(|process| Ok((process.get_pid(), read_text(process.get_name()?)?)));
    Ok(InitEnd {
        pod_id: read_text(end.get_pod_id()?)?,
        exit: read_exit(end.get_exit()?)?,
        killed: killed.collect::<capnp::Result<_>>()?,
    })
}

pub(super) fn read_network(network: pod::network::Reader<'_>) -> capnp::Result<Network> {
    let route = |route: pod::network::route::Reader<'_>| {
        Ok(Route {
            destination: format!("{}/{}", read_text(route.get_destination()?)?, route.get_prefix()),
            gateway: read_text(route.get_gateway()?)?,
            interface: read_text(route.get_interface()?)?,
            source: read_text(route.get_source()?)?,
            metric: route.get_metric(),
        })
    };
    Ok(Network {
        interfaces: network.get_interfaces()?.iter().map(read_interface).collect::<capnp::Result<_>>()?,
        routes: network.get_routes()?.iter().map(route).collect::<capnp::Result<_>>()?,
    })
}

fn read_interface(interface: pod::network::interface::Reader<'_>) -> capnp::Result<Interface> {
    let address = |address: pod::network::address::Reader<'_>| {
        Ok(format!("{}/{}", read_text(address.get_address()?)?, address.get_prefix()))
    };
    let statistics = interface.get_statistics()?;
    Ok(Interface {
        index: interface.get_index(),
        name: read_text(interface.get_name()?)?,
        kind: read_text(interface.get_kind()?)?,
        hardware_address: read_text(interface.get_hardware_address()?)?,
        up: interface.get_up(),
        state: read_text(interface.get_state()?)?,
        mtu: interface.get_mtu(),
        addresses: interface.get_addresses()?.iter().map(address).collect::<capnp::Result<_>>()?,
        statistics: Statistics {
            rx_bytes: statistics.get_rx_bytes(),
            rx_packets: statistics.get_rx_packets(),
            rx_errors: statistics.get_rx_errors(),
            rx_dropped: statistics.get_rx_dropped(),
            tx_bytes: statistics.get_tx_bytes(),
            tx_packets: statistics.get_tx_packets(),
            tx_errors: statistics.get_tx_errors(),
            tx_dropped: statistics.get_tx_dropped(),
        },
    })
}

pub(super) fn read_pod_stats(stats: pod::pod_stats::Reader<'_>) -> capnp::Result<PodStats> {
    let init = |init: pod::pod_stats::init_stats::Reader<'_>| {
        Ok(InitStats {
            pod_id: read_text(init.get_pod_id()?)?,
            pid: init.get_pid(),
            processes: init.get_processes(),
            zombies: init.get_zombies(),
        })
    };
    Ok(PodStats {
        orphans_reaped: stats.get_orphans_reaped(),
        inits: stats.get_inits()?.iter().map(init).collect::<capnp::Result<_>>()?,
        containers: stats.get_containers(),
        execs: stats.get_execs(),
        monitor_restarts: stats.get_monitor_restarts(),
        log_total: read_log_rate(stats.get_log_total()?),
    })
}

pub(super) fn read_container_stats(stats: pod::container_stats::Reader<'_>) -> capnp::Result<ContainerStats> {
    let channel = |channel: pod::container_stats::channel_stats::Reader<'_>| ChannelStats {
        bytes: channel.get_bytes(),
        lines: channel.get_lines(),
        partials: channel.get_partials(),
        dropped: channel.get_dropped(),
        rate_limited: channel.get_rate_limited(),
        throttled_ns: channel.get_throttled_ns(),
        write_errors: channel.get_write_errors(),
        stall_longest_ns: channel.get_stall_longest_ns(),
    };
    Ok(ContainerStats {
        stdout: channel(stats.get_stdout()?),
        stderr: channel(stats.get_stderr()?),
        write_errors: stats.get_write_errors(),
        last_write_error: read_text(stats.get_last_write_error()?)?,
        stall_longest_ns: stats.get_stall_longest_ns(),
        clients: stats.get_clients(),
        clients_cut_off: stats.get_clients_cut_off(),
        limits: read_log_limits(stats.get_limits()?)?,
        buffered: stats.get_buffered(),
    })
}

fn read_log_gap(gap: pod::log_gap::Reader<'_>) -> capnp::Result<LogGap> {
    Ok(LogGap {
        stderr: gap.get_stderr(),
        bytes: gap.get_bytes(),
        lines: gap.get_lines(),
        reason: read_text(gap.get_reason()?)?,
    })
}

pub(super) fn read_log_rate(rate: pod::log_rate::Reader<'_>) -> LogRate {
    LogRate {
        bytes_per_second: rate.get_bytes_per_second(),
        bytes_burst: rate.get_bytes_burst(),
        lines_per_second: rate.get_lines_per_second(),
        lines_burst: rate.get_lines_burst(),
    }
}

fn set_log_rate(mut wire: pod::log_rate::Builder<'_>, rate: &LogRate) {
    wire.set_bytes_per_second(rate.bytes_per_second);
    wire.set_bytes_burst(rate.bytes_burst);
    wire.set_lines_per_second(rate.lines_per_second);
    wire.set_lines_burst(rate.lines_burst);
}

pub(super) fn set_log_limits(mut wire: pod::log_limits::Builder<'_>, limits: &LogLimits) {
    set_log_rate(wire.reborrow().init_stdout(), &limits.stdout);
    set_log_rate(wire.reborrow().init_stderr(), &limits.stderr);
    wire.set_when_fast(match limits.when_fast {
        WhenFast::Block => pod::log_limits::WhenFast::Block,
        WhenFast::Drop => pod::log_limits::WhenFast::Drop,
    });
    wire.set_when_stuck(match limits.when_stuck {
        WhenStuck::Block => pod::log_limits::WhenStuck::Block,
        WhenStuck::DropOldest => pod::log_limits::WhenStuck::DropOldest,
        WhenStuck::DropNewest => pod::log_limits::WhenStuck::DropNewest,
    });
    wire.set_buffer_bytes(limits.buffer_bytes);
}

pub(super) fn set_log_total(wire: pod::log_limits::Builder<'_>, rate: &LogRate) {
    set_log_rate(wire.init_total(), rate);
}

fn read_log_limits(limits: pod::log_limits::Reader<'_>) -> capnp::Result<LogLimits> {
    Ok(LogLimits {
        stdout: read_log_rate(limits.get_stdout()?),
        stderr: read_log_rate(limits.get_stderr()?),
        when_fast: match limits.get_when_fast()? {
            pod::log_limits::WhenFast::Block => WhenFast::Block,
            pod::log_limits::WhenFast::Drop => WhenFast::Drop,
        },
        when_stuck: match limits.get_when_stuck()? {
            pod::log_limits::WhenStuck::Block => WhenStuck::Block,
            pod::log_limits::WhenStuck::DropOldest => WhenStuck::DropOldest,
            pod::log_limits::WhenStuck::DropNewest => WhenStuck::DropNewest,
        },
        buffer_bytes: limits.get_buffer_bytes(),
    })
}

pub(super) fn read_log_account(account: pod::log_account::Reader<'_>) -> capnp::Result<LogAccount> {
    let stream = |stream: pod::log_account::stream::Reader<'_>| StreamAccount {
        read_bytes: stream.get_read_bytes(),
        records: stream.get_records(),
        payload_bytes: stream.get_payload_bytes(),
        lines: stream.get_lines(),
    };
    Ok(LogAccount {
        stdout: stream(account.get_stdout()?),
        stderr: stream(account.get_stderr()?),
        is_final: account.get_is_final(),
    })
}

pub(super) fn read_event(event: pod::event::Reader<'_>) -> capnp::Result<Event> {
    let kind = match event.which()? {
        pod::event::Created(pid) => EventKind::Created(pid),
        pod::event::Started(()) => EventKind::Started,
        pod::event::Exited(exit) => EventKind::Exited(read_exit(exit?)?),
        pod::event::Deleted(()) => EventKind::Deleted,
        pod::event::OomKilled(()) => EventKind::OomKilled,
        pod::event::ExecFailed(why) => EventKind::ExecFailed(read_text(why?)?),
        pod::event::MonitorRestarted(times) => EventKind::MonitorRestarted(times),
        pod::event::Stopping(()) => EventKind::Stopping,
        pod::event::PodStopping(()) => EventKind::PodStopping,
        pod::event::Lost(events) => EventKind::Lost(events),
        pod::event::InitEnded(end) => EventKind::InitEnded(read_init_end(end?)?),
        pod::event::HookFailed(failure) => EventKind::HookFailed(super::hook::read_failure(failure?)?),
        pod::event::LogFailed(why) => EventKind::LogFailed(read_text(why?)?),
        pod::event::LogGap(gap) => EventKind::LogGap(read_log_gap(gap?)?),
    };
    Ok(Event {
        sequence: event.get_sequence(),
        time_ns: event.get_time_ns(),
        container: read_text(event.get_container()?)?,
        kind,
    })
}
