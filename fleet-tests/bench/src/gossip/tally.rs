//! What the nodes saw, and what that comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a node saw of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saw {
    /// It is alive, or back.
    Up,
    /// It did not answer this node. Ours say only that somebody did not, and not who.
    Suspect,
    /// It is dead.
    Down,
}

/// Somebody saw something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub at: Instant,
    pub observer: usize,
    pub node: usize,
    pub saw: Saw,
}

/// Words about one node that lie no further apart belong to one incident: by then all have it.
const INCIDENT: Duration = Duration::from_secs(30);

/// All that was seen.
#[derive(Default)]
pub(super) struct Tally {
    events: Mutex<Vec<Event>>,
}

impl Tally {
    pub(super) fn add(&self, observer: usize, node: usize, saw: Saw) {
        let event = Event {
            at: Instant::now(),
            observer,
            node,
            saw,
        };
        self.lock().push(event);
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// Whether each of so many nodes sees each other one alive.
    pub(super) fn all_met(&self, nodes: usize) -> bool {
        let mut seen = vec![BTreeSet::new(); nodes];
        for event in self.lock().iter() {
            let Some(seen) = seen.get_mut(event.observer) else {
                continue;
            };
            match event.saw {
                Saw::Up if event.node != event.observer => drop(seen.insert(event.node)),
                Saw::Down => drop(seen.remove(&event.node)),
                Saw::Up | Saw::Suspect => {}
            }
        }
        seen.iter().all(|seen| seen.len() + 1 == nodes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of one death.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Noticed {
    /// When the first survivor knew, and when the last one did.
    pub first: Option<Duration>,
    pub all: Option<Duration>,
}

/// When the survivors knew of a death. Who had taken the node for dead before it died, and still did
/// then, knew at once.
pub(super) fn noticed(
    events: &[Event],
    node: usize,
    died: Instant,
    survivors: &[usize],
) -> Noticed {
    let mut knew: BTreeMap<usize, Option<Instant>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.node == node) {
        match event.saw {
            Saw::Down => drop(
                knew.entry(event.observer)
                    .or_default()
                    .get_or_insert(event.at),
            ),
            Saw::Up => drop(knew.insert(event.observer, None)),
            Saw::Suspect => {}
        }
    }
    let times: Vec<Option<Duration>> = survivors
        .iter()
        .map(|survivor| {
            let at = knew.get(survivor).copied().flatten()?;
            Some(at.saturating_duration_since(died))
        })
        .collect();
    Noticed {
        first: times.iter().flatten().min().copied(),
        all: times
            .iter()
            .copied()
            .collect::<Option<Vec<_>>>()
            .and_then(|times| times.into_iter().max()),
    }
}

/// False alarms between two times, while all lived: incidents, words of death, and suspicions.
pub(super) fn false_alarms(events: &[Event], from: Instant, to: Instant) -> (usize, usize, usize) {
    let within = || events.iter().filter(|event| (from..to).contains(&event.at));
    let mut incidents = 0;
    let mut last: BTreeMap<usize, Instant> = BTreeMap::new();
    let mut words = 0;
    for event in within().filter(|event| event.saw == Saw::Down) {
        words += 1;
        let before = last.insert(event.node, event.at);
        if before.is_none_or(|at| event.at.saturating_duration_since(at) > INCIDENT) {
            incidents += 1;
        }
    }
    let suspicions = within().filter(|event| event.saw == Saw::Suspect).count();
    (incidents, words, suspicions)
}

/// A quantile by nearest rank; none of nothing.
pub(super) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(start: Instant, list: &[(u64, usize, usize, Saw)]) -> Vec<Event> {
        list.iter()
            .map(|(seconds, observer, node, saw)| Event {
                at: start + Duration::from_secs(*seconds),
                observer: *observer,
                node: *node,
                saw: *saw,
            })
            .collect()
    }

    #[test]
    fn a_death_is_noticed_when_the_last_survivor_knows() {
        let start = Instant::now();
        let seen = events(
            start,
            &[
                (1, 0, 3, Saw::Suspect),
                (2, 0, 3, Saw::Down),
                (5, 1, 3, Saw::Down),
                (4, 2, 3, Saw::Down),
                // A second word, and one about another node.
                (9, 1, 3, Saw::Down),
                (9, 1, 2, Saw::Down),
            ],
        );
        let one = noticed(&seen, 3, start, &[0, 1, 2]);
        assert_eq!(one.first, Some(Duration::from_secs(2)));
        assert_eq!(one.all, Some(Duration::from_secs(5)));
        assert_eq!(noticed(&seen, 3, start, &[0, 1, 2, 4]).all, None);
    }

    #[test]
    fn who_was_wrong_before_and_corrected_it_has_to_notice_again() {
        let start = Instant::now();
        let seen = events(
            start,
            &[
                (1, 0, 3, Saw::Down),
                (2, 0, 3, Saw::Up),
                (1, 1, 3, Saw::Down),
                (20, 0, 3, Saw::Down),
            ],
        );
        let died = start + Duration::from_secs(10);
        let noticed = noticed(&seen, 3, died, &[0, 1]);
        assert_eq!(noticed.first, Some(Duration::ZERO));
        assert_eq!(noticed.all, Some(Duration::from_secs(10)));
    }

    #[test]
    fn words_of_one_false_death_are_one_incident() {
        let start = Instant::now();
        let seen = events(
            start,
            &[
                (1, 0, 3, Saw::Suspect),
                (2, 0, 3, Saw::Down),
                (3, 1, 3, Saw::Down),
                (3, 1, 4, Saw::Down),
                (70, 1, 3, Saw::Down),
                (100, 1, 5, Saw::Down),
            ],
        );
        let to = start + Duration::from_secs(90);
        assert_eq!(false_alarms(&seen, start, to), (3, 4, 1));
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [3.0, 1.0, 2.0, 4.0];
        assert_eq!(quantile(&values, 0.5), Some(2.0));
        assert_eq!(quantile(&values, 0.99), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
