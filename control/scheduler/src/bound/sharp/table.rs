//! What the best plan earns from each state on, and the plan.

use super::STEP;
use super::machines::{Machine, priced_time};
use super::plan::Planner;
use crate::sim::WAIT_PENALTY;

/// What a place pays by step, as sums up to each step.
pub struct Paid {
    /// While it serves or works.
    pub at: Vec<f64>,
    /// Sums: on its way, with nothing else; with another copy; where the work is lost.
    pub coming: Vec<f64>,
    pub moving: Vec<f64>,
    pub lost: Vec<f64>,
    /// What the copy that serves on earns while a new one starts.
    pub old: Vec<f64>,
    /// By step: the first step from there on in which it can't be.
    pub closed: Vec<usize>,
}

/// What a plan does next.
#[derive(Debug, Clone, Copy)]
enum Next {
    Over,
    Stay,
    /// Nowhere, and not on its way at this look.
    Wait,
    /// Leaves for nowhere or a start, after this look or before it.
    Leave,
    LeaveNow,
    /// Starts at a place: there at this step, with so many units left.
    Start(usize, usize, usize),
    /// A start that ends at this step without success.
    Fail(usize, usize),
    /// A service begins to move to a place at the first step: there at the second.
    Move(usize, usize, usize),
    /// The same without success, still at the old place or not.
    MoveFail(usize, usize, usize, bool),
    /// Work that is lost at this step.
    Lose(usize),
}

/// A gain and how it is had.
type Best = (f64, Next);

fn better(best: &mut Best, gain: f64, next: Next) {
    if gain > best.0 {
        *best = (gain, next);
    }
}

/// What the best plan earns from each state on.
pub struct Table<'a> {
    planner: &'a Planner,
    machines: &'a [Machine],
    paid: &'a [Paid],
    until: usize,
    width: usize,
    /// By step, units left and place: there at this look.
    run: Vec<f64>,
    /// By step and units left: nowhere at the look before.
    again: Vec<f64>,
    /// By step: the same, and never anywhere.
    first: Vec<f64>,
    /// Reward of being done, and of not being done at the end. A job is seen at work for its hours
    /// on the mean over all looks; each look more or less is weighed with what one usually earns.
    done: f64,
    undone: f64,
}

impl<'a> Table<'a> {
    /// Computes it for a plan that ends before the look of step `until`.
    pub fn new(
        planner: &'a Planner,
        machines: &'a [Machine],
        paid: &'a [Paid],
        until: usize,
    ) -> Self {
        let (width, places) = (planner.units + 2, planner.places.len());
        let (done, undone) = if planner.job {
            let done = planner.usual * (planner.work - planner.units as f64);
            (done, done + planner.usual)
        } else {
            (0.0, 0.0)
        };
        let mut table = Self {
            planner,
            machines,
            paid,
            until,
            width,
            run: vec![f64::NEG_INFINITY; (until + 1) * width * places],
            again: vec![0.0; (until + 1) * width],
            first: vec![0.0; until + 1],
            done,
            undone,
        };
        let begin = planner.from.0.min(until);
        for step in (begin..until).rev() {
            // Units that can't be left yet at this step.
            let least = planner.units.saturating_sub(2 * (step - begin) + 2).max(1);
            let lefts = if planner.job { least..width } else { 1..2 };
            for left in lefts.clone() {
                for place in 0..places {
                    let run = table.there(step, left, place).0;
                    table.run[(step * width + left) * places + place] = run;
                }
            }
            for left in lefts {
                table.again[step * width + left] = table.nowhere(step, left, false).0;
            }
            table.first[step] = table.nowhere(step, planner.units, true).0;
        }
        table
    }

    fn over(&self, step: usize, left: usize) -> Option<f64> {
        if left == 0 {
            return Some(self.done);
        }
        (step >= self.until).then_some(self.undone)
    }

    fn value(&self, step: usize, left: usize, place: usize) -> f64 {
        let at = (step * self.width + left) * self.planner.places.len() + place;
        self.over(step, left).unwrap_or_else(|| self.run[at])
    }

    fn idle(&self, step: usize, left: usize, first: bool) -> f64 {
        let found = || {
            if first {
                self.first[step]
            } else {
                self.again[step * self.width + left]
            }
        };
        self.over(step, left).unwrap_or_else(found)
    }

    /// Steps at which who sets out at one may be there, and what is added to the reward: what takes
    /// so many looks is seen by that many on the mean, and one more or less is weighed.
    fn arrivals(
        &self,
        step: usize,
        (looks, longest): (f64, usize),
        worth: f64,
    ) -> impl Iterator<Item = (usize, f64)> + use<> {
        let whole = (looks + 1e-9).floor() as usize;
        let rest = (looks - whole as f64).max(0.0);
        (whole..=longest.max(whole + 1)).map(move |seen| {
            let more = if seen == whole { 0.0 } else { 1.0 };
            (step + seen, worth * (more - rest))
        })
    }

    /// Steps up to `last` at which a start that has begun may be seen to have come to nothing.
    fn failures(&self, place: usize, step: usize, last: usize) -> impl Iterator<Item = usize> {
        let closing = &self.planner.places[place].closing;
        let last = last.min(self.paid[place].closed[step]).min(self.until);
        let next = move |e: &usize| closing.get(*e).copied();
        std::iter::successors(next(&step), next).take_while(move |e| *e <= last)
    }

    /// Nowhere just before the look of a step: waits, or is on its way at it.
    fn nowhere(&self, step: usize, left: usize, first: bool) -> Best {
        let wait = STEP * WAIT_PENALTY + self.idle(step + 1, left, first);
        let mut best = (wait, Next::Wait);
        for (index, place) in self.planner.places.iter().enumerate() {
            let paid = &self.paid[index];
            let sum = |to: usize| paid.coming[to] - paid.coming[step];
            let looks = if first { place.first } else { place.again };
            let mut last = step;
            // Work is counted in whole looks: one more or less may be seen.
            let lefts = if self.planner.job {
                left - 1..=(left + 1).min(self.width - 1)
            } else {
                left..=left
            };
            let worth = STEP
                + if self.planner.eager {
                    place.rate.max(0.0)
                } else {
                    0.0
                };
            for (there, weighed) in self.arrivals(step, (looks, place.longest), worth) {
                last = there;
                if there >= self.until {
                    if paid.closed[step] >= self.until {
                        let weighed = if there == self.until {
                            weighed.max(0.0)
                        } else {
                            0.0
                        };
                        let gain = sum(self.until) + self.undone + weighed;
                        better(&mut best, gain, Next::Start(index, self.until, left));
                    }
                    continue;
                }
                if paid.closed[step] < there {
                    continue;
                }
                for after in lefts.clone() {
                    let more = self.planner.usual * (after as f64 - left as f64);
                    let more = if self.planner.job { more } else { 0.0 };
                    let gain = sum(there) - place.dollars + weighed - more;
                    let gain = gain + self.arrive(there, after, index, there > step).0;
                    better(&mut best, gain, Next::Start(index, there, after));
                }
            }
            for end in self.failures(index, step, last) {
                let gain = sum(end) + self.idle(end, left, first);
                better(&mut best, gain, Next::Fail(index, end));
            }
        }
        best
    }

    /// Has come to a place just before the look of a step, and may leave it before the look, where
    /// it set out before the look before.
    fn arrive(&self, step: usize, left: usize, at: usize, leaves: bool) -> Best {
        let mut best = (self.value(step, left, at), Next::Stay);
        if step < self.until && left > 0 && self.planner.free[step] {
            if leaves {
                better(&mut best, self.idle(step, left, false), Next::LeaveNow);
            }
            self.moves(step, left, at, &mut best);
        }
        best
    }

    /// At a place at the look of a step.
    fn there(&self, step: usize, left: usize, at: usize) -> Best {
        let (planner, paid) = (self.planner, &self.paid[at]);
        let now = paid.at[step];
        if now == f64::NEG_INFINITY {
            return (now, Next::Over);
        }
        let (next, after) = (step + 1, if planner.job { left - 1 } else { left });
        let mut best = match self.over(next, after) {
            Some(over) => (over, Next::Over),
            None => {
                let mut best = (self.value(next, after, at), Next::Stay);
                if planner.free[next] {
                    let gain = self.idle(next, after, false);
                    better(&mut best, gain, Next::Leave);
                    self.moves(next, after, at, &mut best);
                }
                best
            }
        };
        best.0 += now;
        if planner.job {
            self.lose(step, left, at, &mut best);
        }
        best
    }

    /// A service's moves from a place that are seen first at a step.
    fn moves(&self, step: usize, left: usize, at: usize, best: &mut Best) {
        if self.planner.job {
            return;
        }
        let old = &self.paid[at];
        for (to, place) in self.planner.places.iter().enumerate() {
            if to == at && self.machines[place.machine].owned {
                continue;
            }
            let new = &self.paid[to];
            let sum =
                |end: usize| old.old[end] - old.old[step] + new.moving[end] - new.moving[step];
            let mut last = step;
            let from = &self.planner.places[at];
            let worth = (place.rate - from.rate + place.usual_second).max(0.0);
            for (there, weighed) in self.arrivals(step, (place.again, place.longest), worth) {
                last = there;
                if there >= self.until {
                    if new.closed[step] >= self.until {
                        let weighed = if there == self.until {
                            weighed.max(0.0)
                        } else {
                            0.0
                        };
                        let gain = sum(self.until) + weighed;
                        better(best, gain, Next::Move(to, step, self.until));
                    }
                } else if new.closed[step] >= there {
                    let gain = sum(there) - place.dollars + weighed + self.value(there, left, to);
                    better(best, gain, Next::Move(to, step, there));
                }
            }
            for end in self.failures(to, step, last) {
                let stays = sum(end) + self.value(end, left, at);
                better(best, stays, Next::MoveFail(to, step, end, true));
                let lost = sum(end) + self.idle(end, left, false);
                better(best, lost, Next::MoveFail(to, step, end, false));
            }
        }
    }

    /// Works on until the machine dies, for nothing.
    fn lose(&self, step: usize, left: usize, at: usize, best: &mut Best) {
        let (paid, place) = (&self.paid[at], &self.planner.places[at]);
        let most = step.saturating_add(self.planner.unsaved);
        let most = most.min(self.until).min(paid.closed[step]);
        let mut end = place.death[step];
        while end <= most {
            let gain = paid.lost[end] - paid.lost[step] + self.idle(end, left, false);
            better(best, gain, Next::Lose(end));
            end = place.death[end];
        }
    }

    /// Follows the best plan from a step on; gives its reward, and adds `hours` to `asked` for each
    /// look at a place.
    pub fn walk(&self, from: usize, hours: f64, asked: &mut [Vec<f64>]) -> f64 {
        let planner = self.planner;
        let reward = self.idle(from, planner.units, true);
        let mut note = |place: usize, steps: std::ops::Range<usize>| {
            let place = &planner.places[place];
            let machine = &self.machines[place.machine];
            let asked = &mut asked[place.machine];
            let times = asked.len() / machine.members.len();
            for k in steps.filter(|k| machine.open[*k] > 0.0) {
                asked[place.member * times + priced_time(k).min(times - 1)] += hours;
            }
        };
        let (mut step, mut left, mut first) = (from, planner.units, true);
        // Where it is, and whether it has just come.
        let mut at: Option<(usize, bool)> = None;
        while step < self.until && left > 0 {
            let (_, next) = match at {
                None => self.nowhere(step, left, first),
                Some((place, true)) => match self.arrive(step, left, place, true) {
                    (_, Next::Stay) => {
                        at = Some((place, false));
                        continue;
                    }
                    other => other,
                },
                Some((place, false)) => self.there(step, left, place),
            };
            let here = at.map_or(0, |a| a.0);
            match next {
                Next::Wait => step += 1,
                Next::LeaveNow => at = None,
                Next::Start(place, there, after) => {
                    note(place, step..there);
                    at = Some((place, there > step));
                    (step, left, first) = (there, after, false);
                }
                Next::Fail(place, end) => {
                    note(place, step..end);
                    step = end;
                }
                Next::Lose(end) => {
                    note(here, step..end);
                    (at, step) = (None, end);
                }
                Next::Stay | Next::Leave | Next::Over => {
                    note(here, step..step + 1);
                    match next {
                        Next::Over => break,
                        Next::Leave => at = None,
                        _ => {}
                    }
                    step += 1;
                    left -= usize::from(planner.job);
                }
                Next::Move(to, begun, there) => {
                    note(here, step..there);
                    note(to, begun..there);
                    (at, step) = (Some((to, false)), there);
                }
                Next::MoveFail(to, begun, end, stays) => {
                    note(here, step..end);
                    note(to, begun..end);
                    at = stays.then_some((here, false));
                    step = end;
                }
            }
        }
        reward
    }
}
