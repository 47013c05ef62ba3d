//! Azure: scheduled events. The first question switches the service on, which may take two minutes;
//! it goes off by itself when nobody asks for a day.
//!
//! Events are never acknowledged. That would start the event at once, for every machine that it
//! names, and other machines' replicas are not this one's to end; without it the time that is named
//! stands, and replicas have all of it.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_proto::agent_v1::{Interruption, InterruptionKind};
use serde::Deserialize;

use super::ask::{Client, Trouble, odd, words};
use super::feed::{now_ms, read_http_date};

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
/// While the service is switched on.
const FIRST: Duration = Duration::from_secs(130);
const PATIENCE: Duration = Duration::from_secs(10);
/// Notices of one machine that are believed.
const MOST: usize = 16;

/// Scheduled events of this machine.
#[derive(Debug)]
pub(super) struct Azure {
    client: Client,
    /// Name of this machine: a document names those of others, too.
    name: Option<String>,
    answered: bool,
    /// Time of each event: one that has started no longer says when it was to.
    times: BTreeMap<String, i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_id: String,
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    event_status: String,
    #[serde(default)]
    not_before: Option<String>,
    #[serde(default)]
    description: Option<String>,
}

impl Azure {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            name: None,
            answered: false,
            times: BTreeMap::new(),
        }
    }

    pub async fn ask(&mut self) -> Result<Vec<Interruption>, Trouble> {
        let name = self.name().await?;
        let patience = if self.answered { PATIENCE } else { FIRST };
        let headers = [("metadata", "true")];
        let answer = self.client.get(EVENTS, &headers, patience).await?;
        let answer = answer.ok_or_else(|| odd(EVENTS, "status 404"))?;
        let document: Document = serde_json::from_str(&answer.body).map_err(|e| odd(EVENTS, e))?;
        self.answered = true;
        let ours = |event: &&Event| {
            event
                .resources
                .iter()
                .any(|r| r.eq_ignore_ascii_case(&name))
        };
        let (mut notices, mut times) = (Vec::new(), BTreeMap::new());
        for event in document.events.iter().filter(ours).take(MOST) {
            let before = self.times.get(&event.event_id).copied();
            if let Some(notice) = notice(event, before)? {
                times.insert(event.event_id.clone(), notice.deadline_unix_ms);
                notices.push(notice);
            }
        }
        self.times = times;
        Ok(notices)
    }

    async fn name(&mut self) -> Result<String, Trouble> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let headers = [("metadata", "true")];
        let answer = self.client.get(NAME, &headers, PATIENCE).await?;
        let name = answer.map(|a| a.body.trim().to_owned()).unwrap_or_default();
        if name.is_empty() || name.len() > 256 {
            return Err(odd(NAME, "the answer is no name"));
        }
        self.name = Some(name.clone());
        Ok(name)
    }
}

/// What an event means for the containers of its machine; none where nothing. `before` is the time
/// that was known of it.
fn notice(event: &Event, before: Option<i64>) -> Result<Option<Interruption>, Trouble> {
    let kind = match event.event_type.as_str() {
        "Preempt" => InterruptionKind::Spot,
        "Reboot" | "Redeploy" | "Terminate" => InterruptionKind::Maintenance,
        // Freeze: the machine pauses for some seconds. Others are of a newer service.
        _ => return Ok(None),
    };
    let deadline = match event.event_status.as_str() {
        "Scheduled" => {
            let time = event.not_before.as_deref().filter(|t| !t.is_empty());
            let time = time.and_then(read_http_date);
            time.ok_or_else(|| odd(EVENTS, "NotBefore is no time"))?
        }
        "Started" => before.unwrap_or_else(now_ms),
        // Completed and Canceled ones may be named for a while.
        _ => return Ok(None),
    };
    let what = event.description.as_deref().unwrap_or_default();
    let (type_, status) = (&event.event_type, &event.event_status);
    Ok(Some(Interruption {
        kind: kind.into(),
        deadline_unix_ms: deadline,
        id: words(&event.event_id),
        detail: words(&format!("azure {type_} {status} {what}"))
            .trim()
            .to_owned(),
    }))
}
