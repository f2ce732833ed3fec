//! Rules that need no plugin, written down: what `/etc/podinit/seccomp.d/*.json`
//! hold. docs/seccomp.md has the format with examples.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::broker::Defaults;
use super::builtin::connect::Allowed;
use super::plugin::Registration;
use super::select::{SelectError, Selector, Syscall, restricting};
use super::syscall::errno_number;
use super::verdict::OnFailure;
use crate::limits::{
    SECCOMP_CALLS_MAX, SECCOMP_CONNECT_TIMEOUT, SECCOMP_DEADLINE_MAX, SECCOMP_RULES_BYTES_MAX,
    SECCOMP_RULES_FILES_MAX, SECCOMP_RULES_MAX, SECCOMP_SELECTOR_ITEMS_MAX, SECCOMP_STOP_DELAY,
};

/// Where rules are looked for unless the command line says otherwise.
pub const DIRECTORY: &str = "/etc/podinit/seccomp.d";

/// Name of the rule that there is in place of rules that cannot be read.
pub const UNREADABLE: &str = "rules cannot be read";

/// The only version of the format.
const VERSION: u32 = 1;

/// What a rules file says, or all of a directory's together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rules {
    /// 1.
    pub version: u32,
    /// For calls that nobody decides about. Of several files the last one counts.
    #[serde(default)]
    pub defaults: Option<DefaultRules>,
    /// The rules.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// As [`Defaults`], written down; what is not given is as it is without rules.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefaultRules {
    /// [`Defaults::unmatched`]: `errno:ENOSYS`, `continue` or `kill`.
    #[serde(default)]
    pub unmatched: Option<OnFailure>,
    /// [`Defaults::patience`] in milliseconds.
    #[serde(default)]
    pub patience_ms: Option<u64>,
}

/// Who decides about some calls, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// For statistics and logs.
    pub name: String,
    /// Its place among rules and plugins: the least is asked first.
    #[serde(default)]
    pub priority: i32,
    /// Plugins without which it is passed over, by the names that they register.
    #[serde(default, deserialize_with = "restricting")]
    pub needs: Vec<String>,
    /// Which calls.
    #[serde(default, rename = "match")]
    pub selector: Selector,
    /// What happens to them.
    #[serde(rename = "do")]
    pub action: Action,
}

/// An errno: its name or its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenErrno")]
pub struct Errno(pub i32);

#[derive(Deserialize)]
#[serde(untagged, expecting = "an errno is a name like \"EPERM\" or a number from 1 to 4095")]
enum WrittenErrno {
    Number(i64),
    Name(String),
}

impl TryFrom<WrittenErrno> for Errno {
    type Error = String;

    fn try_from(written: WrittenErrno) -> Result<Self, String> {
        let text = match written {
            WrittenErrno::Number(number) => number.to_string(),
            WrittenErrno::Name(name) => name,
        };
        let errno = errno_number(&text).map(Self);
        errno.ok_or_else(|| format!("{text:?} is no errno; use a name like EPERM or a number from 1 to 4095"))
    }
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Action {
    /// The call fails with this errno.
    Errno(Errno),
    /// It fails with `EPERM`, and the log says so once per container and call.
    Deny,
    /// The kernel makes it. Only for what registers tell: see
    /// [`super::verdict::Verdict::Continue`].
    Continue,
    /// It returns this without being made.
    Return(i64),
    /// Its process is killed.
    Kill,
    /// It is counted, for a profile.
    Record(Record),
    /// Its container is ended a while after the last such call.
    StopContainer(StopContainer),
    /// What CRI-O's annotation `seccomp-notifier-action` asks for.
    NotifierAction,
    /// connect(2) is made for the target, to the addresses that are allowed.
    Connect(Connect),
}

/// See [`Action::Record`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// What happens to it.
    #[serde(default = "continue_it")]
    pub then: OnFailure,
}

/// See [`Action::StopContainer`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StopContainer {
    /// How long after the last such call, in milliseconds.
    #[serde(default = "stop_delay_ms")]
    pub delay_ms: u64,
    /// What happens to the call.
    #[serde(default = "no_such_call")]
    pub then: OnFailure,
}

/// See [`Action::Connect`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connect {
    /// The addresses.
    pub allow: Vec<Allowed>,
    /// The errno of other addresses, and of families other than IPv4 and IPv6.
    #[serde(default = "access_denied")]
    pub otherwise: Errno,
    /// What happens to sockets of the family `AF_UNIX`. `continue` is no boundary:
    /// see docs/seccomp.md.
    #[serde(default = "access_denied_policy")]
    pub unix: OnFailure,
    /// How long a connection may take, in milliseconds.
    #[serde(default = "connect_timeout_ms")]
    pub timeout_ms: u64,
}

fn continue_it() -> OnFailure {
    OnFailure::Continue
}

fn no_such_call() -> OnFailure {
    OnFailure::Errno(libc::ENOSYS)
}

fn access_denied() -> Errno {
    Errno(libc::EACCES)
}

fn access_denied_policy() -> OnFailure {
    OnFailure::Errno(libc::EACCES)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn stop_delay_ms() -> u64 {
    milliseconds(SECCOMP_STOP_DELAY)
}

fn connect_timeout_ms() -> u64 {
    milliseconds(SECCOMP_CONNECT_TIMEOUT)
}

/// Why rules cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// A file or directory that cannot be read.
    #[error("cannot read the seccomp rules {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that says what makes no sense.
    #[error("the seccomp rules {} cannot be used: {source}", .path.display())]
    In {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<RulesError>,
    },
    /// Not JSON, or not of this form.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A rule that is not of this form.
    #[error("rule {name}, line {line}: {reason}")]
    Form {
        /// Its name, quoted, or its place if it has none.
        name: String,
        /// Where reading stopped, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// A default that leaves open what happens.
    #[error(
        "\"unmatched\" is for calls that nobody is left to decide about; use errno:EPERM (any errno), continue or kill"
    )]
    UnmatchedNext,
    /// Another version.
    #[error("they are of version {0}; this podinit knows version {VERSION}")]
    Version(u32),
    /// A rule that could never match.
    #[error("rule {name:?}: {source}")]
    Selector {
        /// Which.
        name: String,
        /// Why.
        source: SelectError,
    },
    /// A rule for connect(2) that selects other calls.
    #[error("rule {0:?}: \"connect\" is for the call connect only; leave \"syscalls\" out")]
    NotConnect(String),
    /// A time that is too long.
    #[error("rule {name:?}: {ms} ms are too long; at most {max} ms are allowed")]
    Time {
        /// Which.
        name: String,
        /// How long.
        ms: u64,
        /// How long is allowed.
        max: u64,
    },
    /// More than is sensible.
    #[error("there are more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        max: u64,
    },
}

impl Rules {
    /// Reads the text of one file.
    ///
    /// # Errors
    /// If it is not a rules file, or one of its rules makes no sense.
    pub fn parse(text: &[u8]) -> Result<Self, RulesError> {
        if text.len() as u64 > SECCOMP_RULES_BYTES_MAX {
            return Err(RulesError::TooMany { what: "bytes", max: SECCOMP_RULES_BYTES_MAX });
        }
        let mut rules: Self = serde_json::from_slice(text)
            .map_err(|error| in_rule(text, &error).unwrap_or_else(|| error.into()))?;
        if rules.version != VERSION {
            return Err(RulesError::Version(rules.version));
        }
        let unmatched = rules.defaults.as_ref().and_then(|defaults| defaults.unmatched);
        if unmatched == Some(OnFailure::Next) {
            return Err(RulesError::UnmatchedNext);
        }
        rules.check_count()?;
        for rule in &mut rules.rules {
            rule.check()?;
        }
        Ok(rules)
    }

    fn check_count(&self) -> Result<(), RulesError> {
        if self.rules.len() <= SECCOMP_RULES_MAX {
            return Ok(());
        }
        Err(RulesError::TooMany { what: "rules", max: SECCOMP_RULES_MAX as u64 })
    }

    /// Reads a file, or every `*.json` of a directory in the order of their names.
    /// What does not exist has no rules.
    ///
    /// # Errors
    /// If any of it cannot be read or makes no sense; then none of it is used.
    pub fn read(path: &Path) -> Result<Self, RulesError> {
        let mut all = Self { version: VERSION, ..Self::default() };
        for path in files(path)? {
            let text =
                read_bounded(&path).map_err(|source| RulesError::Read { path: path.clone(), source })?;
            let one =
                Self::parse(&text).map_err(|source| RulesError::In { path, source: Box::new(source) })?;
            all.defaults = one.defaults.or(all.defaults);
            all.rules.extend(one.rules);
            all.check_count()?;
        }
        Ok(all)
    }

    /// In place of rules that cannot be read: one for all calls, before everybody else.
    /// Each of those rules might have refused a call, and nobody knows which.
    pub(super) fn unreadable() -> Self {
        let refuse = Rule {
            name: UNREADABLE.to_owned(),
            priority: i32::MIN,
            needs: Vec::new(),
            selector: Selector::default(),
            action: Action::Errno(Errno(libc::ENOSYS)),
        };
        Self { version: VERSION, defaults: None, rules: vec![refuse] }
    }

    /// The defaults that they make.
    #[must_use]
    pub fn defaults(&self) -> Defaults {
        let mut defaults = Defaults::default();
        if let Some(given) = &self.defaults {
            defaults.unmatched = given.unmatched.unwrap_or(defaults.unmatched);
            let patience = given.patience_ms.map(Duration::from_millis);
            defaults.patience = patience.unwrap_or(defaults.patience).min(SECCOMP_DEADLINE_MAX);
        }
        defaults
    }
}

impl Rule {
    fn check(&mut self) -> Result<(), RulesError> {
        let max = milliseconds(SECCOMP_DEADLINE_MAX);
        let time = match &self.action {
            Action::StopContainer(stop) => stop.delay_ms,
            Action::Connect(connect) => connect.timeout_ms,
            _ => 0,
        };
        if time > max {
            return Err(RulesError::Time { name: self.name.clone(), ms: time, max });
        }
        let items = SECCOMP_SELECTOR_ITEMS_MAX;
        if self.needs.len() > items {
            return Err(RulesError::TooMany { what: "plugins that one rule needs", max: items as u64 });
        }
        if let Action::Connect(connect) = &self.action {
            let most_ports = connect.allow.iter().map(|allowed| allowed.ports.len()).max().unwrap_or(0);
            if connect.allow.len().max(most_ports) > items {
                return Err(RulesError::TooMany { what: "addresses or ports", max: items as u64 });
            }
            let is_connect = |syscall: &Syscall| *syscall == Syscall::Name("connect".to_owned());
            if !self.selector.syscalls.iter().all(is_connect) {
                return Err(RulesError::NotConnect(self.name.clone()));
            }
            self.selector.syscalls = vec![Syscall::Name("connect".to_owned())];
        }
        let compiled = self.selector.clone().compile();
        compiled.map(drop).map_err(|source| RulesError::Selector { name: self.name.clone(), source })
    }

    /// How the broker is to ask it.
    pub(super) fn registration(&self) -> Registration {
        let (deadline, on_failure) = match &self.action {
            // It has a limit of its own.
            Action::Connect(_) => (SECCOMP_DEADLINE_MAX, OnFailure::Errno(libc::ETIMEDOUT)),
            _ => (Duration::from_secs(1), OnFailure::Errno(libc::EPERM)),
        };
        Registration {
            name: self.name.clone(),
            selector: self.selector.clone(),
            priority: self.priority,
            deadline,
            on_failure,
            allow_continue: true,
            // One container's calls must not wait for another's.
            in_flight_max: SECCOMP_CALLS_MAX,
        }
    }
}

/// Which rule is not of the form, if one is: where `error` comes from.
fn in_rule(text: &[u8], error: &serde_json::Error) -> Option<RulesError> {
    let mut whole: Value = serde_json::from_slice(text).ok()?;
    let rules = whole.as_object_mut()?.remove("rules")?;
    // What is wrong besides the rules may have been met first.
    Rules::deserialize(whole).ok()?;
    for (rule, number) in rules.as_array()?.iter().zip(1..) {
        if let Err(reason) = Rule::deserialize(rule) {
            let name = rule.get("name").and_then(Value::as_str);
            let name = name.map_or_else(|| format!("number {number}"), |name| format!("{name:?}"));
            let reason = action_reason(rule.get("do")).unwrap_or_else(|| reason.to_string());
            return Some(RulesError::Form { name, line: error.line(), reason });
        }
    }
    None
}

/// What is wrong with the form of an action, where serde's words are no help.
fn action_reason(action: Option<&Value>) -> Option<String> {
    match action? {
        Value::String(name) if ["record", "stopContainer"].contains(&name.as_str()) => {
            Some(format!("write \"do\": {{\"{name}\": {{}}}}"))
        }
        Value::String(name) if ["errno", "return", "connect"].contains(&name.as_str()) => {
            Some(format!("\"do\": \"{name}\" lacks its value; write {{\"{name}\": …}}"))
        }
        Value::Object(actions) if actions.len() != 1 => {
            Some(format!("\"do\" takes one action; {} are given", actions.len()))
        }
        _ => None,
    }
}

/// The rules files that `path` stands for.
fn files(path: &Path) -> Result<Vec<PathBuf>, RulesError> {
    let fail = |source| RulesError::Read { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Ok(vec![path.to_owned()]),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
        if files.len() > SECCOMP_RULES_FILES_MAX {
            return Err(RulesError::TooMany { what: "rules files", max: SECCOMP_RULES_FILES_MAX as u64 });
        }
    }
    files.sort();
    Ok(files)
}

/// The rules files at a path, as they were at one moment: each time that one is
/// written makes another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written(Vec<(PathBuf, u64, i64, i64)>);

impl Written {
    /// As they are now.
    pub(super) fn at(path: &Path) -> Result<Self, RulesError> {
        let written = files(path)?.into_iter().map(|path| match std::fs::metadata(&path) {
            Ok(found) => Ok((path, found.ino(), found.ctime(), found.ctime_nsec())),
            Err(source) => Err(RulesError::Read { path, source }),
        });
        written.collect::<Result<_, _>>().map(Self)
    }
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    // What is no file must not hold the broker up: a FIFO that nobody writes to would.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut text = Vec::new();
    file.take(SECCOMP_RULES_BYTES_MAX + 1).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_rule(rule: &str) -> Result<Rules, String> {
        let text = format!(r#"{{"version": 1, "rules": [{rule}]}}"#);
        Rules::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    fn action(action: &str) -> Result<Action, String> {
        let rules = with_rule(&format!(r#"{{"name": "r", "do": {action}}}"#))?;
        Ok(rules.rules[0].action.clone())
    }

    #[test]
    fn every_action_is_read() {
        assert_eq!(action(r#"{"errno": "EPERM"}"#).unwrap(), Action::Errno(Errno(1)));
        assert_eq!(action(r#"{"errno": "38"}"#).unwrap(), Action::Errno(Errno(38)));
        assert_eq!(action(r#"{"errno": 18}"#).unwrap(), Action::Errno(Errno(libc::EXDEV)));
        assert_eq!(action(r#""deny""#).unwrap(), Action::Deny);
        assert_eq!(action(r#""continue""#).unwrap(), Action::Continue);
        assert_eq!(action(r#""kill""#).unwrap(), Action::Kill);
        assert_eq!(action(r#"{"return": -1}"#).unwrap(), Action::Return(-1));
        assert_eq!(
            action(r#"{"record": {}}"#).unwrap(),
            Action::Record(Record { then: OnFailure::Continue })
        );
        assert_eq!(action(r#""notifierAction""#).unwrap(), Action::NotifierAction);
        let stop = StopContainer { delay_ms: 5000, then: OnFailure::Errno(libc::ENOSYS) };
        assert_eq!(action(r#"{"stopContainer": {}}"#).unwrap(), Action::StopContainer(stop));
        let connect = action(r#"{"connect": {"allow": [{"address": "10.0.0.0/8", "ports": [443]}]}}"#);
        let Action::Connect(connect) = connect.unwrap() else { panic!("another action") };
        assert_eq!((connect.otherwise, connect.timeout_ms), (Errno(libc::EACCES), 135_000));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (rule, reason) in [
            (r#"{"name": "r"}"#, "do"),
            (r#"{"name": "r", "do": "deny", "when": 1}"#, "when"),
            (r#"{"name": "r", "do": {"errno": "EWHAT"}}"#, "EWHAT"),
            (r#"{"name": "r", "do": {"errno": 0}}"#, "1 to 4095"),
            (r#"{"name": "r", "do": {"errno": -1}}"#, "1 to 4095"),
            (r#"{"name": "r", "do": {"errno": {}}}"#, "1 to 4095"),
            (
                r#"{"name": "a", "do": "deny"}, {"name": "the \"b\"", "do": 5}"#,
                r#"rule "the \"b\"", line 1:"#,
            ),
            (r#"{"name": "a", "do": "deny"}, {"do": "deny"}"#, "rule number 2, line 1:"),
            (r#"{"name": "r", "do": "record"}"#, r#"rule "r", line 1: write "do": {"record": {}}"#),
            (r#"{"name": "r", "do": "errno"}"#, r#""do": "errno" lacks its value"#),
            (r#"{"name": "r", "do": {"errno": "EPERM", "kill": {}}}"#, "one action; 2 are given"),
            (r#"{"name": "r", "do": {"connect": {"allow": ["10.0.0.1"]}}}"#, r#"{"address": "10.0.0.0/8""#),
            (
                r#"{"name": "r", "do": {"connect": {"allow": [{"address": "10.0.0.1", "ports": []}]}}}"#,
                "restricts nothing",
            ),
            (r#"{"name": "r", "do": "deny", "needs": []}"#, "restricts nothing"),
            (r#"{"name": "r", "do": "deny", "match": {"containers": []}}"#, "restricts nothing"),
            (r#"{"name": "r", "do": {"record": {"than": "kill"}}}"#, "than"),
            (r#"{"name": "r", "do": "deny", "match": {"syscalls": ["frobnicate"]}}"#, "frobnicate"),
            (r#"{"name": "r", "do": {"stopContainer": {"delayMs": 900000}}}"#, "too long"),
            (r#"{"name": "r", "do": {"connect": {"allow": [{"address": "10.0.0.0/33"}]}}}"#, "10.0.0.0/33"),
            (
                r#"{"name": "r", "do": {"connect": {"allow": []}}, "match": {"syscalls": ["bind"]}}"#,
                "connect",
            ),
        ] {
            let error = with_rule(rule).unwrap_err();
            assert!(error.contains(reason), "{rule}: {error}");
        }
        assert!(Rules::parse(br#"{"version": 2}"#).unwrap_err().to_string().contains("version 2"));
        assert!(Rules::parse(b"").is_err());
        let unmatched = Rules::parse(br#"{"version": 1, "defaults": {"unmatched": "next"}}"#).unwrap_err();
        assert!(unmatched.to_string().contains("nobody is left"), "{unmatched}");
        // Not the rule's fault.
        let field = Rules::parse(br#"{"version": 1, "ruls": [], "rules": [{"name": "r", "do": "deny"}]}"#);
        assert!(field.unwrap_err().to_string().contains("unknown field `ruls`"));
        let many = vec![r#"{"name": "r", "do": "deny"}"#; SECCOMP_RULES_MAX + 1].join(",");
        assert!(with_rule(&many).unwrap_err().contains("128 rules"));
    }

    #[test]
    fn a_rule_needs_the_plugins_that_it_names_and_no_more_than_a_list_may_have() {
        let needs =
            |names: &str| with_rule(&format!(r#"{{"name": "r", "do": "continue", "needs": {names}}}"#));
        assert_eq!(needs(r#"["a", "not-there-yet"]"#).unwrap().rules[0].needs, ["a", "not-there-yet"]);
        assert!(with_rule(r#"{"name": "r", "do": "deny"}"#).unwrap().rules[0].needs.is_empty());
        assert!(needs(r#""a""#).is_err(), "a list");
        let names = |count: usize| format!("[{}]", vec![r#""p""#; count].join(","));
        needs(&names(SECCOMP_SELECTOR_ITEMS_MAX)).unwrap();
        let error = needs(&names(SECCOMP_SELECTOR_ITEMS_MAX + 1)).unwrap_err();
        assert!(error.contains("512 plugins"), "{error}");
    }

    #[test]
    fn a_connect_rule_is_about_connect() {
        let rules = with_rule(r#"{"name": "r", "do": {"connect": {"allow": []}}}"#).unwrap();
        assert_eq!(rules.rules[0].selector.syscalls, [Syscall::Name("connect".to_owned())]);
    }

    #[test]
    fn a_directory_is_read_in_order_and_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
        assert_eq!(Rules::read(&place.path().join("none")).unwrap().rules, []);
        write("b.json", r#"{"version": 1, "defaults": {"unmatched": "continue"}}"#);
        write(
            "a.json",
            r#"{"version": 1, "defaults": {"patienceMs": 5}, "rules": [{"name": "r", "do": "deny"}]}"#,
        );
        write(".hidden.json", "nonsense");
        write("readme.txt", "nonsense");
        let rules = Rules::read(place.path()).unwrap();
        assert_eq!(rules.rules.len(), 1);
        assert_eq!(rules.defaults().unmatched, OnFailure::Continue);
        assert_eq!(rules.defaults().patience, Defaults::default().patience);
        write("c.json", r#"{"version": 1, "rules": 5}"#);
        let error = Rules::read(place.path()).unwrap_err().to_string();
        assert!(error.contains("c.json"), "{error}");
        assert_eq!(Rules::read(&place.path().join("a.json")).unwrap().rules.len(), 1);
    }
}
