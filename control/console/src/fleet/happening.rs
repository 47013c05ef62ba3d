//! Kubernetes events about our objects. Called happenings here, because `Event` is what drives
//! the TUI's state.

use std::cmp::Ordering;

use k8s_openapi::api::core::v1::Event;
use serde::{Deserialize, Serialize};

use super::column::{Cell, Column, Context, Mark, Row};
use super::millis_of;
use crate::text::{Tone, clean_in_place};

/// An event.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Happening {
    /// `namespace/name` of the event.
    pub key: String,
    /// Last time it happened.
    pub at_ms: i64,
    /// Type is Warning.
    pub warning: bool,
    /// Kind of the object, without `Hyperion`, lower case.
    pub kind: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub object: String,
    /// Reason.
    pub reason: String,
    /// Message.
    pub message: String,
    /// How often.
    pub count: i32,
    #[serde(skip)]
    pub(crate) haystack: String,
}

impl Happening {
    /// From an API object; none if it is not about one of our kinds.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let about = &event.involved_object;
        let kind = about
            .kind
            .as_deref()?
            .strip_prefix("Hyperion")?
            .to_lowercase();
        let micro =
            |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime| t.0.as_millisecond();
        let series = event.series.as_ref();
        let at_ms = series
            .and_then(|s| s.last_observed_time.as_ref())
            .map(micro)
            .or_else(|| event.last_timestamp.as_ref().map(millis_of))
            .or_else(|| event.event_time.as_ref().map(micro))
            .or_else(|| event.metadata.creation_timestamp.as_ref().map(millis_of))
            .unwrap_or_default();
        Some(Self {
            key: format!(
                "{}/{}",
                event.metadata.namespace.as_deref().unwrap_or_default(),
                event.metadata.name.as_deref().unwrap_or_default()
            ),
            at_ms,
            warning: event.type_.as_deref() == Some("Warning"),
            kind,
            namespace: about.namespace.clone().unwrap_or_default(),
            object: about.name.clone().unwrap_or_default(),
            reason: event.reason.clone().unwrap_or_default(),
            message: event.message.clone().unwrap_or_default(),
            count: series.and_then(|s| s.count).or(event.count).unwrap_or(1),
            haystack: String::new(),
        })
    }

    /// Cleans every string and prepares the filter's text.
    pub fn prepare(&mut self) {
        for text in [
            &mut self.key,
            &mut self.kind,
            &mut self.namespace,
            &mut self.object,
            &mut self.reason,
            &mut self.message,
        ] {
            clean_in_place(text);
        }
        let type_ = if self.warning { "warning" } else { "normal" };
        self.haystack = format!(
            "{type_} {} {} {} {}",
            self.kind, self.object, self.reason, self.message
        )
        .to_lowercase();
    }
}

impl Row for Happening {
    const COLUMNS: &'static [Column] = &[
        Column::number("AGE", 'a', 5, 6, 0),
        Column::text("TYPE", 't', 9, 9, 1),
        Column::text("OBJECT", 'o', 20, 44, 0),
        Column::text("REASON", 'e', 12, 18, 0),
        Column::text("MESSAGE", 'm', 14, 400, 0),
        Column::number("COUNT", 'c', 5, 5, 2),
    ];
    const FIRST_SORT: (usize, bool) = (0, false);

    fn id(&self) -> &str {
        &self.key
    }

    fn haystack(&self) -> &str {
        &self.haystack
    }

    fn cell(&self, column: usize, context: Context) -> Cell {
        match column {
            0 => context.age(Some(self.at_ms)),
            1 if self.warning => Cell::marked(Mark::Bad, "Warning", Tone::Warn),
            1 => Cell::marked(Mark::Good, "Normal", Tone::Dim),
            2 => Cell::toned(format!("{}/{}", self.kind, self.object), Tone::Strong),
            3 => Cell::plain(&*self.reason),
            4 => Cell::toned(
                &*self.message,
                if self.warning {
                    Tone::Warn
                } else {
                    Tone::Plain
                },
            ),
            _ => Cell::toned(
                self.count.to_string(),
                if self.count > 1 {
                    Tone::Plain
                } else {
                    Tone::Dim
                },
            ),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        match column {
            0 => other.at_ms.cmp(&self.at_ms),
            1 => other.warning.cmp(&self.warning),
            2 => (&self.kind, &self.object).cmp(&(&other.kind, &other.object)),
            3 => self.reason.cmp(&other.reason),
            4 => self.message.cmp(&other.message),
            _ => self.count.cmp(&other.count),
        }
    }
}
