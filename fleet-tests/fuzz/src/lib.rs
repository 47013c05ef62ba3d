//! Fuzzing of every decoder of bytes from outside.
//!
//! A driver of our own on a stable compiler instead of libFuzzer, which needs a nightly one and a
//! second, instrumented build of everything. It does not see which lines an input reached; what it
//! has instead is the outcome that each target reports (which field was refused, which status was
//! answered): an input with a new outcome joins the corpus and is mutated further.
//!
//! A failing input is written to `regressions/<target>/`, and a test replays that folder.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod driver;
pub mod mutate;
pub mod targets;

use std::hash::{DefaultHasher, Hash, Hasher};

/// One decoder, or several that read the same bytes.
pub trait Case {
    /// Valid inputs to start from.
    fn seeds(&self) -> Vec<Vec<u8>>;

    /// Pieces that mean something to the decoder.
    fn dictionary(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Longest input, bytes.
    fn max_len(&self) -> usize {
        4096
    }

    /// True for a panic that the code under test catches, and must: in a library that it does not
    /// own.
    fn tolerates(&self, _panic: &str) -> bool {
        false
    }

    /// Runs the decoder. A panic here, or in any other thread meanwhile, is a failure.
    fn run(&mut self, input: &[u8]) -> Outcome;
}

/// What became of an input, as far as it tells one path through the code from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome(pub u64);

impl Outcome {
    /// From anything that tells paths apart. Digits are left out of texts, or each index of a list
    /// would count as a path.
    #[must_use]
    pub fn text(text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        for c in text.chars().filter(|c| !c.is_ascii_digit()).take(80) {
            c.hash(&mut hasher);
        }
        Self(hasher.finish())
    }

    /// Of a result.
    pub fn of<T, E: std::fmt::Display>(result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => Self(1),
            Err(e) => Self::text(&e.to_string()),
        }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.rotate_left(7) ^ other.0)
    }
}
