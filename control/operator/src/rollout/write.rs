//! Writes statuses of rollouts: one at a time, of each rollout only the newest.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_api::MANAGER;
use hyperion_api::rollout::{HyperionRollout, HyperionRolloutStatus};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Time for one.
const ANSWER: Duration = Duration::from_secs(5);
/// Wait after a failure.
const BACKOFF: Duration = Duration::from_secs(1);

/// A status that the API holds.
#[derive(Debug)]
pub struct Stored {
    /// Name of the rollout.
    pub name: String,
    /// Its uid.
    pub uid: Option<String>,
    /// What was written.
    pub status: HyperionRolloutStatus,
}

/// Takes statuses until `stop`, and says in `stored` which the API holds.
pub async fn run(
    client: kube::Client,
    mut asked: mpsc::UnboundedReceiver<Vec<(String, HyperionRolloutStatus)>>,
    stored: mpsc::UnboundedSender<Stored>,
    stop: CancellationToken,
) {
    let api: Api<HyperionRollout> = Api::all(client);
    let mut waiting: BTreeMap<String, HyperionRolloutStatus> = BTreeMap::new();
    loop {
        if waiting.is_empty() {
            let more = tokio::select! {
                more = asked.recv() => more,
                () = stop.cancelled() => None,
            };
            let Some(more) = more else { return };
            waiting.extend(more);
        }
        while let Ok(more) = asked.try_recv() {
            waiting.extend(more);
        }
        let Some((name, status)) = waiting.pop_first() else {
            continue;
        };
        let written = tokio::select! {
            written = write(&api, &name, &status) => written,
            () = stop.cancelled() => return,
        };
        match written {
            Ok(Some(uid)) => {
                // The leader's loop ends with the leader.
                let _ = stored.send(Stored { name, uid, status });
            }
            // Deleted meanwhile.
            Ok(None) => {}
            Err(error) => {
                warn!(rollout = name, error, "cannot write HyperionRollout status");
                waiting.entry(name).or_insert(status);
                tokio::select! {
                    () = tokio::time::sleep(BACKOFF) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

/// The uid of the rollout that was written; none where there is none of that name.
async fn write(
    api: &Api<HyperionRollout>,
    name: &str,
    status: &HyperionRolloutStatus,
) -> Result<Option<Option<String>>, String> {
    let body = json!({
        "apiVersion": "hyperion.io/v1alpha1",
        "kind": "HyperionRollout",
        "metadata": { "name": name },
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&body);
    match tokio::time::timeout(ANSWER, api.patch_status(name, &params, &patch)).await {
        Ok(Ok(object)) => Ok(Some(object.metadata.uid)),
        Ok(Err(kube::Error::Api(e))) if e.code == 404 => Ok(None),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}
