//! Machines that can be bought, and those that were: offers of clusters in which Karpenter launches
//! machines, and the NodeClaims that were made there.
//!
//! - here: clusters, what is to be made and given back, and when something is due;
//! - [`offers`]: what can be had, at what price, and what is left alone for a while;
//! - [`claims`]: the life of a claim.
//!
//! A replica that fits nowhere waits for a claim, and is placed by an ordinary decision when the
//! claim's node is there. Nothing rests on the claim's being for it: another may take the room, and
//! the replica then waits for the next.

mod claims;
mod offers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::capacity::{Capacity, Limits};
use hyperion_placement::model::Provider;

use super::{Index, Name, Priority};
use crate::clusters::claims::{Seen, Wants};

pub use claims::Claim;
use offers::{Rest, Wanted};

/// How often claims are looked at: whether they come, and whether somebody needs them.
const LOOK: Duration = Duration::from_secs(2);

/// Machines that did not come, after which nothing is launched for a workload for a while.
const TRIES: u32 = 8;

/// What clusters say of machines that can be launched in them.
#[derive(Debug, Clone)]
pub enum Heard {
    /// The cluster is followed, and this may be launched in it.
    Market(Box<Market>),
    /// Nothing can be launched now, for this reason; none where it can.
    Closed(Option<String>),
    /// All claims that there are.
    Listed(Vec<Seen>),
    /// A claim was made or changed.
    Seen(Box<Seen>),
    /// A claim is gone.
    Gone(String),
    /// A claim is not taken, and why.
    Refused(String, String),
    /// The cluster is not followed now.
    Away,
    /// There is no such cluster any more.
    Over,
}

/// What may be launched in a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Market {
    /// By the words of its HyperionCluster; none where nothing may be.
    pub capacity: Option<Arc<Capacity>>,
    /// Whose machines.
    pub provider: Provider,
    /// Where.
    pub region: String,
    /// Labels of the nodes that are ours to use.
    pub selector: BTreeMap<String, String>,
}

/// Something to tell people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityNote {
    /// Of which cluster.
    pub cluster: String,
    /// Of which workload, where it is of one.
    pub workload: Option<Name>,
    /// It needs a person's attention.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub text: String,
}

/// A cluster in which machines may be launched.
#[derive(Debug)]
struct Site {
    market: Market,
    limits: Limits,
    /// Its claims are listed, and it is followed.
    listed: bool,
    /// Why nothing can be launched.
    closed: Option<String>,
    offers: Vec<Wanted>,
    claims: BTreeMap<String, Claim>,
}

impl Site {
    fn open(&self) -> bool {
        self.listed && self.closed.is_none()
    }

    /// Another machine at this price is within the bounds.
    fn affords(&self, price: f64) -> bool {
        let held = self.claims.values().filter(|c| c.leaving.is_none());
        let spent: f64 = held.clone().map(|c| c.price_per_hour).sum();
        let bound = self.limits.hourly_cost;
        held.count() < self.limits.nodes && bound.is_none_or(|most| spent + price <= most)
    }
}

/// Machines that can be bought, and those that were.
#[derive(Debug, Default)]
pub(crate) struct Machines {
    sites: BTreeMap<String, Site>,
    /// Nothing is launched before: nodes that there are may not have been heard of yet.
    not_before: Option<Instant>,
    /// Offers that are left alone, by cluster and id.
    cooling: BTreeMap<(String, String), Rest>,
    /// Workloads that did not use what was launched for them.
    strikes: BTreeMap<Name, Rest>,
    /// When claims were looked at last.
    looked: Option<Instant>,
    /// Machines that did not come for a workload, since one came last.
    failures: BTreeMap<Name, u32>,
    /// Replicas that would have done better on a machine that can be bought, at their last look.
    bids: BTreeSet<(Name, u32)>,
    /// Claims by the node that they became.
    by_node: BTreeMap<String, (String, String)>,
    /// Clusters in which other claims are wanted than was told.
    changed: BTreeSet<String>,
    notes: Vec<CapacityNote>,
}

impl Machines {
    fn note(&mut self, note: CapacityNote) {
        self.notes.push(note);
    }

    /// Has nothing launched for a workload for a while: longer each time.
    fn strike(&mut self, name: &Name, why: &str, now: Instant) {
        let rest = Rest::again(self.strikes.get(name), why, now);
        self.strikes.insert(name.clone(), rest);
    }

    fn claims(&self) -> impl Iterator<Item = (&String, &String, &Claim)> {
        let sites = self.sites.iter();
        sites.flat_map(|(cluster, site)| site.claims.iter().map(move |(n, c)| (cluster, n, c)))
    }
}

impl Index {
    /// Nothing is launched before this time.
    pub fn launch_from(&mut self, at: Instant) {
        self.machines.not_before = Some(at);
    }

    /// Takes what a cluster says of machines.
    pub fn machines_heard(&mut self, cluster: &str, heard: Heard, now: Instant) {
        match heard {
            Heard::Market(market) => self.market(cluster, *market),
            Heard::Closed(why) => {
                if let Some(site) = self.machines.sites.get_mut(cluster)
                    && site.closed != why
                {
                    site.closed = why;
                    self.touch_unplaced();
                }
            }
            Heard::Listed(all) => {
                let Some(site) = self.machines.sites.get_mut(cluster) else {
                    return;
                };
                let first = !std::mem::replace(&mut site.listed, true);
                let mut gone: BTreeSet<String> = site.claims.keys().cloned().collect();
                for seen in all {
                    gone.remove(&seen.name);
                    self.claim_seen(cluster, seen, now);
                }
                for name in gone {
                    // One that was just asked for is in no list yet.
                    let site = self.machines.sites.get(cluster);
                    let claim = site.and_then(|s| s.claims.get(&name));
                    if claim.is_some_and(|c| c.seen.is_some()) {
                        self.claim_gone(cluster, &name, now);
                    }
                }
                if first {
                    self.touch_unplaced();
                }
            }
            Heard::Seen(seen) => self.claim_seen(cluster, *seen, now),
            Heard::Gone(name) => self.claim_gone(cluster, &name, now),
            Heard::Refused(name, why) => self.claim_refused(cluster, &name, &why, now),
            Heard::Away => {
                if let Some(site) = self.machines.sites.get_mut(cluster) {
                    site.listed = false;
                }
            }
            Heard::Over => self.no_market(cluster),
        }
    }

    fn market(&mut self, cluster: &str, market: Market) {
        let held = self.machines.sites.get(cluster);
        if market.capacity.is_none() && held.is_none_or(|s| s.claims.is_empty()) {
            self.no_market(cluster);
            return;
        }
        let capacity = market.capacity.as_ref();
        // The schema has read the times already.
        let limits = capacity.and_then(|c| c.limits().ok()).unwrap_or_default();
        let offers = offers::of_market(cluster, &market, self.prices());
        let claims = self.machines.sites.remove(cluster);
        let site = Site {
            limits,
            listed: false,
            closed: None,
            offers,
            claims: claims.map(|s| s.claims).unwrap_or_default(),
            market,
        };
        self.machines.sites.insert(cluster.to_owned(), site);
        self.machines.changed.insert(cluster.to_owned());
    }

    fn no_market(&mut self, cluster: &str) {
        let Some(site) = self.machines.sites.remove(cluster) else {
            return;
        };
        self.machines.cooling.retain(|(of, _), _| of != cluster);
        self.machines.by_node.retain(|_, (of, _)| of != cluster);
        self.machines.changed.insert(cluster.to_owned());
        for claim in site.claims.values() {
            self.touch_waiting(claim);
        }
    }

    /// Takes prices over into the offers of all clusters.
    pub(super) fn reprice_offers(&mut self) {
        let clusters: Vec<String> = self.machines.sites.keys().cloned().collect();
        for cluster in clusters {
            let site = self.machines.sites.get(&cluster);
            let market = site.map(|s| s.market.clone());
            let Some(market) = market else { continue };
            let offers = offers::of_market(&cluster, &market, self.prices());
            if let Some(site) = self.machines.sites.get_mut(&cluster) {
                site.offers = offers;
                self.touch_unplaced();
            }
        }
    }

    /// Clusters in which other claims are wanted than at the last call.
    pub fn take_wants(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.machines.changed)
    }

    /// All claims that are wanted in a cluster.
    #[must_use]
    pub fn claims_wanted(&self, cluster: &str) -> Wants {
        let site = self.machines.sites.get(cluster);
        site.map(|s| claims::wants(&s.claims)).unwrap_or_default()
    }

    /// What people are to be told since the last call.
    pub fn take_capacity_notes(&mut self) -> Vec<CapacityNote> {
        std::mem::take(&mut self.machines.notes)
    }

    /// Claims, for counting: cluster and state.
    pub fn claim_states(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let claims = self.machines.claims();
        claims.map(|(cluster, _, claim)| (cluster.as_str(), claim.state()))
    }

    /// When [`Index::machines_due`] is due.
    #[must_use]
    pub fn machines_due_at(&self) -> Option<Instant> {
        let some = self.machines.claims().next();
        let claims = some.map(|_| {
            self.machines
                .looked
                .map_or_else(Instant::now, |at| at + LOOK)
        });
        let cooling = self.machines.cooling.values().map(Rest::due);
        let strikes = self.machines.strikes.values().map(Rest::due);
        let first = self.machines.not_before.filter(|_| self.may_launch());
        let rests = cooling.chain(strikes);
        rests.chain(claims).chain(first).min()
    }

    /// There are clusters in which something may be launched.
    pub(crate) fn may_launch(&self) -> bool {
        let mut sites = self.machines.sites.values();
        sites.any(|s| s.market.capacity.is_some())
    }

    /// Notes that a replica would do better on a machine that can be bought; true where that was so
    /// at its last look, too.
    pub(crate) fn bids(&mut self, at: (Name, u32)) -> bool {
        let again = self.machines.bids.remove(&at);
        if !again {
            self.machines.bids.insert(at);
        }
        again
    }

    /// Notes that it would not.
    pub(crate) fn bids_nothing(&mut self, at: &(Name, u32)) {
        self.machines.bids.remove(at);
    }

    /// Nothing is launched yet.
    pub(crate) fn launches_wait(&self) -> bool {
        self.machines.not_before.is_some()
    }

    /// Until when nodes that were not heard yet may still be on their way, where that is not over.
    pub(crate) fn settles_at(&self, now: Instant) -> Option<Instant> {
        self.machines.not_before.filter(|at| *at > now)
    }

    /// Replicas may wait for machines.
    pub(crate) fn may_wait(&self) -> bool {
        self.machines.claims().next().is_some()
    }

    /// Does what is due: takes other offers for machines that do not come, gives those back that
    /// nobody needs, and uses offers again that were left alone.
    pub fn machines_due(&mut self, now: Instant) {
        if self.machines.not_before.is_some_and(|at| at <= now) {
            self.machines.not_before = None;
            self.touch_unplaced();
        }
        let rests = self.machines.cooling.values_mut();
        let rests = rests.chain(self.machines.strikes.values_mut());
        let mut over = false;
        for rest in rests {
            over |= rest.ends(now);
        }
        if over {
            self.touch_unplaced();
        }
        self.machines.cooling.retain(|_, rest| !rest.forgotten(now));
        self.machines.strikes.retain(|_, rest| !rest.forgotten(now));
        self.machines.looked = Some(now);
        let workloads = &self.workloads;
        self.machines
            .bids
            .retain(|(of, _)| workloads.contains_key(of));
        let failures = &mut self.machines.failures;
        failures.retain(|of, _| workloads.contains_key(of));
        self.claims_due(now);
    }

    /// Until when nothing is launched for a workload, since it did not use what was.
    pub(crate) fn launches_rest(&self, name: &Name) -> Option<&str> {
        let rest = self.machines.strikes.get(name)?;
        rest.on().then_some(rest.why.as_str())
    }

    /// Counts a machine that did not come for a workload. After some it rests: what is wrong is not
    /// one offer, and dearer ones are not to be gone through in a row.
    fn count_failure(&mut self, name: &Name, why: &str, now: Instant) {
        let count = self.machines.failures.entry(name.clone()).or_default();
        *count += 1;
        if *count >= TRIES {
            self.machines.failures.remove(name);
            self.machines.strike(name, why, now);
        }
    }

    fn touch_waiting(&mut self, claim: &Claim) {
        let names: BTreeSet<&Name> = claim.waiting.keys().map(|(name, _)| name).collect();
        for name in names {
            self.touch(name, Priority::High);
        }
    }
}
