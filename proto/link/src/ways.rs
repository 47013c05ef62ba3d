//! Two ways to the control plane: the direct one, and one through a peer of the site while the
//! direct one is shut. TLS ends at the control plane on both; the peer carries packets only.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::debug;

use crate::client::{self, ConnectError, Connected, ControlTarget, EnrolError, EnrolRequest};
use crate::identity::Identity;

/// Lead of the direct way over the other one at each attempt.
const HEAD_START: Duration = Duration::from_secs(1);
/// How long the other way is tried after the direct one has failed.
const LAST_TRY: Duration = Duration::from_secs(5);
/// A direct way that is worth taking answers in this time.
const DIRECT_WITHIN: Duration = Duration::from_secs(3);
/// Wait between two attempts on the other way.
const AGAIN: Duration = Duration::from_millis(500);

/// Where the control plane is reached.
#[derive(Clone)]
pub(crate) struct Ways {
    pub(crate) direct: ControlTarget,
    /// `IP:PORT` of a local socket whose packets a peer passes on; none without such a peer.
    pub(crate) via: watch::Receiver<Option<String>>,
}

/// A connection and the way it took; none for the direct one.
pub(crate) struct Reached {
    pub(crate) connected: Connected,
    pub(crate) via: Option<String>,
}

impl Ways {
    fn other(&self) -> Option<ControlTarget> {
        self.via.borrow().clone().map(|addr| self.target(addr))
    }

    fn target(&self, addr: String) -> ControlTarget {
        ControlTarget {
            addr,
            ..self.direct.clone()
        }
    }

    /// Connects on the way that works; the direct one where both do.
    pub(crate) async fn connect(
        &self,
        endpoint: &quinn::Endpoint,
        identity: &Identity,
        transport: Arc<quinn::TransportConfig>,
    ) -> Result<Reached, ConnectError> {
        let direct = client::connect(endpoint, &self.direct, Some(identity), transport.clone());
        let other = self.connect_other(endpoint, identity, transport);
        tokio::pin!(direct, other);
        let failed = tokio::select! {
            biased;
            reached = &mut direct => match reached {
                Ok(connected) => return Ok(Reached { connected, via: None }),
                Err(failed) => failed,
            },
            reached = &mut other => return reached,
        };
        // The control plane has answered, or there is nobody to ask.
        if matches!(failed, ConnectError::Expired(_)) || self.via.borrow().is_none() {
            return Err(failed);
        }
        tokio::time::timeout(LAST_TRY, other)
            .await
            .unwrap_or(Err(failed))
    }

    /// Tries the other way, whenever there is one, until the control plane answers.
    async fn connect_other(
        &self,
        endpoint: &quinn::Endpoint,
        identity: &Identity,
        transport: Arc<quinn::TransportConfig>,
    ) -> Result<Reached, ConnectError> {
        let mut changes = self.via.clone();
        tokio::time::sleep(HEAD_START).await;
        loop {
            let Some(addr) = changes.borrow_and_update().clone() else {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            let target = self.target(addr.clone());
            match client::connect(endpoint, &target, Some(identity), transport.clone()).await {
                Ok(connected) => {
                    let via = Some(addr);
                    return Ok(Reached { connected, via });
                }
                Err(e @ ConnectError::Expired(_)) => return Err(e),
                Err(e) => debug!(error = %e, "no link through the peer"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Enrols again with the old key: through the peer first where there is one, since then the
    /// direct way was shut a moment ago.
    pub(crate) async fn re_enrol(
        &self,
        identity: &Identity,
        describe: EnrolRequest,
    ) -> Result<Identity, EnrolError> {
        if let Some(other) = self.other() {
            match client::re_enrol(&other, identity, describe.clone()).await {
                Err(EnrolError::Connect(e)) => debug!(error = %e, "no link through the peer"),
                answered => return answered,
            }
        }
        client::re_enrol(&self.direct, identity, describe).await
    }

    /// Ends when the way that a session took is no longer there; never on the direct one.
    pub(crate) async fn lost(&mut self, via: Option<&String>) {
        let Some(used) = via else {
            return std::future::pending().await;
        };
        // Without a sender the way stays as it is.
        if self
            .via
            .wait_for(|now| now.as_ref() != Some(used))
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when a way through a peer appears that was not there before.
    pub(crate) async fn appears(&mut self) {
        let before = self.via.borrow_and_update().clone();
        if self
            .via
            .wait_for(|now| now.is_some() && *now != before)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when the direct way works again; asked every so often.
    pub(crate) async fn direct_works(
        &self,
        every: Duration,
        endpoint: &quinn::Endpoint,
        identity: &Identity,
        transport: Arc<quinn::TransportConfig>,
    ) {
        loop {
            tokio::time::sleep(every).await;
            let attempt =
                client::connect(endpoint, &self.direct, Some(identity), transport.clone());
            match tokio::time::timeout(DIRECT_WITHIN, attempt).await {
                Ok(Ok(_)) => return,
                Ok(Err(e)) => debug!(error = %e, "the direct way is still shut"),
                Err(_) => debug!("the direct way says nothing"),
            }
        }
    }
}
