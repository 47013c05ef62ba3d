//! What goes wrong, and when: drawn from the seed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::rng::Rng;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $weight:literal, $from:literal..$to:literal;)+) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $kind),+ }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The word for it on a command line and in figures.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }

            const fn weight(self) -> usize {
                match self { $(Self::$kind => $weight),+ }
            }

            /// How long it lasts, seconds.
            const fn lasts(self) -> (u64, u64) {
                match self { $(Self::$kind => ($from, $to)),+ }
            }
        }
    };
}

kinds! {
    /// A site's uplink is cut, both ways.
    SiteCut = "site_cut", 6, 10..60;
    /// A node's own uplink is cut; its peers still have theirs.
    UplinkCut = "uplink_cut", 3, 8..45;
    /// What a site or a node says does not get to the control plane, or the other way round.
    UplinkOneWay = "uplink_one_way", 2, 8..45;
    /// The control plane is stopped.
    ControlStop = "control_stop", 2, 8..40;
    /// The control plane's process dies, and another one goes on with the API's state.
    ControlFailover = "control_failover", 2, 0..1;
    /// A site falls in two parts.
    SiteSplit = "site_split", 3, 5..45;
    /// Some pairs of nodes can't reach each other.
    LanPartial = "lan_partial", 2, 5..45;
    /// Some nodes hear others and are not heard.
    LanOneWay = "lan_one_way", 2, 5..45;
    /// Datagrams are lost.
    LanLoss = "lan_loss", 2, 5..45;
    /// Datagrams are slow and overtake each other.
    LanDelay = "lan_delay", 2, 5..45;
    /// Datagrams arrive twice.
    LanDuplicates = "lan_duplicates", 1, 5..45;
    /// A device restarts in order.
    Reboot = "reboot", 3, 3..12;
    /// The power goes between two writes of the agent's store, and is back soon.
    PowerCut = "power_cut", 4, 3..20;
    /// A device is dead for long.
    DeviceDead = "device_dead", 4, 15..70;
    /// The agent's process is killed.
    AgentCrash = "agent_crash", 3, 0..4;
    /// A container ends by itself.
    ContainerCrash = "container_crash", 2, 0..1;
    /// The disk takes no more writes.
    DiskFull = "disk_full", 2, 5..30;
    /// The disk takes a long time for each sync.
    DiskSlow = "disk_slow", 2, 5..30;
    /// A device's wall clock jumps.
    ClockJump = "clock_jump", 2, 0..1;
    /// A device reboots into a wrong clock.
    ClockWrong = "clock_wrong", 1, 3..10;
    /// A node's certificate runs out while it is offline: it needs a new one before its link is up,
    /// and its peers hear it all the same.
    CertificateExpired = "certificate_expired", 2, 10..40;
    /// A member of the site sends garbage and lies to its peers.
    HostilePeer = "hostile_peer", 2, 2..20;
    /// Old orders of the control plane arrive again.
    StaleOrders = "stale_orders", 3, 0..1;
    /// Images that a node lacks can't be fetched.
    NoRegistry = "no_registry", 1, 5..40;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads `all`, `none` or a list of names.
///
/// # Errors
/// Names the word that is no fault.
pub fn parse(text: &str) -> Result<Vec<Kind>, String> {
    match text {
        "all" => return Ok(Kind::ALL.to_vec()),
        "none" | "" => return Ok(Vec::new()),
        _ => {}
    }
    let kind = |name: &str| {
        let found = Kind::ALL.iter().find(|k| k.name() == name.trim());
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
            format!(
                "{name:?} is no fault; all, none or some of {}",
                names.join(", ")
            )
        })
    };
    text.split(',').map(kind).collect()
}

/// One fault of a run.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub kind: Kind,
    pub site: usize,
    /// Nodes that it hits, by number.
    pub nodes: Vec<usize>,
    pub begin: Duration,
    pub end: Duration,
    /// For what else there is to choose.
    pub dice: u64,
}

/// Faults of the phase from `from` to `to`, by their beginning; all have ended at `to`.
pub(crate) fn schedule(
    kinds: &[Kind],
    sites: &[Vec<usize>],
    from: Duration,
    to: Duration,
    rng: &mut Rng,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    if kinds.is_empty() || sites.is_empty() || to <= from {
        return faults;
    }
    let total: usize = kinds.iter().map(|k| k.weight()).sum();
    let many = 3 + sites.len() + rng.below(4) + rng.below(2 * sites.len() + 1);
    for _ in 0..many {
        let mut at = rng.below(total);
        let mut kind = kinds[0];
        for k in kinds {
            if at < k.weight() {
                kind = *k;
                break;
            }
            at -= k.weight();
        }
        let site = rng.below(sites.len());
        let (least, most) = kind.lasts();
        let begin = rng.between(from, to);
        let length = rng.millis(least * 1000, most * 1000);
        faults.push(Fault {
            kind,
            site,
            nodes: nodes(kind, &sites[site], rng),
            begin,
            end: (begin + length).min(to),
            dice: rng.number(),
        });
    }
    faults.sort_by_key(|f| f.begin);
    faults
}

fn nodes(kind: Kind, site: &[usize], rng: &mut Rng) -> Vec<usize> {
    let some = |rng: &mut Rng, most: usize| {
        let mut left = site.to_vec();
        let n = 1 + rng.below(most.clamp(1, site.len()));
        (0..n)
            .map(|_| left.swap_remove(rng.below(left.len())))
            .collect()
    };
    match kind {
        Kind::SiteCut | Kind::ControlStop | Kind::ControlFailover => site.to_vec(),
        Kind::UplinkOneWay if rng.chance(0.5) => site.to_vec(),
        Kind::SiteSplit => some(rng, site.len().saturating_sub(1)),
        Kind::LanPartial | Kind::LanOneWay | Kind::UplinkCut => some(rng, site.len() / 2),
        Kind::LanLoss | Kind::LanDelay | Kind::LanDuplicates => some(rng, site.len()),
        Kind::DeviceDead | Kind::Reboot | Kind::PowerCut => some(rng, 2),
        _ => some(rng, 1),
    }
}

/// Counts by kind.
pub type Counts = BTreeMap<&'static str, u64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_of_its_seed_and_ends_in_time() {
        let sites = vec![vec![0, 1, 2], vec![3, 4]];
        let (from, to) = (Duration::from_secs(10), Duration::from_secs(70));
        let draw = |seed| schedule(Kind::ALL, &sites, from, to, &mut Rng::new(seed, "faults"));
        for seed in 0..50 {
            let faults = draw(seed);
            assert!(!faults.is_empty());
            assert_eq!(format!("{faults:?}"), format!("{:?}", draw(seed)));
            for fault in faults {
                assert!(fault.begin >= from && fault.end <= to && fault.begin <= fault.end);
                assert!(!fault.nodes.is_empty());
                assert!(fault.nodes.iter().all(|n| sites[fault.site].contains(n)));
            }
        }
    }

    #[test]
    fn faults_are_read_by_name() {
        assert_eq!(parse("all").unwrap().len(), Kind::ALL.len());
        assert!(parse("none").unwrap().is_empty());
        assert_eq!(
            parse("reboot,site_cut").unwrap(),
            [Kind::Reboot, Kind::SiteCut]
        );
        assert!(
            parse("rebot")
                .unwrap_err()
                .contains("\"rebot\" is no fault")
        );
    }
}
