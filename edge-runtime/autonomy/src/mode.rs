//! The mode machine.

use std::fmt;

/// What a node may do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The control plane decides; its link, or a peer's, stands.
    Connected,
    /// The link is down, and whether the site is cut off is not known yet.
    Suspect,
    /// No link at the site: it decides for itself.
    Autonomous,
    /// The link is back, and the control plane has not taken what the site decided: nothing new is
    /// decided here.
    Reconciling,
}

impl Mode {
    /// The word used in records, status and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Suspect => "suspect",
            Self::Autonomous => "autonomous",
            Self::Reconciling => "reconciling",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
