//! Kubernetes quantities (`resource.Quantity` in apimachinery): numbers with a decimal or binary suffix.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` if it is no quantity or too large.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 1000)
}

/// The value of a text in whole units, rounded up; `None` if it is no quantity or too large.
pub fn read_units(text: &str) -> Option<i64> {
    scaled(text, 1)
}

/// The value in whole units, rounded up; `None` if it is no quantity or too large.
pub fn units(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 1)
}

/// As Kubernetes writes an amount of bytes (`BinarySI`).
pub fn binary(value: u64) -> String {
    if value < 1024 {
        return decimal(value);
    }

    written(value, 1024, ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

/// As Kubernetes writes a count (`DecimalSI`).
pub fn decimal(value: u64) -> String {
    written(value, 1000, ["k", "M", "G", "T", "P", "E"])
}

/// With the largest suffix that leaves a whole number.
fn written(mut value: u64, base: u64, suffixes: [&str; 6]) -> String {
    let mut suffix = "";
    for next in suffixes {
        if value == 0 || !value.is_multiple_of(base) {
            break;
        }
        (value, suffix) = (value / base, next);
    }

    format!("{value}{suffix}")
}

fn scaled(text: &str, per_unit: i128) -> Option<i64> {
    let digits_end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && matches!(c, '+' | '-'))))
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(digits_end);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (numerator, denominator) = multiplier(suffix)?;
    let numerator = mantissa.checked_mul(numerator)?.checked_mul(per_unit)?;
    let denominator =
        denominator.checked_mul(10_i128.checked_pow(fraction.len().try_into().ok()?)?)?;
    // Away from zero, as Quantity.Value and MilliValue do.
    let value = numerator.checked_add(denominator - 1)? / denominator;

    i64::try_from(if negative { -value } else { value }).ok()
}

fn multiplier(suffix: &str) -> Option<(i128, i128)> {
    let power = |base: i128, exponent: u32| Some((base.pow(exponent), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => power(1000, 1),
        "M" => power(1000, 2),
        "G" => power(1000, 3),
        "T" => power(1000, 4),
        "P" => power(1000, 5),
        "E" => power(1000, 6),
        "Ki" => power(1024, 1),
        "Mi" => power(1024, 2),
        "Gi" => power(1024, 3),
        "Ti" => power(1024, 4),
        "Pi" => power(1024, 5),
        "Ei" => power(1024, 6),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let power: i32 = digits.parse().ok()?;
            let size = 10_i128.checked_pow(power.unsigned_abs())?;
            Some(if power >= 0 { (size, 1) } else { (1, size) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_written_as_kubernetes_writes_them() {
        for (value, bytes, count) in [
            (0, "0", "0"),
            (1000, "1k", "1k"),
            (1024, "1Ki", "1024"),
            (1025, "1025", "1025"),
            (3 << 29, "1536Mi", "1610612736"),
            (1 << 60, "1Ei", "1152921504606846976"),
        ] {
            assert_eq!((binary(value).as_str(), decimal(value).as_str()), (bytes, count));
        }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            (".5", Some(500)),
            ("1.5k", Some(1_500_000)),
            ("128Mi", Some(134_217_728_000)),
            ("1e3", Some(1_000_000)),
            ("2E-1", Some(200)),
            ("1n", Some(1)),
            ("-1", Some(-1000)),
            ("+2", Some(2000)),
            ("", None),
            ("Mi", None),
            ("1x", None),
            ("9999999Ei", None),
        ] {
            assert_eq!(milli(&Quantity(text.to_owned())), expected, "{text}");
        }
        assert_eq!(units(&Quantity("100m".to_owned())), Some(1));
        assert_eq!(units(&Quantity("1E".to_owned())), Some(1_000_000_000_000_000_000));
    }
}
