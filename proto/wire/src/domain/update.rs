//! Orders to update a node.

/// What a node is updated with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateOrder {
    /// Tells the order from earlier ones; good for a file's name.
    pub id: String,
    /// What to install.
    pub bundle: Bundle,
    /// Restart into it as soon as it is installed.
    pub activate: bool,
    /// Time to be Ready after the restart, seconds; none leaves it to the node.
    pub ready_seconds: Option<u32>,
}

/// A bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// http, https, or file (on the device).
    pub url: String,
    /// Of the whole file, where it is known.
    pub sha256: Option<[u8; 32]>,
    /// Where it is known.
    pub size_bytes: Option<u64>,
    /// Version that it brings; good for a file's name.
    pub version: String,
    /// What it replaces.
    pub kind: BundleKind,
}

/// What a bundle replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleKind {
    /// The whole system: the machine restarts.
    System,
    /// The agent alone: containers run on.
    Agent,
}
