//! Verifies a choice with code that is not the filter's: it starts from the choice and recomputes
//! every hard constraint, whoever decided.

use crate::choose::{CandidateRef, Choice};
use crate::model::{
    CLUSTER_LABEL, CapacityType, Node, Offer, Request, Resources, Snapshot, Taint, Toleration,
};

/// A broken hard constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{constraint}: {detail}")]
pub struct Violation {
    /// The user's word for the constraint.
    pub constraint: &'static str,
    /// What was found.
    pub detail: String,
}

/// All hard constraints that `choice` breaks.
///
/// # Errors
/// The violations, never empty.
pub fn check(
    snapshot: &Snapshot,
    request: &Request,
    choice: &Choice,
) -> Result<(), Vec<Violation>> {
    let place = match &choice.candidate {
        CandidateRef::Node(id) => snapshot.node(id).map(Place::Node).ok_or(("node", id)),
        CandidateRef::Offer(id) => snapshot.offer(id).map(Place::Offer).ok_or(("offer", id)),
    };
    match place {
        Ok(place) => check_place(place, request, choice),
        Err((constraint, id)) => Err(vec![Violation {
            constraint,
            detail: format!("{id} is not in the snapshot"),
        }]),
    }
}

/// What a choice names.
pub(crate) enum Place<'a> {
    Node(&'a Node),
    Offer(&'a Offer),
}

/// [`check`], for those who found the machine.
pub(crate) fn check_place(
    place: Place<'_>,
    request: &Request,
    choice: &Choice,
) -> Result<(), Vec<Violation>> {
    let mut found = Vec::new();
    let mut broken =
        |constraint: &'static str, detail: String| found.push(Violation { constraint, detail });
    let (location, arch, free, gpus) = match place {
        Place::Node(node) => {
            let id = &node.id;
            if !(node.ready && node.schedulable) {
                broken("notReady", format!("{id} is not ready or is cordoned"));
            }
            for (key, value) in &request.node_selector {
                if node.labels.get(key) != Some(value) {
                    broken("nodeSelector", format!("{id} lacks {key}={value}"));
                }
            }
            let unwelcome = node
                .taints
                .iter()
                .filter(|taint| taint.effect != "PreferNoSchedule")
                .find(|taint| !request.tolerations.iter().any(|t| permits(t, taint)));
            if let Some(taint) = unwelcome {
                broken("taints", format!("{id} has {}={}", taint.key, taint.value));
            }
            let in_cluster = node.labels.contains_key(CLUSTER_LABEL);
            if let Some(field) = request.cluster_only_fields.first().filter(|_| !in_cluster) {
                broken("clusterOnlyFields", format!("{id} can't carry out {field}"));
            }
            if in_cluster && request.gpu.count > 0 && request.gpu.millis != crate::gpu::WHOLE {
                broken("nvidia.com/gpu", format!("{id} gives whole GPUs only"));
            }
            if request.avoid.contains_key(id) {
                broken("recentFailure", format!("{id} is to be avoided"));
            }
            if let (Some(most), true) = (
                request.max_hourly_cost,
                node.capacity_type != CapacityType::Owned,
            ) && (choice.hourly_cost > most || node.price_per_hour.is_nan())
            {
                broken("maxHourlyCost", format!("{} > {most}", choice.hourly_cost));
            }
            (&node.location, &node.arch, node.free, &node.gpus)
        }
        Place::Offer(offer) => {
            let id = &offer.id;
            // An offer is bought whole.
            if let Some(most) = request.max_hourly_cost
                && (offer.price_per_hour > most || offer.price_per_hour.is_nan())
            {
                broken(
                    "maxHourlyCost",
                    format!("{} > {most}", offer.price_per_hour),
                );
            }
            if !request.node_selector.is_empty() {
                broken("nodeSelector", format!("{id} has no labels yet"));
            }
            (&offer.location, &offer.arch, offer.allocatable, &offer.gpus)
        }
    };
    if !request.geographies.is_empty()
        && !request
            .geographies
            .iter()
            .any(|g| Some(*g) == location.geography)
    {
        broken("geographies", format!("{:?}", location.geography));
    }
    if !request.clouds.is_empty() && !request.clouds.contains(&location.provider) {
        broken("clouds", location.provider.to_string());
    }
    if !request.tiers.is_empty() && !request.tiers.contains(&location.tier) {
        broken("tiers", location.tier.to_string());
    }
    if !request.archs.is_empty() && !request.archs.iter().any(|a| a == arch) {
        broken("architecture", arch.clone());
    }
    let Resources {
        cpu_millis,
        memory_bytes,
    } = request.resources;
    if cpu_millis > free.cpu_millis {
        broken(
            "cpu",
            format!("{cpu_millis}m asked, {}m free", free.cpu_millis),
        );
    }
    if memory_bytes > free.memory_bytes {
        broken(
            "memory",
            format!("{memory_bytes} bytes asked, {} free", free.memory_bytes),
        );
    }
    let wanted = u64::from(request.gpu.count) * u64::from(request.gpu.millis.clamp(1, 1000));
    let given: u64 = choice.gpus.iter().map(|(_, m)| u64::from(*m)).sum();
    if given != wanted {
        broken(
            "nvidia.com/gpu",
            format!("{given} thousandths given, {wanted} asked"),
        );
    }
    for (uuid, millis) in &choice.gpus {
        match gpus.iter().find(|g| g.uuid == *uuid) {
            None => broken("nvidia.com/gpu", format!("no device {uuid}")),
            Some(g) if g.free_millis < *millis => {
                broken(
                    "nvidia.com/gpu",
                    format!("{uuid} has {} of {millis} thousandths left", g.free_millis),
                );
            }
            Some(_) => {}
        }
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Kubernetes' rules of toleration: an empty key with `Exists` tolerates every taint, an empty
/// effect matches every effect.
fn permits(toleration: &Toleration, taint: &Taint) -> bool {
    if !toleration.effect.is_empty() && toleration.effect != taint.effect {
        return false;
    }
    match (toleration.operator.as_str(), toleration.key.as_str()) {
        ("Exists", "") => true,
        ("Exists", key) => key == taint.key,
        (_, "") => false,
        (_, key) => key == taint.key && toleration.value == taint.value,
    }
}
