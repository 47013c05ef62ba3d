//! Totals for the overview.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use hyperion_api::placement::PlacementPhase;
use hyperion_api::workload::WorkloadPhase;

use serde::Serialize;

use super::column::{Cell, Column, Context, Row, float_order};
use super::{Fleet, NodeState};
use crate::text::{self, Tone};

/// Totals of a group of nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Group {
    /// Nodes.
    pub nodes: usize,
    /// Of them ready.
    pub ready: usize,
    down: usize,
    /// Replicas on them.
    pub replicas: u64,
    /// US dollars per hour.
    pub price: f64,
    cpu_sum: f64,
    cpu_count: usize,
}

impl Group {
    /// Nodes out of contact or revoked.
    #[must_use]
    pub fn down(&self) -> usize {
        self.down
    }

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

/// A site, or a region of a cloud, with its totals.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Place {
    /// Site or region; `–` where the node says neither.
    pub name: String,
    /// Provider.
    pub provider: String,
    /// `provider/name`.
    pub key: String,
    /// Totals.
    pub group: Group,
    haystack: String,
}

impl Row for Place {
    const COLUMNS: &'static [Column] = &[
        Column::text("SITE OR REGION", 'n', 16, 30, 0),
        Column::text("PROV", 'p', 5, 6, 1),
        Column::number("NODES", 'e', 6, 7, 0),
        Column::number("DOWN", 'w', 5, 6, 0),
        Column::number("READY", 't', 5, 16, 3),
        Column::number("REPL", 'o', 5, 7, 2),
        Column::live("CPU", 'c', 4, 15, 1),
        Column::number("$/h", 'd', 9, 11, 1),
    ];
    const FIRST_SORT: (usize, bool) = (3, true);

    fn id(&self) -> &str {
        &self.key
    }

    fn haystack(&self) -> &str {
        &self.haystack
    }

    fn cell(&self, column: usize, _: Context) -> Cell {
        let group = &self.group;
        let count = |n: u64, tone| {
            let tone = if n == 0 { Tone::Dim } else { tone };
            Cell::toned(text::grouped(n), tone)
        };
        match column {
            0 => Cell::toned(&*self.name, Tone::Strong),
            1 => Cell::plain(&*self.provider),
            2 => count(group.nodes as u64, Tone::Plain),
            3 => count(group.down() as u64, Tone::Bad),
            4 => {
                let share = group.ready as f32 / group.nodes.max(1) as f32;
                let tone = match share {
                    s if s >= 0.999 => Tone::Good,
                    s if s >= 0.9 => Tone::Warn,
                    _ => Tone::Bad,
                };
                Cell {
                    bar: Some(share),
                    // Rounded down: 100% means all of them.
                    ..Cell::toned(format!("{:.0}%", (share * 100.0).floor()), tone)
                }
            }
            5 => count(group.replicas, Tone::Plain),
            6 => Cell::load(group.cpu(), false),
            _ if group.price == 0.0 => Cell::toned("owned", Tone::Dim),
            _ => Cell::plain(text::dollars(group.price)),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        let (a, b) = (&self.group, &other.group);
        let ready = |g: &Group| g.ready as f64 / g.nodes.max(1) as f64;
        match column {
            0 => self.name.cmp(&other.name),
            1 => self.provider.cmp(&other.provider),
            2 => a.nodes.cmp(&b.nodes),
            3 => (a.down(), a.nodes).cmp(&(b.down(), b.nodes)),
            4 => float_order(ready(a), ready(b)),
            5 => a.replicas.cmp(&b.replicas),
            6 => float_order(f64::from(a.cpu()), f64::from(b.cpu())),
            _ => float_order(a.price, b.price),
        }
    }
}

/// Totals.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// All nodes.
    pub all: Group,
    /// By state.
    pub states: BTreeMap<NodeState, usize>,
    /// By provider, largest first.
    pub providers: Vec<(String, Group)>,
    /// By site (edge) or region (cloud).
    pub places: Vec<Place>,
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
        let mut places = BTreeMap::<(&str, &str), Group>::new();
        for (_, node) in fleet.nodes.iter() {
            *out.states.entry(node.state).or_default() += 1;
            let live = node.live.as_deref().filter(|l| !l.is_stale(now_ms));
            let provider = providers.entry(&node.provider).or_default();
            let place = places.entry((&node.provider, node.place())).or_default();
            for group in [&mut out.all, provider, place] {
                group.nodes += 1;
                group.ready += usize::from(node.state == NodeState::Ready);
                group.down +=
                    usize::from(matches!(node.state, NodeState::Lost | NodeState::Revoked));
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
        out.providers = providers
            .into_iter()
            .map(|(name, group)| (name.to_owned(), group))
            .collect();
        out.providers
            .sort_by(|(a, x), (b, y)| y.nodes.cmp(&x.nodes).then_with(|| a.cmp(b)));
        out.places = places.into_iter().map(place).collect();
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

fn place(((provider, name), group): ((&str, &str), Group)) -> Place {
    let name = if name.is_empty() { "–" } else { name };
    Place {
        name: name.to_owned(),
        provider: provider.to_owned(),
        key: format!("{provider}/{name}"),
        group,
        haystack: format!("{provider} {name}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::live::LiveSample;
    use crate::fleet::{Change, Node, Placement, Workload};

    fn node(id: &str, provider: &str, state: NodeState, price: f64) -> Node {
        Node {
            id: id.to_owned(),
            provider: provider.to_owned(),
            region: "r".to_owned(),
            state,
            price,
            ..Default::default()
        }
    }

    fn fleet() -> Fleet {
        let mut fleet = Fleet::default();
        let nodes = vec![
            node("a", "aws", NodeState::Ready, 1.5),
            node("b", "aws", NodeState::Lost, f64::NAN),
            node("c", "gcp", NodeState::Draining, -3.0),
        ];
        fleet.apply(Change::Nodes(nodes), 0);
        let workload = Workload {
            phase: WorkloadPhase::Degraded,
            ..Default::default()
        };
        fleet.apply(Change::Workload(Box::new(workload)), 0);
        let placement = Placement {
            node: "a".to_owned(),
            hourly_cost: 0.25,
            phase: PlacementPhase::Backoff,
            ..Default::default()
        };
        fleet.apply(Change::Placement(Box::new(placement)), 0);
        let live = |id: &str, cpu| LiveSample {
            id: id.to_owned(),
            connected: true,
            cpu_percent: cpu,
            ..Default::default()
        };
        let samples = vec![live("a", Some(40.0)), live("c", Some(f32::NAN))];
        fleet.apply(Change::Live(samples), 0);
        fleet
    }

    #[test]
    fn totals_leave_nonsense_and_silent_nodes_out() {
        let sum = Summary::of(&fleet(), 0);
        assert_eq!((sum.all.nodes, sum.all.ready, sum.all.down()), (3, 1, 1));
        assert_eq!(sum.all.price, 1.5);
        assert_eq!(sum.all.cpu(), 40.0);
        assert_eq!(sum.workloads, [0, 0, 1, 0, 0]);
        assert_eq!((sum.placements, sum.workload_cost), ([0, 0, 1], 0.25));
        assert!(Summary::of(&fleet(), 60_000).all.cpu().is_nan());
    }

    #[test]
    fn regions_of_the_same_name_are_told_apart_by_provider() {
        let sum = Summary::of(&fleet(), 0);
        let keys: Vec<&str> = sum.places.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["aws/r", "gcp/r"]);
        assert_eq!(sum.providers[0].0, "aws");
    }
}
