//! Whether a cluster answers, and what keeps it from being used, in words that a person can act on.

use std::error::Error;
use std::time::Duration;

use http::Request;
use http::header::{ACCEPT, DATE};
use hyperion_api::conditions;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use kube::client::{AuthError, Body};

/// Time for one answer.
pub const ANSWER: Duration = Duration::from_secs(4);
/// Clocks that are further apart are told of.
const SKEW: Duration = Duration::from_secs(60);
/// What is done in a cluster: without the first four nothing is known of it, and without the others
/// nothing can be placed there.
const RIGHTS: &[(&str, &str)] = &[
    ("list", "nodes"),
    ("watch", "nodes"),
    ("list", "pods"),
    ("watch", "pods"),
    ("create", "pods"),
    ("delete", "pods"),
];
/// How many of them.
const TO_KNOW: usize = 4;

/// Why a cluster can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Reason of the Ready condition.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Trouble {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// A cluster that answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// How far its clock is from ours, where that is worth telling.
    pub skew: Option<String>,
}

/// Asks for one node: it shows that the API server answers, and that it knows us.
///
/// # Errors
/// It does not.
pub async fn answers(client: &kube::Client) -> Result<Answer, Trouble> {
    let request = Request::get("/api/v1/nodes?limit=1")
        .header(
            ACCEPT,
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json",
        )
        .body(Body::empty());
    let Ok(request) = request else {
        return Ok(Answer::default());
    };
    let asked = tokio::time::timeout(ANSWER, client.send(request)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => return Err(trouble(&e)),
        Err(_) => {
            let message = format!("no answer within {ANSWER:?}");
            return Err(Trouble::new(conditions::REASON_UNREACHABLE, message));
        }
    };
    match answer.status().as_u16() {
        200..=299 => {}
        401 => return Err(unauthorized()),
        403 => return Err(forbidden("list", "nodes")),
        code => {
            let message = format!("its API server answers with status {code}");
            return Err(Trouble::new(conditions::REASON_UNREACHABLE, message));
        }
    }
    let date = answer.headers().get(DATE).and_then(|d| d.to_str().ok());
    Ok(Answer {
        skew: date.and_then(|date| skew(date, Timestamp::now())),
    })
}

/// How far a clock is off that stamps answers with `date`.
fn skew(date: &str, now: Timestamp) -> Option<String> {
    let theirs = rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    let apart = theirs.as_second() - now.as_second();
    let far = apart.unsigned_abs() > SKEW.as_secs();
    let word = if apart > 0 { "ahead of" } else { "behind" };
    let amount = Duration::from_secs(apart.unsigned_abs());
    far.then(|| {
        let amount = humantime::format_duration(amount);
        format!("its API server's clock is {amount} {word} ours")
    })
}

/// What may not be done there: what is needed to know it, and what to place something.
///
/// # Errors
/// It can't be asked.
pub async fn rights(client: &kube::Client) -> Result<Rights, Trouble> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut rights = Rights::default();
    for (n, (verb, resource)) in RIGHTS.iter().enumerate() {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    resource: Some((*resource).to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let params = PostParams::default();
        let asked = tokio::time::timeout(ANSWER, api.create(&params, &review)).await;
        let allowed = match asked {
            Ok(Ok(answer)) => answer.status.is_none_or(|s| s.allowed),
            // Not every API server reviews: what is refused will show.
            Ok(Err(kube::Error::Api(e))) if matches!(e.code, 403..=405) => true,
            Ok(Err(e)) => return Err(trouble(&e)),
            Err(_) => {
                let message = format!("no answer within {ANSWER:?}");
                return Err(Trouble::new(conditions::REASON_UNREACHABLE, message));
            }
        };
        if !allowed {
            let missing = forbidden(verb, resource);
            if n < TO_KNOW {
                rights.to_know.get_or_insert(missing);
            } else {
                rights.to_place.get_or_insert(missing);
            }
        }
    }
    Ok(rights)
}

/// Rights that are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// To know what is there.
    pub to_know: Option<Trouble>,
    /// To place something.
    pub to_place: Option<Trouble>,
}

fn unauthorized() -> Trouble {
    let message = "its API server does not accept our credentials";
    Trouble::new(conditions::REASON_UNAUTHORIZED, message)
}

fn forbidden(verb: &str, resource: &str) -> Trouble {
    let message = format!("we may not {verb} {resource} in all namespaces");
    Trouble::new(conditions::REASON_FORBIDDEN, message)
}

/// What a credential plugin did wrong. What it printed may be secret, and so may the variables and
/// arguments that it was started with: kube-rs has them in its words.
pub(super) fn credentials(error: &AuthError, program: Option<&str>) -> Trouble {
    let plugin = match program {
        Some(program) => format!("credential plugin {program}"),
        None => "the credential plugin".to_owned(),
    };
    let message = match error {
        AuthError::AuthExecRun { out, .. } => format!("{plugin} failed: {}", out.status),
        AuthError::AuthExecStart(e) => format!("{plugin} can't be run: {e}"),
        AuthError::AuthExecParse(_) | AuthError::ExecPluginFailed => {
            format!("{plugin} gave an answer that can't be read")
        }
        other => other.to_string(),
    };
    Trouble::new(conditions::REASON_CREDENTIALS_FAILED, message)
}

/// Where it was credentials that failed: when a client is made, or later, when they are renewed.
fn of_credentials<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a AuthError> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        let found = e.downcast_ref::<AuthError>();
        if found.is_some() {
            return found;
        }
        cause = e.source();
    }
    None
}

/// A failure in words.
#[must_use]
pub fn trouble(error: &kube::Error) -> Trouble {
    match error {
        kube::Error::Api(status) if status.code == 401 => unauthorized(),
        kube::Error::Api(status) if status.code == 403 => {
            Trouble::new(conditions::REASON_FORBIDDEN, status.message.clone())
        }
        other => match of_credentials(other) {
            Some(e) => credentials(e, None),
            None => Trouble::new(conditions::REASON_UNREACHABLE, plain(other)),
        },
    }
}

/// An error with its causes, on one line, each said once; nothing of credentials.
#[must_use]
pub fn plain(error: &(dyn Error + 'static)) -> String {
    if let Some(e) = of_credentials(error) {
        return credentials(e, None).message;
    }
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_of() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        assert_eq!(skew("Sun, 01 Mar 2026 12:00:30 GMT", now), None);
        assert_eq!(
            skew("Sun, 01 Mar 2026 13:00:00 GMT", now).as_deref(),
            Some("its API server's clock is 1h ahead of ours")
        );
        assert_eq!(
            skew("Sun, 01 Mar 2026 11:50:00 GMT", now).as_deref(),
            Some("its API server's clock is 10m behind ours")
        );
        assert_eq!(skew("yesterday", now), None);
    }

    #[test]
    fn what_a_plugin_printed_and_was_started_with_is_not_said() {
        let error = || {
            let mut plugin = std::process::Command::new("/bin/sh");
            plugin.args(["-c", "echo SECRET; echo SECRET >&2; exit 3"]);
            AuthError::AuthExecRun {
                cmd: "PASSWORD=\"SECRET\" \"/bin/sh\"".to_owned(),
                out: Box::new(plugin.output().unwrap()),
            }
        };
        let first = credentials(&error(), Some("/bin/sh"));
        assert_eq!(
            first.message,
            "credential plugin /bin/sh failed: exit status: 3"
        );
        // When they are renewed, and in the words of a watch.
        let renewed = || kube::Error::Service(Box::new(error()));
        let later = trouble(&renewed());
        assert_eq!(later.reason, conditions::REASON_CREDENTIALS_FAILED);
        let watch = kube::runtime::watcher::Error::WatchStartFailed(renewed());
        for said in [later.message, plain(&renewed()), plain(&watch)] {
            assert_eq!(said, "the credential plugin failed: exit status: 3");
        }
    }
}
