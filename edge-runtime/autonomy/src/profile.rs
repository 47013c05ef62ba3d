//! Times and bounds.

use std::time::Duration;

/// Times and bounds of a site; all nodes of a site should have the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Time between two probes of a node.
    pub probe_period: Duration,
    /// Time within which a probe is answered directly, before others are asked to try.
    pub probe_rtt: Duration,
    /// Others that are asked.
    pub indirect_probes: usize,
    /// Time that a suspect has to object before it is taken for dead.
    pub suspicion: Duration,
    /// Time that a dead node is remembered, so that old news does not bring it back.
    pub forget_dead: Duration,
    /// Time without any link at the site, by this node's and its peers' word, before it acts alone.
    pub autonomous_after: Duration,
    /// What counts for `replaceAfter` at the site where the user named none: time since a dead
    /// node's last word.
    pub takeover_after: Duration,
    /// Time between two comparisons with a random peer.
    pub sync_period: Duration,
    /// Peers that are told of news at once.
    pub fanout: usize,
    /// Most that is spent on synchronisation frames, bytes a second; probes come on top.
    pub sync_bytes_per_s: u32,
    /// Least time between two versions of a node's own record for load alone.
    pub load_period: Duration,
}

impl Profile {
    /// For devices on a wired or wireless network: a dead node is known to all after some 4 to 6 s,
    /// and a node may be out of reach for 3 s without being taken for dead.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            probe_period: Duration::from_secs(1),
            probe_rtt: Duration::from_millis(400),
            indirect_probes: 3,
            suspicion: Duration::from_millis(2500),
            forget_dead: Duration::from_secs(24 * 3600),
            autonomous_after: Duration::from_secs(5),
            takeover_after: Duration::from_secs(4),
            sync_period: Duration::from_secs(2),
            fanout: 3,
            sync_bytes_per_s: 64 * 1024,
            load_period: Duration::from_secs(5),
        }
    }

    /// For wired networks with few losses: a dead node is known to all after some 1 to 2 s.
    #[must_use]
    pub fn fast() -> Self {
        Self {
            probe_period: Duration::from_millis(300),
            probe_rtt: Duration::from_millis(100),
            suspicion: Duration::from_millis(750),
            autonomous_after: Duration::from_millis(1500),
            takeover_after: Duration::from_secs(1),
            sync_period: Duration::from_secs(1),
            sync_bytes_per_s: 256 * 1024,
            load_period: Duration::from_secs(2),
            ..Self::standard()
        }
    }

    /// By name: `default` or `fast`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "default" => Some(Self::standard()),
            "fast" => Some(Self::fast()),
            _ => None,
        }
    }
}
