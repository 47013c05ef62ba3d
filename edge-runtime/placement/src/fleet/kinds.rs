//! Kinds of machines, and the lanes in which the machines of a kind are kept.
//!
//! A kind is all that the filter and the features read of a machine and that many have in common.
//! What differs between machines of a kind lies in blocks of sixteen lanes, field by field, which
//! the compiler turns into vector instructions.

use crate::cost;
use crate::filter::{Candidate, Constraint, allowed, geography_allowed, tolerated};
use crate::model::{CapacityType, Location, Request, Resources, Supply, Taint, Tier};
use crate::packing::{self, Left, Models};

/// Machines in a block.
pub(super) const LANES: usize = 16;
/// Devices whose rest is kept in lanes; machines with more are looked at one by one.
pub(super) const DEVICES: usize = 8;
/// Numbers up to here are the same as `f64`; what is larger is taken to be this.
pub(super) const EXACT: u64 = 1 << 53;

/// What tells kinds apart. Floating-point numbers are compared by their bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) offer: bool,
    /// Nodes of a workload cluster.
    pub(super) cluster: bool,
    pub(super) class: super::places::Class,
    pub(super) tier: Tier,
    pub(super) capacity_type: CapacityType,
    pub(super) arch: Box<str>,
    pub(super) cpu_millis: u64,
    pub(super) memory_bytes: u64,
    pub(super) gpus: usize,
    pub(super) price: u64,
    pub(super) supply: [u32; 3],
    pub(super) startup: u32,
    pub(super) taints: Box<str>,
}

#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) key: Key,
    pub(super) class: u32,
    pub(super) location: Location,
    pub(super) allocatable: Resources,
    pub(super) price_per_hour: f64,
    pub(super) supply: Supply,
    pub(super) startup_s: f32,
    pub(super) owned: bool,
    pub(super) taints: Vec<Taint>,
    /// All full but the last.
    pub(super) blocks: Vec<u32>,
}

impl Kind {
    pub(super) fn is_wide(&self) -> bool {
        self.key.gpus > DEVICES
    }

    pub(super) fn hourly_cost(&self, request: &Request) -> Option<f64> {
        cost::share_of(
            request,
            self.price_per_hour,
            self.owned,
            self.key.offer,
            self.allocatable,
            self.key.gpus,
        )
    }

    /// The class of its devices.
    pub(super) fn devices(&self) -> Models {
        packing::class(self.key.tier, &self.key.arch, self.key.cluster)
    }

    /// A machine of the kind, for those who read nothing but what kinds have in common.
    pub(super) fn typical(&self) -> Candidate<'_> {
        Candidate {
            id: "",
            location: &self.location,
            arch: &self.key.arch,
            capacity_type: self.key.capacity_type,
            allocatable: self.allocatable,
            free: self.allocatable,
            gpus: &[],
            price_per_hour: self.price_per_hour,
            supply: self.supply,
            startup_s: self.startup_s,
            node: None,
        }
    }

    /// The first constraint between readiness and labels that rules the kind out.
    pub(super) fn ruled_out(&self, request: &Request) -> Option<Constraint> {
        if !geography_allowed(request, &self.location) {
            return Some(Constraint::Geographies);
        }
        if !allowed(&request.clouds, &self.location.provider) {
            return Some(Constraint::Clouds);
        }
        if !allowed(&request.tiers, &self.location.tier) {
            return Some(Constraint::Tiers);
        }
        let arch = &self.key.arch;
        let foreign = !request.archs.is_empty() && !request.archs.iter().any(|a| **a == **arch);
        foreign.then_some(Constraint::Architecture)
    }

    /// The first constraint between labels and GPUs that does.
    pub(super) fn repels(&self, request: &Request) -> Option<Constraint> {
        if !self.taints.iter().all(|taint| tolerated(request, taint)) {
            return Some(Constraint::Taints);
        }
        if !request.cluster_only_fields.is_empty() && !self.key.offer && !self.key.cluster {
            return Some(Constraint::ClusterOnly);
        }
        (self.key.cluster && request.gpu.is_share()).then_some(Constraint::Gpu)
    }
}

/// Sixteen machines of a kind.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) kind: u32,
    pub(super) len: usize,
    pub(super) handles: [u32; LANES],
    pub(super) ready: u16,
    pub(super) schedulable: u16,
    /// Machines whose accounts are such that they have to be looked at one by one.
    pub(super) odd: u16,
    pub(super) cpu_free: [f64; LANES],
    pub(super) memory_free: [f64; LANES],
    pub(super) cpu_used: [f32; LANES],
    pub(super) images: [u32; LANES],
    /// Thousandths left, by device.
    pub(super) gpu_free: [[u16; LANES]; DEVICES],
}

impl Block {
    pub(super) const fn new(kind: u32) -> Self {
        Self {
            kind,
            len: 0,
            handles: [0; LANES],
            ready: 0,
            schedulable: 0,
            odd: 0,
            cpu_free: [0.0; LANES],
            memory_free: [0.0; LANES],
            cpu_used: [0.0; LANES],
            images: [0; LANES],
            gpu_free: [[0; LANES]; DEVICES],
        }
    }

    pub(super) const fn live(&self) -> u16 {
        ((1_u32 << self.len) - 1) as u16
    }

    /// What is left of a machine that is neither odd nor has more than [`DEVICES`].
    pub(super) fn left(
        &self,
        lane: usize,
        devices: usize,
    ) -> Left<impl Iterator<Item = u32> + Clone + '_> {
        let devices = self.gpu_free.iter().take(devices);
        Left {
            cpu_millis: self.cpu_free[lane],
            memory_bytes: self.memory_free[lane],
            devices: devices.map(move |device| u32::from(device[lane])),
        }
    }

    /// Lanes without enough GPUs.
    pub(super) fn short_of_gpus(&self, devices: usize, needed: u16, count: u32) -> u16 {
        let mut enough = [0_u16; LANES];
        for device in &self.gpu_free[..devices.min(DEVICES)] {
            for (sum, free) in enough.iter_mut().zip(device) {
                *sum += u16::from(*free >= needed);
            }
        }
        let count = count.min(u32::from(u16::MAX)) as u16;
        let mut short = [0_u8; LANES];
        for (short, enough) in short.iter_mut().zip(&enough) {
            *short = u8::from(*enough < count);
        }
        pack(&short)
    }
}

/// Lanes with less than `asked`.
pub(super) fn below(free: &[f64; LANES], asked: f64) -> u16 {
    let mut short = [0_u8; LANES];
    for (short, free) in short.iter_mut().zip(free) {
        *short = u8::from(*free < asked);
    }
    pack(&short)
}

/// A mask of sixteen bytes that are 0 or 1.
pub(super) fn pack(bytes: &[u8; LANES]) -> u16 {
    // The product brings the i-th byte's bit to the i-th place of the top byte; no two of its
    // terms fall on one place, so nothing is carried.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let half = |from: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[from..from + 8]);
        (u64::from_le_bytes(eight).wrapping_mul(GATHER) >> 56) as u16
    };
    half(0) | half(8) << 8
}

/// Places of the ones in a mask, from the smallest.
pub(super) fn ones(mut mask: u16) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_a_bit_for_each_byte() {
        for mask in 0..=u16::MAX {
            let mut bytes = [0; LANES];
            for lane in ones(mask) {
                bytes[lane] = 1;
            }
            assert_eq!(pack(&bytes), mask);
        }
    }
}
