//! Totals for the overview.

use std::collections::BTreeMap;

use hyperion_api::placement::PlacementPhase;
use hyperion_api::workload::WorkloadPhase;

use super::{Fleet, NodeState};

/// Totals of a group of nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// Nodes.
    pub nodes: usize,
    /// Of them ready.
    pub ready: usize,
    /// Replicas on them.
    pub replicas: u64,
    /// US dollars per hour.
    pub price: f64,
    cpu_sum: f64,
    cpu_count: usize,
}

impl Group {
    /// Mean CPU utilisation of the nodes that report it, percent; NaN for none.
    #[must_use]
    pub fn cpu(&self) -> f32 {
        if self.cpu_count == 0 {
            f32::NAN
        } else {
            (self.cpu_sum / self.cpu_count as f64) as f32
        }
    }
}

/// Totals.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// All nodes.
    pub all: Group,
    /// By state.
    pub states: BTreeMap<NodeState, usize>,
    /// By provider, largest first.
    pub providers: Vec<(String, Group)>,
    /// By site (edge) or region (cloud), those with trouble first, then the largest.
    pub sites: Vec<(String, Group)>,
    /// Workloads by phase: pending, running, degraded, succeeded, failed.
    pub workloads: [usize; 5],
    /// Placements: running and ready, on their way, in trouble.
    pub placements: [usize; 3],
    /// US dollars per hour of all placed replicas.
    pub workload_cost: f64,
    /// Bytes per second of the fleet.
    pub network: f64,
    /// Bytes.
    pub memory_used: f64,
    /// Bytes.
    pub memory_total: f64,
}

impl Summary {
    /// Adds everything up.
    #[must_use]
    pub fn of(fleet: &Fleet, now_ms: i64) -> Self {
        let mut out = Self::default();
        let mut providers = BTreeMap::<&str, Group>::new();
        let mut sites = BTreeMap::<&str, Group>::new();
        for (_, node) in fleet.nodes.iter() {
            *out.states.entry(node.state).or_default() += 1;
            let live = node.live.as_deref().filter(|l| !l.is_stale(now_ms));
            let provider = providers.entry(&node.provider).or_default();
            let site = sites.entry(node.place()).or_default();
            for group in [&mut out.all, provider, site] {
                group.nodes += 1;
                group.ready += usize::from(node.state == NodeState::Ready);
                group.replicas += u64::from(node.replicas);
                if node.price.is_finite() && node.price > 0.0 {
                    group.price += node.price;
                }
                if let Some(cpu) = live.map(|l| l.cpu).filter(|c| c.is_finite()) {
                    group.cpu_sum += f64::from(cpu);
                    group.cpu_count += 1;
                }
            }
            if let Some(live) = live {
                out.network += live.rx as f64 + live.tx as f64;
                out.memory_used += live.memory_used as f64;
                out.memory_total += live.memory_total as f64;
            }
        }
        for (_, workload) in fleet.workloads.iter() {
            out.workloads[phase_index(workload.phase)] += 1;
        }
        for (_, placement) in fleet.placements.iter() {
            use PlacementPhase as P;
            let class = match placement.phase {
                P::Running | P::Succeeded => 0,
                P::Pending | P::Starting | P::Stopping => 1,
                P::Backoff | P::Failed | P::Unknown => 2,
            };
            out.placements[class] += 1;
            if placement.hourly_cost.is_finite() && placement.hourly_cost > 0.0 {
                out.workload_cost += placement.hourly_cost;
            }
        }
        out.providers = sorted(providers, false);
        out.sites = sorted(sites, true);
        out
    }
}

fn phase_index(phase: WorkloadPhase) -> usize {
    match phase {
        WorkloadPhase::Pending => 0,
        WorkloadPhase::Running => 1,
        WorkloadPhase::Degraded => 2,
        WorkloadPhase::Succeeded => 3,
        WorkloadPhase::Failed => 4,
    }
}

fn sorted(groups: BTreeMap<&str, Group>, trouble_first: bool) -> Vec<(String, Group)> {
    let mut list: Vec<(String, Group)> = groups
        .into_iter()
        .map(|(name, group)| (name.to_owned(), group))
        .collect();
    let down = |g: &Group| if trouble_first { g.nodes - g.ready } else { 0 };
    list.sort_by(|(a, x), (b, y)| {
        (down(y), y.nodes)
            .cmp(&(down(x), x.nodes))
            .then_with(|| a.cmp(b))
    });
    list
}
