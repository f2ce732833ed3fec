//! Which notifications somebody wants: written as a [`Selector`], asked as a
//! [`Matcher`].
//!
//! A matcher has two questions, because one of them is asked once per listener
//! and the other once per call: [`Matcher::session`] and [`Matcher::call`].

use std::collections::BTreeMap;

use serde::Deserialize;

use super::notification::Session;
use super::syscall::{Architecture, number};
use crate::limits::{SECCOMP_SELECTOR_COMPARISONS_MAX, SECCOMP_SELECTOR_ITEMS_MAX};

/// What is wanted. Every field that is not empty must hold; one that is empty
/// holds always. In JSON that is to be left out, see [`restricting`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    /// The call is one of these.
    #[serde(deserialize_with = "restricting")]
    pub syscalls: Vec<Syscall>,
    /// All of these hold.
    #[serde(deserialize_with = "restricting")]
    pub arguments: Vec<Comparison>,
    /// The container is one of these.
    #[serde(deserialize_with = "restricting")]
    pub containers: Vec<String>,
    /// The profile's `listenerMetadata` is one of these.
    #[serde(deserialize_with = "restricting")]
    pub metadata: Vec<String>,
    /// The container has all of these annotations.
    #[serde(deserialize_with = "restricting")]
    pub annotations: BTreeMap<String, String>,
    /// The container has all of these labels.
    #[serde(deserialize_with = "restricting")]
    pub labels: BTreeMap<String, String>,
    /// The call is of one of these.
    #[serde(deserialize_with = "restricting")]
    pub architectures: Vec<Architecture>,
}

/// Reads a list, or a map, that is not empty. A template with nothing to fill in
/// shall not make a rule for some containers one for all.
///
/// # Errors
/// If it is empty, or not of its type.
pub(super) fn restricting<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    let given = T::deserialize(deserializer)?;
    if given == T::default() {
        return Err(serde::de::Error::custom(
            "an empty list or map restricts nothing; leave the field out if that is meant",
        ));
    }
    Ok(given)
}

/// A call. In JSON a string or a number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a system call is its name or its number")]
pub enum Syscall {
    /// By name: on every architecture that has it.
    Name(String),
    /// By number: of the selector's architectures, or of this machine's if it names none.
    Number(i32),
}

/// A question about a register: (argument & mask) operator values.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Comparison {
    /// Which argument, from 0 to 5.
    pub index: u8,
    /// Bits to look at; all if not given. For an argument of 32 bits that is
    /// 0xffffffff: the program may leave anything in the rest.
    #[serde(default = "all_bits")]
    pub mask: u64,
    /// How it is compared.
    pub operator: Operator,
    /// With what: one number, but for [`Operator::OneOf`].
    #[serde(deserialize_with = "one_or_more")]
    pub values: Vec<u64>,
}

fn all_bits() -> u64 {
    u64::MAX
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "values are one number that is not negative, or a list of them")]
    enum Values {
        One(u64),
        More(Vec<u64>),
    }
    Ok(match Values::deserialize(deserializer)? {
        Values::One(value) => vec![value],
        Values::More(values) => values,
    })
}

/// How a masked argument is compared, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "their names say it all")]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    OneOf,
}

/// Why a selector makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// A name that no architecture knows.
    #[error("no system call is called {0:?} on the architectures asked for; see `man 2 syscalls`")]
    UnknownSyscall(String),
    /// More than six arguments.
    #[error("a system call has arguments 0 to 5, not {0}")]
    ArgumentIndex(u8),
    /// The number of values does not fit the operator.
    #[error("{0:?} compares with one value, oneOf with at least one; {1} are given")]
    Values(Operator, usize),
    /// More than is sensible.
    #[error("{0} {1} in one selector; at most {2} are taken")]
    TooMany(usize, &'static str, usize),
}

/// A call's registers, as matchers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// As in [`super::notification::Notification`].
    pub arch: u32,
    /// As there.
    pub syscall: i32,
    /// As there.
    pub args: [u64; 6],
}

/// A selector, ready to be asked.
#[derive(Debug, Clone)]
pub struct Matcher {
    selector: Selector,
    /// Sorted pairs of architecture and number; `None` for all calls.
    calls: Option<Vec<(u32, i32)>>,
}

impl Selector {
    /// Checks it and makes it fast.
    ///
    /// # Errors
    /// If it could never match, or is too big.
    pub fn compile(self) -> Result<Matcher, SelectError> {
        self.check_sizes()?;
        for comparison in &self.arguments {
            comparison.check()?;
        }
        let calls = if self.syscalls.is_empty() { None } else { Some(self.calls()?) };
        Ok(Matcher { calls, selector: self })
    }

    fn check_sizes(&self) -> Result<(), SelectError> {
        let items = SECCOMP_SELECTOR_ITEMS_MAX;
        for (count, what, max) in [
            (self.syscalls.len(), "system calls", items),
            (self.containers.len(), "containers", items),
            (self.metadata.len(), "metadata texts", items),
            (self.annotations.len(), "annotations", items),
            (self.labels.len(), "labels", items),
            (self.architectures.len(), "architectures", items),
            (self.arguments.len(), "comparisons", SECCOMP_SELECTOR_COMPARISONS_MAX),
        ] {
            if count > max {
                return Err(SelectError::TooMany(count, what, max));
            }
        }
        Ok(())
    }

    fn calls(&self) -> Result<Vec<(u32, i32)>, SelectError> {
        let named = if self.architectures.is_empty() { &Architecture::ALL[..] } else { &self.architectures };
        let numbered =
            if self.architectures.is_empty() { &[Architecture::NATIVE][..] } else { &self.architectures };
        let mut calls = Vec::new();
        for syscall in &self.syscalls {
            match syscall {
                Syscall::Number(number) => calls.extend(numbered.iter().map(|a| (a.audit(), *number))),
                Syscall::Name(name) => {
                    let before = calls.len();
                    calls.extend(named.iter().filter_map(|a| Some((a.audit(), number(name, *a)?))));
                    if calls.len() == before {
                        return Err(SelectError::UnknownSyscall(name.clone()));
                    }
                }
            }
        }
        calls.sort_unstable();
        calls.dedup();
        Ok(calls)
    }
}

impl Comparison {
    fn check(&self) -> Result<(), SelectError> {
        if self.index > 5 {
            return Err(SelectError::ArgumentIndex(self.index));
        }
        let count = self.values.len();
        if count > SECCOMP_SELECTOR_ITEMS_MAX {
            return Err(SelectError::TooMany(count, "values", SECCOMP_SELECTOR_ITEMS_MAX));
        }
        let fits = if self.operator == Operator::OneOf { count > 0 } else { count == 1 };
        if fits { Ok(()) } else { Err(SelectError::Values(self.operator, count)) }
    }

    fn holds(&self, args: &[u64; 6]) -> bool {
        let Some(argument) = args.get(usize::from(self.index)) else { return false };
        let seen = argument & self.mask;
        if self.operator == Operator::OneOf {
            return self.values.contains(&seen);
        }
        let Some(value) = self.values.first() else { return false };
        match self.operator {
            Operator::Equal | Operator::OneOf => seen == *value,
            Operator::NotEqual => seen != *value,
            Operator::Less => seen < *value,
            Operator::LessOrEqual => seen <= *value,
            Operator::Greater => seen > *value,
            Operator::GreaterOrEqual => seen >= *value,
        }
    }
}

impl Matcher {
    /// Whether calls of this listener can be wanted at all.
    #[must_use]
    pub fn session(&self, session: &Session) -> bool {
        let among = |list: &[String], text: &str| list.is_empty() || list.iter().any(|one| one == text);
        let has = |there: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| there.get(key) == Some(value))
        };
        among(&self.selector.containers, &session.container)
            && among(&self.selector.metadata, &session.metadata)
            && has(&session.annotations, &self.selector.annotations)
            && has(&session.labels, &self.selector.labels)
    }

    /// Whether this call is wanted, of a listener that is.
    #[must_use]
    pub fn call(&self, call: &Call) -> bool {
        if let Some(calls) = &self.calls
            && calls.binary_search(&(call.arch, call.syscall)).is_err()
        {
            return false;
        }
        self.architecture(call) && self.selector.arguments.iter().all(|one| one.holds(&call.args))
    }

    fn architecture(&self, call: &Call) -> bool {
        let wanted = &self.selector.architectures;
        wanted.is_empty()
            || Architecture::of(call.arch, call.syscall).is_some_and(|found| wanted.contains(&found))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::seccomp::notification::SessionId;
    use proptest::prelude::*;

    /// A listener of container `container`.
    pub(in crate::seccomp) fn session(container: &str, metadata: &str) -> Session {
        let map = |key: &str| BTreeMap::from([(key.to_owned(), "yes".to_owned())]);
        Session {
            id: SessionId(1),
            pod: "p".into(),
            container: container.into(),
            metadata: metadata.into(),
            pid: 1,
            is_exec: false,
            bundle: "/b".into(),
            annotations: map("annotation"),
            labels: map("label"),
            since_ns: 0,
        }
    }

    fn parse(text: &str) -> Result<Matcher, String> {
        let selector: Selector = serde_json::from_str(text).map_err(|error| error.to_string())?;
        selector.compile().map_err(|error| error.to_string())
    }

    fn call(syscall: i32, args: [u64; 6]) -> Call {
        Call { arch: Architecture::X86_64.audit(), syscall, args }
    }

    #[test]
    fn empty_wants_everything() {
        let all = parse("{}").unwrap();
        assert!(all.session(&session("c", "")));
        assert!(all.call(&call(-5, [7; 6])));
        assert!(all.call(&Call { arch: 1, syscall: 1, args: [0; 6] }));
    }

    #[test]
    fn calls_by_name_are_of_every_architecture_and_by_number_of_this_machine() {
        let mkdir = parse(r#"{"syscalls": ["mkdir", "mkdirat"]}"#).unwrap();
        assert!(mkdir.call(&call(83, [0; 6])) && mkdir.call(&call(258, [0; 6])));
        assert!(!mkdir.call(&call(84, [0; 6])));
        assert!(mkdir.call(&Call { arch: Architecture::X86.audit(), syscall: 39, args: [0; 6] }));
        assert!(!mkdir.call(&call(39, [0; 6])));

        let number = parse(r#"{"syscalls": [83], "architectures": ["SCMP_ARCH_X86"]}"#).unwrap();
        assert!(!number.call(&call(83, [0; 6])));
        assert!(number.call(&Call { arch: Architecture::X86.audit(), syscall: 83, args: [0; 6] }));

        let narrow = parse(r#"{"architectures": ["SCMP_ARCH_X86_64"]}"#).unwrap();
        assert!(narrow.call(&call(83, [0; 6])));
        assert!(!narrow.call(&call(0x4000_0053, [0; 6])), "x32 is not x86-64");
    }

    #[test]
    fn arguments_are_masked_and_compared_unsigned() {
        let with = |rest: &str| parse(&format!(r#"{{"arguments": [{{"index": 1, {rest}}}]}}"#)).unwrap();
        let argument = |value: u64| call(1, [0, value, 0, 0, 0, 0]);
        for (text, holds, fails) in [
            (r#""operator": "equal", "values": 5"#, 5, 6),
            (r#""operator": "equal", "values": 5, "mask": 4294967295"#, 0xf_0000_0005, 6),
            (r#""operator": "notEqual", "values": 5"#, 4, 5),
            (r#""operator": "less", "values": [5]"#, 4, u64::MAX),
            (r#""operator": "lessOrEqual", "values": 5"#, 5, 6),
            (r#""operator": "greater", "values": 5"#, u64::MAX, 5),
            (r#""operator": "greaterOrEqual", "values": 5"#, 5, 4),
            (r#""operator": "oneOf", "values": [1, 9], "mask": 15"#, 0x19, 0x12),
        ] {
            assert!(with(text).call(&argument(holds)), "{text}");
            assert!(!with(text).call(&argument(fails)), "{text}");
        }
    }

    #[test]
    fn listeners_are_told_apart() {
        for (text, wanted) in [
            (r#"{"containers": ["a", "c"]}"#, true),
            (r#"{"containers": ["a"]}"#, false),
            (r#"{"metadata": ["m"]}"#, true),
            (r#"{"metadata": [""]}"#, false),
            (r#"{"annotations": {"annotation": "yes"}}"#, true),
            (r#"{"annotations": {"annotation": "no"}}"#, false),
            (r#"{"labels": {"label": "yes"}, "containers": ["c"]}"#, true),
            (r#"{"labels": {"other": "yes"}}"#, false),
        ] {
            assert_eq!(parse(text).unwrap().session(&session("c", "m")), wanted, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        let many = vec!["\"read\""; SECCOMP_SELECTOR_ITEMS_MAX + 1].join(",");
        for (text, reason) in [
            (r#"{"syscalls": ["frobnicate"]}"#.to_owned(), "frobnicate"),
            (r#"{"syscalls": ["mkdir"], "architectures": ["SCMP_ARCH_AARCH64"]}"#.to_owned(), "mkdir"),
            (r#"{"arguments": [{"index": 6, "operator": "equal", "values": 1}]}"#.to_owned(), "0 to 5"),
            (r#"{"arguments": [{"index": 0, "operator": "equal", "values": []}]}"#.to_owned(), "0 are given"),
            (r#"{"arguments": [{"index": 0, "operator": "less", "values": [1, 2]}]}"#.to_owned(), "2 are"),
            (r#"{"arguments": [{"index": 0, "operator": "equal"}]}"#.to_owned(), "values"),
            (r#"{"system": []}"#.to_owned(), "system"),
            (r#"{"syscalls": [true]}"#.to_owned(), "name or its number"),
            (format!(r#"{{"syscalls": [{many}]}}"#), "at most"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn an_empty_list_selects_nothing_rather_than_everything() {
        for field in ["syscalls", "arguments", "containers", "metadata", "architectures"] {
            let error = parse(&format!(r#"{{"{field}": []}}"#)).unwrap_err();
            assert!(error.contains("restricts nothing"), "{field}: {error}");
        }
        for field in ["annotations", "labels"] {
            parse(&format!(r#"{{"{field}": {{}}}}"#)).unwrap_err();
        }
    }

    proptest! {
        /// What a comparison says is what its arithmetic says.
        #[test]
        fn comparisons_are_arithmetic(argument: u64, mask: u64, value in 0..8_u64) {
            let holds = |operator| {
                Comparison { index: 0, mask, operator, values: vec![value] }.holds(&[argument, 0, 0, 0, 0, 0])
            };
            let seen = argument & mask;
            prop_assert_eq!(holds(Operator::Equal), seen == value);
            prop_assert_eq!(holds(Operator::NotEqual), seen != value);
            prop_assert_eq!(holds(Operator::Less), seen < value);
            prop_assert_eq!(holds(Operator::LessOrEqual), seen <= value);
            prop_assert_eq!(holds(Operator::Greater), seen > value);
            prop_assert_eq!(holds(Operator::GreaterOrEqual), seen >= value);
            prop_assert_eq!(holds(Operator::OneOf), seen == value);
        }
    }
}
