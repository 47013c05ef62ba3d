//! `hyperion-train learn` from the outside: exit status, files and messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hyperion_placement::features::{
    FIT_LEN, FitSlot, NODE_LEN, PAIR, PAIR_LEN, PairSlot, REQUEST_LEN,
};
use hyperion_placement::model::Goal;
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{
    Card, Encoded, Experience, Outcome, PolicyFile, Precision, SlotStats, Statistics, TrainingData,
};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

fn policy() -> Vec<u8> {
    let slots = |count| {
        let slot = SlotStats {
            mean: 0.0,
            deviation: 1.0,
            min: -10.0,
            max: 10.0,
        };
        vec![slot; count]
    };
    let card = Card {
        data: TrainingData {
            names: vec!["built in".to_owned()],
            hash: String::new(),
        },
        seed: 5,
        steps: 1000,
        reward: RewardWeights::default(),
        statistics: Statistics {
            request: slots(REQUEST_LEN),
            node: slots(NODE_LEN),
            pair: slots(PAIR_LEN),
            fit: slots(FIT_LEN),
        },
        evaluation: json!({ "validation_reward": 1.0 }),
    };
    // Prefers what promises reward.
    let mut network = Network::zeros();
    let reward = PairSlot::Reward as usize;
    network.direct.bias[reward] = 4.0 * PAIR[reward].scale;
    PolicyFile::write_safetensors(&card, &network).unwrap()
}

/// Jobs with candidates that promise the same. Where the images are, it costs a third; choices are
/// drawn with equal probabilities.
fn experiences(count: usize, greedy: bool) -> String {
    let mut dice = Xoshiro256PlusPlus::seed_from_u64(11);
    let mut below = |n: u64| (dice.next_u64() >> 11) % n;
    let mut text = String::new();
    for i in 0..count {
        let candidates: Vec<Encoded> = (0..2 + below(3))
            .map(|_| {
                let mut fit = [0.0; FIT_LEN];
                fit[FitSlot::Images as usize] = below(2) as f32;
                Encoded {
                    node: [0.0; NODE_LEN],
                    pair: [0.0; PAIR_LEN],
                    fit,
                }
            })
            .collect();
        let chosen = below(candidates.len() as u64) as usize;
        let images = candidates[chosen].fit[FitSlot::Images as usize] > 0.5;
        let equal = -(candidates.len() as f64).ln();
        let experience = Experience {
            goal: Goal::Cost,
            request: [0.0; REQUEST_LEN],
            chosen,
            candidates,
            log_probability: if greedy { equal / 2.0 } else { equal },
            outcome: Outcome {
                cost_per_hour: if images { 0.1 } else { 0.3 } + below(100) as f64 / 1e4,
                p99_ms: None,
                completed: true,
                moved: false,
                violations: 0,
                hours: 1.0 + i as f64 / 16.0,
            },
        };
        text += &experience.to_line().unwrap();
    }
    text
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("running.safetensors", policy());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn learn(&self, experience: &str, out: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_hyperion-train"))
            .arg("learn")
            .arg("--policy")
            .arg(self.path("running.safetensors"))
            .arg("--experience")
            .arg(self.path(experience))
            .arg("--out")
            .arg(self.path(out))
            .args(["--episodes", "2"])
            .env("RUST_BACKTRACE", "0")
            .args(more)
            .output()
            .unwrap()
    }
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(path: &Path) -> PolicyFile {
    PolicyFile::read(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_better_policy_is_written_with_what_it_learnt_from() {
    let files = Files::new();
    files.write("e.jsonl", experiences(800, false));
    let output = files.learn("e.jsonl", "new.gguf", &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["promoted"], true);
    assert_eq!(verdict["read"]["lines"], 800);
    assert_eq!(verdict["rehearsal"]["violations"], 0);
    let (new, running) = (
        read(&files.path("new.gguf")),
        read(&files.path("running.safetensors")),
    );
    assert!(matches!(new.precision, Precision::Quantised(_)));
    assert_ne!(new.network, running.network);
    assert_eq!(new.card.data.names, ["built in", "experience e.jsonl"]);
    assert_eq!(new.card.data.hash.len(), 64);
    let learnt = verdict["learning"]["choices"].as_u64().unwrap();
    assert_eq!(new.card.steps, 1000 + learnt);
    assert_eq!(new.card.evaluation["trained"], running.card.evaluation);
    assert_eq!(new.card.evaluation["learnt"]["promoted"], true);
    assert_eq!(new.card.statistics, running.card.statistics);
}

#[test]
fn a_policy_that_is_not_promoted_leaves_no_file_and_status_3() {
    let files = Files::new();
    files.write("e.jsonl", experiences(150, true));
    files.write("new.safetensors", "as it was");
    let output = files.learn("e.jsonl", "new.safetensors", &[]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = words(&output.stdout);
    assert!(said.contains("not promoted: nothing was tried out: 0.00 %"));
    assert!(said.contains("replay of what was held out"), "{said}");
    let kept = std::fs::read_to_string(files.path("new.safetensors")).unwrap();
    assert_eq!(kept, "as it was");
}

#[test]
fn bad_input_is_named_and_has_status_1() {
    let files = Files::new();
    let refused = |content: String| {
        files.write("e.jsonl", content);
        let output = files.learn("e.jsonl", "new.gguf", &[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!files.path("new.gguf").exists());
        words(&output.stderr)
    };
    let good = experiences(120, false);
    let bad = good.replacen("\"goal\":\"cost\"", "\"goal\":\"speed\"", 1);
    let said = refused(bad);
    let expected = "e.jsonl: line 1, goal: unknown goal \"speed\"; expected one of cost, latency, \
                    default\n";
    assert!(said.ends_with(expected), "{said}");
    assert!(refused(String::new()).ends_with("e.jsonl: there is no experience in it\n"));
    let few: Vec<&str> = good.lines().take(40).collect();
    let said = refused(few.join("\n"));
    assert!(said.contains("40 experiences can be learnt from, at least 100 are needed"));
    files.write("running.safetensors", "no policy");
    let said = refused(good);
    assert!(said.contains("running.safetensors"), "{said}");
}
