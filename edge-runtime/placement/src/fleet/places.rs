//! Places and their round trips. Sites of which nothing is measured share one class by geography,
//! so that a fleet of thousands of small sites has few kinds of machines.

use std::collections::HashMap;

use crate::cost;
use crate::features::Kind;
use crate::latency::{self, NEAR_MS};
use crate::model::{Geography, LatencyMatrix, Location, Place, Provider, Request};

/// A site with more nodes than this becomes a class of its own; the nodes of a smaller one that a
/// request names are looked at one by one.
const SMALL: usize = 128;

#[derive(Debug, Clone, Default)]
struct Entry {
    /// A class of its own.
    own: bool,
    /// While it is not: the nodes that stand there.
    members: Vec<u32>,
}

/// What round trips depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Class {
    /// None for a site of which nothing is measured.
    pub(super) place: Option<u32>,
    pub(super) provider: Provider,
    pub(super) geography: Option<Geography>,
}

/// What a decision looks up for a class.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reach {
    pub(super) client_rtt_ms: Option<f64>,
    pub(super) data_rtt_ms: Option<f64>,
    pub(super) egress_usd: f64,
}

impl Reach {
    pub(super) const fn kind(&self, hourly_cost: Option<f64>) -> Kind {
        Kind {
            hourly_cost,
            client_rtt_ms: self.client_rtt_ms,
            data_rtt_ms: self.data_rtt_ms,
            egress_usd: self.egress_usd,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    ids: HashMap<Place, u32>,
    entries: Vec<Entry>,
    rtt_ms: HashMap<(u32, u32), f32>,
    near: HashMap<Geography, u32>,
    classes: Vec<(Class, u32)>,
    class_ids: HashMap<Class, u32>,
    unused: Vec<u32>,
}

impl Places {
    fn intern(&mut self, place: &Place) -> u32 {
        if let Some(id) = self.ids.get(place) {
            return *id;
        }
        let id = self.entries.len() as u32;
        self.entries.push(Entry {
            own: !place.0.starts_with("site:"),
            members: Vec::new(),
        });
        self.ids.insert(place.clone(), id);
        id
    }

    /// Replaces all round trips. Returns the nodes whose class has changed.
    pub(super) fn set_latency(&mut self, matrix: &LatencyMatrix) -> Vec<u32> {
        self.rtt_ms.clear();
        let mut moved = Vec::new();
        for geography in Geography::ALL {
            let id = self.intern(&Place(format!("geo:{geography}")));
            self.near.insert(*geography, id);
        }
        // An entry with the larger place first is one that nobody finds.
        for ((a, b), ms) in matrix.rtt_ms.iter().filter(|((a, b), _)| a < b) {
            let ids = (self.intern(a), self.intern(b));
            self.rtt_ms.insert(order(ids.0, ids.1), *ms);
            moved.append(&mut self.promote(ids.0));
            moved.append(&mut self.promote(ids.1));
        }
        moved
    }

    /// Makes a place a class of its own. Returns the nodes that are in it.
    fn promote(&mut self, id: u32) -> Vec<u32> {
        let entry = &mut self.entries[id as usize];
        entry.own = true;
        std::mem::take(&mut entry.members)
    }

    /// A node stands at `location` from now on. Returns its place, and the nodes whose class has
    /// changed by that.
    pub(super) fn join(&mut self, location: &Location, node: u32) -> (u32, Vec<u32>) {
        let id = self.intern(&latency::place_of(location));
        let entry = &mut self.entries[id as usize];
        if entry.own {
            return (id, Vec::new());
        }
        entry.members.push(node);
        if entry.members.len() > SMALL {
            return (id, self.promote(id));
        }
        (id, Vec::new())
    }

    pub(super) fn leave(&mut self, place: u32, node: u32) {
        let members = &mut self.entries[place as usize].members;
        if let Some(at) = members.iter().position(|m| *m == node) {
            members.swap_remove(at);
        }
    }

    fn class_of(&self, place: u32, location: &Location) -> Class {
        Class {
            place: self.entries[place as usize].own.then_some(place),
            provider: location.provider,
            geography: location.geography,
        }
    }

    /// The number of a location's class, held until [`Self::release`].
    pub(super) fn hold(&mut self, place: u32, location: &Location) -> u32 {
        let class = self.class_of(place, location);
        if let Some(id) = self.class_ids.get(&class) {
            self.classes[*id as usize].1 += 1;
            return *id;
        }
        let id = self.unused.pop().unwrap_or_else(|| {
            self.classes.push((class, 0));
            self.classes.len() as u32 - 1
        });
        self.classes[id as usize] = (class, 1);
        self.class_ids.insert(class, id);
        id
    }

    pub(super) fn class(&self, place: u32, location: &Location) -> Class {
        self.class_of(place, location)
    }

    pub(super) fn release(&mut self, id: u32) {
        let (class, held) = &mut self.classes[id as usize];
        *held -= 1;
        if *held == 0 {
            self.class_ids.remove(class);
            self.unused.push(id);
        }
    }

    /// Looks a request's round trips up, by number of class.
    pub(super) fn reach(&self, request: &Request, out: &mut Vec<Reach>) {
        out.clear();
        let data = request.data_locality.as_ref();
        let data = data.and_then(|d| self.ids.get(d).copied());
        out.extend(self.classes.iter().map(|(class, held)| {
            if *held == 0 {
                Reach::default()
            } else {
                self.reach_of(request, data, *class)
            }
        }));
    }

    /// The same for one node at its own place.
    pub(super) fn reach_at(&self, request: &Request, place: u32, location: &Location) -> Reach {
        let data = request.data_locality.as_ref();
        let class = Class {
            place: Some(place),
            provider: location.provider,
            geography: location.geography,
        };
        let data = data.and_then(|d| self.ids.get(d).copied());
        self.reach_of(request, data, class)
    }

    fn reach_of(&self, request: &Request, data: Option<u32>, class: Class) -> Reach {
        let client = |client: &crate::model::Client| {
            let from = *self.ids.get(&client.place)?;
            self.rtt(from, class.place).or_else(|| {
                if class.provider != Provider::Edge {
                    return None;
                }
                let near = *self.near.get(&class.geography?)?;
                if near == from {
                    Some(NEAR_MS)
                } else {
                    self.rtt(from, Some(near))
                }
            })
        };
        Reach {
            client_rtt_ms: latency::weighted_rtt(request, client),
            data_rtt_ms: data.and_then(|data| self.rtt(data, class.place)),
            egress_usd: cost::egress_to(request, class.provider, || {
                data.is_some() && data == class.place
            }),
        }
    }

    fn rtt(&self, from: u32, to: Option<u32>) -> Option<f64> {
        let to = to?;
        if from == to {
            return Some(1.0);
        }
        let ms = f64::from(*self.rtt_ms.get(&order(from, to))?);
        (ms.is_finite() && ms >= 0.0).then_some(ms)
    }

    /// Nodes of small sites that a request names, and which its class tells too little of.
    pub(super) fn named<'a>(&'a self, request: &'a Request) -> impl Iterator<Item = u32> + 'a {
        let clients = request.clients.iter().map(|c| &c.place);
        clients
            .chain(request.data_locality.as_ref())
            .filter_map(|place| self.ids.get(place))
            .flat_map(|id| self.entries[*id as usize].members.iter().copied())
    }
}

const fn order(a: u32, b: u32) -> (u32, u32) {
    if a < b { (a, b) } else { (b, a) }
}
