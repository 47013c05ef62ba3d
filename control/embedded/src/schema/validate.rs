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
    if !causes.iter().any(blocks) {
        super::rules::check(schema, value, old, "", &mut causes);
    } else if has_rules(schema) {
        causes.push(Cause::invalid("<nil>", "null", UNCHECKED));
    }
    causes
}

const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Whether rules can't be asked of an object with this fault.
fn blocks(cause: &Cause) -> bool {
    matches!(
        cause.reason,
        "FieldValueTypeInvalid"
            | "FieldValueRequired"
            | "FieldValueNotSupported"
            | "FieldValueTooLong"
            | "FieldValueTooMany"
    )
}

/// Whether there are rules anywhere.
fn has_rules(schema: &Schema) -> bool {
    let below = schema.properties.values();
    let below = below.chain(&schema.additional).chain(&schema.items);
    !schema.rules.is_empty() || below.into_iter().any(|s| has_rules(s))
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
        check_values(schema, value, path, causes);
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
                message: format!("Duplicate value: {}", key_of(keys, item)),
            });
        }
    }
}

/// What tells an item apart, for people.
fn key_of(keys: &[String], item: &Value) -> Value {
    if keys.is_empty() {
        return item.clone();
    }
    keys.iter().map(|k| (k.clone(), item[k].clone())).collect()
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

/// Null is never one of the values, even where it is listed.
fn check_values(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let limits = &schema.limits;
    if !limits.values.is_empty() && (value.is_null() || !limits.values.contains(value)) {
        let shown = |v: &Value| match v {
            Value::Null => "\"null\"".to_owned(),
            other => other.to_string(),
        };
        let known: Vec<String> = limits.values.iter().map(shown).collect();
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            field: path.to_owned(),
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                known.join(", ")
            ),
        });
    }
}

fn check_limits(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let limits = &schema.limits;
    check_values(schema, value, path, causes);
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
    // Bounds are printed as numbers of the value's type.
    let shown = |bound: f64| {
        if number.is_f64() || bound.fract() != 0.0 {
            go_float(bound)
        } else {
            bound.to_string()
        }
    };
    let mut refuse = |words: String| {
        let words = format!("{path} in body {words}");
        causes.push(Cause::invalid(path, &number.to_string(), words));
    };
    if let Some(min) = limits.minimum {
        if limits.exclusive_minimum && n <= min {
            refuse(format!("should be greater than {}", shown(min)));
        } else if n < min {
            refuse(format!("should be greater than or equal to {}", shown(min)));
        }
    }
    if let Some(max) = limits.maximum {
        if limits.exclusive_maximum && n >= max {
            refuse(format!("should be less than {}", shown(max)));
        } else if n > max {
            refuse(format!("should be less than or equal to {}", shown(max)));
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

/// A number as Go prints it: from a million on, and below a ten thousandth, with an exponent.
fn go_float(number: f64) -> String {
    let size = number.abs();
    if size == 0.0 || (1e-4..1e6).contains(&size) {
        return number.to_string();
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(rest) => ('-', rest),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
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
        causes.push(Cause {
            reason: "FieldValueTypeInvalid",
            ..Cause::invalid(
                path,
                &quoted,
                format!("{path} in body must be of type {format}: {quoted}"),
            )
        });
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
mod tests;
