//! The steps of the demo.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyperion_api::placement::PlacementPhase;
use hyperion_lab::fleet::Placement;
use hyperion_lab::truth::Truth;
use hyperion_lab::watch::Watch;
use hyperion_lab::{AgentSpec, Fleet, FleetOptions, http, needs, wait};
use serde_json::Value;

use crate::away;
use crate::screen::{Steps, block, line, seconds, table};

const SERVICE: &str = "image-classifier";
const JOB: &str = "training-job";
const UNPLACEABLE: &str = "resnet50-inference-job-us-east";
const LONG: Duration = Duration::from_secs(60);

/// One line of the summary.
struct Row {
    workload: String,
    node: String,
    provider: String,
    phase: String,
    time: String,
    decided_by: String,
    rules: String,
}

/// Runs the demo from start to end. Everything is stopped and removed again, unless `keep`.
pub fn run(keep: bool, policy: Option<&str>) -> Result<()> {
    let steps = Steps::begin();
    let mut options = FleetOptions::new("demo").beside_others();
    if let Some(policy) = policy {
        options = options.control("--policy", policy);
    }
    let mut fleet = Fleet::prepare(&options)?;
    steps.step(&format!("everything below is in {}", fleet.dir.display()));
    match go(&steps, &mut fleet, keep) {
        Ok(rows) => {
            line("");
            steps.step("summary");
            block(&summary(&rows));
        }
        Err(e) => {
            if !wait::interrupted() {
                line(&fleet.logs(25));
            }
            return Err(e);
        }
    }
    if keep {
        return leave_running(fleet);
    }
    steps.step("stopping everything");
    drop(fleet);
    steps.step("done");
    Ok(())
}

fn go(steps: &Steps, fleet: &mut Fleet, keep: bool) -> Result<Vec<Row>> {
    start(steps, fleet)?;
    let watch = Watch::start(fleet.kubectl().kubeconfig())?;
    let truth = Truth::watch(fleet);
    let mut rows = vec![
        place_service(steps, fleet, &watch)?,
        place_job(steps, fleet, &watch)?,
        refuse_unplaceable(steps, fleet)?,
    ];
    let kinds = "hyperionworkloads,hyperionnodes,hyperionplacements";
    kubectl(steps, fleet, &["get", kinds])?;
    rows.push(lose_node(steps, fleet, &watch, keep)?);
    finish_job(steps, fleet, &mut rows)?;
    rows.push(place_camera(steps, fleet, &watch)?);
    away::play(steps, fleet, &truth)?;
    kubectl(steps, fleet, &["get", kinds])?;
    Ok(rows)
}

fn start(steps: &Steps, fleet: &mut Fleet) -> Result<()> {
    steps.step("starting a private containerd, with images built from images/");
    fleet.start_containerd()?;
    steps.step("starting the control plane with its embedded Kubernetes API");
    fleet.start_control()?;
    steps.step("starting six agents: three edge nodes of site lab, and one node each that stands for AWS, GCP and Azure");
    let edge = |name| AgentSpec::edge(name).label("hyperion.io/geography", "EU");
    for spec in [
        edge("edge-1"),
        edge("edge-2"),
        edge("edge-3"),
        AgentSpec::cloud("aws", "aws", "us-east-1", "m5.2xlarge", false),
        AgentSpec::cloud("gcp", "gcp", "europe-west1", "n2-standard-8", true),
        AgentSpec::cloud("azure", "azure", "westeurope", "Standard_D8s_v5", false),
    ] {
        fleet.add_only(&spec)?;
    }
    for at in 0..fleet.agents.len() {
        fleet.wait_agent(at)?;
    }
    kubectl(steps, fleet, &["get", "hyperionnodes"])?;
    Ok(())
}

/// Applies an example; gives the moment before `kubectl` was started.
fn apply(steps: &Steps, fleet: &Fleet, example: &str) -> Result<Instant> {
    let file = examples().join(example);
    let file = file.to_string_lossy();
    let start = Instant::now();
    let out = fleet.kubectl().run(&["apply", "-f", &file])?;
    steps.command(&format!("kubectl apply -f examples/{example}"), &out);
    Ok(start)
}

fn place_service(steps: &Steps, fleet: &Fleet, watch: &Watch) -> Result<Row> {
    let start = apply(steps, fleet, "inference-service.yaml")?;
    let name = format!("{SERVICE}-0");
    let running = watch.first(&name, start, LONG, |c| {
        c.name == name && c.phase == PlacementPhase::Running
    })?;
    let placement = fleet.wait_running(&name, LONG)?;
    let workload = format!("hyperionworkload/{SERVICE}");
    kubectl(
        steps,
        fleet,
        &["wait", "--for=condition=Ready", &workload, "--timeout=30s"],
    )?;
    let time = running.at - start;
    steps.step(&format!(
        "{SERVICE} runs on {}, {} after apply",
        placement.node,
        seconds(time)
    ));
    infer(steps, &placement, 7)?;
    beside(steps, SERVICE, &placement);
    explain(steps, fleet, SERVICE);
    Ok(row(SERVICE, &placement, &seconds(time)))
}

fn place_camera(steps: &Steps, fleet: &Fleet, watch: &Watch) -> Result<Row> {
    let start = apply(steps, fleet, "site-camera.yaml")?;
    let name = format!("{}-0", away::CAMERA);
    let running = watch.first(&name, start, LONG, |c| {
        c.name == name && c.phase == PlacementPhase::Running
    })?;
    let placement = fleet.wait_running(&name, LONG)?;
    beside(steps, away::CAMERA, &placement);
    Ok(row(away::CAMERA, &placement, &seconds(running.at - start)))
}

fn place_job(steps: &Steps, fleet: &Fleet, watch: &Watch) -> Result<Row> {
    let start = apply(steps, fleet, "training-job.yaml")?;
    let name = format!("{JOB}-0");
    let running = watch.first(&name, start, LONG, |c| {
        c.name == name && matches!(c.phase, PlacementPhase::Running | PlacementPhase::Succeeded)
    })?;
    let time = running.at - start;
    let placement = fleet.wait_placement(&name, LONG, |p| !p.node.is_empty())?;
    steps.step(&format!(
        "{JOB} runs on {}, {} after apply",
        placement.node,
        seconds(time)
    ));
    beside(steps, JOB, &placement);
    explain(steps, fleet, JOB);
    Ok(row(JOB, &placement, &seconds(time)))
}

fn refuse_unplaceable(steps: &Steps, fleet: &Fleet) -> Result<Row> {
    apply(steps, fleet, "resnet50.yaml")?;
    let status = wait::until("reason of the unplaceable workload", LONG, || {
        let object = fleet
            .kubectl()
            .get(&["hyperionworkload", UNPLACEABLE])
            .map_err(|e| e.to_string())?;
        let status = object.get("status").cloned().unwrap_or_default();
        let rejected = status.get("rejected").and_then(Value::as_array);
        if rejected.is_some_and(|r| !r.is_empty()) {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })?;
    let text = |value: &Value, key: &str| {
        let value = value.get(key).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    steps.step(&format!("{UNPLACEABLE} has no place; its status says why:"));
    for condition in status
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if text(condition, "status") == "False" && !text(condition, "message").is_empty() {
            block(&format!(
                "{}: {}: {}",
                text(condition, "type"),
                text(condition, "reason"),
                text(condition, "message")
            ));
        }
    }
    for rejection in status
        .get("rejected")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let count = rejection.get("count").and_then(Value::as_i64).unwrap_or(0);
        block(&format!(
            "{count} nodes rejected by {}",
            text(rejection, "constraint")
        ));
    }
    Ok(Row {
        workload: UNPLACEABLE.to_owned(),
        node: "none".to_owned(),
        provider: "none".to_owned(),
        phase: text(&status, "phase"),
        time: "never: no node fits".to_owned(),
        decided_by: "none".to_owned(),
        rules: "none".to_owned(),
    })
}

/// Cuts the power of the node that runs the service.
fn lose_node(steps: &Steps, fleet: &mut Fleet, watch: &Watch, keep: bool) -> Result<Row> {
    let name = format!("{SERVICE}-0");
    let before = fleet.wait_running(&name, LONG)?;
    let at = fleet
        .agent_of(&before.node)
        .context("no agent runs the service's node")?;
    let start = Instant::now();
    let ended = fleet.cut_power(at)?;
    steps.step(&format!(
        "killed node {}: its agent and {ended} container(s) are gone; waiting for the service elsewhere",
        before.node
    ));
    ensure!(ended > 0, "node {} ran no container", before.node);
    let running = watch.first(&name, start, LONG, |c| {
        c.name == name && c.node != before.node && c.phase == PlacementPhase::Running
    })?;
    let time = running.at - start;
    let after = fleet.wait_running(&name, LONG)?;
    steps.step(&format!(
        "{SERVICE} runs again, on {}, {} after the node was killed (replaceAfter is 5s)",
        after.node,
        seconds(time)
    ));
    infer(steps, &after, 7)?;
    beside(steps, SERVICE, &after);
    if keep {
        fleet.start_agent(at)?;
        fleet.wait_agent(at)?;
        steps.step(&format!("node {} is back", before.node));
    }
    let mut row = row(
        SERVICE,
        &after,
        &format!("{} after node loss", seconds(time)),
    );
    row.workload.push_str(" (re-placed)");
    Ok(row)
}

fn finish_job(steps: &Steps, fleet: &Fleet, rows: &mut [Row]) -> Result<()> {
    let done = fleet.wait_placement(&format!("{JOB}-0"), LONG, |p| {
        p.phase == "Succeeded" || p.phase == "Failed"
    })?;
    ensure!(
        done.phase == "Succeeded",
        "{JOB}: {}: {}",
        done.phase,
        done.message
    );
    steps.step(&format!("{JOB} has run to its end"));
    match fleet.kubectl().hyperion(&["logs", JOB, "--tail", "2"]) {
        Ok(out) => steps.command(&format!("hyperion logs {JOB} --tail 2"), &out),
        Err(e) => steps.step(&format!("hyperion logs: {e}")),
    }
    if let Some(row) = rows.iter_mut().find(|r| r.workload == JOB) {
        row.phase = done.phase;
    }
    Ok(())
}

/// Asks the service for an inference at its address in the containers' network.
fn infer(steps: &Steps, placement: &Placement, seed: u64) -> Result<()> {
    let path = format!("/infer?seed={seed}");
    let address = format!("{}:8080", placement.pod_ip);
    let start = Instant::now();
    let answer = http::get(&address, &path)?;
    let round_trip = start.elapsed();
    steps.command(&format!("curl http://{address}{path}"), &answer);
    let answer: Value = serde_json::from_str(&answer).context("answer of the service")?;
    let sum: f64 = answer
        .get("probabilities")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_f64)
        .sum();
    ensure!((sum - 1.0).abs() < 1e-3, "the probabilities sum to {sum}");
    steps.step(&format!(
        "answered in {:.1} ms",
        round_trip.as_secs_f64() * 1000.0
    ));
    Ok(())
}

fn explain(steps: &Steps, fleet: &Fleet, workload: &str) {
    match fleet.kubectl().hyperion(&["explain", workload]) {
        Ok(out) => steps.command(&format!("hyperion explain {workload}"), &out),
        Err(e) => steps.step(&format!("hyperion explain: {e}")),
    }
}

fn kubectl(steps: &Steps, fleet: &Fleet, args: &[&str]) -> Result<()> {
    let out = fleet.kubectl().run(args)?;
    steps.command(&format!("kubectl {}", args.join(" ")), &out);
    Ok(())
}

fn row(workload: &str, placement: &Placement, time: &str) -> Row {
    Row {
        workload: workload.to_owned(),
        node: placement.node.clone(),
        provider: placement.provider.clone(),
        phase: placement.phase.clone(),
        time: time.to_owned(),
        decided_by: placement.scorer.clone(),
        rules: rules(placement),
    }
}

/// What rules would have chosen, for the summary.
fn rules(placement: &Placement) -> String {
    match placement.rules_choice.as_str() {
        _ if !placement.fallback.is_empty() => format!("the same: {}", placement.fallback),
        "" => "they decided".to_owned(),
        node if node == placement.node => "the same".to_owned(),
        node => node.to_owned(),
    }
}

/// Says who decided where a replica goes, and what rules would have chosen.
fn beside(steps: &Steps, workload: &str, placement: &Placement) {
    let decided = match placement.scorer.as_str() {
        "rules" if placement.fallback.is_empty() => "rules".to_owned(),
        "rules" => format!("rules, because {}", placement.fallback),
        policy => format!(
            "policy {policy}; rules would have chosen {}",
            rules(placement)
        ),
    };
    steps.step(&format!(
        "{workload} is on {}, decided by {decided}",
        placement.node
    ));
}

fn summary(rows: &[Row]) -> String {
    let heading = [
        "WORKLOAD",
        "NODE",
        "PROVIDER",
        "PHASE",
        "APPLY TO RUNNING",
        "DECIDED BY",
        "RULES WOULD CHOOSE",
    ];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    for row in rows {
        let row = [
            &row.workload,
            &row.node,
            &row.provider,
            &row.phase,
            &row.time,
            &row.decided_by,
            &row.rules,
        ];
        cells.push(row.map(Clone::clone).to_vec());
    }
    table(&cells)
}

fn leave_running(fleet: Fleet) -> Result<()> {
    let programs = needs::programs();
    let kubeconfig = fleet.kubectl().kubeconfig().display().to_string();
    let dir = fleet.keep()?;
    line("");
    line(&format!(
        "The fleet in {} goes on. To look at it:",
        dir.display()
    ));
    line(&format!("    export KUBECONFIG={kubeconfig}"));
    line("    kubectl get hyperionworkloads,hyperionnodes,hyperionplacements");
    line(&format!("    {} top", programs.join("hyperion").display()));
    line("To stop and remove it:");
    line("    make demo-stop");
    Ok(())
}

/// Folder of the examples: of this checkout, wherever the demo is run from.
fn examples() -> PathBuf {
    let here = PathBuf::from("examples");
    if here.is_dir() {
        here
    } else {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")
    }
}
