//! `x-kubernetes-validations`: rules in CEL.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program};
use serde_json::Value;

use super::Schema;
use super::cel_value::to_cel;
use super::validate::join;
use crate::status::Cause;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    for extension in [
        cel::extensions::strings,
        cel::extensions::lists,
        cel::extensions::math,
    ] {
        // Extensions of the library itself do not clash.
        let _ = env.add_extension(extension);
    }
    Arc::new(env)
});

/// One rule.
pub(crate) struct Rule {
    source: String,
    program: Program,
    weight: usize,
    message: String,
    message_program: Option<Program>,
    reason: &'static str,
    field: String,
    /// Compares with the old value; not checked on creation.
    transition: bool,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rule").field(&self.source).finish()
    }
}

impl Rule {
    /// Compiles a rule; the error says what is wrong with it.
    pub fn compile(json: &Value) -> Result<Self, String> {
        let source = json["rule"].as_str().unwrap_or_default();
        let program = parse(source)?;
        let message_program = json["messageExpression"].as_str().map(parse).transpose()?;
        let transition = program.references().has_variable("oldSelf");
        let reason = match json["reason"].as_str() {
            Some("FieldValueRequired") => "FieldValueRequired",
            Some("FieldValueForbidden") => "FieldValueForbidden",
            Some("FieldValueDuplicate") => "FieldValueDuplicate",
            _ => "FieldValueInvalid",
        };
        Ok(Self {
            source: source.to_owned(),
            program,
            weight: weigh(source)?,
            message: json["message"].as_str().unwrap_or_default().to_owned(),
            message_program,
            reason,
            field: json["fieldPath"].as_str().unwrap_or_default().to_owned(),
            transition,
        })
    }

    fn message(&self, context: &Context<'_, '_>) -> String {
        let computed = self
            .message_program
            .as_ref()
            .and_then(|p| run(p, usize::MAX, context).ok());
        match computed {
            Some(cel::Value::String(text)) => text.to_string(),
            _ if !self.message.is_empty() => self.message.clone(),
            _ => format!("failed rule: {}", self.source),
        }
    }
}

/// Longest rule in bytes, most open brackets, most operators: parser and evaluator are recursive,
/// and an overflow of the stack can't be caught.
const LONGEST: usize = 4096;
const NESTED: usize = 48;
const OPERATORS: usize = 200;
/// Rules with more brackets and operators than this get a stack of their own.
const SIMPLE: usize = 16;
/// In a debug build the parser takes up to 160 KiB for each bracket, the evaluator 28 KiB for
/// each operator and a few times that for each bracket. Only what is used is ever touched.
const STACK: usize = 32 << 20;

/// How much stack a rule may need: brackets and operators in all.
fn weigh(source: &str) -> Result<usize, String> {
    let (mut open, mut nested, mut brackets, mut halves) = (0_usize, 0_usize, 0_usize, 0_usize);
    for byte in source.bytes() {
        match byte {
            // A conditional is inside the one before it, and nothing closes it.
            b'?' => nested += 1,
            b'(' | b'[' | b'{' => {
                open += 1;
                brackets += 1;
            }
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'!' | b'-' | b'+' | b'*' | b'/' | b'%' | b'.' | b'<' | b'>' => halves += 2,
            // Two of them are one operator.
            b'&' | b'|' | b'=' => halves += 1,
            _ => {}
        }
        if open + nested > NESTED || halves / 2 > OPERATORS {
            return Err("rule is too complex".to_owned());
        }
    }
    if source.len() > LONGEST {
        return Err(format!("rule is longer than {LONGEST} bytes"));
    }
    Ok(brackets + nested + halves / 2)
}

/// The library is a port with asserts of its own: what it does with strange rules must not matter
/// here.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the CEL library failed".to_owned()))
}

fn parse(source: &str) -> Result<Program, String> {
    let parsed = weigh(source).and_then(|_| {
        stacker::grow(STACK, || {
            guarded(|| ENV.compile(source).map_err(|e| e.to_string()))
        })
    });
    parsed.map_err(|e| format!("rule {source:?}: {e}"))
}

fn run(program: &Program, weight: usize, context: &Context<'_, '_>) -> Result<cel::Value, String> {
    let execute = || guarded(|| program.execute(context).map_err(|e| e.to_string()));
    if weight <= SIMPLE {
        execute()
    } else {
        stacker::grow(STACK, execute)
    }
}

/// Checks the rules of a schema and of all below it.
pub(super) fn check(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    causes: &mut Vec<Cause>,
) {
    if !schema.rules.is_empty() && !value.is_null() {
        check_here(schema, value, old, path, causes);
    }
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    let old = old.and_then(|o| o.get(name));
                    check(field, child, old, &join(path, name), causes);
                }
            }
        }
        Value::Array(items) => {
            let Some(of) = &schema.items else { return };
            let keys = super::list_keys(schema);
            for (i, item) in items.iter().enumerate() {
                // Only items that can be told apart have a former state.
                let old = old
                    .and_then(Value::as_array)
                    .filter(|_| !keys.is_empty())
                    .and_then(|o| o.iter().find(|o| keys.iter().all(|k| o[k] == item[k])));
                check(of, item, old, &format!("{path}[{i}]"), causes);
            }
        }
        _ => {}
    }
}

fn check_here(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    causes: &mut Vec<Cause>,
) {
    let mut context = Context::with_env(Arc::clone(&ENV));
    context.add_variable_from_value("self", to_cel(Some(schema), value));
    if let Some(old) = old {
        context.add_variable_from_value("oldSelf", to_cel(Some(schema), old));
    }
    for rule in &schema.rules {
        if rule.transition && old.is_none() {
            continue;
        }
        let words = match run(&rule.program, rule.weight, &context) {
            Ok(cel::Value::Bool(true)) => continue,
            Ok(cel::Value::Bool(false)) => rule.message(&context),
            Ok(_) => format!("rule {:?} did not give true or false", rule.source),
            Err(e) => format!("rule {:?}: {e}", rule.source),
        };
        let field = format!("{path}{}", rule.field);
        let field = field.strip_prefix('.').unwrap_or(&field);
        let mut cause = Cause::invalid(field, &value.to_string(), &words);
        // Whole objects are not shown.
        if value.is_object() || value.is_array() {
            cause.message = format!("Invalid value: {words}");
        }
        cause.reason = rule.reason;
        causes.push(cause);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{compile, validate};
    use super::*;

    fn schema(rule: &str) -> Schema {
        compile(&json!({ "type": "object", "properties": { "spec": {
            "type": "object",
            "x-kubernetes-validations": [{ "rule": rule, "message": "no" }],
            "properties": {
                "replicas": { "type": "integer" },
                "cost": { "type": "number" },
                "type": { "type": "string" },
                "clouds": { "type": "array", "items": { "type": "string" } },
                "exclusive": { "type": "boolean" },
            } } } }))
        .unwrap()
    }

    fn passes(rule: &str, spec: Value, old: Option<Value>) -> bool {
        let old = old.map(|o| json!({ "spec": o }));
        validate(&schema(rule), &json!({ "spec": spec }), old.as_ref()).is_empty()
    }

    #[test]
    fn rules_see_self_with_the_schemas_types() {
        for (rule, spec, good) in [
            ("self.replicas >= 0", json!({ "replicas": 1 }), true),
            ("self.replicas >= 0", json!({ "replicas": -1 }), false),
            ("self.cost > 0.0", json!({ "cost": 1 }), true),
            (
                "!has(self.cost) || self.cost > 0.0",
                json!({ "replicas": 1 }),
                true,
            ),
            (
                "!(self.exclusive && self.replicas > 1)",
                json!({ "exclusive": true, "replicas": 2 }),
                false,
            ),
            (
                "self.clouds.all(c, c in ['aws', 'gcp'])",
                json!({ "clouds": ["aws", "x"] }),
                false,
            ),
            ("size(self.clouds) == 1", json!({ "clouds": ["aws"] }), true),
            (
                "self.type.matches('^s')",
                json!({ "type": "service" }),
                true,
            ),
            (
                "self.type.startsWith('j')",
                json!({ "type": "service" }),
                false,
            ),
        ] {
            assert_eq!(passes(rule, spec, None), good, "{rule}");
        }
    }

    #[test]
    fn transition_rules_wait_for_an_update() {
        let rule = "self.type == oldSelf.type";
        assert!(passes(rule, json!({ "type": "job" }), None));
        assert!(passes(
            rule,
            json!({ "type": "job" }),
            Some(json!({ "type": "job" }))
        ));
        assert!(!passes(
            rule,
            json!({ "type": "job" }),
            Some(json!({ "type": "service" }))
        ));
    }

    #[test]
    fn a_rule_that_fails_to_run_refuses_and_names_itself() {
        let causes = validate(
            &schema("self.missing.deeper == 1"),
            &json!({ "spec": {} }),
            None,
        );
        assert_eq!(causes.len(), 1);
        assert!(
            causes[0].message.contains("self.missing.deeper"),
            "{causes:?}"
        );
    }

    #[test]
    fn rules_that_could_overflow_the_stack_are_refused() {
        for rule in [
            "(".repeat(3000),
            format!("{}true", "!".repeat(3000)),
            format!("{}1", "[".repeat(100)),
            format!("{}true", "true ? ".repeat(500)),
            format!("1{} > 0", " + 1".repeat(600)),
            format!("self{}", ".a".repeat(600)),
            "a".repeat(5000),
        ] {
            assert!(Rule::compile(&json!({ "rule": rule })).is_err());
        }
        for rule in [
            vec!["self.replicas > 0"; 60].join(" || "),
            format!("{}true{}", "(".repeat(48), ")".repeat(48)),
            format!("{}true", "!".repeat(198)),
            format!("1{} > 0", " + 1".repeat(199)),
            format!("{}true", "false ? false : ".repeat(48)),
            format!("{}[]{} != []", "[".repeat(47), "]".repeat(47)),
        ] {
            assert!(passes(&rule, json!({ "replicas": 1 }), None), "{rule}");
        }
        assert!(!passes(
            &format!("self{} == 1", ".a".repeat(190)),
            json!({}),
            None
        ));
    }

    #[test]
    fn a_rule_that_does_not_parse_is_refused_by_name() {
        let error = Rule::compile(&json!({ "rule": "self. ==" })).unwrap_err();
        assert!(error.contains("self. =="), "{error}");
    }
}
