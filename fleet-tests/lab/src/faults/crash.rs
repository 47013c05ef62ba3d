//! The operator is killed at every step of a move: a service and an exclusive one are drained from one
//! place to another, and at the n-th write of the move the operator dies by SIGKILL, just before the API
//! server gets the write or just after; for n = 1, 2, … until a move has no n-th write. Then it is
//! started anew and has to finish.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyperion_cluster::nodes::Service;

use super::gate::{Trap, When};
use super::seen::Served;
use super::stage::{PATIENCE, Plan, Stage, missing};
use super::{by_rules, exclusive, note_conditions, note_lines, note_served, say, wanted};
use crate::measure::Measured;
use crate::{AgentSpec, wait};

/// Between which places things move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Two workload clusters.
    Clusters,
    /// A device with an agent and real containers, and a workload cluster.
    DeviceAndCluster,
    /// Two devices.
    Devices,
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Between which places.
    pub between: Between,
    /// Real API servers.
    pub real: bool,
    /// Only these points; all where empty.
    pub points: Vec<usize>,
}

/// The service, and the one that must never run twice.
const WORKLOADS: [&str; 2] = ["web", "lone"];
/// After a move nothing more is written when nothing was for so long.
const STILL: Duration = Duration::from_secs(2);
/// More writes than any move takes.
const MOST: usize = 200;

/// Measures: points and kills, times from the drain to the end of the move, what those got who asked
/// the service, copies, and what was left.
///
/// # Errors
/// The stage can't run here, or a move did not end.
pub fn run(options: &Options) -> Result<Measured> {
    let agents = options.between != Between::Clusters;
    if let Some(reason) = missing(agents, options.real) {
        bail!("can't measure here: {reason}");
    }
    let trap = Trap::default();
    let clouds = match options.between {
        Between::Clusters => vec![(Service::Eks, 1), (Service::Gke, 1)],
        Between::DeviceAndCluster => vec![(Service::Eks, 1)],
        Between::Devices => Vec::new(),
    };
    let devices = match options.between {
        Between::Clusters => 0,
        Between::DeviceAndCluster => 1,
        Between::Devices => 2,
    };
    let mut stage = Stage::start(&Plan {
        name: "crash".to_owned(),
        clouds,
        agents: (0..devices)
            .map(|n| AgentSpec::edge(&format!("edge-{n}")))
            .collect(),
        args: by_rules(),
        real: options.real,
        trap: Some(trap.clone()),
    })?;
    let places = places(&mut stage, devices)?;
    stage.drain(&places[1], true)?;
    stage.apply(&wanted("web", 1, "default"))?;
    stage.apply(&exclusive("lone", "default"))?;
    stage.at_rest(&WORKLOADS, PATIENCE)?;
    let mut all = All::default();
    let begin = Instant::now();
    for when in When::ALL {
        kill_at_each(&mut stage, options, when, &trap, &places, &mut all)?;
    }
    let end = Instant::now();
    let spent = stage.seen.spent(begin, end) + stage.spent_on_devices(&WORKLOADS, begin, end);
    all.left = stage.remove_all(&WORKLOADS)?;
    let mut measured = all.measured();
    measured.figure("spent_usd", spent);
    measured.condition("between", format!("{:?}", options.between));
    measured.condition(
        "what",
        "an operator that is killed at the n-th write of a drain, before and after the API server has it; \
         writes are all but leases, events, reviews of rights, and status of nodes and clusters",
    );
    note_conditions(&mut measured, options.real);
    Ok(measured)
}

/// The two nodes.
fn places(stage: &mut Stage, devices: usize) -> Result<[String; 2]> {
    let mut places = Vec::new();
    for at in 0..devices {
        places.push(stage.fleet()?.node(at));
    }
    places.extend(stage.nodes_of(|_| true)?);
    places
        .try_into()
        .map_err(|p| anyhow::anyhow!("not two places: {p:?}"))
}

/// Everything that was measured.
#[derive(Default)]
struct All {
    points: [usize; 2],
    took: Vec<Duration>,
    served: Served,
    wrong: Vec<String>,
    left: Vec<String>,
    starts_too_many: usize,
    most_lone: usize,
}

/// Kills at the n-th write, in both directions, for each n that there is.
fn kill_at_each(
    stage: &mut Stage,
    options: &Options,
    when: When,
    trap: &Trap,
    places: &[String; 2],
    all: &mut All,
) -> Result<()> {
    let mut ended = [false; 2];
    let points: Vec<usize> = if options.points.is_empty() {
        (1..MOST).collect()
    } else {
        options.points.clone()
    };
    for nth in points {
        for ended in &mut ended {
            let (from, to) = {
                let now = stage.placement("web-0")?.node;
                let other = places.iter().find(|p| **p != now).context("one place")?;
                (now, other.clone())
            };
            let hit = one_move(stage, (nth, when), trap, (&from, &to), all)
                .with_context(|| format!("killed {} write {nth}, {from} to {to}", when.as_str()))?;
            *ended |= hit.is_none();
            all.points[when as usize] += usize::from(hit.is_some());
            let hit = hit.unwrap_or_else(|| "nothing: there is no such write".to_owned());
            let took = all.took.last().copied().unwrap_or_default();
            say(&format!(
                "{} {nth}: {hit}: {from} to {to} in {took:.1?}",
                when.as_str()
            ));
        }
        if ended == [true; 2] {
            return Ok(());
        }
    }
    ensure!(!options.points.is_empty(), "a move with {MOST} writes");
    Ok(())
}

/// One move with one death; the write at which it was.
fn one_move(
    stage: &mut Stage,
    (nth, when): (usize, When),
    trap: &Trap,
    (from, to): (&str, &str),
    all: &mut All,
) -> Result<Option<String>> {
    let copies = |stage: &Stage, of: &str| -> usize {
        let containers = stage.truth.iter().map(|t| t.spans(of).len()).sum::<usize>();
        stage.seen.copies(of).len() + containers
    };
    let before = WORKLOADS.map(|w| copies(stage, w));
    stage.drain(to, false)?;
    let victim = stage
        .control()
        .process()
        .id()
        .context("no control plane runs")?;
    let asking = stage.ask("web");
    trap.arm(nth, when, victim);
    let begin = Instant::now();
    stage.drain(from, true)?;
    let (mut written, mut since) = (0, Instant::now());
    wait::until("the kill, or the end of the move", PATIENCE, || {
        let now = trap.writes().len();
        if now != written {
            (written, since) = (now, Instant::now());
        }
        if trap.hit().is_some() {
            return Ok(());
        }
        let moved = WORKLOADS.iter().all(|w| {
            let placement = stage.placement(&format!("{w}-0"));
            placement.is_ok_and(|p| p.node == to && p.ready)
        });
        if moved && since.elapsed() > STILL {
            Ok(())
        } else {
            Err(format!("{written} writes: {:?}", trap.writes()))
        }
    })
    .with_context(|| stage.log())?;
    let hit = trap.hit();
    trap.disarm();
    if hit.is_some() {
        stage.start_control_again()?;
    }
    for workload in WORKLOADS {
        stage.wait_placement(&format!("{workload}-0"), PATIENCE, |p| {
            p.node == to && p.ready
        })?;
    }
    stage.at_rest(&WORKLOADS, PATIENCE)?;
    all.took.push(begin.elapsed());
    let served = asking.end()?;
    if served.failed > 0 {
        all.wrong.push(format!(
            "killed {} write {nth} ({hit:?}), {from} to {to}: {} of {} requests failed, {:?}",
            when.as_str(),
            served.failed,
            served.asked,
            served.gap
        ));
    }
    all.served = all.served.and(served);
    for (workload, before) in WORKLOADS.iter().zip(before) {
        let more = copies(stage, workload) - before;
        if more != 1 {
            let line = format!(
                "killed {} write {nth} ({hit:?}): {more} starts of {workload}",
                when.as_str()
            );
            all.wrong.push(line);
            all.starts_too_many += more.saturating_sub(1);
        }
    }
    let lone = stage
        .truth
        .as_ref()
        .map_or(0, |t| t.most_at_once("lone", "0"));
    all.most_lone = all.most_lone.max(stage.seen.most_at_once("lone")).max(lone);
    Ok(hit)
}

impl All {
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    fn measured(&self) -> Measured {
        let mut measured = Measured::default();
        for (when, points) in When::ALL.iter().zip(self.points) {
            measured.figure(&format!("killed_{}", when.as_str()), points as f64);
        }
        measured.figure("moves", self.took.len() as f64);
        measured.figure("killed", self.points.iter().sum::<usize>() as f64);
        let mut took = self.took.clone();
        took.sort();
        for (name, time) in [("p50", took.get(took.len() / 2)), ("max", took.last())] {
            if let Some(time) = time {
                measured.figure(&format!("moved_{name}_s"), time.as_secs_f64());
            }
        }
        note_served(&mut measured, "", &self.served);
        measured.figure("exclusive_most_at_once", self.most_lone as f64);
        measured.figure("starts_too_many", self.starts_too_many as f64);
        note_lines(&mut measured, "violations", &self.wrong);
        note_lines(&mut measured, "leaked", &self.left);
        measured
    }
}
