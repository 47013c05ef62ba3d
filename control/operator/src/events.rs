//! Kubernetes events. They are for people: none is worth waiting for, and under a flood some are
//! dropped and counted in the log.

use std::time::Duration;

use hyperion_api::{MANAGER, NAMESPACE};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event as CoreEvent, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Api, ObjectMeta, PostParams};
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
    /// When it happened, where that was not now, and what tells it from others: one that is told
    /// again is published once.
    pub past: Option<(Timestamp, u64)>,
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

/// Tells an event from others by what it says of whom, and when: FNV-1a.
#[must_use]
pub fn mark(parts: &[&str], number: u64) -> u64 {
    let parts = parts.iter().flat_map(|p| p.bytes().chain([0]));
    let bytes = parts.chain(number.to_be_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
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
    let recorder = Recorder::new(client.clone(), reporter.clone());
    tokio::spawn(async move {
        loop {
            let note = tokio::select! {
                note = waiting.recv() => note,
                () = stop.cancelled() => None,
            };
            let Some(note) = note else { return };
            let publish = async {
                match note.past {
                    Some((at, mark)) => past(&client, &reporter, &note, at, mark).await,
                    None => publish(&recorder, &note).await,
                }
            };
            match tokio::time::timeout(PATIENCE, publish).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => debug!(about = ?note.about.name, error = %e, "event"),
                Err(_) => debug!(about = ?note.about.name, "event: no answer"),
            }
        }
    });
    Publisher { queue }
}

fn short(text: &str) -> String {
    let end = (0..=NOTE.min(text.len()))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    text[..end].to_owned()
}

/// An event with a time of its own, as people see it in the order of what happened. Of the core
/// group: there alone may an event say when it was first and last seen, which is what `kubectl
/// describe` sorts by.
async fn past(
    client: &kube::Client,
    reporter: &Reporter,
    note: &Note,
    at: Timestamp,
    mark: u64,
) -> Result<(), kube::Error> {
    let namespace = note.about.namespace.as_deref().unwrap_or("default");
    let name = note.about.name.as_deref().unwrap_or_default();
    let name = name.get(..200).unwrap_or(name).trim_end_matches(['-', '.']);
    let event = CoreEvent {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{mark:016x}")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.about.clone(),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(note.reason.clone()),
        message: Some(short(&note.text)),
        action: Some("Reconcile".to_owned()),
        event_time: Some(MicroTime(at)),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        count: Some(1),
        reporting_component: Some(reporter.controller.clone()),
        reporting_instance: reporter.instance.clone(),
        ..CoreEvent::default()
    };
    let api: Api<CoreEvent> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &event).await {
        // It was told again.
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

async fn publish(recorder: &Recorder, note: &Note) -> Result<(), kube::Error> {
    let text = short(&note.text);
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
