use super::*;
use crate::hook::definition::{Cgroup, Failure, Options, Output, Retry, User};
use crate::ns::Kind;
use caps::Capability;
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(value: &Value) -> Result<Parsed, FileError> {
    parse("a.json", value.to_string().as_bytes())
}

fn refusal(value: &Value) -> String {
    read(value).unwrap_err().to_string()
}

/// A good file, with one member changed.
fn with(name: &str, value: Value) -> Value {
    let mut file = json!({
        "version": "1.0.0",
        "hook": {"path": "/bin/true"},
        "when": {"always": true},
        "stages": ["prestart"],
    });
    file[name] = value;
    file
}

#[test]
fn everything_of_the_format_is_read() {
    let file = json!({
        "version": "1.0.0",
        "hook": {"path": "/bin/sh", "args": ["sh", "-c", "true"], "env": ["A=1", "B=x=y", "C="], "timeout": 7},
        "when": {"always": true, "annotations": {"^a$": "b"}, "commands": ["sh"], "hasBindMounts": false},
        "stages": ["prestart", "createRuntime", "poststop"],
    });
    let Parsed { hook, notes } = read(&file).unwrap();
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!((hook.name.as_str(), hook.path.to_str()), ("a.json", Some("/bin/sh")));
    assert_eq!(hook.args, ["sh", "-c", "true"]);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(hook.env, [pair("A", "1"), pair("B", "x=y"), pair("C", "")]);
    assert_eq!(hook.timeout, Some(Duration::from_secs(7)));
    assert_eq!((hook.when.always, hook.when.has_bind_mounts), (Some(true), Some(false)));
    assert_eq!((hook.when.annotations.len(), hook.when.commands.len()), (1, 1));
    assert_eq!(hook.stages, [Stage::CreateRuntime, Stage::Poststop]);
    assert_eq!(hook.options, Options::default());
}

#[test]
fn fields_are_found_as_elsewhere() {
    let text = br#"{"VERSION": "1.0.0", "Hook": {"PATH": "/bin/true", "args": null, "timeout": null},
        "when": {"hasbindmounts": true, "always": null}, "stages": [], "comment": 1}"#;
    let Parsed { hook, notes } = parse("a.json", text).unwrap();
    assert_eq!((hook.when.always, hook.when.has_bind_mounts), (None, Some(true)));
    assert_eq!(hook.stages, []);
    assert_eq!(notes, ["comment is not known, and ignored"]);
    // Without conditions it is read, and for nobody.
    assert_eq!(read(&with("when", Value::Null)).unwrap().hook.when, When::default());
}

#[test]
fn a_refusal_names_the_field() {
    let cases = [
        (json!(1), "the file: this is no object"),
        (with("version", json!("2.0.0")), "version: it is \"2.0.0\""),
        (with("version", json!(1)), "version: this is no text"),
        (with("hook", Value::Null), "hook.path is missing"),
        (with("hook", json!({})), "hook.path is missing"),
        (with("hook", json!({"path": ""})), "hook.path is missing"),
        (with("hook", json!({"path": "bin/true"})), "hook.path: \"bin/true\" does not begin at /"),
        (with("hook", json!({"path": "/a\u{0}b"})), "hook.path: no text may contain a zero byte"),
        (with("hook", json!({"path": "/a", "args": "x"})), "hook.args: this is no list"),
        (with("hook", json!({"path": "/a", "args": ["x", 1]})), "hook.args[1]: this is no text"),
        (with("hook", json!({"path": "/a", "env": ["A"]})), "hook.env[0]: a variable is NAME=value"),
        (with("hook", json!({"path": "/a", "timeout": 0})), "hook.timeout: the seconds"),
        (with("hook", json!({"path": "/a", "timeout": 1.5})), "hook.timeout: this is no whole number"),
        (with("when", json!({"always": "yes"})), "when.always: this is neither true nor false"),
        (with("when", json!({"annotations": {"[": ""}})), "when.annotations[\"[\"]: the regular expression"),
        (with("when", json!({"annotations": {"a": 1}})), "when.annotations[\"a\"]: this is no text"),
        (with("when", json!({"commands": ["a", "a**"]})), "when.commands[1]: the regular expression"),
        (with("when", json!({"commands": vec!["a"; 100]})), "when: there are more than"),
        (with("stages", Value::Null), "stages is missing"),
        (with("stages", json!(["prestart", "PostStop"])), "stages[1]: there is no stage \"PostStop\""),
        (with("podinit", json!(true)), "podinit: this is no object"),
        (with("podinit", json!({"namespace": []})), "podinit.namespace: there is no such field"),
        (with("podinit", json!({"namespaces": ["time"]})), "podinit.namespaces[0]: \"time\" is none of net"),
        (
            with("podinit", json!({"failure": "Fail"})),
            "podinit.failure: \"Fail\" is none of fail, warn, ignore",
        ),
        (with("podinit", json!({"retry": {}})), "podinit.retry: attempts is missing"),
        (with("podinit", json!({"retry": {"attempts": 0}})), "podinit.retry.attempts: attempts are 1 to"),
        (with("podinit", json!({"retry": {"attempts": 2, "pause": -1}})), "podinit.retry.pause: -1 seconds"),
        (
            with("podinit", json!({"retry": {"attempts": 2, "pause": 61}})),
            "podinit.retry.pause: a pause is 60",
        ),
        (
            with("podinit", json!({"retry": {"attempts": 2, "delay": 1}})),
            "podinit.retry.delay: there is no such",
        ),
        (with("podinit", json!({"timeout": 0})), "podinit.timeout: the seconds"),
        (with("podinit", json!({"timeout": 1e300})), "podinit.timeout: 1"),
        (with("podinit", json!({"user": {"uid": 1}})), "podinit.user: gid is missing"),
        (with("podinit", json!({"user": {"uid": -1, "gid": 1}})), "podinit.user.uid: an id is a number"),
        (with("podinit", json!({"user": {"uid": 1, "gid": 4294967295_u32}})), "podinit.user.gid: an id"),
        (
            with("podinit", json!({"capabilities": ["NET_ADMIN"]})),
            "podinit.capabilities[0]: \"NET_ADMIN\" is no",
        ),
        (with("podinit", json!({"cgroup": "/x"})), "podinit.cgroup: \"/x\" is none of pod, monitor"),
        (with("podinit", json!({"output": "file"})), "podinit.output: \"file\" is none of log, discard"),
        (with("podinit", json!({"stages": ["x"]})), "podinit.stages[0]: there is no stage \"x\""),
    ];
    for (file, expected) in cases {
        let said = refusal(&file);
        assert!(said.starts_with(expected), "{file}\n  says {said}\n  not  {expected}");
    }
    let twice = br#"{"version": "1.0.0", "Version": "1.0.0"}"#;
    assert_eq!(parse("a.json", twice).unwrap_err().to_string(), "version: it is there twice");
    assert!(parse("a.json", b"{} {}").unwrap_err().to_string().starts_with("it is not JSON: "));
    let large = vec![b' '; usize::try_from(HOOK_FILE_BYTES_MAX).unwrap() + 1];
    assert!(matches!(parse("a.json", &large), Err(FileError::Large)));
}

#[test]
fn everything_of_podinit_is_read() {
    let own = json!({
        "stages": ["podReady", "preStop"],
        "timeout": 0.25,
        "namespaces": ["net", "mnt", "net"],
        "failure": "warn",
        "retry": {"attempts": 3, "pause": 0.5},
        "after": ["x.json"],
        "before": ["y.json", "z"],
        "user": {"uid": 1000, "gid": 100, "additionalGids": [5]},
        "capabilities": ["CAP_NET_ADMIN", "CAP_KILL"],
        "cgroup": "monitor",
        "output": "discard",
        "concurrent": true,
    });
    let hook = read(&with("podinit", own)).unwrap().hook;
    assert_eq!(hook.stages, [Stage::CreateRuntime, Stage::PodReady, Stage::PreStop]);
    assert_eq!(hook.timeout, Some(Duration::from_millis(250)));
    let expected = Options {
        namespaces: vec![Kind::Net, Kind::Mnt],
        failure: Some(Failure::Warn),
        retry: Retry { attempts: 3, pause: Duration::from_millis(500) },
        after: vec!["x.json".to_owned()],
        before: vec!["y.json".to_owned(), "z".to_owned()],
        user: Some(User { uid: 1000, gid: 100, additional_gids: vec![5] }),
        capabilities: Some(vec![Capability::CAP_NET_ADMIN, Capability::CAP_KILL]),
        cgroup: Cgroup::Monitor,
        output: Output::Discard,
        concurrent: true,
    };
    assert_eq!(hook.options, expected);
    let none = read(&with("podinit", json!({"namespaces": [], "capabilities": []}))).unwrap().hook.options;
    assert_eq!((none.namespaces, none.capabilities), (Vec::new(), Some(Vec::new())));
}

/// The files that the refusal of an older one shows.
fn shown(refusal: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut rest = refusal;
    while let Some(at) = rest.find("{\"") {
        let mut values = serde_json::Deserializer::from_str(&rest[at..]).into_iter::<Value>();
        found.push(values.next().unwrap().unwrap());
        rest = &rest[at + values.byte_offset()..];
    }
    found
}

#[test]
fn an_older_file_is_refused_with_itself_converted() {
    let older = json!({
        "hook": "/bin/true",
        "arguments": ["-a", "b c"],
        "stages": ["prestart", "poststop"],
        "cmds": ["^/bin/sh$"],
        "annotations": ["x", "y"],
        "hasbindmounts": true,
    });
    let said = refusal(&older);
    assert!(said.contains("0.1.0"), "{said}");
    let files = shown(&said);
    let conditions = [
        json!({"commands": ["^/bin/sh$"]}),
        json!({"annotations": {".*": "x|y"}}),
        json!({"hasBindMounts": true}),
    ];
    assert_eq!(files.len(), 3, "{said}");
    for (file, when) in files.iter().zip(conditions) {
        assert_eq!(file["when"], when);
        let hook = read(file).unwrap().hook;
        assert_eq!(hook.args, ["/bin/true", "-a", "b c"]);
        assert_eq!(hook.stages, [Stage::CreateRuntime, Stage::Poststop]);
    }
    let short = json!({"version": "0.1.0", "hook": "/bin/true", "stage": ["poststop"], "cmd": ["a"]});
    assert_eq!(shown(&refusal(&short)).len(), 1);
    let never = json!({"hook": "/bin/true", "stage": ["poststop"]});
    assert_eq!(shown(&refusal(&never))[0]["when"], json!({"always": false}));
}

#[test]
fn a_forgotten_version_is_told_from_an_older_file() {
    let mut file = with("when", json!({"always": true}));
    file.as_object_mut().unwrap().remove("version");
    assert_eq!(refusal(&file), "version: it is missing; write \"version\": \"1.0.0\"");
    assert!(refusal(&json!({"hook": "/bin/true"})).contains("stages is missing"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse("a.json", &bytes) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_value_of_any_field_is_read_or_refused(
        name in prop::sample::select(vec![
            "version", "hook", "when", "stages", "podinit", "hook.path", "hook.args", "hook.env", "hook.timeout",
            "when.always", "when.annotations", "when.commands", "podinit.retry", "podinit.user", "podinit.timeout",
        ]),
        value in prop::sample::select(vec![
            "null", "true", "-1", "1e400", "1e308", "18446744073709551615", "\"\"", "\"a\"", "[]", "[[]]", "{}",
            "{\"a\":{}}", "[\"a\",null]", "{\"uid\":1,\"gid\":1}", "{\"attempts\":1}",
        ]),
    ) {
        let text = match name.split_once('.') {
            None => format!("{{\"version\": \"1.0.0\", \"{name}\": {value}}}"),
            Some((parent, name)) => format!(
                "{{\"version\": \"1.0.0\", \"hook\": {{\"path\": \"/a\"}}, \"stages\": [], \
                 \"{parent}\": {{\"{name}\": {value}}}}}"
            ),
        };
        if let Err(error) = parse("a.json", text.as_bytes()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
