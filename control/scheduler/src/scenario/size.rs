//! How large an episode is, and what it may be drawn from.

use std::fmt;

/// Which part of a world an episode is drawn from. The parts share no region but the control
/// group's, no stretch of a trace, no price window and no random number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// What learners see.
    Train,
    /// What they never see.
    Unseen,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Train => "train",
            Self::Unseen => "unseen",
        })
    }
}

/// How large an episode is; pairs are least and most, both included.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    /// Hours.
    pub horizon: f64,
    /// Hours of prices and supply before hour 0.
    pub history: f64,
    /// Cloud regions.
    pub regions: (u32, u32),
    /// Instance types in each region.
    pub types: (u32, u32),
    /// Zones of each type's spot capacity.
    pub zones: (u32, u32),
    /// Edge sites.
    pub sites: (u32, u32),
    /// Devices at each site.
    pub devices: (u32, u32),
    /// Workloads.
    pub workloads: (u32, u32),
}

impl Default for Size {
    /// Episodes to train and evaluate on.
    fn default() -> Self {
        Self {
            horizon: 48.0,
            history: 72.0,
            regions: (3, 6),
            types: (5, 6),
            zones: (1, 3),
            sites: (2, 4),
            devices: (3, 8),
            workloads: (40, 80),
        }
    }
}

impl Size {
    /// Small enough for an exact bound.
    #[must_use]
    pub fn small() -> Self {
        Self {
            horizon: 12.0,
            history: 72.0,
            regions: (2, 2),
            types: (2, 2),
            zones: (1, 1),
            sites: (1, 1),
            devices: (2, 3),
            workloads: (5, 8),
        }
    }

    /// As many workloads as an exact bound can still take.
    #[must_use]
    pub fn medium() -> Self {
        Self {
            types: (2, 3),
            devices: (3, 4),
            workloads: (10, 12),
            ..Self::small()
        }
    }
}
