//! What is true of the fleet now, for the checker.

use std::collections::BTreeSet;
use std::time::Duration;

use hyperion_agent::node::Node;
use hyperion_api::workload::{HyperionWorkload, WorkloadType};
use hyperion_autonomy::Mode;
use hyperion_operator::index::Name;

use super::device::CPU;
use super::{CHECK, Event, World};
use crate::agent::Containers;
use crate::check::{Wanted, name_of};

/// Room that is left over wherever a replica could go for certain, thousandths of a core.
const SLACK: u64 = 1000;

impl World {
    pub(super) fn check(&mut self) {
        self.after(CHECK, Event::Check);
        self.check_overlaps();
        for what in std::mem::take(&mut self.heard.wrong) {
            self.checker.violate(self.now, "lost", what);
        }
        // Nothing of this changes what people want.
        let workloads = std::mem::take(&mut self.api.workloads);
        for (name, workload) in &workloads {
            self.check_workload(name, workload);
        }
        self.api.workloads = workloads;
    }

    fn check_overlaps(&mut self) {
        let mut checker = std::mem::take(&mut self.checker);
        checker.overlaps(self.now, |nodes| self.hear_each_other(nodes));
        self.checker = checker;
    }

    /// Since when these nodes have been able to hear of each other; none where they are not.
    fn hear_each_other(&self, nodes: &[usize]) -> Option<Duration> {
        let alive = nodes.iter().all(|n| {
            let device = &self.devices[*n];
            device.node.is_some() && !device.disk_full && device.slow.is_zero()
        });
        if !alive {
            return None;
        }
        let calm = nodes
            .iter()
            .map(|n| self.disturbed[self.devices[*n].site])
            .max()?;
        let linked = nodes.iter().all(|n| self.net.uplink_both(*n, None)) && self.leader.is_some();
        let pairs = |n: &usize, m: &usize| {
            n == m || (self.devices[*n].site == self.devices[*m].site && self.net.lan_both(*n, *m))
        };
        let local = nodes.iter().all(|n| {
            self.lan_trouble[self.devices[*n].site] == 0 && nodes.iter().all(|m| pairs(n, m))
        });
        (linked || local).then_some(calm)
    }

    fn check_workload(&mut self, name: &Name, workload: &HyperionWorkload) {
        if workload.metadata.deletion_timestamp.is_some() {
            return;
        }
        let Some(wanted) = self.checker.wanted(name).cloned() else {
            return;
        };
        for index in 0..u32::try_from(workload.spec.replicas).unwrap_or(0) {
            if wanted.job && self.checker.is_done(name, index) {
                continue;
            }
            let copies = self.checker.copies_of(name, index);
            if !wanted.job && self.checker.has_run(name, index) {
                self.requests.0 += 1;
                let now = self.now;
                let served = copies.iter().any(|(key, nodes)| {
                    nodes
                        .iter()
                        .any(|n| self.devices[*n].containers.with(|r| r.serves(key, now)))
                });
                self.requests.1 += u64::from(!served);
            }
            let runs = !copies.is_empty();
            let calm = if runs {
                None
            } else {
                self.calm_for(name, index, &wanted)
            };
            self.checker.should_run(name, index, runs, calm, self.now);
        }
    }

    /// Since when a replica could have been placed by who is in charge; none where it can't.
    fn calm_for(&self, name: &Name, index: u32, wanted: &Wanted) -> Option<Duration> {
        let sites: Vec<usize> = match &wanted.site {
            Some(site) => (0..self.sites.len())
                .filter(|s| self.sites[*s].0 == *site)
                .collect(),
            None => (0..self.sites.len()).collect(),
        };
        let nodes = || sites.iter().flat_map(|s| self.sites[*s].1.iter().copied());
        let lan = sites.iter().any(|s| self.lan_trouble[*s] > 0);
        let disks = nodes().any(|n| {
            let device = &self.devices[n];
            device.disk_full || !device.slow.is_zero() || !device.containers.with(|r| r.registry)
        });
        if lan || disks {
            return None;
        }
        let uplinks = self.leader.is_none() || sites.iter().any(|s| self.uplink_trouble[*s] > 0);
        let calm = sites.iter().map(|s| self.disturbed[*s]).max()?;
        if uplinks {
            // A site knows only what it was told, and by itself only its own.
            let known = wanted.site.is_some()
                && self.checker.has_run(name, index)
                && self.checker.changed_at(name) < calm;
            if !known || wanted.stops_alone {
                return None;
            }
        }
        if wanted.exclusive && nodes().any(|n| self.devices[n].node.is_none()) {
            // Nobody may be able to tell that it does not run.
            return None;
        }
        if wanted.exclusive && uplinks {
            return None;
        }
        nodes()
            .any(|n| self.has_room(n, wanted.cpu))
            .then_some(calm)
    }

    fn has_room(&self, node: usize, cpu: u64) -> bool {
        let device = &self.devices[node];
        if device.node.is_none() {
            return false;
        }
        let used: u64 = device.containers.with(|r| {
            r.live()
                .flat_map(|(_, c)| c.pod.containers.iter())
                .map(|c| u64::try_from(c.cpu_request_millis).unwrap_or(0))
                .sum()
        });
        used + cpu + SLACK <= CPU
    }

    /// The end: everything has been mended for long enough.
    pub(super) fn settle_accounts(&mut self) {
        if !self.checker.violations.is_empty() {
            return;
        }
        let now = self.now;
        let mut wrong = Vec::new();
        for device in &self.devices {
            let Some(agent) = &device.node else {
                wrong.push(format!("{} has no agent", device.id));
                continue;
            };
            wrong.extend(unsettled(agent).map(|what| format!("{} {what}", device.id)));
        }
        let mut expected = BTreeSet::new();
        for (name, workload) in &self.api.workloads {
            if workload.metadata.deletion_timestamp.is_some() {
                wrong.push(format!("{name} is still being deleted"));
                continue;
            }
            let job = workload.spec.type_ == WorkloadType::Job;
            for index in 0..u32::try_from(workload.spec.replicas).unwrap_or(0) {
                expected.insert((name.clone(), index));
                let at = (name.clone(), index);
                let placed = self.api.placements.get(&at).map(|p| p.spec.node.clone());
                let copies: Vec<usize> = self
                    .checker
                    .copies_of(name, index)
                    .into_iter()
                    .flat_map(|(_, nodes)| nodes)
                    .collect();
                let names: Vec<&str> = copies
                    .iter()
                    .map(|n| self.devices[*n].id.as_str())
                    .collect();
                let done = job && self.checker.is_done(name, index);
                let right = match (&placed, names.as_slice()) {
                    (Some(node), [one]) => node == one,
                    (Some(_), []) => done,
                    (None, []) => !self.somewhere(name),
                    _ => false,
                };
                if !right {
                    wrong.push(format!(
                        "{name}/{index} runs on {names:?}, placed on {}",
                        placed.as_deref().unwrap_or("none")
                    ));
                }
            }
        }
        for (key, nodes) in self.checker.copies() {
            if !expected.contains(&(name_of(key), key.index)) {
                wrong.push(format!("{key} runs on nodes {nodes:?} and nobody wants it"));
            }
        }
        for (name, index) in self.api.placements.keys() {
            if !expected.contains(&(name.clone(), *index)) {
                wrong.push(format!("the placement of {name}/{index} is left over"));
            }
        }
        for (name, site) in &self.checker.local {
            if !self.api.workloads.contains_key(name) && !self.checker.was_deleted(name) {
                wrong.push(format!("{name}, applied at site-{site}, is lost"));
            }
        }
        for what in wrong {
            let healed = self.plan.healed.as_secs();
            let what = format!("{what}; all was mended at {healed} s");
            self.checker.violate(now, "converged", what);
        }
    }

    fn somewhere(&self, name: &Name) -> bool {
        let wanted = self.checker.wanted(name);
        let site = wanted.and_then(|w| w.site.clone());
        let cpu = wanted.map_or(0, |w| w.cpu);
        (0..self.devices.len())
            .filter(|n| {
                site.as_ref()
                    .is_none_or(|s| self.sites[self.devices[*n].site].0 == *s)
            })
            .any(|n| self.has_room(n, cpu))
    }
}

fn unsettled(agent: &Node<Containers>) -> Option<String> {
    if !agent.linked() {
        return Some("has no link".to_owned());
    }
    if agent.mode() != Mode::Connected {
        return Some(format!("is {}", agent.mode()));
    }
    let untaken = agent.untaken_count();
    (untaken > 0).then(|| format!("has {untaken} decisions that the control plane has not taken"))
}
