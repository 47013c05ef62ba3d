//! Workload clusters: replicas that run as Pods on nodes of Kubernetes clusters.
//!
//! ```text
//! HyperionClusters ──> a task per cluster ──events──> the leader's loop
//!                        │        ▲                        │
//!            HyperionNodes        └────────orders──────────┘
//!                        │
//!                        └──watches, Pods──> the cluster's API server
//! ```
//!
//! - [`node`], [`usage`], [`pod`]: translations. No I/O.
//! - [`state`]: what is known of a cluster and what has to be done, as a plain struct. No I/O.
//! - [`claims`]: machines that Karpenter launches there.
//! - [`proof`]: which node an agent is on that measures it.
//! - [`profile`]: ClusterProfiles as kubeconfigs, with the credential plugins of [`plugins`]. No I/O
//!   but the file of the latter.
//! - [`access`]: what a cluster is reached with; [`connect`]: whether it answers; [`task`] and
//!   [`session`]: its task; [`writes`]: Pods; [`objects`]: HyperionNodes; [`health`]: its status;
//!   [`logs`]: what Pods write.
//! - here: which clusters there are, and which of them an order is for.

mod access;
pub mod claims;
pub mod connect;
pub mod health;
pub mod logs;
pub mod node;
pub mod objects;
pub mod plugins;
pub mod pod;
mod profile;
pub mod proof;
mod session;
pub mod state;
pub mod task;
pub mod usage;
pub mod writes;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use hyperion_api::cluster::HyperionCluster;
use hyperion_api::node::HyperionNode;
use hyperion_api::workload::HyperionWorkload;
use hyperion_api::{LABEL_CLUSTER, conditions};
use hyperion_gateway::notices::Notice;
use hyperion_proto::domain::ReplicaKey;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::events::{Note, Publisher};
use crate::index::Heard;
use claims::Wants;
use plugins::Plugins;

pub use state::{Event, Order};

/// Events that may wait for the leader's loop before clusters are slowed down.
const EVENTS: usize = 4096;
/// Time for a task that is done to end.
const ENDS: Duration = Duration::from_secs(1);

/// Handle of the clusters.
#[derive(Clone, Default)]
pub struct Clusters {
    routes: Arc<Mutex<Routes>>,
}

#[derive(Default)]
struct Routes {
    by_cluster: HashMap<String, Route>,
    complete: bool,
    held_back: BTreeSet<String>,
}

/// Orders for a cluster, and the machines that are wanted there.
type Inbox = (mpsc::UnboundedReceiver<Order>, watch::Receiver<Arc<Wants>>);

/// Where orders for a cluster go.
struct Route {
    orders: mpsc::UnboundedSender<Order>,
    /// Its HyperionCluster, as events name it.
    about: Option<ObjectReference>,
    /// Until its task takes it.
    waiting: Option<mpsc::UnboundedReceiver<Order>>,
    /// Machines that are wanted there.
    wants: watch::Sender<Arc<Wants>>,
    /// How it is reached, or why it is not.
    link: Result<kube::Client, String>,
}

impl Routes {
    fn route(&mut self, cluster: &str) -> &mut Route {
        self.by_cluster
            .entry(cluster.to_owned())
            .or_insert_with(|| {
                let (orders, waiting) = mpsc::unbounded_channel();
                // What every cluster has to know; the receiver is in our hands.
                let _ = orders.send(Order::HoldBack(self.held_back.clone()));
                if self.complete {
                    let _ = orders.send(Order::Complete);
                }
                Route {
                    orders,
                    about: None,
                    waiting: Some(waiting),
                    wants: watch::Sender::default(),
                    link: Err("it has not been reached yet".to_owned()),
                }
            })
    }

    fn send(&mut self, cluster: &str, order: Order) {
        // A task that has ended has nothing left to run.
        let _ = self.route(cluster).orders.send(order);
    }

    fn tell_all(&self, order: &Order) {
        for route in self.by_cluster.values() {
            let _ = route.orders.send(order.clone());
        }
    }
}

impl Clusters {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster that a node is of, by its id; none for nodes with agents, whose ids have no dots,
    /// and where there is no such cluster.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Option<String> {
        let (cluster, _) = node.split_once('.')?;
        let known = self.routes().by_cluster.contains_key(cluster);
        known.then(|| cluster.to_owned())
    }

    /// The node should run this replica; `ended` where its end is known.
    pub fn start(
        &self,
        cluster: &str,
        node: &str,
        key: &ReplicaKey,
        generation: u64,
        workload: Arc<HyperionWorkload>,
        ended: bool,
    ) {
        let order = Order::Start {
            node: node.to_owned(),
            key: key.clone(),
            generation,
            workload,
            ended,
        };
        self.routes().send(cluster, order);
    }

    /// The node should not run the replica with this generation or a lower one. `within` is the most
    /// time between SIGTERM and SIGKILL; none for the template's own.
    pub fn stop(
        &self,
        cluster: &str,
        node: &str,
        key: &ReplicaKey,
        generation: u64,
        within: Option<Duration>,
    ) {
        let order = Order::Stop {
            node: node.to_owned(),
            key: key.clone(),
            generation,
            within,
        };
        self.routes().send(cluster, order);
    }

    /// Nodes that may run what can't be described now: nothing stops there for not being ordered.
    pub fn hold_back(&self, nodes: BTreeSet<String>) {
        let mut routes = self.routes();
        routes.tell_all(&Order::HoldBack(nodes.clone()));
        routes.held_back = nodes;
    }

    /// All that should run has been ordered: what was not is stopped, but for nodes that are held
    /// back.
    pub fn mark_complete(&self) {
        let mut routes = self.routes();
        routes.tell_all(&Order::Complete);
        routes.complete = true;
    }

    /// All machines that are wanted in a cluster.
    pub fn want(&self, cluster: &str, wants: Wants) {
        let mut routes = self.routes();
        // Of one that is gone nothing is wanted.
        if let Some(route) = routes.by_cluster.get_mut(cluster) {
            route.wants.send_replace(Arc::new(wants));
        }
    }

    /// What a node's cloud is about to do to it, by its agent's word.
    pub fn notices(&self, cluster: &str, node: &str, notices: Vec<Notice>) {
        let order = Order::Notices {
            node: node.to_owned(),
            notices,
        };
        self.routes().send(cluster, order);
    }

    /// A client of a cluster that answers.
    ///
    /// # Errors
    /// There is no such cluster, or it is out of reach; the sentence names it.
    pub fn client(&self, cluster: &str) -> Result<kube::Client, String> {
        match self.routes().by_cluster.get(cluster) {
            // One that was only spoken of is none.
            Some(route) if route.about.is_some() => route
                .link
                .clone()
                .map_err(|why| format!("cluster {cluster} is out of reach: {why}")),
            _ => Err(format!("there is no HyperionCluster {cluster:?}")),
        }
    }

    /// Notes how a cluster is reached, or why it is not.
    fn reached(&self, cluster: &str, link: Result<kube::Client, String>) {
        self.routes().route(cluster).link = link;
    }

    /// A cluster, as events name it; none where it is not followed.
    #[must_use]
    pub fn about(&self, cluster: &str) -> Option<ObjectReference> {
        self.routes().by_cluster.get(cluster)?.about.clone()
    }

    fn take(&self, cluster: &str, about: ObjectReference) -> Option<Inbox> {
        let mut routes = self.routes();
        let route = routes.route(cluster);
        route.about = Some(about);
        Some((route.waiting.take()?, route.wants.subscribe()))
    }

    fn forget(&self, cluster: &str) {
        self.routes().by_cluster.remove(cluster);
    }
}

/// Starts following clusters.
#[must_use]
pub fn start(
    home: kube::Client,
    plugins: Arc<Plugins>,
    publisher: Publisher,
    stop: CancellationToken,
) -> (Clusters, mpsc::Receiver<Event>) {
    let clusters = Clusters::default();
    let (events, receiver) = mpsc::channel(EVENTS);
    let manager = Manager {
        home,
        plugins,
        clusters: clusters.clone(),
        events,
        publisher,
        tasks: HashMap::new(),
        stop,
    };
    tokio::spawn(manager.run());
    (clusters, receiver)
}

struct Task {
    object: watch::Sender<Arc<HyperionCluster>>,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

struct Manager {
    home: kube::Client,
    plugins: Arc<Plugins>,
    clusters: Clusters,
    events: mpsc::Sender<Event>,
    publisher: Publisher,
    tasks: HashMap<String, Task>,
    stop: CancellationToken,
}

impl Manager {
    async fn run(mut self) {
        let api: Api<DeserializeGuard<HyperionCluster>> = Api::all(self.home.clone());
        let mut seen = watcher(api, watcher::Config::default())
            .default_backoff()
            .boxed();
        let mut list = Vec::new();
        loop {
            let event = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                event = seen.next() => event,
            };
            match event {
                None => break,
                Some(Err(e)) => warn!(kind = "HyperionCluster", error = %e, "watch"),
                Some(Ok(watcher::Event::Init)) => list.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => list.push(object),
                Some(Ok(watcher::Event::InitDone)) => self.reset(std::mem::take(&mut list)).await,
                Some(Ok(watcher::Event::Apply(object))) => self.apply(object).await,
                Some(Ok(watcher::Event::Delete(object))) => {
                    let name = match &object.0 {
                        Ok(cluster) => cluster.name_any(),
                        Err(e) => e.metadata.name.clone().unwrap_or_default(),
                    };
                    self.delete(&name).await;
                }
            }
        }
        for task in self.tasks.into_values() {
            task.stop.cancel();
            let _ = task.done.await;
        }
    }

    async fn reset(&mut self, list: Vec<DeserializeGuard<HyperionCluster>>) {
        let mut gone: BTreeSet<String> = self.tasks.keys().cloned().collect();
        let mut known = BTreeSet::new();
        for object in list {
            let name = match &object.0 {
                Ok(cluster) => cluster.name_any(),
                Err(e) => e.metadata.name.clone().unwrap_or_default(),
            };
            gone.remove(&name);
            known.insert(name);
            self.apply(object).await;
        }
        for name in gone {
            self.delete(&name).await;
        }
        sweep(&self.home, |cluster| !known.contains(cluster)).await;
    }

    async fn apply(&mut self, object: DeserializeGuard<HyperionCluster>) {
        let cluster = match object.0 {
            Ok(cluster) => Arc::new(cluster),
            Err(e) => {
                // It goes on as it was.
                let name = e.metadata.name.unwrap_or_default();
                warn!(cluster = name, error = %e.error, "bad HyperionCluster");
                return;
            }
        };
        let name = cluster.name_any();
        if let Some(task) = self.tasks.get(&name) {
            let same = task.object.borrow().uid() == cluster.uid();
            if same && !task.done.is_finished() {
                let _ = task.object.send(cluster);
                return;
            }
            // Then it ended with the leader, and the next one goes on with its nodes.
            if self.stop.is_cancelled() {
                return;
            }
            self.delete(&name).await;
        }
        let Some((orders, wants)) = self.clusters.take(&name, health::about(&cluster)) else {
            return;
        };
        info!(cluster = name, "cluster is followed");
        let stop = self.stop.child_token();
        let (sender, receiver) = watch::channel(cluster.clone());
        let of = task::identity(&cluster).unwrap_or_else(|_| node::Identity {
            name: name.clone(),
            uid: cluster.uid().unwrap_or_default(),
            provider: cluster.spec.provider.into(),
            region: cluster.spec.region.clone(),
            selector: cluster.spec.node_selector.clone(),
        });
        let publisher = self.publisher.clone();
        let task = task::Cluster {
            home: self.home.clone(),
            plugins: self.plugins.clone(),
            clusters: self.clusters.clone(),
            object: receiver,
            orders,
            wants,
            events: self.events.clone(),
            objects: objects::start(&self.home, &cluster, stop.clone()),
            health: health::Health::start(&self.home, &cluster, publisher, stop.clone()),
            state: state::State::new(of),
            stop: stop.clone(),
            heard: None,
        };
        let done = tokio::spawn(task.run());
        let task = Task {
            object: sender,
            stop,
            done,
        };
        self.tasks.insert(name, task);
    }

    /// A cluster's object is gone. Where its finalizer was taken off by others, its Pods are left.
    async fn delete(&mut self, name: &str) {
        let Some(mut task) = self.tasks.remove(name) else {
            return;
        };
        // One that took its finalizer off itself is about to end.
        let ended = tokio::time::timeout(ENDS, &mut task.done).await.is_ok();
        if !ended {
            self.publisher.publish(Note {
                about: health::about(&task.object.borrow()),
                warning: true,
                reason: conditions::EVENT_ABANDONED.to_owned(),
                text: "it is gone without its finalizer: Pods with label hyperion.io/cluster-uid may be left in the cluster".to_owned(),
                past: None,
            });
        }
        task.stop.cancel();
        if !ended {
            let _ = task.done.await;
        }
        self.clusters.forget(name);
        let over = Event::Machines(name.to_owned(), Heard::Over);
        // The loop ends with the leader.
        let _ = self.events.send(over).await;
        sweep(&self.home, |cluster| cluster == name).await;
        info!(cluster = name, "cluster is not followed any more");
    }
}

/// Deletes the nodes of clusters that are gone.
async fn sweep(home: &kube::Client, gone: impl Fn(&str) -> bool) {
    let api: Api<HyperionNode> = Api::all(home.clone());
    let params = ListParams::default().labels(LABEL_CLUSTER);
    let nodes = match api.list_metadata(&params).await {
        Ok(list) => list.items,
        Err(e) => {
            warn!(error = %e, "nodes of clusters that are gone may be left");
            return;
        }
    };
    for node in nodes {
        let of = node
            .labels()
            .get(LABEL_CLUSTER)
            .cloned()
            .unwrap_or_default();
        if gone(&of) {
            let name = node.name_any();
            if let Err(e) = api.delete(&name, &DeleteParams::default()).await {
                warn!(node = name, error = %e, "cannot delete HyperionNode");
            }
        }
    }
}
