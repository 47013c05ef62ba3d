//! A number of nodes, or a percentage of them.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A number, or a percentage such as `10%`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// Nodes.
    Nodes(i64),
    /// Percentage or number, as text.
    Text(String),
}

/// What an [`Amount`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Nodes.
    Nodes(usize),
    /// Of all nodes.
    Percent(usize),
}

impl Amount {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn share(&self) -> Result<Share, String> {
        let bad = || format!("{self:?} is neither a number of nodes nor a percentage such as 10%");
        match self {
            Self::Nodes(nodes) => usize::try_from(*nodes)
                .map(Share::Nodes)
                .map_err(|_| format!("{nodes} is negative")),
            Self::Text(text) => {
                let digits = text.strip_suffix('%').unwrap_or(text);
                if digits.is_empty()
                    || digits.len() > 9
                    || !digits.bytes().all(|b| b.is_ascii_digit())
                {
                    return Err(bad());
                }
                let number: usize = digits.parse().map_err(|_| bad())?;
                if !text.ends_with('%') {
                    return Ok(Share::Nodes(number));
                }
                if number > 100 {
                    return Err(format!("{number}% is more than 100%"));
                }
                Ok(Share::Percent(number))
            }
        }
    }
}

impl Share {
    /// Of `all` nodes, rounded up.
    pub(super) fn up(self, all: usize) -> usize {
        match self {
            Self::Nodes(nodes) => nodes.min(all),
            Self::Percent(percent) => all.saturating_mul(percent).div_ceil(100),
        }
    }

    /// Of `all` nodes, rounded down.
    pub(super) fn down(self, all: usize) -> usize {
        match self {
            Self::Nodes(nodes) => nodes,
            Self::Percent(percent) => all.saturating_mul(percent) / 100,
        }
    }
}

impl From<i64> for Amount {
    fn from(nodes: i64) -> Self {
        Self::Nodes(nodes)
    }
}

impl From<&str> for Amount {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(nodes) => nodes.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl JsonSchema for Amount {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
        })
    }
}
