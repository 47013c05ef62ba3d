//! The episode in play: what is where now, and what is decided next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hyperion_placement::choose::{CandidateRef, Considered};
use hyperion_placement::cost;
use hyperion_placement::features::{self, Features, Kind};
use hyperion_placement::filter::{Candidate, Constraint, first_rejection};
use hyperion_placement::latency;
use hyperion_placement::model::{Location, Request, Snapshot};
use hyperion_placement::reward::{RewardWeights, Weights};

use super::SimConfig;
use super::event::{Agenda, Event};
use super::host::{Host, Shape, shapes};
use super::neighbours::Neighbours;
use super::outcome::{Outcome, Tail};
use super::random;
use super::replica::{Coming, Life, Replica};
use super::truth::Now;
use super::view::View;
use crate::scenario::{Path, Scenario, Workload};

/// What is known of a workload at a location whatever the hour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub rtt_ms: Option<f64>,
    pub data_rtt_ms: Option<f64>,
    pub egress_usd: f64,
    /// Hours to bring the data there.
    pub data_hours: f64,
}

/// Why a replica is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It has nowhere to be.
    Place,
    /// It may be better elsewhere.
    Reconsider,
}

/// A decision that waits for its answer.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub replica: usize,
    pub feasible: Vec<CandidateAt>,
    pub rejected: BTreeMap<Constraint, usize>,
    /// Host whose promise was given back for the time of the decision.
    pub lent: Option<usize>,
}

/// A candidate by its position in the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CandidateAt {
    Node(usize),
    Offer(usize),
}

/// Counts of an episode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Decisions.
    pub decisions: u64,
    /// Instances that were bought.
    pub launches: u64,
    /// Launches that were refused.
    pub refused: u64,
    /// Instances that were reclaimed.
    pub reclaims: u64,
}

/// One decision to make.
pub struct DecisionPoint<'a> {
    /// Index of the workload.
    pub workload: usize,
    /// Hours.
    pub hour: f64,
    /// The view on which it is made.
    pub snapshot: &'a Snapshot,
    /// What is asked.
    pub request: &'a Request,
    /// What passed the filter, never empty.
    pub candidates: Vec<Considered<'a>>,
    /// How many candidates each constraint ruled out.
    pub rejected: &'a BTreeMap<Constraint, usize>,
    simulator: &'a Simulator,
}

impl<'a> DecisionPoint<'a> {
    /// What the candidates would truly earn.
    #[must_use]
    pub const fn truth(&self) -> Now<'a> {
        Now {
            simulator: self.simulator,
        }
    }
}

/// One episode in play.
#[derive(Debug, Clone)]
pub struct Simulator {
    pub(super) scenario: Arc<Scenario>,
    pub(super) config: SimConfig,
    pub(super) now: f64,
    pub(super) agenda: Agenda,
    pub(super) view: View,
    pub(super) shapes: Vec<Shape>,
    pub(super) pairs: Vec<Vec<Pair>>,
    pub(super) hosts: Vec<Host>,
    /// Nodes of devices that are down.
    pub(super) down: BTreeMap<usize, hyperion_placement::model::Node>,
    pub(super) replicas: Vec<Replica>,
    pub(super) waiting: BTreeSet<usize>,
    pub(super) due: VecDeque<(usize, Why)>,
    /// Capacity came free: who waits is decided anew.
    pub(super) freed: bool,
    pub(super) pending: Option<Pending>,
    /// How each pool is doing.
    pub(super) pools: Vec<PoolState>,
    pub(super) tails: [Tail; 3],
    pub(super) counts: Counts,
    /// When a workload was over, and what all had earned by then.
    pub(super) over: Vec<Option<(f64, f64)>>,
    /// What replicas do to their neighbours, where that is counted.
    pub(super) neighbours: Option<Neighbours>,
    /// Hour from which on prices of GPU capacity are learned anew; none where nobody asks.
    pub(super) lesson_at: Option<f64>,
    finished: bool,
}

/// How a pool is doing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PoolState {
    /// Instances, and launches in flight.
    pub taken: u32,
    pub launches: u64,
    /// Cools down until, hours.
    pub cool: f64,
    pub obtainable: bool,
}

impl Simulator {
    /// An episode before its first event.
    #[must_use]
    pub fn new(scenario: &Arc<Scenario>, config: SimConfig) -> Self {
        let (shapes, locations) = shapes(scenario);
        let pairs = scenario
            .workloads
            .iter()
            .map(|w| locations.iter().map(|l| pair(scenario, w, l)).collect())
            .collect();
        let mut simulator = Self {
            now: 0.0,
            agenda: Agenda::new(scenario.horizon),
            view: View::new(scenario),
            pairs,
            shapes,
            hosts: Vec::new(),
            down: BTreeMap::new(),
            replicas: scenario
                .workloads
                .iter()
                .map(|w| Replica::new(w.request.clone()))
                .collect(),
            waiting: BTreeSet::new(),
            due: VecDeque::new(),
            freed: false,
            pending: None,
            pools: vec![PoolState::default(); scenario.pools.len()],
            tails: [Tail::default(), Tail::default(), Tail::default()],
            counts: Counts::default(),
            over: vec![None; scenario.workloads.len()],
            neighbours: None,
            lesson_at: None,
            finished: false,
            scenario: Arc::clone(scenario),
            config,
        };
        simulator.begin();
        simulator
    }

    fn begin(&mut self) {
        let scenario = Arc::clone(&self.scenario);
        for (index, pool) in scenario.pools.iter().enumerate() {
            self.pools[index].obtainable = pool.obtainable.at(0.0) > 0.0;
            self.watch(&pool.obtainable, 0.0, Event::Pool(index));
            self.watch(&pool.price, 0.0, Event::Price(index));
            self.check_offer(index);
        }
        for (index, device) in scenario.devices.iter().enumerate() {
            self.begin_device(index);
            self.watch(&device.up, 0.0, Event::Device(index));
        }
        for (index, workload) in scenario.workloads.iter().enumerate() {
            self.agenda
                .at(workload.arrival.max(0.0), Event::Arrival(index));
        }
    }

    /// Notes the next change of a path.
    pub(super) fn watch(&mut self, path: &Path, after: f64, event: Event) {
        if let Some(hour) = path.next_change(after) {
            self.agenda.at(hour, event);
        }
    }

    /// Virtual time, hours.
    #[must_use]
    pub const fn now(&self) -> f64 {
        self.now
    }

    /// What one workload asks for.
    pub(super) fn request(&self, workload: usize) -> &Request {
        &self.scenario.workloads[workload].request
    }

    /// What one workload earned so far.
    #[must_use]
    pub fn earned(&self, workload: usize) -> f64 {
        self.replicas
            .get(workload)
            .map_or(0.0, |r| r.reward_at(self.now))
    }

    /// What all earned so far.
    #[must_use]
    pub fn team(&self) -> f64 {
        self.replicas.iter().map(|r| r.reward_at(self.now)).sum()
    }

    /// When a workload was deleted or finished, hours, and what all had earned by then.
    #[must_use]
    pub fn over(&self, workload: usize) -> Option<(f64, f64)> {
        *self.over.get(workload)?
    }

    /// US dollars paid for instances so far.
    #[must_use]
    pub fn instances_usd(&self) -> f64 {
        let pools = &self.scenario.pools;
        let bought = self.hosts.iter().filter(|h| h.shape < pools.len());
        bought
            .map(|h| {
                let until = h.ended.unwrap_or(self.now);
                pools[h.shape].price.integral(h.bought, until)
            })
            .sum()
    }

    /// Plays on to the next decision; none at the end of the episode. A decision that is not
    /// answered by [`Self::act`] counts as answered with none.
    pub fn next_decision(&mut self) -> Option<DecisionPoint<'_>> {
        if self.pending.is_some() {
            self.act(None);
        }
        if self.advance() { self.point() } else { None }
    }

    fn advance(&mut self) -> bool {
        while !self.finished {
            while let Some((replica, why)) = self.due.pop_front() {
                if self.wants(replica, why) && self.prepare(replica) {
                    return true;
                }
            }
            if std::mem::take(&mut self.freed) && !self.waiting.is_empty() {
                self.due
                    .extend(self.waiting.iter().map(|w| (*w, Why::Place)));
                continue;
            }
            match self.agenda.pop() {
                Some((hour, event)) => {
                    self.now = self.now.max(hour);
                    self.handle(event);
                }
                None => self.finish(),
            }
        }
        false
    }

    fn wants(&self, index: usize, why: Why) -> bool {
        let replica = &self.replicas[index];
        if replica.life != Life::Here || replica.coming != Coming::No {
            return false;
        }
        match (why, replica.serving) {
            (_, None) | (Why::Reconsider, Some(_)) => true,
            (Why::Place, Some(host)) => self.hosts[host].state == super::host::State::Dying,
        }
    }

    /// Filters; true where there is something to decide.
    fn prepare(&mut self, index: usize) -> bool {
        self.view.look(self.now, &self.hosts);
        self.learn_prices();
        self.view.snapshot.version += 1;
        self.view.snapshot.queue = self.waiting.len() as u32;
        let replica = &mut self.replicas[index];
        if replica.is_job() {
            replica.settle(self.now);
            let left = self.scenario.workloads[index].work_hours - replica.work;
            replica.request.expected_hours = Some(left.max(0.0));
        }
        replica.request.current = replica.serving.map(|h| self.hosts[h].id.clone());
        let lent = replica.serving;
        self.lend(index, lent, false);
        let request = &self.replicas[index].request;
        let snapshot = &self.view.snapshot;
        let mut feasible = Vec::new();
        let mut rejected = BTreeMap::new();
        let nodes = snapshot.nodes.iter().enumerate();
        let nodes = nodes.map(|(i, n)| (CandidateAt::Node(i), Candidate::from(n)));
        let offers = snapshot.offers.iter().enumerate();
        let offers = offers.map(|(i, o)| (CandidateAt::Offer(i), Candidate::from(o)));
        for (at, candidate) in nodes.chain(offers) {
            match first_rejection(request, &candidate) {
                Some(constraint) => *rejected.entry(constraint).or_insert(0) += 1,
                None => feasible.push(at),
            }
        }
        if feasible.is_empty() {
            self.lend(index, lent, true);
            self.wait(index);
            return false;
        }
        self.counts.decisions += 1;
        self.replicas[index].account.decisions += 1;
        self.pending = Some(Pending {
            replica: index,
            feasible,
            rejected,
            lent,
        });
        true
    }

    /// Gives the room of a replica's promise back to the node that it runs on, or takes it again:
    /// at a decision, staying must look as it is.
    pub(super) fn lend(&mut self, index: usize, host: Option<usize>, take: bool) {
        let Some(host) = host else { return };
        let host = &self.hosts[host];
        if let Some(promise) = host.promises.iter().find(|p| p.replica == index) {
            let request = &self.replicas[index].request;
            self.view.promise(host, request, promise, take);
        }
    }

    /// The decision that waits.
    fn point(&self) -> Option<DecisionPoint<'_>> {
        let pending = self.pending.as_ref()?;
        let request = &self.replicas[pending.replica].request;
        let weights = RewardWeights::default().of(request.goal);
        let candidates = pending.feasible.iter().map(|at| {
            let candidate = self.candidate(*at);
            let features = self.features(pending.replica, *at, &candidate, &weights);
            Considered {
                candidate,
                features,
            }
        });
        Some(DecisionPoint {
            workload: pending.replica,
            hour: self.now,
            snapshot: &self.view.snapshot,
            request,
            candidates: candidates.collect(),
            rejected: &pending.rejected,
            simulator: self,
        })
    }

    pub(super) fn candidate(&self, at: CandidateAt) -> Candidate<'_> {
        match at {
            CandidateAt::Node(i) => Candidate::from(&self.view.snapshot.nodes[i]),
            CandidateAt::Offer(i) => Candidate::from(&self.view.snapshot.offers[i]),
        }
    }

    pub(super) fn shape_of(&self, at: CandidateAt) -> usize {
        match at {
            CandidateAt::Node(i) => self.hosts[self.view.hosts[i]].shape,
            CandidateAt::Offer(i) => self.view.pools[i],
        }
    }

    pub(super) fn pair(&self, replica: usize, shape: usize) -> &Pair {
        &self.pairs[replica][self.shapes[shape].location]
    }

    /// As `features::encode`, with what does not change looked up once an episode: round trips are
    /// found by the text of two places, which costs more than all else together.
    pub(super) fn features(
        &self,
        replica: usize,
        at: CandidateAt,
        candidate: &Candidate<'_>,
        weights: &Weights,
    ) -> Features {
        let request = &self.replicas[replica].request;
        let pair = self.pair(replica, self.shape_of(at));
        let kind = Kind {
            hourly_cost: cost::replica_share(request, candidate),
            client_rtt_ms: pair.rtt_ms,
            data_rtt_ms: pair.data_rtt_ms,
            egress_usd: pair.egress_usd,
        };
        let (fit, p99_ms) = features::encode_fit(&kind, weights, request, candidate);
        Features {
            node: features::encode_node(candidate),
            pair: features::encode_pair(&kind, weights, request, candidate),
            fit,
            hourly_cost: kind.hourly_cost,
            p99_ms,
            data_rtt_ms: kind.data_rtt_ms,
        }
    }

    /// Where in the snapshot a node or an offer is.
    pub(super) fn find(&self, choice: &CandidateRef) -> Option<CandidateAt> {
        match choice {
            CandidateRef::Node(id) => {
                let nodes = &self.view.snapshot.nodes;
                let at = nodes.binary_search_by(|n| n.id.cmp(id)).ok()?;
                Some(CandidateAt::Node(at))
            }
            CandidateRef::Offer(id) => {
                let offers = &self.view.snapshot.offers;
                let at = offers.iter().position(|o| o.id == *id)?;
                Some(CandidateAt::Offer(at))
            }
        }
    }

    fn finish(&mut self) {
        self.now = self.scenario.horizon;
        self.finished = true;
        self.pay_idle();
        for index in 0..self.replicas.len() {
            self.settle(index);
        }
    }

    /// Figures of what was played so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::of(self)
    }

    /// Hours from asking a pool for the launch of a number to a node.
    pub(super) fn boot_hours(&self, pool: usize, launch: u64) -> f64 {
        self.scenario.pools[pool].boot_hours
            * random::boot_factor(self.scenario.seed, pool as u64, launch)
    }
}

fn pair(scenario: &Scenario, workload: &Workload, location: &Location) -> Pair {
    let request = &workload.request;
    let here = latency::place_of(location);
    let data = request.data_locality.as_ref();
    Pair {
        rtt_ms: latency::client_rtt_ms(&scenario.latency, request, location),
        data_rtt_ms: data.and_then(|from| scenario.latency.rtt(from, &here)),
        egress_usd: cost::egress_usd(request, location),
        data_hours: super::data_hours(scenario, request, location),
    }
}
