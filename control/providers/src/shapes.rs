//! The instance types that are known: what a machine of each has. Prices of other types are left
//! out, since nobody could tell what would fit on them.

use hyperion_placement::model::Provider::{self, Aws, Azure, Gcp};

/// What a machine of an instance type has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Who sells it.
    pub provider: Provider,
    /// The provider's name of the type.
    pub instance_type: &'static str,
    /// Virtual cores.
    pub vcpus: u32,
    /// GiB.
    pub memory_gib: u32,
    /// GPU model; empty without GPUs.
    pub gpu: &'static str,
    /// Whole GPUs.
    pub gpus: u32,
    /// GB of each GPU.
    pub gpu_memory_gb: u32,
}

impl Shape {
    /// Kubernetes' word for the architecture. Of the types here only AWS's g5g have Arm cores.
    #[must_use]
    pub fn arch(&self) -> &'static str {
        if self.instance_type.starts_with("g5g.") {
            "arm64"
        } else {
            "amd64"
        }
    }
}

/// The shape of an instance type; none for one that is not known. Azure writes its names in more
/// than one way, so that case does not count.
#[must_use]
pub fn shape(provider: Provider, instance_type: &str) -> Option<&'static Shape> {
    SHAPES
        .iter()
        .find(|s| s.provider == provider && s.instance_type.eq_ignore_ascii_case(instance_type))
}

/// Sources, read 2025 and 2026: for AWS the pages "Amazon EC2 Instance types" (accelerated
/// computing), for GCP "GPU machine types" and "General-purpose machine family", for Azure "Sizes
/// for virtual machines" (GPU accelerated). Types with a part of a GPU are not here: what they can
/// run is not known.
#[rustfmt::skip]
pub const SHAPES: &[Shape] = &[
    of(Aws, "c5.2xlarge", 8, 16, "", 0, 0),
    of(Aws, "m5.2xlarge", 8, 32, "", 0, 0),
    of(Aws, "m5.8xlarge", 32, 128, "", 0, 0),
    of(Aws, "g4dn.xlarge", 4, 16, "T4", 1, 16),
    of(Aws, "g4dn.2xlarge", 8, 32, "T4", 1, 16),
    of(Aws, "g4dn.4xlarge", 16, 64, "T4", 1, 16),
    of(Aws, "g4dn.8xlarge", 32, 128, "T4", 1, 16),
    of(Aws, "g4dn.12xlarge", 48, 192, "T4", 4, 16),
    of(Aws, "g4dn.16xlarge", 64, 256, "T4", 1, 16),
    of(Aws, "g4dn.metal", 96, 384, "T4", 8, 16),
    of(Aws, "g5.xlarge", 4, 16, "A10G", 1, 24),
    of(Aws, "g5.2xlarge", 8, 32, "A10G", 1, 24),
    of(Aws, "g5.4xlarge", 16, 64, "A10G", 1, 24),
    of(Aws, "g5.8xlarge", 32, 128, "A10G", 1, 24),
    of(Aws, "g5.12xlarge", 48, 192, "A10G", 4, 24),
    of(Aws, "g5.16xlarge", 64, 256, "A10G", 1, 24),
    of(Aws, "g5.24xlarge", 96, 384, "A10G", 4, 24),
    of(Aws, "g5.48xlarge", 192, 768, "A10G", 8, 24),
    of(Aws, "g5g.xlarge", 4, 8, "T4G", 1, 16),
    of(Aws, "g5g.2xlarge", 8, 16, "T4G", 1, 16),
    of(Aws, "g5g.4xlarge", 16, 32, "T4G", 1, 16),
    of(Aws, "g5g.8xlarge", 32, 64, "T4G", 1, 16),
    of(Aws, "g5g.16xlarge", 64, 128, "T4G", 2, 16),
    of(Aws, "g6.xlarge", 4, 16, "L4", 1, 24),
    of(Aws, "g6.2xlarge", 8, 32, "L4", 1, 24),
    of(Aws, "g6.4xlarge", 16, 64, "L4", 1, 24),
    of(Aws, "g6.8xlarge", 32, 128, "L4", 1, 24),
    of(Aws, "g6.12xlarge", 48, 192, "L4", 4, 24),
    of(Aws, "g6.16xlarge", 64, 256, "L4", 1, 24),
    of(Aws, "g6.24xlarge", 96, 384, "L4", 4, 24),
    of(Aws, "g6.48xlarge", 192, 768, "L4", 8, 24),
    of(Aws, "gr6.4xlarge", 16, 128, "L4", 1, 24),
    of(Aws, "gr6.8xlarge", 32, 256, "L4", 1, 24),
    of(Aws, "g6e.xlarge", 4, 32, "L40S", 1, 48),
    of(Aws, "g6e.2xlarge", 8, 64, "L40S", 1, 48),
    of(Aws, "g6e.4xlarge", 16, 128, "L40S", 1, 48),
    of(Aws, "g6e.8xlarge", 32, 256, "L40S", 1, 48),
    of(Aws, "g6e.12xlarge", 48, 384, "L40S", 4, 48),
    of(Aws, "g6e.16xlarge", 64, 512, "L40S", 1, 48),
    of(Aws, "g6e.24xlarge", 96, 768, "L40S", 4, 48),
    of(Aws, "g6e.48xlarge", 192, 1536, "L40S", 8, 48),
    of(Aws, "p3.2xlarge", 8, 61, "V100", 1, 16),
    of(Aws, "p3.8xlarge", 32, 244, "V100", 4, 16),
    of(Aws, "p3.16xlarge", 64, 488, "V100", 8, 16),
    of(Aws, "p3dn.24xlarge", 96, 768, "V100-32GB", 8, 32),
    of(Aws, "p4d.24xlarge", 96, 1152, "A100", 8, 40),
    of(Aws, "p4de.24xlarge", 96, 1152, "A100-80GB", 8, 80),
    of(Aws, "p5.4xlarge", 16, 256, "H100", 1, 80),
    of(Aws, "p5.48xlarge", 192, 2048, "H100", 8, 80),
    of(Aws, "p5e.48xlarge", 192, 2048, "H200", 8, 141),
    of(Aws, "p5en.48xlarge", 192, 2048, "H200", 8, 141),
    of(Gcp, "e2-standard-8", 8, 32, "", 0, 0),
    of(Gcp, "n2-standard-8", 8, 32, "", 0, 0),
    of(Gcp, "n2-standard-32", 32, 128, "", 0, 0),
    of(Gcp, "g2-standard-4", 4, 16, "L4", 1, 24),
    of(Gcp, "g2-standard-8", 8, 32, "L4", 1, 24),
    of(Gcp, "g2-standard-12", 12, 48, "L4", 1, 24),
    of(Gcp, "g2-standard-16", 16, 64, "L4", 1, 24),
    of(Gcp, "g2-standard-24", 24, 96, "L4", 2, 24),
    of(Gcp, "g2-standard-32", 32, 128, "L4", 1, 24),
    of(Gcp, "g2-standard-48", 48, 192, "L4", 4, 24),
    of(Gcp, "g2-standard-96", 96, 384, "L4", 8, 24),
    of(Gcp, "a2-highgpu-1g", 12, 85, "A100", 1, 40),
    of(Gcp, "a2-highgpu-2g", 24, 170, "A100", 2, 40),
    of(Gcp, "a2-highgpu-4g", 48, 340, "A100", 4, 40),
    of(Gcp, "a2-highgpu-8g", 96, 680, "A100", 8, 40),
    of(Gcp, "a2-megagpu-16g", 96, 1360, "A100", 16, 40),
    of(Gcp, "a2-ultragpu-1g", 12, 170, "A100-80GB", 1, 80),
    of(Gcp, "a2-ultragpu-2g", 24, 340, "A100-80GB", 2, 80),
    of(Gcp, "a2-ultragpu-4g", 48, 680, "A100-80GB", 4, 80),
    of(Gcp, "a2-ultragpu-8g", 96, 1360, "A100-80GB", 8, 80),
    of(Gcp, "a3-highgpu-1g", 26, 234, "H100", 1, 80),
    of(Gcp, "a3-highgpu-2g", 52, 468, "H100", 2, 80),
    of(Gcp, "a3-highgpu-4g", 104, 936, "H100", 4, 80),
    of(Gcp, "a3-highgpu-8g", 208, 1872, "H100", 8, 80),
    of(Gcp, "a3-megagpu-8g", 208, 1872, "H100", 8, 80),
    of(Gcp, "a3-ultragpu-8g", 224, 2952, "H200", 8, 141),
    of(Azure, "Standard_D8s_v5", 8, 32, "", 0, 0),
    of(Azure, "Standard_D32s_v5", 32, 128, "", 0, 0),
    of(Azure, "Standard_NC4as_T4_v3", 4, 28, "T4", 1, 16),
    of(Azure, "Standard_NC8as_T4_v3", 8, 56, "T4", 1, 16),
    of(Azure, "Standard_NC16as_T4_v3", 16, 110, "T4", 1, 16),
    of(Azure, "Standard_NC64as_T4_v3", 64, 440, "T4", 4, 16),
    of(Azure, "Standard_NC6s_v3", 6, 112, "V100", 1, 16),
    of(Azure, "Standard_NC12s_v3", 12, 224, "V100", 2, 16),
    of(Azure, "Standard_NC24s_v3", 24, 448, "V100", 4, 16),
    of(Azure, "Standard_NC24rs_v3", 24, 448, "V100", 4, 16),
    of(Azure, "Standard_ND40rs_v2", 40, 672, "V100-32GB", 8, 32),
    of(Azure, "Standard_NV36ads_A10_v5", 36, 440, "A10", 1, 24),
    of(Azure, "Standard_NV36adms_A10_v5", 36, 880, "A10", 1, 24),
    of(Azure, "Standard_NV72ads_A10_v5", 72, 880, "A10", 2, 24),
    of(Azure, "Standard_NC24ads_A100_v4", 24, 220, "A100-80GB", 1, 80),
    of(Azure, "Standard_NC48ads_A100_v4", 48, 440, "A100-80GB", 2, 80),
    of(Azure, "Standard_NC96ads_A100_v4", 96, 880, "A100-80GB", 4, 80),
    of(Azure, "Standard_ND96asr_v4", 96, 900, "A100", 8, 40),
    of(Azure, "Standard_ND96amsr_A100_v4", 96, 1900, "A100-80GB", 8, 80),
    of(Azure, "Standard_NC40ads_H100_v5", 40, 320, "H100-NVL", 1, 94),
    of(Azure, "Standard_NC80adis_H100_v5", 80, 640, "H100-NVL", 2, 94),
    of(Azure, "Standard_ND96isr_H100_v5", 96, 1900, "H100", 8, 80),
    of(Azure, "Standard_ND96isr_H200_v5", 96, 1850, "H200", 8, 141),
];

const fn of(
    provider: Provider,
    instance_type: &'static str,
    vcpus: u32,
    memory_gib: u32,
    gpu: &'static str,
    gpus: u32,
    gpu_memory_gb: u32,
) -> Shape {
    Shape {
        provider,
        instance_type,
        vcpus,
        memory_gib,
        gpu,
        gpus,
        gpu_memory_gb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_price_table_has_a_shape() {
        for row in crate::prices::PRICES {
            assert!(shape(row.0, row.2).is_some(), "{row:?}");
        }
    }

    #[test]
    fn each_type_is_there_once_and_makes_sense() {
        let mut seen = std::collections::BTreeSet::new();
        for s in SHAPES {
            assert!(seen.insert((s.provider, s.instance_type)), "{s:?}");
            assert!(s.vcpus > 0 && s.memory_gib > 0, "{s:?}");
            assert_eq!(s.gpus > 0, !s.gpu.is_empty(), "{s:?}");
            assert_eq!(s.gpus > 0, s.gpu_memory_gb > 0, "{s:?}");
        }
    }

    #[test]
    fn case_does_not_count_and_providers_do() {
        let shape_of = |p, name| shape(p, name).map(|s| s.instance_type);
        let upper = "STANDARD_NC4AS_T4_V3";
        assert_eq!(shape_of(Azure, upper), Some("Standard_NC4as_T4_v3"));
        assert_eq!(shape_of(Gcp, "g5.xlarge"), None);
    }
}
