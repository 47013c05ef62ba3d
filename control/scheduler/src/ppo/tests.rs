//! The learner as a whole: what it repeats, resumes and refuses.

use std::path::PathBuf;

use super::parameters::actor_len;
use super::random::{Purpose, Stream};
use super::*;

/// Actors with several turns each; who chooses large numbers earns much.
struct Numbers {
    random: Stream,
    turns: u64,
    numbers: Vec<f64>,
    earned: [f64; 4],
    team: f64,
    flaw: Flaw,
}

#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    None,
    NoCandidates,
    NotFinite,
    NoEnding,
}

impl Numbers {
    fn boxed(flaw: Flaw) -> Box<dyn Environment> {
        Box::new(Self {
            random: Stream::new(0, Purpose::Episode, 0, 0),
            turns: 0,
            numbers: Vec::new(),
            earned: [0.0; 4],
            team: 0.0,
            flaw,
        })
    }
}

impl Environment for Numbers {
    fn reset(&mut self, seed: u64) {
        self.random = Stream::new(seed, Purpose::Episode, 0, 0);
        (self.turns, self.earned, self.team) = (0, [0.0; 4], 0.0);
    }

    fn turn(&mut self) -> Option<Turn> {
        if self.turns == 40 {
            return None;
        }
        let count = match self.flaw {
            Flaw::NoCandidates => 0,
            _ => 1 + (self.random.uniform() * 6.0) as usize,
        };
        self.numbers = (0..count).map(|_| self.random.normal()).collect();
        if self.flaw == Flaw::NotFinite {
            self.numbers[0] = f64::NAN;
        }
        let candidates = self.numbers.iter().map(|number| CandidateFeatures {
            node: std::array::from_fn(|i| if i == 2 { *number as f32 } else { 0.0 }),
            pair: [0.0; PAIR_LEN],
            fit: [0.0; FIT_LEN],
        });
        let actor = self.turns % 4;
        Some(Turn {
            actor,
            hour: self.turns as f64 / 8.0,
            earned: self.earned[actor as usize],
            team: self.team,
            request: [0.25; REQUEST_LEN],
            candidates: candidates.collect(),
        })
    }

    fn act(&mut self, choice: usize) {
        self.earned[(self.turns % 4) as usize] = self.numbers[choice];
        self.team += self.numbers[choice];
        self.turns += 1;
    }

    fn endings(&mut self) -> Vec<Ending> {
        let actors = if self.flaw == Flaw::NoEnding { 3 } else { 4 };
        (0..actors)
            .map(|actor| Ending {
                actor,
                hour: 5.0,
                earned: self.earned[actor as usize],
                team: self.team,
                done: actor < 2,
            })
            .collect()
    }
}

fn config() -> Config {
    Config {
        iterations: 6,
        episodes: 6,
        epochs: 2,
        minibatch: 64,
        ..Config::default()
    }
}

fn trainer(config: Config) -> Trainer {
    let environments = (0..4).map(|_| Numbers::boxed(Flaw::None)).collect();
    Trainer::new(config, environments).unwrap()
}

/// All that a step reports but how long it took.
fn timeless(progress: Progress) -> Progress {
    Progress {
        play_seconds: 0.0,
        learn_seconds: 0.0,
        ..progress
    }
}

fn steps(trainer: &mut Trainer, count: usize) -> Vec<Progress> {
    (0..count)
        .map(|_| timeless(trainer.step().unwrap()))
        .collect()
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("hyperion-ppo-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn the_same_seed_gives_the_same_policy_whatever_the_threads() {
    let run = |threads, seed| {
        let mut trainer = trainer(Config {
            threads,
            seed,
            ..config()
        });
        let progress = steps(&mut trainer, 3);
        (progress, trainer.state)
    };
    let first = run(2, 1);
    assert!(first == run(2, 1), "two threads, again");
    assert!(first == run(1, 1), "one thread");
    assert!(first == run(5, 1), "five threads");
    assert!(first != run(2, 2), "another seed");
}

#[test]
fn a_resumed_run_equals_one_without_interruption() {
    let file = Scratch::new("resume");
    let mut whole = trainer(config());
    let all = steps(&mut whole, 5);
    let mut begun = trainer(config());
    let mut parts = steps(&mut begun, 2);
    begun.save(&file.0).unwrap();
    drop(begun);
    assert_eq!(Checkpoint::read(&file.0).unwrap().config, config());
    let environments = (0..4).map(|_| Numbers::boxed(Flaw::None)).collect();
    let mut resumed = Trainer::resume(config(), environments, &file.0).unwrap();
    parts.extend(steps(&mut resumed, 3));
    assert_eq!(all, parts);
    assert!(whole.state == resumed.state);
}

#[test]
fn a_checkpoint_that_is_damaged_cut_or_something_else_is_refused() {
    let file = Scratch::new("damage");
    trainer(config()).save(&file.0).unwrap();
    let bytes = std::fs::read(&file.0).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&file.0, bytes).unwrap();
        let environments = vec![Numbers::boxed(Flaw::None)];
        match Trainer::resume(config(), environments, &file.0) {
            Ok(_) => panic!("accepted"),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("hyperion-ppo-"), "{message}");
                message
            }
        }
    };
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    assert!(refused(&flipped).contains("is damaged"));
    for cut in [0, 5, 17, 20, 60, 2000, bytes.len() - 1] {
        refused(&bytes[..cut]);
    }
    assert!(refused(b"GGUF and more").contains("is not a checkpoint"));
    let missing = Trainer::resume(
        config(),
        vec![Numbers::boxed(Flaw::None)],
        std::path::Path::new("/nonexistent/hyperion-ppo-file"),
    );
    assert!(matches!(missing, Err(Error::File { .. })));
}

#[test]
fn broken_environments_are_named_and_leave_the_trainer_as_it_was() {
    for (flaw, problem) in [
        (Flaw::NoCandidates, "has no candidates"),
        (Flaw::NotFinite, "candidate 0 that are not finite"),
        (Flaw::NoEnding, "actor 3 had no ending"),
    ] {
        let mut trainer = Trainer::new(config(), vec![Numbers::boxed(flaw)]).unwrap();
        let before = trainer.state.clone();
        let error = trainer.step().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
        assert!(trainer.state == before);
    }
    let error = Trainer::new(config(), Vec::new()).err().unwrap();
    assert!(error.to_string().contains("environments"));
}

#[test]
fn without_learning_rate_the_policy_stays_and_features_are_counted() {
    let mut trainer = trainer(Config {
        learning_rate: Schedule::constant(0.0),
        ..config()
    });
    let before = trainer.network();
    let progress = steps(&mut trainer, 2);
    assert!(trainer.network() == before);
    assert_eq!(progress[0].kl, 0.0);
    assert_eq!(progress[1].total_turns, 2 * 6 * 40);
    assert_eq!(trainer.features().turns(), progress[1].total_turns);
    let number = trainer.features().node()[2];
    assert!(number.mean.abs() < 0.2 && (number.deviation - 1.0).abs() < 0.2);
}

#[test]
fn while_the_critic_warms_up_the_policy_stays() {
    let mut trainer = trainer(Config {
        critic_warmup: 1,
        ..config()
    });
    let before = trainer.network();
    let critic = trainer.state.adam.values.clone();
    steps(&mut trainer, 1);
    assert!(trainer.network() == before);
    assert!(trainer.state.adam.values != critic);
    steps(&mut trainer, 1);
    assert!(trainer.network() != before);
}

#[test]
fn the_average_is_of_the_policies_since_it_began() {
    let mut trainer = trainer(Config {
        averaging: 0.9,
        ..config()
    });
    let mut sum = vec![0.0; actor_len()];
    for count in 1..=3 {
        steps(&mut trainer, 1);
        for (sum, value) in sum.iter_mut().zip(&trainer.state.adam.values) {
            *sum += f64::from(*value);
        }
        for (mean, sum) in trainer.state.average.iter().zip(&sum) {
            assert!((f64::from(*mean) - sum / f64::from(count)).abs() < 1e-5);
        }
    }
    assert!(trainer.averaged() != trainer.network());
}

#[test]
fn without_averaging_the_average_is_the_policy_itself() {
    let mut trainer = trainer(config());
    steps(&mut trainer, 2);
    assert!(trainer.averaged() == trainer.network());
}

#[test]
fn who_begins_with_another_policy_goes_on_from_it() {
    let mut other = trainer(Config {
        seed: 9,
        ..config()
    });
    steps(&mut other, 1);
    let mut trainer = trainer(Config {
        learning_rate: Schedule::constant(0.0),
        averaging: 0.9,
        ..config()
    });
    trainer.set_network(&other.network());
    assert!(trainer.averaged() == other.network());
    steps(&mut trainer, 2);
    assert!(trainer.network() == other.network());
}

#[test]
fn evaluation_takes_the_best_choice_and_repeats_itself() {
    let trainer = trainer(config());
    let network = trainer.network();
    let episodes = trainer.evaluate(&[1, 2, 3, 4, 5, 6]).unwrap();
    assert!(episodes == trainer.evaluate(&[1, 2, 3, 4, 5, 6]).unwrap());
    let seeds: Vec<u64> = episodes.iter().map(|e| e.seed).collect();
    assert_eq!(seeds, [1, 2, 3, 4, 5, 6]);
    let mut actor = Actor::new(&network);
    for episode in &episodes {
        assert!(episode.team().is_finite());
        for (turn, choice) in episode.turns.iter().zip(&episode.choices) {
            assert_eq!(*choice, actor.best(turn));
        }
    }
}

#[test]
fn a_choice_outside_the_candidates_is_refused() {
    let mut environment = Numbers::boxed(Flaw::None);
    let error = play(environment.as_mut(), 4, |_| 99).unwrap_err();
    assert!(matches!(error, Error::Choice { choice: 99, .. }), "{error}");
}

#[test]
fn an_example_outside_its_candidates_is_named() {
    let mut environment = Numbers::boxed(Flaw::None);
    let mut examples = demonstrate(environment.as_mut(), 1, |_| 0).unwrap();
    assert!(examples.iter().all(|e| e.turn.candidates.len() > 1));
    examples[3].choice = 99;
    let mut trainer = trainer(config());
    let error = trainer.imitate(&examples, &Imitation::default());
    assert!(error.unwrap_err().to_string().contains("example 3"));
}
