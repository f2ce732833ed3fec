use super::super::account::{FileAccount, Sums};
use super::super::rotate::backup;
use super::super::{Buffers, LogConfig, LogKind, LogSet, reader};
use super::*;
use proptest::prelude::*;
use std::ops::ControlFlow;

const STAMP: &super::super::stamp::Stamp = b"2026-11-23T01:02:03.123456789Z";

fn set(path: &Path, kind: LogKind, size_max: u64) -> LogSet {
    LogSet::open(&[LogConfig { size_max, ..LogConfig::new(kind, path.to_owned()) }]).unwrap()
}

fn write(logs: &mut LogSet, bytes: &[u8]) {
    let mut buffers = Buffers::default();
    assert_eq!(logs.write(Channel::Stdout, bytes, STAMP, &mut buffers), Progress::Kept);
}

#[test]
fn half_a_record_that_a_crash_left_does_not_swallow_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "2026-11-23T01:02:03.1234").unwrap();
    write(&mut set(&path, LogKind::Cri, 0), b"next\n");
    let expected = "2026-11-23T01:02:03.1234\n2026-11-23T01:02:03.123456789Z stdout F next\n";
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn limit_is_kept_to_the_byte_and_a_record_beyond_it_still_has_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let record = cri::OVERHEAD_BYTES as u64 + 4;
    let mut logs = set(&path, LogKind::Cri, 2 * record);
    write(&mut logs, b"1111\n2222\n3333\n");
    assert_eq!(std::fs::metadata(backup(&path, 1)).unwrap().len(), 2 * record);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), record);
    let long = [vec![b'x'; 200], vec![b'\n']].concat();
    write(&mut logs, &long);
    assert_eq!(std::fs::metadata(backup(&path, 1)).unwrap().len(), record);
    assert!(std::fs::metadata(&path).unwrap().len() > 2 * record);
}

#[test]
fn directory_that_vanishes_fails_the_rotation_and_not_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let mut logs = set(&inner.join("log"), LogKind::Cri, 100);
    std::fs::remove_dir_all(&inner).unwrap();
    (0..10).for_each(|_| write(&mut logs, b"goes to the unlinked file\n"));
    assert_eq!((logs.write_errors(), logs.other_errors()), ([0; 2], 1), "the failed rotation, once");
    std::fs::create_dir(&inner).unwrap();
    logs.reopen(&mut Buffers::default()).unwrap();
    write(&mut logs, b"is back\n");
    assert!(std::fs::read_to_string(inner.join("log")).unwrap().ends_with("stdout F is back\n"));
}

#[test]
fn failed_open_of_a_second_log_removes_the_first_one_only_if_it_was_new() {
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("old");
    std::fs::write(&old, "kept").unwrap();
    let paths = [old.clone(), directory.path().join("new"), directory.path().join("no/such/directory")];
    let configs = paths.map(|path| LogConfig::new(LogKind::Json, path));
    assert!(matches!(LogSet::open(&configs), Err(LogError::Open { .. })));
    assert!(old.exists() && !configs[1].path.exists());
    let directory_as_log = LogConfig::new(LogKind::Cri, directory.path().to_owned());
    assert!(LogSet::open(&[directory_as_log]).is_err());
}

#[test]
fn every_backup_says_what_is_in_it_and_what_was_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "somebody was here before\n").unwrap();
    let record = cri::OVERHEAD_BYTES as u64 + 4;
    let file = FileOptions { backups: 3, sync: SyncPolicy::Exit, ..FileOptions::default() };
    let config = LogConfig { kind: LogKind::Cri, path: path.clone(), size_max: 2 * record, file };
    let mut logs = LogSet::open(&[config]).unwrap();
    write(&mut logs, b"1111\n2222\n3333\n4444\n5555\n");
    let written = logs.written().unwrap();
    assert_eq!(written, [Sums { records: 5, bytes: 20, lines: 5 }, Sums::default()]);
    logs.close();
    let accounts: Vec<_> = [backup(&path, 2), backup(&path, 1), path]
        .iter()
        .map(|path| {
            FileAccount::load(std::fs::File::open(path).unwrap())
                .expect("attributes in a temporary directory")
        })
        .collect();
    let here: Vec<u64> = accounts.iter().map(|account| account.here.unwrap()[0].records).collect();
    let before: Vec<u64> = accounts.iter().map(|account| account.before[0].records).collect();
    assert_eq!((here, before), (vec![1, 2, 2], vec![0, 1, 3]));
    assert_eq!(accounts.iter().map(|account| account.from).collect::<Vec<_>>(), [25, 0, 0]);
    assert_eq!(accounts.iter().map(|account| account.is_last).collect::<Vec<_>>(), [false, false, true]);
    assert!(accounts.iter().all(|account| account.log == accounts[0].log));
}

#[test]
fn renamed_file_is_not_renamed_again_and_reopening_is_idempotent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let record = cri::OVERHEAD_BYTES as u64 + 4;
    let mut logs = set(&path, LogKind::Cri, record);
    write(&mut logs, b"1111\n");
    // kubelet's rotation: it renames, and tells us to reopen when our own rotation was first.
    let dated = directory.path().join("log.20261123-010203");
    std::fs::rename(&path, &dated).unwrap();
    write(&mut logs, b"2222\n");
    assert!(!backup(&path, 1).exists(), "there was nothing to rename");
    logs.reopen(&mut Buffers::default()).unwrap();
    logs.reopen(&mut Buffers::default()).unwrap();
    write(&mut logs, b"3333\n");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert!(read(&dated).ends_with("1111\n"));
    assert!(read(&backup(&path, 1)).ends_with("2222\n"));
    assert!(read(&path).ends_with("3333\n"));
}

#[test]
fn json_log_rotates_between_records() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut logs = set(&path, LogKind::Json, 200);
    write(&mut logs, b"\"quoted\"\n\x01\x02\x03\n\xff\n");
    let mut files = std::fs::read_to_string(backup(&path, 1)).unwrap();
    files += &std::fs::read_to_string(&path).unwrap();
    let records: Vec<serde_json::Value> =
        files.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 3);
    assert_eq!(records[0]["log"], "\"quoted\"\n");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_written_is_read_back(
        reads in prop::collection::vec((any::<bool>(), prop::collection::vec(
            prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..3000)), 0..20),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut logs = set(&path, LogKind::Cri, 0);
        let mut buffers = Buffers::default();
        let mut expected = [Vec::new(), Vec::new()];
        for (stdout, bytes) in &reads {
            let channel = if *stdout { Channel::Stdout } else { Channel::Stderr };
            prop_assert_eq!(logs.write(channel, bytes, STAMP, &mut buffers), Progress::Kept);
            expected[channel.index()].extend_from_slice(bytes);
        }
        for channel in Channel::ALL {
            prop_assert_eq!(logs.finish(channel, STAMP, &mut buffers), Progress::Kept);
        }
        let mut got = [Vec::new(), Vec::new()];
        let summary = reader::read(&path, &reader::Selection::default(), &mut |piece| {
            let got = &mut got[piece.channel.index()];
            got.extend_from_slice(piece.payload);
            got.extend_from_slice(if piece.ends_line { b"\n" } else { b"" });
            ControlFlow::Continue(())
        }).unwrap();
        prop_assert_eq!(summary.malformed, 0);
        prop_assert_eq!(got, expected);
    }
}
