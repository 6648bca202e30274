//! Durations as people write them: `90s`, `1h30m`, `30d`.

use std::time::Duration;

use super::{Error, Result};

/// Reads `^([0-9]+(ms|s|m|h|d))+$`; the CRDs know no `d`, see [`kubernetes`].
pub fn parse(text: &str) -> Result<Duration> {
    let invalid = || {
        Error::usage(format!("`{text}` is not a duration"))
            .fix("write numbers with units ms, s, m, h or d, for example 90s, 1h30m or 30d")
    };
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(invalid()),
        };
        rest = &rest[unit..];
        let part = number
            .checked_mul(millis)
            .map(Duration::from_millis)
            .ok_or_else(invalid)?;
        total = total.checked_add(part).ok_or_else(invalid)?;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(total) }
}

/// The same length of time in the units that the CRDs take: days become hours.
pub fn kubernetes(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    let mut text = String::new();
    for (count, unit) in [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(millis), "ms"),
    ] {
        if count > 0 {
            text.push_str(&count.to_string());
            text.push_str(unit);
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_understood_and_written_as_hours() {
        assert_eq!(kubernetes(parse("30d").unwrap()), "720h");
        assert_eq!(kubernetes(parse("1h30m").unwrap()), "1h30m");
        assert_eq!(kubernetes(parse("1500ms").unwrap()), "1s500ms");
        assert_eq!(kubernetes(parse("0s").unwrap()), "0s");
    }

    #[test]
    fn nonsense_is_refused_without_overflow() {
        for text in [
            "",
            "10",
            "h",
            "1w",
            "-1h",
            "1 h",
            "99999999999999999999h",
            "18446744073709551615d",
            "1h2",
        ] {
            assert_eq!(parse(text).unwrap_err().class, crate::ops::Class::Usage, "{text}");
        }
    }
}
