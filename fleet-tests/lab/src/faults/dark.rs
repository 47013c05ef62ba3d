//! A cluster is out of reach: its region goes dark, or only its API server is lost and its nodes run on.
//! A service moves, one that must never run twice waits, what runs elsewhere notices nothing; and when
//! the cluster is back no copy is left over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyperion_cluster::nodes::Service;
use serde_json::{Value, json};

use super::stage::{PATIENCE, Plan, Stage, missing};
use super::{by_rules, exclusive, note_conditions, note_lines, note_served, say, wanted};
use crate::measure::Measured;
use crate::scene::set;
use crate::wait;

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// API server and nodes.
    Region,
    /// The API server alone.
    Api,
}

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is lost.
    pub lost: Lost,
    /// Real API servers.
    pub real: bool,
}

/// The service that moves, the one that must not run twice, the one that is elsewhere.
const WORKLOADS: [&str; 3] = ["web", "lone", "apart"];
/// Replicas of the first.
const REPLICAS: u32 = 3;
/// The cluster that is lost.
const WHERE: Service = Service::Eks;
/// How long the cluster stays away after everything has moved: what must not start has time to.
const STAYS_AWAY: Duration = Duration::from_secs(20);

/// Measures.
///
/// # Errors
/// The stage can't run here, or what had to move did not.
pub fn run(options: &Options) -> Result<Measured> {
    if let Some(reason) = missing(false, options.real) {
        bail!("can't measure here: {reason}");
    }
    let mut stage = Stage::start(&Plan {
        name: "dark".to_owned(),
        clouds: Service::ALL.into_iter().map(|s| (s, 2)).collect(),
        args: by_rules(),
        real: options.real,
        ..Plan::default()
    })?;
    let mut apart = wanted("apart", 1, "cost");
    set(
        &mut apart,
        "/spec/policy/constraints",
        json!({ "clouds": ["gcp"] }),
    );
    let mut web = wanted("web", REPLICAS, "cost");
    set(
        &mut web,
        "/spec/template/spec/containers/0/resources/requests/cpu",
        json!("1"),
    );
    // What is to be lost is all that there is at first.
    let others = stage.nodes_of(|cloud| cloud.service != WHERE)?;
    for node in &others {
        stage.drain(node, true)?;
    }
    stage.apply(&web)?;
    stage.apply(&exclusive("lone", "cost"))?;
    stage.at_rest(&WORKLOADS, PATIENCE)?;
    for node in &others {
        stage.drain(node, false)?;
    }
    stage.apply(&apart)?;
    stage.at_rest(&WORKLOADS, PATIENCE)?;

    let mut measured = Measured::default();
    let (asking, asking_apart) = (stage.ask("web"), stage.ask("apart"));
    let zero = Instant::now();
    let (cloud, runtime) = stage.cloud(WHERE)?;
    match options.lost {
        Lost::Region => cloud.go_dark(runtime),
        Lost::Api => cloud.lose_api(runtime),
    }
    stage
        .seen
        .set_dark(WHERE.name(), options.lost == Lost::Region);
    say(&format!(
        "{} is out of reach: {:?}",
        WHERE.name(),
        options.lost
    ));
    let (mut shown, mut decided) = (None, None);
    let moved = wait::until("a place elsewhere for all", PATIENCE, || {
        if shown.is_none() && reason(&stage).map_err(|e| format!("{e:#}"))? != "ClusterReady" {
            shown = Some(zero.elapsed());
        }
        let copies = stage.seen.copies("web");
        let elsewhere = || copies.iter().filter(|c| c.cluster != WHERE.name());
        if decided.is_none() && elsewhere().next().is_some() {
            decided = Some(zero.elapsed());
        }
        let serve = elsewhere().filter(|c| c.serves).count();
        if serve == REPLICAS as usize {
            Ok(())
        } else {
            Err(format!("{serve} of {REPLICAS}"))
        }
    });
    moved.with_context(|| stage.log())?;
    measured.figure("shown_s", shown.unwrap_or_default().as_secs_f64());
    measured.figure(
        "first_new_placement_s",
        decided.unwrap_or_default().as_secs_f64(),
    );
    measured.figure("all_serve_elsewhere_s", zero.elapsed().as_secs_f64());
    measured.condition("shown_as", reason(&stage)?);
    std::thread::sleep(STAYS_AWAY);
    let lone = stage.placement("lone-0")?;
    measured.condition(
        "exclusive_meanwhile",
        format!("{} {}", lone.phase, lone.message),
    );

    let back = Instant::now();
    let (cloud, runtime) = stage.cloud(WHERE)?;
    cloud.come_back(runtime)?;
    stage.seen.set_dark(WHERE.name(), false);
    measured.figure("api_server_back_s", back.elapsed().as_secs_f64());
    stage.at_rest(&WORKLOADS, PATIENCE)?;
    measured.figure("nothing_left_over_s", back.elapsed().as_secs_f64());
    let end = Instant::now();
    note_served(&mut measured, "", &asking.end()?);
    note_served(&mut measured, "elsewhere_", &asking_apart.end()?);
    let copies = |of: &str| stage.seen.copies(of).len();
    let expected = 2 * REPLICAS as usize + 2;
    let all: usize = WORKLOADS.iter().map(|w| copies(w)).sum();
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    for (name, number) in [
        ("moves", copies("web").saturating_sub(REPLICAS as usize)),
        ("restarts", all.saturating_sub(expected)),
        ("exclusive_most_at_once", stage.seen.most_at_once("lone")),
        ("exclusive_starts", copies("lone")),
    ] {
        measured.figure(name, number as f64);
    }
    measured.figure("spent_usd", stage.seen.spent(zero, end));
    measured.figure("seconds", end.duration_since(zero).as_secs_f64());
    let left = stage.remove_all(&WORKLOADS)?;
    note_lines(&mut measured, "leaked", &left);
    measured.condition("lost", format!("{:?}", options.lost));
    measured.condition("replace_after_s", 30);
    note_conditions(&mut measured, options.real);
    Ok(measured)
}

/// Reason of the cluster's condition Ready.
fn reason(stage: &Stage) -> Result<String> {
    let cluster = stage.kubectl().get(&["hyperioncluster", WHERE.name()])?;
    let conditions = cluster
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| c.get("type") == Some(&json!("Ready")));
    let reason = ready.and_then(|c| c.get("reason")).and_then(Value::as_str);
    Ok(reason.unwrap_or_default().to_owned())
}
