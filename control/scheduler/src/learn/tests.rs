//! Policies that learn from synthetic experiences.

use std::path::PathBuf;

use hyperion_placement::features::{
    FIT_LEN, FitSlot, NODE_LEN, PAIR, PAIR_LEN, PairSlot, REQUEST_LEN, RequestSlot,
};
use hyperion_placement::model::Goal;
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Encoded, Experience, Outcome, log_probability};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::ppo::{Actor, CandidateFeatures, Turn};
use crate::scenario::Size;
use crate::world::World;

/// What decides outcomes.
#[derive(Clone, Copy, PartialEq)]
enum Truth {
    /// Where the images are, it costs a third.
    Images,
    /// Chance alone.
    Noise,
}

/// How the choice was made.
#[derive(Clone, Copy, PartialEq)]
enum Chooser {
    Drawn,
    Greedy,
    /// As the operator with `--explore 0.2`.
    Sometimes,
}

struct Dice(Xoshiro256PlusPlus);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// In [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn coin(&mut self) -> f32 {
        if self.uniform() < 0.5 { 0.0 } else { 1.0 }
    }
}

/// Prefers what promises reward, and nothing else.
fn running() -> Network {
    let mut network = Network::zeros();
    let reward = PairSlot::Reward as usize;
    network.direct.bias[reward] = 4.0 * PAIR[reward].scale;
    network
}

fn turn(experience: &Experience) -> Turn {
    let candidates = experience.candidates.iter();
    Turn {
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
    }
}

fn encoded(dice: &mut Dice) -> Encoded {
    let mut candidate = Encoded {
        node: [0.0; NODE_LEN],
        pair: [0.0; PAIR_LEN],
        fit: [0.0; FIT_LEN],
    };
    candidate.pair[PairSlot::Reward as usize] = (0.1 * dice.uniform()) as f32;
    candidate.fit[FitSlot::Images as usize] = dice.coin();
    candidate.fit[FitSlot::CpuAfter as usize] = dice.uniform() as f32;
    candidate
}

fn experience(dice: &mut Dice, truth: Truth, chooser: Chooser) -> Experience {
    let mut request = [0.0; REQUEST_LEN];
    let service = dice.coin();
    request[RequestSlot::Service as usize] = service;
    let candidates: Vec<Encoded> = (0..2 + dice.0.next_u64() % 4)
        .map(|_| encoded(dice))
        .collect();
    let goals = [Goal::Cost, Goal::Latency, Goal::Default];
    let mut made = Experience {
        goal: goals[(dice.0.next_u64() % 3) as usize],
        request,
        candidates,
        chosen: 0,
        log_probability: 0.0,
        outcome: Outcome {
            cost_per_hour: 0.0,
            p99_ms: (service > 0.5).then(|| 40.0 + 20.0 * dice.uniform()),
            completed: dice.uniform() < 0.95,
            moved: false,
            violations: 0,
            hours: 1.0 + 4.0 * dice.uniform(),
        },
    };
    let network = running();
    let mut actor = Actor::new(&network);
    let turn = turn(&made);
    let scores = actor.scores(&turn).to_vec();
    let likelihood = |i: usize| log_probability(&scores, i).unwrap();
    made.chosen = match chooser {
        Chooser::Sometimes if dice.uniform() < 0.8 => actor.best(&turn),
        Chooser::Greedy => actor.best(&turn),
        Chooser::Drawn | Chooser::Sometimes => {
            let mut left = dice.uniform();
            (0..scores.len())
                .find(|i| {
                    left -= likelihood(*i).exp();
                    left < 0.0
                })
                .unwrap_or(scores.len() - 1)
        }
    };
    let best = made.chosen == actor.best(&turn);
    made.log_probability = match chooser {
        Chooser::Drawn => likelihood(made.chosen),
        Chooser::Greedy => 0.0,
        Chooser::Sometimes => {
            let best = if best { 0.8 } else { 0.0 };
            (best + 0.2 * likelihood(made.chosen).exp()).ln()
        }
    };
    let images = made.candidates[made.chosen].fit[FitSlot::Images as usize] > 0.5;
    let cheap = match truth {
        Truth::Images => images,
        Truth::Noise => dice.uniform() < 0.5,
    };
    let cost = if cheap { 0.1 } else { 0.3 };
    made.outcome.cost_per_hour = cost * (0.8 + 0.4 * dice.uniform());
    made
}

fn text(seed: u64, count: usize, truth: Truth, chooser: Chooser) -> String {
    let mut dice = Dice::new(seed);
    (0..count)
        .map(|_| experience(&mut dice, truth, chooser).to_line().unwrap())
        .collect()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn read(text: &str) -> Result<Lessons, Error> {
    let files = Files::new();
    let path = files.write("e.jsonl", text);
    Lessons::read(&[path], &RewardWeights::default(), &running())
}

/// The message for a file, without its folder.
fn refusal(text: impl AsRef<[u8]>) -> String {
    let files = Files::new();
    let path = files.write("e.jsonl", text);
    let folder = format!("{}/", files.0.path().display());
    let read = Lessons::read(&[path], &RewardWeights::default(), &running());
    read.unwrap_err().to_string().replace(&folder, "")
}

fn learn(text: &str, judging: Judging) -> (Network, Verdict) {
    let world = World::builtin();
    let stage = Stage {
        world: &world,
        size: Size::small(),
        episodes: 3,
        weights: RewardWeights::default(),
        threads: 1,
    };
    let offline = Offline {
        threads: 1,
        ..Offline::default()
    };
    let lessons = read(text).unwrap();
    let same = |network: &Network| Ok(network.clone());
    continue_policy(&running(), &lessons, &offline, judging, &stage, same).unwrap()
}

/// Share of decisions in which the network draws a candidate with images, where there is a choice.
fn prefers_images(network: &Network) -> f64 {
    let mut dice = Dice::new(99);
    let mut actor = Actor::new(network);
    let (mut share, mut count) = (0.0, 0.0);
    for _ in 0..200 {
        let made = experience(&mut dice, Truth::Noise, Chooser::Drawn);
        let images = |c: &Encoded| c.fit[FitSlot::Images as usize] > 0.5;
        let with = made.candidates.iter().filter(|c| images(c)).count();
        if with == 0 || with == made.candidates.len() {
            continue;
        }
        let scores = actor.scores(&turn(&made)).to_vec();
        count += 1.0;
        share += (0..scores.len())
            .filter(|i| images(&made.candidates[*i]))
            .map(|i| log_probability(&scores, i).unwrap().exp())
            .sum::<f64>();
    }
    share / count
}

#[test]
fn what_pays_is_learnt_and_promoted() {
    let text = text(1, 1500, Truth::Images, Chooser::Drawn);
    let (network, verdict) = learn(&text, Judging::default());
    assert!(verdict.promoted, "{verdict:?}");
    assert_eq!(verdict.reasons, Vec::<String>::new());
    let (before, after) = (prefers_images(&running()), prefers_images(&network));
    assert!(after > before + 0.08, "{before} {after}");
    assert!(verdict.learning.kl <= Offline::default().max_kl);
    let replay = verdict.replay;
    assert!((replay.new.mean_weight - 1.0).abs() < 0.1, "{replay:?}");
    assert_eq!(
        replay.running.effective.round() as usize,
        replay.experiences
    );
    assert_eq!(verdict.rehearsal.unwrap().violations, 0);
}

#[test]
fn what_pays_is_learnt_from_the_few_choices_that_were_left_to_chance() {
    let text = text(1, 3000, Truth::Images, Chooser::Sometimes);
    let (network, verdict) = learn(&text, Judging::default());
    assert!(verdict.promoted, "{verdict:?}");
    let (before, after) = (prefers_images(&running()), prefers_images(&network));
    assert!(after > before + 0.08, "{before} {after}");
    assert!(verdict.learning.kl <= Offline::default().max_kl);
}

#[test]
fn the_same_seed_learns_the_same_whatever_the_threads() {
    let lessons = read(&text(1, 300, Truth::Images, Chooser::Drawn)).unwrap();
    let logged: Vec<Logged<'_>> = lessons.learn.iter().map(Lesson::logged).collect();
    let with = |threads| {
        let offline = Offline {
            threads,
            epochs: 2,
            minibatch: 64,
            ..Offline::default()
        };
        learn_from_log(&running(), &logged, &offline).unwrap()
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn noise_is_not_promoted() {
    let mut gains = 0;
    for seed in 0..8 {
        let lessons = read(&text(seed, 600, Truth::Noise, Chooser::Drawn)).unwrap();
        let logged: Vec<Logged<'_>> = lessons.learn.iter().map(Lesson::logged).collect();
        let offline = Offline {
            threads: 1,
            ..Offline::default()
        };
        let (network, _) = learn_from_log(&running(), &logged, &offline).unwrap();
        let replay = Replay::new(&lessons.held_out, &running(), &network).unwrap();
        gains += usize::from(faults(&replay, 1.0, Judging::default()).is_empty());
    }
    // Of a hundred such gains, two or three are taken for real.
    assert_eq!(gains, 0);
    let (_, verdict) = learn(
        &text(3, 600, Truth::Noise, Chooser::Drawn),
        Judging::default(),
    );
    assert!(!verdict.promoted);
    assert!(verdict.reasons[0].starts_with("replay does not show a gain"));
    assert_eq!(verdict.rehearsal, None, "the simulator is not asked");
}

#[test]
fn who_never_tried_anything_out_cant_be_judged() {
    let text = text(1, 1500, Truth::Images, Chooser::Greedy);
    let (_, verdict) = learn(&text, Judging::default());
    assert!(!verdict.promoted);
    assert!(
        verdict.reasons[0].starts_with("nothing was tried out: 0.00 %"),
        "{:?}",
        verdict.reasons
    );
    let trusting = Judging {
        accept_greedy: true,
    };
    let (_, verdict) = learn(&text, trusting);
    let mentions = |r: &String| r.starts_with("nothing was tried out");
    assert!(!verdict.reasons.iter().any(mentions));
}

#[test]
fn a_policy_that_is_worse_in_the_simulator_is_not_promoted() {
    let mut worse = Network::zeros();
    let reward = PairSlot::Reward as usize;
    worse.direct.bias[reward] = -4.0 * PAIR[reward].scale;
    let world = World::builtin();
    let stage = Stage {
        world: &world,
        size: Size::small(),
        episodes: 4,
        weights: RewardWeights::default(),
        threads: 2,
    };
    let rehearsal = stage.play(&running(), &worse).unwrap();
    let faults = rehearsal.faults();
    assert_eq!(faults.len(), 1, "{rehearsal:?}");
    assert!(faults[0].starts_with("it is worse in the simulator: -"));
    let same = stage.play(&running(), &running()).unwrap();
    assert_eq!(same.difference, Figure::default());
    assert!(same.faults().is_empty());
}

#[test]
fn replay_finds_what_another_policy_would_have_earned() {
    let text = text(5, 1500, Truth::Images, Chooser::Drawn);
    let lessons = read(&text).unwrap();
    let mut other = running();
    other.direct.bias[PAIR_LEN + FitSlot::Images as usize] = 1.0;
    let replay = Replay::new(&lessons.held_out, &running(), &other).unwrap();
    // The truth, by drawing outcomes for its choices.
    let mut dice = Dice::new(77);
    let (mut actor, mut sum, mut drawn) = (Actor::new(&other), 0.0, 0.0);
    for _ in 0..4000 {
        let mut made = experience(&mut dice, Truth::Images, Chooser::Drawn);
        let scores = actor.scores(&turn(&made)).to_vec();
        let weight = log_probability(&scores, made.chosen).unwrap() - made.log_probability;
        // Rejection: what is left is drawn by the other policy.
        if dice.uniform() * 3.0 < weight.exp() {
            made.outcome.violations = 0;
            sum += reward::realised(&made, &RewardWeights::default()).unwrap();
            drawn += 1.0;
        }
    }
    let (truth, found) = (sum / drawn, replay.new.reward);
    assert!(
        (found.value - truth).abs() < 1.5 * found.ci95,
        "{truth} {found}"
    );
    assert!(replay.gain.value - replay.gain.ci95 > 0.0);
    assert!(
        replay.gain.ci95 < found.ci95,
        "a difference is known better than either"
    );
}

#[test]
fn a_held_out_line_stays_held_out_and_counts_once() {
    let text = text(2, 400, Truth::Images, Chooser::Drawn);
    let once = read(&text).unwrap();
    let held = once.held_out.len();
    assert!((80..160).contains(&held), "{held}");
    let reversed: Vec<&str> = text.lines().rev().collect();
    let twice = read(&format!("{text}\n{}", reversed.join("\n"))).unwrap();
    assert_eq!(twice.counts.duplicates, 400);
    assert_eq!(twice.counts.learn, once.counts.learn);
    let lines = |lessons: &Lessons| -> Vec<String> {
        lessons.held_out.iter().map(|l| l.place.clone()).collect()
    };
    let held = lines(&twice).len();
    assert_eq!(held, lines(&once).len());
}

#[test]
fn bad_input_is_refused_by_file_line_and_field() {
    assert_eq!(refusal(""), "e.jsonl: there is no experience in it");
    assert_eq!(refusal("\n \n"), "e.jsonl: there is no experience in it");
    let good = text(1, 120, Truth::Images, Chooser::Drawn);
    let bad = good.replacen("\"completed\":true", "\"completed\":1", 1);
    assert_eq!(
        refusal(&bad),
        "e.jsonl: line 1, outcome.completed: a number, expected true or false"
    );
    let mut bytes = good.clone().into_bytes();
    bytes.extend(b"\xff\xfe\n");
    assert_eq!(
        refusal(bytes),
        "e.jsonl: line 121, the line: it is not UTF-8"
    );
    let few: Vec<&str> = good.lines().take(99).collect();
    assert_eq!(
        refusal(few.join("\n")),
        "99 experiences can be learnt from, at least 100 are needed: of 99 lines 0 are there \
         twice, 0 had one candidate only, 0 are services without a p99"
    );
    let mut huge = experience(&mut Dice::new(1), Truth::Noise, Chooser::Drawn);
    huge.candidates[1].pair[PairSlot::Reward as usize] = f32::MAX;
    assert_eq!(
        refusal(huge.to_line().unwrap()),
        "e.jsonl: line 1, candidates: the policy's score of one of them is no number"
    );
    let missing = PathBuf::from("nowhere.jsonl");
    let error = Lessons::read(&[missing], &RewardWeights::default(), &running()).unwrap_err();
    assert!(error.to_string().starts_with("nowhere.jsonl: "), "{error}");
}
