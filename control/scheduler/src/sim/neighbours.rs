//! What a replica does to those who share its machine: it shares the price of an instance with
//! them, and its load makes them slower. Neither is in its own reward.

use super::simulator::Simulator;

/// What each replica did to its neighbours since the episode began.
#[derive(Debug, Clone, Default)]
pub(super) struct Neighbours {
    /// Reward of all others, by replica, as far as it is settled.
    done: Vec<f64>,
    /// What accrues on each host, by its index.
    hosts: Vec<Accruing>,
}

/// What accrues on one host.
#[derive(Debug, Clone, Default)]
struct Accruing {
    /// Since when, hours.
    since: f64,
    /// Replica with room there, reward an hour that the others there would not have without it.
    rates: Vec<(usize, f64)>,
}

impl Simulator {
    /// Counts from now on what replicas do to their neighbours, which takes time.
    pub(super) fn count_neighbours(&mut self) {
        self.neighbours = Some(Neighbours {
            done: vec![0.0; self.replicas.len()],
            hosts: Vec::new(),
        });
    }

    /// What the neighbours of a replica earned because of it so far, negative where it cost them;
    /// 0 where that is not counted.
    pub(super) fn done_to_neighbours(&self, index: usize) -> f64 {
        let Some(neighbours) = &self.neighbours else {
            return 0.0;
        };
        let hosts = [self.replicas[index].serving, self.coming_host(index)];
        let accrued = hosts.into_iter().flatten().filter_map(|host| {
            let at = neighbours.hosts.get(host)?;
            let (_, rate) = at.rates.iter().find(|(replica, _)| *replica == index)?;
            Some(rate * (self.now - at.since))
        });
        neighbours.done[index] + accrued.sum::<f64>()
    }

    /// Settles what accrued on a host, and computes anew what does from now on.
    pub(super) fn recount_neighbours(&mut self, host: usize) {
        let Some(mut neighbours) = self.neighbours.take() else {
            return;
        };
        if neighbours.hosts.len() <= host {
            neighbours.hosts.resize(host + 1, Accruing::default());
        }
        let at = &mut neighbours.hosts[host];
        let hours = self.now - at.since;
        for (replica, rate) in &at.rates {
            neighbours.done[*replica] += rate * hours;
        }
        at.since = self.now;
        let promises = self.hosts[host].promises.iter();
        at.rates = promises
            .map(|p| (p.replica, self.does_to_neighbours(p.replica, host)))
            .collect();
        self.neighbours = Some(neighbours);
    }

    /// Reward an hour that the others who run on a host would not have without a replica.
    fn does_to_neighbours(&self, index: usize, host: usize) -> f64 {
        let share = self.terms(index, host).share;
        let serves = self.replicas[index].serving == Some(host);
        let busy = if serves { self.busy_millis(index) } else { 0.0 };
        let others = self.hosts[host].promises.iter().map(|p| p.replica);
        others
            .filter(|other| *other != index && self.replicas[*other].serving == Some(host))
            .map(|other| {
                let with = self.terms(other, host);
                let mut without = with;
                without.shares -= share;
                without.busy -= busy;
                self.earns(other, &with).reward - self.earns(other, &without).reward
            })
            .sum()
    }
}
