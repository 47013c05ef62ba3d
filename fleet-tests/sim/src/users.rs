//! What people ask for: workloads, and what they do with them while things go wrong.

use std::time::Duration;

use hyperion_api::workload::HyperionWorkloadSpec;
use hyperion_operator::index::Name;
use serde_json::json;

use crate::rng::Rng;
use crate::runtime::RUNS;

/// Namespace of everything that people apply.
pub(crate) const NAMESPACE: &str = "default";
/// Images of the run; all devices have the first ones.
pub(crate) const IMAGES: [&str; 3] = ["demo:1", "demo:2", "rare:1"];

/// Something that a person does.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Apply(Name, Box<HyperionWorkloadSpec>),
    Scale(Name, i32),
    Delete(Name),
    /// Another pod template.
    Roll(Name),
    /// At a node, without the control plane.
    ApplyAt(usize, Name, Box<HyperionWorkloadSpec>),
    DeleteAt(usize, Name),
}

/// A workload, drawn.
pub(crate) fn spec(site: Option<&str>, rng: &mut Rng) -> HyperionWorkloadSpec {
    let exclusive = rng.chance(0.25);
    let job = rng.chance(0.2);
    let mut container = json!({
        "name": "main",
        "image": IMAGES[if rng.chance(0.1) { 2 } else { rng.below(2) }],
        "env": [{ "name": "ROLL", "value": "0" }],
        "resources": { "requests": {
            "cpu": format!("{}m", 100 + 100 * rng.below(6)),
            "memory": format!("{}Mi", 64 << rng.below(4)),
        } },
    });
    if job && let Some(env) = container["env"].as_array_mut() {
        let runs = rng.millis(2000, 40_000).as_millis();
        env.push(json!({ "name": RUNS, "value": runs.to_string() }));
    }
    let restart = match (job, rng.below(2)) {
        (false, _) => "Always",
        (true, 0) => "Never",
        (true, _) => "OnFailure",
    };
    let mut template = json!({ "spec": {
        "containers": [container],
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": 1,
    } });
    if let Some(site) = site {
        template["spec"]["nodeSelector"] = json!({ "hyperion.io/site": site });
    }
    let mut disconnect = json!({});
    if rng.chance(0.4) {
        disconnect["replaceAfter"] = json!(format!("{}s", 4 + rng.below(10)));
    }
    if rng.chance(0.1) {
        disconnect["stopAfter"] = json!(format!("{}s", 8 + rng.below(20)));
    }
    if rng.chance(0.2) {
        disconnect["reconcile"] = json!("controlPlane");
    }
    let goal = ["cost", "latency", "default"][rng.below(3)];
    let spec = json!({
        "template": template,
        "type": if job { "job" } else { "service" },
        "replicas": 1 + rng.below(3),
        "policy": { "goal": goal, "exclusive": exclusive, "disconnect": disconnect },
    });
    // Made of the words of the schema.
    serde_json::from_value(spec).unwrap_or_else(|e| unreachable!("a drawn spec: {e}"))
}

/// Changes the pod template.
pub(crate) fn roll(spec: &mut HyperionWorkloadSpec, rng: &mut Rng) {
    let pod = spec.template.spec.as_mut();
    let container = pod.and_then(|p| p.containers.first_mut());
    if let Some(env) = container.and_then(|c| c.env.as_mut()?.first_mut()) {
        env.value = Some(rng.number().to_string());
    }
}

/// What people do between `from` and `to`, by time. All that is applied first comes before `from`.
pub(crate) fn schedule(
    sites: &[(String, Vec<usize>)],
    workloads: usize,
    from: Duration,
    to: Duration,
    rng: &mut Rng,
) -> Vec<(Duration, Action)> {
    let mut actions = Vec::new();
    let mut names = Vec::new();
    for n in 0..workloads {
        let name = Name::new(NAMESPACE, &format!("w{n}"));
        let site = (rng.chance(0.7)).then(|| sites[rng.below(sites.len())].0.as_str());
        let spec = Box::new(spec(site, rng));
        let at = rng.between(Duration::from_secs(2), from / 2);
        actions.push((at, Action::Apply(name.clone(), spec)));
        names.push(name);
    }
    for n in 0..3 + rng.below(4 + workloads / 2) {
        let at = rng.between(from, to);
        let name = rng
            .pick(&names)
            .cloned()
            .unwrap_or_else(|| Name::new(NAMESPACE, "w0"));
        let (site, nodes) = &sites[rng.below(sites.len())];
        let node = *rng.pick(nodes).unwrap_or(&0);
        let action = match rng.below(10) {
            0 => Action::Delete(name),
            1 | 2 => Action::Scale(name, rng.below(4) as i32),
            3..=5 => Action::Roll(name),
            6 => {
                let name = Name::new(NAMESPACE, &format!("x{n}"));
                Action::Apply(name, Box::new(spec(Some(site), rng)))
            }
            7 | 8 => {
                let name = Name::new(NAMESPACE, &format!("local{n}"));
                let mut spec = spec(None, rng);
                spec.replicas = 1;
                Action::ApplyAt(node, name, Box::new(spec))
            }
            _ => Action::DeleteAt(node, name),
        };
        actions.push((at, action));
    }
    actions.sort_by_key(|(at, _)| *at);
    actions
}
