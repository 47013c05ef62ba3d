//! What happens: the world's events.

use std::sync::Arc;

use super::event::Event;
use super::host::{Host, State};
use super::random;
use super::replica::{Coming, Life};
use super::simulator::{Simulator, Why};
use super::{NOTICE_HOURS, PATIENCE_HOURS};

impl Simulator {
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Price(pool) => self.price_changed(pool),
            Event::Load(replica) => self.load_changed(replica),
            Event::Checkpoint(replica, epoch) => self.checkpoint(replica, epoch),
            Event::Finished(replica, epoch) if self.holds(replica, epoch) => self.end(replica),
            Event::Finished(..) => {}
            Event::End(replica) => self.end(replica),
            Event::Ready(host) => self.ready(host),
            Event::LaunchFailed(replica, epoch, pool) => self.launch_failed(replica, epoch, pool),
            Event::Started(replica, epoch) => self.started(replica, epoch),
            Event::Pool(pool) => self.pool_changed(pool),
            Event::Device(device) => self.device_changed(device),
            Event::Death(host) => self.fell(host),
            Event::GiveBack(host, epoch) => self.give_back(host, epoch),
            Event::CooledDown(pool) => {
                self.check_offer(pool);
                self.freed = true;
            }
            Event::Arrival(replica) => self.arrive(replica),
            Event::Retry(replica) => {
                if self.waiting.contains(&replica) {
                    self.due.push_back((replica, Why::Place));
                }
            }
            Event::Reconsider(replica) => self.reconsider(replica),
        }
    }

    fn holds(&self, replica: usize, epoch: u32) -> bool {
        let replica = &self.replicas[replica];
        replica.epoch == epoch && replica.life == Life::Here
    }

    fn arrive(&mut self, index: usize) {
        let scenario = Arc::clone(&self.scenario);
        let workload = &scenario.workloads[index];
        let replica = &mut self.replicas[index];
        replica.life = Life::Here;
        replica.settled = self.now;
        if !replica.is_job() {
            self.agenda.at(workload.end, Event::End(index));
        }
        self.watch(&workload.load, self.now, Event::Load(index));
        let period = self.config.reconsider_hours;
        if period > 0.0 {
            let phase = random::phase(&workload.request.replica) * period;
            let next = ((self.now - phase) / period).floor() * period + phase + period;
            self.agenda.at(next, Event::Reconsider(index));
        }
        self.waiting.insert(index);
        self.rerate(index);
        self.due.push_back((index, Why::Place));
    }

    fn reconsider(&mut self, index: usize) {
        let replica = &self.replicas[index];
        if replica.life == Life::Over {
            return;
        }
        if replica.serving.is_some_and(|h| self.hosts[h].alive()) {
            self.due.push_back((index, Why::Reconsider));
        }
        let next = self.now + self.config.reconsider_hours;
        self.agenda.at(next, Event::Reconsider(index));
    }

    /// A workload is deleted, or its work is done.
    fn end(&mut self, index: usize) {
        self.settle(index);
        let replica = &mut self.replicas[index];
        if replica.is_job() {
            replica.work = self.scenario.workloads[index].work_hours;
            replica.save();
        }
        let places = [replica.serving.take(), self.coming_host(index)];
        let replica = &mut self.replicas[index];
        replica.coming = Coming::No;
        replica.epoch += 1;
        replica.life = Life::Over;
        replica.account.over = Some(self.now);
        replica.rate = super::replica::Rate::default();
        self.waiting.remove(&index);
        self.over[index] = Some((self.now, self.team()));
        for host in places.into_iter().flatten() {
            self.release(host, index);
        }
    }

    pub(super) fn coming_host(&self, index: usize) -> Option<usize> {
        match self.replicas[index].coming {
            Coming::Host(host) => Some(host),
            Coming::No | Coming::Refused => None,
        }
    }

    fn checkpoint(&mut self, index: usize, epoch: u32) {
        if self.holds(index, epoch) {
            self.settle(index);
            self.replicas[index].save();
            let every = self.scenario.workloads[index].checkpoint_hours;
            self.agenda
                .at(self.now + every, Event::Checkpoint(index, epoch));
        }
    }

    fn started(&mut self, index: usize, epoch: u32) {
        let Some(host) = self.coming_host(index).filter(|_| self.holds(index, epoch)) else {
            return;
        };
        self.settle(index);
        let replica = &mut self.replicas[index];
        let old = replica.serving.replace(host);
        replica.coming = Coming::No;
        replica.epoch += 1;
        let epoch = replica.epoch;
        if let Some(node) = self.view.node(&self.hosts[host]) {
            for image in &replica.request.images {
                if !node.images.contains(image) {
                    node.images.push(image.clone());
                }
            }
        }
        if replica.is_job() {
            let workload = &self.scenario.workloads[index];
            let left = (workload.work_hours - replica.work).max(0.0);
            self.agenda
                .at(self.now + left, Event::Finished(index, epoch));
            if workload.checkpoint_hours > 0.0 {
                let first = self.now + workload.checkpoint_hours;
                self.agenda.at(first, Event::Checkpoint(index, epoch));
            }
        }
        if let Some(old) = old {
            self.release(old, index);
        }
        self.refresh(host);
    }

    fn load_changed(&mut self, index: usize) {
        if self.replicas[index].life != Life::Here {
            return;
        }
        let scenario = Arc::clone(&self.scenario);
        self.watch(
            &scenario.workloads[index].load,
            self.now,
            Event::Load(index),
        );
        if let Some(host) = self.replicas[index].serving {
            self.refresh(host);
        }
    }

    fn price_changed(&mut self, pool: usize) {
        let scenario = Arc::clone(&self.scenario);
        let path = &scenario.pools[pool].price;
        self.watch(path, self.now, Event::Price(pool));
        let price = path.at(self.now);
        if let Some(offer) = self.view.any_offer(pool) {
            offer.price_per_hour = price;
        }
        let of_pool = |h: &Host| h.shape == pool && h.state != State::Gone;
        let hosts = 0..self.hosts.len();
        let hosts: Vec<usize> = hosts.filter(|h| of_pool(&self.hosts[*h])).collect();
        for host in hosts {
            self.hosts[host].price = price;
            if let Some(node) = self.view.node(&self.hosts[host]) {
                node.price_per_hour = price;
            }
            self.refresh(host);
        }
    }

    fn pool_changed(&mut self, pool: usize) {
        let scenario = Arc::clone(&self.scenario);
        let pool_of = &scenario.pools[pool];
        self.watch(&pool_of.obtainable, self.now, Event::Pool(pool));
        let open = pool_of.obtainable.at(self.now) > 0.0;
        let was = std::mem::replace(&mut self.pools[pool].obtainable, open);
        let spot = pool_of.offer.capacity_type == hyperion_placement::model::CapacityType::Spot;
        if was && !open && spot {
            for host in 0..self.hosts.len() {
                if self.hosts[host].shape == pool && self.hosts[host].state == State::Up {
                    self.notice(host);
                }
            }
        }
    }

    /// An instance is to die: nobody may be placed there, and who is there is decided anew.
    fn notice(&mut self, host: usize) {
        self.counts.reclaims += 1;
        self.view.hide(&self.hosts[host]);
        self.hosts[host].state = State::Dying;
        self.agenda.at(self.now + NOTICE_HOURS, Event::Death(host));
        for index in self.residents(host) {
            self.cancel_coming(index, host);
            self.due.push_back((index, Why::Place));
        }
    }

    /// A start that can't come to its end.
    fn cancel_coming(&mut self, index: usize, host: usize) {
        if self.replicas[index].coming != Coming::Host(host) {
            return;
        }
        self.settle(index);
        let replica = &mut self.replicas[index];
        replica.coming = Coming::No;
        replica.epoch += 1;
        let serves = replica.serving.is_some();
        self.release(host, index);
        if serves {
            self.due.push_back((index, Why::Reconsider));
        } else {
            self.waiting.insert(index);
        }
        self.rerate(index);
    }

    /// A machine is no more, and with it what ran there.
    fn fell(&mut self, host: usize) {
        self.settle_idle(host);
        self.hosts[host].state = State::Gone;
        for index in self.residents(host) {
            if self.replicas[index].serving == Some(host) {
                self.settle(index);
                let replica = &mut self.replicas[index];
                replica.lose();
                replica.serving = None;
                // Who moves away already goes on moving.
                if replica.coming == Coming::No {
                    replica.epoch += 1;
                }
                self.release(host, index);
                if self.replicas[index].coming == Coming::No {
                    self.waiting.insert(index);
                    self.due.push_back((index, Why::Place));
                }
                self.rerate(index);
            } else {
                self.cancel_coming(index, host);
                self.due.push_back((index, Why::Place));
            }
        }
        self.gone(host);
    }

    /// Indices of the replicas that have room on a host.
    fn residents(&self, host: usize) -> Vec<usize> {
        let promises = self.hosts[host].promises.iter();
        promises.map(|p| p.replica).collect()
    }

    pub(super) fn begin_device(&mut self, device: usize) {
        let scenario = Arc::clone(&self.scenario);
        let described = &scenario.devices[device];
        let mut node = described.node.clone();
        node.free = node.allocatable;
        node.cpu_utilization = 0.0;
        let up = described.up.at(self.now) > 0.0;
        let host = self.hosts.len();
        self.hosts.push(Host {
            shape: scenario.pools.len() + device,
            id: node.id.clone(),
            state: if up { State::Up } else { State::Gone },
            promises: Vec::new(),
            price: node.price_per_hour,
            busy: 0.0,
            shares: 0.0,
            bought: 0.0,
            ended: None,
            idle_since: None,
            idle_epoch: 0,
            last: 0,
        });
        if up {
            self.view.show(host, node);
        } else {
            self.down.insert(host, node);
        }
    }

    /// Devices are the first hosts, in order.
    fn device_changed(&mut self, device: usize) {
        let scenario = Arc::clone(&self.scenario);
        let path = &scenario.devices[device].up;
        self.watch(path, self.now, Event::Device(device));
        let up = path.at(self.now) > 0.0;
        match (self.hosts[device].state, up) {
            (State::Gone, true) => {
                self.hosts[device].state = State::Up;
                if let Some(node) = self.down.remove(&device) {
                    self.view.show(device, node);
                }
                self.refresh(device);
                self.freed = true;
            }
            (State::Up, false) => {
                self.fell(device);
                if let Some(mut node) = self.view.hide(&self.hosts[device]) {
                    node.cpu_utilization = 0.0;
                    self.down.insert(device, node);
                }
            }
            _ => {}
        }
    }

    fn ready(&mut self, host: usize) {
        if self.hosts[host].state != State::Booting {
            return;
        }
        self.hosts[host].state = State::Up;
        let scenario = Arc::clone(&self.scenario);
        let pool = self.hosts[host].shape;
        let mut node = scenario.pools[pool].offer.node(self.hosts[host].id.clone());
        node.price_per_hour = self.hosts[host].price;
        if let Some(offer) = self.view.any_offer(pool) {
            node.supply = offer.supply;
        }
        self.view.show(host, node);
        for promise in &self.hosts[host].promises {
            let request = &self.replicas[promise.replica].request;
            self.view.promise(&self.hosts[host], request, promise, true);
        }
        for index in self.residents(host) {
            self.start(index, host);
        }
        self.refresh(host);
        self.freed = true;
    }

    fn launch_failed(&mut self, index: usize, epoch: u32, pool: usize) {
        self.pools[pool].taken -= 1;
        self.pools[pool].cool = self.now + super::COOL_DOWN_HOURS;
        self.agenda
            .at(self.pools[pool].cool, Event::CooledDown(pool));
        self.check_offer(pool);
        if self.holds(index, epoch) && self.replicas[index].coming == Coming::Refused {
            self.settle(index);
            let replica = &mut self.replicas[index];
            replica.coming = Coming::No;
            replica.epoch += 1;
            if replica.serving.is_some() {
                self.due.push_back((index, Why::Reconsider));
            } else {
                self.waiting.insert(index);
                self.due.push_back((index, Why::Place));
            }
            self.rerate(index);
        }
    }

    /// Shows the offer of a pool, or hides it.
    pub(super) fn check_offer(&mut self, pool: usize) {
        let state = &self.pools[pool];
        let open = state.taken < self.scenario.pools[pool].limit && self.now >= state.cool;
        self.view.offer(pool, open);
    }

    fn give_back(&mut self, host: usize, epoch: u32) {
        let at = &self.hosts[host];
        if at.idle_epoch != epoch || !at.promises.is_empty() || at.state == State::Gone {
            return;
        }
        if at.state == State::Dying {
            return;
        }
        self.settle_idle(host);
        self.view.hide(&self.hosts[host]);
        self.hosts[host].state = State::Gone;
        self.gone(host);
    }

    /// A slot of the pool that the instance came from is free again.
    fn gone(&mut self, host: usize) {
        self.hosts[host].idle_since = None;
        if let Some(pool) = self.hosts[host].pool(self.scenario.pools.len()) {
            self.hosts[host].ended = Some(self.now);
            self.pools[pool].taken -= 1;
            self.check_offer(pool);
        }
        self.freed = true;
    }

    /// Will be decided anew within five minutes.
    pub(super) fn wait(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if replica.waits() && replica.retry_at <= self.now {
            replica.retry_at = self.now + PATIENCE_HOURS;
            self.agenda.at(replica.retry_at, Event::Retry(index));
        }
    }
}
