//! GPUs as devices that can be shared in thousandths.

use crate::model::{GpuDevice, GpuRequest};

/// Thousandths of a whole device.
pub const WHOLE: u32 = 1000;

/// True where [`assign`] would succeed; does not allocate.
#[must_use]
pub fn fits(request: &GpuRequest, gpus: &[GpuDevice]) -> bool {
    if request.count == 0 {
        return true;
    }
    let needed = request.millis.clamp(1, WHOLE);
    gpus.iter()
        .filter(|g| g.free_millis >= needed)
        .take(request.count as usize)
        .count()
        == request.count as usize
}

/// Devices for the request, as (uuid, thousandths): the fullest ones that still have room, so that
/// whole devices stay whole for those who need them; ties by uuid.
#[must_use]
pub fn assign(request: &GpuRequest, gpus: &[GpuDevice]) -> Option<Vec<(String, u32)>> {
    let needed = request.millis.clamp(1, WHOLE);
    let mut room: Vec<&GpuDevice> = gpus.iter().filter(|g| g.free_millis >= needed).collect();
    if request.count == 0 {
        return Some(Vec::new());
    }
    if room.len() < request.count as usize {
        return None;
    }
    room.sort_by(|a, b| (a.free_millis, &a.uuid).cmp(&(b.free_millis, &b.uuid)));
    Some(
        room.iter()
            .take(request.count as usize)
            .map(|g| (g.uuid.clone(), needed))
            .collect(),
    )
}
