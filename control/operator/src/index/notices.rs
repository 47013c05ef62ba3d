//! Nodes that their cloud is about to take back, and pools in which that happened of late: neither
//! the replicas that have to leave nor others are to go straight back there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hyperion_api::node::HyperionNodeStatus;
use hyperion_api::workload::{CapacityType, Provider};
use hyperion_gateway::notices::{Notice, NoticeKind, worst};
use hyperion_placement::model::{self, Offer};
use jiff::Timestamp;

use super::{Index, NodeEntry, Priority};

/// How long a pool (spot machines of one type in one zone) is left alone after a machine of it was
/// taken back; twice as long for each further one.
const COOL: Duration = Duration::from_secs(600);
/// At most this, and how long a machine that was taken back counts.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Machines taken back within that time, after which a zone churns: it is left alone for spot of
/// whatever type.
const CHURN: usize = 3;
/// A machine whose end is told further ahead is taken to end then.
const FAR: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is about to happen to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interruption {
    /// What.
    pub kind: NoticeKind,
    /// When; none where no time is set.
    pub deadline: Option<Instant>,
    /// The cloud's words.
    pub detail: String,
    id: String,
    /// When, as the cloud says it.
    told: Option<Timestamp>,
}

impl Interruption {
    fn of(notice: &Notice, now: Instant, clock: Timestamp) -> Self {
        let left = |at: Timestamp| {
            let left = at.as_millisecond().saturating_sub(clock.as_millisecond());
            Duration::from_millis(u64::try_from(left).unwrap_or(0)).min(FAR)
        };
        Self {
            kind: notice.kind,
            deadline: notice.deadline.map(|at| now + left(at)),
            detail: notice.detail.clone(),
            id: notice.id.clone(),
            told: notice.deadline,
        }
    }

    /// The node's containers end, and not only may.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.kind != NoticeKind::Rebalance
    }

    /// The same notice, told again.
    fn same(&self, other: &Self) -> bool {
        (self.kind, &self.id, self.told) == (other.kind, &other.id, other.told)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Zone {
    provider: String,
    region: String,
    zone: String,
}

impl Zone {
    fn of(facts: &HyperionNodeStatus) -> Self {
        Self {
            provider: format!("{:?}", facts.provider.unwrap_or(Provider::Edge)),
            region: facts.region.clone(),
            zone: facts.zone.clone(),
        }
    }
}

/// Spot machines of one type in one zone.
type Pool = (Zone, String);

fn pool_of(entry: &NodeEntry) -> Option<Pool> {
    let facts = entry.facts.as_ref()?;
    let spot = facts.capacity_type == Some(CapacityType::Spot);
    spot.then(|| (Zone::of(facts), facts.instance_type.clone()))
}

/// A spot machine that was taken back.
#[derive(Debug, Clone)]
struct Reclaim {
    node: String,
    instance_type: String,
    at: Instant,
}

/// Pools that are left alone.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    reclaims: BTreeMap<Zone, Vec<Reclaim>>,
    /// What that comes to: until when, of a type or of all of them (empty).
    cold: BTreeMap<Zone, BTreeMap<String, Instant>>,
}

impl Pools {
    /// Counts anew what is cold.
    fn settle(&mut self, now: Instant) {
        self.cold.clear();
        self.reclaims.retain(|zone, reclaims| {
            reclaims.retain(|r| r.at + REMEMBERED > now);
            let mut cold = BTreeMap::new();
            let types: BTreeSet<&String> = reclaims.iter().map(|r| &r.instance_type).collect();
            for type_ in types {
                let of_type = reclaims.iter().filter(|r| &r.instance_type == type_);
                let times = u32::try_from(of_type.clone().count()).unwrap_or(u32::MAX);
                let cool = COOL.saturating_mul(2_u32.saturating_pow(times.saturating_sub(1)));
                if let Some(last) = of_type.map(|r| r.at).max() {
                    cold.insert(type_.clone(), last + cool.min(REMEMBERED));
                }
            }
            let mut latest: Vec<Instant> = reclaims.iter().map(|r| r.at).collect();
            latest.sort_unstable_by(|a, b| b.cmp(a));
            if let Some(third) = latest.get(CHURN - 1) {
                cold.insert(String::new(), *third + REMEMBERED);
            }
            cold.retain(|_, until| *until > now);
            if !cold.is_empty() {
                self.cold.insert(zone.clone(), cold);
            }
            !reclaims.is_empty()
        });
    }

    fn is_cold(&self, pool: &Pool) -> bool {
        let cold = self.cold.get(&pool.0);
        cold.is_some_and(|c| c.contains_key("") || c.contains_key(&pool.1))
    }

    /// Machines of a pool that were taken back in the last hour.
    fn taken_back(&self, pool: &Pool) -> usize {
        let reclaims = self.reclaims.get(&pool.0).into_iter().flatten();
        reclaims.filter(|r| r.instance_type == pool.1).count()
    }

    /// Whether a pool is left alone, and how many of its machines were taken back per running hour.
    fn of(&self, pool: &Pool, machines: &BTreeMap<Pool, usize>) -> (bool, f32) {
        let taken = self.taken_back(pool);
        let hours = machines.get(pool).copied().unwrap_or(1).max(taken).max(1);
        // Some thousands at most: exact.
        (self.is_cold(pool), taken as f32 / hours as f32)
    }

    /// When something of this changes by itself.
    fn next(&self) -> Option<Instant> {
        let cold = self.cold.values().flat_map(BTreeMap::values).copied();
        let reclaims = self.reclaims.values().flatten();
        cold.chain(reclaims.map(|r| r.at + REMEMBERED)).min()
    }
}

impl NodeEntry {
    /// When its containers end, where its cloud says so.
    #[must_use]
    pub fn ends_at(&self) -> Option<Instant> {
        let notice = self.notice.as_ref().filter(|n| n.ends())?;
        notice.deadline
    }
}

impl Index {
    /// What a node's cloud is about to do to it, the whole. Where it takes a spot machine back, its
    /// pool is left alone for a while.
    pub fn node_notices(&mut self, id: &str, said: &[Notice], now: Instant, clock: Timestamp) {
        let Some(entry) = self.nodes.get_mut(id) else {
            return;
        };
        let notice = worst(said).map(|notice| Interruption::of(notice, now, clock));
        let same = match (&entry.notice, &notice) {
            (None, None) => true,
            (Some(held), Some(told)) => held.same(told),
            _ => false,
        };
        if same {
            return;
        }
        let spot =
            |n: &Option<Interruption>| n.as_ref().is_some_and(|n| n.kind == NoticeKind::Spot);
        let (was, is) = (spot(&entry.notice), spot(&notice));
        entry.notice = notice;
        if was != is
            && let Some(facts) = entry.facts.clone()
        {
            let reclaims = self.pools.reclaims.entry(Zone::of(&facts)).or_default();
            // Taken back after all, or not: it counts once, or not at all.
            reclaims.retain(|r| r.node != id);
            if is {
                reclaims.push(Reclaim {
                    node: id.to_owned(),
                    instance_type: facts.instance_type,
                    at: now,
                });
            }
            self.warm(now);
        }
        self.refresh_node(id);
        self.touch_node(id, Priority::High);
        self.touch_unplaced();
    }

    /// When [`Index::warm`] is due.
    #[must_use]
    pub fn warm_at(&self) -> Option<Instant> {
        self.pools.next()
    }

    /// Forgets what was long ago, and uses pools again whose time is over.
    pub fn warm(&mut self, now: Instant) {
        self.pools.settle(now);
        let mut machines: BTreeMap<Pool, usize> = BTreeMap::new();
        for pool in self.nodes.values().filter_map(pool_of) {
            *machines.entry(pool).or_default() += 1;
        }
        let mut changed = Vec::new();
        for (id, entry) in &mut self.nodes {
            let Some(pool) = pool_of(entry) else { continue };
            let now = self.pools.of(&pool, &machines);
            if (entry.cold, entry.reclaims_per_hour) != now {
                (entry.cold, entry.reclaims_per_hour) = now;
                changed.push(id.clone());
            }
        }
        for id in changed {
            self.refresh_node(&id);
            self.touch_unplaced();
        }
    }

    /// What is known of the pool of a node whose facts have changed.
    pub(super) fn cool(&mut self, id: &str) {
        let Some(pool) = self.nodes.get(id).and_then(pool_of) else {
            return;
        };
        let alike = self.nodes.values().filter_map(pool_of);
        let some = !self.pools.reclaims.is_empty();
        let machines = if some {
            alike.filter(|p| *p == pool).count()
        } else {
            1
        };
        let of_pool = self
            .pools
            .of(&pool, &BTreeMap::from([(pool.clone(), machines)]));
        if let Some(entry) = self.nodes.get_mut(id) {
            (entry.cold, entry.reclaims_per_hour) = of_pool;
        }
    }

    /// Nodes that could take replicas if their pools were not left alone.
    pub(crate) fn cold_nodes(&self) -> impl Iterator<Item = &str> {
        let some = !self.pools.cold.is_empty();
        let nodes = self.nodes.iter().filter(move |_| some);
        nodes
            .filter(|(_, n)| n.cold && !n.given_back && n.notice.is_none() && n.takes_replicas())
            .map(|(id, _)| id.as_str())
    }

    /// True for an offer of a pool that is left alone.
    pub(super) fn is_cold_offer(&self, offer: &Offer) -> bool {
        let at = &offer.location;
        let zone = Zone {
            provider: format!("{:?}", Provider::from(at.provider)),
            region: at.region.clone(),
            zone: at.zone.clone(),
        };
        let pool = (zone, offer.instance_type.clone());
        offer.capacity_type == model::CapacityType::Spot && self.pools.is_cold(&pool)
    }

    /// When a node's containers end, where its cloud says so.
    #[must_use]
    pub fn ends_at(&self, node: &str) -> Option<Instant> {
        self.nodes.get(node)?.ends_at()
    }

    /// Time that is left to stop something on a node before it ends; none where no end is told.
    #[must_use]
    pub fn time_to_stop(&self, node: &str, now: Instant) -> Option<Duration> {
        let end = self.ends_at(node)?;
        Some(
            end.saturating_duration_since(now)
                .saturating_sub(LAST_WORDS),
        )
    }
}

/// What it takes for an order to stop to reach the node, and for its answer to come back.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(3);
