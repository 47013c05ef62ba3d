//! The thread that writes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::disk::{Batch, Disk, encode};
use super::state::{Head, State};
use super::{Change, Expect, Key, Note, Request, Stored, WriteError};
use crate::object::meta_mut;

/// Writes in one transaction at most, so that the first of a flood need not wait for the last.
const BATCH: usize = 512;

/// An accepted write that waits for the disk.
struct Accepted {
    object: Arc<Stored>,
    head: Head,
    deleted: bool,
    reply: oneshot::Sender<Result<Arc<Stored>, WriteError>>,
}

/// A write that the state, or one before it in its batch, rules out.
struct Refused {
    error: WriteError,
    /// By its batch, and so only if that is written.
    by_batch: bool,
    reply: oneshot::Sender<Result<Arc<Stored>, WriteError>>,
}

/// Runs until the last sender is gone.
pub(super) fn run(
    mut disk: Disk,
    state: &RwLock<State>,
    mut queue: mpsc::Receiver<Request>,
    notes: &mpsc::UnboundedSender<Note>,
) {
    let mut waiting = Vec::with_capacity(BATCH);
    while queue.blocking_recv_many(&mut waiting, BATCH) > 0 {
        let (revision, accepted, mut refused) = accept(state, waiting.drain(..));
        let written = if accepted.is_empty() {
            Ok(())
        } else {
            disk.commit(&batch(&accepted, revision))
        };
        match written {
            Ok(()) => publish(state, accepted, notes),
            Err(e) => {
                let error = explain(&disk, &e);
                tracing::error!(path = %disk.path().display(), error = %e, "store: write failed");
                for write in accepted {
                    let _ = write.reply.send(Err(error.clone()));
                }
                for write in refused.iter_mut().filter(|r| r.by_batch) {
                    write.error = error.clone();
                }
            }
        }
        // Who lost reads the winner's state next: not before that is there.
        for write in refused {
            let _ = write.reply.send(Err(write.error));
        }
    }
}

fn explain(disk: &Disk, e: &redb::Error) -> WriteError {
    let text = format!("store {}: {e}", disk.path().display());
    match e {
        redb::Error::Io(io)
            if matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ) =>
        {
            WriteError::Full(text)
        }
        _ => WriteError::Disk(text),
    }
}

/// Checks each write against the state and the writes before it.
fn accept(
    state: &RwLock<State>,
    requests: impl Iterator<Item = Request>,
) -> (u64, Vec<Accepted>, Vec<Refused>) {
    let state = state.read().unwrap_or_else(PoisonError::into_inner);
    let mut revision = state.revision;
    // Revision of each key that this batch already touched; none once deleted.
    let mut touched: HashMap<Key, Option<u64>> = HashMap::new();
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    for request in requests {
        let by_batch = touched.contains_key(&request.key);
        let current = touched.get(&request.key).copied().unwrap_or_else(|| {
            let collection = state.collections.get(&request.key.resource);
            let object = collection.and_then(|c| c.objects.get(&request.key.path));
            object.map(|o| o.revision)
        });
        let verdict = match (request.expect, current) {
            (Expect::Absent, None) => Ok(()),
            (Expect::Absent, Some(_)) => Err(WriteError::Exists),
            (Expect::Revision(_), None) => Err(WriteError::Absent),
            (Expect::Revision(wanted), Some(found)) if wanted == found => Ok(()),
            (Expect::Revision(_), Some(_)) => Err(WriteError::Conflict),
        };
        let built = verdict.and_then(|()| build(&request.key, request.change, revision + 1));
        match built {
            Ok((object, head, deleted)) => {
                revision += 1;
                touched.insert(request.key, (!deleted).then_some(revision));
                accepted.push(Accepted {
                    object,
                    head,
                    deleted,
                    reply: request.reply,
                });
            }
            Err(error) => {
                refused.push(Refused {
                    error,
                    by_batch,
                    reply: request.reply,
                });
            }
        }
    }
    (revision, accepted, refused)
}

fn build(
    key: &Key,
    change: Change,
    revision: u64,
) -> Result<(Arc<Stored>, Head, bool), WriteError> {
    let (mut value, deleted) = match change {
        Change::Put(value) => (value, false),
        Change::Delete(value) => (value, true),
    };
    meta_mut(&mut value).insert("resourceVersion".to_owned(), json!(revision.to_string()));
    let bytes = encode(&value).map_err(|e| WriteError::Disk(e.to_string()))?;
    // What can't be read back must not be written: the next start would refuse it.
    let head = Head::parse(&bytes).map_err(|e| WriteError::Disk(e.to_string()))?;
    let object = Arc::new(Stored {
        key: key.clone(),
        revision,
        uid: head.uid().into(),
        bytes,
    });
    Ok((object, head, deleted))
}

/// The last state of each key, in one transaction.
fn batch(accepted: &[Accepted], revision: u64) -> Batch {
    let mut last: HashMap<&Key, &Accepted> = HashMap::new();
    for write in accepted {
        last.insert(&write.object.key, write);
    }
    let (mut puts, mut removals) = (Vec::new(), Vec::new());
    for (key, write) in last {
        if write.deleted {
            removals.push(key.clone());
        } else {
            puts.push(Arc::clone(&write.object));
        }
    }
    Batch {
        puts,
        removals,
        revision,
    }
}

fn publish(state: &RwLock<State>, accepted: Vec<Accepted>, notes: &mpsc::UnboundedSender<Note>) {
    let mut guard = state.write().unwrap_or_else(PoisonError::into_inner);
    for write in &accepted {
        guard.publish(&write.object, &write.head, write.deleted);
    }
    let mut noted = Vec::new();
    for write in &accepted {
        let key = write.object.key.clone();
        if write.deleted {
            let uid = Arc::clone(&write.object.uid);
            let owners = write.head.owners().map(Arc::from).collect();
            noted.push(Note::Gone { uid, key, owners });
        } else if write.head.is_deleting()
            || write.head.owners().any(|uid| !guard.uids.contains_key(uid))
        {
            noted.push(Note::Look(key));
        }
    }
    let revision = guard.revision;
    let mut told: Vec<&Arc<str>> = accepted.iter().map(|w| &w.object.key.resource).collect();
    told.sort_unstable();
    told.dedup();
    for resource in told {
        if let Some(collection) = guard.collections.get(resource) {
            collection.changed.send_replace(revision);
        }
    }
    drop(guard);
    for note in noted {
        // The collector is gone only at shutdown.
        let _ = notes.send(note);
    }
    for write in accepted {
        let _ = write.reply.send(Ok(write.object));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    /// A loser that read the old state again would lose again, as often as it tried.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_loses_a_race_sees_the_winner() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _writer, _notes) = Store::open(folder.path().join("api.redb")).unwrap();
        let registry = crate::builtin::registry();
        let maps = registry.get("", "v1", "configmaps").unwrap();
        let key = maps.key("default", "m");
        let object = || Change::Put(json!({ "metadata": { "name": "m" } }));
        store
            .write(key.clone(), Expect::Absent, object())
            .await
            .unwrap();
        let writers = (0..12).map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                let mut lost = 0;
                loop {
                    let seen = store.get(&key).unwrap().revision;
                    let expect = Expect::Revision(seen);
                    match store.write(key.clone(), expect, object()).await {
                        Ok(_) => return lost,
                        Err(WriteError::Conflict) => lost += 1,
                        Err(e) => panic!("{e:?}"),
                    }
                    assert!(store.get(&key).unwrap().revision > seen);
                }
            })
        });
        for lost in futures::future::join_all(writers).await {
            assert!(lost.unwrap() < 12, "each winner beats another once");
        }
    }
}
