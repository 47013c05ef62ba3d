//! Scores of sixteen machines at once, in single precision, with bounds on how far the exact score
//! may be from them. Whatever is not certain to be beaten is then scored exactly, so that vector
//! arithmetic never changes a decision.

use super::embeddings::{Embeddings, Hidden, Order};
use super::kinds::{Block, Kind, LANES, ones};
use super::places::Reach;
use crate::features::{self, FIT, FIT_LEN, FitSlot, PAIR, PAIR_LEN, PairSlot};
use crate::filter::Candidate;
use crate::latency::{self, MAX_WAIT_MS, P99_FACTOR, SERVICE_CV2, TYPICAL_USE};
use crate::model::{CapacityType, Request, Supply};
use crate::policy::Network;
use crate::policy::network::{EMBED, Prepared};
use crate::reward::{RewardWeights, Weights};
use crate::score::{HALF_P99_MS, weights};

/// Where a score lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) lower: [f32; LANES],
    pub(super) upper: [f32; LANES],
}

impl Bounds {
    pub(super) const UNKNOWN: Self = Self {
        lower: [f32::NEG_INFINITY; LANES],
        upper: [f32::INFINITY; LANES],
    };
}

/// What the lanes of one block are scored with.
pub(super) struct Lanes<'a> {
    pub(super) block: &'a Block,
    pub(super) images: &'a [f32],
    pub(super) siblings: u16,
    pub(super) id: u32,
    /// None of them is odd or named by the request.
    pub(super) plain: bool,
}

/// A request on a kind of machine: what p99 and shares depend on.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// p99 without queueing, milliseconds; none where unknown.
    idle_ms: Option<f64>,
    service_ms: f64,
    added: f64,
    cpu: f64,
    memory: f64,
    /// One over what the machine has; 0 where it has nothing.
    per_cpu: f64,
    per_memory: f64,
    offer: bool,
}

/// Numbers beyond this are scored one by one, so that nothing overflows on the way.
const SANE: f64 = 1e9;

impl Load {
    fn new(request: &Request, kind: &Kind, reach: &Reach) -> Option<Self> {
        let per = |all: u64| if all == 0 { 0.0 } else { 1.0 / all as f64 };
        let service_ms = latency::service_ms(request);
        let idle_ms = reach.client_rtt_ms.map(|rtt| rtt * P99_FACTOR + service_ms);
        let sane = |x: f64| x < SANE;
        let all = kind.allocatable.cpu_millis.max(1) as f64;
        (sane(service_ms) && idle_ms.is_none_or(sane) && !kind.is_wide()).then(|| Self {
            idle_ms,
            service_ms,
            added: TYPICAL_USE * request.resources.cpu_millis as f64 / all,
            cpu: request.resources.cpu_millis as f64,
            memory: request.resources.memory_bytes as f64,
            per_cpu: per(kind.allocatable.cpu_millis),
            per_memory: per(kind.allocatable.memory_bytes),
            offer: kind.key.offer,
        })
    }

    fn p99_ms(&self, idle_ms: f64, block: &Block) -> [f32; LANES] {
        let mut busy = [0.0_f64; LANES];
        let mut tail = [0.0_f32; LANES];
        for lane in 0..LANES {
            busy[lane] = (f64::from(block.cpu_used[lane]) + self.added).clamp(0.0, 0.999);
            tail[lane] = (100.0 * busy[lane]).max(1.0) as f32;
        }
        for x in &mut tail {
            *x = ln(*x);
        }
        let factor = (1.0 + SERVICE_CV2) / 2.0 * self.service_ms;
        let mut out = [0.0; LANES];
        for lane in 0..LANES {
            let wait = f64::from(tail[lane]) * factor / (1.0 - busy[lane]);
            out[lane] = (idle_ms + wait.min(MAX_WAIT_MS)) as f32;
        }
        out
    }

    /// Shares of CPU and memory left after placing.
    fn left(&self, block: &Block) -> ([f32; LANES], [f32; LANES]) {
        let (mut cpu, mut memory) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            cpu[lane] = ((block.cpu_free[lane] - self.cpu).max(0.0) * self.per_cpu) as f32;
            memory[lane] =
                ((block.memory_free[lane] - self.memory).max(0.0) * self.per_memory) as f32;
        }
        (cpu, memory)
    }

    fn images(&self, lanes: &Lanes<'_>) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        if !self.offer {
            for (out, set) in out.iter_mut().zip(&lanes.block.images) {
                *out = lanes.images[*set as usize];
            }
        }
        out
    }
}

/// The rules on a kind of machine.
#[derive(Debug, Clone)]
pub(super) struct RoughRules {
    load: Load,
    base: f32,
    latency: f32,
    target_ms: Option<f32>,
}

impl RoughRules {
    pub(super) fn new(request: &Request, kind: &Kind, reach: &Reach) -> Option<Self> {
        let load = Load::new(request, kind, reach)?;
        let w = weights(request.goal);
        let cost = kind
            .hourly_cost(request)
            .map_or(0.0, |c| w.cost / (1.0 + c));
        let spot = request.prefer_spot && kind.key.capacity_type == CapacityType::Spot;
        let near = reach
            .data_rtt_ms
            .map_or(0.0, |rtt| 1.0 / (1.0 + rtt / HALF_P99_MS));
        let base = cost + f64::from(u8::from(spot)) + near + if kind.owned { 0.1 } else { 0.0 };
        Some(Self {
            load,
            base: base as f32,
            latency: w.latency as f32,
            target_ms: request.latency_target_ms.map(|t| t as f32),
        })
    }

    pub(super) fn bounds(&self, lanes: &Lanes<'_>) -> Bounds {
        // The largest sum of terms is about 15, of which rounding takes less than a ten-thousandth.
        const OFF: f32 = 1e-4;
        let (cpu, memory) = self.load.left(lanes.block);
        let images = self.load.images(lanes);
        let mut sum = [0.0; LANES];
        for lane in 0..LANES {
            sum[lane] = self.base + 0.5 * cpu[lane].min(memory[lane]) + 0.2 * images[lane];
        }
        for lane in ones(lanes.siblings) {
            sum[lane] -= 1.0;
        }
        let mut upper = sum;
        let mut lower = sum;
        if let Some(idle_ms) = self.load.idle_ms {
            let p99 = self.load.p99_ms(idle_ms, lanes.block);
            let half = 1.0 / HALF_P99_MS as f32;
            let target = self.target_ms.unwrap_or(f32::INFINITY);
            for lane in 0..LANES {
                let p99 = p99[lane];
                let term = self.latency / (1.0 + p99 * half);
                // Near the target it is not certain on which side the exact p99 is.
                let near = p99 * 1e-5 + 1e-4;
                let over = |p99: f32| {
                    if p99 > target {
                        self.latency * 0.5
                    } else {
                        0.0
                    }
                };
                upper[lane] += term - over(p99 - near);
                lower[lane] += term - over(p99 + near);
            }
        }
        for lane in 0..LANES {
            upper[lane] += OFF;
            lower[lane] -= OFF;
        }
        Bounds { lower, upper }
    }
}

/// A network, laid out to score many candidates at once.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) order: Order,
    /// P by column, each as [`Order::sized`] makes it.
    pair: Vec<[f32; EMBED]>,
    /// By slot of `p`: the most that one unit of it adds to the sum of magnitudes.
    pair_reach: [f32; PAIR_LEN],
}

impl Layout {
    /// None where the network's layers have not the lengths of the feature table.
    pub(super) fn new(network: &Network) -> Option<Self> {
        let fits =
            network
                .layers()
                .iter()
                .zip(Network::zeros().layers())
                .all(|((_, own), (_, right))| {
                    own.weight.len() == right.weight.len()
                        && own.bias.len() == right.bias.len()
                        && own.columns == right.columns
                });
        if !fits {
            return None;
        }
        let order = Order::of(&network.head.weight);
        let column = |slot: usize| {
            let mut column = [0.0; EMBED];
            for (row, out) in network.pair.weight.chunks_exact(PAIR_LEN).zip(&mut column) {
                *out = row[slot];
            }
            order.sized(&column)
        };
        let pair: Vec<[f32; EMBED]> = (0..PAIR_LEN).map(column).collect();
        let mut pair_reach = [0.0; PAIR_LEN];
        for (reach, column) in pair_reach.iter_mut().zip(&pair) {
            *reach = magnitude(column);
        }
        Some(Self {
            pair,
            pair_reach,
            order,
        })
    }
}

fn magnitude(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x.abs()).sum()
}

/// A network that has read a request, on a kind of machine.
#[derive(Debug, Clone)]
pub(super) struct RoughNetwork {
    load: Load,
    hidden: Hidden,
    direct: f32,
    /// The most that the fit adds.
    fits: f32,
    /// By [`features::FIT`], with the scale divided out.
    fit: [f32; FIT_LEN],
    off: f32,
    gpu: Gpu,
    weights: Weights,
    target_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Gpu {
    devices: usize,
    millis: u16,
    count: u32,
    wanted: f32,
    per_all: f32,
}

/// What a network makes of a request at a class of places.
#[derive(Debug, Clone)]
pub(super) struct ClassPart {
    hidden: [f32; EMBED],
    direct: f32,
    /// Sum of the magnitudes that went into both.
    sum: f32,
    latency_term: f64,
}

impl ClassPart {
    /// `typical` is any machine there.
    pub(super) fn new(
        layout: &Layout,
        prepared: &Prepared,
        request: &Request,
        reach: &Reach,
        typical: &Candidate<'_>,
    ) -> Self {
        let weights = RewardWeights::default().of(request.goal);
        // A machine of which nothing is known, so that only what depends on the place is left.
        let bare = Candidate {
            capacity_type: CapacityType::Owned,
            supply: Supply::default(),
            startup_s: 0.0,
            ..*typical
        };
        let mut pair = features::encode_pair(&reach.kind(None), &weights, request, &bare);
        pair[PairSlot::Reward as usize] = 0.0;
        let idle_ms = reach
            .client_rtt_ms
            .map(|rtt| rtt * P99_FACTOR + latency::service_ms(request));
        let hidden = layout.order.sized(&prepared.hidden);
        let mut part = Self {
            hidden,
            direct: 0.0,
            sum: magnitude(&hidden),
            latency_term: idle_ms.map_or(0.0, |ms| weights.latency_term(ms)),
        };
        for (slot, value) in pair.iter().enumerate().filter(|(_, v)| **v != 0.0) {
            part.add(layout, prepared, slot, *value);
        }
        part
    }

    /// Adds a slot of `p`.
    fn add(&mut self, layout: &Layout, prepared: &Prepared, slot: usize, value: f32) {
        for (h, p) in self.hidden.iter_mut().zip(&layout.pair[slot]) {
            *h += p * value;
        }
        let term = prepared.direct[slot] * value;
        self.direct += term;
        self.sum += term.abs() + layout.pair_reach[slot] * value.abs();
    }

    /// Adds what depends on the kind, as [`features::encode_pair`] does. None where a number is
    /// too large for that.
    fn add_kind(
        &mut self,
        layout: &Layout,
        prepared: &Prepared,
        request: &Request,
        kind: &Kind,
        weights: &Weights,
    ) -> Option<()> {
        let latency_term = self.latency_term;
        let mut add = |slot: PairSlot, raw: f32| {
            let slot = slot as usize;
            self.add(layout, prepared, slot, raw / PAIR[slot].scale);
        };
        let mut reward = latency_term;
        if let Some(cost) = kind.hourly_cost(request) {
            if cost >= SANE {
                return None;
            }
            let term = weights.cost_term(cost);
            reward += term;
            add(PairSlot::Cost, ln(1.0 + cost as f32));
            add(PairSlot::CostKnown, 1.0);
            add(PairSlot::CostTerm, ln(1.0 + term.max(0.0) as f32));
        }
        let spot = kind.key.capacity_type == CapacityType::Spot;
        if spot && request.prefer_spot {
            add(PairSlot::SpotWanted, 1.0);
        }
        let reclaims = f64::from(kind.supply.reclaims_per_hour).clamp(0.0, 100.0);
        if reclaims > 0.0 {
            let lost = (reclaims * request.at_risk_hours.max(0.0)).min(4.0);
            add(PairSlot::WorkLost, lost as f32);
            let start_hours = f64::from(kind.startup_s.max(120.0)) / 3600.0;
            add(PairSlot::TimeLost, (reclaims * start_hours).min(4.0) as f32);
        }
        add(PairSlot::Reward, reward.clamp(-20.0, 20.0) as f32);
        Some(())
    }
}

impl RoughNetwork {
    pub(super) fn new(
        layout: &Layout,
        prepared: &Prepared,
        request: &Request,
        kind: &Kind,
        reach: &Reach,
        class: &ClassPart,
        embeddings: &Embeddings,
    ) -> Option<Self> {
        let load = Load::new(request, kind, reach)?;
        let weights = RewardWeights::default().of(request.goal);
        let mut part = class.clone();
        part.add_kind(layout, prepared, request, kind, &weights)?;
        let ClassPart {
            hidden,
            direct,
            mut sum,
            ..
        } = part;
        let mut fit = [0.0; FIT_LEN];
        let mut fits = 0.0;
        for (slot, out) in fit[..FIT.len()].iter_mut().enumerate() {
            *out = prepared.direct[PAIR_LEN + slot] / FIT[slot].scale;
            fits += out.abs();
        }
        sum += embeddings.largest();
        let hidden = embeddings.hidden(&hidden)?;
        let direct = direct + hidden.rest;
        // Sums of about 64 products of single precision, here and there: some 1e-5 of the sum of
        // their magnitudes. A slot of the fit is off by as much of its largest value: `w2 / p99`
        // may be as large as `w2`, the others are logarithms and ratios below 10.
        let off = 1e-5 * (sum + fits * weights.latency.max(10.0) as f32) + hidden.off + 2e-6;
        let millis = request.gpu.millis.clamp(1, 1000);
        let wanted = u64::from(request.gpu.count) * u64::from(millis);
        let mut rough = Self {
            load,
            hidden,
            direct,
            fits: 0.0,
            fit,
            off,
            gpu: Gpu {
                devices: kind.key.gpus,
                millis: millis as u16,
                count: request.gpu.count,
                wanted: wanted as f32,
                per_all: if kind.key.gpus == 0 {
                    0.0
                } else {
                    1.0 / (kind.key.gpus as f32 * 1000.0)
                },
            },
            weights,
            target_ms: request.latency_target_ms,
        };
        rough.fits = rough.largest_fit();
        (off.is_finite() && rough.fits.is_finite()).then_some(rough)
    }

    /// The most that the fit of a machine adds which is not odd: each slot is between its ends.
    fn largest_fit(&self) -> f32 {
        let between = |slot: FitSlot, low: f32, high: f32| {
            let c = self.coefficient(slot);
            (c * low).max(c * high)
        };
        let after = |asked: f64, per: f64| (1.0 - asked * per).max(0.0) as f32;
        let load = &self.load;
        let mut most = between(FitSlot::CpuAfter, 0.0, after(load.cpu, load.per_cpu))
            + between(
                FitSlot::MemoryAfter,
                0.0,
                after(load.memory, load.per_memory),
            )
            + between(FitSlot::Sibling, 0.0, 1.0);
        if !load.offer {
            most += between(FitSlot::Images, 0.0, 1.0);
        }
        if self.gpu.devices > 0 {
            let left = after(f64::from(self.gpu.wanted), f64::from(self.gpu.per_all));
            most += between(FitSlot::GpuAfter, 0.0, left) + between(FitSlot::GpuExact, 0.0, 1.0);
        }
        if let Some(idle_ms) = load.idle_ms {
            let (low, high) = (idle_ms as f32, (idle_ms + MAX_WAIT_MS) as f32);
            let over = |p99: f32| (p99 * self.per_target()).min(4.0);
            let lost = |p99: f32| self.lost(idle_ms, p99);
            most += between(FitSlot::P99, ln(1.0 + low), ln(1.0 + high))
                + between(FitSlot::Target, over(low), over(high))
                + between(FitSlot::LatencyLost, lost(low), lost(high));
        }
        most
    }

    /// One over the target; 0 without one.
    fn per_target(&self) -> f32 {
        self.target_ms.map_or(0.0, |t| (1.0 / t.max(0.001)) as f32)
    }

    /// What queueing takes of the latency term. `idle_ms` has none, and neither has an idle machine.
    fn lost(&self, idle_ms: f64, p99: f32) -> f32 {
        self.weights.latency_term(idle_ms) as f32 - self.weights.latency as f32 / p99.max(1.0)
    }

    /// No machine of the kind scores more, but for odd ones and those that the request names.
    pub(super) fn most(&self, kind: u32, embeddings: &Embeddings) -> f32 {
        self.direct + self.fits + embeddings.most(kind, &self.hidden) + 2.0 * self.off
    }

    fn coefficient(&self, slot: FitSlot) -> f32 {
        self.fit[slot as usize]
    }

    /// None where none of the lanes reaches `least`, the odd ones left aside.
    pub(super) fn bounds(
        &self,
        lanes: &Lanes<'_>,
        embeddings: &Embeddings,
        least: f32,
    ) -> Option<Bounds> {
        let block = lanes.block;
        let mut sum = [self.direct; LANES];
        embeddings.add(lanes.id, &self.hidden, &mut sum);
        // Twice, since the most that the fit adds is rounded too.
        let needed = least - self.fits - 2.0 * self.off;
        if lanes.plain && sum.iter().fold(f32::MIN, |most, x| most.max(*x)) < needed {
            return None;
        }
        self.add_fit(lanes, block, &mut sum);
        let (mut lower, mut upper) = (sum, sum);
        for lane in 0..LANES {
            lower[lane] -= self.off;
            upper[lane] += self.off;
        }
        Some(Bounds { lower, upper })
    }

    fn add_fit(&self, lanes: &Lanes<'_>, block: &Block, sum: &mut [f32; LANES]) {
        let (cpu, memory) = self.load.left(block);
        let images = self.load.images(lanes);
        let (c, m, i) = (
            self.coefficient(FitSlot::CpuAfter),
            self.coefficient(FitSlot::MemoryAfter),
            self.coefficient(FitSlot::Images),
        );
        for lane in 0..LANES {
            sum[lane] += c * cpu[lane] + m * memory[lane] + i * images[lane];
        }
        for lane in ones(lanes.siblings) {
            sum[lane] += self.coefficient(FitSlot::Sibling);
        }
        if self.gpu.devices > 0 {
            self.add_gpus(block, sum);
        }
        if let Some(idle_ms) = self.load.idle_ms {
            self.add_latency(idle_ms, block, sum);
        }
    }

    fn add_gpus(&self, block: &Block, sum: &mut [f32; LANES]) {
        let (mut free, mut exact) = ([0_u16; LANES], [0_u16; LANES]);
        for device in &block.gpu_free[..self.gpu.devices] {
            for lane in 0..LANES {
                free[lane] += device[lane];
                exact[lane] += u16::from(device[lane] == self.gpu.millis);
            }
        }
        let asked = self.gpu.count > 0;
        let count = self.gpu.count.min(u32::from(u16::MAX)) as u16;
        let (after, fills) = (
            self.coefficient(FitSlot::GpuAfter) * self.gpu.per_all,
            self.coefficient(FitSlot::GpuExact),
        );
        for lane in 0..LANES {
            let left = (f32::from(free[lane]) - self.gpu.wanted).max(0.0);
            let fits = asked && exact[lane] >= count;
            sum[lane] += after * left + if fits { fills } else { 0.0 };
        }
    }

    fn add_latency(&self, idle_ms: f64, block: &Block, sum: &mut [f32; LANES]) {
        let p99 = self.load.p99_ms(idle_ms, block);
        let mut log = p99;
        for x in &mut log {
            *x = ln(1.0 + *x);
        }
        let (p, t, l) = (
            self.coefficient(FitSlot::P99),
            self.coefficient(FitSlot::Target),
            self.coefficient(FitSlot::LatencyLost),
        );
        let per_target = self.per_target();
        let best = self.weights.latency_term(idle_ms) as f32;
        let w2 = self.weights.latency as f32;
        for lane in 0..LANES {
            let over = (p99[lane] * per_target).min(4.0);
            let lost = best - w2 / p99[lane].max(1.0);
            sum[lane] += p * log[lane] + t * over + l * lost;
        }
    }
}

/// The natural logarithm of a number from 1e-30 to 1e30, off by less than 3e-7 or a few units in the
/// last place: the mantissa `m`, brought near 1, as `2 atanh((m - 1) / (m + 1))`.
fn ln(x: f32) -> f32 {
    const SQRT_HALF: i32 = 0x3f35_04f3;
    let bits = x.to_bits().cast_signed();
    let exponent = (bits - SQRT_HALF) >> 23;
    let m = f32::from_bits((bits - (exponent << 23)).cast_unsigned());
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = 2.0 + z * (2.0 / 3.0 + z * (0.4 + z * (2.0 / 7.0 + z * (2.0 / 9.0))));
    exponent as f32 * std::f32::consts::LN_2 + s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_near_the_true_ones() {
        let mut x = 1e-6_f32;
        while x < 1e12 {
            let exact = f64::from(x).ln();
            let off = (f64::from(ln(x)) - exact).abs();
            assert!(off < 3e-7 + 3e-7 * exact.abs(), "ln {x}: off by {off}");
            x *= 1.0007;
        }
    }
}
