//! Machines: devices, and instances that were bought.

use hyperion_placement::cost;
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::{Location, Node, Request};

use crate::scenario::Scenario;

/// What all machines of one kind share: one for each pool, then one for each device.
#[derive(Debug, Clone)]
pub struct Shape {
    /// A node of this kind with nothing on it, at a price of 1 USD/h: what shares are counted on.
    pub node: Node,
    /// Index of its [`location_key`].
    pub location: usize,
    /// Gigabits per second.
    pub network_gbps: f64,
    /// Owned: shares are paid at the amortised price, whoever else is there.
    pub owned: bool,
}

impl Shape {
    /// Dominant share of a machine of this kind that the request takes, 0 to 1.
    pub fn share(&self, request: &Request) -> f64 {
        cost::replica_share(request, &Candidate::from(&self.node)).unwrap_or(1.0)
    }
}

/// Shapes of a scenario: pools, then devices.
pub fn shapes(scenario: &Scenario) -> (Vec<Shape>, Vec<Location>) {
    let mut locations: Vec<Location> = Vec::new();
    let mut index = |location: &Location| {
        let key = location_key(location);
        locations.iter().position(|l| *l == key).unwrap_or_else(|| {
            locations.push(key);
            locations.len() - 1
        })
    };
    let mut shapes = Vec::with_capacity(scenario.pools.len() + scenario.devices.len());
    for pool in &scenario.pools {
        shapes.push(Shape {
            node: Node {
                price_per_hour: 1.0,
                ..pool.offer.node(String::new())
            },
            location: index(&pool.offer.location),
            network_gbps: pool.network_gbps,
            owned: false,
        });
    }
    for device in &scenario.devices {
        let mut node = device.node.clone();
        node.price_per_hour = 1.0;
        node.free = node.allocatable;
        shapes.push(Shape {
            location: index(&node.location),
            node,
            network_gbps: device.network_gbps,
            owned: true,
        });
    }
    (shapes, locations)
}

/// What latency and egress depend on: the location without its zone.
fn location_key(location: &Location) -> Location {
    Location {
        zone: String::new(),
        ..location.clone()
    }
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Asked for, not ready yet.
    Booting,
    /// A candidate.
    Up,
    /// Reclaimed; dies within two minutes.
    Dying,
    /// A device that is down, or an instance that is no more.
    Gone,
}

/// Room on a machine that a replica was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Promise {
    /// Index of the replica.
    pub replica: usize,
    /// Its dominant share of the machine.
    pub share: f64,
    /// GPUs: uuid, thousandths.
    pub gpus: Vec<(String, u32)>,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Host {
    /// Index into the shapes.
    pub shape: usize,
    /// Node id.
    pub id: String,
    /// What it is doing.
    pub state: State,
    /// Who has room on it.
    pub promises: Vec<Promise>,
    /// US dollars per hour of the whole machine now.
    pub price: f64,
    /// Thousandths of cores that are busy.
    pub busy: f64,
    /// Sum of the dominant shares.
    pub shares: f64,
    /// When it was asked for, for those that were bought.
    pub bought: f64,
    /// When it was given back or died, hours.
    pub ended: Option<f64>,
    /// Since when it has no promises.
    pub idle_since: Option<f64>,
    /// Grows whenever it becomes idle or ceases to be.
    pub idle_epoch: u32,
    /// Who left last, and pays while nobody is there.
    pub last: usize,
}

impl Host {
    /// Index of the pool that it was bought from.
    pub fn pool(&self, pools: usize) -> Option<usize> {
        (self.shape < pools).then_some(self.shape)
    }

    /// Replicas can still run there.
    pub fn alive(&self) -> bool {
        matches!(self.state, State::Up | State::Dying)
    }
}
