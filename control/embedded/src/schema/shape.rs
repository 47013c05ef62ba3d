//! Giving an object the shape of its schema: unknown fields out, defaults in.

use serde_json::{Map, Value};

use super::{Kind, ListType, Schema};

/// Removes fields that the schema does not know, and lists their paths.
pub(crate) fn prune(schema: &Schema, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_at(schema, value, &mut String::new(), &mut unknown);
    unknown
}

fn prune_at(schema: &Schema, value: &mut Value, path: &mut String, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.retain(|name, _| {
                let keep = schema.knows(name);
                if !keep {
                    unknown.push(join(path, name));
                }
                keep
            });
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    let length = path.len();
                    *path = join(path, name);
                    prune_at(field, child, path, unknown);
                    path.truncate(length);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else {
                return;
            };
            for (i, item) in items.iter_mut().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{i}]"));
                prune_at(schema, item, path, unknown);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Puts defaults where a field is missing, or null without being nullable.
pub(crate) fn fill_defaults(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, field) in &schema.properties {
                let missing = match map.get(name) {
                    None => true,
                    Some(Value::Null) => !field.nullable,
                    Some(_) => false,
                };
                if let Some(default) = field.default.as_ref().filter(|_| missing) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    fill_defaults(field, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for item in items {
                    fill_defaults(schema, item);
                }
            }
        }
        _ => {}
    }
}

/// Removes nulls where the schema does not allow them: they mean "not set".
pub(crate) fn drop_nulls(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => drop_map_nulls(schema, map),
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for item in items {
                    drop_nulls(schema, item);
                }
            }
        }
        _ => {}
    }
}

fn drop_map_nulls(schema: &Schema, map: &mut Map<String, Value>) {
    map.retain(|name, value| {
        !value.is_null()
            || schema
                .field(name)
                .is_none_or(|field| field.nullable || field.kind == Kind::Any)
    });
    for (name, child) in map {
        if let Some(field) = schema.field(name) {
            drop_nulls(field, child);
        }
    }
}

/// The fields that tell list items apart; empty for lists that are not maps.
pub(crate) fn list_keys(schema: &Schema) -> &[String] {
    match &schema.list {
        ListType::Map(keys) => keys,
        ListType::Atomic | ListType::Set => &[],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compile;
    use super::*;

    #[test]
    fn unknown_fields_go_and_defaults_come() {
        let schema = compile(&json!({
            "type": "object",
            "properties": {
                "spec": { "type": "object", "default": {}, "properties": {
                    "replicas": { "type": "integer", "default": 1 },
                    "list": { "type": "array", "items": { "type": "object", "properties": {
                        "a": { "type": "string", "default": "x" } } } },
                    "open": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                } },
            },
        }))
        .unwrap();
        let mut value = json!({ "spec": { "list": [{ "b": 1 }], "open": { "c": 2 }, "replicas": null }, "more": 3 });
        let unknown = prune(&schema, &mut value);
        assert_eq!(unknown, ["more", "spec.list[0].b"]);
        drop_nulls(&schema, &mut value);
        fill_defaults(&schema, &mut value);
        assert_eq!(
            value,
            json!({ "spec": { "list": [{ "a": "x" }], "open": { "c": 2 }, "replicas": 1 } })
        );
    }
}
