//! What can go wrong between the agent and containerd.

use std::path::Path;

use tonic::{Code, Status};

/// Longest part of containerd's own words that is kept, bytes.
const MAX_MESSAGE: usize = 1024;

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// containerd does not answer; the call may or may not have had an effect.
    #[error("containerd at {socket}: {message}")]
    Unavailable {
        /// Its socket.
        socket: String,
        /// Cause.
        message: String,
    },
    /// containerd refused or failed.
    #[error("{what}: {message}")]
    Failed {
        /// What was tried, naming the image or container.
        what: String,
        /// gRPC code.
        code: Code,
        /// containerd's words.
        message: String,
    },
}

impl RuntimeError {
    /// Sorts a gRPC status.
    pub(crate) fn from_status(socket: &Path, what: &str, status: &Status) -> Self {
        // While containerd reads its state after a start, CRI answers with an ordinary error.
        let starting = status.message().contains("not initialized yet");
        if starting || status.code() == Code::Unavailable {
            return Self::Unavailable {
                socket: socket.display().to_string(),
                message: with_causes(status),
            };
        }
        Self::Failed {
            what: what.to_owned(),
            code: status.code(),
            message: shorten(status.message()),
        }
    }

    /// Whether the thing named in the call does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                code: Code::NotFound,
                ..
            }
        )
    }

    /// Whether containerd itself does not answer.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// The words of a status and of what caused it: tonic's own say "tcp connect error" even for a
/// socket file that does not exist.
fn with_causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    shorten(&text)
}

/// Cuts to [`MAX_MESSAGE`] at a character boundary; one line without control characters, which the
/// control plane refuses and a terminal obeys.
pub(crate) fn shorten(text: &str) -> String {
    let line = text.replace(char::is_control, " ");
    let line = line.trim();
    if line.len() <= MAX_MESSAGE {
        return line.to_owned();
    }
    let mut end = MAX_MESSAGE;
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containerd_that_is_still_starting_counts_as_unavailable() {
        let status = Status::unknown("server is not initialized yet");
        let error = RuntimeError::from_status(Path::new("/run/c.sock"), "list", &status);
        assert!(error.is_unavailable());
        assert!(error.to_string().contains("/run/c.sock"), "{error}");
    }

    #[test]
    fn words_hold_no_control_characters() {
        assert_eq!(
            shorten("\u{0}ok\u{0}\u{1b}[31m\tred\u{85}\r\n"),
            "ok  [31m red"
        );
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let short = shorten(&"é".repeat(2000));
        assert!(short.len() <= MAX_MESSAGE + "…".len());
        assert!(short.ends_with('…'));
    }
}
