//! The learning curve of a run.

use std::path::Path;

use anyhow::{Context, Result};
use hyperion_scheduler::eval::plot::{Series, Titles, lines};
use hyperion_scheduler::eval::report::markdown;
use hyperion_scheduler::ppo::Progress;
use serde::{Deserialize, Serialize};

use super::{read, write};

/// Name of its file.
const FILE: &str = "curve.json";

/// A point of the learning curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// What the iteration did.
    #[serde(flatten)]
    pub progress: Progress,
    /// Seconds since training began.
    pub seconds: f64,
    /// Mean reward on the validation episodes, where it was taken.
    pub validation: Option<f64>,
}

/// The learning curve.
#[derive(Debug, Serialize, Deserialize)]
pub struct Curve {
    /// Baselines on the validation episodes.
    pub references: Vec<(String, f64)>,
    /// Turns of a policy that the run began with, in thousands, and validation before learning.
    pub first: (f64, f64),
    /// Every iteration.
    pub points: Vec<Point>,
}

impl Curve {
    /// The curve in a directory, where there is one.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let curve = serde_json::from_slice(&read(&path)?);
        Ok(Some(curve.with_context(|| path.display().to_string())?))
    }

    /// Writes it as JSON, table and plot.
    pub fn store(&self, dir: &Path) -> Result<()> {
        write(&dir.join(FILE), &serde_json::to_vec_pretty(self)?)?;
        let validated = || self.points.iter().filter(|p| p.validation.is_some());
        let rows: Vec<Vec<String>> = validated()
            .map(|p| {
                vec![
                    p.progress.iteration.to_string(),
                    p.progress.total_turns.to_string(),
                    format!("{:.0}", p.seconds),
                    format!("{:.4}", p.validation.unwrap_or(f64::NAN)),
                    format!("{:.3}", p.progress.entropy),
                    format!("{:.4}", p.progress.kl),
                    format!("{:.3}", p.progress.explained_variance),
                ]
            })
            .collect();
        let head = [
            "iteration",
            "turns",
            "seconds",
            "validation reward",
            "entropy",
            "KL",
            "explained variance",
        ];
        write(&dir.join("curve.md"), markdown(&head, &rows).as_bytes())?;
        let turns = |p: &Point| self.first.0 + p.progress.total_turns as f64 / 1e3;
        let learnt = validated().filter_map(|p| Some((turns(p), p.validation?)));
        let points: Vec<(f64, f64)> = std::iter::once(self.first).chain(learnt).collect();
        let end = points.last().map_or(1.0, |p| p.0);
        let begin = self.first.0;
        let mut series = vec![Series {
            name: "ppo".to_owned(),
            points,
        }];
        for (name, reward) in &self.references {
            series.push(Series {
                name: name.clone(),
                points: vec![(begin, *reward), (end, *reward)],
            });
        }
        let titles = Titles {
            title: "Learning curve: mean reward on validation episodes".to_owned(),
            x: "decisions, thousands".to_owned(),
            y: "reward per hour asked for".to_owned(),
        };
        lines(&dir.join("curve"), &titles, &series)
    }
}
