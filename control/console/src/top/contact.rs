//! Whether the control plane answers, and how old what is shown is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::event::Channel;
use crate::fleet::column::Mark;
use crate::text::{self, Tone, clean};

/// What is known of every channel.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Contact {
    /// Last answer, milliseconds since 1970.
    answered: BTreeMap<Channel, i64>,
    /// What is wrong now.
    problems: BTreeMap<Channel, String>,
}

impl Contact {
    /// An answer came.
    pub fn reached(&mut self, channel: Channel, now_ms: i64) {
        self.answered.insert(channel, now_ms);
        self.problems.remove(&channel);
    }

    /// No answer came, or a refusal.
    pub fn failed(&mut self, channel: Channel, cause: &str) {
        self.problems.insert(channel, clean(cause).into_owned());
    }

    /// Nothing came in yet, good or bad.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.answered.is_empty() && self.problems.is_empty()
    }

    fn since(&self, channel: Channel, now_ms: i64) -> Option<String> {
        let at = self.answered.get(&channel)?;
        Some(text::age(now_ms.saturating_sub(*at) / 1000))
    }

    /// The state in a word or two, for the title.
    #[must_use]
    pub fn status(&self, now_ms: i64) -> (Mark, Tone, String) {
        if self.problems.contains_key(&Channel::Api) {
            let age = self.since(Channel::Api, now_ms);
            let text = age.map_or_else(
                || "unreachable".to_owned(),
                |age| format!("unreachable {age}"),
            );
            return (Mark::Bad, Tone::Bad, text);
        }
        if !self.problems.is_empty() {
            return (Mark::Half, Tone::Warn, "incomplete".to_owned());
        }
        if self.answered.contains_key(&Channel::Live) {
            (Mark::Good, Tone::Good, "live".to_owned())
        } else {
            (Mark::Unknown, Tone::Warn, "connecting".to_owned())
        }
    }

    /// What a person must know before believing the screen.
    #[must_use]
    pub fn notice(&self, now_ms: i64) -> Option<(Mark, Tone, String)> {
        let (channel, cause) = self.problems.iter().next()?;
        let age = self.since(*channel, now_ms);
        let text = match (channel, age) {
            (Channel::Api, Some(age)) => {
                format!("Control plane unreachable; this is {age} old: {cause}")
            }
            (Channel::Api, None) => format!("Control plane unreachable: {cause}"),
            (Channel::Live, Some(age)) => {
                format!("No live telemetry; values are {age} old: {cause}")
            }
            (Channel::Live, None) => format!("No live telemetry: {cause}"),
            (other, Some(age)) => {
                format!("Cannot watch {}; they are {age} old: {cause}", other.name())
            }
            (other, None) => format!("Cannot watch {}: {cause}", other.name()),
        };
        Some(if *channel == Channel::Api {
            (Mark::Bad, Tone::Bad, text)
        } else {
            (Mark::Half, Tone::Warn, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_control_plane_is_said_with_the_age_of_the_state() {
        let mut contact = Contact::default();
        contact.reached(Channel::Api, 1_000);
        contact.failed(Channel::Live, "503");
        contact.failed(Channel::Api, "connection refused");
        let (mark, _, text) = contact.notice(46_000).unwrap();
        assert_eq!(mark, Mark::Bad);
        assert!(text.contains("45s old: connection refused"), "{text}");
        assert_eq!(contact.status(46_000).2, "unreachable 45s");
        contact.reached(Channel::Api, 47_000);
        assert!(
            contact
                .notice(47_000)
                .unwrap()
                .2
                .starts_with("No live telemetry")
        );
        contact.reached(Channel::Live, 47_000);
        assert!(contact.notice(47_000).is_none());
    }
}
