//! Parts of machines, and machines made of them.
//!
//! A SKU is a core, a GiB or a GPU of a family, in some regions, bought on demand or as spot. What
//! it is says only its description, in words for people: `G2 Instance Core running in Iowa`,
//! `Spot Preemptible G2 Instance Ram running in Iowa`, `Nvidia L4 GPU attached to Spot Preemptible
//! VMs running in Iowa`. Commitments, reservations, custom machines and sole tenancy have other
//! words before or between these, so descriptions are compared whole.

use std::collections::{BTreeMap, BTreeSet};

use hyperion_placement::model::{CapacityType, Provider};
use jiff::Timestamp;
use serde::Deserialize;

use crate::feeds::{Fetched, Key, Left, Offer};
use crate::shapes::{SHAPES, Shape};

/// What machines of a family are made of. Where there are several words, the first that has a price
/// in the region counts.
struct Family {
    prefix: &'static str,
    core: &'static [&'static str],
    ram: &'static [&'static str],
    gpu: &'static [&'static str],
}

/// Descriptions as the catalog had them in 2025 and 2026; a name that changes is an offer that is
/// missing and counted, not one with a wrong price.
#[rustfmt::skip]
const FAMILIES: &[Family] = &[
    Family { prefix: "e2-", core: &["E2 Instance Core"], ram: &["E2 Instance Ram"], gpu: &[] },
    Family { prefix: "n2-", core: &["N2 Instance Core"], ram: &["N2 Instance Ram"], gpu: &[] },
    Family { prefix: "g2-", core: &["G2 Instance Core"], ram: &["G2 Instance Ram"], gpu: &["Nvidia L4 GPU"] },
    Family { prefix: "a2-ultragpu-", core: &["A2 Instance Core"], ram: &["A2 Instance Ram"], gpu: &["Nvidia Tesla A100 80GB GPU"] },
    Family { prefix: "a2-", core: &["A2 Instance Core"], ram: &["A2 Instance Ram"], gpu: &["Nvidia Tesla A100 GPU"] },
    Family { prefix: "a3-highgpu-", core: &["A3 Instance Core"], ram: &["A3 Instance Ram"], gpu: &["Nvidia H100 80GB GPU"] },
    Family {
        prefix: "a3-megagpu-",
        core: &["A3Plus Instance Core", "A3 Instance Core"],
        ram: &["A3Plus Instance Ram", "A3 Instance Ram"],
        gpu: &["Nvidia H100 80GB Mega GPU", "Nvidia H100 Mega 80GB GPU", "Nvidia H100 80GB Plus GPU"],
    },
    Family { prefix: "a3-ultragpu-", core: &["A3Ultra Instance Core"], ram: &["A3Ultra Instance Ram"], gpu: &["Nvidia H200 141GB GPU"] },
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sku {
    description: String,
    category: Category,
    #[serde(default)]
    service_regions: Vec<String>,
    /// Read only of parts that are known: others may have any form.
    #[serde(default)]
    pricing_info: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Category {
    resource_family: String,
    usage_type: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pricing {
    #[serde(default)]
    effective_time: Option<Timestamp>,
    pricing_expression: Expression,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Expression {
    usage_unit: String,
    tiered_rates: Vec<Rate>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    unit_price: Money,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Money {
    currency_code: String,
    /// A whole number, as text.
    #[serde(default)]
    units: Option<String>,
    #[serde(default)]
    nanos: i64,
}

/// What a price is of, where, and how it is bought.
type Part = (String, String, CapacityType);

/// The parts that were found.
pub(super) struct Parts {
    regions: BTreeSet<String>,
    prices: BTreeMap<Part, f64>,
}

impl Parts {
    pub(super) fn new(regions: BTreeSet<String>) -> Self {
        Self {
            regions,
            prices: BTreeMap::new(),
        }
    }

    /// Takes a SKU, or counts why not.
    pub(super) fn take(&mut self, sku: &serde_json::Value, now: Timestamp, out: &mut Fetched) {
        let row = || sku.to_string();
        match read(sku, now) {
            Err(left) => out.leave(left, row),
            Ok((name, capacity_type, regions, price)) => {
                for region in regions {
                    if crate::geography(Provider::Gcp, &region).is_none() {
                        out.leave(Left::UnknownRegion, row);
                    } else if !self.regions.contains(&region) {
                        out.leave(Left::OtherRegion, row);
                    } else {
                        // Two prices for one part: nobody says which is paid, so the dearer one.
                        let part = (name.clone(), region, capacity_type);
                        let held = self.prices.entry(part).or_insert(price);
                        *held = held.max(price);
                    }
                }
            }
        }
    }

    /// Puts machines together. A part that is missing is counted only where all pages came.
    pub(super) fn machines(&self, now: Timestamp, complete: bool, out: &mut Fetched) {
        for shape in SHAPES.iter().filter(|s| s.provider == Provider::Gcp) {
            let family = FAMILIES
                .iter()
                .find(|f| shape.instance_type.starts_with(f.prefix));
            let Some(family) = family else { continue };
            for region in &self.regions {
                for capacity_type in [CapacityType::OnDemand, CapacityType::Spot] {
                    let key = Key {
                        provider: Provider::Gcp,
                        instance_type: shape.instance_type.to_owned(),
                        region: region.clone(),
                        zone: String::new(),
                        capacity_type,
                    };
                    match self.price(shape, family, region, capacity_type) {
                        Sum::Whole(price) => {
                            let name = key.to_string();
                            out.add(Offer::new(key, price, now), || name);
                        }
                        // Not sold there.
                        Sum::Nothing => {}
                        Sum::Lacks(part) if complete => {
                            out.leave(Left::Incomplete, || format!("{key}: no price of {part}"));
                        }
                        Sum::Lacks(_) => {}
                    }
                }
            }
        }
    }

    fn price(
        &self,
        shape: &Shape,
        family: &Family,
        region: &str,
        capacity_type: CapacityType,
    ) -> Sum {
        let of = |names: &'static [&'static str]| {
            names.iter().find_map(|name| {
                let part = ((*name).to_owned(), region.to_owned(), capacity_type);
                self.prices.get(&part).copied()
            })
        };
        let parts = [
            (f64::from(shape.vcpus), family.core),
            (f64::from(shape.memory_gib), family.ram),
            (f64::from(shape.gpus), family.gpu),
        ];
        let needed: Vec<_> = parts.into_iter().filter(|(n, _)| *n > 0.0).collect();
        let found: Vec<Option<f64>> = needed.iter().map(|(_, names)| of(names)).collect();
        if found.iter().all(Option::is_none) {
            return Sum::Nothing;
        }
        let mut sum = 0.0;
        for ((count, names), price) in needed.iter().zip(found) {
            match price {
                Some(price) => sum += count * price,
                None => return Sum::Lacks(names.first().copied().unwrap_or_default()),
            }
        }
        Sum::Whole(sum)
    }
}

enum Sum {
    Whole(f64),
    Lacks(&'static str),
    Nothing,
}

type Read = (String, CapacityType, Vec<String>, f64);

fn read(sku: &serde_json::Value, now: Timestamp) -> Result<Read, Left> {
    let sku = Sku::deserialize(sku).map_err(|_| Left::Malformed)?;
    if sku.category.resource_family != "Compute" {
        return Err(Left::OtherProduct);
    }
    let spot = match sku.category.usage_type.as_str() {
        "OnDemand" => false,
        "Preemptible" => true,
        "Commit1Yr" | "Commit3Yr" | "Commit1Mo" => return Err(Left::Reservation),
        _ => return Err(Left::OtherProduct),
    };
    let (name, said_spot) = name(&sku.description);
    let known = FAMILIES
        .iter()
        .flat_map(|f| [f.core, f.ram, f.gpu])
        .flatten()
        .any(|known| *known == name);
    if !known {
        return Err(Left::OtherProduct);
    }
    let unit = if name.ends_with(" Ram") {
        "GiBy.h"
    } else {
        "h"
    };
    // The catalog gives one, unless it is asked for a time in the past.
    let pricing: Vec<Pricing> = sku
        .pricing_info
        .iter()
        .map(Pricing::deserialize)
        .collect::<Result<_, _>>()
        .map_err(|_| Left::Malformed)?;
    let pricing = pricing
        .iter()
        .filter(|p| p.effective_time.is_none_or(|at| at <= now))
        .max_by_key(|p| p.effective_time)
        .ok_or(Left::NotInForce)?;
    let expression = &pricing.pricing_expression;
    let [rate] = expression.tiered_rates.as_slice() else {
        return Err(Left::Malformed);
    };
    if expression.usage_unit != unit {
        return Err(Left::Malformed);
    }
    let money = &rate.unit_price;
    if money.currency_code != "USD" {
        return Err(Left::Currency);
    }
    let units: i64 = match money.units.as_deref() {
        None | Some("") => 0,
        Some(text) => text.parse().map_err(|_| Left::Price)?,
    };
    let price = units as f64 + money.nanos as f64 / 1e9;
    if !price.is_finite() || price <= 0.0 {
        return Err(Left::Price);
    }
    // Some say spot in words while they are filed as on demand.
    let capacity_type = if spot || said_spot {
        CapacityType::Spot
    } else {
        CapacityType::OnDemand
    };
    Ok((name.to_owned(), capacity_type, sku.service_regions, price))
}

/// The description without where it runs and how it is bought, and whether it says spot.
fn name(description: &str) -> (&str, bool) {
    let text = description.trim();
    let text = text.split(" running in ").next().unwrap_or(text);
    if let Some(rest) = text.strip_prefix("Spot Preemptible ") {
        return (rest, true);
    }
    match text.strip_suffix(" attached to Spot Preemptible VMs") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_family_with_what_it_needs() {
        for shape in SHAPES.iter().filter(|s| s.provider == Provider::Gcp) {
            let family = FAMILIES
                .iter()
                .find(|f| shape.instance_type.starts_with(f.prefix))
                .unwrap_or_else(|| panic!("{shape:?}"));
            assert_eq!(shape.gpus > 0, !family.gpu.is_empty(), "{shape:?}");
        }
    }

    #[test]
    fn descriptions_are_taken_apart() {
        for (text, part) in [
            (
                "G2 Instance Core running in Iowa",
                ("G2 Instance Core", false),
            ),
            (
                "Spot Preemptible G2 Instance Ram running in Iowa",
                ("G2 Instance Ram", true),
            ),
            (
                "Nvidia L4 GPU attached to Spot Preemptible VMs running in Hong Kong",
                ("Nvidia L4 GPU", true),
            ),
            (
                "Commitment v1: Nvidia L4 GPU running in Iowa for 1 Year",
                ("Commitment v1: Nvidia L4 GPU", false),
            ),
        ] {
            assert_eq!(name(text), part, "{text}");
        }
    }
}
