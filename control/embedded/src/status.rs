//! Errors as Kubernetes says them: a `Status` object with a code, a reason and causes.

use http::StatusCode;
use serde_json::{Value, json};

use crate::store::WriteError;

/// What an error is about, for `details` and for messages.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub group: String,
    /// Plural or kind, as Kubernetes words the message at hand.
    pub kind: String,
    pub name: String,
}

impl About {
    fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.kind.clone()
        } else {
            format!("{}.{}", self.kind, self.group)
        }
    }
}

/// One thing that is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// Such as `FieldValueInvalid`.
    pub reason: &'static str,
    pub field: String,
    /// Without the field's name.
    pub message: String,
}

impl Cause {
    pub fn invalid(field: &str, value: &str, message: impl AsRef<str>) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.to_owned(),
            message: format!("Invalid value: {value}: {}", message.as_ref()),
        }
    }

    pub fn required(field: &str, message: &str) -> Self {
        let message = if message.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {message}")
        };
        Self {
            reason: "FieldValueRequired",
            field: field.to_owned(),
            message,
        }
    }

    /// A value that is none of those that are possible.
    pub fn unsupported(field: &str, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        Self {
            reason: "FieldValueNotSupported",
            field: field.to_owned(),
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                supported.join(", ")
            ),
        }
    }

    pub fn forbidden(field: &str, message: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            field: field.to_owned(),
            message: format!("Forbidden: {message}"),
        }
    }

    fn line(&self) -> String {
        format!("{}: {}", self.field, self.message)
    }
}

/// A refusal: everything that a `Status` object carries. Boxed by its users through [`Result`].
#[derive(Debug, Clone)]
pub(crate) struct Status {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Value,
}

pub(crate) type Result<T> = std::result::Result<T, Box<Status>>;

impl Status {
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
        })
    }

    pub fn bad_request(message: impl Into<String>) -> Box<Self> {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn not_found(about: &About) -> Box<Self> {
        let message = format!("{} {:?} not found", about.qualified(), about.name);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(about)
    }

    /// No such path.
    pub fn no_resource() -> Box<Self> {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub fn exists(about: &About) -> Box<Self> {
        let message = format!("{} {:?} already exists", about.qualified(), about.name);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(about)
    }

    pub fn conflict(about: &About, why: &str) -> Box<Self> {
        let message = format!(
            "Operation cannot be fulfilled on {} {:?}: {why}",
            about.qualified(),
            about.name
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(about)
    }

    pub fn modified(about: &About) -> Box<Self> {
        Self::conflict(
            about,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn forbidden(about: &About, why: &str) -> Box<Self> {
        let message = format!("{} {:?} is forbidden: {why}", about.qualified(), about.name);
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(about)
    }

    /// `about.kind` is the kind here, not the plural.
    pub fn invalid(about: &About, causes: &[Cause]) -> Box<Self> {
        let lines: Vec<String> = causes.iter().map(Cause::line).collect();
        let list = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {:?} is invalid: {list}", about.qualified(), about.name);
        let mut status =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).about(about);
        status.causes(causes);
        status
    }

    /// Parameters of a request that mean nothing; `options` is their kind, such as `ListOptions`.
    pub fn invalid_options(options: &str, cause: Cause) -> Box<Self> {
        let about = About {
            group: "meta.k8s.io".to_owned(),
            kind: options.to_owned(),
            name: String::new(),
        };
        Self::invalid(&about, &[cause])
    }

    /// A patch whose outcome is no object of the kind.
    pub fn invalid_patch(value: &Value, why: &str) -> Box<Self> {
        let shown = Value::from(value.to_string()).to_string();
        Self::invalid(&About::default(), &[Cause::invalid("patch", &shown, why)])
    }

    /// The namespace of what is to be created goes away.
    pub fn terminating(about: &About, namespace: &str) -> Box<Self> {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut status = Self::forbidden(about, &why);
        status.causes(&[Cause {
            reason: "NamespaceTerminating",
            field: "metadata.namespace".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
        }]);
        status
    }

    /// Fields owned by other managers.
    pub fn apply_conflict(message: String, causes: &[Cause]) -> Box<Self> {
        let mut status = Self::new(StatusCode::CONFLICT, "Conflict", message);
        status.details = json!({});
        status.causes(causes);
        status
    }

    /// A watch or list from a revision that is no longer remembered.
    pub fn expired(asked: u64, oldest: u64) -> Box<Self> {
        Self::new(
            StatusCode::GONE,
            "Expired",
            format!("too old resource version: {asked} ({oldest})"),
        )
    }

    pub fn method_not_allowed() -> Box<Self> {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// What a failed write means to the client.
    pub fn from_write(error: WriteError, about: &About) -> Box<Self> {
        match error {
            WriteError::Exists => Self::exists(about),
            WriteError::Conflict => Self::modified(about),
            WriteError::Absent => Self::not_found(about),
            WriteError::Full(cause) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "InternalError", cause)
            }
            WriteError::Disk(cause) => Self::internal(cause),
            WriteError::Stopped => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                "the server is shutting down",
            ),
        }
    }

    pub fn internal(cause: impl std::fmt::Display) -> Box<Self> {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {cause}"),
        )
    }

    fn about(mut self: Box<Self>, about: &About) -> Box<Self> {
        let mut details = json!({});
        let words = [
            ("name", &about.name),
            ("group", &about.group),
            ("kind", &about.kind),
        ];
        for (field, word) in words {
            if !word.is_empty() {
                details[field] = json!(word);
            }
        }
        self.details = details;
        self
    }

    fn causes(&mut self, causes: &[Cause]) {
        self.details["causes"] = causes
            .iter()
            .map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field }))
            .collect();
    }

    pub fn code(&self) -> StatusCode {
        self.code
    }

    /// Whether this is a lost race that trying again may win.
    pub fn is_lost_race(&self) -> bool {
        self.code == StatusCode::CONFLICT && self.message.contains("has been modified")
    }

    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
