//! Regular expressions of hook files.

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
        let regex = RegexBuilder::new(text).size_limit(HOOK_PATTERN_BYTES_MAX).build();
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
