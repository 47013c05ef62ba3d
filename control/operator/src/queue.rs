//! Workloads to look at: each once, the urgent ones first, of these the ones with the higher rank,
//! then in order of arrival.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::index::{Name, Priority};

type Place = (Priority, Reverse<i32>, u64);

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    order: BTreeMap<Place, Name>,
    places: HashMap<Name, Place>,
    arrivals: u64,
}

impl Queue {
    /// Adds a workload, or moves it forward. `rank` is `spec.policy.priority`.
    pub fn push(&mut self, name: Name, priority: Priority, rank: i32) {
        if let Some(held) = self.places.get(&name) {
            if held.0 <= priority {
                return;
            }
            self.order.remove(held);
        }
        self.arrivals += 1;
        let place = (priority, Reverse(rank), self.arrivals);
        self.order.insert(place, name.clone());
        self.places.insert(name, place);
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<Name> {
        let (_, name) = self.order.pop_first()?;
        self.places.remove(&name);
        Some(name)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// True when none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_once_and_the_urgent_go_first() {
        let mut queue = Queue::default();
        for (name, priority, rank) in [
            ("a", Priority::Low, 0),
            ("b", Priority::Normal, 0),
            ("c", Priority::Normal, 0),
            ("a", Priority::High, 0),
            ("c", Priority::Low, 9),
            ("d", Priority::Normal, 1),
        ] {
            queue.push(Name::new("n", name), priority, rank);
        }
        assert_eq!(queue.len(), 4);
        let order: Vec<String> = std::iter::from_fn(|| queue.pop()).map(|n| n.name).collect();
        assert_eq!(order, ["a", "d", "b", "c"]);
    }
}
