//! What can be chosen about a container's logs beyond driver, path and size.
//!
//! Options are pairs of a name and a value. An engine gives them as annotations in
//! the bundle's config.json, each name with [`PREFIX`] before it; a client of `Pod`
//! gives them with the create request, without the prefix, and wins over the
//! annotations. A name that is not known and a value that makes no sense are
//! refused before the container is made: a log that is kept in another way than
//! somebody believes is noticed when it is too late.
//!
//! | name | value | default |
//! | --- | --- | --- |
//! | `size-max` | bytes, `k`, `m` or `g` may follow; only if the driver was given no size | 0: never rotated |
//! | `backups` | rotated files that are kept, 1 to [`LOG_BACKUPS_MAX`] | 1 |
//! | `compress` | `none`, or `gzip` from the second backup on | `none` |
//! | `sync` | `none`, `rotation` or `exit` ([`SyncPolicy`]) | `none` |
//! | `rate-bytes`, `rate-lines` | what each stream may print in a second | 0: no limit |
//! | `burst-bytes`, `burst-lines` | what may come at once after a pause | what comes in a second |
//! | `when-fast` | `block` or `drop` ([`WhenFast`]) | `block` |
//! | `when-stuck` | `block`, `drop-oldest` or `drop-newest` ([`WhenStuck`]) | `block` |
//! | `buffer` | bytes kept while a log is stuck, at most [`LOG_BUFFER_BYTES_MAX`] | [`LOG_BUFFER_BYTES`](crate::limits::LOG_BUFFER_BYTES) |
//!
//! Pure: text in, values out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LogConfig;
use super::limit::{LogLimits, Rate, WhenFast, WhenStuck};
use crate::limits::{LOG_BACKUPS_MAX, LOG_BUFFER_BYTES_MAX};

/// What the names of annotations begin with.
pub const PREFIX: &str = "org.podinit.log.";

const SIZE_MAX: &str = "size-max";
const BACKUPS: &str = "backups";
const COMPRESS: &str = "compress";
const SYNC: &str = "sync";
const RATE_BYTES: &str = "rate-bytes";
const RATE_LINES: &str = "rate-lines";
const BURST_BYTES: &str = "burst-bytes";
const BURST_LINES: &str = "burst-lines";
const WHEN_FAST: &str = "when-fast";
const WHEN_STUCK: &str = "when-stuck";
const BUFFER: &str = "buffer";

/// Every name there is.
pub const NAMES: [&str; 11] = [
    SIZE_MAX,
    BACKUPS,
    COMPRESS,
    SYNC,
    RATE_BYTES,
    RATE_LINES,
    BURST_BYTES,
    BURST_LINES,
    WHEN_FAST,
    WHEN_STUCK,
    BUFFER,
];

/// The words of `when-fast`.
pub const FAST: [(&str, WhenFast); 2] = [("block", WhenFast::Block), ("drop", WhenFast::Drop)];

/// The words of `when-stuck`.
pub const STUCK: [(&str, WhenStuck); 3] = [
    ("block", WhenStuck::Block),
    ("drop-oldest", WhenStuck::DropOldest),
    ("drop-newest", WhenStuck::DropNewest),
];

/// Why an option is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no option of that name.
    #[error("there is no log option {name:?}; there are {}", NAMES.join(", "))]
    Unknown {
        /// The name, without the prefix.
        name: String,
    },
    /// The value is none that the option takes.
    #[error("log option {name}: {value:?} is not {wanted}")]
    Value {
        /// The name, without the prefix.
        name: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        wanted: String,
    },
    /// There would be nothing to compress.
    #[error(
        "log option compress: the first backup is never compressed, so backups must be 2 or more; it is {backups}"
    )]
    NothingToCompress {
        /// How many backups there would be.
        backups: u16,
    },
}

/// When a log file is brought to the disk. Whatever is chosen, it happens where
/// log files are written, and not where a container is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncPolicy {
    /// When the kernel writes it.
    #[default]
    None,
    /// When it is complete because the log goes on in a new file.
    Rotation,
    /// Then, and when the container has exited: before the exit is recorded.
    Exit,
}

/// Whether old files are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// They stay as they are.
    #[default]
    None,
    /// From the second backup on, in a process of the lowest priority.
    Gzip,
}

/// How the files of one log are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOptions {
    /// Rotated files that are kept, at least 1.
    pub backups: u16,
    /// Whether they are compressed.
    pub compression: Compression,
    /// When they are synchronised.
    pub sync: SyncPolicy,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { backups: 1, compression: Compression::None, sync: SyncPolicy::None }
    }
}

/// Options as they were given, the last word on each name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given(BTreeMap<String, String>);

impl Given {
    /// Takes the annotations that are options, and leaves the others.
    pub fn add_annotations(&mut self, annotations: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in annotations {
            if let Some(name) = name.strip_prefix(PREFIX) {
                self.0.insert(name.to_owned(), value);
            }
        }
    }

    /// Takes options whose names have no prefix.
    pub fn add(&mut self, options: impl IntoIterator<Item = (String, String)>) {
        self.0.extend(options);
    }

    /// Whether every name is known.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_names(&self) -> Result<(), OptionError> {
        let unknown = self.0.keys().find(|name| !NAMES.contains(&name.as_str()));
        unknown.map_or(Ok(()), |name| Err(OptionError::Unknown { name: name.clone() }))
    }

    /// A number of bytes.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn bytes(&self, name: &'static str) -> Result<Option<u64>, OptionError> {
        self.value(name, "a number of bytes, with k, m or g after it if you like", parse_bytes)
    }

    /// A number from `least` to `most`.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn number(&self, name: &'static str, least: u64, most: u64) -> Result<Option<u64>, OptionError> {
        let parse = |text: &str| parse_number(text).filter(|number| (least..=most).contains(number));
        self.value(name, &format!("a number from {least} to {most}"), parse)
    }

    /// What one of `words` stands for.
    ///
    /// # Errors
    /// If the value is another word.
    pub fn word<T: Copy>(&self, name: &'static str, words: &[(&str, T)]) -> Result<Option<T>, OptionError> {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let parse = |text: &str| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        self.value(name, &format!("one of {}", all.join(", ")), parse)
    }

    fn value<T>(
        &self,
        name: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, OptionError> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        let wrong = || OptionError::Value { name, value: text.clone(), wanted: wanted.to_owned() };
        parse(text).map(Some).ok_or_else(wrong)
    }

    /// What was chosen about the files of a log.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn file(&self) -> Result<FileOptions, OptionError> {
        let default = FileOptions::default();
        let backups = self.number(BACKUPS, 1, LOG_BACKUPS_MAX.into())?;
        let backups = backups.and_then(|backups| u16::try_from(backups).ok()).unwrap_or(default.backups);
        let compressions = [("none", Compression::None), ("gzip", Compression::Gzip)];
        let compression = self.word(COMPRESS, &compressions)?.unwrap_or(default.compression);
        if compression == Compression::Gzip && backups < 2 {
            return Err(OptionError::NothingToCompress { backups });
        }
        let policies =
            [("none", SyncPolicy::None), ("rotation", SyncPolicy::Rotation), ("exit", SyncPolicy::Exit)];
        let sync = self.word(SYNC, &policies)?.unwrap_or(default.sync);
        Ok(FileOptions { backups, compression, sync })
    }

    /// What was chosen about the amount of output; both streams alike.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn limits(&self) -> Result<LogLimits, OptionError> {
        let amount = |name| Ok(self.bytes(name)?.unwrap_or(0));
        let rate = Rate {
            bytes_per_second: amount(RATE_BYTES)?,
            bytes_burst: amount(BURST_BYTES)?,
            lines_per_second: amount(RATE_LINES)?,
            lines_burst: amount(BURST_LINES)?,
        };
        let buffer_bytes = amount(BUFFER)?;
        if buffer_bytes > LOG_BUFFER_BYTES_MAX as u64 {
            let (value, wanted) = (buffer_bytes.to_string(), format!("at most {LOG_BUFFER_BYTES_MAX} bytes"));
            return Err(OptionError::Value { name: BUFFER, value, wanted });
        }
        Ok(LogLimits {
            rates: [rate; 2],
            when_fast: self.word(WHEN_FAST, &FAST)?.unwrap_or_default(),
            when_stuck: self.word(WHEN_STUCK, &STUCK)?.unwrap_or_default(),
            buffer_bytes,
        })
    }

    /// Puts what was chosen into `logs`.
    ///
    /// # Errors
    /// The first name or value that is refused.
    pub fn apply(&self, logs: &mut [LogConfig]) -> Result<(), OptionError> {
        self.check_names()?;
        let (file, size_max) = (self.file()?, self.bytes(SIZE_MAX)?);
        for log in logs {
            log.file = file;
            if let (0, Some(size_max)) = (log.size_max, size_max) {
                log.size_max = size_max;
            }
        }
        Ok(())
    }
}

/// Digits, and optionally k, m or g for 2^10, 2^20, 2^30.
fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (text.get(..at)?, 10),
        (at, 'm' | 'M') => (text.get(..at)?, 20),
        (at, 'g' | 'G') => (text.get(..at)?, 30),
        _ => (text, 0),
    };
    parse_number(digits)?.checked_mul(1 << shift)
}

/// Digits only: Rust's own parser takes a sign too.
fn parse_number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::super::LogKind;
    use super::*;
    use proptest::prelude::*;

    fn given(pairs: &[(&str, &str)]) -> Given {
        let mut given = Given::default();
        given.add(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        given
    }

    fn log(size_max: u64) -> LogConfig {
        LogConfig { size_max, ..LogConfig::new(LogKind::Cri, "/log") }
    }

    #[test]
    fn options_reach_every_log_and_a_request_wins_over_annotations() {
        let mut options = Given::default();
        let annotations = [
            ("io.kubernetes.cri-o.Name", "x"),
            ("org.podinit.log.size-max", "10m"),
            ("org.podinit.log.backups", "7"),
            ("org.podinit.log.sync", "rotation"),
        ];
        options.add_annotations(annotations.map(|(name, value)| (name.to_owned(), value.to_owned())));
        options.add([("backups".to_owned(), "3".to_owned()), ("compress".to_owned(), "gzip".to_owned())]);
        let mut logs = [log(0), log(5)];
        options.apply(&mut logs).unwrap();
        let file = FileOptions { backups: 3, compression: Compression::Gzip, sync: SyncPolicy::Rotation };
        assert_eq!(logs.clone().map(|log| log.file), [file, file]);
        assert_eq!(logs.map(|log| log.size_max), [10 << 20, 5], "the driver's own size is the last word");
    }

    #[test]
    fn limits_are_chosen_like_files() {
        let limits = given(&[("rate-bytes", "1m"), ("when-fast", "drop"), ("when-stuck", "drop-oldest")]);
        let rate = Rate { bytes_per_second: 1 << 20, ..Rate::default() };
        let expected = LogLimits {
            rates: [rate; 2],
            when_fast: WhenFast::Drop,
            when_stuck: WhenStuck::DropOldest,
            buffer_bytes: 0,
        };
        assert_eq!(limits.limits().unwrap(), expected);
        assert_eq!(given(&[]).limits().unwrap(), LogLimits::default());
        for (name, value) in [("rate-lines", "-1"), ("when-fast", "wait"), ("buffer", "1g")] {
            assert!(given(&[(name, value)]).limits().unwrap_err().to_string().contains(name));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        let refused = |pairs: &[(&str, &str)]| given(pairs).apply(&mut []).unwrap_err().to_string();
        assert!(refused(&[("backup", "3")]).contains("there is no log option \"backup\""));
        for value in ["0", "-1", "+3", "1000000", "", "three"] {
            assert!(refused(&[("backups", value)]).contains("backups"), "{value}");
        }
        assert!(refused(&[("compress", "zstd")]).contains("one of none, gzip"));
        assert!(refused(&[("compress", "gzip")]).contains("backups must be 2 or more"));
        assert!(refused(&[("sync", "always")]).contains("none, rotation, exit"));
        for value in ["", "k", "-1", "+1", "1kb", "1.5m", "99999999999g"] {
            assert!(refused(&[("size-max", value)]).contains("size-max"), "{value}");
        }
        assert_eq!(parse_bytes("3G"), Some(3 << 30));
    }

    proptest! {
        #[test]
        fn any_text_is_an_option_or_refused(pairs in prop::collection::btree_map(".{0,12}", ".{0,12}", 0..4)) {
            let mut options = Given::default();
            options.add(pairs);
            let _refused = (options.apply(&mut [log(0)]), options.limits());
        }
    }
}
