//! The keys that end an attach and leave the container running. Pure.

use std::str::FromStr;

/// Keys that are typed one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// Most of them: nobody types more by heart.
const KEYS_MAX: usize = 16;

impl FromStr for DetachKeys {
    type Err = String;

    /// Parses keys as docker and podman have them: `ctrl-p,ctrl-q`, `a,b`; empty for
    /// none.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "write keys as ctrl-p,ctrl-q: letters, or ctrl- and one of a to z @ [ \\ ] ^ _".to_owned();
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let key = |key: &str| match key.as_bytes() {
            [one] if one.is_ascii_graphic() => Some(*one),
            [b'c', b't', b'r', b'l', b'-', letter] => match letter.to_ascii_uppercase() {
                // What a terminal sends for them.
                control @ b'@'..=b'_' => Some(control & 0x1f),
                _ => None,
            },
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.filter(|keys| keys.len() <= KEYS_MAX).map(Self).ok_or_else(wrong)
    }
}

/// Looks for the keys in what is typed.
#[derive(Debug)]
pub struct Detector {
    keys: Vec<u8>,
    /// How many of them were the last to be typed.
    matched: usize,
}

impl Detector {
    /// A detector of `keys`.
    #[must_use]
    pub fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, matched: 0 }
    }

    /// Takes what was typed and appends to `passed` what is for the container: all
    /// but the keys, which are held until it is known that others follow. True when
    /// all of the keys were typed; what comes after them is dropped.
    pub fn push(&mut self, typed: &[u8], passed: &mut Vec<u8>) -> bool {
        if self.keys.is_empty() {
            passed.extend_from_slice(typed);
            return false;
        }
        for byte in typed {
            // The longest end of what was typed that the keys begin with.
            while self.matched > 0 && self.keys.get(self.matched) != Some(byte) {
                let shorter = self.shorter_match();
                passed.extend_from_slice(self.keys.get(..self.matched - shorter).unwrap_or_default());
                self.matched = shorter;
            }
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
            } else {
                passed.push(*byte);
            }
            if self.matched == self.keys.len() {
                return true;
            }
        }
        false
    }

    /// How many of the keys still match if the first of those typed is no part of it.
    fn shorter_match(&self) -> usize {
        let typed = self.keys.get(..self.matched).unwrap_or_default();
        (1..typed.len())
            .map(|skip| typed.len() - skip)
            .find(|length| {
                let (head, tail) = (typed.get(..*length), typed.get(typed.len() - length..));
                head == tail
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_as_docker_has_them() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(vec![0x10, 0x11]));
        assert_eq!(keys("ctrl-@,a,ctrl-]"), Ok(vec![0, b'a', 0x1d]));
        assert_eq!(keys(""), Ok(Vec::new()));
        for bad in ["ctrl-", "ctrl-1", "ctrl-é", "ab", "a,,b", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_no_key_reaches_the_container(
            keys in prop::collection::vec(0..3_u8, 1..4),
            typed in prop::collection::vec(prop::collection::vec(0..3_u8, 0..5), 0..6),
        ) {
            let whole = typed.concat();
            let mut detector = Detector::new(DetachKeys(keys.clone()));
            let mut passed = Vec::new();
            let detached = typed.iter().any(|portion| detector.push(portion, &mut passed));
            let at = whole.windows(keys.len()).position(|window| window == keys);
            prop_assert_eq!(detached, at.is_some());
            match at {
                Some(at) => prop_assert_eq!(passed, &whole[..at]),
                None => {
                    prop_assert!(whole.starts_with(&passed));
                    prop_assert!(keys.starts_with(&whole[passed.len()..]), "only keys are held");
                }
            }
        }
    }
}
