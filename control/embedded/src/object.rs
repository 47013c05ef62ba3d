//! Reading and writing the fields that every object has.

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value, json};

/// The object's map; an empty one put in place of anything else.
pub(crate) fn map_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("an object was just put there"),
    }
}

/// `metadata`, made when it is missing.
pub(crate) fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(map_mut(object).entry("metadata").or_insert(Value::Null))
}

/// A string of `metadata`; empty when missing.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    meta(object, "name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    meta(object, "namespace")
}

/// Revision of an object; 0 when it has none.
pub(crate) fn revision(object: &Value) -> u64 {
    meta(object, "resourceVersion").parse().unwrap_or(0)
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array();
    list.map(|l| l.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Now, as `metav1.Time` prints it.
pub(crate) fn now() -> Value {
    let now = Timestamp::now();
    json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A version 4 UUID.
pub(crate) fn new_uid() -> String {
    let mut b: [u8; 16] = [0; 16];
    rand::rng().fill_bytes(&mut b);
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex = |r: &[u8]| -> String { r.iter().map(|x| format!("{x:02x}")).collect() };
    format!(
        "{}-{}-{}-{}-{}",
        hex(&b[..4]),
        hex(&b[4..6]),
        hex(&b[6..8]),
        hex(&b[8..10]),
        hex(&b[10..])
    )
}

/// Five characters for `generateName`, without vowels as Kubernetes does it.
pub(crate) fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0_u8; 5];
    rand::rng().fill_bytes(&mut bytes);
    bytes
        .iter()
        .map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]))
        .collect()
}

/// Whether a scalar, written as text, is this text.
pub(crate) fn scalar_is(value: &Value, text: &str) -> bool {
    match value {
        Value::String(own) => own == text,
        Value::Bool(own) => text == if *own { "true" } else { "false" },
        Value::Number(own) => own.to_string().as_str() == text,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Levels of maps and lists in a value.
pub(crate) fn depth(value: &Value) -> usize {
    let below = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(map) => map.values().map(depth).max(),
        _ => return 0,
    };
    below.unwrap_or(0) + 1
}

/// Reads a value by a path of field names such as `.spec.replicas`.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.')
        .filter(|p| !p.is_empty())
        .fold(value, |v, p| &v[p])
}

/// Writes a value by a path of field names, making the maps on the way.
pub(crate) fn set_at(value: &mut Value, path: &str, new: Value) {
    let mut place = value;
    for part in path.split('.').filter(|p| !p.is_empty()) {
        place = map_mut(place).entry(part).or_insert(Value::Null);
    }
    *place = new;
}
