//! The methods of `Conmon`.

use std::rc::Rc;
use std::time::Duration;

use crate::limits::{EXEC_OUTPUT_BYTES_MAX, FDS_PER_MESSAGE_MAX};
use crate::monitor::Monitor;
use crate::monitor::create::CreateRequest;
use crate::monitor::error::Error;
use crate::monitor::exec::{ExecEnd, ExecRequest};
use crate::monitor::exit::ExitFiles;
use crate::monitor::log::{LogConfig, LogKind};
use crate::monitor::relay::{Attach, Captured, StdinEnd};
use crate::monitor::runtime::CallOptions;
use crate::rpc::convert::{
    bounded, cgroup_manager, container_id, malformed, pairs, path, paths, refuse, text, texts,
};
use crate::rpc::sandbox;
use crate::rpc::schema::conmon_capnp::conmon::{self as wire, Server};
use crate::rpc::server::{PodServer, detached};
use crate::rpc::trace::Traced;
use crate::stream::remote::{Channel, Channels};
use crate::version::BUILD;

/// Exit codes of execSync that deployed clients know.
const EXEC_NOT_STARTED: i32 = -2;
const EXEC_TIMED_OUT: i32 = -3;

/// Bytes of the line that says what an answer does not have.
const LOSS_BYTES_MAX: usize = 256;

impl Server for PodServer {
    async fn version(
        self: Rc<Self>,
        params: wire::VersionParams,
        mut results: wire::VersionResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (None, traced.get_metadata());
        let work = async {
            let verbose = params.get()?.get_request()?.get_verbose();
            let mut response = results.get().init_response();
            response.set_process_id(self.monitor.stable_pid());
            response.set_version(BUILD.version);
            response.set_tag(BUILD.tag);
            response.set_commit(BUILD.commit);
            response.set_build_date(BUILD.build_date);
            response.set_target(BUILD.target);
            response.set_rust_version(BUILD.rust_version);
            response.set_cargo_version(BUILD.cargo_version);
            if verbose {
                response.set_cargo_tree(BUILD.cargo_tree);
            }
            Ok(())
        };
        Traced { name: "version", id, metadata }.span(work).await
    }

    async fn create_container(
        self: Rc<Self>,
        params: wire::CreateContainerParams,
        mut results: wire::CreateContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (Some(traced.get_id()), traced.get_metadata());
        let work = async {
            let request = params.get()?.get_request()?;
            let request = create_request(request, &self.monitor).map_err(|error| refuse(&error))?;
            let monitor = Rc::clone(&self.monitor);
            let pid = detached(async move { monitor.create(request).await }).await?;
            results.get().init_response().set_container_pid(pid);
            Ok(())
        };
        Traced { name: "createContainer", id, metadata }.span(work).await
    }

    async fn exec_sync_container(
        self: Rc<Self>,
        params: wire::ExecSyncContainerParams,
        mut results: wire::ExecSyncContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (Some(traced.get_id()), traced.get_metadata());
        let work = async {
            let request = exec_request(params.get()?.get_request()?).map_err(|error| refuse(&error))?;
            let monitor = Rc::clone(&self.monitor);
            if request.command.is_empty() {
                // Deployed clients get this as the answer of the exec, not as an error.
                let mut response = results.get().init_response();
                response.set_exit_code(EXEC_NOT_STARTED);
                response.set_stderr(b"the command is empty; name a program to execute");
                return Ok(());
            }
            let id = request.id.clone();
            let outcome = detached(async move { monitor.exec(request).await }).await?;
            let mut output = outcome.output;
            if let Some(loss) = tell_loss(&mut output) {
                ::log::warn!("container {id}: {loss}");
            }
            let mut response = results.get().init_response();
            response.set_stdout(&output.stdout);
            response.set_stderr(&output.stderr);
            match outcome.end {
                ExecEnd::Exited(cause) => response.set_exit_code(cause.shell_code()),
                ExecEnd::NotStarted(reason) => {
                    response.set_exit_code(EXEC_NOT_STARTED);
                    response.set_stderr(reason.as_bytes());
                }
                ExecEnd::TimedOut => {
                    response.set_exit_code(EXEC_TIMED_OUT);
                    response.set_timed_out(true);
                }
            }
            Ok(())
        };
        Traced { name: "execSyncContainer", id, metadata }.span(work).await
    }

    async fn attach_container(
        self: Rc<Self>,
        params: wire::AttachContainerParams,
        mut results: wire::AttachContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (Some(traced.get_id()), traced.get_metadata());
        let work = async {
            let request = params.get()?.get_request()?;
            let parsed = container_id(request.get_id()?).and_then(|id| {
                let socket =
                    path(request.get_socket_path().map_err(|e| malformed("the request", &e))?, "socketPath")?;
                let stdin_end = StdinEnd::of_request(request.get_stop_after_stdin_eof());
                Ok((id, Attach { path: socket, stdin_end, replay: 0 }))
            });
            let (id, attach) = parsed.map_err(|error| refuse(&error))?;
            self.monitor.attach(&id, attach).await.map_err(|error| refuse(&error))?;
            results.get().init_response();
            Ok(())
        };
        Traced { name: "attachContainer", id, metadata }.span(work).await
    }

    async fn reopen_log_container(
        self: Rc<Self>,
        params: wire::ReopenLogContainerParams,
        mut results: wire::ReopenLogContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (Some(traced.get_id()), traced.get_metadata());
        let work = async {
            let id = container_id(params.get()?.get_request()?.get_id()?).map_err(|error| refuse(&error))?;
            self.monitor.reopen_logs(&id).await.map_err(|error| refuse(&error))?;
            results.get().init_response();
            Ok(())
        };
        Traced { name: "reopenLogContainer", id, metadata }.span(work).await
    }

    async fn set_window_size_container(
        self: Rc<Self>,
        params: wire::SetWindowSizeContainerParams,
        mut results: wire::SetWindowSizeContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (Some(traced.get_id()), traced.get_metadata());
        let work = async {
            let request = params.get()?.get_request()?;
            let id = container_id(request.get_id()?).map_err(|error| refuse(&error))?;
            let resized = self.monitor.set_window_size(&id, request.get_width(), request.get_height());
            resized.map_err(|error| refuse(&error))?;
            results.get().init_response();
            Ok(())
        };
        Traced { name: "setWindowSizeContainer", id, metadata }.span(work).await
    }

    async fn create_namespaces(
        self: Rc<Self>,
        params: wire::CreateNamespacesParams,
        mut results: wire::CreateNamespacesResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (None, traced.get_metadata());
        let work = async {
            let request = params.get()?.get_request()?;
            let request = sandbox::conmon_request(request).map_err(|error| refuse(&error))?;
            let monitor = Rc::clone(&self.monitor);
            let made = detached(async move { monitor.create_namespaces(request).await }).await?;
            sandbox::set_conmon(results.get().init_response(), &made);
            Ok(())
        };
        Traced { name: "createNamespaces", id, metadata }.span(work).await
    }

    async fn start_fd_socket(
        self: Rc<Self>,
        params: wire::StartFdSocketParams,
        mut results: wire::StartFdSocketResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (None, traced.get_metadata());
        let work = async {
            let path = self.monitor.start_fd_socket().map_err(|error| refuse(&error))?;
            let path = path.to_str().ok_or_else(|| Error::Invalid("the run directory is not UTF-8".into()));
            results.get().init_response().set_path(path.map_err(|error| refuse(&error))?);
            Ok(())
        };
        Traced { name: "startFdSocket", id, metadata }.span(work).await
    }

    async fn serve_exec_container(
        self: Rc<Self>,
        params: wire::ServeExecContainerParams,
        mut results: wire::ServeExecContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (Some(traced.get_id()), traced.get_metadata());
        let work = async {
            let request = params.get()?.get_request()?;
            let streams = [request.get_stdin(), request.get_stdout(), request.get_stderr()];
            let exec = serve_exec_request(request).map_err(|error| refuse(&error))?;
            let url = self.streaming.serve_exec(exec, channels(streams)).map_err(|error| refuse(&error))?;
            results.get().init_response().set_url(&url);
            Ok(())
        };
        Traced { name: "serveExecContainer", id, metadata }.span(work).await
    }

    async fn serve_attach_container(
        self: Rc<Self>,
        params: wire::ServeAttachContainerParams,
        mut results: wire::ServeAttachContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (Some(traced.get_id()), traced.get_metadata());
        let work = async {
            let request = params.get()?.get_request()?;
            let streams = [request.get_stdin(), request.get_stdout(), request.get_stderr()];
            let id = container_id(request.get_id()?).map_err(|error| refuse(&error))?;
            let url = self.streaming.serve_attach(&id, channels(streams)).map_err(|error| refuse(&error))?;
            results.get().init_response().set_url(&url);
            Ok(())
        };
        Traced { name: "serveAttachContainer", id, metadata }.span(work).await
    }

    async fn serve_port_forward_container(
        self: Rc<Self>,
        params: wire::ServePortForwardContainerParams,
        mut results: wire::ServePortForwardContainerResults,
    ) -> Result<(), capnp::Error> {
        let traced = params.get()?.get_request()?;
        let (id, metadata) = (None, traced.get_metadata());
        let work = async {
            let request = params.get()?.get_request()?;
            let namespace = path(request.get_net_ns_path()?, "netNsPath").map_err(|error| refuse(&error))?;
            let url = self.streaming.serve_port_forward(namespace).map_err(|error| refuse(&error))?;
            results.get().init_response().set_url(&url);
            Ok(())
        };
        Traced { name: "servePortForwardContainer", id, metadata }.span(work).await
    }
}

/// Ends standard error with a line about what was not kept, if anything was not: the
/// answer has no field for it. The stream stays within its limit.
fn tell_loss(output: &mut Captured) -> Option<String> {
    let Captured { stderr, stdout_dropped, stderr_dropped, .. } = output;
    if *stdout_dropped == 0 && *stderr_dropped == 0 {
        return None;
    }
    let cut = stderr.len().saturating_sub(EXEC_OUTPUT_BYTES_MAX - LOSS_BYTES_MAX);
    stderr.truncate(stderr.len() - cut);
    *stderr_dropped += cut as u64;
    let loss = format!(
        "an exec's output is kept up to {EXEC_OUTPUT_BYTES_MAX} bytes of each stream; \
         lost {stdout_dropped} of stdout, {stderr_dropped} of stderr"
    );
    if stderr.last().is_some_and(|last| *last != b'\n') {
        stderr.push(b'\n');
    }
    stderr.extend_from_slice(format!("podinit: {loss}\n").as_bytes());
    Some(loss)
}

pub(super) fn create_request(
    request: wire::create_container_request::Reader<'_>,
    monitor: &Monitor,
) -> Result<CreateRequest, Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    let mut made = CreateRequest {
        id: container_id(request.get_id().map_err(bad)?)?,
        bundle: path(request.get_bundle_path().map_err(bad)?, "bundlePath")?,
        terminal: request.get_terminal(),
        stdin: request.get_stdin(),
        files: ExitFiles {
            exit: paths(request.get_exit_paths().map_err(bad)?, "exitPaths")?,
            oom: paths(request.get_oom_exit_paths().map_err(bad)?, "oomExitPaths")?,
        },
        logs: log_configs(request.get_log_drivers().map_err(bad)?)?,
        log_options: Vec::new(),
        cleanup: texts(request.get_cleanup_cmd().map_err(bad)?, "cleanupCmd")?,
        options: CallOptions {
            cgroup_manager: cgroup_manager(request.get_cgroup_manager())?,
            global_args: texts(request.get_global_args().map_err(bad)?, "globalArgs")?,
            env: pairs(request.get_env_vars().map_err(bad)?, "envVars")?,
        },
        command_args: texts(request.get_command_args().map_err(bad)?, "commandArgs")?,
        additional_fds: Vec::new(),
        leak_fds: Vec::new(),
        init: false,
    };
    // Last, so that a request that is refused has used up no slot.
    let additional = slots(request.get_additional_fds().map_err(bad)?, "additionalFds")?;
    let leaked = slots(request.get_leak_fds().map_err(bad)?, "leakFds")?;
    let mut fds = monitor.take_fds(&[additional.as_slice(), &leaked].concat())?;
    made.leak_fds = fds.split_off(additional.len());
    made.additional_fds = fds;
    Ok(made)
}

fn slots(list: capnp::primitive_list::Reader<'_, u64>, what: &str) -> Result<Vec<u64>, Error> {
    if list.len() as usize > FDS_PER_MESSAGE_MAX {
        return Err(Error::Invalid(format!(
            "{what} has {} entries; at most {FDS_PER_MESSAGE_MAX} are taken",
            list.len()
        )));
    }
    Ok(list.iter().collect())
}

fn log_configs(
    list: capnp::struct_list::Reader<'_, wire::log_driver::Owned>,
) -> Result<Vec<LogConfig>, Error> {
    bounded(list.len(), "logDrivers")?;
    let config = |driver: wire::log_driver::Reader<'_>| {
        let kind = match driver.get_type() {
            Ok(wire::log_driver::Type::ContainerRuntimeInterface) => LogKind::Cri,
            Ok(wire::log_driver::Type::Json) => LogKind::Json,
            Ok(wire::log_driver::Type::Journald) => LogKind::Journald,
            Err(capnp::NotInSchema(number)) => {
                return Err(Error::Invalid(format!("there is no log driver {number}; use 0 to 2")));
            }
        };
        let reader = driver.get_path().map_err(|error| malformed("logDrivers", &error))?;
        let path = if kind == LogKind::Journald {
            text(reader, "path of the log driver")?.into()
        } else {
            path(reader, "path of the log driver")?
        };
        Ok(LogConfig { size_max: driver.get_max_size(), ..LogConfig::new(kind, path) })
    };
    list.iter().map(config).collect()
}

fn serve_exec_request(request: wire::serve_exec_container_request::Reader<'_>) -> Result<ExecRequest, Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    Ok(ExecRequest {
        id: container_id(request.get_id().map_err(bad)?)?,
        command: texts(request.get_command().map_err(bad)?, "command")?,
        timeout: None,
        terminal: request.get_tty(),
        env: Vec::new(),
        cgroup_manager: Some(cgroup_manager(request.get_cgroup_manager())?),
    })
}

/// The channels of stdin, stdout and stderr that a request asks for.
fn channels(wanted: [bool; 3]) -> Channels {
    let all = [Channel::Stdin, Channel::Stdout, Channel::Stderr];
    let asked = all.into_iter().zip(wanted).filter(|(_, wanted)| *wanted);
    asked.fold(Channels::LEAST, |channels, (channel, _)| channels.and(channel))
}

fn exec_request(request: wire::exec_sync_container_request::Reader<'_>) -> Result<ExecRequest, Error> {
    let bad = |error: capnp::Error| malformed("the request", &error);
    let seconds = request.get_timeout_sec();
    Ok(ExecRequest {
        id: container_id(request.get_id().map_err(bad)?)?,
        command: texts(request.get_command().map_err(bad)?, "command")?,
        timeout: (seconds > 0).then(|| Duration::from_secs(seconds.min(EXEC_SECONDS_MAX))),
        terminal: request.get_terminal(),
        env: pairs(request.get_env_vars().map_err(bad)?, "envVars")?,
        cgroup_manager: Some(cgroup_manager(request.get_cgroup_manager())?),
    })
}

/// A hundred years: clients that mean "for ever" send huge numbers, and a clock
/// must be able to add them.
const EXEC_SECONDS_MAX: u64 = 100 * 365 * 86400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_told_within_the_limit_and_counted_to_the_byte() {
        let mut output = Captured { stderr: b"err".to_vec(), ..Captured::default() };
        assert_eq!(tell_loss(&mut output), None);
        assert_eq!(output.stderr, b"err");

        output.stdout_dropped = 7;
        let loss = tell_loss(&mut output).unwrap();
        assert!(loss.ends_with("lost 7 of stdout, 0 of stderr"), "{loss}");
        assert_eq!(output.stderr, format!("err\npodinit: {loss}\n").as_bytes());

        let (stderr, most) = (vec![b'x'; EXEC_OUTPUT_BYTES_MAX], u64::MAX / 2);
        let mut full = Captured { stderr, stdout_dropped: most, stderr_dropped: most, ..Captured::default() };
        tell_loss(&mut full).unwrap();
        assert!(full.stderr.len() <= EXEC_OUTPUT_BYTES_MAX);
        let kept = full.stderr.iter().position(|byte| *byte == b'\n').unwrap();
        assert_eq!(full.stderr_dropped, most + (EXEC_OUTPUT_BYTES_MAX - kept) as u64);
    }
}
