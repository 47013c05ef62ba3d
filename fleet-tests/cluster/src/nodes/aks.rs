//! Microsoft's: scale sets; spot pools have Microsoft's own taint, GPU pools the documented one.

use super::types::zone_name;
use super::{
    Allocatable, BASE36, Parts, Place, Service, digits, gpu, reserved_memory, seen_by_kernel,
};

const SUBSCRIPTION: &str = "00000000-0000-4000-8000-000000000001";

pub(super) fn node(place: &Place<'_>) -> Parts {
    let (pool, region) = (place.pool, place.region);
    let zone = zone_name(Service::Aks, region, place.zone);
    // At most 12 lower-case letters and digits.
    let plain: String = pool
        .shape
        .instance_type
        .trim_start_matches("Standard_")
        .to_ascii_lowercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(if pool.spot { 11 } else { 12 })
        .collect();
    let name = if pool.spot {
        format!("{plain}s")
    } else {
        plain
    };
    let set = format!("aks-{name}-31415926-vmss");
    let group = format!("mc_hyperion-test_prod_{region}");
    let mut labels = vec![
        ("agentpool", name.clone()),
        ("kubernetes.azure.com/agentpool", name),
        ("kubernetes.azure.com/cluster", group.clone()),
        ("kubernetes.azure.com/mode", "user".to_owned()),
        ("kubernetes.azure.com/role", "agent".to_owned()),
        ("kubernetes.azure.com/os-sku", "Ubuntu".to_owned()),
        ("kubernetes.azure.com/storageprofile", "managed".to_owned()),
        ("topology.disk.csi.azure.com/zone", zone.clone()),
    ];
    let mut taints = Vec::new();
    if pool.spot {
        labels.push(("kubernetes.azure.com/scalesetpriority", "spot".to_owned()));
        taints.push(("kubernetes.azure.com/scalesetpriority", "spot"));
    }
    if pool.shape.gpus > 0 {
        labels.push(("accelerator", "nvidia".to_owned()));
        labels.push(("kubernetes.azure.com/accelerator", "nvidia".to_owned()));
        labels.extend(gpu::labels(pool.shape));
        taints.push(("sku", "gpu"));
    }
    let mib = seen_by_kernel(u64::from(pool.shape.memory_gib) * 1024);
    Parts {
        name: format!("{set}{}", digits(u64::from(place.in_pool), BASE36, 6)),
        provider_id: format!(
            "azure:///subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.Compute/\
             virtualMachineScaleSets/{set}/virtualMachines/{}",
            place.in_pool
        ),
        zone,
        labels,
        taints,
        allocatable: Allocatable {
            milli_cpu: u64::from(pool.shape.vcpus) * 1000 - reserved_cpu(pool.shape.vcpus),
            memory_mib: mib - reserved_memory(mib) - 750,
            pods: 110,
        },
    }
}

/// Processor time that AKS keeps by the number of cores, thousandths of a core.
fn reserved_cpu(vcpus: u32) -> u64 {
    match vcpus {
        0..=1 => 60,
        2..=3 => 100,
        4..=7 => 140,
        8..=15 => 180,
        16..=31 => 260,
        32..=63 => 420,
        _ => 740,
    }
}
