//! What is left on the nodes of the site.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyperion_placement::model::{
    CapacityType, GpuDevice, LatencyMatrix, Location, Node, Place, Provider, Resources, Snapshot,
    Supply, Tier,
};
use hyperion_placement::packing::{Lesson, Prices, TypicalRequests, demand_of};
use hyperion_wire::agent_v1::{PodSpec, RecordState, SiteInfo, SiteMember};
use hyperion_wire::domain::{Intent, ReplicaKey};
use hyperion_wire::peer_v1::NodeRecord;

use crate::site::{NodeEntry, ReplicaEntry, Site};

/// What one replica takes of its node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Share {
    /// CPU and memory.
    pub resources: Resources,
    /// GPUs: uuid and thousandths.
    pub gpus: Vec<(String, u32)>,
}

/// What a replica takes: as its workload wants it; of a replica without intent, what its containers
/// ask for.
#[must_use]
pub fn share_of(intent: Option<&Intent>, pod: Option<&PodSpec>) -> Share {
    let containers = pod.map(|p| p.containers.as_slice()).unwrap_or_default();
    let sum = |of: fn(&hyperion_wire::agent_v1::Container) -> i64| {
        containers
            .iter()
            .map(|c| u64::try_from(of(c)).unwrap_or(0))
            .fold(0, u64::saturating_add)
    };
    Share {
        resources: intent.map_or_else(
            || Resources {
                cpu_millis: sum(|c| c.cpu_request_millis),
                memory_bytes: sum(|c| c.memory_limit_bytes),
            },
            |intent| intent.wants.resources,
        ),
        gpus: pod.map_or_else(Vec::new, |pod| {
            pod.gpus
                .iter()
                .map(|g| (g.uuid.clone(), g.millis))
                .collect()
        }),
    }
}

/// The site as one pass of decisions sees it; each decision takes its room at once.
#[derive(Debug)]
pub struct Room {
    snapshot: Snapshot,
    /// Copies that run without a record that places them there.
    strays: BTreeMap<ReplicaKey, Vec<String>>,
}

impl Room {
    /// What the live nodes have, less what is promised and what they hold beyond that.
    #[must_use]
    pub fn of(site: &Site, live: impl Fn(&str) -> bool) -> Self {
        let info = site.info();
        let members: BTreeMap<&str, &SiteMember> = info
            .members
            .iter()
            .map(|m| (m.node_id.as_str(), m))
            .collect();
        let nodes = site
            .nodes()
            .filter(|(id, _)| live(id) && !site.is_revoked(id))
            .map(|(id, entry)| node(info, members.get(id).copied(), id, entry))
            .collect();
        let mut room = Self {
            snapshot: Snapshot {
                version: 0,
                nodes,
                offers: Vec::new(),
                latency: latency(info),
                ..Snapshot::default()
            },
            strays: BTreeMap::new(),
        };
        for (_, entry) in site.replicas() {
            match entry.state() {
                RecordState::Placed => room.take(&entry.record.node, &share(entry)),
                RecordState::Pending => room.snapshot.queue += 1,
                _ => {}
            }
        }
        room.note_strays(site);
        room.snapshot.packing = Arc::new(prices(site, &room.snapshot.nodes));
        room
    }

    /// What a node still holds although its record has gone elsewhere takes room until it ends.
    fn note_strays(&mut self, site: &Site) {
        let mut strays = Vec::new();
        for node in &self.snapshot.nodes {
            let held = site.node(&node.id).map(|n| n.record.held.as_slice());
            for held in held.unwrap_or_default() {
                let Ok(key) = hyperion_wire::convert::replica_key("held", held.key.as_ref()) else {
                    continue;
                };
                let entry = site.replica(&key);
                if entry.is_none_or(|e| !e.placed_on(&node.id)) {
                    strays.push((node.id.clone(), key, entry.map(share)));
                }
            }
        }
        for (node, key, share) in strays {
            self.take(&node, &share.unwrap_or_default());
            self.strays.entry(key).or_default().push(node);
        }
    }

    /// The snapshot as it is now.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Live nodes that hold a copy of the replica although no record places it there.
    #[must_use]
    pub fn strays(&self, key: &ReplicaKey) -> &[String] {
        self.strays.get(key).map_or(&[], Vec::as_slice)
    }

    /// The snapshot of one node alone, with room for what it holds already.
    #[must_use]
    pub fn only(&self, id: &str, held: &Share) -> Option<Snapshot> {
        let mut node = self.snapshot.node(id)?.clone();
        give(&mut node, held);
        Some(Snapshot {
            nodes: vec![node],
            offers: Vec::new(),
            latency: self.snapshot.latency.clone(),
            queue: self.snapshot.queue,
            ..Snapshot::default()
        })
    }

    /// Takes room on a node.
    pub fn take(&mut self, id: &str, share: &Share) {
        let Some(node) = self.find(id) else {
            return;
        };
        let free = &mut node.free;
        free.cpu_millis = free.cpu_millis.saturating_sub(share.resources.cpu_millis);
        free.memory_bytes = free
            .memory_bytes
            .saturating_sub(share.resources.memory_bytes);
        for (uuid, millis) in &share.gpus {
            if let Some(gpu) = node.gpus.iter_mut().find(|g| g.uuid == *uuid) {
                gpu.free_millis = gpu.free_millis.saturating_sub(*millis);
            }
        }
    }

    /// Gives room on a node back.
    pub fn give(&mut self, id: &str, share: &Share) {
        if let Some(node) = self.find(id) {
            give(node, share);
        }
    }

    fn find(&mut self, id: &str) -> Option<&mut Node> {
        let nodes = &mut self.snapshot.nodes;
        let at = nodes.binary_search_by(|n| n.id.as_str().cmp(id)).ok()?;
        nodes.get_mut(at)
    }
}

fn give(node: &mut Node, share: &Share) {
    let more = |free: u64, back: u64, all: u64| free.saturating_add(back).min(all);
    let (all, back) = (node.allocatable, share.resources);
    node.free = Resources {
        cpu_millis: more(node.free.cpu_millis, back.cpu_millis, all.cpu_millis),
        memory_bytes: more(node.free.memory_bytes, back.memory_bytes, all.memory_bytes),
    };
    for (uuid, millis) in &share.gpus {
        if let Some(gpu) = node.gpus.iter_mut().find(|g| g.uuid == *uuid) {
            gpu.free_millis = gpu.free_millis.saturating_add(*millis).min(1000);
        }
    }
}

/// What free GPU capacity is worth, from what the site's replicas want, placed or not, and from what
/// is left of its nodes. A site is small enough to learn it anew for each pass.
fn prices(site: &Site, nodes: &[Node]) -> Prices {
    let mut typical = TypicalRequests::default();
    for (key, entry) in site.replicas() {
        let here = matches!(entry.state(), RecordState::Placed | RecordState::Pending);
        if let Some(intent) = entry.intent.as_ref().filter(|_| here)
            && intent.wants.gpu.count > 0
        {
            typical.observe(demand_of(&intent.request(key)));
        }
    }
    Lesson::new(typical, nodes.iter(), Arc::default()).prices()
}

fn share(entry: &ReplicaEntry) -> Share {
    share_of(entry.intent.as_ref(), entry.record.pod.as_ref())
}

/// In the words of the control plane: labels with a wrong word get the cautious reading (edge,
/// owned, no geography).
fn node(info: &SiteInfo, member: Option<&SiteMember>, id: &str, entry: &NodeEntry) -> Node {
    let NodeEntry {
        record,
        capabilities,
        ..
    } = entry;
    let label = |key: &str| capabilities.labels.get(key).map_or("", String::as_str);
    let provider = label("hyperion.io/provider")
        .parse()
        .unwrap_or(Provider::Edge);
    let (tier, usual) = match provider {
        Provider::Edge => (Tier::Edge, CapacityType::Owned),
        _ => (Tier::Cloud, CapacityType::OnDemand),
    };
    let allocatable = Resources {
        cpu_millis: capabilities.cpu_millis,
        memory_bytes: capabilities.memory_bytes,
    };
    Node {
        id: id.to_owned(),
        location: Location {
            tier,
            provider,
            region: label("topology.kubernetes.io/region").to_owned(),
            zone: label("topology.kubernetes.io/zone").to_owned(),
            site: info.site.clone(),
            geography: label("hyperion.io/geography").parse().ok(),
        },
        arch: capabilities.arch.clone(),
        capacity_type: label("hyperion.io/capacity-type").parse().unwrap_or(usual),
        instance_type: label("node.kubernetes.io/instance-type").to_owned(),
        allocatable,
        free: allocatable,
        gpus: gpus(&capabilities.gpus),
        labels: capabilities.labels.clone(),
        taints: Vec::new(),
        schedulable: takes_replicas(record) && member.is_none_or(|m| m.schedulable),
        ready: true,
        price_per_hour: member.map_or(0.0, |m| m.price_per_hour),
        cpu_utilization: record
            .load
            .map_or(0.0, |l| l.cpu_percent.min(100) as f32 / 100.0),
        images: record.images.clone(),
        supply: Supply::default(),
    }
}

fn gpus(all: &[GpuDevice]) -> Vec<GpuDevice> {
    let whole = |gpu: &GpuDevice| GpuDevice {
        free_millis: 1000,
        ..gpu.clone()
    };
    all.iter().map(whole).collect()
}

/// True where a node takes new replicas by its own word.
fn takes_replicas(record: &NodeRecord) -> bool {
    record.accepts && !record.load.is_some_and(|l| l.throttled)
}

fn latency(info: &SiteInfo) -> LatencyMatrix {
    let rtt = |rtt: &hyperion_wire::agent_v1::PlaceRtt| {
        let (from, to) = (Place(rtt.from.clone()), Place(rtt.to.clone()));
        let pair = if from <= to { (from, to) } else { (to, from) };
        (pair, rtt.rtt_ms)
    };
    LatencyMatrix {
        rtt_ms: info.rtts.iter().map(rtt).collect(),
    }
}
