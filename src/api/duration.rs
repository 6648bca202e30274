//! Durations as users write them: `^([0-9]+(ms|s|m|h))+$`, greater than zero.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidDuration {
    /// Not of the form.
    #[error("`{0}` is not a duration: write numbers with units ms, s, m or h, e.g. 720h or 1h30m")]
    Malformed(String),
    /// Zero.
    #[error("`{0}` is no time at all: a duration must be greater than zero")]
    Zero(String),
    /// More than 100 years.
    #[error("`{0}` is too long: at most 876000h")]
    TooLong(String),
}

const MAX_MILLIS: u64 = 876_000 * 3_600_000;

/// Reads a duration; at most 876000h.
///
/// # Errors
/// The text is malformed, zero or too long.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let malformed = || InvalidDuration::Malformed(text.to_owned());
    let too_long = || InvalidDuration::TooLong(text.to_owned());
    let mut rest = text;
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(malformed());
        }
        let number: u64 = number.parse().map_err(|_| too_long())?;
        let (factor, after) = if let Some(after) = after.strip_prefix("ms") {
            (1, after)
        } else if let Some(after) = after.strip_prefix('s') {
            (1000, after)
        } else if let Some(after) = after.strip_prefix('m') {
            (60_000, after)
        } else if let Some(after) = after.strip_prefix('h') {
            (3_600_000, after)
        } else {
            return Err(malformed());
        };
        total = number
            .checked_mul(factor)
            .and_then(|ms| total.checked_add(ms))
            .ok_or_else(too_long)?;
        rest = after;
    }
    match total {
        0 => Err(InvalidDuration::Zero(text.to_owned())),
        ms if ms > MAX_MILLIS => Err(too_long()),
        ms => Ok(Duration::from_millis(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_their_parts() {
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn zero_malformed_and_endless_durations_are_refused_with_a_reason() {
        assert_eq!(parse("0s"), Err(InvalidDuration::Zero("0s".into())));
        assert!(matches!(parse("h"), Err(InvalidDuration::Malformed(_))));
        assert!(matches!(parse("5"), Err(InvalidDuration::Malformed(_))));
        assert!(matches!(parse("3 d"), Err(InvalidDuration::Malformed(_))));
        assert!(matches!(parse("99999999999999h"), Err(InvalidDuration::TooLong(_))));
    }
}
