//! Karpenter as the real controller of NodeClaims: it launches a node that joins and takes Pods, takes
//! it back, and says when there is no capacity. Here claims are made by hand; in `operator` the control
//! plane makes them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

#[path = "karpenter/operator.rs"]
mod operator;

use std::time::Duration;

use hyperion_cluster::nodes::Service;
use hyperion_cluster::{Choice, chosen};
use hyperion_lab::process::Process;
use hyperion_lab::workload_cluster::{Options, WorkloadCluster};
use hyperion_lab::{karpenter, needs, wait};
use serde_json::{Value, json};

/// Long enough for a busy machine.
const LONG: Duration = Duration::from_secs(180);

fn start(test: &str) -> Option<(tempfile::TempDir, WorkloadCluster, Process)> {
    let reason = match chosen() {
        Choice::Real => karpenter::missing(),
        _ => Some("it starts real API servers: run `make test-cluster`".to_owned()),
    };
    if needs::say_if(reason.is_some(), test, &reason.unwrap_or_default()) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let cluster = WorkloadCluster::start(dir.path(), &Options::default()).unwrap();
    let karpenter =
        karpenter::start(&cluster, Service::Eks, &dir.path().join("karpenter")).unwrap();
    Some((dir, cluster, karpenter))
}

fn claim(name: &str, class: &str, instance_type: &str) -> String {
    let only = |key: &str, value: &str| json!({ "key": key, "operator": "In", "values": [value] });
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": { "name": name },
        "spec": {
            "nodeClassRef": { "group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": class },
            "requirements": [
                only("node.kubernetes.io/instance-type", instance_type),
                only("karpenter.sh/capacity-type", "spot"),
                only("topology.kubernetes.io/zone", "us-east-1b"),
            ],
            "resources": { "requests": { "cpu": "1", "nvidia.com/gpu": "1" } },
            "expireAfter": "Never",
        },
    })
    .to_string()
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// Waits until a claim's node has joined; gives the claim.
fn launched(cluster: &WorkloadCluster, karpenter: &Process, name: &str) -> Value {
    let ready = wait::until(name, LONG, || {
        let claim = cluster
            .kubectl()
            .get(&["nodeclaim", name])
            .map_err(|e| e.to_string())?;
        let conditions = claim
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let mut all = conditions.into_iter().flatten();
        if all.any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True") {
            Ok(claim)
        } else {
            Err(claim.to_string())
        }
    });
    ready.unwrap_or_else(|e| panic!("{e:#}\n{}", karpenter.log_tail(30)))
}

#[test]
fn a_claim_becomes_a_node_that_takes_pods_and_goes_when_it_is_given_back() {
    let Some((_dir, cluster, karpenter)) = start("node_claim") else {
        return;
    };
    let kubectl = cluster.kubectl();
    kubectl
        .apply(&claim("first", karpenter::NODE_CLASS, "g4dn.2xlarge"))
        .unwrap();
    let claim = launched(&cluster, &karpenter, "first");
    let name = text(&claim, "/status/nodeName").to_owned();
    let node = kubectl.get(&["node", &name]).unwrap();
    assert_eq!(
        text(&node, "/spec/providerID"),
        text(&claim, "/status/providerID")
    );
    for (label, value) in [
        ("node.kubernetes.io~1instance-type", "g4dn.2xlarge"),
        ("karpenter.sh~1capacity-type", "spot"),
        ("topology.kubernetes.io~1zone", "us-east-1b"),
        ("kubernetes.io~1arch", "amd64"),
    ] {
        assert_eq!(
            text(&node, &format!("/metadata/labels/{label}")),
            value,
            "{node}"
        );
    }
    assert_eq!(text(&node, "/status/allocatable/nvidia.com~1gpu"), "1");

    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "pinned" },
        "spec": {
            "nodeName": name,
            "containers": [{
                "name": "main", "image": "localhost/any",
                "resources": { "limits": { "nvidia.com/gpu": "1" } },
            }],
        },
    });
    kubectl.apply(&pod.to_string()).unwrap();
    kubectl
        .run(&[
            "wait",
            "pod/pinned",
            "--for=condition=Ready",
            "--timeout=120s",
        ])
        .unwrap();

    // Given back: what runs there is drained, and the node goes with its claim.
    kubectl
        .run(&["delete", "nodeclaim", "first", "--timeout=180s"])
        .unwrap();
    for gone in [["node", name.as_str()], ["pod", "pinned"]] {
        let out = kubectl.output(&["get", gone[0], gone[1]], None).unwrap();
        assert!(
            out.stderr.contains("NotFound"),
            "{gone:?}: {}{}",
            out.stdout,
            out.stderr
        );
    }
}

#[test]
fn without_capacity_the_claim_is_deleted_with_an_event_and_the_next_one_is_launched() {
    let Some((_dir, cluster, karpenter)) = start("insufficient_capacity") else {
        return;
    };
    let kubectl = cluster.kubectl();
    // To the kwok provider, a class that is gone is capacity that is not there.
    kubectl
        .apply(&claim("none-left", "sold-out", "g4dn.2xlarge"))
        .unwrap();
    wait::until("no claim", LONG, || {
        let out = kubectl.output(&["get", "nodeclaim", "none-left"], None);
        let out = out.map_err(|e| e.to_string())?;
        if out.stderr.contains("NotFound") {
            Ok(())
        } else {
            Err(out.stdout)
        }
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", karpenter.log_tail(30)));
    let events = kubectl.run(&["get", "events", "-A"]).unwrap();
    assert!(events.contains("InsufficientCapacityError"), "{events}");
    let nodes = kubectl.get(&["nodes"]).unwrap();
    assert_eq!(nodes["items"], json!([]));

    kubectl
        .apply(&claim("next", karpenter::NODE_CLASS, "g6.xlarge"))
        .unwrap();
    let claim = launched(&cluster, &karpenter, "next");
    assert!(!text(&claim, "/status/nodeName").is_empty());
}
