//! What a HyperionCluster says of itself: conditions and events, written only when they change.

use std::time::Duration;

use hyperion_api::cluster::{HyperionCluster, HyperionClusterStatus};
use hyperion_api::{MANAGER, conditions};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connect::Trouble;
use crate::events::{Note, Publisher};

/// Two writes are at least this far apart.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time for one.
const ANSWER: Duration = Duration::from_secs(5);

/// A cluster's status.
pub struct Health {
    status: watch::Sender<HyperionClusterStatus>,
    publisher: Publisher,
    about: ObjectReference,
    generation: Option<i64>,
}

/// A cluster, as events name it.
#[must_use]
pub fn about(cluster: &HyperionCluster) -> ObjectReference {
    ObjectReference {
        api_version: Some("hyperion.io/v1alpha1".to_owned()),
        kind: Some("HyperionCluster".to_owned()),
        name: Some(cluster.name_any()),
        uid: cluster.uid(),
        ..ObjectReference::default()
    }
}

impl Health {
    /// Begins with what the object says.
    #[must_use]
    pub fn start(
        home: &kube::Client,
        cluster: &HyperionCluster,
        publisher: Publisher,
        stop: CancellationToken,
    ) -> Self {
        let held = cluster.status.clone().unwrap_or_default();
        let (status, changes) = watch::channel(held);
        tokio::spawn(write(
            Api::all(home.clone()),
            cluster.name_any(),
            changes,
            stop,
        ));
        Self {
            status,
            publisher,
            about: about(cluster),
            generation: cluster.metadata.generation,
        }
    }

    /// The spec that is acted on from now on.
    pub fn describes(&mut self, cluster: &HyperionCluster) {
        self.generation = cluster.metadata.generation;
    }

    /// The Ready condition; none where nobody can tell yet.
    pub fn ready(&self, ready: Option<bool>, reason: &str, message: &str) {
        let word = match ready {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let before = self.condition(conditions::READY);
        let same = before.is_some_and(|b| b == (word.to_owned(), reason.to_owned()));
        self.change(|status| {
            word.clone_into(&mut status.ready);
            reason.clone_into(&mut status.reason);
            set(
                status,
                conditions::READY,
                (word, reason, message),
                self.generation,
            );
        });
        if same || ready.is_none() {
            return;
        }
        let cluster = self.about.name.as_deref().unwrap_or_default();
        if ready == Some(true) {
            info!(cluster, reason, "cluster is ready");
        } else {
            warn!(cluster, reason, message, "cluster is not ready");
        }
        self.event(ready == Some(false), reason, message);
    }

    /// Nodes that can be used, and those that can't.
    pub fn nodes(&self, (usable, unusable): (usize, usize)) {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        self.change(|status| {
            (status.nodes, status.unusable_nodes) = (number(usable), number(unusable));
        });
    }

    /// Machines that were asked for, and not given back.
    pub fn claims(&self, count: usize) {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        self.change(|status| status.node_claims = count);
    }

    /// Whether machines can be launched; none where none may be.
    pub fn capacity(&self, works: Option<&Result<(), Trouble>>) {
        let held = self.condition(conditions::CAPACITY);
        let (word, reason, message) = match works {
            None => {
                self.change(|status| {
                    status
                        .conditions
                        .retain(|c| c.type_ != conditions::CAPACITY);
                });
                return;
            }
            Some(Ok(())) => ("True", conditions::REASON_CAPACITY_READY, ""),
            Some(Err(trouble)) => ("False", trouble.reason, trouble.message.as_str()),
        };
        self.change(|status| {
            let words = (word, reason, message);
            set(status, conditions::CAPACITY, words, self.generation);
        });
        if held.is_none_or(|h| h != (word.to_owned(), reason.to_owned())) {
            self.event(word == "False", reason, message);
        }
    }

    /// Version of the API server.
    pub fn version(&self, version: &str) {
        self.change(|status| version.clone_into(&mut status.version));
    }

    /// Whether its clock is far from ours.
    pub fn skew(&self, skew: Option<&str>) {
        let held = self.condition(conditions::CLOCK_SKEW).map(|c| c.0);
        let word = if skew.is_some() { "True" } else { "False" };
        // One that never was off need not say so.
        if held.as_deref() == Some(word) || (held.is_none() && skew.is_none()) {
            return;
        }
        let reason = if skew.is_some() {
            "ClocksApart"
        } else {
            "ClocksAgree"
        };
        let message = skew.unwrap_or_default();
        self.change(|status| {
            let words = (word, reason, message);
            set(status, conditions::CLOCK_SKEW, words, self.generation);
        });
        if skew.is_some() {
            self.event(true, reason, message);
        }
    }

    /// Publishes an event on the cluster.
    pub fn event(&self, warning: bool, reason: &str, text: &str) {
        self.publisher.publish(Note {
            about: self.about.clone(),
            warning,
            reason: reason.to_owned(),
            text: if text.is_empty() { reason } else { text }.to_owned(),
            past: None,
        });
    }

    fn condition(&self, type_: &str) -> Option<(String, String)> {
        let status = self.status.borrow();
        let found = status.conditions.iter().find(|c| c.type_ == type_)?;
        Some((found.status.clone(), found.reason.clone()))
    }

    fn change(&self, change: impl FnOnce(&mut HyperionClusterStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

fn set(
    status: &mut HyperionClusterStatus,
    type_: &str,
    (word, reason, message): (&str, &str, &str),
    generation: Option<i64>,
) {
    status.observed_generation = generation;
    let held = status.conditions.iter().find(|c| c.type_ == type_);
    let since = held.filter(|c| c.status == word).map_or_else(
        || Time(Timestamp::now()),
        |c| c.last_transition_time.clone(),
    );
    let fresh = Condition {
        type_: type_.to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: generation,
    };
    match status.conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(held) => *held = fresh,
        None => status.conditions.push(fresh),
    }
}

async fn write(
    api: Api<HyperionCluster>,
    name: String,
    mut changes: watch::Receiver<HyperionClusterStatus>,
    stop: CancellationToken,
) {
    let params = PatchParams::apply(MANAGER).force();
    let mut again = false;
    loop {
        if !again {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
        let status = changes.borrow_and_update().clone();
        let body = json!({
            "apiVersion": "hyperion.io/v1alpha1",
            "kind": "HyperionCluster",
            "metadata": { "name": name },
            "status": status,
        });
        let patch = Patch::Apply(&body);
        let written = tokio::time::timeout(ANSWER, api.patch_status(&name, &params, &patch)).await;
        again = match written {
            Ok(Ok(_)) => false,
            Ok(Err(kube::Error::Api(e))) if e.code == 404 => false,
            Ok(Err(e)) => {
                warn!(cluster = name, error = %e, "cannot write HyperionCluster status");
                true
            }
            Err(_) => true,
        };
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
