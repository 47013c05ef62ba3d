//! What people do at the site itself while the control plane is out of reach.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_wire::agent_v1::{RecordState, ReplicaRecord, SiteExplanation};
use hyperion_wire::convert;
use hyperion_wire::domain::ReplicaKey;

use super::Autonomy;
use crate::decide::Decide;
use crate::mode::Mode;
use crate::output::Output;

/// Uids of workloads that were applied at a site begin so.
pub const SITE_UID: &str = "site-";
/// Most replicas that are applied at once.
const MAX_APPLIED: usize = 1000;

impl Autonomy {
    /// A person applied workloads at the site: one record a replica, without node and generation.
    /// Applying a workload again changes it; replicas beyond those given end.
    ///
    /// # Errors
    /// Why they can't be taken; nothing was changed.
    pub fn apply(
        &mut self,
        records: Vec<ReplicaRecord>,
        now: Duration,
        decide: &dyn Decide,
    ) -> Result<Vec<Output>, String> {
        self.may_act_locally()?;
        let mut wanted = BTreeMap::new();
        if records.is_empty() || records.len() > MAX_APPLIED {
            return Err(format!(
                "{} replicas, 1 to {MAX_APPLIED} can be applied at once",
                records.len()
            ));
        }
        for record in records {
            let record = self.wanted(record, now)?;
            let key =
                convert::replica_key("key", record.key.as_ref()).map_err(|e| e.to_string())?;
            if wanted.insert(key.clone(), record).is_some() {
                return Err(format!("{key} twice"));
            }
        }
        let gone: Vec<ReplicaKey> = self
            .site
            .replicas()
            .filter(|(key, entry)| {
                entry.state() != RecordState::Removed
                    && !wanted.contains_key(*key)
                    && wanted
                        .keys()
                        .any(|w| w.namespace == key.namespace && w.workload == key.workload)
            })
            .map(|(key, _)| key.clone())
            .collect();
        let me = self.node_id.clone();
        let mut out = Vec::new();
        for (key, record) in wanted {
            self.site
                .merge_replica(&me, record, now)
                .map_err(|e| format!("{key}: {}", e.problem))?;
        }
        for key in gone {
            self.take_away(&key, "no longer applied at the site", now)?;
        }
        self.settle(now, None, &mut out);
        self.place(now, decide, &mut out);
        self.settle(now, None, &mut out);
        Ok(out)
    }

    /// A person deleted a workload at the site.
    ///
    /// # Errors
    /// Why not; nothing was changed.
    pub fn delete(
        &mut self,
        namespace: &str,
        workload: &str,
        now: Duration,
    ) -> Result<Vec<Output>, String> {
        self.may_act_locally()?;
        let keys: Vec<ReplicaKey> = self
            .site
            .replicas()
            .filter(|(key, entry)| {
                key.namespace == namespace
                    && key.workload == workload
                    && entry.state() != RecordState::Removed
            })
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return Err(format!("{namespace}/{workload} is not known at this site"));
        }
        let mut out = Vec::new();
        for key in keys {
            self.take_away(&key, "deleted at the site", now)?;
        }
        self.settle(now, None, &mut out);
        Ok(out)
    }

    fn may_act_locally(&self) -> Result<(), String> {
        match self.mode() {
            Mode::Autonomous => Ok(()),
            Mode::Connected => Err(
                "the control plane is in reach: use kubectl, so that it knows of the change"
                    .to_owned(),
            ),
            mode => Err(format!(
                "the site is {mode}: whether the control plane is out of reach is not certain yet"
            )),
        }
    }

    /// The record of a replica as it was applied: on the node where it runs, or without a place.
    fn wanted(&self, record: ReplicaRecord, now: Duration) -> Result<ReplicaRecord, String> {
        let applied =
            convert::replica_key("key", record.key.as_ref()).map_err(|e| e.to_string())?;
        let key = self.known_as(&applied)?;
        let known = self.site.replica(&key);
        let mut record = ReplicaRecord {
            key: Some((&key).into()),
            generation: known.map_or(1, |e| e.record.generation + 1),
            decider: self.node_id.clone(),
            state: RecordState::Pending.into(),
            node: String::new(),
            outcome: 0,
            exit_code: 0,
            explanation: Some(SiteExplanation {
                cause: "applied at the site".to_owned(),
                ..SiteExplanation::default()
            }),
            unix_ms: self.unix_ms(now),
            taken: false,
            ..record
        };
        if let Some(entry) = known
            && entry.state() == RecordState::Placed
            && self.still_fits(entry, &record)
        {
            record.state = RecordState::Placed.into();
            record.node.clone_from(&entry.record.node);
            if let (Some(pod), Some(before)) = (&mut record.pod, &entry.record.pod) {
                pod.gpus.clone_from(&before.gpus);
            }
        }
        if known.is_some_and(|e| {
            e.state() == RecordState::Placed && e.intent.as_ref().is_some_and(|i| i.exclusive)
        }) && record.node.is_empty()
        {
            return Err(format!(
                "{key} is exclusive and asks for another place now: delete it first, so that the \
                 old copy ends before a new one starts"
            ));
        }
        let read = convert::record(&record).map_err(|e| e.to_string())?;
        if let Some(problem) = read.intent_problem {
            return Err(problem);
        }
        if read.intent.is_none() {
            return Err(format!("{applied}: says nothing of what it wants"));
        }
        Ok(record)
    }

    /// A new template goes on where the old one runs, unless it asks for something else.
    fn still_fits(&self, entry: &crate::site::ReplicaEntry, record: &ReplicaRecord) -> bool {
        let asks = record.intent.as_ref().and_then(|i| convert::intent(i).ok());
        self.membership.is_live(&entry.record.node)
            && matches!((&entry.intent, asks), (Some(before), Some(now)) if before.wants == now.wants)
    }

    /// A workload that was applied here before keeps its uid, whatever it is called now.
    fn known_as(&self, applied: &ReplicaKey) -> Result<ReplicaKey, String> {
        let known = self.site.replicas().find(|(key, entry)| {
            key.namespace == applied.namespace
                && key.workload == applied.workload
                && entry.state() != RecordState::Removed
        });
        match known {
            Some((key, _)) if key.uid == applied.uid || key.uid.starts_with(SITE_UID) => {
                Ok(ReplicaKey {
                    uid: key.uid.clone(),
                    ..applied.clone()
                })
            }
            Some((key, _)) => Err(format!(
                "{}/{} is a workload of the control plane (uid {}): delete it here first, or give \
                 yours another name",
                key.namespace, key.workload, key.uid
            )),
            None => Ok(applied.clone()),
        }
    }

    fn take_away(&mut self, key: &ReplicaKey, cause: &str, now: Duration) -> Result<(), String> {
        let Some(entry) = self.site.replica(key) else {
            return Ok(());
        };
        let record = ReplicaRecord {
            key: Some(key.into()),
            generation: entry.record.generation + 1,
            decider: self.node_id.clone(),
            state: RecordState::Removed.into(),
            // The control plane is not to run again what had ended well.
            outcome: entry.record.outcome,
            exit_code: entry.record.exit_code,
            explanation: Some(SiteExplanation {
                cause: cause.to_owned(),
                ..SiteExplanation::default()
            }),
            unix_ms: self.unix_ms(now),
            ..ReplicaRecord::default()
        };
        let me = self.node_id.clone();
        self.site
            .merge_replica(&me, record, now)
            .map(drop)
            .map_err(|e| e.problem)
    }
}
