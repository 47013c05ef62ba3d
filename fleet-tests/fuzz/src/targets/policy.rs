//! Policy files, and lines of experience.

use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN, SCHEMA, table_hash};
use hyperion_placement::model::Goal;
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{
    Card, Encoded, Experience, Outcome as Result, PolicyError, PolicyFile, Quantisation, SlotStats,
    Statistics, TrainingData,
};

use crate::{Case, Outcome};

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}

/// A refusal without what it quotes of the input, or every garbled name would count as a path.
fn unquoted(message: &str) -> Outcome {
    let end = message.find(['"', '`', '\'']).unwrap_or(message.len());
    Outcome::text(&message[..end])
}

fn card() -> Card {
    let slots = |count| {
        let slot = SlotStats {
            mean: 0.5,
            deviation: 0.1,
            min: 0.0,
            max: 1.0,
        };
        vec![slot; count]
    };
    Card {
        data: TrainingData {
            names: vec!["built in".to_owned()],
            hash: String::new(),
        },
        seed: 1,
        steps: 2,
        reward: RewardWeights::default(),
        statistics: Statistics {
            request: slots(REQUEST_LEN),
            node: slots(NODE_LEN),
            pair: slots(PAIR_LEN),
            fit: slots(FIT_LEN),
        },
        evaluation: serde_json::Value::Null,
    }
}

/// Policy files.
pub struct FileCase {
    seeds: Vec<Vec<u8>>,
}

impl FileCase {
    /// Writes a policy in every format.
    ///
    /// # Errors
    /// It can't be written.
    pub fn new() -> anyhow::Result<Self> {
        let (card, mut network) = (card(), Network::zeros());
        for (_, layer) in network.layers_mut() {
            layer.weight.fill(0.25);
        }
        Ok(Self {
            seeds: vec![
                PolicyFile::write_safetensors(&card, &network)?,
                PolicyFile::write_gguf(&card, &network, Quantisation::Q8)?,
                PolicyFile::write_gguf(&card, &network, Quantisation::Q4)?,
            ],
        })
    }
}

impl Case for FileCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        self.seeds.clone()
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let mut all = words(&[
            "GGUF",
            "hyperion.format",
            "hyperion-policy",
            "hyperion.statistics",
            "hyperion.network",
            "__metadata__",
            "\"data_offsets\":[0,",
            "\"shape\":[18446744073709551615,",
            "\"dtype\":\"F64\"",
            "node.0.weight",
            "head.weight",
        ]);
        // Not a number and infinity, 32 bits.
        all.extend([vec![0, 0, 0xc0, 0x7f], vec![0, 0, 0x80, 0x7f]]);
        all
    }

    fn max_len(&self) -> usize {
        // Long enough for a policy in full precision.
        128 << 10
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let read = PolicyFile::read(input);
        if let Ok(file) = &read {
            let network = &file.network;
            let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
            for (name, layer) in network.layers() {
                assert!(finite(&layer.weight) && finite(&layer.bias), "{name}");
            }
            // Any sound request gets an answer, if not a finite one: the guard looks at that.
            let prepared = network.prepare(&[0.5; REQUEST_LEN]);
            let kind = network.prepare_kind(&prepared, &[0.5; PAIR_LEN]);
            let embedding = network.embed(&[0.5; NODE_LEN]);
            let _ = network.score(&prepared, &kind, &embedding, &[0.5; FIT_LEN]);
            // What was read can be written, and comes back.
            let again = PolicyFile::write_safetensors(&file.card, network);
            let again = again.and_then(|bytes| PolicyFile::read(&bytes));
            let same = again.is_ok_and(|a| a.card == file.card && a.network == *network);
            assert!(same, "what was read does not come back");
        }
        match &read {
            Ok(file) => Outcome::text(&format!("{:?}", file.precision)),
            Err(PolicyError::Features { .. }) => Outcome::text("features"),
            Err(PolicyError::Type { name, .. }) => Outcome::text(name),
            Err(error) => unquoted(&error.to_string()),
        }
    }
}

/// Experience.
pub struct ExperienceCase {
    seeds: Vec<Vec<u8>>,
}

impl ExperienceCase {
    /// Writes a service's and a job's.
    ///
    /// # Errors
    /// They can't be written.
    pub fn new() -> anyhow::Result<Self> {
        let candidate = Encoded {
            node: [0.0; NODE_LEN],
            pair: [0.0; PAIR_LEN],
            fit: [0.0; FIT_LEN],
        };
        let service = Experience {
            goal: Goal::Latency,
            request: [0.0; REQUEST_LEN],
            candidates: vec![candidate; 2],
            chosen: 1,
            log_probability: -0.5,
            outcome: Result {
                cost_per_hour: 0.25,
                p99_ms: Some(12.5),
                completed: true,
                moved: true,
                violations: 0,
                hours: 1.5,
            },
        };
        let mut job = service.clone();
        job.outcome.p99_ms = None;
        job.outcome.moved = false;
        job.candidates.truncate(1);
        job.chosen = 0;
        let (service, job) = (service.to_line()?, job.to_line()?);
        Ok(Self {
            seeds: vec![format!("{service}\n{job}").into_bytes(), job.into_bytes()],
        })
    }
}

impl Case for ExperienceCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        self.seeds.clone()
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let mut all = words(&[
            "\"goal\":\"cost\"",
            "\"candidates\":[",
            "\"chosen\":4294967296",
            "\"logProbability\":-1e308",
            "\"p99Ms\":null",
            "\"outcome\":{",
            "\"violations\":",
            "1e39",
            "1e309",
            "-0.0",
            "5e-324",
            "\n",
            "[[[[[[[[[[[[[[[[",
        ]);
        all.push(format!("\"schema\":{SCHEMA}").into_bytes());
        all.push(table_hash().into_bytes());
        all
    }

    fn max_len(&self) -> usize {
        16 << 10
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let text = String::from_utf8_lossy(input);
        let read = Experience::parse(&text);
        match &read {
            Ok(all) => {
                for experience in all {
                    assert!(experience.chosen < experience.candidates.len());
                    let again = experience.to_line();
                    assert!(again.is_ok(), "what was read can't be written: {again:?}");
                }
                Outcome::text("read")
            }
            Err(error) => {
                let lines = text.lines().count();
                assert!((1..=lines).contains(&error.line), "{error}");
                if error.problem == "no field has this name" {
                    Outcome::text(&error.problem)
                } else {
                    unquoted(&error.to_string())
                }
            }
        }
    }
}
