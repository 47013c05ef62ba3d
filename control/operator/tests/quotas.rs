//! Quotas, gangs and priority classes of a running control plane.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use common::{Control, condition, eventually};
use hyperion_api::quota::HyperionQuota;
use hyperion_api::workload::HyperionWorkload;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

fn workload(name: &str, replicas: u32, policy: Value) -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "policy": policy, "template": { "spec": { "containers": [
            { "name": "c", "image": "i", "resources": { "limits": { "cpu": "1", "memory": "128Mi" } } }] } } } })
}

async fn limit(control: &Control, spec: Value) -> Result<HyperionQuota, kube::Error> {
    let quotas: Api<HyperionQuota> = Api::namespaced(control.client(), "default");
    let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionQuota",
        "metadata": { "name": "money" }, "spec": spec });
    let params = PatchParams::apply("test").force();
    quotas.patch("money", &params, &Patch::Apply(object)).await
}

fn placed(reason: &'static str) -> impl Fn(&HyperionWorkload) -> bool {
    move |w| condition(w, "Placed").is_some_and(|c| c.1 == reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_bounds_what_is_placed_and_says_what_is_used() {
    let mut control = Control::start("30s").await;
    limit(&control, json!({ "maxHourlyCost": 0 }))
        .await
        .unwrap();
    let price = [
        ("hyperion.io/provider", "aws"),
        ("topology.kubernetes.io/region", "us-east-1"),
        ("hyperion.io/price-per-hour", "2"),
    ];
    let _agent = control.agent(&price, 0).await;
    control.apply(workload("w", 1, json!({}))).await;
    let waiting = control
        .status("w", "waits for the quota", placed("QuotaExceeded"))
        .await;
    let text = condition(&waiting, "Placed").unwrap().2;
    assert!(
        text.contains("quota money leaves 0.00 of 0.00 USD/h"),
        "{text}"
    );

    // Nothing slips through while a control plane reads what there is.
    control.stop().await;
    control.run().await;
    control
        .status("w", "still waits", placed("QuotaExceeded"))
        .await;

    limit(&control, json!({ "maxHourlyCost": 2 }))
        .await
        .unwrap();
    control.running("w").await;
    let quotas: Api<HyperionQuota> = Api::namespaced(control.client(), "default");
    let quotas = &quotas;
    eventually("the quota says what is used", || async move {
        let status = quotas.get("money").await.unwrap().status;
        match status.clone() {
            Some(s) if s.hourly_cost > 0.0 && s.waiting == 0 => Ok(()),
            _ => Err(format!("{status:?}")),
        }
    })
    .await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_waits_for_all_its_places_and_bad_numbers_are_refused() {
    let mut control = Control::start("30s").await;
    for (spec, field) in [
        (json!({ "maxHourlyCost": -1 }), "spec.maxHourlyCost"),
        (json!({ "maxGpus": "many" }), "spec.maxGpus"),
    ] {
        let refused = limit(&control, spec).await.unwrap_err().to_string();
        assert!(refused.contains(field), "{refused}");
    }
    let params = PatchParams::apply("test").force();
    let large = workload("large", 257, json!({ "gang": true }));
    let refused = control.workloads();
    let refused = refused.patch("large", &params, &Patch::Apply(large)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("a gang has at most 256 replicas"),
        "{refused}"
    );

    let _one = control.agent(&[], 0).await;
    let gang = workload("g", 6, json!({ "gang": true }));
    control.apply(gang).await;
    let waiting = control
        .status("g", "waits for room", placed("Unplaceable"))
        .await;
    let text = condition(&waiting, "Placed").unwrap().2;
    assert!(text.ends_with("(all 6 get a place, or none)"), "{text}");
    assert_eq!(control.place("g-0").await, None);
    let _two = control.agent(&[], 0).await;
    control.running("g").await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_class_lets_a_workload_in_and_others_give_way_to_it() {
    let mut control = Control::start("30s").await;
    let _agent = control.agent(&[], 0).await;
    // Four cores, and one for each.
    control.apply(workload("low", 4, json!({}))).await;
    control.running("low").await;
    let mut high = workload("high", 1, json!({}));
    high["spec"]["template"]["spec"]["priorityClassName"] = json!("gold");
    control.apply(high).await;
    let waiting = control
        .status(
            "high",
            "waits for its class",
            placed("PriorityClassMissing"),
        )
        .await;
    let text = condition(&waiting, "Placed").unwrap().2;
    assert!(text.contains("no PriorityClass \"gold\""), "{text}");

    let classes: Api<PriorityClass> = Api::all(control.client());
    let class = json!({ "metadata": { "name": "gold" }, "value": 1000 });
    let class: PriorityClass = serde_json::from_value(class).unwrap();
    let made = classes.create(&PostParams::default(), &class).await;
    made.unwrap();
    control.running("high").await;
    let low = control
        .status("low", "one of four gave way", placed("Preempted"))
        .await;
    let text = condition(&low, "Placed").unwrap().2;
    assert!(text.contains("to replica 0 of default/high"), "{text}");
    control.stop().await;
}
