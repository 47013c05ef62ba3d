//! What stands between nodes and between a node and the control plane. Faults count up and down, so
//! that two of a kind may overlap.

use std::time::Duration;

use crate::rng::Rng;

/// One direction of an uplink or of a pair of nodes.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    blocked: u16,
}

/// Trouble on a node's local network.
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    loss: f64,
    duplicates: f64,
    /// On top of the usual delay, by chance between nothing and this: what reorders datagrams.
    delay: Duration,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Net {
    nodes: usize,
    lan: Vec<Way>,
    trouble: Vec<Trouble>,
    up: Vec<Way>,
    down: Vec<Way>,
}

/// Usual delay of the local network, one way.
const LAN: (u64, u64) = (200, 1500);
/// Usual delay to the control plane, one way.
const UPLINK: (u64, u64) = (10_000, 40_000);

fn micros(rng: &mut Rng, (from, to): (u64, u64)) -> Duration {
    rng.between(Duration::from_micros(from), Duration::from_micros(to))
}

fn count(way: &mut Way, blocked: bool) {
    way.blocked = if blocked {
        way.blocked + 1
    } else {
        way.blocked.saturating_sub(1)
    };
}

impl Net {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            lan: vec![Way::default(); nodes * nodes],
            trouble: vec![Trouble::default(); nodes],
            up: vec![Way::default(); nodes],
            down: vec![Way::default(); nodes],
        }
    }

    /// Blocks one direction between two nodes, or opens it again.
    pub(crate) fn block_lan(&mut self, from: usize, to: usize, blocked: bool) {
        count(&mut self.lan[from * self.nodes + to], blocked);
    }

    /// Blocks what a node says to the control plane.
    pub(crate) fn block_up(&mut self, node: usize, blocked: bool) {
        count(&mut self.up[node], blocked);
    }

    /// Blocks what the control plane says to a node.
    pub(crate) fn block_down(&mut self, node: usize, blocked: bool) {
        count(&mut self.down[node], blocked);
    }

    pub(crate) fn set_loss(&mut self, node: usize, loss: f64) {
        self.trouble[node].loss = loss;
    }

    pub(crate) fn set_duplicates(&mut self, node: usize, duplicates: f64) {
        self.trouble[node].duplicates = duplicates;
    }

    pub(crate) fn set_delay(&mut self, node: usize, delay: Duration) {
        self.trouble[node].delay = delay;
    }

    /// Packets get from one node to another.
    pub(crate) fn lan_open(&self, from: usize, to: usize) -> bool {
        self.lan[from * self.nodes + to].blocked == 0
    }

    /// Packets get both ways between two nodes.
    pub(crate) fn lan_both(&self, a: usize, b: usize) -> bool {
        self.lan_open(a, b) && self.lan_open(b, a)
    }

    pub(crate) fn up_open(&self, node: usize) -> bool {
        self.up[node].blocked == 0
    }

    pub(crate) fn down_open(&self, node: usize) -> bool {
        self.down[node].blocked == 0
    }

    /// Packets get both ways between a node and the control plane, directly or through a peer.
    pub(crate) fn uplink_both(&self, node: usize, via: Option<usize>) -> bool {
        let at = via.unwrap_or(node);
        self.up_open(at) && self.down_open(at) && via.is_none_or(|via| self.lan_both(node, via))
    }

    /// When each copy of a datagram arrives, after now; none where it is lost.
    pub(crate) fn datagram(&self, from: usize, to: usize, rng: &mut Rng) -> [Option<Duration>; 2] {
        let (a, b) = (&self.trouble[from], &self.trouble[to]);
        if !self.lan_open(from, to) || rng.chance(a.loss) || rng.chance(b.loss) {
            return [None, None];
        }
        let mut delay = || micros(rng, LAN) + rng.between(Duration::ZERO, a.delay.max(b.delay));
        let first = delay();
        let second = delay();
        let twice = rng.chance(a.duplicates.max(b.duplicates));
        [Some(first), twice.then_some(second)]
    }

    /// When a message of a stream between nodes arrives, after now; none where the stream breaks.
    /// Losses are made up for, at the price of time.
    pub(crate) fn stream(&self, from: usize, to: usize, rng: &mut Rng) -> Option<Duration> {
        if !self.lan_both(from, to) {
            return None;
        }
        let (a, b) = (&self.trouble[from], &self.trouble[to]);
        let mut delay = micros(rng, LAN) + rng.between(Duration::ZERO, a.delay.max(b.delay));
        for _ in 0..8 {
            if !(rng.chance(a.loss) || rng.chance(b.loss)) {
                return Some(delay);
            }
            delay += Duration::from_millis(60);
        }
        None
    }

    /// How long a message takes between a node and the control plane.
    pub(crate) fn uplink_delay(&self, node: usize, via: Option<usize>, rng: &mut Rng) -> Duration {
        let mut delay = micros(rng, UPLINK);
        if let Some(via) = via {
            let slow = self.trouble[node].delay.max(self.trouble[via].delay);
            delay += micros(rng, LAN) + rng.between(Duration::ZERO, slow);
        }
        delay
    }
}
