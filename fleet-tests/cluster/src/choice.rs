//! Which Kubernetes API tests run on.

use std::path::PathBuf;

use crate::build::Program;

/// Variable that chooses the API: `real`, or `embedded`, which is also meant where it is not set.
pub const API: &str = "HYPERION_TEST_API";
/// Variable that names the kubeconfig of a cluster to run on instead of an API server of our own.
pub const KUBECONFIG: &str = "HYPERION_TEST_KUBECONFIG";

/// A Kubernetes API for tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The one that `hyperion-control --embedded` serves.
    Embedded,
    /// A real API server of each test's own.
    Real,
    /// The cluster of this kubeconfig, by all tests in turn.
    Given(PathBuf),
    /// The variable has another value.
    Unknown(String),
}

/// What the environment chooses.
#[must_use]
pub fn chosen() -> Choice {
    let text = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    choose(
        text(API).map(|value| value.to_string_lossy().into_owned()),
        text(KUBECONFIG).map(PathBuf::from),
    )
}

fn choose(api: Option<String>, kubeconfig: Option<PathBuf>) -> Choice {
    match (api.as_deref(), kubeconfig) {
        (None | Some("real"), Some(path)) => Choice::Given(path),
        (Some("real"), None) => Choice::Real,
        (None | Some("embedded"), _) => Choice::Embedded,
        (Some(other), _) => Choice::Unknown(other.to_owned()),
    }
}

impl Choice {
    /// Does something else than `hyperion-control` serve the API?
    #[must_use]
    pub fn is_real(&self) -> bool {
        matches!(self, Self::Real | Self::Given(_))
    }

    /// Why tests can't run on it, or none if they can.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        match self {
            Self::Embedded => None,
            Self::Real => Program::ApiServer.missing(),
            Self::Given(path) if path.is_file() => None,
            Self::Given(path) => Some(format!("{KUBECONFIG}: no file {}", path.display())),
            Self::Unknown(other) => Some(format!("{API} is {other:?}, not real or embedded")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_means_a_real_api_unless_the_embedded_one_is_asked_for() {
        let file = || Some(PathBuf::from("/k"));
        let api = |text: &str| Some(text.to_owned());
        assert_eq!(choose(None, None), Choice::Embedded);
        assert_eq!(choose(api("embedded"), file()), Choice::Embedded);
        assert_eq!(choose(api("real"), None), Choice::Real);
        assert_eq!(choose(None, file()), Choice::Given("/k".into()));
        assert_eq!(choose(api("real"), file()), Choice::Given("/k".into()));
        assert_eq!(choose(api("reel"), file()), Choice::Unknown("reel".into()));
    }

    #[test]
    fn what_is_wrong_with_a_choice_is_named() {
        let told = |choice: Choice| choice.missing().unwrap();
        assert!(told(Choice::Given("/no/such".into())).contains("/no/such"));
        assert!(told(Choice::Unknown("reel".into())).contains("reel"));
        assert_eq!(Choice::Embedded.missing(), None);
    }
}
