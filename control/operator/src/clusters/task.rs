//! One cluster from its first sight to its end: reach it, follow it, leave it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::cluster::HyperionCluster;
use hyperion_api::{ABANDON, CLUSTER_FINALIZER, MANAGER, conditions};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, trace, warn};

use super::Clusters;
use super::access::{self, Link};
use super::claims::Wants;
use super::connect::{self, Trouble};
use super::health::Health;
use super::node::Identity;
use super::objects::Objects;
use super::plugins::Plugins;
use super::state::{Effect, Event, Order, State};
use super::writes::Writes;
use crate::index::Heard;
use crate::text::listed;

/// First wait before a cluster that can't be reached is tried again.
const BACKOFF: Duration = Duration::from_secs(1);
/// Longest wait: also how late a Secret or ClusterProfile that was put right is seen.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Time for the nodes of a cluster that is left to go.
const NODES_GO: Duration = Duration::from_secs(10);
/// Names of clusters are at most so long: they are label values.
const NAME: usize = 63;

/// The task of a cluster.
pub struct Cluster {
    /// Where the HyperionCluster is.
    pub home: kube::Client,
    /// For ClusterProfiles.
    pub plugins: Arc<Plugins>,
    /// Is told how it is reached.
    pub clusters: Clusters,
    /// The HyperionCluster as it is now.
    pub object: watch::Receiver<Arc<HyperionCluster>>,
    /// Of the leader's loop.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// Machines that are wanted in it.
    pub wants: watch::Receiver<Arc<Wants>>,
    /// To the leader's loop.
    pub events: mpsc::Sender<Event>,
    /// Its nodes' objects.
    pub objects: Objects,
    /// Its status.
    pub health: Health,
    /// What is known of it.
    pub state: State,
    /// The leader stops.
    pub stop: CancellationToken,
    /// When it answered last; none before the first time.
    pub heard: Option<Instant>,
}

/// Why a session ended.
pub enum End {
    /// The leader stops.
    Stopped,
    /// The cluster's object is another, or its Secret or ClusterProfile.
    Changed,
    /// The cluster is out of reach.
    Lost(Trouble),
    /// Nothing of ours is left in it.
    Left,
}

/// How a cluster's nodes are read.
///
/// # Errors
/// Its name can't be told from those of its nodes.
pub fn identity(cluster: &HyperionCluster) -> Result<Identity, Trouble> {
    let name = cluster.name_any();
    if name.contains('.') || name.len() > NAME {
        return Err(Trouble {
            reason: conditions::REASON_INVALID_NAME,
            message: format!("the name of a cluster has no dots, and at most {NAME} characters"),
        });
    }
    Ok(Identity {
        name,
        uid: cluster.uid().unwrap_or_default(),
        provider: cluster.spec.provider.into(),
        region: cluster.spec.region.clone(),
        selector: cluster.spec.node_selector.clone(),
    })
}

/// A user asked for its deletion.
fn deleting(cluster: &HyperionCluster) -> bool {
    cluster.metadata.deletion_timestamp.is_some()
}

fn abandoned(cluster: &HyperionCluster) -> bool {
    cluster
        .annotations()
        .get(ABANDON)
        .is_some_and(|v| v == "true")
}

/// True where the difference is one that a session has to begin anew for.
fn differs(a: &HyperionCluster, b: &HyperionCluster) -> bool {
    a.spec != b.spec
        || a.metadata.uid != b.metadata.uid
        || deleting(a) != deleting(b)
        || (deleting(b) && abandoned(a) != abandoned(b))
}

impl Cluster {
    /// Runs until the leader stops or the cluster is left.
    pub async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            let object = self.object.borrow_and_update().clone();
            self.health.describes(&object);
            let end = match identity(&object) {
                Err(trouble) => End::Lost(trouble),
                Ok(of) => {
                    self.state.describe(of);
                    self.once(&object, &mut failures).await
                }
            };
            if !matches!(end, End::Stopped) {
                self.machines(Heard::Away).await;
            }
            match end {
                End::Stopped => return,
                End::Changed => {
                    failures = 0;
                    self.state.pause();
                }
                End::Left => {
                    self.state.leave(Instant::now());
                    if !self.pump(&mut None).await {
                        return;
                    }
                    self.objects.gone(NODES_GO).await;
                    if self.finalizer(&object, false).await {
                        info!(cluster = object.name_any(), "cluster is left");
                        return;
                    }
                    self.rest(BACKOFF).await;
                }
                End::Lost(trouble) => {
                    failures += 1;
                    self.lost(&object, &trouble);
                    let wait = BACKOFF * 2_u32.pow(failures.min(5) - 1);
                    if !self.pump(&mut None).await || !self.rest(wait.min(BACKOFF_MAX)).await {
                        return;
                    }
                }
            }
        }
    }

    async fn once(&mut self, object: &Arc<HyperionCluster>, failures: &mut u32) -> End {
        if deleting(object) {
            if !has_finalizer(object) {
                // Nothing of ours was ever there.
                return End::Left;
            }
            if abandoned(object) {
                self.abandon();
                return End::Left;
            }
        }
        if self.heard.is_none() {
            self.health.ready(None, conditions::REASON_CONNECTING, "");
        }
        let link = match self.reach(object).await {
            Ok(link) => link,
            Err(trouble) => return End::Lost(trouble),
        };
        // Not before: of ours there is nothing in a cluster that was never reached.
        if !(deleting(object) || has_finalizer(object) || self.finalizer(object, true).await) {
            return End::Lost(Trouble {
                reason: conditions::REASON_CONNECTING,
                message: "its finalizer can't be written".to_owned(),
            });
        }
        *failures = 0;
        self.session(link, object, deleting(object)).await
    }

    /// Makes a client, and sees whether the cluster answers to it.
    async fn reach(&mut self, object: &HyperionCluster) -> Result<Link, Trouble> {
        let link = access::link(&self.home, &self.plugins, object).await?;
        let answer = connect::answers(&link.client).await?;
        self.health.skew(answer.skew.as_deref());
        if let Some(missing) = connect::rights(&link.client).await?.to_know {
            return Err(missing);
        }
        let version = tokio::time::timeout(connect::ANSWER, link.client.apiserver_version()).await;
        if let Ok(Ok(version)) = version {
            self.health.version(&version.git_version);
        }
        self.heard = Some(Instant::now());
        let name = object.name_any();
        self.clusters.reached(&name, Ok(link.client.clone()));
        Ok(link)
    }

    fn lost(&mut self, object: &HyperionCluster, trouble: &Trouble) {
        let now = Instant::now();
        let silent = self.heard.map_or(Duration::ZERO, |at| now - at);
        self.state.disconnected(&trouble.message, silent, now);
        let mut message = trouble.message.clone();
        self.clusters
            .reached(&object.name_any(), Err(message.clone()));
        self.objects.away(&message);
        if deleting(object) {
            // Its replicas need not wait for a cluster that is not wanted.
            self.state.leave(now);
            self.objects.complete();
            message = format!(
                "{message}; it is deleted, and what runs there can't be stopped: annotate it with {ABANDON}=true to let it go all the same"
            );
        }
        self.health.ready(Some(false), trouble.reason, &message);
    }

    /// Says what is left behind.
    fn abandon(&mut self) {
        const NAMED: usize = 10;
        let pods = self.state.pods();
        let named: Vec<&str> = pods.iter().take(NAMED).map(String::as_str).collect();
        let text = if pods.is_empty() {
            "let go without asking the cluster: Pods with label hyperion.io/cluster-uid may be left in it"
                .to_owned()
        } else {
            let named = listed(&named, pods.len());
            format!("let go with Pods left in the cluster: {named}")
        };
        self.health.event(true, conditions::EVENT_ABANDONED, &text);
    }

    /// Waits, and takes orders meanwhile; false where the leader stops. A change of the object ends
    /// it.
    pub(super) async fn rest(&mut self, wait: Duration) -> bool {
        let until = tokio::time::sleep(wait);
        let mut until = std::pin::pin!(until);
        let before = self.object.borrow().clone();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = &mut until => return true,
                changed = self.object.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    if differs(&before, &self.object.borrow()) {
                        return true;
                    }
                }
                order = self.orders.recv() => match order {
                    Some(order) => self.state.order(order, Instant::now()),
                    None => return false,
                },
            }
            if !self.pump(&mut None).await {
                return false;
            }
        }
    }

    /// True where the object is another than the one that a session began with.
    pub(super) fn changed(&mut self, began: &HyperionCluster) -> bool {
        differs(began, &self.object.borrow_and_update())
    }

    /// Does what has to be done; false where the leader stops.
    pub(super) async fn pump(&mut self, writes: &mut Option<Writes>) -> bool {
        for effect in self.state.take() {
            trace!(cluster = self.about(), ?effect);
            match effect {
                Effect::Tell(event) => {
                    let sent = tokio::select! {
                        sent = self.events.send(event) => sent.is_ok(),
                        () = self.stop.cancelled() => false,
                    };
                    if !sent {
                        return false;
                    }
                }
                Effect::Create { ticket, at, pod } => {
                    if let Some(writes) = writes {
                        writes.create(ticket, at, pod);
                    }
                }
                Effect::Delete {
                    at,
                    name,
                    uid,
                    grace,
                } => {
                    if let Some(writes) = writes {
                        writes.delete(at, name, uid, grace);
                    }
                }
                Effect::Bind {
                    at,
                    name,
                    uid,
                    machine,
                } => {
                    if let Some(writes) = writes {
                        writes.bind(at, name, uid, machine);
                    }
                }
                Effect::Object { node, status } => self.objects.put(node, status),
                Effect::Forget { node } => self.objects.forget(node),
            }
        }
        true
    }

    /// Tells the leader's loop of machines that can be launched here.
    pub(super) async fn machines(&self, heard: Heard) {
        let event = Event::Machines(self.about(), heard);
        tokio::select! {
            // The loop ends with the leader.
            _ = self.events.send(event) => {}
            () = self.stop.cancelled() => {}
        }
    }

    fn about(&self) -> String {
        self.object.borrow().name_any()
    }

    /// Puts the finalizer on the cluster or takes it off; false where that fails.
    async fn finalizer(&self, object: &HyperionCluster, present: bool) -> bool {
        let name = object.name_any();
        let list: &[&str] = if present { &[CLUSTER_FINALIZER] } else { &[] };
        // The uid keeps a namesake that was made since from being touched.
        let body = json!({
            "apiVersion": "hyperion.io/v1alpha1",
            "kind": "HyperionCluster",
            "metadata": { "name": name, "uid": object.uid(), "finalizers": list },
        });
        let api: Api<kube::core::PartialObjectMeta<HyperionCluster>> = Api::all(self.home.clone());
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&body);
        match tokio::time::timeout(connect::ANSWER, api.patch(&name, &params, &patch)).await {
            Ok(Ok(_)) => true,
            // It is gone already.
            Ok(Err(kube::Error::Api(e))) if matches!(e.code, 404 | 409) && !present => true,
            Ok(Err(e)) => {
                warn!(cluster = name, error = %e, "cannot write finalizer");
                false
            }
            Err(_) => false,
        }
    }
}

fn has_finalizer(cluster: &HyperionCluster) -> bool {
    cluster.finalizers().iter().any(|f| f == CLUSTER_FINALIZER)
}
