use std::collections::BTreeMap;
use std::sync::Arc;

use hyperion_placement::model::{CapacityType, GpuRequest, Resources};
use jiff::Timestamp;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::object::{claim, labels, seen};
use super::{Make, Purpose, Stage};

fn purpose() -> Purpose {
    Purpose {
        offer: "aws/us-east-1/us-east-1b/g6.xlarge/spot".to_owned(),
        price_per_hour: 0.6685,
        namespace: "team".to_owned(),
        workload: "vision".to_owned(),
        uid: "u-1".to_owned(),
        replica: 3,
    }
}

fn make() -> Make {
    let capacity = json!({
        "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu" },
        "labels": { "team": "vision", "node.kubernetes.io/instance-type": "p5.48xlarge" },
        "taints": [{ "key": "gpu", "value": "yes", "effect": "NoSchedule" }],
    });
    Make {
        capacity: Arc::new(serde_json::from_value(capacity).unwrap()),
        selector: BTreeMap::from([("pool".to_owned(), "ours".to_owned())]),
        instance_type: "g6.xlarge".to_owned(),
        region: "us-east-1".to_owned(),
        zone: "us-east-1b".to_owned(),
        capacity_type: CapacityType::Spot,
        resources: Resources {
            cpu_millis: 1500,
            memory_bytes: 1 << 30,
        },
        gpu: GpuRequest {
            count: 1,
            millis: 1000,
        },
        purpose: purpose(),
    }
}

#[test]
fn a_claim_asks_for_one_offer_and_says_whose_it_is() {
    let claim = serde_json::to_value(claim("hyperion-1", "owner", &make())).unwrap();
    assert_eq!(claim["apiVersion"], "karpenter.sh/v1");
    assert_eq!(claim["kind"], "NodeClaim");
    assert_eq!(
        claim["metadata"]["labels"],
        json!({
            "app.kubernetes.io/managed-by": "hyperion", "hyperion.io/cluster-uid": "owner",
            "pool": "ours", "team": "vision", "topology.kubernetes.io/region": "us-east-1",
        })
    );
    let spec = &claim["spec"];
    assert_eq!(
        spec["nodeClassRef"],
        json!({ "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu" })
    );
    let requirements = spec["requirements"].as_array().unwrap().iter();
    let values: BTreeMap<&str, &str> = requirements
        .map(|r| (r["key"].as_str().unwrap(), r["values"][0].as_str().unwrap()))
        .collect();
    assert_eq!(values["node.kubernetes.io/instance-type"], "g6.xlarge");
    assert_eq!(values["karpenter.sh/capacity-type"], "spot");
    assert_eq!(values["topology.kubernetes.io/zone"], "us-east-1b");
    assert_eq!(
        spec["resources"]["requests"],
        json!({ "cpu": "1500m", "memory": "1073741824", "nvidia.com/gpu": "1" })
    );
    assert_eq!(spec["taints"][0]["effect"], "NoSchedule");
    assert_eq!(spec["expireAfter"], "Never");
}

#[test]
fn what_was_written_is_read_again_and_what_others_wrote_is_not_believed() {
    let clock = Timestamp::from_second(1_800_000_000).unwrap();
    let mut object = claim("hyperion-1", "owner", &make());
    assert_eq!(seen(&object, clock).purpose, Some(purpose()));
    let written = object.metadata.annotations.clone().unwrap();
    for (key, value) in [
        ("hyperion.io/launched-for", "team/vision/u-1"),
        ("hyperion.io/launched-for", "team/vision/u-1/-1"),
        ("hyperion.io/offer-price-per-hour", "NaN"),
        ("hyperion.io/offer-price-per-hour", "-1"),
    ] {
        let mut annotations = written.clone();
        annotations.insert(key.to_owned(), value.to_owned());
        object.metadata.annotations = Some(annotations);
        assert_eq!(seen(&object, clock).purpose, None, "{key}: {value}");
    }
}

#[test]
fn how_far_it_is_and_what_keeps_it_is_read_from_its_conditions() {
    let of = |conditions: Value| {
        let object = json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": { "name": "n" },
            "status": { "conditions": conditions, "nodeName": "node-1" },
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let seen = seen(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(seen.node, "node-1");
        (seen.stage, seen.trouble)
    };
    let condition = |type_: &str, status: &str, reason: &str, message: &str| json!({ "type": type_, "status": status, "reason": reason, "message": message });
    let is = |type_: &str| condition(type_, "True", type_, "");
    assert_eq!(of(json!([])), (Stage::Asked, String::new()));
    assert_eq!(of(json!("nonsense")), (Stage::Asked, String::new()));
    let waits = condition(
        "Registered",
        "Unknown",
        "NodeNotFound",
        "Node not registered",
    );
    assert_eq!(
        of(json!([waits, is("Launched")])),
        (
            Stage::Launched,
            "NodeNotFound: Node not registered".to_owned()
        )
    );
    let failed = condition("Launched", "False", "LaunchFailed", "quota");
    assert_eq!(
        of(json!([failed])),
        (Stage::Asked, "LaunchFailed: quota".to_owned())
    );
    let all = json!([is("Initialized"), is("Registered"), is("Launched")]);
    assert_eq!(of(all), (Stage::Ready, String::new()));
}

#[test]
fn what_a_machine_is_is_not_ours_to_label() {
    let own = [
        "karpenter.sh/nodepool",
        "kubernetes.io/arch",
        "a.k8s.io/b",
        "notkubernetes.io/x",
    ];
    let own = own.map(|key| (key.to_owned(), "v".to_owned())).into();
    let kept: Vec<String> = labels(&own, &BTreeMap::new()).into_keys().collect();
    assert_eq!(kept, ["notkubernetes.io/x"]);
}
