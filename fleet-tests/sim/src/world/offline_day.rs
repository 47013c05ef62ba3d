//! A device that is cut off for long: what its store takes, and what comes through afterwards.

use std::time::Duration;

use super::{Plan, Scenario, World, layout};

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct OfflineDay {
    /// Most that the store's file took, bytes.
    pub store_bytes_max: u64,
    /// Samples measured while there was no link.
    pub kept: u64,
    /// Samples that the control plane got afterwards.
    pub backfilled: u64,
    /// Samples that the bounded ring dropped.
    pub dropped: u64,
    /// Samples of which nothing is known.
    pub lost: u64,
    /// Batches came in the order in which they were made.
    pub in_order: bool,
    /// Time from the link's return to the last batch; none where it did not come.
    pub drain: Option<Duration>,
}

/// Plays `offline` without a link, with a telemetry message every `interval`.
#[must_use]
pub fn offline_day(seed: u64, offline: Duration, interval: Duration) -> OfflineDay {
    let scenario = Scenario {
        seed,
        nodes: 1,
        sites: 1,
        faults: Vec::new(),
        watched: false,
    };
    let from = Duration::from_secs(30);
    let to = from + offline;
    let sites = layout(&scenario);
    let mut world = World::new(&scenario, sites, Plan::cut(from, to, interval));
    world.begin();
    let mut day = OfflineDay::default();
    let step = Duration::from_secs(60);
    let mut at = from;
    while at < to {
        at = (at + step).min(to);
        world.play(at);
        day.store_bytes_max = day.store_bytes_max.max(world.devices[0].disk.bytes());
    }
    if let Some(agent) = &world.devices[0].node {
        let ring = agent.ring();
        day.kept = agent.counts().telemetry_kept;
        day.dropped = ring.dropped;
    }
    while at < world.plan.end && day.drain.is_none() {
        at += Duration::from_secs(1);
        world.play(at);
        day.store_bytes_max = day.store_bytes_max.max(world.devices[0].disk.bytes());
        let agent = world.devices[0].node.as_ref();
        if agent.is_some_and(|a| a.linked() && a.ring().batches == 0 && a.ring().waiting == 0) {
            day.drain = Some(at - to);
        }
    }
    if let Some(agent) = &world.devices[0].node {
        day.kept = agent.counts().telemetry_kept;
        day.dropped = agent.ring().dropped;
    }
    let id = &world.devices[0].id;
    day.backfilled = world.heard.samples.get(id).copied().unwrap_or(0);
    day.lost = day.kept.saturating_sub(day.backfilled + day.dropped);
    day.in_order = world.heard.wrong.is_empty() && world.checker.violations.is_empty();
    day
}
