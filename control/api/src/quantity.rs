//! Kubernetes quantities (`500m`, `4Gi`, `2`) as whole numbers. No floating point: `0.1` is exact.

use crate::Invalid;

/// A million cores in thousandths; the same bound as on the wire.
pub const MAX_CPU_MILLIS: u64 = 1_000_000_000;
/// One exbibyte; the same bound as on the wire.
pub const MAX_BYTES: u64 = 1 << 60;

/// Thousandths of a core.
///
/// # Errors
/// Names `field`: not a quantity, negative, or more than a million cores.
pub fn cpu_millis(field: &str, text: &str) -> Result<u64, Invalid> {
    bounded(field, text, thousandths(field, text)?, MAX_CPU_MILLIS)
}

/// Bytes, rounded up.
///
/// # Errors
/// Names `field`: not a quantity, negative, or more than an exbibyte.
pub fn bytes(field: &str, text: &str) -> Result<u64, Invalid> {
    bounded(
        field,
        text,
        thousandths(field, text)?.div_ceil(1000),
        MAX_BYTES,
    )
}

/// A whole number, for counted resources.
///
/// # Errors
/// Names `field`: not a quantity, negative, not whole, or more than `max`.
pub fn count(field: &str, text: &str, max: u64) -> Result<u64, Invalid> {
    let thousandths = thousandths(field, text)?;
    if thousandths % 1000 != 0 {
        return Err(Invalid::new(field, format!("{text:?} is not whole")));
    }
    bounded(field, text, thousandths / 1000, max)
}

fn bounded(field: &str, text: &str, value: u128, max: u64) -> Result<u64, Invalid> {
    u64::try_from(value)
        .ok()
        .filter(|v| *v <= max)
        .ok_or_else(|| Invalid::new(field, format!("{text:?} is more than any machine has")))
}

/// Value times 1000, rounded up.
fn thousandths(field: &str, text: &str) -> Result<u128, Invalid> {
    let bad = || Invalid::new(field, format!("{text:?} is not a quantity"));
    if text.starts_with('-') {
        return Err(Invalid::new(field, format!("{text:?} is negative")));
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(bad());
    }
    // 30 digits and the largest factor stay within 128 bits.
    if whole.len() > 20 || fraction.len() > 9 {
        return Err(Invalid::new(field, format!("{text:?} has too many digits")));
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().map_err(|_| bad())?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    // Thousandths per unit.
    let factor: u128 = match suffix {
        "n" => return Ok(digits.div_ceil(scale * 1_000_000)),
        "u" => return Ok(digits.div_ceil(scale * 1000)),
        "m" => 1,
        "" => 1000,
        "k" => 1000 * 1000,
        "M" => 1000 * 1_000_000,
        "G" => 1000 * 1_000_000_000,
        "T" => 1000 * 1_000_000_000_000,
        "P" => 1000 * 1_000_000_000_000_000,
        "E" => 1000 * 1_000_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        other => exponent(other).ok_or_else(bad)?,
    };
    digits
        .checked_mul(factor)
        .map(|v| v.div_ceil(scale))
        .ok_or_else(|| Invalid::new(field, format!("{text:?} is more than any machine has")))
}

/// `e3`, `E+6`: thousandths per unit. Negative exponents are of no use for what we count.
fn exponent(suffix: &str) -> Option<u128> {
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let power: u32 = digits.strip_prefix('+').unwrap_or(digits).parse().ok()?;
    (power <= 18).then(|| 1000 * 10_u128.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        for (text, millis) in [
            ("2", 2000),
            ("500m", 500),
            ("0.1", 100),
            (".5", 500),
            ("1e3", 1_000_000),
            ("1u", 1),
        ] {
            assert_eq!(cpu_millis("cpu", text), Ok(millis), "{text}");
        }
        assert_eq!(bytes("memory", "4Gi"), Ok(4 << 30));
        assert_eq!(bytes("memory", "1.5Gi"), Ok(3 << 29));
        assert_eq!(bytes("memory", "128974848"), Ok(128_974_848));
        assert_eq!(bytes("memory", "100m"), Ok(1));
        assert_eq!(count("gpu", "8", 64), Ok(8));
    }

    #[test]
    fn nonsense_names_the_field() {
        for text in [
            "", "-1", "x", "1Q", "1.2.3", "1e99", "9Ei", "NaN", "1 Gi", "٣",
        ] {
            let refused = bytes("limits.memory", text).unwrap_err();
            assert_eq!(refused.field, "limits.memory", "{text}");
        }
        assert!(cpu_millis("c", "99999999999").is_err());
        assert!(cpu_millis("c", &"9".repeat(400)).is_err());
        assert!(count("g", "500m", 64).is_err());
        assert!(count("g", "65", 64).is_err());
        assert_eq!(
            cpu_millis("spec.cpu", "-2").unwrap_err().to_string(),
            "spec.cpu: \"-2\" is negative"
        );
    }
}
