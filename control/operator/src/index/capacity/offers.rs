//! What can be had in a cluster, at what price, and what is left alone for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hyperion_placement::filter::{Candidate, Constraint, first_rejection};
use hyperion_placement::model::{
    CLUSTER_LABEL, CapacityType, Node, Offer, Request, Resources, Taint,
};
use hyperion_providers::feeds::{self, Key, Prices};
use hyperion_providers::prices::PRICES;
use jiff::Timestamp;

use super::{Machines, Market};
use crate::clusters::claims::object;
use crate::index::Index;

/// How long an offer is left alone after a machine of it did not come; twice as long for each further
/// time. As long as a pool from which a machine was taken back.
const COOL: Duration = Duration::from_secs(600);
/// At most so long, and how long a time counts.
const MOST: Duration = Duration::from_secs(3600);
/// Spot offers of a cluster that are left alone at a time, from which on all of them are: what is on
/// demand is taken.
const SPOT_TRIES: usize = 3;
/// Time from asking for a machine until a replica can start there: published times of the three
/// clouds lie between one and three minutes.
const STARTUP_S: f32 = 120.0;

/// An offer of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Its id begins with the cluster's name.
    pub(super) offer: Offer,
    /// The node that it would be: what selectors and taints are held against.
    pub(super) node: Node,
}

/// Something that is left alone for a while.
#[derive(Debug)]
pub(super) struct Rest {
    times: u32,
    until: Instant,
    over: bool,
    /// Why, for people.
    pub(super) why: String,
}

impl Rest {
    /// Once more: longer than the last time.
    pub(super) fn again(before: Option<&Self>, why: &str, now: Instant) -> Self {
        let times = before.map_or(0, |rest| rest.times) + 1;
        let wait = COOL.saturating_mul(2_u32.saturating_pow(times - 1));
        Self {
            times,
            until: now + wait.min(MOST),
            over: false,
            why: why.to_owned(),
        }
    }

    pub(super) const fn on(&self) -> bool {
        !self.over
    }

    /// When something of it changes by itself.
    pub(super) fn due(&self) -> Instant {
        if self.over {
            self.until + MOST
        } else {
            self.until
        }
    }

    /// True where it has just ended.
    pub(super) fn ends(&mut self, now: Instant) -> bool {
        let ends = !self.over && self.until <= now;
        self.over |= ends;
        ends
    }

    pub(super) fn forgotten(&self, now: Instant) -> bool {
        self.over && self.due() <= now
    }
}

/// What can be had in a cluster. Live prices count before those of the table.
pub(super) fn of_market(cluster: &str, market: &Market, prices: &Prices) -> Vec<Wanted> {
    let Some(capacity) = &market.capacity else {
        return Vec::new();
    };
    let here = |key: &Key| {
        let zone =
            key.zone.is_empty() || capacity.zones.is_empty() || capacity.zones.contains(&key.zone);
        key.provider == market.provider
            && key.region == market.region
            && zone
            && capacity.takes_type(&key.instance_type)
            && capacity.takes_capacity(key.capacity_type.into())
    };
    // How old a price is does not matter: nobody knows a better one.
    let live = prices
        .offers(Timestamp::UNIX_EPOCH)
        .map(|known| known.offer);
    let mut all: Vec<feeds::Offer> = live.filter(|o| here(&o.key)).cloned().collect();
    let known: BTreeSet<(String, CapacityType)> = all
        .iter()
        .map(|o| (o.key.instance_type.clone(), o.key.capacity_type))
        .collect();
    let table = table(market).filter(|o| {
        here(&o.key) && !known.contains(&(o.key.instance_type.clone(), o.key.capacity_type))
    });
    all.extend(table);
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    for offer in all {
        // One that holds in the whole region is tried zone by zone.
        let zones = if offer.key.zone.is_empty() && !capacity.zones.is_empty() {
            capacity.zones.clone()
        } else {
            vec![offer.key.zone.clone()]
        };
        for zone in zones {
            let mut of_zone = offer.clone();
            of_zone.key.zone = zone;
            if let Some(one) = wanted_of(cluster, market, &of_zone) {
                wanted.entry(one.offer.id.clone()).or_insert(one);
            }
        }
    }
    wanted.into_values().collect()
}

fn table(market: &Market) -> impl Iterator<Item = feeds::Offer> {
    let rows = PRICES
        .iter()
        .filter(|row| row.0 == market.provider && row.1 == market.region);
    rows.flat_map(|row| {
        let prices = [
            (CapacityType::OnDemand, Some(row.3)),
            (CapacityType::Spot, row.4),
        ];
        prices.into_iter().filter_map(|(capacity_type, price)| {
            let key = Key {
                provider: row.0,
                instance_type: row.2.to_owned(),
                region: row.1.to_owned(),
                zone: String::new(),
                capacity_type,
            };
            feeds::Offer::new(key, price?, Timestamp::UNIX_EPOCH).ok()
        })
    })
}

/// One offer, with what its node will have left for Pods; none for a type that is not known.
pub(super) fn wanted_of(cluster: &str, market: &Market, offer: &feeds::Offer) -> Option<Wanted> {
    let mut offer = offer.for_placement()?;
    offer.allocatable = allocatable(offer.allocatable);
    offer.startup_s = STARTUP_S;
    offer.id = format!("{cluster}/{}", offer.id);
    let node = would_be(cluster, market, &offer);
    Some(Wanted { offer, node })
}

/// What a kubelet leaves of a machine, as GKE and AKS reckon it; EKS leaves more.
fn allocatable(has: Resources) -> Resources {
    const GIB: u64 = 1 << 30;
    let cores = has.cpu_millis / 1000;
    let cpu = match cores {
        0 => 0,
        1 => 60,
        2 => 70,
        3 => 75,
        more => 80 + (more - 4) * 5 / 2,
    };
    // Shares of the first 4 GiB, the next 4, 8, 112, and the rest, and what evictions begin at.
    let mut left = has.memory_bytes;
    let mut memory = 356 << 20;
    for (size, percent) in [(4, 25), (4, 20), (8, 10), (112, 6), (u64::MAX / GIB, 2)] {
        let part = left.min(size * GIB);
        memory += part / 100 * percent;
        left -= part;
    }
    Resources {
        cpu_millis: has.cpu_millis.saturating_sub(cpu),
        memory_bytes: has.memory_bytes.saturating_sub(memory),
    }
}

/// The node that an offer would be.
fn would_be(cluster: &str, market: &Market, offer: &Offer) -> Node {
    let at = &offer.location;
    let capacity = market.capacity.as_deref();
    let own = capacity.map(|c| object::labels(&c.labels, &market.selector));
    let mut labels = own.unwrap_or_default();
    for (key, value) in [
        (CLUSTER_LABEL, cluster),
        ("kubernetes.io/arch", offer.arch.as_str()),
        ("kubernetes.io/os", "linux"),
        (
            "node.kubernetes.io/instance-type",
            offer.instance_type.as_str(),
        ),
        ("karpenter.sh/capacity-type", offer.capacity_type.as_str()),
        ("topology.kubernetes.io/region", at.region.as_str()),
        ("topology.kubernetes.io/zone", at.zone.as_str()),
    ] {
        if !value.is_empty() {
            labels.insert(key.to_owned(), value.to_owned());
        }
    }
    let taints = capacity.into_iter().flat_map(|c| &c.taints);
    Node {
        labels,
        taints: taints.map(Taint::from).collect(),
        ..offer.node(offer.id.clone())
    }
}

/// Offers that can be taken for a request, and what rules the others out.
#[derive(Debug, Default)]
pub(crate) struct Sought {
    /// As decisions take them: what selectors and taints say has been seen to.
    pub(crate) offers: Vec<Offer>,
    /// Offers that there are.
    pub(crate) all: usize,
    rejected: BTreeMap<Constraint, usize>,
    cooling: usize,
    beyond: usize,
    closed: BTreeSet<String>,
}

impl Sought {
    /// Why there is none, for people; empty where nothing may be launched anywhere.
    pub(crate) fn why(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        if self.all > 0 {
            let mut out: Vec<String> = self
                .rejected
                .iter()
                .map(|(constraint, count)| format!("{count} ruled out by {constraint}"))
                .collect();
            let left = self.offers.len();
            for (count, what) in [
                (self.cooling, "left alone, since a machine did not come"),
                (
                    self.beyond,
                    "beyond maxNodes or maxHourlyCost of the cluster",
                ),
                (left, "not chosen"),
            ] {
                if count > 0 {
                    out.push(format!("{count} {what}"));
                }
            }
            parts.push(format!("no offer of {}: {}", self.all, out.join(", ")));
        }
        parts.extend(self.closed.iter().cloned());
        parts.join("; ")
    }
}

impl Machines {
    /// True for an offer that is left alone, and for spot where several are.
    fn is_cooling(&self, cluster: &str, offer: &Offer) -> bool {
        let of_cluster = |id: &str| {
            let rest = self.cooling.get(&(cluster.to_owned(), id.to_owned()));
            rest.is_some_and(Rest::on)
        };
        if of_cluster(&offer.id) {
            return true;
        }
        let spot = |id: &str| id.ends_with(CapacityType::Spot.as_str());
        let tried = self
            .cooling
            .iter()
            .filter(|((of, id), rest)| of == cluster && spot(id) && rest.on());
        offer.capacity_type == CapacityType::Spot && tried.count() >= SPOT_TRIES
    }

    /// Leaves an offer alone for a while.
    pub(super) fn cool(&mut self, cluster: &str, offer: &str, why: &str, now: Instant) {
        let key = (cluster.to_owned(), offer.to_owned());
        let held = self.cooling.get(&key);
        // Several machines of it that did not come are one time.
        if !held.is_some_and(Rest::on) {
            let rest = Rest::again(held, why, now);
            self.cooling.insert(key, rest);
        }
    }
}

impl Index {
    /// Offers that can be taken for a request.
    pub(crate) fn seek_offers(&self, request: &Request) -> Sought {
        let mut sought = Sought::default();
        let sites = self.machines.sites.iter();
        for (cluster, site) in sites.filter(|(_, s)| s.market.capacity.is_some()) {
            if !site.open() {
                let why = site.closed.as_deref().unwrap_or("it is not followed yet");
                sought.closed.insert(format!(
                    "nothing can be launched in cluster {cluster}: {why}"
                ));
                continue;
            }
            for wanted in &site.offers {
                sought.all += 1;
                if let Some(c) = first_rejection(request, &Candidate::from(&wanted.node)) {
                    *sought.rejected.entry(c).or_default() += 1;
                } else if self.machines.is_cooling(cluster, &wanted.offer)
                    || self.is_cold_offer(&wanted.offer)
                {
                    sought.cooling += 1;
                } else if !site.affords(wanted.offer.price_per_hour) {
                    sought.beyond += 1;
                } else {
                    sought.offers.push(wanted.offer.clone());
                }
            }
        }
        sought
    }
}
