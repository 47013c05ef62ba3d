//! Workloads to look at: each once, the urgent ones first, in order of arrival.

use std::collections::{BTreeMap, HashMap};

use crate::index::{Name, Priority};

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    order: BTreeMap<(Priority, u64), Name>,
    places: HashMap<Name, (Priority, u64)>,
    arrivals: u64,
}

impl Queue {
    /// Adds a workload, or moves it forward.
    pub fn push(&mut self, name: Name, priority: Priority) {
        if let Some(held) = self.places.get(&name) {
            if held.0 <= priority {
                return;
            }
            self.order.remove(held);
        }
        self.arrivals += 1;
        let place = (priority, self.arrivals);
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
        for (name, priority) in [
            ("a", Priority::Low),
            ("b", Priority::Normal),
            ("c", Priority::Normal),
            ("a", Priority::High),
            ("c", Priority::Low),
        ] {
            queue.push(Name::new("n", name), priority);
        }
        assert_eq!(queue.len(), 3);
        let order: Vec<String> = std::iter::from_fn(|| queue.pop()).map(|n| n.name).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }
}
