//! A workload's template in the form that an agent runs. Every refusal names the field.

use std::collections::{BTreeMap, HashMap};

use hyperion_wire::agent_v1 as wire;
use hyperion_wire::agent_v1::probe::Handler;
use k8s_openapi::api::core::v1::{Container, ContainerPort, HTTPGetAction, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::placement::GpuAssignment;
use crate::workload::{HyperionWorkloadSpec, WorkloadType};
use crate::{Invalid, quantity, request};

/// Kubernetes' default grace between SIGTERM and SIGKILL, seconds.
pub const DEFAULT_GRACE: u32 = 30;
/// A day, seconds: the same bound as in the CRD.
const MAX_GRACE: i64 = 86_400;

/// What a node is told to run for one replica.
///
/// # Errors
/// The first field that a node can't carry out.
pub fn pod_spec(
    spec: &HyperionWorkloadSpec,
    gpus: &[GpuAssignment],
) -> Result<wire::PodSpec, Invalid> {
    let pod = request::pod(spec)?;
    let containers = pod
        .containers
        .iter()
        .enumerate()
        .map(|(i, c)| container(&format!("spec.template.spec.containers[{i}]"), c))
        .collect::<Result<Vec<_>, _>>()?;
    let metadata = spec.template.metadata.as_ref();
    let labels = metadata.and_then(|m| m.labels.clone()).unwrap_or_default();
    Ok(wire::PodSpec {
        containers,
        restart_policy: restart_policy(spec.type_, pod)?.into(),
        termination_grace_period_seconds: grace(pod)?,
        host_network: pod.host_network.unwrap_or(false),
        labels: labels.into_iter().collect::<HashMap<_, _>>(),
        gpus: gpus
            .iter()
            .map(|g| wire::GpuShare {
                uuid: g.uuid.clone(),
                millis: u32::try_from(g.millis).unwrap_or(0),
            })
            .collect(),
    })
}

/// Grace between SIGTERM and SIGKILL, seconds.
///
/// # Errors
/// Negative, or more than a day.
pub fn grace(pod: &PodSpec) -> Result<u32, Invalid> {
    match pod.termination_grace_period_seconds {
        None => Ok(DEFAULT_GRACE),
        // 0 means "not set" on the wire: 1 s is as near to at once as it can say.
        Some(s) if (0..=MAX_GRACE).contains(&s) => {
            Ok(u32::try_from(s).unwrap_or(DEFAULT_GRACE).max(1))
        }
        Some(s) => Err(Invalid::new(
            "spec.template.spec.terminationGracePeriodSeconds",
            format!("{s} is not between 0 and {MAX_GRACE}"),
        )),
    }
}

fn restart_policy(type_: WorkloadType, pod: &PodSpec) -> Result<wire::RestartPolicy, Invalid> {
    let field = "spec.template.spec.restartPolicy";
    match (type_, pod.restart_policy.as_deref()) {
        (WorkloadType::Service, None | Some("Always")) => Ok(wire::RestartPolicy::Always),
        (WorkloadType::Job, None | Some("OnFailure")) => Ok(wire::RestartPolicy::OnFailure),
        (WorkloadType::Job, Some("Never")) => Ok(wire::RestartPolicy::Never),
        (WorkloadType::Service, Some(other)) => Err(Invalid::new(
            field,
            format!("{other:?}: a service takes only Always"),
        )),
        (WorkloadType::Job, Some(other)) => Err(Invalid::new(
            field,
            format!("{other:?}: a job takes OnFailure or Never"),
        )),
    }
}

fn container(field: &str, c: &Container) -> Result<wire::Container, Invalid> {
    let mut variables = BTreeMap::new();
    let mut env = Vec::new();
    for var in c.env.iter().flatten() {
        if var.name.is_empty() || var.name.contains(['=', '\0']) {
            let problem = format!("{:?} is not a variable name", var.name);
            return Err(Invalid::new(format!("{field}.env"), problem));
        }
        let value = expand(var.value.as_deref().unwrap_or_default(), &variables);
        variables.insert(var.name.clone(), value.clone());
        env.push(wire::EnvVar {
            name: var.name.clone(),
            value,
        });
    }
    let expanded = |list: &Option<Vec<String>>| {
        let list = list.iter().flatten();
        list.map(|text| expand(text, &variables)).collect()
    };
    let cpu = quantity::cpu_millis;
    Ok(wire::Container {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        command: expanded(&c.command),
        args: expanded(&c.args),
        env,
        ports: ports(field, c)?,
        cpu_limit_millis: signed(request::limit(field, c, "cpu", cpu)?.unwrap_or(0)),
        memory_limit_bytes: signed(
            request::limit(field, c, "memory", quantity::bytes)?.unwrap_or(0),
        ),
        cpu_request_millis: signed(request::asked(field, c, "cpu", cpu)?),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        liveness: probe(&format!("{field}.livenessProbe"), c, &c.liveness_probe)?,
        readiness: probe(&format!("{field}.readinessProbe"), c, &c.readiness_probe)?,
        pull_policy: pull_policy(field, c)?.into(),
    })
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `$(NAME)` as Kubernetes replaces it: known variables only, `$$(` is a literal `$(`.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = from.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let name = from
            .strip_prefix("$(")
            .and_then(|inner| inner.split_once(')'));
        match name.and_then(|(name, after)| Some((variables.get(name)?, after))) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &from[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn ports(field: &str, c: &Container) -> Result<Vec<wire::Port>, Invalid> {
    let in_range = |name: &str, i: usize, port: i32, least: i32| {
        u32::try_from(port)
            .ok()
            .filter(|p| (least..=65_535).contains(&port) && *p <= 65_535)
            .ok_or_else(|| {
                let problem = format!("{port} is not between {least} and 65535");
                Invalid::new(format!("{field}.ports[{i}].{name}"), problem)
            })
    };
    let mut ports = Vec::new();
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !["TCP", "UDP"].contains(&protocol) {
            let problem = format!("{protocol:?} is neither TCP nor UDP");
            return Err(Invalid::new(
                format!("{field}.ports[{i}].protocol"),
                problem,
            ));
        }
        ports.push(wire::Port {
            name: port.name.clone().unwrap_or_default(),
            container_port: in_range("containerPort", i, port.container_port, 1)?,
            host_port: in_range("hostPort", i, port.host_port.unwrap_or(0), 0)?,
            protocol: protocol.to_owned(),
        });
    }
    Ok(ports)
}

fn pull_policy(field: &str, c: &Container) -> Result<wire::PullPolicy, Invalid> {
    match c.image_pull_policy.as_deref() {
        Some("Always") => Ok(wire::PullPolicy::Always),
        Some("Never") => Ok(wire::PullPolicy::Never),
        // Also what Kubernetes would pull always (tag latest): a node that is cut off must be able
        // to start what it has.
        None | Some("IfNotPresent") => Ok(wire::PullPolicy::IfNotPresent),
        Some(other) => Err(Invalid::new(
            format!("{field}.imagePullPolicy"),
            format!("{other:?} is not Always, IfNotPresent or Never"),
        )),
    }
}

fn probe(
    field: &str,
    c: &Container,
    probe: &Option<Probe>,
) -> Result<Option<wire::Probe>, Invalid> {
    let Some(p) = probe else { return Ok(None) };
    let handler = match (&p.http_get, &p.tcp_socket, &p.exec) {
        (Some(get), None, None) => Handler::HttpGet(http_get(field, c, get)?),
        (None, Some(tcp), None) => Handler::TcpPort(port_number(
            &format!("{field}.tcpSocket.port"),
            c,
            &tcp.port,
        )?),
        (None, None, Some(exec)) => Handler::Exec(wire::ExecAction {
            command: exec.command.clone().unwrap_or_default(),
        }),
        // Carried out by a cluster; see `cluster_only_fields`.
        (None, None, None) if p.grpc.is_some() => return Ok(None),
        _ => {
            let problem = "exactly one of httpGet, tcpSocket and exec must be set";
            return Err(Invalid::new(field, problem));
        }
    };
    let number = |name: &str, value: Option<i32>, usual: u32| match value {
        None | Some(0) => Ok(usual),
        Some(v) => u32::try_from(v)
            .map_err(|_| Invalid::new(format!("{field}.{name}"), format!("{v} is negative"))),
    };
    Ok(Some(wire::Probe {
        handler: Some(handler),
        initial_delay_seconds: number("initialDelaySeconds", p.initial_delay_seconds, 0)?,
        period_seconds: number("periodSeconds", p.period_seconds, 10)?,
        timeout_seconds: number("timeoutSeconds", p.timeout_seconds, 1)?,
        success_threshold: number("successThreshold", p.success_threshold, 1)?,
        failure_threshold: number("failureThreshold", p.failure_threshold, 3)?,
    }))
}

fn http_get(field: &str, c: &Container, get: &HTTPGetAction) -> Result<wire::HttpGet, Invalid> {
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err(Invalid::new(
            format!("{field}.httpGet.scheme"),
            format!("{scheme:?} is neither HTTP nor HTTPS"),
        ));
    }
    Ok(wire::HttpGet {
        path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
        port: port_number(&format!("{field}.httpGet.port"), c, &get.port)?,
        scheme,
        headers: get
            .http_headers
            .iter()
            .flatten()
            .map(|h| wire::EnvVar {
                name: h.name.clone(),
                value: h.value.clone(),
            })
            .collect(),
    })
}

fn port_number(field: &str, c: &Container, port: &IntOrString) -> Result<u32, Invalid> {
    let named = |name: &String| {
        let same = |p: &&ContainerPort| p.name.as_ref() == Some(name);
        c.ports
            .iter()
            .flatten()
            .find(same)
            .map(|p| p.container_port)
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => named(name).or_else(|| name.parse().ok()),
    };
    number
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| (1..=65_535).contains(n))
        .ok_or_else(|| Invalid::new(field, format!("{port:?} is no port of this container")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(container: Value, type_: &str) -> Result<wire::PodSpec, Invalid> {
        let mut base = json!({ "name": "a", "image": "i" });
        base.as_object_mut()
            .unwrap()
            .extend(container.as_object().unwrap().clone());
        let spec = json!({ "type": type_, "template": { "spec": { "containers": [base] } } });
        pod_spec(&serde_json::from_value(spec).unwrap(), &[])
    }

    #[test]
    fn restart_policy_follows_the_type() {
        let policy = |t| pod(json!({}), t).unwrap().restart_policy();
        assert_eq!(policy("service"), wire::RestartPolicy::Always);
        assert_eq!(policy("job"), wire::RestartPolicy::OnFailure);
    }

    #[test]
    fn limits_and_requests_are_carried_over() {
        let p = pod(
            json!({ "resources": { "limits": { "cpu": "2", "memory": "4Gi" } } }),
            "service",
        );
        let c = p.unwrap().containers.remove(0);
        assert_eq!(
            (
                c.cpu_limit_millis,
                c.cpu_request_millis,
                c.memory_limit_bytes
            ),
            (2000, 2000, 4 << 30)
        );
    }

    #[test]
    fn variables_are_expanded_as_kubernetes_does() {
        let p = pod(
            json!({ "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "$(A)2" }],
                "args": ["x=$(B)", "$$(A)", "$(C)", "$", "$(", "ä$(A)ö"] }),
            "service",
        );
        assert_eq!(
            p.unwrap().containers[0].args,
            ["x=12", "$(A)", "$(C)", "$", "$(", "ä1ö"]
        );
    }

    #[test]
    fn probes_take_ports_by_name() {
        let p = pod(
            json!({ "ports": [{ "name": "web", "containerPort": 8080 }],
                "readinessProbe": { "httpGet": { "path": "/ok", "port": "web" } } }),
            "service",
        );
        let probe = p.unwrap().containers[0].readiness.clone().unwrap();
        assert_eq!((probe.period_seconds, probe.failure_threshold), (10, 3));
        assert!(matches!(probe.handler, Some(Handler::HttpGet(g)) if g.port == 8080));
    }

    #[test]
    fn what_a_node_cant_do_names_the_field() {
        let at = "spec.template.spec.containers[0]";
        for (c, field) in [
            (
                json!({ "ports": [{ "containerPort": 70000 }] }),
                "ports[0].containerPort",
            ),
            (
                json!({ "ports": [{ "containerPort": 1, "protocol": "SCTP" }] }),
                "ports[0].protocol",
            ),
            (json!({ "livenessProbe": {} }), "livenessProbe"),
            (
                json!({ "livenessProbe": { "tcpSocket": { "port": "nope" } } }),
                "livenessProbe.tcpSocket.port",
            ),
            (json!({ "imagePullPolicy": "Sometimes" }), "imagePullPolicy"),
        ] {
            let refused = pod(c, "service").unwrap_err();
            assert_eq!(refused.field, format!("{at}.{field}"));
        }
    }
}
