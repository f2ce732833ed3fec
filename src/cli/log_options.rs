//! How a container's log is kept, as people say it.

use clap::Args;

use super::names;

/// Options of a container's log.
#[derive(Debug, Args)]
pub struct LogOptions {
    /// Size at which the log is rotated, in bytes; k, m or g may follow [default: never]
    #[arg(long, value_name = "BYTES", value_parser = names::bytes, default_value = "0", hide_default_value = true)]
    pub log_size: u64,

    /// Rotated logs that are kept [default: 1]
    #[arg(long, value_name = "NUMBER")]
    log_backups: Option<u16>,

    /// Compress rotated logs from the second on
    #[arg(long, requires = "log_backups")]
    log_compress: bool,

    /// When the log is brought to the disk for certain [default: none]
    #[arg(long, value_name = "WHEN", value_parser = ["none", "rotation", "exit"])]
    log_sync: Option<String>,
}

impl LogOptions {
    /// As a create request says it.
    #[must_use]
    pub fn pairs(&self) -> Vec<(String, String)> {
        let backups = self.log_backups.map(|backups| ("backups", backups.to_string()));
        let compress = self.log_compress.then(|| ("compress", "gzip".to_owned()));
        let sync = self.log_sync.clone().map(|when| ("sync", when));
        [backups, compress, sync]
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}
