//! Watches, as inputs of the leader's loop. A bad object arrives as one: it stalls nothing.

use std::fmt::Debug;

use futures::StreamExt;
use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::quota::HyperionQuota;
use hyperion_api::rollout::HyperionRollout;
use hyperion_api::workload::HyperionWorkload;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A change of one kind.
#[derive(Debug)]
pub enum Change<K> {
    /// Made or changed.
    Apply(DeserializeGuard<K>),
    /// Gone.
    Delete(DeserializeGuard<K>),
    /// All there is, when a watch begins.
    Reset(Vec<DeserializeGuard<K>>),
}

/// What the watches see.
#[derive(Debug)]
pub enum Seen {
    /// Workloads.
    Workload(Box<Change<HyperionWorkload>>),
    /// Placements.
    Placement(Box<Change<HyperionPlacement>>),
    /// Nodes.
    Node(Box<Change<HyperionNode>>),
    /// Quotas.
    Quota(Box<Change<HyperionQuota>>),
    /// PriorityClasses.
    Class(Box<Change<PriorityClass>>),
    /// Rollouts.
    Rollout(Box<Change<HyperionRollout>>),
}

/// Changes that may wait for the leader's loop.
const CHANGES: usize = 1024;

/// Starts the watches.
#[must_use]
pub fn start(client: &kube::Client, stop: &CancellationToken) -> mpsc::Receiver<Seen> {
    let (tx, rx) = mpsc::channel(CHANGES);
    tokio::spawn(watch(
        Api::all(client.clone()),
        |change| Seen::Node(Box::new(change)),
        tx.clone(),
        stop.clone(),
    ));
    tokio::spawn(watch(
        Api::all(client.clone()),
        |change| Seen::Quota(Box::new(change)),
        tx.clone(),
        stop.clone(),
    ));
    tokio::spawn(watch(
        Api::all(client.clone()),
        |change| Seen::Class(Box::new(change)),
        tx.clone(),
        stop.clone(),
    ));
    tokio::spawn(watch(
        Api::all(client.clone()),
        |change| Seen::Rollout(Box::new(change)),
        tx.clone(),
        stop.clone(),
    ));
    tokio::spawn(watch(
        Api::all(client.clone()),
        |change| Seen::Workload(Box::new(change)),
        tx.clone(),
        stop.clone(),
    ));
    tokio::spawn(watch(
        Api::all(client.clone()),
        |change| Seen::Placement(Box::new(change)),
        tx,
        stop.clone(),
    ));
    rx
}

async fn watch<K>(
    api: Api<DeserializeGuard<K>>,
    wrap: fn(Change<K>) -> Seen,
    tx: mpsc::Sender<Seen>,
    stop: CancellationToken,
) where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut events = watcher(api, watcher::Config::default())
        .default_backoff()
        .boxed();
    let mut list = Vec::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.cancelled() => return,
        };
        let change = match event {
            None => return,
            Some(Err(e)) => {
                warn!(kind = %K::kind(&()), error = %e, "watch");
                continue;
            }
            Some(Ok(watcher::Event::Init)) => {
                list = Vec::new();
                continue;
            }
            Some(Ok(watcher::Event::InitApply(object))) => {
                list.push(object);
                continue;
            }
            Some(Ok(watcher::Event::InitDone)) => {
                info!(kind = %K::kind(&()), objects = list.len(), "list read");
                Change::Reset(std::mem::take(&mut list))
            }
            Some(Ok(watcher::Event::Apply(object))) => Change::Apply(object),
            Some(Ok(watcher::Event::Delete(object))) => Change::Delete(object),
        };
        if tx.send(wrap(change)).await.is_err() {
            return;
        }
    }
}
