//! What the session needs of whoever runs containers.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hyperion_proto::agent_v1::ReplicaReport;
use hyperion_proto::domain::ReplicaKey;

use crate::supervisor::{Desired, LogError, LogQuery, Supervisor};

/// Runs replicas. The session tells the whole desired state each time and reads reports back; it
/// never tells single steps, so that a start, a reconnect and an order are one code path.
pub trait Workloads: Clone + Send + Sync + 'static {
    /// Takes what should run, complete. Until the first call nothing is stopped.
    fn set_desired(&self, desired: Vec<Desired>);
    /// A replica that is to stop gets at most so much time for it: its node is about to end.
    fn hurry(&self, _key: &ReplicaKey, _grace: Duration) {}
    /// The last report of each replica.
    fn reports(&self) -> Vec<ReplicaReport>;
    /// Output of a container.
    fn logs(&self, query: LogQuery) -> BoxStream<'static, Result<Bytes, LogError>>;
}

/// None runs nothing: the agent only measures.
impl Workloads for Option<Supervisor> {
    fn set_desired(&self, desired: Vec<Desired>) {
        if let Some(supervisor) = self {
            supervisor.set_desired(desired);
        }
    }

    fn hurry(&self, key: &ReplicaKey, grace: Duration) {
        if let Some(supervisor) = self {
            supervisor.hurry(key, grace);
        }
    }

    fn reports(&self) -> Vec<ReplicaReport> {
        self.as_ref().map(Supervisor::reports).unwrap_or_default()
    }

    fn logs(&self, query: LogQuery) -> BoxStream<'static, Result<Bytes, LogError>> {
        match self {
            Some(supervisor) => supervisor.logs(query).boxed(),
            None => futures::stream::empty().boxed(),
        }
    }
}
