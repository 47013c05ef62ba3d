//! A cluster that answers: its nodes and Pods are followed, orders are carried out, and every few
//! seconds it is asked whether it is still there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use hyperion_api::cluster::HyperionCluster;
use hyperion_api::conditions;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::access::{self, Link};
use super::claims::{Claims, Said};
use super::connect::{self, Answer, Rights, Trouble};
use super::plugins::Plugins;
use super::pod::LABEL_OWNER;
use super::state::Event;
use super::task::{Cluster, End};
use super::writes::{Writes, Written};
use crate::index::{Heard, Market};

/// How often it is asked whether it is still there.
const CHECK: Duration = Duration::from_secs(3);
/// Every so many checks its Secret or ClusterProfile and our rights are looked at, too.
const DEEP: u32 = 10;
/// It is out of reach when it has not answered for so long.
const LOST: Duration = Duration::from_secs(10);
/// How often it is told what Pods of others have changed.
const FLUSH: Duration = Duration::from_millis(500);
/// How long replicas may take to move away from a cluster that is left: as long as in a handover.
const DRAIN: Duration = Duration::from_secs(60);
/// Watches are begun anew so often, seconds: a connection that died unnoticed is found then.
const WATCH: u32 = 120;
/// Orders that are taken before anything else is looked at.
const ORDERS: usize = 1000;

enum Seen {
    Node(watcher::Event<DeserializeGuard<Node>>),
    Ours(watcher::Event<DeserializeGuard<Pod>>),
    Other(watcher::Event<DeserializeGuard<Pod>>),
    /// A watch has trouble.
    Trouble(&'static str, watcher::Error),
}

/// Lists while they are being read.
#[derive(Default)]
struct Lists {
    nodes: Vec<Node>,
    ours: Vec<Pod>,
    others: Vec<Pod>,
    /// Which were read once.
    read: [bool; 3],
}

struct Checked {
    answer: Result<Answer, Trouble>,
    /// None where they were not asked for.
    rights: Option<Result<Rights, Trouble>>,
    /// What its client would be made of; none where that can't be told, or was not asked for.
    source: Option<String>,
}

impl Cluster {
    /// Follows the cluster until it is out of reach, its object changes, or it is left.
    pub(super) async fn session(
        &mut self,
        link: Link,
        object: &Arc<HyperionCluster>,
        leaving: bool,
    ) -> End {
        let cluster = object.name_any();
        let owner = object.uid().unwrap_or_default();
        let mut seen = watches(&link.client, &owner);
        let mut writes = Some(Writes::new(link.client.clone(), &owner));
        let mut lists = Lists::default();
        let mut checks: JoinSet<Checked> = JoinSet::new();
        let mut check = ticks(CHECK);
        let mut flush = ticks(FLUSH);
        let (mut round, mut deep, mut failed) = (0_u32, true, 0_u32);
        let mut synced = false;
        let mut drained_by: Option<Instant> = None;
        let mut claims: Option<Claims> = None;
        loop {
            if !self.pump(&mut writes).await {
                return End::Stopped;
            }
            let Some(out) = &mut writes else {
                return End::Stopped;
            };
            let due = self.state.next_due();
            let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = self.stop.cancelled() => return End::Stopped,
                changed = self.object.changed() => {
                    if changed.is_err() {
                        return End::Stopped;
                    }
                    if self.changed(object) {
                        return End::Changed;
                    }
                }
                order = self.orders.recv() => {
                    let Some(order) = order else { return End::Stopped };
                    self.state.order(order, Instant::now());
                    for _ in 0..ORDERS {
                        let Ok(order) = self.orders.try_recv() else { break };
                        self.state.order(order, Instant::now());
                    }
                }
                Some(event) = seen.next() => {
                    if let Seen::Trouble(kind, error) = &event {
                        warn!(cluster, kind, error = connect::plain(error), "watch");
                        // Whether it is a right that was lost.
                        deep = true;
                    }
                    self.seen(event, &mut lists, synced);
                    if !synced && lists.read == [true; 3] {
                        synced = true;
                        if !self.synced(&cluster, leaving, &mut writes).await {
                            return End::Stopped;
                        }
                        drained_by = leaving.then(|| Instant::now() + DRAIN);
                        claims = self.claims(&link, object, leaving).await;
                    }
                }
                said = next(&mut claims) => self.claim_said(said).await,
                written = out.next() => deep |= self.written(written),
                _ = check.tick() => {
                    if checks.is_empty() {
                        round += 1;
                        let all = std::mem::take(&mut deep) || round % DEEP == 0;
                        let (client, home) = (link.client.clone(), self.home.clone());
                        let (object, plugins) = (object.clone(), self.plugins.clone());
                        checks.spawn(async move { ask(&client, (&home, &plugins), &object, all).await });
                    }
                }
                Some(checked) = checks.join_next() => {
                    let Ok(checked) = checked else { continue };
                    if checked.source.is_some_and(|now| now != link.source) {
                        info!(cluster, "its Secret or ClusterProfile has changed");
                        return End::Changed;
                    }
                    let trouble = self.checked(checked.answer, checked.rights, synced, leaving);
                    match trouble {
                        None => failed = 0,
                        Some(trouble) => {
                            failed += 1;
                            let silent = self.heard.is_none_or(|at| at.elapsed() >= LOST);
                            if silent {
                                return End::Lost(trouble);
                            }
                            if failed > 1 {
                                self.health.ready(Some(false), trouble.reason, &trouble.message);
                            }
                        }
                    }
                }
                _ = flush.tick() => {
                    self.state.flush(Instant::now());
                    if synced {
                        self.health.nodes(self.state.nodes());
                        self.health.claims(claims.as_ref().map_or(0, Claims::count));
                    }
                    if let Some(until) = drained_by
                        && self.leaving(until, claims.as_ref())
                    {
                        return End::Left;
                    }
                }
                () = tokio::time::sleep_until(due.into()) => self.state.due(Instant::now()),
            }
        }
    }

    fn seen(&mut self, event: Seen, lists: &mut Lists, synced: bool) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let now = Instant::now();
        let state = &mut self.state;
        match event {
            Seen::Trouble(..) => {}
            Seen::Node(Init) => lists.nodes.clear(),
            Seen::Node(InitApply(node)) => lists.nodes.extend(good(node)),
            Seen::Node(InitDone) => {
                lists.read[0] = true;
                state.reset_nodes(std::mem::take(&mut lists.nodes), now);
                if synced {
                    state.flush(now);
                }
            }
            Seen::Node(Apply(node)) => {
                if let Some(node) = good(node) {
                    state.apply_node(&node, now);
                }
            }
            Seen::Node(Delete(node)) => state.delete_node(&name(&node).1, now),
            Seen::Ours(Init) => lists.ours.clear(),
            Seen::Ours(InitApply(pod)) => lists.ours.extend(good(pod)),
            Seen::Ours(InitDone) => {
                lists.read[1] = true;
                state.reset_ours(&std::mem::take(&mut lists.ours), now);
            }
            Seen::Ours(Apply(pod)) => {
                if let Some(pod) = good(pod) {
                    state.apply_ours(&pod, now);
                }
            }
            Seen::Ours(Delete(pod)) => state.delete_ours(&name(&pod), now),
            Seen::Other(Init) => lists.others.clear(),
            Seen::Other(InitApply(pod)) => lists.others.extend(good(pod)),
            Seen::Other(InitDone) => {
                lists.read[2] = true;
                state.reset_others(&std::mem::take(&mut lists.others));
            }
            Seen::Other(Apply(pod)) => {
                if let Some(pod) = good(pod) {
                    state.apply_other(&pod);
                }
            }
            Seen::Other(Delete(pod)) => state.delete_other(&name(&pod)),
        }
    }

    /// Everything is known: what is wanted can be made. False where the leader stops.
    async fn synced(&mut self, cluster: &str, leaving: bool, writes: &mut Option<Writes>) -> bool {
        let now = Instant::now();
        if leaving {
            self.state
                .close(Some("its cluster is being left".to_owned()), now);
        }
        self.state.connected(now);
        // Those that are wanted have to be named before it is said that there are no others.
        if !self.pump(writes).await {
            return false;
        }
        self.objects.complete();
        let (nodes, unusable) = self.state.nodes();
        self.health.nodes((nodes, unusable));
        info!(cluster, nodes, unusable, "cluster is read");
        if leaving {
            self.objects.drain(self.state.occupied());
        } else {
            self.health
                .ready(Some(true), conditions::REASON_CLUSTER_READY, "");
        }
        true
    }

    /// Takes what a check says; the trouble, where the cluster can't be followed.
    fn checked(
        &mut self,
        answer: Result<Answer, Trouble>,
        rights: Option<Result<Rights, Trouble>>,
        synced: bool,
        leaving: bool,
    ) -> Option<Trouble> {
        let now = Instant::now();
        let answer = match answer {
            Ok(answer) => answer,
            Err(trouble) => return Some(trouble),
        };
        self.health.skew(answer.skew.as_deref());
        let rights = match rights {
            Some(Err(trouble)) => return Some(trouble),
            Some(Ok(rights)) => Some(rights),
            None => None,
        };
        if let Some(missing) = rights.as_ref().and_then(|r| r.to_know.clone()) {
            return Some(missing);
        }
        self.heard = Some(now);
        // A full queue carries other signs of life.
        let _ = self.events.try_send(Event::Heard);
        if leaving || !synced {
            return None;
        }
        match rights.map(|r| r.to_place) {
            Some(Some(missing)) => {
                self.health
                    .ready(Some(false), missing.reason, &missing.message);
                self.state.close(Some(missing.message), now);
            }
            Some(None) => {
                self.state.close(None, now);
                self.health
                    .ready(Some(true), conditions::REASON_CLUSTER_READY, "");
            }
            // As it was; but for trouble that has passed.
            None if !self.state.is_closed() => {
                self.health
                    .ready(Some(true), conditions::REASON_CLUSTER_READY, "");
            }
            None => {}
        }
        None
    }

    /// Takes what became of a write; true where rights are to be looked at.
    fn written(&mut self, written: Written) -> bool {
        let now = Instant::now();
        match written {
            Written::Created {
                ticket,
                at,
                result,
                forbidden,
            } => {
                self.state.created(ticket, &at, result, now);
                forbidden
            }
            Written::NotDone {
                at,
                name,
                forbidden,
            } => {
                self.state.not_done(&at, &name, now);
                forbidden
            }
            Written::Done => false,
        }
    }

    /// True when nothing of ours is left. Until `until` replicas move away by themselves.
    fn leaving(&mut self, until: Instant, claims: Option<&Claims>) -> bool {
        let now = Instant::now();
        let pods = self.state.pods();
        if pods.is_empty() || now >= until {
            self.state.leave(now);
            if let Some(claims) = claims {
                claims.leave();
            }
        }
        let machines = claims.map_or(0, Claims::count);
        let text = match pods.first() {
            Some(some) => format!("{} Pods have not ended, {some} among them", pods.len()),
            None if claims.is_some_and(|c| !c.is_listed()) => return false,
            None if machines > 0 => format!("{machines} NodeClaims have not ended"),
            None => return true,
        };
        self.health
            .ready(Some(false), conditions::REASON_LEAVING, &text);
        false
    }

    /// Begins to look after NodeClaims, where there may be some.
    async fn claims(
        &mut self,
        link: &Link,
        object: &HyperionCluster,
        leaving: bool,
    ) -> Option<Claims> {
        let capacity = object.spec.capacity.as_ref().filter(|_| !leaving);
        let market = Market {
            capacity: capacity.cloned().map(Arc::new),
            provider: object.spec.provider.into(),
            region: object.spec.region.clone(),
            selector: object.spec.node_selector.clone(),
        };
        self.machines(Heard::Market(Box::new(market))).await;
        if object.spec.capacity.is_none() {
            self.health.capacity(None);
        }
        let some = object.status.as_ref().is_some_and(|s| s.node_claims > 0);
        if object.spec.capacity.is_none() && !some {
            return None;
        }
        let owner = object.uid().unwrap_or_default();
        let wants = self.wants.clone();
        Some(Claims::start(link.client.clone(), &owner, capacity, wants))
    }

    /// Takes what is seen of NodeClaims.
    async fn claim_said(&mut self, said: Said) {
        let heard = match said {
            Said::Works(works) => {
                let has = self.object.borrow().spec.capacity.is_some();
                self.health.capacity(has.then_some(&works));
                Heard::Closed(works.err().map(|t| t.message))
            }
            Said::Listed(all) => Heard::Listed(all),
            Said::Seen(seen) => Heard::Seen(seen),
            Said::Gone(name) => Heard::Gone(name),
            Said::Refused(name, why) => Heard::Refused(name, why),
        };
        self.machines(heard).await;
    }
}

/// What is seen of NodeClaims next; never, where they are not looked after.
async fn next(claims: &mut Option<Claims>) -> Said {
    match claims {
        Some(claims) => claims.next().await,
        None => std::future::pending().await,
    }
}

async fn ask(
    client: &kube::Client,
    (home, plugins): (&kube::Client, &Plugins),
    object: &HyperionCluster,
    all: bool,
) -> Checked {
    let answer = connect::answers(client).await;
    let (mut rights, mut source) = (None, None);
    if all {
        if answer.is_ok() {
            rights = Some(connect::rights(client).await);
        }
        source = access::source_now(home, plugins, object).await;
    }
    Checked {
        answer,
        rights,
        source,
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn watches(
    client: &kube::Client,
    owner: &str,
) -> futures::stream::SelectAll<BoxStream<'static, Seen>> {
    let nodes: Api<DeserializeGuard<Node>> = Api::all(client.clone());
    let pods: Api<DeserializeGuard<Pod>> = Api::all(client.clone());
    let config = || watcher::Config::default().timeout(WATCH);
    let ours = config().labels(&format!("{LABEL_OWNER}={owner}"));
    // Those that have ended take nothing of their nodes any more.
    let others = config()
        .labels(&format!("{LABEL_OWNER}!={owner}"))
        .fields("status.phase!=Succeeded,status.phase!=Failed");
    let nodes = watcher(nodes, config()).default_backoff();
    let ours = watcher(pods.clone(), ours).default_backoff();
    let others = watcher(pods, others).default_backoff();
    select_all([
        nodes
            .map(|e| e.map_or_else(|e| Seen::Trouble("Node", e), Seen::Node))
            .boxed(),
        ours.map(|e| e.map_or_else(|e| Seen::Trouble("Pod", e), Seen::Ours))
            .boxed(),
        others
            .map(|e| e.map_or_else(|e| Seen::Trouble("Pod", e), Seen::Other))
            .boxed(),
    ])
}

/// One that can't be read stalls nothing.
fn good<K: kube::Resource>(object: DeserializeGuard<K>) -> Option<K> {
    match object.0 {
        Ok(object) => Some(object),
        Err(e) => {
            let (namespace, name) = (e.metadata.namespace, e.metadata.name);
            warn!(?namespace, ?name, error = %e.error, "bad object of a cluster");
            None
        }
    }
}

fn name<K: kube::Resource>(object: &DeserializeGuard<K>) -> (String, String) {
    let metadata = match &object.0 {
        Ok(object) => object.meta(),
        Err(e) => &e.metadata,
    };
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}
