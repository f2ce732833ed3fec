//! The checks of the fuzz targets, on random input and on a stable compiler, so
//! that the targets cannot rot. `fuzz/README.md` tells how to fuzz for real.

#[path = "../fuzz/checks.rs"]
mod checks;

use podinit::rpc::schema::plugin_capnp as wire;
use proptest::prelude::*;

/// Bytes that look like logs often enough.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        2 => Just(b"2026-11-23T01:02:03.123456789Z stdout F text\n".to_vec()),
        2 => Just(b"1999-02-29T23:59:60+23:59 stderr P \xff\n".to_vec()),
        1 => Just(b" F \n\nstdout".to_vec()),
        1 => Just(br#"{"log":"\u0000x\n","stream":"stderr","time":"2026-11-23T01:02:03Z"}"#.to_vec()),
        1 => Just(b"{\"log\":\"\",\"raw\":\"/w==\",\"stream\":\"stdout\",\"time\":\"2026-11-23T01:02:03Z\"}\n".to_vec()),
        1 => (any::<u8>(), 0..40_000_usize).prop_map(|(byte, count)| vec![byte; count]),
    ];
    prop::collection::vec(word, 0..8).prop_map(|words| words.concat())
}

/// Bytes that look like frames, or a request, often enough.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        2 => Just(b"\x82\x85\0\0\0\0\0abcd".to_vec()),
        2 => Just(b"\x82\x82\0\0\0\0\xff\0".to_vec()),
        2 => Just(b"\x89\x81\x01\x02\x03\x04x".to_vec()),
        2 => Just(b"\0\0\0\x01\x01\0\0\x03abc".to_vec()),
        2 => Just(b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x01".to_vec()),
        1 => Just(b"\x80\x03\0\x01\0\0\0\x10\0\0\0\x01\0\0\0\0\0\0\x78\xbb\xe3\xc6\xa7\xc2".to_vec()),
        1 => Just(b"GET /exec/0 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n".to_vec()),
        1 => Just(b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n".to_vec()),
    ];
    // The first byte says in which portions the rest comes.
    (any::<u8>(), prop::collection::vec(word, 0..8))
        .prop_map(|(first, words)| [vec![first], words.concat()].concat())
}

/// Bytes that look like hook files often enough.
fn hooks() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..8),
        3 => Just(b"{\"version\":\"1.0.0\",\"hook\":{\"path\":\"/bin/true\"},\"stages\":[\"podReady\"]".to_vec()),
        2 => Just(b",\"when\":{\"annotations\":{\"^a$\":\"b*\"},\"commands\":[\"(sh\"]}".to_vec()),
        2 => Just(b",\"podinit\":{\"retry\":{\"attempts\":2,\"pause\":1e9},\"user\":{\"uid\":1,\"gid\":1}}".to_vec()),
        2 => Just(b"{\"hook\":\"/bin/true\",\"stage\":[\"poststop\"],\"cmd\":[\"a\"]".to_vec()),
        4 => Just(b"}".to_vec()),
    ];
    prop::collection::vec(word, 0..5).prop_map(|words| words.concat())
}

/// Bytes that look like regular expressions often enough, with a text behind.
fn patterns() -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), "[-a-c(){}\\[\\]^$|*+?.,:\\\\0-9pQEdwxbiU<>=é]{0,24}")
        .prop_map(|(first, text)| [vec![first], text.into_bytes()].concat())
}

/// Bytes that look like what seccomp's broker reads, often enough.
fn seccomp() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..40),
        2 => Just(br#"{"fds": ["seccompFd"], "metadata": "m", "state": {"id": "c", "annotations": {"#.to_vec()),
        1 => Just(br#""io.kubernetes.cri-o.Labels": "{}""#.to_vec()),
        3 => Just(b"}".to_vec()),
        2 => Just(br#"{"version": 1, "rules": [{"name": "r", "do": {"errno": "EPERM"}, "match": {"#.to_vec()),
        1 => Just(br#""syscalls": ["mkdir", 83], "arguments": []"#.to_vec()),
        1 => Just(br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["connect"], "action": "SCMP_ACT_NOTIFY""#.to_vec()),
        1 => Just(b"]}".to_vec()),
        1 => Just(b"\x53\0\0\0\x3e\0\0\xc0\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0".to_vec()),
        1 => Just(b"\x02\0\x01\xbb\x0a\0\0\x01\0\0\0\0\0\0\0\0".to_vec()),
        1 => Just(b"\x0a\0\x01\xbb".to_vec()),
    ];
    prop::collection::vec(word, 0..8).prop_map(|words| words.concat())
}

/// Messages that a plugin could send, with some bytes changed.
fn plugin_messages() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (any::<bool>(), changes).prop_map(|(is_answer, changes)| {
        let mut message = capnp::message::Builder::new_default();
        if is_answer {
            let root: wire::seccomp_plugin::decide_results::Builder<'_> = message.init_root();
            let mut verdicts = root.init_verdicts(4);
            verdicts.reborrow().get(0).set_errno(13);
            verdicts.reborrow().get(1).set_return_value(-1);
            verdicts.reborrow().get(2).init_add_descriptor().set_ticket(&[7; 16]);
        } else {
            let mut root: wire::registration_request::Builder<'_> = message.init_root();
            root.set_name("plugin");
            root.reborrow().init_reads(2).get(1).set_bytes(100);
            let mut selector = root.init_selector();
            selector.reborrow().init_syscalls(2).set(0, "mkdir");
            selector.reborrow().init_labels(1).get(0).set_key("key");
            selector.init_comparisons(1).get(0).init_values(1).set(0, 448);
        }
        let mut bytes = capnp::serialize::write_message_to_words(&message);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn hook_file(data in hooks()) {
        checks::hook_file(&data);
    }

    #[test]
    fn hook_pattern(data in patterns()) {
        checks::hook_pattern(&data);
    }

    #[test]
    fn split(data in input()) {
        checks::split(&data);
    }

    #[test]
    fn log_reader(data in input()) {
        checks::log_reader(&data);
    }

    #[test]
    fn json(data in input()) {
        checks::json(&data);
    }

    #[test]
    fn gap(data in input()) {
        checks::gap(&data);
    }

    #[test]
    fn ring(data in input()) {
        checks::ring(&data);
    }

    #[test]
    fn websocket(data in frames()) {
        checks::websocket(&data);
    }

    #[test]
    fn spdy(data in frames()) {
        checks::spdy(&data);
    }

    #[test]
    fn remote(data in frames()) {
        checks::remote(&data);
    }

    #[test]
    fn request(data in frames()) {
        checks::request(&data);
    }

    #[test]
    fn seccomp_state(data in seccomp()) {
        checks::seccomp_state(&data);
    }

    #[test]
    fn seccomp_rules(data in seccomp()) {
        checks::seccomp_rules(&data);
    }

    #[test]
    fn seccomp_call(data in seccomp()) {
        checks::seccomp_call(&data);
    }

    #[test]
    fn plugin(data in prop_oneof![plugin_messages(), prop::collection::vec(any::<u8>(), 0..200)]) {
        checks::plugin(&data);
    }

    #[test]
    fn address(family in prop_oneof![Just(1_u16), Just(2_u16), Just(10_u16), any::<u16>()], rest in prop::collection::vec(any::<u8>(), 0..130)) {
        checks::address(&[&family.to_ne_bytes()[..], &rest].concat());
    }
}
