//! Stores a placement: a new one is created, one that is there is patched. Server-side apply would
//! do either in one request, and costs the API server a third more.

use std::sync::LazyLock;

use hyperion_api::MANAGER;
use hyperion_api::placement::HyperionPlacement;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{CustomResourceExt, Error};
use serde_json::{Map, Value, json};

use crate::index::LEAVING;

/// Has the API hold the placement as it is here, whether it holds one of this name or not.
///
/// # Errors
/// The API server's word, or that it was not reached.
pub(super) async fn store(
    api: &Api<HyperionPlacement>,
    name: &str,
    object: &HyperionPlacement,
) -> Result<(), Error> {
    // A first generation is rarely there already, and a later one rarely not.
    let fresh = object.spec.generation <= 1;
    let first = if fresh {
        create(api, object).await
    } else {
        patch(api, name, object).await
    };
    match first {
        Err(Error::Api(e)) if fresh && e.code == 409 => patch(api, name, object).await,
        Err(Error::Api(e)) if !fresh && e.code == 404 => create(api, object).await,
        other => other,
    }
}

async fn create(api: &Api<HyperionPlacement>, object: &HyperionPlacement) -> Result<(), Error> {
    let params = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    api.create(&params, object).await.map(drop)
}

async fn patch(
    api: &Api<HyperionPlacement>,
    name: &str,
    object: &HyperionPlacement,
) -> Result<(), Error> {
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let body = whole(object);
    api.patch(name, &params, &Patch::Merge(body))
        .await
        .map(drop)
}

/// A JSON merge patch that leaves nothing of an earlier placement: what this one lacks, it takes
/// away. What others put on the object's metadata stays.
fn whole(object: &HyperionPlacement) -> Value {
    let mut body = json!(object);
    if let Some(fields) = body.as_object_mut() {
        fields.remove("status");
    }
    if let (Some(spec), Some(schema)) = (body["spec"].as_object_mut(), &*SCHEMA) {
        say_absent(spec, schema);
    }
    if object.metadata.annotations.is_none() {
        body["metadata"]["annotations"] = json!({ LEAVING: null });
    }
    body
}

/// Schema of a placement's `spec`.
static SCHEMA: LazyLock<Option<JSONSchemaProps>> = LazyLock::new(|| {
    let version = HyperionPlacement::crd().spec.versions.into_iter().next();
    version?
        .schema?
        .open_api_v3_schema?
        .properties?
        .remove("spec")
});

/// Adds a null for each field that the schema has and the value has not.
fn say_absent(value: &mut Map<String, Value>, schema: &JSONSchemaProps) {
    for (name, field) in schema.properties.iter().flatten() {
        match value.get_mut(name) {
            None => drop(value.insert(name.clone(), Value::Null)),
            Some(Value::Object(inner)) => say_absent(inner, field),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
