//! Create.

use http::StatusCode;

use crate::admission::{Admitted, admit_create, manager, track_create};
use crate::api::{Api, Call, Place, Reply, about, object_reply};
use crate::crd;
use crate::handlers::update::warn;
use crate::object;
use crate::resource::Resource;
use crate::status::{Result, Status};
use crate::store::{Change, Expect};

pub(super) async fn create(api: &Api, place: &Place, call: &Call) -> Result<Reply> {
    let resource = &place.resource;
    if resource.namespaced && place.namespace.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let dry_run = call.dry_run()?;
    let body = call.decode_body()?;
    let Admitted {
        mut value,
        warnings,
    } = admit_create(api, call, resource, &place.namespace, body)?;
    track_create(resource, &mut value, &manager(call, resource, "", false));
    let value = insert(api, resource, value, dry_run).await?;
    let reply = object_reply(call, resource, StatusCode::CREATED, value)?;
    Ok(warn(reply, &warnings))
}

/// Stores a new object, given in this version's form; gives its stored form.
pub(super) async fn insert(
    api: &Api,
    resource: &Resource,
    value: serde_json::Value,
    dry_run: bool,
) -> Result<serde_json::Value> {
    let name = object::name(&value).to_owned();
    let key = resource.key(object::namespace(&value), &name);
    let value = resource.store(value);
    if dry_run {
        if api.store.get(&key).is_some() {
            return Err(Status::exists(&about(resource, &name)));
        }
        return Ok(value);
    }
    let written = api
        .store
        .write(key, Expect::Absent, Change::Put(value))
        .await;
    let stored = written.map_err(|e| Status::from_write(e, &about(resource, &name)))?;
    if crd::is_definition(resource) {
        api.reload_registry();
    }
    Ok(stored.value())
}
