//! The CRD's rules without an API server: what a site has to refuse by itself. Covers the keywords
//! that our CRDs use; a test keeps it so. CEL rules are left to the code that reads the spec.

use hyperion_api::Invalid;
use regex::Regex;
use serde_json::{Map, Value};

/// Removes fields that are null where null says nothing, as an API server does.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Checks a value; `path` is where it is.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(schema: &Value, value: &Value, path: &str) -> Result<(), Invalid> {
    let refuse = |problem: String| Err(Invalid::new(path, problem));
    let either = schema["x-kubernetes-int-or-string"] == true;
    let wanted = schema["type"].as_str();
    let fits = match wanted {
        _ if either => value.is_string() || value.is_i64() || value.is_u64(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !fits {
        let wanted = if either {
            "integer or string"
        } else {
            wanted.unwrap_or_default()
        };
        return refuse(format!("{} is no {wanted}", shown(value)));
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        let words: Vec<String> = words.iter().map(shown).collect();
        return refuse(format!("{} is not {}", shown(value), words.join(", ")));
    }
    match value {
        Value::Object(map) => object(schema, map, path),
        Value::Array(list) => array(schema, list, path),
        Value::String(text) => string(schema, text).or_else(refuse),
        Value::Number(_) => number(schema, value).or_else(refuse),
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

fn object(schema: &Value, map: &Map<String, Value>, path: &str) -> Result<(), Invalid> {
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        if !map.contains_key(name) {
            return Err(Invalid::new(below(name), "missing"));
        }
    }
    let properties = schema["properties"].as_object();
    let others = &schema["additionalProperties"];
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
    for (name, value) in map {
        match properties.and_then(|p| p.get(name)) {
            Some(schema) => check(schema, value, &below(name))?,
            None if others.is_object() => check(others, value, &below(name))?,
            None if open || *others == true => {}
            None => return Err(Invalid::new(below(name), "unknown field")),
        }
    }
    Ok(())
}

fn array(schema: &Value, list: &[Value], path: &str) -> Result<(), Invalid> {
    let count = list.len() as u64;
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
        let problem = format!("{count} entries, at most {most} are accepted");
        return Err(Invalid::new(path, problem));
    }
    if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
        let problem = format!("{count} entries, at least {least} are needed");
        return Err(Invalid::new(path, problem));
    }
    for (i, item) in list.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{i}]"))?;
    }
    let Some(keys) = schema["x-kubernetes-list-map-keys"].as_array() else {
        return Ok(());
    };
    let key_of = |item: &Value| -> Vec<Value> {
        let names = keys.iter().filter_map(Value::as_str);
        names.map(|name| item[name].clone()).collect()
    };
    for (i, item) in list.iter().enumerate() {
        let key = key_of(item);
        if list[..i].iter().any(|before| key_of(before) == key) {
            let key: Vec<String> = key.iter().map(shown).collect();
            let problem = format!("{} is there twice", key.join(", "));
            return Err(Invalid::new(format!("{path}[{i}]"), problem));
        }
    }
    Ok(())
}

fn string(schema: &Value, text: &str) -> Result<(), String> {
    let length = text.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        return Err(format!("{length} characters, at most {most} are accepted"));
    }
    if schema["minLength"].as_u64().is_some_and(|l| length < l) {
        return Err("empty".to_owned());
    }
    if let Some(pattern) = schema["pattern"].as_str()
        // A pattern of ours that is no regular expression is found by a test.
        && Regex::new(pattern).is_ok_and(|p| !p.is_match(text))
    {
        let text = shown(&Value::from(text));
        return Err(format!("{text} does not match {pattern}"));
    }
    Ok(())
}

fn number(schema: &Value, value: &Value) -> Result<(), String> {
    let number = value.as_f64().unwrap_or(f64::NAN);
    if schema["format"] == "int32" && value.as_i64().is_none_or(|n| i32::try_from(n).is_err()) {
        return Err(format!("{value} is out of range"));
    }
    let above = schema["exclusiveMinimum"] == true;
    if let Some(least) = schema["minimum"].as_f64()
        && (number < least || (above && number <= least))
    {
        let bound = if above { "above" } else { "at least" };
        return Err(format!("{value} is not {bound} {least}"));
    }
    if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
        return Err(format!("{value} is more than {most}"));
    }
    Ok(())
}

/// The start of a value of any size.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Object(_) => return "an object".to_owned(),
        Value::Array(_) => return "a list".to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(64).collect::<String>()),
        other => other.to_string(),
    };
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperion_api::crds;
    use serde_json::json;
    use std::collections::BTreeSet;

    /// Keywords that [`check`] knows, or that refuse nothing.
    const KNOWN: &[&str] = &[
        "additionalProperties",
        "default",
        "description",
        "enum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "nullable",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-preserve-unknown-fields",
        // Of two, `request` checks one and `apply` the other.
        "x-kubernetes-validations",
    ];

    fn keywords(schema: &Value, found: &mut BTreeSet<String>) {
        for (key, value) in schema.as_object().into_iter().flatten() {
            found.insert(key.clone());
            match key.as_str() {
                "properties" => {
                    let all = value.as_object().into_iter().flatten();
                    all.for_each(|(_, schema)| keywords(schema, found));
                }
                "items" | "additionalProperties" => keywords(value, found),
                "pattern" => {
                    Regex::new(value.as_str().unwrap()).unwrap();
                }
                _ => {}
            }
        }
    }

    #[test]
    fn every_keyword_of_the_workloads_crd_is_known() {
        let crd = serde_json::to_value(&crds()[0]).unwrap();
        let mut found = BTreeSet::new();
        keywords(
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
            &mut found,
        );
        found.retain(|keyword| !KNOWN.contains(&keyword.as_str()));
        assert_eq!(found, BTreeSet::new());
    }

    #[test]
    fn each_rule_refuses_and_names_the_place() {
        let schema = json!({ "type": "object", "required": ["a"], "properties": {
            "a": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 9 },
            "f": { "type": "number", "minimum": 0.0, "exclusiveMinimum": true },
            "s": { "type": "string", "pattern": "^x", "maxLength": 3, "minLength": 1 },
            "e": { "type": "string", "enum": ["on", "off"] },
            "p": { "x-kubernetes-int-or-string": true },
            "l": { "type": "array", "maxItems": 2, "minItems": 1,
                "x-kubernetes-list-map-keys": ["n"],
                "items": { "type": "object", "properties": { "n": { "type": "string" } } } },
            "m": { "type": "object", "additionalProperties": { "type": "string" } },
            "o": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } });
        let good = json!({ "a": 1, "f": 0.1, "s": "xy", "e": "on", "p": "80", "l": [{ "n": "a" }],
            "m": { "k": "v" }, "o": { "any": [1] } });
        assert_eq!(check(&schema, &good, ""), Ok(()));
        for (change, field) in [
            (json!({ "a": 0 }), "a"),
            (json!({ "a": 10 }), "a"),
            (json!({ "a": 1.5 }), "a"),
            (json!({ "a": 1_i64 << 40 }), "a"),
            (json!({ "f": 0.0 }), "f"),
            (json!({ "s": "y" }), "s"),
            (json!({ "s": "xxxx" }), "s"),
            (json!({ "s": "" }), "s"),
            (json!({ "s": 3 }), "s"),
            (json!({ "e": "maybe" }), "e"),
            (json!({ "p": 1.5 }), "p"),
            (json!({ "l": [] }), "l"),
            (json!({ "l": [{}, {}, {}] }), "l"),
            (json!({ "l": [{ "n": "a" }, { "n": "a" }] }), "l[1]"),
            (json!({ "l": [{ "z": 1 }] }), "l[0].z"),
            (json!({ "m": { "k": 1 } }), "m.k"),
            (json!({ "z": 1 }), "z"),
        ] {
            let mut bad = good.clone();
            let map = bad.as_object_mut().unwrap();
            map.extend(change.as_object().unwrap().clone());
            assert_eq!(
                check(&schema, &bad, "").unwrap_err().field,
                field,
                "{change}"
            );
        }
        assert_eq!(check(&schema, &json!({}), "x").unwrap_err().field, "x.a");
    }

    #[test]
    fn refusals_stay_short() {
        let schema = json!({ "type": "string", "pattern": "^x" });
        let long = Value::from("y".repeat(1 << 20));
        assert!(check(&schema, &long, "f").unwrap_err().to_string().len() < 200);
    }
}
