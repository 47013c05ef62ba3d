//! What NVIDIA's GPU feature discovery says of GPUs.

use hyperion_providers::shapes::Shape;

/// Labels of a node with GPUs, where that runs. Memory in MiB is what the driver reports.
pub(super) fn labels(shape: &Shape) -> Vec<(&'static str, String)> {
    let Some((product, family, memory)) = product(shape) else {
        return Vec::new();
    };
    vec![
        ("nvidia.com/gpu.present", "true".to_owned()),
        ("nvidia.com/gpu.count", shape.gpus.to_string()),
        ("nvidia.com/gpu.product", product.to_owned()),
        ("nvidia.com/gpu.family", family.to_owned()),
        ("nvidia.com/gpu.memory", memory.to_string()),
        ("nvidia.com/gpu.replicas", "1".to_owned()),
        (
            "nvidia.com/mig.capable",
            (family == "ampere" && shape.gpu.starts_with("A100") || family == "hopper").to_string(),
        ),
    ]
}

fn product(shape: &Shape) -> Option<(&'static str, &'static str, u32)> {
    let pcie = shape.instance_type.starts_with("Standard_NC");
    Some(match shape.gpu {
        "T4" => ("Tesla-T4", "turing", 15_360),
        "T4G" => ("NVIDIA-T4G", "turing", 15_360),
        "V100" => ("Tesla-V100-SXM2-16GB", "volta", 16_384),
        "V100-32GB" => ("Tesla-V100-SXM2-32GB", "volta", 32_768),
        "A10" => ("NVIDIA-A10-24Q", "ampere", 24_512),
        "A10G" => ("NVIDIA-A10G", "ampere", 23_028),
        "A100" => ("NVIDIA-A100-SXM4-40GB", "ampere", 40_960),
        "A100-80GB" if pcie => ("NVIDIA-A100-80GB-PCIe", "ampere", 81_920),
        "A100-80GB" => ("NVIDIA-A100-SXM4-80GB", "ampere", 81_920),
        "L4" => ("NVIDIA-L4", "ada-lovelace", 23_034),
        "L40S" => ("NVIDIA-L40S", "ada-lovelace", 46_068),
        "H100" => ("NVIDIA-H100-80GB-HBM3", "hopper", 81_559),
        "H100-NVL" => ("NVIDIA-H100-NVL", "hopper", 95_830),
        "H200" => ("NVIDIA-H200", "hopper", 143_771),
        _ => return None,
    })
}
