//! Strings as numbers: labels and images, with the nodes or sets of nodes that hold them.

use std::collections::{BTreeMap, HashMap};

/// A set of lanes: a mask for each block that has one of them.
pub(super) type Lanes = BTreeMap<u32, u16>;

#[derive(Debug, Clone)]
struct Label {
    key: Box<str>,
    value: Box<str>,
    lanes: Lanes,
}

/// Labels, and which lanes carry them.
#[derive(Debug, Clone, Default)]
pub(super) struct Labels {
    ids: HashMap<Box<str>, HashMap<Box<str>, u32>>,
    labels: Vec<Option<Label>>,
    unused: Vec<u32>,
}

impl Labels {
    /// The label's number, which is made up where there is none yet.
    pub(super) fn intern(&mut self, key: &str, value: &str) -> u32 {
        if let Some(id) = self.ids.get(key).and_then(|values| values.get(value)) {
            return *id;
        }
        let id = self.unused.pop().unwrap_or_else(|| {
            self.labels.push(None);
            self.labels.len() as u32 - 1
        });
        self.labels[id as usize] = Some(Label {
            key: key.into(),
            value: value.into(),
            lanes: Lanes::new(),
        });
        let values = self.ids.entry(key.into()).or_default();
        values.insert(value.into(), id);
        id
    }

    pub(super) fn put(&mut self, id: u32, block: u32, lane: usize) {
        if let Some(label) = &mut self.labels[id as usize] {
            *label.lanes.entry(block).or_insert(0) |= 1 << lane;
        }
    }

    /// Takes a lane out.
    pub(super) fn take(&mut self, id: u32, block: u32, lane: usize) {
        let Some(label) = &mut self.labels[id as usize] else {
            return;
        };
        if let Some(mask) = label.lanes.get_mut(&block) {
            *mask &= !(1 << lane);
            if *mask == 0 {
                label.lanes.remove(&block);
            }
        }
    }

    /// Forgets a label that nobody carries.
    pub(super) fn forget_unused(&mut self, id: u32) {
        let slot = &mut self.labels[id as usize];
        if !slot.as_ref().is_some_and(|l| l.lanes.is_empty()) {
            return;
        }
        if let Some(label) = slot.take() {
            if let Some(values) = self.ids.get_mut(&label.key) {
                values.remove(&label.value);
                if values.is_empty() {
                    self.ids.remove(&label.key);
                }
            }
            self.unused.push(id);
        }
    }

    /// The lanes that carry a label; none where nobody does.
    pub(super) fn lanes(&self, key: &str, value: &str) -> Option<&Lanes> {
        let id = self.ids.get(key)?.get(value)?;
        self.labels[*id as usize].as_ref().map(|l| &l.lanes)
    }
}

#[derive(Debug, Clone)]
struct ImageSet {
    images: Vec<Box<str>>,
    nodes: u32,
}

/// Sets of images: nodes that run the same have the same number.
#[derive(Debug, Clone)]
pub(super) struct Images {
    sets: Vec<Option<ImageSet>>,
    ids: HashMap<Vec<Box<str>>, u32>,
    holders: HashMap<Box<str>, Vec<u32>>,
    unused: Vec<u32>,
}

impl Default for Images {
    /// With the empty set as number 0, which stays.
    fn default() -> Self {
        Self {
            sets: vec![Some(ImageSet {
                images: Vec::new(),
                nodes: 1,
            })],
            ids: HashMap::from([(Vec::new(), 0)]),
            holders: HashMap::new(),
            unused: Vec::new(),
        }
    }
}

impl Images {
    /// One more node that holds these.
    pub(super) fn join(&mut self, images: &[String]) -> u32 {
        let mut sorted: Vec<Box<str>> = images.iter().map(|i| i.as_str().into()).collect();
        sorted.sort_unstable();
        sorted.dedup();
        if let Some(id) = self.ids.get(&sorted) {
            if let Some(set) = &mut self.sets[*id as usize] {
                set.nodes += 1;
            }
            return *id;
        }
        let id = self.unused.pop().unwrap_or_else(|| {
            self.sets.push(None);
            self.sets.len() as u32 - 1
        });
        for image in &sorted {
            self.holders.entry(image.clone()).or_default().push(id);
        }
        self.ids.insert(sorted.clone(), id);
        self.sets[id as usize] = Some(ImageSet {
            images: sorted,
            nodes: 1,
        });
        id
    }

    /// One node fewer that holds set `id`.
    pub(super) fn leave(&mut self, id: u32) {
        let slot = &mut self.sets[id as usize];
        let Some(set) = slot else { return };
        set.nodes -= 1;
        if set.nodes > 0 {
            return;
        }
        if let Some(set) = slot.take() {
            for image in &set.images {
                if let Some(holders) = self.holders.get_mut(image) {
                    holders.retain(|held| *held != id);
                    if holders.is_empty() {
                        self.holders.remove(image);
                    }
                }
            }
            self.ids.remove(&set.images);
            self.unused.push(id);
        }
    }

    /// Writes the share of `asked` that each set has, by number.
    pub(super) fn shares(&self, asked: &[String], out: &mut Vec<f32>) {
        out.clear();
        if asked.is_empty() {
            out.resize(self.sets.len(), 1.0);
            return;
        }
        out.resize(self.sets.len(), 0.0);
        for image in asked {
            for set in self.holders.get(image.as_str()).into_iter().flatten() {
                out[*set as usize] += 1.0;
            }
        }
        for share in out {
            *share = (f64::from(*share) / asked.len() as f64) as f32;
        }
    }
}
