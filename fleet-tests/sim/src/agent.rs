//! An agent's process: the real node core on the real store, driven by the world.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hyperion_agent::node::Outgoing;
use hyperion_agent::supervisor::{Desired, LogError, LogQuery};
use hyperion_agent::workloads::Workloads;
use hyperion_proto::agent_v1::ReplicaReport;
use hyperion_proto::agent_v1::stream_message::Body;

use crate::runtime::Runtime;

/// The device's runtime, shared between the world and the agent on it.
#[derive(Clone)]
pub(crate) struct Containers(Arc<Mutex<Shared>>);

struct Shared {
    runtime: Runtime,
    now: Duration,
    /// The agent has said what it wants since the world looked.
    changed: bool,
    /// What it said last.
    desired: Vec<Desired>,
}

impl Containers {
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            runtime,
            now: Duration::ZERO,
            changed: false,
            desired: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Runtime) -> T) -> T {
        act(&mut self.lock().runtime)
    }

    pub(crate) fn set_now(&self, now: Duration) {
        self.lock().now = now;
    }

    /// What the agent wants, where it has said so since the last call.
    pub(crate) fn take_changed(&self) -> Option<Vec<Desired>> {
        let mut shared = self.lock();
        std::mem::take(&mut shared.changed).then(|| shared.desired.clone())
    }
}

impl Workloads for Containers {
    fn set_desired(&self, desired: Vec<Desired>) {
        let mut shared = self.lock();
        shared.changed = true;
        shared.desired.clone_from(&desired);
        shared.runtime.set_desired(desired);
    }

    fn reports(&self) -> Vec<ReplicaReport> {
        let shared = self.lock();
        shared.runtime.reports(shared.now)
    }

    fn logs(&self, _: LogQuery) -> BoxStream<'static, Result<Bytes, LogError>> {
        futures::stream::empty().boxed()
    }
}

/// The way to the control plane during one call of the node.
#[derive(Default)]
pub(crate) struct Outbox {
    open: Cell<bool>,
    sent: RefCell<Vec<Body>>,
}

impl Outbox {
    pub(crate) fn set_open(&self, open: bool) {
        self.open.set(open);
    }

    /// Ids of the orders that were confirmed during this call, in order.
    pub(crate) fn confirmed(&self) -> Vec<u64> {
        let sent = self.sent.borrow();
        let results = sent.iter().filter_map(|body| match body {
            Body::CommandResult(result) if result.ok => Some(result.command_id),
            _ => None,
        });
        results.collect()
    }

    pub(crate) fn take(&self) -> Vec<Body> {
        self.sent.take()
    }
}

impl Outgoing for Outbox {
    fn send(&self, body: Body) -> bool {
        if self.open.get() {
            self.sent.borrow_mut().push(body);
        }
        self.open.get()
    }
}
