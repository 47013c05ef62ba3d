//! `metadata.managedFields`.

use serde_json::{Value, json};

use super::fieldset::{FieldSet, Step, compare};
use crate::object::{self, meta_mut};
use crate::schema::Schema;

/// Who writes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manager {
    pub name: String,
    /// Server-side apply, not an update.
    pub applies: bool,
    pub api_version: String,
    pub subresource: String,
}

/// One entry of `managedFields`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub manager: Manager,
    pub time: Value,
    pub fields: FieldSet,
}

/// Metadata that nobody owns: identity, and what the server writes.
const UNOWNED: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "selfLink",
];

/// Removes the fields that nobody owns.
pub(super) fn strip(set: &mut FieldSet) {
    let field = |name: &str| Step::Field(name.to_owned());
    set.cut(&[field("apiVersion")]);
    set.cut(&[field("kind")]);
    for name in UNOWNED {
        set.cut(&[field("metadata"), field(name)]);
    }
    // Metadata itself is no member either.
    set.member = false;
    if let Some(meta) = set.children.get_mut(&field("metadata")) {
        meta.member = false;
        if meta.is_empty() {
            set.children.remove(&field("metadata"));
        }
    }
}

/// Entries of an object; malformed ones are dropped.
pub(super) fn entries(object: &Value) -> Vec<Entry> {
    let list = object["metadata"]["managedFields"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(|entry| {
            let text = |f: &str| entry[f].as_str().unwrap_or_default().to_owned();
            Some(Entry {
                manager: Manager {
                    name: entry["manager"].as_str()?.to_owned(),
                    applies: entry["operation"] == "Apply",
                    api_version: text("apiVersion"),
                    subresource: text("subresource"),
                },
                time: entry["time"].clone(),
                fields: FieldSet::decode(&entry["fieldsV1"]),
            })
        })
        .collect()
}

/// Writes the entries that own something.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    let list: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let mut json = json!({
                "manager": entry.manager.name,
                "operation": if entry.manager.applies { "Apply" } else { "Update" },
                "apiVersion": entry.manager.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.encode(),
            });
            if !entry.manager.subresource.is_empty() {
                json["subresource"] = entry.manager.subresource.as_str().into();
            }
            json
        })
        .collect();
    if list.is_empty() {
        meta_mut(object).remove("managedFields");
    } else {
        meta_mut(object).insert("managedFields".to_owned(), Value::Array(list));
    }
}

/// The tree without its managed fields, for comparing.
pub(crate) fn bare(object: &Value) -> Value {
    let mut bare = object.clone();
    if let Some(meta) = bare.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
        meta.remove("resourceVersion");
    }
    bare
}

/// Records a create or an update: the manager takes what it changed, others lose it.
pub(crate) fn track_update(schema: &Schema, old: &Value, new: &mut Value, manager: &Manager) {
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    let empty = json!({});
    let before = if old.is_object() { old } else { &empty };
    compare(
        Some(schema),
        &bare(before),
        &bare(new),
        &mut changed,
        &mut removed,
    );
    strip(&mut changed);
    // A client that sends an explicit empty list takes the record away.
    let reset = new["metadata"]["managedFields"] == json!([]);
    let mut entries = if reset { Vec::new() } else { entries(before) };
    if !reset && changed.is_empty() && removed.is_empty() {
        write(new, entries);
        return;
    }
    for entry in &mut entries {
        entry.fields.subtract(&removed);
        if entry.manager != *manager {
            entry.fields.subtract(&changed);
        }
    }
    if !changed.is_empty() {
        match entries.iter_mut().find(|e| e.manager == *manager) {
            Some(own) => {
                own.fields.union(&changed);
                own.time = object::now();
            }
            None => entries.push(Entry {
                manager: manager.clone(),
                time: object::now(),
                fields: changed,
            }),
        }
    }
    write(new, entries);
}
