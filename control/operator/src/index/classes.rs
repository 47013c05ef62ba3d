//! PriorityClasses, what they make of workloads, and replicas that give way to others.

use std::collections::BTreeMap;
use std::time::Instant;

use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use tracing::warn;

use super::{Index, Name, PlacementEntry, Priority, WorkloadEntry};

/// Classes that every cluster has, and their values.
const BUILT_IN: [(&str, i32); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

/// A class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    value: i32,
    /// Of workloads that name none.
    default: bool,
    /// Those of lower priority make room.
    preempts: bool,
}

impl Class {
    fn of(object: &PriorityClass) -> Self {
        Self {
            value: object.value,
            default: object.global_default == Some(true),
            preempts: object.preemption_policy.as_deref() != Some("Never"),
        }
    }
}

/// All classes.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    by_name: BTreeMap<String, Class>,
    /// They were read once.
    read: bool,
}

impl Classes {
    fn named(&self, name: &str) -> Option<Class> {
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name);
        let built_in = built_in.map(|(_, value)| Class {
            value: *value,
            default: false,
            preempts: true,
        });
        self.by_name.get(name).copied().or(built_in)
    }

    /// Of several defaults the lowest, as in Kubernetes.
    fn default(&self) -> Option<Class> {
        let defaults = self.by_name.values().filter(|class| class.default);
        defaults.min_by_key(|class| class.value).copied()
    }
}

/// A replica that gives way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivesWay {
    /// Node that it leaves.
    pub node: String,
    /// To which replica.
    pub to: (Name, u32),
    /// In words.
    pub text: String,
    /// People were told.
    pub told: bool,
}

/// A replica that waits for others to give way.
#[derive(Debug, Clone)]
struct Waits {
    node: String,
    others: Vec<(Name, u32)>,
    text: String,
    until: Instant,
}

/// Replicas that give way, and those that they give way to.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    gives: BTreeMap<(Name, u32), GivesWay>,
    waits: BTreeMap<(Name, u32), Waits>,
}

/// The class that a workload's template names.
fn named(workload: &WorkloadEntry) -> Option<&String> {
    workload.template.as_ref().ok()?.class.as_ref()
}

impl Index {
    /// A class was made or changed.
    pub fn apply_class(&mut self, object: DeserializeGuard<PriorityClass>) {
        match object.0 {
            Ok(object) => {
                let (name, class) = (object.name_any(), Class::of(&object));
                if self.classes.by_name.insert(name.clone(), class) != Some(class) {
                    self.class_changed(&name);
                }
            }
            Err(e) => {
                warn!(class = ?e.metadata.name, error = %e.error, "bad PriorityClass");
            }
        }
    }

    /// A class is gone. What it placed stays.
    pub fn delete_class(&mut self, object: &DeserializeGuard<PriorityClass>) {
        let name = object.name_any();
        if self.classes.by_name.remove(&name).is_some() {
            self.class_changed(&name);
        }
    }

    /// The complete list, after a watch began anew.
    pub fn reset_classes(&mut self, list: Vec<DeserializeGuard<PriorityClass>>) {
        let before = std::mem::take(&mut self.classes.by_name);
        self.classes.read = true;
        for object in list {
            self.apply_class(object);
        }
        for name in before.into_keys() {
            if !self.classes.by_name.contains_key(&name) {
                self.class_changed(&name);
            }
        }
        // Those that named a class waited for this.
        self.touch_unplaced();
    }

    fn class_changed(&mut self, class: &str) {
        let named = self.workloads.iter().filter(|(_, w)| {
            let template = w.template.as_ref().ok();
            template.is_some_and(|t| t.class.as_deref() == Some(class))
        });
        for name in named.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.touch(&name, Priority::Normal);
        }
        self.touch_unplaced();
    }

    /// The class of a workload: the one that its template names; where that names none, and no priority
    /// is given, the default.
    fn class(&self, workload: &Name) -> Option<Class> {
        let workload = self.workloads.get(workload)?;
        match named(workload) {
            Some(name) => self.classes.named(name),
            None if workload.object.spec.policy.priority == 0 => self.classes.default(),
            None => None,
        }
    }

    /// Why the class that a workload names does not say what it is; none where it does, or names none.
    #[must_use]
    pub(crate) fn without_class(&self, workload: &Name) -> Option<String> {
        let name = named(self.workloads.get(workload)?)?;
        if self.classes.named(name).is_some() {
            return None;
        }
        Some(if self.classes.read {
            format!("there is no PriorityClass {name:?}")
        } else {
            "PriorityClasses have not been read yet".to_owned()
        })
    }

    /// Priority of a workload: that of its class, or `spec.policy.priority`; 0 where it is not known.
    #[must_use]
    pub fn rank(&self, workload: &Name) -> i32 {
        if let Some(class) = self.class(workload) {
            return class.value;
        }
        let workload = self.workloads.get(workload);
        workload.map_or(0, |w| w.object.spec.policy.priority)
    }

    /// What [`Index::rank`] says, where it is known.
    #[must_use]
    pub(crate) fn known_rank(&self, workload: &Name) -> Option<i32> {
        let known = self.without_class(workload).is_none();
        known.then(|| self.rank(workload))
    }

    /// Priority of a replica that has a place: what its class was worth when it was placed, as a Pod
    /// keeps its own, whatever became of the class or the default since. `spec.policy.priority` is the
    /// workload's own, and counts as it is now.
    #[must_use]
    pub(crate) fn rank_of(&self, entry: &PlacementEntry) -> i32 {
        let workload = entry.workload();
        let own = self.workloads.get(&workload).filter(|w| named(w).is_none());
        let own = own.map(|w| w.object.spec.policy.priority);
        own.filter(|own| *own != 0)
            .or(entry.spec.priority)
            .unwrap_or_else(|| self.rank(&workload))
    }

    /// Its priority, where replicas of lower priority make room for this workload: only a class says
    /// that they do.
    #[must_use]
    pub(crate) fn preempts(&self, workload: &Name) -> Option<i32> {
        let class = self.class(workload).filter(|class| class.preempts)?;
        Some(class.value)
    }

    /// Notes that these replicas are to give way on a node to one that waits there, until then.
    pub(crate) fn give_way(
        &mut self,
        to: &(Name, u32),
        node: &str,
        others: Vec<(Name, u32)>,
        until: Instant,
    ) {
        let rank = self.rank(&to.0);
        for other in &others {
            let placed = self.placement(&other.0, other.1);
            let mine = placed.map_or(0, |entry| self.rank_of(entry));
            let text = format!(
                "it gives way on node {node} to replica {} of {}, whose priority is {rank} and not {mine}",
                to.1, to.0
            );
            let gives = GivesWay {
                node: node.to_owned(),
                to: to.clone(),
                text,
                told: false,
            };
            self.ways.gives.insert(other.clone(), gives);
            self.touch(&other.0, Priority::High);
        }
        let text = format!(
            "on node {node} {} of lower priority give way",
            match others.len() {
                1 => "a replica".to_owned(),
                n => format!("{n} replicas"),
            }
        );
        let waits = Waits {
            node: node.to_owned(),
            others,
            text,
            until,
        };
        self.ways.waits.insert(to.clone(), waits);
    }

    /// What a replica waits for, where others are giving way to it, and until when.
    pub(crate) fn waits_for_way(
        &mut self,
        at: &(Name, u32),
        now: Instant,
    ) -> Option<(String, Instant)> {
        let waits = self.ways.waits.get(at)?;
        let still = waits.others.iter().any(|other| {
            let gives = self.ways.gives.get(other).is_some_and(|g| g.to == *at);
            let entry = self.placement(&other.0, other.1);
            let there = entry.is_some_and(|e| e.spec.node == waits.node && e.takes_room());
            let mut copies = self.leaving.get(other).into_iter().flatten();
            gives && there || copies.any(|c| c.node == waits.node && c.takes_room())
        });
        if still && now < waits.until {
            return Some((waits.text.clone(), waits.until));
        }
        self.give_up(at);
        None
    }

    /// Nodes where room is made for replicas of higher priority than a workload's, and for which: it is
    /// not to take that before they can.
    #[must_use]
    pub(crate) fn kept_for_others(&self, workload: &Name, now: Instant) -> Vec<(String, String)> {
        if self.ways.waits.is_empty() {
            return Vec::new();
        }
        let rank = self.rank(workload);
        let higher = self.ways.waits.iter();
        let higher = higher.filter(|(to, w)| w.until > now && self.rank(&to.0) > rank);
        let node = |(to, w): (&(Name, u32), &Waits)| {
            (w.node.clone(), format!("room is made there for {}", to.0))
        };
        higher.map(node).collect()
    }

    /// Why a replica gives way, or gave way and has no place since.
    #[must_use]
    pub(crate) fn gives_way(&self, at: &(Name, u32)) -> Option<&GivesWay> {
        self.ways.gives.get(at)
    }

    /// People were told that it gives way.
    pub(crate) fn told_of_way(&mut self, at: &(Name, u32)) {
        if let Some(gives) = self.ways.gives.get_mut(at) {
            gives.told = true;
        }
    }

    /// A replica has a place: it gives way no more, and those that have not begun to give way to it
    /// stay.
    pub(crate) fn has_its_way(&mut self, at: &(Name, u32)) {
        if self.ways.gives.is_empty() && self.ways.waits.is_empty() {
            return;
        }
        self.ways.gives.remove(at);
        self.pass_on(at);
        self.give_up(at);
    }

    /// What still leaves a node for a replica leaves it for another that waits there: of the room that
    /// this one has now, part may have been made for that one.
    fn pass_on(&mut self, at: &(Name, u32)) {
        let Some(waits) = self.ways.waits.get(at) else {
            return;
        };
        let (others, until) = (waits.others.clone(), waits.until);
        let mut heirs = self.ways.waits.iter();
        let heir = heirs.find(|(to, w)| *to != at && w.node == waits.node);
        let Some(heir) = heir.map(|(to, _)| to.clone()) else {
            return;
        };
        let leaving = |other: &(Name, u32)| {
            let entry = self.placement(&other.0, other.1);
            entry.is_some_and(|e| e.stopping.is_some() || e.deleting)
                || self.leaving.contains_key(other)
        };
        let leaving: Vec<_> = others.into_iter().filter(leaving).collect();
        for other in &leaving {
            if let Some(gives) = self.ways.gives.get_mut(other) {
                gives.to = heir.clone();
            }
        }
        if let Some(waits) = self.ways.waits.get_mut(&heir) {
            waits.others.extend(leaving);
            waits.until = waits.until.max(until);
        }
    }

    /// Nobody gives way to a replica any more that has not begun to.
    fn give_up(&mut self, at: &(Name, u32)) {
        let Some(waits) = self.ways.waits.remove(at) else {
            return;
        };
        // What was kept for it is anybody's.
        self.touch_unplaced();
        for other in waits.others {
            let begun = self.placement(&other.0, other.1);
            let begun = begun.is_none_or(|e| e.stopping.is_some() || e.deleting);
            if !begun {
                self.ways.gives.remove(&other);
            }
        }
    }

    /// Forgets what replicas of a workload from this number on give or gave way to.
    pub(crate) fn forget_ways(&mut self, workload: &Name, from: u32) {
        let range = (workload.clone(), from)..=(workload.clone(), u32::MAX);
        let gone: Vec<_> = self
            .ways
            .gives
            .range(range.clone())
            .map(|(at, _)| at.clone())
            .collect();
        for at in gone {
            self.ways.gives.remove(&at);
        }
        let gone: Vec<_> = self
            .ways
            .waits
            .range(range)
            .map(|(at, _)| at.clone())
            .collect();
        for at in gone {
            self.give_up(&at);
        }
    }
}
