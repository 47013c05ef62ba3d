//! Nodes of the index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::node::{HyperionNode, HyperionNodeSpec, HyperionNodeStatus};
use hyperion_api::quantity;
use hyperion_gateway::facts::PRICE_LABEL;
use hyperion_placement::gpu;
use hyperion_placement::model::{
    CLUSTER_LABEL, CapacityType, GpuDevice, Location, Node, Provider, Resources, Supply, Taint,
    Tier,
};
use hyperion_proto::domain::{Capabilities, ReplicaKey, Report};
use hyperion_providers::feeds::Prices;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use tracing::warn;

use super::{Index, Interruption, Name, PlacementEntry, Priority, Said};

/// A node.
#[derive(Debug, Clone, Default)]
pub struct NodeEntry {
    /// What people set; none while there is no object.
    pub spec: Option<HyperionNodeSpec>,
    /// What it has: the agent's word, or until it connects what the object says.
    pub(super) facts: Option<HyperionNodeStatus>,
    /// Its stream is open.
    pub connected: bool,
    /// Why its container runtime does not answer; empty where it does, or is not known.
    pub runtime_problem: String,
    /// What its cloud is about to do to it.
    pub notice: Option<Interruption>,
    /// Its pool is left alone.
    pub cold: bool,
    /// Its machine is given back: nothing new goes there, and what is there leaves.
    pub given_back: bool,
    /// It is emptied for an update: nothing new goes there, and what is there leaves.
    pub emptied: bool,
    /// What is known of its versions.
    pub said: Said,
    /// Machines of its pool that were taken back of late, per running hour.
    pub(super) reclaims_per_hour: f32,
    /// It was connected at some time since this control plane began.
    pub seen: bool,
    /// Since when it is not connected.
    pub down_since: Option<Instant>,
    /// Replicas that it holds or was told to start, and the generation.
    pub held: BTreeMap<ReplicaKey, u64>,
    /// Reports of copies that are of no placement.
    pub stray: BTreeMap<ReplicaKey, Report>,
}

impl NodeEntry {
    /// It is a node of a Kubernetes cluster that is heard through the cluster's API.
    #[must_use]
    pub fn in_cluster(&self) -> bool {
        self.spec.as_ref().is_some_and(|s| s.cluster.is_some())
    }

    /// How long it has been out of reach; none while it is connected.
    #[must_use]
    pub fn down_for(&self, now: Instant) -> Option<Duration> {
        if self.connected {
            return None;
        }
        Some(
            self.down_since
                .map_or(Duration::ZERO, |since| now.duration_since(since)),
        )
    }

    /// Nobody has said that it takes no new replicas. Without an object it was just deleted, or its
    /// agent enrolled a moment ago.
    pub(super) fn takes_replicas(&self) -> bool {
        let shut = |s: &HyperionNodeSpec| s.unschedulable || s.draining || s.revoked;
        self.spec.as_ref().is_some_and(|s| !shut(s))
    }

    /// It takes new replicas, if its pool is not left alone.
    fn takes_some(&self) -> bool {
        self.takes_replicas()
            && self.facts.as_ref().is_some_and(|f| !f.cordoned)
            && self.notice.is_none()
            && !self.given_back
            && !self.emptied
    }

    fn node(&self, id: &str, prices: &Prices) -> Option<Node> {
        let facts = self.facts.as_ref()?;
        let spec = self.spec.clone().unwrap_or_default();
        let provider = facts.provider.map_or(Provider::Edge, Into::into);
        let capacity = allocatable(id, facts);
        let edge = provider == Provider::Edge;
        let mut labels = facts.labels.clone();
        // Not for a node to say of itself.
        labels.remove(CLUSTER_LABEL);
        let cluster = spec.cluster.as_deref().unwrap_or_default();
        for (key, value) in [
            (CLUSTER_LABEL, cluster),
            ("kubernetes.io/arch", facts.arch.as_str()),
            ("kubernetes.io/os", "linux"),
            ("hyperion.io/node", id),
            ("hyperion.io/site", spec.site.as_str()),
            ("topology.kubernetes.io/region", facts.region.as_str()),
            ("topology.kubernetes.io/zone", facts.zone.as_str()),
        ] {
            if !value.is_empty() {
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
        let capacity_type = facts.capacity_type.map_or(
            if edge {
                CapacityType::Owned
            } else {
                CapacityType::OnDemand
            },
            Into::into,
        );
        let live = if facts.labels.contains_key(PRICE_LABEL) {
            None
        } else {
            let (region, zone) = (&facts.region, &facts.zone);
            prices.of(provider, region, zone, &facts.instance_type, capacity_type)
        };
        Some(Node {
            id: id.to_owned(),
            location: Location {
                tier: facts.tier.map_or(Tier::Edge, Into::into),
                provider,
                region: facts.region.clone(),
                zone: facts.zone.clone(),
                site: spec.site,
                geography: facts.geography.map(Into::into),
            },
            arch: facts.arch.clone(),
            capacity_type,
            instance_type: facts.instance_type.clone(),
            allocatable: capacity,
            free: capacity,
            gpus: gpus(facts),
            labels,
            taints: (spec.taints.iter())
                .chain(&facts.taints)
                .map(Taint::from)
                .collect(),
            schedulable: self.takes_some() && !self.cold,
            ready: self.connected && self.runtime_problem.is_empty(),
            price_per_hour: live.map_or(facts.price_per_hour, |offer| offer.price_per_hour),
            cpu_utilization: 0.0,
            images: Vec::new(),
            supply: Supply {
                reclaims_per_hour: self.reclaims_per_hour,
                ..Supply::default()
            },
        })
    }
}

fn allocatable(id: &str, facts: &HyperionNodeStatus) -> Resources {
    let read = |name: &str, read: fn(&str, &str) -> Result<u64, hyperion_api::Invalid>| {
        let text = facts.allocatable.get(name)?;
        read(&format!("status.allocatable.{name}"), text)
            .map_err(|e| warn!(node = id, error = %e, "bad HyperionNode"))
            .ok()
    };
    Resources {
        cpu_millis: read("cpu", quantity::cpu_millis).unwrap_or(0),
        memory_bytes: read("memory", quantity::bytes).unwrap_or(0),
    }
}

fn gpus(facts: &HyperionNodeStatus) -> Vec<GpuDevice> {
    let mut gpus: Vec<GpuDevice> = facts
        .gpus
        .iter()
        .map(|g| GpuDevice {
            uuid: g.uuid.clone(),
            model: g.model.clone(),
            memory_bytes: u64::try_from(g.memory_bytes).unwrap_or(0),
            free_millis: gpu::WHOLE,
        })
        .collect();
    gpus.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    gpus
}

impl Index {
    /// Takes live prices: decisions from now on are made with them. Returns how many nodes cost
    /// something else than before. A price that is stale counts, too: nobody knows a better one.
    pub fn set_prices(&mut self, prices: Arc<Prices>) -> usize {
        let before = std::mem::replace(&mut self.prices, prices);
        // Feeds say each time what they have, and most of the time it is what they had.
        if self.prices.cost_the_same(&before) {
            return 0;
        }
        self.reprice_offers();
        let priced = |index: &Self, id: &str| index.fleet.node(id).map(|n| n.price_per_hour);
        let ids: Vec<String> = self.nodes.keys().cloned().collect();
        let mut changed = 0;
        for id in ids {
            let before = priced(self, &id);
            self.refresh_node(&id);
            changed += usize::from(priced(self, &id) != before);
        }
        if changed > 0 {
            // Some may have waited for a place that they can pay.
            self.touch_unplaced();
        }
        changed
    }

    /// A node's object was made or changed. One that can't be read counts as cordoned.
    pub fn apply_node(&mut self, object: DeserializeGuard<HyperionNode>, now: Instant) {
        let node = match object.0 {
            Ok(node) => node,
            Err(e) => {
                let id = e.metadata.name.unwrap_or_default();
                warn!(node = %id, error = %e.error, "bad HyperionNode");
                let spec = HyperionNodeSpec {
                    unschedulable: true,
                    ..HyperionNodeSpec::default()
                };
                self.nodes.entry(id).or_insert_with(|| NodeEntry {
                    spec: Some(spec),
                    down_since: Some(now),
                    ..NodeEntry::default()
                });
                return;
            }
        };
        let id = node.name_any();
        let entry = self.nodes.entry(id.clone()).or_insert_with(|| NodeEntry {
            down_since: Some(now),
            ..NodeEntry::default()
        });
        let changed = entry.spec.as_ref() != Some(&node.spec);
        entry.spec = Some(node.spec);
        // Agents' own words come sooner, and objects after them are older.
        if let Some(status) = node.status.as_ref().filter(|_| !entry.seen) {
            entry.said = Said::of(status);
        }
        let news = entry.facts.is_none() && node.status.is_some();
        if news {
            entry.facts = node.status;
            self.cool(&id);
        }
        if changed || news {
            self.refresh_node(&id);
            self.touch_node(&id, Priority::High);
            self.touch_unplaced();
        }
    }

    /// A node's object is gone: its replicas are lost at once.
    pub fn delete_node(&mut self, id: &str) {
        if let Some(entry) = self.nodes.get_mut(id) {
            entry.spec = None;
            if !entry.connected {
                self.nodes.remove(id);
            }
            self.refresh_node(id);
            self.touch_node(id, Priority::High);
        }
    }

    /// The complete list, after a watch began anew.
    pub fn reset_nodes(&mut self, list: Vec<DeserializeGuard<HyperionNode>>, now: Instant) {
        let mut gone: BTreeSet<String> = self.nodes.keys().cloned().collect();
        for object in list {
            let name = match &object.0 {
                Ok(node) => node.metadata.name.as_ref(),
                Err(e) => e.metadata.name.as_ref(),
            };
            if let Some(name) = name {
                gone.remove(name);
            }
            self.apply_node(object, now);
        }
        for id in gone {
            self.delete_node(&id);
        }
    }

    /// A node's stream is open; `runtime_problem` is empty where it can start replicas.
    pub fn node_up(&mut self, id: &str, capabilities: &Capabilities, runtime_problem: String) {
        let (facts, _) = hyperion_gateway::facts::describe(capabilities);
        self.machine_up(id, facts, runtime_problem);
    }

    /// A node is in reach, and is this; `runtime_problem` is empty where it can start replicas.
    pub fn machine_up(&mut self, id: &str, facts: HyperionNodeStatus, runtime_problem: String) {
        let told: Vec<(ReplicaKey, u64)> = self
            .promised(id)
            .filter(|p| p.moves_away() || (p.stopping.is_none() && p.may_be_told()))
            .map(|p| (p.key.clone(), u64::try_from(p.spec.generation).unwrap_or(0)))
            .collect();
        let moving: Vec<_> = self
            .promised(id)
            .filter(|p| p.moves_away())
            .map(|p| (p.workload(), p.key.index))
            .collect();
        for (name, replica) in moving {
            if let Some(entry) = self.entry_mut(&name, replica) {
                entry.returned = true;
            }
        }
        let entry = self.nodes.entry(id.to_owned()).or_default();
        entry.connected = true;
        entry.runtime_problem = runtime_problem;
        entry.seen = true;
        entry.down_since = None;
        entry.facts = Some(facts);
        // What its welcome tells it to start, and what it may have been told before: that may run
        // until the node says that it does not. Its reports say the rest.
        entry.held = told.into_iter().collect();
        entry.stray.clear();
        self.cool(id);
        self.mark_given_back(id);
        self.forget_asker(id);
        self.refresh_node(id);
        self.touch_node(id, Priority::High);
        self.touch_unplaced();
    }

    /// A node in reach is or has something else than before.
    pub fn machine_changed(&mut self, id: &str, facts: HyperionNodeStatus) {
        let Some(entry) = self.nodes.get_mut(id).filter(|n| n.connected) else {
            return;
        };
        let before = entry.facts.replace(facts);
        let places = |f: &HyperionNodeStatus| (f.taints.clone(), f.labels.clone());
        let other = before.as_ref().map(places) != entry.facts.as_ref().map(places);
        self.refresh_node(id);
        if other {
            // It may no longer be a place for what it runs.
            self.touch_node(id, Priority::Normal);
        }
        self.touch_unplaced();
    }

    /// A node's container runtime went or came back. It takes no new replicas without one; those that
    /// it has run on, or are what its reports say.
    pub fn node_runtime(&mut self, id: &str, problem: String) {
        let Some(entry) = self.nodes.get_mut(id).filter(|n| n.connected) else {
            return;
        };
        let back = problem.is_empty();
        entry.runtime_problem = problem;
        self.refresh_node(id);
        if back {
            self.touch_unplaced();
        }
    }

    /// A node's stream ended.
    pub fn node_down(&mut self, id: &str, now: Instant) {
        let Some(entry) = self.nodes.get_mut(id) else {
            return;
        };
        entry.connected = false;
        entry.down_since = Some(now);
        entry.held.clear();
        entry.stray.clear();
        if entry.spec.is_none() {
            self.nodes.remove(id);
        }
        self.forget_asker(id);
        self.refresh_node(id);
        self.touch_node(id, Priority::Normal);
    }

    /// A node as it would be without these replicas, for one that fits nowhere else: it goes to a pool
    /// that is left alone all the same.
    #[must_use]
    pub(crate) fn node_without(&self, id: &str, gone: &BTreeSet<(Name, u32)>) -> Option<Node> {
        let mut node = self.left_of(id, |p| gone.contains(&(p.workload(), p.key.index)))?;
        node.schedulable = self.nodes.get(id)?.takes_some();
        Some(node)
    }

    /// Computes what is left of a node from what is promised, but for these promises.
    fn left_of(&self, id: &str, but: impl Fn(&PlacementEntry) -> bool) -> Option<Node> {
        let entry = self.nodes.get(id)?;
        let mut node = entry.node(id, &self.prices)?;
        let promised = self
            .promised(id)
            .filter(|p| p.takes_room() && !but(p))
            .map(|p| (&p.resources, &p.spec.gpus));
        let leaving = self
            .leaving_on(id)
            .filter(|c| c.takes_room())
            .map(|c| (&c.resources, &c.gpus));
        let mut elsewhere = 0;
        for (asked, gpus) in promised.chain(leaving) {
            let free = &mut node.free;
            free.cpu_millis = free.cpu_millis.saturating_sub(asked.cpu_millis);
            free.memory_bytes = free.memory_bytes.saturating_sub(asked.memory_bytes);
            for share in gpus {
                let millis = u32::try_from(share.millis).unwrap_or(0);
                match node.gpus.iter_mut().find(|g| g.uuid == share.uuid) {
                    Some(gpu) => gpu.free_millis = gpu.free_millis.saturating_sub(millis),
                    None => elsewhere += 1,
                }
            }
        }
        if node.in_cluster() {
            // Clusters hand out any device: what was promised is of those that are left.
            let whole = node.gpus.iter_mut().rev();
            let whole = whole.filter(|g| g.free_millis == gpu::WHOLE);
            whole.take(elsewhere).for_each(|g| g.free_millis = 0);
        }
        Some(node)
    }

    /// Has decisions made with what is left of a node.
    pub(crate) fn refresh_node(&mut self, id: &str) {
        let Some(mut node) = self.left_of(id, |_| false) else {
            self.fleet.remove_node(id);
            return;
        };
        let held = self.fleet.node(id);
        node.cpu_utilization = held.map_or(0.0, |held| held.cpu_utilization);
        if held != Some(&node) {
            self.fleet.upsert_node(node);
        }
    }
}
