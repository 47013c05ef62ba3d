//! Custom resource definitions: from their objects to resources.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::builtin::{CRD_GROUP, metadata_schema};
use crate::object;
use crate::resource::{
    Conversion, OpenApi, Registry, Resource, Scale, SchemaSource, group_version,
};
use crate::schema::{Schema, compile, with_metadata};
use crate::status::Cause;
use crate::store::Store;
use crate::table::{Column, custom_columns};

/// Kept on a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The registry with all definitions of the store.
pub(crate) fn registry(store: &Store) -> Registry {
    let mut registry = crate::builtin::registry();
    let page = store.list(crate::builtin::CRD_ID, None, "", usize::MAX);
    for stored in page.items {
        match resources(&stored.value()) {
            Ok(found) => found.into_iter().for_each(|r| registry.insert(Arc::new(r))),
            // It was accepted once; a stricter release must not hide the others.
            Err(causes) => {
                tracing::warn!(
                    definition = stored.key.name(),
                    ?causes,
                    "definition is not served"
                );
            }
        }
    }
    registry
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    object::at(value, path).as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Resources of one definition, one for each served version.
pub(crate) fn resources(definition: &Value) -> Result<Vec<Resource>, Vec<Cause>> {
    let spec = &definition["spec"];
    let mut causes = check(definition);
    let stored = stored_version(spec);
    let mut found = Vec::new();
    for (i, version) in spec["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("spec.versions[{i}].schema.openAPIV3Schema");
        let json = &version["schema"]["openAPIV3Schema"];
        match compile(json) {
            Ok(schema) if version["served"] == true => {
                found.push(resource(spec, version, &stored, schema));
            }
            Ok(_) => {}
            Err(e) => causes.push(Cause::invalid(
                &format!("{path}.{}", e.path),
                "\"schema\"",
                e.why,
            )),
        }
    }
    if causes.is_empty() {
        Ok(found)
    } else {
        Err(causes)
    }
}

fn stored_version(spec: &Value) -> String {
    let versions = spec["versions"].as_array().into_iter().flatten();
    let stored = versions.into_iter().find(|v| v["storage"] == true);
    stored.map_or("", |v| text(v, "name")).to_owned()
}

fn check(definition: &Value) -> Vec<Cause> {
    let spec = &definition["spec"];
    let mut causes = Vec::new();
    for field in ["group", "names.plural", "names.kind"] {
        if text(spec, field).is_empty() {
            causes.push(Cause::required(&format!("spec.{field}"), ""));
        }
    }
    let expected = format!("{}.{}", text(spec, "names.plural"), text(spec, "group"));
    let name = object::name(definition);
    if name != expected {
        causes.push(Cause::invalid(
            "metadata.name",
            &format!("{name:?}"),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if !matches!(text(spec, "scope"), "Namespaced" | "Cluster") {
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            field: "spec.scope".to_owned(),
            message: format!(
                "Unsupported value: {}: supported values: \"Cluster\", \"Namespaced\"",
                spec["scope"]
            ),
        });
    }
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            "\"array\"",
            "must have exactly one version marked as storage version",
        ));
    }
    for (i, version) in versions.iter().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            let path = format!("spec.versions[{i}].schema.openAPIV3Schema");
            causes.push(Cause::required(&path, "schemas are required"));
        }
    }
    causes
}

fn resource(spec: &Value, version: &Value, stored: &str, schema: Schema) -> Resource {
    let (group, name) = (text(spec, "group"), text(version, "name"));
    let plural = text(spec, "names.plural");
    let kind = text(spec, "names.kind");
    let singular = match text(spec, "names.singular") {
        "" => kind.to_lowercase(),
        given => given.to_owned(),
    };
    let scale = &version["subresources"]["scale"];
    Resource {
        group: group.to_owned(),
        version: name.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular,
        short_names: texts(&spec["names"]["shortNames"]),
        categories: texts(&spec["names"]["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        status: version["subresources"]["status"].is_object(),
        scale: scale.is_object().then(|| Scale {
            spec_replicas: text(scale, "specReplicasPath").to_owned(),
            status_replicas: text(scale, "statusReplicasPath").to_owned(),
            selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
        }),
        builtin: false,
        id: format!("{plural}.{group}").into(),
        conversion: if name == stored {
            Conversion::None
        } else {
            Conversion::Version(group_version(group, stored))
        },
        columns: columns(version),
        schema: SchemaSource::Ready(Arc::new(with_metadata(schema, &metadata_schema()))),
        openapi: OpenApi::Custom(version["schema"]["openAPIV3Schema"].clone()),
    }
}

fn columns(version: &Value) -> Vec<Column> {
    let given = version["additionalPrinterColumns"].as_array();
    custom_columns(given.map_or(&[], Vec::as_slice))
}

/// Fills what the server fills: names, conditions, stored versions.
pub(crate) fn complete(definition: &mut Value) {
    let spec = object::map_mut(definition)
        .entry("spec")
        .or_insert(json!({}));
    let kind = text(spec, "names.kind").to_owned();
    let stored = stored_version(spec);
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        names
            .entry("singular")
            .or_insert_with(|| kind.to_lowercase().into());
        names
            .entry("listKind")
            .or_insert_with(|| format!("{kind}List").into());
    }
    let names = spec["names"].clone();
    spec["conversion"] = match &spec["conversion"] {
        Value::Null => json!({ "strategy": "None" }),
        given => given.clone(),
    };
    let mut versions = texts(&definition["status"]["storedVersions"]);
    if !versions.contains(&stored) {
        versions.push(stored);
    }
    let conditions = match &definition["status"]["conditions"] {
        Value::Array(old) if !old.is_empty() => Value::Array(old.clone()),
        _ => {
            let condition = |kind: &str, reason: &str, message: &str| {
                json!({ "type": kind, "status": "True", "reason": reason, "message": message,
                    "lastTransitionTime": object::now() })
            };
            json!([
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition(
                    "Established",
                    "InitialNamesAccepted",
                    "the initial names have been accepted"
                ),
            ])
        }
    };
    definition["status"] = json!({
        "acceptedNames": names,
        "conditions": conditions,
        "storedVersions": versions,
    });
    if object::is_deleting(definition) {
        return;
    }
    let finalizers = object::meta_mut(definition)
        .entry("finalizers")
        .or_insert(json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == CLEANUP)
    {
        list.push(json!(CLEANUP));
    }
}

/// Whether a resource is that of definitions.
pub(crate) fn is_definition(resource: &Resource) -> bool {
    resource.group == CRD_GROUP && resource.plural == "customresourcedefinitions"
}
