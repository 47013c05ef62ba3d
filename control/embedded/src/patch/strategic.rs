//! Strategic merge patch, for core kinds: lists with a merge key merge item by item.

use serde_json::{Map, Value};

use crate::object::map_mut;
use crate::schema::{ListType, Schema};

const DIRECTIVE: &str = "$patch";
const ORDER: &str = "$setElementOrder/";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";
const RETAIN: &str = "$retainKeys";

/// Applies a patch along a schema.
///
/// # Errors
/// A directive is malformed.
pub(crate) fn strategic_merge(
    schema: &Schema,
    target: &mut Value,
    patch: &Value,
) -> Result<(), String> {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match fields
        .get(DIRECTIVE)
        .map(|d| d.as_str().unwrap_or_default())
    {
        Some("replace") => {
            let mut new = fields.clone();
            new.remove(DIRECTIVE);
            *target = Value::Object(new);
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(format!("unknown {DIRECTIVE} {other:?}")),
    }
    let map = map_mut(target);
    if let Some(keep) = fields.get(RETAIN) {
        let keep = keep
            .as_array()
            .ok_or_else(|| format!("{RETAIN} must be a list"))?;
        map.retain(|name, _| keep.iter().any(|k| k == name));
    }
    for (name, change) in fields {
        merge_field(schema, map, name, change)?;
    }
    for (name, order) in fields {
        if let Some(list) = name.strip_prefix(ORDER)
            && let Some(items) = map.get_mut(list).and_then(Value::as_array_mut)
        {
            let key = schema.field(list).and_then(|f| f.merge_key.as_deref());
            reorder(items, order, key);
        }
    }
    Ok(())
}

fn merge_field(
    schema: &Schema,
    map: &mut Map<String, Value>,
    name: &str,
    change: &Value,
) -> Result<(), String> {
    static ANY: Schema = Schema::ANY;
    if name == DIRECTIVE || name == RETAIN || name.starts_with(ORDER) {
        return Ok(());
    }
    if let Some(list) = name.strip_prefix(DELETE_VALUES) {
        let gone = change
            .as_array()
            .ok_or_else(|| format!("{name} must be a list"))?;
        if let Some(items) = map.get_mut(list).and_then(Value::as_array_mut) {
            items.retain(|item| !gone.contains(item));
        }
        return Ok(());
    }
    if change.is_null() {
        map.remove(name);
        return Ok(());
    }
    let field = schema.field(name).map_or(&ANY, AsRef::as_ref);
    let place = map.entry(name).or_insert(Value::Null);
    match change {
        Value::Array(changes) => merge_list(field, place, changes),
        Value::Object(_) => strategic_merge(field, place, change),
        scalar => {
            *place = scalar.clone();
            Ok(())
        }
    }
}

fn merge_list(schema: &Schema, place: &mut Value, changes: &[Value]) -> Result<(), String> {
    let replaces = |c: &Value| c[DIRECTIVE] == "replace";
    let key = schema.merge_key.as_deref();
    if changes.iter().any(replaces) || (key.is_none() && schema.list != ListType::Set) {
        let plain = changes.iter().filter(|c| !replaces(c)).cloned().collect();
        *place = Value::Array(plain);
        return Ok(());
    }
    if !place.is_array() {
        *place = Value::Array(Vec::new());
    }
    let Value::Array(items) = place else {
        return Ok(());
    };
    let Some(key) = key else {
        for change in changes {
            if !items.contains(change) {
                items.push(change.clone());
            }
        }
        return Ok(());
    };
    for change in changes {
        let wanted = change
            .get(key)
            .ok_or_else(|| format!("list item has no {key:?}, by which it is merged"))?;
        if change[DIRECTIVE] == "delete" {
            items.retain(|item| item.get(key) != Some(wanted));
            continue;
        }
        let found = items.iter_mut().find(|item| item.get(key) == Some(wanted));
        match (found, &schema.items) {
            (Some(item), Some(of)) => strategic_merge(of, item, change)?,
            (Some(item), None) => *item = change.clone(),
            (None, _) => items.push(change.clone()),
        }
    }
    Ok(())
}

/// Puts items into the order of the patch; items that it does not name keep their place at the
/// end.
fn reorder(items: &mut [Value], order: &Value, key: Option<&str>) {
    let Some(order) = order.as_array() else {
        return;
    };
    let place = |item: &Value| {
        order
            .iter()
            .position(|o| match key {
                Some(key) => o.get(key).is_some() && o.get(key) == item.get(key),
                None => o == item,
            })
            .unwrap_or(usize::MAX)
    };
    items.sort_by_cached_key(place);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin;

    fn pod(mut target: Value, patch: Value) -> Value {
        let registry = builtin::registry();
        let schema = registry.get("", "v1", "pods").unwrap().schema();
        strategic_merge(schema, &mut target, &patch).unwrap();
        target
    }

    #[test]
    fn containers_merge_by_name_and_tolerations_are_replaced() {
        let target = json!({ "spec": { "tolerations": [{ "key": "a" }], "containers": [
            { "name": "a", "image": "1", "env": [{ "name": "X", "value": "1" }] },
            { "name": "b", "image": "1" } ] } });
        let patch = json!({ "spec": { "tolerations": [{ "key": "b" }], "containers": [
            { "name": "a", "image": "2" }, { "name": "b", "$patch": "delete" }, { "name": "c" } ],
            "$setElementOrder/containers": [{ "name": "c" }, { "name": "a" }] } });
        assert_eq!(
            pod(target, patch),
            json!({ "spec": { "tolerations": [{ "key": "b" }], "containers": [
                { "name": "c" },
                { "name": "a", "image": "2", "env": [{ "name": "X", "value": "1" }] } ] } })
        );
    }

    #[test]
    fn finalizers_are_a_set() {
        let target = json!({ "metadata": { "finalizers": ["a", "b"], "labels": { "x": "1" } } });
        let patch = json!({ "metadata": { "finalizers": ["c"], "labels": { "x": null },
            "$deleteFromPrimitiveList/finalizers": ["a"] } });
        assert_eq!(
            pod(target, patch),
            json!({ "metadata": { "finalizers": ["b", "c"], "labels": {} } })
        );
    }
}
