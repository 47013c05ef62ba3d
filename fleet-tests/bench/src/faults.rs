//! What faults of clouds and of the control plane cost the whole system: `hyperion_lab::faults` breaks
//! one thing at a time and looks from outside.

use anyhow::{Result, ensure};
use hyperion_lab::faults::{crash, dark, price, zone};
use hyperion_lab::measure::Measured;
use hyperion_lab::metadata::Cloud;

use crate::cluster::say;
use crate::report::Report;

/// Break one thing at a time: prices, zones, regions, API servers, the operator itself.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only these; by default all but crash-devices.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Scenario>,
    /// Real API servers with kwok in the place of the embedded one; they must be built.
    #[arg(long)]
    pub real_api: bool,
    /// Services of the scenario price.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub services: u32,
    /// Writes at which the operator is killed, from 1; by default each that a move has.
    #[arg(long, value_delimiter = ',')]
    pub points: Vec<usize>,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// A price rises a little, then triples.
    Price,
    /// All spot machines of a zone of AWS are taken back.
    ZoneAws,
    /// The same of Google Cloud.
    ZoneGcp,
    /// The same of Azure.
    ZoneAzure,
    /// A region goes dark.
    Region,
    /// A cluster loses its API server while its nodes run on.
    Api,
    /// The operator is killed at every write of a move between two clusters.
    CrashClusters,
    /// The same between a device and a cluster.
    CrashDevice,
    /// The same between two devices.
    CrashDevices,
}

impl Scenario {
    const USUAL: [Self; 8] = [
        Self::Price,
        Self::ZoneAws,
        Self::ZoneGcp,
        Self::ZoneAzure,
        Self::Region,
        Self::Api,
        Self::CrashClusters,
        Self::CrashDevice,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Price => "price",
            Self::ZoneAws => "zone_aws",
            Self::ZoneGcp => "zone_gcp",
            Self::ZoneAzure => "zone_azure",
            Self::Region => "region",
            Self::Api => "api",
            Self::CrashClusters => "crash_clusters",
            Self::CrashDevice => "crash_device",
            Self::CrashDevices => "crash_devices",
        }
    }

    fn run(self, args: &Args) -> Result<Measured> {
        let real = args.real_api;
        let zone = |cloud| zone::run(&zone::Options { cloud, real });
        let dark = |lost| dark::run(&dark::Options { lost, real });
        let crash = |between| {
            crash::run(&crash::Options {
                between,
                real,
                points: args.points.clone(),
            })
        };
        match self {
            Self::Price => price::run(&price::Options {
                real,
                services: args.services,
            }),
            Self::ZoneAws => zone(Cloud::Aws),
            Self::ZoneGcp => zone(Cloud::Gcp),
            Self::ZoneAzure => zone(Cloud::Azure),
            Self::Region => dark(dark::Lost::Region),
            Self::Api => dark(dark::Lost::Api),
            Self::CrashClusters => crash(crash::Between::Clusters),
            Self::CrashDevice => crash(crash::Between::DeviceAndCluster),
            Self::CrashDevices => crash(crash::Between::Devices),
        }
    }
}

/// Runs `faults`. Figures begin with the name of their scenario; one that did not go to its end has its
/// reason among the conditions, and the others are run all the same.
///
/// # Errors
/// None of the scenarios could be run, or a point is 0.
pub fn run(args: &Args) -> Result<Report> {
    ensure!(!args.points.contains(&0), "--points: the first write is 1");
    let mut report = Report::new("faults", 0);
    let chosen: &[Scenario] = if args.only.is_empty() {
        &Scenario::USUAL
    } else {
        &args.only
    };
    let mut ran = 0;
    for scenario in chosen {
        let name = scenario.name();
        say(&format!("--- {name}"));
        match scenario.run(args) {
            Ok(measured) => {
                ran += 1;
                for (figure, value) in measured.figures {
                    report.figure(&format!("{name}_{figure}"), value.as_f64());
                }
                report.condition(name, measured.conditions);
            }
            Err(e) => {
                say(&format!("{name}: {e:#}"));
                report.figure(&format!("{name}_failed_requests"), None);
                report.condition(&format!("{name}_error"), format!("{e:#}"));
            }
        }
    }
    ensure!(ran > 0, "no scenario went to its end");
    Ok(report)
}
