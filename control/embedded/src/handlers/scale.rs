//! The scale subresource.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::update::{apply_patch, update};
use crate::api::{Api, Call, Place, Reply, decode, value_reply};
use crate::object::{self, at, meta_mut, set_at};
use crate::resource::Scale;
use crate::status::{Result, Status};

pub(super) async fn handle(api: &Api, place: &Place, call: &Call) -> Result<Reply> {
    let Some(paths) = &place.resource.scale else {
        return Err(Status::no_resource());
    };
    let value = match call.method {
        Method::GET | Method::HEAD => {
            let stored = place.stored(&api.store)?;
            place.resource.serve(stored.value())
        }
        Method::PUT | Method::PATCH => {
            let body = decode_body(call)?;
            let change = |old: &Value| changed(place, call, paths, old, &body);
            let done = update(api, place, call, "scale", 0, &change).await?;
            place.resource.serve(done.value)
        }
        _ => return Err(Status::method_not_allowed()),
    };
    Ok(value_reply(StatusCode::OK, &scale_of(paths, &value)))
}

fn decode_body(call: &Call) -> Result<Value> {
    let kind = if call.content_type().contains("yaml") {
        "application/yaml"
    } else {
        "application/json"
    };
    let body = decode(kind, &call.body)?;
    if body.is_object() || body.is_array() {
        Ok(body)
    } else {
        Err(Status::bad_request(
            "the body of the request is not a Scale",
        ))
    }
}

fn changed(place: &Place, call: &Call, paths: &Scale, old: &Value, body: &Value) -> Result<Value> {
    let mut scale = scale_of(paths, old);
    if call.method == Method::PUT {
        scale = body.clone();
    } else {
        let content_type = match call.content_type() {
            "application/json-patch+json" => "application/json-patch+json",
            // The scale has no lists: all other patches mean the same.
            _ => "application/merge-patch+json",
        };
        apply_patch(place, content_type, &mut scale, body)?;
    }
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => json!(0),
        number => number.clone(),
    };
    // A number that the object may not have is refused with the object.
    if replicas
        .as_i64()
        .and_then(|r| i32::try_from(r).ok())
        .is_none()
    {
        let why = "spec.replicas: cannot unmarshal into a number of type int32";
        return Err(call.unreadable("Scale", "v1", &scale, why));
    }
    let mut value = old.clone();
    let meta = meta_mut(&mut value);
    match object::revision(&scale) {
        revision if revision != 0 && revision != object::revision(old) => {
            meta.insert("resourceVersion".to_owned(), revision.to_string().into())
        }
        _ => meta.remove("resourceVersion"),
    };
    set_at(&mut value, &paths.spec_replicas, replicas);
    Ok(value)
}

fn scale_of(paths: &Scale, value: &Value) -> Value {
    let meta = |field: &str| value["metadata"][field].clone();
    let number = |path: &str| match at(value, path) {
        Value::Null => json!(0),
        found => found.clone(),
    };
    let mut status = json!({ "replicas": number(&paths.status_replicas) });
    if let Some(text) = paths.selector.as_ref().and_then(|p| at(value, p).as_str()) {
        status["selector"] = text.into();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta("name"),
            "namespace": meta("namespace"),
            "uid": meta("uid"),
            "resourceVersion": meta("resourceVersion"),
            "creationTimestamp": meta("creationTimestamp"),
        },
        "spec": { "replicas": number(&paths.spec_replicas) },
        "status": status,
    })
}
