//! Leader election with a Lease: one control plane decides, others stand by.
//!
//! Clocks are not compared: a lease has run out when it was seen unchanged for its whole duration.
//! The same identity, back after a crash, takes its lease over at once.

use std::time::{Duration, Instant};

use hyperion_api::NAMESPACE;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::Instant as Clock;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Name of the Lease.
pub const LEASE: &str = "hyperion-control";
/// How long others wait for a leader that is silent.
const DURATION: Duration = Duration::from_secs(15);
/// How often a leader speaks.
const RENEW: Duration = Duration::from_secs(4);
/// How long a leader goes on that can't renew: less than [`DURATION`], so that it stops before
/// another starts.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How often others look.
const LOOK: Duration = Duration::from_secs(2);

/// A contender for the lease.
pub struct Contender {
    api: Api<Lease>,
    identity: String,
    /// What was seen last, and since when it has been so.
    seen: Option<(LeaseSpec, Instant)>,
    /// When the last request that took or renewed the lease began: others count from some time
    /// after that.
    asked: Clock,
}

impl Contender {
    /// A contender under this identity.
    #[must_use]
    pub fn new(client: &kube::Client, identity: String) -> Self {
        Self {
            api: Api::namespaced(client.clone(), NAMESPACE),
            identity,
            seen: None,
            asked: Clock::now(),
        }
    }

    /// Waits until the lease is held; false where `stop` came first.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        let mut told = false;
        loop {
            let asked = Clock::now();
            match self.attempt(asked.into_std()).await {
                Ok(true) => {
                    self.asked = asked;
                    return true;
                }
                Ok(false) if !told => {
                    let holder = self
                        .seen
                        .as_ref()
                        .and_then(|(s, _)| s.holder_identity.clone());
                    info!(holder, "another control plane leads; standing by");
                    told = true;
                }
                Ok(false) => {}
                Err(e) => warn!(error = %e, "lease"),
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Renews the lease until it is lost or `stop` comes.
    pub async fn hold(&mut self, stop: &CancellationToken) {
        loop {
            let end = self.asked + GIVE_UP;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(end.min(Clock::now() + RENEW)) => {}
            }
            let asked = Clock::now();
            let left = end.saturating_duration_since(asked);
            if left.is_zero() {
                warn!("the lease could not be renewed for {GIVE_UP:?}");
                return;
            }
            let attempt = self.attempt(asked.into_std());
            let answer = tokio::time::timeout(left.min(RENEW), attempt).await;
            match answer {
                Ok(Ok(true)) => self.asked = asked,
                Ok(Ok(false)) => {
                    warn!("the lease was taken over by another control plane");
                    return;
                }
                Ok(Err(e)) => warn!(error = %e, "cannot renew the lease"),
                Err(_) => warn!("cannot renew the lease: no answer"),
            }
        }
    }

    /// Gives the lease back, so that another can take it at once.
    pub async fn release(&mut self) {
        let release = async {
            let Some(mut lease) = self.api.get_opt(LEASE).await? else {
                return Ok(());
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                self.api
                    .replace(LEASE, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(Duration::from_secs(2), release).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!(error = %e, "cannot give the lease back"),
            Err(_) => warn!("cannot give the lease back: no answer"),
        }
    }

    async fn attempt(&mut self, now: Instant) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(LEASE).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(LEASE.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.claim(None)),
            };
            return taken(
                self.api
                    .create(&PostParams::default(), &lease)
                    .await
                    .map(drop),
            );
        };
        let held = lease.spec.clone().unwrap_or_default();
        if !self.free(&held, now) {
            return Ok(false);
        }
        lease.spec = Some(self.claim(Some(&held)));
        taken(
            self.api
                .replace(LEASE, &PostParams::default(), &lease)
                .await
                .map(drop),
        )
    }

    /// True where the lease may be taken.
    fn free(&mut self, held: &LeaseSpec, now: Instant) -> bool {
        let holder = held.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let since = match &self.seen {
            Some((seen, since)) if seen == held => *since,
            _ => {
                self.seen = Some((held.clone(), now));
                now
            }
        };
        let seconds = held
            .lease_duration_seconds
            .and_then(|s| u64::try_from(s).ok());
        now.duration_since(since) >= seconds.map_or(DURATION, Duration::from_secs)
    }

    fn claim(&self, held: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = held.filter(|h| h.holder_identity.as_deref() == Some(&self.identity));
        let transitions = held.and_then(|h| h.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: mine.map_or_else(|| Some(now.clone()), |m| m.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(mine.is_none() && held.is_some())),
            ..LeaseSpec::default()
        }
    }
}

/// A conflict means that another contender was faster.
fn taken(result: Result<(), kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender() -> Contender {
        let service = tower_service();
        Contender::new(&service, "me".to_owned())
    }

    fn tower_service() -> kube::Client {
        hyperion_gateway::testing::MemoryApi::default().client()
    }

    fn held_by(holder: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test]
    async fn a_lease_runs_out_only_when_seen_unchanged() {
        let mut c = contender();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert!(!c.free(&held_by("other", 0), at(0)));
        assert!(!c.free(&held_by("other", 0), at(14)));
        assert!(!c.free(&held_by("other", 1), at(16)), "it was renewed");
        assert!(c.free(&held_by("other", 1), at(31)));
    }

    #[tokio::test]
    async fn the_same_identity_and_a_released_lease_are_free_at_once() {
        let mut c = contender();
        assert!(c.free(&held_by("me", 0), Instant::now()));
        assert!(c.free(&LeaseSpec::default(), Instant::now()));
    }

    #[tokio::test]
    async fn a_leader_gives_up_in_time_after_the_last_request_that_was_granted() {
        let api = hyperion_gateway::testing::MemoryApi::default();
        let mut c = Contender::new(&api.client(), "me".to_owned());
        let stop = CancellationToken::new();
        assert!(c.acquire(&stop).await);
        let asked = c.asked;
        api.fail_writes_of("leases", true);
        c.hold(&stop).await;
        let held = asked.elapsed();
        assert!(held >= GIVE_UP && held < DURATION, "{held:?}");
    }
}
