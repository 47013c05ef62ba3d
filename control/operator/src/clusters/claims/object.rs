//! NodeClaims as objects.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, TypeMeta};
use serde_json::{Value, json};

use super::{Make, Purpose, Seen, Stage};
use crate::clusters::pod::LABEL_OWNER;

/// Annotation: id of the offer.
const OFFER: &str = "hyperion.io/offer";
/// Annotation: its price when it was taken, US dollars per hour. Not the label of a node: prices
/// change.
const PRICE: &str = "hyperion.io/offer-price-per-hour";
/// Annotation: the replica that it was made for, as `namespace/workload/uid/number`.
const FOR: &str = "hyperion.io/launched-for";
/// Label of nodes: their region.
const REGION: &str = "topology.kubernetes.io/region";
/// Longest note of Karpenter that is kept.
const TROUBLE: usize = 300;

/// The kind.
#[must_use]
pub fn kind() -> ApiResource {
    let kind = GroupVersionKind::gvk("karpenter.sh", "v1", "NodeClaim");
    ApiResource::from_gvk_with_plural(&kind, "nodeclaims")
}

/// Labels that the nodes get beside those that say what they are. The cluster's selector is among
/// them: a node without would not be ours to use.
#[must_use]
pub fn labels(
    own: &BTreeMap<String, String>,
    selector: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let all = selector.iter().chain(own);
    let all = all.filter(|(key, _)| !is_the_clouds(key));
    all.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Not for us to say of a machine.
fn is_the_clouds(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let of = |owner: &str| domain == owner || domain.ends_with(&format!(".{owner}"));
    of("kubernetes.io") || of("k8s.io") || of("karpenter.sh")
}

/// The object of a claim. `owner` is the uid of the HyperionCluster.
#[must_use]
pub fn claim(name: &str, owner: &str, make: &Make) -> DynamicObject {
    let Make {
        capacity, purpose, ..
    } = make;
    let mut labels = labels(&capacity.labels, &make.selector);
    labels.insert(LABEL_OWNER.to_owned(), owner.to_owned());
    // Not all of Karpenter's providers say it of themselves.
    labels.insert(REGION.to_owned(), make.region.clone());
    labels.insert(
        "app.kubernetes.io/managed-by".to_owned(),
        "hyperion".to_owned(),
    );
    let only = |key: &str, value: &str| json!({ "key": key, "operator": "In", "values": [value] });
    let mut requirements = vec![
        only("node.kubernetes.io/instance-type", &make.instance_type),
        only("karpenter.sh/capacity-type", make.capacity_type.as_str()),
        only("kubernetes.io/os", "linux"),
    ];
    if !make.zone.is_empty() {
        requirements.push(only("topology.kubernetes.io/zone", &make.zone));
    }
    let mut requests = json!({
        "cpu": format!("{}m", make.resources.cpu_millis),
        "memory": make.resources.memory_bytes.to_string(),
    });
    if make.gpu.count > 0 {
        requests["nvidia.com/gpu"] = json!(make.gpu.count.to_string());
    }
    let class = &capacity.node_class_ref;
    let data = json!({ "spec": {
        "nodeClassRef": { "group": class.group, "kind": class.kind, "name": class.name },
        "requirements": requirements,
        "resources": { "requests": requests },
        "taints": capacity.taints,
        // It is given back when it is empty, and not by the clock.
        "expireAfter": "Never",
    } });
    let Purpose {
        offer,
        price_per_hour,
        namespace,
        workload,
        uid,
        replica,
    } = purpose;
    let annotations = [
        (OFFER, offer.clone()),
        (PRICE, price_per_hour.to_string()),
        (FOR, format!("{namespace}/{workload}/{uid}/{replica}")),
        ("karpenter.sh/do-not-disrupt", "true".to_owned()),
    ];
    let kind = kind();
    let mut object = DynamicObject::new(name, &kind);
    object.types = Some(TypeMeta {
        api_version: kind.api_version,
        kind: kind.kind,
    });
    object.metadata.labels = Some(labels);
    object.metadata.annotations = Some(annotations.map(|(k, v)| (k.to_owned(), v)).into());
    object.data = data;
    object
}

/// Reads a claim. Nothing in it has to be there.
#[must_use]
pub fn seen(object: &DynamicObject, clock: Timestamp) -> Seen {
    let text = |path: &str| text(&object.data, path).to_owned();
    let label = |key: &str| object.labels().get(key).cloned().unwrap_or_default();
    let age = object.creation_timestamp().map_or(0, |made| {
        clock
            .as_millisecond()
            .saturating_sub(made.0.as_millisecond())
    });
    let deleting = object.metadata.deletion_timestamp.is_some();
    let (stage, trouble) = stage(&object.data);
    Seen {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        purpose: purpose(object.annotations()),
        stage,
        node: text("/status/nodeName"),
        instance_type: label("node.kubernetes.io/instance-type"),
        zone: label("topology.kubernetes.io/zone"),
        capacity_type: label("karpenter.sh/capacity-type"),
        deleting,
        trouble,
        age: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// How far it is, and what keeps it from going on.
fn stage(data: &Value) -> (Stage, String) {
    let conditions = data.pointer("/status/conditions").and_then(Value::as_array);
    let mut stage = Stage::Asked;
    let mut trouble = String::new();
    for (type_, next) in [
        ("Launched", Stage::Launched),
        ("Registered", Stage::Registered),
        ("Initialized", Stage::Ready),
    ] {
        let mut all = conditions.into_iter().flatten();
        let Some(found) = all.find(|c| text(c, "/type") == type_) else {
            break;
        };
        if text(found, "/status") == "True" {
            stage = next;
            continue;
        }
        let (reason, message) = (text(found, "/reason"), text(found, "/message"));
        let said = match (reason, message) {
            ("", text) | (text, "") => text.to_owned(),
            (reason, message) if message.starts_with(reason) => message.to_owned(),
            (reason, message) => format!("{reason}: {message}"),
        };
        trouble = said.chars().take(TROUBLE).collect();
        break;
    }
    (stage, trouble)
}

fn purpose(annotations: &BTreeMap<String, String>) -> Option<Purpose> {
    let price: f64 = annotations.get(PRICE)?.parse().ok()?;
    let mut parts = annotations.get(FOR)?.split('/');
    let mut part = || parts.next().map(str::to_owned);
    Some(Purpose {
        offer: annotations.get(OFFER)?.clone(),
        price_per_hour: Some(price).filter(|p| p.is_finite() && *p >= 0.0)?,
        namespace: part()?,
        workload: part()?,
        uid: part()?,
        replica: part()?.parse().ok()?,
    })
}
