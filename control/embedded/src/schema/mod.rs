//! Schemas, compiled once: a tree that shaping, validation, apply and CEL walk along an object.

mod cel_value;
mod compile;
mod format;
mod rules;
mod shape;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

pub(crate) use compile::{compile, compile_builtin, with_metadata};
pub(crate) use rules::Rule;
pub(crate) use shape::{drop_nulls, fill_defaults, list_keys, prune};
pub(crate) use validate::validate;

/// JSON type of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Kind {
    /// Says nothing: anything goes.
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

/// How a list is merged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Values are their own keys.
    Set,
    /// Items are told apart by these fields.
    Map(Vec<String>),
}

/// Limits on a value.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub values: Vec<Value>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: Option<(String, Regex)>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub format: Option<String>,
}

/// A schema.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    pub kind: Kind,
    pub nullable: bool,
    /// Unknown fields are kept here.
    pub preserve: bool,
    /// A whole object with its own `apiVersion`, `kind` and `metadata`.
    pub embedded: bool,
    pub properties: BTreeMap<String, Arc<Schema>>,
    pub additional: Option<Arc<Schema>>,
    pub items: Option<Arc<Schema>>,
    pub required: Vec<String>,
    pub default: Option<Value>,
    pub limits: Limits,
    pub list: ListType,
    /// Key of a strategic merge patch, where lists of core kinds have one.
    pub merge_key: Option<String>,
    /// Maps that are replaced as a whole.
    pub atomic: bool,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    pub rules: Vec<Rule>,
}

impl Schema {
    /// Says nothing about anything.
    pub const ANY: Self = Self {
        kind: Kind::Any,
        nullable: false,
        preserve: true,
        embedded: false,
        properties: BTreeMap::new(),
        additional: None,
        items: None,
        required: Vec::new(),
        default: None,
        limits: Limits {
            values: Vec::new(),
            minimum: None,
            maximum: None,
            exclusive_minimum: false,
            exclusive_maximum: false,
            multiple_of: None,
            min_length: None,
            max_length: None,
            pattern: None,
            min_items: None,
            max_items: None,
            unique_items: false,
            min_properties: None,
            max_properties: None,
            format: None,
        },
        list: ListType::Atomic,
        merge_key: None,
        atomic: false,
        all_of: Vec::new(),
        any_of: Vec::new(),
        one_of: Vec::new(),
        not: None,
        rules: Vec::new(),
    };

    /// Schema of a field; none when the field is unknown or nothing is known about it.
    pub fn field(&self, name: &str) -> Option<&Arc<Schema>> {
        self.properties.get(name).or(self.additional.as_ref())
    }

    /// Whether a field may be there.
    pub fn knows(&self, name: &str) -> bool {
        self.preserve
            || self.kind == Kind::Any
            || self.properties.contains_key(name)
            || self.additional.is_some()
            || (self.embedded && matches!(name, "apiVersion" | "kind" | "metadata"))
    }
}
