//! Many replicas of one workload in one pass.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::Fleet;
use super::decide::{Exact, Mode, Placed, Scratch};
use super::pass::walk;
use crate::choose::{CandidateRef, Decision};
use crate::explain::TOP;
use crate::features::{self, Features};
use crate::filter::first_rejection;
use crate::model::Request;
use crate::packing::Packed;
use crate::score::{ReadyPolicy, Scorer};

/// A candidate by the most that it can score.
#[derive(Debug, Clone, Copy)]
struct Item {
    most: f64,
    exact: bool,
    order: u64,
    handle: u32,
}

impl Ord for Item {
    /// What may be better comes first: of those with the same number the one that is not exact,
    /// since its score may be as high and its id smaller.
    fn cmp(&self, other: &Self) -> Ordering {
        self.most
            .total_cmp(&other.most)
            .then(other.exact.cmp(&self.exact))
            .then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Item {}

impl Fleet {
    /// Decides for `replicas` of one workload, each as if it were decided and reserved before the
    /// next, with the nodes of those before it as siblings; all with the fleet as a whole (queue,
    /// shares left) as it was at the start. All are reserved.
    ///
    /// `request.replica` is not read. The fleet is walked once; then only the chosen nodes are
    /// looked at anew.
    pub fn decide_many(
        &mut self,
        scratch: &mut Scratch,
        request: &Request,
        replicas: usize,
        scorer: &dyn Scorer,
    ) -> Vec<Decision> {
        let summary = *self.summary();
        let ready = scorer.for_request(request, &summary);
        let ready = ready.as_deref().unwrap_or(scorer);
        // They stay what they are, also while the fleet changes.
        let prices = self.packing.clone();
        let ready: &dyn Scorer = &Packed::new(&prices, request, ready);
        let mut request = request.clone();
        let mut candidates;
        let mut heap = {
            let one = Mode::One(ready);
            let mode = Mode::of(self, &request, scorer).unwrap_or(one);
            let packing = mode.packing(self, &request);
            candidates = walk(self, &request, &mode, packing, true, scratch);
            let item = |f: &super::pass::Found| Item {
                most: f64::from(f.upper),
                exact: false,
                order: self.entry(f.handle).order,
                handle: f.handle,
            };
            scratch.found.iter().map(item).collect::<BinaryHeap<Item>>()
        };
        (0..replicas)
            .map(|_| {
                let features = self.best_of(&mut heap, scratch, &request, scorer, ready, &summary);
                let decision = self.write_up(scratch, &request, ready, candidates, features);
                self.settle_choice(&mut heap, scratch, &mut request, &decision, &mut candidates);
                decision
            })
            .collect()
    }

    /// Moves the best from the heap to `scratch.top`. Returns the features of the first.
    fn best_of(
        &self,
        heap: &mut BinaryHeap<Item>,
        scratch: &mut Scratch,
        request: &Request,
        scorer: &dyn Scorer,
        ready: &dyn Scorer,
        summary: &features::Summary,
    ) -> Option<Features> {
        let mode = match Mode::of(self, request, scorer) {
            // The fleet has changed since the start, but the request was read then.
            Some(Mode::Network {
                layout, network, ..
            }) => Mode::Network {
                layout,
                network,
                ready: ReadyPolicy::new(scorer.name(), network, request, summary),
            },
            Some(mode) => mode,
            None => Mode::One(ready),
        };
        let mut exact = Exact::new(
            self,
            request,
            &mode,
            mode.packing(self, request),
            &scratch.reach,
            (&scratch.singled, &scratch.siblings),
            &mut scratch.kinds,
        );
        scratch.top.clear();
        while scratch.top.len() < TOP {
            let Some(item) = heap.pop() else { break };
            let entry = self.entry(item.handle);
            if item.exact {
                scratch.top.push(Placed {
                    handle: item.handle,
                    order: item.order,
                    total: item.most,
                });
            } else {
                heap.push(Item {
                    most: exact.total(entry.block, entry.lane),
                    exact: true,
                    ..item
                });
            }
        }
        scratch.top.first().map(|placed| {
            let entry = self.entry(placed.handle);
            let kind = exact.kind(entry.block, entry.lane);
            features::encode_of(&kind, request, &entry.machine.candidate())
        })
    }

    /// Reserves the choice and puts the candidates back.
    fn settle_choice(
        &mut self,
        heap: &mut BinaryHeap<Item>,
        scratch: &mut Scratch,
        request: &mut Request,
        decision: &Decision,
        candidates: &mut usize,
    ) {
        let item = |placed: &Placed, exact: bool| Item {
            most: if exact { placed.total } else { f64::INFINITY },
            exact,
            order: placed.order,
            handle: placed.handle,
        };
        let top = scratch.top.iter();
        heap.extend(top.skip(1).map(|placed| item(placed, true)));
        let (Some(first), Some(choice)) = (scratch.top.first(), &decision.choice) else {
            return;
        };
        let CandidateRef::Node(id) = &choice.candidate else {
            heap.push(item(first, true));
            return;
        };
        let reserved = self.take(id, request.resources, &choice.gpus).is_ok();
        request.siblings.insert(id.clone());
        let entry = self.entry(first.handle);
        scratch.siblings.set(entry.block, 1 << entry.lane);
        if let Some(namesake) = self.offers.get(id.as_str()).copied() {
            doubt(heap, namesake);
        }
        let now = self.machine(first.handle).candidate();
        let rejection = first_rejection(request, &now);
        match rejection {
            Some(constraint) => {
                *candidates -= 1;
                scratch.rejected[constraint as usize] += 1;
            }
            None if reserved => heap.push(item(first, false)),
            None => *candidates -= 1,
        }
    }
}

/// Forgets the exact score of a machine.
fn doubt(heap: &mut BinaryHeap<Item>, handle: u32) {
    let mut items = std::mem::take(heap).into_vec();
    for item in items.iter_mut().filter(|item| item.handle == handle) {
        (item.most, item.exact) = (f64::INFINITY, false);
    }
    *heap = items.into();
}
