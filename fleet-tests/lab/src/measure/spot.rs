//! A spot machine is taken back: what that costs a service and a job that run on it. Real agents, real
//! containers; the notice comes from a stand-in for the cloud's metadata service.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Measured, build_profile, cores};
use crate::beacon::Beacon;
use crate::metadata::{Cloud, Metadata};
use crate::proc::cpu_model;
use crate::scene::{SOON, service, set, workload};
use crate::truth::{Truth, answers};
use crate::{AgentSpec, Fleet, FleetOptions, needs, wait};

/// Time between two requests to the service.
const REQUEST: Duration = Duration::from_millis(20);
/// How long requests go on after the machine is gone.
const AFTER: Duration = Duration::from_secs(3);

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose notices.
    pub cloud: Cloud,
    /// Repetitions, each with a fleet of its own.
    pub runs: u32,
}

/// What one run gave.
#[derive(Debug, Clone)]
struct Run {
    /// From the notice to an answer of the new copy.
    replaced: Duration,
    /// From the notice to the end of the old copy.
    released: Duration,
    /// From the notice to the start of the job on another machine.
    job: Duration,
    asked: u64,
    failed: u64,
}

/// Measures, over the runs, the median and the worst of `replaced_s` (from the notice to the first
/// answer of the new copy), `released_s` (to the end of the old copy) and `job_s` (to the job's start
/// elsewhere), and counts `requests` to the service and `failed` ones.
///
/// # Errors
/// A fleet can't run here, or what had to happen did not: a copy in the pool that is taken back, an
/// old copy that ended before the new one answered, a job that ran twice.
pub fn run(options: &Options) -> Result<Measured> {
    if let Some(reason) = needs::missing(&needs::OURS) {
        bail!("can't measure here: {reason}");
    }
    let mut runs = Vec::new();
    for n in 1..=options.runs.max(1) {
        runs.push(once(options.cloud).with_context(|| format!("run {n}"))?);
    }
    let mut measured = Measured::default();
    let mut figure = |name: &str, of: fn(&Run) -> Duration| {
        let mut all: Vec<f64> = runs.iter().map(|r| of(r).as_secs_f64()).collect();
        all.sort_by(f64::total_cmp);
        if let (Some(median), Some(worst)) = (all.get(all.len() / 2), all.last()) {
            measured.figure(&format!("{name}_s"), *median);
            measured.figure(&format!("{name}_worst_s"), *worst);
        }
    };
    figure("replaced", |r| r.replaced);
    figure("released", |r| r.released);
    figure("job", |r| r.job);
    #[expect(clippy::cast_precision_loss, reason = "some thousands of requests")]
    for (name, of) in [
        ("requests", (|r| r.asked) as fn(&Run) -> u64),
        ("failed", |r| r.failed),
    ] {
        measured.figure(name, runs.iter().map(of).sum::<u64>() as f64);
    }
    measured.condition("cloud", options.cloud.as_str());
    measured.condition("notice_s", options.cloud.lead().as_secs());
    measured.condition("runs", options.runs.max(1));
    measured.condition("programs", build_profile());
    measured.condition("cores", cores());
    measured.condition("cpu", cpu_model());
    Ok(measured)
}

type Machine = (&'static str, usize, bool, &'static str);

/// Machines of the lab: name, zone, spot, US dollars per hour. The cheapest two are one pool.
const MACHINES: [Machine; 4] = [
    ("first", 0, true, "0.05"),
    ("same-pool", 0, true, "0.055"),
    ("other-zone", 1, true, "0.06"),
    ("on-demand", 1, false, "0.2"),
];

fn once(cloud: Cloud) -> Result<Run> {
    let options =
        FleetOptions::new(&format!("spot-{}", cloud.as_str())).control("--policy", "rules");
    let mut fleet = Fleet::start(&options)?;
    let mut clouds = Vec::new();
    let mut add = |fleet: &mut Fleet, (name, zone, spot, price): Machine| -> Result<usize> {
        let metadata = Metadata::serve(cloud, name)?;
        let at = fleet.add_only(&machine(cloud, &metadata, name, zone, spot, price))?;
        clouds.push(metadata);
        Ok(at)
    };
    let [first, others @ ..] = MACHINES;
    let at = add(&mut fleet, first)?;
    fleet.wait_agent(at)?;
    let beacon = Beacon::listen(&fleet.network.gateway())?;
    let truth = Truth::watch(&fleet);
    let steps = ["job", "--steps", "1000000", "--pause-ms", "100"];
    for mut object in [
        service("web", 1, Some(&beacon)),
        workload("train", "job", &steps, Some(&beacon)),
    ] {
        set(&mut object, "/spec/policy/goal", json!("cost"));
        fleet.apply(&object)?;
    }
    for name in ["web-0", "train-0"] {
        fleet.wait_running(name, SOON)?;
    }
    // Both run on the only machine that there was.
    let first = fleet.node(at);
    for other in others {
        let at = add(&mut fleet, other)?;
        fleet.wait_agent(at)?;
    }
    truth.wait_answer("web", None, SOON)?;
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let ask = || {
        while !stop.load(Ordering::SeqCst) {
            asked.fetch_add(1, Ordering::SeqCst);
            // As a balancer does: a copy that does not answer is not the only one that is asked.
            if !truth.running("web").iter().any(|s| answers(&s.address)) {
                failed.fetch_add(1, Ordering::SeqCst);
            }
            std::thread::sleep(REQUEST);
        }
    };
    let taken = clouds.first().context("no machine")?;
    let times = std::thread::scope(|scope| {
        scope.spawn(ask);
        let times = take_back(&mut fleet, &truth, taken, &first);
        stop.store(true, Ordering::SeqCst);
        times
    });
    let (replaced, released, job) = times?;
    ensure!(
        beacon.starts("web").len() == 2,
        "starts: {:?}",
        beacon.starts("")
    );
    ensure!(
        beacon.starts("train").len() == 2,
        "starts: {:?}",
        beacon.starts("")
    );
    ensure!(truth.most_at_once("train", "0") == 1, "the job ran twice");
    fleet.no_panics()?;
    Ok(Run {
        replaced,
        released,
        job,
        asked: asked.into_inner(),
        failed: failed.into_inner(),
    })
}

/// The machine is taken back: first the notice, and when its replicas have left, it is gone.
fn take_back(
    fleet: &mut Fleet,
    truth: &Truth,
    taken: &Metadata,
    first: &str,
) -> Result<(Duration, Duration, Duration)> {
    let zero = Instant::now();
    taken.take_back();
    let (copy, answered) = truth.wait_answer("web", Some(first), SOON)?;
    let job = truth.wait("train", SOON, |running| {
        running.len() == 1 && running.iter().all(|s| s.node != first)
    })?;
    truth.wait("web", SOON, |running| running.len() == 1)?;
    let spans = truth.spans("web");
    let old = spans.iter().find(|s| s.node == first);
    let ended = old.and_then(|s| s.to).context("the old copy runs")?;
    ensure!(
        ended >= answered,
        "the old copy ended before the new one answered"
    );
    let began = job.first().map(|s| s.from).context("no job")?;
    for at in [
        Some(copy.node.as_str()),
        job.first().map(|s| s.node.as_str()),
    ] {
        let name = fleet.name_of(at.unwrap_or_default());
        ensure!(name == "other-zone", "{name} took over");
    }
    wait::until("the notice in the node's status", SOON, || {
        let node = fleet.kubectl().get(&["hyperionnode", first]);
        let node = node.map_err(|e| e.to_string())?;
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        let notice = conditions
            .into_iter()
            .flatten()
            .find(|c| c.get("type") == Some(&json!("Interruption")));
        match notice.and_then(|c| c.get("reason")) {
            Some(reason) if reason == "SpotInterruption" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    fleet.cut_power(0)?;
    wait::holds("one copy", AFTER, || match truth.running("web").len() {
        1 => Ok(()),
        n => Err(format!("{n} copies")),
    })?;
    Ok((answered - zero, ended - zero, began - zero))
}

pub(crate) fn machine(
    cloud: Cloud,
    metadata: &Metadata,
    name: &str,
    zone: usize,
    spot: bool,
    price: &str,
) -> AgentSpec {
    let (region, zones, kind) = cloud.place();
    AgentSpec::cloud(name, cloud.as_str(), region, kind, spot)
        .label(
            "topology.kubernetes.io/zone",
            zones.get(zone).copied().unwrap_or_default(),
        )
        .label("hyperion.io/price-per-hour", price)
        .flag("--cloud-metadata", cloud.as_str())
        .flag("--cloud-metadata-url", &metadata.url())
}
