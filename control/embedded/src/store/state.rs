//! What is in memory: objects, the last events of each resource, who owns whom.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

use super::{Key, Stored};

/// Events kept per resource: enough for a burst of ten thousand creations while a watch is busy.
const HISTORY_EVENTS: usize = 16_384;
/// Bytes of objects that the events of one resource may hold on to.
const HISTORY_BYTES: usize = 16 << 20;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Added,
    Modified,
    Deleted,
}

/// One change.
#[derive(Debug)]
pub(crate) struct Event {
    pub revision: u64,
    pub kind: EventKind,
    pub object: Arc<Stored>,
    /// The state before, for selectors that it may have matched.
    pub before: Option<Arc<Stored>>,
}

/// Events after a revision.
pub(crate) enum Replay {
    Events {
        events: Vec<Arc<Event>>,
        /// Everything up to here is in `events`.
        revision: u64,
    },
    /// Some of them are forgotten; the oldest that can be asked for.
    Expired { oldest: u64 },
}

pub(super) struct Collection {
    pub objects: BTreeMap<Arc<str>, Arc<Stored>>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// Events up to this revision are forgotten.
    forgotten: u64,
    pub changed: watch::Sender<u64>,
}

impl Collection {
    fn new(forgotten: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            forgotten,
            changed: watch::Sender::new(forgotten),
        }
    }

    /// Objects of one namespace, or all.
    pub fn range(
        &self,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = (&Arc<str>, &Arc<Stored>)> {
        let bounds: (Bound<Arc<str>>, Bound<Arc<str>>) = match namespace {
            // '0' is the character after '/'.
            Some(ns) => (
                Bound::Included(format!("{ns}/").into()),
                Bound::Excluded(format!("{ns}0").into()),
            ),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        self.objects.range(bounds)
    }

    fn remember(&mut self, event: Event) {
        self.history_bytes += event.object.bytes.len();
        self.history.push_back(Arc::new(event));
        while self.history.len() > HISTORY_EVENTS || self.history_bytes > HISTORY_BYTES {
            let Some(old) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= old.object.bytes.len();
            self.forgotten = old.revision;
        }
    }
}

pub(super) struct State {
    pub revision: u64,
    /// Revision at start: events before it died with the last process.
    started: u64,
    pub collections: HashMap<Arc<str>, Collection>,
    pub uids: HashMap<Arc<str>, Key>,
    pub dependents: HashMap<Arc<str>, BTreeSet<Key>>,
}

/// The few fields that the store itself understands.
#[derive(Deserialize, Default)]
pub(super) struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta {
    uid: String,
    resource_version: String,
    owner_references: Vec<HeadOwner>,
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize)]
struct HeadOwner {
    #[serde(default)]
    uid: String,
}

impl Head {
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
    pub fn uid(&self) -> &str {
        &self.metadata.uid
    }
    pub fn revision(&self) -> u64 {
        self.metadata.resource_version.parse().unwrap_or(0)
    }
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.metadata
            .owner_references
            .iter()
            .map(|o| o.uid.as_str())
    }
}

impl State {
    pub fn new(revision: u64) -> Self {
        Self {
            revision,
            started: revision,
            collections: HashMap::new(),
            uids: HashMap::new(),
            dependents: HashMap::new(),
        }
    }

    pub fn collection(&mut self, resource: &Arc<str>) -> &mut Collection {
        let started = self.started;
        self.collections
            .entry(Arc::clone(resource))
            .or_insert_with(|| Collection::new(started))
    }

    /// Puts an object without an event, as at start.
    pub fn put(&mut self, object: &Arc<Stored>, head: &Head) -> Option<Arc<Stored>> {
        let key = &object.key;
        let objects = &mut self.collection(&key.resource).objects;
        let before = objects.insert(Arc::clone(&key.path), Arc::clone(object));
        if let Some(before) = &before {
            self.forget_owners(before);
        }
        self.uids.insert(Arc::clone(&object.uid), key.clone());
        for owner in head.owners() {
            let keys = self.dependents.entry(owner.into()).or_default();
            keys.insert(key.clone());
        }
        before
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let before = self.collection(&key.resource).objects.remove(&key.path)?;
        self.forget_owners(&before);
        self.uids.remove(&before.uid);
        Some(before)
    }

    fn forget_owners(&mut self, object: &Stored) {
        let head = Head::parse(&object.bytes).unwrap_or_default();
        for owner in head.owners() {
            if let Some(keys) = self.dependents.get_mut(owner) {
                keys.remove(&object.key);
                if keys.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }

    /// Makes a written change visible.
    pub fn publish(&mut self, object: &Arc<Stored>, head: &Head, deleted: bool) {
        let (kind, before) = if deleted {
            (EventKind::Deleted, self.remove(&object.key))
        } else {
            match self.put(object, head) {
                None => (EventKind::Added, None),
                before => (EventKind::Modified, before),
            }
        };
        self.revision = object.revision;
        self.collection(&object.key.resource).remember(Event {
            revision: object.revision,
            kind,
            object: Arc::clone(object),
            before,
        });
    }

    pub fn replay(&self, resource: &str, after: u64) -> Replay {
        if after > self.revision {
            // Of a store that was here before: its numbers mean nothing in this one.
            return Replay::Expired {
                oldest: self.revision,
            };
        }
        let Some(collection) = self.collections.get(resource) else {
            return if after < self.started {
                Replay::Expired {
                    oldest: self.started,
                }
            } else {
                Replay::Events {
                    events: Vec::new(),
                    revision: self.revision,
                }
            };
        };
        if after < collection.forgotten {
            return Replay::Expired {
                oldest: collection.forgotten,
            };
        }
        let first = collection
            .history
            .partition_point(|event| event.revision <= after);
        Replay::Events {
            events: collection.history.iter().skip(first).cloned().collect(),
            revision: self.revision,
        }
    }
}
