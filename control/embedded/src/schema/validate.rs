//! Checking an object against its schema, in the words of Kubernetes.

use serde_json::Value;

use super::format::text_has;
use super::{Kind, Schema};
use crate::status::Cause;

/// Everything that is wrong with an object. `old` is its former state, for transition rules.
pub(crate) fn validate(schema: &Schema, value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    check(schema, value, "", &mut causes);
    // Rules assume that types are right.
    if causes.is_empty() {
        super::rules::check(schema, value, old, "", &mut causes);
    }
    causes
}

fn check(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && schema.nullable {
        // Of the right type, but a list of values may still lack it.
        check_limits(schema, value, path, causes);
        return;
    }
    if !has_kind(schema.kind, value) {
        let shown = format!("{:?}", type_name(value));
        let wanted = kind_name(schema.kind);
        let words = format!("{path} in body must be of type {wanted}: {shown}");
        causes.push(Cause {
            reason: "FieldValueTypeInvalid",
            ..Cause::invalid(path, &shown, words)
        });
        return;
    }
    check_limits(schema, value, path, causes);
    match value {
        Value::Object(map) => {
            for name in &schema.required {
                if !map.contains_key(name) {
                    causes.push(Cause::required(&join(path, name), ""));
                }
            }
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    check(field, child, &join(path, name), causes);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    check(schema, item, &format!("{path}[{i}]"), causes);
                }
            }
            check_keys(schema, items, path, causes);
        }
        _ => {}
    }
    check_junctors(schema, value, path, causes);
}

/// Items of map lists and sets must be different.
fn check_keys(schema: &Schema, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    let keys = super::list_keys(schema);
    let set = schema.list == super::ListType::Set || schema.limits.unique_items;
    if keys.is_empty() && !set {
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let key = if keys.is_empty() {
            item.to_string()
        } else {
            let fields: Vec<_> = keys.iter().map(|k| item[k].to_string()).collect();
            fields.join("\0")
        };
        if !seen.insert(key) {
            causes.push(Cause {
                reason: "FieldValueDuplicate",
                field: format!("{path}[{i}]"),
                message: format!("Duplicate value: {item}"),
            });
        }
    }
}

fn check_junctors(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let passes = |s: &Schema| {
        let mut found = Vec::new();
        check(s, value, path, &mut found);
        found.is_empty()
    };
    for part in &schema.all_of {
        check(part, value, path, causes);
    }
    let mut refuse = |words: &str| {
        causes.push(Cause::invalid(
            path,
            &shown(value),
            format!("{path:?} {words}"),
        ));
    };
    if !schema.any_of.is_empty() && !schema.any_of.iter().any(passes) {
        refuse("must validate at least one schema (anyOf)");
    }
    if !schema.one_of.is_empty() && schema.one_of.iter().filter(|s| passes(s)).count() != 1 {
        refuse("must validate one and only one schema (oneOf)");
    }
    if schema.not.as_deref().is_some_and(passes) {
        refuse("must not validate the schema (not)");
    }
}

fn check_limits(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let limits = &schema.limits;
    if !limits.values.is_empty() && !limits.values.contains(value) {
        let known: Vec<String> = limits.values.iter().map(Value::to_string).collect();
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            field: path.to_owned(),
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                known.join(", ")
            ),
        });
    }
    match value {
        Value::Number(number) => check_number(schema, number, path, causes),
        Value::String(text) => check_text(schema, text, path, causes),
        Value::Array(items) => {
            check_count(
                path,
                items.len(),
                limits.min_items,
                limits.max_items,
                "items",
                causes,
            );
        }
        Value::Object(map) => {
            let (min, max) = (limits.min_properties, limits.max_properties);
            check_count(path, map.len(), min, max, "properties", causes);
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn check_number(schema: &Schema, number: &serde_json::Number, path: &str, causes: &mut Vec<Cause>) {
    let limits = &schema.limits;
    let Some(n) = number.as_f64() else { return };
    let mut refuse = |words: String| {
        let words = format!("{path} in body {words}");
        causes.push(Cause::invalid(path, &number.to_string(), words));
    };
    if let Some(min) = limits.minimum {
        if limits.exclusive_minimum && n <= min {
            refuse(format!("should be greater than {min}"));
        } else if n < min {
            refuse(format!("should be greater than or equal to {min}"));
        }
    }
    if let Some(max) = limits.maximum {
        if limits.exclusive_maximum && n >= max {
            refuse(format!("should be less than {max}"));
        } else if n > max {
            refuse(format!("should be less than or equal to {max}"));
        }
    }
    if let Some(step) = limits.multiple_of
        && ((n / step).round() * step - n).abs() > f64::EPSILON * n.abs().max(1.0)
    {
        refuse(format!("should be a multiple of {step}"));
    }
    let fits = match limits.format.as_deref() {
        Some("int32") => i32::try_from(number.as_i64().unwrap_or(i64::MAX)).is_ok(),
        Some("int64") => number.as_i64().is_some(),
        // Widths that Kubernetes does not know but generators write.
        _ => true,
    };
    if schema.kind == Kind::Integer && !fits {
        let format = limits.format.as_deref().unwrap_or_default();
        refuse(format!("must be of type {format}: \"{number}\""));
    }
}

fn check_text(schema: &Schema, text: &str, path: &str, causes: &mut Vec<Cause>) {
    let limits = &schema.limits;
    let quoted = Value::from(text).to_string();
    let length = text.chars().count() as u64;
    if let Some(max) = limits.max_length.filter(|max| length > *max) {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: path.to_owned(),
            message: format!("Too long: may not be more than {max} bytes"),
        });
    }
    let mut refuse = |words: String| {
        let words = format!("{path} in body {words}");
        causes.push(Cause::invalid(path, &quoted, words));
    };
    if let Some(min) = limits.min_length.filter(|min| length < *min) {
        refuse(format!("should be at least {min} chars long"));
    }
    if let Some((pattern, regex)) = &limits.pattern
        && !regex.is_match(text)
    {
        refuse(format!("should match '{pattern}'"));
    }
    if let Some(format) = &limits.format
        && schema.kind == Kind::String
        && !text_has(format, text)
    {
        refuse(format!("must be of type {format}: {quoted}"));
    }
}

fn check_count(
    path: &str,
    count: usize,
    min: Option<u64>,
    max: Option<u64>,
    what: &str,
    causes: &mut Vec<Cause>,
) {
    let count = count as u64;
    if let Some(min) = min.filter(|min| count < *min) {
        let words = format!("{path} in body should have at least {min} {what}");
        causes.push(Cause::invalid(path, &count.to_string(), words));
    }
    if let Some(max) = max.filter(|max| count > *max) {
        causes.push(Cause {
            reason: "FieldValueTooMany",
            field: path.to_owned(),
            message: format!("Too many: {count}: must have at most {max} {what}"),
        });
    }
}

fn has_kind(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Any => true,
        Kind::Object => value.is_object(),
        Kind::Array => value.is_array(),
        Kind::String => value.is_string(),
        Kind::Integer => is_whole(value),
        Kind::Number => value.is_number(),
        Kind::Boolean => value.is_boolean(),
        Kind::IntOrString => value.is_string() || is_whole(value),
    }
}

/// Kubernetes takes 2.0 for an integer.
fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Any => "any",
        Kind::Object => "object",
        Kind::Array => "array",
        Kind::String => "string",
        Kind::Integer => "integer",
        Kind::Number => "number",
        Kind::Boolean => "boolean",
        Kind::IntOrString => "integer,string",
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A value as a message shows it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) | Value::Array(_) => format!("{:?}", type_name(value)),
        scalar => scalar.to_string(),
    }
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compile;
    use super::*;

    fn lines(schema: Value, value: Value) -> Vec<String> {
        let schema = compile(&schema).unwrap();
        let causes = validate(&schema, &value, None);
        causes
            .into_iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn each_mistake_is_said_as_kubernetes_says_it() {
        let schema = json!({ "type": "object", "properties": { "spec": { "type": "object",
            "required": ["image"],
            "properties": {
                "image": { "type": "string", "minLength": 1 },
                "goal": { "type": "string", "enum": ["cost", "latency", "default"] },
                "replicas": { "type": "integer", "format": "int32", "minimum": 0, "maximum": 10 },
                "name": { "type": "string", "pattern": "^[a-z]+$", "maxLength": 5 },
                "list": { "type": "array", "maxItems": 1, "items": { "type": "string" } },
                "size": { "x-kubernetes-int-or-string": true, "anyOf": [{"type":"integer"},{"type":"string"}] },
                "when": { "type": "string", "format": "date-time", "nullable": true },
                "side": { "type": "string", "enum": ["a"], "nullable": true },
                "none": { "type": "string", "enum": ["a", null], "nullable": true },
            } } } });
        for (spec, expected) in [
            (json!({}), "spec.image: Required value"),
            (
                json!({ "image": "i", "goal": "fast" }),
                r#"spec.goal: Unsupported value: "fast": supported values: "cost", "latency", "default""#,
            ),
            (
                json!({ "image": "i", "replicas": "two" }),
                r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
            ),
            (
                json!({ "image": "i", "replicas": -1 }),
                "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
            ),
            (
                json!({ "image": "i", "name": "A" }),
                r#"spec.name: Invalid value: "A": spec.name in body should match '^[a-z]+$'"#,
            ),
            (
                json!({ "image": "i", "name": "abcdef" }),
                "spec.name: Too long: may not be more than 5 bytes",
            ),
            (
                json!({ "image": "i", "list": ["a", "b"] }),
                "spec.list: Too many: 2: must have at most 1 items",
            ),
            (
                json!({ "image": "i", "when": "now" }),
                r#"spec.when: Invalid value: "now": spec.when in body must be of type date-time: "now""#,
            ),
            (
                json!({ "image": "i", "side": null }),
                r#"spec.side: Unsupported value: null: supported values: "a""#,
            ),
            (
                json!({ "image": "" }),
                r#"spec.image: Invalid value: "": spec.image in body should be at least 1 chars long"#,
            ),
        ] {
            assert_eq!(lines(schema.clone(), json!({ "spec": spec })), [expected]);
        }
        for spec in [
            json!({ "image": "i", "size": 2, "when": null, "none": null }),
            json!({ "image": "i", "size": "2Gi", "replicas": 10 }),
        ] {
            assert_eq!(lines(schema.clone(), json!({ "spec": spec })), [""; 0]);
        }
    }

    #[test]
    fn items_of_a_map_list_have_different_keys() {
        let schema = json!({ "type": "object", "properties": { "l": { "type": "array",
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": { "type": "object", "properties": { "name": { "type": "string" } } } } } });
        assert_eq!(
            lines(schema, json!({ "l": [{ "name": "a" }, { "name": "a" }] })),
            [r#"l[1]: Duplicate value: {"name":"a"}"#]
        );
    }
}
