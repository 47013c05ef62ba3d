//! Google's: node pools; GPU nodes have Google's own labels and taint.

use super::types::zone_name;
use super::{
    Allocatable, BASE36, Parts, Place, Service, digits, hash, pool_name, reserved_cpu,
    reserved_memory, seen_by_kernel,
};

pub(super) fn node(place: &Place<'_>) -> Parts {
    let (pool, region) = (place.pool, place.region);
    let zone = zone_name(Service::Gke, region, place.zone);
    let name = pool_name(pool);
    let of_pool = name
        .bytes()
        .fold(0, |sum, byte| hash(sum ^ u64::from(byte)));
    // Each zone of a pool has an instance group of its own.
    let group = digits(of_pool ^ u64::from(place.zone), b"0123456789abcdef", 8);
    let machine = digits(hash(u64::from(place.number)), BASE36, 2)
        + &digits(u64::from(place.in_pool), BASE36, 3);
    let node = format!("gke-prod-{name}-{group}-{machine}");
    let family = pool
        .shape
        .instance_type
        .split('-')
        .next()
        .unwrap_or_default();
    let mut labels = vec![
        ("cloud.google.com/gke-nodepool", name),
        (
            "cloud.google.com/gke-container-runtime",
            "containerd".to_owned(),
        ),
        ("cloud.google.com/gke-os-distribution", "cos".to_owned()),
        ("cloud.google.com/gke-boot-disk", "pd-balanced".to_owned()),
        (
            "cloud.google.com/gke-cpu-scaling-level",
            pool.shape.vcpus.to_string(),
        ),
        ("cloud.google.com/machine-family", family.to_owned()),
        (
            "cloud.google.com/gke-provisioning",
            if pool.spot { "spot" } else { "standard" }.to_owned(),
        ),
        ("topology.gke.io/zone", zone.clone()),
    ];
    if pool.spot {
        labels.push(("cloud.google.com/gke-spot", "true".to_owned()));
    }
    let mut taints = Vec::new();
    if let Some(accelerator) = accelerator(pool.shape.gpu, pool.shape.instance_type) {
        labels.push(("cloud.google.com/gke-accelerator", accelerator.to_owned()));
        labels.push((
            "cloud.google.com/gke-accelerator-count",
            pool.shape.gpus.to_string(),
        ));
        labels.push((
            "cloud.google.com/gke-gpu-driver-version",
            "default".to_owned(),
        ));
        // Google's services taint GPU nodes by themselves.
        taints.push(("nvidia.com/gpu", "present"));
    }
    let mib = seen_by_kernel(u64::from(pool.shape.memory_gib) * 1024);
    Parts {
        provider_id: format!("gce://hyperion-test/{zone}/{node}"),
        name: node,
        zone,
        labels,
        taints,
        allocatable: Allocatable {
            milli_cpu: u64::from(pool.shape.vcpus) * 1000 - reserved_cpu(pool.shape.vcpus),
            memory_mib: mib - reserved_memory(mib) - 100,
            pods: 110,
        },
    }
}

/// Google's word for a GPU.
fn accelerator(gpu: &str, machine: &str) -> Option<&'static str> {
    Some(match gpu {
        "T4" => "nvidia-tesla-t4",
        "V100" => "nvidia-tesla-v100",
        "L4" => "nvidia-l4",
        "A100" => "nvidia-tesla-a100",
        "A100-80GB" => "nvidia-a100-80gb",
        "H100" if machine.starts_with("a3-mega") => "nvidia-h100-mega-80gb",
        "H100" => "nvidia-h100-80gb",
        "H200" => "nvidia-h200-141gb",
        _ => return None,
    })
}
