//! JSON patch (RFC 6902).

use serde_json::Value;

use crate::api::DEPTH;
use crate::object::depth;

/// Operations of one patch at most, as Kubernetes has it.
const OPERATIONS: usize = 10_000;
/// Bytes that `copy` may add, so that a small patch can't make a huge object.
const COPIED: usize = 3 << 20;

/// Applies a patch.
///
/// # Errors
/// It is malformed, a path does not exist, or a `test` fails; the target is then half-patched.
pub(crate) fn json_patch(target: &mut Value, patch: &Value) -> Result<(), String> {
    let operations = patch
        .as_array()
        .ok_or("a JSON patch must be a list of operations")?;
    if operations.len() > OPERATIONS {
        return Err(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS}, got {}",
            operations.len()
        ));
    }
    let mut copied = 0;
    for (i, operation) in operations.iter().enumerate() {
        apply(target, operation, &mut copied).map_err(|e| format!("operation {i}: {e}"))?;
    }
    Ok(())
}

fn apply(target: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), String> {
    let text = |field: &str| {
        operation[field]
            .as_str()
            .ok_or_else(|| format!("{field:?} is missing"))
    };
    let value = || {
        operation
            .get("value")
            .cloned()
            .ok_or_else(|| "\"value\" is missing".to_owned())
    };
    let path = pointer(text("path")?)?;
    match text("op")? {
        "add" => add(target, &path, value()?),
        "remove" => remove(target, &path).map(drop),
        "replace" => {
            let new = value()?;
            let place = find(target, &path)?;
            if path.len() + depth(&new) > DEPTH {
                return Err(format!("nests more than {DEPTH} levels deep"));
            }
            *place = new;
            Ok(())
        }
        "test" => {
            let found = target.pointer(text("path")?).unwrap_or(&Value::Null);
            if *found == value()? {
                Ok(())
            } else {
                Err(format!("testing path {:?} failed", text("path")?))
            }
        }
        "move" => {
            let moved = remove(target, &pointer(text("from")?)?)?;
            add(target, &path, moved)
        }
        "copy" => {
            let from = find(target, &pointer(text("from")?)?)?.clone();
            *copied = copied.saturating_add(from.to_string().len());
            if *copied > COPIED {
                return Err("copies too much".to_owned());
            }
            add(target, &path, from)
        }
        other => Err(format!("unknown operation {other:?}")),
    }
}

fn pointer(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let rest = text
        .strip_prefix('/')
        .ok_or_else(|| format!("path {text:?} does not begin with \"/\""))?;
    Ok(rest
        .split('/')
        .map(|p| p.replace("~1", "/").replace("~0", "~"))
        .collect())
}

fn missing(path: &[String]) -> String {
    format!("path \"/{}\" does not exist", path.join("/"))
}

fn find<'a>(target: &'a mut Value, path: &[String]) -> Result<&'a mut Value, String> {
    let mut place = target;
    for part in path {
        let next = match place {
            Value::Object(map) => map.get_mut(part),
            Value::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get_mut(i)),
            _ => None,
        };
        place = next.ok_or_else(|| missing(path))?;
    }
    Ok(place)
}

fn add(target: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    // Each operation could bury the last one's result deeper.
    if path.len() + depth(&value) > DEPTH {
        return Err(format!("nests more than {DEPTH} levels deep"));
    }
    let Some((last, parents)) = path.split_last() else {
        *target = value;
        return Ok(());
    };
    match find(target, parents)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
            Ok(())
        }
        Value::Array(items) => {
            let at = if last == "-" {
                items.len()
            } else {
                last.parse().map_err(|_| missing(path))?
            };
            if at > items.len() {
                return Err(missing(path));
            }
            items.insert(at, value);
            Ok(())
        }
        _ => Err(missing(path)),
    }
}

fn remove(target: &mut Value, path: &[String]) -> Result<Value, String> {
    let Some((last, parents)) = path.split_last() else {
        return Ok(target.take());
    };
    match find(target, parents)? {
        Value::Object(map) => map.remove(last).ok_or_else(|| missing(path)),
        Value::Array(items) => match last.parse::<usize>() {
            Ok(at) if at < items.len() => Ok(items.remove(at)),
            _ => Err(missing(path)),
        },
        _ => Err(missing(path)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_do_what_the_rfc_says() {
        let mut v = json!({ "a": [1, 2], "b": { "x/y": 1 } });
        let patch = json!([
            { "op": "test", "path": "/a/0", "value": 1 },
            { "op": "add", "path": "/a/-", "value": 3 },
            { "op": "add", "path": "/a/0", "value": 0 },
            { "op": "remove", "path": "/b/x~1y" },
            { "op": "replace", "path": "/b", "value": "new" },
            { "op": "copy", "from": "/b", "path": "/c" },
            { "op": "move", "from": "/c", "path": "/d" },
        ]);
        json_patch(&mut v, &patch).unwrap();
        assert_eq!(v, json!({ "a": [0, 1, 2, 3], "b": "new", "d": "new" }));
    }

    #[test]
    fn a_failed_test_names_its_path() {
        let patch = json!([{ "op": "test", "path": "/a", "value": 2 }]);
        let error = json_patch(&mut json!({ "a": 1 }), &patch).unwrap_err();
        assert_eq!(error, "operation 0: testing path \"/a\" failed");
    }

    #[test]
    fn copies_into_copies_stop_in_time() {
        let copy = json!({ "op": "copy", "from": "", "path": "/a" });
        let patch = Value::Array(vec![copy; 5000]);
        let mut target = json!({ "a": 1 });
        assert!(json_patch(&mut target, &patch).is_err());
        assert!(depth(&target) <= DEPTH);
    }

    proptest! {
        #[test]
        fn no_patch_panics(op in "add|remove|replace|test|move|copy|x", path in "(/[a0-9~-]{0,3}){0,3}|.{0,5}", from in "(/[a0-]{0,2}){0,3}") {
            let mut target = json!({ "a": [{ "a": 1 }, "0"], "0": null });
            let _ = json_patch(&mut target, &json!([{ "op": op, "path": path, "from": from, "value": 1 }]));
        }
    }
}
