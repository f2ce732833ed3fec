//! Numbers in arguments.

/// A decimal number of at most 12 digits.
pub(crate) fn parse(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 12 {
        return None;
    }
    text.iter().try_fold(0, |sum: u64, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        Some(sum * 10 + u64::from(digit))
    })
}
