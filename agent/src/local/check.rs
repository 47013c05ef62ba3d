//! What is accepted of a workload that a person applies: the same as from the control plane, and
//! nothing that only a decider may say.

use hyper::StatusCode;
use hyperion_autonomy::Mode;
use hyperion_proto::agent_v1::{RecordState, ReplicaRecord};
use hyperion_proto::convert::{self, Invalid};

use super::answer::Refused;

/// Begins the uid of a workload that was applied at a site.
pub(super) const SITE_UID: &str = "site-";
/// Most replicas of one workload at one site.
const MAX_REPLICAS: usize = 1000;

/// Whether the node takes orders of people at the site.
pub(super) fn mode(mode: &str) -> Result<(), Refused> {
    let advice = match mode {
        m if m == Mode::Autonomous.as_str() => return Ok(()),
        m if m == Mode::Suspect.as_str() => {
            "whether the site is cut off is not known yet: try again in a few seconds"
        }
        m if m == Mode::Reconciling.as_str() => {
            "the control plane is back and takes over what the site decided: use kubectl"
        }
        _ => "the control plane is in reach and decides: use kubectl",
    };
    let said = format!("this node is {mode}: {advice}");
    Err(Refused::new(StatusCode::CONFLICT, said))
}

/// The records of one workload.
pub(super) fn records(records: &[ReplicaRecord]) -> Result<(), Refused> {
    if records.is_empty() {
        let problem = "empty: a workload without replicas is deleted, not applied";
        return Err(Refused::field("records", problem));
    }
    if records.len() > MAX_REPLICAS {
        let problem = format!("{} replicas, at most {MAX_REPLICAS}", records.len());
        return Err(Refused::field("records", problem));
    }
    for (at, record) in records.iter().enumerate() {
        one(at, record)?;
        let first = records[0].key.as_ref();
        let key = record.key.as_ref();
        let same = key.zip(first).is_some_and(|(key, first)| {
            (&key.namespace, &key.workload, &key.workload_uid)
                == (&first.namespace, &first.workload, &first.workload_uid)
        });
        if !same {
            let problem = "another workload than records[0]: one at a time";
            return Err(Refused::field(format!("records[{at}].key"), problem));
        }
        if key.is_none_or(|key| usize::try_from(key.index) != Ok(at)) {
            let problem = format!("{at} is expected: replicas 0 to n-1 in order");
            return Err(Refused::field(format!("records[{at}].key.index"), problem));
        }
    }
    Ok(())
}

fn one(at: usize, record: &ReplicaRecord) -> Result<(), Refused> {
    let field = |name: &str| format!("records[{at}].{name}");
    let named = |e: Invalid| {
        let path = e.field.strip_prefix("replica_record").unwrap_or(&e.field);
        let dot = if path.starts_with('.') || path.is_empty() {
            ""
        } else {
            "."
        };
        Refused::field(format!("records[{at}]{dot}{path}"), e.problem)
    };
    for (name, set) in [
        ("generation", record.generation != 0),
        ("decider", !record.decider.is_empty()),
        ("state", record.state != 0),
        ("node", !record.node.is_empty()),
        ("taken", record.taken),
    ] {
        if set {
            let problem = "must not be set: the site decides it";
            return Err(Refused::field(field(name), problem));
        }
    }
    let Some(intent) = &record.intent else {
        return Err(Refused::field(field("intent"), "missing"));
    };
    convert::intent(intent).map_err(named)?;
    if intent.manifest.is_empty() {
        return Err(Refused::field(field("intent.manifest"), "missing"));
    }
    if !serde_json::from_str::<serde_json::Value>(&intent.manifest).is_ok_and(|m| m.is_object()) {
        let problem = "not a JSON object";
        return Err(Refused::field(field("intent.manifest"), problem));
    }
    // As the decider will complete it.
    let pending = ReplicaRecord {
        generation: 1,
        state: RecordState::Pending.into(),
        ..record.clone()
    };
    let read = convert::record(&pending).map_err(named)?;
    if !read.key.uid.starts_with(SITE_UID) {
        let problem = format!("does not begin with {SITE_UID:?}");
        return Err(Refused::field(field("key.workload_uid"), problem));
    }
    Ok(())
}
