//! The learner on problems small enough that the optimum is known exactly. Each is learned to at
//! least 95 % of it, and with learning switched off it is not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::print_stdout
)]

use hyperion_placement::features::{
    FIT_LEN, FitSlot, NODE_LEN, NodeSlot, PAIR, PAIR_LEN, PairSlot, REQUEST_LEN, RequestSlot,
};
use hyperion_placement::policy::Network;
use hyperion_scheduler::ppo::{
    Actor, CandidateFeatures, Config, Ending, Environment, Example, Imitation, Schedule, Trainer,
    Turn,
};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};

/// A candidate that promises this reward.
fn candidate(reward: f64) -> CandidateFeatures {
    let mut candidate = CandidateFeatures {
        node: [0.0; NODE_LEN],
        pair: [0.0; PAIR_LEN],
        fit: [0.0; FIT_LEN],
    };
    let slot = PairSlot::Reward as usize;
    candidate.pair[slot] = reward as f32 / PAIR[slot].scale;
    candidate
}

fn turn(actor: u64, hour: f64, candidates: Vec<CandidateFeatures>) -> Turn {
    Turn {
        actor,
        hour,
        earned: 0.0,
        team: 0.0,
        request: [0.0; REQUEST_LEN],
        candidates,
    }
}

fn config() -> Config {
    Config {
        seed: 5,
        iterations: 16,
        episodes: 16,
        epochs: 4,
        minibatch: 256,
        learning_rate: Schedule {
            from: 3e-3,
            to: 3e-4,
        },
        critic_learning_rate: Schedule {
            from: 3e-3,
            to: 3e-4,
        },
        max_kl: 0.05,
        ..Config::default()
    }
}

fn without_learning(config: Config) -> Config {
    Config {
        iterations: 2,
        learning_rate: Schedule::constant(0.0),
        critic_learning_rate: Schedule::constant(0.0),
        ..config
    }
}

fn trained(config: Config, environment: impl Fn() -> Box<dyn Environment>) -> Network {
    let environments = (0..4).map(|_| environment()).collect();
    let mut trainer = Trainer::new(config.clone(), environments).unwrap();
    for _ in 0..config.iterations {
        let progress = trainer.step().unwrap();
        println!("{progress:?}");
    }
    trainer.network()
}

/// Asserts what every problem must show, of shares of the optimum.
fn assert_learned(name: &str, learned: f64, unlearned: f64) {
    println!("{name}: {learned:.4} of the optimum, without learning {unlearned:.4}");
    assert!(learned >= 0.95, "{name}: {learned} of the optimum");
    assert!(learned <= 1.0 + 1e-9, "{name}: better than the optimum");
    assert!(unlearned < 0.95, "{name}: nothing to learn");
    assert!(unlearned < learned, "{name}: learning made it worse");
}

/// Arms have a colour and a size; a request wants either the colour closest to its own, or the
/// largest size. How many arms there are changes from turn to turn.
struct Bandit {
    random: Xoshiro256PlusPlus,
    turns: u64,
    rewards: Vec<f64>,
    endings: Vec<Ending>,
    optimum: f64,
}

impl Bandit {
    fn new() -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(0),
            turns: 0,
            rewards: Vec::new(),
            endings: Vec::new(),
            optimum: 0.0,
        }
    }

    fn team(&self) -> f64 {
        self.endings.iter().map(|e| e.earned).sum()
    }

    /// Share of the optimum that a network reaches on turns that training does not draw.
    fn share(network: &Network) -> f64 {
        let (mut bandit, mut actor) = (Self::new(), Actor::new(network));
        bandit.reset(u64::MAX);
        bandit.turns = 1000;
        while let Some(turn) = bandit.turn() {
            bandit.act(actor.best(&turn));
        }
        bandit.team() / bandit.optimum
    }
}

impl Environment for Bandit {
    fn reset(&mut self, seed: u64) {
        *self = Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            turns: 64,
            ..Self::new()
        };
    }

    fn turn(&mut self) -> Option<Turn> {
        let number = self.endings.len() as u64;
        if number == self.turns {
            return None;
        }
        let by_colour: bool = self.random.random();
        let colour: f64 = self.random.random();
        let arms = self.random.random_range(2..10);
        self.rewards.clear();
        let candidates = (0..arms).map(|_| {
            let (own, size): (f64, f64) = (self.random.random(), self.random.random());
            self.rewards.push(if by_colour {
                (1.0 - 3.0 * (own - colour).abs()).max(0.0)
            } else {
                size
            });
            let mut arm = candidate(0.5);
            arm.node[NodeSlot::Price as usize] = own as f32;
            arm.fit[FitSlot::CpuAfter as usize] = size as f32;
            arm
        });
        let candidates = candidates.collect();
        self.optimum += self.rewards.iter().copied().fold(0.0, f64::max);
        let mut turn = turn(number, number as f64, candidates);
        turn.request[RequestSlot::GoalCost as usize] = f32::from(u8::from(by_colour));
        turn.request[RequestSlot::Hours as usize] = colour as f32;
        turn.team = self.team();
        Some(turn)
    }

    fn act(&mut self, choice: usize) {
        let actor = self.endings.len() as u64;
        let earned = self.rewards[choice];
        self.endings.push(Ending {
            actor,
            hour: actor as f64,
            earned,
            team: self.team() + earned,
            done: true,
        });
    }

    fn endings(&mut self) -> Vec<Ending> {
        self.endings.clone()
    }
}

fn bandit_config() -> Config {
    Config {
        kappa: 0.0,
        iterations: 20,
        episodes: 24,
        minibatch: 128,
        ..config()
    }
}

#[test]
fn a_bandit_whose_best_arm_depends_on_the_request_is_learned() {
    let learned = trained(bandit_config(), || Box::new(Bandit::new()));
    let unlearned = trained(
        without_learning(bandit_config()),
        || Box::new(Bandit::new()),
    );
    assert_learned("bandit", Bandit::share(&learned), Bandit::share(&unlearned));
}

#[test]
fn a_bandit_is_learned_from_the_choices_of_one_who_knows() {
    let mut bandit = Bandit::new();
    bandit.reset(3);
    bandit.turns = 4000;
    let mut examples = Vec::new();
    while let Some(turn) = bandit.turn() {
        let best = |a: &usize, b: &usize| bandit.rewards[*a].total_cmp(&bandit.rewards[*b]);
        let choice = (0..turn.candidates.len()).max_by(best).unwrap();
        bandit.act(choice);
        examples.push(Example { turn, choice });
    }
    let environment: Box<dyn Environment> = Box::new(Bandit::new());
    let mut trainer = Trainer::new(bandit_config(), vec![environment]).unwrap();
    let unlearned = Bandit::share(&trainer.network());
    let settings = Imitation {
        epochs: 12,
        minibatch: 128,
        learning_rate: 3e-3,
    };
    println!("{:?}", trainer.imitate(&examples, &settings).unwrap());
    assert_learned("imitation", Bandit::share(&trainer.network()), unlearned);
}

/// Actors come one an hour and want a slot. There are few; without one they do a little worse if
/// they are of low value, and much worse if of high value. Who takes what is there loses.
struct ScarceSlot {
    random: Xoshiro256PlusPlus,
    stage: usize,
    slots: usize,
    high: bool,
    team: f64,
    earned: Vec<f64>,
}

const STAGES: usize = 8;
const SLOTS: usize = 2;
const HIGH_SHARE: f64 = 0.25;

impl ScarceSlot {
    fn new() -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(0),
            stage: 0,
            slots: SLOTS,
            high: false,
            team: 0.0,
            earned: Vec::new(),
        }
    }

    fn reward(high: bool, takes: bool) -> f64 {
        match (high, takes) {
            (true, true) => 4.0,
            (true, false) => 0.2,
            (false, true) => 1.0,
            (false, false) => 0.8,
        }
    }

    /// First the alternative, then the slot.
    fn describe(stage: usize, slots: usize, high: bool) -> Turn {
        let mut candidates = vec![candidate(Self::reward(high, false))];
        if slots > 0 {
            let mut slot = candidate(Self::reward(high, true));
            slot.node[NodeSlot::Edge as usize] = 1.0;
            slot.node[NodeSlot::FreeCpu as usize] = slots as f32 / SLOTS as f32;
            candidates.push(slot);
        }
        let mut turn = turn(stage as u64, stage as f64, candidates);
        turn.request[RequestSlot::GoalLatency as usize] = f32::from(u8::from(high));
        turn.request[RequestSlot::Hours as usize] = (STAGES - stage) as f32 / STAGES as f32;
        turn.request[RequestSlot::EdgeFreeCpu as usize] = slots as f32 / SLOTS as f32;
        turn
    }

    /// Expected reward of an episode by dynamic programming, for the choices of `takes`; it is
    /// told what taking and leaving are worth.
    fn value(mut takes: impl FnMut(&Turn, f64, f64) -> bool) -> f64 {
        let mut later = [0.0; SLOTS + 1];
        for stage in (0..STAGES).rev() {
            later = std::array::from_fn(|slots| {
                let mut value = |high| {
                    let leave = Self::reward(high, false) + later[slots];
                    if slots == 0 {
                        return leave;
                    }
                    let take = Self::reward(high, true) + later[slots - 1];
                    if takes(&Self::describe(stage, slots, high), take, leave) {
                        take
                    } else {
                        leave
                    }
                };
                HIGH_SHARE * value(true) + (1.0 - HIGH_SHARE) * value(false)
            });
        }
        later[SLOTS]
    }

    fn share(network: &Network) -> f64 {
        let mut actor = Actor::new(network);
        let found = Self::value(|turn, _, _| actor.best(turn) == 1);
        found / Self::value(|_, take, leave| take > leave)
    }
}

impl Environment for ScarceSlot {
    fn reset(&mut self, seed: u64) {
        *self = Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            ..Self::new()
        };
    }

    fn turn(&mut self) -> Option<Turn> {
        if self.stage == STAGES {
            return None;
        }
        self.high = self.random.random_bool(HIGH_SHARE);
        let mut turn = Self::describe(self.stage, self.slots, self.high);
        turn.team = self.team;
        Some(turn)
    }

    fn act(&mut self, choice: usize) {
        let earned = Self::reward(self.high, choice == 1);
        self.slots -= choice;
        self.team += earned;
        self.earned.push(earned);
        self.stage += 1;
    }

    fn endings(&mut self) -> Vec<Ending> {
        let actors = self.earned.iter().enumerate();
        let ending = |(actor, earned): (usize, &f64)| Ending {
            actor: actor as u64,
            hour: STAGES as f64,
            earned: *earned,
            team: self.team,
            done: true,
        };
        actors.map(ending).collect()
    }
}

#[test]
fn a_scarce_slot_is_kept_for_whoever_needs_it() {
    let config = Config {
        kappa: 1.0,
        gamma: 1.0,
        episodes: 160,
        ..config()
    };
    let greedy = ScarceSlot::value(|_, _, _| true);
    let optimum = ScarceSlot::value(|_, take, leave| take > leave);
    assert!(greedy < 0.8 * optimum, "greedy {greedy} of {optimum}");
    let learned = trained(config.clone(), || Box::new(ScarceSlot::new()));
    let unlearned = trained(without_learning(config), || Box::new(ScarceSlot::new()));
    let (learned, unlearned) = (ScarceSlot::share(&learned), ScarceSlot::share(&unlearned));
    assert_learned("scarce slot", learned, unlearned);
}

/// Two places whose prices move against each other; one may move, and pays for it. The optimum
/// moves only when the difference is large enough.
struct MoveOrStay {
    random: Xoshiro256PlusPlus,
    steps: u32,
    place: usize,
    level: usize,
    earned: f64,
    team: f64,
}

const LEVELS: usize = 5;
const STEP_HOURS: f64 = 0.5;
const MOVE_COST: f64 = 0.8;
const GAMMA: f64 = 0.9;

impl MoveOrStay {
    fn new() -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(0),
            steps: 0,
            place: 0,
            level: 0,
            earned: 0.0,
            team: 0.0,
        }
    }

    fn rate(place: usize, level: usize) -> f64 {
        let share = level as f64 / (LEVELS - 1) as f64;
        if place == 0 { share } else { 1.0 - share }
    }

    /// Levels that may follow, with their probabilities.
    fn next_levels(level: usize) -> [(usize, f64); 3] {
        [
            (level.saturating_sub(1), 0.3),
            (level, 0.4),
            ((level + 1).min(LEVELS - 1), 0.3),
        ]
    }

    fn describe(place: usize, level: usize) -> Turn {
        let candidates = [0, 1].map(|to| {
            let mut option = candidate(Self::rate(to, level));
            option.fit[FitSlot::Here as usize] = f32::from(u8::from(to == place));
            option
        });
        let mut turn = turn(0, 0.0, candidates.to_vec());
        turn.request[RequestSlot::Running as usize] = 1.0;
        turn
    }

    /// Mean discounted reward over all states at the start, for the choices of `goes`; it is told
    /// what both places are worth.
    fn value(mut goes: impl FnMut(&Turn, [f64; 2]) -> usize) -> f64 {
        let discount = GAMMA.powf(STEP_HOURS);
        let mut values = [[0.0; LEVELS]; 2];
        for _ in 0..300 {
            values = std::array::from_fn(|place| {
                std::array::from_fn(|level| {
                    let worth = [0, 1].map(|to| {
                        let moved = if to == place { 0.0 } else { MOVE_COST };
                        let next = Self::next_levels(level);
                        let later = next.map(|(level, p)| p * values[to][level]);
                        let later: f64 = later.iter().sum();
                        STEP_HOURS * Self::rate(to, level) - moved + discount * later
                    });
                    worth[goes(&Self::describe(place, level), worth)]
                })
            });
        }
        values.iter().flatten().sum::<f64>() / (2 * LEVELS) as f64
    }

    fn share(network: &Network) -> f64 {
        let mut actor = Actor::new(network);
        let choices: [[usize; LEVELS]; 2] = std::array::from_fn(|place| {
            std::array::from_fn(|level| actor.best(&Self::describe(place, level)))
        });
        println!("choices by place and level: {choices:?}");
        let found = Self::value(|turn, _| {
            let here = |c: &CandidateFeatures| c.fit[FitSlot::Here as usize] > 0.5;
            let place = turn.candidates.iter().position(here).unwrap();
            let share = turn.candidates[0].pair[PairSlot::Reward as usize] * 4.0;
            choices[place][(share * (LEVELS - 1) as f32).round() as usize]
        });
        found / Self::optimum()
    }

    fn optimum() -> f64 {
        Self::value(|_, worth| usize::from(worth[1] > worth[0]))
    }
}

impl Environment for MoveOrStay {
    fn reset(&mut self, seed: u64) {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        *self = Self {
            place: random.random_range(0..2),
            level: random.random_range(0..LEVELS),
            random,
            ..Self::new()
        };
    }

    fn turn(&mut self) -> Option<Turn> {
        (self.steps < 48).then(|| Turn {
            hour: f64::from(self.steps) * STEP_HOURS,
            earned: self.earned,
            team: self.team,
            ..Self::describe(self.place, self.level)
        })
    }

    fn act(&mut self, choice: usize) {
        self.earned = STEP_HOURS * Self::rate(choice, self.level);
        if choice != self.place {
            self.earned -= MOVE_COST;
        }
        self.team += self.earned;
        self.place = choice;
        let mut draw: f64 = self.random.random();
        for (level, probability) in Self::next_levels(self.level) {
            draw -= probability;
            if draw < 0.0 {
                self.level = level;
                break;
            }
        }
        self.steps += 1;
    }

    fn endings(&mut self) -> Vec<Ending> {
        vec![Ending {
            actor: 0,
            hour: f64::from(self.steps) * STEP_HOURS,
            earned: self.earned,
            team: self.team,
            done: false,
        }]
    }
}

#[test]
fn moving_waits_until_it_pays() {
    let mut config = Config {
        kappa: 0.0,
        gamma: GAMMA,
        ..config()
    };
    config.taste.stay_bonus = 0.0;
    let greedy = MoveOrStay::value(|turn, _| {
        let reward = |i: usize| turn.candidates[i].pair[PairSlot::Reward as usize];
        usize::from(reward(1) > reward(0))
    });
    let stays = MoveOrStay::value(|turn, _| {
        usize::from(turn.candidates[1].fit[FitSlot::Here as usize] > 0.5)
    });
    let optimum = MoveOrStay::optimum();
    println!("greedy {greedy:.3}, staying {stays:.3}, optimum {optimum:.3}");
    assert!(greedy < 0.95 * optimum && stays < 0.95 * optimum);
    let learned = trained(config.clone(), || Box::new(MoveOrStay::new()));
    let unlearned = trained(without_learning(config), || Box::new(MoveOrStay::new()));
    let (learned, unlearned) = (MoveOrStay::share(&learned), MoveOrStay::share(&unlearned));
    assert_learned("move or stay", learned, unlearned);
}
