//! The secrets in streaming URLs: who knows one may have one session.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Instant;

use rustix::rand::GetRandomFlags;

use crate::limits::{STREAM_TOKEN_TIMEOUT, STREAM_TOKENS_MAX};

/// 128 random bits; 32 hexadecimal digits in a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    /// Says nothing: a log is no place for a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A token that nobody has had before.
    ///
    /// # Errors
    /// What getrandom(2) says.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0; 16];
        // Up to 256 bytes come as a whole or not at all (getrandom(2)).
        if rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())? != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// What a client has sent as a token.
    #[must_use]
    pub fn of_client(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As it stands in a URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What tokens stand for, until they are used, expire, or are crowded out.
#[derive(Debug)]
pub struct Tokens<T> {
    pending: VecDeque<(Token, Instant, T)>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { pending: VecDeque::new() }
    }
}

impl<T> Tokens<T> {
    /// Remembers what `token` stands for. The oldest of too many is forgotten.
    pub fn insert(&mut self, token: Token, what: T, now: Instant) {
        self.forget_expired(now);
        if self.pending.len() >= STREAM_TOKENS_MAX {
            self.pending.pop_front();
        }
        self.pending.push_back((token, now + STREAM_TOKEN_TIMEOUT, what));
    }

    /// What `token` stands for.
    pub fn get(&mut self, token: &Token, now: Instant) -> Option<&T> {
        self.forget_expired(now);
        self.pending.iter().find(|(known, _, _)| known == token).map(|(_, _, what)| what)
    }

    /// What `token` stands for, for the only time.
    pub fn take(&mut self, token: &Token, now: Instant) -> Option<T> {
        self.forget_expired(now);
        let at = self.pending.iter().position(|(known, _, _)| known == token)?;
        self.pending.remove(at).map(|(_, _, what)| what)
    }

    fn forget_expired(&mut self, now: Instant) {
        // All live equally long, so the oldest expires first.
        while self.pending.front().is_some_and(|(_, until, _)| *until <= now) {
            self.pending.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_token_is_good_once_and_not_for_ever() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let (first, second) = (Token::new().unwrap(), Token::new().unwrap());
        assert_ne!(first, second);
        assert_eq!(first.as_str().len(), 32);
        tokens.insert(first.clone(), 1, now);
        tokens.insert(second.clone(), 2, now);
        assert_eq!(tokens.get(&first, now), Some(&1));
        assert_eq!(tokens.take(&first, now), Some(1));
        assert_eq!(tokens.take(&first, now), None);
        assert_eq!(tokens.take(&second, now + STREAM_TOKEN_TIMEOUT - Duration::from_nanos(1)), Some(2));
        tokens.insert(second.clone(), 3, now);
        assert_eq!(tokens.take(&second, now + STREAM_TOKEN_TIMEOUT), None);
        assert_eq!(tokens.take(&Token::of_client(""), now), None);
    }

    #[test]
    fn the_oldest_of_too_many_is_forgotten() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let all = (0..=STREAM_TOKENS_MAX).map(|_| Token::new().unwrap()).collect::<Vec<_>>();
        for (n, token) in all.iter().enumerate() {
            tokens.insert(token.clone(), n, now);
        }
        assert_eq!(tokens.take(&all[0], now), None);
        assert_eq!(tokens.take(&all[1], now), Some(1));
        assert_eq!(tokens.take(&all[STREAM_TOKENS_MAX], now), Some(STREAM_TOKENS_MAX));
    }
}
