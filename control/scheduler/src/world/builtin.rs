//! A small world of published figures, so that everything runs without a data directory, and what
//! stands in for files that are missing.

use hyperion_placement::model::{CapacityType, Provider};

use super::catalog::Quote;
use super::history::Change;
use super::network::Throughput;
use super::supply::SpotTrace;
use crate::scenario::Dice;

/// Shapes of the types in the providers' price table: type, cores, GiB, GPU, GPUs. From the
/// providers' pages on instance types, 2025.
#[rustfmt::skip]
const SHAPES: &[(&str, f64, f64, &str, u32)] = &[
    ("c5.2xlarge", 8.0, 16.0, "", 0),
    ("m5.2xlarge", 8.0, 32.0, "", 0),
    ("m5.8xlarge", 32.0, 128.0, "", 0),
    ("g4dn.xlarge", 4.0, 16.0, "T4", 1),
    ("g4dn.2xlarge", 8.0, 32.0, "T4", 1),
    ("g4dn.12xlarge", 48.0, 192.0, "T4", 4),
    ("g5.xlarge", 4.0, 16.0, "A10G", 1),
    ("g5.12xlarge", 48.0, 192.0, "A10G", 4),
    ("g6.xlarge", 4.0, 16.0, "L4", 1),
    ("p3.2xlarge", 8.0, 61.0, "V100", 1),
    ("p3.8xlarge", 32.0, 244.0, "V100", 4),
    ("p4d.24xlarge", 96.0, 1152.0, "A100", 8),
    ("e2-standard-8", 8.0, 32.0, "", 0),
    ("n2-standard-8", 8.0, 32.0, "", 0),
    ("n2-standard-32", 32.0, 128.0, "", 0),
    ("g2-standard-4", 4.0, 16.0, "L4", 1),
    ("g2-standard-24", 24.0, 96.0, "L4", 2),
    ("a2-highgpu-1g", 12.0, 85.0, "A100", 1),
    ("a2-highgpu-8g", 96.0, 680.0, "A100", 8),
    ("a3-highgpu-8g", 208.0, 1872.0, "H100", 8),
    ("Standard_D8s_v5", 8.0, 32.0, "", 0),
    ("Standard_D32s_v5", 32.0, 128.0, "", 0),
    ("Standard_NC4as_T4_v3", 4.0, 28.0, "T4", 1),
    ("Standard_NC8as_T4_v3", 8.0, 56.0, "T4", 1),
    ("Standard_NC6s_v3", 6.0, 112.0, "V100", 1),
    ("Standard_NC24ads_A100_v4", 24.0, 220.0, "A100-80GB", 1),
    ("Standard_ND96asr_v4", 96.0, 900.0, "A100", 8),
    ("Standard_ND96isr_H100_v5", 96.0, 1900.0, "H100", 8),
];

/// The providers' price table as quotes.
pub(super) fn quotes() -> Vec<Quote> {
    hyperion_providers::prices::PRICES
        .iter()
        .filter_map(
            |(provider, region, instance_type, on_demand, spot, as_of)| {
                let shape = SHAPES.iter().find(|s| s.0 == *instance_type)?;
                Some(Quote {
                    provider: *provider,
                    region: (*region).to_owned(),
                    zone: String::new(),
                    instance_type: (*instance_type).to_owned(),
                    arch: "amd64",
                    vcpus: shape.1,
                    memory_gib: shape.2,
                    accelerator: shape.3.to_owned(),
                    gpus: shape.4,
                    on_demand: *on_demand,
                    on_demand_published: true,
                    spot: hyperion_providers::price(
                        *provider,
                        region,
                        instance_type,
                        CapacityType::Spot,
                    ),
                    spot_published: spot.is_some(),
                    reclaim_rate: None,
                    as_of: (*as_of).to_owned(),
                })
            },
        )
        .collect()
}

/// Zones whose spot supply was measured, what was asked for there, share of the time that it could
/// be had and reclaims per hour of supply: figures computed from the traces of "Can't Be Late:
/// Optimizing Spot Instance Savings under Deadlines" (NSDI 2024, skypilot-org/spot-traces).
const SUPPLY: &[(Provider, &str, bool, f64, f64)] = &[
    (Provider::Aws, "us-east-1a", true, 0.167, 1.39),
    (Provider::Aws, "us-east-1c", true, 0.467, 0.673),
    (Provider::Aws, "us-east-1d", true, 0.447, 0.600),
    (Provider::Aws, "us-east-1f", true, 0.591, 0.442),
    (Provider::Aws, "us-east-2a", true, 0.759, 0.175),
    (Provider::Aws, "us-east-2b", true, 0.682, 0.234),
    (Provider::Aws, "us-east-1b", false, 0.851, 0.511),
    (Provider::Aws, "us-east-1d", false, 0.940, 0.189),
    (Provider::Gcp, "us-central1-a", false, 1.000, 0.0),
];

/// Traces with these shares and rates, up and down times exponential.
pub(super) fn traces() -> Vec<SpotTrace> {
    const GAP_HOURS: f64 = 195.0 / 3600.0;
    const TICKS: usize = 20_000;
    SUPPLY
        .iter()
        .map(|(provider, zone, accelerated, share, rate)| {
            let name = format!("builtin__{zone}_{accelerated}");
            let mut dice = Dice::new(&name, 0);
            let mut up = Vec::with_capacity(TICKS);
            let mut now = true;
            while up.len() < TICKS {
                let mean_up = if *rate > 0.0 { 1.0 / rate } else { 1e9 };
                let mean = if now {
                    mean_up
                } else {
                    mean_up * (1.0 - share) / share
                };
                let ticks = (dice.exponential(mean) / GAP_HOURS).ceil().max(1.0) as usize;
                up.extend(std::iter::repeat_n(now, ticks.min(TICKS - up.len())));
                now = !now;
            }
            SpotTrace::new(
                name,
                *provider,
                (*zone).to_owned(),
                *accelerated,
                GAP_HOURS,
                up,
            )
        })
        .collect()
}

/// Changes of spot prices, as if one a day: made up so that a tenth lies below 0.85 and a tenth above
/// 1.15 with 1.0 in the middle, as GCP's changes from 2023-05 to 2025-06 do
/// (Cyclenerd/google-cloud-pricing-cost-calculator), without their extremes of 0.26 and 4.4.
pub(super) fn changes() -> Vec<Change> {
    const RATIOS: &[f64] = &[
        0.60, 0.85, 1.12, 0.93, 1.0, 1.05, 0.97, 1.15, 0.90, 1.40, 0.85, 1.08, 0.95, 1.0, 1.15,
        0.88, 1.03, 0.98, 1.22, 0.75,
    ];
    RATIOS
        .iter()
        .enumerate()
        .map(|(day, ratio)| Change {
            hour: day as f64 * 24.0,
            ratio: *ratio,
        })
        .collect()
}

/// Requests per minute over their mean, at quantiles of the code trace of Azure's LLM inference
/// (AzurePublicDataset, 2023), shuffled by hand.
pub(super) fn bursts() -> Vec<f64> {
    vec![
        0.85, 0.41, 1.61, 0.0, 2.07, 0.74, 0.18, 1.29, 2.94, 0.25, 1.04, 0.0, 1.87, 0.65, 0.31,
        1.39, 3.49, 0.10, 0.84, 0.0, 2.60, 0.78, 0.21, 1.23, 2.01, 0.51, 1.11, 0.0, 1.54, 0.36,
    ]
}

/// Job runtimes, hours, read off quantiles of Microsoft's Philly cluster (2017): 10, 25, 50, 75, 90,
/// 99 and 99.9 % at 61, 131, 1186, 3342, 12860, 287333 and 1361908 s, log-linear between.
pub(super) fn runtimes() -> Vec<f64> {
    const QUANTILES: &[(f64, f64)] = &[
        (0.0, 10.0),
        (0.1, 61.0),
        (0.25, 131.0),
        (0.5, 1186.0),
        (0.75, 3342.0),
        (0.9, 12_860.0),
        (0.99, 287_333.0),
        (1.0, 1_361_908.0),
    ];
    const COUNT: usize = 1000;
    (0..COUNT)
        .map(|i| {
            let q = (i as f64 + 0.5) / COUNT as f64;
            let above = QUANTILES
                .partition_point(|(at, _)| *at <= q)
                .clamp(1, QUANTILES.len() - 1);
            let ((q0, s0), (q1, s1)) = (QUANTILES[above - 1], QUANTILES[above]);
            let part = (q - q0) / (q1 - q0);
            libm::exp(libm::log(s0) * (1.0 - part) + libm::log(s1) * part) / 3600.0
        })
        .collect()
}

/// Throughput where none is measured: between any two regions of the table the median of what
/// Skyplane measured on the premium network in 2022-01, 4.4 Gb/s.
pub(super) fn throughput(latency: &hyperion_placement::model::LatencyMatrix) -> Throughput {
    latency
        .rtt_ms
        .keys()
        .filter(|(a, b)| !a.0.starts_with("geo:") && !b.0.starts_with("geo:"))
        .map(|key| (key.clone(), 4.4))
        .collect()
}
