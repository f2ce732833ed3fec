//! The checks of the fuzz targets, on random input and on a stable compiler, so
//! that the targets cannot rot. `fuzz/README.md` tells how to fuzz for real.

#[path = "../fuzz/checks.rs"]
mod checks;

use proptest::prelude::*;

/// Bytes that look like logs often enough.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        2 => Just(b"2026-11-23T01:02:03.123456789Z stdout F text\n".to_vec()),
        2 => Just(b"1999-02-29T23:59:60+23:59 stderr P \xff\n".to_vec()),
        1 => Just(b" F \n\nstdout".to_vec()),
        1 => (any::<u8>(), 0..40_000_usize).prop_map(|(byte, count)| vec![byte; count]),
    ];
    prop::collection::vec(word, 0..8).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn split(data in input()) {
        checks::split(&data);
    }

    #[test]
    fn cri_reader(data in input()) {
        checks::cri_reader(&data);
    }

    #[test]
    fn json(data in input()) {
        checks::json(&data);
    }
}
