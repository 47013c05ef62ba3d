//! Runs a target, and notes what fails.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use crate::mutate::mutate;
use crate::targets::Target;
use crate::{Case, Outcome};

/// An input that takes longer is a failure.
const SLOW: Duration = Duration::from_secs(5);
/// Inputs kept for further mutation.
const CORPUS: usize = 20_000;
/// Different failures after which a run ends.
const ENOUGH: usize = 20;

static PANICS: AtomicU64 = AtomicU64::new(0);
static LAST: Mutex<String> = Mutex::new(String::new());

/// What a run found.
#[derive(Debug, Default)]
pub struct Summary {
    /// Inputs run.
    pub executions: u64,
    /// Different outcomes seen.
    pub outcomes: usize,
    /// Failures: what, and where the input was written.
    pub failures: Vec<(String, PathBuf)>,
}

/// Counts panics of all threads from now on, instead of printing them.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            *LAST.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
            PANICS.fetch_add(1, Ordering::SeqCst);
        }));
    });
}

/// Runs one input; gives what went wrong.
///
/// # Errors
/// The panic's text, or how long it took.
pub fn check(case: &mut dyn Case, input: &[u8]) -> Result<Outcome, String> {
    watch_panics();
    let before = PANICS.load(Ordering::SeqCst);
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| case.run(input)));
    let took = began.elapsed();
    if PANICS.load(Ordering::SeqCst) != before {
        let what = LAST.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if outcome.is_err() || !case.tolerates(&what) {
            return Err(what);
        }
    }
    if took > SLOW {
        return Err(format!("took {took:?}"));
    }
    outcome.map_err(|_| "panic".to_owned())
}

/// Runs a target for some time; failing inputs are written below `folder`.
///
/// # Errors
/// The target can't be set up, or an input can't be written.
pub fn run(target: &Target, time: Duration, seed: u64, folder: &Path) -> anyhow::Result<Summary> {
    let mut case = (target.make)()?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut corpus = case.seeds();
    corpus.push(Vec::new());
    let dictionary = case.dictionary();
    let max_len = case.max_len();
    let (mut seen, mut known) = (HashSet::new(), HashSet::new());
    let mut summary = Summary::default();
    let mut first = corpus.clone().into_iter();
    let began = Instant::now();
    while began.elapsed() < time && summary.failures.len() < ENOUGH {
        let (input, fresh) = match first.next() {
            Some(seed) => (seed, false),
            None => {
                let pick = |rng: &mut StdRng| rng.random_range(0..corpus.len());
                let mut input = corpus.get(pick(&mut rng)).cloned().unwrap_or_default();
                let other = corpus.get(pick(&mut rng)).cloned().unwrap_or_default();
                mutate(&mut input, &other, &dictionary, max_len, &mut rng);
                (input, true)
            }
        };
        summary.executions += 1;
        match check(case.as_mut(), &input) {
            Ok(outcome) => {
                if seen.insert(outcome) && fresh && corpus.len() < CORPUS {
                    corpus.push(input);
                }
            }
            Err(what) => {
                // The place of the panic is its first line.
                let place = what.lines().next().unwrap_or_default().to_owned();
                if known.insert(place) {
                    let path = keep(folder, target.name, &input)?;
                    summary.failures.push((what, path));
                }
                // Whatever state it is in now.
                case = (target.make)()?;
            }
        }
    }
    summary.outcomes = seen.len();
    Ok(summary)
}

fn keep(folder: &Path, target: &str, input: &[u8]) -> std::io::Result<PathBuf> {
    let name: String = Sha256::digest(input)
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect();
    let folder = folder.join(target);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    std::fs::write(&path, input)?;
    Ok(path)
}
