//! Merging an applied configuration into the live object.

use serde_json::{Map, Value};

use super::fieldset::{
    FieldSet, Step, compare, field_schema, fields_of, is_leaf, item_step, shown,
};
use super::managed::{Entry, Manager, bare, entries, strip, write};
use crate::object;
use crate::schema::Schema;

/// A field that another manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// As the message names it: quoted, with how it wrote.
    pub manager: String,
    pub path: String,
}

/// The outcome of a merge.
#[derive(Debug)]
pub(crate) enum Applied {
    Merged(Value),
    Conflicts(Vec<Conflict>),
}

/// Merges `config` into `live` (null when there is none) for a manager.
pub(crate) fn apply(
    schema: &Schema,
    live: &Value,
    config: &Value,
    manager: &Manager,
    force: bool,
) -> Applied {
    let mut config = config.clone();
    if let Some(meta) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    let mut wanted = fields_of(Some(schema), &config);
    strip(&mut wanted);
    let mut entries = entries(live);

    let mut merged = merge(Some(schema), live, &config);
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    compare(
        Some(schema),
        &bare(live),
        &bare(&merged),
        &mut changed,
        &mut removed,
    );
    let conflicts = conflicts(&entries, manager, &wanted, &changed);
    if !conflicts.is_empty() && !force {
        let found = conflicts
            .into_iter()
            .map(|(conflict, _)| conflict)
            .collect();
        return Applied::Conflicts(found);
    }
    for (_, path) in conflicts {
        for entry in entries.iter_mut().filter(|e| e.manager != *manager) {
            entry.fields.cut(&path);
        }
    }
    let own = entries.iter().position(|e| e.manager == *manager);
    if let Some(own) = own {
        let before = entries[own].fields.clone();
        prune(schema, &mut merged, &before, &wanted, &entries, own);
    }
    match own {
        Some(i) => {
            if entries[i].fields != wanted || bare(&merged) != bare(live) {
                entries[i].time = object::now();
            }
            entries[i].fields = wanted;
        }
        None => entries.push(Entry {
            manager: manager.clone(),
            time: object::now(),
            fields: wanted,
        }),
    }
    write(&mut merged, entries);
    Applied::Merged(merged)
}

/// Fields that would change under a manager that owns them.
fn conflicts(
    entries: &[Entry],
    manager: &Manager,
    wanted: &FieldSet,
    changed: &FieldSet,
) -> Vec<(Conflict, Vec<Step>)> {
    let mut found = Vec::new();
    for path in wanted.paths() {
        if !changed.has(&path) {
            continue;
        }
        for entry in entries {
            if entry.manager != *manager && entry.fields.has(&path) {
                let conflict = Conflict {
                    manager: describe(entry),
                    path: shown(&path),
                };
                found.push((conflict, path.clone()));
            }
        }
    }
    found
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("{:?}", entry.manager.name);
    if !entry.manager.subresource.is_empty() {
        text.push_str(&format!(
            " with subresource {:?}",
            entry.manager.subresource
        ));
    }
    if !entry.manager.applies {
        text.push_str(&format!(" using {}", entry.manager.api_version));
    }
    text
}

/// Removes what the manager formerly applied, wants no more, and nobody else owns.
fn prune(
    schema: &Schema,
    merged: &mut Value,
    before: &FieldSet,
    wanted: &FieldSet,
    entries: &[Entry],
    own: usize,
) {
    let mut gone: Vec<Vec<Step>> = before
        .paths()
        .into_iter()
        .filter(|path| !wanted.touches(path))
        .filter(|path| {
            let others = entries.iter().enumerate().filter(|(i, _)| *i != own);
            !others.into_iter().any(|(_, e)| e.fields.touches(path))
        })
        .collect();
    // An item goes as a whole, before its fields; its keys go with it or not at all.
    gone.retain(|path| !is_item_key(path));
    gone.sort_by_key(Vec::len);
    for path in gone {
        remove(Some(schema), merged, &path);
    }
}

fn is_item_key(path: &[Step]) -> bool {
    match path {
        [.., Step::Key(keys), Step::Field(name)] => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            keys.contains_key(name)
        }
        _ => false,
    }
}

fn remove(schema: Option<&Schema>, place: &mut Value, path: &[Step]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    match (first, place) {
        (Step::Field(name), Value::Object(map)) => {
            if rest.is_empty() {
                map.remove(name);
                return;
            }
            let of = field_schema(schema, name);
            if let Some(child) = map.get_mut(name) {
                remove(of, child, rest);
                // A list or map that held only what is removed goes too.
                let hollow = match child {
                    Value::Object(map) => map.is_empty(),
                    Value::Array(items) => items.is_empty(),
                    _ => false,
                };
                if hollow && of.is_none_or(|s| s.default.is_none()) {
                    map.remove(name);
                }
            }
        }
        (step, Value::Array(items)) => {
            let Some(i) = items
                .iter()
                .position(|item| item_step(schema, item).as_ref() == Some(step))
            else {
                return;
            };
            if rest.is_empty() {
                items.remove(i);
            } else {
                remove(schema.and_then(|s| s.items.as_deref()), &mut items[i], rest);
            }
        }
        _ => {}
    }
}

fn merge(schema: Option<&Schema>, live: &Value, config: &Value) -> Value {
    match (live, config) {
        (Value::Object(a), Value::Object(b)) if !is_leaf(schema, config) => {
            let mut map = a.clone();
            for (name, child) in b {
                let of = field_schema(schema, name);
                let old = a.get(name).unwrap_or(&Value::Null);
                map.insert(name.clone(), merge(of, old, child));
            }
            Value::Object(map)
        }
        // An empty map adds nothing to one that is there.
        (Value::Object(_), Value::Object(b))
            if b.is_empty() && !schema.is_some_and(|s| s.atomic) =>
        {
            live.clone()
        }
        (Value::Array(a), Value::Array(b)) if !is_leaf(schema, config) => {
            Value::Array(merge_items(schema, a, b))
        }
        (Value::Array(_), Value::Array(b)) if b.is_empty() && !is_leaf(schema, live) => {
            live.clone()
        }
        (_, Value::Object(b)) => {
            // Nothing is there yet; nulls in a configuration mean "not set".
            let fresh: Map<String, Value> = b
                .iter()
                .map(|(n, v)| (n.clone(), merge(field_schema(schema, n), &Value::Null, v)))
                .collect();
            Value::Object(fresh)
        }
        _ => config.clone(),
    }
}

/// Items of the configuration in its order, where the live list already has them; new ones last.
fn merge_items(schema: Option<&Schema>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let of = schema.and_then(|s| s.items.as_deref());
    let step = |item: &Value| item_step(schema, item);
    let mut merged: Vec<Value> = live
        .iter()
        .map(|item| {
            let own = config.iter().find(|c| step(c) == step(item));
            own.map_or_else(|| item.clone(), |c| merge(of, item, c))
        })
        .collect();
    for item in config {
        if !live.iter().any(|l| step(l) == step(item)) {
            merged.push(merge(of, &Value::Null, item));
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::managed::track_update;
    use super::*;
    use crate::schema::compile;

    fn schema() -> Schema {
        compile(&json!({ "type": "object", "properties": {
            "metadata": { "type": "object", "properties": {
                "labels": { "type": "object", "additionalProperties": { "type": "string" } } } },
            "spec": { "type": "object", "properties": {
                "replicas": { "type": "integer" },
                "image": { "type": "string" },
                "atomic": { "type": "array", "items": { "type": "string" } },
                "list": { "type": "array", "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": { "type": "object", "properties": {
                        "name": { "type": "string" }, "v": { "type": "integer" } } } },
            } } } }))
        .unwrap()
    }

    fn manager(name: &str, applies: bool) -> Manager {
        Manager {
            name: name.to_owned(),
            applies,
            api_version: "x/v1".to_owned(),
            subresource: String::new(),
        }
    }

    fn applied(live: &Value, config: Value, name: &str, force: bool) -> Result<Value, Vec<String>> {
        match apply(&schema(), live, &config, &manager(name, true), force) {
            Applied::Merged(value) => Ok(value),
            Applied::Conflicts(c) => Err(c
                .into_iter()
                .map(|c| format!("{} {}", c.manager, c.path))
                .collect()),
        }
    }

    #[test]
    fn fields_dropped_from_a_configuration_are_removed() {
        let one = applied(
            &Value::Null,
            json!({ "spec": { "replicas": 1, "image": "a" } }),
            "m",
            false,
        )
        .unwrap();
        let two = applied(&one, json!({ "spec": { "image": "b" } }), "m", false).unwrap();
        assert_eq!(two["spec"], json!({ "image": "b" }));
    }

    #[test]
    fn two_managers_share_an_object_and_conflict_on_a_field() {
        let one = applied(
            &Value::Null,
            json!({ "spec": { "replicas": 1 } }),
            "a",
            false,
        )
        .unwrap();
        let two = applied(&one, json!({ "spec": { "image": "x" } }), "b", false).unwrap();
        assert_eq!(two["spec"], json!({ "replicas": 1, "image": "x" }));
        let refused = applied(&two, json!({ "spec": { "replicas": 2 } }), "b", false).unwrap_err();
        assert_eq!(refused, ["\"a\" .spec.replicas"]);
        // The same value is no conflict: both own it then.
        let same = applied(
            &two,
            json!({ "spec": { "replicas": 1, "image": "x" } }),
            "b",
            false,
        )
        .unwrap();
        let left = applied(&same, json!({ "spec": { "image": "x" } }), "b", false).unwrap();
        assert_eq!(left["spec"]["replicas"], 1);
        let forced = applied(&two, json!({ "spec": { "replicas": 2 } }), "b", true).unwrap();
        assert_eq!(forced["spec"], json!({ "replicas": 2 }));
        let after = applied(&forced, json!({ "spec": {} }), "a", false).unwrap();
        assert_eq!(after["spec"]["replicas"], 2, "a lost the field");
    }

    #[test]
    fn list_items_are_merged_by_key() {
        let one = applied(
            &Value::Null,
            json!({ "spec": { "list": [{ "name": "a", "v": 1 }] } }),
            "a",
            false,
        )
        .unwrap();
        let two = applied(
            &one,
            json!({ "spec": { "list": [{ "name": "b", "v": 2 }] } }),
            "b",
            false,
        )
        .unwrap();
        assert_eq!(
            two["spec"]["list"],
            json!([{ "name": "a", "v": 1 }, { "name": "b", "v": 2 }])
        );
        let three = applied(&two, json!({ "spec": { "list": [] } }), "a", false).unwrap();
        assert_eq!(three["spec"]["list"], json!([{ "name": "b", "v": 2 }]));
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let config = json!({ "metadata": { "labels": { "a": "b" } },
            "spec": { "list": [{ "name": "a" }], "atomic": ["x"] } });
        let one = applied(&Value::Null, config.clone(), "a", false).unwrap();
        assert_eq!(applied(&one, config, "a", false).unwrap(), one);
    }

    #[test]
    fn an_update_takes_fields_from_those_who_applied_them() {
        let one = applied(
            &Value::Null,
            json!({ "spec": { "replicas": 1 } }),
            "a",
            false,
        )
        .unwrap();
        let mut two = one.clone();
        two["spec"]["replicas"] = json!(5);
        track_update(&schema(), &one, &mut two, &manager("kubectl", false));
        let refused = applied(&two, json!({ "spec": { "replicas": 1 } }), "a", false).unwrap_err();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0], "\"kubectl\" using x/v1 .spec.replicas");
    }

    /// Any JSON, with the names that the schema knows.
    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            let name = prop_oneof![
                Just("metadata"),
                Just("labels"),
                Just("managedFields"),
                Just("spec"),
                Just("list"),
                Just("atomic"),
                Just("replicas"),
                Just("name"),
                Just("v"),
                Just("$patch"),
                Just("fieldsV1"),
                Just("f:spec"),
            ];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(name.prop_map(str::to_owned), inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_trees_panic(live in tree(), config in tree(), force: bool) {
            let schema = schema();
            let manager = manager("m", true);
            let mut value = live.clone();
            for _ in 0..2 {
                if let Applied::Merged(merged) = apply(&schema, &value, &config, &manager, force) {
                    value = merged;
                }
            }
            track_update(&schema, &live, &mut value, &manager);
            let _ = crate::patch::strategic_merge(&schema, &mut value, &config);
            crate::patch::merge_patch(&mut value, &live);
            crate::schema::prune(&schema, &mut value);
            crate::schema::fill_defaults(&schema, &mut value);
            crate::schema::validate(&schema, &value, Some(&live));
        }

        #[test]
        fn what_is_applied_is_there_and_stays(config in tree()) {
            let mut config = json!({ "spec": { "list": [], "x": config } });
            crate::schema::prune(&schema(), &mut config);
            let once = applied(&Value::Null, config.clone(), "a", false).unwrap();
            let twice = applied(&once, config, "a", false).unwrap();
            prop_assert_eq!(once, twice);
        }
    }
}
