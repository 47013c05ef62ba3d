//! Formats that are checked. Unknown ones are not, as the Kubernetes API has it.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use jiff::Timestamp;

/// Whether text has a format.
pub(super) fn text_has(format: &str, text: &str) -> bool {
    match format {
        "date-time" => text.parse::<Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "byte" => base64::engine::general_purpose::STANDARD
            .decode(text)
            .is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "uuid" => is_uuid(text),
        "duration" => is_go_duration(text),
        _ => true,
    }
}

fn is_uuid(text: &str) -> bool {
    let hex: usize = text.bytes().filter(u8::is_ascii_hexdigit).count();
    hex == 32 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// Such as `1h30m`, `-1.5s` or `0`.
fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        if digits == 0 {
            return false;
        }
        let unit = &rest[digits..];
        let known = ["ns", "us", "µs", "ms", "s", "m", "h"];
        // Longest first, so that "ms" is not read as "m".
        let Some(found) = ["ns", "us", "µs", "ms"]
            .iter()
            .chain(known[4..].iter())
            .find(|u| unit.starts_with(**u))
        else {
            return false;
        };
        rest = &unit[found.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_good_from_bad() {
        for (format, text, good) in [
            ("date-time", "2026-01-02T03:04:05Z", true),
            ("date-time", "yesterday", false),
            ("duration", "1h30m", true),
            ("duration", "15ms", true),
            ("duration", "15", false),
            ("byte", "aGk=", true),
            ("byte", "a b", false),
            ("uuid", "6d5a7c52-4b2e-4a4b-9c5e-0a1b2c3d4e5f", true),
            ("made-up", "anything", true),
        ] {
            assert_eq!(text_has(format, text), good, "{format} {text}");
        }
    }
}
