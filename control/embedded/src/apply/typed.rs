//! Whether what is applied has the types that the schema gives its fields: nobody can own the items
//! of a list that can't be told apart.

use std::collections::HashSet;

use serde_json::Value;

use crate::schema::{Kind, Schema, list_keys};

/// The first place that does not fit, and why.
pub(crate) fn untyped(schema: &Schema, value: &Value) -> Option<String> {
    find(schema, value, "")
}

fn find(schema: &Schema, value: &Value, path: &str) -> Option<String> {
    let wanted = match (schema.kind, value) {
        (_, Value::Null) => return None,
        (Kind::Object, Value::Object(_))
        | (Kind::Array, Value::Array(_))
        | (Kind::String, Value::String(_))
        | (Kind::Boolean, Value::Bool(_))
        | (Kind::Integer | Kind::Number, Value::Number(_))
        | (Kind::Any | Kind::IntOrString, _) => None,
        (Kind::Object, _) => Some("map"),
        (Kind::Array, _) => Some("list"),
        (Kind::String, _) => Some("string"),
        (Kind::Boolean, _) => Some("boolean"),
        (Kind::Integer | Kind::Number, _) => Some("numeric (int or float)"),
    };
    if let Some(wanted) = wanted {
        return Some(format!("{path}: expected {wanted}, got {value}"));
    }
    match value {
        Value::Object(map) => map.iter().find_map(|(name, child)| {
            let field = schema.field(name)?;
            find(field, child, &format!("{path}.{name}"))
        }),
        Value::Array(items) => {
            let below = schema.items.as_deref().and_then(|of| {
                let mut all = items.iter().enumerate();
                all.find_map(|(i, item)| find(of, item, &format!("{path}[{i}]")))
            });
            below.or_else(|| keys(schema, items, path))
        }
        _ => None,
    }
}

/// Items of a map list have all keys, and no two the same.
fn keys(schema: &Schema, items: &[Value], path: &str) -> Option<String> {
    let keys = list_keys(schema);
    let of = schema.items.as_ref()?;
    let mut seen = HashSet::new();
    for (i, item) in items.iter().enumerate().filter(|_| !keys.is_empty()) {
        let mut shown = Vec::new();
        for key in keys {
            let default = of.properties.get(key).and_then(|f| f.default.as_ref());
            // The only default among the keys of core kinds, whose schemas carry none.
            let known = default.is_some() || key == "protocol";
            match item.get(key).filter(|v| !v.is_null()).or(default) {
                Some(value) => shown.push(format!("{key}={value}")),
                None if known => shown.push(key.clone()),
                None => {
                    return Some(format!(
                        "{path}: element {i}: associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                    ));
                }
            }
        }
        let shown = shown.join(",");
        if !seen.insert(shown.clone()) {
            return Some(format!("{path}: duplicate entries for key [{shown}]"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::compile;

    #[test]
    fn the_first_place_that_does_not_fit_is_named() {
        let schema = json!({ "type": "object", "properties": {
            "n": { "type": "integer" }, "s": { "type": "string" }, "m": { "type": "object" },
            "size": { "x-kubernetes-int-or-string": true },
            "l": { "type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": { "type": "object", "properties": { "name": { "type": "string" } } } },
            "d": { "type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["p", "q"],
                "items": { "type": "object", "properties": {
                    "p": { "type": "integer" }, "q": { "type": "string", "default": "x" } } } },
        } });
        let schema = compile(&schema).unwrap();
        for (value, expected) in [
            (
                json!({ "n": 1, "s": "", "size": 2, "l": [{ "name": "a" }, { "name": "b" }] }),
                None,
            ),
            (
                json!({ "n": null, "d": [{ "p": 1 }, { "p": 1, "q": "y" }] }),
                None,
            ),
            (
                json!({ "n": "1" }),
                Some(r#".n: expected numeric (int or float), got "1""#),
            ),
            (json!({ "m": [] }), Some(".m: expected map, got []")),
            (json!({ "l": {} }), Some(".l: expected list, got {}")),
            (
                json!({ "l": [{ "name": 7 }] }),
                Some(".l[0].name: expected string, got 7"),
            ),
            (
                json!({ "l": [{ "name": "a" }, { "name": "a" }] }),
                Some(r#".l: duplicate entries for key [name="a"]"#),
            ),
            (
                json!({ "l": [{}] }),
                Some(
                    r#".l: element 0: associative list with keys has an element that omits key field "name" (and doesn't have default value)"#,
                ),
            ),
            (
                json!({ "d": [{ "p": 1 }, { "p": 1, "q": "x" }] }),
                Some(r#".d: duplicate entries for key [p=1,q="x"]"#),
            ),
        ] {
            assert_eq!(untyped(&schema, &value).as_deref(), expected, "{value}");
        }
    }
}
