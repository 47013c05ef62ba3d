//! Conversations as the YAML files have them.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Steps in a namespace of their own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// For people.
    pub about: String,
    /// A workload to be changed in one field at a time, see [`cases`].
    #[serde(default)]
    pub table: Option<Table>,
    /// What is asked.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// Many objects that differ from one in a field: all are posted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    post: String,
    base: Value,
    /// What is compared of all answers.
    #[serde(default)]
    compare: Option<String>,
    cases: Vec<Case>,
}

/// A pointer into the object, a value (null removes the field), and what is compared.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Case {
    Whole(String, Value),
    Part(String, Value, String),
}

/// A request.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    /// The body: an object, or a text as it is.
    #[serde(default)]
    pub body: Value,
    /// Media type of the body where it is not the usual one.
    #[serde(default)]
    pub r#type: Option<String>,
    /// Media type that is asked for.
    #[serde(default)]
    pub accept: Option<String>,
    /// `all`, `fields` or `code`.
    #[serde(default)]
    pub compare: Option<String>,
    /// Are texts for people compared?
    #[serde(default = "yes")]
    pub words: bool,
    /// Asks again until the code is this one: what controllers do takes time.
    #[serde(default)]
    pub until: Option<u16>,
    /// The verb and the path.
    #[serde(flatten)]
    verb: Map<String, Value>,
}

fn yes() -> bool {
    true
}

impl Step {
    /// HTTP method, usual media type, path.
    pub fn request(&self) -> (&'static str, &'static str, &str) {
        let (verb, path) = self.verb.iter().next().unwrap();
        assert_eq!(self.verb.len(), 1, "{:?}", self.verb);
        let (method, kind) = match verb.as_str() {
            "get" => ("GET", ""),
            "post" => ("POST", "application/json"),
            "put" => ("PUT", "application/json"),
            "delete" => ("DELETE", "application/json"),
            "merge" => ("PATCH", "application/merge-patch+json"),
            "strategic" => ("PATCH", "application/strategic-merge-patch+json"),
            "json" => ("PATCH", "application/json-patch+json"),
            "apply" => ("PATCH", "application/apply-patch+yaml"),
            other => panic!("unknown verb {other}"),
        };
        (method, kind, path.as_str().unwrap())
    }

    /// For people.
    pub fn line(&self) -> String {
        let body = self.body.to_string();
        let short: String = body.chars().take(160).collect();
        let (verb, path) = self.verb.iter().next().unwrap();
        format!("{verb} {} {short}", path.as_str().unwrap())
    }

    pub fn fields_only(&self) -> bool {
        self.compare.as_deref() == Some("fields")
    }

    pub fn code_only(&self) -> bool {
        self.compare.as_deref() == Some("code")
    }
}

/// Sets or removes what a pointer names.
fn change(object: &mut Value, pointer: &str, value: &Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("{pointer}"));
    match (parent, value) {
        (Value::Object(map), Value::Null) => drop(map.remove(key)),
        (Value::Object(map), value) => drop(map.insert(key.to_owned(), value.clone())),
        (Value::Array(list), value) => list[key.parse::<usize>().unwrap()] = value.clone(),
        _ => panic!("{pointer}"),
    }
}

impl Table {
    fn steps(&self) -> Vec<Step> {
        let post = |body: Value, compare: Option<String>| Step {
            body,
            r#type: None,
            accept: None,
            compare: compare.or_else(|| self.compare.clone()),
            words: true,
            until: None,
            verb: Map::from_iter([("post".to_owned(), self.post.clone().into())]),
        };
        let changed = self.cases.iter().map(|case| {
            let (pointer, value, compare) = match case {
                Case::Whole(pointer, value) => (pointer, value, None),
                Case::Part(pointer, value, compare) => (pointer, value, Some(compare.clone())),
            };
            let mut body = self.base.clone();
            change(&mut body, pointer, value);
            (body, compare)
        });
        changed
            .enumerate()
            .map(|(n, (mut body, compare))| {
                if body
                    .pointer("/metadata/name")
                    .is_some_and(|name| *name == "case")
                {
                    body["metadata"]["name"] = format!("case-{n}").into();
                }
                post(body, compare)
            })
            .collect()
    }
}

/// All of them.
pub fn all() -> Vec<Conversation> {
    let files = [
        include_str!("core.yaml"),
        include_str!("definitions.yaml"),
        include_str!("custom.yaml"),
        include_str!("hyperion.yaml"),
    ];
    let mut all: Vec<Conversation> = files
        .iter()
        .flat_map(|file| {
            let list: Vec<Conversation> = serde_yaml_ng::from_str(file).unwrap();
            list
        })
        .collect();
    for conversation in &mut all {
        if let Some(table) = conversation.table.take() {
            conversation.steps.extend(table.steps());
        }
    }
    // Kinds that the others speak of.
    let works: Value = serde_yaml_ng::from_str(include_str!(
        "../../../../control/embedded/tests/data/crd.yaml"
    ))
    .unwrap();
    let crds = hyperion_api::crds();
    let crds = crds.iter().map(|crd| serde_json::to_value(crd).unwrap());
    all.insert(0, install(crds.chain([works])));
    all
}

/// Applies definitions and waits until they are served.
fn install(crds: impl Iterator<Item = Value>) -> Conversation {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let step = |verb: &str, path: String, body: Value, until: Option<u16>| Step {
        body,
        r#type: None,
        accept: None,
        compare: Some("code".to_owned()),
        words: true,
        until,
        verb: Map::from_iter([(verb.to_owned(), path.into())]),
    };
    let steps = crds.flat_map(|crd| {
        let text = |pointer: &str| crd.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        let served = format!(
            "/apis/{}/{}/{}",
            text("/spec/group"),
            text("/spec/versions/0/name"),
            text("/spec/names/plural")
        );
        let apply = format!("{path}/{}?fieldManager=test", text("/metadata/name"));
        [
            step("apply", apply, crd.clone(), None),
            step("get", served, Value::Null, Some(200)),
        ]
    });
    Conversation {
        about: String::new(),
        table: None,
        steps: steps.collect(),
    }
}
