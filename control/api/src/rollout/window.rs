//! When nodes may be restarted.

use jiff::civil::{Time as Clock, Weekday};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Invalid;
use crate::intent::duration;

/// Longest window, seconds: a day.
const LONGEST: u64 = 24 * 3600;
/// Shortest window, seconds.
const SHORTEST: u64 = 60;

/// A time of the day on some days of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Days on which it begins; every day where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// When it begins, `HH:MM`.
    pub start: String,
    /// How long it lasts, up to 24h; it may go on after midnight.
    pub duration: String,
    /// Offset of that time from UTC, such as `+02:00` (default UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "each variant is its word")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl From<Day> for Weekday {
    fn from(day: Day) -> Self {
        match day {
            Day::Mon => Self::Monday,
            Day::Tue => Self::Tuesday,
            Day::Wed => Self::Wednesday,
            Day::Thu => Self::Thursday,
            Day::Fri => Self::Friday,
            Day::Sat => Self::Saturday,
            Day::Sun => Self::Sunday,
        }
    }
}

/// A [`Window`], read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hours {
    days: Vec<Weekday>,
    start: Clock,
    length: SignedDuration,
    zone: TimeZone,
}

/// Two digits each, with a colon between.
fn hours_and_minutes(text: &str) -> Option<(i8, i8)> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |t: &str| {
        let plain = t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| t.parse::<i8>().ok()).flatten()
    };
    Some((number(hours)?, number(minutes)?))
}

impl Hours {
    /// Reads a window.
    ///
    /// # Errors
    /// The field of `field` that can't be read.
    pub fn read(field: &str, window: &Window) -> Result<Self, Invalid> {
        let at = |name: &str| format!("{field}.{name}");
        let start = hours_and_minutes(&window.start)
            .and_then(|(h, m)| Clock::new(h, m, 0, 0).ok())
            .ok_or_else(|| {
                let problem = format!("{:?} is no time of the day such as 22:30", window.start);
                Invalid::new(at("start"), problem)
            })?;
        let length = duration(&at("duration"), Some(&window.duration))?.unwrap_or_default();
        if !(SHORTEST..=LONGEST).contains(&length.as_secs()) {
            let problem = format!("{:?} is not between 1m and 24h", window.duration);
            return Err(Invalid::new(at("duration"), problem));
        }
        let zone = match window.offset.as_deref() {
            None | Some("" | "Z" | "UTC") => TimeZone::UTC,
            Some(text) => offset(text).ok_or_else(|| {
                let problem = format!("{text:?} is no offset from UTC such as +02:00");
                Invalid::new(at("offset"), problem)
            })?,
        };
        Ok(Self {
            days: window.days.iter().map(|day| Weekday::from(*day)).collect(),
            start,
            length: SignedDuration::try_from(length).unwrap_or_default(),
            zone,
        })
    }

    /// The last beginning at or before `now`, or the first after it.
    fn begin(&self, now: Timestamp, days: std::ops::RangeInclusive<i64>) -> Vec<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        days.filter_map(|n| {
            let date = today
                .checked_add(jiff::Span::new().try_days(n).ok()?)
                .ok()?;
            if !self.days.is_empty() && !self.days.contains(&date.weekday()) {
                return None;
            }
            let at = date.to_datetime(self.start).to_zoned(self.zone.clone());
            Some(at.ok()?.timestamp())
        })
        .collect()
    }

    /// True within the window.
    #[must_use]
    pub fn open(&self, now: Timestamp) -> bool {
        // One that began yesterday may go on.
        let began = self.begin(now, -1..=0);
        began
            .into_iter()
            .any(|at| at <= now && now.duration_since(at) < self.length)
    }

    /// When it opens next.
    #[must_use]
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.begin(now, 0..=7).into_iter().find(|at| *at > now)
    }
}

fn offset(text: &str) -> Option<TimeZone> {
    let sign = match text.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = hours_and_minutes(text.get(1..)?)?;
    if hours > 14 || minutes > 59 {
        return None;
    }
    let seconds = sign * (i32::from(hours) * 3600 + i32::from(minutes) * 60);
    Some(TimeZone::fixed(Offset::from_seconds(seconds).ok()?))
}
