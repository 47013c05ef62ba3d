//! A decision with its outcome, one line of JSON each, to learn from.
//!
//! The parser names the line and the field of what it refuses: these files are kept for months,
//! copied between machines and put together by hand.

use std::fmt::Write as _;

use hyperion_placement::features::{
    FIT, FIT_LEN, Features, NODE, NODE_LEN, PAIR, PAIR_LEN, REQUEST, REQUEST_LEN, SCHEMA,
    table_hash,
};
use hyperion_placement::model::Goal;
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Candidates that are kept of a decision besides the chosen one, at most.
pub const MOST_OTHERS: usize = 64;

/// What is known of one candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Encoded {
    /// By [`NODE`].
    pub node: [f32; NODE_LEN],
    /// By [`PAIR`].
    pub pair: [f32; PAIR_LEN],
    /// By [`FIT`].
    pub fit: [f32; FIT_LEN],
}

impl From<&Features> for Encoded {
    fn from(features: &Features) -> Self {
        Self {
            node: features.node,
            pair: features.pair,
            fit: features.fit,
        }
    }
}

impl Serialize for Encoded {
    /// Slots behind the tables are left out: they are 0.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Encoded", 3)?;
        out.serialize_field("node", &self.node[..NODE.len()])?;
        out.serialize_field("pair", &self.pair[..PAIR.len()])?;
        out.serialize_field("fit", &self.fit[..FIT.len()])?;
        out.end()
    }
}

/// What came of a placement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// US dollars per hour, mean over its time there.
    pub cost_per_hour: f64,
    /// p99 seen by clients, milliseconds; none for jobs and where not measured.
    pub p99_ms: Option<f64>,
    /// For a job, that it ran to completion there; for a service, that it was not lost.
    pub completed: bool,
    /// It left for another place in good order: nothing was lost with this one. Only written where it
    /// is so: older programs know no such field, and their lines have none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
    /// Hard constraints that it broke.
    pub violations: u32,
    /// Hours it was there.
    pub hours: f64,
}

/// A decision and its outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Experience {
    /// Goal of the workload.
    pub goal: Goal,
    /// The request, by [`REQUEST`].
    pub request: [f32; REQUEST_LEN],
    /// The chosen candidate and at most [`MOST_OTHERS`] others.
    pub candidates: Vec<Encoded>,
    /// Index of the chosen one.
    pub chosen: usize,
    /// Logarithm of the probability with which the policy chooses it among `candidates`:
    /// [`log_probability`].
    pub log_probability: f64,
    /// What came of it.
    pub outcome: Outcome,
}

impl Serialize for Experience {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Experience", 8)?;
        out.serialize_field("schema", &SCHEMA)?;
        out.serialize_field("features", &table_hash())?;
        out.serialize_field("goal", &self.goal)?;
        out.serialize_field("request", &self.request[..REQUEST.len()])?;
        out.serialize_field("candidates", &self.candidates)?;
        out.serialize_field("chosen", &self.chosen)?;
        out.serialize_field("logProbability", &self.log_probability)?;
        out.serialize_field("outcome", &self.outcome)?;
        out.end()
    }
}

/// A line that is not an experience of this program's features.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, {field}: {problem}")]
pub struct ExperienceError {
    /// From 1.
    pub line: usize,
    /// For example `candidates[2].pair[7]`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Experience {
    /// Indices of the candidates to keep of `count`: the chosen one first, then at most
    /// [`MOST_OTHERS`] others, evenly over all.
    #[must_use]
    pub fn kept(count: usize, chosen: usize) -> Vec<usize> {
        let others: Vec<usize> = (0..count).filter(|i| *i != chosen).collect();
        let most = others.len().min(MOST_OTHERS);
        let spread = (0..most).map(|part| others[part * others.len() / most]);
        std::iter::once(chosen).chain(spread).collect()
    }

    /// One line of JSON, with its end.
    ///
    /// # Errors
    /// Numbers that are not finite, which JSON does not have, and a choice that is not among the
    /// candidates. The line is 1.
    pub fn to_line(&self) -> Result<String, ExperienceError> {
        let fault = |field: &str, problem: String| ExperienceError {
            line: 1,
            field: field.to_owned(),
            problem,
        };
        let mut line = serde_json::to_string(self).map_err(|e| fault("the line", e.to_string()))?;
        // JSON turns NaN into null: what can't be read back must not be written.
        if !Self::parse_line(1, &line)?.is(self) {
            let problem = "it does not come back as it was".to_owned();
            return Err(fault("the line", problem));
        }
        line.push('\n');
        Ok(line)
    }

    /// Whether this, which was read, is what was written: JSON's parser may be off by a unit in the
    /// last place of a number in double precision.
    fn is(&self, written: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 4.0 * f64::EPSILON * b.abs();
        let (found, outcome) = (&self.outcome, &written.outcome);
        let p99 = match (found.p99_ms, outcome.p99_ms) {
            (Some(found), Some(p99)) => near(found, p99),
            (found, p99) => found == p99,
        };
        let exact = Self {
            log_probability: written.log_probability,
            outcome: Outcome {
                cost_per_hour: outcome.cost_per_hour,
                p99_ms: outcome.p99_ms,
                hours: outcome.hours,
                ..*found
            },
            ..self.clone()
        };
        near(self.log_probability, written.log_probability)
            && near(found.cost_per_hour, outcome.cost_per_hour)
            && near(found.hours, outcome.hours)
            && p99
            && exact == *written
    }

    /// Reads lines; empty ones are skipped.
    ///
    /// # Errors
    /// The first line that is not an experience.
    pub fn parse(text: &str) -> Result<Vec<Self>, ExperienceError> {
        text.lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| Self::parse_line(i + 1, line))
            .collect()
    }

    /// Reads the line with this number.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_line(number: usize, line: &str) -> Result<Self, ExperienceError> {
        read(line).map_err(|fault| ExperienceError {
            line: number,
            field: if fault.path.is_empty() {
                "the line".to_owned()
            } else {
                fault.path
            },
            problem: fault.problem,
        })
    }
}

/// Logarithm of the probability with which a policy with these scores chooses `chosen`: that of
/// the softmax. None where there is no such candidate or a score is no number.
#[must_use]
pub fn log_probability(scores: &[f32], chosen: usize) -> Option<f64> {
    let own = f64::from(*scores.get(chosen)?);
    let most = scores.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = scores.iter().map(|s| f64::from(s - most).exp()).sum();
    let log = own - f64::from(most) - sum.ln();
    (log.is_finite() && scores.iter().all(|s| s.is_finite())).then_some(log)
}

#[derive(Debug)]
struct Fault {
    path: String,
    problem: String,
}

fn fault<T>(path: &str, problem: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        path: path.to_owned(),
        problem: problem.into(),
    })
}

/// An object and where it is.
struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    fn new(path: &str, value: &'a Value, known: &[&str]) -> Result<Self, Fault> {
        let Value::Object(fields) = value else {
            return fault(path, format!("{}, expected an object", kind(value)));
        };
        let object = Self {
            path: path.to_owned(),
            fields,
        };
        if let Some(name) = fields.keys().find(|n| !known.contains(&n.as_str())) {
            let name: String = name.chars().take(40).collect();
            return fault(&object.path_of(&name), "no field has this name");
        }
        Ok(object)
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    fn get(&self, name: &str) -> Result<&'a Value, Fault> {
        match self.fields.get(name) {
            Some(value) => Ok(value),
            None => fault(&self.path_of(name), "it is missing"),
        }
    }

    fn number(&self, name: &str) -> Result<f64, Fault> {
        finite(&self.path_of(name), self.get(name)?)
    }

    /// A number that is not negative.
    fn amount(&self, name: &str) -> Result<f64, Fault> {
        let number = self.number(name)?;
        if number < 0.0 {
            return fault(&self.path_of(name), format!("{number} is negative"));
        }
        Ok(number)
    }

    fn count(&self, name: &str) -> Result<u32, Fault> {
        let value = self.get(name)?;
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(count) => Ok(count),
            None => fault(
                &self.path_of(name),
                format!("{}, expected a whole number", shown(value)),
            ),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, Fault> {
        let value = self.get(name)?;
        match value.as_bool() {
            Some(flag) => Ok(flag),
            None => fault(
                &self.path_of(name),
                format!("{}, expected true or false", kind(value)),
            ),
        }
    }

    fn text(&self, name: &str) -> Result<&'a str, Fault> {
        let value = self.get(name)?;
        match value.as_str() {
            Some(text) => Ok(text),
            None => fault(
                &self.path_of(name),
                format!("{}, expected a text", kind(value)),
            ),
        }
    }

    fn list(&self, name: &str) -> Result<&'a [Value], Fault> {
        let value = self.get(name)?;
        match value.as_array() {
            Some(list) => Ok(list),
            None => fault(
                &self.path_of(name),
                format!("{}, expected a list", kind(value)),
            ),
        }
    }

    /// Numbers by a table, the rest 0.
    fn slots<const N: usize>(&self, name: &str, slots: usize) -> Result<[f32; N], Fault> {
        let path = self.path_of(name);
        let list = self.list(name)?;
        if list.len() != slots {
            return fault(&path, format!("{} numbers, expected {slots}", list.len()));
        }
        let mut values = [0.0; N];
        for (i, (slot, value)) in values.iter_mut().zip(list).enumerate() {
            let path = format!("{path}[{i}]");
            let number = finite(&path, value)? as f32;
            if !number.is_finite() {
                return fault(&path, "the number is too large");
            }
            *slot = number;
        }
        Ok(values)
    }
}

fn finite(path: &str, value: &Value) -> Result<f64, Fault> {
    match value.as_f64() {
        Some(number) if number.is_finite() => Ok(number),
        _ => fault(path, format!("{}, expected a number", shown(value))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Numbers as they are, everything else by kind.
fn shown(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Number(number) => {
            let _ = write!(text, "{number}");
        }
        other => text.push_str(kind(other)),
    }
    text
}

fn read(line: &str) -> Result<Experience, Fault> {
    let value: Value = match serde_json::from_str(line) {
        Ok(value) => value,
        Err(error) => return fault("", error.to_string()),
    };
    let known = [
        "schema",
        "features",
        "goal",
        "request",
        "candidates",
        "chosen",
        "logProbability",
        "outcome",
    ];
    let all = Object::new("", &value, &known)?;
    let schema = all.count("schema")?;
    if schema != SCHEMA {
        return fault("schema", format!("{schema}, this program has {SCHEMA}"));
    }
    if all.text("features")? != table_hash() {
        return fault("features", "not the hash of this program's feature table");
    }
    let goal = match all.text("goal")?.parse::<Goal>() {
        Ok(goal) => goal,
        Err(error) => return fault("goal", error.to_string()),
    };
    let candidates = read_candidates(all.list("candidates")?)?;
    let chosen = all.count("chosen")? as usize;
    if chosen >= candidates.len() {
        let count = candidates.len();
        return fault("chosen", format!("{chosen}, there are {count} candidates"));
    }
    let log_probability = all.number("logProbability")?;
    if log_probability > 0.0 {
        return fault("logProbability", format!("{log_probability} is over 0"));
    }
    Ok(Experience {
        goal,
        request: all.slots("request", REQUEST.len())?,
        candidates,
        chosen,
        log_probability,
        outcome: read_outcome(all.get("outcome")?)?,
    })
}

fn read_candidates(list: &[Value]) -> Result<Vec<Encoded>, Fault> {
    if list.is_empty() || list.len() > MOST_OTHERS + 1 {
        let count = list.len();
        let most = MOST_OTHERS + 1;
        return fault("candidates", format!("{count}, expected 1 to {most}"));
    }
    let read = |(i, value): (usize, &Value)| {
        let path = format!("candidates[{i}]");
        let object = Object::new(&path, value, &["node", "pair", "fit"])?;
        Ok(Encoded {
            node: object.slots("node", NODE.len())?,
            pair: object.slots("pair", PAIR.len())?,
            fit: object.slots("fit", FIT.len())?,
        })
    };
    list.iter().enumerate().map(read).collect()
}

fn read_outcome(value: &Value) -> Result<Outcome, Fault> {
    let known = [
        "costPerHour",
        "p99Ms",
        "completed",
        "moved",
        "violations",
        "hours",
    ];
    let outcome = Object::new("outcome", value, &known)?;
    let moved = match outcome.fields.get("moved") {
        Some(_) => outcome.flag("moved")?,
        None => false,
    };
    Ok(Outcome {
        cost_per_hour: outcome.amount("costPerHour")?,
        p99_ms: if outcome.get("p99Ms")?.is_null() {
            None
        } else {
            Some(outcome.amount("p99Ms")?)
        },
        completed: outcome.flag("completed")?,
        moved,
        violations: outcome.count("violations")?,
        hours: outcome.amount("hours")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experience(value: f32) -> Experience {
        let mut request = [0.0; REQUEST_LEN];
        let mut candidate = Encoded {
            node: [0.0; NODE_LEN],
            pair: [0.0; PAIR_LEN],
            fit: [0.0; FIT_LEN],
        };
        request[..REQUEST.len()].fill(value);
        candidate.node[..NODE.len()].fill(value);
        candidate.pair[..PAIR.len()].fill(-value);
        candidate.fit[..FIT.len()].fill(value / 3.0);
        Experience {
            goal: Goal::Latency,
            request,
            candidates: vec![candidate; 3],
            chosen: 2,
            log_probability: -1.25,
            outcome: Outcome {
                cost_per_hour: 0.31,
                p99_ms: Some(12.5),
                completed: true,
                moved: false,
                violations: 0,
                hours: 1.5,
            },
        }
    }

    /// The error for a line after one replacement in it.
    fn error(from: &str, to: &str) -> String {
        let line = experience(0.5).to_line().unwrap();
        assert!(line.contains(from), "{from} is not in {line}");
        let text = format!("{line}\n{}", line.replacen(from, to, 1));
        Experience::parse(&text).unwrap_err().to_string()
    }

    #[test]
    fn lines_come_back_as_they_were() {
        let mut all = vec![experience(0.1), experience(-7.25e-6)];
        all[1].outcome.p99_ms = None;
        let text: String = all.iter().map(|e| e.to_line().unwrap()).collect();
        assert_eq!(text.lines().count(), 2);
        assert_eq!(Experience::parse(&text).unwrap(), all);
        assert_eq!(Experience::parse("\n \n").unwrap(), Vec::new());
    }

    #[test]
    fn lines_of_before_moves_were_noted_are_read() {
        let mut moved = experience(0.5);
        moved.outcome.moved = true;
        let line = moved.to_line().unwrap();
        assert_eq!(Experience::parse(&line).unwrap(), [moved]);
        let old = line.replacen("\"moved\":true,", "", 1);
        assert_ne!(old, line);
        assert_eq!(Experience::parse(&old).unwrap(), [experience(0.5)]);
    }

    #[test]
    fn errors_name_line_and_field() {
        assert_eq!(
            error("\"completed\":true", "\"completed\":true,\"moved\":0"),
            "line 3, outcome.moved: a number, expected true or false"
        );
        assert_eq!(
            error("\"goal\":\"latency\"", "\"goal\":\"speed\""),
            "line 3, goal: unknown goal \"speed\"; expected one of cost, latency, default"
        );
        assert_eq!(
            error("\"pair\":[-0.5,", "\"pair\":[\"x\","),
            "line 3, candidates[0].pair[0]: a text, expected a number"
        );
        assert_eq!(
            error("\"pair\":[-0.5,", "\"pair\":[1e300,"),
            "line 3, candidates[0].pair[0]: the number is too large"
        );
        assert_eq!(
            error("\"request\":[0.5,", "\"request\":["),
            format!(
                "line 3, request: {} numbers, expected {}",
                REQUEST.len() - 1,
                REQUEST.len()
            )
        );
        assert_eq!(
            error("\"chosen\":2", "\"chosen\":3"),
            "line 3, chosen: 3, there are 3 candidates"
        );
        assert_eq!(
            error("\"hours\":1.5", "\"hours\":-1.5"),
            "line 3, outcome.hours: -1.5 is negative"
        );
        assert_eq!(
            error("\"violations\":0", "\"violations\":0.5"),
            "line 3, outcome.violations: 0.5, expected a whole number"
        );
        assert_eq!(
            error("\"hours\"", "\"days\""),
            "line 3, outcome.days: no field has this name"
        );
        assert_eq!(
            error("\"p99Ms\":12.5,", ""),
            "line 3, outcome.p99Ms: it is missing"
        );
        let schema = format!("\"schema\":{SCHEMA}");
        assert_eq!(
            error(&schema, "\"schema\":1"),
            format!("line 3, schema: 1, this program has {SCHEMA}")
        );
        assert!(error("\"features\":\"", "\"features\":\"0").starts_with("line 3, features: "));
        assert!(error("{\"schema\"", "\"schema\"").starts_with("line 3, the line: "));
    }

    #[test]
    fn a_number_that_the_parser_rounds_is_written_all_the_same() {
        let mut refused = 0;
        for i in 1..=2000 {
            let mut odd = experience(0.5);
            odd.log_probability = -(f64::from(i) / 7.0).sqrt();
            odd.outcome.hours = (f64::from(i) / 3.0).ln_1p();
            odd.outcome.p99_ms = Some(f64::from(i).sqrt());
            let line = odd.to_line();
            refused += usize::from(line.is_err());
        }
        assert_eq!(refused, 0);
        let mut other = experience(0.5);
        other.outcome.hours += 1e-6;
        assert!(!other.is(&experience(0.5)));
    }

    #[test]
    fn what_json_does_not_have_is_not_written() {
        let mut odd = experience(0.5);
        odd.candidates[1].fit[2] = f32::NAN;
        assert_eq!(odd.to_line().unwrap_err().field, "candidates[1].fit[2]");
        let mut none = experience(0.5);
        none.candidates.clear();
        assert_eq!(none.to_line().unwrap_err().field, "candidates");
    }

    #[test]
    fn the_chosen_one_and_a_spread_of_the_others_are_kept() {
        assert_eq!(Experience::kept(3, 1), vec![1, 0, 2]);
        assert_eq!(Experience::kept(1, 0), vec![0]);
        let kept = Experience::kept(1000, 7);
        assert_eq!(kept.len(), MOST_OTHERS + 1);
        assert_eq!(kept[0], 7);
        let mut sorted = kept.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), kept.len());
        assert!(sorted.iter().any(|i| *i > 950));
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let scores = [1.0, 2.0, 3.0];
        let sum: f64 = (0..3)
            .filter_map(|i| log_probability(&scores, i))
            .map(f64::exp)
            .sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((log_probability(&[5.0, 5.0], 0).unwrap() + 2.0_f64.ln()).abs() < 1e-12);
        assert_eq!(log_probability(&scores, 3), None);
        assert_eq!(log_probability(&[1.0, f32::NAN], 0), None);
        assert_eq!(log_probability(&[f32::INFINITY, 1.0], 0), None);
    }
}
