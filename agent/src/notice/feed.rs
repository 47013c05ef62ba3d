//! Asks a metadata service again and again. A service that is not there, hangs or says nonsense costs
//! one warning and a question now and then; what it said before stands until it says otherwise.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyperion_proto::agent_v1::Interruption;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Cloud;
use super::Whole;
use super::ask::{Base, Client, Trouble};
use super::aws::Aws;
use super::azure::Azure;
use super::gcp::{Gcp, Value};

/// Longest wait after failures of a service that has answered before: a notice may come half a
/// minute ahead.
const KNOWN: Duration = Duration::from_secs(10);
/// The same of one that never has.
const UNKNOWN: Duration = Duration::from_secs(300);
/// A time that is further ahead is none.
const FAR: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is asked.
#[derive(Debug)]
pub(super) enum Source {
    Aws(Aws),
    Gcp(&'static str, Gcp),
    Azure(Azure),
}

/// All that is asked of a cloud.
pub(super) fn sources(cloud: Cloud, base: &Base) -> Vec<Source> {
    match cloud {
        Cloud::Aws => vec![Source::Aws(Aws::new(Client::new(base, "169.254.169.254")))],
        Cloud::Gcp => {
            let client = Client::new(base, "metadata.google.internal");
            vec![
                Source::Gcp("preempted", Gcp::new(client.clone(), Value::Preempted)),
                Source::Gcp("maintenance", Gcp::new(client, Value::Maintenance)),
            ]
        }
        Cloud::Azure => vec![Source::Azure(Azure::new(Client::new(
            base,
            "169.254.169.254",
        )))],
    }
}

impl Source {
    const fn name(&self) -> &'static str {
        match self {
            Self::Aws(_) => "aws",
            Self::Gcp(name, _) => name,
            Self::Azure(_) => "azure",
        }
    }

    /// Time between questions: what the clouds recommend. Google's server waits itself.
    const fn pause(&self) -> Duration {
        match self {
            Self::Aws(_) => Duration::from_secs(5),
            Self::Gcp(..) | Self::Azure(_) => Duration::from_secs(1),
        }
    }

    async fn ask(&mut self) -> Result<Vec<Interruption>, Trouble> {
        match self {
            Self::Aws(aws) => aws.ask().await,
            Self::Gcp(_, gcp) => gcp.ask().await,
            Self::Azure(azure) => azure.ask().await,
        }
    }
}

/// Follows one source until `stop`.
pub(super) async fn follow(mut source: Source, whole: Whole, stop: CancellationToken) {
    let mut state = State::default();
    loop {
        let said = tokio::select! {
            said = source.ask() => said,
            () = stop.cancelled() => return,
        };
        let pause = state.take(&mut source, said, &whole);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What is known of a source.
#[derive(Debug, Default)]
pub(super) struct State {
    answered: bool,
    failures: u32,
    /// What it said last, where that was believed.
    held: Vec<Interruption>,
    /// It has just said less than before: that is believed when it says so again.
    doubted: bool,
}

impl State {
    /// Takes an answer, or that there was none; returns how long to wait.
    pub fn take(
        &mut self,
        source: &mut Source,
        said: Result<Vec<Interruption>, Trouble>,
        whole: &Whole,
    ) -> Duration {
        let cloud = whole.cloud.as_str();
        let said = match said {
            Ok(said) => said,
            Err(trouble) => return self.failed(source, &trouble, cloud),
        };
        if self.failures > 0 && self.answered {
            info!(cloud, "the metadata service answers again");
        }
        (self.failures, self.answered) = (0, true);
        let withdrawn = |held: &Interruption| !said.iter().any(|s| s.id == held.id);
        if !self.doubted && self.held.iter().any(withdrawn) {
            self.doubted = true;
            if let Source::Gcp(_, gcp) = source {
                gcp.ask_at_once();
            }
        } else {
            self.doubted = false;
            self.held.clone_from(&said);
            whole.set(source.name(), said);
        }
        source.pause()
    }

    fn failed(&mut self, source: &Source, trouble: &Trouble, cloud: &str) -> Duration {
        if self.failures == 0 {
            warn!(cloud, error = %trouble, "the metadata service does not answer as it should: notices of interruption may be missed");
        } else {
            debug!(cloud, error = %trouble, "metadata service");
        }
        self.failures = self.failures.saturating_add(1);
        let most = if self.answered { KNOWN } else { UNKNOWN };
        let wait = source.pause() * 2_u32.saturating_pow(self.failures.min(16));
        wait.min(most)
    }
}

/// The wall clock, Unix milliseconds.
pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// `lead` after `from`.
pub(super) fn soon(from: i64, lead: Duration) -> i64 {
    from.saturating_add(i64::try_from(lead.as_millis()).unwrap_or(i64::MAX))
}

/// A time as AWS writes it, Unix milliseconds.
pub(super) fn read_rfc3339(text: &str) -> Option<i64> {
    humantime::parse_rfc3339(text.trim()).ok().and_then(told)
}

/// A time as Azure writes it, Unix milliseconds.
pub(super) fn read_http_date(text: &str) -> Option<i64> {
    httpdate::parse_http_date(text.trim()).ok().and_then(told)
}

/// A time that has passed stands: what it announces is due. One that is too far ahead is none.
fn told(time: SystemTime) -> Option<i64> {
    let told = time.duration_since(UNIX_EPOCH).ok()?.as_millis();
    let told = i64::try_from(told).ok()?;
    (1..=soon(now_ms(), FAR)).contains(&told).then_some(told)
}
