//! The life of a claim: asked for, launched, joined, used, given back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::capacity::Limits;
use hyperion_api::conditions;
use hyperion_placement::gpu;
use hyperion_placement::model::{GpuRequest, Node, Request, Resources};
use hyperion_providers::feeds::{Key, Offer};
use jiff::Timestamp;

use super::offers::wanted_of;
use super::{CapacityNote, Market};
use crate::clusters::claims::{Make, Purpose, Seen, Stage, Wants};
use crate::clusters::node::node_id;
use crate::index::{Index, Name, PlacementEntry, Priority};
use crate::plan::Look;

/// How long a machine that is on its way is kept for nobody: who waited for it may only have been
/// looked at again.
const NOBODY: Duration = Duration::from_secs(30);

/// How long a machine may be refused before another offer is taken: Karpenter goes on trying what the
/// cloud refuses for other reasons than capacity, quotas among them.
const REFUSED: Duration = Duration::from_secs(30);
/// Karpenter's word for that.
const LAUNCH_FAILED: &str = "LaunchFailed";

/// What a replica that waits will take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    resources: Resources,
    gpu: GpuRequest,
}

/// A NodeClaim that was made, or is about to be.
#[derive(Debug)]
pub struct Claim {
    /// Id of its offer, without its cluster; empty where nobody knows.
    pub offer: String,
    /// US dollars per hour when it was taken.
    pub price_per_hour: f64,
    /// The node that it will be; none where nobody knows.
    node: Option<Node>,
    /// To be made; none for one that was found.
    make: Option<Arc<Make>>,
    /// Replicas that wait for it.
    pub(super) waiting: BTreeMap<(Name, u32), Share>,
    /// Whose replica it was made for.
    first: Option<Name>,
    asked_at: Instant,
    /// As it was seen last; none before the first time.
    pub seen: Option<Seen>,
    /// Id of its node in the fleet, once that is known.
    pub node_id: Option<String>,
    /// Since when Karpenter says that it is refused.
    refused_since: Option<Instant>,
    /// It has had a replica.
    used: bool,
    /// Since when it is ready.
    ready_since: Option<Instant>,
    /// Since when nobody waits for it, and nothing is on it.
    empty_since: Option<Instant>,
    /// It is for a replica that has a place, and would do better here.
    upgrade: bool,
    /// That replica was looked at since it is ready.
    looked_at: bool,
    /// Why it is given back.
    pub leaving: Option<String>,
}

impl Claim {
    /// One that was asked for at this time, and of which nothing is known.
    fn asked(at: Instant) -> Self {
        Self {
            offer: String::new(),
            price_per_hour: 0.0,
            node: None,
            make: None,
            waiting: BTreeMap::new(),
            first: None,
            asked_at: at,
            seen: None,
            node_id: None,
            refused_since: None,
            used: false,
            ready_since: None,
            empty_since: None,
            upgrade: false,
            looked_at: false,
            leaving: None,
        }
    }

    fn stage(&self) -> Stage {
        self.seen.as_ref().map_or(Stage::Asked, |s| s.stage)
    }

    /// For metrics.
    pub(super) fn state(&self) -> &'static str {
        match (&self.leaving, self.stage()) {
            (Some(_), _) => "leaving",
            (None, Stage::Ready) if self.empty_since.is_some() => "empty",
            (None, stage) => stage.as_str(),
        }
    }

    /// How long it is kept for nobody.
    fn keeps(&self, limits: &Limits) -> Duration {
        if self.ready_since.is_some() || self.used {
            limits.empty
        } else {
            limits.empty.min(NOBODY)
        }
    }

    /// The node that it will be, with what is left beside those that wait.
    fn left(&self, id: String) -> Option<Node> {
        let mut node = self.node.clone()?;
        node.id = id;
        for share in self.waiting.values() {
            let free = &mut node.free;
            free.cpu_millis = free.cpu_millis.saturating_sub(share.resources.cpu_millis);
            free.memory_bytes = free
                .memory_bytes
                .saturating_sub(share.resources.memory_bytes);
            let whole = node.gpus.iter_mut().filter(|g| g.free_millis == gpu::WHOLE);
            let count = usize::try_from(share.gpu.count).unwrap_or(usize::MAX);
            whole.take(count).for_each(|g| g.free_millis = 0);
        }
        Some(node)
    }
}

/// What is wanted, of a cluster's claims.
pub(super) fn wants(claims: &BTreeMap<String, Claim>) -> Wants {
    let mut wants = Wants::default();
    for (name, claim) in claims {
        if claim.leaving.is_some() {
            wants.give_back.insert(name.clone());
        } else if let Some(make) = &claim.make {
            wants.make.insert(name.clone(), make.clone());
        }
    }
    wants
}

/// What a claim became that is not what was asked for.
fn differs(seen: &Seen, node: &Node) -> Option<String> {
    let differs = |what: &str, is: &str, asked: &str| {
        let other = !is.is_empty() && !asked.is_empty() && !is.eq_ignore_ascii_case(asked);
        other.then(|| format!("it came up with {what} {is:?}, and {asked:?} was asked for"))
    };
    differs("instance type", &seen.instance_type, &node.instance_type)
        .or_else(|| differs("zone", &seen.zone, &node.location.zone))
        .or_else(|| {
            let asked = node.capacity_type.as_str();
            differs("capacity type", &seen.capacity_type, asked)
        })
}

/// The key of an offer, by its id.
fn key_of(id: &str, market: &Market) -> Option<Key> {
    let mut parts = id.split('/');
    let mut part = || parts.next();
    let (provider, region, zone) = (part()?, part()?, part()?);
    let key = Key {
        provider: provider.parse().ok()?,
        region: region.to_owned(),
        zone: if zone == "-" { "" } else { zone }.to_owned(),
        instance_type: part()?.to_owned(),
        capacity_type: part()?.parse().ok()?,
    };
    (key.provider == market.provider && key.region == market.region).then_some(key)
}

impl Index {
    /// Claims on their way that have room, as the nodes that they will be.
    pub(crate) fn launching(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for (cluster, site) in self.machines.sites.iter().filter(|(_, s)| s.listed) {
            for (name, claim) in &site.claims {
                let joined = claim.ready_since.is_some() || claim.used;
                if claim.leaving.is_none() && !joined {
                    nodes.extend(claim.left(format!("{cluster}/{name}")));
                }
            }
        }
        nodes
    }

    /// What machines on their way cost that were asked for in a namespace, US dollars per hour.
    pub(crate) fn launching_cost(&self, namespace: &str) -> f64 {
        let coming = self.machines.claims().map(|(.., claim)| claim);
        let coming = coming.filter(|c| c.leaving.is_none() && c.ready_since.is_none() && !c.used);
        let of = |c: &&Claim| c.first.as_ref().is_some_and(|n| n.namespace == namespace);
        coming.filter(of).map(|c| c.price_per_hour).sum()
    }

    /// A replica waits for a claim.
    pub(crate) fn awaits(&self, at: &(Name, u32)) -> bool {
        let mut claims = self.machines.claims();
        claims.any(|(_, _, c)| c.waiting.contains_key(at))
    }

    /// What a replica waits for, for people; none where it waits for nothing.
    pub(crate) fn awaited(&self, at: &(Name, u32)) -> Option<String> {
        let mut claims = self.machines.claims();
        let (cluster, name, claim) = claims.find(|(_, _, c)| c.waiting.contains_key(at))?;
        let (stage, trouble) = match &claim.seen {
            Some(seen) => (seen.stage.as_str(), seen.trouble.as_str()),
            None => (Stage::Asked.as_str(), ""),
        };
        let trouble = if trouble.is_empty() {
            String::new()
        } else {
            format!(" ({trouble})")
        };
        Some(format!(
            "waits for offer {} at {} USD/h: NodeClaim {name} in cluster {cluster} is {stage}{trouble}",
            claim.offer, claim.price_per_hour
        ))
    }

    /// Has a replica wait for a claim on its way, by the id that [`Index::launching`] gave it.
    pub(crate) fn wait_for(&mut self, id: &str, at: (Name, u32), request: &Request) {
        let Some((cluster, name)) = id.split_once('/') else {
            return;
        };
        let site = self.machines.sites.get_mut(cluster);
        if let Some(claim) = site.and_then(|s| s.claims.get_mut(name)) {
            let share = Share {
                resources: request.resources,
                gpu: request.gpu,
            };
            claim.waiting.insert(at, share);
            claim.empty_since = None;
        }
    }

    /// Takes an offer for a replica, which waits for it from now on. Gives the name of the claim, and
    /// the cluster; none where there is no such offer.
    pub(crate) fn launch(
        &mut self,
        offer: &str,
        at: (Name, u32),
        uid: &str,
        request: &Request,
        now: Instant,
    ) -> Option<(String, String)> {
        let cluster = offer.split_once('/')?.0.to_owned();
        let site = self.machines.sites.get_mut(&cluster)?;
        let wanted = site.offers.iter().find(|w| w.offer.id == offer)?;
        let key = offer.split_once('/')?.1.to_owned();
        let purpose = Purpose {
            offer: key.clone(),
            price_per_hour: wanted.offer.price_per_hour,
            namespace: at.0.namespace.clone(),
            workload: at.0.name.clone(),
            uid: uid.to_owned(),
            replica: at.1,
        };
        let make = Make {
            capacity: site.market.capacity.clone()?,
            selector: site.market.selector.clone(),
            instance_type: wanted.offer.instance_type.clone(),
            region: site.market.region.clone(),
            zone: wanted.offer.location.zone.clone(),
            capacity_type: wanted.offer.capacity_type,
            resources: request.resources,
            gpu: request.gpu,
            purpose,
        };
        // Whoever leads next and decides the same finds it by its name.
        let name = (0_u64..)
            .map(|n| {
                let mark = crate::events::mark(&[uid, &at.1.to_string(), &key], n);
                format!("hyperion-{mark:016x}")
            })
            .find(|name| !site.claims.contains_key(name))?;
        let claim = Claim {
            offer: key,
            price_per_hour: wanted.offer.price_per_hour,
            node: Some(wanted.node.clone()),
            make: Some(Arc::new(make)),
            first: Some(at.0.clone()),
            ..Claim::asked(now)
        };
        site.claims.insert(name.clone(), claim);
        self.machines.changed.insert(cluster.clone());
        self.wait_for(&format!("{cluster}/{name}"), at, request);
        Some((cluster, name))
    }

    /// Forgets that replicas of a workload wait which do not any more. One that has a place waits for
    /// a better one while it is `wanted`.
    pub(crate) fn wait_only(&mut self, name: &Name, wanted: u32, waits: impl Fn(u32) -> bool) {
        for site in self.machines.sites.values_mut() {
            for claim in site.claims.values_mut() {
                let better = claim.upgrade;
                let stays = |n: u32| n < wanted && better || waits(n);
                claim.waiting.retain(|(of, n), _| of != name || stays(*n));
            }
        }
    }

    /// A replica of the workload waits for a machine.
    pub(crate) fn is_awaited(&self, name: &Name) -> bool {
        let mut claims = self.machines.claims();
        claims.any(|(_, _, c)| c.waiting.keys().any(|(of, _)| of == name))
    }

    /// Notes that a machine is bought to do better.
    pub(crate) fn is_upgrade(&mut self, cluster: &str, name: &str) {
        if let Some(claim) = self.claim_mut(cluster, name) {
            claim.upgrade = true;
        }
    }

    /// Has the replica looked at that a machine was bought for, when its node is there.
    fn look_at_upgrade(&mut self, cluster: &str, name: &str, now: Instant) {
        let Some(claim) = self.claim_mut(cluster, name) else {
            return;
        };
        let due = claim.upgrade && !claim.looked_at && claim.ready_since.is_some();
        let (Some(id), true) = (claim.node_id.clone(), due) else {
            return;
        };
        let waiting: Vec<(Name, u32)> = claim.waiting.keys().cloned().collect();
        if !self.fleet.node(&id).is_some_and(|n| n.ready) {
            return;
        }
        if let Some(claim) = self.claim_mut(cluster, name) {
            claim.looked_at = true;
        }
        for (workload, replica) in waiting {
            let look = Look {
                at: now,
                from: replica,
                confirm: true,
            };
            self.looks.insert(workload.clone(), look);
            self.touch(&workload, Priority::Normal);
        }
    }

    pub(super) fn claim_seen(&mut self, cluster: &str, seen: Seen, now: Instant) {
        let name = seen.name.clone();
        let Some(site) = self.machines.sites.get_mut(cluster) else {
            return;
        };
        if !site.claims.contains_key(&name) {
            let claim = adopted(cluster, &site.market, &seen, now);
            site.claims.insert(name.clone(), claim);
            self.machines.changed.insert(cluster.to_owned());
            self.rejoin(cluster, &name, &seen);
        }
        let Some(claim) = self.claim_mut(cluster, &name) else {
            return;
        };
        let before = claim.seen.replace(seen.clone());
        if seen.stage == Stage::Ready && claim.ready_since.is_none() {
            claim.ready_since = Some(now);
            let first = claim.first.clone();
            if let Some(first) = first {
                self.machines.failures.remove(&first);
            }
        }
        let Some(claim) = self.claim_mut(cluster, &name) else {
            return;
        };
        if seen.stage > Stage::Asked || !seen.trouble.starts_with(LAUNCH_FAILED) {
            claim.refused_since = None;
        } else {
            claim.refused_since.get_or_insert(now);
        }
        let other = claim.node.as_ref().and_then(|node| differs(&seen, node));
        let open = claim.leaving.is_none();
        if !seen.node.is_empty() && claim.node_id.is_none() {
            let id = node_id(cluster, &seen.node);
            claim.node_id = Some(id.clone());
            let at = (cluster.to_owned(), name.clone());
            self.machines.by_node.insert(id.clone(), at);
            if !open {
                self.retire_node(&id, true);
            }
        }
        let deleted = seen.deleting && open;
        if deleted {
            let why = if seen.trouble.is_empty() {
                "it was deleted".to_owned()
            } else {
                format!("it was deleted: {}", seen.trouble)
            };
            self.claim_fails(cluster, &name, &why, now);
        } else if let (Some(why), true) = (other, open) {
            self.claim_fails(cluster, &name, &why, now);
        } else if before.is_none_or(|b| (b.stage, b.trouble) != (seen.stage, seen.trouble)) {
            // Their status says how far it is.
            self.touch_waiting_of(cluster, &name);
        }
    }

    /// A claim that was found: it waits for whom it was made, where that is still wanted.
    fn rejoin(&mut self, cluster: &str, name: &str, seen: &Seen) {
        let Some(purpose) = &seen.purpose else { return };
        let workload = Name::new(&purpose.namespace, &purpose.workload);
        let at = (workload, purpose.replica);
        let entry = self.workloads.get(&at.0);
        let same = entry.filter(|w| w.uid() == purpose.uid && !w.deleting());
        let request = same
            .and_then(|w| w.template.as_ref().ok())
            .map(|t| t.request.clone());
        let placed = self.placement(&at.0, at.1).is_some();
        if let (Some(request), false) = (request, placed) {
            self.wait_for(&format!("{cluster}/{name}"), at, &request);
        }
    }

    pub(super) fn claim_gone(&mut self, cluster: &str, name: &str, now: Instant) {
        self.claim_fails(cluster, name, "its NodeClaim is gone", now);
        let site = self.machines.sites.get_mut(cluster);
        let Some(claim) = site.and_then(|s| s.claims.remove(name)) else {
            return;
        };
        self.machines.changed.insert(cluster.to_owned());
        if let Some(id) = claim.node_id {
            self.machines.by_node.remove(&id);
            self.retire_node(&id, false);
        }
    }

    pub(super) fn claim_refused(&mut self, cluster: &str, name: &str, why: &str, now: Instant) {
        self.claim_fails(cluster, name, why, now);
        if let Some(site) = self.machines.sites.get_mut(cluster) {
            // There is none to be given back.
            site.claims.remove(name);
            self.machines.changed.insert(cluster.to_owned());
        }
    }

    /// A claim does not become what was asked for, or ends: it is given back, and another offer is
    /// taken. One that is used keeps its replicas until they have moved.
    fn claim_fails(&mut self, cluster: &str, name: &str, why: &str, now: Instant) {
        let Some(claim) = self.claim_mut(cluster, name) else {
            return;
        };
        if claim.leaving.is_some() {
            return;
        }
        claim.leaving = Some(why.to_owned());
        let came = claim.ready_since.is_some() || claim.used;
        let (offer, id) = (claim.offer.clone(), claim.node_id.clone());
        let waiting = std::mem::take(&mut claim.waiting);
        self.machines.changed.insert(cluster.to_owned());
        if !came {
            self.machines
                .cool(cluster, &format!("{cluster}/{offer}"), why, now);
        }
        let text = format!("offer {offer}, NodeClaim {name} in cluster {cluster}: {why}");
        let names: BTreeSet<Name> = waiting.into_keys().map(|(name, _)| name).collect();
        for workload in &names {
            if !came {
                self.count_failure(workload, &text, now);
            }
            self.machines.note(CapacityNote {
                cluster: cluster.to_owned(),
                workload: Some(workload.clone()),
                warning: true,
                reason: conditions::EVENT_LAUNCH_FAILED,
                text: text.clone(),
            });
            self.touch(workload, Priority::High);
        }
        if names.is_empty() {
            self.given_back(cluster, true, text);
        }
        if let Some(id) = id {
            self.retire_node(&id, true);
        }
        self.touch_unplaced();
    }

    fn given_back(&mut self, cluster: &str, warning: bool, text: String) {
        self.machines.note(CapacityNote {
            cluster: cluster.to_owned(),
            workload: None,
            warning,
            reason: conditions::EVENT_GIVEN_BACK,
            text,
        });
    }

    /// Nothing new goes to a node whose machine is given back, and what is there leaves it.
    fn retire_node(&mut self, id: &str, leaves: bool) {
        let Some(entry) = self.nodes.get_mut(id).filter(|n| n.given_back != leaves) else {
            return;
        };
        entry.given_back = leaves;
        self.refresh_node(id);
        self.touch_node(id, Priority::High);
    }

    /// What is due of claims: those that do not come, and those that nobody needs.
    pub(super) fn claims_due(&mut self, now: Instant) {
        let mut all = Vec::new();
        for (cluster, site) in self.machines.sites.iter().filter(|(_, s)| s.listed) {
            let open = site.claims.iter().filter(|(_, c)| c.leaving.is_none());
            all.extend(open.map(|(name, _)| (cluster.clone(), name.clone(), site.limits)));
        }
        for (cluster, name, limits) in all {
            self.claim_due(&cluster, &name, &limits, now);
        }
    }

    fn claim_due(&mut self, cluster: &str, name: &str, limits: &Limits, now: Instant) {
        let Some(id) = self.claim_mut(cluster, name).map(|c| c.node_id.clone()) else {
            return;
        };
        let occupied = id.as_deref().is_some_and(|id| self.is_occupied(id));
        let Some(claim) = self.claim_mut(cluster, name) else {
            return;
        };
        claim.used |= occupied;
        let came = claim.ready_since.is_some() || claim.used;
        if occupied || !claim.waiting.is_empty() {
            claim.empty_since = None;
        } else {
            claim.empty_since.get_or_insert(now);
        }
        self.look_at_upgrade(cluster, name, now);
        let Some(claim) = self.claim_mut(cluster, name) else {
            return;
        };
        let refused = claim.refused_since.is_some_and(|at| at + REFUSED <= now);
        if !came && (refused || claim.asked_at + limits.launch <= now) {
            let trouble = claim.seen.as_ref().map_or("", |s| s.trouble.as_str());
            let limit = humantime::format_duration(limits.launch);
            let why = match trouble {
                "" => format!("it is not ready after {limit}"),
                trouble if refused => trouble.to_owned(),
                trouble => format!("it is not ready after {limit}: {trouble}"),
            };
            self.claim_fails(cluster, name, &why, now);
            return;
        }
        let unused = claim.ready_since.is_some_and(|at| at + limits.empty <= now);
        if unused && !occupied && !claim.used {
            // What is wrong with it is not known, and nobody is to buy it again and again.
            let why = "its node is ready, and no replica was placed there";
            let (offer, first) = (claim.offer.clone(), claim.first.clone());
            claim.ready_since = None;
            self.claim_fails(cluster, name, why, now);
            if let Some(first) = first {
                let why = format!("offer {offer}: {why}");
                self.machines.strike(&first, &why, now);
            }
            return;
        }
        if unused && !claim.waiting.is_empty() {
            // Others took the room: those that waited look for another machine.
            claim.waiting.clear();
            self.touch_unplaced();
            return;
        }
        let keeps = claim.keeps(limits);
        if claim.empty_since.is_some_and(|at| at + keeps <= now) {
            let why = "no replica needs it";
            claim.leaving = Some(why.to_owned());
            let text = format!("NodeClaim {name} ({}): {why}", claim.offer);
            self.machines.changed.insert(cluster.to_owned());
            self.given_back(cluster, false, text);
            if let Some(id) = id {
                self.retire_node(&id, true);
            }
        }
    }

    /// Replicas are on the node, or are about to be.
    fn is_occupied(&self, id: &str) -> bool {
        self.promised(id).any(PlacementEntry::takes_room) || self.leaving_on(id).next().is_some()
    }

    fn touch_waiting_of(&mut self, cluster: &str, name: &str) {
        let claim = self.claim_mut(cluster, name);
        let waiting = claim.map(|c| c.waiting.keys().map(|(n, _)| n.clone()).collect());
        let names: BTreeSet<Name> = waiting.unwrap_or_default();
        for name in names {
            self.touch(&name, Priority::Normal);
        }
    }

    fn claim_mut(&mut self, cluster: &str, name: &str) -> Option<&mut Claim> {
        self.machines.sites.get_mut(cluster)?.claims.get_mut(name)
    }

    /// Marks the node of a machine that is given back, when it is first heard of.
    pub(crate) fn mark_given_back(&mut self, id: &str) {
        let Some((cluster, name)) = self.machines.by_node.get(id).cloned() else {
            return;
        };
        let claim = self.claim_mut(&cluster, &name);
        let leaving = claim.is_some_and(|c| c.leaving.is_some());
        if let Some(entry) = self.nodes.get_mut(id) {
            entry.given_back = leaving;
        }
    }
}

/// A claim of an earlier control plane.
fn adopted(cluster: &str, market: &Market, seen: &Seen, now: Instant) -> Claim {
    let purpose = seen.purpose.as_ref();
    let key = purpose.and_then(|p| key_of(&p.offer, market));
    let price = purpose.map_or(0.0, |p| p.price_per_hour);
    let offer = key.and_then(|key| Offer::new(key, price, Timestamp::UNIX_EPOCH).ok());
    let wanted = offer.and_then(|offer| wanted_of(cluster, market, &offer));
    Claim {
        offer: purpose.map_or_else(String::new, |p| p.offer.clone()),
        price_per_hour: price,
        node: wanted.map(|w| w.node),
        first: purpose.map(|p| Name::new(&p.namespace, &p.workload)),
        ..Claim::asked(now.checked_sub(seen.age).unwrap_or(now))
    }
}
