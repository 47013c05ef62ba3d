//! Text for people: cleaning what comes from outside, fitting it into columns, units.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Longest string kept of a name or a message, in characters.
const MAX_CHARS: usize = 2000;

/// What a piece of text means, for colour and weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// Less important.
    Dim,
    /// More important.
    Strong,
    /// Healthy.
    Good,
    /// Look at it.
    Warn,
    /// Broken.
    Bad,
    /// Ours: titles, links, selected things.
    Accent,
}

impl Tone {
    /// SGR parameters for the command line; empty for plain text.
    #[must_use]
    pub fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "2",
            Self::Strong => "1",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Accent => "36",
        }
    }
}

/// A line of text in pieces.
pub type Line = Vec<(Tone, String)>;

/// A line for a plain or a colour terminal.
#[must_use]
pub fn render_line(line: &[(Tone, String)], colour: bool) -> String {
    let mut out = String::new();
    for (tone, text) in line {
        match tone.sgr() {
            code if colour && !code.is_empty() => {
                out.push_str("\x1b[");
                out.push_str(code);
                out.push('m');
                out.push_str(text);
                out.push_str("\x1b[0m");
            }
            _ => out.push_str(text),
        }
    }
    out
}

/// Characters that must not reach a terminal: controls, and what changes direction or has no
/// width (two names that look the same, or text that runs backwards).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// The string without anything that could drive a terminal; line breaks and tabs become
/// blanks, other unsafe characters vanish, long strings are cut.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    let good = text.len() <= MAX_CHARS && !text.chars().any(is_unsafe);
    if good {
        return Cow::Borrowed(text);
    }
    let safe = text.chars().take(MAX_CHARS).filter_map(|c| match c {
        '\n' | '\r' | '\t' => Some(' '),
        c if is_unsafe(c) => None,
        c => Some(c),
    });
    Cow::Owned(safe.collect())
}

/// [`clean`] in place.
pub fn clean_in_place(text: &mut String) {
    if let Cow::Owned(cleaned) = clean(text) {
        *text = cleaned;
    }
}

/// Columns that a string takes.
#[must_use]
pub fn width(text: &str) -> usize {
    text.width()
}

/// The string cut to `max` columns, with an ellipsis where something is missing.
#[must_use]
pub fn fit(text: &str, max: usize) -> Cow<'_, str> {
    if text.width() <= max {
        return Cow::Borrowed(text);
    }
    if max == 0 {
        return Cow::Borrowed("");
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w > max - 1 {
            break;
        }
        used += w;
        out.push(c);
    }
    out.push('…');
    Cow::Owned(out)
}

/// Words of a text in lines of at most `max` columns; longer words are cut.
#[must_use]
pub fn wrap(text: &str, max: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let word = fit(word, max);
        if !line.is_empty() && line.width() + 1 + word.width() > max {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// The string in exactly `columns` columns.
#[must_use]
pub fn pad(text: &str, columns: usize, right: bool) -> String {
    let text = fit(text, columns);
    let blanks = " ".repeat(columns.saturating_sub(text.width()));
    if right {
        format!("{blanks}{text}")
    } else {
        format!("{text}{blanks}")
    }
}

/// `12,345`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// US dollars: three decimals below ten, else two and grouped. Nonsense is a dash.
#[must_use]
pub fn dollars(amount: f64) -> String {
    if !amount.is_finite() || amount < 0.0 {
        return "–".to_owned();
    }
    if amount == 0.0 {
        return "$0".to_owned();
    }
    if amount < 10.0 {
        return format!("${amount:.3}");
    }
    let cents = (amount * 100.0).round();
    let whole = (cents / 100.0).trunc();
    format!("${}.{:02}", grouped(whole as u64), (cents % 100.0) as u64)
}

/// Binary units, three digits: `1.5Gi`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// A Kubernetes quantity as people say it: `24684084Ki` is `23.5Gi`, `2000m` is `2`. What is not
/// understood stays as it is.
#[must_use]
pub fn quantity(amount: &str) -> Cow<'_, str> {
    let number = |suffix: &str| amount.strip_suffix(suffix)?.parse::<u64>().ok();
    if let Some(kib) = number("Ki") {
        Cow::Owned(bytes(kib.saturating_mul(1024)))
    } else if let Some(thousandths) = number("m") {
        let whole = thousandths as f64 / 1000.0;
        Cow::Owned(format!("{}", (whole * 10.0).round() / 10.0))
    } else {
        Cow::Borrowed(amount)
    }
}

/// A percentage without decimals; nonsense is a dash.
#[must_use]
pub fn percent(value: f32) -> String {
    if value.is_finite() && value >= 0.0 {
        format!("{:.0}%", value.min(999.0))
    } else {
        "–".to_owned()
    }
}

/// Milliseconds with a sensible number of digits; nonsense is a dash.
#[must_use]
pub fn millis(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        "–".to_owned()
    } else if value < 10.0 {
        format!("{value:.1}ms")
    } else if value < 10_000.0 {
        format!("{value:.0}ms")
    } else {
        age((value / 1000.0) as i64)
    }
}

/// A duration in seconds as Kubernetes tables show it, in at most five characters: `45s`, `12m`,
/// `3h20m`, `2d14h`, `40d`.
#[must_use]
pub fn age(seconds: i64) -> String {
    let s = seconds.max(0);
    let two = |big: i64, unit: char, small: i64, sub: char| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{sub}")
        }
    };
    match s {
        0..=119 => format!("{s}s"),
        120..=599 => two(s / 60, 'm', s % 60, 's'),
        600..=7199 => format!("{}m", s / 60),
        7200..=35_999 => two(s / 3600, 'h', s / 60 % 60, 'm'),
        36_000..=86_399 => format!("{}h", s / 3600),
        86_400..=691_199 => two(s / 86_400, 'd', s / 3600 % 24, 'h'),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_drives_a_terminal_survives_cleaning() {
        let evil = "a\x1b]0;owned\x07b\x1b[2Jc\u{9b}31md\u{202e}e\u{200b}f\ng";
        assert_eq!(clean(evil), "a]0;ownedb[2Jc31mdef g");
        assert!(matches!(clean("node-1 ü 日本"), Cow::Borrowed(_)));
        assert_eq!(clean(&"x".repeat(9000)).chars().count(), MAX_CHARS);
    }

    #[test]
    fn wide_characters_are_never_cut_in_half() {
        assert_eq!(fit("日本語の名前", 5), "日本…");
        assert_eq!(width(&pad("日本語の名前", 6, false)), 6);
        assert_eq!(fit("abc", 0), "");
    }

    #[test]
    fn units_read_well() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(dollars(0.526), "$0.526");
        assert_eq!(dollars(12_345.678), "$12,345.68");
        assert_eq!(dollars(f64::NAN), "–");
        assert_eq!(dollars(0.0), "$0");
        assert_eq!(quantity("24684084Ki"), "23.5Gi");
        assert_eq!(quantity("2000m"), "2");
        assert_eq!(quantity("1500m"), "1.5");
        assert_eq!(quantity("8Gi"), "8Gi");
        assert_eq!(quantity("-5m"), "-5m");
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(8 << 30), "8.0Gi");
        assert_eq!(bytes(u64::MAX), "16384Pi");
        assert_eq!(percent(f32::NAN), "–");
        assert_eq!(millis(f64::INFINITY), "–");
        assert_eq!(age(59), "59s");
        assert_eq!(age(-5), "0s");
        assert_eq!(age(3 * 3600 + 1200), "3h20m");
        assert_eq!(age(90_000), "1d1h");
    }

    #[test]
    fn wrapping_cuts_words_that_are_too_long() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4), ["abc…"]);
    }
}
