//! Query parameters.

use crate::path::decode;
use crate::selector::Selector;
use crate::status::{Cause, Result, Status};

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

    /// Whether nothing is to be stored. `options` is the kind of the parameters, such as
    /// `CreateOptions`, for the refusal.
    pub fn dry_run(&self, options: &str) -> Result<bool> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                let cause = Cause::unsupported("dryRun", &format!("[{other:?}]"), &["All"]);
                Err(Status::invalid_options(options, cause))
            }
        }
    }

    pub fn field_validation(&self, options: &str) -> Result<FieldValidation> {
        match self.get("fieldValidation") {
            Some("Strict") => Ok(FieldValidation::Strict),
            Some("Warn") | None => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                let cause =
                    Cause::unsupported("fieldValidation", &format!("{other:?}"), &supported);
                Err(Status::invalid_options(options, cause))
            }
        }
    }

    /// Checks the parameters of a list or watch that say how new its state must be.
    pub fn check_revision(&self) -> Result<()> {
        let field = "resourceVersionMatch";
        let refuse = |cause| Err(Status::invalid_options("ListOptions", cause));
        let initial = self.get("sendInitialEvents").is_some();
        match self.get(field) {
            None if initial => {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return refuse(Cause::forbidden(field, why));
            }
            None => {}
            Some(_) if self.get("resourceVersion").is_none() && !initial => {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return refuse(Cause::forbidden(field, why));
            }
            Some("NotOlderThan" | "Exact") => {}
            Some(other) => {
                let supported = ["Exact", "NotOlderThan", ""];
                return refuse(Cause::unsupported(field, &format!("{other:?}"), &supported));
            }
        }
        match self.get("resourceVersion") {
            Some(text) if text.parse::<u64>().is_err() => Err(Status::bad_request(format!(
                "resourceVersion: Invalid value: {text:?}: not a number"
            ))),
            _ => Ok(()),
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

    #[test]
    fn parameters_that_mean_nothing_are_refused() {
        let said = |text: &str| {
            let query = Query::parse(text).unwrap();
            let checked = query.check_revision();
            let checked = checked.and_then(|()| query.dry_run("CreateOptions").map(drop));
            let checked = checked.and_then(|()| query.field_validation("CreateOptions").map(drop));
            checked.map_or_else(|e| e.to_string(), |()| String::new())
        };
        for good in [
            "",
            "resourceVersion=0",
            "resourceVersion=5&resourceVersionMatch=NotOlderThan",
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            "dryRun=All&fieldValidation=Strict",
        ] {
            assert_eq!(said(good), "", "{good}");
        }
        for (bad, words) in [
            ("resourceVersion=x", "resourceVersion: Invalid value"),
            (
                "resourceVersionMatch=Exact",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden",
            ),
            (
                "resourceVersion=1&resourceVersionMatch=No",
                "Unsupported value: \"No\"",
            ),
            ("sendInitialEvents=true", "resourceVersionMatch: Forbidden"),
            (
                "dryRun=Some",
                "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Some\"]",
            ),
            (
                "fieldValidation=Often",
                "fieldValidation: Unsupported value: \"Often\"",
            ),
        ] {
            assert!(said(bad).contains(words), "{bad}: {}", said(bad));
        }
    }
}
