//! When spot machines are taken back and come again: stretches of the measured traces.

use hyperion_scheduler::world::{SpotTrace, World};
use rand::RngExt;
use rand::seq::IndexedRandom;

use super::day::{Kind, dice};

/// Hours from the moment when a pool gives machines again until they are there.
const BOOT: f64 = 5.0 / 60.0;

/// Whether machines of a kind are there: at hour 0, and each change after it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Supply {
    pub trace: String,
    pub at_first: bool,
    pub changes: Vec<(f64, bool)>,
}

/// The supply of a kind of spot machines: a trace of the same sort (with a GPU or without), of the
/// same provider and zone where there is one, from a random moment on. None without traces.
pub(super) fn of(world: &World, kind: &Kind, gpus: u32, hours: f64, seed: u64) -> Option<Supply> {
    let alike: [&dyn Fn(&SpotTrace) -> bool; 3] = [
        &|t| t.accelerated == (gpus > 0),
        &|t| t.provider == kind.provider,
        &|t| t.zone == kind.zone,
    ];
    let mut traces: Vec<&SpotTrace> = world.traces.iter().collect();
    for alike in alike {
        if traces.iter().any(|t| alike(t)) {
            traces.retain(|t| alike(t));
        }
    }
    let mut rng = dice(seed.wrapping_add(1), kind);
    let trace = traces.choose(&mut rng)?;
    let begin = rng.random_range(0..trace.up.len().max(1));
    let ticks = (hours / trace.gap_hours).ceil() as usize + 1;
    let up = trace.up.iter().cycle().skip(begin).take(ticks).copied();
    let (at_first, changes) = machines(up, trace.gap_hours, hours);
    Some(Supply {
        trace: trace.name.clone(),
        at_first,
        changes,
    })
}

/// Machines of a pool that gives some or none, tick by tick: they go when it gives none, and come
/// when it has given some for the time of a boot.
fn machines(up: impl Iterator<Item = bool>, gap: f64, hours: f64) -> (bool, Vec<(f64, bool)>) {
    let mut changes = Vec::new();
    let (mut at_first, mut there, mut since) = (false, false, None);
    for (tick, up) in up.enumerate() {
        let now = tick as f64 * gap;
        if tick == 0 {
            (at_first, there) = (up, up);
        }
        if !up {
            since = None;
            if there && now < hours {
                changes.push((now, false));
            }
            there = false;
            continue;
        }
        let from: f64 = *since.get_or_insert(now);
        // It is there within the tick in which its boot ends.
        let ready = from + BOOT;
        if !there && ready <= now + gap && ready < hours {
            changes.push((ready.max(now), true));
            there = true;
        }
    }
    (at_first, changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_go_at_once_and_come_after_a_boot() {
        let ticks = |text: &str| text.chars().map(|c| c == '1').collect::<Vec<_>>();
        let of = |text: &str, gap: f64| machines(ticks(text).into_iter(), gap, 10.0);
        assert_eq!(of("111", 1.0), (true, vec![]));
        assert_eq!(
            of("101", 1.0),
            (true, vec![(1.0, false), (2.0 + BOOT, true)])
        );
        assert_eq!(of("001", 1.0), (false, vec![(2.0 + BOOT, true)]));
        // Ticks of three minutes: one of them is too short for a boot.
        assert_eq!(of("0100", 0.05), (false, vec![]));
        let (_, changes) = of("01111", 0.05);
        assert_eq!(changes.len(), 1);
        assert!((changes[0].0 - (0.05 + BOOT)).abs() < 1e-9, "{changes:?}");
        // Nothing after the end.
        assert_eq!(
            machines(ticks("1110").into_iter(), 1.0, 3.0),
            (true, vec![])
        );
    }

    #[test]
    fn a_pool_has_a_trace_of_its_sort() {
        let world = World::builtin();
        let kind = Kind {
            provider: hyperion_placement::model::Provider::Azure,
            region: "eastus".to_owned(),
            zone: "eastus-1".to_owned(),
            instance_type: "Standard_D8s_v5".to_owned(),
            spot: true,
        };
        for gpus in [0, 1] {
            let supply = of(&world, &kind, gpus, 24.0, 1).unwrap();
            assert_eq!(of(&world, &kind, gpus, 24.0, 1), Some(supply.clone()));
            let trace = world
                .traces
                .iter()
                .find(|t| t.name == supply.trace)
                .unwrap();
            let any = world.traces.iter().any(|t| t.accelerated == (gpus > 0));
            assert!(!any || trace.accelerated == (gpus > 0));
            let in_order = supply
                .changes
                .windows(2)
                .all(|w| w[0].0 <= w[1].0 && w[0].1 != w[1].1);
            assert!(in_order, "{supply:?}");
        }
        let mut none = world;
        none.traces.clear();
        assert_eq!(of(&none, &kind, 0, 24.0, 1), None);
    }
}
