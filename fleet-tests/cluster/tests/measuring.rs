//! An agent on a cluster's node: its cloud's notice empties that node before the deadline, and there
//! is no second machine. A real API server with nodes that kwok runs, the real programs, and a
//! stand-in for the metadata service.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use hyperion_cluster::nodes::{Service, nodes};
use hyperion_cluster::{Choice, chosen};
use hyperion_lab::control::{Control, OnApi, Token};
use hyperion_lab::metadata::{Cloud, Metadata};
use hyperion_lab::process::Process;
use hyperion_lab::workload_cluster::{Options, WorkloadCluster, missing};
use hyperion_lab::{Kubectl, needs, wait};
use serde_json::{Value, json};

/// Long enough for a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

struct Scene {
    cluster: WorkloadCluster,
    control: Control,
    token: Token,
    dir: tempfile::TempDir,
}

impl Scene {
    /// A cluster with some nodes, which is management and workload cluster at once.
    fn start() -> Option<Self> {
        let test = "measuring";
        let reason = match chosen() {
            Choice::Real => missing(),
            _ => Some("it starts real API servers: run `make test-cluster`".to_owned()),
        };
        if needs::say_if(reason.is_some(), test, &reason.unwrap_or_default())
            || needs::skip_without(test, &["hyperion-control", "hyperion-agent", "hyperion"])
        {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let cluster = WorkloadCluster::start(dir.path(), &Options::default()).unwrap();
        let made = nodes(Service::Eks, Service::Eks.region(), 6);
        cluster.add_nodes(&made).unwrap();
        let admin = cluster.kubeconfig().to_owned();
        let on = OnApi {
            operator: admin.clone(),
            admin,
        };
        let args = ["--policy=rules", "--reconsider=0"].map(str::to_owned);
        let mut control = Control::prepare_on(dir.path(), "127.0.0.1", &on, &args).unwrap();
        control.start().unwrap();
        let east = json!({
            "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionCluster",
            "metadata": { "name": "east" },
            "spec": { "provider": "aws", "region": Service::Eks.region() },
        });
        control.kubectl().apply(&east.to_string()).unwrap();
        let token = control.token("lab", 1).unwrap();
        for (kind, name, namespace) in [
            ("Namespace", "hyperion-agent", None),
            ("ServiceAccount", "hyperion-agent", Some("hyperion-agent")),
            ("ServiceAccount", "hyperion-agent", Some("default")),
        ] {
            let object = json!({ "apiVersion": "v1", "kind": kind,
                "metadata": { "name": name, "namespace": namespace } });
            control.kubectl().apply(&object.to_string()).unwrap();
        }
        Some(Self {
            cluster,
            control,
            token,
            dir,
        })
    }

    fn kubectl(&self) -> &Kubectl {
        self.control.kubectl()
    }

    fn until<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
        wait::until(what, LONG, look).unwrap_or_else(|e| {
            let log = self.control.log_tail(40);
            panic!("{e:#}\n{log}\n{}", self.cluster.logs_tail())
        })
    }

    fn get(&self, args: &[&str]) -> Result<Value, String> {
        self.kubectl().get(args).map_err(|e| e.to_string())
    }

    /// The Pod of the agent's DaemonSet on a node, and the token that a kubelet would give to it.
    fn pod_token(&self, namespace: &str, node: &str, file: &Path) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "agent", "namespace": namespace },
            "spec": {
                "nodeName": node, "serviceAccountName": "hyperion-agent",
                "automountServiceAccountToken": false,
                "containers": [{ "name": "agent", "image": "localhost/hyperion-agent" }],
            },
        });
        self.kubectl().apply(&pod.to_string()).unwrap();
        let pod = self.get(&["-n", namespace, "pod", "agent"]).unwrap();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": ["hyperion"], "expirationSeconds": 3600,
                "boundObjectRef": { "apiVersion": "v1", "kind": "Pod",
                    "name": "agent", "uid": text(&pod, "/metadata/uid") },
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/hyperion-agent/token");
        let args = ["create", "--raw", &path, "-f", "-"];
        let made = self.kubectl().output(&args, Some(&request.to_string()));
        let made = made.unwrap();
        assert!(made.success, "{}", made.stderr);
        let made: Value = serde_json::from_str(&made.stdout).unwrap();
        std::fs::write(file, text(&made, "/status/token")).unwrap();
    }

    fn agent(&self, name: &str, cluster: &str, token: &Path, metadata: &Metadata) -> Process {
        let args = [
            format!("--control={}", self.control.link),
            format!("--ca-fingerprint={}", self.token.fingerprint),
            format!("--cluster={cluster}"),
            format!("--cluster-token-file={}", token.display()),
            format!("--data-dir={}", self.dir.path().join(name).display()),
            "--cloud-metadata=aws".to_owned(),
            format!("--cloud-metadata-url={}", metadata.url()),
            "--http-addr=off".to_owned(),
        ];
        let program = needs::programs().join("hyperion-agent");
        let mut process = Process::new(name, &program, args.to_vec(), self.dir.path());
        process.start().unwrap();
        process
    }

    /// The one Pod of the workload that has no end, where it is ready.
    fn runs(&self) -> Result<Value, String> {
        let list = self.get(&["pods", "-l", "hyperion.io/workload"])?;
        let pods = list.get("items").and_then(Value::as_array).unwrap();
        match pods.as_slice() {
            [pod] if pod.to_string().contains(r#""ready":true"#) => Ok(pod.clone()),
            _ => Err(list.to_string()),
        }
    }

    fn said(&self, log: &Process, words: &str) {
        self.until(words, || {
            let log = log.log();
            if log.contains(words) {
                Ok(())
            } else {
                Err(log)
            }
        });
    }

    fn event(&self, kind: &str, reason: &str) {
        self.until(reason, || {
            let about = format!("--field-selector=involvedObject.kind={kind},reason={reason}");
            let events = self.get(&["events", "-A", &about])?;
            let some = events.pointer("/items/0").is_some();
            some.then_some(()).ok_or_else(|| events.to_string())
        });
    }
}

fn web() -> String {
    let limits = json!({ "cpu": "500m", "memory": "256Mi" });
    json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": "web" },
        "spec": {
            "policy": { "goal": "cost" },
            "template": {
                "spec": { "terminationGracePeriodSeconds": 600, "containers": [{
                    "name": "main", "image": "localhost/any",
                    "resources": { "limits": limits },
                }] },
            },
        },
    })
    .to_string()
}

#[test]
fn a_notice_empties_the_cluster_s_node_before_the_deadline() {
    let Some(scene) = Scene::start() else { return };
    scene.kubectl().apply(&web()).unwrap();
    let first = scene.until("the workload", || scene.runs());
    let node = text(&first, "/spec/nodeName").to_owned();
    let id = format!("east.{node}");

    // Not of a cluster that there is, and not by the token of somebody else's Pod.
    let token = scene.dir.path().join("token");
    let metadata = Metadata::serve(Cloud::Aws, "i-1").unwrap();
    scene.pod_token("default", &node, &token);
    let mut agent = scene.agent("lost", "west", &token, &metadata);
    scene.said(&agent, "no HyperionCluster");
    agent.kill();
    let mut agent = scene.agent("liar", "east", &token, &metadata);
    scene.said(&agent, "not of system:serviceaccount:hyperion-agent");
    scene.event("HyperionCluster", "AgentRefused");
    scene.until("its end", || match agent.ended() {
        Some(status) if !status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    });

    scene.pod_token("hyperion-agent", &node, &token);
    let mut agent = scene.agent("agent", "east", &token, &metadata);
    scene.said(&agent, "connected");
    let fleet = |scene: &Scene| {
        let fleet = hyperion_lab::http::get(&scene.control.http, "/fleet/v1/nodes");
        fleet.map_err(|e| e.to_string())
    };
    scene.until("its telemetry", || {
        let fleet = fleet(&scene)?;
        if fleet.contains(&id) {
            Ok(())
        } else {
            Err(fleet)
        }
    });

    let notice = Instant::now();
    metadata.take_back();
    let second = scene.until("another copy", || {
        let pod = scene.runs()?;
        let moved = text(&pod, "/spec/nodeName") != node;
        moved.then(|| pod.clone()).ok_or_else(|| pod.to_string())
    });
    assert!(
        notice.elapsed() < Cloud::Aws.lead(),
        "{:?}",
        notice.elapsed()
    );
    assert_ne!(
        text(&second, "/metadata/uid"),
        text(&first, "/metadata/uid")
    );

    // It is said of the cluster's node, which is up all the same, and of no other.
    let object = scene.until("the condition", || {
        let object = scene.get(&["hyperionnode", &id])?;
        let told = object.to_string().contains("SpotInterruption");
        told.then(|| object.clone())
            .ok_or_else(|| object.to_string())
    });
    assert_eq!(text(&object, "/status/ready"), "True");
    assert_eq!(text(&object, "/status/hostname"), node);
    let all = scene.get(&["hyperionnodes"]).unwrap();
    let all = all.get("items").and_then(Value::as_array).unwrap();
    assert_eq!(all.len(), 6, "{all:?}");

    // A second agent for the same node is refused, and told of.
    let mut twin = scene.agent("twin", "east", &token, &metadata);
    scene.said(&twin, "in use by another device");
    scene.event("HyperionNode", "DuplicateIdentity");
    twin.kill();

    // Without its agent the node is what its cluster says, and the notice stands.
    agent.kill();
    scene.until("silence", || {
        let fleet = fleet(&scene)?;
        if fleet.contains("\"connected\":false") {
            Ok(())
        } else {
            Err(fleet)
        }
    });
    let object = scene.get(&["hyperionnode", &id]).unwrap();
    assert_eq!(text(&object, "/status/ready"), "True");
    assert!(object.to_string().contains("SpotInterruption"), "{object}");
}
