//! Update and patch, server-side apply included.

use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::create::insert;
use crate::admission::{Admitted, admit_create, admit_update, check_kind, manager, same};
use crate::api::{Api, Call, Place, Reply, about_kind, decode, object_reply};
use crate::apply::{Applied, Conflict, apply, track_update, untyped};
use crate::crd;
use crate::object::{self, map_mut, meta_mut};
use crate::patch::{json_patch, merge_patch, strategic_merge};
use crate::schema::prune;
use crate::status::{Cause, Result, Status};
use crate::store::{Change, Expect, Stored};

/// A patch that names no revision is tried again when somebody else was faster.
const TRIES: usize = 16;

/// PUT.
pub(super) async fn put(api: &Api, place: &Place, call: &Call, subresource: &str) -> Result<Reply> {
    let body = call.decode_body()?;
    let revision = object::revision(&body);
    let resource = &place.resource;
    // These kinds have no unconditional updates.
    if revision == 0 && (!resource.builtin || resource.plural == "leases") {
        place.stored(&api.store)?;
        let cause = Cause::invalid(
            "metadata.resourceVersion",
            "0",
            "must be specified for an update",
        );
        return Err(Status::invalid(&place.about(), &[cause]));
    }
    let change = |_: &Value| Ok(body.clone());
    let done = update(api, place, call, subresource, revision, &change).await?;
    done.reply(call, place)
}

/// The outcome of a change.
pub(super) struct Done {
    /// Stored form.
    pub value: Value,
    warnings: Vec<String>,
    code: StatusCode,
}

impl Done {
    fn reply(self, call: &Call, place: &Place) -> Result<Reply> {
        let reply = object_reply(call, &place.resource, self.code, self.value)?;
        Ok(warn(reply, &self.warnings))
    }
}

/// Says warnings in headers, as kubectl prints them.
pub(super) fn warn(mut reply: Reply, warnings: &[String]) -> Reply {
    for text in warnings {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            reply.headers_mut().append("warning", value);
        }
    }
    reply
}

/// Changes an object by a function of its present state, both in this version's form.
pub(super) async fn update(
    api: &Api,
    place: &Place,
    call: &Call,
    subresource: &str,
    revision: u64,
    change: &(dyn Fn(&Value) -> Result<Value> + Sync),
) -> Result<Done> {
    let resource = &place.resource;
    let dry_run = call.dry_run()?;
    let mut tries = 0;
    loop {
        let stored = place.stored(&api.store)?;
        if revision != 0 && revision != stored.revision {
            return Err(Status::modified(&place.about()));
        }
        let old = resource.serve(stored.value());
        let wanted = change(&old)?;
        let asked = object::revision(&wanted);
        if asked != 0 && asked != stored.revision {
            return Err(Status::modified(&place.about()));
        }
        let mut admitted = admit_update(call, resource, &old, wanted, subresource)?;
        let manager = manager(call, resource, managed_as(subresource), false);
        track_update(resource.schema(), &old, &mut admitted.value, &manager);
        match finish(api, place, &stored, &old, admitted, dry_run).await {
            Err(e) if e.is_lost_race() && revision == 0 && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

fn managed_as(subresource: &str) -> &str {
    if subresource == "finalize" {
        ""
    } else {
        subresource
    }
}

/// Stores a new state; nothing when nothing changed; removes the object when it only waited for
/// its last finalizer.
async fn finish(
    api: &Api,
    place: &Place,
    stored: &Stored,
    old: &Value,
    admitted: Admitted,
    dry_run: bool,
) -> Result<Done> {
    let resource = &place.resource;
    let Admitted { value, warnings } = admitted;
    let mut done = Done {
        value: Value::Null,
        warnings,
        code: StatusCode::OK,
    };
    if same(old, &value) {
        done.value = stored.value();
        return Ok(done);
    }
    let last = object::is_deleting(&value)
        && object::finalizers(&value).is_empty()
        && !is_held(resource.id.as_ref(), &value);
    let value = resource.store(value);
    if dry_run {
        done.value = value;
        return Ok(done);
    }
    let change = if last {
        Change::Delete(value)
    } else {
        Change::Put(value)
    };
    let written = api
        .store
        .write(
            stored.key.clone(),
            Expect::Revision(stored.revision),
            change,
        )
        .await
        .map_err(|e| Status::from_write(e, &place.about()))?;
    if crd::is_definition(resource) {
        api.reload_registry();
    }
    done.value = written.value();
    Ok(done)
}

/// Namespaces have finalizers of their own besides.
fn is_held(id: &str, value: &Value) -> bool {
    let own = value["spec"]["finalizers"].as_array();
    id == "namespaces" && own.is_some_and(|f| !f.is_empty())
}

/// PATCH.
pub(super) async fn patch(
    api: &Api,
    place: &Place,
    call: &Call,
    subresource: &str,
) -> Result<Reply> {
    match call.content_type() {
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            return server_side_apply(api, place, call, subresource).await;
        }
        "application/json-patch+json"
        | "application/merge-patch+json"
        | "application/strategic-merge-patch+json" => {}
        other => {
            return Err(Status::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                format!(
                    "the body of the request was in an unknown format ({other:?}) - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                ),
            ));
        }
    }
    if call.query.get("force").is_some() {
        let why = "may not be specified for non-apply patch";
        let cause = Cause::forbidden("force", why);
        return Err(Status::invalid_options("PatchOptions", cause));
    }
    let body = decode("application/json", &call.body)?;
    let change = |old: &Value| patched(place, call, old, &body);
    let done = update(api, place, call, subresource, 0, &change).await?;
    done.reply(call, place)
}

/// The present state with a patch applied.
fn patched(place: &Place, call: &Call, old: &Value, body: &Value) -> Result<Value> {
    let mut value = old.clone();
    apply_patch(place, call.content_type(), &mut value, body)?;
    check_uid(place, old, &value)?;
    // A revision in the patch is a precondition. It holds when it is the present one, and is then
    // taken out, so that nothing else is compared with it.
    if object::revision(&value) == object::revision(old) {
        meta_mut(&mut value).remove("resourceVersion");
    }
    Ok(value)
}

/// A patch may not change the uid. Unlike that of a PUT, the uid in a patch is no precondition:
/// another one is a field that can't be changed, and that is what clients look for.
fn check_uid(place: &Place, old: &Value, new: &Value) -> Result<()> {
    let uid = object::meta(new, "uid");
    if uid.is_empty() || uid == object::meta(old, "uid") {
        return Ok(());
    }
    let cause = Cause::invalid("metadata.uid", &format!("{uid:?}"), "field is immutable");
    Err(Status::invalid(
        &about_kind(&place.resource, &place.name),
        &[cause],
    ))
}

pub(super) fn apply_patch(
    place: &Place,
    content_type: &str,
    value: &mut Value,
    body: &Value,
) -> Result<()> {
    if content_type == "application/json-patch+json" && !body.is_array() {
        return Err(Status::bad_request("the patch is not a list of operations"));
    }
    let unprocessable = |why: String| {
        Status::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {why}"),
        )
    };
    if content_type == "application/json-patch+json" {
        return json_patch(value, body).map_err(unprocessable);
    }
    if !body.is_object() {
        return Err(Status::bad_request("the patch is not an object"));
    }
    if content_type == "application/merge-patch+json" {
        merge_patch(value, body);
        return Ok(());
    }
    if !place.resource.builtin {
        return Err(Status::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    strategic_merge(place.resource.schema(), value, body).map_err(unprocessable)
}

async fn server_side_apply(
    api: &Api,
    place: &Place,
    call: &Call,
    subresource: &str,
) -> Result<Reply> {
    let resource = &place.resource;
    let dry_run = call.dry_run()?;
    let force = call.query.flag("force");
    let (config, named) = configuration(place, call, subresource)?;
    let manager = manager(call, resource, managed_as(subresource), true);
    let mut tries = 0;
    loop {
        let stored = match place.stored(&api.store) {
            Ok(stored) => Some(stored),
            Err(e) if !subresource.is_empty() => return Err(e),
            Err(_) => None,
        };
        let old = stored.as_ref().map(|s| resource.serve(s.value()));
        let live = old.as_ref().unwrap_or(&Value::Null);
        let asked = object::revision(&config);
        if asked != 0 && stored.as_ref().is_none_or(|s| s.revision != asked) {
            return Err(Status::modified(&place.about()));
        }
        let merged = match apply(resource.schema(), live, &config, &manager, force) {
            Applied::Merged(value) => value,
            Applied::Conflicts(conflicts) => return Err(refuse(&conflicts)),
        };
        let result = match (&stored, &old) {
            (Some(stored), Some(old)) => {
                check_uid(place, old, &merged)?;
                let managed = merged["metadata"]["managedFields"].clone();
                let mut admitted = admit_update(call, resource, old, merged, subresource)?;
                meta_mut(&mut admitted.value).insert("managedFields".to_owned(), managed);
                finish(api, place, stored, old, admitted, dry_run).await
            }
            _ => {
                // What is applied to one object does not make another.
                let uid = object::meta(&config, "uid");
                if !uid.is_empty() {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(Status::conflict(&place.about(), &why));
                }
                if !named {
                    return Err(Status::bad_request(format!(
                        "the name of the object ({} based on URL) was undeterminable: name must be provided",
                        place.name
                    )));
                }
                create_applied(api, place, call, merged, dry_run).await
            }
        };
        match result {
            Err(e)
                if tries < TRIES
                    && asked == 0
                    && (e.is_lost_race() || lost_create(&stored, &e)) =>
            {
                tries += 1;
            }
            other => return other?.reply(call, place),
        }
    }
}

/// Somebody else created the object meanwhile.
fn lost_create(stored: &Option<std::sync::Arc<Stored>>, error: &Status) -> bool {
    stored.is_none() && error.code() == StatusCode::CONFLICT
}

async fn create_applied(
    api: &Api,
    place: &Place,
    call: &Call,
    merged: Value,
    dry_run: bool,
) -> Result<Done> {
    let managed = merged["metadata"]["managedFields"].clone();
    let mut admitted = admit_create(api, call, &place.resource, &place.namespace, merged)?;
    meta_mut(&mut admitted.value).insert("managedFields".to_owned(), managed);
    let value = insert(api, &place.resource, admitted.value, dry_run).await?;
    Ok(Done {
        value,
        warnings: admitted.warnings,
        code: StatusCode::CREATED,
    })
}

/// The configuration that a client applies, checked, and whether it had a name of its own.
fn configuration(place: &Place, call: &Call, subresource: &str) -> Result<(Value, bool)> {
    let resource = &place.resource;
    if call.query.get("fieldManager").is_none() {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        return Err(Status::invalid_options("PatchOptions", cause));
    }
    let mut config = decode("application/yaml", &call.body)?;
    for field in ["kind", "apiVersion"] {
        if config[field].as_str().is_none_or(str::is_empty) {
            return Err(Status::bad_request(format!(
                "the object that is applied has no {field}"
            )));
        }
    }
    check_kind(resource, &mut config)?;
    if config["metadata"]["managedFields"]
        .as_array()
        .is_some_and(|f| !f.is_empty())
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let given = object::name(&config);
    if !given.is_empty() && given != place.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({})",
            place.name
        )));
    }
    let named = !given.is_empty();
    meta_mut(&mut config).insert("name".to_owned(), place.name.as_str().into());
    if resource.namespaced {
        let given = object::namespace(&config);
        if !given.is_empty() && given != place.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        meta_mut(&mut config).insert("namespace".to_owned(), place.namespace.as_str().into());
    }
    refuse_unknown(place, &mut config)?;
    if let Some(why) = untyped(resource.schema(), &config) {
        return Err(untyped_patch(place, &why));
    }
    // Each side of the subresource owns its own part only.
    let map = map_mut(&mut config);
    if subresource == "status" {
        map.retain(|name, _| {
            matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status")
        });
        let meta = map.get("metadata").cloned().unwrap_or_default();
        let mut kept = json!({ "name": meta["name"] });
        for field in ["namespace", "resourceVersion", "uid"] {
            if let Some(value) = meta.get(field) {
                kept[field] = value.clone();
            }
        }
        map.insert("metadata".to_owned(), kept);
    } else if resource.status {
        map.remove("status");
    }
    Ok((config, named))
}

/// Nobody can own a field that does not exist, whatever validation the client asked for.
fn refuse_unknown(place: &Place, config: &mut Value) -> Result<()> {
    let resource = &place.resource;
    let unknown = prune(resource.schema(), config);
    let Some(first) = unknown.first() else {
        return Ok(());
    };
    Err(untyped_patch(
        place,
        &format!(".{first}: field not declared in schema"),
    ))
}

/// What is applied does not fit the types of the schema.
fn untyped_patch(place: &Place, why: &str) -> Box<Status> {
    let resource = &place.resource;
    let namespace = match place.namespace.as_str() {
        "" => String::new(),
        ns => format!("{ns}/"),
    };
    let message = format!(
        "failed to create typed patch object ({namespace}{}; {}, Kind={}): {why}",
        place.name,
        resource.api_version(),
        resource.kind
    );
    Status::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
}

fn refuse(conflicts: &[Conflict]) -> Box<Status> {
    let causes: Vec<Cause> = conflicts
        .iter()
        .map(|c| Cause {
            reason: "FieldManagerConflict",
            field: c.path.clone(),
            message: format!("conflict with {}", c.manager),
        })
        .collect();
    let message = match conflicts {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.path
        ),
        many => {
            let mut managers: Vec<&str> = many.iter().map(|c| c.manager.as_str()).collect();
            managers.sort_unstable();
            managers.dedup();
            let mut lines = Vec::new();
            for manager in managers {
                lines.push(format!("conflicts with {manager}:"));
                let own = many.iter().filter(|c| c.manager == manager);
                lines.extend(own.map(|c| format!("- {}", c.path)));
            }
            format!(
                "Apply failed with {} conflicts: {}",
                many.len(),
                lines.join("\n")
            )
        }
    };
    Status::apply_conflict(message, &causes)
}
