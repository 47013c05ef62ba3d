//! Label and field selectors.

use serde_json::Value;

use crate::object::{at, scalar_is};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
    /// Whole numbers.
    Greater(i64),
    Less(i64),
}

/// Both selectors of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<(String, Test)>,
    /// Path, wanted value, whether equal.
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    /// Parses `a=b,c in (d,e),!f` and `metadata.name=x`.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, String> {
        Ok(Self {
            labels: whole(labels)?
                .into_iter()
                .map(|text| {
                    requirement(&text).ok_or_else(|| {
                        format!("unable to parse requirement: {text:?} in {labels:?}")
                    })
                })
                .collect::<Result<_, _>>()?,
            fields: split_fields(fields)
                .into_iter()
                .map(|text| {
                    field(&text).ok_or_else(|| {
                        format!("invalid field selector: {text:?}; can't understand it")
                    })
                })
                .collect::<Result<_, _>>()?,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Paths of the field selector.
    pub fn field_paths(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(path, _, _)| path.as_str())
    }

    /// The one name that can match, so that a list need not look at all objects.
    pub fn name(&self) -> Option<&str> {
        let found = self
            .fields
            .iter()
            .find(|(path, _, equal)| path == "metadata.name" && *equal)?;
        Some(&found.1)
    }

    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|(key, test)| {
            let value = labels.get(key).and_then(Value::as_str);
            match test {
                Test::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
                Test::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::Greater(than) => number(value).is_some_and(|n| n > *than),
                Test::Less(than) => number(value).is_some_and(|n| n < *than),
            }
        }) && self.fields.iter().all(|(path, wanted, equal)| {
            let same = match at(object, path) {
                Value::Null => wanted.is_empty(),
                other => scalar_is(other, wanted),
            };
            same == *equal
        })
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

/// The requirements of a selector, of which none may be empty.
fn whole(labels: &str) -> Result<Vec<String>, String> {
    let parts = split(labels);
    if labels.trim().is_empty() {
        return Ok(Vec::new());
    }
    if parts.iter().any(|part| part.trim().is_empty()) {
        return Err("found ',', expected: !, identifier, or 'end of string'".to_owned());
    }
    Ok(parts)
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut inside = false;
    for c in text.chars() {
        match c {
            ',' if !inside => parts.push(String::new()),
            c => {
                inside = (inside || c == '(') && c != ')';
                if let Some(last) = parts.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    parts
}

fn requirement(text: &str) -> Option<(String, Test)> {
    let text = text.trim();
    if let Some(key) = text.strip_prefix('!') {
        return Some((key_name(key)?, Test::Missing));
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Some((key_name(key)?, Test::NotIn(vec![value.trim().to_owned()])));
    }
    if let Some((key, value)) = text.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Some((key_name(key)?, Test::In(vec![value.trim().to_owned()])));
    }
    if let Some((key, value)) = text.split_once('>') {
        return Some((key_name(key)?, Test::Greater(value.trim().parse().ok()?)));
    }
    if let Some((key, value)) = text.split_once('<') {
        return Some((key_name(key)?, Test::Less(value.trim().parse().ok()?)));
    }
    if let Some((head, values)) = text.split_once('(') {
        let values = values.strip_suffix(')')?;
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        let (key, word) = (words.next()?, words.next()?);
        let test = match (word, words.next()) {
            ("in", None) => Test::In(values),
            ("notin", None) => Test::NotIn(values),
            _ => return None,
        };
        return Some((key_name(key)?, test));
    }
    Some((key_name(text)?, Test::Exists))
}

fn key_name(text: &str) -> Option<String> {
    let text = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!text.is_empty() && text.chars().all(good)).then(|| text.to_owned())
}

/// Splits at commas that are not escaped.
fn split_fields(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    parts.retain(|p| !p.trim().is_empty());
    parts
}

fn field(text: &str) -> Option<(String, String, bool)> {
    let unescape = |v: &str| {
        v.replace("\\,", ",")
            .replace("\\=", "=")
            .replace("\\\\", "\\")
    };
    let (path, value, equal) = match text.split_once("!=") {
        Some((path, value)) => (path, value, false),
        None => {
            let (path, value) = text.split_once('=')?;
            (path, value.strip_prefix('=').unwrap_or(value), true)
        }
    };
    Some((path.trim().to_owned(), unescape(value), equal))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let object = json!({ "metadata": { "name": "x", "labels": { "a": "1", "b/c": "2" } },
            "involvedObject": { "kind": "Pod" }, "type": "Normal" });
        for (labels, fields, matches) in [
            ("", "", true),
            ("a=1", "", true),
            ("a==1,b/c=2", "", true),
            ("a!=1", "", false),
            ("z!=1", "", true),
            ("a in (1,2)", "", true),
            ("a notin (1, 2)", "", false),
            ("a", "", true),
            ("!a", "", false),
            ("!z", "", true),
            ("a>0", "", true),
            ("a > 1", "", false),
            ("a<2,b/c>1", "", true),
            ("z>0", "", false),
            (" ", "", true),
            ("", "metadata.name=x", true),
            ("", "metadata.name!=x", false),
            ("", "involvedObject.kind=Pod,type=Normal", true),
            ("", "involvedObject.uid=", true),
        ] {
            let selector = Selector::parse(labels, fields).unwrap();
            assert_eq!(selector.matches(&object), matches, "{labels} {fields}");
        }
    }

    #[test]
    fn a_bad_requirement_is_named() {
        let error = Selector::parse("a in 1", "").unwrap_err();
        assert!(error.contains("a in 1"), "{error}");
        assert!(Selector::parse("", "metadata.name").is_err());
        for bad in [",,", "a,", "a>b", "a>"] {
            assert!(Selector::parse(bad, "").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_selector_panics(labels in ".{0,40}", fields in ".{0,40}", mixed in r"[ab=!,() in\\]{0,30}") {
            let _ = Selector::parse(&labels, &fields);
            if let Ok(s) = Selector::parse(&mixed, &mixed) {
                s.matches(&json!({ "a": 1 }));
            }
        }
    }
}
