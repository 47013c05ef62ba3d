//! Kubernetes events. They are for people: none is worth waiting for, and under a flood some are
//! dropped and counted in the log.

use std::time::Duration;

use hyperion_api::{MANAGER, NAMESPACE};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::decider::source::CONFIG_MAP;
use crate::index::Name;

/// Events that may wait.
const WAITING: usize = 1024;
/// Time for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// API servers refuse longer notes.
const NOTE: usize = 1000;

/// What is published.
#[derive(Debug, Clone)]
pub struct Note {
    /// About what.
    pub about: ObjectReference,
    /// Needs attention.
    pub warning: bool,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub text: String,
}

/// Queue to the publisher.
#[derive(Clone)]
pub struct Publisher {
    queue: mpsc::Sender<Note>,
}

impl Publisher {
    /// Asks for an event to be published.
    pub fn publish(&self, note: Note) {
        if self.queue.try_send(note).is_err() {
            warn!("more events than can be published: one was dropped");
        }
    }
}

/// A workload, as events name it.
#[must_use]
pub fn workload(name: &Name, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("hyperion.io/v1alpha1".to_owned()),
        kind: Some("HyperionWorkload".to_owned()),
        namespace: Some(name.namespace.clone()),
        name: Some(name.name.clone()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// A node, as events name it.
#[must_use]
pub fn node(id: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("hyperion.io/v1alpha1".to_owned()),
        kind: Some("HyperionNode".to_owned()),
        name: Some(id.to_owned()),
        ..ObjectReference::default()
    }
}

/// The policy, as events name it: its ConfigMap, whether or not there is one.
#[must_use]
pub fn policy() -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        name: Some(CONFIG_MAP.to_owned()),
        ..ObjectReference::default()
    }
}

/// Starts the publisher.
#[must_use]
pub fn start(client: kube::Client, instance: &str, stop: CancellationToken) -> Publisher {
    let (queue, mut waiting) = mpsc::channel::<Note>(WAITING);
    let reporter = Reporter {
        controller: MANAGER.to_owned(),
        instance: Some(instance.to_owned()),
    };
    let recorder = Recorder::new(client, reporter);
    tokio::spawn(async move {
        loop {
            let note = tokio::select! {
                note = waiting.recv() => note,
                () = stop.cancelled() => None,
            };
            let Some(note) = note else { return };
            let publish = publish(&recorder, &note);
            match tokio::time::timeout(PATIENCE, publish).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => debug!(about = ?note.about.name, error = %e, "event"),
                Err(_) => debug!(about = ?note.about.name, "event: no answer"),
            }
        }
    });
    Publisher { queue }
}

async fn publish(recorder: &Recorder, note: &Note) -> Result<(), kube::Error> {
    let mut text = note.text.clone();
    if text.len() > NOTE {
        let end = (0..=NOTE)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0);
        text.truncate(end);
    }
    let event = Event {
        type_: if note.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: note.reason.clone(),
        note: Some(text),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &note.about).await
}
