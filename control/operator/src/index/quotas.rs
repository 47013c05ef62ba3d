//! Quotas of namespaces, and the order in which workloads that wait get what becomes free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use hyperion_api::quota::{HyperionQuota, HyperionQuotaStatus};
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use tracing::warn;

use super::{Index, Name};

/// A quota.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Quota {
    /// US dollars per hour.
    pub hourly_cost: Option<f64>,
    /// Thousandths of GPUs.
    pub gpu_millis: Option<u64>,
    /// Why it can't be read: until it can, nothing that it might forbid is placed.
    pub broken: Option<String>,
    /// Status as last written.
    pub status: Option<HyperionQuotaStatus>,
}

/// What replicas have together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Used {
    /// US dollars per hour.
    pub hourly_cost: f64,
    /// Thousandths of GPUs.
    pub gpu_millis: u64,
}

/// What the quotas of a namespace leave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Left {
    /// US dollars per hour, and in words; none where there is no limit.
    pub hourly_cost: Option<(f64, String)>,
    /// Thousandths of GPUs, and in words; none where there is no limit.
    pub gpu_millis: Option<(u64, String)>,
}

/// Dollars that are less than a rounding error.
const CENT: f64 = 1e-9;

fn read(object: &HyperionQuota) -> Result<Quota, String> {
    let limit = |field: &str, value: Option<f64>| match value {
        Some(v) if !(v.is_finite() && v >= 0.0) => Err(format!("spec.{field}: {v} is no limit")),
        value => Ok(value),
    };
    let gpus = limit("maxGpus", object.spec.max_gpus)?;
    Ok(Quota {
        hourly_cost: limit("maxHourlyCost", object.spec.max_hourly_cost)?,
        gpu_millis: gpus.map(|gpus| (gpus * 1000.0).round() as u64),
        broken: None,
        status: object.status.clone(),
    })
}

impl Index {
    /// A quota was made or changed.
    pub fn apply_quota(&mut self, object: DeserializeGuard<HyperionQuota>) {
        let (metadata, read) = match object.0 {
            Ok(quota) => (quota.metadata.clone(), read(&quota)),
            Err(e) => (e.metadata, Err(e.error)),
        };
        let name = Name::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        );
        let quota = read.unwrap_or_else(|error| {
            warn!(quota = %name, error, "this quota can't be read: nothing is placed in its namespace");
            Quota {
                broken: Some(error),
                ..Quota::default()
            }
        });
        let held = self.quotas.entry(name.namespace).or_default();
        let before = held.insert(name.name, quota.clone());
        // A status that comes back makes no room.
        if before.is_none_or(|before| {
            Quota {
                status: quota.status.clone(),
                ..before
            } != quota
        }) {
            self.touch_unplaced();
        }
    }

    /// A quota is gone.
    pub fn delete_quota(&mut self, object: &DeserializeGuard<HyperionQuota>) {
        let (namespace, name) = match &object.0 {
            Ok(quota) => (quota.namespace(), quota.name_any()),
            Err(e) => (
                e.metadata.namespace.clone(),
                e.metadata.name.clone().unwrap_or_default(),
            ),
        };
        let namespace = namespace.unwrap_or_default();
        if let Some(held) = self.quotas.get_mut(&namespace) {
            held.remove(&name);
            if held.is_empty() {
                self.quotas.remove(&namespace);
            }
        }
        self.touch_unplaced();
    }

    /// The complete list, after a watch began anew.
    pub fn reset_quotas(&mut self, list: Vec<DeserializeGuard<HyperionQuota>>) {
        self.quotas.clear();
        self.touch_unplaced();
        for object in list {
            self.apply_quota(object);
        }
    }

    /// What the replicas of a namespace have, but for one.
    #[must_use]
    pub fn used(&self, namespace: &str, but: Option<(&Name, u32)>) -> Used {
        let mut used = Used::default();
        let of_namespace = self
            .placements
            .range(Name::new(namespace, "")..)
            .take_while(|(name, _)| name.namespace == namespace);
        for (name, replicas) in of_namespace {
            for (replica, entry) in replicas {
                if entry.takes_room() && but != Some((name, *replica)) {
                    used.hourly_cost += entry.spec.hourly_cost;
                    used.gpu_millis += millis(&entry.spec.gpus);
                }
            }
        }
        used
    }

    /// True where a namespace has a quota.
    #[must_use]
    pub(crate) fn has_quota(&self, namespace: &str) -> bool {
        self.quotas.contains_key(namespace)
    }

    /// What is left for a replica in its namespace; none where it has no quota.
    #[must_use]
    pub(crate) fn left(&self, workload: &Name, replica: u32) -> Option<Left> {
        let quotas = self.quotas.get(&workload.namespace)?;
        let used = self.used(&workload.namespace, Some((workload, replica)));
        let mut left = Left::default();
        for (name, quota) in quotas {
            if let Some(error) = &quota.broken {
                let text = format!("quota {name} can't be read: {error}");
                left.gpu_millis = Some((0, text.clone()));
                left.hourly_cost = Some((0.0, text));
                return Some(left);
            }
            if let Some(most) = quota.hourly_cost {
                let rest = (most - used.hourly_cost).max(0.0);
                if left
                    .hourly_cost
                    .as_ref()
                    .is_none_or(|(least, _)| rest < *least)
                {
                    let text = format!("quota {name} leaves {rest:.2} of {most:.2} USD/h");
                    left.hourly_cost = Some((rest + CENT, text));
                }
            }
            if let Some(most) = quota.gpu_millis {
                let rest = most.saturating_sub(used.gpu_millis);
                if left
                    .gpu_millis
                    .as_ref()
                    .is_none_or(|(least, _)| rest < *least)
                {
                    let gpus = |millis: u64| millis as f64 / 1000.0;
                    let text = format!("quota {name} leaves {} of {} GPUs", gpus(rest), gpus(most));
                    left.gpu_millis = Some((rest, text));
                }
            }
        }
        Some(left)
    }

    /// Statuses of quotas that are not what was written last; they are taken as written.
    pub(crate) fn quota_statuses(&mut self) -> Vec<(Name, HyperionQuotaStatus)> {
        let namespaces: Vec<String> = self.quotas.keys().cloned().collect();
        let mut changed = Vec::new();
        for namespace in namespaces {
            let used = self.used(&namespace, None);
            let waiting = self.unplaced.keys().filter(|n| n.namespace == namespace);
            let status = HyperionQuotaStatus {
                hourly_cost: (used.hourly_cost * 1e4).round() / 1e4,
                gpus: used.gpu_millis as f64 / 1000.0,
                waiting: i32::try_from(waiting.count()).unwrap_or(i32::MAX),
            };
            for (name, quota) in self.quotas.get_mut(&namespace).into_iter().flatten() {
                if quota.broken.is_none() && quota.status.as_ref() != Some(&status) {
                    quota.status = Some(status.clone());
                    changed.push((Name::new(&namespace, name), status.clone()));
                }
            }
        }
        changed
    }

    /// Workloads that wait for room, in the order in which they are to have it: the higher priority
    /// first; among equals the namespace that has the least of what is scarcest to it, each workload
    /// counted once it had its turn (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011); of a
    /// namespace who has waited longest.
    #[must_use]
    pub fn fair_order(&self) -> Vec<Name> {
        /// Of one priority, by namespace: since when who waits.
        type Queues<'a> = BTreeMap<&'a str, BTreeSet<(u64, &'a Name)>>;
        let mut by_priority: BTreeMap<Reverse<i32>, Queues<'_>> = BTreeMap::new();
        for (name, waits) in &self.unplaced {
            let queues = by_priority.entry(Reverse(self.rank(name))).or_default();
            let queue = queues.entry(name.namespace.as_str()).or_default();
            queue.insert((waits.since, name));
        }
        let mut shares = Shares::new(self);
        let mut order = Vec::with_capacity(self.unplaced.len());
        for mut queues in by_priority.into_values() {
            let namespaces = queues.keys().map(|n| (shares.of(n), *n));
            let mut next: BinaryHeap<Reverse<(u64, &str)>> = namespaces.map(Reverse).collect();
            while let Some(Reverse((_, namespace))) = next.pop() {
                let Some(queue) = queues.get_mut(namespace) else {
                    continue;
                };
                let Some((_, name)) = queue.pop_first() else {
                    continue;
                };
                order.push(name.clone());
                shares.add(self, name);
                next.push(Reverse((shares.of(namespace), namespace)));
            }
        }
        order
    }
}

fn millis(gpus: &[hyperion_api::placement::GpuAssignment]) -> u64 {
    let millis = gpus.iter().map(|g| u64::try_from(g.millis).unwrap_or(0));
    millis.sum()
}

/// What each namespace has of the fleet's CPU and GPUs.
struct Shares<'a> {
    /// Thousandths of cores and of GPUs.
    has: BTreeMap<&'a str, [u64; 2]>,
    all: [u64; 2],
}

impl<'a> Shares<'a> {
    fn new(index: &'a Index) -> Self {
        let mut has: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
        for (name, replicas) in &index.placements {
            let held = has.entry(name.namespace.as_str()).or_default();
            for entry in replicas.values().filter(|e| e.takes_room()) {
                held[0] += entry.resources.cpu_millis;
                held[1] += millis(&entry.spec.gpus);
            }
        }
        let (edge, cloud) = (index.fleet.summary().edge, index.fleet.summary().cloud);
        Self {
            has,
            all: [edge.cpu + cloud.cpu, edge.gpu + cloud.gpu],
        }
    }

    /// The larger share, in millionths.
    fn of(&self, namespace: &str) -> u64 {
        let held = self.has.get(namespace).copied().unwrap_or_default();
        let shares = held.iter().zip(self.all);
        let shares = shares.map(|(has, all)| has.saturating_mul(1_000_000) / all.max(1));
        shares.max().unwrap_or(0)
    }

    /// As if the replicas of a workload that wait had their places.
    fn add(&mut self, index: &'a Index, workload: &'a Name) {
        let template = index.workloads.get(workload).map(|w| &w.template);
        let (Some(Ok(template)), Some(waits)) = (template, index.unplaced.get(workload)) else {
            return;
        };
        let request = &template.request;
        let replicas = u64::from(waits.replicas);
        let held = self.has.entry(workload.namespace.as_str()).or_default();
        held[0] += replicas * request.resources.cpu_millis;
        held[1] += replicas * request.gpu.total_millis();
    }
}
