//! Which hooks a container has. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::definition::When;
use super::pattern::Pattern;

/// Where engines mount files and directories of their own into every container
/// of theirs: these are not its user's.
const ENGINE_MOUNTS: [&str; 8] = [
    "/dev/shm",
    "/dev/termination-log",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/run/.containerenv",
    "/run/secrets",
    "/var/run/.containerenv",
];

/// What conditions are held against: a container as its config.json has it. At a
/// stage of the pod there is none of it, and the default is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// The arguments of its process, if it has one.
    pub args: Option<Vec<String>>,
    /// Whether it has bind mounts beside those that every container has.
    pub has_bind_mounts: bool,
}

/// A config.json that conditions cannot be held against.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json: {0}")]
pub struct BadConfig(&'static str);

impl Subject {
    /// The container of a config.json (runtime-spec, config.md).
    ///
    /// # Errors
    /// If annotations, arguments or mounts are not of the type that they have there.
    pub fn of_config(config: &Value) -> Result<Self, BadConfig> {
        let there =
            |parent: &'_ Value, name: &str| parent.get(name).filter(|value| !value.is_null()).cloned();
        let mut subject = Self::default();
        if let Some(annotations) = there(config, "annotations") {
            subject.annotations = serde_json::from_value(annotations)
                .map_err(|_| BadConfig("annotations are not all texts"))?;
        }
        if let Some(process) = there(config, "process") {
            let args = there(&process, "args").unwrap_or_else(|| Value::Array(Vec::new()));
            let args = serde_json::from_value(args);
            subject.args = Some(args.map_err(|_| BadConfig("process.args is no list of texts"))?);
        }
        if let Some(mounts) = there(config, "mounts") {
            let mounts = mounts.as_array().ok_or(BadConfig("mounts is no list"))?;
            subject.has_bind_mounts = mounts.iter().any(is_of_user);
        }
        Ok(subject)
    }
}

/// Whether a mount is a bind mount that the container's user asked for.
fn is_of_user(mount: &Value) -> bool {
    let is = |value: &Value, texts: &[&str]| value.as_str().is_some_and(|text| texts.contains(&text));
    let options = mount.get("options").and_then(Value::as_array);
    let is_bind = mount.get("type").is_some_and(|kind| is(kind, &["bind"]))
        || options.is_some_and(|options| options.iter().any(|option| is(option, &["bind", "rbind"])));
    is_bind && !mount.get("destination").is_some_and(|destination| is(destination, &ENGINE_MOUNTS))
}

/// The one way in which matching fails: a hook is for certain commands, and the
/// process has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hook is for certain commands, and process.args is empty; give the container a command")]
pub struct NoCommand;

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Condition<'w> {
    /// `always`, and its value.
    Always(bool),
    /// `hasBindMounts`, and its value.
    HasBindMounts(bool),
    /// A pair of `annotations`.
    Annotation(&'w Pattern, &'w Pattern),
    /// All of `commands`.
    Commands(&'w [Pattern]),
}

impl fmt::Display for Condition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always(value) => write!(f, "always: {value}"),
            Self::HasBindMounts(value) => write!(f, "hasBindMounts: {value}"),
            Self::Annotation(key, value) => write!(f, "annotations: {key:?}: {value:?}"),
            Self::Commands(patterns) => write!(f, "commands: {patterns:?}"),
        }
    }
}

impl Condition<'_> {
    /// Whether it holds.
    ///
    /// # Errors
    /// If it is about a command, and there is none.
    pub fn holds(&self, subject: &Subject) -> Result<bool, NoCommand> {
        Ok(match self {
            Self::Always(value) => *value,
            // False does not mean "if there are none"; it is never true.
            Self::HasBindMounts(value) => *value && subject.has_bind_mounts,
            Self::Annotation(key, value) => {
                subject.annotations.iter().any(|(name, text)| key.matches(name) && value.matches(text))
            }
            Self::Commands(patterns) => {
                let Some(args) = &subject.args else { return Ok(true) };
                let command = args.first().ok_or(NoCommand)?;
                patterns.iter().any(|pattern| pattern.matches(command))
            }
        })
    }
}

impl When {
    /// The conditions that there are, in the order in which they are asked.
    pub fn conditions(&self) -> impl Iterator<Item = Condition<'_>> {
        let always = self.always.map(Condition::Always);
        let mounts = self.has_bind_mounts.map(Condition::HasBindMounts);
        let annotations = self.annotations.iter().map(|(key, value)| Condition::Annotation(key, value));
        let commands = Some(self.commands.as_slice()).filter(|commands| !commands.is_empty());
        always.into_iter().chain(mounts).chain(annotations).chain(commands.map(Condition::Commands))
    }

    /// Whether all conditions hold, and there is one that was asked at all:
    /// without a process, `commands` is not.
    ///
    /// # Errors
    /// If all others hold, `commands` are given, and the process has no arguments.
    pub fn matches(&self, subject: &Subject) -> Result<bool, NoCommand> {
        let mut asked = false;
        for condition in self.conditions() {
            if !condition.holds(subject)? {
                return Ok(false);
            }
            asked |= subject.args.is_some() || !matches!(condition, Condition::Commands(_));
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn when(
        always: Option<bool>,
        annotations: &[(&str, &str)],
        commands: &[&str],
        mounts: Option<bool>,
    ) -> When {
        let pattern = |text: &str| Pattern::new(text).unwrap();
        When {
            always,
            annotations: annotations.iter().map(|(key, value)| (pattern(key), pattern(value))).collect(),
            commands: commands.iter().map(|text| pattern(text)).collect(),
            has_bind_mounts: mounts,
        }
    }

    fn subject(annotations: &[(&str, &str)], args: Option<&[&str]>, has_bind_mounts: bool) -> Subject {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Subject {
            annotations: annotations.iter().map(owned).collect(),
            args: args.map(|args| args.iter().map(|arg| (*arg).to_owned()).collect()),
            has_bind_mounts,
        }
    }

    #[test]
    fn every_rule() {
        let plain = subject(&[("a", "b"), ("c", "d")], Some(&["/bin/sh", "-c"]), false);
        let mounted = Subject { has_bind_mounts: true, ..plain.clone() };
        let pod = Subject { args: None, ..plain.clone() };
        let cases = [
            (when(None, &[], &[], None), &plain, false),
            (when(Some(true), &[], &[], None), &plain, true),
            (when(Some(false), &[], &[], None), &plain, false),
            (when(Some(false), &[("a", "b")], &[], None), &plain, false),
            (when(Some(true), &[("a", "c")], &[], None), &plain, false),
            (when(None, &[], &[], Some(true)), &plain, false),
            (when(None, &[], &[], Some(true)), &mounted, true),
            (when(None, &[], &[], Some(false)), &plain, false),
            (when(None, &[], &[], Some(false)), &mounted, false),
            (when(None, &[("a", "b")], &[], None), &plain, true),
            (when(None, &[("^a$", "^b$"), ("c", "d")], &[], None), &plain, true),
            (when(None, &[("a", "d")], &[], None), &plain, false),
            (when(None, &[(".", "d")], &[], None), &plain, true),
            (when(None, &[("", "")], &[], None), &plain, true),
            (when(None, &[], &["x", "sh$"], None), &plain, true),
            (when(None, &[], &["^sh"], None), &plain, false),
            (when(None, &[], &["-c"], None), &plain, false),
            (when(None, &[], &["sh"], None), &pod, false),
            (when(Some(true), &[], &["nothing"], None), &pod, true),
            (when(None, &[("a", "b")], &["sh"], Some(true)), &mounted, true),
            (when(None, &[("a", "b")], &["sh"], Some(true)), &plain, false),
        ];
        for (when, subject, expected) in cases {
            assert_eq!(when.matches(subject), Ok(expected), "{when:?}");
        }
    }

    #[test]
    fn an_empty_command_is_an_error_only_once_it_matters() {
        let none = subject(&[], Some(&[]), false);
        assert_eq!(when(None, &[], &["sh"], None).matches(&none), Err(NoCommand));
        assert_eq!(when(Some(false), &[], &["sh"], None).matches(&none), Ok(false));
        assert_eq!(when(Some(true), &[], &[], None).matches(&none), Ok(true));
    }

    #[test]
    fn a_pair_without_annotations_does_not_match() {
        assert_eq!(when(None, &[("", "")], &[], None).matches(&subject(&[], None, false)), Ok(false));
    }

    #[test]
    fn a_container_is_read_off_its_config() {
        let config = json!({
            "annotations": {"a": "b"},
            "process": {"args": ["sh"]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/shm", "type": "bind", "source": "/x", "options": ["bind"]},
                {"destination": "/etc/resolv.conf", "source": "/x", "options": ["rbind", "ro"]},
            ],
        });
        assert_eq!(Subject::of_config(&config).unwrap(), subject(&[("a", "b")], Some(&["sh"]), false));
        let with = |mount: Value| Subject::of_config(&json!({ "mounts": [mount] })).unwrap().has_bind_mounts;
        assert!(with(json!({"destination": "/data", "type": "bind"})));
        assert!(with(json!({"destination": "/data", "options": ["rbind"]})));
        assert!(!with(json!({"destination": "/data", "type": "tmpfs"})));
        assert_eq!(Subject::of_config(&json!({})).unwrap(), Subject::default());
        assert_eq!(Subject::of_config(&json!({"process": {}})).unwrap().args, Some(Vec::new()));
        for wrong in
            [json!({"annotations": {"a": 1}}), json!({"process": {"args": "sh"}}), json!({"mounts": {}})]
        {
            assert!(Subject::of_config(&wrong).is_err(), "{wrong}");
        }
    }
}
