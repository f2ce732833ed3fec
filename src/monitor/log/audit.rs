//! Whether a log holds everything that was written to it, and if not, what is
//! missing.
//!
//! [`survey`] reads every file of a log that is there and counts. [`Survey::findings`]
//! compares that with the accounts that the files carry ([`account`](super::account)),
//! with one another, with the counters of the monitor where it can still be asked,
//! and with the gap records. It is pure.
//!
//! Nothing found means: every record that was written is there; and, with counters
//! of a container that has exited, every byte that was read from it is in a record.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::account::{Both, FileAccount, Sums, each};
use super::batch::Channel;
use super::decode::{Record, decode};
use super::parts::{Part, list};
use super::reader::{Lines, ReadError};

/// What gap records say, of one channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Gap records.
    pub records: u64,
    /// Payload bytes that are missing, newlines not counted.
    pub bytes: u64,
    /// Lines that are missing.
    pub lines: u64,
    /// Why, as the first of them says.
    pub reason: String,
}

/// What was found in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSurvey {
    /// Its name by then.
    pub path: PathBuf,
    /// What it says about itself.
    pub account: Option<FileAccount>,
    /// Records since its account begins.
    pub found: Both,
    /// Records before that.
    pub foreign: Both,
    /// By [`Channel::index`].
    pub gaps: [Gaps; 2],
    /// Lines that are no records.
    pub malformed: u64,
    /// Why it could not be read to its end.
    pub error: Option<String>,
}

/// What was found in a log, oldest file first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Its files.
    pub files: Vec<FileSurvey>,
}

/// The counters of a monitor, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes read from the container, by [`Channel::index`].
    pub read: [u64; 2],
    /// Written to the log.
    pub written: Both,
    /// The container has exited: nothing more comes.
    pub is_final: bool,
}

/// Where records are missing, or are too many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file that says it holds them.
    In(PathBuf),
    /// In files that were before this one.
    Before(PathBuf),
    /// At the end of the log.
    End,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(path) => write!(f, "in {}", path.display()),
            Self::Before(path) => write!(f, "before {}", path.display()),
            Self::End => f.write_str("at the end"),
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Records were written and are not there.
    Missing(Channel, Sums, Place),
    /// Records are there that were not written by the monitor.
    Extra(Channel, Sums, Place),
    /// The log itself says that it is not complete.
    Gap(Channel, Gaps),
    /// Bytes were read that are in no record, and no gap record tells of them.
    Lost(Channel, u64),
    /// Records of before the account begins: the monitor has been restarted since,
    /// or somebody else wrote them.
    Foreign(PathBuf, u64),
    /// Nobody can say whether the log is at its end.
    NoEnd,
    /// A file cannot be read, for this reason.
    Unreadable(PathBuf, String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(channel, sums, place) => {
                write!(f, "{}: {} are missing {place}", channel.name(), Shown(*sums))
            }
            Self::Extra(channel, sums, place) => {
                write!(f, "{}: {} are there that were not written, {place}", channel.name(), Shown(*sums))
            }
            Self::Gap(channel, Gaps { records, bytes, lines, reason }) => {
                let name = channel.name();
                write!(
                    f,
                    "{name}: {bytes} bytes in {lines} lines could not be kept ({records} gap records; {reason})"
                )
            }
            Self::Lost(channel, bytes) => write!(
                f,
                "{}: {bytes} bytes were read from the container and are neither in the log nor in a gap record",
                channel.name()
            ),
            Self::Foreign(path, records) => write!(
                f,
                "{}: {records} records are older than the account of them: the pod's server was restarted, or \
                 somebody else wrote them; nothing proves that they are all there were",
                path.display()
            ),
            Self::NoEnd => f.write_str(
                "the end: neither a running pod nor the last file says where the log ends; what came last \
                 may be missing",
            ),
            Self::Unreadable(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

/// Sums, for a person.
#[derive(Debug, Clone, Copy)]
pub struct Shown(pub Sums);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sums { records, bytes, lines } = self.0;
        write!(f, "{bytes} bytes in {records} records ({lines} lines)")
    }
}

/// Reads all files of the log at `path` and counts.
///
/// # Errors
/// If there is no log. Files that cannot be read to their end are told of in the
/// survey.
pub fn survey(path: &Path) -> Result<Survey, ReadError> {
    let files = list(path)?.into_iter().map(survey_file).collect();
    Ok(Survey { files })
}

fn survey_file(mut part: Part) -> FileSurvey {
    // Before the records are read: what is counted up to then must all be found.
    let account = part.account();
    let mut file = FileSurvey {
        path: part.path.clone(),
        account,
        found: Both::default(),
        foreign: Both::default(),
        gaps: Default::default(),
        malformed: 0,
        error: None,
    };
    let from = account.map_or(0, |account| account.from);
    let (mut lines, mut at) = (Lines::default(), 0);
    let read = part.read_to(None, &mut |bytes| {
        lines.push(bytes, &mut |line, length| {
            let is_ours = at >= from;
            at += length;
            match line.and_then(decode) {
                Some(record) => file.take(&record, is_ours),
                None => file.malformed += 1,
            }
            ControlFlow::Continue(())
        })
    });
    file.error = read.err().map(|error| error.to_string());
    file.malformed += u64::from(lines.held_bytes() > 0);
    file
}

impl FileSurvey {
    fn take(&mut self, record: &Record<'_>, is_ours: bool) {
        let at = record.channel.index();
        match (&record.gap, is_ours) {
            (Some(gap), true) => {
                let gaps = &mut self.gaps[at];
                if gaps.records == 0 {
                    gap.reason().clone_into(&mut gaps.reason);
                }
                gaps.records += 1;
                gaps.bytes = gaps.bytes.saturating_add(gap.bytes);
                gaps.lines = gaps.lines.saturating_add(gap.lines);
            }
            (Some(_), false) => {}
            (None, true) => self.found[at].add_record(record.payload.len(), record.tag),
            (None, false) => self.foreign[at].add_record(record.payload.len(), record.tag),
        }
    }
}

/// Walks from file to file.
#[derive(Debug, Default)]
struct Walk {
    findings: Vec<Finding>,
    /// Which sequence of files we are in.
    log: Option<u64>,
    /// What the sequence holds up to here, or what files without an account do.
    held: Both,
}

impl Walk {
    fn file(&mut self, file: &FileSurvey) {
        if let Some(error) = &file.error {
            self.findings.push(Finding::Unreadable(file.path.clone(), error.clone()));
        }
        let foreign = file.foreign.iter().map(|sums| sums.records).sum();
        if foreign > 0 {
            self.findings.push(Finding::Foreign(file.path.clone(), foreign));
        }
        let Some(account) = file.account else {
            self.held = each(self.held, file.found, Sums::plus);
            return;
        };
        // Files without an account may be of this sequence, if nothing else is before it. What they hold
        // beyond that is of an earlier one.
        let continues = self.log == Some(account.log);
        let held = if continues || self.log.is_none() { self.held } else { Both::default() };
        let most = if continues { account.before } else { held };
        self.compare(held, (account.before, most), &Place::Before(file.path.clone()));
        if let Some(here) = account.here {
            self.compare(file.found, (here, here), &Place::In(file.path.clone()));
        }
        self.log = Some(account.log);
        self.held = each(account.before, account.here.unwrap_or(file.found), Sums::plus);
    }

    /// `found` must be at least `least` and at most `most`.
    fn compare(&mut self, found: Both, (least, most): (Both, Both), place: &Place) {
        for channel in Channel::ALL {
            let at = channel.index();
            let (missing, extra) = (least[at].minus(found[at]), found[at].minus(most[at]));
            if missing != Sums::default() {
                self.findings.push(Finding::Missing(channel, missing, place.clone()));
            }
            if extra != Sums::default() {
                self.findings.push(Finding::Extra(channel, extra, place.clone()));
            }
        }
    }
}

impl Survey {
    /// Records of all files.
    #[must_use]
    pub fn found(&self) -> Both {
        self.files.iter().fold(Both::default(), |sum, file| each(sum, file.found, Sums::plus))
    }

    /// Lines that are no records.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.files.iter().map(|file| file.malformed).sum()
    }

    fn gaps(&self, channel: Channel) -> Gaps {
        self.files.iter().map(|file| &file.gaps[channel.index()]).fold(Gaps::default(), |sum, gaps| Gaps {
            records: sum.records + gaps.records,
            bytes: sum.bytes.saturating_add(gaps.bytes),
            lines: sum.lines.saturating_add(gaps.lines),
            reason: if sum.records == 0 { gaps.reason.clone() } else { sum.reason },
        })
    }

    /// What is not as it should be. `before` and `after` are the counters from
    /// before and after the survey, if there are any; of a container that has exited
    /// they are the same.
    #[must_use]
    pub fn findings(&self, counted: Option<(Counted, Counted)>) -> Vec<Finding> {
        let mut walk = Walk::default();
        self.files.iter().for_each(|file| walk.file(file));
        let has_end = self.files.last().and_then(|file| file.account).is_some_and(|account| account.is_last);
        match counted {
            Some((before, after)) => {
                // What was written while we read may have been read or not.
                walk.compare(walk.held, (before.written, after.written), &Place::End);
                if before.is_final {
                    self.check_read(&before, &mut walk.findings);
                }
            }
            None if !has_end => walk.findings.push(Finding::NoEnd),
            None => {}
        }
        for channel in Channel::ALL {
            let gaps = self.gaps(channel);
            if gaps.records > 0 {
                walk.findings.push(Finding::Gap(channel, gaps));
            }
        }
        walk.findings
    }

    /// Every byte that was read is in a record or in a gap.
    fn check_read(&self, counted: &Counted, findings: &mut Vec<Finding>) {
        for channel in Channel::ALL {
            let (at, gaps) = (channel.index(), self.gaps(channel));
            let told =
                counted.written[at].output_bytes().saturating_add(gaps.bytes).saturating_add(gaps.lines);
            let lost = counted.read[at].saturating_sub(told);
            if lost > 0 {
                findings.push(Finding::Lost(channel, lost));
            }
        }
    }
}

#[cfg(test)]
mod tests;
