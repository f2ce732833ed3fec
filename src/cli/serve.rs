//! `podinit serve`, and `conmonrs`: the same flags, environment and files as
//! conmon-rs has, so that an engine need not know the difference.
//!
//! This file says what the flags mean; `launcher` starts the server; `handover`
//! carries the result to the monitor, which must not depend on the directory or
//! the environment it is started in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use rustix::fs::Access;

use super::version::{self, Detail, Format};
use crate::hook::default_directories;
use crate::limits::CREATE_TIMEOUT;
use crate::monitor::config::{Config, LogLevel, LogSink, StreamingDoor};
use crate::rpc;

pub mod handover;
pub mod launcher;

/// A value that may be blank: engines pass " " or an empty environment variable for "not set".
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting<T>(Option<T>);

impl<T> Setting<T> {
    fn parse(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Self, String> {
        if text.trim().is_empty() { Ok(Self(None)) } else { parse(text).map(|value| Self(Some(value))) }
    }
}

fn path(text: &str) -> Result<Setting<PathBuf>, String> {
    Setting::parse(text, |text| Ok(PathBuf::from(text)))
}

fn detail(text: &str) -> Result<Setting<Detail>, String> {
    Setting::parse(text, |text| Detail::from_str(text, false))
}

fn log_level(text: &str) -> Result<Setting<LogLevel>, String> {
    Setting::parse(text, |text| handover::level(text).ok_or_else(|| "not one of the levels".to_owned()))
}

fn log_sink(text: &str) -> Result<Setting<LogSink>, String> {
    Setting::parse(text, |text| handover::sink(text).ok_or_else(|| "not one of the drivers".to_owned()))
}

fn seconds(text: &str) -> Result<Setting<Duration>, String> {
    Setting::parse(text, |text| match u64::from_str(text) {
        Ok(0) => Err("a create needs some time: at least 1 second".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(error) => Err(error.to_string()),
    })
}

/// A flag, or an environment variable that says no.
fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "0" | "n" | "no" | "f" | "false" | "off" => Ok(false),
        "1" | "y" | "yes" | "t" | "true" | "on" => Ok(true),
        _ => Err("neither yes nor no".to_owned()),
    }
}

const EXIT_CODES: &str = "\
Exit status: 0 the pod is served (with --skip-fork: it has ended in order), 1 it is not, and standard error
says why (with --skip-fork also: it had to be killed), 2 the command line is wrong.";

/// The flags.
#[derive(Debug, Clone, Parser)]
#[command(name = "conmonrs", about = "Start a pod's server", disable_version_flag = true)]
#[command(after_help = EXIT_CODES)]
#[expect(clippy::struct_excessive_bools, reason = "a command line has as many switches as it has")]
pub struct Args {
    /// Print the version and exit; "full" adds the packages it was built with.
    #[arg(long, short = 'v', env = "CONMON_VERSION", value_parser = detail)]
    #[arg(num_args = 0..=1, default_missing_value = "default", value_name = "default|full")]
    version: Option<Setting<Detail>>,

    /// Print the version as JSON and exit.
    #[arg(long, short = 'j', env = "CONMON_VERSION_JSON", alias = "vj", value_parser = detail)]
    #[arg(num_args = 0..=1, default_missing_value = "default", value_name = "default|full")]
    version_json: Option<Setting<Detail>>,

    /// How much the server logs.
    #[arg(long, short = 'l', env = "CONMON_LOG_LEVEL", value_parser = log_level, default_value = "info")]
    #[arg(value_name = "trace|debug|info|warn|error|off")]
    log_level: Setting<LogLevel>,

    /// Where the server logs.
    #[arg(long, short = 'd', env = "CONMON_LOG_DRIVER", value_parser = log_sink, default_value = "systemd")]
    #[arg(value_name = "none|stdout|systemd")]
    log_driver: Setting<LogSink>,

    /// The OCI runtime. Required.
    #[arg(long, short = 'r', env = "CONMON_RUNTIME", value_parser = path, default_value = " ")]
    #[arg(hide_default_value = true, value_name = "PATH")]
    runtime: Setting<PathBuf>,

    /// The pod's run directory; made if it does not exist. Required.
    #[arg(long, env = "CONMON_RUNTIME_DIR", value_parser = path, default_value = " ")]
    #[arg(hide_default_value = true, value_name = "DIR")]
    runtime_dir: Setting<PathBuf>,

    /// The OCI runtime's own state directory (its --root); made if it does not exist.
    #[arg(long, env = "CONMON_RUNTIME_ROOT", value_parser = path, value_name = "DIR")]
    runtime_root: Option<Setting<PathBuf>>,

    /// Bound on the OCI runtime's create, in seconds [default: 240].
    #[arg(long, env = "PODINIT_CREATE_TIMEOUT", value_parser = seconds, value_name = "SECONDS")]
    create_timeout: Option<Setting<Duration>>,

    /// TLS for streaming clients (exec, attach, port-forward): the server's certificate, in PEM, and those
    /// that it rests on. It has to be good for 127.0.0.1.
    #[arg(long, env = "PODINIT_STREAMING_TLS_CERT", value_parser = path, value_name = "FILE")]
    streaming_tls_cert: Option<Setting<PathBuf>>,

    /// Its private key, in PEM.
    #[arg(long, env = "PODINIT_STREAMING_TLS_KEY", value_parser = path, value_name = "FILE")]
    streaming_tls_key: Option<Setting<PathBuf>>,

    /// Serve streaming clients on a Unix socket in the run directory, not on a port.
    #[arg(long, env = "PODINIT_STREAMING_SOCKET", action = ArgAction::SetTrue, value_parser = switch)]
    streaming_socket: bool,

    /// Rules for seccomp notifications: a file, or a directory of *.json files
    /// [default: /etc/podinit/seccomp.d].
    #[arg(long, env = "PODINIT_SECCOMP_RULES", value_parser = path, value_name = "PATH")]
    seccomp_rules: Option<Setting<PathBuf>>,

    /// Directory of hook files, instead of podinit's own; repeated, the last one counts most.
    #[arg(long, env = "PODINIT_HOOKS_DIR", value_parser = path, value_name = "DIR", value_delimiter = ':')]
    hooks_dir: Vec<Setting<PathBuf>>,

    /// Let plugins register resident hooks, at hooks.sock in the run directory.
    #[arg(long, env = "PODINIT_HOOKS_SOCKET", action = ArgAction::SetTrue, value_parser = switch)]
    hooks_socket: bool,

    /// Directory of the sockets of seccomp plugins that serve every pod
    /// [default: /run/podinit/plugins.d].
    #[arg(long, env = "PODINIT_PLUGIN_DIR", value_parser = path, value_name = "DIR")]
    plugin_dir: Option<Setting<PathBuf>>,

    /// The clients before conmon-rs 1.0 always pass it; every request says it anyway.
    #[arg(long, short = 'c', hide = true, value_name = "systemd|cgroupfs")]
    cgroup_manager: Option<String>,

    /// Stay in the foreground; no pidfile is written then.
    #[arg(long, env = "CONMON_SKIP_FORK", action = ArgAction::SetTrue, value_parser = switch)]
    skip_fork: bool,

    /// Send a span of each request to a collector. Always accepted; it has an effect only in a build with the
    /// cargo feature tracing-otlp, and the monitor's log says if not.
    #[arg(long, short = 'e', env = "CONMON_ENABLE_TRACING", action = ArgAction::SetTrue, value_parser = switch)]
    enable_tracing: bool,

    /// The collector: OTLP over gRPC.
    #[arg(long, short = 't', env = "CONMON_TRACING_ENDPOINT", default_value = "http://127.0.0.1:4317")]
    #[arg(value_name = "URL")]
    tracing_endpoint: String,
}

/// What is wrong with the flags' values.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlagError {
    #[error("no {what} is set; pass {flag} or set {variable}")]
    Unset { what: &'static str, flag: &'static str, variable: &'static str },
    #[error("the OCI runtime {} cannot be used: {why}; pass the path of its program", .path.display())]
    Runtime { path: PathBuf, why: String },
    #[error("TLS for streaming clients needs both --streaming-tls-cert and --streaming-tls-key")]
    HalfTls,
    #[error("--streaming-socket is not encrypted: take it, or --streaming-tls-cert and --streaming-tls-key")]
    SocketWithTls,
    #[error("the file {} cannot be read: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the path {} cannot be made absolute: {source}", .path.display())]
    Path { path: PathBuf, source: std::io::Error },
}

impl Args {
    /// What the monitor shall know, with absolute paths. Makes no directory yet.
    fn config(&self) -> Result<Config, FlagError> {
        let unset = |what, flag, variable| FlagError::Unset { what, flag, variable };
        let runtime = self.runtime.0.as_deref();
        let run_dir = self.runtime_dir.0.as_deref();
        let runtime = runtime.ok_or_else(|| unset("OCI runtime", "--runtime PATH", "CONMON_RUNTIME"))?;
        let run_dir =
            run_dir.ok_or_else(|| unset("run directory", "--runtime-dir DIR", "CONMON_RUNTIME_DIR"))?;
        let runtime_root = self.runtime_root.as_ref().and_then(|root| root.0.as_deref());
        let create_timeout = self.create_timeout.as_ref().and_then(|timeout| timeout.0);
        let seccomp_rules = self.seccomp_rules.as_ref().and_then(|rules| rules.0.as_deref());
        let plugin_dir = self.plugin_dir.as_ref().and_then(|dir| dir.0.as_deref());
        let runtime = absolute(runtime)?;
        check_runtime(&runtime)?;
        Ok(Config {
            runtime,
            run_dir: absolute(run_dir)?,
            runtime_root: runtime_root.map(absolute).transpose()?,
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            streaming: self.streaming()?,
            tracing: self.enable_tracing.then(|| self.tracing_endpoint.clone()),
            create_timeout: create_timeout.unwrap_or(CREATE_TIMEOUT),
            hooks_dirs: self.hooks_dirs()?,
            hooks_socket: self.hooks_socket,
            log_level: self.log_level.0.unwrap_or(LogLevel::Info),
            log_sink: self.log_driver.0.unwrap_or(LogSink::Systemd),
            seccomp_rules: seccomp_rules.map(absolute).transpose()?,
            plugin_dir: absolute(plugin_dir.unwrap_or_else(|| Path::new(rpc::plugin::DIRECTORY)))?,
        })
    }

    fn streaming(&self) -> Result<StreamingDoor, FlagError> {
        let file = |setting: &Option<Setting<PathBuf>>| setting.as_ref().and_then(|path| path.0.clone());
        match (file(&self.streaming_tls_cert), file(&self.streaming_tls_key), self.streaming_socket) {
            (None, None, false) => Ok(StreamingDoor::Port),
            (None, None, true) => Ok(StreamingDoor::Socket),
            (Some(certificates), Some(key), false) => Ok(StreamingDoor::EncryptedPort {
                certificates: readable(&certificates)?,
                key: readable(&key)?,
            }),
            (Some(_), Some(_), true) => Err(FlagError::SocketWithTls),
            _ => Err(FlagError::HalfTls),
        }
    }

    fn hooks_dirs(&self) -> Result<Vec<PathBuf>, FlagError> {
        let given = self.hooks_dir.iter().filter_map(|directory| directory.0.as_deref());
        let given = given.map(absolute).collect::<Result<Vec<_>, _>>()?;
        if given.is_empty() {
            return Ok(default_directories().map(Path::to_owned).to_vec());
        }
        Ok(given)
    }

    fn asked_for_version(&self) -> Option<(Detail, Format)> {
        let text = self.version.as_ref().and_then(|detail| detail.0);
        let json = self.version_json.as_ref().and_then(|detail| detail.0);
        text.map(|detail| (detail, Format::Text)).or_else(|| json.map(|detail| (detail, Format::Json)))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, FlagError> {
    std::path::absolute(path).map_err(|source| FlagError::Path { path: path.to_owned(), source })
}

fn readable(path: &Path) -> Result<PathBuf, FlagError> {
    let path = absolute(path)?;
    match std::fs::File::open(&path) {
        Ok(_) => Ok(path),
        Err(source) => Err(FlagError::Unreadable { path, source }),
    }
}

fn check_runtime(path: &Path) -> Result<(), FlagError> {
    let why = match path.metadata() {
        Err(error) => error.to_string(),
        Ok(metadata) if !metadata.is_file() => "it is not a file".to_owned(),
        Ok(_) => match rustix::fs::access(path, Access::EXEC_OK) {
            Ok(()) => return Ok(()),
            Err(_) => "it is not executable".to_owned(),
        },
    };
    Err(FlagError::Runtime { path: path.to_owned(), why })
}

/// `conmonrs ARGS`, with the program's name first.
#[must_use]
pub fn main_as_conmonrs(argv: Vec<OsString>) -> ExitCode {
    match Args::try_parse_from(argv) {
        Ok(args) => run(args),
        Err(error) => super::refuse(&error),
    }
}

/// Starts the server: exit status 0 when it serves, 1 with a sentence on
/// standard error when it does not. With `--skip-fork` it is the server.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    if let Some((detail, format)) = args.asked_for_version() {
        return version::print(detail, format);
    }
    let result = args.config().map_err(launcher::ServeError::from).and_then(|config| {
        if args.skip_fork { launcher::become_server(&config) } else { launcher::start_server(&config) }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["conmonrs"], line].concat())
    }

    #[test]
    fn go_clients_command_line_is_understood() {
        let line = "--runtime /bin/sh --runtime-dir /run/x --runtime-root /run/r --log-level debug \
                    --log-driver stdout --enable-tracing --tracing-endpoint http://127.0.0.1:1";
        let config = parse(&line.split_whitespace().collect::<Vec<_>>()).unwrap().config().unwrap();
        assert_eq!(config.runtime, Path::new("/bin/sh"));
        assert_eq!(config.run_dir, Path::new("/run/x"));
        assert_eq!(config.runtime_root.as_deref(), Some(Path::new("/run/r")));
        assert_eq!((config.log_level, config.log_sink), (LogLevel::Debug, LogSink::Stdout));
        assert_eq!(config.create_timeout, CREATE_TIMEOUT);
    }

    /// CRI-O 1.36 and before has a client of that line.
    #[test]
    fn command_line_of_the_go_client_before_1_0_is_understood() {
        let line = "--runtime /bin/sh --runtime-dir /run/x --log-level debug --log-driver none \
                    --cgroup-manager cgroupfs";
        for line in [line.to_owned(), line.replace("--cgroup-manager cgroupfs", "-c systemd")] {
            let config = parse(&line.split_whitespace().collect::<Vec<_>>()).unwrap().config().unwrap();
            assert_eq!(config.run_dir, Path::new("/run/x"));
        }
    }

    #[test]
    fn blank_values_are_unset() {
        let blank = parse(&["-r", " ", "--runtime-dir", "/run/x"]).unwrap().config();
        assert!(matches!(blank, Err(FlagError::Unset { flag: "--runtime PATH", .. })));
        let line = ["-r", "/bin/sh", "--runtime-dir", "x", "--runtime-root", "", "-l", " ", "-d", ""];
        let config = parse(&line).unwrap().config().unwrap();
        assert_eq!((config.log_level, config.log_sink), (LogLevel::Info, LogSink::Systemd));
        assert_eq!(config.runtime_root, None);
        assert!(config.run_dir.is_absolute());
    }

    #[test]
    fn short_forms_aliases_and_details_are_understood() {
        for (line, expected) in [
            (&["-v"][..], (Detail::Default, Format::Text)),
            (&["--version", "full"], (Detail::Full, Format::Text)),
            (&["-j"], (Detail::Default, Format::Json)),
            (&["--vj", "default"], (Detail::Default, Format::Json)),
            (&["--version-json=full"], (Detail::Full, Format::Json)),
        ] {
            assert_eq!(parse(line).unwrap().asked_for_version(), Some(expected), "{line:?}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in
            [&["-l", "loud"][..], &["-d", "file"], &["--create-timeout", "0"], &["--create-timeout", "x"]]
        {
            assert!(parse(line).is_err(), "{line:?}");
        }
        let unknown = parse(&["--nonsense"]).unwrap_err().to_string();
        assert!(unknown.starts_with("error: unexpected argument"), "{unknown}");
    }

    #[test]
    fn runtime_must_be_an_executable_file() {
        for path in ["/nonexistent/crun", "/etc/passwd", "/etc"] {
            let error = parse(&["-r", path, "--runtime-dir", "x"]).unwrap().config().unwrap_err();
            assert!(matches!(error, FlagError::Runtime { .. }), "{path}");
        }
    }

    #[test]
    fn streaming_is_on_a_port_on_an_encrypted_one_or_on_a_socket() {
        let streaming = |line: &[&str]| parse(line).unwrap().streaming();
        let (cert, key) = (["--streaming-tls-cert", "/etc/passwd"], ["--streaming-tls-key", "/etc/group"]);
        assert_eq!(streaming(&[]).unwrap(), StreamingDoor::Port);
        assert_eq!(streaming(&["--streaming-socket"]).unwrap(), StreamingDoor::Socket);
        let (certificates, file) = ("/etc/passwd".into(), "/etc/group".into());
        let encrypted = StreamingDoor::EncryptedPort { certificates, key: file };
        assert_eq!(streaming(&[cert, key].concat()).unwrap(), encrypted);
        assert!(matches!(streaming(&cert), Err(FlagError::HalfTls)));
        assert!(matches!(streaming(&key), Err(FlagError::HalfTls)));
        let both = [&cert[..], &key, &["--streaming-socket"]].concat();
        assert!(matches!(streaming(&both), Err(FlagError::SocketWithTls)));
        let missing = ["--streaming-tls-cert", "/none", "--streaming-tls-key", "/none"];
        assert!(matches!(streaming(&missing), Err(FlagError::Unreadable { .. })));
    }

    #[test]
    fn switches_can_be_turned_off_by_the_environment() {
        assert_eq!([switch("true"), switch("0"), switch(" ")], [Ok(true), Ok(false), Ok(false)]);
        assert!(switch("maybe").is_err());
    }
}
