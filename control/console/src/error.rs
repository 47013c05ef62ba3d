//! One clear sentence for everything that can go wrong, with a hint where there is one.

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// One sentence, without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit status: 1 for failures, 2 for wrong use.
    pub code: u8,
}

impl CliError {
    /// A failure.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            code: 1,
        }
    }

    /// Wrong use of the program.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            ..Self::new(message)
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint where there is none yet.
    #[must_use]
    pub fn or_hint(mut self, hint: &str) -> Self {
        self.hint.get_or_insert_with(|| hint.to_owned());
        self
    }

    /// An error of the Kubernetes API, met while doing `what` ("list nodes").
    #[must_use]
    pub fn api(what: &str, error: &kube::Error) -> Self {
        let explained = Explained::of(error);
        let message = format!("cannot {what}: {}", explained.cause);
        Self {
            message,
            hint: explained.hint.map(str::to_owned),
            code: 1,
        }
    }
}

/// An API error in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// What happened.
    pub cause: String,
    /// What to do.
    pub hint: Option<&'static str>,
    /// The API server did not answer at all.
    pub unreachable: bool,
}

const NOT_REACHED: &str = "is the control plane running, and does the kubeconfig name its address?";
const NO_CRDS: &str = "start hyperion-control against this cluster once: it installs the CRDs";

impl Explained {
    /// Puts an error into words.
    #[must_use]
    pub fn of(error: &kube::Error) -> Self {
        let answered = |cause: String, hint| Self {
            cause,
            hint,
            unreachable: false,
        };
        match error {
            kube::Error::Api(status) => {
                let said = crate::text::clean(&status.message).into_owned();
                match status.code {
                    401 => answered(
                        "the API server does not accept these credentials (401)".to_owned(),
                        Some(
                            "check the token or certificate in your kubeconfig; it may have expired",
                        ),
                    ),
                    403 => answered(
                        format!("not allowed (403): {said}"),
                        Some("ask for a role that covers hyperion.io resources"),
                    ),
                    404 if said.contains("could not find the requested resource")
                        || (said.contains("page not found") && status.details.is_none())
                        || said.is_empty() =>
                    {
                        answered(
                            "this cluster does not know Hyperion's resources (404)".to_owned(),
                            Some(NO_CRDS),
                        )
                    }
                    503 => answered(
                        format!("the service is not available (503): {said}"),
                        Some("is hyperion-control running?"),
                    ),
                    _ if said.is_empty() => {
                        answered(format!("the API server answered {}", status.code), None)
                    }
                    _ => answered(said, None),
                }
            }
            kube::Error::SerdeError(e) => answered(
                format!("the answer could not be understood: {e}"),
                Some("are hyperion and hyperion-control of the same version?"),
            ),
            other => Self {
                cause: format!("the API server cannot be reached: {}", root_cause(other)),
                hint: Some(NOT_REACHED),
                unreachable: true,
            },
        }
    }
}

/// The innermost source: the rest of a connect error's chain only repeats it.
#[must_use]
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    crate::text::clean(&inner.to_string()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str) -> CliError {
        let status = kube::core::Status::failure(message, "").with_code(code);
        CliError::api("list nodes", &kube::Error::Api(status.boxed()))
    }

    #[test]
    fn api_errors_are_one_sentence_with_a_hint() {
        assert!(api(401, "Unauthorized").message.contains("credentials"));
        assert!(api(403, "no").hint.is_some());
        let crds = api(404, "the server could not find the requested resource");
        assert!(crds.hint.is_some_and(|h| h.contains("CRDs")));
        let absent = api(404, "hyperionnodes.hyperion.io \"x\" not found");
        assert!(absent.message.ends_with("\"x\" not found") && absent.hint.is_none());
    }

    #[test]
    fn messages_from_the_server_are_cleaned() {
        assert_eq!(api(409, "a\x1b[2Jb").message, "cannot list nodes: a[2Jb");
    }
}
