//! Clusters with nodes, for other tests to stand on: the real kube-scheduler binds, kwok runs, state
//! survives, and what is wrong is told.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::process::Command;
use std::time::Duration;

use hyperion_cluster::nodes::{Service, nodes};
use hyperion_cluster::{Choice, Program, chosen};
use hyperion_lab::workload_cluster::{Options, WorkloadCluster, missing};
use hyperion_lab::{needs, wait};
use serde_json::{Value, json};

/// Long enough for a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// A cluster with a few nodes of a service; none where the programs are not built.
fn cluster(
    test: &str,
    service: Service,
    count: usize,
    options: &Options,
) -> Option<(tempfile::TempDir, WorkloadCluster)> {
    let reason = match chosen() {
        Choice::Real => missing(),
        _ => Some("it starts real API servers: run `make test-cluster`".to_owned()),
    };
    if needs::say_if(reason.is_some(), test, &reason.unwrap_or_default()) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let cluster = WorkloadCluster::start(dir.path(), options).unwrap();
    let made = nodes(service, service.region(), count);
    cluster.add_nodes(&made).unwrap();
    Some((dir, cluster))
}

fn pod(name: &str, resources: Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "tolerations": [
                { "key": "nvidia.com/gpu", "operator": "Exists" },
            ],
            "containers": [{
                "name": "main", "image": "localhost/any",
                "resources": { "requests": resources, "limits": resources },
            }],
        },
    })
    .to_string()
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// Waits until a Pod runs; gives the Pod.
fn running(cluster: &WorkloadCluster, name: &str) -> Value {
    let ready = wait::until(name, LONG, || {
        let pod = cluster
            .kubectl()
            .get(&["pod", name])
            .map_err(|e| e.to_string())?;
        let ready = pod.pointer("/status/containerStatuses/0/ready") == Some(&json!(true));
        if text(&pod, "/status/phase") == "Running" && ready {
            Ok(pod)
        } else {
            Err(pod.to_string())
        }
    });
    ready.unwrap_or_else(|e| panic!("{e:#}\n{}", cluster.logs_tail()))
}

#[test]
fn the_scheduler_binds_kwok_runs_and_a_restart_keeps_it() {
    let with_scheduler = Options {
        scheduler: true,
        ..Options::default()
    };
    let Some((_dir, mut cluster)) = cluster("kube_scheduler", Service::Eks, 24, &with_scheduler)
    else {
        return;
    };
    cluster
        .kubectl()
        .apply(&pod("gpu", json!({ "nvidia.com/gpu": "1", "cpu": "1" })))
        .unwrap();
    let bound = running(&cluster, "gpu");
    let node = cluster
        .kubectl()
        .get(&["node", text(&bound, "/spec/nodeName")])
        .unwrap();
    assert!(
        node.pointer("/status/allocatable/nvidia.com~1gpu")
            .is_some(),
        "{node}"
    );

    // What fits nowhere waits, and says why.
    cluster
        .kubectl()
        .apply(&pod("huge", json!({ "cpu": "1000" })))
        .unwrap();
    wait::until("an event", LONG, || {
        let about = "--field-selector=involvedObject.name=huge";
        let events = cluster.kubectl().run(&["get", "events", about]).unwrap();
        if events.contains("FailedScheduling") && events.contains("Insufficient cpu") {
            Ok(())
        } else {
            Err(events)
        }
    })
    .unwrap();

    cluster.kill();
    cluster.start_all().unwrap();
    cluster.wait_nodes(LONG).unwrap();
    let after = cluster.kubectl().get(&["pod", "gpu"]).unwrap();
    for path in [
        "/metadata/uid",
        "/spec/nodeName",
        "/status/phase",
        "/status/startTime",
    ] {
        assert_eq!(text(&after, path), text(&bound, path), "{path}");
    }
    cluster
        .kubectl()
        .apply(&pod("later", json!({ "cpu": "1" })))
        .unwrap();
    running(&cluster, "later");
    cluster
        .kubectl()
        .run(&["delete", "pod", "gpu", "huge", "later", "--timeout=60s"])
        .unwrap();
}

#[test]
fn a_pod_that_names_its_node_runs_without_a_scheduler_and_a_silent_node_is_told() {
    let options = Options {
        lease: Duration::from_secs(8),
        ..Options::default()
    };
    let Some((_dir, mut cluster)) = cluster("silent_nodes", Service::Aks, 6, &options) else {
        return;
    };
    let list = cluster.kubectl().get(&["nodes"]).unwrap();
    let node = text(&list, "/items/0/metadata/name").to_owned();
    let mut pinned: Value = serde_json::from_str(&pod("pinned", json!({ "cpu": "100m" }))).unwrap();
    pinned["spec"]["nodeName"] = json!(node);
    cluster.kubectl().apply(&pinned.to_string()).unwrap();
    running(&cluster, "pinned");

    cluster.kwok.kill();
    wait::until("a node that is not ready", LONG, || {
        let node = cluster
            .kubectl()
            .get(&["node", &node])
            .map_err(|e| e.to_string())?;
        let all = node
            .pointer("/spec/taints")
            .map(Value::to_string)
            .unwrap_or_default();
        if all.contains("node.kubernetes.io/unreachable") {
            Ok(())
        } else {
            Err(node.to_string())
        }
    })
    .unwrap();
    cluster.start_all().unwrap();
    wait::until("a node that is back", LONG, || {
        let node = cluster
            .kubectl()
            .get(&["node", &node])
            .map_err(|e| e.to_string())?;
        let all = node
            .pointer("/spec/taints")
            .map(Value::to_string)
            .unwrap_or_default();
        if all.contains("unreachable") {
            Err(node.to_string())
        } else {
            Ok(())
        }
    })
    .unwrap();
    running(&cluster, "pinned");
}

#[test]
fn what_is_wrong_with_nodes_and_programs_is_named() {
    let Some((dir, cluster)) = cluster("errors", Service::Gke, 1, &Options::default()) else {
        return;
    };
    let bad = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "Not a Name" } });
    let error = format!("{:#}", cluster.add_nodes(&[bad]).unwrap_err());
    assert!(error.contains("Not a Name"), "{error}");
    let absurd = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "absurd" },
        "status": { "allocatable": { "cpu": "many" } },
    });
    let error = format!("{:#}", cluster.add_nodes(&[absurd]).unwrap_err());
    assert!(error.contains("node absurd"), "{error}");

    let none = dir.path().join("no-such-kubeconfig").display().to_string();
    let says = |program: Program, args: &[&str]| {
        let out = Command::new(program.kept().unwrap().unwrap())
            .args(args)
            .output()
            .unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    for (program, args, word) in [
        (
            Program::Kwok,
            vec!["--kubeconfig", none.as_str()],
            "no-such-kubeconfig",
        ),
        (Program::Kwok, vec![], "--kubeconfig is needed"),
        (
            Program::ApiServer,
            vec!["scheduler"],
            "--kubeconfig is needed",
        ),
        (
            Program::ApiServer,
            vec!["scheduler", "--kubeconfig", none.as_str()],
            "no-such-kubeconfig",
        ),
    ] {
        let said = says(program, &args);
        assert!(said.contains(word), "{program:?} {args:?}: {said}");
    }
}
