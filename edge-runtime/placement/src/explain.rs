//! Why a decision came out as it did, in words and numbers.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::choose::{CandidateRef, Rank, rounded};
use crate::features::{self, Kind};
use crate::filter::{Candidate, Constraint};
use crate::model::Request;
use crate::score::Scorer;

/// Candidates that an explanation names.
pub const TOP: usize = 5;

/// The candidates' count, the rejected ones by reason, and the winner's score by term.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Explanation {
    /// Scorer's name.
    pub scorer: String,
    /// Nodes and offers that passed the filter.
    pub candidates: usize,
    /// Those that did not, each under the first constraint that ruled it out.
    pub rejected: BTreeMap<Constraint, usize>,
    /// Winner's score, term by term.
    pub terms: Vec<(String, f64)>,
    /// Best other candidate.
    pub runner_up: Option<(String, f64)>,
    /// The best candidates, at most [`TOP`], best first.
    pub top: Vec<Ranked>,
    /// Changes of one thing that would make the second win; empty where none of those tried does,
    /// and until it is asked for with [`explain`](crate::choose::explain).
    pub flips: Vec<Flip>,
}

/// One of the best candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// Which.
    pub candidate: CandidateRef,
    /// Its score.
    pub score: f64,
    /// Its score, term by term; empty until asked for with [`explain`](crate::choose::explain).
    pub terms: Vec<(String, f64)>,
}

/// What a [`Flip`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The second's price, US dollars per hour for the whole machine.
    Price,
    /// The second's p99 seen by clients, milliseconds.
    P99,
    /// The winner's CPU that is not promised, cores.
    Free,
}

/// A change that would make the second win, everything else staying as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flip {
    /// What changes.
    pub change: Change,
    /// Id of the candidate that was chosen.
    pub winner: String,
    /// Id of the candidate that would be.
    pub second: String,
    /// What it is now.
    pub now: f64,
    /// At this value, which is lower, the second wins.
    pub needed: f64,
}

impl fmt::Display for Flip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            winner,
            second,
            now,
            needed,
            ..
        } = self;
        match self.change {
            Change::Price => write!(
                f,
                "{second} would win if its price fell from {now:.4} to {needed:.4} USD/h"
            ),
            Change::P99 => write!(
                f,
                "{second} would win if its p99 fell by {:.1} ms to {needed:.1} ms",
                now - needed
            ),
            Change::Free => write!(
                f,
                "{second} would win if {winner} had {needed:.2} cores free and not {now:.2}"
            ),
        }
    }
}

impl Explanation {
    /// One line, for example `0 of 6 nodes fit: 4 ruled out by clouds, 2 by nvidia.com/gpu`.
    #[must_use]
    pub fn summary(&self) -> String {
        let all = self.candidates + self.rejected.values().sum::<usize>();
        if all == 0 {
            return "the fleet has no nodes yet".to_owned();
        }
        let mut rows: Vec<(&Constraint, &usize)> = self.rejected.iter().collect();
        rows.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let parts: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(i, (c, n))| {
                if i == 0 {
                    format!("{n} ruled out by {c}")
                } else {
                    format!("{n} by {c}")
                }
            })
            .collect();
        let head = format!("{} of {all} nodes fit", self.candidates);
        if parts.is_empty() {
            head
        } else {
            format!("{head}: {}", parts.join(", "))
        }
    }
}

/// Fills in the terms of the best and what would make the second win. `top` are the candidates of
/// `explanation.top` with what was looked up of them, in its order; `scorer` has read the request.
pub(crate) fn fill(
    scorer: &dyn Scorer,
    request: &Request,
    top: &[(Candidate<'_>, Kind)],
    explanation: &mut Explanation,
) {
    for (ranked, (candidate, kind)) in explanation.top.iter_mut().zip(top) {
        let features = features::encode_of(kind, request, candidate);
        ranked.terms = scorer.score(request, candidate, &features).named();
    }
    explanation.flips = match top {
        [winner, second, ..] => {
            let contest = Contest {
                scorer,
                request,
                winner,
                second,
            };
            [contest.price(), contest.p99(), contest.free()]
                .into_iter()
                .flatten()
                .collect()
        }
        _ => Vec::new(),
    };
}

struct Contest<'a> {
    scorer: &'a dyn Scorer,
    request: &'a Request,
    winner: &'a (Candidate<'a>, Kind),
    second: &'a (Candidate<'a>, Kind),
}

/// Halvings of the interval: to a millionth of what it was.
const HALVINGS: usize = 20;

impl Contest<'_> {
    fn rank<'b>(&self, candidate: &Candidate<'b>, kind: &Kind) -> Rank<'b> {
        let features = features::encode_of(kind, self.request, candidate);
        Rank {
            id: candidate.id,
            offer: candidate.node.is_none(),
            total: rounded(self.scorer.total(self.request, candidate, &features)),
        }
    }

    /// Share of what it is now, the largest found, at which `wins`; none where it does not win at
    /// `least`. With a scorer that goes up and down in between, others may exist.
    fn bisect(&self, least: f64, wins: impl Fn(f64) -> bool) -> Option<f64> {
        if !wins(least) {
            return None;
        }
        let (mut low, mut high) = (least, 1.0);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            if wins(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    fn flip(&self, change: Change, now: f64, needed: f64) -> Flip {
        Flip {
            change,
            winner: self.winner.0.id.to_owned(),
            second: self.second.0.id.to_owned(),
            now,
            needed,
        }
    }

    fn price(&self) -> Option<Flip> {
        let (candidate, kind) = self.second;
        let price = candidate.price_per_hour;
        let cost = kind.hourly_cost?;
        if price <= 0.0 {
            return None;
        }
        let winner = self.rank(&self.winner.0, &self.winner.1);
        // A cloud's price of 0 stands for an unknown one, so it stops short of it.
        let share = self.bisect(1e-4, |share| {
            let cheaper = Candidate {
                price_per_hour: price * share,
                ..*candidate
            };
            let kind = Kind {
                hourly_cost: Some(cost * share),
                ..*kind
            };
            self.rank(&cheaper, &kind).goes_before(&winner)
        })?;
        Some(self.flip(Change::Price, price, price * share))
    }

    fn p99(&self) -> Option<Flip> {
        let (candidate, kind) = self.second;
        let rtt = kind.client_rtt_ms?;
        let winner = self.rank(&self.winner.0, &self.winner.1);
        let nearer = |share: f64| Kind {
            client_rtt_ms: Some(rtt * share),
            ..*kind
        };
        let share = self.bisect(0.0, |share| {
            self.rank(candidate, &nearer(share)).goes_before(&winner)
        })?;
        let p99 = |kind: &Kind| features::encode_of(kind, self.request, candidate).p99_ms;
        Some(self.flip(Change::P99, p99(kind)?, p99(&nearer(share))?))
    }

    fn free(&self) -> Option<Flip> {
        let (candidate, kind) = self.winner;
        candidate.node?;
        let (asked, free) = (self.request.resources.cpu_millis, candidate.free.cpu_millis);
        if free <= asked {
            return None;
        }
        let left = |share: f64| asked + ((free - asked) as f64 * share) as u64;
        let second = self.rank(&self.second.0, &self.second.1);
        let share = self.bisect(0.0, |share| {
            let mut fuller = *candidate;
            fuller.free.cpu_millis = left(share);
            second.goes_before(&self.rank(&fuller, kind))
        })?;
        let cores = |millis: u64| millis as f64 / 1000.0;
        Some(self.flip(Change::Free, cores(free), cores(left(share))))
    }
}
