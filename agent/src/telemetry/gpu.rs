//! GPUs, behind one trait.

use hyperion_proto::agent_v1::{Gpu, GpuStatus};

/// A source of GPU facts: NVML on servers, sysfs on Jetson boards, or nothing.
pub trait GpuReader: Send {
    /// The GPUs of this node; asked once per start and at each connection.
    fn list(&mut self) -> Vec<Gpu>;
    /// Their state now; asked once per telemetry interval, so it must not block for long.
    fn read(&mut self) -> Vec<GpuStatus>;
}

/// A node without GPUs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGpu;

impl GpuReader for NoGpu {
    fn list(&mut self) -> Vec<Gpu> {
        Vec::new()
    }

    fn read(&mut self) -> Vec<GpuStatus> {
        Vec::new()
    }
}
