//! What happens to objects when others go: owners' dependents, the content of namespaces, the
//! objects of definitions; and events that are old.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::Api;
use crate::builtin::CRD_ID;
use crate::crd::CLEANUP;
use crate::handlers::{DeleteOptions, FOREGROUND, ORPHAN, delete_object};
use crate::object::{self, map_mut, meta_mut};
use crate::store::{Change, Expect, Key, Note, WriteError};

/// How long events are kept, as on a real cluster.
const EVENT_SECONDS: i64 = 3600;
const SWEEP: Duration = Duration::from_secs(60);

/// Runs until the server stops.
pub(crate) async fn run(api: Arc<Api>, mut notes: mpsc::UnboundedReceiver<Note>) {
    // What the last process left undone.
    for key in api.store.unfinished() {
        look(&api, &key).await;
    }
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            note = notes.recv() => match note {
                Some(Note::Look(key)) => look(&api, &key).await,
                Some(Note::Gone { uid, key, owners }) => gone(&api, &uid, &key, &owners).await,
                None => return,
            },
            _ = sweep.tick() => sweep_events(&api).await,
            () = api.stopping.cancelled() => return,
        }
    }
}

async fn gone(api: &Api, uid: &str, key: &Key, owners: &[Arc<str>]) {
    for dependent in api.store.dependents(uid) {
        check_owners(api, &dependent).await;
    }
    // An owner, a namespace or a definition may have waited for this.
    for owner in owners.iter().filter_map(|uid| api.store.key_of(uid)) {
        look(api, &owner).await;
    }
    let waiting = [
        ("namespaces", key.namespace()),
        (CRD_ID, key.resource.as_ref()),
    ];
    for (resource, name) in waiting {
        look(api, &Key::new(&resource.into(), "", name)).await;
    }
}

/// Does for an object what can be done now.
async fn look(api: &Api, key: &Key) {
    let Some(stored) = api.store.get(key) else {
        return;
    };
    let value = stored.value();
    if !object::is_deleting(&value) {
        if value["metadata"]["ownerReferences"].is_array() {
            check_owners(api, key).await;
        }
        return;
    }
    if key.resource.as_ref() == "namespaces" {
        empty_namespace(api, key).await;
    }
    for finalizer in object::finalizers(&value) {
        match finalizer {
            CLEANUP if key.resource.as_ref() == CRD_ID => {
                let all = api.store.list(key.name(), None, "", usize::MAX).items;
                let keys = all.iter().map(|s| s.key.clone()).collect();
                if delete_all(api, keys, None).await == 0 {
                    drop_finalizer(api, key, CLEANUP).await;
                }
            }
            FOREGROUND => {
                let keys = api.store.dependents(&stored.uid);
                if delete_all(api, keys, Some(FOREGROUND)).await == 0 {
                    drop_finalizer(api, key, FOREGROUND).await;
                }
            }
            ORPHAN => {
                for dependent in api.store.dependents(&stored.uid) {
                    edit(api, &dependent, |value| drop_owner(value, &stored.uid)).await;
                }
                drop_finalizer(api, key, ORPHAN).await;
            }
            _ => {}
        }
    }
}

/// Deletes objects; gives how many are still there.
async fn delete_all(api: &Api, keys: Vec<Key>, finalizer: Option<&'static str>) -> usize {
    let options = DeleteOptions {
        finalizer,
        ..DeleteOptions::default()
    };
    let registry = api.registry();
    let deleting = keys.iter().filter_map(|key| {
        let resource = registry.by_id(&key.resource)?;
        let options = &options;
        Some(async move {
            if let Err(e) = delete_object(api, resource, key, options).await
                && e.code() != http::StatusCode::NOT_FOUND
            {
                tracing::warn!(?key, error = %e, "collector: delete failed");
            }
        })
    });
    futures::future::join_all(deleting).await;
    keys.iter().filter(|k| api.store.get(k).is_some()).count()
}

async fn empty_namespace(api: &Api, key: &Key) {
    let content = api.store.namespace_content(key.name());
    if delete_all(api, content, None).await > 0 {
        return;
    }
    edit(api, key, |value| {
        object::set_at(value, "spec.finalizers", json!([]));
    })
    .await;
}

/// Deletes an object whose owners are all gone; forgets those that are gone among others.
async fn check_owners(api: &Api, key: &Key) {
    let Some(stored) = api.store.get(key) else {
        return;
    };
    let value = stored.value();
    let owners = value["metadata"]["ownerReferences"].as_array();
    let owners: Vec<&str> = owners
        .into_iter()
        .flatten()
        .filter_map(|o| o["uid"].as_str())
        .collect();
    let dead: Vec<&str> = owners
        .iter()
        .copied()
        .filter(|uid| !api.store.uid_exists(uid))
        .collect();
    if dead.is_empty() {
        return;
    }
    if dead.len() == owners.len() {
        delete_all(api, vec![key.clone()], None).await;
        return;
    }
    edit(api, key, |value| {
        for uid in &dead {
            drop_owner(value, uid);
        }
    })
    .await;
}

fn drop_owner(value: &mut Value, uid: &str) {
    let meta = meta_mut(value);
    if let Some(list) = meta
        .get_mut("ownerReferences")
        .and_then(Value::as_array_mut)
    {
        list.retain(|o| o["uid"] != uid);
        if list.is_empty() {
            meta.remove("ownerReferences");
        }
    }
}

async fn drop_finalizer(api: &Api, key: &Key, name: &str) {
    edit(api, key, |value| {
        let meta = meta_mut(value);
        if let Some(list) = meta.get_mut("finalizers").and_then(Value::as_array_mut) {
            list.retain(|f| f != name);
            if list.is_empty() {
                meta.remove("finalizers");
            }
        }
    })
    .await;
}

/// Changes a stored object; removes it when nothing holds it any more.
async fn edit(api: &Api, key: &Key, change: impl Fn(&mut Value)) {
    loop {
        let Some(stored) = api.store.get(key) else {
            return;
        };
        let mut value = stored.value();
        change(&mut value);
        let held = key.resource.as_ref() == "namespaces"
            && value["spec"]["finalizers"]
                .as_array()
                .is_some_and(|f| !f.is_empty());
        let last = object::is_deleting(&value) && object::finalizers(&value).is_empty() && !held;
        map_mut(&mut value);
        let write = if last {
            Change::Delete(value)
        } else {
            Change::Put(value)
        };
        let expect = Expect::Revision(stored.revision);
        match api.store.write(key.clone(), expect, write).await {
            Ok(_) => break,
            Err(WriteError::Conflict) => {}
            Err(WriteError::Absent | WriteError::Stopped) => return,
            Err(e) => {
                tracing::warn!(?key, error = ?e, "collector: write failed");
                return;
            }
        }
    }
    if key.resource.as_ref() == CRD_ID {
        api.reload_registry();
    }
}

async fn sweep_events(api: &Api) {
    let now = Timestamp::now().as_second();
    let page = api.store.list("events", None, "", usize::MAX);
    let old: Vec<Key> = page
        .items
        .iter()
        .filter(|stored| now - last_seen(&stored.value()) > EVENT_SECONDS)
        .map(|stored| stored.key.clone())
        .collect();
    delete_all(api, old, None).await;
}

fn last_seen(event: &Value) -> i64 {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    times
        .into_iter()
        .filter_map(|t| t.as_str()?.parse::<Timestamp>().ok())
        .map(Timestamp::as_second)
        .max()
        .unwrap_or(0)
}
