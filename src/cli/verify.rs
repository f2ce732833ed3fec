//! `podinit logs --verify`: whether a log is complete, or exactly what is missing.

use std::fs;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use super::find::Pod;
use super::output;
use super::paths::PodDir;
use crate::monitor::log::account::Sums;
use crate::monitor::log::audit::{self, Counted, Shown, Survey};
use crate::monitor::relay::StreamStats;
use crate::monitor::saved::Saved;
use crate::rpc::client::{Client, LogAccount, StreamAccount};

/// Bytes of what a pod's server has saved of a container: some KiB, and as much of
/// its environment as the engine gave the OCI runtime.
const SAVED_BYTES_MAX: u64 = 4 << 20;

/// Audits the log of container `id` with the counters of its pod's server.
///
/// # Errors
/// If the log is not complete, or cannot be read.
pub fn of_running_pod(pod: &Pod, id: &str, path: &Path) -> Result<(), Failure> {
    let before = counters(&pod.client, id)?;
    let survey = survey(path)?;
    let after = if before.is_final { before } else { counters(&pod.client, id)? };
    report(&survey, Some((before, after)))
}

/// Audits the log of container `id` of a pod whose server is gone, with what that
/// has left.
///
/// # Errors
/// If the log is not complete, or cannot be read.
pub fn of_silent_pod(pod: &PodDir, id: &str) -> Result<(), Failure> {
    let saved = saved(pod, id);
    let streams = saved.as_ref().and_then(|saved| saved.streams.as_deref());
    let counted = streams.map(last_counters);
    let path = saved.as_ref().and_then(|saved| saved.logs.first()).map(|log| log.path.clone());
    let path = path.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| pod.log(id));
    report(&survey(&path)?, counted.map(|counted| (counted, counted)))
}

/// Audits the log at `path` with nothing but what its files say.
///
/// # Errors
/// If the log is not complete, or cannot be read.
pub fn of_file(path: &Path) -> Result<(), Failure> {
    report(&survey(path)?, None)
}

fn survey(path: &Path) -> Result<Survey, Failure> {
    audit::survey(path).map_err(|error| Failure::new(error.to_string()))
}

fn counters(client: &Client, id: &str) -> Result<Counted, Failure> {
    let LogAccount { stdout, stderr, is_final } = client.call(async |client| client.log_account(id).await)?;
    let sums = |stream: &StreamAccount| Sums {
        records: stream.records,
        bytes: stream.payload_bytes,
        lines: stream.lines,
    };
    Ok(Counted {
        read: [stdout.read_bytes, stderr.read_bytes],
        written: [sums(&stdout), sums(&stderr)],
        is_final,
    })
}

fn last_counters(streams: &StreamStats) -> Counted {
    let [stdout, stderr] = streams.added;
    let read = [streams.stdout.bytes + stdout, streams.stderr.bytes + stderr];
    Counted { read, written: streams.written, is_final: true }
}

fn saved(pod: &PodDir, id: &str) -> Option<Saved> {
    let path: PathBuf = pod.path.join("containers").join(format!("{id}.json"));
    let is_small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= SAVED_BYTES_MAX);
    is_small.then(|| fs::read(&path).ok()).flatten().and_then(|text| serde_json::from_slice(&text).ok())
}

fn report(survey: &Survey, counted: Option<(Counted, Counted)>) -> Result<(), Failure> {
    let findings = survey.findings(counted);
    let is_running = counted.is_some_and(|(_, after)| !after.is_final);
    let verdict = match (findings.is_empty(), is_running) {
        (true, false) => "complete",
        (true, true) => "complete so far",
        (false, _) => "not complete",
    };
    let [stdout, stderr] = survey.found();
    let mut text = format!(
        "{verdict}: {} files\nstdout: {}\nstderr: {}\n",
        survey.files.len(),
        Shown(stdout),
        Shown(stderr)
    );
    if survey.malformed() > 0 {
        text += &format!(
            "{} lines are no records: halves of such that were written again, or somebody else's\n",
            survey.malformed()
        );
    }
    for finding in &findings {
        text += &format!("{finding}\n");
    }
    output::print(&text)?;
    if findings.is_empty() { Ok(()) } else { Err(Failure::new("the log is not complete")) }
}
