//! The store's file: tables, reading and writing. Messages of the wire protocol are the records,
//! so that there is one format to keep compatible and not two.

use std::collections::BTreeSet;

use bytes::Bytes;
use hyperion_proto::agent_v1::{
    Event, PolicyOffer, ReplicaPhase, ReplicaRecord, ReplicaReport, SiteInfo, StartReplica,
};
use hyperion_proto::convert;
use hyperion_proto::domain::ReplicaKey;
use prost::Message;
use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

use super::ring::Batch;
use super::state::{KeptPolicy, KeptRecord, Seen, State};
use super::update::KeptUpdate;
use crate::supervisor::{Desired, Finished};

/// Version of the tables below. A change that an older agent would misread raises it. Version 1
/// had neither records nor site, policy and telemetry: such a file is read as one that holds none.
pub const SCHEMA: u64 = 2;

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// Replica -> `StartReplica`.
const DESIRED: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("desired");
/// Replica of a job that ended -> `ReplicaReport` with the outcome.
const FINISHED: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("finished");
/// Replica -> highest generation and the order of its last change.
const SEEN: TableDefinition<'static, &str, (u64, u64)> = TableDefinition::new("seen");
/// Id -> `Event`.
const EVENTS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("events");
/// Replica -> `ReplicaRecord`: what the site knows of it.
const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
/// `info` -> `SiteInfo`.
const SITE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("site");
/// `current` and `previous` -> `PolicyOffer` and the file.
const POLICY: TableDefinition<'static, &str, (&[u8], &[u8])> = TableDefinition::new("policy");
/// Id -> number of samples, and `TelemetryBatch`.
const TELEMETRY: TableDefinition<'static, u64, (u32, &[u8])> = TableDefinition::new("telemetry");
/// `current` -> `KeptUpdate`. Older agents do not know this table, and leave it as it is.
const UPDATE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("update");

const INFO: &str = "info";
/// The policy that decides.
pub const CURRENT: &str = "current";
/// The one before it.
pub const PREVIOUS: &str = "previous";

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Made by a later agent.
    #[error("version {0}")]
    Newer(u64),
    /// A record that does not decode: nothing in the file can be trusted then.
    #[error("record {0} does not decode")]
    Record(String),
    /// redb.
    #[error(transparent)]
    Redb(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(e: E) -> Self {
        Self::Redb(Box::new(e.into()))
    }
}

/// One change, written with others in one transaction.
pub enum Write<'a> {
    /// What should run.
    Desired(&'a Desired),
    /// No longer.
    Removed(&'a ReplicaKey),
    /// Highest generation.
    Seen(&'a ReplicaKey, Seen),
    /// Tombstone that went.
    Forgotten(&'a ReplicaKey),
    /// An event.
    Event(&'a Event),
    /// An event that went.
    EventGone(u64),
    /// What the site knows of a replica.
    Record(&'a ReplicaKey, &'a [u8]),
    /// No longer.
    RecordGone(&'a ReplicaKey),
    /// What the control plane said of the site.
    Site(&'a SiteInfo),
    /// A policy, as `current` or `previous`; none takes it away.
    Policy(&'static str, Option<&'a KeptPolicy>),
    /// Telemetry: id, samples, bytes.
    Batch(u64, u32, &'a [u8]),
    /// Telemetry that went.
    BatchGone(u64),
    /// The update.
    Update(&'a KeptUpdate),
    /// A number.
    Meta(&'static str, u64),
}

/// Name of a replica in the file; no part of it can contain a slash.
fn name(key: &ReplicaKey) -> String {
    format!(
        "{}/{}/{}/{}",
        key.namespace, key.workload, key.uid, key.index
    )
}

fn parse_name(name: &str) -> Option<ReplicaKey> {
    let mut parts = name.split('/');
    let key = ReplicaKey {
        namespace: parts.next()?.to_owned(),
        workload: parts.next()?.to_owned(),
        uid: parts.next()?.to_owned(),
        index: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(key)
}

/// Reads a file; none where it has never been written.
pub fn load(db: &impl ReadableDatabase) -> Result<Option<State>, LoadError> {
    let tx = db.begin_read()?;
    let meta = match tx.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let number =
        |key: &str| -> Result<Option<u64>, LoadError> { Ok(meta.get(key)?.map(|v| v.value())) };
    let Some(schema) = number("schema")? else {
        return Ok(None);
    };
    if schema > SCHEMA {
        return Err(LoadError::Newer(schema));
    }
    let mut state = State {
        next_event: number("next_event")?.unwrap_or(1),
        dropped: number("dropped")?.unwrap_or(0),
        boot: number("boot")?.unwrap_or(0),
        partial: number("partial")?.unwrap_or(0) != 0,
        ..State::default()
    };
    let finished = tx.open_table(FINISHED)?;
    for row in tx.open_table(DESIRED)?.iter()? {
        let (key, value) = row?;
        let bad = || LoadError::Record(format!("desired/{}", key.value()));
        let order = StartReplica::decode(value.value()).map_err(|_| bad())?;
        let start = convert::start(&order).map_err(|_| bad())?;
        let finished = match finished.get(key.value())? {
            Some(outcome) => Some(decode_outcome(outcome.value()).ok_or_else(bad)?),
            None => None,
        };
        let replica = start.key.clone();
        state.desired.insert(replica, Desired { start, finished });
    }
    for row in tx.open_table(SEEN)?.iter()? {
        let (key, value) = row?;
        let (generation, order) = value.value();
        let replica = parse_name(key.value())
            .ok_or_else(|| LoadError::Record(format!("seen/{}", key.value())))?;
        state.seen.insert(replica, Seen { generation, order });
    }
    for row in tx.open_table(EVENTS)?.iter()? {
        let (id, value) = row?;
        let event = Event::decode(value.value())
            .map_err(|_| LoadError::Record(format!("events/{}", id.value())))?;
        state.events.insert(id.value(), event);
    }
    if schema >= 2 {
        load_site(&tx, &mut state)?;
        state.ring.next_id = number("next_batch")?.unwrap_or(1);
        state.ring.dropped = number("telemetry_dropped")?.unwrap_or(0);
    }
    Ok(Some(state))
}

/// What came with version 2.
fn load_site(tx: &ReadTransaction, state: &mut State) -> Result<(), LoadError> {
    for row in tx.open_table(RECORDS)?.iter()? {
        let (name, value) = row?;
        let bad = || LoadError::Record(format!("records/{}", name.value()));
        let record = ReplicaRecord::decode(value.value()).map_err(|_| bad())?;
        let key = parse_name(name.value()).ok_or_else(bad)?;
        state.records.insert(key, KeptRecord::of(&record));
    }
    if let Some(info) = tx.open_table(SITE)?.get(INFO)? {
        let info = SiteInfo::decode(info.value());
        state.site = Some(info.map_err(|_| LoadError::Record("site/info".to_owned()))?);
    }
    let policies = tx.open_table(POLICY)?;
    for (name, kept) in [
        (CURRENT, &mut state.policy),
        (PREVIOUS, &mut state.previous_policy),
    ] {
        let Some(row) = policies.get(name)? else {
            continue;
        };
        let (offer, file) = row.value();
        let offer =
            PolicyOffer::decode(offer).map_err(|_| LoadError::Record(format!("policy/{name}")))?;
        *kept = Some(KeptPolicy {
            offer,
            file: Bytes::copy_from_slice(file),
        });
    }
    match tx.open_table(UPDATE) {
        Ok(table) => {
            if let Some(row) = table.get(CURRENT)? {
                let bad = |_| LoadError::Record("update/current".to_owned());
                state.update = KeptUpdate::decode(row.value()).map_err(bad)?;
            }
        }
        // Written by an agent that knew of no updates.
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(e) => return Err(e.into()),
    }
    for row in tx.open_table(TELEMETRY)?.iter()? {
        let (id, value) = row?;
        let (samples, bytes) = value.value();
        state
            .ring
            .found(id.value(), Batch::on_disk(samples, bytes.len()));
    }
    Ok(())
}

/// A batch of telemetry.
pub fn batch(db: &impl ReadableDatabase, id: u64) -> Result<Option<Vec<u8>>, LoadError> {
    let tx = db.begin_read()?;
    let table = tx.open_table(TELEMETRY)?;
    let row = table.get(id)?;
    Ok(row.map(|row| row.value().1.to_vec()))
}

/// Writes changes in one transaction; on disk when it returns, if `durability` says so.
pub fn write(db: &Database, durability: Durability, writes: &[Write<'_>]) -> Result<(), LoadError> {
    let mut tx = db.begin_write()?;
    tx.set_durability(durability)?;
    apply(&tx, writes)?;
    tx.commit()?;
    Ok(())
}

/// Replaces all that the file holds, but for telemetry: of that, the file's is kept, what only
/// memory has is added, and what memory has let go is taken away.
pub fn rewrite(db: &Database, state: &mut State) -> Result<(), LoadError> {
    let tx = db.begin_write()?;
    let on_disk: BTreeSet<u64> = {
        let table = tx.open_table(TELEMETRY)?;
        let ids = table.iter()?.map(|row| Ok(row?.0.value()));
        ids.collect::<Result<_, redb::StorageError>>()?
    };
    state.ring.only_with(&on_disk);
    tx.delete_table(META)?;
    tx.delete_table(DESIRED)?;
    tx.delete_table(FINISHED)?;
    tx.delete_table(SEEN)?;
    tx.delete_table(EVENTS)?;
    tx.delete_table(RECORDS)?;
    tx.delete_table(SITE)?;
    tx.delete_table(POLICY)?;
    tx.delete_table(UPDATE)?;
    let mut writes = vec![
        Write::Meta("schema", SCHEMA),
        Write::Meta("next_event", state.next_event),
        Write::Meta("dropped", state.dropped),
        Write::Meta("boot", state.boot),
        Write::Meta("partial", u64::from(state.partial)),
        Write::Meta("next_batch", state.ring.next_id),
        Write::Meta("telemetry_dropped", state.ring.dropped),
    ];
    writes.extend(state.desired.values().map(Write::Desired));
    writes.extend(state.seen.iter().map(|(key, seen)| Write::Seen(key, *seen)));
    writes.extend(state.events.values().map(Write::Event));
    let records = state.records.iter();
    writes.extend(records.map(|(key, record)| Write::Record(key, &record.bytes)));
    writes.extend(state.site.as_ref().map(Write::Site));
    writes.push(Write::Policy(CURRENT, state.policy.as_ref()));
    writes.push(Write::Policy(PREVIOUS, state.previous_policy.as_ref()));
    writes.push(Write::Update(&state.update));
    let gone = on_disk.iter().filter(|id| !state.ring.has(**id));
    writes.extend(gone.map(|id| Write::BatchGone(*id)));
    writes.extend(state.ring.in_memory());
    apply(&tx, &writes)?;
    drop(writes);
    tx.commit()?;
    state.ring.all_on_disk();
    Ok(())
}

fn apply(tx: &WriteTransaction, writes: &[Write<'_>]) -> Result<(), LoadError> {
    let mut meta = tx.open_table(META)?;
    let mut desired = tx.open_table(DESIRED)?;
    let mut finished = tx.open_table(FINISHED)?;
    let mut seen = tx.open_table(SEEN)?;
    let mut events = tx.open_table(EVENTS)?;
    let mut records = tx.open_table(RECORDS)?;
    let mut site = tx.open_table(SITE)?;
    let mut policy = tx.open_table(POLICY)?;
    let mut telemetry = tx.open_table(TELEMETRY)?;
    let mut update = tx.open_table(UPDATE)?;
    for write in writes {
        match write {
            Write::Desired(d) => {
                let name = name(&d.start.key);
                desired.insert(name.as_str(), encode_start(d).as_slice())?;
                match &d.finished {
                    Some(outcome) => {
                        finished.insert(name.as_str(), encode_outcome(outcome).as_slice())?;
                    }
                    None => drop(finished.remove(name.as_str())?),
                }
            }
            Write::Removed(key) => {
                let name = name(key);
                desired.remove(name.as_str())?;
                finished.remove(name.as_str())?;
            }
            Write::Seen(key, value) => {
                seen.insert(name(key).as_str(), (value.generation, value.order))?;
            }
            Write::Forgotten(key) => drop(seen.remove(name(key).as_str())?),
            Write::Event(event) => {
                events.insert(event.id, event.encode_to_vec().as_slice())?;
            }
            Write::EventGone(id) => drop(events.remove(*id)?),
            Write::Record(key, bytes) => drop(records.insert(name(key).as_str(), *bytes)?),
            Write::RecordGone(key) => drop(records.remove(name(key).as_str())?),
            Write::Site(info) => drop(site.insert(INFO, info.encode_to_vec().as_slice())?),
            Write::Policy(which, Some(kept)) => {
                let offer = kept.offer.encode_to_vec();
                policy.insert(*which, (offer.as_slice(), kept.file.as_ref()))?;
            }
            Write::Policy(which, None) => drop(policy.remove(*which)?),
            Write::Batch(id, samples, bytes) => drop(telemetry.insert(*id, (*samples, *bytes))?),
            Write::BatchGone(id) => drop(telemetry.remove(*id)?),
            Write::Update(kept) => {
                update.insert(CURRENT, kept.encode_to_vec().as_slice())?;
            }
            Write::Meta(key, value) => drop(meta.insert(*key, *value)?),
        }
    }
    Ok(())
}

fn encode_start(desired: &Desired) -> Vec<u8> {
    StartReplica {
        key: Some((&desired.start.key).into()),
        generation: desired.start.generation,
        pod: Some(desired.start.pod.clone()),
        command_id: 0,
        ..Default::default()
    }
    .encode_to_vec()
}

fn encode_outcome(outcome: &Finished) -> Vec<u8> {
    ReplicaReport {
        phase: outcome.phase.into(),
        exit_code: outcome.exit_code,
        reason: outcome.reason.clone(),
        message: outcome.message.clone(),
        ..Default::default()
    }
    .encode_to_vec()
}

fn decode_outcome(bytes: &[u8]) -> Option<Finished> {
    let report = ReplicaReport::decode(bytes).ok()?;
    Some(Finished {
        phase: ReplicaPhase::try_from(report.phase).ok()?,
        exit_code: report.exit_code,
        reason: report.reason,
        message: report.message,
    })
}
