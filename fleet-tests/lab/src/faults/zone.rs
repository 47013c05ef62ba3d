//! All spot machines of a zone are taken back at once, with the notice that their cloud documents: real
//! agents and containers, and real requests to the service.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::stage::{PATIENCE, Plan, Stage, missing};
use super::{by_rules, note_conditions, note_lines, note_served, say, wanted};
use crate::measure::Measured;
use crate::measure::spot::machine;
use crate::metadata::{Cloud, Metadata};
use crate::scene::{set, workload};
use crate::truth::Span;
use crate::wait;

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose notices.
    pub cloud: Cloud,
    /// A real API server.
    pub real: bool,
}

/// The service, with two replicas, and a job.
const WORKLOADS: [&str; 2] = ["web", "train"];
const REPLICAS: usize = 2;
/// How long requests go on after the machines are gone.
const AFTER: Duration = Duration::from_secs(5);

type Machine = (&'static str, usize, bool, &'static str);

/// Name, zone, spot, US dollars per hour: the zone that is taken back has the cheapest.
const MACHINES: [Machine; 4] = [
    ("first", 0, true, "0.05"),
    ("second", 0, true, "0.05"),
    ("other-zone", 1, true, "0.06"),
    ("on-demand", 1, false, "0.2"),
];
/// Those of the zone.
const ZONE: [&str; 2] = ["first", "second"];

/// Measures.
///
/// # Errors
/// The stage can't run here, or what had to happen did not.
pub fn run(options: &Options) -> Result<Measured> {
    if let Some(reason) = missing(true, options.real) {
        bail!("can't measure here: {reason}");
    }
    let mut clouds = BTreeMap::new();
    let mut agents = Vec::new();
    for (name, zone, spot, price) in MACHINES {
        let metadata = Metadata::serve(options.cloud, name)?;
        agents.push(machine(options.cloud, &metadata, name, zone, spot, price));
        clouds.insert(name, metadata);
    }
    let mut stage = Stage::start(&Plan {
        name: format!("zone-{}", options.cloud.as_str()),
        agents,
        args: by_rules(),
        real: options.real,
        ..Plan::default()
    })?;
    let nodes: BTreeMap<&str, String> = {
        let fleet = stage.fleet()?;
        let of = |(at, m): (usize, &Machine)| (m.0, fleet.node(at));
        MACHINES.iter().enumerate().map(of).collect()
    };
    // Everything begins in the zone.
    for name in ["other-zone", "on-demand"] {
        stage.drain(&nodes[name], true)?;
    }
    let steps = ["job", "--steps", "1000000", "--pause-ms", "100"];
    let mut job = workload("train", "job", &steps, None);
    set(&mut job, "/spec/policy/goal", json!("cost"));
    stage.apply(&wanted("web", u32::try_from(REPLICAS)?, "cost"))?;
    stage.apply(&job)?;
    stage.at_rest(&WORKLOADS, PATIENCE)?;
    for name in ["other-zone", "on-demand"] {
        stage.drain(&nodes[name], false)?;
    }
    let truth = stage.truth.clone().context("a stage without containers")?;
    truth.wait_answer("web", None, PATIENCE)?;

    let mut measured = Measured::default();
    let asking = stage.ask("web");
    let zero = Instant::now();
    for name in ZONE {
        clouds[name].take_back();
    }
    say(&format!(
        "the zone of {} is taken back",
        options.cloud.as_str()
    ));
    let taken = |span: &Span| ZONE.iter().any(|name| nodes[name] == span.node);
    let answered = wait::until("answers from elsewhere", PATIENCE, || {
        let running = truth.running("web");
        let elsewhere: Vec<&Span> = running.iter().filter(|s| !taken(s)).collect();
        let answering = elsewhere
            .iter()
            .filter(|s| crate::truth::answers(&s.address));
        if answering.count() >= REPLICAS {
            Ok(Instant::now())
        } else {
            Err(format!("{running:?}"))
        }
    })
    .with_context(|| stage.log())?;
    let job = truth.wait("train", PATIENCE, |running| {
        running.len() == 1 && !running.iter().any(taken)
    })?;
    truth.wait("web", PATIENCE, |running| {
        running.len() == REPLICAS && !running.iter().any(taken)
    })?;
    let released = Instant::now();
    let began = job.first().map(|s| s.from).context("no job")?;
    // The machines are gone.
    for at in 0..ZONE.len() {
        stage.fleet()?.cut_power(at)?;
    }
    wait::holds("one copy of each", AFTER, || {
        match truth.running("web").len() {
            REPLICAS => Ok(()),
            n => Err(format!("{n} copies")),
        }
    })?;
    let served = asking.end()?;
    stage.at_rest(&WORKLOADS, PATIENCE)?;
    let starts = |of: &str| truth.spans(of).len();
    let too_many = (starts("web") + starts("train")).saturating_sub(2 * (REPLICAS + 1));
    ensure!(truth.most_at_once("train", "0") == 1, "the job ran twice");
    for (name, time) in [
        ("all_replaced_s", answered - zero),
        ("old_copies_ended_s", released - zero),
        (
            "job_runs_elsewhere_s",
            began.saturating_duration_since(zero),
        ),
    ] {
        measured.figure(name, time.as_secs_f64());
    }
    note_served(&mut measured, "", &served);
    let in_zone = truth.running("web").iter().filter(|s| taken(s)).count();
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    for (name, number) in [("restarts", too_many), ("copies_in_the_zone", in_zone)] {
        measured.figure(name, number as f64);
    }
    let spent = stage.spent_on_devices(&WORKLOADS, zero, Instant::now());
    measured.figure("spent_usd", spent);
    let wrong = stage.world(&WORKLOADS)?.wrong();
    note_lines(&mut measured, "wrong_at_the_end", &wrong);
    let left = stage.remove_all(&WORKLOADS)?;
    note_lines(&mut measured, "leaked", &left);
    measured.condition("cloud", options.cloud.as_str());
    measured.condition("notice_s", options.cloud.lead().as_secs());
    measured.condition(
        "machines",
        "two spot machines in the zone; a spot one and one on demand in another",
    );
    note_conditions(&mut measured, options.real);
    Ok(measured)
}
