//! Replays every input that ever failed, and a moment of each target.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use hyperion_fuzz::{driver, targets};

#[test]
fn what_failed_once_does_not_fail_again() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for target in targets::ALL {
        let Ok(files) = std::fs::read_dir(root.join(target.name)) else {
            continue;
        };
        let mut case = (target.make)().unwrap();
        for file in files {
            let path = file.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            if let Err(what) = driver::check(case.as_mut(), &input) {
                panic!("{}: {what}", path.display());
            }
        }
    }
}

#[test]
fn every_target_runs_and_accepts_its_own_samples() {
    let found = tempdir();
    for target in targets::ALL {
        let summary = driver::run(target, Duration::from_millis(300), 1, &found).unwrap();
        assert!(
            summary.failures.is_empty(),
            "{}: {:?}",
            target.name,
            summary.failures
        );
        assert!(summary.executions > 5, "{}: {summary:?}", target.name);
        assert!(summary.outcomes > 1, "{}: {summary:?}", target.name);
    }
}

fn tempdir() -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("found")
}
