//! Pods as we make them, and as kubelets write their status.

use super::*;
use serde_json::{Value, json};

fn key(workload: &str, index: u32) -> ReplicaKey {
    ReplicaKey {
        namespace: "shop".to_owned(),
        workload: workload.to_owned(),
        uid: "w-1".to_owned(),
        index,
    }
}

fn workload(type_: &str, pod: Value) -> HyperionWorkload {
    let spec = json!({ "type": type_, "template": {
        "metadata": { "labels": { "app": "web" }, "annotations": { "note": "x" } }, "spec": pod } });
    HyperionWorkload::new("web", serde_json::from_value(spec).unwrap())
}

fn made(type_: &str, pod: Value) -> Pod {
    super::pod(
        &workload(type_, pod),
        &key("web", 2),
        7,
        "node-1",
        ("c", "owner"),
    )
}

fn containers() -> Value {
    json!([{ "name": "main", "image": "i", "resources": { "limits": { "nvidia.com/gpu": "1" } } }])
}

#[test]
fn a_pod_is_the_whole_template_pinned_to_its_node() {
    let p = made(
        "service",
        json!({ "containers": containers(), "priority": 5, "schedulerName": "mine",
            "serviceAccountName": "sa", "volumes": [{ "name": "v", "emptyDir": {} }],
            "initContainers": [{ "name": "init", "image": "j" }],
            "nodeSelector": { "hyperion.io/site": "x" }, "terminationGracePeriodSeconds": 5,
            "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists" }] }),
    );
    let spec = p.spec.as_ref().unwrap();
    assert_eq!(spec.node_name.as_deref(), Some("node-1"));
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.service_account_name.as_deref(), Some("sa"));
    assert_eq!(spec.termination_grace_period_seconds, Some(5));
    assert_eq!(spec.tolerations.as_ref().unwrap().len(), 1);
    assert!(spec.volumes.is_some() && spec.init_containers.is_some());
    assert!(spec.node_selector.is_none() && spec.priority.is_none());
    let limits = spec.containers[0]
        .resources
        .as_ref()
        .unwrap()
        .limits
        .clone()
        .unwrap();
    assert_eq!(limits["nvidia.com/gpu"].0, "1");
    assert_eq!(
        (p.labels()["app"].as_str(), p.annotations()["note"].as_str()),
        ("web", "x")
    );
    let job = made("job", json!({ "containers": containers() }));
    assert_eq!(
        job.spec.unwrap().restart_policy.as_deref(),
        Some("OnFailure")
    );
}

#[test]
fn our_pods_are_known_again_and_changed_ones_are_not() {
    let p = made("service", json!({ "containers": containers() }));
    let known = ours(&p, "owner").unwrap();
    assert_eq!((&known.key, known.generation), (&key("web", 2), 7));
    assert_eq!(
        (known.node.as_str(), known.images.as_slice()),
        ("node-1", &["i".to_owned()][..])
    );
    assert_eq!(ours(&p, "another control plane"), None);
    let changes: [fn(&mut Pod); 5] = [
        |p| drop(p.labels_mut().remove(LABEL_OWNER)),
        |p| drop(p.labels_mut().insert(LABEL_GENERATION.into(), "8".into())),
        |p| drop(p.labels_mut().insert(LABEL_REPLICA.into(), "x".into())),
        |p| drop(p.annotations_mut().remove(WORKLOAD_UID)),
        |p| p.spec.as_mut().unwrap().node_name = None,
    ];
    for change in changes {
        let mut changed = p.clone();
        change(&mut changed);
        assert_eq!(ours(&changed, "owner"), None);
    }
}

#[test]
fn names_are_told_apart_and_fit() {
    let base = pod_name(&key("web", 0), 1);
    assert!(base.starts_with("web-0-1-"), "{base}");
    let mut namesake = key("web", 0);
    namesake.uid = "w-2".to_owned();
    assert_ne!(pod_name(&namesake, 1), base);
    assert_ne!(pod_name(&key("web", 1), 1), base);
    assert_ne!(pod_name(&key("web", 0), 2), base);
    let long = pod_name(&key(&"a".repeat(253), 9999), u64::MAX);
    assert!(long.len() <= 253, "{}", long.len());
}

fn says(status: Value) -> Report {
    let mut p = made("service", json!({ "containers": containers() }));
    p.status = serde_json::from_value(status).unwrap();
    ours(&p, "owner").unwrap().report
}

fn container(state: Value) -> Value {
    json!({ "name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 3, "state": state })
}

#[test]
fn a_pods_status_is_a_report() {
    use ReplicaPhase::{Backoff, Failed, Running, Starting, Succeeded};
    let waiting = |phase: &str, reason: &str| {
        let state = json!({ "waiting": { "reason": reason, "message": "m" } });
        json!({ "phase": phase, "containerStatuses": [container(state)] })
    };
    let ended = |code: i32, reason: &str| {
        container(json!({ "terminated": { "exitCode": code, "reason": reason } }))
    };
    let cases = [
        (json!({ "phase": "Pending" }), Starting, "Pending"),
        (json!({}), Starting, "Pending"),
        (
            waiting("Pending", "ContainerCreating"),
            Starting,
            "ContainerCreating",
        ),
        (waiting("Pending", "ErrImagePull"), Backoff, "ErrImagePull"),
        (
            waiting("Pending", "ImagePullBackOff"),
            Backoff,
            "ImagePullBackOff",
        ),
        (
            waiting("Running", "CrashLoopBackOff"),
            Backoff,
            "CrashLoopBackOff",
        ),
        (
            waiting("Pending", "CreateContainerConfigError"),
            Backoff,
            "CreateContainerConfigError",
        ),
        (
            json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "m" }),
            Failed,
            "OutOfcpu",
        ),
        (
            json!({ "phase": "Failed", "reason": "Evicted", "message": "m" }),
            Failed,
            "Evicted",
        ),
        (
            json!({ "phase": "Failed", "containerStatuses": [ended(137, "OOMKilled")] }),
            Failed,
            "OOMKilled",
        ),
        (
            json!({ "phase": "Failed", "containerStatuses": [ended(3, "Error")] }),
            Failed,
            "Error",
        ),
        (
            json!({ "phase": "Succeeded", "containerStatuses": [ended(0, "Completed")] }),
            Succeeded,
            "Completed",
        ),
        (
            json!({ "phase": "Running", "containerStatuses": [ended(1, "Error")] }),
            Running,
            "Error",
        ),
    ];
    for (status, phase, reason) in cases {
        let report = says(status.clone());
        assert_eq!(
            (report.phase, report.reason.as_str()),
            (phase, reason),
            "{status}"
        );
        assert!(!report.ready);
    }
    let exit = says(json!({ "phase": "Failed", "containerStatuses": [ended(3, "Error")] }));
    assert_eq!(exit.message, "container main ended with exit code 3");
}

#[test]
fn readiness_restarts_and_address_are_told() {
    let mut status = json!({ "phase": "Running", "podIP": "10.0.0.7",
        "conditions": [{ "type": "Ready", "status": "True" }],
        "containerStatuses": [container(json!({ "running": {} }))] });
    let report = says(status.clone());
    assert!(report.ready);
    assert_eq!((report.restarts, report.pod_ip.as_str()), (3, "10.0.0.7"));
    status["conditions"][0]["status"] = json!("False");
    assert!(!says(status).ready);
}

#[test]
fn why_it_crashed_is_told_while_it_waits() {
    let mut crashing = container(json!({ "waiting": { "reason": "CrashLoopBackOff" } }));
    crashing["lastState"] =
        json!({ "terminated": { "exitCode": 2, "reason": "Error", "message": "no model" } });
    let report = says(json!({ "phase": "Running", "containerStatuses": [crashing] }));
    assert_eq!(
        report.message,
        "Error: container main ended with exit code 2: no model"
    );
}

#[test]
fn a_pod_that_is_being_deleted_is_stopping() {
    let mut p = made("service", json!({ "containers": containers() }));
    p.metadata.deletion_timestamp = serde_json::from_value(json!("2026-03-01T00:00:00Z")).unwrap();
    let known = ours(&p, "owner").unwrap();
    assert!(known.ending);
    assert_eq!(known.report.phase, ReplicaPhase::Stopping);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let text = format!("{}ä", "x".repeat(MESSAGE - 1));
    let report = says(json!({ "phase": "Failed", "reason": "Evicted", "message": text }));
    assert_eq!(report.message.len(), MESSAGE - 1);
}
