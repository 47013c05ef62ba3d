//! Experiences of files, made ready to learn from.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use hyperion_placement::model::Goal;
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Experience, ExperienceError, log_probability};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::reward::{is_service, realised};
use crate::ppo::{self, Actor, CandidateFeatures, Logged, Turn};

/// Fewer experiences with a choice are refused.
pub const LEAST: usize = 100;
/// Of so many, by the hash of its line, …
const PARTS: u64 = 10;
/// … this many are held out.
const HELD_OUT: u64 = 3;

/// Why nothing could be learnt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// A file has nothing in it.
    #[error("{}: there is no experience in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line is not text.
    #[error("{}: line {line}, the line: it is not UTF-8", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A line is not an experience.
    #[error("{}: {fault}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, field and problem.
        fault: ExperienceError,
    },
    /// There are too few to tell anything.
    #[error(
        "{usable} experiences can be learnt from, at least {LEAST} are needed: of {lines} lines \
         {duplicates} are there twice, {without_choice} had one candidate only, {unmeasured} are \
         services without a p99"
    )]
    TooFew {
        /// Those that can be learnt from.
        usable: usize,
        /// Lines of all files.
        lines: usize,
        /// Lines that are there twice.
        duplicates: usize,
        /// Without an alternative.
        without_choice: usize,
        /// Services whose p99 is not known.
        unmeasured: usize,
    },
    /// All were held out, or none.
    #[error("{learn} experiences to learn from and {held_out} held out: {LEAST} more may help")]
    Split {
        /// To learn from.
        learn: usize,
        /// Held out.
        held_out: usize,
    },
    /// A policy has no score for a candidate.
    #[error("{place}, candidates: the policy's score of one of them is no number")]
    Score {
        /// Where.
        place: String,
    },
    /// Learning failed.
    #[error(transparent)]
    Learner(ppo::Error),
    /// The new policy can't be written.
    #[error("the new policy")]
    Policy(#[from] hyperion_policy::PolicyError),
    /// An episode of the simulator ended without a result.
    #[error("a thread of the simulator ended without a result")]
    Rehearsal,
}

/// One experience to learn from or to judge by.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// The decision.
    pub turn: Turn,
    /// Index of the chosen candidate.
    pub choice: usize,
    /// Logarithm of the probability with which it was chosen.
    pub log_probability: f64,
    /// Reward per hour that came of it.
    pub reward: f64,
    /// What is usual for its goal and kind.
    pub baseline: f64,
    /// File and line.
    pub place: String,
    kind: usize,
}

impl Lesson {
    pub(super) fn logged(&self) -> Logged<'_> {
        Logged {
            turn: &self.turn,
            choice: self.choice,
            log_probability: self.log_probability,
            advantage: self.reward - self.baseline,
        }
    }

    /// Logarithm of the probability with which a policy makes the same choice.
    ///
    /// # Errors
    /// [`Error::Score`].
    pub(super) fn log_probability_of(&self, actor: &mut Actor<'_>) -> Result<f64, Error> {
        let scores = actor.scores(&self.turn);
        log_probability(scores, self.choice).ok_or_else(|| Error::Score {
            place: self.place.clone(),
        })
    }
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Lines that are not empty.
    pub lines: usize,
    /// Lines that were there before.
    pub duplicates: usize,
    /// Decisions without an alternative.
    pub without_choice: usize,
    /// Services whose p99 is not known.
    pub unmeasured: usize,
    /// To learn from.
    pub learn: usize,
    /// Held out.
    pub held_out: usize,
    /// Of both, choices that were certainly not the likeliest of their candidates.
    pub tried: usize,
}

impl Counts {
    /// Share of choices that were certainly not the likeliest of their candidates.
    #[must_use]
    pub fn tried_share(&self) -> f64 {
        self.tried as f64 / (self.learn + self.held_out).max(1) as f64
    }
}

/// Experiences to learn from, and those held out.
#[derive(Debug, Clone, PartialEq)]
pub struct Lessons {
    /// To learn from.
    pub learn: Vec<Lesson>,
    /// To judge by.
    pub held_out: Vec<Lesson>,
    /// What was read.
    pub counts: Counts,
    /// SHA-256 over the files' content, in their order.
    pub hash: [u8; 32],
}

impl Lessons {
    /// Reads files. Which experiences are held out follows from the hash of each line alone, and a
    /// line that is there twice counts once. `running` must have a score for every candidate.
    ///
    /// # Errors
    /// Files that can't be read or have no line, lines that are no experiences, and fewer than
    /// [`LEAST`].
    pub fn read(
        paths: &[PathBuf],
        weights: &RewardWeights,
        running: &Network,
    ) -> Result<Self, Error> {
        let mut reader = Reader {
            weights,
            actor: Actor::new(running),
            seen: HashSet::new(),
            learn: Vec::new(),
            held_out: Vec::new(),
            counts: Counts::default(),
        };
        let mut hash = Sha256::new();
        for path in paths {
            let content = std::fs::read(path).map_err(|why| Error::File {
                path: path.clone(),
                why,
            })?;
            hash.update(&content);
            reader.file(path, &content)?;
        }
        reader.finish(hash.finalize().into())
    }
}

struct Reader<'a> {
    weights: &'a RewardWeights,
    actor: Actor<'a>,
    seen: HashSet<[u8; 32]>,
    learn: Vec<Lesson>,
    held_out: Vec<Lesson>,
    counts: Counts,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let before = self.counts.lines;
        for (i, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let text = std::str::from_utf8(line).map_err(|_| Error::Text {
                path: path.to_owned(),
                line: i + 1,
            })?;
            if !text.trim().is_empty() {
                self.line(path, i + 1, text)?;
            }
        }
        if self.counts.lines == before {
            return Err(Error::Empty {
                path: path.to_owned(),
            });
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, number: usize, text: &str) -> Result<(), Error> {
        let experience = Experience::parse_line(number, text).map_err(|fault| Error::Line {
            path: path.to_owned(),
            fault,
        })?;
        self.counts.lines += 1;
        let hash: [u8; 32] = Sha256::digest(text.trim().as_bytes()).into();
        if !self.seen.insert(hash) {
            self.counts.duplicates += 1;
            return Ok(());
        }
        if experience.candidates.len() < 2 {
            self.counts.without_choice += 1;
            return Ok(());
        }
        let Some(reward) = realised(&experience, self.weights) else {
            self.counts.unmeasured += 1;
            return Ok(());
        };
        let place = format!("{}: line {number}", path.display());
        let lesson = lesson(experience, reward, place);
        lesson.log_probability_of(&mut self.actor)?;
        // The likeliest of n candidates has a probability of 1 / n at least.
        let count = lesson.turn.candidates.len() as f64;
        self.counts.tried += usize::from(lesson.log_probability <= 1e-6 - count.ln());
        let part = hash.iter().take(8);
        let part = part.fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)) % PARTS;
        if part < HELD_OUT {
            self.held_out.push(lesson);
        } else {
            self.learn.push(lesson);
        }
        Ok(())
    }

    fn finish(mut self, hash: [u8; 32]) -> Result<Lessons, Error> {
        let counts = &mut self.counts;
        (counts.learn, counts.held_out) = (self.learn.len(), self.held_out.len());
        let usable = counts.learn + counts.held_out;
        if usable < LEAST {
            return Err(Error::TooFew {
                usable,
                lines: counts.lines,
                duplicates: counts.duplicates,
                without_choice: counts.without_choice,
                unmeasured: counts.unmeasured,
            });
        }
        if counts.learn == 0 || counts.held_out == 0 {
            return Err(Error::Split {
                learn: counts.learn,
                held_out: counts.held_out,
            });
        }
        let baselines = baselines(&self.learn);
        for lesson in self.learn.iter_mut().chain(&mut self.held_out) {
            lesson.baseline = baselines[lesson.kind];
        }
        Ok(Lessons {
            learn: self.learn,
            held_out: self.held_out,
            counts: self.counts,
            hash,
        })
    }
}

fn lesson(experience: Experience, reward: f64, place: String) -> Lesson {
    let goal = match experience.goal {
        Goal::Cost => 0,
        Goal::Latency => 1,
        Goal::Default => 2,
    };
    let kind = 2 * goal + usize::from(is_service(&experience.request));
    let candidates = experience.candidates.into_iter();
    Lesson {
        turn: Turn {
            actor: 0,
            hour: 0.0,
            earned: 0.0,
            team: 0.0,
            request: experience.request,
            candidates: candidates
                .map(|c| CandidateFeatures {
                    node: c.node,
                    pair: c.pair,
                    fit: c.fit,
                })
                .collect(),
        },
        choice: experience.chosen,
        log_probability: experience.log_probability,
        reward,
        baseline: 0.0,
        place,
        kind,
    }
}

/// Goals, each for services and jobs: what a job earns and what a service earns do not compare.
const KINDS: usize = 6;

/// Mean reward of each kind over the lessons to learn from; of all where there is none of a kind.
fn baselines(lessons: &[Lesson]) -> [f64; KINDS] {
    let mut sums = [(0.0, 0.0); KINDS];
    for lesson in lessons {
        sums[lesson.kind].0 += lesson.reward;
        sums[lesson.kind].1 += 1.0;
    }
    let all: f64 = lessons.iter().map(|l| l.reward).sum();
    let all = all / lessons.len().max(1) as f64;
    sums.map(|(sum, count)| if count > 0.0 { sum / count } else { all })
}
