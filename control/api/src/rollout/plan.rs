//! A rollout's spec, read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyperion_wire::agent_v1 as wire;
use jiff::Timestamp;

use super::amount::Share;
use super::{Amount, BundleKind, Exclusive, Hours, HyperionRolloutSpec};
use crate::Invalid;
use crate::intent::duration;

/// Time to be Ready where nobody says otherwise: a board takes a minute or two to restart.
pub const READY_WITHIN: Duration = Duration::from_secs(5 * 60);
/// Time to be emptied: images have to be pulled elsewhere.
const EMPTY_WITHIN: Duration = Duration::from_secs(10 * 60);
/// Longest of these, and the longest that nodes take.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Most waves.
const WAVES: usize = 32;
/// Most windows.
const WINDOWS: usize = 32;

/// What nodes get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// In the words of the protocol.
    pub wire: wire::Bundle,
    /// What it replaces.
    pub kind: BundleKind,
    /// Boards that it is for; none where each node has to look.
    pub machines: Vec<String>,
}

/// A rollout's spec, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What nodes get.
    pub bundle: Bundle,
    /// Labels of the nodes.
    pub selector: BTreeMap<String, String>,
    /// Sites of the nodes; all where there are none.
    pub sites: BTreeSet<String>,
    waves: Vec<Share>,
    max_unavailable: Share,
    max_failures: Share,
    /// Failures that do not count.
    pub accepted: usize,
    /// Which try this is.
    pub attempt: u32,
    windows: Vec<Hours>,
    /// Nothing is begun.
    pub paused: bool,
    /// Time to be Ready after the restart.
    pub ready_within: Duration,
    /// Time for workloads to move away.
    pub empty_within: Duration,
    /// What becomes of `exclusive` workloads.
    pub exclusive: Exclusive,
}

impl Plan {
    /// Reads a spec.
    ///
    /// # Errors
    /// The first field that can't be carried out.
    pub fn read(spec: &HyperionRolloutSpec) -> Result<Self, Invalid> {
        let bundle = Bundle::read(spec)?;
        let time = |name: &str, text: Option<&str>, default: Duration| {
            let field = format!("spec.{name}");
            let read = duration(&field, text)?.unwrap_or(default);
            if read > LONGEST || read < Duration::from_secs(1) {
                return Err(Invalid::new(field, "not between 1s and 24h"));
            }
            Ok(read)
        };
        if spec.windows.len() > WINDOWS {
            let problem = format!("{} windows, at most {WINDOWS}", spec.windows.len());
            return Err(Invalid::new("spec.windows", problem));
        }
        let windows = spec.windows.iter().enumerate();
        let windows = windows.map(|(n, w)| Hours::read(&format!("spec.windows[{n}]"), w));
        Ok(Self {
            bundle,
            selector: spec.node_selector.clone(),
            sites: spec.sites.iter().cloned().collect(),
            waves: waves(&spec.waves)?,
            max_unavailable: share("spec.maxUnavailable", spec.max_unavailable.as_ref(), 1, 1)?,
            max_failures: share("spec.maxFailures", spec.max_failures.as_ref(), 0, 0)?,
            accepted: spec.accepted_failures as usize,
            attempt: spec.attempt,
            windows: windows.collect::<Result<_, _>>()?,
            paused: spec.paused,
            ready_within: time("readyWithin", spec.ready_within.as_deref(), READY_WITHIN)?,
            empty_within: time("emptyWithin", spec.empty_within.as_deref(), EMPTY_WITHIN)?,
            exclusive: spec.exclusive,
        })
    }

    /// Number of waves, one at least.
    #[must_use]
    pub fn waves(&self) -> usize {
        self.waves.len()
    }

    /// Nodes of this wave (from 0) and those before, of `all`.
    #[must_use]
    pub fn wave(&self, wave: usize, all: usize) -> usize {
        let waves = self.waves.iter().take(wave.saturating_add(1));
        waves.map(|w| w.up(all)).max().unwrap_or(0)
    }

    /// Most nodes of `all` that are not Ready at a time: one at least.
    #[must_use]
    pub fn max_unavailable(&self, all: usize) -> usize {
        self.max_unavailable.down(all).max(1)
    }

    /// Most nodes of `all` that may fail.
    #[must_use]
    pub fn max_failures(&self, all: usize) -> usize {
        self.max_failures.down(all).saturating_add(self.accepted)
    }

    /// True where nodes may be restarted now.
    #[must_use]
    pub fn open(&self, now: Timestamp) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|w| w.open(now))
    }

    /// When they may be next; none where they may always be.
    #[must_use]
    pub fn opens(&self, now: Timestamp) -> Option<Timestamp> {
        self.windows.iter().filter_map(|w| w.next(now)).min()
    }
}

fn share(
    field: &str,
    amount: Option<&Amount>,
    least: usize,
    default: usize,
) -> Result<Share, Invalid> {
    let Some(amount) = amount else {
        return Ok(Share::Nodes(default));
    };
    let share = amount.share().map_err(|e| Invalid::new(field, e))?;
    match share {
        Share::Nodes(n) | Share::Percent(n) if n < least => Err(Invalid::new(
            field,
            format!("{amount} is less than {least}"),
        )),
        share => Ok(share),
    }
}

fn waves(amounts: &[Amount]) -> Result<Vec<Share>, Invalid> {
    const FIELD: &str = "spec.waves";
    if amounts.is_empty() {
        return Ok(vec![
            Share::Nodes(1),
            Share::Percent(10),
            Share::Percent(100),
        ]);
    }
    if amounts.len() > WAVES {
        let problem = format!("{} waves, at most {WAVES}", amounts.len());
        return Err(Invalid::new(FIELD, problem));
    }
    let mut waves = Vec::with_capacity(amounts.len());
    for (n, amount) in amounts.iter().enumerate() {
        let field = format!("{FIELD}[{n}]");
        let wave = share(&field, Some(amount), 1, 1)?;
        let shrinks = match (waves.last(), wave) {
            (Some(Share::Nodes(a)), Share::Nodes(b))
            | (Some(Share::Percent(a)), Share::Percent(b)) => b < *a,
            _ => false,
        };
        if shrinks {
            let problem = format!("{amount} is less than the wave before: waves add up");
            return Err(Invalid::new(field, problem));
        }
        waves.push(wave);
    }
    Ok(waves)
}

impl Bundle {
    fn read(spec: &HyperionRolloutSpec) -> Result<Self, Invalid> {
        let of = &spec.bundle;
        let sha256 = hex(&of.sha256).ok_or_else(|| {
            let problem = "not the 64 hex digits of a SHA-256";
            Invalid::new("spec.bundle.sha256", problem)
        })?;
        let size_bytes = u64::try_from(of.size_bytes.unwrap_or(0))
            .map_err(|_| Invalid::new("spec.bundle.sizeBytes", "negative"))?;
        let kind = match of.kind {
            BundleKind::System => wire::BundleKind::System,
            BundleKind::Agent => wire::BundleKind::Agent,
        };
        let wire = wire::Bundle {
            url: of.url.clone(),
            sha256: sha256.to_vec(),
            size_bytes,
            version: of.version.clone(),
            kind: kind.into(),
        };
        // What a node would refuse of the order is refused here, in the words of the spec.
        let order = wire::UpdateOrder {
            id: "any".to_owned(),
            bundle: Some(wire.clone()),
            ..wire::UpdateOrder::default()
        };
        if let Err(e) = hyperion_wire::convert::update_order(&order) {
            let field = e.field.replace("update_order.", "spec.");
            return Err(Invalid::new(field, e.problem));
        }
        if let Some(n) = of.machines.iter().position(String::is_empty) {
            return Err(Invalid::new(format!("spec.bundle.machines[{n}]"), "empty"));
        }
        Ok(Self {
            wire,
            kind: of.kind,
            machines: of.machines.clone(),
        })
    }

    /// Version that it brings.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.wire.version
    }
}

/// 32 bytes from 64 hex digits.
fn hex(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (to, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        let (high, low) = (digit(*pair.first()?)?, digit(*pair.get(1)?)?);
        *to = u8::try_from(high * 16 + low).ok()?;
    }
    Some(out)
}
