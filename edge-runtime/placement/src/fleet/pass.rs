//! One pass over the fleet: filters, counts, and finds those that may be among the best.

use super::Fleet;
use super::decide::{Mode, Scratch, Work};
use super::interned::Lanes as LaneSet;
use super::kinds::{Block, EXACT, Kind, LANES, below, ones};
use super::rough::{Bounds, ClassPart, Lanes, RoughNetwork, RoughRules};
use crate::explain::TOP;
use crate::filter::Constraint;
use crate::gpu;
use crate::model::Request;
use crate::packing::Packing;

/// Marks on lanes, cheap to set and to clear.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    masks: Vec<u16>,
    touched: Vec<u32>,
}

impl Marks {
    fn clear(&mut self, blocks: usize) {
        for block in self.touched.drain(..) {
            if let Some(mask) = self.masks.get_mut(block as usize) {
                *mask = 0;
            }
        }
        self.masks.resize(blocks, 0);
    }

    pub(super) fn set(&mut self, block: u32, lanes: u16) {
        self.masks[block as usize] |= lanes;
        self.touched.push(block);
    }

    pub(super) fn of(&self, block: u32) -> u16 {
        self.masks.get(block as usize).copied().unwrap_or(0)
    }
}

/// A candidate, and where its score lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) handle: u32,
    pub(super) block: u32,
    pub(super) lane: u32,
    pub(super) lower: f32,
    pub(super) upper: f32,
}

/// The scores that are certain to be reached by as many candidates as an explanation names.
struct Floor {
    best: [f32; TOP],
    /// False where all candidates are wanted.
    used: bool,
}

impl Floor {
    const fn least(&self) -> f32 {
        if self.used {
            self.best[TOP - 1]
        } else {
            f32::NEG_INFINITY
        }
    }

    fn raise(&mut self, lower: f32) {
        if lower > self.best[TOP - 1] {
            let place = self.best.partition_point(|b| *b >= lower);
            self.best[place..].rotate_right(1);
            self.best[place] = lower;
        }
    }
}

/// How the lanes of a kind are scored.
#[derive(Debug, Clone)]
pub(super) enum Rough {
    Unknown,
    Rules(RoughRules),
    Network(RoughNetwork),
}

/// What a decision needs of a kind.
#[derive(Debug, Clone)]
pub(super) struct KindState {
    ruled_out: Option<Constraint>,
    repels: Option<Constraint>,
    too_dear: bool,
    /// Once one of its blocks has a candidate.
    rough: Option<u32>,
    /// No machine of it scores more, but for those that are looked at one by one.
    most: f32,
}

/// Kinds that are looked at before the others: those that may score most.
const FIRST: usize = 6;

/// Walks all kinds. Fills `scratch.found` with all candidates, or those that may be among the best
/// [`TOP`], and `scratch.rejected`. Returns the number of candidates.
pub(super) fn walk(
    fleet: &Fleet,
    request: &Request,
    mode: &Mode<'_>,
    packing: Option<Packing<'_>>,
    all: bool,
    scratch: &mut Scratch,
) -> usize {
    prepare(fleet, request, scratch);
    let mut walk = Walk {
        fleet,
        request,
        mode,
        packing,
        scratch,
        candidates: 0,
        floor: Floor {
            best: [f32::NEG_INFINITY; TOP],
            used: !all,
        },
    };
    let mut states = std::mem::take(&mut walk.scratch.states);
    states.clear();
    states.extend(
        fleet
            .kinds
            .iter()
            .map(|kind| Some(walk.state(kind.as_ref()?))),
    );
    // In the order in which they lie in memory, so that what comes next is fetched ahead; by kind,
    // a large fleet would be read from all over.
    for (id, block) in (0..).zip(&fleet.blocks) {
        let live = match (
            &fleet.kinds[block.kind as usize],
            &mut states[block.kind as usize],
        ) {
            (Some(kind), Some(state)) if block.len > 0 => walk.filter(kind, state, id),
            _ => 0,
        };
        walk.scratch.live.push(live);
    }
    walk.score_all(&states);
    walk.scratch.states = states;
    let (candidates, least) = (walk.candidates, walk.floor.least());
    scratch.found.retain(|f| f.upper >= least);
    candidates
}

fn prepare(fleet: &Fleet, request: &Request, scratch: &mut Scratch) {
    scratch.found.clear();
    scratch.roughs.clear();
    scratch.live.clear();
    scratch.work = Work::default();
    scratch.rejected = [0; Constraint::ALL.len()];
    fleet.places.reach(request, &mut scratch.reach);
    scratch.classes.clear();
    scratch.classes.resize_with(scratch.reach.len(), || None);
    fleet.images.shares(&request.images, &mut scratch.images);
    let blocks = fleet.blocks.len();
    for marks in [
        &mut scratch.selected,
        &mut scratch.avoided,
        &mut scratch.siblings,
        &mut scratch.singled,
    ] {
        marks.clear(blocks);
    }
    let mark = |marks: &mut Marks, handle: u32| {
        let entry = fleet.entry(handle);
        marks.set(entry.block, 1 << entry.lane);
    };
    let both = |id: &str| [fleet.nodes.get(id), fleet.offers.get(id)];
    for id in request.avoid.keys() {
        for handle in both(id).into_iter().flatten() {
            mark(&mut scratch.avoided, *handle);
        }
    }
    for id in &request.siblings {
        for handle in both(id).into_iter().flatten() {
            mark(&mut scratch.siblings, *handle);
        }
    }
    for handle in request.current.iter().flat_map(|id| both(id)).flatten() {
        mark(&mut scratch.singled, *handle);
    }
    for handle in fleet.places.named(request) {
        mark(&mut scratch.singled, handle);
    }
    select(fleet, request, &mut scratch.selected);
}

/// Marks the lanes that carry all labels of the selector.
fn select(fleet: &Fleet, request: &Request, selected: &mut Marks) {
    let carriers = |(key, value): (&String, &String)| fleet.labels.lanes(key, value);
    let all = || request.node_selector.iter().map(carriers);
    let Some(fewest) = all().flatten().min_by_key(|lanes| lanes.len()) else {
        return;
    };
    for (block, lanes) in fewest {
        let mask = all().fold(*lanes, |mask, others| {
            mask & others.map_or(0, |others: &LaneSet| {
                others.get(block).copied().unwrap_or(0)
            })
        });
        if mask != 0 {
            selected.set(*block, mask);
        }
    }
}

struct Walk<'a, 's> {
    fleet: &'a Fleet,
    request: &'a Request,
    mode: &'a Mode<'a>,
    packing: Option<Packing<'a>>,
    scratch: &'s mut Scratch,
    candidates: usize,
    floor: Floor,
}

impl Walk<'_, '_> {
    /// Counts lanes under a constraint and returns those that are left.
    fn reject(&mut self, live: u16, failed: u16, constraint: Constraint) -> u16 {
        self.scratch.rejected[constraint as usize] += (live & failed).count_ones() as usize;
        live & !failed
    }

    fn state(&self, kind: &Kind) -> KindState {
        let within = |most: f64| {
            let cost = kind.hourly_cost(self.request);
            cost.is_some_and(|cost| cost <= most)
        };
        KindState {
            ruled_out: kind.ruled_out(self.request),
            repels: kind.repels(self.request),
            too_dear: self
                .request
                .max_hourly_cost
                .is_some_and(|most| !within(most)),
            rough: None,
            most: f32::INFINITY,
        }
    }

    /// The lanes of a block that are candidates.
    fn filter(&mut self, kind: &Kind, state: &mut KindState, id: u32) -> u16 {
        let block = &self.fleet.blocks[id as usize];
        let live = self.reject(block.live(), !block.ready, Constraint::NotReady);
        let live = self.reject(live, !block.schedulable, Constraint::Cordoned);
        if let Some(constraint) = state.ruled_out {
            self.reject(live, u16::MAX, constraint);
            return 0;
        }
        let live = self.labelled(kind, id, live);
        if let Some(constraint) = state.repels {
            self.reject(live, u16::MAX, constraint);
            return 0;
        }
        let live = self.with_room(kind, id, live);
        if state.too_dear {
            self.reject(live, u16::MAX, Constraint::MaxHourlyCost);
            return 0;
        }
        let avoided = self.scratch.avoided.of(id);
        let live = self.reject(live, avoided, Constraint::RecentFailure);
        self.candidates += live.count_ones() as usize;
        if live != 0 && state.rough.is_none() {
            let rough = self.rough(kind);
            if let Rough::Network(network) = &rough {
                let kind = self.fleet.blocks[id as usize].kind;
                state.most = network.most(kind, &self.fleet.embeddings);
            }
            state.rough = Some(self.scratch.roughs.len() as u32);
            self.scratch.roughs.push(rough);
        }
        live
    }

    /// Scores what the filter has left: first the kinds that may score most, so that of the others
    /// few have to be looked at.
    fn score_all(&mut self, states: &[Option<KindState>]) {
        let fleet = self.fleet;
        let roughs = std::mem::take(&mut self.scratch.roughs);
        let mut live = std::mem::take(&mut self.scratch.live);
        let mut score = |walk: &mut Self, state: &KindState, id: u32| {
            let lanes = std::mem::take(&mut live[id as usize]);
            if lanes != 0
                && let Some(rough) = state.rough.and_then(|at| roughs.get(at as usize))
            {
                walk.score(rough, state.most, id, lanes);
            }
        };
        for (most, kind) in first(states) {
            if most > f32::NEG_INFINITY
                && let (Some(state), Some(kind)) = (&states[kind], &fleet.kinds[kind])
            {
                for id in &kind.blocks {
                    score(self, state, *id);
                }
            }
        }
        for (id, block) in (0..).zip(&fleet.blocks) {
            if let Some(state) = &states[block.kind as usize] {
                score(self, state, id);
            }
        }
        (self.scratch.roughs, self.scratch.live) = (roughs, live);
    }

    fn labelled(&mut self, kind: &Kind, block: u32, live: u16) -> u16 {
        if self.request.node_selector.is_empty() {
            return live;
        }
        let selected = if kind.key.offer {
            0
        } else {
            self.scratch.selected.of(block)
        };
        self.reject(live, !selected, Constraint::NodeSelector)
    }

    fn with_room(&mut self, kind: &Kind, block: u32, live: u16) -> u16 {
        let (request, fleet) = (self.request, self.fleet);
        let lanes = &fleet.blocks[block as usize];
        let gpus_of = |lane: usize| fleet.machine(lanes.handles[lane]).candidate().gpus;
        let short = if request.gpu.count == 0 {
            0
        } else if kind.is_wide() {
            ones(live)
                .filter(|lane| !gpu::fits(&request.gpu, gpus_of(*lane)))
                .fold(0, |mask, lane| mask | 1 << lane)
        } else {
            let needed = request.gpu.millis.clamp(1, gpu::WHOLE) as u16;
            lanes.short_of_gpus(kind.key.gpus, needed, request.gpu.count)
        };
        let live = self.reject(live, short, Constraint::Gpu);
        let asked = request.resources;
        let mut short = below(&lanes.cpu_free, asked.cpu_millis as f64);
        if asked.cpu_millis >= EXACT {
            short = lane_by_lane(live, |lane| {
                fleet.free(lanes.handles[lane]).cpu_millis < asked.cpu_millis
            });
        }
        let live = self.reject(live, short, Constraint::Cpu);
        let mut short = below(&lanes.memory_free, asked.memory_bytes as f64);
        if asked.memory_bytes >= EXACT {
            short = lane_by_lane(live, |lane| {
                fleet.free(lanes.handles[lane]).memory_bytes < asked.memory_bytes
            });
        }
        self.reject(live, short, Constraint::Memory)
    }

    fn rough(&mut self, kind: &Kind) -> Rough {
        let class = kind.class as usize;
        let reach = &self.scratch.reach[class];
        match self.mode {
            Mode::One(_) => Rough::Unknown,
            Mode::Rules => {
                RoughRules::new(self.request, kind, reach).map_or(Rough::Unknown, Rough::Rules)
            }
            Mode::Network { layout, ready, .. } => {
                let (request, prepared) = (self.request, &ready.prepared);
                let part = self.scratch.classes[class].get_or_insert_with(|| {
                    ClassPart::new(layout, prepared, request, reach, &kind.typical())
                });
                let embeddings = &self.fleet.embeddings;
                RoughNetwork::new(layout, prepared, request, kind, reach, part, embeddings)
                    .map_or(Rough::Unknown, Rough::Network)
            }
        }
    }

    fn pack(&self, packing: &Packing<'_>, block: &Block, lanes: u16, bounds: &mut Bounds) {
        let Some(kind) = &self.fleet.kinds[block.kind as usize] else {
            return;
        };
        if kind.key.gpus == 0 {
            return;
        }
        let pool = packing.pool(kind.devices());
        for lane in ones(lanes) {
            let term = packing.on(pool, &block.left(lane, kind.key.gpus));
            bounds.lower[lane] += (term - slack(term)) as f32;
            bounds.upper[lane] += (term + slack(term)) as f32;
        }
    }

    fn score(&mut self, rough: &Rough, most: f32, id: u32, live: u16) {
        let block = &self.fleet.blocks[id as usize];
        let special = live & (self.scratch.singled.of(id) | block.odd);
        let least = self.floor.least();
        if special == 0 && most < least {
            return;
        }
        self.scratch.work.rough += live.count_ones() as usize;
        let lanes = Lanes {
            block,
            images: &self.scratch.images,
            siblings: self.scratch.siblings.of(id),
            id,
            plain: special == 0,
        };
        let bounds = match rough {
            Rough::Unknown => Some(Bounds::UNKNOWN),
            Rough::Rules(rules) => Some(rules.bounds(&lanes)),
            Rough::Network(network) => network.bounds(&lanes, &self.fleet.embeddings, least),
        };
        let Some(mut bounds) = bounds else { return };
        if let (Some(packing), false) = (&self.packing, matches!(rough, Rough::Unknown)) {
            // The term is never above 0: those that can't come among the best without it need none.
            let lanes = live & !special & at_least(&bounds.upper, least);
            self.pack(packing, block, lanes, &mut bounds);
        }
        for lane in ones(special) {
            bounds.lower[lane] = f32::NEG_INFINITY;
            bounds.upper[lane] = f32::INFINITY;
        }
        for lane in ones(live & at_least(&bounds.upper, least)) {
            let (lower, upper) = (bounds.lower[lane], bounds.upper[lane]);
            self.floor.raise(lower);
            self.scratch.found.push(Found {
                handle: block.handles[lane],
                block: id,
                lane: lane as u32,
                lower,
                upper,
            });
        }
    }
}

/// Far more than rounding to single precision takes of a sum of terms.
fn slack(term: f64) -> f64 {
    1e-4 + 1e-5 * term.abs()
}

/// The kinds that may score most, from the best. Those of which that is not known come as they are.
fn first(states: &[Option<KindState>]) -> [(f32, usize); FIRST] {
    let mut first = [(f32::NEG_INFINITY, 0); FIRST];
    for (kind, state) in states.iter().enumerate() {
        let Some(state) = state.as_ref().filter(|s| s.rough.is_some()) else {
            continue;
        };
        if state.most < f32::INFINITY && state.most > first[FIRST - 1].0 {
            let place = first.partition_point(|(most, _)| *most >= state.most);
            first[place..].rotate_right(1);
            first[place] = (state.most, kind);
        }
    }
    first
}

fn at_least(values: &[f32; LANES], least: f32) -> u16 {
    let mut enough = [0_u8; LANES];
    for (enough, value) in enough.iter_mut().zip(values) {
        *enough = u8::from(*value >= least);
    }
    super::kinds::pack(&enough)
}

fn lane_by_lane(live: u16, fails: impl Fn(usize) -> bool) -> u16 {
    ones(live)
        .filter(|lane| fails(*lane))
        .fold(0, |mask, lane| mask | 1 << lane)
}
