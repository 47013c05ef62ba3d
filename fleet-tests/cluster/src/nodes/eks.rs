//! Amazon's: managed node groups, GPU feature discovery, GPU groups with the usual taint.

use super::types::zone_name;
use super::{
    Allocatable, Parts, Place, Service, address, digits, gpu, hash, pool_name, reserved_cpu,
    seen_by_kernel,
};

pub(super) fn node(place: &Place<'_>) -> Parts {
    let (pool, region) = (place.pool, place.region);
    let zone = zone_name(Service::Eks, region, place.zone);
    let dashes = address(place.number).replace('.', "-");
    // Only Amazon's first region has a short domain.
    let domain = if region == "us-east-1" {
        "ec2.internal".to_owned()
    } else {
        format!("{region}.compute.internal")
    };
    let instance = digits(hash(u64::from(place.number)), b"0123456789abcdef", 16);
    let mut labels = vec![
        (
            "eks.amazonaws.com/capacityType",
            if pool.spot { "SPOT" } else { "ON_DEMAND" }.to_owned(),
        ),
        ("eks.amazonaws.com/nodegroup", pool_name(pool)),
        (
            "eks.amazonaws.com/nodegroup-image",
            "ami-0c55b159cbfafe1f0".to_owned(),
        ),
        (
            "k8s.io/cloud-provider-aws",
            "8f3c2b0d5a1e4c7796a8d1f0e2b3c4d5".to_owned(),
        ),
        ("topology.ebs.csi.aws.com/zone", zone.clone()),
        (
            "topology.k8s.aws/zone-id",
            format!("use1-az{}", place.zone + 1),
        ),
    ];
    labels.extend(gpu::labels(pool.shape));
    let taints = if pool.shape.gpus > 0 {
        vec![("nvidia.com/gpu", "true")]
    } else {
        Vec::new()
    };
    // By the number of network interfaces, and at most 110 below 30 cores.
    let pods = if pool.shape.vcpus < 30 { 58 } else { 234 };
    let mib = seen_by_kernel(u64::from(pool.shape.memory_gib) * 1024);
    Parts {
        name: format!("ip-{dashes}.{domain}"),
        provider_id: format!("aws:///{zone}/i-0{instance}"),
        zone,
        labels,
        taints,
        allocatable: Allocatable {
            milli_cpu: u64::from(pool.shape.vcpus) * 1000 - reserved_cpu(pool.shape.vcpus),
            // 255 MiB and 11 for each Pod, and 100 before anything is evicted.
            memory_mib: mib - (255 + 11 * u64::from(pods) + 100),
            pods,
        },
    }
}
