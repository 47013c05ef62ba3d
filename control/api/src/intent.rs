//! What a workload wants of its place, in the form that a site acts on by itself.

use std::time::Duration;

use hyperion_wire::agent_v1 as wire;

use crate::workload::{HyperionWorkloadSpec, Reconcile};
use crate::{Invalid, request};

/// Times of `policy.disconnect`, where the user named them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// A replica is placed again after its node has been out of reach this long.
    pub replace_after: Option<Duration>,
    /// A node that is itself cut off stops the replica after this long.
    pub stop_after: Option<Duration>,
}

/// Reads `policy.disconnect`.
///
/// # Errors
/// The field that is no duration.
pub fn times(spec: &HyperionWorkloadSpec) -> Result<Times, Invalid> {
    let Some(disconnect) = &spec.policy.disconnect else {
        return Ok(Times::default());
    };
    let time = |name: &str, text: &Option<String>| {
        duration(&format!("spec.policy.disconnect.{name}"), text.as_deref())
    };
    Ok(Times {
        replace_after: time("replaceAfter", &disconnect.replace_after)?,
        stop_after: time("stopAfter", &disconnect.stop_after)?,
    })
}

/// Reads a time such as `30s`, where there is one.
///
/// # Errors
/// It is none.
pub(crate) fn duration(field: &str, text: Option<&str>) -> Result<Option<Duration>, Invalid> {
    let read = |t: &str| {
        humantime::parse_duration(t).map_err(|e| Invalid::new(field, format!("{t:?}: {e}")))
    };
    text.map(read).transpose()
}

/// What a site has to know to place one replica of this workload again. `manifest` is left for the
/// caller.
///
/// # Errors
/// The first field that can't be carried out.
pub fn intent(spec: &HyperionWorkloadSpec) -> Result<wire::Intent, Invalid> {
    let wanted = request::request(spec)?;
    let times = times(spec)?;
    let pod = request::pod(spec)?;
    Ok(wire::Intent {
        workload_type: wanted.workload_type.to_string(),
        goal: wanted.goal.to_string(),
        exclusive: spec.policy.exclusive,
        replace_after_ms: millis(times.replace_after),
        stop_after_ms: millis(times.stop_after),
        reconcile: reconcile(spec).into(),
        priority: pod.priority.unwrap_or(0),
        cpu_millis: signed(wanted.resources.cpu_millis),
        memory_bytes: signed(wanted.resources.memory_bytes),
        gpu_count: wanted.gpu.count,
        gpu_millis: wanted.gpu.millis,
        geographies: words(&wanted.geographies),
        clouds: words(&wanted.clouds),
        tiers: words(&wanted.tiers),
        archs: wanted.archs,
        node_selector: wanted.node_selector.into_iter().collect(),
        tolerations: wanted
            .tolerations
            .into_iter()
            .map(|t| wire::Toleration {
                key: t.key,
                operator: t.operator,
                value: t.value,
                effect: t.effect,
            })
            .collect(),
        max_hourly_cost: wanted.max_hourly_cost,
        prefer_spot: wanted.prefer_spot,
        latency_target_ms: wanted.latency_target_ms,
        clients: wanted
            .clients
            .into_iter()
            .map(|c| wire::ClientShare {
                place: c.place.0,
                weight: c.weight,
            })
            .collect(),
        data_locality: wanted.data_locality.map(|p| p.0).unwrap_or_default(),
        data_gib: wanted.data_gib,
        cluster_only_fields: wanted.cluster_only_fields,
        manifest: String::new(),
    })
}

fn reconcile(spec: &HyperionWorkloadSpec) -> wire::Reconcile {
    let disconnect = spec.policy.disconnect.as_ref();
    match disconnect.and_then(|d| d.reconcile).unwrap_or_default() {
        Reconcile::Site => wire::Reconcile::Site,
        Reconcile::ControlPlane => wire::Reconcile::ControlPlane,
    }
}

/// A year in milliseconds, the bound on the wire: longer is as good as never.
const YEAR_MS: u64 = 366 * 24 * 3600 * 1000;

/// Milliseconds; 0 means that the user said nothing, so a stated 0 becomes the next best.
fn millis(time: Option<Duration>) -> u64 {
    time.map_or(0, |t| {
        u64::try_from(t.as_millis())
            .unwrap_or(u64::MAX)
            .clamp(1, YEAR_MS)
    })
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn words<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(type_: &str, pod: Value, policy: Value) -> HyperionWorkloadSpec {
        let mut base = json!({ "containers": [{ "name": "a", "image": "i",
            "resources": { "limits": { "cpu": "500m", "memory": "64Mi" } } }] });
        base.as_object_mut()
            .unwrap()
            .extend(pod.as_object().unwrap().clone());
        let spec = json!({ "type": type_, "template": { "spec": base }, "policy": policy });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn carries_all_that_decides_about_the_place() {
        let got = intent(&spec(
            "job",
            json!({ "priority": 7, "nodeSelector": { "kubernetes.io/arch": "aarch64", "room": "3" },
                "tolerations": [{ "key": "gpu", "operator": "Exists" }], "volumes": [] }),
            json!({ "goal": "cost", "exclusive": true, "maxHourlyCost": 0.5, "latencyTargetMs": 20.0,
                "constraints": { "geographies": ["EU"], "clouds": ["edge"], "tiers": ["edge"],
                    "preferSpot": true },
                "clients": [{ "site": "lab", "weight": 2.0 }],
                "data": { "locality": "aws:us-east-1" },
                "disconnect": { "replaceAfter": "1m30s", "stopAfter": "0s", "reconcile": "controlPlane" } }),
        ))
        .unwrap();
        let want = wire::Intent {
            workload_type: "job".into(),
            goal: "cost".into(),
            exclusive: true,
            replace_after_ms: 90_000,
            stop_after_ms: 1,
            reconcile: wire::Reconcile::ControlPlane.into(),
            priority: 7,
            cpu_millis: 500,
            memory_bytes: 64 << 20,
            geographies: vec!["EU".into()],
            clouds: vec!["edge".into()],
            tiers: vec!["edge".into()],
            archs: vec!["arm64".into()],
            node_selector: [("room".to_owned(), "3".to_owned())].into(),
            tolerations: vec![wire::Toleration {
                key: "gpu".into(),
                operator: "Exists".into(),
                ..Default::default()
            }],
            max_hourly_cost: Some(0.5),
            prefer_spot: true,
            latency_target_ms: Some(20.0),
            clients: vec![wire::ClientShare {
                place: "site:lab".into(),
                weight: 2.0,
            }],
            data_locality: "aws:us-east-1".into(),
            cluster_only_fields: vec!["spec.volumes".into()],
            ..Default::default()
        };
        assert_eq!(got, want);
    }

    #[test]
    fn what_the_user_left_out_stays_open() {
        let got = intent(&spec("service", json!({}), json!({}))).unwrap();
        assert_eq!((got.replace_after_ms, got.stop_after_ms), (0, 0));
        assert_eq!(got.reconcile(), wire::Reconcile::Site);
        assert!(got.cluster_only_fields.is_empty());
    }

    #[test]
    fn a_bad_duration_names_its_field() {
        for (name, text) in [("replaceAfter", "soon"), ("stopAfter", "-1s")] {
            let policy = json!({ "disconnect": { name: text } });
            let refused = intent(&spec("service", json!({}), policy)).unwrap_err();
            assert_eq!(refused.field, format!("spec.policy.disconnect.{name}"));
        }
    }
}
