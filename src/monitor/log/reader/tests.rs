use super::super::account::{FileAccount, Sums};
use super::super::parts::READ_BYTES;
use super::super::rotate::{backup, compressed};
use super::*;
use proptest::prelude::*;

fn collect(path: &Path, selection: &Selection) -> Vec<u8> {
    let mut bytes = Vec::new();
    let summary = read(path, selection, &mut |piece| {
        bytes.extend_from_slice(piece.payload);
        bytes.extend_from_slice(if piece.ends_line { b"\n" } else { b"" });
        ControlFlow::Continue(())
    });
    assert_eq!(summary.unwrap(), Summary::default());
    bytes
}

fn record(second: u64, channel: &str, tag: char, payload: &str) -> String {
    format!("1970-01-01T00:00:{second:02}.000000000Z {channel} {tag} {payload}\n")
}

#[test]
fn rotated_part_comes_first_and_tail_since_and_channel_select() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let old = record(1, "stdout", 'F', "one") + &record(2, "stderr", 'F', "two");
    let new =
        record(3, "stdout", 'P', "th") + &record(4, "stderr", 'F', "four") + &record(5, "stdout", 'F', "ree");
    std::fs::write(backup(&path, 1), old).unwrap();
    std::fs::write(&path, new).unwrap();

    let all = Selection::default();
    assert_eq!(collect(&path, &all), b"one\ntwo\nthfour\nree\n");
    let stdout = Selection { channel: Some(Channel::Stdout), ..all };
    assert_eq!(collect(&path, &stdout), b"one\nthree\n");
    assert_eq!(collect(&path, &Selection { tail: Some(1), ..stdout }), b"three\n");
    assert_eq!(collect(&path, &Selection { tail: Some(2), ..stdout }), b"one\nthree\n");
    assert_eq!(collect(&path, &Selection { tail: Some(3), ..all }), b"two\nthfour\nree\n");
    assert_eq!(collect(&path, &Selection { tail: Some(0), ..all }), b"");
    let since = Some(Timestamp::new(4, 0));
    assert_eq!(collect(&path, &Selection { since, ..all }), b"four\nree\n");
}

#[test]
fn line_that_is_too_long_is_skipped_and_takes_no_memory() {
    let mut lines = Lines::default();
    let mut seen = Vec::new();
    let mut each = |line: Option<&[u8]>, length: u64| {
        seen.push((line.map(<[u8]>::to_vec), length));
        ControlFlow::Continue(())
    };
    for _ in 0..100 {
        assert!(lines.push(&[b'x'; READ_BYTES], &mut each).is_continue());
        assert!(lines.held.capacity() <= 2 * LOG_READ_RECORD_BYTES_MAX);
    }
    assert!(lines.push(b"x\nshort\n", &mut each).is_continue());
    assert_eq!(seen, [(None, 100 * READ_BYTES as u64 + 2), (Some(b"short".to_vec()), 6)]);
}

/// A log in some files, the older ones plain or compressed, and how many lines of
/// its end are asked for.
fn log() -> impl Strategy<Value = (Vec<(String, bool)>, usize)> {
    let one = ("[a-z ]{0,60}", any::<bool>(), any::<bool>()).prop_map(|(text, stdout, full)| {
        let channel = if stdout { "stdout" } else { "stderr" };
        record(0, channel, if full { 'F' } else { 'P' }, &text)
    });
    let file = (prop::collection::vec(one, 0..250).prop_map(|records| records.concat()), any::<bool>());
    (prop::collection::vec(file, 1..4), 0..500_usize)
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn write_files(path: &Path, files: &[(String, bool)]) {
    for (age, (text, zipped)) in files.iter().rev().enumerate() {
        match (u16::try_from(age).unwrap(), zipped) {
            (0, _) => std::fs::write(path, text).unwrap(),
            (age, false) => std::fs::write(backup(path, age), text).unwrap(),
            (age, true) => std::fs::write(compressed(path, age), gzip(text)).unwrap(),
        }
    }
}

/// Lines of the whole log, those without a newline at the end of a channel too.
fn count_lines(log: &str, channel: Option<Channel>) -> usize {
    let records: Vec<_> = log.lines().map(|line| decode(line.as_bytes()).unwrap()).collect();
    let mut lines = 0;
    for one in Channel::ALL.into_iter().filter(|one| channel.is_none_or(|wanted| wanted == *one)) {
        let tags: Vec<_> =
            records.iter().filter(|record| record.channel == one).map(|record| record.tag).collect();
        lines += tags.iter().filter(|tag| **tag == Tag::Full).count();
        lines += usize::from(tags.last() == Some(&Tag::Partial));
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn tail_gives_the_last_lines_and_nothing_else(
        (files, tail) in log(), channel in prop_oneof![Just(None), Just(Some(Channel::Stderr))],
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write_files(&path, &files);
        let whole: String = files.iter().map(|(text, _)| text.as_str()).collect();
        let every = Selection { channel, ..Selection::default() };
        let got = collect(&path, &Selection { tail: Some(tail), ..every });
        let all = collect(&path, &every);
        prop_assert!(all.ends_with(&got));
        let one_file = directory.path().join("whole");
        std::fs::write(&one_file, &whole).unwrap();
        prop_assert_eq!(&all, &collect(&one_file, &every));
        prop_assert_eq!(&got, &collect(&one_file, &Selection { tail: Some(tail), ..every }));
        if channel.is_some() {
            let cut = got.iter().filter(|byte| **byte == b'\n').count()
                + usize::from(got.last().is_some_and(|last| *last != b'\n'));
            let lines = count_lines(&whole, channel);
            // A line that has no bytes and no end cannot be seen.
            prop_assert!(cut == tail.min(lines) || cut + 1 == tail.min(lines));
        }
    }

    #[test]
    fn last_output_is_the_end_of_it_and_no_more_than_was_asked_for(
        (files, _) in log(), bytes in 0..20_000_usize,
    ) {
        let files: Vec<_> = files.into_iter().map(|(text, _)| (text, false)).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write_files(&path, &files);
        let size = std::fs::metadata(&path).unwrap().len();
        let end = LogEnd { file: identity_at(&path).unwrap(), size };
        // What comes afterwards is somebody else's affair.
        let mut log = std::fs::File::options().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut log, record(1, "stdout", 'F', "later").as_bytes()).unwrap();
        let output = last_output(&path, end, bytes).unwrap();
        let length: usize = output.iter().map(|(_, output)| output.len()).sum();
        prop_assert!(length <= bytes);
        for channel in Channel::ALL {
            let all = collect(&path, &Selection { channel: Some(channel), ..Selection::default() });
            let all = if channel == Channel::Stdout { all.strip_suffix(b"later\n").unwrap() } else { &all[..] };
            let of_channel = output.iter().filter(|(of, _)| *of == channel);
            let got: Vec<u8> = of_channel.flat_map(|(_, output)| output.clone()).collect();
            prop_assert!(all.ends_with(&got));
        }
    }
}

#[test]
fn last_line_counts_although_it_has_no_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = record(1, "stdout", 'F', "one") + &record(2, "stdout", 'P', "two");
    std::fs::write(&path, log).unwrap();
    assert_eq!(collect(&path, &Selection { tail: Some(1), ..Selection::default() }), b"two");
    assert_eq!(collect(&path, &Selection { tail: Some(2), ..Selection::default() }), b"one\ntwo");
}

#[test]
fn files_are_in_order_by_their_names_whatever_the_clock_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    for (suffix, second, text) in [
        (".3", 9, "one"),
        (".2", 1, "two"),
        (".20261123-010203", 2, "three"),
        (".20261124-010203", 2, "four"),
        (".1", 3, "five"),
        ("", 3, "six"),
        (".10", 0, "zero"),
        (".gz.tmp", 0, "being compressed"),
        (".lock", 0, "not of the log"),
    ] {
        let name = directory.path().join(format!("log{suffix}"));
        std::fs::write(name, record(second, "stdout", 'F', text)).unwrap();
    }
    std::fs::write(compressed(&path, 1), gzip("half of it, or about to go")).unwrap();
    let read = String::from_utf8(collect(&path, &Selection::default())).unwrap();
    assert_eq!(
        read.lines().filter(|line| !line.starts_with('t') && *line != "four").collect::<Vec<_>>(),
        ["zero", "one", "five", "six"]
    );
    let place = |text: &str| read.lines().position(|line| line == text).unwrap();
    assert!(place("one") < place("two") && place("two") < place("five"), "{read}");
    assert!(place("three") < place("four") && place("four") < place("six"), "{read}");
}

#[test]
fn follower_that_was_left_behind_goes_on_after_its_compressed_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let texts = ["one", "two", "three", "four"].map(|text| record(1, "stdout", 'F', text));
    let account = |name: &Path, records: u64| {
        let before = [Sums { records, ..Sums::default() }, Sums::default()];
        let account = FileAccount { log: 1, before, ..FileAccount::default() };
        assert!(account.store(std::fs::File::options().write(true).open(name).unwrap()));
    };
    std::fs::write(&path, &texts[0]).unwrap();
    account(&path, 0);
    let mut current = list(&path).unwrap().pop().unwrap();
    assert!(next_part(&path, &mut current).is_none());
    // Three rotations later, its file has been compressed and its inode is another one.
    std::fs::write(compressed(&path, 3), gzip(&texts[0])).unwrap();
    account(&compressed(&path, 3), 0);
    std::fs::remove_file(&path).unwrap();
    for (name, text) in [(backup(&path, 2), 1), (backup(&path, 1), 2), (path.clone(), 3)] {
        std::fs::write(&name, &texts[text]).unwrap();
        account(&name, text as u64);
    }
    // An engine's, of long ago.
    let dated = directory.path().join("log.20251123-010203");
    std::fs::write(&dated, record(0, "stdout", 'F', "old")).unwrap();
    let mut seen = Vec::new();
    while let Some(next) = next_part(&path, &mut current) {
        seen.push(next.path.clone());
        current = next;
    }
    assert_eq!(seen, [backup(&path, 2), backup(&path, 1), path]);
}

proptest! {
    #[test]
    fn any_bytes_in_any_portions_are_read_alike(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b' ')], 0..400),
        portion in 1..50_usize,
    ) {
        let run = |portion: usize| {
            let mut parser = Parser::new(Selection::default());
            let mut pieces = Vec::new();
            for part in bytes.chunks(portion) {
                let _flow = parser.push(part, &mut |piece| {
                    pieces.push((piece.time, piece.payload.to_vec()));
                    ControlFlow::Continue(())
                });
            }
            (pieces, parser.summary)
        };
        prop_assert_eq!(run(portion), run(400));
    }
}
