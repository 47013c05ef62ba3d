//! A policy continued from what came of real decisions, and promoted only where that can be shown.
//!
//! - [`Lessons`]: experiences of files, told apart into those to learn from and those held out;
//! - [`reward`]: what an outcome was worth;
//! - [`replay`]: what another policy would have earned, by importance weights;
//! - [`rehearsal`]: whether it is worse in the simulator;
//! - [`continue_policy`]: all of it.
//!
//! How it works and what it can't tell: `docs/training.md`.

mod lessons;
pub mod rehearsal;
pub mod replay;
pub mod reward;
#[cfg(test)]
mod tests;

use hyperion_placement::policy::Network;
use serde::Serialize;

use crate::eval::stats::Mean;
use crate::ppo::{self, Logged, Offline, OfflineProgress, learn_from_log};
pub use lessons::{Error, LEAST, Lesson, Lessons};
pub use rehearsal::{Rehearsal, Stage};
pub use replay::Replay;

/// A policy whose weights on held-out experiences amount to fewer is not judged by them.
pub const LEAST_EFFECTIVE: f64 = 20.0;
/// Share of choices that were certainly not the likeliest, below which nothing was tried out.
pub const LEAST_TRIED: f64 = 0.01;

/// A mean and half the width of its 95 % confidence interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Figure {
    /// The mean.
    pub value: f64,
    /// Half the width.
    pub ci95: f64,
}

impl From<Mean> for Figure {
    fn from(mean: Mean) -> Self {
        Self {
            value: mean.value,
            ci95: mean.ci95,
        }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4} ± {:.4}", self.value, self.ci95)
    }
}

/// What became of learning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether the new policy is to take the place of the running one.
    pub promoted: bool,
    /// Why not; empty where it is.
    pub reasons: Vec<String>,
    /// What was read.
    pub read: lessons::Counts,
    /// What was learnt.
    pub learning: OfflineProgress,
    /// Both policies on the held-out experiences.
    pub replay: Replay,
    /// Both in the simulator; none where replay had decided already.
    pub rehearsal: Option<Rehearsal>,
}

/// How to judge.
#[derive(Debug, Clone, Copy, Default)]
pub struct Judging {
    /// Trust in importance weights even where whoever decided always took its best candidate.
    pub accept_greedy: bool,
}

/// Continues `running` from the lessons. `write` gives the new policy the form in which it would
/// be used, quantised for example: that is what is judged. It is returned with the verdict,
/// whatever that is.
///
/// # Errors
/// Those of `write`; [`Error::Learner`] where numbers got out of hand; [`Error::Score`] where the
/// new policy has no score for a candidate.
pub fn continue_policy(
    running: &Network,
    lessons: &Lessons,
    offline: &Offline,
    judging: Judging,
    stage: &Stage<'_>,
    write: impl FnOnce(&Network) -> Result<Network, Error>,
) -> Result<(Network, Verdict), Error> {
    let logged: Vec<Logged<'_>> = lessons.learn.iter().map(Lesson::logged).collect();
    let (network, learning) = learn_from_log(running, &logged, offline)?;
    let network = write(&network)?;
    let replay = Replay::new(&lessons.held_out, running, &network)?;
    let mut reasons = faults(&replay, lessons.counts.tried_share(), judging);
    let rehearsal = if reasons.is_empty() {
        let rehearsal = stage.play(running, &network)?;
        reasons.extend(rehearsal.faults());
        Some(rehearsal)
    } else {
        None
    };
    let verdict = Verdict {
        promoted: reasons.is_empty(),
        reasons,
        read: lessons.counts,
        learning,
        replay,
        rehearsal,
    };
    Ok((network, verdict))
}

/// Why replay does not speak for the new policy.
fn faults(replay: &Replay, tried: f64, judging: Judging) -> Vec<String> {
    let mut faults = Vec::new();
    if tried < LEAST_TRIED && !judging.accept_greedy {
        faults.push(format!(
            "nothing was tried out: {:.2} % of the choices were certainly not the likeliest \
             candidate, {:.0} % are needed; what other candidates would have brought is not known",
            100.0 * tried,
            100.0 * LEAST_TRIED
        ));
    }
    if replay.new.effective < LEAST_EFFECTIVE {
        faults.push(format!(
            "the held-out experiences count as {:.1} for the new policy, {LEAST_EFFECTIVE} are \
             needed",
            replay.new.effective
        ));
    }
    let gain = replay.gain;
    if gain.value - gain.ci95 <= 0.0 {
        faults.push(format!(
            "replay does not show a gain: {gain} reward per hour (95 %)"
        ));
    }
    faults
}

impl From<ppo::Error> for Error {
    fn from(error: ppo::Error) -> Self {
        Self::Learner(error)
    }
}
