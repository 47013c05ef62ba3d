//! The act without a cloud: it goes away, a device dies, the site carries on, the cloud returns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyperion_lab::truth::Truth;
use hyperion_lab::{Fleet, wait};

use crate::screen::{Steps, block, line, seconds, table};

/// Name of the workload in `examples/site-camera.yaml`.
pub const CAMERA: &str = "door-camera";
const LONG: Duration = Duration::from_secs(60);
/// Time in which nothing may be started again after the cloud is back.
const QUIET: Duration = Duration::from_secs(3);

/// Moments of the act.
struct Timeline {
    zero: Instant,
    rows: Vec<Vec<String>>,
}

impl Timeline {
    fn note(&mut self, steps: &Steps, what: &str) {
        let at = self.zero.elapsed();
        steps.step(what);
        self.rows
            .push(vec![format!("{:.1} s", at.as_secs_f64()), what.to_owned()]);
    }
}

/// Plays the act; [`CAMERA`] runs on an edge node.
pub fn play(steps: &Steps, fleet: &mut Fleet, truth: &Truth) -> Result<()> {
    let copy = truth
        .running(CAMERA)
        .first()
        .cloned()
        .context("the camera's service does not run")?;
    let dies = fleet.agent_of(&copy.node).context("no such agent")?;
    let others: Vec<usize> = (0..fleet.agents.len())
        .filter(|at| {
            *at != dies
                && fleet
                    .agents
                    .get(*at)
                    .is_some_and(|a| a.name.starts_with("edge-"))
        })
        .collect();
    line("");
    steps.step("now without a cloud");
    let mut times = Timeline {
        zero: Instant::now(),
        rows: Vec::new(),
    };
    fleet.control.kill();
    times.note(steps, "the control plane is gone (kill -9)");
    for &at in &others {
        fleet.wait_mode(at, "autonomous")?;
    }
    times.note(steps, "the site's devices act for themselves");
    let name = fleet.name_of(&copy.node);
    let died = Instant::now();
    fleet.cut_power(dies)?;
    times.note(steps, &format!("{name}, which runs {CAMERA}, loses power"));
    let (taken, answered) = truth.wait_answer(CAMERA, Some(&copy.node), LONG)?;
    let new = fleet.name_of(&taken.node);
    times.note(
        steps,
        &format!(
            "{CAMERA} answers from {new}, {} after {name} died",
            seconds(answered - died)
        ),
    );
    let witness = others.first().copied().context("no other device")?;
    let socket = fleet.agent(witness)?.data.join("agent.sock");
    let socket = socket.display().to_string();
    match fleet
        .kubectl()
        .hyperion(&["site", "status", "--socket", &socket])
    {
        Ok(out) => steps.command("hyperion site status", &out),
        Err(e) => steps.step(&format!("hyperion site status: {e}")),
    }
    fleet.start_control()?;
    times.note(steps, "the control plane is back");
    let placement = fleet.wait_placement(&format!("{CAMERA}-0"), LONG, |p| {
        p.node == taken.node && p.decided_by != "control-plane" && p.ready
    })?;
    times.note(
        steps,
        &format!(
            "it shows what the site decided: {CAMERA} on {new}, decided by {}",
            fleet.name_of(&placement.decided_by)
        ),
    );
    wait::holds("nothing is started again", QUIET, || {
        let running = truth.running(CAMERA);
        match running.as_slice() {
            [one] if one.container == taken.container => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    times.note(steps, "nothing was started again");
    let workload = format!("hyperionworkload/{CAMERA}");
    if let Ok(out) = fleet.kubectl().run(&["describe", &workload]) {
        let events = out.find("Events:").and_then(|at| out.get(at..));
        steps.command(
            &format!("kubectl describe {workload} (its events)"),
            events.unwrap_or("no events"),
        );
    }
    line("");
    steps.step("what happened");
    block(&table(&times.rows));
    ensure!(
        truth.most_at_once(CAMERA, "0") == 1,
        "{CAMERA} ran twice at a time"
    );
    Ok(())
}
