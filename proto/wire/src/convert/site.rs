//! What sites keep and spread: intents, records of replicas and of nodes, and what is known of the
//! site.

use std::str::FromStr;
use std::time::Duration;

use hyperion_placement::model::{
    Client, GpuRequest, Place, Request, Resources, Toleration, normalize_arch,
};

use super::{
    Invalid, MAX_BYTES, MAX_CPU_MILLIS, MAX_TEXT, bounded, capabilities, few, invalid, number,
    object_name, pod_spec, replica_key, required, start_of, text,
};
use crate::agent_v1 as wire;
use crate::domain::{Capabilities, Intent, Reconcile, Record};
use crate::peer_v1;

/// Largest record that is accepted, bytes: what one agent message may be, with room to spare.
pub const MAX_RECORD: usize = 1 << 20;
/// Largest manifest that is accepted, bytes.
const MAX_MANIFEST: usize = 256 * 1024;
/// No generation is higher: a replica that was placed once a second for a century has fewer.
pub const MAX_GENERATION: u64 = 1 << 32;
/// No agent was started more often.
const MAX_BOOT: u64 = 1 << 30;
/// A year in milliseconds: no time to wait is longer.
const MAX_WAIT_MS: u64 = 366 * 24 * 3600 * 1000;
/// Most enrolled nodes of one site.
const MAX_MEMBERS: usize = 4096;
/// Most replicas that one node may say it holds, and most images that it may name.
const MAX_HELD: usize = 4096;

/// What a workload wants.
///
/// # Errors
/// Names the field.
pub fn intent(i: &wire::Intent) -> Result<Intent, Invalid> {
    let field = |name: &str| format!("intent.{name}");
    let gpu = gpu(i)?;
    Ok(Intent {
        wants: Request {
            workload_type: word(&field("workload_type"), &i.workload_type)?,
            goal: word(&field("goal"), &i.goal)?,
            resources: Resources {
                cpu_millis: bounded(&field("cpu_millis"), i.cpu_millis, MAX_CPU_MILLIS)?,
                memory_bytes: bounded(&field("memory_bytes"), i.memory_bytes, MAX_BYTES)?,
            },
            gpu,
            geographies: words(&field("geographies"), &i.geographies)?,
            clouds: words(&field("clouds"), &i.clouds)?,
            tiers: words(&field("tiers"), &i.tiers)?,
            archs: texts(&field("archs"), &i.archs)?
                .iter()
                .map(|arch| normalize_arch(arch).to_owned())
                .collect(),
            node_selector: {
                few(&field("node_selector"), i.node_selector.len())?;
                let pair = |(key, value): (&String, &String)| {
                    Ok((
                        required(&field("node_selector key"), key)?,
                        text(&field("node_selector"), value, MAX_TEXT)?,
                    ))
                };
                i.node_selector.iter().map(pair).collect::<Result<_, _>>()?
            },
            tolerations: {
                few(&field("tolerations"), i.tolerations.len())?;
                let all = i.tolerations.iter().enumerate();
                all.map(|(at, t)| toleration(&field(&format!("tolerations[{at}]")), t))
                    .collect::<Result<_, _>>()?
            },
            max_hourly_cost: positive(&field("max_hourly_cost"), i.max_hourly_cost, 1e9)?,
            prefer_spot: i.prefer_spot,
            latency_target_ms: positive(&field("latency_target_ms"), i.latency_target_ms, 1e9)?,
            clients: {
                few(&field("clients"), i.clients.len())?;
                let all = i.clients.iter().enumerate();
                all.map(|(at, c)| {
                    let field = |name: &str| format!("intent.clients[{at}].{name}");
                    Ok(Client {
                        place: Place(required(&field("place"), &c.place)?),
                        weight: number(&field("weight"), c.weight, 0.0, 1e9)?,
                    })
                })
                .collect::<Result<_, _>>()?
            },
            data_locality: match i.data_locality.as_str() {
                "" => None,
                place => Some(Place(text(&field("data_locality"), place, MAX_TEXT)?)),
            },
            data_gib: positive(&field("data_gib"), Some(i.data_gib), 1e9)?.unwrap_or(0.0),
            cluster_only_fields: texts(&field("cluster_only_fields"), &i.cluster_only_fields)?,
            ..Request::new("")
        },
        exclusive: i.exclusive,
        replace_after: wait(&field("replace_after_ms"), i.replace_after_ms)?,
        stop_after: wait(&field("stop_after_ms"), i.stop_after_ms)?,
        reconcile: match wire::Reconcile::try_from(i.reconcile) {
            Ok(wire::Reconcile::Unspecified | wire::Reconcile::Site) => Reconcile::Site,
            Ok(wire::Reconcile::ControlPlane) => Reconcile::ControlPlane,
            Err(_) => {
                let problem = format!("{} is not a known word", i.reconcile);
                return invalid(field("reconcile"), problem);
            }
        },
        priority: i.priority,
        manifest: text(&field("manifest"), &i.manifest, MAX_MANIFEST)?,
    })
}

fn gpu(i: &wire::Intent) -> Result<GpuRequest, Invalid> {
    few("intent.gpu_count", i.gpu_count as usize)?;
    if i.gpu_count == 0 {
        return Ok(GpuRequest::default());
    }
    let millis = i.gpu_millis;
    if millis == 0 || millis > 1000 {
        let problem = format!("{millis} is not between 1 and 1000");
        return invalid("intent.gpu_millis", problem);
    }
    if millis < 1000 && i.gpu_count > 1 {
        let problem = format!("{millis} of each of {} devices", i.gpu_count);
        return invalid("intent.gpu_millis", problem);
    }
    Ok(GpuRequest {
        count: i.gpu_count,
        millis,
    })
}

fn word<T: FromStr>(field: &str, value: &str) -> Result<T, Invalid>
where
    T::Err: std::fmt::Display,
{
    value.parse().or_else(|_: T::Err| {
        let problem = format!("{:?} is not a known word", start_of(value));
        invalid(field, problem)
    })
}

fn words<T: FromStr>(field: &str, values: &[String]) -> Result<Vec<T>, Invalid>
where
    T::Err: std::fmt::Display,
{
    few(field, values.len())?;
    values.iter().map(|value| word(field, value)).collect()
}

fn texts(field: &str, values: &[String]) -> Result<Vec<String>, Invalid> {
    few(field, values.len())?;
    values.iter().map(|value| required(field, value)).collect()
}

fn positive(field: &str, value: Option<f64>, max: f64) -> Result<Option<f64>, Invalid> {
    match value {
        Some(v) if !(0.0..=max).contains(&v) => {
            invalid(field, format!("{v} is not between 0 and {max}"))
        }
        value => Ok(value),
    }
}

fn wait(field: &str, ms: u64) -> Result<Option<Duration>, Invalid> {
    match ms {
        0 => Ok(None),
        1..=MAX_WAIT_MS => Ok(Some(Duration::from_millis(ms))),
        _ => invalid(field, format!("{ms} is more than a year")),
    }
}

fn toleration(field: &str, t: &wire::Toleration) -> Result<Toleration, Invalid> {
    let part = |name: &str, value: &str| text(&format!("{field}.{name}"), value, MAX_TEXT);
    Ok(Toleration {
        key: part("key", &t.key)?,
        operator: part("operator", &t.operator)?,
        value: part("value", &t.value)?,
        effect: part("effect", &t.effect)?,
    })
}

/// A record of a replica. A pod that can't be run is refused; an intent that can't be read is not:
/// the replica then stays where it is.
///
/// # Errors
/// Names the field.
pub fn record(r: &wire::ReplicaRecord) -> Result<Record, Invalid> {
    let field = |name: &str| format!("replica_record.{name}");
    let bytes = prost::Message::encoded_len(r);
    if bytes > MAX_RECORD {
        let problem = format!("{bytes} bytes, at most {MAX_RECORD} are accepted");
        return invalid("replica_record", problem);
    }
    let key = replica_key(&field("key"), r.key.as_ref())?;
    if !(1..=MAX_GENERATION).contains(&r.generation) {
        let problem = format!("{} is not between 1 and {MAX_GENERATION}", r.generation);
        return invalid(field("generation"), problem);
    }
    let state = wire::RecordState::try_from(r.state).unwrap_or_default();
    match state {
        wire::RecordState::Unspecified => {
            return invalid(field("state"), format!("{} is not known", r.state));
        }
        wire::RecordState::Placed => drop(node_id(&field("node"), &r.node)?),
        wire::RecordState::Pending | wire::RecordState::Removed if !r.node.is_empty() => {
            return invalid(field("node"), "names a node without a place there");
        }
        _ if !r.node.is_empty() => drop(node_id(&field("node"), &r.node)?),
        _ => {}
    }
    if !r.decider.is_empty() {
        node_id(&field("decider"), &r.decider)?;
    }
    match (&r.pod, state) {
        (Some(pod), _) => pod_spec(&field("pod"), pod)?,
        (None, wire::RecordState::Placed | wire::RecordState::Pending) => {
            return invalid(field("pod"), "missing");
        }
        (None, _) => {}
    }
    let outcome = wire::ReplicaPhase::try_from(r.outcome).unwrap_or_default();
    let ends = [wire::ReplicaPhase::Succeeded, wire::ReplicaPhase::Failed];
    if state == wire::RecordState::Ended && !ends.contains(&outcome) {
        return invalid(field("outcome"), format!("{} is no end", r.outcome));
    }
    if let Some(why) = &r.explanation {
        text(&field("explanation.cause"), &why.cause, MAX_TEXT)?;
        few(&field("explanation.rejected"), why.rejected.len())?;
        few(&field("explanation.terms"), why.terms.len())?;
        few(&field("explanation.top"), why.top.len())?;
    }
    let read = r.intent.as_ref().map(intent).transpose();
    let intent_problem = read.as_ref().err().map(ToString::to_string);
    Ok(Record {
        key,
        generation: r.generation,
        decider: r.decider.clone(),
        state,
        node: r.node.clone(),
        intent: read.ok().flatten(),
        intent_problem,
    })
}

/// The id of a node.
///
/// # Errors
/// Names the field.
pub fn node_id(field: &str, id: &str) -> Result<String, Invalid> {
    object_name(field, id)
}

/// What a node says of itself: its id, and capabilities that placement can read.
///
/// # Errors
/// Names the field.
pub fn node_record(r: &peer_v1::NodeRecord) -> Result<(String, Capabilities), Invalid> {
    let field = |name: &str| format!("node_record.{name}");
    let bytes = prost::Message::encoded_len(r);
    if bytes > MAX_RECORD {
        let problem = format!("{bytes} bytes, at most {MAX_RECORD} are accepted");
        return invalid("node_record", problem);
    }
    let id = node_id(&field("node_id"), &r.node_id)?;
    if r.version == 0 || r.version >> 32 > MAX_BOOT {
        return invalid(field("version"), format!("{} is out of range", r.version));
    }
    for (name, count) in [("held", r.held.len()), ("images", r.images.len())] {
        if count > MAX_HELD {
            let problem = format!("{count} entries, at most {MAX_HELD} are accepted");
            return invalid(field(name), problem);
        }
    }
    few(&field("addresses"), r.addresses.len())?;
    for held in &r.held {
        replica_key(&field("held.key"), held.key.as_ref())?;
    }
    if let Some(load) = &r.load {
        if load.cpu_percent > 100 {
            let problem = format!("{} is more than 100", load.cpu_percent);
            return invalid(field("load.cpu_percent"), problem);
        }
        bounded(
            &field("load.memory_used_bytes"),
            load.memory_used_bytes,
            MAX_BYTES,
        )?;
        number(&field("load.max_celsius"), load.max_celsius, -100.0, 300.0)?;
    }
    for name in [&r.boot_id, &r.mode, &r.policy_hash, &r.agent_version] {
        text("node_record", name, MAX_TEXT)?;
    }
    Ok((id, capabilities(r.capabilities.as_ref())?))
}

/// What is known of the site.
///
/// # Errors
/// Names the field.
pub fn site_info(info: &wire::SiteInfo) -> Result<(), Invalid> {
    for (name, count) in [
        ("members", info.members.len()),
        ("revoked", info.revoked.len()),
    ] {
        if count > MAX_MEMBERS {
            let problem = format!("{count} entries, at most {MAX_MEMBERS} are accepted");
            return invalid(format!("site_info.{name}"), problem);
        }
    }
    few("site_info.rtts", info.rtts.len())?;
    for (at, member) in info.members.iter().enumerate() {
        let field = |name: &str| format!("site_info.members[{at}].{name}");
        node_id(&field("node_id"), &member.node_id)?;
        few(&field("addresses"), member.addresses.len())?;
        positive(&field("price_per_hour"), Some(member.price_per_hour), 1e9)?;
    }
    for (at, rtt) in info.rtts.iter().enumerate() {
        let field = |name: &str| format!("site_info.rtts[{at}].{name}");
        required(&field("from"), &rtt.from)?;
        required(&field("to"), &rtt.to)?;
        number(&field("rtt_ms"), rtt.rtt_ms, 0.0, 1e9)?;
    }
    text("site_info.site", &info.site, MAX_TEXT).map(drop)
}

#[cfg(test)]
mod tests;
