//! The monitor's command line: what `podinit serve` has understood, said again
//! without defaults, environment or relative paths. Every monitor of a pod gets
//! the same one, whenever the keeper starts it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use crate::monitor::config::{Config, LogLevel, LogSink, StreamingDoor};

/// The levels' names.
const LEVELS: [(&str, LogLevel); 6] = [
    ("off", LogLevel::Off),
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

/// The log drivers' names.
const SINKS: [(&str, LogSink); 3] =
    [("none", LogSink::None), ("stdout", LogSink::Stdout), ("systemd", LogSink::Systemd)];

/// May be there several times.
const HOOKS_DIR: &str = "--hooks-dir";
/// There if it is wanted.
const HOOKS_SOCKET: &str = "--hooks-socket";

/// The level of that name.
pub(super) fn level(name: &str) -> Option<LogLevel> {
    LEVELS.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
}

/// The log driver of that name.
pub(super) fn sink(name: &str) -> Option<LogSink> {
    SINKS.iter().find(|(known, _)| *known == name).map(|(_, sink)| *sink)
}

/// A command line that [`monitor_args`] did not write.
#[derive(Debug, thiserror::Error)]
#[error("podinit monitor: {0}; it is started by `podinit serve`, not by hand")]
pub struct NotOurs(&'static str);

/// The monitor's arguments for `config`, after `podinit monitor`.
#[must_use]
pub fn monitor_args(config: &Config) -> Vec<OsString> {
    let level = LEVELS.iter().find(|(_, level)| *level == config.log_level).map_or("info", |(name, _)| name);
    let sink = SINKS.iter().find(|(_, sink)| *sink == config.log_sink).map_or("none", |(name, _)| name);
    let mut args: Vec<OsString> = vec!["--runtime".into(), config.runtime.clone().into()];
    args.extend(["--runtime-dir".into(), config.run_dir.clone().into()]);
    if let Some(root) = &config.runtime_root {
        args.extend(["--runtime-root".into(), root.clone().into()]);
    }
    if let Some(soft) = config.open_files {
        args.extend(["--open-files".into(), soft.to_string().into()]);
    }
    match &config.streaming {
        StreamingDoor::Port => {}
        StreamingDoor::Socket => args.extend(["--streaming".into(), "socket".into()]),
        StreamingDoor::EncryptedPort { certificates, key } => {
            args.extend(["--streaming-tls-cert".into(), certificates.clone().into()]);
            args.extend(["--streaming-tls-key".into(), key.clone().into()]);
        }
    }
    for directory in &config.hooks_dirs {
        args.extend([HOOKS_DIR.into(), directory.clone().into()]);
    }
    if config.hooks_socket {
        args.extend([HOOKS_SOCKET.into(), "yes".into()]);
    }
    if let Some(endpoint) = &config.tracing {
        args.extend(["--tracing-endpoint".into(), endpoint.into()]);
    }
    args.extend(["--create-timeout-ms".into(), config.create_timeout.as_millis().to_string().into()]);
    args.extend(["--log-level".into(), level.into(), "--log-driver".into(), sink.into()]);
    args.extend(["--plugin-dir".into(), config.plugin_dir.clone().into()]);
    if let Some(rules) = &config.seccomp_rules {
        args.extend(["--seccomp-rules".into(), rules.clone().into()]);
    }
    args
}

/// The configuration in a monitor's arguments. By hand, not by clap: a monitor
/// starts faster without it, and nobody types this.
///
/// # Errors
/// [`NotOurs`] for anything that [`monitor_args`] does not write.
pub fn monitor_config(args: &[OsString]) -> Result<Config, NotOurs> {
    let value = |name: &str| -> Option<&OsStr> {
        args.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_os_str())
    };
    let text = |name: &str| value(name).and_then(OsStr::to_str);
    let streaming = match (value("--streaming-tls-cert"), value("--streaming-tls-key")) {
        (Some(certificates), Some(key)) => {
            StreamingDoor::EncryptedPort { certificates: certificates.into(), key: key.into() }
        }
        _ if value("--streaming").is_some() => StreamingDoor::Socket,
        _ => StreamingDoor::Port,
    };
    let hooks_dirs = args.chunks_exact(2).filter(|pair| pair[0] == HOOKS_DIR);
    let timeout = text("--create-timeout-ms").and_then(|ms| ms.parse().ok());
    Ok(Config {
        runtime: value("--runtime").map(PathBuf::from).ok_or(NotOurs("no --runtime"))?,
        run_dir: value("--runtime-dir").map(PathBuf::from).ok_or(NotOurs("no --runtime-dir"))?,
        runtime_root: value("--runtime-root").map(PathBuf::from),
        create_timeout: timeout.map(Duration::from_millis).ok_or(NotOurs("no --create-timeout-ms"))?,
        open_files: text("--open-files").and_then(|soft| soft.parse().ok()),
        streaming,
        hooks_dirs: hooks_dirs.map(|pair| PathBuf::from(&pair[1])).collect(),
        hooks_socket: text(HOOKS_SOCKET).is_some(),
        tracing: text("--tracing-endpoint").map(str::to_owned),
        log_level: text("--log-level").and_then(level).ok_or(NotOurs("no --log-level"))?,
        log_sink: text("--log-driver").and_then(sink).ok_or(NotOurs("no --log-driver"))?,
        seccomp_rules: value("--seccomp-rules").map(PathBuf::from),
        plugin_dir: value("--plugin-dir").map(PathBuf::from).ok_or(NotOurs("no --plugin-dir"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_arrives_as_it_was() {
        for (_, log_level) in LEVELS {
            for (_, log_sink) in SINKS {
                let config = Config {
                    runtime: "/bin/sh".into(),
                    run_dir: "/run/a b".into(),
                    runtime_root: (log_level > LogLevel::Info).then(|| "--runtime".into()),
                    create_timeout: Duration::from_millis(1500),
                    open_files: (log_level > LogLevel::Error).then_some(1024),
                    streaming: match log_sink {
                        LogSink::None => StreamingDoor::Port,
                        LogSink::Stdout => StreamingDoor::Socket,
                        LogSink::Systemd => {
                            let (certificates, key) = ("/a b/c".into(), "--streaming".into());
                            StreamingDoor::EncryptedPort { certificates, key }
                        }
                    },
                    hooks_dirs: vec!["/a".into(), "/b c".into()],
                    hooks_socket: log_level > LogLevel::Warn,
                    tracing: (log_level > LogLevel::Warn).then(|| "http://127.0.0.1:4317".into()),
                    log_level,
                    log_sink,
                    seccomp_rules: (log_level < LogLevel::Info).then(|| "/etc/rules".into()),
                    plugin_dir: "/run/plugins".into(),
                };
                let arrived = monitor_config(&monitor_args(&config)).unwrap();
                assert_eq!(format!("{arrived:?}"), format!("{config:?}"));
            }
        }
    }

    #[test]
    fn foreign_command_lines_are_refused() {
        for line in [&[][..], &["--runtime"], &["--runtime", "/bin/sh", "--runtime-dir", "/x"]] {
            let args: Vec<OsString> = line.iter().map(OsString::from).collect();
            assert!(monitor_config(&args).is_err(), "{line:?}");
        }
    }
}
