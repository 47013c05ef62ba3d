//! What the index knows of the nodes that a rollout selects.

use std::collections::BTreeMap;
use std::time::Instant;

use hyperion_placement::model::Node;

use super::node::{Of, View};
use crate::index::{Index, NodeEntry};

/// The nodes that a rollout selects; `claimed` says which older rollout has which.
pub(super) fn views<'a>(
    index: &'a Index,
    of: &Of,
    claimed: &BTreeMap<String, String>,
) -> Vec<View<'a>> {
    let now = Instant::now();
    let nodes = index.nodes.iter();
    let nodes = nodes.filter(|(id, entry)| selected(of, entry, index.fleet().node(id)));
    let view = |(id, entry): (&'a String, &'a NodeEntry)| {
        let (replicas, exclusive) = index.holds(id);
        View {
            name: id.as_str(),
            connected: entry.connected,
            ready: entry.connected && entry.runtime_problem.is_empty(),
            away: entry.down_for(now),
            agent_version: &entry.said.agent_version,
            update: entry.said.update.as_ref(),
            replicas,
            exclusive: exclusive.map(|name| name.to_string()),
            other: claimed.get(id).cloned(),
        }
    };
    nodes.map(view).collect()
}

fn selected(of: &Of, entry: &NodeEntry, node: Option<&Node>) -> bool {
    let plan = &of.plan;
    let Some(spec) = entry.spec.as_ref() else {
        return false;
    };
    if spec.revoked || spec.cluster.is_some() {
        return false;
    }
    if !plan.sites.is_empty() && !plan.sites.contains(&spec.site) {
        return false;
    }
    let has = |(key, value): (&String, &String)| {
        node.is_some_and(|node| node.labels.get(key) == Some(value))
    };
    plan.selector.iter().all(has)
}
