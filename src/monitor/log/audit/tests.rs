use super::super::batch::Channel;
use super::super::options::FileOptions;
use super::super::rotate::{backup, compressed};
use super::super::{Buffers, LogConfig, LogKind, LogSet, Progress, compress, cri};
use super::*;
use proptest::prelude::*;
use std::fs;

const STAMP: &super::super::stamp::Stamp = b"2026-11-23T01:02:03.123456789Z";

/// A log that is written, and what a monitor would have counted.
struct Written {
    _place: tempfile::TempDir,
    path: PathBuf,
    counted: Counted,
}

fn write(kind: LogKind, size_max: u64, backups: u16, output: &[(Channel, Vec<u8>)]) -> Written {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("log");
    let file = FileOptions { backups, ..FileOptions::default() };
    let mut logs = LogSet::open(&[LogConfig { kind, path: path.clone(), size_max, file }]).unwrap();
    let (mut buffers, mut read) = (Buffers::default(), [0; 2]);
    for (channel, bytes) in output {
        assert_eq!(logs.write(*channel, bytes, STAMP, &mut buffers), Progress::Kept);
        read[channel.index()] += bytes.len() as u64;
    }
    for channel in Channel::ALL {
        assert_eq!(logs.finish(channel, STAMP, &mut buffers), Progress::Kept);
    }
    let written = logs.written().unwrap();
    logs.close();
    Written { _place: place, path, counted: Counted { read, written, is_final: true } }
}

fn lines(count: usize) -> Vec<(Channel, Vec<u8>)> {
    (0..count).map(|number| (Channel::Stdout, format!("line {number}\n").into_bytes())).collect()
}

fn findings(written: &Written) -> Vec<Finding> {
    let survey = survey(&written.path).unwrap();
    let with_counters = survey.findings(Some((written.counted, written.counted)));
    assert_eq!(survey.findings(None), with_counters, "the files alone say the same");
    with_counters
}

fn sums(records: u64, bytes: u64) -> Sums {
    Sums { records, bytes, lines: records }
}

#[test]
fn complete_log_has_no_findings_in_any_format_and_form() {
    for kind in [LogKind::Cri, LogKind::Json] {
        let written = write(kind, 400, 50, &lines(60));
        assert_eq!(findings(&written), []);
        compress::run(&written.path, 50).unwrap();
        assert!(compressed(&written.path, 2).exists() && !backup(&written.path, 2).exists());
        assert_eq!(findings(&written), []);
    }
}

#[test]
fn what_is_missing_is_said_and_where() {
    // Records of the same length, two in a file.
    let record = cri::OVERHEAD_BYTES as u64 + 6;
    let make = || write(LogKind::Cri, 2 * record, 50, &lines(9));
    let gone = make();
    fs::remove_file(backup(&gone.path, 2)).unwrap();
    let place = Place::Before(backup(&gone.path, 1));
    assert_eq!(findings(&gone), [Finding::Missing(Channel::Stdout, sums(2, 12), place)]);

    let oldest = make();
    fs::remove_file(backup(&oldest.path, 4)).unwrap();
    let place = Place::Before(backup(&oldest.path, 3));
    assert_eq!(findings(&oldest), [Finding::Missing(Channel::Stdout, sums(2, 12), place)]);

    let cut = make();
    let file = fs::OpenOptions::new().write(true).open(backup(&cut.path, 3)).unwrap();
    file.set_len(record + 3).unwrap();
    let place = Place::In(backup(&cut.path, 3));
    assert_eq!(findings(&cut), [Finding::Missing(Channel::Stdout, sums(1, 6), place)]);

    let changed = make();
    let text = fs::read_to_string(&changed.path).unwrap();
    fs::write(&changed.path, text.repeat(2)).unwrap();
    let place = Place::In(changed.path.clone());
    assert_eq!(findings(&changed), [Finding::Extra(Channel::Stdout, sums(1, 6), place)]);

    let bounded = write(LogKind::Cri, 2 * record, 1, &lines(9));
    let place = Place::Before(backup(&bounded.path, 1));
    assert_eq!(findings(&bounded), [Finding::Missing(Channel::Stdout, sums(6, 36), place)]);
}

#[test]
fn counters_alone_find_a_loss_where_files_carry_no_account() {
    let written = write(LogKind::Cri, 0, 1, &lines(5));
    let text = fs::read_to_string(&written.path).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    fs::remove_file(&written.path).unwrap();
    fs::write(&written.path, rest).unwrap();
    let survey = survey(&written.path).unwrap();
    assert_eq!(
        survey.findings(Some((written.counted, written.counted))),
        [Finding::Missing(Channel::Stdout, sums(1, 6), Place::End)]
    );
    assert_eq!(survey.findings(None), [Finding::NoEnd]);
}

#[test]
fn bytes_that_were_read_and_never_written_are_found() {
    let mut written = write(LogKind::Cri, 0, 1, &lines(5));
    written.counted.read[1] += 17;
    let survey = survey(&written.path).unwrap();
    let found = survey.findings(Some((written.counted, written.counted)));
    assert_eq!(found, [Finding::Lost(Channel::Stderr, 17)]);
    assert!(found[0].to_string().starts_with("stderr: 17 bytes were read"));
    let running = Counted { is_final: false, ..written.counted };
    assert_eq!(survey.findings(Some((running, running))), [], "they may be the start of a line");
}

#[test]
fn records_from_before_the_account_are_told_apart() {
    let written = write(LogKind::Cri, 0, 1, &lines(3));
    let mut logs = LogSet::open(&[LogConfig::new(LogKind::Cri, written.path.clone())]).unwrap();
    assert_eq!(logs.write(Channel::Stdout, b"more\n", STAMP, &mut Buffers::default()), Progress::Kept);
    logs.close();
    assert_eq!(survey(&written.path).unwrap().findings(None), [Finding::Foreign(written.path.clone(), 3)]);
}

fn output() -> impl Strategy<Value = Vec<(Channel, Vec<u8>)>> {
    let channel = any::<bool>().prop_map(|out| if out { Channel::Stdout } else { Channel::Stderr });
    let bytes = prop::collection::vec(prop_oneof![5 => any::<u8>(), 1 => Just(b'\n')], 0..300);
    prop::collection::vec((channel, bytes), 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_output_is_complete_until_something_is_taken_away(
        output in output(), json in any::<bool>(), size_max in 100..2000_u64, victim in any::<prop::sample::Index>(),
    ) {
        let written = write(if json { LogKind::Json } else { LogKind::Cri }, size_max, 60, &output);
        let survey_before = survey(&written.path).unwrap();
        let counted = written.counted;
        // More files than are kept may have been made.
        if survey_before.files.len() < 60 {
            prop_assert_eq!(survey_before.findings(Some((counted, counted))), []);
            prop_assert_eq!(survey_before.found(), counted.written);
            let victim = &survey_before.files[victim.index(survey_before.files.len())];
            if victim.path != written.path && victim.found != Both::default() {
                fs::remove_file(&victim.path).unwrap();
                let after = survey(&written.path).unwrap().findings(Some((counted, counted)));
                let mut missing = Both::default();
                for finding in after {
                    let Finding::Missing(channel, sums, _) = finding else { panic!("{finding:?}") };
                    missing[channel.index()] = sums;
                }
                prop_assert_eq!(missing, victim.found);
            }
        }
    }
}
