//! Delete, one or many.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::read;
use crate::api::{
    Api, Call, Place, Reply, about, about_kind, json_reply, object_reply, raw_list, value_reply,
};
use crate::crd;
use crate::object::{self, meta_mut};
use crate::resource::Resource;
use crate::status::{About, Cause, Result, Status};
use crate::store::{Change, Expect, Key, Stored};

/// Finalizer of foreground deletion: dependents go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of orphaning: dependents lose their reference.
pub(crate) const ORPHAN: &str = "orphan";

/// How to delete.
#[derive(Debug, Default, Clone)]
pub(crate) struct DeleteOptions {
    pub uid: Option<String>,
    pub revision: Option<String>,
    /// [`FOREGROUND`], [`ORPHAN`], or none for the background.
    pub finalizer: Option<&'static str>,
    pub dry_run: bool,
}

impl DeleteOptions {
    fn parse(call: &Call) -> Result<Self> {
        let body = if call.body.is_empty() {
            Value::Null
        } else {
            call.decode_body()?
        };
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let policy = text(&body["propagationPolicy"])
            .or_else(|| call.query.get("propagationPolicy").map(str::to_owned));
        let orphans = body["orphanDependents"] == true;
        let finalizer = match policy.as_deref() {
            Some("Foreground") => Some(FOREGROUND),
            Some("Orphan") => Some(ORPHAN),
            None if orphans => Some(ORPHAN),
            Some("Background") | None => None,
            Some(other) => {
                let supported = ["Background", "Foreground", "Orphan"];
                let cause =
                    Cause::unsupported("propagationPolicy", &format!("{other:?}"), &supported);
                return Err(Status::invalid_options("DeleteOptions", cause));
            }
        };
        let dry = body["dryRun"].as_array().is_some_and(|d| !d.is_empty());
        Ok(Self {
            uid: text(&body["preconditions"]["uid"]),
            revision: text(&body["preconditions"]["resourceVersion"]),
            finalizer,
            dry_run: dry || call.dry_run()?,
        })
    }
}

/// What became of an object.
pub(crate) enum Deleted {
    Gone(Arc<Stored>),
    /// It waits for finalizers.
    Waiting(Value),
}

pub(super) async fn delete(api: &Api, place: &Place, call: &Call) -> Result<Reply> {
    let options = DeleteOptions::parse(call)?;
    let key = place.resource.key(&place.namespace, &place.name);
    match delete_object(api, &place.resource, &key, &options).await? {
        Deleted::Waiting(value) => object_reply(call, &place.resource, StatusCode::OK, value),
        Deleted::Gone(stored) => {
            let mut details = json!({
                "name": place.name,
                "kind": place.resource.plural,
                "uid": stored.uid.as_ref(),
            });
            if !place.resource.group.is_empty() {
                details["group"] = place.resource.group.as_str().into();
            }
            let status = json!({
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": details,
            });
            Ok(value_reply(StatusCode::OK, &status))
        }
    }
}

pub(super) async fn delete_collection(api: &Api, place: &Place, call: &Call) -> Result<Reply> {
    let options = DeleteOptions::parse(call)?;
    let selector = read::selector(place, call)?;
    let page = read::page(api, place, &selector, "", usize::MAX);
    let deleting = page
        .items
        .iter()
        .map(|stored| delete_object(api, &place.resource, &stored.key, &options));
    for result in futures::future::join_all(deleting).await {
        match result {
            // Somebody else was faster.
            Err(e) if e.code() == StatusCode::NOT_FOUND => {}
            other => drop(other?),
        }
    }
    let meta = json!({ "resourceVersion": api.store.revision().to_string() });
    let list = raw_list(&place.resource, &meta, &page.items);
    Ok(json_reply(StatusCode::OK, list))
}

/// Deletes an object, or marks it for deletion when it has finalizers.
pub(crate) async fn delete_object(
    api: &Api,
    resource: &Resource,
    key: &Key,
    options: &DeleteOptions,
) -> Result<Deleted> {
    let about = about(resource, key.name());
    loop {
        let stored = api
            .store
            .get(key)
            .ok_or_else(|| Status::not_found(&about))?;
        let mut value = stored.value();
        let revision = stored.revision.to_string();
        for (what, wanted, found) in [
            ("UID", &options.uid, stored.uid.as_ref()),
            ("ResourceVersion", &options.revision, revision.as_str()),
        ] {
            if let Some(wanted) = wanted.as_deref().filter(|w| *w != found) {
                let hint = match what {
                    "UID" => "deleted and then recreated",
                    _ => "modified",
                };
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {hint}"
                );
                let about = About {
                    group: String::new(),
                    ..about_kind(resource, key.name())
                };
                return Err(Status::conflict(&about, &why));
            }
        }
        let change = match mark(resource, &mut value, options) {
            Mark::Remove => Change::Delete(value.clone()),
            Mark::Keep => return Ok(Deleted::Waiting(value)),
            Mark::Write => Change::Put(value.clone()),
        };
        if options.dry_run {
            return Ok(match change {
                Change::Delete(_) => Deleted::Gone(stored),
                Change::Put(_) => Deleted::Waiting(value),
            });
        }
        let gone = matches!(change, Change::Delete(_));
        let expect = Expect::Revision(stored.revision);
        match api.store.write(key.clone(), expect, change).await {
            Ok(written) => {
                if crd::is_definition(resource) {
                    api.reload_registry();
                }
                return Ok(if gone {
                    Deleted::Gone(written)
                } else {
                    Deleted::Waiting(written.value())
                });
            }
            Err(crate::store::WriteError::Conflict) if options.revision.is_none() => {}
            Err(e) => return Err(Status::from_write(e, &about)),
        }
    }
}

enum Mark {
    Remove,
    Keep,
    Write,
}

/// Decides what deletion means for an object now, and writes that into it.
fn mark(resource: &Resource, value: &mut Value, options: &DeleteOptions) -> Mark {
    let namespace = resource.id.as_ref() == "namespaces";
    let deleting = object::is_deleting(value);
    let mut finalizers: Vec<String> = object::finalizers(value)
        .into_iter()
        .map(str::to_owned)
        .collect();
    let before = finalizers.len();
    if let Some(own) = options.finalizer
        && !deleting
        && !finalizers.iter().any(|f| f == own)
    {
        finalizers.push(own.to_owned());
    }
    if finalizers.is_empty() && !namespace {
        return Mark::Remove;
    }
    if deleting {
        return Mark::Keep;
    }
    if finalizers.len() != before {
        meta_mut(value).insert("finalizers".to_owned(), json!(finalizers));
    }
    if namespace {
        object::set_at(value, "status.phase", "Terminating".into());
    }
    let meta = meta_mut(value);
    meta.insert("deletionTimestamp".to_owned(), object::now());
    meta.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
    if let Some(generation) = meta.get("generation").and_then(Value::as_i64) {
        meta.insert("generation".to_owned(), generation.saturating_add(1).into());
    }
    Mark::Write
}
