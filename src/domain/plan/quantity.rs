//! Comparing Kubernetes quantities (`8Gi`, `500m`, `1e3`) exactly, to never shrink a claim.

use std::cmp::Ordering;

/// How two quantities compare; `None` where one of them is not a quantity.
pub(super) fn compare(a: &str, b: &str) -> Option<Ordering> {
    Some(nanos(a)?.cmp(&nanos(b)?))
}

/// The quantity in billionths, rounded up as Kubernetes does. At most 18 digits before the suffix.
pub(super) fn nanos(text: &str) -> Option<i128> {
    const NANO: i128 = 1_000_000_000;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() > 18 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (factor, divisor) = factor(suffix)?;
    let scaled = digits.checked_mul(NANO)?.checked_mul(factor)?;
    let divisor = scale.checked_mul(divisor)?;
    let rounded = scaled / divisor + i128::from(scaled % divisor != 0);
    Some(if negative { -rounded } else { rounded })
}

/// What a suffix multiplies with and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let factor = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let size = 10_i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, size) } else { (size, 1) }
        }
    };
    Some(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_compare_by_value_and_not_by_text() {
        for (a, b, expected) in [
            ("8Gi", "10Gi", Ordering::Less),
            ("1Gi", "1024Mi", Ordering::Equal),
            ("1G", "1Gi", Ordering::Less),
            ("1.5Gi", "1536Mi", Ordering::Equal),
            ("1e3", "1k", Ordering::Equal),
            ("1E", "1Ei", Ordering::Less),
            ("500m", "1", Ordering::Less),
            ("-1", "0", Ordering::Less),
        ] {
            assert_eq!(compare(a, b), Some(expected), "{a} {b}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_does_not_compare() {
        for text in ["", "Gi", "1Qi", "1.2.3", "9999999999999999999999", "1e99", "ten"] {
            assert_eq!(compare(text, "1"), None, "{text}");
        }
    }
}
