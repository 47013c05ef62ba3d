//! A workload in the form that placement reads. Every refusal names the field.

use hyperion_placement::gpu;
use hyperion_placement::model::{
    Client, Geography, GpuRequest, Place, Provider, Request, Toleration, normalize_arch,
};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::Invalid;
use crate::quantity;
use crate::template::{CONTAINER_FIELDS, POD_FIELDS};
use crate::workload::{self, HyperionWorkloadSpec, Policy};

/// Whole GPUs.
pub const GPU: &str = "nvidia.com/gpu";
/// A share of one GPU in thousandths, 1 to 1000: asked for like any other resource, instead of
/// [`GPU`].
pub const GPU_MILLIS: &str = "hyperion.io/gpu-millis";

/// Most GPUs that one replica may ask for.
const MAX_GPUS: u64 = 1024;
/// Most replicas of a workload; the same bound as in the CRD.
const MAX_REPLICAS: i32 = 10_000;
/// Most replicas of a gang, for which places are sought in one go; the same bound as in the CRD.
const MAX_GANG: i32 = 256;
/// Fields that change nothing on a node, wherever they are set.
const IGNORED: &[&str] = &[
    "enableServiceLinks",
    "schedulerName",
    "terminationMessagePath",
    "terminationMessagePolicy",
];

/// What a replica of this workload asks for: [`Request::replica`], [`Request::siblings`] and
/// [`Request::avoid`] are left for the caller.
///
/// # Errors
/// The first field that can't be carried out.
pub fn request(spec: &HyperionWorkloadSpec) -> Result<Request, Invalid> {
    let pod = pod(spec)?;
    let policy = &spec.policy;
    let mut request = Request {
        workload_type: spec.type_.into(),
        goal: policy.goal.into(),
        geographies: words(&policy.constraints.geographies),
        clouds: words(&policy.constraints.clouds),
        tiers: words(&policy.constraints.tiers),
        tolerations: tolerations(pod),
        max_hourly_cost: positive("spec.policy.maxHourlyCost", policy.max_hourly_cost)?,
        prefer_spot: policy.constraints.prefer_spot,
        latency_target_ms: positive("spec.policy.latencyTargetMs", policy.latency_target_ms)?,
        clients: clients(policy)?,
        data_locality: locality(policy)?,
        cluster_only_fields: cluster_only_fields(pod),
        ..Request::new("")
    };
    let mut shares = 0;
    for (i, container) in pod.containers.iter().enumerate() {
        let field = format!("spec.template.spec.containers[{i}]");
        let image = container.image.as_deref().unwrap_or_default();
        if image.is_empty() {
            return Err(Invalid::new(format!("{field}.image"), "missing"));
        }
        request.images.push(image.to_owned());
        shares += add_resources(&mut request, &field, container)?;
    }
    share_of_gpu(&mut request, shares)?;
    init_containers(&mut request, pod)?;
    for (key, value) in pod.node_selector.iter().flatten() {
        match key.as_str() {
            "kubernetes.io/arch" => request.archs.push(normalize_arch(value).to_owned()),
            "kubernetes.io/os" if value == "linux" => {}
            _ => {
                request.node_selector.insert(key.clone(), value.clone());
            }
        }
    }
    Ok(request)
}

/// The pod spec of a workload's template, with at least one container.
///
/// # Errors
/// It has none.
pub fn pod(spec: &HyperionWorkloadSpec) -> Result<&PodSpec, Invalid> {
    let pod = spec
        .template
        .spec
        .as_ref()
        .ok_or_else(|| Invalid::new("spec.template.spec", "missing"))?;
    if pod.containers.is_empty() {
        return Err(Invalid::new("spec.template.spec.containers", "empty"));
    }
    Ok(pod)
}

/// Desired replicas.
///
/// # Errors
/// Negative, or more than 10,000; of a gang more than 256.
pub fn replicas(spec: &HyperionWorkloadSpec) -> Result<u32, Invalid> {
    let most = if spec.policy.gang {
        MAX_GANG
    } else {
        MAX_REPLICAS
    };
    u32::try_from(spec.replicas)
        .ok()
        .filter(|_| spec.replicas <= most)
        .ok_or_else(|| {
            let of = if spec.policy.gang { " for a gang" } else { "" };
            let problem = format!("{} is not between 0 and {most}{of}", spec.replicas);
            Invalid::new("spec.replicas", problem)
        })
}

/// What a container asks of one resource: its request, or else its limit; 0 where it names
/// neither. A request above the limit is refused, as Kubernetes does.
///
/// # Errors
/// Names the quantity's field.
pub fn asked(
    field: &str,
    container: &Container,
    resource: &str,
    read: fn(&str, &str) -> Result<u64, Invalid>,
) -> Result<u64, Invalid> {
    let limit = limit(field, container, resource, read)?;
    let requests = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    let Some(Quantity(text)) = requests.and_then(|r| r.get(resource)) else {
        return Ok(limit.unwrap_or(0));
    };
    let path = format!("{field}.resources.requests.{resource}");
    let asked = read(&path, text)?;
    match limit {
        Some(limit) if asked > limit => Err(Invalid::new(
            path,
            format!("{text:?} is more than the limit"),
        )),
        _ => Ok(asked),
    }
}

/// A container's limit of one resource; none where it has none.
///
/// # Errors
/// Names the quantity's field.
pub fn limit(
    field: &str,
    container: &Container,
    resource: &str,
    read: fn(&str, &str) -> Result<u64, Invalid>,
) -> Result<Option<u64>, Invalid> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    limits
        .and_then(|l| l.get(resource))
        .map(|Quantity(text)| read(&format!("{field}.resources.limits.{resource}"), text))
        .transpose()
}

/// Adds a container's demands; gives the thousandths of a shared GPU.
fn add_resources(
    request: &mut Request,
    field: &str,
    container: &Container,
) -> Result<u64, Invalid> {
    let gpus = |f: &str, t: &str| quantity::count(f, t, MAX_GPUS);
    let millis = |f: &str, t: &str| quantity::count(f, t, u64::from(gpu::WHOLE));
    let resources = &mut request.resources;
    resources.cpu_millis += asked(field, container, "cpu", quantity::cpu_millis)?;
    resources.memory_bytes += asked(field, container, "memory", quantity::bytes)?;
    let whole = asked(field, container, GPU, gpus)?;
    request.gpu.count = request
        .gpu
        .count
        .saturating_add(u32::try_from(whole).unwrap_or(u32::MAX));
    unknown_resources(field, container)?;
    asked(field, container, GPU_MILLIS, millis)
}

/// What a cluster's kubelet keeps for init containers: the most that one of them needs beside the
/// sidecars before it, where that is more than what the containers need beside all sidecars.
fn init_containers(request: &mut Request, pod: &PodSpec) -> Result<(), Invalid> {
    let gpus = |f: &str, t: &str| quantity::count(f, t, MAX_GPUS);
    let (mut sidecars, mut most) = ([0_u64; 3], [0_u64; 3]);
    for (i, container) in pod.init_containers.iter().flatten().enumerate() {
        let field = format!("spec.template.spec.initContainers[{i}]");
        unknown_resources(&field, container)?;
        let asked = [
            asked(&field, container, "cpu", quantity::cpu_millis)?,
            asked(&field, container, "memory", quantity::bytes)?,
            asked(&field, container, GPU, gpus)?,
        ];
        let beside = |n: usize| sidecars[n].saturating_add(asked[n]);
        let beside = [beside(0), beside(1), beside(2)];
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = beside;
        }
        for (most, beside) in most.iter_mut().zip(beside) {
            *most = beside.max(*most);
        }
    }
    let resources = &mut request.resources;
    resources.cpu_millis = (resources.cpu_millis + sidecars[0]).max(most[0]);
    resources.memory_bytes = (resources.memory_bytes + sidecars[1]).max(most[1]);
    let count = u64::from(request.gpu.count).saturating_add(sidecars[2]);
    let count = u32::try_from(count.max(most[2])).unwrap_or(u32::MAX);
    if count > request.gpu.count {
        (request.gpu.count, request.gpu.millis) = (count, gpu::WHOLE);
    }
    Ok(())
}

/// A resource that no node counts would be promised without being kept.
fn unknown_resources(field: &str, container: &Container) -> Result<(), Invalid> {
    let known = ["cpu", "memory", GPU, GPU_MILLIS];
    let Some(resources) = &container.resources else {
        return Ok(());
    };
    for (list, quantities) in [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ] {
        for (name, Quantity(text)) in quantities.iter().flatten() {
            let path = format!("{field}.resources.{list}.{name}");
            if name == "ephemeral-storage" {
                quantity::bytes(&path, text)?;
            } else if !known.contains(&name.as_str()) {
                return Err(Invalid::new(
                    path,
                    format!("unknown resource; known are {}", known.join(", ")),
                ));
            }
        }
    }
    Ok(())
}

fn share_of_gpu(request: &mut Request, shares: u64) -> Result<(), Invalid> {
    let field = format!("spec.template.spec.containers[].resources.limits.{GPU_MILLIS}");
    if shares == 0 {
        request.gpu.millis = if request.gpu.count == 0 {
            0
        } else {
            gpu::WHOLE
        };
        return Ok(());
    }
    if request.gpu.count > 0 {
        return Err(Invalid::new(field, format!("can't be combined with {GPU}")));
    }
    if shares > u64::from(gpu::WHOLE) {
        return Err(Invalid::new(
            field,
            format!("{shares} over all containers is more than one GPU's 1000"),
        ));
    }
    request.gpu = GpuRequest {
        count: 1,
        millis: u32::try_from(shares).unwrap_or(gpu::WHOLE),
    };
    Ok(())
}

fn words<A: Copy + Into<D>, D>(list: &[A]) -> Vec<D> {
    list.iter().map(|w| (*w).into()).collect()
}

fn positive(field: &str, value: Option<f64>) -> Result<Option<f64>, Invalid> {
    match value {
        Some(v) if !v.is_finite() || v <= 0.0 => {
            Err(Invalid::new(field, format!("{v} is not above 0")))
        }
        other => Ok(other),
    }
}

fn tolerations(pod: &PodSpec) -> Vec<Toleration> {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    pod.tolerations
        .iter()
        .flatten()
        .map(|t| Toleration {
            key: text(&t.key),
            operator: t.operator.clone().unwrap_or_else(|| "Equal".to_owned()),
            value: text(&t.value),
            effect: text(&t.effect),
        })
        .collect()
}

/// Where requests come from. Where nobody says, the geographies that the workload may run in stand
/// for its clients, in equal parts: a latency goal needs somebody to be near to.
fn clients(policy: &Policy) -> Result<Vec<Client>, Invalid> {
    if policy.clients.is_empty() {
        let near = words::<_, Geography>(&policy.constraints.geographies).into_iter();
        return Ok(near
            .map(|geography| Client {
                place: Place(format!("geo:{geography}")),
                weight: 1.0,
            })
            .collect());
    }
    let mut clients = Vec::with_capacity(policy.clients.len());
    for (i, client) in policy.clients.iter().enumerate() {
        let field = format!("spec.policy.clients[{i}]");
        if !client.weight.is_finite() || client.weight <= 0.0 {
            let problem = format!("{} is not above 0", client.weight);
            return Err(Invalid::new(format!("{field}.weight"), problem));
        }
        clients.push(Client {
            place: client_place(&field, client)?,
            weight: client.weight,
        });
    }
    Ok(clients)
}

fn client_place(field: &str, client: &workload::Client) -> Result<Place, Invalid> {
    match (&client.geography, &client.site) {
        (Some(geography), None) => {
            let word: Geography = (*geography).into();
            Ok(Place(format!("geo:{word}")))
        }
        (None, Some(site)) => Ok(Place(format!("site:{site}"))),
        _ => Err(Invalid::new(
            field,
            "exactly one of geography and site must be set",
        )),
    }
}

fn locality(policy: &Policy) -> Result<Option<Place>, Invalid> {
    let Some(text) = policy.data.as_ref().and_then(|d| d.locality.as_deref()) else {
        return Ok(None);
    };
    let field = "spec.policy.data.locality";
    let (provider, region) = text
        .split_once(':')
        .filter(|(_, region)| !region.is_empty())
        .ok_or_else(|| Invalid::new(field, format!("{text:?} is not provider:region")))?;
    let provider: Provider = provider
        .parse()
        .map_err(|e| Invalid::new(field, format!("{e}")))?;
    // The latency matrix knows an edge site by its name.
    Ok(Some(match provider {
        Provider::Edge => Place(format!("site:{region}")),
        cloud => Place(format!("{cloud}:{region}")),
    }))
}

/// Fields of the template that only a cluster can carry out, as paths below `spec.template`.
fn cluster_only_fields(pod: &PodSpec) -> Vec<String> {
    let mut found = others(pod, "spec", POD_FIELDS);
    for (i, container) in pod.containers.iter().enumerate() {
        let path = format!("spec.containers[{i}]");
        found.extend(others(container, &path, CONTAINER_FIELDS));
        for var in container.env.iter().flatten() {
            if var.value_from.is_some() {
                found.push(format!("{path}.env[{}].valueFrom", var.name));
            }
        }
        for (name, probe) in [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
        ] {
            if probe.as_ref().is_some_and(|p| p.grpc.is_some()) {
                found.push(format!("{path}.{name}.grpc"));
            }
        }
    }
    found
}

fn others(object: &impl serde::Serialize, path: &str, known: &[&str]) -> Vec<String> {
    let Ok(Value::Object(fields)) = serde_json::to_value(object) else {
        return Vec::new();
    };
    fields
        .keys()
        .filter(|name| !known.contains(&name.as_str()) && !IGNORED.contains(&name.as_str()))
        .map(|name| format!("{path}.{name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use hyperion_placement::model::Goal;
    use serde_json::json;

    fn spec(container: Value, policy: Value) -> HyperionWorkloadSpec {
        let mut base = json!({ "name": "a", "image": "i" });
        base.as_object_mut()
            .unwrap()
            .extend(container.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "template": { "spec": { "containers": [base] } },
            "policy": policy,
        }))
        .unwrap()
    }

    fn limits(limits: Value) -> HyperionWorkloadSpec {
        spec(json!({ "resources": { "limits": limits } }), json!({}))
    }

    fn refused(spec: &HyperionWorkloadSpec) -> String {
        request(spec).unwrap_err().field
    }

    #[test]
    fn the_specifications_example_is_understood() {
        let r = request(&spec(
            json!({ "resources": { "limits": { "cpu": "2", "memory": "4Gi", GPU: "1" } } }),
            json!({ "goal": "latency",
                "constraints": { "geographies": ["US", "EU"], "clouds": ["aws", "gcp"], "preferSpot": true },
                "data": { "source": "s3://b/d", "locality": "aws:us-east-1" } }),
        ))
        .unwrap();
        assert_eq!(r.goal, Goal::Latency);
        assert_eq!(r.geographies, [Geography::Us, Geography::Eu]);
        assert_eq!(r.clouds, [Provider::Aws, Provider::Gcp]);
        assert!(r.prefer_spot);
        let clients: Vec<&str> = r.clients.iter().map(|c| c.place.0.as_str()).collect();
        assert_eq!(
            clients,
            ["geo:US", "geo:EU"],
            "nobody said where requests come from"
        );
        assert_eq!(
            (r.resources.cpu_millis, r.resources.memory_bytes),
            (2000, 4 << 30)
        );
        assert_eq!(
            r.gpu,
            GpuRequest {
                count: 1,
                millis: 1000
            }
        );
        assert_eq!(r.data_locality, Some(Place("aws:us-east-1".into())));
        assert_eq!(r.cluster_only_fields, Vec::<String>::new());
    }

    #[test]
    fn bad_quantities_name_the_field() {
        let at = "spec.template.spec.containers[0].resources.limits";
        for (resource, value) in [
            ("cpu", "-1"),
            ("memory", "lots"),
            ("memory", "999999999999Gi"),
            (GPU, "0.5"),
            ("amd.com/gpu", "1"),
        ] {
            assert_eq!(
                refused(&limits(json!({ resource: value }))),
                format!("{at}.{resource}")
            );
        }
        let above = spec(
            json!({ "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "2" } } }),
            json!({}),
        );
        assert_eq!(
            refused(&above),
            "spec.template.spec.containers[0].resources.requests.cpu"
        );
    }

    #[test]
    fn a_share_of_a_gpu_is_asked_for_in_thousandths() {
        let r = request(&limits(json!({ GPU_MILLIS: "250" }))).unwrap();
        assert_eq!(
            r.gpu,
            GpuRequest {
                count: 1,
                millis: 250
            }
        );
        assert!(request(&limits(json!({ GPU_MILLIS: "1001" }))).is_err());
        assert!(request(&limits(json!({ GPU_MILLIS: "250", GPU: "1" }))).is_err());
    }

    #[test]
    fn init_containers_and_sidecars_need_their_room() {
        let container = |name: &str, cpu: &str, policy: Value| {
            json!({ "name": name, "image": "i", "restartPolicy": policy,
                "resources": { "limits": { "cpu": cpu, "memory": "1Gi", GPU: "1" } } })
        };
        let asked = |init: Value| {
            let mut s = limits(json!({ "cpu": "2", "memory": "4Gi" }));
            let init = serde_json::from_value(init).unwrap();
            s.template.spec.as_mut().unwrap().init_containers = Some(init);
            request(&s).map(|r| {
                (
                    r.resources.cpu_millis,
                    r.resources.memory_bytes >> 30,
                    r.gpu.count,
                )
            })
        };
        assert_eq!(
            asked(json!([container("a", "1", Value::Null)])),
            Ok((2000, 4, 1))
        );
        assert_eq!(
            asked(json!([container("a", "3", Value::Null)])),
            Ok((3000, 4, 1))
        );
        let both = json!([
            container("s", "1", json!("Always")),
            container("a", "3", Value::Null)
        ]);
        assert_eq!(asked(both), Ok((4000, 5, 2)));
        let refused = asked(json!([container("a", "-1", Value::Null)])).unwrap_err();
        assert_eq!(
            refused.field,
            "spec.template.spec.initContainers[0].resources.limits.cpu"
        );
    }

    #[test]
    fn policies_name_the_field() {
        for (policy, field) in [
            (json!({ "maxHourlyCost": 0.0 }), "spec.policy.maxHourlyCost"),
            (
                json!({ "latencyTargetMs": -5 }),
                "spec.policy.latencyTargetMs",
            ),
            (
                json!({ "clients": [{ "weight": 1 }] }),
                "spec.policy.clients[0]",
            ),
            (
                json!({ "clients": [{ "site": "lab", "weight": 0 }] }),
                "spec.policy.clients[0].weight",
            ),
            (
                json!({ "data": { "locality": "mars:north" } }),
                "spec.policy.data.locality",
            ),
        ] {
            assert_eq!(refused(&spec(json!({}), policy)), field);
        }
    }

    #[test]
    fn fields_for_clusters_only_are_listed() {
        let mut s = spec(
            json!({ "envFrom": [{ "configMapRef": { "name": "c" } }],
                "env": [{ "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "x" } } }] }),
            json!({}),
        );
        s.template.spec.as_mut().unwrap().volumes = Some(Vec::new());
        assert_eq!(
            request(&s).unwrap().cluster_only_fields,
            [
                "spec.volumes",
                "spec.containers[0].envFrom",
                "spec.containers[0].env[A].valueFrom"
            ]
        );
    }

    #[test]
    fn architecture_is_a_constraint_of_its_own() {
        let mut s = spec(json!({}), json!({}));
        s.template.spec.as_mut().unwrap().node_selector = Some(BTreeMap::from([
            ("kubernetes.io/arch".to_owned(), "aarch64".to_owned()),
            ("room".to_owned(), "7".to_owned()),
        ]));
        let r = request(&s).unwrap();
        assert_eq!(r.archs, ["arm64"]);
        assert_eq!(r.node_selector.len(), 1);
    }
}
