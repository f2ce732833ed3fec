//! Regular expressions of hook files: RE2's syntax, matched anywhere in a text.

mod syntax;

use std::fmt;

use regex_lite::{Regex, RegexBuilder};

use crate::limits::HOOK_PATTERN_BYTES_MAX;

/// A regular expression that may match anywhere in a text, unless it says otherwise.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// A pattern that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the regular expression {pattern:?} cannot be used: {reason}")]
pub struct BadPattern {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// If its syntax is wrong, or if it would become larger than
    /// [`HOOK_PATTERN_BYTES_MAX`].
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        let bad = |reason: String| BadPattern { pattern: text.to_owned(), reason };
        let translated = syntax::translate(text).map_err(bad)?;
        let regex = RegexBuilder::new(&translated).size_limit(HOOK_PATTERN_BYTES_MAX).build();
        Ok(Self { text: text.to_owned(), regex: regex.map_err(|error| bad(error.to_string()))? })
    }

    /// Whether it matches anywhere in `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Go's regexp says: 1 it matches, 0 it does not, - it does not compile.
    const REFERENCE: &str = include_str!("pattern/reference.tsv");

    /// What is refused here although Go takes it: the page on hooks says so.
    fn is_refused_here(pattern: &str) -> bool {
        pattern.contains("\\p")
            || pattern.contains("\\P")
            || pattern.contains("(?i)é")
            || pattern.contains("(?i)*")
    }

    #[test]
    fn every_pattern_means_what_it_means_to_go() {
        let (mut seen, mut wrong) = (0, Vec::new());
        for line in REFERENCE.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = line.split('\t').collect();
            let [pattern, text, expected] = fields[..] else { panic!("{line}") };
            let text = text.replace("\\n", "\n").replace("\\v", "\x0b").replace("\\t", "\t");
            let found = match Pattern::new(pattern) {
                Err(_) => "-",
                Ok(compiled) if compiled.matches(&text) => "1",
                Ok(_) => "0",
            };
            let expected = if is_refused_here(pattern) { "-" } else { expected };
            if found != expected {
                let reason = Pattern::new(pattern).err();
                wrong.push(format!("{pattern:?} on {text:?}: {found}, not {expected} {reason:?}"));
            }
            seen += 1;
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(seen > 150, "{seen} patterns only");
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        let reason = |pattern: &str| Pattern::new(pattern).unwrap_err().to_string();
        assert!(reason("[").contains("never closed"), "{}", reason("["));
        assert!(reason("a**").contains("use a group"));
        assert!(reason("\\p{Greek}").contains("list the characters"));
        assert!(reason("(?=a)").contains("flags"));
    }

    #[test]
    fn a_pattern_cannot_grow_without_bound() {
        let wide = "(abcdefghijklmnopqrstuvwxyz){1000}".repeat(20);
        assert!(Pattern::new(&wide).is_err());
        assert!(Pattern::new(&"(".repeat(100_000)).is_err());
        assert!(Pattern::new(&format!("{}{}", "(".repeat(5_000), ")".repeat(5_000))).is_err());
    }

    proptest! {
        #[test]
        fn a_literal_matches_itself(text in "\\PC{0,20}") {
            let text = text.replace('\\', "");
            let quoted = Pattern::new(&format!("^\\Q{text}\\E$")).unwrap();
            prop_assert!(quoted.matches(&text));
        }

        #[test]
        fn anything_is_compiled_or_refused(pattern in "[-a(){}\\[\\]^$|*+?.,:\\\\0-9pQEdwx<>]{0,24}") {
            if let Ok(compiled) = Pattern::new(&pattern) {
                prop_assert_eq!(compiled.matches("a0<pQ"), compiled.matches("a0<pQ"));
            }
        }
    }
}
