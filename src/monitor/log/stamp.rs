//! The time in a log record: RFC 3339, UTC, always nine digits and `Z`, so that
//! every stamp has the same width and sorts as text.
//!
//! The text up to the second is kept between two calls: within one second only
//! nine digits are rendered, which costs about as much as asking for the time.

use rustix::time::{ClockId, clock_gettime};

/// Bytes of a stamp: `2026-11-23T01:02:03.123456789Z`.
pub const STAMP_BYTES: usize = 30;

/// A rendered stamp.
pub type Stamp = [u8; STAMP_BYTES];

/// Seconds of 9999-12-31T23:59:59Z: later years would need a fifth digit.
const SECONDS_MAX: i64 = 253_402_300_799;

/// A moment: seconds since 1970 and nanoseconds within the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

impl Timestamp {
    /// The moment `seconds` (0 to the end of the year 9999) and `nanos` (below
    /// 1,000,000,000) after 1970; what lies outside is brought to the nearest end.
    #[must_use]
    pub fn new(seconds: i64, nanos: u32) -> Self {
        Self { seconds: seconds.clamp(0, SECONDS_MAX), nanos: nanos.min(999_999_999) }
    }

    /// The system's clock.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Realtime);
        Self::new(now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds within the second.
    #[must_use]
    pub fn nanos(self) -> u32 {
        self.nanos
    }
}

/// Renders stamps.
#[derive(Debug, Clone)]
pub struct Stamper {
    second: i64,
    text: Stamp,
}

impl Default for Stamper {
    fn default() -> Self {
        Self { second: -1, text: *b"0000-00-00T00:00:00.000000000Z" }
    }
}

impl Stamper {
    /// Renders `at`.
    pub fn render(&mut self, at: Timestamp) -> Stamp {
        if at.seconds != self.second {
            self.render_second(at.seconds);
        }
        put(&mut self.text[20..29], u64::from(at.nanos));
        self.text
    }

    fn render_second(&mut self, seconds: i64) {
        let days = seconds.div_euclid(86_400);
        let second = seconds.rem_euclid(86_400).unsigned_abs();
        let (year, month, day) = date(days);
        put(&mut self.text[0..4], year);
        put(&mut self.text[5..7], month);
        put(&mut self.text[8..10], day);
        put(&mut self.text[11..13], second / 3600);
        put(&mut self.text[14..16], second / 60 % 60);
        put(&mut self.text[17..19], second % 60);
        self.second = seconds;
    }
}

/// Writes `value` right-aligned with leading zeros over all of `digits`.
fn put(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Year, month and day of the proleptic Gregorian calendar, `days` (not
/// negative) after 1970-01-01.
///
/// Counts in years that begin in March, so that the leap day is a year's last
/// day, and in cycles of 400 years, which all have the same length.
fn date(days: i64) -> (u64, u64, u64) {
    // Days from 0000-03-01 to 1970-01-01.
    let days = days.unsigned_abs() + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    // The last day of a 4-, 100- or 400-year span still belongs to the span's last year.
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    // March to July and August to December have 153 days each.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (400 * cycle + year + u64::from(month <= 2), month, day_of_month)
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar from the
/// year 1970 on; the inverse of [`date`].
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let (cycle, year) = (year / 400, year % 400);
    cycle * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468
}

/// Parses an RFC 3339 time: any number of fraction digits (those beyond nine do
/// not count), `Z` or a numeric offset, as other monitors write it. `None` if it
/// is not one, or lies before 1970.
#[must_use]
pub fn parse(text: &[u8]) -> Option<Timestamp> {
    let number = |from: usize, to: usize| digits(text.get(from..to)?);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let in_range = year >= 1970
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    if !in_range || marks.iter().any(|&(at, mark)| text.get(at) != Some(&mark)) {
        return None;
    }
    let (nanos, offset) = fraction(text.get(19..)?)?;
    let local = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = i64::try_from(local).ok()? - offset_seconds(offset)?;
    (0..=SECONDS_MAX).contains(&seconds).then(|| Timestamp::new(seconds, nanos))
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter()
        .try_fold(0, |value: u64, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}

/// Nanoseconds of an optional `.digits`, and what follows.
fn fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    let Some(rest) = text.strip_prefix(b".") else { return Some((0, text)) };
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, offset) = rest.split_at(count);
    let kept = fraction.get(..count.min(9))?;
    let missing = u32::try_from(9 - kept.len()).ok()?;
    let nanos = digits(kept)? * 10_u64.pow(missing);
    (count > 0).then_some((u32::try_from(nanos).ok()?, offset))
}

/// Seconds east of Greenwich of `Z`, `+hh:mm` or `-hh:mm`.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    if text == b"Z" {
        return Some(0);
    }
    let (sign, rest) = text.split_first()?;
    let &[h1, h2, b':', m1, m2] = rest else { return None };
    let (hours, minutes) = (digits(&[h1, h2])?, digits(&[m1, m2])?);
    let seconds = i64::try_from(hours * 3600 + minutes * 60).ok()?;
    match sign {
        b'+' if hours <= 23 && minutes <= 59 => Some(seconds),
        b'-' if hours <= 23 && minutes <= 59 => Some(-seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(seconds: i64, nanos: u32) -> String {
        String::from_utf8(Stamper::default().render(Timestamp::new(seconds, nanos)).to_vec()).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(951_868_799, 999_999_999), "2000-02-29T23:59:59.999999999Z");
        assert_eq!(text(951_868_800, 0), "2000-03-01T00:00:00.000000000Z");
        assert_eq!(text(1_735_689_599, 0), "2024-12-31T23:59:59.000000000Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(text(SECONDS_MAX, 0), "9999-12-31T23:59:59.000000000Z");
        assert_eq!(text(i64::MAX, u32::MAX), "9999-12-31T23:59:59.999999999Z");
        assert_eq!(text(-5, 0), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn other_monitors_stamps_parse() {
        assert_eq!(parse(b"1970-01-01T01:00:01.5+01:00"), Some(Timestamp::new(1, 500_000_000)));
        assert_eq!(parse(b"1969-12-31T23:00:01-01:00"), None, "years before 1970 are refused");
        assert_eq!(parse(b"1970-01-01T00:00:00.1234567891Z"), Some(Timestamp::new(0, 123_456_789)));
        for bad in ["", "1970", "1970-01-01T00:00:00", "1970-01-01T00:00:00.Z", "1970-13-01T00:00:00Z", "é"]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn rendered_parses_back_and_the_cache_changes_nothing(
            moments in prop::collection::vec((0..=SECONDS_MAX, 0..1_000_000_000_u32), 1..20)
        ) {
            let mut cached = Stamper::default();
            for (seconds, nanos) in moments {
                let at = Timestamp::new(seconds, nanos);
                let rendered = cached.render(at);
                prop_assert_eq!(rendered, Stamper::default().render(at));
                prop_assert_eq!(parse(&rendered), Some(at));
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(at) = parse(&bytes) {
                prop_assert!((0..=SECONDS_MAX).contains(&at.seconds()) && at.nanos() < 1_000_000_000);
            }
        }
    }
}
