//! The subset of JSONPath that printer columns use: fields, `['field']`, indices, `[*]`, and
//! filters that compare a field with a word.

use serde_json::Value;

use crate::object::scalar_is;

/// Steps of one path at most; paths come from users.
const STEPS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// `[?(@.type=="Ready")]`.
    Filter(Vec<String>, String),
}

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses `.spec.list[0]['field']`, with or without `$` and braces.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fail = || format!("JSONPath {text:?} is not understood");
        let mut rest = text.trim();
        rest = rest
            .strip_prefix('{')
            .and_then(|r| r.strip_suffix('}'))
            .unwrap_or(rest);
        rest = rest.strip_prefix('$').unwrap_or(rest);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if steps.len() >= STEPS {
                return Err(fail());
            }
            if let Some(inner) = rest.strip_prefix('[') {
                let end = closing(inner).ok_or_else(fail)?;
                steps.push(bracket(&inner[..end]).ok_or_else(fail)?);
                rest = &inner[end + 1..];
            } else {
                let field = rest.strip_prefix('.').ok_or_else(fail)?;
                let (name, length) = field_name(field);
                if name == "*" {
                    steps.push(Step::All);
                } else if !name.is_empty() {
                    steps.push(Step::Field(name));
                } else if length == 0 && !field.is_empty() {
                    return Err(fail());
                }
                rest = &field[length..];
            }
        }
        Ok(Self(steps))
    }

    /// All values at the path.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        self.0.iter().fold(vec![root], |places, step| {
            places.into_iter().flat_map(|p| step.find(p)).collect()
        })
    }
}

impl Step {
    fn find<'a>(&self, place: &'a Value) -> Vec<&'a Value> {
        match (self, place) {
            (Self::Field(name), _) => place.get(name).into_iter().collect(),
            (Self::Index(i), Value::Array(items)) => {
                let i = if *i < 0 {
                    i + i64::try_from(items.len()).unwrap_or(i64::MAX)
                } else {
                    *i
                };
                let found = usize::try_from(i).ok().and_then(|i| items.get(i));
                found.into_iter().collect()
            }
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::All, Value::Object(map)) => map.values().collect(),
            (Self::Filter(path, wanted), Value::Array(items)) => items
                .iter()
                .filter(|item| scalar_is(path.iter().fold(*item, |v, p| &v[p]), wanted))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// A name up to the next `.` or `[`, with `\.` for a dot in it; and its length in the text.
fn field_name(text: &str) -> (String, usize) {
    let mut name = String::new();
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '.' | '[' if !escaped => return (name, i),
            c => {
                name.push(c);
                escaped = false;
            }
        }
    }
    (name, text.len())
}

/// Where the bracket closes, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some(i),
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
    }
    None
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"']
        .iter()
        .find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" || text == ":" {
        return Some(Step::All);
    }
    if let Some(name) = quoted(text) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (path, wanted) = filter.split_once("==")?;
        let path = path.trim().strip_prefix("@.")?;
        let wanted = wanted.trim();
        let path = path.split('.').map(str::to_owned).collect();
        let wanted = quoted(wanted).unwrap_or(wanted).to_owned();
        return Some(Step::Filter(path, wanted));
    }
    text.parse().ok().map(Step::Index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_what_printer_columns_want() {
        let object = json!({
            "spec": { "a": 1, "list": [1, 2, 3], "x.y": "dot" },
            "status": { "conditions": [
                { "type": "Ready", "status": "True" }, { "type": "Other", "status": "False" } ] },
        });
        for (path, found) in [
            (".spec.a", vec![json!(1)]),
            ("{.spec.a}", vec![json!(1)]),
            ("$.spec['a']", vec![json!(1)]),
            (".spec.list[1]", vec![json!(2)]),
            (".spec.list[-1]", vec![json!(3)]),
            (".spec.list[*]", vec![json!(1), json!(2), json!(3)]),
            (r".spec.x\.y", vec![json!("dot")]),
            (
                r#".status.conditions[?(@.type=="Ready")].status"#,
                vec![json!("True")],
            ),
            (".spec.missing.deeper", vec![]),
        ] {
            let parsed = JsonPath::parse(path).unwrap();
            let got: Vec<Value> = parsed.find(&object).into_iter().cloned().collect();
            assert_eq!(got, found, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(text in ".{0,60}", tail in r"[\.\[\]\*\?\(\)@='a0-]{0,30}") {
            let object = json!({ "a": [{ "a": 0 }, "0"] });
            for t in [text.clone(), tail.clone(), format!(".a{tail}")] {
                if let Ok(path) = JsonPath::parse(&t) {
                    path.find(&object);
                }
            }
        }
    }
}
