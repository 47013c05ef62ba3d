//! The control plane asks Karpenter for machines: for a replica that fits nowhere, and gives them back.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use hyperion_lab::control::free_port;
use hyperion_lab::process::Process;
use hyperion_lab::workload_cluster::WorkloadCluster;
use hyperion_lab::{http, karpenter, needs, wait};
use serde_json::{Value, json};

use super::{LONG, start, text};

/// A type that Karpenter's provider does not have in these tests, and a price that is the best.
const SOLD_OUT: &str = "g5.2xlarge";

/// A control plane on the cluster's own API server.
fn control(cluster: &WorkloadCluster, dir: &Path) -> Process {
    std::fs::create_dir_all(dir).unwrap();
    let prices = dir.join("prices.csv");
    let line = format!(
        "provider,region,zone,instance_type,capacity_type,price_per_hour\naws,us-east-1,us-east-1a,{SOLD_OUT},spot,0.1\n"
    );
    std::fs::write(&prices, line).unwrap();
    let http = free_port().unwrap();
    let link = UdpSocket::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let args = [
        format!("--kubeconfig={}", cluster.kubeconfig().display()),
        format!("--data-dir={}", dir.join("control").display()),
        format!("--link-addr={link}"),
        format!("--http-addr={http}"),
        format!("--price-feed=file:{}", prices.display()),
        "--policy=rules".to_owned(),
    ];
    let program = needs::programs().join("hyperion-control");
    let mut process = Process::new("control", &program, args.to_vec(), dir);
    process.env("RUST_LOG", "info,hyperion_operator=debug,kube_client=warn");
    process.start().unwrap();
    wait::until("the control plane", LONG, || {
        http::get(&http, "/readyz")
            .map(drop)
            .map_err(|e| e.to_string())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", process.log_tail(30)));
    process
}

fn hyperion_cluster(capacity: Value) -> String {
    let mut all = json!({
        "nodeClassRef": {
            "group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": karpenter::NODE_CLASS,
        },
        "zones": ["us-east-1a", "us-east-1b"],
        "emptyAfter": "20s", "launchTimeout": "3m",
    });
    let more = capacity.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionCluster",
        "metadata": { "name": "east" },
        "spec": { "provider": "aws", "region": "us-east-1", "capacity": all },
    })
    .to_string()
}

fn workload(name: &str, replicas: u32, spot: bool) -> String {
    json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "policy": { "goal": "cost", "constraints": { "preferSpot": spot } },
            "template": { "spec": { "containers": [{
                "name": "main", "image": "localhost/any",
                "resources": { "limits": { "cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1" } },
            }] } },
        },
    })
    .to_string()
}

fn until<T>(
    what: &str,
    control: &Process,
    karpenter: &Process,
    look: impl FnMut() -> Result<T, String>,
) -> T {
    wait::until(what, LONG, look).unwrap_or_else(|e| {
        panic!(
            "{e:#}\n--- control\n{}\n--- karpenter\n{}",
            control.log_tail(60),
            karpenter.log_tail(30)
        )
    })
}

/// Waits until a workload runs on machines of its own. Meanwhile plays kubelet: kwok's provider says
/// that a node has what was asked for, and more to give away.
fn runs(cluster: &WorkloadCluster, control: &Process, karpenter: &Process, name: &str, count: u32) {
    until(name, control, karpenter, || {
        for node in list(cluster, "nodes")? {
            let (has, gives) = (&node["status"]["capacity"], &node["status"]["allocatable"]);
            if gives.is_object() && has != gives {
                let patch = json!({ "status": { "capacity": gives } }).to_string();
                let node = text(&node, "/metadata/name");
                let patch = [
                    "patch",
                    "node",
                    node,
                    "--subresource=status",
                    "--type=merge",
                    "-p",
                    &patch,
                ];
                cluster.kubectl().run(&patch).map_err(|e| e.to_string())?;
            }
        }
        let object = cluster.kubectl().get(&["hyperionworkload", name]);
        let object = object.map_err(|e| e.to_string())?;
        if text(&object, "/status/ready") == format!("{count}/{count}") {
            Ok(())
        } else {
            Err(condition(&object, "Placed"))
        }
    });
}

fn list(cluster: &WorkloadCluster, kind: &str) -> Result<Vec<Value>, String> {
    let list = cluster.kubectl().get(&[kind]).map_err(|e| e.to_string())?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn condition(object: &Value, type_: &str) -> String {
    let all = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let mut all = all.into_iter().flatten();
    let found = all.find(|c| text(c, "/type") == type_);
    found.map_or_else(String::new, |c| {
        let words = ["/status", "/reason", "/message"].map(|path| text(c, path));
        words.join(" ")
    })
}

#[test]
fn a_replica_that_fits_nowhere_gets_a_machine_by_the_next_offer_which_is_given_back() {
    let name = "operator_claims";
    let Some((dir, cluster, karpenter)) = start(name) else {
        return;
    };
    if needs::skip_without(name, &["hyperion-control"]) {
        return;
    }
    let mut control = control(&cluster, &dir.path().join("control"));
    let kubectl = cluster.kubectl();

    // A class that is not there is said, and nothing is asked for.
    let class = json!({ "nodeClassRef": {
        "group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "nobody",
    } });
    kubectl.apply(&hyperion_cluster(class)).unwrap();
    until("a condition", &control, &karpenter, || {
        let object = kubectl.get(&["hyperioncluster", "east"]);
        let words = condition(&object.map_err(|e| e.to_string())?, "Capacity");
        let said = words.contains("NodeClassMissing") && words.contains("KWOKNodeClass nobody");
        said.then_some(()).ok_or(words)
    });
    kubectl.apply(&workload("vision", 2, true)).unwrap();
    until("why nothing is launched", &control, &karpenter, || {
        let object = kubectl.get(&["hyperionworkload", "vision"]);
        let words = condition(&object.map_err(|e| e.to_string())?, "Placed");
        let said = words.contains("Unplaceable") && words.contains("KWOKNodeClass nobody");
        said.then_some(()).ok_or(words)
    });
    assert_eq!(list(&cluster, "nodeclaims").unwrap(), Vec::<Value>::new());

    // The best offer is not to be had; the next one is.
    kubectl.apply(&hyperion_cluster(json!({}))).unwrap();
    runs(&cluster, &control, &karpenter, "vision", 2);
    let claims = list(&cluster, "nodeclaims").unwrap();
    let nodes = list(&cluster, "nodes").unwrap();
    assert_eq!((claims.len(), nodes.len()), (2, 2), "{claims:?}");
    for claim in &claims {
        let offer = text(claim, "/metadata/annotations/hyperion.io~1offer");
        assert!(
            offer.ends_with("/spot") && !offer.contains(SOLD_OUT),
            "{offer}"
        );
        let node = text(claim, "/status/nodeName");
        assert!(nodes.iter().any(|n| text(n, "/metadata/name") == node));
    }
    let events = kubectl.run(&["get", "events", "-A"]).unwrap();
    for word in ["Launching", "LaunchFailed", SOLD_OUT] {
        assert!(events.contains(word), "no {word}: {events}");
    }

    // Without capacity Karpenter deletes the claim. To the kwok provider, a class that is gone is
    // capacity that is not there.
    let class = json!({
        "apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass",
        "metadata": { "name": "fickle" },
    });
    kubectl.apply(&class.to_string()).unwrap();
    let fickle = json!({ "nodeClassRef": {
        "group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "fickle",
    } });
    kubectl.apply(&hyperion_cluster(fickle)).unwrap();
    until("a class that is there", &control, &karpenter, || {
        let object = kubectl.get(&["hyperioncluster", "east"]);
        let object = object.map_err(|e| e.to_string())?;
        let seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        let words = condition(&object, "Capacity");
        (seen && words.contains("CapacityReady"))
            .then_some(())
            .ok_or(words)
    });
    kubectl.run(&["delete", "kwoknodeclass", "fickle"]).unwrap();
    kubectl.apply(&workload("late", 1, false)).unwrap();
    until("a claim that is gone", &control, &karpenter, || {
        let about = "--field-selector=involvedObject.name=late";
        let events = kubectl.run(&["get", "events", "-A", about]);
        let events = events.map_err(|e| e.to_string())?;
        let gone = events.contains("LaunchFailed") && events.contains("it was deleted");
        gone.then_some(()).ok_or(events)
    });
    until("a class that is missed", &control, &karpenter, || {
        let object = kubectl.get(&["hyperioncluster", "east"]);
        let words = condition(&object.map_err(|e| e.to_string())?, "Capacity");
        words
            .contains("NodeClassMissing")
            .then_some(())
            .ok_or(words)
    });
    kubectl.apply(&class.to_string()).unwrap();
    // For the first workload nothing is launched for a while.
    kubectl.apply(&workload("later", 1, false)).unwrap();
    runs(&cluster, &control, &karpenter, "later", 1);
    kubectl
        .run(&[
            "delete",
            "hyperionworkload",
            "late",
            "later",
            "--timeout=60s",
        ])
        .unwrap();

    // A restart launches nothing twice, and restarts nothing.
    let before = kubectl.get(&["pods"]).unwrap();
    control.terminate(Duration::from_secs(20));
    control.start().unwrap();
    kubectl.apply(&workload("vision", 1, true)).unwrap();
    until("one machine less", &control, &karpenter, || {
        let claims = list(&cluster, "nodeclaims")?;
        if claims.len() == 1 {
            Ok(())
        } else {
            Err(format!("{} claims", claims.len()))
        }
    });
    let after = kubectl.get(&["pods"]).unwrap();
    let kept = text(&after, "/items/0/metadata/uid");
    assert!(before.to_string().contains(kept), "{after}");

    // Nothing is left when the cluster is.
    kubectl
        .run(&["delete", "hyperionworkload", "vision", "--timeout=60s"])
        .unwrap();
    kubectl
        .run(&["delete", "hyperioncluster", "east", "--timeout=180s"])
        .unwrap_or_else(|e| panic!("{e:#}\n{}", control.log_tail(60)));
    for kind in ["nodeclaims", "nodes", "hyperionnodes"] {
        until(kind, &control, &karpenter, || {
            let left = list(&cluster, kind)?;
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        });
    }
}
