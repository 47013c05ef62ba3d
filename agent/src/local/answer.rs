//! Answers, and what can be wrong with a request.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub code: StatusCode,
    /// Path of the field that is wrong; empty where it is none.
    pub field: String,
    pub problem: String,
}

impl Refused {
    pub fn new(code: StatusCode, problem: impl Into<String>) -> Self {
        Self {
            code,
            field: String::new(),
            problem: problem.into(),
        }
    }

    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, problem)
        }
    }

    pub fn sentence(&self) -> String {
        if self.field.is_empty() {
            self.problem.clone()
        } else {
            format!("{}: {}", self.field, self.problem)
        }
    }
}

pub(super) fn json_answer(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn refusal(refused: &Refused, allow: Option<&'static str>) -> Response<Full<Bytes>> {
    let body = json!({ "error": refused.sentence(), "field": refused.field });
    let mut response = json_answer(refused.code, body.to_string());
    if let Some(allow) = allow {
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(allow));
    }
    response
}
