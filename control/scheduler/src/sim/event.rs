//! What happens when, in virtual time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that happens. At the same time, what is declared first happens first: what the world
/// does goes before what the scheduler is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The price of a pool changes.
    Price(usize),
    /// The busy share of a workload changes.
    Load(usize),
    /// A job saves its work. Replica, epoch.
    Checkpoint(usize, u32),
    /// A job is done. Replica, epoch.
    Finished(usize, u32),
    /// A service is deleted.
    End(usize),
    /// A bought instance is ready.
    Ready(usize),
    /// A launch was refused. Replica, epoch, pool.
    LaunchFailed(usize, u32, usize),
    /// A replica serves or works from now on. Replica, epoch.
    Started(usize, u32),
    /// A pool begins or ends giving instances.
    Pool(usize),
    /// A device goes down or comes up.
    Device(usize),
    /// A reclaimed instance dies.
    Death(usize),
    /// An instance without promises is given back. Host, epoch.
    GiveBack(usize, u32),
    /// A pool may be asked again.
    CooledDown(usize),
    /// A workload is applied.
    Arrival(usize),
    /// A replica has waited for five minutes.
    Retry(usize),
    /// Where a running replica should be is decided anew.
    Reconsider(usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    hour: f64,
    event: Event,
    number: u64,
}

impl Eq for Entry {}

impl Ord for Entry {
    /// The heap gives the greatest first: the earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .hour
            .total_cmp(&self.hour)
            .then_with(|| other.event.cmp(&self.event))
            .then_with(|| other.number.cmp(&self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Events to come.
#[derive(Debug, Clone)]
pub struct Agenda {
    heap: BinaryHeap<Entry>,
    horizon: f64,
    number: u64,
}

impl Agenda {
    /// Empty; nothing happens from `horizon` on.
    pub fn new(horizon: f64) -> Self {
        Self {
            heap: BinaryHeap::new(),
            horizon,
            number: 0,
        }
    }

    /// Notes an event, unless it lies behind the horizon.
    pub fn at(&mut self, hour: f64, event: Event) {
        if hour < self.horizon {
            self.number += 1;
            self.heap.push(Entry {
                hour,
                event,
                number: self.number,
            });
        }
    }

    /// The next event.
    pub fn pop(&mut self) -> Option<(f64, Event)> {
        self.heap.pop().map(|e| (e.hour, e.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_events_go_first_and_ties_by_what_they_are() {
        let mut agenda = Agenda::new(10.0);
        agenda.at(2.0, Event::Reconsider(0));
        agenda.at(2.0, Event::Device(7));
        agenda.at(1.0, Event::Retry(1));
        agenda.at(2.0, Event::Device(3));
        agenda.at(10.0, Event::Device(4));
        let order: Vec<_> = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(
            order,
            [
                (1.0, Event::Retry(1)),
                (2.0, Event::Device(3)),
                (2.0, Event::Device(7)),
                (2.0, Event::Reconsider(0)),
            ]
        );
    }
}
