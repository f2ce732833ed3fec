//! What is wrong with a seccomp profile that notifies, before a container is.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::decode::well_known;
use super::rules::{Action, Rule, Rules};
use super::select::Syscall;
use super::syscall::{Architecture, name, number};
use super::verdict::OnFailure;

/// The longest path of a socket that runtimes can connect to, in bytes, its zero
/// not counted (unix(7)).
const LISTENER_PATH_BYTES_MAX: usize = 107;

/// Something that is wrong, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A word for programs.
    pub code: &'static str,
    /// What it is, and what to do.
    pub text: String,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// It works, and will surprise.
    Warning,
    /// Containers will not start, or what is forbidden is possible.
    Error,
}

impl Severity {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A profile's parts that matter here (runtime-spec, config-linux.md, "Seccomp").
/// What engines add to it is not minded.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Profile {
    default_action: String,
    flags: Vec<String>,
    listener_path: String,
    listener_metadata: String,
    syscalls: Vec<Entry>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Entry {
    names: Vec<String>,
    /// The older spelling.
    name: Option<String>,
    action: String,
    /// Where there are any, the entry is for some calls of that name only.
    args: Option<Vec<IgnoredAny>>,
}

impl Entry {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().chain(&self.name).map(String::as_str)
    }
}

const NOTIFY: &str = "SCMP_ACT_NOTIFY";

/// All actions (runtime-spec, config-linux.md, "Seccomp").
const ACTIONS: [&str; 9] = [
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    NOTIFY,
];
const WAIT_KILLABLE: &str = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";

/// Calls that an OCI runtime itself makes between the filter's installation and
/// the program's start, or to send the listener. Notified, they wait for somebody
/// who has not been told yet.
const NEEDED_BY_RUNTIMES: [(&str, &str); 8] = [
    ("write", "runc refuses such a profile"),
    ("sendmsg", "the listener is sent with it, after the filter is installed"),
    ("close", "every runtime closes descriptors before it starts the program"),
    ("fcntl", "runc makes it between the two"),
    ("futex", "runc's threads need it to go on"),
    ("exit_group", "a runtime that fails could not end"),
    ("rt_sigreturn", "every signal handler ends with it"),
    ("execve", "the program's own start is notified, so nothing starts until somebody decides"),
];

/// Calls that a pointer leads on to what they are about, besides those whose paths
/// and addresses are known: the kernel reads it again after a verdict of `continue`.
const POINTERS: [&str; 8] =
    ["accept", "accept4", "clone3", "fsconfig", "ioctl", "mount_setattr", "sendmmsg", "sendmsg"];

fn has_pointer(call: &str) -> bool {
    POINTERS.contains(&call) || !well_known(call).is_empty()
}

/// Calls that connect as well, with the flag `MSG_FASTOPEN` (tcp(7)).
const BY_FAST_OPEN: [&str; 3] = ["sendmmsg", "sendmsg", "sendto"];

/// Calls that io_uring can make as well (io_uring_enter(2)), unseen by seccomp.
const BY_IO_URING: [&str; 30] = [
    "accept",
    "accept4",
    "bind",
    "close",
    "connect",
    "fsetxattr",
    "getxattr",
    "link",
    "linkat",
    "listen",
    "mkdir",
    "mkdirat",
    "open",
    "openat",
    "openat2",
    "read",
    "recvmsg",
    "rename",
    "renameat",
    "renameat2",
    "sendmsg",
    "sendto",
    "setxattr",
    "socket",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "write",
    "writev",
];

/// Looks for what is wrong with `profile`, in JSON: the `linux.seccomp` of a
/// config.json, or a file as engines take it.
///
/// # Errors
/// If it is no profile.
pub fn lint(profile: &[u8]) -> Result<Vec<Finding>, serde_json::Error> {
    let profile: Profile = serde_json::from_slice(profile)?;
    let mut findings = Vec::new();
    let notified: BTreeSet<&str> =
        profile.syscalls.iter().filter(|entry| entry.action == NOTIFY).flat_map(Entry::names).collect();
    whole(&profile, &notified, &mut findings);
    if notified.is_empty() {
        return Ok(findings);
    }
    listener(&profile, &mut findings);
    for (name, reason) in NEEDED_BY_RUNTIMES.iter().filter(|(name, _)| notified.contains(name)) {
        let text = format!("{name} is notified, which OCI runtimes need themselves: {reason}");
        // The program's start can wait; the others can lock up.
        let severity = if *name == "execve" { Severity::Warning } else { Severity::Error };
        findings.push(Finding { severity, code: "runtime-needs", text });
    }
    io_uring(&profile, &notified, &mut findings);
    fast_open(&profile, &notified, &mut findings);
    let unknown = notified.iter().filter(|name| Architecture::ALL.iter().all(|a| number(name, *a).is_none()));
    for name in unknown {
        let text = format!("{name} is notified, and no architecture has such a call; it is ignored");
        findings.push(Finding { severity: Severity::Warning, code: "unknown-syscall", text });
    }
    let pointers: Vec<_> = notified.iter().copied().filter(|name| has_pointer(name)).collect();
    if !pointers.is_empty() {
        let text = format!(
            "{}: what their pointers lead to can change after it was looked at; never answer continue on \
             the strength of it",
            pointers.join(", ")
        );
        findings.push(Finding { severity: Severity::Note, code: "pointer-argument", text });
    }
    Ok(findings)
}

/// What concerns the profile as a whole.
fn whole(profile: &Profile, notified: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    let mut find = |severity, code, text: String| findings.push(Finding { severity, code, text });
    let given: BTreeSet<&str> = profile.syscalls.iter().map(|entry| entry.action.as_str()).collect();
    let default = Some(profile.default_action.as_str()).filter(|action| !action.is_empty());
    for action in given.into_iter().chain(default).filter(|action| !ACTIONS.contains(action)) {
        let text = format!("there is no action {action:?}; runtimes refuse it. All begin with SCMP_ACT_");
        find(Severity::Error, "unknown-action", text);
    }
    if profile.default_action == NOTIFY {
        let text = "the default action notifies; runc refuses that, and a runtime cannot start a program so: \
                    name the calls instead";
        find(Severity::Error, "default-notify", text.to_owned());
    } else if notified.is_empty() {
        let text = "no call is notified, so no plugin and no rule is ever asked";
        find(Severity::Note, "nothing-notified", text.to_owned());
    }
    if !notified.is_empty() && !profile.flags.iter().any(|flag| flag == WAIT_KILLABLE) {
        let text = format!(
            "flags lack {WAIT_KILLABLE}: every signal interrupts a notified call, which is then made again; \
             Go programs get a signal each 10 ms. crun takes it, runc from 1.5.0 on; an older one refuses the \
             container, so leave it out there"
        );
        find(Severity::Warning, "wait-killable-missing", text);
    }
}

fn listener(profile: &Profile, findings: &mut Vec<Finding>) {
    let mut find = |severity, code, text: String| findings.push(Finding { severity, code, text });
    let path = &profile.listener_path;
    if path.is_empty() {
        let text = "calls are notified and there is no listenerPath; set it to seccomp.sock in the pod's run \
                    directory, unless the engine does";
        find(Severity::Warning, "no-listener-path", text.to_owned());
        if !profile.listener_metadata.is_empty() {
            let text = "listenerMetadata without a listenerPath is not allowed (runtime-spec)";
            find(Severity::Error, "metadata-without-path", text.to_owned());
        }
    } else if !path.starts_with('/') {
        find(Severity::Error, "relative-path", format!("listenerPath {path:?} is not absolute"));
    } else if path.len() > LISTENER_PATH_BYTES_MAX {
        let text = format!(
            "listenerPath has {} bytes; a socket's address has room for {LISTENER_PATH_BYTES_MAX}: use a \
             shorter run directory",
            path.len()
        );
        find(Severity::Error, "path-too-long", text);
    }
}

fn is_allowing(action: &str) -> bool {
    matches!(action, "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE")
}

/// Calls that do what is notified, unseen. A profile that refuses or notifies some
/// of them, by their arguments, is taken to know why.
fn fast_open(profile: &Profile, notified: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    let is_allowed = |call: &str| {
        let mut entries =
            profile.syscalls.iter().filter(|entry| entry.names().any(|name| name == call)).peekable();
        match entries.peek() {
            None => is_allowing(&profile.default_action),
            Some(_) => entries
                .all(|entry| is_allowing(&entry.action) && entry.args.as_ref().is_none_or(Vec::is_empty)),
        }
    };
    let unseen: Vec<_> = BY_FAST_OPEN.into_iter().filter(|call| is_allowed(call)).collect();
    if notified.contains("connect") && !unseen.is_empty() {
        let text = format!(
            "connect is notified, and {} can connect without it (MSG_FASTOPEN, tcp(7)); refuse them with the \
             flag 0x20000000, or set net.ipv4.tcp_fastopen to 0 in the pod",
            unseen.join(", ")
        );
        findings.push(Finding { severity: Severity::Warning, code: "fast-open", text });
    }
}

fn io_uring(profile: &Profile, notified: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    let entry = profile.syscalls.iter().find(|entry| entry.names().any(|name| name == "io_uring_setup"));
    let action = entry.map_or(profile.default_action.as_str(), |entry| entry.action.as_str());
    let unseen: Vec<_> = notified.iter().copied().filter(|name| BY_IO_URING.contains(name)).collect();
    if is_allowing(action) && !unseen.is_empty() {
        let text = format!(
            "io_uring_setup is allowed, and io_uring makes these calls without seccomp: {}; refuse it",
            unseen.join(", ")
        );
        findings.push(Finding { severity: Severity::Error, code: "io-uring", text });
    }
}

/// Looks for rules that let the kernel make a call whose meaning is in memory, and
/// for those that statistics and logs cannot tell apart.
#[must_use]
pub fn lint_rules(rules: &Rules) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut names = BTreeSet::new();
    let twice: BTreeSet<&str> =
        rules.rules.iter().map(|rule| rule.name.as_str()).filter(|name| !names.insert(*name)).collect();
    for name in twice {
        let text = format!("several rules are called {name:?}; statistics and logs cannot tell them apart");
        findings.push(Finding { severity: Severity::Warning, code: "duplicate-name", text });
    }
    let mut find = |text| {
        findings.push(Finding { severity: Severity::Warning, code: "pointer-continue", text });
    };
    if rules.defaults.as_ref().and_then(|defaults| defaults.unmatched) == Some(OnFailure::Continue) {
        find("defaults: calls that nobody decides about are continued, whatever they point to".to_owned());
    }
    for rule in rules.rules.iter().filter(|rule| continues(&rule.action)) {
        let calls = &rule.selector.syscalls;
        if calls.is_empty() || calls.iter().any(|call| is_pointer(call, rule)) {
            find(format!(
                "rule {:?} continues calls whose arguments are pointers; that is no check of what they \
                 point to",
                rule.name
            ));
        }
    }
    findings
}

fn continues(action: &Action) -> bool {
    match action {
        Action::Continue => true,
        Action::Record(record) => record.then == OnFailure::Continue,
        Action::StopContainer(stop) => stop.then == OnFailure::Continue,
        Action::Connect(connect) => connect.unix == OnFailure::Continue,
        _ => false,
    }
}

/// A number is of the rule's architectures, or of this machine's.
fn is_pointer(call: &Syscall, rule: &Rule) -> bool {
    let native = [Architecture::NATIVE];
    let architectures = match &rule.selector.architectures[..] {
        [] => &native,
        given => given,
    };
    match call {
        Syscall::Name(name) => has_pointer(name),
        Syscall::Number(number) => architectures
            .iter()
            .filter_map(|architecture| name(architecture.audit(), *number))
            .any(|name| has_pointer(&name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(profile: &str) -> Vec<&'static str> {
        lint(profile.as_bytes()).unwrap().into_iter().map(|finding| finding.code).collect()
    }

    const FLAGS: &str = r#""flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;

    #[test]
    fn a_sound_profile_has_nothing_against_it() {
        let profile = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", {FLAGS}, "listenerPath": "/run/x/seccomp.sock",
                "syscalls": [{{"names": ["getppid", "reboot"], "action": "SCMP_ACT_NOTIFY"}}]}}"#
        );
        assert_eq!(codes(&profile), Vec::<&str>::new());
    }

    #[test]
    fn every_finding_has_its_profile() {
        let notify = |names: &str, rest: &str| {
            format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", {FLAGS}, "listenerPath": "/s", {rest} "syscalls":
                [{{"names": [{names}], "action": "SCMP_ACT_NOTIFY"}}]}}"#
            )
        };
        for (profile, code) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(), "default-notify"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#.to_owned(), "nothing-notified"),
            (notify(r#""reboot""#, "").replace(FLAGS, r#""flags": []"#), "wait-killable-missing"),
            (notify(r#""reboot""#, "").replace("/s", ""), "no-listener-path"),
            (notify(r#""reboot""#, r#""listenerMetadata": "m","#).replace("/s", ""), "metadata-without-path"),
            (notify(r#""reboot""#, "").replace("/s", "s"), "relative-path"),
            (notify(r#""reboot""#, "").replace("/s", &format!("/{}", "s".repeat(107))), "path-too-long"),
            (notify(r#""write""#, ""), "runtime-needs"),
            (notify(r#""sendmsg""#, ""), "runtime-needs"),
            (notify(r#""connect""#, ""), "io-uring"),
            (notify(r#""connect""#, ""), "fast-open"),
            (notify(r#""mkdir""#, ""), "pointer-argument"),
            (notify(r#""swapoff""#, ""), "pointer-argument"),
            (notify(r#""frobnicate""#, ""), "unknown-syscall"),
            (notify(r#""reboot""#, "").replace("SCMP_ACT_NOTIFY", "NOTIFY"), "unknown-action"),
            (notify(r#""reboot""#, "").replace("SCMP_ACT_ALLOW", "ALLOW"), "unknown-action"),
        ] {
            assert!(codes(&profile).contains(&code), "{code}: {:?}", codes(&profile));
        }
        let refused = notify(r#""connect""#, "").replace(
            r#""syscalls":"#,
            r#""syscalls": [{"name": "io_uring_setup", "action": "SCMP_ACT_ERRNO"}, {"names": ["connect"], "action": "SCMP_ACT_NOTIFY"}], "other":"#,
        );
        assert!(codes(&refused).contains(&"pointer-argument"));
        assert!(!codes(&refused).contains(&"io-uring"));
        lint(b"[").unwrap_err();
    }

    #[test]
    fn who_refuses_the_flag_has_thought_of_fast_open() {
        let with = |action: &str, entries: &str| {
            format!(
                r#"{{"defaultAction": "{action}", {FLAGS}, "listenerPath": "/s", "syscalls":
                [{entries}, {{"names": ["connect"], "action": "SCMP_ACT_NOTIFY"}}]}}"#
            )
        };
        let entry = |action: &str, args: &str| {
            format!(
                r#"{{"names": ["sendto", "sendmsg", "sendmmsg"], "action": "SCMP_ACT_{action}", "args": {args}}}"#
            )
        };
        let flag = r#"[{"index": 3, "value": 536870912, "valueTwo": 536870912, "op": "SCMP_CMP_MASKED_EQ"}]"#;
        for (profile, is_found) in [
            (with("SCMP_ACT_ALLOW", &entry("ERRNO", flag)), false),
            (with("SCMP_ACT_ALLOW", &entry("ALLOW", "null")), true),
            (with("SCMP_ACT_ERRNO", &entry("ALLOW", flag)), false),
            (with("SCMP_ACT_ERRNO", &entry("ALLOW", "[]")), true),
            (with("SCMP_ACT_ERRNO", &entry("ERRNO", "[]")), false),
        ] {
            assert_eq!(codes(&profile).contains(&"fast-open"), is_found, "{profile}");
        }
    }

    #[test]
    fn lists_are_sorted_and_of_real_calls() {
        let needed = NEEDED_BY_RUNTIMES.iter().map(|(name, _)| name);
        for name in POINTERS.iter().chain(&BY_IO_URING).chain(&BY_FAST_OPEN).chain(needed) {
            assert!(number(name, Architecture::X86_64).is_some(), "{name}");
        }
        assert!(POINTERS.is_sorted() && BY_IO_URING.is_sorted());
    }

    #[test]
    fn rules_that_continue_on_pointers_are_found() {
        let rules =
            |text: &str| Rules::parse(format!(r#"{{"version": 1, "rules": [{text}]}}"#).as_bytes()).unwrap();
        for (text, count) in [
            (r#"{"name": "r", "match": {"syscalls": ["mkdir"]}, "do": "continue"}"#, 1),
            (r#"{"name": "r", "match": {"syscalls": ["mkdir"]}, "do": {"record": {}}}"#, 1),
            (r#"{"name": "r", "do": "continue"}"#, 1),
            (r#"{"name": "r", "match": {"syscalls": ["getppid"]}, "do": "continue"}"#, 0),
            (r#"{"name": "r", "match": {"syscalls": ["mkdir"]}, "do": "deny"}"#, 0),
            (
                r#"{"name": "r", "match": {"syscalls": ["mkdir"]}, "do": {"stopContainer": {"then": "continue"}}}"#,
                1,
            ),
            // mkdir(2) and getppid(2) of x86-64.
            (
                r#"{"name": "r", "match": {"syscalls": [83], "architectures": ["SCMP_ARCH_X86_64"]}, "do": "continue"}"#,
                1,
            ),
            (
                r#"{"name": "r", "match": {"syscalls": [110], "architectures": ["SCMP_ARCH_X86_64"]}, "do": "continue"}"#,
                0,
            ),
        ] {
            assert_eq!(lint_rules(&rules(text)).len(), count, "{text}");
        }
        let named = |names: [&str; 3]| {
            let rules = names.map(|name| format!(r#"{{"name": "{name}", "do": "deny"}}"#)).join(",");
            Rules::parse(format!(r#"{{"version": 1, "rules": [{rules}]}}"#).as_bytes()).unwrap()
        };
        assert_eq!(lint_rules(&named(["a", "b", "c"])), []);
        let found = lint_rules(&named(["a", "a", "a"]));
        assert_eq!(found.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["duplicate-name"]);
        let defaults = br#"{"version": 1, "defaults": {"unmatched": "continue"}}"#;
        assert_eq!(lint_rules(&Rules::parse(defaults).unwrap()).len(), 1);
    }
}
