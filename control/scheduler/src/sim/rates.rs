//! What accrues to whom: rewards, dollars and latency, by what is where now.

use hyperion_placement::latency::{self, P99_FACTOR};
use hyperion_placement::reward::{JOB_P99_MS, Weights};

use super::event::Event;
use super::host::{Promise, State};
use super::replica::{Life, Rate};
use super::simulator::{CandidateAt, Simulator};
use super::{GIVE_BACK_HOURS, WAIT_PENALTY};

/// What a replica meets on a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Index of the machine's shape.
    pub shape: usize,
    /// US dollars per hour of all of it.
    pub price: f64,
    /// Dominant share of the replica.
    pub share: f64,
    /// Sum of the dominant shares there, this one included.
    pub shares: f64,
    /// Thousandths of cores that are busy, this replica's included.
    pub busy: f64,
}

impl Terms {
    /// US dollars per hour that the replica answers for: who is alone on a bought instance pays
    /// all of it, nobody pays less than the own share. None where the price is not known.
    pub fn cost(&self, owned: bool) -> Option<f64> {
        let price = self.price;
        if !price.is_finite() || price < 0.0 || (price == 0.0 && !owned) {
            return None;
        }
        let part = if owned {
            self.share
        } else {
            self.share
                .max(self.share / self.shares.max(f64::MIN_POSITIVE))
        };
        Some(price * part.min(1.0))
    }

    /// US dollars per hour that are paid for it, which on an instance add up to its price.
    fn usd(&self, owned: bool) -> f64 {
        let part = if owned {
            self.share
        } else {
            self.share / self.shares.max(f64::MIN_POSITIVE)
        };
        if self.price.is_finite() {
            self.price.max(0.0) * part.min(1.0)
        } else {
            0.0
        }
    }
}

impl Simulator {
    pub(super) fn weights(&self, index: usize) -> Weights {
        self.config.weights.of(self.replicas[index].request.goal)
    }

    /// Brings a replica's account up to now.
    pub(super) fn settle(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if let Some(p99) = replica.rate.p99_ms {
            self.tails[replica.goal()].add(p99, self.now - replica.settled);
        }
        replica.settle(self.now);
    }

    pub(super) fn terms(&self, index: usize, host: usize) -> Terms {
        let at = &self.hosts[host];
        let promise = at.promises.iter().find(|p| p.replica == index);
        Terms {
            shape: at.shape,
            price: at.price,
            share: promise.map_or(0.0, |p| p.share),
            shares: at.shares,
            busy: at.busy,
        }
    }

    /// What a replica earns while it serves or works on such terms.
    pub(super) fn earns(&self, index: usize, terms: &Terms) -> Rate {
        let request = &self.replicas[index].request;
        let weights = self.weights(index);
        let shape = &self.shapes[terms.shape];
        let mut rate = Rate {
            reward: terms
                .cost(shape.owned)
                .map_or(0.0, |usd| weights.cost_term(usd)),
            usd: terms.usd(shape.owned),
            ..Rate::default()
        };
        if self.replicas[index].is_job() {
            rate.working = true;
            rate.reward += weights.latency / JOB_P99_MS;
            return rate;
        }
        rate.serving = true;
        let all = shape.node.allocatable.cpu_millis.max(1) as f64;
        rate.p99_ms = self.pair(index, terms.shape).rtt_ms.map(|rtt| {
            rtt * P99_FACTOR
                + latency::sojourn_p99_ms(latency::service_ms(request), terms.busy / all)
        });
        rate.reward += rate.p99_ms.map_or(0.0, |p99| weights.latency_term(p99));
        rate.missed = request
            .latency_target_ms
            .is_some_and(|target| rate.p99_ms.is_none_or(|p99| p99 > target));
        rate
    }

    /// Computes anew what accrues to a replica.
    pub(super) fn rerate(&mut self, index: usize) {
        self.settle(index);
        if self.replicas[index].life != Life::Here {
            return;
        }
        let coming = self.coming_host(index).map(|h| self.terms(index, h));
        let owned = |terms: &Terms| self.shapes[terms.shape].owned;
        let mut rate = match self.replicas[index].serving {
            Some(host) => {
                let mut rate = self.earns(index, &self.terms(index, host));
                // Two copies are paid while a service moves.
                let second = coming.and_then(|t| t.cost(owned(&t))).unwrap_or(0.0);
                rate.reward -= usd_reward(&self.weights(index), second);
                rate
            }
            None => Rate {
                reward: WAIT_PENALTY,
                missed: !self.replicas[index].is_job(),
                ..Rate::default()
            },
        };
        rate.usd += coming.map_or(0.0, |t| t.usd(owned(&t)));
        self.replicas[index].rate = rate;
    }

    /// Computes anew what a host is like and what accrues to those on it.
    pub(super) fn refresh(&mut self, host: usize) {
        let at = &self.hosts[host];
        let serving = at.promises.iter().filter(|p| {
            let replica = &self.replicas[p.replica];
            replica.serving == Some(host)
        });
        let busy = serving.map(|p| self.busy_millis(p.replica)).sum::<f64>();
        let shares = at.promises.iter().map(|p| p.share).sum();
        let all = self.shapes[at.shape].node.allocatable.cpu_millis.max(1) as f64;
        self.hosts[host].busy = busy;
        self.hosts[host].shares = shares;
        if let Some(node) = self.view.node(&self.hosts[host]) {
            node.cpu_utilization = (busy / all) as f32;
        }
        for at in 0..self.hosts[host].promises.len() {
            self.rerate(self.hosts[host].promises[at].replica);
        }
        self.recount_neighbours(host);
    }

    /// Thousandths of cores that a replica keeps busy while it serves or works.
    pub(super) fn busy_millis(&self, index: usize) -> f64 {
        let asked = self.replicas[index].request.resources.cpu_millis as f64;
        self.scenario.workloads[index].load.at(self.now).max(0.0) * asked
    }

    /// Gives a replica room on a host.
    pub(super) fn promise(&mut self, index: usize, host: usize, gpus: Vec<(String, u32)>) {
        self.settle_idle(host);
        let request = &self.replicas[index].request;
        let promise = Promise {
            replica: index,
            share: self.shapes[self.hosts[host].shape].share(request),
            gpus,
        };
        self.view
            .promise(&self.hosts[host], request, &promise, true);
        let at = &mut self.hosts[host];
        at.promises.push(promise);
        at.idle_since = None;
        at.idle_epoch += 1;
        at.last = index;
        self.refresh(host);
    }

    /// Takes a replica's room on a host away.
    pub(super) fn release(&mut self, host: usize, index: usize) {
        let at = &mut self.hosts[host];
        let Some(which) = at.promises.iter().position(|p| p.replica == index) else {
            return;
        };
        let promise = at.promises.remove(which);
        at.last = index;
        let (idle, bought) = (at.promises.is_empty(), at.shape < self.pools.len());
        if idle && bought && at.state != State::Gone {
            at.idle_since = Some(self.now);
            at.idle_epoch += 1;
            let event = Event::GiveBack(host, at.idle_epoch);
            self.agenda.at(self.now + GIVE_BACK_HOURS, event);
        }
        let request = &self.replicas[index].request;
        self.view
            .promise(&self.hosts[host], request, &promise, false);
        self.refresh(host);
        self.rerate(index);
        self.freed = true;
    }

    /// Who left an instance last pays for the time that it stands idle.
    pub(super) fn settle_idle(&mut self, host: usize) {
        let at = &mut self.hosts[host];
        let (Some(since), shape) = (at.idle_since, at.shape) else {
            return;
        };
        at.idle_since = Some(self.now);
        let Some(pool) = self.scenario.pools.get(shape) else {
            return;
        };
        let usd = pool.price.integral(since, self.now).max(0.0);
        if usd.is_finite() {
            self.replicas[at.last].account.usd += usd;
        }
    }

    pub(super) fn pay_idle(&mut self) {
        for host in 0..self.hosts.len() {
            self.settle_idle(host);
        }
    }

    /// Hours from a promise on a machine that is up to serving: image, data, loading.
    pub(super) fn start_hours(&self, index: usize, shape: usize, images: &[String]) -> f64 {
        let workload = &self.scenario.workloads[index];
        let wanted = &workload.request.images;
        let absent = wanted.iter().filter(|i| !images.contains(i)).count();
        let gib = workload.image_gib * absent as f64 / wanted.len().max(1) as f64;
        super::transfer_hours(gib, self.shapes[shape].network_gbps)
            + self.pair(index, shape).data_hours
            + workload.load_hours
    }

    /// Begins a start on a host that is up and where room is promised.
    pub(super) fn start(&mut self, index: usize, host: usize) {
        let shape = self.hosts[host].shape;
        let images = self.view.find(&self.hosts[host]).map(|n| &*n.images);
        let hours = self.start_hours(index, shape, images.unwrap_or(&[]));
        let usd = self.pair(index, shape).egress_usd;
        let lost = usd_reward(&self.weights(index), usd);
        let replica = &mut self.replicas[index];
        replica.account.usd += usd;
        replica.account.egress_usd += usd;
        replica.account.reward -= lost;
        let event = Event::Started(index, replica.epoch);
        self.agenda.at(self.now + hours, event);
    }

    /// Terms on which a replica would be at a candidate.
    pub(super) fn terms_at(&self, index: usize, at: CandidateAt) -> Terms {
        let request = &self.replicas[index].request;
        let busy = self.busy_millis(index);
        match at {
            CandidateAt::Node(i) => {
                let host = self.view.hosts[i];
                let at = &self.hosts[host];
                if at.promises.iter().any(|p| p.replica == index) {
                    return self.terms(index, host);
                }
                let share = self.shapes[at.shape].share(request);
                Terms {
                    shape: at.shape,
                    price: at.price,
                    share,
                    shares: at.shares + share,
                    busy: at.busy + busy,
                }
            }
            CandidateAt::Offer(i) => {
                let shape = self.view.pools[i];
                let share = self.shapes[shape].share(request);
                Terms {
                    shape,
                    price: self.view.snapshot.offers[i].price_per_hour,
                    share,
                    shares: share,
                    busy,
                }
            }
        }
    }
}

/// Reward lost for dollars beyond the hourly cost.
pub(super) fn usd_reward(weights: &Weights, usd: f64) -> f64 {
    weights.extra_usd_term(usd)
}
