//! Looks at each decision, when it is told, for demands that it breaks; and at each machine for more
//! Pods than it has room for. Reads Nodes, workloads and prices, and shares no code with the scheduler.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::day::{Day, Kind};
use super::mix::Item;
use crate::cluster::check::broken;
use crate::cluster::check::facts::{Asked, Machine, pointer};

/// A machine that is, or was, there.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub machine: Machine,
    pub kind: Kind,
    /// Hour in which it was taken back.
    pub gone: Option<f64>,
}

/// A decision as a placement tells it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decision<'a> {
    pub machine: &'a str,
    /// US dollars per hour, as the scheduler has it.
    pub usd: f64,
    /// When it was told.
    pub hour: f64,
}

/// What is needed to judge.
#[derive(Debug, Clone, Default)]
pub(super) struct Audit {
    pub machines: BTreeMap<String, Known>,
    /// Hours for which a decision may rest on old prices, or on a machine that is gone: what the
    /// price file and the watches are late.
    pub lag: f64,
    /// Machines with too much on them now.
    pub over: BTreeSet<String>,
}

impl Audit {
    /// What a decision breaks.
    pub(super) fn decision(&self, item: &Item, day: &Day, at: &Decision<'_>) -> Vec<String> {
        let Some(known) = self.machines.get(at.machine) else {
            return vec!["there was never such a machine".to_owned()];
        };
        let mut wrong = Vec::new();
        if let Some(gone) = known.gone.filter(|gone| at.hour - gone > self.lag) {
            let minutes = (at.hour - gone) * 60.0;
            wrong.push(format!(
                "the machine had been gone for {minutes:.0} minutes"
            ));
        }
        let mut object = item.object.clone();
        // Costs are looked at here, by the prices of the moment.
        if let Some(policy) = object
            .pointer_mut("/spec/policy")
            .and_then(Value::as_object_mut)
        {
            policy.remove("maxHourlyCost");
        }
        let asked = asked(&item.object);
        wrong.extend(broken(&object, &Value::Null, &asked, &known.machine));
        let Some(price) = day.prices.get(&known.kind) else {
            wrong.push("its price is not known".to_owned());
            return wrong;
        };
        let share = asked.share_of(&known.machine.has);
        let (low, high) = price.between(at.hour - self.lag, at.hour);
        if let Some(limit) = item.limit.filter(|limit| low * share > limit + 1e-6) {
            let usd = low * share;
            wrong.push(format!("maxHourlyCost: {usd:.4} is more than {limit:.4}"));
        }
        let right = low * share * 0.99 - 1e-3..=high * share * 1.01 + 1e-3;
        if !right.contains(&at.usd) {
            wrong.push(format!(
                "hourlyCost says {:.4} where {:.4} to {:.4} is right",
                at.usd,
                low * share,
                high * share
            ));
        }
        wrong
    }

    /// Machines on which Pods ask for more than there is, each once until it has room again. `used`
    /// has what is asked of each.
    pub(super) fn rooms(&mut self, used: &BTreeMap<String, Asked>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut over = BTreeSet::new();
        for (id, asked) in used {
            let Some(known) = self.machines.get(id).filter(|k| k.gone.is_none()) else {
                continue;
            };
            let beside = asked.beside(&known.machine.has);
            let more: Vec<String> = beside
                .iter()
                .filter(|(_, asked, has)| asked > &(has + 1e-3) || asked.is_nan())
                .map(|(what, asked, has)| format!("{asked} {what} of {has}"))
                .collect();
            if more.is_empty() {
                continue;
            }
            if !self.over.contains(id) {
                wrong.push(format!("{id}: its Pods ask {}", more.join(", ")));
            }
            over.insert(id.clone());
        }
        self.over = over;
        wrong
    }
}

/// What each replica of a workload asks for.
pub(super) fn asked(workload: &Value) -> Asked {
    Asked::of_pod(pointer(workload, "/spec/template/spec"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hyperion_cluster::nodes::{Service, nodes};
    use hyperion_scheduler::world::World;
    use serde_json::json;

    use super::super::stage::kind_of;
    use super::*;
    use crate::cluster::check::facts::of_cluster;

    fn item(policy: &Value, limit: Option<f64>) -> Item {
        Item {
            name: "w".to_owned(),
            group: "cost",
            object: json!({ "spec": { "policy": policy, "template": { "spec": { "containers": [{
                "resources": { "requests": { "cpu": "1", "memory": "1Gi" } },
            }]}}}}),
            replicas: 1,
            at: 0.0,
            runs: None,
            limit,
        }
    }

    /// The first on-demand machine without taints, and its price.
    fn world() -> (Audit, Day, String, f64) {
        let all = nodes(Service::Eks, Service::Eks.region(), 40);
        let mut audit = Audit {
            lag: 0.5,
            ..Audit::default()
        };
        let mut kinds = BTreeSet::new();
        for node in &all {
            let machine = of_cluster("eks", node);
            let kind = kind_of(Service::Eks, &machine);
            kinds.insert(kind.clone());
            let known = Known {
                machine,
                kind,
                gone: None,
            };
            audit.machines.insert(known.machine.id.clone(), known);
        }
        let world = World::builtin();
        let day = Day::new(&world, std::path::Path::new("d"), &kinds, None, 24.0, 1).unwrap();
        let (id, known) = audit
            .machines
            .iter()
            .find(|(_, k)| !k.kind.spot && k.machine.taints.is_empty())
            .unwrap();
        let one = asked(&item(&json!({}), None).object);
        let usd = day.prices[&known.kind].at(0.0) * one.share_of(&known.machine.has);
        let id = id.clone();
        (audit, day, id, usd)
    }

    #[test]
    fn a_good_decision_breaks_nothing_and_bad_ones_are_named() {
        let (mut audit, day, id, usd) = world();
        let judge = |audit: &Audit, item: &Item, machine: &str, usd: f64| {
            let at = Decision {
                machine,
                usd,
                hour: 2.0,
            };
            audit.decision(item, &day, &at).join("; ")
        };
        let good = item(
            &json!({ "constraints": { "clouds": ["aws"], "geographies": ["US"] } }),
            None,
        );
        assert_eq!(judge(&audit, &good, &id, usd), "");
        assert!(judge(&audit, &good, "eks.no", usd).contains("never"));
        let wrong_cloud = item(&json!({ "constraints": { "clouds": ["gcp"] } }), None);
        assert!(judge(&audit, &wrong_cloud, &id, usd).contains("clouds"));
        let poor = item(&json!({}), Some(usd / 2.0));
        assert!(judge(&audit, &poor, &id, usd).contains("maxHourlyCost"));
        assert!(judge(&audit, &good, &id, usd * 2.0).contains("hourlyCost says"));
        // A machine that was just taken back may still be chosen, one that was long ago may not.
        audit.machines.get_mut(&id).unwrap().gone = Some(1.8);
        assert_eq!(judge(&audit, &good, &id, usd), "");
        audit.machines.get_mut(&id).unwrap().gone = Some(1.0);
        assert!(judge(&audit, &good, &id, usd).contains("60 minutes"));
    }

    #[test]
    fn a_machine_with_too_much_is_named_once() {
        let (mut audit, _, id, _) = world();
        let mut used = BTreeMap::new();
        used.insert(id.clone(), asked(&item(&json!({}), None).object));
        assert!(audit.rooms(&used).is_empty());
        let many = used.get_mut(&id).unwrap();
        for _ in 0..500 {
            many.add(&asked(&item(&json!({}), None).object));
        }
        let full = used.clone();
        assert!(audit.rooms(&full)[0].contains("cpu"));
        assert!(audit.rooms(&full).is_empty());
        assert!(audit.rooms(&BTreeMap::new()).is_empty());
        assert_eq!(audit.rooms(&full).len(), 1);
    }
}
