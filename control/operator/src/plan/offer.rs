//! Machines that are launched for replicas that fit nowhere: the best offer is chosen by who chooses
//! nodes, and the replica waits. When the machine is there it is placed like any other.

use std::collections::BTreeSet;

use hyperion_api::conditions;
use hyperion_placement::Choice;
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::{Node, Offer, Request, Snapshot};

use super::Pass;
use super::better::MOVES;
use super::moves::Why;
use crate::decider::{Chance, Verdict, View, part};
use crate::index::{PlacementEntry, Template, WorkloadEntry};

/// Machines that one pass has launched, so that others get a turn.
const LAUNCHES: usize = 16;
/// So many margins better than staying a machine must be to be bought for a replica that has a place:
/// more than a node that is there, for it costs before it serves.
const MUCH: f64 = 2.0;

impl Pass<'_> {
    /// Has machines launched for replicas without a place.
    pub(super) fn launches(&mut self, workload: &WorkloadEntry, template: &Template) {
        // Some were not looked at yet: they may fit.
        let waits = self.unplaced.is_empty() || self.out.more || self.no_class.is_some();
        if waits || !self.index.may_launch() {
            return;
        }
        match self.index.launches_rest(&self.name) {
            Some(why) => self.no_offer = format!("nothing is launched for a while: {why}"),
            None => self.launch_some(workload, template),
        }
    }

    fn launch_some(&mut self, workload: &WorkloadEntry, template: &Template) {
        let wants = self.unplaced.iter().filter(|(_, why, _)| may_launch(why));
        let wants: Vec<u32> = wants.map(|(replica, ..)| *replica).collect();
        let mut launched = 0;
        for replica in wants {
            if self.is_launching(replica) {
                continue;
            }
            let mut request = self.request(template, replica);
            // What it failed on is no offer.
            request.avoid.clear();
            if !self.within_quota(&mut request, replica) {
                return;
            }
            if let Some(most) = &mut request.max_hourly_cost
                && self.index.has_quota(&self.name.namespace)
            {
                // It is spent when the machines are there.
                *most -= self.index.launching_cost(&self.name.namespace);
            }
            if self.joins(&request, replica) {
                continue;
            }
            if self.index.launches_wait() {
                return;
            }
            if launched == LAUNCHES {
                self.out.more = true;
                return;
            }
            if !self.launch_for(workload, &request, replica) {
                // The others ask for the same.
                return;
            }
            launched += 1;
        }
    }

    /// Waits for a machine that is on its way and has room.
    fn joins(&mut self, request: &Request, replica: u32) -> bool {
        let nodes = self.index.launching();
        let Some(choice) = self.choose(request, nodes, Vec::new()) else {
            return false;
        };
        let at = (self.name.clone(), replica);
        self.index.wait_for(choice.candidate.id(), at, request);
        true
    }

    fn launch_for(&mut self, workload: &WorkloadEntry, request: &Request, replica: u32) -> bool {
        let sought = self.index.seek_offers(request);
        // An offer has no labels: they were held against the node that it would be.
        let mut bare = request.clone();
        bare.node_selector.clear();
        let Some(choice) = self.choose(&bare, Vec::new(), sought.offers.clone()) else {
            self.no_offer = sought.why();
            return false;
        };
        let at = (self.name.clone(), replica);
        let uid = workload.uid().to_owned();
        let offer = choice.candidate.id().to_owned();
        let launched = self.index.launch(&offer, at, &uid, request, self.now);
        let Some((cluster, claim)) = launched else {
            return false;
        };
        let offer = offer.split_once('/').map_or("", |(_, offer)| offer);
        let note = format!(
            "replica {replica} fits on no node: {offer} is launched in cluster {cluster} for {} USD/h, as NodeClaim {claim}; it is the best of {} offers",
            choice.hourly_cost,
            sought.offers.len()
        );
        self.event(workload, false, conditions::EVENT_LAUNCHING, note);
        true
    }

    /// Has a machine launched that would be so much better than where a replica is that it pays to
    /// wait for it. The replica moves when it is there and still better, as to any other node.
    pub(super) fn outbid(
        &mut self,
        mut request: Request,
        entry: &PlacementEntry,
        verdict: &Verdict,
        staying: f64,
    ) {
        let replica = entry.key.index;
        let at = (self.name.clone(), replica);
        let rests = self.index.launches_rest(&self.name).is_some();
        if !self.index.may_launch()
            || self.index.launches_wait()
            || rests
            || self.index.is_awaited(&self.name)
            || self.index.launching().len() >= MOVES
            || !self.within_quota(&mut request, replica)
        {
            return;
        }
        let least = staying + MUCH * self.decider.margin(verdict);
        let fleet = &self.index.fleet;
        let score = |offer: &Offer| {
            let candidate = Candidate::from(offer);
            self.decider.score_of(fleet, &request, &candidate, verdict)
        };
        let whole = |offer: &Offer| {
            let most = request.max_hourly_cost;
            most.is_none_or(|most| offer.price_per_hour <= most)
        };
        let sought = self.index.seek_offers(&request);
        let offers = sought.offers.iter().filter(|offer| whole(offer));
        let best = offers
            .map(|offer| (score(offer), offer))
            .filter(|(score, _)| *score > least)
            .max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| y.id.cmp(&x.id)));
        let Some((score, offer)) = best else {
            self.index.bids_nothing(&at);
            return;
        };
        let (id, price) = (offer.id.clone(), offer.price_per_hour);
        if !self.index.bids(at.clone()) {
            // Prices and load of one moment are no reason to buy.
            return;
        }
        let Some(workload) = self.index.workloads.get(&self.name).cloned() else {
            return;
        };
        let uid = workload.uid().to_owned();
        let launched = self.index.launch(&id, at, &uid, &request, self.now);
        let Some((cluster, claim)) = launched else {
            return;
        };
        self.index.is_upgrade(&cluster, &claim);
        let offer = id.split_once('/').map_or("", |(_, offer)| offer);
        let note = format!(
            "replica {replica} would do better on a machine that can be bought: {offer} is launched in cluster {cluster} for {price} USD/h, as NodeClaim {claim}; for goal {} it scores {score:.3} there and {staying:.3} on node {}",
            request.goal, entry.spec.node
        );
        self.event(&workload, false, conditions::EVENT_LAUNCHING, note);
    }

    fn choose(
        &mut self,
        request: &Request,
        nodes: Vec<Node>,
        offers: Vec<Offer>,
    ) -> Option<Choice> {
        if nodes.is_empty() && offers.is_empty() {
            return None;
        }
        let fleet = &self.index.fleet;
        let part = Snapshot {
            offers,
            ..part(fleet, nodes)
        };
        self.out.decisions += 1;
        let view = View::Part(&part);
        let verdict = self.decider.decide(view, request, Chance::Never);
        let choice = verdict.decision.choice?;
        view.check(request, &choice).ok().map(|()| choice)
    }

    pub(super) fn is_launching(&self, replica: u32) -> bool {
        self.index.awaits(&(self.name.clone(), replica))
    }

    /// What replicas wait for, where each of those without a place waits for a machine.
    pub(super) fn launching(&self) -> Option<String> {
        let (first, ..) = self.unplaced.first()?;
        if !self.unplaced.iter().all(|(r, ..)| self.is_launching(*r)) {
            return None;
        }
        let what = self.index.awaited(&(self.name.clone(), *first))?;
        let text = format!("replica {first} {what}");
        Some(match self.unplaced.len() {
            1 => text,
            more => format!("{text} (and {} more)", more - 1),
        })
    }

    /// Forgets that replicas wait which have a place by now, or are not wanted.
    pub(super) fn settle_launches(&mut self) {
        if !self.index.may_wait() {
            return;
        }
        let unplaced: BTreeSet<u32> = self.unplaced.iter().map(|(r, ..)| *r).collect();
        let workload = self.index.workloads.get(&self.name);
        let wanted = workload.filter(|w| !w.deleting());
        let wanted = wanted.map_or(0, WorkloadEntry::replicas);
        let placed: BTreeSet<u32> = self.known().into_iter().collect();
        self.index.wait_only(&self.name, wanted, |replica| {
            unplaced.contains(&replica) || replica < wanted && !placed.contains(&replica)
        });
    }
}

/// A machine helps one that has no place. It does not help one that fails by itself.
fn may_launch(why: &Why) -> bool {
    !matches!(why, Why::Failing(..) | Why::AtRisk(..) | Why::Better(..))
}
