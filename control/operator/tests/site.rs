//! A site that decided while it was cut off comes back: real control plane, real links.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use common::{Agent, Control, Replica, before, eventually, get, took_over};
use hyperion_api::SITE_UID;
use hyperion_api::fleet::History;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::HyperionWorkload;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{Event as DeviceEvent, StampedTelemetry, Telemetry, TelemetryBatch};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

fn service(name: &str) -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": { "template": { "spec": { "containers": [
            { "name": "c", "image": "i", "resources": { "limits": { "cpu": "500m", "memory": "128Mi" } } }] } } } })
}

async fn taken(agent: &Agent) {
    eventually("decisions are taken", || async {
        match agent.runtime.lock().unwrap().decisions.len() {
            0 => Ok(()),
            left => Err(format!("{left} are left")),
        }
    })
    .await;
}

async fn events(control: &Control, namespace: &str, reason: &str) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(control.client(), namespace);
    let reason = reason.to_owned();
    eventually("events", || {
        let (api, reason) = (api.clone(), reason.clone());
        async move {
            let list = api.list(&ListParams::default()).await.unwrap();
            let found = list.items.into_iter();
            let found: Vec<Event> = found
                .filter(|e| e.reason.as_deref() == Some(&reason))
                .collect();
            if found.is_empty() {
                Err(reason)
            } else {
                Ok(found)
            }
        }
    })
    .await
}

async fn decided(control: &Control, name: &str, by: &str) -> HyperionPlacement {
    let api = control.placements();
    eventually("adopted", || {
        let api = api.clone();
        async move {
            let placement = api.get(name).await.map_err(|e| e.to_string())?;
            if placement.spec.decided_by == by {
                Ok(placement)
            } else {
                Err(placement.spec.decided_by)
            }
        }
    })
    .await
}

fn untouched(agent: &Agent, workload: &str) {
    let stops = agent.runtime.lock().unwrap().stops.clone();
    assert!(
        !stops.contains(&Replica(workload.to_owned(), 0)),
        "{stops:?}"
    );
    assert_eq!(agent.starts(workload, 0), 1, "container starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_site_decided_is_adopted_without_a_restart() {
    let mut control = Control::start("10m").await;
    let mut first = control.agent(&[], 0).await;
    control.apply(service("web")).await;
    let web = control.running("web").await;
    let mut second = control.agent(&[], 0).await;
    first.disconnect().await;
    second.disconnect().await;
    let record = took_over(&web, &second, 2);
    second.runtime.lock().unwrap().take_over(record.clone());
    second.connect();
    let placement = decided(&control, "web-0", &second.id()).await;
    assert_eq!(
        (placement.spec.node, placement.spec.generation),
        (second.id(), 2)
    );
    assert_eq!(placement.spec.explanation.cause, "the node is dead");
    taken(&second).await;
    control.running("web").await;
    let told = events(&control, "default", "DecidedBySite").await;
    let text = told[0].message.clone().unwrap();
    let (new, old) = (second.id(), first.id());
    assert!(
        text.starts_with(&format!(
            "node {new} took over replica 0 from node {old} at "
        )),
        "{text}"
    );
    assert!(
        text.contains("while site lab was cut off, because the node is dead"),
        "{text}"
    );
    let at = told[0].event_time.as_ref().unwrap().0.as_millisecond();
    assert!(
        (at - record.unix_ms).abs() < 1000,
        "the time when it was decided"
    );

    // The other one is back with the old copy, and brings the same decision.
    first.runtime.lock().unwrap().decisions.push(record.clone());
    first.connect();
    first.holding("the old copy ends", &[]).await;
    taken(&first).await;
    // A restart of the control plane, which a node tells once more.
    control.stop().await;
    second.runtime.lock().unwrap().decisions.push(record);
    let lists = second.runtime.lock().unwrap().lists;
    control.run().await;
    eventually("a complete list", || async {
        let told = second.runtime.lock().unwrap().lists;
        if told > lists {
            Ok(())
        } else {
            Err(format!("{told}"))
        }
    })
    .await;
    taken(&second).await;
    control.running("web").await;
    assert_eq!(control.place("web-0").await, Some((second.id(), 2)));
    untouched(&second, "web");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_the_site_s_stays_and_none_is_restarted() {
    let control = Control::start("2s").await;
    let mut first = control.agent(&[], 0).await;
    control.apply(service("web")).await;
    let web = control.running("web").await;
    let mut second = control.agent(&[], 0).await;
    second.disconnect().await;
    let third = control.agent(&[], 0).await;
    first.disconnect().await;
    third.holding("placed again", &[("web", 0)]).await;
    control.running("web").await;
    assert_eq!(control.place("web-0").await, Some((third.id(), 2)));
    let record = took_over(&web, &second, 2);
    second.runtime.lock().unwrap().take_over(record);
    second.connect();
    third.holding("handed over", &[]).await;
    taken(&second).await;
    control.running("web").await;
    assert_eq!(control.place("web-0").await, Some((second.id(), 3)));
    untouched(&second, "web");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_at_the_site_becomes_a_workload() {
    let control = Control::start("10m").await;
    let mut agent = control.agent(&[], 0).await;
    agent.disconnect().await;
    let mut local: HyperionWorkload = serde_json::from_value(service("cam")).unwrap();
    local.metadata.namespace = Some("field".to_owned());
    local.metadata.uid = Some("site-0a1b2c".to_owned());
    let mut record = took_over(&local, &agent, 1);
    record.intent.as_mut().unwrap().manifest = service("cam").to_string();
    agent.runtime.lock().unwrap().take_over(record);
    agent.connect();
    taken(&agent).await;
    let api: Api<HyperionWorkload> = Api::namespaced(control.client(), "field");
    let made = eventually("running", || {
        let api = api.clone();
        async move {
            let w = api.get("cam").await.map_err(|e| e.to_string())?;
            match w.status.as_ref().map(|s| s.ready.as_str()) {
                Some("1/1") => Ok(w),
                _ => Err(format!("{:?}", w.status)),
            }
        }
    })
    .await;
    assert_eq!(made.metadata.annotations.unwrap()[SITE_UID], "site-0a1b2c");
    untouched(&agent, "cam");
    // It is a workload like any other now.
    api.delete("cam", &Default::default()).await.unwrap();
    agent.holding("deleted", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_a_node_was_away_is_told_in_order() {
    let control = Control::start("10m").await;
    let agent = control.agent(&[], 0).await;
    let began = before();
    let event = |id: u64, after: i64, reason: &str| {
        Body::Event(DeviceEvent {
            id,
            unix_ms: began + after,
            reason: reason.to_owned(),
            message: format!("event {id}"),
            ..DeviceEvent::default()
        })
    };
    let sample = |after: i64| StampedTelemetry {
        unix_ms: began + after,
        telemetry: Some(Telemetry {
            cpu_utilization_percent: 50.0,
            ..Telemetry::default()
        }),
    };
    let batch = TelemetryBatch {
        id: 1,
        samples: (0..100).map(|n| sample(n * 1000)).collect(),
        dropped_total: 3,
    };
    agent.runtime.lock().unwrap().outbox = vec![
        event(1, 1000, "SiteAutonomous"),
        event(2, 2000, "PeerDead"),
        // An acknowledgement that was lost.
        event(1, 1000, "SiteAutonomous"),
        Body::TelemetryBatch(batch.clone()),
        Body::TelemetryBatch(batch),
    ];
    let dead = events(&control, "default", "PeerDead").await;
    let alone = events(&control, "default", "SiteAutonomous").await;
    assert_eq!((dead.len(), alone.len()), (1, 1), "each once");
    let time = |e: &Event| e.last_timestamp.as_ref().unwrap().0.as_millisecond();
    assert_eq!(time(&dead[0]) - time(&alone[0]), 1000);
    assert_eq!(dead[0].involved_object.name, Some(agent.id()));
    assert_eq!(
        dead[0].involved_object.kind.as_deref(),
        Some("HyperionNode")
    );
    eventually("acknowledged twice", || async {
        let inbox = agent.runtime.lock().unwrap().inbox.clone();
        let acks = inbox.iter().filter(|b| matches!(b, Body::TelemetryAck(_)));
        match acks.count() {
            2 => Ok(()),
            n => Err(format!("{n}")),
        }
    })
    .await;
    let path = format!("/fleet/v1/history?node={}", agent.id());
    let (status, text) = get(control.http, &path).await.unwrap();
    assert_eq!(status, 200, "{text}");
    let history: History = serde_json::from_str(&text).unwrap();
    assert_eq!((history.samples.len(), history.dropped_total), (100, 3));
    assert!(history.samples.is_sorted_by_key(|s| s.unix_ms));
    let (status, _) = get(control.http, "/fleet/v1/history?node=x").await.unwrap();
    assert_eq!(status, 404);
    assert_eq!(get(control.http, "/fleet/v1/history").await.unwrap().0, 400);
    let (_, metrics) = get(control.http, "/metrics").await.unwrap();
    assert!(metrics.contains("hyperion_telemetry_backfilled_total 100"));
    assert!(metrics.contains("hyperion_telemetry_dropped_total 3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_told_of_their_site_and_of_a_policy_and_of_changed_wishes() {
    let control = Control::start("10m").await;
    let mut agent = control.agent(&[], 0).await;
    control.apply(service("web")).await;
    control.running("web").await;
    let mut changed = service("web");
    changed["spec"]["policy"] = json!({ "disconnect": { "replaceAfter": "5s" } });
    control.apply(changed).await;
    let runtime = agent.runtime.clone();
    eventually("told", || async {
        let told = runtime.lock().unwrap().intents.clone();
        match told.last() {
            Some(intent) if intent.replace_after_ms == 5000 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    untouched(&agent, "web");
    assert_eq!(control.place("web-0").await, Some((agent.id(), 1)));
    agent.disconnect().await;
    agent.connect();
    let runtime = agent.runtime.clone();
    eventually("a welcome", || async {
        let runtime = runtime.lock().unwrap();
        let Some(welcome) = &runtime.welcome else {
            return Err("none".to_owned());
        };
        let site = welcome.site.clone().unwrap_or_default();
        let policy = welcome.policy.clone().unwrap_or_default();
        let bytes = hyperion_policy::BUILT_IN_QUANTISED.len() as u64;
        if site.members.len() == 1 && policy.bytes == bytes && !policy.signature.is_empty() {
            Ok(())
        } else {
            Err(format!("{site:?} {policy:?}"))
        }
    })
    .await;
}
