//! What kinds of objects there are, in one version each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use serde_json::Value;

use crate::object::at;
use crate::schema::Schema;
use crate::status::Cause;
use crate::store::Key;
use crate::table::Column;

/// How an object's stored form differs from the one that a version serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Conversion {
    /// Not at all.
    None,
    /// By `apiVersion` alone: the stored one is given.
    Version(String),
    /// `events.k8s.io/v1` of a stored core event.
    Event,
}

/// Paths of the scale subresource.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: Option<String>,
}

impl Scale {
    /// What is wrong with the number of replicas.
    pub fn check(&self, value: &Value) -> Option<Cause> {
        let found = at(value, &self.spec_replicas);
        let words = match found {
            Value::Null => return None,
            number => match number.as_i64() {
                Some(n) if n < 0 => "should be a non-negative integer".to_owned(),
                Some(n) if n > i64::from(i32::MAX) => {
                    format!("should be less than or equal to {}", i32::MAX)
                }
                Some(_) => return None,
                None => {
                    let words = format!("{} accessor error: not an integer", self.spec_replicas);
                    return Some(Cause::invalid(&self.spec_replicas, "0", words));
                }
            },
        };
        Some(Cause::invalid(
            &self.spec_replicas,
            &found.to_string(),
            words,
        ))
    }
}

/// A resource in one version.
pub(crate) struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub status: bool,
    pub scale: Option<Scale>,
    /// Part of Kubernetes itself: lists merge by known keys, and unknown fields are forgiven.
    pub builtin: bool,
    /// Id in the store: `plural` or `plural.group`.
    pub id: Arc<str>,
    pub conversion: Conversion,
    pub columns: Vec<Column>,
    pub schema: SchemaSource,
    /// OpenAPI schema as JSON.
    pub openapi: OpenApi,
}

/// A compiled schema, made on first use: a control plane touches few of the core kinds.
pub(crate) enum SchemaSource {
    Ready(Arc<Schema>),
    Lazy(OnceLock<Arc<Schema>>, fn() -> Arc<Schema>),
}

/// Where the OpenAPI document of a kind comes from.
pub(crate) enum OpenApi {
    /// Root schema with `$defs`.
    Builtin(fn() -> Value),
    Custom(Value),
}

impl Resource {
    pub fn schema(&self) -> &Arc<Schema> {
        match &self.schema {
            SchemaSource::Ready(schema) => schema,
            SchemaSource::Lazy(cell, make) => cell.get_or_init(make),
        }
    }

    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    pub fn key(&self, namespace: &str, name: &str) -> Key {
        let namespace = if self.namespaced { namespace } else { "" };
        Key::new(&self.id, namespace, name)
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    pub fn verbs(&self) -> &'static [&'static str] {
        &[
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ]
    }

    pub fn subresources(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        if self.status {
            names.push("status");
        }
        if self.scale.is_some() {
            names.push("scale");
        }
        names
    }

    /// From the stored form to this version's.
    pub fn serve(&self, mut value: Value) -> Value {
        match &self.conversion {
            Conversion::None => value,
            Conversion::Version(_) => {
                value["apiVersion"] = self.api_version().into();
                value
            }
            Conversion::Event => crate::builtin::event_from_core(value),
        }
    }

    /// From this version's form to the stored one.
    pub fn store(&self, mut value: Value) -> Value {
        match &self.conversion {
            Conversion::None => value,
            Conversion::Version(stored) => {
                value["apiVersion"] = stored.as_str().into();
                value
            }
            Conversion::Event => crate::builtin::event_to_core(value),
        }
    }
}

/// `v1` or `group/v1`.
pub(crate) fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// All resources. A new one is made whenever a definition changes.
#[derive(Default)]
pub(crate) struct Registry {
    /// By group, version and plural.
    resources: BTreeMap<(String, String, String), Arc<Resource>>,
    /// Versions of each group, the preferred one first.
    pub groups: BTreeMap<String, Vec<String>>,
    /// By stored id: the version that is served first.
    by_id: BTreeMap<Arc<str>, Arc<Resource>>,
    /// OpenAPI documents that were asked for.
    pub documents: Mutex<BTreeMap<String, Bytes>>,
}

impl Registry {
    pub fn insert(&mut self, resource: Arc<Resource>) {
        let versions = self.groups.entry(resource.group.clone()).or_default();
        if !versions.contains(&resource.version) {
            versions.push(resource.version.clone());
            versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
        }
        if resource.conversion == Conversion::None {
            self.by_id
                .insert(Arc::clone(&resource.id), Arc::clone(&resource));
        }
        let key = (
            resource.group.clone(),
            resource.version.clone(),
            resource.plural.clone(),
        );
        self.resources.insert(key, resource);
    }

    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.resources.get(&key)
    }

    /// In the version in which it is stored.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Resource>> {
        self.by_id.get(id)
    }

    #[cfg(test)]
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    pub fn in_version(&self, group: &str, version: &str) -> Vec<&Arc<Resource>> {
        self.resources
            .values()
            .filter(|r| r.group == group && r.version == version)
            .collect()
    }
}

/// Kubernetes' order of versions: v2 > v1 > v2beta1 > v1alpha1 > anything else.
fn priority(version: &str) -> (u8, u32, u32) {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        (digits.parse::<u32>().ok(), digits.len())
    };
    let Some(rest) = version.strip_prefix('v') else {
        return (0, 0, 0);
    };
    let (Some(major), length) = number(rest) else {
        return (0, 0, 0);
    };
    let stage = &rest[length..];
    if stage.is_empty() {
        return (3, major, 0);
    }
    for (word, rank) in [("beta", 2), ("alpha", 1)] {
        if let Some(minor) = stage.strip_prefix(word) {
            return (rank, major, minor.parse().unwrap_or(0));
        }
    }
    (0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_whole_numbers_from_zero() {
        let scale = Scale {
            spec_replicas: ".spec.n".to_owned(),
            status_replicas: String::new(),
            selector: None,
        };
        let fault = |n: Value| scale.check(&serde_json::json!({ "spec": { "n": n } }));
        for good in [Value::Null, 0.into(), i32::MAX.into()] {
            assert_eq!(fault(good), None);
        }
        for bad in [(-1).into(), 3_000_000_000_i64.into(), "1".into()] {
            assert_eq!(fault(bad).unwrap().field, ".spec.n");
        }
    }

    #[test]
    fn stable_versions_come_first() {
        let mut versions = ["v1alpha1", "v2", "other", "v1", "v1beta2", "v1beta1"];
        versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
        assert_eq!(
            versions,
            ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "other"]
        );
    }
}
