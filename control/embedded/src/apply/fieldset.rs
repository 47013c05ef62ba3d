//! Sets of fields, and their written form `fieldsV1`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::schema::{Kind, ListType, Schema, list_keys};

/// Recursion along what a client wrote stops here.
const DEPTH: usize = 128;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// `f:name`.
    Field(String),
    /// `k:{"name":"x"}`: an item of a map list; its keys as canonical JSON.
    Key(String),
    /// `v:"x"`: an item of a set, as JSON.
    Value(String),
}

impl Step {
    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(json) => format!("k:{json}"),
            Self::Value(json) => format!("v:{json}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        // Canonical JSON, whatever spacing the client used.
        let canonical = || {
            let value: Value = serde_json::from_str(rest).ok()?;
            Some(value.to_string())
        };
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => canonical().map(Self::Key),
            "v" => canonical().map(Self::Value),
            _ => None,
        }
    }

    /// As conflict messages show it.
    fn shown(&self) -> String {
        match self {
            Self::Field(name) => format!(".{name}"),
            Self::Key(json) => {
                let map: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let keys: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", keys.join(","))
            }
            Self::Value(json) => format!("[={json}]"),
        }
    }
}

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// The path that leads here is a member itself.
    pub member: bool,
    pub children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    pub fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    /// Reads `fieldsV1`; unknown steps are skipped.
    pub fn decode(json: &Value) -> Self {
        Self::decode_at(json, 0)
    }

    fn decode_at(json: &Value, depth: usize) -> Self {
        let mut set = Self::default();
        let Some(map) = json.as_object().filter(|_| depth < DEPTH) else {
            return set;
        };
        for (name, below) in map {
            if name == "." {
                set.member = true;
            } else if let Some(step) = Step::decode(name) {
                let mut child = Self::decode_at(below, depth + 1);
                child.member |= child.children.is_empty();
                set.children.insert(step, child);
            }
        }
        set
    }

    pub fn encode(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        for (step, child) in &self.children {
            map.insert(step.encode(), child.encode());
        }
        Value::Object(map)
    }

    /// Whether a path is a member.
    pub fn has(&self, path: &[Step]) -> bool {
        let end = path
            .iter()
            .try_fold(self, |set, step| set.children.get(step));
        end.is_some_and(|set| set.member)
    }

    /// Whether a path or anything below it is a member.
    pub fn touches(&self, path: &[Step]) -> bool {
        let end = path
            .iter()
            .try_fold(self, |set, step| set.children.get(step));
        end.is_some_and(|set| !set.is_empty())
    }

    pub fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, child) in &other.children {
            self.children.entry(step.clone()).or_default().union(child);
        }
    }

    /// Makes all paths that lead to members, members.
    fn own(&mut self) {
        self.member = true;
        self.children.values_mut().for_each(Self::own);
    }

    /// Removes the members of another set.
    pub fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (step, gone) in &other.children {
            if let Some(child) = self.children.get_mut(step) {
                child.subtract(gone);
                if child.is_empty() {
                    self.children.remove(step);
                }
            }
        }
    }

    /// Removes a path and all below it.
    pub fn cut(&mut self, path: &[Step]) {
        match path {
            [] => *self = Self::default(),
            [last] => {
                self.children.remove(last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(first) {
                    child.cut(rest);
                    if child.is_empty() {
                        self.children.remove(first);
                    }
                }
            }
        }
    }

    /// All members.
    pub fn paths(&self) -> Vec<Vec<Step>> {
        let mut found = Vec::new();
        self.walk(&mut Vec::new(), &mut found);
        found
    }

    fn walk(&self, path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
        if self.member && !path.is_empty() {
            found.push(path.clone());
        }
        for (step, child) in &self.children {
            path.push(step.clone());
            child.walk(path, found);
            path.pop();
        }
    }
}

/// `.spec.list[name="a"].x`.
pub(crate) fn shown(path: &[Step]) -> String {
    path.iter().map(Step::shown).collect()
}

/// The step to an item of a list that is merged by item; none for other lists.
pub(crate) fn item_step(schema: Option<&Schema>, item: &Value) -> Option<Step> {
    let schema = schema?;
    match &schema.list {
        ListType::Atomic => None,
        ListType::Set => Some(Step::Value(item.to_string())),
        ListType::Map(_) => {
            let mut keys = Map::new();
            for key in list_keys(schema) {
                let value = match item.get(key) {
                    Some(value) => value.clone(),
                    None => default_key(schema, key),
                };
                keys.insert(key.clone(), value);
            }
            Some(Step::Key(Value::Object(keys).to_string()))
        }
    }
}

/// A key that an item may leave out.
fn default_key(schema: &Schema, key: &str) -> Value {
    let field = schema.items.as_ref().and_then(|i| i.properties.get(key));
    let default = field.and_then(|f| f.default.clone());
    // Core schemas carry no defaults; this is the only one among their list keys.
    default.unwrap_or_else(|| {
        if key == "protocol" {
            json!("TCP")
        } else {
            Value::Null
        }
    })
}

/// Whether a value is owned as a whole: scalars, atomic lists and maps, and empty ones.
pub(crate) fn is_leaf(schema: Option<&Schema>, value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty() || schema.is_some_and(|s| s.atomic),
        Value::Array(items) => {
            items.is_empty() || schema.is_none_or(|s| s.list == ListType::Atomic)
        }
        _ => true,
    }
}

/// Schema of a field.
pub(crate) fn field_schema<'a>(schema: Option<&'a Schema>, name: &str) -> Option<&'a Schema> {
    schema
        .filter(|s| s.kind != Kind::Any || !s.properties.is_empty())
        .and_then(|s| s.field(name))
        .map(AsRef::as_ref)
}

/// The fields that an object sets.
pub(crate) fn fields_of(schema: Option<&Schema>, value: &Value) -> FieldSet {
    if is_leaf(schema, value) {
        return FieldSet::leaf();
    }
    let mut set = FieldSet::default();
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                let below = fields_of(field_schema(schema, name), child);
                set.children.insert(Step::Field(name.clone()), below);
            }
        }
        Value::Array(items) => {
            let of = schema.and_then(|s| s.items.as_deref());
            for item in items {
                if let Some(step) = item_step(schema, item) {
                    let mut below = fields_of(of, item);
                    below.member = true;
                    set.children.insert(step, below);
                }
            }
        }
        _ => {}
    }
    set
}

/// The fields of something new: maps and lists that are there now count as well.
fn all_of(schema: Option<&Schema>, value: &Value) -> FieldSet {
    let mut set = fields_of(schema, value);
    set.own();
    set
}

/// What differs: (added or modified, removed).
pub(crate) fn compare(
    schema: Option<&Schema>,
    old: &Value,
    new: &Value,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    if old == new {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) if !schema.is_some_and(|s| s.atomic) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let of = field_schema(schema, name);
                let step = Step::Field(name.clone());
                compare_child(of, step, a.get(name), b.get(name), changed, removed);
            }
        }
        (Value::Array(a), Value::Array(b))
            if schema.is_some_and(|s| s.list != ListType::Atomic) =>
        {
            let of = schema.and_then(|s| s.items.as_deref());
            let index = |items: &[Value]| -> BTreeMap<Step, Value> {
                let keyed = items.iter();
                keyed
                    .filter_map(|i| Some((item_step(schema, i)?, i.clone())))
                    .collect()
            };
            let (a, b) = (index(a), index(b));
            let steps: std::collections::BTreeSet<&Step> = a.keys().chain(b.keys()).collect();
            for step in steps {
                let (old, new) = (a.get(step), b.get(step));
                compare_child(of, step.clone(), old, new, changed, removed);
                if old.is_none() {
                    changed.children.entry(step.clone()).or_default().member = true;
                }
            }
        }
        _ => changed.union(&all_of(schema, new)),
    }
}

fn compare_child(
    schema: Option<&Schema>,
    step: Step,
    old: Option<&Value>,
    new: Option<&Value>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    match (old, new) {
        (Some(old), Some(new)) => {
            let mut below = (FieldSet::default(), FieldSet::default());
            compare(schema, old, new, &mut below.0, &mut below.1);
            for (set, found) in [(changed, below.0), (removed, below.1)] {
                if !found.is_empty() {
                    set.children.entry(step.clone()).or_default().union(&found);
                }
            }
        }
        (None, Some(new)) => {
            changed.children.insert(step, all_of(schema, new));
        }
        (Some(old), None) => {
            removed.children.insert(step, all_of(schema, old));
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_survive_being_written() {
        let json = json!({ "f:spec": { "f:replicas": {}, "f:list": {
            "k:{\"name\":\"a\"}": { ".": {}, "f:name": {} } } },
            "f:metadata": { "f:finalizers": { "v:\"x\"": {} } } });
        let set = FieldSet::decode(&json);
        assert_eq!(set.encode(), json);
        assert!(set.has(&[Step::Field("spec".into()), Step::Field("replicas".into())]));
    }

    #[test]
    fn subtracting_removes_members_and_empty_branches() {
        let mut a = fields_of(None, &json!({ "x": { "y": 1, "z": 2 }, "w": 3 }));
        a.subtract(&fields_of(None, &json!({ "x": { "y": 1, "z": 2 } })));
        assert_eq!(a.encode(), json!({ "f:w": {} }));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[fkv.]?:?.{0,20}", deep in 0_usize..300) {
            let mut json = json!({ text: {} });
            for _ in 0..deep {
                json = json!({ "f:a": json });
            }
            FieldSet::decode(&json).encode();
        }
    }
}
