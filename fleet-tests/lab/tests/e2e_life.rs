//! The life of workloads: from `kubectl apply` to a container, and to its end.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::time::Duration;

use hyperion_lab::beacon::Beacon;
use hyperion_lab::scene::{SOON, service, set, workload};
use hyperion_lab::{AgentSpec, Fleet, FleetOptions, http, needs, wait};
use serde_json::json;

fn fleet(name: &str, agents: usize) -> Option<Fleet> {
    if needs::skip(name) {
        return None;
    }
    let mut fleet = Fleet::start(&FleetOptions::new(name)).unwrap();
    for n in 1..=agents {
        fleet
            .add_only(&AgentSpec::edge(&format!("edge-{n}")))
            .unwrap();
    }
    for at in 0..agents {
        fleet.wait_agent(at).unwrap();
    }
    Some(fleet)
}

#[test]
fn a_service_is_applied_asked_scaled_and_deleted() {
    let Some(fleet) = fleet("a_service_is_applied_asked_scaled_and_deleted", 2) else {
        return;
    };
    let kubectl = fleet.kubectl();
    fleet.apply(&service("web", 1, None)).unwrap();
    kubectl
        .run(&[
            "wait",
            "--for=condition=Ready",
            "hyperionworkload/web",
            "--timeout=40s",
        ])
        .unwrap();

    // It answers at the address that its status says.
    let placement = fleet.wait_running("web-0", SOON).unwrap();
    let answer = http::get(&format!("{}:8080", placement.pod_ip), "/infer?seed=7").unwrap();
    assert!(answer.contains("probabilities"), "{answer}");

    // People can see what happens.
    let table = kubectl
        .run(&["get", "hyperionworkloads,hyperionnodes,hyperionplacements"])
        .unwrap();
    for word in ["GOAL", "Running", "edge", &placement.node] {
        assert!(table.contains(word), "{word} is not in\n{table}");
    }
    let described = kubectl
        .run(&["describe", "hyperionworkload", "web"])
        .unwrap();
    assert!(described.contains("Running"), "{described}");
    // An old kubectl explains from OpenAPI v2, which is not served.
    if !kubectl.old() {
        let explain = ["explain", "hyperionworkload.spec.policy"];
        let explained = kubectl.run(&explain).unwrap();
        assert!(explained.contains("goal"), "{explained}");
    }
    let why = kubectl.hyperion(&["explain", "web"]).unwrap();
    assert!(why.contains(&placement.node), "{why}");
    // The API server of a given cluster does not reach the control plane, which runs here.
    if !needs::skip_on_given("logs") {
        let logs = wait::until("log line", SOON, || {
            let logs = kubectl.hyperion(&["logs", "web", "--tail", "20"]);
            match logs {
                Ok(logs) if logs.contains("listening on") => Ok(logs),
                other => Err(format!("{other:?}")),
            }
        });
        logs.unwrap();
    }

    // Scaling leaves the first replica alone.
    let first = fleet.wait_containers(None, 1).unwrap();
    kubectl
        .run(&["scale", "hyperionworkload/web", "--replicas=3"])
        .unwrap();
    fleet.wait_all_running("web", 3).unwrap();
    let three = fleet.wait_containers(None, 3).unwrap();
    assert!(three.is_superset(&first));
    kubectl
        .run(&["scale", "hyperionworkload/web", "--replicas=1"])
        .unwrap();
    let left = fleet.wait_containers(None, 1).unwrap();
    assert_eq!(left, first);

    kubectl
        .run(&["delete", "hyperionworkload", "web", "--timeout=40s"])
        .unwrap();
    wait::until("no sandbox left", SOON, || {
        let all = fleet.containerd.containers(None).unwrap();
        if all.is_empty() {
            Ok(())
        } else {
            Err(format!("{all:?}"))
        }
    })
    .unwrap();
    assert!(fleet.placements("web").unwrap().is_empty());
    fleet.no_panics().unwrap();
}

#[test]
fn a_job_runs_once_and_a_failing_job_says_why() {
    let Some(fleet) = fleet("a_job_runs_once_and_a_failing_job_says_why", 1) else {
        return;
    };
    let beacon = Beacon::listen(&fleet.network.gateway()).unwrap();
    let job = workload("train", "job", &["job", "--steps", "50"], Some(&beacon));
    fleet.apply(&job).unwrap();
    fleet
        .wait_placement("train-0", SOON, |p| p.phase == "Succeeded")
        .unwrap();
    let workload_phase = || {
        let object = fleet.kubectl().get(&["hyperionworkload", "train"]).unwrap();
        object["status"]["phase"].as_str().unwrap_or("").to_owned()
    };
    wait::until("phase Succeeded", SOON, || match workload_phase() {
        phase if phase == "Succeeded" => Ok(()),
        phase => Err(phase),
    })
    .unwrap();

    let mut bad = workload("bad", "job", &["no-such-command"], Some(&beacon));
    set(
        &mut bad,
        "/spec/template/spec/restartPolicy",
        json!("Never"),
    );
    fleet.apply(&bad).unwrap();
    let failed = fleet
        .wait_placement("bad-0", SOON, |p| p.phase == "Failed")
        .unwrap();
    let why = format!("{} {}", failed.reason, failed.message);
    assert!(why.contains('2'), "the exit code is not in {failed:?}");
    // The first job was not run again meanwhile.
    assert_eq!(beacon.starts("train").len(), 1);
    fleet.no_panics().unwrap();
}

#[test]
fn a_changed_template_replaces_the_container() {
    let Some(fleet) = fleet("a_changed_template_replaces_the_container", 1) else {
        return;
    };
    let mut web = service("web", 1, None);
    fleet.apply(&web).unwrap();
    let before = fleet.wait_running("web-0", SOON).unwrap();
    let old = fleet.wait_containers(None, 1).unwrap();
    // A change of the policy alone restarts nothing.
    set(&mut web, "/spec/policy/goal", json!("cost"));
    fleet.apply(&web).unwrap();
    fleet.containers_stay(&old, Duration::from_secs(2)).unwrap();

    set(
        &mut web,
        "/spec/template/spec/containers/0/env",
        json!([{ "name": "HYPERION_SEED", "value": "2" }]),
    );
    fleet.apply(&web).unwrap();
    let after = fleet
        .wait_placement("web-0", SOON, |p| {
            p.generation > before.generation && p.phase == "Running" && p.ready
        })
        .unwrap();
    wait::until("the new container alone", SOON, || {
        let now = fleet.wait_containers(None, 1).map_err(|e| e.to_string())?;
        if now == old {
            Err("the old one runs".to_owned())
        } else {
            Ok(())
        }
    })
    .unwrap();
    let answer = http::get(&format!("{}:8080", after.pod_ip), "/infer?seed=7").unwrap();
    assert!(answer.contains("probabilities"), "{answer}");
}

#[test]
fn the_specifications_example_stays_pending_with_a_reason() {
    let Some(fleet) = fleet("the_specifications_example_stays_pending_with_a_reason", 2) else {
        return;
    };
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/resnet50.yaml");
    fleet.kubectl().run(&["apply", "-f", example]).unwrap();
    let name = "resnet50-inference-job-us-east";
    let status = wait::until("counts of rejected nodes", SOON, || {
        let object = fleet.kubectl().get(&["hyperionworkload", name]).unwrap();
        let rejected = object["status"]["rejected"].as_array().map_or(0, Vec::len);
        if rejected > 0 {
            Ok(object["status"].clone())
        } else {
            Err(object["status"].to_string())
        }
    })
    .unwrap();
    assert_eq!(status["phase"], "Pending");
    // Both nodes are ruled out, each by the constraint that it fails first.
    let counts: i64 = status["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["count"].as_i64().unwrap())
        .sum();
    assert!(counts >= 2, "{status}");
    assert!(fleet.placements(name).unwrap().is_empty());
    let why = fleet.kubectl().hyperion(&["explain", name]).unwrap();
    assert!(
        why.contains("clouds") || why.contains("geographies"),
        "{why}"
    );
    // A fitting workload is placed all the same.
    fleet.apply(&service("web", 1, None)).unwrap();
    fleet.wait_running("web-0", SOON).unwrap();
}

#[test]
fn a_drained_node_hands_its_replicas_over() {
    let Some(fleet) = fleet("a_drained_node_hands_its_replicas_over", 2) else {
        return;
    };
    fleet.apply(&service("web", 1, None)).unwrap();
    let before = fleet.wait_running("web-0", SOON).unwrap();
    fleet
        .kubectl()
        .hyperion(&["node", "drain", &before.node])
        .unwrap();
    let after = fleet
        .wait_placement("web-0", SOON, |p| {
            p.node != before.node && p.phase == "Running" && p.ready
        })
        .unwrap();
    fleet.wait_containers(Some(&before.node), 0).unwrap();
    fleet.wait_containers(Some(&after.node), 1).unwrap();
}

#[test]
fn a_failing_liveness_probe_restarts_the_container() {
    let Some(fleet) = fleet("a_failing_liveness_probe_restarts_the_container", 1) else {
        return;
    };
    let mut web = service("web", 1, None);
    set(
        &mut web,
        "/spec/template/spec/containers/0/livenessProbe",
        json!({
            "httpGet": { "path": "/no-such-path", "port": 8080 },
            "periodSeconds": 1, "failureThreshold": 2,
        }),
    );
    fleet.apply(&web).unwrap();
    fleet
        .wait_placement("web-0", SOON, |p| p.restarts >= 1)
        .unwrap();
}
