//! What the same workloads cost on static machines: AWS us-east-1, on demand, at list price. Where
//! they may run does not matter to it, nothing is ever taken back, and there is always room.

use std::collections::BTreeMap;

use super::meter::Replica;
use crate::cluster::check::facts::Asked;

/// A machine type of the static fleet.
#[derive(Debug, Clone)]
pub(super) struct Type {
    pub usd: f64,
    pub has: Asked,
}

/// A machine that runs.
#[derive(Debug, Clone)]
struct Machine {
    of: usize,
    used: BTreeMap<Replica, Asked>,
}

/// The static fleet.
#[derive(Debug, Clone, Default)]
pub(super) struct Fixed {
    types: Vec<Type>,
    /// US dollars per hour of each replica's share of the machine that suits it best.
    shares: BTreeMap<Replica, f64>,
    machines: Vec<Machine>,
}

impl Fixed {
    /// Of these types; no replica yet.
    pub(super) fn new(mut types: Vec<Type>) -> Self {
        types.sort_by(|a, b| a.usd.total_cmp(&b.usd));
        Self {
            types,
            ..Self::default()
        }
    }

    /// A replica begins. False where it fits on no type: then it is in no sum.
    pub(super) fn add(&mut self, replica: &Replica, asked: Asked) -> bool {
        let suits = self.types.iter().filter(|t| fits(&asked, t.has));
        let share = suits.map(|t| t.usd * asked.share_of(&t.has));
        let Some(share) = share.min_by(f64::total_cmp) else {
            return false;
        };
        self.shares.insert(replica.clone(), share);
        let types = &self.types;
        let room = self.machines.iter_mut().find(|machine| {
            let mut all = asked;
            for one in machine.used.values() {
                all.add(one);
            }
            types.get(machine.of).is_some_and(|t| fits(&all, t.has))
        });
        match room {
            Some(machine) => drop(machine.used.insert(replica.clone(), asked)),
            None => {
                let of = types.iter().position(|t| fits(&asked, t.has));
                self.machines.extend(of.map(|of| Machine {
                    of,
                    used: BTreeMap::from([(replica.clone(), asked)]),
                }));
            }
        }
        true
    }

    /// A replica ends; so does its machine when it was the last there.
    pub(super) fn remove(&mut self, replica: &Replica) {
        self.shares.remove(replica);
        for machine in &mut self.machines {
            machine.used.remove(replica);
        }
        self.machines.retain(|machine| !machine.used.is_empty());
    }

    /// US dollars per hour of the share that each replica takes.
    pub(super) fn shares(&self) -> impl Iterator<Item = (&Replica, f64)> {
        self.shares.iter().map(|(replica, usd)| (replica, *usd))
    }

    /// Of all of them.
    pub(super) fn usd_of_shares(&self) -> f64 {
        self.shares.values().sum()
    }

    /// US dollars per hour of whole machines.
    pub(super) fn usd_of_machines(&self) -> f64 {
        let types = self.machines.iter().filter_map(|m| self.types.get(m.of));
        types.map(|t| t.usd).sum()
    }
}

fn fits(asked: &Asked, has: Asked) -> bool {
    let mut beside = asked.beside(&has).into_iter();
    beside.all(|(_, asked, has)| asked <= has)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asks(cpu: &str, memory: &str, gpus: u32) -> Asked {
        let limits = if gpus > 0 {
            json!({ "nvidia.com/gpu": gpus.to_string() })
        } else {
            json!({})
        };
        Asked::of_pod(&json!({ "containers": [{ "resources": {
            "requests": { "cpu": cpu, "memory": memory }, "limits": limits,
        }}]}))
    }

    fn of_type(usd: f64, cpu: &str, memory: &str, gpus: u32) -> Type {
        let mut has = asks(cpu, memory, gpus);
        for _ in 0..100 {
            has.add(&Asked::of_pod(&json!({})));
        }
        Type { usd, has }
    }

    fn replica(name: &str) -> Replica {
        (name.to_owned(), 0)
    }

    #[test]
    fn replicas_cost_their_share_of_what_suits_them_and_machines_are_filled() {
        let mut fixed = Fixed::new(vec![
            of_type(0.5, "8", "64Gi", 0),
            of_type(0.4, "8", "16Gi", 0),
            of_type(1.0, "4", "16Gi", 1),
        ]);
        // Half of the cheap one.
        assert!(fixed.add(&replica("a"), asks("4", "1Gi", 0)));
        assert!((fixed.usd_of_shares() - 0.2).abs() < 1e-9);
        assert!((fixed.usd_of_machines() - 0.4).abs() < 1e-9);
        // A quarter of the one with more memory costs less than all of the cheap one, beside which
        // there is no room; as a machine of its own the cheap one is taken.
        assert!(fixed.add(&replica("b"), asks("1", "16Gi", 0)));
        assert!((fixed.usd_of_shares() - 0.325).abs() < 1e-9);
        assert!((fixed.usd_of_machines() - 0.8).abs() < 1e-9);
        assert!(fixed.add(&replica("c"), asks("4", "1Gi", 0)));
        assert!((fixed.usd_of_machines() - 0.8).abs() < 1e-9);
        assert!(fixed.add(&replica("d"), asks("1", "1Gi", 1)));
        assert!((fixed.usd_of_machines() - 1.8).abs() < 1e-9);
        assert!(!fixed.add(&replica("e"), asks("1", "1Gi", 2)));
        for name in ["a", "b", "c", "d"] {
            fixed.remove(&replica(name));
        }
        assert_eq!((fixed.usd_of_shares(), fixed.usd_of_machines()), (0.0, 0.0));
    }
}
