//! What is wrong with a seccomp profile that notifies, before a container is.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::rules::{Action, Rule};
use super::select::Syscall;
use super::syscall::{Architecture, number};
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
}

impl Entry {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().chain(&self.name).map(String::as_str)
    }
}

const NOTIFY: &str = "SCMP_ACT_NOTIFY";
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

/// Calls that a pointer leads on to what they are about: the kernel reads it
/// again after a verdict of `continue`.
const POINTERS: [&str; 48] = [
    "accept",
    "accept4",
    "access",
    "bind",
    "chdir",
    "chmod",
    "chown",
    "chroot",
    "clone3",
    "connect",
    "creat",
    "execve",
    "execveat",
    "faccessat",
    "faccessat2",
    "fchmodat",
    "fchownat",
    "fsconfig",
    "ioctl",
    "lchown",
    "link",
    "linkat",
    "lsetxattr",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "mount",
    "mount_setattr",
    "move_mount",
    "open",
    "open_tree",
    "openat",
    "openat2",
    "pivot_root",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setxattr",
    "symlink",
    "symlinkat",
    "umount2",
    "unlink",
    "unlinkat",
];

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
    let unknown = notified.iter().filter(|name| Architecture::ALL.iter().all(|a| number(name, *a).is_none()));
    for name in unknown {
        let text = format!("{name} is notified, and no architecture has such a call; it is ignored");
        findings.push(Finding { severity: Severity::Warning, code: "unknown-syscall", text });
    }
    let pointers: Vec<_> = notified.iter().copied().filter(|name| POINTERS.contains(name)).collect();
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
             Go programs get a signal each 10 ms. crun takes it, runc from 1.5.0 on"
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

fn io_uring(profile: &Profile, notified: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    let is_allowing = |action: &str| matches!(action, "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE");
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

/// Looks for rules that let the kernel make a call whose meaning is in memory.
#[must_use]
pub fn lint_rules(rules: &[Rule]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in rules {
        let continues = match &rule.action {
            Action::Continue => true,
            Action::Record(record) => record.then == OnFailure::Continue,
            Action::Connect(connect) => connect.unix == OnFailure::Continue,
            _ => false,
        };
        let is_pointer =
            |syscall: &&Syscall| matches!(syscall, Syscall::Name(name) if POINTERS.contains(&name.as_str()));
        let pointers = rule.selector.syscalls.iter().filter(is_pointer).count();
        if continues && (pointers > 0 || rule.selector.syscalls.is_empty()) {
            let text = format!(
                "rule {:?} continues calls whose arguments are pointers; that is no check of what they \
                 point to",
                rule.name
            );
            findings.push(Finding { severity: Severity::Warning, code: "pointer-continue", text });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::rules::Rules;

    fn codes(profile: &str) -> Vec<&'static str> {
        lint(profile.as_bytes()).unwrap().into_iter().map(|finding| finding.code).collect()
    }

    const FLAGS: &str = r#""flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;

    #[test]
    fn a_sound_profile_has_nothing_against_it() {
        let profile = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", {FLAGS}, "listenerPath": "/run/x/seccomp.sock",
                "syscalls": [{{"names": ["swapoff", "reboot"], "action": "SCMP_ACT_NOTIFY"}}]}}"#
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
            (notify(r#""mkdir""#, ""), "pointer-argument"),
            (notify(r#""frobnicate""#, ""), "unknown-syscall"),
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
    fn lists_are_sorted_and_of_real_calls() {
        for name in POINTERS.iter().chain(&BY_IO_URING).chain(NEEDED_BY_RUNTIMES.iter().map(|(name, _)| name))
        {
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
        ] {
            assert_eq!(lint_rules(&rules(text).rules).len(), count, "{text}");
        }
    }
}
