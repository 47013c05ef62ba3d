//! The schema of `spec.template`.
//!
//! Kubernetes' own schema of a pod template is nine thousand lines, most of them for fields that
//! only a cluster can carry out. Here the fields that a node runs itself keep their whole schema,
//! for validation and for `kubectl explain`; of the others the name and the type are kept (so that
//! a typing error in a name is still found) and what is below them is taken as it is.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Fields of `template.spec` that a node runs or that decide where it runs.
pub const POD_FIELDS: &[&str] = &[
    "containers",
    "hostNetwork",
    "nodeSelector",
    "priority",
    "priorityClassName",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "tolerations",
];

/// Fields of a container that a node runs.
pub const CONTAINER_FIELDS: &[&str] = &[
    "args",
    "command",
    "env",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "workingDir",
];

/// Schema for [`crate::workload::HyperionWorkloadSpec::template`].
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = PodTemplateSpec::json_schema(generator).to_value();
    inline(&mut schema, generator);
    let description = "Pod template of one replica, as in a Deployment.";
    schema["description"] = json!(description);
    schema["required"] = json!(["spec"]);
    shorten(&mut schema);
    if let Some(metadata) = schema.pointer_mut("/properties/metadata") {
        metadata["properties"] = json!({
            "labels": strings("Labels of the replicas."),
            "annotations": strings("Annotations of the replicas."),
            "name": { "type": "string" },
        });
        metadata["x-kubernetes-preserve-unknown-fields"] = json!(true);
    }
    prune(&mut schema, "/properties/spec/properties", POD_FIELDS);
    prune(
        &mut schema,
        "/properties/spec/properties/containers/items/properties",
        CONTAINER_FIELDS,
    );
    Schema::try_from(schema).unwrap_or_default()
}

fn strings(description: &str) -> Value {
    json!({ "type": "object", "description": description, "additionalProperties": { "type": "string" } })
}

/// Resolves what the generator moved to its definitions.
fn inline(schema: &mut Value, generator: &mut SchemaGenerator) {
    if let Some(name) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.rsplit('/').next())
        .map(|name| name.replace("~1", "/").replace("~0", "~"))
        && let Some(definition) = generator.definitions().get(&name).cloned()
    {
        *schema = definition;
    }
    match schema {
        Value::Object(map) => map.values_mut().for_each(|v| inline(v, generator)),
        Value::Array(list) => list.iter_mut().for_each(|v| inline(v, generator)),
        _ => {}
    }
}

/// First sentence of every description.
fn shorten(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("description") {
                let sentence = text.split("\n").next().unwrap_or_default();
                let end = sentence.find(". ").map_or(sentence.len(), |i| i + 1);
                *text = sentence[..end].to_owned();
            }
            map.values_mut().for_each(shorten);
        }
        Value::Array(list) => list.iter_mut().for_each(shorten),
        _ => {}
    }
}

fn prune(schema: &mut Value, at: &str, keep: &[&str]) {
    let Some(Value::Object(properties)) = schema.pointer_mut(at) else {
        return;
    };
    for (name, field) in properties.iter_mut() {
        if !keep.contains(&name.as_str()) {
            *field = opaque(field);
        }
    }
}

fn opaque(field: &Value) -> Value {
    let mut kept = Map::new();
    for key in [
        "description",
        "type",
        "format",
        "x-kubernetes-int-or-string",
    ] {
        if let Some(value) = field.get(key) {
            kept.insert(key.to_owned(), value.clone());
        }
    }
    match field.get("type").and_then(Value::as_str) {
        Some("array") => {
            let scalar = field["items"].get("type").filter(|t| **t != "object");
            let items = scalar.map_or_else(
                || json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
                |t| json!({ "type": t }),
            );
            kept.insert("items".to_owned(), items);
        }
        Some("object") => {
            kept.insert(
                "x-kubernetes-preserve-unknown-fields".to_owned(),
                json!(true),
            );
        }
        _ => {}
    }
    Value::Object(kept)
}
