use serde_json::json;

use super::facts::quantity;
use super::*;

/// One workload on one node of one cluster, and all is well.
fn world() -> World {
    let resources =
        json!({ "requests": { "cpu": "2", "memory": "4Gi" }, "limits": { "nvidia.com/gpu": "1" } });
    let containers = json!([{ "name": "main", "resources": resources }]);
    World {
        workloads: vec![json!({
            "metadata": { "namespace": "default", "name": "w" },
            "spec": {
                "replicas": 1,
                "template": { "spec": {
                    "containers": containers,
                    "nodeSelector": { "kubernetes.io/arch": "amd64" },
                    "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists" }],
                }},
                "policy": {
                    "maxHourlyCost": 0.6,
                    "constraints": { "geographies": ["US"], "clouds": ["aws"], "tiers": ["cloud"] },
                },
            },
        })],
        placements: vec![json!({
            "metadata": { "namespace": "default", "name": "w-0" },
            "spec": { "workload": "w", "replica": 0, "node": "eks.n1", "hourlyCost": 0.526 },
        })],
        fleet: vec![json!({ "metadata": { "name": "eks.n1" }, "spec": { "cluster": "eks" } })],
        clusters: vec![(
            "eks".to_owned(),
            vec![json!({
                "metadata": { "name": "n1", "labels": {
                    "kubernetes.io/arch": "amd64",
                    "topology.kubernetes.io/region": "us-east-1",
                    "node.kubernetes.io/instance-type": "g4dn.xlarge",
                    "eks.amazonaws.com/capacityType": "ON_DEMAND",
                }},
                "spec": {
                    "providerID": "aws:///us-east-1a/i-1",
                    "taints": [{ "key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule" }],
                },
                "status": { "allocatable": {
                    "cpu": "3920m", "memory": "14Gi", "nvidia.com/gpu": "1", "pods": "29",
                }},
            })],
            vec![json!({
                "metadata": {
                    "namespace": "default", "name": "w-0-1-abcde",
                    "labels": { "hyperion.io/replica": "0" },
                    "annotations": { "hyperion.io/workload": "w" },
                },
                "spec": { "nodeName": "n1", "containers": containers },
                "status": { "phase": "Running" },
            })],
        )],
    }
}

#[test]
fn nothing_is_wrong_with_what_is_right() {
    assert_eq!(violations(&world()), Vec::<String>::new());
}

/// Each way to break one rule is found, and told by its word.
#[test]
fn whatever_is_wrong_is_found() {
    type Break = fn(&mut World);
    let cases: [(&str, Break); 19] = [
        ("geographies", |w| {
            w.workloads[0]["spec"]["policy"]["constraints"]["geographies"] = json!(["EU"]);
        }),
        ("clouds", |w| {
            w.workloads[0]["spec"]["policy"]["constraints"]["clouds"] = json!(["gcp", "azure"]);
        }),
        ("tiers", |w| {
            w.workloads[0]["spec"]["policy"]["constraints"]["tiers"] = json!(["edge"]);
        }),
        ("nodeSelector", |w| {
            w.workloads[0]["spec"]["template"]["spec"]["nodeSelector"] = json!({ "gpu": "yes" });
        }),
        ("taint", |w| {
            w.workloads[0]["spec"]["template"]["spec"]["tolerations"] = json!([]);
        }),
        ("taint", |w| {
            let other = json!([{ "key": "nvidia.com/gpu", "value": "false" }]);
            w.workloads[0]["spec"]["template"]["spec"]["tolerations"] = other;
        }),
        ("taint", |w| {
            let other = json!([{ "operator": "Exists", "effect": "NoExecute" }]);
            w.workloads[0]["spec"]["template"]["spec"]["tolerations"] = other;
        }),
        ("maxHourlyCost", |w| {
            w.workloads[0]["spec"]["policy"]["maxHourlyCost"] = json!(0.5);
        }),
        ("hourlyCost says", |w| {
            w.placements[0]["spec"]["hourlyCost"] = json!(0.1);
        }),
        ("price of the machine is not known", |w| {
            w.clusters[0].1[0]["metadata"]["labels"]["node.kubernetes.io/instance-type"] =
                json!("none");
        }),
        ("does not exist", |w| {
            w.placements[0]["spec"]["node"] = json!("eks.n2");
        }),
        ("the placement says", |w| {
            let mut other = w.clusters[0].1[0].clone();
            other["metadata"]["name"] = json!("n2");
            w.clusters[0].1.push(other);
            w.placements[0]["spec"]["node"] = json!("eks.n2");
        }),
        ("placed twice", |w| {
            w.placements.push(w.placements[0].clone());
        }),
        ("0 of 1 replicas", |w| w.placements.clear()),
        ("it has leaked", |w| w.placements.clear()),
        ("a placement of no workload", |w| w.workloads.clear()),
        ("no Pod in eks", |w| w.clusters[0].2.clear()),
        ("a second one", |w| {
            let pod = w.clusters[0].2[0].clone();
            w.clusters[0].2.push(pod);
        }),
        ("it is Pending", |w| {
            w.clusters[0].2[0]["status"]["phase"] = json!("Pending");
        }),
    ];
    for (word, break_it) in cases {
        let mut world = world();
        break_it(&mut world);
        let wrong = violations(&world);
        assert!(
            wrong.iter().any(|line| line.contains(word)),
            "{word}: {wrong:?}"
        );
    }
}

#[test]
fn more_than_a_node_has_is_found_for_every_resource() {
    for (resource, value) in [
        ("cpu", "1900m"),
        ("memory", "3Gi"),
        ("nvidia.com/gpu", "0"),
        ("pods", "0"),
    ] {
        let mut world = world();
        world.clusters[0].1[0]["status"]["allocatable"][resource] = json!(value);
        let wrong = violations(&world);
        let both = ["its placements", "its Pods"];
        let found = |by: &str| {
            wrong
                .iter()
                .any(|line| line.contains(by) && line.contains(&format!(" {resource} of ")))
        };
        assert!(both.iter().all(|by| found(by)), "{resource}: {wrong:?}");
    }
    // Pods of others count as well.
    let mut world = world();
    let mut other = world.clusters[0].2[0].clone();
    other["metadata"]["annotations"] = json!({});
    world.clusters[0].2.push(other);
    assert!(
        violations(&world)
            .iter()
            .any(|line| line.contains("its Pods ask 4 cpu of 3.92"))
    );
}

#[test]
fn quantities_are_kubernetes_own() {
    for (written, is) in [
        ("2", 2.0),
        ("500m", 0.5),
        ("1.5", 1.5),
        ("4Gi", 4_294_967_296.0),
        ("64Ki", 65_536.0),
        ("1k", 1000.0),
        ("2M", 2e6),
        ("1e3", 1000.0),
    ] {
        assert!((quantity(&json!(written)) - is).abs() < 1e-9, "{written}");
    }
    assert!((quantity(&json!(3)) - 3.0).abs() < 1e-9);
    assert!(quantity(&Value::Null).abs() < 1e-9);
    assert!(quantity(&json!("many")).is_nan());
}
