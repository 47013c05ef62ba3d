//! Custom resource definitions: from their objects to resources.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::builtin::{CRD_GROUP, metadata_schema};
use crate::core_rules;
use crate::names;
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
        let shown = spec["scope"].to_string();
        let supported = ["Cluster", "Namespaced"];
        causes.push(Cause::unsupported("spec.scope", &shown, &supported));
    }
    let group = text(spec, "group");
    if !group.is_empty() && !group.contains('.') {
        let words = "should be a domain with at least one dot";
        causes.push(Cause::invalid("spec.group", &format!("{group:?}"), words));
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
        let path = format!("spec.versions[{i}]");
        let name = text(version, "name");
        if !names::is_label(name) || name.starts_with(|c: char| c.is_ascii_digit()) {
            let shown = format!("{name:?}");
            causes.push(Cause::invalid(
                &format!("{path}.name"),
                &shown,
                names::DNS_1035,
            ));
        }
        check_columns(version, &path, &mut causes);
        check_scale(version, &path, &mut causes);
        let path = format!("{path}.schema.openAPIV3Schema");
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            causes.push(Cause::required(&path, "schemas are required"));
            continue;
        }
        match text(schema, "type") {
            "object" => {}
            "" => {
                let words = "must not be empty at the root";
                causes.push(Cause::required(&format!("{path}.type"), words));
            }
            other => {
                let (field, shown) = (format!("{path}.type"), format!("{other:?}"));
                causes.push(Cause::invalid(&field, &shown, "must be object at the root"));
            }
        }
        let metadata = schema["properties"]["metadata"]["properties"].as_object();
        if metadata.is_some_and(|m| m.keys().any(|k| k != "name" && k != "generateName")) {
            causes.push(Cause::forbidden(
                &format!("{path}.properties[metadata]"),
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
    }
    causes
}

fn check_columns(version: &Value, path: &str, causes: &mut Vec<Cause>) {
    let columns = version["additionalPrinterColumns"].as_array();
    for (i, column) in columns.into_iter().flatten().enumerate() {
        let path = format!("{path}.additionalPrinterColumns[{i}]");
        let kind = text(column, "type");
        if !matches!(kind, "boolean" | "date" | "integer" | "number" | "string") {
            let words = "must be one of boolean,date,integer,number,string";
            let shown = format!("{kind:?}");
            causes.push(Cause::invalid(&format!("{path}.type"), &shown, words));
        }
        check_path(column, "jsonPath", &path, causes);
    }
}

fn check_scale(version: &Value, path: &str, causes: &mut Vec<Cause>) {
    let scale = &version["subresources"]["scale"];
    let path = format!("{path}.subresources.scale");
    for field in [
        "specReplicasPath",
        "statusReplicasPath",
        "labelSelectorPath",
    ] {
        if !text(scale, field).is_empty() {
            check_path(scale, field, &path, causes);
        }
    }
}

/// Paths begin with a dot.
fn check_path(value: &Value, field: &str, path: &str, causes: &mut Vec<Cause>) {
    let given = text(value, field);
    if !given.starts_with('.') {
        let words = "must be a simple json path starting with .";
        let shown = format!("{given:?}");
        causes.push(Cause::invalid(&format!("{path}.{field}"), &shown, words));
    }
}

/// What may not change of a definition: stored objects would no longer be what they were.
pub(crate) fn check_change(old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in [
        "spec.group",
        "spec.scope",
        "spec.names.kind",
        "spec.names.plural",
    ] {
        core_rules::unchanged(new, Some(old), field, &mut causes);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({
            "metadata": { "name": "things.example.org" },
            "spec": {
                "group": "example.org",
                "scope": "Namespaced",
                "names": { "kind": "Thing", "plural": "things" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                        "spec": { "type": "object", "properties": { "n": { "type": "integer", "default": 1.0 } } },
                    } } },
                    "subresources": { "scale": {
                        "specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n" } },
                    "additionalPrinterColumns": [
                        { "name": "N", "type": "integer", "jsonPath": ".spec.n" }],
                }],
            },
        })
    }

    #[test]
    fn definitions_that_are_wrong_are_refused_by_field() {
        assert_eq!(resources(&definition()).err(), None);
        let version = "spec.versions[0]";
        let schema = format!("{version}.schema.openAPIV3Schema");
        for (path, value, field) in [
            (
                "/spec/versions/0/name",
                json!("V1"),
                format!("{version}.name"),
            ),
            (
                "/spec/versions/0/name",
                json!("1a"),
                format!("{version}.name"),
            ),
            (
                "/spec/versions/0/storage",
                json!(false),
                "spec.versions".to_owned(),
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/type",
                json!("string"),
                format!("{schema}.type"),
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
                json!({ "properties": {} }),
                format!("{schema}.spec"),
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/n",
                json!({ "type": "array" }),
                format!("{schema}.spec.n"),
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/n",
                json!({ "type": "integer", "default": "x" }),
                format!("{schema}.spec.n"),
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/properties/metadata",
                json!({ "type": "object", "properties": { "labels": { "type": "object" } } }),
                format!("{schema}.properties[metadata]"),
            ),
            (
                "/spec/versions/0/subresources/scale/specReplicasPath",
                json!("spec.n"),
                format!("{version}.subresources.scale.specReplicasPath"),
            ),
            (
                "/spec/versions/0/additionalPrinterColumns/0/type",
                json!("text"),
                format!("{version}.additionalPrinterColumns[0].type"),
            ),
            (
                "/spec/versions/0/additionalPrinterColumns/0/jsonPath",
                json!("spec"),
                format!("{version}.additionalPrinterColumns[0].jsonPath"),
            ),
        ] {
            let mut wrong = definition();
            if let Some(parent) = path
                .rsplit_once('/')
                .and_then(|(p, _)| wrong.pointer_mut(p))
            {
                parent[path.rsplit('/').next().unwrap_or_default()] = value.clone();
            }
            let causes = resources(&wrong).err().unwrap_or_default();
            let fields: Vec<&str> = causes.iter().map(|c| c.field.as_str()).collect();
            assert_eq!(fields, [field.as_str()], "{path} {value}");
        }
    }

    #[test]
    fn what_stored_objects_depend_on_can_not_be_changed() {
        let old = definition();
        assert_eq!(check_change(&old, &old), []);
        for (path, value) in [
            ("spec.group", "example.com"),
            ("spec.scope", "Cluster"),
            ("spec.names.kind", "Other"),
            ("spec.names.plural", "others"),
        ] {
            let mut new = old.clone();
            object::set_at(&mut new, path, value.into());
            let causes = check_change(&old, &new);
            let fields: Vec<&str> = causes.iter().map(|c| c.field.as_str()).collect();
            assert_eq!(fields, [path]);
        }
    }
}
