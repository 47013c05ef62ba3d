//! What a site does alone, with real containers: scenarios that are repeated, their medians and
//! their worst.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Measured, build_profile, cores};
use crate::device::Cut;
use crate::needs;
use crate::proc::cpu_model;
use crate::site::Site;

/// Time in which nothing may change after a return.
const QUIET: Duration = Duration::from_secs(6);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Names of the scenarios, and what each is.
pub const SCENARIOS: [(&str, &str); 6] = [
    (
        "takeover",
        "control plane gone, then the device of a service loses power; then the control plane is back",
    ),
    (
        "reboot",
        "control plane gone, a device loses power and starts again",
    ),
    (
        "uplink",
        "one device loses its way to the control plane; its peers do not",
    ),
    (
        "one-way",
        "control plane gone; a device hears its peers, and they do not hear it",
    ),
    (
        "partial",
        "control plane gone; one pair of devices can't talk, all others can",
    ),
    (
        "split",
        "control plane gone; the site falls in two, and is mended",
    ),
];

/// How to run a scenario.
#[derive(Debug, Clone)]
pub struct Options {
    /// One of [`SCENARIOS`].
    pub scenario: String,
    /// `default` or `fast`.
    pub profile: String,
    /// Repetitions, each with a fleet of its own.
    pub runs: u32,
}

/// What one run gave; what does not apply is none.
#[derive(Debug, Clone, Default)]
struct Run {
    autonomous: Option<Duration>,
    takeover: Option<Duration>,
    reboot: Option<Duration>,
    shown: Option<Duration>,
    restarts: usize,
    most_copies: usize,
    table: String,
}

/// Runs a scenario; figures are medians over the runs, with the worst beside them.
///
/// # Errors
/// The scenario is not known, a fleet can't run here, or what had to happen did not.
pub fn run(options: &Options) -> Result<Measured> {
    ensure!(
        SCENARIOS.iter().any(|(name, _)| *name == options.scenario),
        "scenario {:?} is not one of {}",
        options.scenario,
        SCENARIOS.map(|(name, _)| name).join(", ")
    );
    if let Some(reason) = needs::missing_for_devices() {
        bail!("can't measure here: {reason}");
    }
    let mut runs = Vec::new();
    for n in 1..=options.runs.max(1) {
        let run = once(&options.scenario, &options.profile)
            .with_context(|| format!("run {n} of {}", options.scenario))?;
        runs.push(run);
    }
    let mut measured = Measured::default();
    let mut figure = |name: &str, of: &dyn Fn(&Run) -> Option<Duration>| {
        let mut all: Vec<f64> = runs
            .iter()
            .filter_map(of)
            .map(|d| d.as_secs_f64())
            .collect();
        all.sort_by(f64::total_cmp);
        if let (Some(median), Some(worst)) = (all.get(all.len() / 2), all.last()) {
            measured.figure(&format!("{name}_s"), *median);
            measured.figure(&format!("{name}_worst_s"), *worst);
        }
    };
    figure("takeover", &|r| r.takeover);
    figure("reboot_answer", &|r| r.reboot);
    figure("autonomous", &|r| r.autonomous);
    figure("shown", &|r| r.shown);
    #[expect(clippy::cast_precision_loss, reason = "a handful of containers")]
    {
        let restarts: usize = runs.iter().map(|r| r.restarts).sum();
        measured.figure("restarts", restarts as f64);
        let most = runs.iter().map(|r| r.most_copies).max().unwrap_or(0);
        measured.figure("exclusive_copies_most", most as f64);
    }
    measured.condition("scenario", options.scenario.as_str());
    measured.condition("profile", options.profile.as_str());
    measured.condition("runs", options.runs.max(1));
    measured.condition("programs", build_profile());
    measured.condition("cores", cores());
    measured.condition("cpu", cpu_model());
    if let Some(last) = runs.last().filter(|r| !r.table.is_empty()) {
        measured.condition("table", last.table.as_str());
    }
    Ok(measured)
}

fn once(scenario: &str, profile: &str) -> Result<Run> {
    match scenario {
        "takeover" => takeover(profile),
        "reboot" => reboot(profile),
        "uplink" => uplink(profile),
        "one-way" => partition(profile, one_way),
        "partial" => partition(profile, partial),
        _ => partition(profile, split),
    }
}

fn takeover(profile: &str) -> Result<Run> {
    let mut site = Site::start("site-takeover", profile, 4)?;
    site.run_service("web", 1, false)?;
    let at = site.agent_with("web")?;
    let lost = site.fleet.node(at);
    let autonomous = site.lose_control()?;
    let zero = Instant::now();
    site.fleet.cut_power(at)?;
    let (copy, answered) = site.truth.wait_answer("web", Some(&lost), ANSWER)?;
    let ids = site.ids("web");
    ensure!(ids.len() == 1, "copies of web: {ids:?}");
    let new = site.fleet.agent_of(&copy.node).context("no such agent")?;
    let back = site.regain_control(&[new])?;
    let placement = site.wait_adopted("web-0", &copy.node)?;
    let shown = back.elapsed();
    ensure!(
        placement.decided_by != "control-plane",
        "decided by {}",
        placement.decided_by
    );
    site.fleet.start_agent(at)?;
    site.fleet.wait_agent(at)?;
    site.stays("web", &ids, QUIET)?;
    site.fleet.no_panics()?;
    Ok(Run {
        autonomous: Some(autonomous),
        takeover: Some(answered - zero),
        shown: Some(shown),
        restarts: site.beacon.starts("web").len() - 2,
        table: site
            .truth
            .table(&["web"], zero, |node| site.fleet.name_of(node)),
        ..Run::default()
    })
}

fn reboot(profile: &str) -> Result<Run> {
    let mut site = Site::start("site-reboot", profile, 1)?;
    site.run_service("web", 2, false)?;
    let autonomous = site.lose_control()?;
    let zero = Instant::now();
    site.fleet.cut_power(0)?;
    site.truth.wait("web", ANSWER, <[_]>::is_empty)?;
    let begin = Instant::now();
    site.fleet.start_agent(0)?;
    let running = site
        .truth
        .wait("web", ANSWER, |running| running.len() == 2)?;
    for copy in &running {
        crate::wait::until("an answer", ANSWER, || {
            if crate::truth::answers(&copy.address) {
                Ok(())
            } else {
                Err(format!("{copy:?}"))
            }
        })?;
    }
    let answered = begin.elapsed();
    let ids = site.ids("web");
    site.regain_control(&[0])?;
    site.stays("web", &ids, QUIET)?;
    site.fleet.no_panics()?;
    Ok(Run {
        autonomous: Some(autonomous),
        reboot: Some(answered),
        restarts: site.beacon.starts("web").len() - 4,
        table: site
            .truth
            .table(&["web"], zero, |node| site.fleet.name_of(node)),
        ..Run::default()
    })
}

/// One broken uplink is not a dead control plane: nothing moves, and the device stays in reach
/// through a peer.
fn uplink(profile: &str) -> Result<Run> {
    let mut site = Site::start("site-uplink", profile, 3)?;
    site.run_service("web", 3, false)?;
    let ids = site.ids("web");
    let zero = Instant::now();
    site.cut_uplink(0)?;
    let node = site.fleet.node(0);
    // Its link is noticed to be gone, and stands again through a peer.
    site.fleet.wait_mode(0, "suspect")?;
    site.fleet.wait_mode(0, "connected")?;
    let relayed = zero.elapsed();
    site.fleet.wait_node(&node, "True")?;
    site.stays("web", &ids, QUIET)?;
    site.mend()?;
    site.stays("web", &ids, QUIET)?;
    site.fleet.no_panics()?;
    Ok(Run {
        shown: Some(relayed),
        restarts: site.beacon.starts("web").len() - 3,
        table: site
            .truth
            .table(&["web"], zero, |node| site.fleet.name_of(node)),
        ..Run::default()
    })
}

/// A partition while the control plane is gone, with an ordinary and an exclusive service; then all
/// is mended and one copy of each must be left.
fn partition(profile: &str, cut: fn(&mut Site) -> Result<()>) -> Result<Run> {
    let mut site = Site::start("site-partition", profile, 5)?;
    site.run_service("web", 2, false)?;
    site.run_service("lone", 1, true)?;
    let autonomous = site.lose_control()?;
    let zero = Instant::now();
    cut(&mut site)?;
    // Long enough for either side to take over what it may; what it does is in the table.
    let span = if profile == "fast" { 8 } else { 20 };
    crate::wait::holds(
        "at most one copy of lone",
        Duration::from_secs(span),
        || match site.truth.running("lone").len() {
            0 | 1 => Ok(()),
            n => Err(format!("{n} copies")),
        },
    )?;
    let mended = zero.elapsed();
    site.mend()?;
    site.wait_one_each("web", 2)?;
    site.wait_one_each("lone", 1)?;
    let ids = (site.ids("web"), site.ids("lone"));
    let all: Vec<usize> = (0..5).collect();
    site.regain_control(&all)?;
    site.stays("web", &ids.0, QUIET)?;
    site.stays("lone", &ids.1, QUIET)?;
    site.fleet.no_panics()?;
    let most = site.truth.most_at_once("lone", "0");
    ensure!(most == 1, "{most} copies of an exclusive workload");
    let mut table = site
        .truth
        .table(&["web", "lone"], zero, |node| site.fleet.name_of(node));
    let _infallible = writeln!(table, "cut at 0.0, mended at {:.1}", mended.as_secs_f64());
    Ok(Run {
        autonomous: Some(autonomous),
        most_copies: most,
        table,
        ..Run::default()
    })
}

/// The device of the exclusive service hears all and is heard by none.
fn one_way(site: &mut Site) -> Result<()> {
    let at = site.agent_with("lone")?;
    for other in (0..site.fleet.agents.len()).filter(|o| *o != at) {
        site.cut(other, at, Cut::From)?;
    }
    Ok(())
}

/// The device of the exclusive service and one other can't talk.
fn partial(site: &mut Site) -> Result<()> {
    let at = site.agent_with("lone")?;
    let other = (at + 1) % site.fleet.agents.len();
    site.split(&[at], &[other])
}

/// The exclusive service's device and one other on one side, three on the other.
fn split(site: &mut Site) -> Result<()> {
    let at = site.agent_with("lone")?;
    let devices = site.fleet.agents.len();
    let left = [at, (at + 1) % devices];
    let right: Vec<usize> = (0..devices).filter(|n| !left.contains(n)).collect();
    site.split(&left, &right)
}
