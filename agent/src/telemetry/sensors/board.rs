//! The sensors that are files.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::Files;
use super::look::{Fact, GpuNow, Look, Process, Reading, Sensor};
use super::metric::{self, Metric};
use super::probe;
use super::watch::Step;

/// Sensors come and go with modules and hot plugging, seldom: they are looked for this often.
const RESCAN: Duration = Duration::from_secs(60);
/// Time between two reads of what changes slowly or costs a transfer on a slow bus.
const SLOW: Duration = Duration::from_secs(5);
/// Most sensors that are read; servers have hundreds.
const MOST: usize = 512;

/// What is read at each look: what others decide by. The rest is read every few seconds.
static QUICK: [&Metric; 5] = [
    &metric::GPU_UTILIZATION,
    &metric::GPU_TEMPERATURE,
    &metric::GPU_POWER,
    &metric::TEMPERATURE,
    &metric::POWER,
];

/// Makes a number of the texts of a sensor's files, in the order of its sources.
pub type Parse = fn(&[Rc<str>]) -> Option<f64>;

/// A sensor that was found, and how it is read.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Name and files.
    pub sensor: Arc<Sensor>,
    quick: bool,
    parse: Parse,
}

/// What was found on a board.
#[derive(Debug, Default)]
pub struct Found {
    probes: Vec<Probe>,
    names: BTreeSet<(&'static str, Vec<(&'static str, String)>)>,
    /// Facts.
    pub facts: Vec<Fact>,
    /// What the board's GPU is called.
    pub gpu: Option<String>,
    /// The same, where replicas can be given it.
    pub gpus: Vec<GpuNow>,
}

impl Found {
    /// Adds a sensor. One that would have the name of another gets a number: two of a name are a
    /// fault in Prometheus' eyes, and boards have them.
    pub fn add(
        &mut self,
        metric: &'static Metric,
        labels: &[(&'static str, &str)],
        named_by: &[&str],
        source: &[&str],
        parse: Parse,
    ) {
        let mut labels: Vec<(&'static str, String)> = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        let first = labels.first().map(|(_, value)| value.clone());
        let mut number = 2;
        while self.names.contains(&(metric.name, labels.clone())) {
            let (Some(label), Some(first)) = (labels.first_mut(), &first) else {
                return;
            };
            label.1 = format!("{first}-{number}");
            number += 1;
        }
        self.names.insert((metric.name, labels.clone()));
        self.probes.push(Probe {
            sensor: Arc::new(Sensor {
                metric,
                labels,
                source: owned(source),
                named_by: owned(named_by),
            }),
            quick: QUICK.contains(&metric),
            parse,
        });
    }

    /// Drops sensors whose files are not there.
    pub fn keep_existing(&mut self, files: &Files) {
        let there = |probe: &Probe| probe.sensor.source.iter().all(|path| files.exists(path));
        self.probes.retain(there);
        self.probes.truncate(MOST);
    }

    /// Adds something that is no number.
    pub fn fact(&mut self, name: &'static str, value: Option<String>, source: &[&str]) {
        self.facts.extend(value.map(|value| Fact {
            name,
            value,
            source: owned(source),
        }));
    }
}

fn owned(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// Reads the files of a machine.
pub struct Board {
    files: Files,
    found: Found,
    scanned: Option<Instant>,
    hanging: Vec<String>,
    read_slow: Option<Instant>,
    slow: Vec<Reading>,
}

impl Board {
    /// Of the machine whose procfs and sysfs are under `root`. Nobody watches that it does not hang.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self::watched(root, Arc::default())
    }

    pub(super) fn watched(root: PathBuf, step: Arc<Step>) -> Self {
        Self {
            files: Files::new(root, step),
            found: Found::default(),
            scanned: None,
            hanging: Vec::new(),
            read_slow: None,
            slow: Vec::new(),
        }
    }

    /// Reads all sensors. One that can't be read, or shows nonsense, is not in the answer.
    pub fn look(&mut self, now: Instant) -> Look {
        let due = |since: Option<Instant>, time| {
            since.is_none_or(|at| now.saturating_duration_since(at) >= time)
        };
        self.files.new_look();
        // What hung was not found, and should be once it comes back.
        let hanging = self.files.hanging();
        if due(self.scanned, RESCAN) || hanging != self.hanging {
            self.hanging = hanging;
            self.found = probe::find(&self.files);
            self.scanned = Some(now);
            self.read_slow = None;
        }
        if due(self.read_slow, SLOW) {
            self.slow = self.read(false);
            self.read_slow = Some(now);
        }
        let mut readings = self.read(true);
        readings.extend(self.slow.iter().cloned());
        Look {
            readings,
            facts: self.found.facts.clone(),
            processes: self.processes(),
            gpus: self.found.gpus.clone(),
            left_out: Vec::new(),
        }
    }

    fn read(&self, quick: bool) -> Vec<Reading> {
        let probes = self.found.probes.iter().filter(|p| p.quick == quick);
        let readings = probes.filter_map(|probe| {
            let texts: Option<Vec<_>> = probe
                .sensor
                .source
                .iter()
                .map(|path| self.files.text(path))
                .collect();
            let value = (probe.parse)(&texts?).filter(|v| v.is_finite())?;
            Some(Reading {
                sensor: probe.sensor.clone(),
                value,
            })
        });
        readings.collect()
    }

    fn processes(&self) -> Vec<Process> {
        let gpu = self.found.gpus.first().map(|gpu| gpu.uuid.as_str());
        gpu.map_or_else(Vec::new, |gpu| probe::processes(&self.files, gpu))
    }
}
