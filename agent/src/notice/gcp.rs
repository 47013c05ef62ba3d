//! Google Cloud: two values of the metadata server, each waited for. An answer without the server's
//! own header comes from somebody else, a captive portal for example, and is none.

use std::time::Duration;

use hyperion_proto::agent_v1::{Interruption, InterruptionKind};

use super::ask::{Client, Trouble, odd, words};
use super::feed::{now_ms, soon};

const FLAVOR: &str = "metadata-flavor";
/// How long the server waits for a change before it says the same again, seconds.
const WAIT: u32 = 50;
/// Longer than that.
const PATIENCE: Duration = Duration::from_secs(60);
/// A machine that is preempted ends 30 s after it is told.
const PREEMPTED: Duration = Duration::from_secs(30);
/// A machine that can't be moved for maintenance is told 60 s before; one with GPUs an hour before,
/// which nothing here tells.
const MAINTENANCE: Duration = Duration::from_secs(60);

/// Which value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// `instance/preempted`.
    Preempted,
    /// `instance/maintenance-event`.
    Maintenance,
}

/// One of the two values.
#[derive(Debug)]
pub(super) struct Gcp {
    client: Client,
    value: Value,
    etag: Option<String>,
    /// Deadline of the notice that stands: the server names none, so it counts from the first word.
    deadline: Option<i64>,
}

impl Gcp {
    pub fn new(client: Client, value: Value) -> Self {
        Self {
            client,
            value,
            etag: None,
            deadline: None,
        }
    }

    /// The next question is answered at once.
    pub fn ask_at_once(&mut self) {
        self.etag = None;
    }

    pub async fn ask(&mut self) -> Result<Vec<Interruption>, Trouble> {
        let path = match self.value {
            Value::Preempted => "/computeMetadata/v1/instance/preempted",
            Value::Maintenance => "/computeMetadata/v1/instance/maintenance-event",
        };
        // The first is answered at once: a change before it would be waited for in vain.
        let target = self.etag.as_ref().map_or_else(
            || path.to_owned(),
            |etag| format!("{path}?wait_for_change=true&timeout_sec={WAIT}&last_etag={etag}"),
        );
        let headers = [(FLAVOR, "Google")];
        let answer = self.client.get(&target, &headers, PATIENCE).await?;
        let answer = answer.ok_or_else(|| odd(path, "status 404"))?;
        let google = answer.headers.get(FLAVOR);
        if google.is_none_or(|flavor| flavor != "Google") {
            return Err(odd(path, "the answer is not the metadata server's"));
        }
        let etag = answer.headers.get("etag").and_then(|e| e.to_str().ok());
        let sane = |e: &&str| e.len() <= 64 && e.bytes().all(|b| b.is_ascii_alphanumeric());
        self.etag = etag.filter(sane).map(str::to_owned);
        let said = answer.body.trim();
        let notice = match (self.value, said) {
            (Value::Preempted, "TRUE") => Some((InterruptionKind::Spot, PREEMPTED)),
            (Value::Maintenance, "TERMINATE_ON_HOST_MAINTENANCE") => {
                Some((InterruptionKind::Maintenance, MAINTENANCE))
            }
            // Moved while it runs: containers go on.
            (Value::Maintenance, "NONE" | "MIGRATE_ON_HOST_MAINTENANCE")
            | (Value::Preempted, "FALSE") => None,
            _ => return Err(odd(path, format!("{:?} is no known word", words(said)))),
        };
        let Some((kind, lead)) = notice else {
            self.deadline = None;
            return Ok(Vec::new());
        };
        let deadline = *self.deadline.get_or_insert_with(|| soon(now_ms(), lead));
        let name = path.rsplit('/').next().unwrap_or(path);
        Ok(vec![Interruption {
            kind: kind.into(),
            deadline_unix_ms: deadline,
            id: format!("{name} {deadline}"),
            detail: words(&format!("gcp {name}: {said}")),
        }])
    }
}
