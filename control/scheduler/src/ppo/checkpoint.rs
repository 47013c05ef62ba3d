//! Checkpoints: a run that goes on from one learns exactly what it would have learned without.
//!
//! A file is `HYPERION-TRAIN 2\n`, one line of JSON with the settings, the state's numbers in little
//! endian, and the SHA-256 of all before it. Random numbers need no state: every stream is named
//! by the seed and the iteration.

use std::io::Write as _;
use std::path::Path;

use hyperion_placement::features::table_hash;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::adam::Adam;
use super::parameters::{actor_len, total_len};
use super::stats::{FeatureStats, ReturnStats};
use super::trainer::{State, Trainer};
use super::{Config, Environment, Error};

const MAGIC: &str = "HYPERION-TRAIN 2\n";
const HASH_LEN: usize = 32;

/// What a checkpoint says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Hash of the feature table.
    pub features: String,
    /// Numbers that follow.
    pub parameters: usize,
    /// Iterations done.
    pub iteration: u32,
    /// The settings.
    pub config: Config,
}

impl Checkpoint {
    /// Reads what a checkpoint says of itself.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Checkpoint`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        Ok(open(path)?.0)
    }
}

impl Trainer {
    /// Writes a checkpoint. The file is there in whole or not at all.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        let header = Checkpoint {
            features: table_hash(),
            parameters: total_len(),
            iteration: self.state.iteration,
            config: self.config.clone(),
        };
        let header = serde_json::to_vec(&header).map_err(|e| failed(e.into()))?;
        let mut bytes = MAGIC.as_bytes().to_vec();
        bytes.extend(header);
        bytes.push(b'\n');
        State::clone(&self.state).visit(&mut Writer(&mut bytes));
        let hash = Sha256::digest(&bytes);
        bytes.extend(hash.iter());
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let part = Path::new(&name);
        let mut file = std::fs::File::create(part).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(part, path).map_err(failed)
    }

    /// Goes on from a checkpoint. With other settings than those of the checkpoint it goes on with
    /// the new ones.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Checkpoint`], and those of [`Self::new`].
    pub fn resume(
        config: Config,
        environments: Vec<Box<dyn Environment>>,
        path: &Path,
    ) -> Result<Self, Error> {
        let mut trainer = Self::new(config, environments)?;
        let (header, numbers) = open(path)?;
        let mut state = State {
            iteration: header.iteration,
            adam: Adam::new(vec![0.0; total_len()]),
            average: vec![0.0; actor_len()],
            returns: ReturnStats::default(),
            features: FeatureStats::default(),
        };
        let mut reader = Reader {
            rest: &numbers,
            short: false,
        };
        state.visit(&mut reader);
        if reader.short || !reader.rest.is_empty() {
            return Err(Error::Checkpoint {
                path: path.to_owned(),
                problem: "does not hold as many numbers as the network has".to_owned(),
            });
        }
        trainer.state = state;
        Ok(trainer)
    }
}

fn open(path: &Path) -> Result<(Checkpoint, Vec<u8>), Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    let bad = |problem: String| Error::Checkpoint {
        path: path.to_owned(),
        problem,
    };
    if !bytes.starts_with(MAGIC.as_bytes()) {
        return Err(bad("is not a checkpoint".to_owned()));
    }
    let (body, hash) = bytes.split_at(bytes.len().saturating_sub(HASH_LEN));
    if Sha256::digest(body).iter().ne(hash) {
        return Err(bad("is damaged".to_owned()));
    }
    let body = &body[MAGIC.len()..];
    let end = body.iter().position(|b| *b == b'\n');
    let (header, numbers) = body.split_at(end.unwrap_or(0));
    let header: Checkpoint =
        serde_json::from_slice(header).map_err(|e| bad(format!("has a bad header: {e}")))?;
    if header.features != table_hash() {
        return Err(bad("was written with another feature table".to_owned()));
    }
    if header.parameters != total_len() {
        return Err(bad("was written for another network".to_owned()));
    }
    Ok((header, numbers[1..].to_vec()))
}

/// Takes or gives every number of the state.
trait Visitor {
    fn single(&mut self, value: &mut f32);
    fn double(&mut self, value: &mut f64);
    fn count(&mut self, value: &mut u64);
}

impl State {
    /// Every number but the iteration, in the order of the file.
    fn visit(&mut self, visitor: &mut impl Visitor) {
        let adam = &mut self.adam;
        for vector in [&mut adam.values, &mut adam.first, &mut adam.second] {
            vector.iter_mut().for_each(|v| visitor.single(v));
        }
        adam.steps.iter_mut().for_each(|s| visitor.count(s));
        self.average.iter_mut().for_each(|v| visitor.single(v));
        let returns = &mut self.returns;
        for value in [&mut returns.weight, &mut returns.sum, &mut returns.squares] {
            visitor.double(value);
        }
        visitor.count(&mut self.features.turns);
        visitor.count(&mut self.features.candidates);
        for group in &mut self.features.groups {
            group.sums.iter_mut().for_each(|v| visitor.double(v));
            group.squares.iter_mut().for_each(|v| visitor.double(v));
            group.min.iter_mut().for_each(|v| visitor.single(v));
            group.max.iter_mut().for_each(|v| visitor.single(v));
        }
    }
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Visitor for Writer<'_> {
    fn single(&mut self, value: &mut f32) {
        self.0.extend(value.to_le_bytes());
    }

    fn double(&mut self, value: &mut f64) {
        self.0.extend(value.to_le_bytes());
    }

    fn count(&mut self, value: &mut u64) {
        self.0.extend(value.to_le_bytes());
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    short: bool,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if let Some((taken, rest)) = self.rest.split_first_chunk() {
            self.rest = rest;
            return *taken;
        }
        self.short = true;
        [0; N]
    }
}

impl Visitor for Reader<'_> {
    fn single(&mut self, value: &mut f32) {
        *value = f32::from_le_bytes(self.take());
    }

    fn double(&mut self, value: &mut f64) {
        *value = f64::from_le_bytes(self.take());
    }

    fn count(&mut self, value: &mut u64) {
        *value = u64::from_le_bytes(self.take());
    }
}
