//! The whole control plane with the embedded API and agents with a made-up container runtime.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::print_stdout
)]

mod common;

use std::time::{Duration, Instant};

use common::{Control, condition, eventually, get};
use hyperion_proto::agent_v1::ReplicaPhase;
use serde_json::{Value, json};

const EXAMPLE: &str = r#"
apiVersion: hyperion.io/v1alpha1
kind: HyperionWorkload
metadata:
  name: resnet50-inference-job-us-east
spec:
  template:
    spec:
      containers:
        - name: inference-server
          image: pytorch/torchserve:latest-gpu
          args: ["torchserve", "--start", "--model-store", "/models", "--models", "resnet50.mar"]
          resources:
            limits:
              cpu: "2"
              memory: "4Gi"
              nvidia.com/gpu: "1"
  policy:
    goal: latency
    constraints:
      geographies: ["US", "EU"]
      clouds: ["aws", "gcp"]
      preferSpot: true
    data:
      source: "s3://my-training-data-us-east-1/dataset"
      locality: "aws:us-east-1"
"#;

const AWS: &[(&str, &str)] = &[
    ("hyperion.io/provider", "aws"),
    ("topology.kubernetes.io/region", "us-east-1"),
    ("node.kubernetes.io/instance-type", "g4dn.xlarge"),
];

fn service(name: &str, replicas: u32) -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "template": { "spec": { "containers": [
            { "name": "c", "image": "i", "resources": { "limits": { "cpu": "500m", "memory": "128Mi" } } }] } } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_specifications_example_waits_for_a_gpu_and_then_runs_in_us_east_1() {
    let control = Control::start("2s").await;
    let _edge = control.agent(&[], 0).await;
    let _plain = control.agent(AWS, 0).await;
    let example: Value = serde_yaml_ng::from_str(EXAMPLE).unwrap();
    let name = "resnet50-inference-job-us-east";
    control.apply(example).await;
    let pending = control
        .status(name, "unplaceable", |w| {
            condition(w, "Placed").is_some_and(|c| c.1 == "Unplaceable")
        })
        .await;
    let (_, _, message) = condition(&pending, "Placed").unwrap();
    assert_eq!(
        message,
        "replica 0: 0 of 2 nodes fit: 1 ruled out by geographies, 1 by nvidia.com/gpu"
    );
    assert_eq!(pending.status.unwrap().rejected.len(), 2);

    let gpu = control.agent(AWS, 1).await;
    let running = control.running(name).await;
    let status = running.status.unwrap();
    assert_eq!(status.nodes, gpu.id());
    assert!(status.hourly_cost.is_some_and(|c| c > 0.0));
    let placement = control
        .placements()
        .get(&format!("{name}-0"))
        .await
        .unwrap();
    assert_eq!(placement.spec.region, "us-east-1");
    assert_eq!(placement.spec.gpus.len(), 1);
    let owner = &placement.metadata.owner_references.unwrap()[0];
    assert_eq!(Some(owner.uid.clone()), running.metadata.uid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_s_replica_moves_and_the_old_copy_ends_when_the_node_returns() {
    let control = Control::start("2s").await;
    let mut first = control.agent(&[], 0).await;
    control.apply(service("web", 1)).await;
    control.running("web").await;
    assert_eq!(control.place("web-0").await, Some((first.id(), 1)));
    let second = control.agent(&[], 0).await;
    let lost = Instant::now();
    first.disconnect().await;
    second.holding("placed again", &[("web", 0)]).await;
    assert!(
        lost.elapsed() >= Duration::from_secs(2),
        "{:?}",
        lost.elapsed()
    );
    assert_eq!(control.place("web-0").await, Some((second.id(), 2)));
    control.running("web").await;
    first.holding("goes on while cut off", &[("web", 0)]).await;
    first.connect();
    first.holding("told to stop", &[]).await;
    assert_eq!(second.starts("web", 0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_and_deleting_start_and_stop_replicas() {
    let control = Control::start("30s").await;
    let agent = control.agent(&[], 0).await;
    control.apply(service("web", 3)).await;
    control.running("web").await;
    agent
        .holding("three", &[("web", 0), ("web", 1), ("web", 2)])
        .await;
    control.apply(service("web", 1)).await;
    agent.holding("one", &[("web", 0)]).await;
    eventually("placements deleted", || async {
        match control.place("web-2").await {
            None => Ok(()),
            Some(place) => Err(format!("{place:?}")),
        }
    })
    .await;
    control.apply(service("web", 2)).await;
    agent.holding("two", &[("web", 0), ("web", 1)]).await;
    assert_eq!(agent.starts("web", 0), 1, "what stays is not touched");
    control.running("web").await;
    control.delete("web").await;
    control.gone("web").await;
    assert_eq!(agent.holds(), []);
    assert_eq!(control.place("web-0").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_moves_replicas_and_uncordoning_opens_the_node_again() {
    let control = Control::start("30s").await;
    let first = control.agent(&[], 0).await;
    control.apply(service("web", 2)).await;
    control.running("web").await;
    let second = control.agent(&[], 0).await;
    control
        .node_spec(&first.id(), json!({ "draining": true }))
        .await;
    second.holding("moved", &[("web", 0), ("web", 1)]).await;
    first.holding("empty", &[]).await;
    control.running("web").await;
    control
        .node_spec(&first.id(), json!({ "draining": false }))
        .await;
    control
        .node_spec(&second.id(), json!({ "unschedulable": true }))
        .await;
    control.apply(service("more", 1)).await;
    first.holding("used again", &[("more", 0)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_control_plane_restarts_nothing() {
    let mut control = Control::start("30s").await;
    let first = control.agent(&[], 0).await;
    let second = control.agent(&[], 0).await;
    control.apply(service("web", 4)).await;
    control.running("web").await;
    let before = (first.holds(), second.holds());
    let place = control.place("web-0").await;
    control.stop().await;
    control.run().await;
    let live = |text: &str| text.matches("\"connected\":true").count();
    let http = control.http;
    eventually("agents are back", || async move {
        let (_, text) = get(http, "/fleet/v1/nodes?since=0").await.unwrap();
        if live(&text) == 2 { Ok(()) } else { Err(text) }
    })
    .await;
    // A change that has to travel the whole way shows that the new control plane decides.
    control.apply(service("more", 1)).await;
    control.running("more").await;
    control.running("web").await;
    assert_eq!(control.place("web-0").await, place);
    let web = |held: Vec<common::Replica>| -> Vec<common::Replica> {
        held.into_iter().filter(|r| r.0 == "web").collect()
    };
    assert_eq!((web(first.holds()), web(second.holds())), before);
    for replica in 0..4 {
        assert_eq!(
            first.starts("web", replica) + second.starts("web", replica),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_a_handover_leaves_the_old_copy_until_the_new_one_is_ready() {
    let mut control = Control::start("30s").await;
    let old = control.agent(&[], 0).await;
    control.apply(service("web", 1)).await;
    control.running("web").await;
    let mut new = control.agent(&[], 0).await;
    new.runtime.lock().unwrap().fate = Some((ReplicaPhase::Starting, "Slow"));
    control
        .node_spec(&old.id(), json!({ "draining": true }))
        .await;
    new.holding("told to start it", &[("web", 0)]).await;
    control.stop().await;
    let lists = new.runtime.lock().unwrap().lists;
    control.run().await;
    eventually("lists are complete", || async {
        let told = new.runtime.lock().unwrap().lists;
        if told > lists {
            Ok(())
        } else {
            Err(format!("{told}"))
        }
    })
    .await;
    // What the old node is told arrives in order: this comes after a list that stops things.
    control
        .node_spec(&old.id(), json!({ "draining": false }))
        .await;
    let mut more = service("more", 1);
    more["spec"]["template"]["spec"]["nodeSelector"] = json!({ "hyperion.io/node": old.id() });
    control.apply(more).await;
    old.holding("old copy and more", &[("more", 0), ("web", 0)])
        .await;

    new.runtime.lock().unwrap().fate = None;
    new.disconnect().await;
    new.connect();
    old.holding("handed over", &[("more", 0)]).await;
    new.holding("runs", &[("web", 0)]).await;
    assert_eq!((old.starts("web", 0), new.starts("web", 0)), (1, 1));
    let placements = control.placements();
    eventually("no old copy is named", || async {
        let placement = placements.get("web-0").await.unwrap();
        match placement.metadata.annotations.filter(|a| !a.is_empty()) {
            None => Ok(()),
            Some(named) => Err(format!("{named:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_objects_are_refused_or_named_and_stall_nobody() {
    let control = Control::start("30s").await;
    let agent = control.agent(&[], 0).await;
    let params = kube::api::PatchParams::apply("test").force();
    for (change, field) in [
        (json!({ "policy": { "goal": "speed" } }), "spec.policy.goal"),
        (
            json!({ "policy": { "constraints": { "clouds": ["oracle"] } } }),
            "spec.policy.constraints.clouds",
        ),
        (json!({ "replicas": -1 }), "spec.replicas"),
        (
            json!({ "template": { "spec": { "containers": [] } } }),
            "containers",
        ),
        (
            json!({ "policy": { "clients": [{ "weight": 1 }] } }),
            "spec.policy.clients",
        ),
    ] {
        let mut bad = service("bad", 1);
        for (key, value) in change.as_object().unwrap() {
            bad["spec"][key] = value.clone();
        }
        let patch = kube::api::Patch::Apply(bad);
        let refused = control
            .workloads()
            .patch("bad", &params, &patch)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains(field), "{field}: {refused}");
    }
    // What a schema can't tell: the operator does.
    let mut odd = service("odd", 1);
    odd["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "amd.com/gpu": "1" } });
    control.apply(odd).await;
    let odd = control
        .status("odd", "not accepted", |w| {
            condition(w, "Accepted").is_some_and(|c| c.0 == "False")
        })
        .await;
    let (_, reason, message) = condition(&odd, "Accepted").unwrap();
    assert_eq!(reason, "InvalidSpec");
    assert!(
        message.contains("resources.limits.amd.com/gpu"),
        "{message}"
    );
    control.apply(service("good", 1)).await;
    control.running("good").await;
    agent.holding("the good one", &[("good", 0)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_deleted_by_hand_comes_back_without_a_restart() {
    let control = Control::start("30s").await;
    let agent = control.agent(&[], 0).await;
    control.apply(service("web", 1)).await;
    control.running("web").await;
    control
        .placements()
        .delete("web-0", &Default::default())
        .await
        .unwrap();
    eventually("made again", || async {
        match control.place("web-0").await {
            Some((_, generation)) if generation > 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    control.running("web").await;
    assert_eq!(agent.starts("web", 0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_succeeds_and_stays_so() {
    let control = Control::start("30s").await;
    let agent = control.agent(&[], 0).await;
    agent.runtime.lock().unwrap().fate = Some((ReplicaPhase::Succeeded, "Completed"));
    let mut job = service("train", 2);
    job["spec"]["type"] = json!("job");
    control.apply(job).await;
    let done = control
        .status("train", "complete", |w| {
            condition(w, "Complete").is_some_and(|c| c.0 == "True")
        })
        .await;
    assert_eq!(done.status.unwrap().ready, "2/2");
    assert_eq!(agent.starts("train", 0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_the_node_and_errors_are_sentences() {
    let control = Control::start("30s").await;
    let _agent = control.agent(&[], 0).await;
    control.apply(service("web", 1)).await;
    control.running("web").await;
    let logs = |query: &'static str| get(control.http, query);
    let path = "/fleet/v1/logs?namespace=default&workload=web&replica=0";
    assert_eq!(logs(path).await.unwrap(), (200, "a line\n".to_owned()));
    let nope = "/fleet/v1/logs?namespace=default&workload=web&container=nope";
    assert_eq!(
        logs(nope).await.unwrap(),
        (404, "no container nope\n".to_owned())
    );
    let (status, text) = logs("/fleet/v1/logs?namespace=default&workload=x")
        .await
        .unwrap();
    assert_eq!(
        (status, text.as_str()),
        (404, "workload default/x has no replica with a place\n")
    );
    assert_eq!(logs("/fleet/v1/logs?workload=x").await.unwrap().0, 400);
    let (_, metrics) = logs("/metrics").await.unwrap();
    for name in [
        "hyperion_operator_decisions_total 1",
        "hyperion_gateway_telemetry_received_total",
        "hyperion_operator_leader 1",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
    // Through the API server, as the console asks.
    let path = format!("{}/nodes?since=0", hyperion_api::fleet::PROXY_PREFIX);
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let live: hyperion_api::fleet::LiveNodes = control.client().request(request).await.unwrap();
    assert_eq!(live.nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_apply_to_running_takes_less_than_half_a_second() {
    let control = Control::start("30s").await;
    let _agents = [control.agent(&[], 0).await, control.agent(&[], 0).await];
    let mut times = Vec::new();
    for n in 0..15 {
        let name = format!("w{n}");
        let began = Instant::now();
        let mut object = service(&name, 1);
        object["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
        control.apply(object).await;
        control.running(&name).await;
        times.push(began.elapsed());
    }
    times.sort();
    println!("apply to running: {times:?}");
    assert!(times[7] < Duration::from_millis(500), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_replicas_are_placed_in_one_go() {
    let control = Control::start("30s").await;
    let mut agents = Vec::new();
    for _ in 0..4 {
        agents.push(control.agent(&[], 0).await);
    }
    let mut many = service("many", 300);
    many["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "cpu": "50m", "memory": "16Mi" } });
    let began = Instant::now();
    control.apply(many).await;
    control.running("many").await;
    println!("300 replicas: {:?}", began.elapsed());
    let held: Vec<usize> = agents.iter().map(|a| a.holds().len()).collect();
    assert_eq!(held.iter().sum::<usize>(), 300);
    // 80 of 50m fit into a node's four cores.
    assert!(held.iter().all(|n| *n <= 80), "{held:?}");
    control.delete("many").await;
    control.gone("many").await;
    for agent in &agents {
        assert_eq!(agent.holds(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_given_up_at_once() {
    let control = Control::start("10m").await;
    let first = control.agent(&[], 0).await;
    control.apply(service("web", 1)).await;
    control.running("web").await;
    let second = control.agent(&[], 0).await;
    control
        .node_spec(&first.id(), json!({ "revoked": true }))
        .await;
    second.holding("placed again", &[("web", 0)]).await;
    control.running("web").await;
    assert_eq!(control.place("web-0").await, Some((second.id(), 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_template_starts_each_replica_once_more() {
    let control = Control::start("30s").await;
    let agent = control.agent(&[], 0).await;
    control.apply(service("web", 3)).await;
    control.running("web").await;
    let mut changed = service("web", 3);
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:2");
    control.apply(changed).await;
    eventually("all replicas renewed", || async {
        let starts = [0, 1, 2].map(|r| agent.starts("web", r));
        if starts == [2, 2, 2] {
            Ok(())
        } else {
            Err(format!("{starts:?}"))
        }
    })
    .await;
    control.running("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_no_node_has_is_told_in_the_status() {
    let control = Control::start("30s").await;
    let agent = control.agent(&[], 0).await;
    agent.runtime.lock().unwrap().fate = Some((ReplicaPhase::Backoff, "ImagePullFailed"));
    control.apply(service("web", 1)).await;
    let failing = control
        .status("web", "failing", |w| {
            condition(w, "Ready").is_some_and(|c| c.1 == "ReplicaFailing")
        })
        .await;
    let (_, _, message) = condition(&failing, "Ready").unwrap();
    let id = agent.id();
    assert_eq!(message, format!("replica 0 on node {id}: ImagePullFailed"));
}
