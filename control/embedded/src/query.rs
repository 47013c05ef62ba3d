//! Query parameters.

use crate::path::decode;
use crate::selector::Selector;
use crate::status::{Result, Status};

/// What to do about fields that the schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// Parsed parameters.
#[derive(Debug, Default, Clone)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Result<Self> {
        let plain = |t: &str| {
            decode(&t.replace('+', " "))
                .ok_or_else(|| Status::bad_request(format!("query parameter {t:?} is malformed")))
        };
        text.split('&')
            .filter(|p| !p.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((plain(key)?, plain(value)?))
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(k, _)| k == key)?;
        Some(&found.1).filter(|v| !v.is_empty()).map(String::as_str)
    }

    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1"))
    }

    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|text| {
                text.parse().map_err(|_| {
                    Status::bad_request(format!("{key}: invalid value {text:?}: not a number"))
                })
            })
            .transpose()
    }

    /// Whether nothing is to be stored.
    pub fn dry_run(&self) -> Result<bool> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Status::bad_request(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }

    pub fn field_validation(&self) -> Result<FieldValidation> {
        match self.get("fieldValidation") {
            Some("Strict") => Ok(FieldValidation::Strict),
            Some("Warn") | None => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }

    pub fn selector(&self) -> Result<Selector> {
        let (labels, fields) = (self.get("labelSelector"), self.get("fieldSelector"));
        Selector::parse(labels.unwrap_or_default(), fields.unwrap_or_default())
            .map_err(Status::bad_request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db&watch=1&empty=&x=1+2").unwrap();
        assert_eq!(query.get("labelSelector"), Some("a=b"));
        assert!(query.flag("watch"));
        assert_eq!(query.get("empty"), None);
        assert_eq!(query.get("x"), Some("1 2"));
        assert!(Query::parse("a=%zz").is_err());
    }
}
