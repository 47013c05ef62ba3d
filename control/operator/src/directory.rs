//! Which node runs which replica, for the HTTP server; and who serves agents now.

use std::collections::{BTreeMap, HashMap};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use hyperion_api::fleet::ScorerStatus;
use hyperion_gateway::Gateway;
use hyperion_proto::domain::ReplicaKey;
use prometheus_client::registry::Registry;

use crate::clusters::Clusters;
use crate::index::{Index, Name};

/// What this process is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Not connected to an API server yet.
    Starting,
    /// Another one leads.
    Standby,
    /// Serves agents and decides.
    Leader,
    /// Ends.
    Stopping,
}

/// A replica and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Where {
    /// Replica.
    pub key: ReplicaKey,
    /// Node.
    pub node: String,
    /// Of the decision.
    pub generation: u64,
}

struct Inner {
    role: Role,
    gateway: Option<Gateway>,
    clusters: Clusters,
    /// The gateway's counters: it registers them anew each time it starts.
    counters: Option<Registry>,
    replicas: HashMap<Name, BTreeMap<u32, Where>>,
    scorer: ScorerStatus,
}

/// Shared between the leader's loop (which writes) and the HTTP server (which reads).
pub struct Directory {
    inner: RwLock<Inner>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                role: Role::Starting,
                gateway: None,
                clusters: Clusters::default(),
                counters: None,
                replicas: HashMap::new(),
                scorer: ScorerStatus::default(),
            }),
        }
    }
}

impl Directory {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What this process is now.
    pub fn role(&self) -> Role {
        self.read().role
    }

    /// Not the leader (any more).
    pub fn step_down(&self, role: Role) {
        let mut inner = self.write();
        inner.role = role;
        inner.gateway = None;
        inner.clusters = Clusters::default();
        inner.counters = None;
        inner.replicas.clear();
        inner.scorer = ScorerStatus::default();
    }

    /// Who decides; nobody where this process does not lead.
    pub fn scorer(&self) -> ScorerStatus {
        self.read().scorer.clone()
    }

    /// Notes who decides.
    pub fn set_scorer(&self, scorer: ScorerStatus) {
        self.write().scorer = scorer;
    }

    /// Serves agents from now on.
    pub fn lead(&self, gateway: Gateway, counters: Registry) {
        let mut inner = self.write();
        inner.role = Role::Leader;
        inner.gateway = Some(gateway);
        inner.counters = Some(counters);
    }

    /// The gateway, where this process leads.
    pub fn gateway(&self) -> Option<Gateway> {
        self.read().gateway.clone()
    }

    /// Workload clusters; none where this process does not lead.
    pub fn clusters(&self) -> Clusters {
        self.read().clusters.clone()
    }

    /// Notes the workload clusters.
    pub fn set_clusters(&self, clusters: Clusters) {
        self.write().clusters = clusters;
    }

    /// Writes the gateway's counters.
    ///
    /// # Errors
    /// Formatting.
    pub fn encode(&self, text: &mut String) -> Result<(), std::fmt::Error> {
        match &self.read().counters {
            Some(counters) => prometheus_client::encoding::text::encode_registry(text, counters),
            None => Ok(()),
        }
    }

    /// Replicas of a workload, by number.
    pub fn replicas(&self, workload: &Name) -> BTreeMap<u32, Where> {
        self.read()
            .replicas
            .get(workload)
            .cloned()
            .unwrap_or_default()
    }

    /// Takes a workload's placements over from the index.
    pub fn update(&self, workload: &Name, index: &Index) {
        let fresh: BTreeMap<u32, Where> = index
            .placements_of(workload)
            .map(|p| {
                let place = Where {
                    key: p.key.clone(),
                    node: p.spec.node.clone(),
                    generation: u64::try_from(p.spec.generation).unwrap_or(0),
                };
                (p.key.index, place)
            })
            .collect();
        let mut inner = self.write();
        if fresh.is_empty() {
            inner.replicas.remove(workload);
        } else if inner.replicas.get(workload) != Some(&fresh) {
            inner.replicas.insert(workload.clone(), fresh);
        }
    }
}
