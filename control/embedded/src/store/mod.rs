//! All objects: in memory for reading, in one redb file for keeping.
//!
//! One thread writes. It takes whatever writes wait, checks each against what it expects to
//! replace, puts all of them in one transaction (one fsync), and only then makes them visible and
//! tells the watches. Reads never touch the disk and never wait for it.

mod disk;
mod state;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use disk::Disk;
pub use disk::DiskError;
pub(crate) use state::{Event, EventKind, Replay};
use state::{Head, State};

/// Writes waiting for the writer; more make their senders wait.
const QUEUE: usize = 1024;

/// Where an object is: its resource (`pods`, `things.example.com`) and `namespace/name`
/// (`/name` without namespace).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub resource: Arc<str>,
    pub path: Arc<str>,
}

impl Key {
    pub fn new(resource: &Arc<str>, namespace: &str, name: &str) -> Self {
        Self {
            resource: Arc::clone(resource),
            path: format!("{namespace}/{name}").into(),
        }
    }

    pub fn namespace(&self) -> &str {
        self.path.split_once('/').map_or("", |(ns, _)| ns)
    }

    pub fn name(&self) -> &str {
        self.path.split_once('/').map_or("", |(_, name)| name)
    }
}

/// An object as it is kept: JSON bytes, shared by lists and watches.
#[derive(Debug)]
pub(crate) struct Stored {
    pub key: Key,
    pub revision: u64,
    pub uid: Arc<str>,
    pub bytes: Bytes,
}

impl Stored {
    /// The object as a tree.
    pub fn value(&self) -> Value {
        // What the store holds was written by this process or checked when it was opened.
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }
}

/// What a write replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Absent,
    Revision(u64),
}

/// What a write does.
#[derive(Debug)]
pub(crate) enum Change {
    Put(Value),
    /// With the last state, which deletion events carry.
    Delete(Value),
}

/// Why a write was not done. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WriteError {
    Exists,
    Absent,
    Conflict,
    Full(String),
    Disk(String),
    Stopped,
}

struct Request {
    key: Key,
    expect: Expect,
    change: Change,
    reply: oneshot::Sender<Result<Arc<Stored>, WriteError>>,
}

/// Something that the collector of garbage must look at.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    /// An object is gone; its dependents are named by [`Store::dependents`].
    Gone {
        uid: Arc<str>,
        key: Key,
        owners: Vec<Arc<str>>,
    },
    /// An object was written that waits for its deletion, or whose owner does not exist.
    Look(Key),
}

/// A page of a list.
pub(crate) struct Page {
    pub items: Vec<Arc<Stored>>,
    pub revision: u64,
    pub remaining: usize,
}

/// The store. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    state: Arc<RwLock<State>>,
    requests: mpsc::Sender<Request>,
}

/// The writer's thread, to be joined after the last [`Store`] is dropped.
pub(crate) type Writer = std::thread::JoinHandle<()>;

impl Store {
    /// Opens or makes the file and starts the writer.
    pub fn open(path: PathBuf) -> Result<(Self, Writer, mpsc::UnboundedReceiver<Note>), DiskError> {
        let mut disk = Disk::open(path)?;
        let state = Arc::new(RwLock::new(disk.load()?));
        let (requests, queue) = mpsc::channel(QUEUE);
        let (notes, noted) = mpsc::unbounded_channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("embedded-store".to_owned())
            .spawn(move || writer::run(disk, &shared, queue, &notes))
            .map_err(DiskError::Thread)?;
        Ok((Self { state, requests }, thread, noted))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // The writer changes the state in steps that cannot panic half-way.
        self.state
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes, and returns when the object is on disk and visible.
    pub async fn write(
        &self,
        key: Key,
        expect: Expect,
        change: Change,
    ) -> Result<Arc<Stored>, WriteError> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            key,
            expect,
            change,
            reply,
        };
        self.requests
            .send(request)
            .await
            .map_err(|_| WriteError::Stopped)?;
        answer.await.map_err(|_| WriteError::Stopped)?
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        let state = self.read();
        let collection = state.collections.get(&key.resource)?;
        collection.objects.get(&key.path).cloned()
    }

    /// Objects of a resource in key order, in one namespace or all, after a key.
    pub fn list(&self, resource: &str, namespace: Option<&str>, after: &str, limit: usize) -> Page {
        let state = self.read();
        let mut page = Page {
            items: Vec::new(),
            revision: state.revision,
            remaining: 0,
        };
        if let Some(collection) = state.collections.get(resource) {
            for (path, object) in collection.range(namespace) {
                if !after.is_empty() && path.as_ref() <= after {
                    continue;
                }
                if page.items.len() < limit {
                    page.items.push(Arc::clone(object));
                } else {
                    page.remaining += 1;
                }
            }
        }
        page
    }

    /// The newest visible revision.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Events of a resource after a revision.
    pub fn replay(&self, resource: &str, after: u64) -> Replay {
        self.read().replay(resource, after)
    }

    /// Wakes whenever a resource changes.
    pub fn subscribe(&self, resource: &Arc<str>) -> watch::Receiver<u64> {
        if let Some(collection) = self.read().collections.get(resource) {
            return collection.changed.subscribe();
        }
        let mut state = self
            .state
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        state.collection(resource).changed.subscribe()
    }

    /// Objects whose owner references name this uid.
    pub fn dependents(&self, uid: &str) -> Vec<Key> {
        let state = self.read();
        let found = state.dependents.get(uid);
        found
            .map(|keys| keys.iter().cloned().collect())
            .unwrap_or_default()
    }

    pub fn uid_exists(&self, uid: &str) -> bool {
        self.read().uids.contains_key(uid)
    }

    /// The object with a uid.
    pub fn key_of(&self, uid: &str) -> Option<Key> {
        self.read().uids.get(uid).cloned()
    }

    /// Objects that wait for their deletion, or whose owners do not exist.
    pub fn unfinished(&self) -> Vec<Key> {
        let state = self.read();
        let objects = state.collections.values().flat_map(|c| c.objects.values());
        objects
            .filter(|object| {
                let head = Head::parse(&object.bytes).unwrap_or_default();
                head.is_deleting() || head.owners().any(|uid| !state.uids.contains_key(uid))
            })
            .map(|object| object.key.clone())
            .collect()
    }

    /// Keys of all objects in a namespace.
    pub fn namespace_content(&self, namespace: &str) -> Vec<Key> {
        let state = self.read();
        state
            .collections
            .values()
            .flat_map(|c| c.range(Some(namespace)).map(|(_, o)| o.key.clone()))
            .collect()
    }
}
