//! Policies of a running control plane: from a file, from a ConfigMap, and refused.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use common::{Control, condition, eventually, get};
use hyperion_api::fleet::LiveFleet;
use hyperion_api::placement::HyperionPlacement;
use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN};
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Card, Experience, PolicyFile, SlotStats, Statistics, TrainingData};
use hyperion_proto::agent_v1::ReplicaPhase;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

fn policy(seed: u64) -> Vec<u8> {
    let slot = SlotStats {
        mean: 0.0,
        deviation: 1.0,
        min: -1e6,
        max: 1e6,
    };
    let card = Card {
        data: TrainingData::default(),
        seed,
        steps: 1,
        reward: RewardWeights::default(),
        statistics: Statistics {
            request: vec![slot; REQUEST_LEN],
            node: vec![slot; NODE_LEN],
            pair: vec![slot; PAIR_LEN],
            fit: vec![slot; FIT_LEN],
        },
        evaluation: serde_json::Value::Null,
    };
    PolicyFile::write_safetensors(&card, &Network::zeros()).unwrap()
}

fn map(bytes: Option<Vec<u8>>) -> ConfigMap {
    let data = bytes.map(|bytes| [("policy".to_owned(), ByteString(bytes))].into());
    ConfigMap {
        metadata: kube::core::ObjectMeta {
            name: Some("hyperion-policy".to_owned()),
            ..Default::default()
        },
        binary_data: data,
        ..Default::default()
    }
}

/// Waits until the fleet API says so of who decides.
async fn scorer(control: &Control, what: &str, holds: impl Fn(&LiveFleet) -> bool) -> LiveFleet {
    let holds = &holds;
    eventually(what, || async move {
        let (_, text) = get(control.http, "/fleet/v1/nodes")
            .await
            .map_err(|e| e.to_string())?;
        let live: LiveFleet = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if holds(&live) { Ok(live) } else { Err(text) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_policy_leaves_rules_and_a_config_map_is_taken_at_run_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.safetensors");
    let bytes = policy(1);
    std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    let flag = format!("--policy={}", path.display());
    let control = Control::start_with("30s", &[flag]).await;

    let live = scorer(&control, "refused", |l| !l.scorer.refused.is_empty()).await;
    assert_eq!(live.scorer.decides, "rules");
    assert!(live.scorer.source.starts_with("file "), "{live:?}");
    let (status, text) = get(control.http, "/readyz").await.unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains("rules decides, the policy is refused"),
        "{text}"
    );
    let (_, text) = get(control.http, "/metrics").await.unwrap();
    assert!(text.contains("hyperion_policy_refused_total 1"), "{text}");
    assert!(text.contains("hyperion_policy_fallback_total{reason=\"stale\"} 0"));
    let events: Api<Event> = Api::namespaced(control.client(), "hyperion-system");
    let events = &events;
    eventually("event", || async move {
        let list = events.list(&ListParams::default()).await;
        let list = list.map_err(|e| e.to_string())?;
        let found = |e: &&Event| e.reason.as_deref() == Some("PolicyRefused");
        let event = list.items.iter().find(found).cloned();
        event.ok_or_else(|| format!("{} others", list.items.len()))
    })
    .await;

    let maps: Api<ConfigMap> = Api::namespaced(control.client(), "hyperion-system");
    let params = PostParams::default();
    maps.create(&params, &map(Some(bytes))).await.unwrap();
    let live = scorer(&control, "policy", |l| l.scorer.decides == "ppo").await;
    let first = live.scorer.policy;
    assert_eq!(live.scorer.refused, "");
    let (_, text) = get(control.http, "/metrics").await.unwrap();
    let info = format!(
        "hyperion_policy_info{{scorer=\"ppo\",hash=\"{first}\",source=\"configmap hyperion-system/hyperion-policy\"}} 1"
    );
    assert!(text.contains(&info), "{text}");
    assert!(!text.contains("source=\"file"), "{text}");

    let other = maps.get("hyperion-policy").await.unwrap();
    let mut fresh = map(Some(policy(2)));
    fresh.metadata.resource_version = other.metadata.resource_version;
    maps.replace("hyperion-policy", &params, &fresh)
        .await
        .unwrap();
    scorer(&control, "swapped", |l| {
        l.scorer.decides == "ppo" && l.scorer.policy != first
    })
    .await;

    let empty = Patch::Merge(json!({ "binaryData": null }));
    maps.patch("hyperion-policy", &PatchParams::default(), &empty)
        .await
        .unwrap();
    let live = scorer(&control, "empty", |l| l.scorer.decides == "rules").await;
    assert!(live.scorer.refused.contains("no key `policy`"), "{live:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_says_how_the_policy_decided_and_its_end_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.safetensors");
    std::fs::write(&path, policy(1)).unwrap();
    let flag = format!("--policy={}", path.display());
    let control = Control::start_with("30s", &[flag]).await;
    let first = control.agent(&[], 0).await;
    let _second = control.agent(&[], 0).await;
    first.runtime.lock().unwrap().fate = Some((ReplicaPhase::Succeeded, "Completed"));
    let only = json!({ "hyperion.io/node": first.id() });
    control
        .apply(json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
            "metadata": { "name": "train" },
            "spec": { "type": "job", "template": { "spec": { "nodeSelector": only, "containers": [
                { "name": "c", "image": "i", "resources": { "limits": { "cpu": "500m", "memory": "128Mi" } } }] } } } }))
        .await;
    control
        .status("train", "complete", |w| {
            condition(w, "Complete").is_some_and(|c| c.0 == "True")
        })
        .await;
    let api: Api<HyperionPlacement> = Api::namespaced(control.client(), "default");
    let why = api.get("train-0").await.unwrap().spec.explanation;
    assert_eq!((why.scorer.as_str(), why.policy.len()), ("ppo", 12));
    assert_eq!(why.rules_choice.unwrap().id, first.id());
    assert_eq!((why.candidates, why.top.len()), (1, 1));
    let file = control.data().join("experience.jsonl");
    let file = &file;
    let kept = eventually("experience", || async move {
        let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
        let read = Experience::parse(&text).map_err(|e| e.to_string())?;
        read.into_iter().next().ok_or_else(|| "empty".to_owned())
    })
    .await;
    assert!(kept.outcome.completed && kept.outcome.hours < 1.0);
}
