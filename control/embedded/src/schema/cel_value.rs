//! JSON as CEL sees it: numbers take the type that the schema gives them.

use std::collections::HashMap;

use cel::Value as Cel;
use serde_json::Value;

use super::{Kind, Schema};

/// Converts along a schema; without one, whole numbers are integers.
pub(super) fn to_cel(schema: Option<&Schema>, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(number) => number_to_cel(schema, number),
        Value::String(text) => Cel::from(text.as_str()),
        Value::Array(items) => {
            let schema = schema.and_then(|s| s.items.as_deref());
            let items: Vec<Cel> = items.iter().map(|item| to_cel(schema, item)).collect();
            Cel::from(items)
        }
        Value::Object(map) => {
            // A field that is null is not set.
            let unset = |name: &String, child: &Value| {
                child.is_null() && schema.is_some_and(|s| s.properties.contains_key(name))
            };
            let fields: HashMap<String, Cel> = map
                .iter()
                .filter(|(name, child)| !unset(name, child))
                .map(|(name, child)| {
                    let schema = schema.and_then(|s| s.field(name)).map(AsRef::as_ref);
                    (escape(name), to_cel(schema, child))
                })
                .collect();
            Cel::from(fields)
        }
    }
}

fn number_to_cel(schema: Option<&Schema>, number: &serde_json::Number) -> Cel {
    let float = schema.is_some_and(|s| s.kind == Kind::Number);
    match number.as_i64() {
        Some(whole) if !float => Cel::Int(whole),
        _ => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
    }
}

/// CEL words cannot be field names; Kubernetes wraps them.
fn escape(name: &str) -> String {
    const WORDS: [&str; 14] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "namespace",
    ];
    if WORDS.contains(&name) {
        format!("__{name}__")
    } else {
        name.to_owned()
    }
}
