//! How a cluster is reached, and what keeps it from being reached, in words that a person can act on.

use std::time::Duration;

use http::Request;
use http::header::{ACCEPT, DATE};
use hyperion_api::cluster::HyperionCluster;
use hyperion_api::{NAMESPACE, conditions};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Key of the Secret.
pub const KEY: &str = "kubeconfig";
/// Time for one answer.
pub const ANSWER: Duration = Duration::from_secs(4);
/// Time for a credential plugin: those of the clouds ask a server of theirs.
const PLUGIN: Duration = Duration::from_secs(20);
/// Clocks that are further apart are told of.
const SKEW: Duration = Duration::from_secs(60);
/// Kubeconfigs are a few kilobytes.
const MOST: usize = 256 * 1024;
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
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
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

/// A client, and the version of the Secret that it was made of; empty for the cluster that holds the
/// object.
pub struct Link {
    /// The client.
    pub client: kube::Client,
    /// `resourceVersion` of the Secret.
    pub secret: String,
}

/// Makes a client for a cluster; asks nothing of it.
///
/// # Errors
/// The Secret or what is in it.
pub async fn link(home: &kube::Client, cluster: &HyperionCluster) -> Result<Link, Trouble> {
    let Some(name) = cluster.spec.kubeconfig_secret.as_deref() else {
        return Ok(Link {
            client: home.clone(),
            secret: String::new(),
        });
    };
    let secrets: Api<Secret> = Api::namespaced(home.clone(), NAMESPACE);
    let read = tokio::time::timeout(ANSWER, secrets.get_opt(name)).await;
    let missing = |what: &str| {
        Trouble::new(
            conditions::REASON_SECRET_MISSING,
            format!("Secret {NAMESPACE}/{name} {what}"),
        )
    };
    let secret = match read {
        Ok(Ok(Some(secret))) => secret,
        Ok(Ok(None)) => return Err(missing("does not exist")),
        Ok(Err(e)) => return Err(missing(&format!("can't be read: {}", plain(&e)))),
        Err(_) => return Err(missing("can't be read: no answer")),
    };
    let bytes = secret.data.as_ref().and_then(|d| d.get(KEY));
    let Some(bytes) = bytes else {
        return Err(missing(&format!("has no key {KEY}")));
    };
    let invalid = |what: String| {
        Trouble::new(
            conditions::REASON_KUBECONFIG_INVALID,
            format!("Secret {NAMESPACE}/{name}, key {KEY}: {what}"),
        )
    };
    if bytes.0.len() > MOST {
        return Err(invalid(format!("more than {} KiB", MOST / 1024)));
    }
    let text = std::str::from_utf8(&bytes.0).map_err(|_| invalid("is no text".to_owned()))?;
    // Errors of the parser repeat lines of the file, which has credentials in it.
    let read = Kubeconfig::from_yaml(text).map_err(|_| invalid("is no kubeconfig".to_owned()))?;
    let mut config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .map_err(|e| invalid(e.to_string()))?;
    config.connect_timeout = Some(ANSWER);
    // Watches end by themselves before; nothing else takes this long.
    config.read_timeout = Some(Duration::from_secs(330));
    // A credential plugin is run here, and not all answer at once.
    let made = tokio::task::spawn_blocking(move || kube::Client::try_from(config));
    let client = match tokio::time::timeout(PLUGIN, made).await {
        Ok(Ok(Ok(client))) => client,
        Ok(Ok(Err(kube::Error::Auth(e)))) => return Err(credentials(&e)),
        Ok(Ok(Err(e))) => return Err(invalid(plain(&e))),
        Ok(Err(_)) => return Err(invalid("can't be used".to_owned())),
        Err(_) => {
            let message = format!("the credential plugin did not answer within {PLUGIN:?}");
            return Err(Trouble::new(conditions::REASON_CREDENTIALS_FAILED, message));
        }
    };
    Ok(Link {
        client,
        secret: secret.metadata.resource_version.unwrap_or_default(),
    })
}

/// The version of the Secret now; none where that can't be told.
pub async fn secret_now(home: &kube::Client, cluster: &HyperionCluster) -> Option<String> {
    let Some(name) = cluster.spec.kubeconfig_secret.as_deref() else {
        return Some(String::new());
    };
    let secrets: Api<Secret> = Api::namespaced(home.clone(), NAMESPACE);
    let read = tokio::time::timeout(ANSWER, secrets.get_metadata_opt(name)).await;
    match read {
        Ok(Ok(Some(secret))) => secret.metadata.resource_version,
        // It was deleted, and with it our right to be there.
        Ok(Ok(None)) => Some("deleted".to_owned()),
        _ => None,
    }
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

fn credentials(error: &kube::client::AuthError) -> Trouble {
    // What a plugin printed may be secret.
    let message = match error {
        kube::client::AuthError::AuthExecRun { cmd, out } => {
            format!("credential plugin {cmd} failed: {}", out.status)
        }
        kube::client::AuthError::AuthExecParse(_) => {
            "the credential plugin's answer can't be read".to_owned()
        }
        other => other.to_string(),
    };
    Trouble::new(conditions::REASON_CREDENTIALS_FAILED, message)
}

/// A failure in words.
#[must_use]
pub fn trouble(error: &kube::Error) -> Trouble {
    match error {
        kube::Error::Api(status) if status.code == 401 => unauthorized(),
        kube::Error::Api(status) if status.code == 403 => {
            Trouble::new(conditions::REASON_FORBIDDEN, status.message.clone())
        }
        kube::Error::Auth(e) => credentials(e),
        other => Trouble::new(conditions::REASON_UNREACHABLE, plain(other)),
    }
}

/// An error with its causes, on one line, each said once.
#[must_use]
pub fn plain(error: &kube::Error) -> String {
    let mut text = match error {
        kube::Error::Api(status) => return status.message.clone(),
        other => other.to_string(),
    };
    let mut cause = std::error::Error::source(error);
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
}
