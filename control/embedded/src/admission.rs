//! What an object goes through before it is stored: shape, metadata, validation.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::{Api, Call, about, about_kind};
use crate::apply::{Manager, bare, track_update};
use crate::core_rules;
use crate::crd;
use crate::names;
use crate::object::{self, map_mut, meta_mut};
use crate::query::FieldValidation;
use crate::resource::Resource;
use crate::schema::{drop_nulls, fill_defaults, prune, validate};
use crate::status::{About, Cause, Result, Status};

/// An object ready to be stored, and what to tell the client besides.
pub(crate) struct Admitted {
    pub value: Value,
    pub warnings: Vec<String>,
}

/// Who writes an object.
pub(crate) fn manager(
    call: &Call,
    resource: &Resource,
    subresource: &str,
    applies: bool,
) -> Manager {
    Manager {
        name: call.field_manager().to_owned(),
        applies,
        api_version: resource.api_version(),
        subresource: subresource.to_owned(),
    }
}

/// Checks that a body is an object of the resource, and completes what may be left out.
pub(crate) fn check_kind(resource: &Resource, value: &mut Value) -> Result<()> {
    if !value.is_object() {
        return Err(Status::bad_request(
            "the body of the request is not an object",
        ));
    }
    let (kind, api_version) = (&value["kind"], &value["apiVersion"]);
    let wanted = resource.api_version();
    if !resource.builtin {
        check_custom_kind(resource, value)?;
    }
    let matches = |found: &Value, wanted: &str| found.is_null() || found == "" || found == wanted;
    if !matches(kind, &resource.kind) || !matches(api_version, &wanted) {
        let shown = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        return Err(Status::bad_request(format!(
            "the API version and kind in the data ({}, {}) do not match the expected ones ({wanted}, {})",
            shown(api_version),
            shown(kind),
            resource.kind
        )));
    }
    if !matches!(value["metadata"], Value::Null | Value::Object(_)) {
        return Err(Status::bad_request(
            "the object provided is unrecognized: metadata must be an object",
        ));
    }
    let map = map_mut(value);
    map.insert("kind".to_owned(), resource.kind.as_str().into());
    map.insert("apiVersion".to_owned(), wanted.into());
    meta_mut(value);
    Ok(())
}

/// Nothing completes the kind of a custom resource, and a wrong one is a fault of the object.
fn check_custom_kind(resource: &Resource, value: &Value) -> Result<()> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    for (field, name) in [("kind", "Kind"), ("apiVersion", "apiVersion")] {
        if text(field).is_empty() {
            return Err(Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): Object '{name}' is missing",
                resource.kind
            )));
        }
    }
    let wanted = resource.api_version();
    if text("apiVersion") != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({wanted})",
            text("apiVersion")
        )));
    }
    if text("kind") != resource.kind {
        let words = format!("must be {}", resource.kind);
        let cause = Cause::invalid("kind", &value["kind"].to_string(), words);
        let about = About {
            kind: text("kind").to_owned(),
            ..about(resource, object::name(value))
        };
        return Err(Status::invalid(&about, &[cause]));
    }
    Ok(())
}

/// Takes unknown fields out; says so, or refuses.
pub(crate) fn shape(call: &Call, resource: &Resource, value: &mut Value) -> Result<Vec<String>> {
    let schema = resource.schema();
    let unknown = prune(schema, value);
    let wording: Vec<String> = unknown
        .iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect();
    match call.query.field_validation(call.options())? {
        FieldValidation::Strict if !wording.is_empty() => {
            let why = format!("strict decoding error: {}", wording.join(", "));
            Err(call.unreadable(&resource.kind, &resource.version, value, &why))
        }
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn | FieldValidation::Strict => Ok(wording),
    }
}

/// Defaults, from the schema and for core kinds.
fn complete(resource: &Resource, value: &mut Value) {
    let schema = resource.schema();
    if resource.builtin {
        drop_nulls(schema, value);
    } else if let Some(metadata) = schema.properties.get("metadata") {
        drop_nulls(metadata, &mut value["metadata"]);
    }
    fill_defaults(schema, value);
    // Kubernetes has no empty ones.
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match &value["metadata"][field] {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if empty {
            meta_mut(value).remove(field);
        }
    }
    if resource.builtin {
        complete_core(resource, value);
    }
}

fn complete_core(resource: &Resource, value: &mut Value) {
    let default = |value: &mut Value, path: &str, given: Value| {
        if object::at(value, path).is_null() {
            object::set_at(value, path, given);
        }
    };
    match resource.plural.as_str() {
        "secrets" => {
            if let Some(Value::Object(text)) = map_mut(value).remove("stringData") {
                let data = map_mut(map_mut(value).entry("data").or_insert(Value::Null));
                for (key, text) in text {
                    let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
                    data.insert(key, encoded.into());
                }
            }
            default(value, "type", "Opaque".into());
        }
        "namespaces" => {
            default(value, "spec.finalizers", json!(["kubernetes"]));
            default(value, "status.phase", "Active".into());
            let name = value["metadata"]["name"].clone();
            let labels = meta_mut(value).entry("labels").or_insert(Value::Null);
            map_mut(labels).insert("kubernetes.io/metadata.name".to_owned(), name);
        }
        "pods" => {
            default(value, "spec.restartPolicy", "Always".into());
            default(value, "status.phase", "Pending".into());
        }
        "services" => default(value, "spec.type", "ClusterIP".into()),
        "customresourcedefinitions" => crd::complete(value),
        _ => {}
    }
}

fn check(call: &Call, resource: &Resource, value: &Value, old: Option<&Value>) -> Result<()> {
    let mut causes = names::check(value, resource);
    let found = validate(resource.schema(), value, old);
    if let Some(cause) = found.iter().find(|c| is_unreadable(resource, c)) {
        return Err(unreadable(call, resource, value, cause));
    }
    let named = |c: &Cause| c.field.starts_with("metadata.ownerReferences[");
    causes.extend(found.into_iter().filter(|c| !named(c)));
    if resource.builtin {
        causes.extend(core_rules::check(resource, value, old));
    }
    if let Some(scale) = &resource.scale {
        causes.extend(scale.check(value));
    }
    if crd::is_definition(resource) && causes.is_empty() {
        causes = old.map_or_else(Vec::new, |old| crd::check_change(old, value));
        if causes.is_empty() {
            causes = crd::resources(value).err().unwrap_or_default();
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    let about = about_kind(resource, object::name(value));
    Err(Status::invalid(&about, &causes))
}

/// Kubernetes reads core kinds, and all metadata, into types of Go: what does not fit can't be read.
fn is_unreadable(resource: &Resource, cause: &Cause) -> bool {
    cause.reason == "FieldValueTypeInvalid"
        && (resource.builtin || cause.field.starts_with("metadata."))
}

fn unreadable(call: &Call, resource: &Resource, value: &Value, cause: &Cause) -> Box<Status> {
    let mut why = format!("{}: {}", cause.field, cause.message);
    if call.method != Method::PATCH {
        why.insert_str(0, "json: cannot unmarshal: ");
    }
    call.unreadable(&resource.kind, &resource.version, value, &why)
}

/// Prepares an object of the body for creation in a namespace. Gives its stored form.
pub(crate) fn admit_create(
    api: &Api,
    call: &Call,
    resource: &Resource,
    namespace: &str,
    mut value: Value,
) -> Result<Admitted> {
    check_kind(resource, &mut value)?;
    let warnings = shape(call, resource, &mut value)?;
    let revision = object::meta(&value, "resourceVersion").to_owned();
    set_identity(api, resource, namespace, &mut value)?;
    if resource.status && !crd::is_definition(resource) && !resource.builtin {
        map_mut(&mut value).remove("status");
    }
    complete(resource, &mut value);
    check(call, resource, &value, None)?;
    if !matches!(revision.as_str(), "" | "0") {
        return Err(Status::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "",
            "resourceVersion should not be set on objects to be created",
        ));
    }
    Ok(Admitted { value, warnings })
}

/// Records a new object's fields as its creator's.
pub(crate) fn track_create(resource: &Resource, value: &mut Value, manager: &Manager) {
    meta_mut(value).remove("managedFields");
    track_update(resource.schema(), &Value::Null, value, manager);
}

fn set_identity(api: &Api, resource: &Resource, namespace: &str, value: &mut Value) -> Result<()> {
    let meta = meta_mut(value);
    if resource.namespaced {
        let given = meta.get("namespace").and_then(Value::as_str).unwrap_or("");
        if !given.is_empty() && given != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        meta.insert("namespace".to_owned(), namespace.into());
    } else {
        meta.remove("namespace");
    }
    let text = |field: &str| meta.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("name").is_empty() && !text("generateName").is_empty() {
        let prefix: String = text("generateName").chars().take(58).collect();
        let name = format!("{prefix}{}", object::random_suffix());
        meta.insert("name".to_owned(), name.into());
    }
    for field in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        meta.remove(field);
    }
    meta.insert("uid".to_owned(), object::new_uid().into());
    meta.insert("creationTimestamp".to_owned(), object::now());
    if has_generation(resource) {
        meta.insert("generation".to_owned(), 1.into());
    } else {
        meta.remove("generation");
    }
    if resource.namespaced {
        let name = object::name(value).to_owned();
        check_namespace(api, resource, namespace, &name)?;
    }
    Ok(())
}

/// Objects can only be made in namespaces that exist and are not going away.
fn check_namespace(api: &Api, resource: &Resource, namespace: &str, name: &str) -> Result<()> {
    let registry = api.registry();
    let Some(namespaces) = registry.by_id("namespaces") else {
        return Ok(());
    };
    let Some(stored) = api.store.get(&namespaces.key("", namespace)) else {
        return Err(Status::not_found(&about(namespaces, namespace)));
    };
    if object::is_deleting(&stored.value()) {
        return Err(Status::terminating(&about(resource, name), namespace));
    }
    Ok(())
}

fn has_generation(resource: &Resource) -> bool {
    !resource.builtin || crd::is_definition(resource) || resource.plural == "pods"
}

/// Prepares a new state of an object; both in this version's form. `subresource` is empty,
/// `status`, or another one that counts as the whole object.
pub(crate) fn admit_update(
    call: &Call,
    resource: &Resource,
    old: &Value,
    mut value: Value,
    subresource: &str,
) -> Result<Admitted> {
    check_kind(resource, &mut value)?;
    let given = object::name(&value);
    if !given.is_empty() && given != object::name(old) {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({})",
            object::name(old)
        )));
    }
    let warnings = shape(call, resource, &mut value)?;
    keep_identity(resource, old, &mut value)?;
    if subresource == "status" {
        let mut whole = old.clone();
        map_mut(&mut whole).remove("status");
        if let Some(status) = value.get("status") {
            map_mut(&mut whole).insert("status".to_owned(), status.clone());
        }
        let managed = value["metadata"]["managedFields"].clone();
        put(&mut whole, "managedFields", managed);
        value = whole;
    } else if resource.status {
        map_mut(&mut value).remove("status");
        if let Some(status) = old.get("status") {
            map_mut(&mut value).insert("status".to_owned(), status.clone());
        }
    }
    complete(resource, &mut value);
    check(call, resource, &value, Some(old))?;
    if has_generation(resource) && content(resource, old) != content(resource, &value) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let next = generation.saturating_add(1);
        meta_mut(&mut value).insert("generation".to_owned(), next.into());
    }
    Ok(Admitted { value, warnings })
}

fn put(value: &mut Value, field: &str, new: Value) {
    if new.is_null() {
        meta_mut(value).remove(field);
    } else {
        meta_mut(value).insert(field.to_owned(), new);
    }
}

fn keep_identity(resource: &Resource, old: &Value, value: &mut Value) -> Result<()> {
    let uid = object::meta(value, "uid");
    if !uid.is_empty() && uid != object::meta(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::meta(old, "uid")
        );
        return Err(Status::conflict(&about(resource, object::name(old)), &why));
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        put(value, field, old["metadata"][field].clone());
    }
    if object::is_deleting(old) {
        let before = object::finalizers(old);
        let added: Vec<&str> = object::finalizers(value)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect();
        if !added.is_empty() {
            let added: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
            let words = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            let cause = Cause::forbidden("metadata.finalizers", &words);
            let about = about_kind(resource, object::name(old));
            return Err(Status::invalid(&about, &[cause]));
        }
    }
    Ok(())
}

/// What makes a new generation: all but metadata and, where it is apart, the status.
fn content(resource: &Resource, value: &Value) -> Value {
    let mut content = value.clone();
    let map = map_mut(&mut content);
    map.remove("metadata");
    if resource.status {
        map.remove("status");
    }
    content
}

/// Whether two states differ in anything but when who wrote what.
pub(crate) fn same(old: &Value, new: &Value) -> bool {
    let owners = |value: &Value| {
        let mut list = value["metadata"]["managedFields"].clone();
        for entry in list.as_array_mut().into_iter().flatten() {
            map_mut(entry).remove("time");
        }
        list
    };
    bare(old) == bare(new) && owners(old) == owners(new)
}
