//! The one form of all prices.

use std::fmt;

use hyperion_placement::gpu;
use hyperion_placement::model::{
    self, CapacityType, GpuDevice, Location, Provider, Resources, Supply, Tier,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Left;
use crate::shapes::{Shape, shape};

/// No machine costs more an hour, US dollars: ten times the dearest that is sold. What is above is
/// no price.
const MOST: f64 = 2_000.0;
/// No machine costs less an hour, US dollars: the least that EC2 can say, with six digits.
const LEAST: f64 = 0.000_001;

/// What a price is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Who sells it.
    pub provider: Provider,
    /// The provider's name of the type, as in [`crate::shapes`].
    pub instance_type: String,
    /// Region in the provider's words.
    pub region: String,
    /// Zone; empty where the price holds in the whole region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Spot or on demand.
    pub capacity_type: CapacityType,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            provider,
            instance_type,
            region,
            zone,
            capacity_type,
        } = self;
        let zone = if zone.is_empty() { "-" } else { zone };
        write!(
            f,
            "{provider}/{region}/{zone}/{instance_type}/{capacity_type}"
        )
    }
}

/// Capacity that can be bought, and what it costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// What it is.
    #[serde(flatten)]
    pub key: Key,
    /// US dollars per hour for the whole machine.
    pub price_per_hour: f64,
    /// When the feed last said so.
    pub seen: Timestamp,
}

impl Offer {
    /// An offer of a type that is known, in a region that is known, at a price that can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(key: Key, price_per_hour: f64, seen: Timestamp) -> Result<Self, Left> {
        let known = shape(key.provider, &key.instance_type).ok_or(Left::UnknownType)?;
        if crate::geography(key.provider, &key.region).is_none() || !zone_fits(&key) {
            return Err(Left::UnknownRegion);
        }
        if key.capacity_type == CapacityType::Owned {
            return Err(Left::Malformed);
        }
        // NaN is in no range.
        if !(LEAST..=MOST).contains(&price_per_hour) {
            return Err(Left::Price);
        }
        let instance_type = known.instance_type.to_owned();
        Ok(Self {
            key: Key {
                instance_type,
                ..key
            },
            price_per_hour,
            seen,
        })
    }

    /// What the machine has.
    #[must_use]
    pub fn shape(&self) -> Option<&'static Shape> {
        shape(self.key.provider, &self.key.instance_type)
    }

    /// The offer as a decision sees it: all that the machine has, with GPUs whose uuids are made up.
    /// None for a type that is not known.
    #[must_use]
    pub fn for_placement(&self) -> Option<model::Offer> {
        const GIB: u64 = 1 << 30;
        let shape = self.shape()?;
        let id = self.key.to_string();
        let gpus = (0..shape.gpus)
            .map(|n| GpuDevice {
                uuid: format!("{id}/{n}"),
                model: shape.gpu.to_owned(),
                memory_bytes: u64::from(shape.gpu_memory_gb) * GIB,
                free_millis: gpu::WHOLE,
            })
            .collect();
        Some(model::Offer {
            location: Location {
                tier: Tier::Cloud,
                provider: self.key.provider,
                region: self.key.region.clone(),
                zone: self.key.zone.clone(),
                site: String::new(),
                geography: crate::geography(self.key.provider, &self.key.region),
            },
            arch: shape.arch().to_owned(),
            capacity_type: self.key.capacity_type,
            instance_type: self.key.instance_type.clone(),
            allocatable: Resources {
                cpu_millis: u64::from(shape.vcpus) * 1000,
                memory_bytes: u64::from(shape.memory_gib) * GIB,
            },
            gpus,
            price_per_hour: self.price_per_hour,
            supply: Supply::default(),
            startup_s: 0.0,
            id,
        })
    }
}

/// A zone is named after its region. Names are bounded, since feeds are strangers.
fn zone_fits(key: &Key) -> bool {
    let word = |text: &str| {
        text.len() <= 64
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let rest = key.zone.strip_prefix(&key.region);
    word(&key.region)
        && word(&key.zone)
        && (key.zone.is_empty() || rest.is_some_and(|r| !r.is_empty()))
}
