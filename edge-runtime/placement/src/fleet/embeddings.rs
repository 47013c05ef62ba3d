//! Embeddings of machines: exact, and as fixed-point numbers of which sixteen are added at once.
//!
//! A rough score needs `sum of v relu(e + h)`. The size of `v` goes into both summands, its sign
//! into whether a dimension is added or taken away, and what is left are sums of 16-bit integers,
//! of which a vector register holds twice as many as of single precision. Eight dimensions share a
//! step, which is such that their sum does not overflow.

use super::kinds::{LANES, ones};
use crate::policy::network::EMBED;

/// Dimensions that share a step.
const GROUP: usize = 8;
const GROUPS: usize = EMBED / GROUP;
/// The largest sum of a group, with room for each dimension's range being rounded up.
const FULL: f32 = (i16::MAX as usize - 4 * GROUP) as f32;

/// Where the numbers of one dimension lie, times the size of its `v`.
#[derive(Debug, Clone, Copy)]
struct Range {
    low: f32,
    high: f32,
}

impl Range {
    const NONE: Self = Self {
        low: f32::INFINITY,
        high: f32::NEG_INFINITY,
    };

    fn holds(&self, value: f32) -> bool {
        self.low <= value && value <= self.high
    }

    /// Takes a number in, with half of the width to spare on its side, so that the next one is
    /// seldom outside.
    fn stretch(&mut self, value: f32) {
        if self.low > self.high {
            (self.low, self.high) = (value, value);
        } else if value < self.low {
            self.low = value - (self.high - value) * 0.5;
        } else if value > self.high {
            self.high = value + (value - self.low) * 0.5;
        }
    }

    fn middle(&self) -> f32 {
        if self.low > self.high {
            0.0
        } else {
            self.low + (self.high - self.low) * 0.5
        }
    }

    /// Half of the width, and a little for rounding.
    fn radius(&self) -> f32 {
        if self.low >= self.high {
            0.0
        } else {
            (self.high - self.low) * 0.500_001 + self.middle().abs() * 1e-6
        }
    }
}

/// The dimensions, those with a `v` above 0 first, and the sizes of `v`.
#[derive(Debug, Clone, Default)]
pub(super) struct Order {
    dimensions: [usize; EMBED],
    sizes: [f32; EMBED],
    positive: usize,
}

impl Order {
    pub(super) fn of(head: &[f32]) -> Self {
        let (mut order, negative): (Vec<usize>, Vec<usize>) =
            (0..EMBED).partition(|i| head[*i] >= 0.0);
        let positive = order.len();
        order.extend(negative);
        let dimensions = std::array::from_fn(|slot| order[slot]);
        Self {
            dimensions,
            sizes: dimensions.map(|i| head[i].abs()),
            positive,
        }
    }

    /// A vector in this order, times the sizes.
    pub(super) fn sized(&self, vector: &[f32; EMBED]) -> [f32; EMBED] {
        std::array::from_fn(|slot| self.sizes[slot] * vector[self.dimensions[slot]])
    }
}

/// The nearest whole number, for numbers below 2^22 in size. The baseline of x86-64 has no
/// instruction for that, and the library's function is slow.
fn whole(x: f32) -> f32 {
    const HALF_BITS: f32 = 12_582_912.0;
    (x + HALF_BITS) - HALF_BITS
}

/// What a request and a kind add to embeddings: `h + g` in steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hidden {
    steps: [i16; EMBED],
    /// What is added to the sum whatever the embedding.
    pub(super) rest: f32,
    /// How far a sum may be off by rounding to steps.
    pub(super) off: f32,
}

/// The embeddings of a fleet's machines, by block.
#[derive(Debug, Clone, Default)]
pub(super) struct Embeddings {
    order: Order,
    /// By slot of that order, as all below.
    ranges: Vec<Range>,
    middle: [f32; EMBED],
    /// Largest number of steps from the middle.
    reach: [f32; EMBED],
    /// The step of the slot's group, and one over it.
    step: [f32; EMBED],
    per_step: [f32; EMBED],
    /// Largest sum of magnitudes so far: of what is stored, and of the ranges.
    largest: f32,
    exact: Vec<[[f32; EMBED]; LANES]>,
    rough: Vec<[[i16; LANES]; EMBED]>,
    /// Kind and lanes that hold something, by block.
    held: Vec<(u32, u16)>,
    /// By kind: of each dimension what makes the largest sum.
    most: Vec<[i16; EMBED]>,
}

impl Embeddings {
    /// Nothing yet.
    pub(super) fn new(order: Order) -> Self {
        Self {
            order,
            ranges: vec![Range::NONE; EMBED],
            step: [1.0; EMBED],
            per_step: [1.0; EMBED],
            ..Self::default()
        }
    }

    /// What a dimension is bounded by where nothing is stored.
    const fn least(&self, slot: usize) -> i16 {
        if slot < self.order.positive {
            i16::MIN
        } else {
            i16::MAX
        }
    }

    /// A block holds machines of this kind from now on, and none as yet.
    pub(super) fn open(&mut self, block: u32, kind: u32) {
        let block = block as usize;
        if block >= self.held.len() {
            self.exact.resize(block + 1, [[0.0; EMBED]; LANES]);
            self.rough.resize(block + 1, [[0; LANES]; EMBED]);
            self.held.resize(block + 1, (kind, 0));
        }
        self.held[block] = (kind, 0);
        let empty = std::array::from_fn(|slot| self.least(slot));
        if kind as usize >= self.most.len() {
            self.most.resize(kind as usize + 1, empty);
        }
    }

    /// There is a new kind under this number.
    pub(super) fn forget_kind(&mut self, kind: u32) {
        let empty = std::array::from_fn(|slot| self.least(slot));
        if let Some(most) = self.most.get_mut(kind as usize) {
            *most = empty;
        }
    }

    /// Stores a machine's embedding.
    pub(super) fn set(&mut self, block: u32, lane: usize, embedding: &[f32; EMBED]) {
        self.store(block, lane, embedding);
        if self.widen(embedding) {
            self.spread();
        } else {
            self.round(block as usize, lane);
        }
    }

    /// The same without rounding; [`Self::spread`] has to follow.
    pub(super) fn store(&mut self, block: u32, lane: usize, embedding: &[f32; EMBED]) {
        let block = block as usize;
        self.exact[block][lane] = *embedding;
        self.held[block].1 |= 1 << lane;
    }

    /// What was stored, to the last bit.
    pub(super) fn get(&self, block: u32, lane: usize) -> &[f32; EMBED] {
        &self.exact[block as usize][lane]
    }

    /// Largest sum of magnitudes; not finite where sums can't be told roughly.
    pub(super) const fn largest(&self) -> f32 {
        self.largest
    }

    /// Makes the ranges hold an embedding. True where they had to be widened.
    pub(super) fn widen(&mut self, embedding: &[f32; EMBED]) -> bool {
        let mut wider = false;
        let mut magnitude = 0.0;
        for (range, value) in self.ranges.iter_mut().zip(self.order.sized(embedding)) {
            magnitude += value.abs();
            if value.is_finite() && !range.holds(value) {
                range.stretch(value);
                wider = true;
            }
        }
        // Not `max`, which would lose a NaN.
        if magnitude.is_nan() || magnitude > self.largest {
            self.largest = magnitude;
        }
        wider
    }

    /// Fits the steps to the ranges, and rounds everything anew.
    pub(super) fn spread(&mut self) {
        let mut magnitude = 0.0;
        for (middle, range) in self.middle.iter_mut().zip(&self.ranges) {
            *middle = range.middle();
            magnitude += middle.abs() + range.radius();
        }
        if magnitude.is_nan() || magnitude > self.largest {
            self.largest = magnitude;
        }
        for group in 0..GROUPS {
            let slots = group * GROUP..(group + 1) * GROUP;
            let (mut plus, mut minus) = (0.0, 0.0);
            for slot in slots.clone() {
                let radius = self.ranges[slot].radius();
                *(if slot < self.order.positive {
                    &mut plus
                } else {
                    &mut minus
                }) += radius;
            }
            let step = 2.0 * f32::max(plus, minus) / FULL;
            let step = if step > f32::MIN_POSITIVE { step } else { 1.0 };
            for slot in slots {
                self.step[slot] = step;
                self.per_step[slot] = 1.0 / step;
                // Where the step is 1 in place of one too small, nothing is wide.
                self.reach[slot] = (self.ranges[slot].radius() / step).ceil();
            }
        }
        let empty = std::array::from_fn(|slot| self.least(slot));
        self.most.fill(empty);
        for block in 0..self.held.len() {
            for lane in ones(self.held[block].1) {
                self.round(block, lane);
            }
        }
    }

    fn round(&mut self, block: usize, lane: usize) {
        let sized = self.order.sized(&self.exact[block][lane]);
        let most = &mut self.most[self.held[block].0 as usize];
        for slot in 0..EMBED {
            let steps = (sized[slot] - self.middle[slot]) * self.per_step[slot];
            let reach = self.reach[slot];
            let steps = whole(steps.clamp(-reach, reach)) as i16;
            self.rough[block][slot][lane] = steps;
            most[slot] = if slot < self.order.positive {
                most[slot].max(steps)
            } else {
                most[slot].min(steps)
            };
        }
    }

    /// `h + g` in steps, of what [`Order::sized`] made of it. None where something is not finite.
    pub(super) fn hidden(&self, sized: &[f32; EMBED]) -> Option<Hidden> {
        let mut steps = [0_i16; EMBED];
        let (mut rest, mut off) = ([0.0; EMBED], [0.0; EMBED]);
        for slot in 0..EMBED {
            let (step, reach) = (self.step[slot], self.reach[slot]);
            let exact = (sized[slot] + self.middle[slot]) * self.per_step[slot];
            // Below, no embedding brings the sum above 0, so that nothing changes. Above, none
            // brings it below 0: what is beyond is added as it is.
            let within = exact.max(-reach).min(reach);
            let rounded = whole(within);
            steps[slot] = rounded as i16;
            rest[slot] = (exact.max(reach) - reach) * step;
            // A little more than half a step for the embedding.
            off[slot] = ((within - rounded).abs() + 0.51) * step;
        }
        let (plus, minus) = rest.split_at(self.order.positive);
        let out = Hidden {
            steps,
            rest: plus.iter().sum::<f32>() - minus.iter().sum::<f32>(),
            off: off.iter().sum(),
        };
        let finite = sized.iter().all(|x| x.is_finite());
        (finite && out.rest.is_finite() && out.off.is_finite() && self.largest.is_finite())
            .then_some(out)
    }

    /// Adds the sums of a block's machines to `sum`.
    pub(super) fn add(&self, block: u32, hidden: &Hidden, sum: &mut [f32; LANES]) {
        let rows = &self.rough[block as usize];
        let groups = rows
            .chunks_exact(GROUP)
            .zip(hidden.steps.chunks_exact(GROUP));
        for (group, (rows, hidden)) in groups.enumerate() {
            let positive = self.order.positive.saturating_sub(group * GROUP).min(GROUP);
            let (plus, minus) = rows.split_at(positive);
            let (plus_h, minus_h) = hidden.split_at(positive);
            let mut steps = [0_i16; LANES];
            // Nothing saturates. But plain sums the compiler takes as free to reorder, and then it
            // goes across the rows.
            for (row, h) in plus.iter().zip(plus_h) {
                for (sum, e) in steps.iter_mut().zip(row) {
                    *sum = sum.saturating_add(e.saturating_add(*h).max(0));
                }
            }
            for (row, h) in minus.iter().zip(minus_h) {
                for (sum, e) in steps.iter_mut().zip(row) {
                    *sum = sum.saturating_sub(e.saturating_add(*h).max(0));
                }
            }
            let step = self.step[group * GROUP];
            for (sum, steps) in sum.iter_mut().zip(&steps) {
                *sum += f32::from(*steps) * step;
            }
        }
    }

    /// The largest sum that a machine of a kind may have.
    pub(super) fn most(&self, kind: u32, hidden: &Hidden) -> f32 {
        let Some(most) = self.most.get(kind as usize) else {
            return f32::INFINITY;
        };
        let mut sums = [0.0; EMBED];
        for ((sum, e), (h, step)) in
            (sums.iter_mut().zip(most)).zip(hidden.steps.iter().zip(&self.step))
        {
            *sum = f32::from(e.saturating_add(*h).max(0)) * step;
        }
        let (plus, minus) = sums.split_at(self.order.positive);
        plus.iter().sum::<f32>() - minus.iter().sum::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1.
    struct Draw(u32);

    impl Draw {
        fn number(&mut self) -> f32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.0.cast_signed() as f32 / i32::MAX as f32
        }

        fn vector(&mut self, size: f32) -> [f32; EMBED] {
            std::array::from_fn(|_| self.number() * size)
        }
    }

    /// `v · relu(e + h)`, and the sum of magnitudes.
    fn exact(head: &[f32; EMBED], e: &[f32; EMBED], h: &[f32; EMBED]) -> (f64, f64) {
        (0..EMBED).fold((0.0, 0.0), |(sum, size), i| {
            let (v, e, h) = (f64::from(head[i]), f64::from(e[i]), f64::from(h[i]));
            (
                sum + v * (e + h).max(0.0),
                size + v.abs() * (e.abs() + h.abs()),
            )
        })
    }

    #[test]
    fn sums_are_as_near_as_they_say_and_none_is_above_its_kinds_most() {
        let mut draw = Draw(1);
        for round in 0..200 {
            let mut head = draw.vector(1.0);
            head[round % EMBED] = 0.0;
            let order = Order::of(&head);
            let mut all = Embeddings::new(order.clone());
            all.open(0, 7);
            // Each is larger than the one before it, so that ranges widen time and again.
            let stored: Vec<[f32; EMBED]> = (0..LANES)
                .map(|lane| draw.vector(0.01 * 1.8_f32.powi(lane as i32)))
                .collect();
            for (lane, embedding) in stored.iter().enumerate() {
                all.set(0, lane, embedding);
            }
            for size in [0.0, 0.1, 3.0, 1e4] {
                let h = draw.vector(size);
                let hidden = all.hidden(&order.sized(&h)).unwrap();
                let mut sums = [hidden.rest; LANES];
                all.add(0, &hidden, &mut sums);
                let most = all.most(7, &hidden) + hidden.rest;
                for (lane, embedding) in stored.iter().enumerate() {
                    assert_eq!(all.get(0, lane), embedding);
                    let (sum, magnitude) = exact(&head, embedding, &h);
                    let off = (f64::from(sums[lane]) - sum).abs();
                    let allowed =
                        f64::from(hidden.off) + 1e-6 * (magnitude + f64::from(all.largest()));
                    assert!(off <= allowed, "{off} of {allowed} in round {round}");
                    assert!(sums[lane] <= most + 1e-6 * magnitude as f32);
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_told_roughly() {
        let mut draw = Draw(2);
        let order = Order::of(&draw.vector(1.0));
        let mut all = Embeddings::new(order.clone());
        all.open(0, 0);
        all.set(0, 0, &draw.vector(1.0));
        assert!(all.hidden(&[f32::NAN; EMBED]).is_none());
        assert!(all.hidden(&[f32::INFINITY; EMBED]).is_none());
        assert!(all.hidden(&draw.vector(1.0)).is_some());
        all.set(0, 1, &[f32::NAN; EMBED]);
        assert!(all.hidden(&draw.vector(1.0)).is_none());
    }
}
