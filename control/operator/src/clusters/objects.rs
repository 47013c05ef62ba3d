//! The HyperionNodes of a cluster: there is one for each node that is wanted, and no other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures::StreamExt;
use hyperion_api::cluster::HyperionCluster;
use hyperion_api::node::{HyperionNode, HyperionNodeStatus};
use hyperion_api::{LABEL_CLUSTER, MANAGER};
use hyperion_gateway::nodes::{NodeWriter, set_ready, writer};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Writes in flight.
const PARALLEL: usize = 16;
/// Time for one.
const ANSWER: Duration = Duration::from_secs(5);
/// Wait before one that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// What is asked for.
enum Wish {
    Put(String, Box<HyperionNodeStatus>),
    Drop(String),
    /// All that are wanted have been named.
    Complete,
    /// Nobody can tell what those are that were not put.
    Away(String),
    /// These are to be drained.
    Drain(BTreeSet<String>),
    /// Answered when none is left.
    Empty(tokio::sync::oneshot::Sender<()>),
}

/// Queue to the writer of one cluster's nodes.
#[derive(Clone)]
pub struct Objects {
    wishes: mpsc::UnboundedSender<Wish>,
}

impl Objects {
    /// There is to be a node with this status.
    pub fn put(&self, node: String, status: Box<HyperionNodeStatus>) {
        self.wish(Wish::Put(node, status));
    }

    /// There is to be no such node.
    pub fn forget(&self, node: String) {
        self.wish(Wish::Drop(node));
    }

    /// There are to be no others than those that were put.
    pub fn complete(&self) {
        self.wish(Wish::Complete);
    }

    /// Nobody can tell what those are that were not put, and this is why: their objects are of an
    /// earlier control plane, and say that they are ready.
    pub fn away(&self, why: &str) {
        self.wish(Wish::Away(why.to_owned()));
    }

    /// Marks nodes as draining.
    pub fn drain(&self, nodes: BTreeSet<String>) {
        self.wish(Wish::Drain(nodes));
    }

    /// Waits until there are none, or for `patience`.
    pub async fn gone(&self, patience: Duration) {
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.wish(Wish::Empty(tx));
        if tokio::time::timeout(patience, rx).await.is_err() {
            debug!("nodes of a cluster are left to the collector");
        }
    }

    fn wish(&self, wish: Wish) {
        // A closed queue means that the process stops.
        let _ = self.wishes.send(wish);
    }
}

/// Starts the writer of a cluster's nodes.
#[must_use]
pub fn start(home: &kube::Client, cluster: &HyperionCluster, stop: CancellationToken) -> Objects {
    let (wishes, waiting) = mpsc::unbounded_channel();
    let (status, writes) = writer(home.clone(), stop.clone());
    tokio::spawn(writes);
    let mut owner = cluster.controller_owner_ref(&());
    if let Some(owner) = &mut owner {
        // Ours to clean up: deleting the cluster must not wait for it.
        owner.block_owner_deletion = Some(false);
    }
    let work = Work {
        api: Api::all(home.clone()),
        watched: Api::all(home.clone()),
        cluster: cluster.name_any(),
        owner: json!(owner.into_iter().collect::<Vec<_>>()),
        status,
        wanted: HashMap::new(),
        there: HashSet::new(),
        listed: false,
        complete: false,
        away: None,
        drain: BTreeSet::new(),
        busy: HashSet::new(),
        queue: Vec::new(),
        writes: JoinSet::new(),
        empty: Vec::new(),
    };
    tokio::spawn(work.run(waiting, stop));
    Objects { wishes }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    Made,
    Deleted,
    Drained,
    Nothing,
}

struct Work {
    api: Api<HyperionNode>,
    watched: Api<PartialObjectMeta<HyperionNode>>,
    cluster: String,
    owner: serde_json::Value,
    status: NodeWriter,
    wanted: HashMap<String, Box<HyperionNodeStatus>>,
    there: HashSet<String>,
    listed: bool,
    complete: bool,
    /// Why nobody can tell what the others are, and those of them that say so.
    away: Option<(String, HashSet<String>)>,
    drain: BTreeSet<String>,
    /// With a write in flight.
    busy: HashSet<String>,
    queue: Vec<String>,
    writes: JoinSet<(String, Did)>,
    empty: Vec<tokio::sync::oneshot::Sender<()>>,
}

impl Work {
    async fn run(mut self, mut wishes: mpsc::UnboundedReceiver<Wish>, stop: CancellationToken) {
        let config =
            watcher::Config::default().labels(&format!("{LABEL_CLUSTER}={}", self.cluster));
        let mut events = watcher(self.watched.clone(), config)
            .default_backoff()
            .boxed();
        let mut listing = HashSet::new();
        loop {
            self.fill();
            if self.there.is_empty() && self.wanted.is_empty() && self.listed {
                for waits in self.empty.drain(..) {
                    let _ = waits.send(());
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                wish = wishes.recv() => match wish {
                    Some(wish) => self.wish(wish),
                    None => return,
                },
                Some(done) = self.writes.join_next() => {
                    if let Ok((node, did)) = done {
                        self.done(node, did);
                    }
                }
                event = events.next() => match event {
                    None => return,
                    Some(Err(e)) => warn!(cluster = self.cluster, error = %e, "watch of HyperionNodes"),
                    Some(Ok(watcher::Event::Init)) => listing = HashSet::new(),
                    Some(Ok(watcher::Event::InitApply(object))) => {
                        listing.insert(object.name_any());
                    }
                    Some(Ok(watcher::Event::InitDone)) => {
                        self.there = std::mem::take(&mut listing);
                        self.listed = true;
                        self.look_at_all();
                    }
                    Some(Ok(watcher::Event::Apply(object))) => {
                        let node = object.name_any();
                        if self.there.insert(node.clone()) {
                            self.queue.push(node);
                        }
                    }
                    Some(Ok(watcher::Event::Delete(object))) => {
                        let node = object.name_any();
                        self.there.remove(&node);
                        self.queue.push(node);
                    }
                },
            }
        }
    }

    fn wish(&mut self, wish: Wish) {
        match wish {
            Wish::Put(node, status) => {
                if self.there.contains(&node) {
                    self.status.write(&node, (*status).clone());
                } else {
                    self.queue.push(node.clone());
                }
                self.wanted.insert(node, status);
            }
            Wish::Drop(node) => {
                self.wanted.remove(&node);
                self.drain.remove(&node);
                self.queue.push(node);
            }
            Wish::Complete => {
                (self.complete, self.away) = (true, None);
                self.look_at_all();
            }
            Wish::Away(why) => {
                if self.away.is_none() {
                    self.away = Some((why, HashSet::new()));
                    self.look_at_all();
                }
            }
            Wish::Drain(nodes) => {
                self.queue.extend(nodes.iter().cloned());
                self.drain = nodes;
            }
            Wish::Empty(waits) => {
                self.complete = true;
                self.empty.push(waits);
                self.look_at_all();
            }
        }
    }

    fn look_at_all(&mut self) {
        self.queue.extend(self.wanted.keys().cloned());
        self.queue.extend(self.there.iter().cloned());
    }

    fn fill(&mut self) {
        while self.listed
            && self.writes.len() < PARALLEL
            && let Some(node) = self.queue.pop()
        {
            if self.busy.contains(&node) {
                // Looked at again when that is done.
                continue;
            }
            let (wanted, there) = (self.wanted.contains_key(&node), self.there.contains(&node));
            let (api, owner, cluster) =
                (self.api.clone(), self.owner.clone(), self.cluster.clone());
            let of = node.clone();
            match (wanted, there) {
                (true, false) => {
                    self.writes.spawn(async move {
                        let did = make(&api, &cluster, owner, &of).await;
                        (of, did)
                    });
                }
                (false, true) if self.complete => {
                    self.writes.spawn(async move {
                        let did = delete(&api, &of).await;
                        (of, did)
                    });
                }
                (true, true) if self.drain.contains(&node) => {
                    self.writes.spawn(async move {
                        let did = drain(&api, &of).await;
                        (of, did)
                    });
                }
                (false, true) => {
                    let Some((why, said)) = &mut self.away else {
                        continue;
                    };
                    if !said.insert(node.clone()) {
                        continue;
                    }
                    let why = why.clone();
                    self.writes.spawn(async move {
                        let did = lose(&api, &of, &why).await;
                        (of, did)
                    });
                }
                _ => continue,
            }
            self.busy.insert(node);
        }
    }

    fn done(&mut self, node: String, did: Did) {
        self.busy.remove(&node);
        match did {
            Did::Made => {
                self.there.insert(node.clone());
                if let Some(status) = self.wanted.get(&node) {
                    self.status.write(&node, (**status).clone());
                }
            }
            Did::Deleted => {
                self.there.remove(&node);
            }
            Did::Drained => {
                self.drain.remove(&node);
            }
            Did::Nothing => {}
        }
        self.queue.push(node);
    }
}

async fn make(api: &Api<HyperionNode>, cluster: &str, owner: serde_json::Value, node: &str) -> Did {
    let object = json!({
        "apiVersion": HyperionNode::api_version(&()),
        "kind": HyperionNode::kind(&()),
        "metadata": {
            "name": node,
            "labels": { LABEL_CLUSTER: cluster },
            "ownerReferences": owner,
        },
        "spec": { "cluster": cluster },
    });
    let Ok(object) = serde_json::from_value::<HyperionNode>(object) else {
        return Did::Nothing;
    };
    let params = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    let made = tokio::time::timeout(ANSWER, api.create(&params, &object)).await;
    let error = match made {
        Ok(Ok(_)) => return Did::Made,
        Ok(Err(kube::Error::Api(e))) if e.code == 409 => match api.get_opt(node).await {
            Ok(Some(held)) if held.spec.cluster.as_deref() == Some(cluster) => return Did::Made,
            Ok(Some(_)) => "another node has that name".to_owned(),
            Ok(None) => "it was just deleted".to_owned(),
            Err(e) => e.to_string(),
        },
        Ok(Err(e)) => e.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    warn!(node, error, "cannot make HyperionNode");
    tokio::time::sleep(AGAIN).await;
    Did::Nothing
}

async fn delete(api: &Api<HyperionNode>, node: &str) -> Did {
    let params = DeleteParams::default();
    let error = match tokio::time::timeout(ANSWER, api.delete(node, &params)).await {
        Ok(Ok(_)) => return Did::Deleted,
        Ok(Err(kube::Error::Api(e))) if e.code == 404 => return Did::Deleted,
        Ok(Err(e)) => e.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    warn!(node, error, "cannot delete HyperionNode");
    tokio::time::sleep(AGAIN).await;
    Did::Nothing
}

async fn drain(api: &Api<HyperionNode>, node: &str) -> Did {
    let patch = Patch::Merge(json!({ "spec": { "draining": true } }));
    let params = PatchParams::default();
    let error = match tokio::time::timeout(ANSWER, api.patch(node, &params, &patch)).await {
        Ok(Ok(_)) => return Did::Drained,
        Ok(Err(kube::Error::Api(e))) if e.code == 404 => return Did::Drained,
        Ok(Err(e)) => e.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    warn!(node, error, "cannot drain HyperionNode");
    tokio::time::sleep(AGAIN).await;
    Did::Nothing
}

/// Says of a node that nobody can tell what it is.
async fn lose(api: &Api<HyperionNode>, node: &str, why: &str) -> Did {
    let held = match tokio::time::timeout(ANSWER, api.get_opt(node)).await {
        Ok(Ok(Some(held))) => held,
        _ => return Did::Nothing,
    };
    let mut status = held.status.unwrap_or_default();
    if status.ready == "False" {
        return Did::Nothing;
    }
    set_ready(&mut status, false, "ClusterUnreachable", why);
    let patch = Patch::Merge(json!({ "status": status }));
    let params = PatchParams::default();
    match tokio::time::timeout(ANSWER, api.patch_status(node, &params, &patch)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => warn!(node, error = %e, "cannot write HyperionNode"),
        Err(_) => warn!(node, error = "no answer", "cannot write HyperionNode"),
    }
    Did::Nothing
}
