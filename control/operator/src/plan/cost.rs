//! What a replica costs where it is placed, and what it would cost elsewhere: kept with the placement,
//! and counted up when that is over.

use hyperion_api::cost::{Launch, Spent};
use hyperion_placement::cost::replica_share;
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::{CapacityType, Location, Node, Provider, Request, Resources, Tier};
use hyperion_providers::feeds::Prices;
use hyperion_providers::shapes::{SHAPES, Shape, shape};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Pass;
use super::status::round;
use crate::index::Template;

/// Where the baseline is: everything on demand in one region of one provider.
const BASELINE: (Provider, &str) = (Provider::Aws, "us-east-1");

impl Pass<'_> {
    /// What is known of prices for a replica that is placed now.
    pub(super) fn launch(&self, template: &Template, node: &Node) -> Launch {
        let (request, prices) = (&template.request, self.index.prices());
        Launch {
            at: Time(self.clock),
            on_demand: on_demand(request, node, prices).map(round),
            baseline: baseline(request, node, prices).map(round),
        }
    }

    /// A placement is over: what it has cost stays with the workload.
    pub(super) fn spend(&mut self, replica: u32) {
        let Some(entry) = self.index.placement(&self.name, replica) else {
            return;
        };
        let mut spent = Spent::default();
        spent.count(&entry.spec, &entry.status, self.clock);
        if spent != Spent::default()
            && let Some(workload) = self.index.workloads.get_mut(&self.name)
        {
            workload.spent.get_or_insert_default().add(&spent);
        }
    }
}

/// Price of a machine on demand, by a feed or the table.
fn price(prices: &Prices, provider: Provider, region: &str, zone: &str, kind: &str) -> Option<f64> {
    let offer = prices.of(provider, region, zone, kind, CapacityType::OnDemand);
    offer
        .map(|offer| offer.price_per_hour)
        .or_else(|| hyperion_providers::price(provider, region, kind, CapacityType::OnDemand))
}

/// The same share of the same machine, on demand.
fn on_demand(request: &Request, node: &Node, prices: &Prices) -> Option<f64> {
    let at = &node.location;
    let whole = match node.capacity_type {
        CapacityType::Spot => price(
            prices,
            at.provider,
            &at.region,
            &at.zone,
            &node.instance_type,
        )?,
        CapacityType::OnDemand | CapacityType::Owned => node.price_per_hour,
    };
    let machine = Candidate {
        price_per_hour: whole,
        ..Candidate::from(node)
    };
    replica_share(request, &machine)
}

/// The replica on a machine of its type in the baseline's region, or the cheapest there that it fits
/// on and that has GPUs of the same model, where that is known.
fn baseline(request: &Request, node: &Node, prices: &Prices) -> Option<f64> {
    let here = shape(node.location.provider, &node.instance_type);
    let same = here.filter(|shape| shape.provider == BASELINE.0);
    let model = here.map_or("", |shape| shape.gpu);
    let all = SHAPES.iter().filter(|shape| shape.provider == BASELINE.0);
    let alike =
        all.filter(|shape| fits(request, shape) && (model.is_empty() || shape.gpu == model));
    let candidates: Vec<&Shape> = match same {
        Some(same) => vec![same],
        None => alike.collect(),
    };
    let location = Location {
        tier: Tier::Cloud,
        provider: BASELINE.0,
        ..node.location.clone()
    };
    let cost = |shape: &&Shape| {
        let whole = price(prices, BASELINE.0, BASELINE.1, "", shape.instance_type)?;
        let gpu = node.gpus.first().cloned();
        let gpus = gpu.map_or_else(Vec::new, |gpu| vec![gpu; shape.gpus as usize]);
        let machine = Candidate {
            price_per_hour: whole,
            capacity_type: CapacityType::OnDemand,
            allocatable: room(shape),
            location: &location,
            gpus: &gpus,
            ..Candidate::from(node)
        };
        replica_share(request, &machine)
    };
    candidates.iter().filter_map(cost).min_by(f64::total_cmp)
}

fn room(shape: &Shape) -> Resources {
    Resources {
        cpu_millis: u64::from(shape.vcpus) * 1000,
        memory_bytes: u64::from(shape.memory_gib) << 30,
    }
}

fn fits(request: &Request, shape: &Shape) -> bool {
    let room = room(shape);
    request.resources.cpu_millis <= room.cpu_millis
        && request.resources.memory_bytes <= room.memory_bytes
        && request.gpu.count <= shape.gpus
}
